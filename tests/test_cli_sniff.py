"""``bytetalk sniff``: messages that pass are shown, and nothing of that is in their way."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from click.testing import CliRunner
from conftest import Tls
from pairs import Stream, frame, memory, read_exactly, read_to_end, tcp
from pairs import reset as reset_pair

from trio_bytetalk import Codec, LengthPrefixed, Lines
from trio_bytetalk._cli import printer as printer_module
from trio_bytetalk._cli.addresses import Address
from trio_bytetalk._cli.main import program
from trio_bytetalk._cli.printer import Printer
from trio_bytetalk._cli.sniff import Sniffer, run, transcript_for
from trio_bytetalk._cli.transcript import JsonLines, Readable

TIME = re.compile(r"^\d\d:\d\d:\d\d\.\d{3} |(?<=after )\d+\.\d{3}(?= s)", re.MULTILINE)


@attrs.define(eq=False)
class Sniffed:
    """A sniffer whose targets are in memory."""

    sniffer: Sniffer = attrs.field(init=False)
    servers: list[Any] = attrs.field(factory=list)
    failure: BaseException | None = None
    written: list[str] = attrs.field(factory=list)

    @classmethod
    def of(cls, codec: Codec[Any, Any], reply_codec: Codec[Any, Any], **settings: Any) -> Sniffed:
        self = cls()
        printer = Printer(self.written.append, lambda count: f"({count} not shown)")
        settings = {"most_undecoded": 2**20, **settings}
        self.sniffer = Sniffer(
            self.connect, codec, reply_codec, Readable(1000), printer, **settings
        )
        return self

    async def connect(self) -> trio.abc.Stream:
        if self.failure is not None:
            raise self.failure
        target, server = memory()
        self.servers.append(server)
        return target

    @contextlib.asynccontextmanager
    async def conversation(self) -> AsyncIterator[tuple[Stream, Stream]]:
        """A user and a server, which both finish at the end of the block."""
        user, client = memory()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.sniffer.converse, client, "user")
            await trio.testing.wait_all_tasks_blocked()
            yield user, self.servers[-1]
            for stream in (user, self.servers[-1]):
                await stream.send_eof()

    async def lines(self) -> list[str]:
        """What is printed, without the time."""
        self.sniffer.printer.close()
        await self.sniffer.printer.run()
        return TIME.sub("", "".join(self.written)).splitlines()


async def test_a_conversation_from_its_beginning_to_its_end() -> None:
    sniffed = Sniffed.of(LengthPrefixed(), LengthPrefixed())
    async with sniffed.conversation() as (user, server):
        await user.send_all(frame(b"hello") + frame(b"you"))
        assert await server.receive_some() == frame(b"hello") + frame(b"you")
        await trio.testing.wait_all_tasks_blocked()
        await server.send_all(frame(b"world"))
        assert await user.receive_some() == frame(b"world")
    assert await sniffed.lines() == [
        "   #1   user connected",
        "   #1 →       9  hello",
        "   #1 →       7  you",
        "   #1 ←       9  world",
        "   #1   closed after  s: → 2 messages, 16 bytes; ← 1 message, 9 bytes",
    ]
    assert sniffed.sniffer.summary() == (
        "1 connection: → 2 messages, 16 bytes; ← 1 message, 9 bytes"
    )


async def test_each_direction_has_its_codec_and_each_connection_its_number() -> None:
    sniffed = Sniffed.of(Lines(), LengthPrefixed())
    for _ in range(2):
        async with sniffed.conversation() as (user, server):
            await user.send_all(b"hel")
            await trio.testing.wait_all_tasks_blocked()
            await user.send_all(b"lo\n")
            await server.send_all(frame(b"world"))
            await trio.testing.wait_all_tasks_blocked()
    lines = await sniffed.lines()
    assert [line for line in lines if "→ " in line and "closed" not in line] == [
        "   #1 →       6  hello",
        "   #2 →       6  hello",
    ]
    assert [line for line in lines if "← " in line and "closed" not in line] == [
        "   #1 ←       9  world",
        "   #2 ←       9  world",
    ]
    assert sniffed.sniffer.summary() == (
        "2 connections: → 2 messages, 12 bytes; ← 2 messages, 18 bytes"
    )


async def test_what_cannot_be_decoded_is_told_once_and_passes() -> None:
    sniffed = Sniffed.of(LengthPrefixed(), LengthPrefixed())
    request = b"GET / HTTP/1.1\r\n\r\n"
    async with sniffed.conversation() as (user, server):
        await user.send_all(frame(b"hi"))
        for _ in range(3):
            await user.send_all(request)
            await trio.testing.wait_all_tasks_blocked()
        await server.send_all(frame(b"what?"))
        assert await user.receive_some() == frame(b"what?")
        assert await read_exactly(server, 6 + 3 * len(request)) == frame(b"hi") + 3 * request
    _, message, problem, dump, reply, closed = await sniffed.lines()
    assert message == "   #1 →       6  hi"
    assert problem.startswith("   #1 → not decodable from byte 6 on: the peer announced a message")
    assert problem.endswith("; still passing bytes")
    assert "|GET / HTTP/1.1..|" in dump
    assert reply == "   #1 ←       9  what?"
    assert closed.endswith("→ 1 message, 60 bytes; ← 1 message, 9 bytes")


async def test_an_unfinished_message_is_told() -> None:
    sniffed = Sniffed.of(LengthPrefixed(), LengthPrefixed())
    async with sniffed.conversation() as (user, _server):
        await user.send_all(frame(b"hello")[:6])
    assert any("unfinished from byte 0 on" in line for line in await sniffed.lines())


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (
            ConnectionRefusedError(errno.ECONNREFUSED, "cannot connect to x:1"),
            "cannot connect to x:1 (is the server running?)",
        ),
        (
            trio.BrokenResourceError("the TLS handshake failed"),
            "the TLS handshake failed (does the server use TLS?)",
        ),
    ],
)
async def test_a_target_that_is_not_there_ends_that_connection_only(
    failure: BaseException, words: str
) -> None:
    sniffed = Sniffed.of(LengthPrefixed(), LengthPrefixed())
    sniffed.failure = failure
    user, client = tcp()
    await sniffed.sniffer.converse(client, "user")
    sniffed.failure = None
    with pytest.raises(trio.BrokenResourceError) as caught:
        await user.receive_some()
    assert isinstance(caught.value.__cause__, ConnectionResetError)
    await user.aclose()
    async with sniffed.conversation() as (another, server):
        await another.send_all(frame(b"hi"))
        assert await server.receive_some() == frame(b"hi")
    lines = await sniffed.lines()
    assert lines[:4] == [
        "   #1   user connected",
        f"   #1   {words}",
        "   #2   user connected",
        "   #2 →       6  hi",
    ]


async def test_a_connection_that_is_cancelled_before_it_has_a_target_is_closed() -> None:
    sniffed = Sniffed.of(LengthPrefixed(), LengthPrefixed())
    sniffed.sniffer.connect = trio.sleep_forever
    user, client = memory()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sniffed.sniffer.converse, client, "user")
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert await user.receive_some() == b""


@attrs.frozen
class Mistaken(Codec[bytes, bytes]):
    """A codec that has no reader."""

    def reader(self) -> Any:
        raise NotImplementedError

    def writer(self) -> Any:
        raise NotImplementedError


async def test_a_codec_without_readers_is_told_and_in_nobodys_way() -> None:
    sniffed = Sniffed.of(LengthPrefixed(), Mistaken())
    async with sniffed.conversation() as (user, server):
        await server.send_all(frame(b"hello"))
        assert await read_exactly(user, 9) == frame(b"hello")
    assert any("the codec failed: NotImplementedError" in line for line in await sniffed.lines())


async def test_a_broken_connection_says_who_left() -> None:
    sniffed = Sniffed.of(LengthPrefixed(), LengthPrefixed())
    user, client = tcp()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sniffed.sniffer.converse, client, "user")
        await trio.testing.wait_all_tasks_blocked()
        reset_pair(user)
    assert (await sniffed.lines())[-1] == (
        "   #1   the client is gone: Connection reset by peer after  s: "
        "→ 0 messages, 0 bytes; ← 0 messages, 0 bytes"
    )


async def test_clients_by_tls(tls: Tls) -> None:
    sniffed = Sniffed.of(LengthPrefixed(), LengthPrefixed(), ssl_context=tls.server)
    raw, client = memory()
    user = tls.at_client(raw)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sniffed.sniffer.converse, client, "user")
        await user.send_all(frame(b"hello"))
        await trio.testing.wait_all_tasks_blocked()
        (server,) = sniffed.servers
        assert await server.receive_some() == frame(b"hello")  # which is not encrypted
        await server.send_eof()
    assert "   #1 →       9  hello" in await sniffed.lines()


async def test_a_client_that_speaks_no_tls(tls: Tls) -> None:
    sniffed = Sniffed.of(LengthPrefixed(), LengthPrefixed(), ssl_context=tls.server)
    user, client = memory()
    await user.send_all(b"GET / HTTP/1.1\r\n\r\n")
    await sniffed.sniffer.converse(client, "user")
    (_, line) = await sniffed.lines()
    assert re.search("no TLS with the client: the TLS handshake failed: .*http.request$", line)
    assert sniffed.servers == []


# -- much of it


async def test_an_output_that_takes_nothing_holds_up_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(printer_module, "_MOST_LINES", 3)
    sniffed = Sniffed.of(LengthPrefixed().text(), LengthPrefixed())
    data = frame(b"hello") * 10 + frame(b"\xff") + b"\xff" * 10
    async with sniffed.conversation() as (user, server):
        await user.send_all(data)  # the printer has not even begun
        assert await server.receive_some() == data
        await trio.testing.wait_all_tasks_blocked()
    lines = await sniffed.lines()
    assert lines[1:4] == ["   #1 →       9  hello"] * 2 + ["(9 not shown)"]
    assert "not decodable from byte 95 on" in lines[4]  # what is told only once is told
    assert lines[-1].endswith("→ 10 messages, 105 bytes; ← 0 messages, 0 bytes")
    assert sniffed.sniffer.summary() == (
        "1 connection: → 10 messages, 105 bytes; ← 0 messages, 0 bytes; 9 lines not shown"
    )


async def test_others_have_their_turn_while_many_messages_are_shown() -> None:
    sniffed = Sniffed.of(LengthPrefixed(), LengthPrefixed())
    turns = 0
    async with sniffed.conversation() as (user, _server):
        await user.send_all(frame(b"") * 1000)
        while sniffed.sniffer.requests.messages < 1000:
            turns += 1
            await trio.lowlevel.checkpoint()
    assert turns >= 10


async def test_many_connections_at_once() -> None:
    sniffed = Sniffed.of(LengthPrefixed(), LengthPrefixed())

    pairs = [memory() for _ in range(100)]
    async with trio.open_nursery() as nursery:
        for number, (user, client) in enumerate(pairs):
            nursery.start_soon(sniffed.sniffer.converse, client, "user")
            await user.send_all(frame(b"%d" % number))
        await trio.testing.wait_all_tasks_blocked()
        heard = {bytes(await server.receive_some()) for server in sniffed.servers}
        assert heard == {frame(b"%d" % number) for number in range(100)}
        for user, _client in pairs:
            await user.send_eof()
        for server in sniffed.servers:
            await server.send_eof()
    lines = await sniffed.lines()
    for what in ("connected", "→       ", "closed"):
        assert len([line for line in lines if what in line]) == 100
    assert sniffed.sniffer.summary().startswith("100 connections: → 100 messages, ")


# -- accepting


@attrs.define(eq=False)
class Listener(trio.abc.Listener[trio.SocketStream]):
    """What can be accepted, or what goes wrong; then nothing more."""

    outcomes: list[trio.SocketStream | OSError]

    async def accept(self) -> trio.SocketStream:
        if not self.outcomes:
            await trio.sleep_forever()
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, OSError):
            raise outcome
        return outcome

    async def aclose(self) -> None:
        raise AssertionError("it is not the sniffer's to close")


async def test_out_of_descriptors_it_says_so_and_goes_on(autojump_clock: object) -> None:
    sniffed = Sniffed.of(LengthPrefixed(), LengthPrefixed())
    user, client = tcp()
    listener = Listener([OSError(errno.EMFILE, "Too many open files"), client])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sniffed.sniffer.accept, [listener], nursery)
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    name = "{}:{}".format(*user.socket.getsockname())
    assert await sniffed.lines() == [
        "        accepting no connections for now: Too many open files",
        f"   #1   {name} connected",
    ]
    await user.aclose()


async def test_a_client_that_is_gone_before_it_is_asked_for_its_name() -> None:
    sniffed = Sniffed.of(LengthPrefixed(), LengthPrefixed())
    user, client = tcp()
    reset_pair(user)
    with pytest.raises(trio.BrokenResourceError):
        await client.receive_some()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sniffed.sniffer.accept, [Listener([client])], nursery)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert (await sniffed.lines())[0] == "   #1   a client connected"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), "nobody reads the output any more"),
        (OSError(errno.ENOSPC, "No space left"), "the output has failed: No space left"),
    ],
)
async def test_an_output_that_fails_breaks_no_connection(error: OSError, reason: str) -> None:
    sniffed = Sniffed.of(LengthPrefixed(), LengthPrefixed())
    said: list[str] = []
    outcome: list[bool] = []

    def write(_text: str) -> None:
        raise error

    async def run_it() -> None:
        listen, target = Address("127.0.0.1"), Address("example", 1)
        outcome.append(await run(sniffed.sniffer, listen, target, said.append))

    sniffed.sniffer.printer.write = write
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_it)
        while not said:
            await trio.lowlevel.checkpoint()
        port = int(said[0].split(",")[0].rpartition(":")[2])
        user = await trio.open_tcp_stream("127.0.0.1", port)
        while len(said) < 2:
            await trio.lowlevel.checkpoint()
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(OSError, match="connect"):
            await trio.open_tcp_stream("127.0.0.1", port)
        (server,) = sniffed.servers
        await user.send_all(frame(b"hello"))
        assert await server.receive_some() == frame(b"hello")
        await user.send_eof()
        await server.send_eof()
        assert await read_to_end(user) == b""
        await user.aclose()
    assert said[1:] == [
        f"{reason}; no more connections are accepted, and those that are open go on unseen"
    ]
    assert outcome == [False]
    assert sniffed.sniffer.summary() == (
        "1 connection: → 1 message, 9 bytes; ← 0 messages, 0 bytes; 3 lines not shown"
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_it_listens_until_a_signal_ends_it_and_prints_what_is_left(
    number: signal.Signals,
) -> None:
    sniffed = Sniffed.of(LengthPrefixed(), LengthPrefixed())
    said: list[str] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            run, sniffed.sniffer, Address("127.0.0.1"), Address("example", 1), said.append
        )
        while not said:
            await trio.lowlevel.checkpoint()
        match = re.fullmatch(
            r"listening on 127\.0\.0\.1:(\d+), passing on to example:1; Ctrl-C ends it", said[0]
        )
        assert match is not None
        user = await trio.open_tcp_stream("127.0.0.1", int(match[1]))
        await user.send_all(frame(b"hello"))
        while not sniffed.servers:
            await trio.lowlevel.checkpoint()
        assert await sniffed.servers[0].receive_some() == frame(b"hello")
        signal.raise_signal(number)
        with pytest.raises(trio.BrokenResourceError):  # what is cut short does not look finished
            await user.receive_some()
        await user.aclose()
    lines = await sniffed.lines()
    assert len(lines) == 2
    assert lines[1] == "   #1 →       9  hello"


async def test_an_output_that_is_stopped_does_not_hold_up_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("trio_bytetalk._cli.sniff._LAST_LINES", 0)
    sniffed = Sniffed.of(LengthPrefixed(), LengthPrefixed())
    stopped, may_go_on = threading.Event(), threading.Event()

    def write(_text: str) -> None:
        stopped.set()
        may_go_on.wait()

    sniffed.sniffer.printer.write = write
    sniffed.sniffer.printer.put("a line")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            run, sniffed.sniffer, Address("127.0.0.1"), Address("example", 1), lambda _line: None
        )
        await trio.to_thread.run_sync(stopped.wait)
        await trio.testing.wait_all_tasks_blocked()
        sniffed.sniffer.printer.put("another line")
        signal.raise_signal(signal.SIGINT)
    may_go_on.set()
    assert sniffed.sniffer.summary().endswith("; 1 line not shown")


# -- the command


RUNNER = CliRunner()


def invoke(*arguments: str) -> Any:
    return RUNNER.invoke(program, ["sniff", *arguments], prog_name="bytetalk")


def test_help_fits_a_terminal_of_80_columns() -> None:
    outcome = invoke("--help")
    assert outcome.exit_code == 0
    assert max(map(len, outcome.output.splitlines())) <= 80
    for option in ("--codec", "--reply-codec", "--hex", "--json", "--tls-cert", "--tls-ca"):
        assert option in outcome.output


def test_a_port_in_use_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        outcome = invoke(f"127.0.0.1:{port}", "localhost:1")
    assert outcome.exit_code == 1
    assert outcome.stdout == ""
    assert outcome.stderr == (
        f"Error: cannot listen on '127.0.0.1' port {port}: Address already in use "
        "(give another port; 0 has the system choose)\n"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("localhost:1",),
        ("nowhere", "localhost:1"),
        ("localhost:1", "localhost:2", "--codec", "nothing"),
        ("localhost:1", "localhost:2", "--reply-codec", "nothing"),
        ("localhost:1", "localhost:2", "--tls-key", __file__),
        ("localhost:1", "localhost:2", "--max-shown", "-1"),
        ("localhost:1", "localhost:2", "--max-undecoded", "16Q"),
    ],
)
def test_a_wrong_command_line(arguments: tuple[str, ...]) -> None:
    outcome = invoke(*arguments)
    assert outcome.exit_code == 2
    assert outcome.stdout == ""


def test_it_does_not_connect_to_itself(tmp_path: Path) -> None:
    listen, target = tmp_path / "listen", tmp_path / "target"
    target.symlink_to(listen)
    outcome = invoke(str(listen), str(target))
    assert outcome.exit_code == 2
    assert outcome.stderr == (
        f"Error: TARGET unix:{target} is LISTEN unix:{listen}: it would connect to itself "
        "(see 'bytetalk sniff --help')\n"
    )
    assert not listen.exists()


@attrs.define
class Outside:
    """A server and its user in a thread, on Unix sockets, who then interrupt the program."""

    directory: Path
    say: Callable[[socket.socket, socket.socket], None]
    is_interrupting: bool = True
    failure: BaseException | None = None

    def run(self) -> None:
        try:
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(os.fspath(self.directory / "target"))
                listener.listen()
                listener.settimeout(50)
                with self._connected() as user, listener.accept()[0] as server:
                    self.say(user, server)
        except BaseException as error:  # noqa: BLE001 - the test raises it
            self.failure = error
        finally:
            if self.is_interrupting or self.failure is not None:
                os.kill(os.getpid(), signal.SIGINT)

    def _connected(self) -> socket.socket:
        while True:
            user = socket.socket(socket.AF_UNIX)
            try:
                user.connect(os.fspath(self.directory / "listen"))
            except OSError:
                user.close()
            else:
                return user


def sniff_outside(
    directory: Path,
    say: Callable[[socket.socket, socket.socket], None],
    *options: str,
    is_interrupted: bool = True,
) -> Any:
    """What the command prints about a conversation."""
    outside = Outside(directory, say, is_interrupted)
    thread = threading.Thread(target=outside.run)
    thread.start()
    outcome = invoke(os.fspath(directory / "listen"), os.fspath(directory / "target"), *options)
    thread.join()
    if outside.failure is not None:
        raise outside.failure
    assert not (directory / "listen").exists()
    return outcome


def hello(user: socket.socket, server: socket.socket) -> None:
    user.sendall(frame(b"hello"))
    assert server.recv(100) == frame(b"hello")
    server.sendall(b'{"a": 1}\n')
    assert user.recv(100) == b'{"a": 1}\n'
    user.close()
    assert server.recv(100) == b""
    server.close()


def test_the_command(tmp_path: Path) -> None:
    outcome = sniff_outside(tmp_path, hello, "--reply-codec", "json+lines", "--hex")
    assert outcome.exit_code == 0
    start, end = outcome.stderr.splitlines()
    assert start == (
        f"listening on unix:{tmp_path}/listen, passing on to unix:{tmp_path}/target; Ctrl-C ends it"
    )
    assert end == "1 connection: → 1 message, 9 bytes; ← 1 message, 9 bytes"
    lines = TIME.sub("", outcome.stdout).splitlines()
    assert lines[:5] == [
        "   #1   unix connected",
        "   #1 →       9  hello",
        "  00000000  00 00 00 05 68 65 6c 6c 6f                       |....hello|",
        '   #1 ←       9  {"a": 1}',
        '  00000000  7b 22 61 22 3a 20 31 7d 0a                       |{"a": 1}.|',
    ]


def test_the_command_where_there_are_no_arrows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RUNNER, "charset", "ascii")
    outcome = sniff_outside(tmp_path, hello, "--reply-codec", "json+lines")
    lines = TIME.sub("", outcome.stdout).splitlines()
    assert lines[1:3] == ["   #1 >       9  hello", '   #1 <       9  {"a": 1}']
    assert outcome.stderr.endswith("\n1 connection: > 1 message, 9 bytes; < 1 message, 9 bytes\n")


@pytest.mark.parametrize(("is_whole", "code"), [(True, 0), (False, 1)])
def test_the_exit_code_says_whether_the_output_has_failed(
    is_whole: bool, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trio_bytetalk._cli.failures.run", lambda *_: is_whole)
    outcome = invoke("localhost:1", "localhost:2")
    assert outcome.exit_code == code
    assert outcome.stderr.startswith("0 connections: ")


@pytest.mark.parametrize("number", [errno.EPIPE, errno.ENOSPC])
def test_nobody_needs_to_read_what_is_said_on_stderr(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("trio_bytetalk._cli.sniff.click.echo", fail)
    outcome = sniff_outside(tmp_path, hello)
    assert outcome.exit_code == 0
    assert "hello" in outcome.stdout


@pytest.mark.parametrize("number", [errno.EPIPE, errno.ENOSPC])
def test_where_both_outputs_fail_the_connections_go_on(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    told = threading.Event()

    def fail(text: str, **_: object) -> None:
        said.append(text)
        if "the output has failed" in text or "nobody reads" in text:
            told.set()
        raise OSError(number, os.strerror(number))

    def hello_unseen(user: socket.socket, server: socket.socket) -> None:
        assert told.wait(50)
        hello(user, server)

    monkeypatch.setattr("trio_bytetalk._cli.sniff.click.echo", fail)
    monkeypatch.setattr("trio_bytetalk._cli.sniff.writing_to", lambda _: fail)
    outcome = sniff_outside(tmp_path, hello_unseen, is_interrupted=False)
    assert outcome.exit_code == 1
    assert said[-1].startswith("1 connection: → 1 message, 9 bytes; ← 0 messages, 9 bytes; ")


def test_the_command_for_scripts(tmp_path: Path) -> None:
    outcome = sniff_outside(tmp_path, hello, "--reply-codec", "json+lines", "--json")
    lines = [json.loads(line) for line in outcome.stdout.splitlines()]
    assert [line["event"] for line in lines[:3]] == ["opened", "message", "message"]
    assert [line["message"] for line in lines[1:3]] == ["hello", {"a": 1}]
    assert [line["direction"] for line in lines[1:3]] == ["to_target", "to_client"]


def test_what_is_not_shown_is_said_on_the_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(printer_module, "_MOST_CHARACTERS", 0)
    outcome = sniff_outside(tmp_path, hello, "--reply-codec", "lines")
    notes = re.findall(r"\.\.\. (\d) lines? not shown: the output is too slow\n", outcome.stdout)
    assert sum(map(int, notes)) == 2
    assert outcome.stderr.endswith("; 2 lines not shown\n")


@pytest.mark.parametrize(
    ("is_terminal", "variables", "colours"),
    [
        (True, {"TERM": "xterm-256color"}, True),
        (True, {"TERM": "xterm-256color", "NO_COLOR": "1"}, False),
        (True, {"TERM": "dumb"}, False),
        (False, {"TERM": "xterm-256color"}, False),
    ],
)
def test_colours_are_for_terminals(
    is_terminal: bool,
    variables: dict[str, str],
    colours: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: is_terminal)
    transcript = transcript_for(stream, json=False, dump=True, most=7)
    assert transcript == Readable(7, True, colours)
    assert transcript_for(stream, json=True, dump=True, most=7) == JsonLines()


# -- the program, where the interpreter's own end matters


@attrs.frozen
class Program:
    process: trio.Process
    user: trio.SocketStream
    server: trio.SocketStream

    async def end(self) -> tuple[int, str]:
        """Its exit code, and what it said on stderr since it listened."""
        assert self.process.stderr is not None
        said = await read_to_end(self.process.stderr)
        return await self.process.wait(), said.decode()


@contextlib.asynccontextmanager
async def started(directory: Path, stdout: int) -> AsyncIterator[Program]:
    """The program in a process of its own, with a connection through it."""
    listen, target = (os.fspath(directory / name) for name in ("listen", "target"))
    command = [sys.executable, "-m", "trio_bytetalk", "sniff", listen, target]
    listener = trio.socket.socket(trio.socket.AF_UNIX)
    await listener.bind(target)
    listener.listen()
    process = await trio.lowlevel.open_process(command, stdout=stdout, stderr=subprocess.PIPE)
    assert process.stderr is not None
    with listener:
        try:
            said = b""
            while not said.endswith(b"\n"):
                chunk = await process.stderr.receive_some()
                assert chunk, said
                said += chunk
            user = await trio.open_unix_socket(listen)
            accepted, _ = await listener.accept()
            async with user, trio.SocketStream(accepted) as server:
                yield Program(process, user, server)
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
            await process.stderr.aclose()


async def test_a_pipe_that_nobody_reads_holds_up_neither_the_bytes_nor_the_end(
    tmp_path: Path,
) -> None:
    reading, writing = os.pipe()
    data = frame(b"x" * 100) * 5000
    async with started(tmp_path, writing) as program, trio.open_nursery() as nursery:
        nursery.start_soon(program.user.send_all, data)
        assert await read_exactly(program.server, len(data)) == data
        program.process.send_signal(signal.SIGINT)
        code, said = await program.end()
    os.close(reading)
    os.close(writing)
    assert code == 0
    assert said.startswith("1 connection: → ")
    assert "not shown" in said


async def test_a_pipe_that_is_closed_ends_it_when_the_connections_have_ended(
    tmp_path: Path,
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    async with started(tmp_path, writing) as program:
        assert program.process.stderr is not None
        said = bytes(await program.process.stderr.receive_some())
        assert said.startswith(b"nobody reads the output any more; no more connections are")
        for _ in range(3):
            await program.user.send_all(b"hello")
            assert await program.server.receive_some() == b"hello"
        while (tmp_path / "listen").exists():
            await trio.lowlevel.checkpoint()
        await program.user.send_eof()
        assert await program.server.receive_some() == b""
        await program.server.send_all(b"goodbye")
        await program.server.send_eof()
        assert await read_to_end(program.user) == b"goodbye"
        code, end = await program.end()
    os.close(writing)
    assert code == 1
    assert end.startswith("1 connection: → 0 messages, 15 bytes; ← 0 messages, 7 bytes; ")
