"""``bytetalk connect``, with real sockets; and the real program, at a real terminal."""

from __future__ import annotations

import contextlib
import io
import math
import os
import pty
import re
import select
import signal
import ssl
import subprocess
import sys
import termios
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing
import trustme
from pairs import memory
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

import trio_bytetalk
from trio_bytetalk import Chunks, Connection, Netstring, Server, open_connection
from trio_bytetalk._cli import connect
from trio_bytetalk._cli.logs import Unsent
from trio_bytetalk._cli.main import program

CTRL_C, CTRL_D = "\x03", "\x04"

# What a test of the real program takes is about a second; this is for a busy machine.
PATIENCE = 50


async def echo(connection: Connection[Any, Any]) -> None:
    async for message in connection:
        await connection.send(message)


async def silent(connection: Connection[Any, Any]) -> None:
    async for _ in connection:
        pass


async def brief(connection: Connection[Any, Any]) -> None:
    await connection.receive()


async def deaf(connection: Connection[Any, Any]) -> None:
    """Answer at once, and take no more."""
    connection.use(Chunks())
    await connection.receive()
    await connection.send(b"\0\0\0\x07not now")
    await trio.sleep_forever()


async def flood(connection: Connection[Any, Any]) -> None:
    while True:
        await connection.send(b"as fast as it goes")


async def half(connection: Connection[Any, Any]) -> None:
    """Receive a message, and send a part of one."""
    await connection.receive()
    connection.use(Chunks())
    await connection.send(b"\0\0\0\x05hi")


async def serve(nursery: trio.Nursery, handler: Any = echo, **options: Any) -> int:
    """Serve on a port."""
    context = options.pop("ssl_context", None)
    server = Server(handler, **options)
    listeners = await nursery.start(
        partial(server.serve_tcp, 0, host="127.0.0.1", ssl_context=context)
    )
    port: int = listeners[0].socket.getsockname()[1]
    return port


@attrs.frozen
class Outcome:
    code: int
    output: str
    errors: str


class Terminal(io.TextIOWrapper):
    """A file that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


Run = Callable[..., Any]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run the command in a thread, with files in the place of the standard streams."""
    monkeypatch.setenv("TERM", "xterm")

    async def run(
        *words: object, given: bytes = b"", kind: type[io.TextIOWrapper] = io.TextIOWrapper
    ) -> Outcome:
        (tmp_path / "input").write_bytes(given)
        arguments = ["connect", *map(str, words)]
        with (
            kind((tmp_path / "input").open("rb")) as stdin,
            kind((tmp_path / "output").open("wb")) as stdout,
            monkeypatch.context() as patch,
        ):
            patch.setattr(sys, "stdin", stdin)
            patch.setattr(sys, "stdout", stdout)
            # Signals are the main thread's, which the server of these tests is in.
            patch.setattr(connect, "_sigterm_as_ctrl_c", lambda **_: contextlib.nullcontext())
            with pytest.raises(SystemExit) as ended:
                await trio.to_thread.run_sync(partial(program.main, arguments, "bytetalk"))
        code = ended.value.code
        assert isinstance(code, int)
        return Outcome(code, (tmp_path / "output").read_text(), capsys.readouterr().err)

    return run


# -- through pipes


async def test_hello(run: Run, nursery: trio.Nursery) -> None:
    port = await serve(nursery)
    assert await run(f":{port}", given=b"hello\nw\\x00rld\n") == Outcome(
        0, "hello\nw\\x00rld\n", ""
    )


async def test_options(run: Run, nursery: trio.Nursery, tmp_path: Path) -> None:
    port = await serve(nursery, codec=Netstring())
    words = [f"127.0.0.1:{port}", "-c", "netstring"]
    whole = await run(*words, "--input", "whole", "--output", "raw", given=b"a\nb\\")
    assert whole == Outcome(0, "a\nb\\", "")
    raw = await run(*words, "-i", "raw", "-n", 2, given=b"1:a,1:b,1:c,")
    assert raw == Outcome(0, "a\nb\n", "")
    few = await run(*words, "-n", 2, given=b"a")
    assert few == Outcome(1, "a\n", "Error: only 1 of 2 replies came\n")
    waited = await run(*words, "--wait", "none", "--replies", 1, given=b"a")
    assert waited == Outcome(0, "a\n", "")


async def test_a_unix_socket(run: Run, nursery: trio.Nursery, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    await nursery.start(Server(echo).serve_unix, str(path))
    assert await run(path, given=b"hello") == Outcome(0, "hello\n", "")


async def test_errors_are_one_line(run: Run, nursery: trio.Nursery) -> None:
    port = await serve(nursery, brief)
    bad = await run(f":{port}", given=b"\\q\n")
    assert (bad.code, bad.output) == (2, "")
    assert bad.errors.startswith(r"Error: line 1 of the input: \q is no escape")
    port = await serve(nursery, half, codec=Netstring())
    garbage = await run(f":{port}", "-c", "netstring", given=b"hello")
    assert garbage.code == 1
    assert garbage.errors.endswith(" (is --codec the one that the server uses?)\n")
    assert garbage.errors.count("\n") == 1


async def test_nobody_is_there(run: Run) -> None:
    with trio.socket.socket() as unused:
        await unused.bind(("127.0.0.1", 0))
        refused = await run(f"127.0.0.1:{unused.getsockname()[1]}")
    assert refused.code == 1
    assert refused.errors.endswith("(is the server running?)\n")
    assert refused.errors.count("\n") == 1


async def test_connecting_takes_too_long(run: Run) -> None:
    with trio.socket.socket() as listener:
        await listener.bind(("127.0.0.1", 0))
        listener.listen()
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        slow = await run(address, "--tls", "--timeout", 0.1)
    assert slow == Outcome(1, "", f"Error: no connection to {address} in 0.1 seconds (--timeout)\n")


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["nonsense"], "an address is HOST:PORT"),
        ([":1", "-c", "line"], "there is no codec 'line'"),
        ([":1", "--tls-ca", "/no/such"], "'/no/such' does not exist"),
        ([":1", "--replies", "0"], "0 is not in the range"),
        ([":1", "--wait", "nan"], "at least 0 seconds, or 'none', were expected, not 'nan'"),
        ([":1", "--timeout", "nan"], "more than 0 seconds, or 'none', were expected, not 'nan'"),
    ],
)
async def test_a_command_line_that_is_wrong(words: list[str], hint: str, run: Run) -> None:
    wrong = await run(*words)
    assert (wrong.code, wrong.output) == (2, "")
    assert hint in wrong.errors


async def test_raw_bytes_are_not_for_a_terminal(run: Run) -> None:
    wrong = await run(":1", "--output", "raw", kind=Terminal)
    assert wrong.code == 2
    assert "--output raw is not for a terminal" in wrong.errors


async def test_there_is_no_silence_to_wait_for_at_a_terminal(run: Run) -> None:
    wrong = await run(":1", "--wait", 1, kind=Terminal)
    assert wrong.code == 2
    assert wrong.errors.startswith("Error: --wait is for input that ends, from a pipe or a file; ")


async def test_tls_ends_after_a_silence(
    run: Run,
    nursery: trio.Nursery,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    words = ["--tls-ca", tmp_path / "ca.pem"]
    address = f"127.0.0.1:{await serve(nursery, ssl_context=context)}"
    assert await run(address, *words, "-n", 1, given=b"hello") == Outcome(0, "hello\n", "")
    monkeypatch.setattr(connect, "_TLS_WAIT", 0.1)
    address = f"127.0.0.1:{await serve(nursery, silent, ssl_context=context)}"
    assert await run(address, *words, given=b"hello") == Outcome(0, "", "")
    unknown = await run(address, "--tls")
    assert unknown.code == 1
    assert "--tls-ca FILE" in unknown.errors


async def test_a_peer_that_answers_nothing_may_speak_otherwise(
    run: Run, nursery: trio.Nursery, tmp_path: Path
) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("localhost").configure_cert(context)
    words = (
        "the peer finished and sent nothing (if that is not its way: does it use TLS, or another "
        "codec?)\n"
    )
    for handler, options in ((silent, {}), (echo, {"ssl_context": context})):
        port = await serve(nursery, handler, **options)
        assert await run(f":{port}", given=b"hello") == Outcome(0, "", words)
        if not options:
            assert await run(f":{port}", given=b"") == Outcome(0, "", "")


async def test_what_the_peer_has_not_taken_is_told(run: Run, nursery: trio.Nursery) -> None:
    port = await serve(nursery, deaf)
    words = [f":{port}", "-i", "whole", "-n", 1, "-c", "length:4,max_size=64M"]
    done = await run(*words, given=bytes(50_000_000))
    assert (done.code, done.output) == (0, "not now\n")
    assert re.fullmatch(r"the peer has not taken [0-9,]+ bytes\n", done.errors)


async def test_standard_streams_that_are_closed(
    run: Run, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert connect._reader(None)() == b""
    connect._writer(None)(b"to nobody")
    assert not connect._is_terminal(None)


def test_an_input_that_does_not_block_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    system_select: Callable[..., object] = select.select

    def write_and_select(*descriptors: object) -> object:
        os.write(writing, b"hello")
        return system_select(*descriptors)

    monkeypatch.setattr(select, "select", write_and_select)
    with os.fdopen(reading) as stream:
        read = connect._reader(stream)
        assert read() == b"hello"
        os.close(writing)
        assert read() == b""


# -- at a terminal


@pytest.fixture
def type_(run: Run) -> Iterator[Callable[[str], None]]:
    """Type text, at a terminal that the command will have."""
    with create_pipe_input() as keys, create_app_session(keys, DummyOutput()):
        yield keys.send_text


async def test_ctrl_d(run: Run, nursery: trio.Nursery, type_: Callable[[str], None]) -> None:
    port = await serve(nursery, silent)
    type_(f"1\n2\n{CTRL_D}")
    outcome = await run(f"127.0.0.1:{port}", kind=Terminal)
    connected, ended = outcome.errors.splitlines()
    assert outcome.code == 0
    assert connected.startswith(f"Connected to 127.0.0.1:{port}; ")
    assert ended == "2 sent, 0 received"


async def test_ctrl_c(run: Run, nursery: trio.Nursery, type_: Callable[[str], None]) -> None:
    port = await serve(nursery, silent)
    type_(f"1{CTRL_C}")
    outcome = await run(f":{port}", kind=Terminal)
    assert outcome.code == 130
    assert outcome.errors.endswith("\n0 sent, 0 received\n")


async def test_what_the_peer_has_not_taken_is_told_in_the_summary(
    run: Run, nursery: trio.Nursery, type_: Callable[[str], None], tmp_path: Path
) -> None:
    port = await serve(nursery, deaf)
    (tmp_path / "large").write_bytes(bytes(50_000_000))
    type_(f"/file {tmp_path / 'large'}\n")
    outcome = await run(f":{port}", "-n", 1, "-c", "length:4,max_size=64M", kind=Terminal)
    assert outcome.code == 0
    _, summary = outcome.errors.splitlines()
    assert re.fullmatch("1 sent, 1 received; the peer has not taken [0-9,]+ bytes", summary)


async def test_the_peer_finishes(
    run: Run, nursery: trio.Nursery, type_: Callable[[str], None]
) -> None:
    port = await serve(nursery, brief)
    type_("1\n")
    outcome = await run(f":{port}", kind=Terminal)
    assert outcome.code == 0
    assert outcome.errors.endswith("\n1 sent, 0 received; the peer finished\n")


async def test_fewer_replies_than_wanted(
    run: Run, nursery: trio.Nursery, type_: Callable[[str], None]
) -> None:
    port = await serve(nursery, brief)
    type_("1\n")
    outcome = await run(f":{port}", "-n", 1, kind=Terminal)
    assert outcome.code == 1
    *_, summary, error = outcome.errors.splitlines()
    assert summary == "1 sent, 0 received; the peer finished"
    assert error == "Error: only 0 of 1 replies came"


@pytest.mark.parametrize("is_typed", [False, True])
def test_sigterm_is_an_interrupt_once(is_typed: bool) -> None:
    before = signal.getsignal(signal.SIGTERM)
    # For who types, also where a shell has Ctrl-C ignored.
    handler = signal.SIG_IGN if is_typed else signal.default_int_handler
    on_ctrl_c = signal.signal(signal.SIGINT, handler)
    try:
        with connect._sigterm_as_ctrl_c(is_typed=is_typed):
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGTERM)
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, on_ctrl_c)
    assert signal.getsignal(signal.SIGTERM) is before


async def test_sigterm_ends_it_where_ctrl_c_is_ignored() -> None:
    """As in the background of a script."""
    with trio.socket.socket() as listener, trio.fail_after(PATIENCE):
        await listener.bind(("127.0.0.1", 0))
        listener.listen()
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        command = f"trap '' INT; exec {sys.executable} -m trio_bytetalk connect {address}"
        async with trio.open_nursery() as running:
            run = partial(trio.run_process, ["sh", "-c", command], env=ENVIRONMENT, check=False)
            process = await running.start(partial(run, stdin=b"hello\n"))
            client, _ = await listener.accept()
            with client:
                assert await client.recv(1)
                process.send_signal(signal.SIGTERM)
                assert await process.wait() == -signal.SIGTERM


async def test_messages_that_wait_to_be_received_are_whole() -> None:
    ours, theirs = memory()
    async with open_connection(ours) as connection:
        await theirs.send_all(3 * b"\0\0\0\x02hi")
        assert await connection.receive() == b"hi"
    assert connect._summary(connection, Unsent()) == "0 sent, 1 received"


async def test_a_part_of_a_message_is_told_at_the_end() -> None:
    ours, theirs = memory()
    async with open_connection(ours) as connection:
        await theirs.send_all(b"\0\0\0\x05hi")
        async with trio.open_nursery() as receiving:
            receiving.start_soon(connection.receive)
            await trio.testing.wait_all_tasks_blocked()
            receiving.cancel_scope.cancel()
    assert connect._summary(connection, Unsent()) == (
        "0 sent, 0 received; 6 bytes came, which is no whole message "
        "(is --codec the one that the server uses?)"
    )


# -- the real program

# Typed before this is there again, Ctrl-D and Ctrl-C are keys to the terminal, not to the program.
PROMPT = "m>"  # with the end of what sets its colour

ENVIRONMENT = os.environ | {
    "PYTHONPATH": str(Path(trio_bytetalk.__file__).parents[1]),
    # Nobody answers at this terminal when it is asked for the cursor's position.
    "PROMPT_TOOLKIT_NO_CPR": "1",
    "TERM": "xterm",
}


@attrs.define
class Session:
    """The program at a terminal of its own."""

    process: trio.Process
    fd: int
    before: list[Any]
    shown: str = ""

    async def shows(self, *texts: str) -> None:
        """Read what the program shows, until these have come one after the other."""
        for text in texts:
            while text not in self.shown:
                self.shown += await self._read()
            self.shown = self.shown.partition(text)[2]

    async def _read(self) -> str:
        await trio.lowlevel.wait_readable(self.fd)
        try:
            return os.read(self.fd, 4096).decode(errors="replace")
        except OSError:  # Linux says so when the program has ended
            raise AssertionError(f"it has ended, and showed {self.shown!r}") from None

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    async def end(self) -> int:
        """Wait for the program, which must leave the terminal as it was."""
        code = await self.process.wait()
        assert termios.tcgetattr(self.fd)[:4] == self.before[:4]
        return code


@contextlib.asynccontextmanager
async def session(
    *words: object, prefix: Sequence[str] = (), term: str = "xterm"
) -> AsyncIterator[Session]:
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    command = [
        *prefix,
        sys.executable,
        "-W",
        "error",
        "-m",
        "trio_bytetalk",
        "connect",
        *map(str, words),
    ]
    try:
        with trio.fail_after(PATIENCE):
            process = await trio.lowlevel.open_process(
                command,
                stdin=slave,
                stdout=slave,
                stderr=slave,
                env=ENVIRONMENT | {"TERM": term},
                start_new_session=True,
            )
            try:
                yield Session(process, master, before)
            finally:
                if process.returncode is None:
                    process.kill()
                    with trio.CancelScope(shield=True):
                        await process.wait()
    finally:
        os.close(master)
        os.close(slave)


async def test_a_session_at_a_terminal(nursery: trio.Nursery) -> None:
    port = await serve(nursery)
    async with session(f":{port}") as at:
        await at.shows("Ctrl-D ends.", PROMPT)
        at.type("hello\r")
        await at.shows("s  hello", PROMPT)
        at.type("\\q\r")
        await at.shows("is no escape")
        at.type("\x15\\x00\r")
        await at.shows("s  00", PROMPT)
        at.type(CTRL_D)
        await at.shows("2 sent, 2 received")
        assert await at.end() == 0


@pytest.mark.parametrize("term", ["dumb", "unknown"])
async def test_a_terminal_without_a_prompt_is_as_a_pipe(term: str, nursery: trio.Nursery) -> None:
    port = await serve(nursery)
    async with session(f":{port}", term=term) as at:
        at.type("hello\n")
        await at.shows("hello\r\n", "hello\r\n")  # the terminal's echo, and the server's
        at.type(CTRL_D)
        assert await at.end() == 0
        assert at.shown == ""


@pytest.mark.parametrize("how", ["key", "SIGINT", "SIGTERM"])
async def test_ctrl_c_at_a_terminal(how: str, nursery: trio.Nursery) -> None:
    port = await serve(nursery)
    async with session(f":{port}") as at:
        await at.shows("Ctrl-D ends.", PROMPT)
        at.type("hello\r")
        await at.shows("s  hello", PROMPT)
        if how == "key":
            at.type(CTRL_C)
        else:
            at.process.send_signal(signal.Signals[how])
        await at.shows("1 sent, 1 received")
        assert await at.end() == 130


async def test_the_terminal_is_restored_at_sigterm_though_a_shell_ignores_ctrl_c(
    nursery: trio.Nursery,
) -> None:
    port = await serve(nursery)
    ignoring = ("sh", "-c", """trap '' INT; exec "$@" """, "sh")
    async with session(f":{port}", prefix=ignoring) as at:
        await at.shows("Ctrl-D ends.", PROMPT)
        at.process.send_signal(signal.SIGTERM)
        await at.shows("0 sent, 0 received")
        assert await at.end() == 130


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_it_is_interrupted_where_nobody_reads_the_output(
    number: signal.Signals, nursery: trio.Nursery
) -> None:
    """Once is enough: it does not wait until everything is written."""
    held_up = trio.Event()

    async def send_until_it_is_taken_no_more(connection: Connection[Any, Any]) -> None:
        await connection.receive()
        with trio.move_on_after(math.inf) as patience:
            while True:
                patience.deadline = trio.current_time() + 1  # nothing is taken for so long
                await connection.send(bytes(100_000))
                await connection.flush()
        held_up.set()
        await trio.sleep_forever()

    port = await serve(nursery, send_until_it_is_taken_no_more)
    command = [sys.executable, "-m", "trio_bytetalk", "connect", f":{port}", "-i", "whole"]
    with trio.fail_after(PATIENCE):
        process = await trio.lowlevel.open_process(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRONMENT
        )
        try:
            assert process.stdin is not None
            await process.stdin.send_all(b"begin")
            await process.stdin.aclose()
            await held_up.wait()
            process.send_signal(number)
            assert await process.wait() == 130
        finally:
            process.kill()
            assert process.stdout is not None
            await process.stdout.aclose()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("when", ["in a handshake", "in a pipe"])
async def test_it_is_interrupted_without_a_terminal(when: str, number: signal.Signals) -> None:
    with trio.socket.socket() as listener, trio.fail_after(PATIENCE):
        await listener.bind(("127.0.0.1", 0))
        listener.listen()
        words = [f"127.0.0.1:{listener.getsockname()[1]}"]
        if when == "in a handshake":
            words.append("--tls")
        command = [sys.executable, "-W", "error", "-m", "trio_bytetalk", "connect", *words]
        async with trio.open_nursery() as running:
            run = partial(
                trio.run_process,
                command,
                stdin=b"hello\n",
                env=ENVIRONMENT,
                check=False,
                capture_stdout=True,
                capture_stderr=True,
            )
            process = await running.start(run)
            client, _ = await listener.accept()
            with client:
                assert await client.recv(1)
                process.send_signal(number)
                assert await process.wait() == 130


async def test_ctrl_d_while_very_much_is_received(nursery: trio.Nursery) -> None:
    port = await serve(nursery, flood)
    async with session(f":{port}") as at:
        await at.shows("Ctrl-D ends.", PROMPT, "as fast as it goes")
        at.type(CTRL_D)
        await at.shows("0 sent, ")
        assert await at.end() == 0


async def test_the_peer_vanishes_from_a_terminal(nursery: trio.Nursery) -> None:
    port = await serve(nursery, half)
    async with session(f":{port}") as at:
        await at.shows("Ctrl-D ends.", PROMPT)
        at.type("hello\r")
        await at.shows("1 sent, 0 received")
        await at.shows("(is --codec the one that the server uses?)")
        assert await at.end() == 1


async def test_head(nursery: trio.Nursery) -> None:
    port = await serve(nursery)
    command = f"yes | {sys.executable} -W error -m trio_bytetalk connect :{port} | head -n 2"
    with trio.fail_after(PATIENCE):
        done = await trio.run_process(
            ["sh", "-c", command], env=ENVIRONMENT, capture_stdout=True, capture_stderr=True
        )
    assert (done.stdout, done.stderr) == (b"y\ny\n", b"")
