"""``bytetalk serve``: from the command line to a server that ends in order."""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import math
import os
import pty
import re
import signal
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import click
import pytest
import trio
import trustme
from click.testing import CliRunner, Result
from pairs import lockstep
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_bytetalk import (
    Connection,
    LimitOptions,
    Limits,
    Lines,
    Server,
    open_connection,
    open_tcp_connection,
    open_unix_connection,
)
from trio_bytetalk._cli.codecs import parse_codec
from trio_bytetalk._cli.gauges import Gauges
from trio_bytetalk._cli.main import program
from trio_bytetalk._cli.peers import Peers
from trio_bytetalk._cli.serve import Settings, report, serve

HOST = "127.0.0.1"

# Longer than anything takes, on a busy machine too.
PATIENCE = 50


def settings(service: str, codec: str = "length:4", **options: Any) -> Settings:
    return Settings(service=service, codec=parse_codec(codec), codec_name=codec, port=0, **options)


@attrs.define
class Running:
    """A server that is run in this process."""

    port: Any = None
    server: Server[Any, Any] | None = None
    title: str = ""
    printed: list[str] = attrs.field(factory=list)
    summary: str = ""


@asynccontextmanager
async def serving(options: Settings) -> AsyncIterator[Running]:
    """Run a server; at the end of the block it is stopped by a signal."""
    running = Running()

    async def look(title: str, gauges: Gauges) -> None:
        running.title, running.server = title, gauges.server
        await trio.sleep_forever()

    async def run(task_status: trio.TaskStatus[list[trio.SocketListener]]) -> None:
        running.summary = await serve(
            options, look, running.printed.append, task_status=task_status
        )

    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(run)
        address = listener.socket.getsockname()
        running.port = address[1] if isinstance(address, tuple) else None
        await wait_all_tasks_blocked()
        yield running
        signal.raise_signal(signal.SIGTERM)


# -- serving


async def test_echo_in_order_until_a_signal(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with (
        serving(settings("echo")) as server,
        open_tcp_connection(HOST, server.port) as connection,
    ):
        await connection.send(b"hello")
        assert await connection.receive() == b"hello"
    assert server.title == f"echo on 127.0.0.1:{server.port}, codec length:4"
    assert caplog.messages[:2] == [
        server.title,
        f"to talk to it: bytetalk connect 127.0.0.1:{server.port}",
    ]
    assert "SIGTERM: stopping; once more to stop at once" in caplog.messages
    assert re.fullmatch(
        r"served 1 connection in \d+\.\d s: 1 message, 9 B in; 1 message, 9 B out", server.summary
    )


async def test_chat_on_a_unix_socket(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    path = str(tmp_path / "a socket")
    async with (
        serving(settings("chat", "lines", unix=path)) as server,
        open_unix_connection(path, codec=Lines()) as ann,
        open_unix_connection(path, codec=Lines()) as bob,
    ):
        await ann.receive()
        await bob.receive()
        await bob.send("hello")
        assert {await ann.receive(), await ann.receive()} & {"unix#1: hello", "unix#2: hello"}
    assert server.title == f"chat on unix:{path}, codec lines"
    assert f"to talk to it: bytetalk connect 'unix:{path}' --codec lines" in caplog.messages
    with pytest.raises(OSError, match="cannot connect"):
        await open_unix_connection(path).__aenter__()


async def test_log_prints_all_that_came_before_the_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with (
        serving(settings("log", "lines")) as server,
        open_tcp_connection(HOST, server.port, codec=Lines()) as connection,
    ):
        for number in range(100):
            await connection.send(f"line {number}")
        await connection.flush()
        while " connected" not in caplog.text:
            await trio.lowlevel.checkpoint()
    lines = "".join(server.printed).splitlines()
    assert [line.partition(" 127.0.0.1:")[2].split(" ", 1)[1] for line in lines] == [
        f"line {number}" for number in range(100)
    ]


async def test_tls(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("example.org").configure_cert(context)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    async with (
        serving(settings("echo", ssl_context=context)) as server,
        open_tcp_connection(
            HOST, server.port, ssl_context=client, server_hostname="example.org"
        ) as connection,
    ):
        await connection.send(b"hello")
        assert await connection.receive() == b"hello"
    assert server.title.endswith(", codec length:4, TLS")
    assert f"to talk to it: bytetalk connect 127.0.0.1:{server.port} --tls" in caplog.messages


async def test_on_all_addresses_it_is_reached_by_this_machines_own(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    async with serving(settings("echo", host="0.0.0.0")) as server:
        assert server.title == f"echo on 0.0.0.0:{server.port}, codec length:4"
    assert f"to talk to it: bytetalk connect 127.0.0.1:{server.port}" in caplog.messages


async def test_limits_are_the_servers() -> None:
    limits = LimitOptions(idle_timeout=7, send_timeout=math.inf)
    async with serving(settings("echo", max_connections=3, limits=limits)) as running:
        assert running.server is not None
        assert running.server.max_connections == 3
        assert running.server.limits == Limits(idle_timeout=7, send_timeout=None)


async def test_an_output_that_takes_no_more_is_not_waited_for_for_ever(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(*_: Any, **__: Any) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(trio.to_thread, "run_sync", never)
    caplog.set_level(logging.INFO)
    async with (
        serving(settings("log", "lines")) as server,
        open_tcp_connection(HOST, server.port, codec=Lines()) as connection,
    ):
        await connection.send("never printed")
        await connection.flush()
        while " connected" not in caplog.text:
            await trio.lowlevel.checkpoint()
    assert "the output takes no more: what was not printed yet is lost" in caplog.messages


# -- what cannot be listened on


@asynccontextmanager
async def taken_port() -> AsyncIterator[int]:
    [listener] = await trio.open_tcp_listeners(0, host=HOST)
    async with listener:
        yield listener.socket.getsockname()[1]


async def test_a_port_in_use_gives_one_line_and_a_way_out() -> None:
    async with taken_port() as port:
        with pytest.RaisesGroup(
            pytest.RaisesExc(
                click.ClickException,
                match=re.escape(
                    f"cannot listen on '127.0.0.1' port {port}: Address already in use "
                    "(give another port; 0 has the system choose)"
                ),
            ),
            flatten_subgroups=True,
        ):
            await serve(attrs.evolve(settings("echo"), port=port), report, print)


async def test_a_path_that_cannot_be_listened_on(tmp_path: Path) -> None:
    path = str(tmp_path / "nowhere" / "socket")
    with pytest.RaisesGroup(
        pytest.RaisesExc(click.ClickException, match=r" \(the directory must be there already\)$"),
        flatten_subgroups=True,
    ):
        await serve(settings("echo", unix=path), report, print)


# -- what is reported where there is no view


async def test_what_goes_on_is_reported_if_anything_does(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def echo(connection: Connection[bytes, bytes]) -> None:
        async for message in connection:
            await connection.send(message)

    caplog.set_level(logging.INFO, "trio_bytetalk.serve")
    server = Server(echo)
    gauges = Gauges(server, Peers(server))
    ours, theirs = lockstep()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(report, "", gauges)
        nursery.start_soon(server.serve_stream, theirs)
        connection = open_connection(ours)
        await trio.sleep(25)
        for _ in range(40):
            await connection.send(b"123456")
            await connection.receive()
        await trio.sleep(20)
        await connection.send(b"123456")  # its reply is not read
        await trio.sleep(20)
        nursery.cancel_scope.cancel()
    assert [message for message in caplog.messages if "messages/s" in message] == [
        "1 open; in 4 messages/s, 40 B/s; out 4 messages/s, 40 B/s",
        "1 open; in 0 messages/s, 1 B/s; out 0 messages/s, 0 B/s; unsent 10 B for 1",
        "1 open; in 0 messages/s, 0 B/s; out 0 messages/s, 0 B/s; unsent 10 B for 1",
    ]


# -- the command


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(program, ["serve", *map(str, arguments)], prog_name="bytetalk")


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What would be run, and how it is looked at."""
    runs: list[Any] = []

    def run(function: Any, settings: Settings, look: Any, write: Any) -> str:
        runs.append((settings, look))
        return "the summary"

    monkeypatch.setattr("trio_bytetalk._cli.failures.run", run)
    return runs


@pytest.mark.parametrize(
    ("service", "codec"), [("echo", "length:4"), ("chat", "lines"), ("log", "length:4")]
)
def test_each_service_has_its_codec(given: list[Any], service: str, codec: str) -> None:
    result = invoke(service)
    assert result.exit_code == 0
    [(settings, look)] = given
    assert settings == Settings(
        service=service,
        codec=parse_codec(codec),
        codec_name=codec,
        limits={
            "idle_timeout": float("inf"),
            "message_timeout": 60,
            "send_timeout": 60,
            "handshake_timeout": 10,
        },
    )
    assert look is report
    assert result.stdout == ""
    assert result.stderr.endswith("INFO    the summary\n")


def test_options_reach_the_server(given: list[Any]) -> None:
    assert (
        invoke(
            "echo",
            "--host",
            "[::1]",
            "-p",
            7,
            "-c",
            "json+lines",
            "--max-connections",
            3,
            "--idle-timeout",
            "1.5",
            "--send-timeout",
            "none",
            "--message-timeout",
            2,
            "--handshake-timeout",
            3,
            "--quiet",
        ).output
        == ""
    )
    [(settings, _)] = given
    assert settings == Settings(
        service="echo",
        codec=parse_codec("json+lines"),
        codec_name="json+lines",
        host="::1",
        port=7,
        max_connections=3,
        limits={
            "idle_timeout": 1.5,
            "message_timeout": 2,
            "send_timeout": float("inf"),
            "handshake_timeout": 3,
        },
    )


def test_a_unix_socket_is_instead_of_a_port(given: list[Any]) -> None:
    assert invoke("echo", "--unix", "/tmp/x").exit_code == 0
    assert "--unix needs the path of a socket" in invoke("echo", "--unix", "").stderr
    [(settings, _)] = given
    assert settings.unix == "/tmp/x"
    for option, value in (("--port", 5555), ("--host", "localhost")):
        result = invoke("echo", "--unix", "/tmp/x", option, value)
        assert result.exit_code == 2
        assert f"{option} is for TCP: give it or --unix, not both" in result.stderr
        assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "Missing argument"),
        (("ech",), "'ech' is not one of 'echo', 'chat', 'log'"),
        (("echo", "--port", "70000"), "70000 is not in the range 0<=x<=65535"),
        (
            ("echo", "--idle-timeout", "0"),
            "more than 0 seconds, or 'none', were expected, not '0'",
        ),
        (("echo", "--idle-timeout", "nan"), "or 'none', were expected, not 'nan'"),
        (("echo", "--idle-timeout", "soon"), "or 'none', were expected, not 'soon'"),
        (("echo", "--host", "127.0.0.1:7102"), "not '127.0.0.1:7102'; the port is for --port"),
        (("echo", "--max-connections", "0"), "0 is not in the range x>=1"),
        (("echo", "--codec", "line"), "there is no codec 'line' (did you mean 'lines'?)"),
        (("echo", "--tls-key", __file__), "--tls-key is of use with --tls-cert FILE only"),
        (("echo", "--tls-cert", __file__), "no certificate and its key in "),
        (("echo", "--tls-cert", "/nowhere"), "'/nowhere' does not exist"),
    ],
)
def test_a_wrong_command_line_is_said_in_one_line(
    given: list[Any], arguments: tuple[str, ...], words: str
) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
    assert not given


def test_a_key_of_another_certificate_is_refused(tmp_path: Path, given: list[Any]) -> None:
    authority = trustme.CA()
    files = []
    for name in ("one", "two"):
        files.append(tmp_path / name)
        certificate = authority.issue_cert("example.org")
        certificate.private_key_pem.write_to_path(files[-1])
        for pem in certificate.cert_chain_pems:
            pem.write_to_path(files[-1], append=True)
    assert invoke("echo", "--tls-cert", files[0]).exit_code == 0
    result = invoke("echo", "--tls-cert", files[0], "--tls-key", files[1])
    assert result.exit_code == 2
    assert "key values mismatch" in result.stderr


def test_the_help_fits_and_says_the_defaults() -> None:
    text = invoke("--help").stdout
    assert max(map(len, text.splitlines())) <= 80
    words = " ".join(text.split())
    assert "[default: lines for chat, length:4 for echo and log]" in words
    assert "How long a connection may be silent. [default: none]" in words


# -- in a terminal


class Terminal:
    """What stands for a standard stream that is a terminal."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def isatty(self) -> bool:
        return True

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@pytest.fixture
def terminals(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have these of the standard streams be terminals."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("trio_bytetalk._cli.screen._is_in_foreground", lambda _: True)

    def be_terminals(*names: str) -> None:
        for name in names:
            monkeypatch.setattr(sys, name, Terminal(getattr(sys, name)))

    return be_terminals


def run_command(*arguments: str) -> None:
    with contextlib.suppress(SystemExit):
        program.main(["serve", *arguments], prog_name="bytetalk")


def looked_at(given: list[Any]) -> bool:
    """Whether that was by a view."""
    [(_, look)] = given
    given.clear()
    return look is not report


def test_there_is_a_view_where_stderr_is_a_terminal(
    given: list[Any],
    terminals: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    terminals("stderr")
    run_command("echo")
    assert looked_at(given)
    assert capsys.readouterr() == ("", "the summary\n")
    run_command("echo", "--quiet")
    assert looked_at(given)
    assert capsys.readouterr() == ("", "")
    run_command("log")
    assert looked_at(given)
    run_command("echo", "--plain")
    assert not looked_at(given)
    monkeypatch.setattr("trio_bytetalk._cli.screen._is_in_foreground", lambda _: False)
    run_command("echo")
    assert not looked_at(given)
    monkeypatch.setattr("trio_bytetalk._cli.screen._is_in_foreground", lambda _: True)
    monkeypatch.setenv("TERM", "dumb")
    run_command("echo")
    assert not looked_at(given)


def test_a_log_is_not_printed_into_a_view(given: list[Any], terminals: Callable[..., None]) -> None:
    terminals("stderr", "stdout")
    run_command("log")
    assert not looked_at(given)
    run_command("chat")
    assert looked_at(given)


def test_errors_are_shown_when_the_view_has_gone(
    terminals: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(*_: Any) -> str:
        logging.getLogger("trio_bytetalk.server").warning("it is odd")
        logging.getLogger("trio_bytetalk.server").error("it is \x1b[31mbroken")
        raise click.ClickException("and this ends it")

    monkeypatch.setattr("trio_bytetalk._cli.failures.run", run)
    terminals("stderr")
    run_command("echo")
    logged, ended = capsys.readouterr().err.splitlines()
    assert logged.endswith(r"ERROR   it is \x1b[31mbroken")
    assert ended == "Error: and this ends it"


def test_what_cannot_be_said_when_the_view_has_gone_is_no_failure(
    terminals: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the terminal may have gone."""

    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def run(*_: Any) -> str:
        logging.getLogger("trio_bytetalk.server").error("it is broken")
        return "the summary"

    monkeypatch.setattr("trio_bytetalk._cli.failures.run", run)
    monkeypatch.setattr(sys, "stderr", Gone())
    terminals("stderr")
    with pytest.raises(SystemExit) as ended:
        program.main(["serve", "echo"], prog_name="bytetalk")
    assert ended.value.code == 0


# -- as a process


ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TERM": "xterm"}
COMMAND = [sys.executable, "-m", "trio_bytetalk", "serve"]


async def read_until(descriptor: int, text: str) -> str:
    """What a terminal shows, up to ``text``."""
    seen = b""
    while text.encode() not in seen:
        seen += await trio.to_thread.run_sync(os.read, descriptor, 65536)
    return seen.decode()


async def test_a_plain_server_logs_lines_and_ends_in_order() -> None:
    with trio.fail_after(PATIENCE):
        process = await trio.lowlevel.open_process(
            [*COMMAND, "log", "--port", "0", "--codec", "lines"],
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        errors = b""
        while b"to talk to it" not in errors:
            errors += await process.stderr.receive_some()
        found = re.search(rb"log on 127\.0\.0\.1:(\d+), codec lines\n", errors)
        assert found is not None
        async with open_tcp_connection(HOST, int(found[1]), codec=Lines()) as connection:
            await connection.send("hello\x1b[2J")
            printed = await process.stdout.receive_some()
            assert printed.endswith(rb"hello\x1b[2J" + b"\n")
            process.send_signal(signal.SIGINT)
            with pytest.raises(trio.EndOfChannel):
                await connection.receive()
        errors += b"".join([chunk async for chunk in process.stderr])
        assert await process.wait() == 0
    assert b"\x1b" not in errors
    assert b"SIGINT: stopping" in errors
    assert b"INFO    served 1 connection in " in errors


async def test_in_a_terminal_there_is_a_view_which_goes_away_at_ctrl_c() -> None:
    ours, theirs = pty.openpty()
    with trio.fail_after(PATIENCE):
        process = await trio.lowlevel.open_process(
            [*COMMAND, "echo", "--port", "0"],
            env=ENVIRONMENT,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        try:
            view = await read_until(ours, "latest events")
            assert "\x1b[?1049h" in view
            process.send_signal(signal.SIGINT)
            end = await read_until(ours, "served 0 connections in ")
            assert "\x1b[?25h\x1b[?1049l" in end
            assert await process.wait() == 0
        finally:
            process.kill()
            os.close(ours)
