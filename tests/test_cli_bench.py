"""The command bench: its options, what it shows where, and how it ends."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from click.testing import CliRunner, Result
from rich.console import Console

from trio_bytetalk import Connection, LengthPrefixed, Lines, Server, open_connection
from trio_bytetalk._cli import bench
from trio_bytetalk._cli.load import Plan
from trio_bytetalk._cli.load import Result as Measured
from trio_bytetalk._cli.main import program
from trio_bytetalk._cli.payload import generated
from trio_bytetalk._cli.screen import Screen

# What rich writes to have the terminal's other screen, and no cursor, and to give it back.
TAKEN = "\x1b[?1049h\x1b[H\x1b[?25l"
GIVEN_BACK = "\x1b[?25h\x1b[?1049l"

# In seconds; only a failure takes so long.
PATIENCE = 60

QUICK = ("--duration", "0.05", "--warmup", "0", "--connections", "2")


async def echo(connection: Connection[Any, Any]) -> None:
    async for message in connection:
        await connection.send(message)


@contextlib.contextmanager
def serving(server: Server[Any, Any], path: Path) -> Iterator[str]:
    """A server in another thread, for commands have a Trio run of their own; its address."""
    ready = threading.Event()
    stop: list[Any] = []

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve_unix, path)
            token = trio.lowlevel.current_trio_token()
            stop.append(partial(token.run_sync_soon, server.stop, 0))
            ready.set()

    thread = threading.Thread(target=trio.run, args=(main,))
    thread.start()
    ready.wait()
    try:
        yield f"unix:{path}"
    finally:
        stop[0]()
        thread.join()


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    with serving(Server(echo), tmp_path / "socket") as name:
        yield name


def invoke(*args: str) -> Result:
    return CliRunner().invoke(program, ["bench", *args])


# -- results


def test_the_results_are_printed_and_the_seconds_told(address: str) -> None:
    result = invoke(address, *QUICK)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == f"bytetalk bench {address}"
    assert lines[1] == "2 connections, 1 message in flight on each, frames of 68 B, a closed loop"
    assert "  latency" in result.stdout
    assert "  errors                   0" in lines
    first, second = result.stderr.splitlines()
    assert first == f"{lines[0]}: {lines[1]}"
    assert "messages/s" in second


def test_the_results_as_json_alone(address: str) -> None:
    result = invoke(address, *QUICK, "--json", "-")
    found = json.loads(result.stdout)
    assert found["address"] == address
    assert found["codec"] == "length:4"
    assert found["messages"] + found["messages_late"] > 0
    assert found["errors"] == {}


def test_the_results_in_files(address: str, tmp_path: Path) -> None:
    data, page = tmp_path / "results.json", tmp_path / "results.html"
    result = invoke(address, *QUICK, "--json", str(data), "--html", str(page))
    assert json.loads(data.read_text("utf-8"))["address"] == address
    assert page.read_text("utf-8").startswith("<!DOCTYPE html>")
    assert result.stdout.startswith("bytetalk bench")
    assert result.stderr.splitlines()[-2:] == [f"written: {data}", f"written: {page}"]


def test_the_results_in_what_is_there_already(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In /dev/stdout, for example: it can be written, and not be read."""
    monkeypatch.setattr(os, "access", lambda _, mode: mode == os.W_OK)
    assert invoke(address, *QUICK, "--json", os.devnull).exit_code == 0
    data = tmp_path / "results.json"
    data.write_text("what was there before")
    assert invoke(address, *QUICK, "--json", str(data)).exit_code == 0
    assert json.loads(data.read_text("utf-8"))["address"] == address
    monkeypatch.setattr(os, "access", lambda *_: False)
    result = invoke(":1", "--json", str(data))
    assert result.exit_code == 2
    assert "is not writable" in result.stderr


def test_the_results_where_a_link_leads(address: str, tmp_path: Path) -> None:
    page = tmp_path / "results.html"
    page.symlink_to("elsewhere.html")
    assert invoke(address, *QUICK, "--html", str(page)).exit_code == 0
    assert (tmp_path / "elsewhere.html").read_text("utf-8").startswith("<!DOCTYPE html>")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "No such file or directory"),
        ("{}/folder/new", "No such file or directory"),
        ("{}/a link", "No such file or directory"),
        ("{}/new folder/", "Is a directory"),
        ("{}/no folder/../new", "No such file or directory"),
        ("{}/a link to itself", "File exists"),
        ("{}/" + 300 * "a", "File name too long"),
    ],
)
def test_that_a_file_cannot_be_written_is_known_before(
    name: str, reason: str, tmp_path: Path
) -> None:
    (tmp_path / "a link").symlink_to("nowhere/new")
    (tmp_path / "a link to itself").symlink_to("a link to itself")
    path = name.format(tmp_path)
    result = invoke(":1", "--json", path)
    assert result.exit_code == 2
    assert f"{path!r} cannot be written: {reason}" in result.stderr


def test_devices_take_both_kinds_of_results(address: str) -> None:
    result = invoke(address, *QUICK, "--json", os.devnull, "--html", os.devnull)
    assert result.exit_code == 0


def test_no_file_is_made_when_a_line_is_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    monkeypatch.setattr(os, "open", lambda *arguments: made.append(arguments))
    path = str(tmp_path / "new")
    ctx = bench.command.make_context("bench", [":1", "--json", path], resilient_parsing=True)
    assert ctx.params["json"] == path
    assert made == []


def test_a_file_is_not_made_before_there_are_results(tmp_path: Path) -> None:
    page = tmp_path / "results.html"
    assert invoke(f"unix:{tmp_path}/nobody", "--html", str(page)).exit_code == 1
    assert not page.exists()


def test_both_kinds_of_results_are_not_for_one_file(tmp_path: Path) -> None:
    (tmp_path / "a link").symlink_to("results")
    for one, other in (("results", "results"), ("a link", "results")):
        result = invoke(":1", "--json", f"{tmp_path}/{one}", "--html", f"{tmp_path}/{other}")
        assert result.exit_code == 2
        assert f"--json and --html cannot both go to {tmp_path}/{one}" in result.stderr


def test_a_file_that_cannot_be_written_after_all(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "results.html"

    def be_in_the_way(*_: object) -> str:
        page.mkdir()
        return ""

    monkeypatch.setattr(bench, "as_html", be_in_the_way)
    result = invoke(address, *QUICK, "--html", str(page))
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == (
        f"Error: cannot write the results: {page}: Is a directory"
    )
    assert result.stdout.startswith("bytetalk bench")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has it")
def test_results_are_written_though_they_cannot_be_printed(address: str, tmp_path: Path) -> None:
    data, page = tmp_path / "results.json", tmp_path / "results.html"
    files = ["--json", str(data), "--html", str(page)]
    with open("/dev/full", "wb", 0) as stdout:
        process = subprocess.run(
            [sys.executable, "-m", "trio_bytetalk", "bench", address, *QUICK, *files],
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert process.returncode == 1
    assert process.stderr.splitlines()[-1] == (
        "Error: cannot write the results: No space left on device"
    )
    assert json.loads(data.read_text("utf-8"))["address"] == address
    assert page.exists()


def test_nobody_who_reads_the_results(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> str:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    monkeypatch.setattr(bench, "as_json", fail)
    result = invoke(address, *QUICK, "--json", "-")
    assert result.exit_code == 1
    assert "Error" not in result.stderr


@pytest.mark.parametrize(
    ("output", "error"),
    [
        pytest.param(
            "full",
            ["Error: cannot write the results: No space left on device"],
            marks=pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has it"),
        ),
        ("closed", []),
    ],
)
def test_an_output_that_takes_no_more(address: str, output: str, error: list[str]) -> None:
    if output == "full":
        descriptor = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, descriptor = os.pipe()
        os.close(reader)
    with os.fdopen(descriptor, "wb", 0) as stdout:
        process = subprocess.run(
            [sys.executable, "-m", "trio_bytetalk", "bench", address, *QUICK, "--json", "-"],
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert process.returncode == 1
    assert "Traceback" not in process.stderr
    assert [line for line in process.stderr.splitlines() if "Error" in line] == error


def broken(number: int) -> io.StringIO:
    """What fails with this error when it is written to."""

    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(number, os.strerror(number))

    return Broken()


@pytest.mark.parametrize("number", [errno.EPIPE, errno.ENOSPC])
def test_a_standard_error_that_takes_no_more(
    address: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "results.json"
    monkeypatch.setattr(sys, "stderr", broken(number))
    with pytest.raises(SystemExit) as ended:
        program.main(["bench", address, *QUICK, "--json", str(data)])
    assert ended.value.code == 0
    assert json.loads(data.read_text("utf-8"))["address"] == address


def test_a_message_and_a_codec_of_ones_own(tmp_path: Path) -> None:
    heard = []

    async def shout(connection: Connection[str, str]) -> None:
        count = 0
        async for line in connection:
            heard.append(line)
            count += 1
            # Not at once: of less than a millisecond there are no results.
            await connection.send(line if count < 200 else line.upper())

    with serving(Server(shout, codec=Lines()), tmp_path / "socket") as address:
        options = ("--codec", "lines", "--message", "hello")
        result = invoke(address, *QUICK, *options, "--no-check")
        assert result.exit_code == 0
        assert set(heard) == {"hello"}
        result = invoke(address, *QUICK, *options, "--duration", "600")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == (
        "Error: all connections ended: 2 x a reply was not what had been sent"
    )
    assert "No connection was left" in result.stdout
    assert "no reply" not in result.stdout


def test_a_size_with_a_unit(address: str) -> None:
    result = invoke(address, *QUICK, "--size", "4K", "-c", "length:4,max_size=8K", "--json", "-")
    found = json.loads(result.stdout)
    assert found["plan"]["frame_size"] == 4 + 4096
    assert found["codec"] == "length:4,max_size=8K"


def test_no_limit_to_waiting(address: str) -> None:
    result = invoke(address, *QUICK, "--timeout", "none", "--json", "-")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["plan"]["timeout"] is None


def test_a_rate(address: str) -> None:
    result = invoke(address, *QUICK, "--rate", "1000", "--json", "-")
    assert json.loads(result.stdout)["plan"]["rate"] == 1000


# -- how it ends


def test_nobody_there(tmp_path: Path) -> None:
    result = invoke(f"unix:{tmp_path / 'nobody'}", *QUICK)
    assert result.exit_code == 1
    assert result.stdout == ""
    _, error = result.stderr.splitlines()
    assert error.startswith("Error: cannot connect to ")


def test_a_server_that_leaves_at_once(tmp_path: Path) -> None:
    async def leave(connection: Connection[Any, Any]) -> None:
        await connection.receive()

    with serving(Server(leave), tmp_path / "socket") as address:
        result = invoke(address, "--connections", "2", "--warmup", "600")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.splitlines()[-1] == (
        "Error: all connections ended before anything was measured: "
        "2 x the server closed the connection"
    )


def test_results_with_errors_have_another_exit_code(tmp_path: Path) -> None:
    served = 0

    async def leave_one(connection: Connection[Any, Any]) -> None:
        nonlocal served
        served += 1
        await (echo(connection) if served == 1 else connection.receive())

    with serving(Server(leave_one), tmp_path / "socket") as address:
        result = invoke(address, *QUICK)
    assert result.exit_code == 1
    assert "1 x  the server closed the connection" in result.stdout
    assert "Error" not in result.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("warmup", "output", "error"),
    [
        ("0", "Interrupted before the time was over.", ""),
        ("600", "", "Interrupted before anything was measured.\n"),
    ],
)
def test_ctrl_c_and_sigterm(
    tmp_path: Path, number: signal.Signals, warmup: str, output: str, error: str
) -> None:
    async def interrupt(connection: Connection[Any, Any]) -> None:
        for _ in range(10):
            await connection.send(await connection.receive())
        signal.raise_signal(number)
        await echo(connection)

    with serving(Server(interrupt), tmp_path / "socket") as address:
        result = invoke(address, "--connections", "1", "--duration", "600", "--warmup", warmup)
    assert result.exit_code == 130
    assert output in result.stdout
    assert bool(output) is bool(result.stdout)
    assert result.stderr.endswith(error)


def test_an_interrupt_of_which_nothing_can_be_said_has_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def interrupt(connection: Connection[Any, Any]) -> None:
        signal.raise_signal(signal.SIGINT)
        await echo(connection)

    monkeypatch.setattr(sys, "stderr", broken(errno.ENOSPC))
    with (
        serving(Server(interrupt), tmp_path / "socket") as address,
        pytest.raises(SystemExit) as ended,
    ):
        program.main(["bench", address, "--connections", "1", "--warmup", "600"])
    assert ended.value.code == 130


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (["0"], "a server's port is 1 to 65535, not 0: '0'"),
        ([":1", "--json", "-", "--html", "-"], "--json and --html cannot both go to"),
        ([":1", "--size", "9", "--message", "m"], "give it or --size, not both"),
        ([":1", "--codec", "chunks"], "this codec does not receive such messages as it sends"),
        ([":1", "--codec", "json+lines", "--message", "{"], "messages are typed as JSON"),
        ([":1", "--duration", "nan"], "at least 0.01 seconds were expected, not 'nan'"),
        ([":1", "--duration", "0"], "at least 0.01 seconds were expected, not '0'"),
        ([":1", "--rate", "0"], "more than 0 messages a second were expected, not '0'"),
        ([":1", "--warmup", "-1"], "at least 0 seconds were expected, not '-1'"),
        ([":1", "--warmup", "inf"], "a finite number of seconds, at least 0, was expected"),
        ([":1", "--timeout", "nan"], "more than 0 seconds, or 'none', were expected, not 'nan'"),
        ([":1", "--size", "4T"], "a size is a whole number, such as 4 or 16M, not '4T'"),
        ([":1", "--json", "/no/such/file"], "'/no/such/file' cannot be written: No such file"),
        ([":1", "--connections", "0"], "0 is not in the range x>=1"),
        ([":1", "--connections", "99999999999"], "give fewer --connections"),
    ],
)
def test_mistakes_on_the_command_line(args: list[str], problem: str) -> None:
    result = invoke(*args)
    assert result.exit_code == 2
    assert problem in result.stderr.splitlines()[-1]
    assert result.stdout == ""


def test_help_fits_80_columns_and_speaks_of_the_closed_loop() -> None:
    result = CliRunner().invoke(program, ["bench", "--help"], terminal_width=80)
    assert result.exit_code == 0
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "closed loop" in result.stdout
    assert "coordinated omission" in " ".join(result.stdout.split())


# -- while it runs


def in_memory(nursery: trio.Nursery, delay: float) -> Any:
    """What opens connections to a server that takes so many seconds for each reply."""

    async def slow_echo(connection: Connection[bytes, bytes]) -> None:
        async for message in connection:
            await trio.sleep(delay)
            await connection.send(message)

    server = Server(slow_echo)

    @contextlib.asynccontextmanager
    async def open_one() -> AsyncIterator[Connection[Any, Any]]:
        ours, theirs = trio.testing.memory_stream_pair()
        nursery.start_soon(server.serve_stream, theirs)
        async with open_connection(ours) as connection:
            yield connection

    return open_one


PLAN = Plan(payload=generated(LengthPrefixed(), 64), connections=2, duration=3)


async def measured(nursery: trio.Nursery, delay: float, console: Console) -> Measured:
    """What comes of `PLAN`."""
    return await bench.measure(PLAN, in_memory(nursery, delay), "a title", Screen(console, None))


async def test_without_a_terminal_there_is_a_line_for_each_second(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    console = Console(file=io.StringIO(), width=20)
    sys.setswitchinterval(0.125)
    try:
        result = await measured(nursery, 0.1, console)
        assert sys.getswitchinterval() == 0.125
    finally:
        sys.setswitchinterval(0.005)  # Python's own
    assert isinstance(console.file, io.StringIO)
    title, *seconds = console.file.getvalue().splitlines()
    assert title == (
        "a title: 2 connections, 1 message in flight on each, frames of 68 B, a closed loop"
    )
    assert [line[:8] for line in seconds] == ["   1.0 s", "   2.0 s", "   3.0 s"]
    assert len(result.seconds) == 3


async def test_a_dumb_terminal_gets_lines_too(
    nursery: trio.Nursery,
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    console = Console(file=io.StringIO(), force_terminal=True)
    await measured(nursery, 0.1, console)
    assert isinstance(console.file, io.StringIO)
    assert "   3.0 s" in console.file.getvalue()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Console:
    """One that is drawn on by the thread that Trio runs in."""

    async def run_here(function: Callable[[], object]) -> None:
        function()  # for virtual time does not wait for other threads
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(trio.to_thread, "run_sync", run_here)
    monkeypatch.setenv("TERM", "xterm")
    return Console(file=io.StringIO(), force_terminal=True, width=80, height=24)


async def test_a_terminal_is_drawn_on_and_left_as_it_was(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock, terminal: Console
) -> None:
    await measured(nursery, 0.1, terminal)
    assert isinstance(terminal.file, io.StringIO)
    written = terminal.file.getvalue()
    assert written.index(TAKEN) < written.index(" a title") < written.index(GIVEN_BACK)
    assert written.count(" a title") > 1
    assert written.endswith(GIVEN_BACK)


async def test_in_the_background_of_a_terminal_there_are_lines(
    nursery: trio.Nursery,
    autojump_clock: trio.testing.MockClock,
    terminal: Console,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("trio_bytetalk._cli.screen._is_in_foreground", lambda _: False)
    await measured(nursery, 0.1, terminal)
    assert isinstance(terminal.file, io.StringIO)
    assert TAKEN not in terminal.file.getvalue()
    assert "   3.0 s" in terminal.file.getvalue()


async def test_put_into_the_background_it_draws_no_more_until_it_comes_back(
    nursery: trio.Nursery,
    autojump_clock: trio.testing.MockClock,
    terminal: Console,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = terminal.file
    assert isinstance(file, io.StringIO)
    monkeypatch.setattr(os, "kill", lambda *_: None)
    before = signal.signal(signal.SIGTSTP, lambda *_: None)  # for it would stop the tests
    seen = []

    async def use_the_shell() -> None:
        await trio.sleep(1.2)
        monkeypatch.setattr("trio_bytetalk._cli.screen._is_in_foreground", lambda _: False)
        signal.raise_signal(signal.SIGTSTP)
        await trio.sleep(0.5)
        seen.append(file.getvalue())
        await trio.sleep(1)
        seen.append(file.getvalue())
        monkeypatch.setattr("trio_bytetalk._cli.screen._is_in_foreground", lambda _: True)

    nursery.start_soon(use_the_shell)
    await measured(nursery, 0.1, terminal)
    signal.signal(signal.SIGTSTP, before)
    first, second = seen
    assert first.endswith(GIVEN_BACK)
    assert second == first
    again = file.getvalue().removeprefix(second)
    assert again.startswith(TAKEN)
    assert " a title" in again
    assert again.endswith(GIVEN_BACK)


async def test_that_it_was_stopped_is_known(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    async def go_on() -> None:
        await trio.sleep(1.55)
        signal.raise_signal(signal.SIGCONT)

    nursery.start_soon(go_on)
    result = await measured(nursery, 0.25, Console(file=io.StringIO()))
    assert result.stopped
    assert not result.interrupted
    assert len(result.seconds) == 3


async def test_ctrl_c_ends_it_early(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    async def interrupt() -> None:
        await trio.sleep(1.55)
        signal.raise_signal(signal.SIGINT)

    nursery.start_soon(interrupt)
    console = Console(file=io.StringIO())
    result = await measured(nursery, 0.25, console)
    assert result.interrupted
    assert 0.55 <= result.elapsed < 3
    assert result.messages > 0


def read_until(descriptor: int, mark: str) -> str:
    """What comes on a descriptor, up to this mark, or to the end."""
    text = ""
    while mark not in text:
        readable, _, _ = select.select([descriptor], [], [], PATIENCE)
        assert readable, f"{mark!r} does not come, but {text!r}"
        try:
            data = os.read(descriptor, 4096)
        except OSError:  # of a terminal that nobody has open any more
            break
        text += data.decode(errors="replace")
    return text


@contextlib.contextmanager
def killing(process: subprocess.Popen[str]) -> Iterator[None]:
    """No test leaves it behind, even if it is stopped."""
    with process:
        try:
            yield
        finally:
            process.kill()


def test_ctrl_z_and_ctrl_c_on_a_real_terminal(address: str) -> None:
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "trio_bytetalk", "bench", address, "-d", "600", "--warmup", "0"],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "80", "LINES": "24"},
    )
    os.close(theirs)
    with killing(process), os.fdopen(ours, "rb", 0):
        assert "measuring" in read_until(ours, "measuring")
        process.send_signal(signal.SIGTSTP)
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        assert GIVEN_BACK in read_until(ours, GIVEN_BACK)
        process.send_signal(signal.SIGCONT)
        assert TAKEN in read_until(ours, TAKEN)
        process.send_signal(signal.SIGINT)
        assert GIVEN_BACK in read_until(ours, GIVEN_BACK)
        assert process.stdout is not None
        output = process.stdout.read()
        assert process.wait() == 130
    assert output.startswith(f"bytetalk bench {address}\n")
    assert "Interrupted before the time was over." in output
    assert "This program was stopped for a while" in output
    assert "\x1b" not in output


# -- descriptors
