"""The script ``bytetalk`` and ``python -m trio_bytetalk``, with the extra and without it."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import json
import os
import pty
import runpy
import signal
import subprocess
import sys
import termios
import tomllib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

import trio_bytetalk
import trio_bytetalk.__main__
from trio_bytetalk import Connection, Server
from trio_bytetalk._cli import main
from trio_bytetalk._cli.failures import INTERRUPTED

ROOT = Path(trio_bytetalk.__file__).parents[1]

# What a test of the real program takes is about a second; this is for a busy machine.
PATIENCE = 50

# What rich writes to give back the terminal that it has drawn on.
GIVEN_BACK = b"\x1b[?25h\x1b[?1049l"


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """Have the program's handlers of signals stay in the tests of the program."""
    before = {each: signal.getsignal(each) for each in (signal.SIGHUP, signal.SIGTERM)}
    yield
    for each, handler in before.items():
        signal.signal(each, handler)


def project() -> dict[str, object]:
    with (Path(__file__).parents[1] / "pyproject.toml").open("rb") as file:
        table: dict[str, object] = tomllib.load(file)["project"]
    return table


def test_the_packages_script_is_the_program() -> None:
    scripts = project()["scripts"]
    assert isinstance(scripts, dict)
    assert list(scripts) == ["bytetalk"]
    entry = importlib.metadata.EntryPoint("bytetalk", scripts["bytetalk"], "console_scripts")
    assert entry.load() is trio_bytetalk.__main__.main


def test_the_tests_have_what_the_extra_has() -> None:
    extras = project()["optional-dependencies"]
    assert isinstance(extras, dict)
    assert set(extras["cli"]) <= set(extras["test"])


def test_run_as_a_module_it_is_bytetalk(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/lib/trio_bytetalk/__main__.py", "--version"])
    monkeypatch.delitem(sys.modules, "trio_bytetalk.__main__")
    with pytest.raises(SystemExit) as caught:
        runpy.run_module("trio_bytetalk", run_name="__main__", alter_sys=True)
    assert caught.value.code == 0
    assert capsys.readouterr() == (f"bytetalk {trio_bytetalk.__version__}\n", "")


def test_streams_that_were_closed_before_take_what_nobody_reads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["bytetalk", "--version"])
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    with pytest.raises(SystemExit) as caught:
        trio_bytetalk.__main__.main()
    assert caught.value.code == 0
    for stream in (sys.stdout, sys.stderr):
        assert stream.name == os.devnull
        stream.close()


SAYING = (
    "bytetalk needs {}, which comes with the extra cli: "
    "pip install '.[cli]' in a checkout of trio_bytetalk\n"
)


def test_without_the_extra_one_line_says_how_to_have_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in list(sys.modules):
        if name.startswith("trio_bytetalk._cli"):
            monkeypatch.delitem(sys.modules, name)
    # An import also puts the new module here, where the next tests would find it.
    monkeypatch.setattr(trio_bytetalk, "_cli", trio_bytetalk._cli)
    monkeypatch.setitem(sys.modules, "click", None)
    with pytest.raises(SystemExit) as caught:
        trio_bytetalk.__main__.main()
    assert caught.value.code == 2
    assert capsys.readouterr() == ("", SAYING.format("click"))


@pytest.mark.parametrize("missing", ["rich", "prompt_toolkit"])
def test_a_command_that_needs_a_part_of_the_extra_says_so_too(
    missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**_options: object) -> None:
        raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)

    monkeypatch.setattr(main.program, "main", fail)
    with pytest.raises(SystemExit) as caught:
        trio_bytetalk.__main__.main()
    assert caught.value.code == 2
    assert capsys.readouterr() == ("", SAYING.format(missing))


def test_any_other_module_that_is_missing_is_an_error_of_the_programs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(**_options: object) -> None:
        raise ModuleNotFoundError("No module named 'other'", name="other")

    monkeypatch.setattr(main.program, "main", fail)
    with pytest.raises(ModuleNotFoundError, match="other"):
        trio_bytetalk.__main__.main()


def test_without_any_of_the_extra_in_a_process_of_its_own() -> None:
    program = (
        "import runpy, sys\n"
        "for name in ('click', 'prompt_toolkit', 'rich'):\n"
        "    sys.modules[name] = None\n"
        "runpy.run_module('trio_bytetalk', run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (2, "", SAYING.format("click"))


# -- signals


def test_ctrl_c_during_the_imports_is_quiet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupted:
        @staticmethod
        def find_spec(name: str, *_: object) -> None:
            if name.startswith("trio_bytetalk._cli"):
                signal.raise_signal(signal.SIGINT)

    for name in list(sys.modules):
        if name.startswith("trio_bytetalk._cli"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(trio_bytetalk, "_cli", trio_bytetalk._cli)
    monkeypatch.setattr(sys, "meta_path", [Interrupted, *sys.meta_path])
    with pytest.raises(SystemExit) as caught:
        trio_bytetalk.__main__.main()
    assert caught.value.code == INTERRUPTED
    assert capsys.readouterr() == ("", "")


def hung_up(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What a program gets as SIGTERM that is hung up on twice."""
    terminated: list[int] = []

    def run(**_options: object) -> None:
        signal.signal(signal.SIGTERM, lambda number, _: terminated.append(number))
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGHUP)

    monkeypatch.setattr(main.program, "main", run)
    trio_bytetalk.__main__.main()
    return terminated


def test_hanging_up_is_sigterm_once(monkeypatch: pytest.MonkeyPatch) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    assert hung_up(monkeypatch) == [signal.SIGTERM]


def test_hanging_up_is_ignored_as_nohup_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert hung_up(monkeypatch) == []
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


# The program in a session whose terminal the standard streams are, as a shell's are.
IN_A_SESSION = """\
import fcntl, runpy, signal, sys, termios
signal.signal(signal.SIGHUP, {handler})
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
runpy.run_module("trio_bytetalk", run_name="__main__", alter_sys=True)
"""


@pytest.fixture
async def address(nursery: trio.Nursery) -> str:
    """Of a server."""

    async def echo(connection: Connection[Any, Any]) -> None:
        async for message in connection:
            await connection.send(message)

    listeners = await nursery.start(Server(echo).serve_tcp, 0)
    return f":{listeners[0].socket.getsockname()[1]}"


@contextlib.asynccontextmanager
async def at_a_terminal(
    words: list[str], handler: str, mark: bytes, stdout: int | None = None
) -> AsyncIterator[tuple[trio.Process, io.FileIO]]:
    """The program, when it has shown something, and the other end of its terminal."""
    ours, theirs = pty.openpty()
    with trio.fail_after(PATIENCE), io.FileIO(ours) as terminal:
        process = await trio.lowlevel.open_process(
            [sys.executable, "-c", IN_A_SESSION.format(handler=handler), *words],
            stdin=theirs,
            stdout=theirs if stdout is None else stdout,
            stderr=theirs,
            env=os.environ
            | {"PYTHONPATH": str(ROOT), "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"},
            start_new_session=True,
        )
        os.close(theirs)
        try:
            shown = b""
            while mark not in shown:
                await trio.lowlevel.wait_readable(ours)
                shown += terminal.read(4096)
            yield process, terminal
        finally:
            process.kill()


COMMANDS = pytest.mark.parametrize(
    ("words", "mark", "code"),
    [
        (["serve", "echo", "--port", "0"], b"latest events", 0),
        (["connect", "{}"], b"m>", 130),
        (["bench", "{}", "--warmup", "600"], b"warming up", 130),
        (["sniff", ":0", "{}"], b"Ctrl-C ends it", 0),
    ],
    ids=["serve", "connect", "bench", "sniff"],
)


@COMMANDS
async def test_when_the_terminal_goes_the_program_ends_in_order(
    words: list[str], mark: bytes, code: int, address: str
) -> None:
    words = [word.format(address) for word in words]
    async with at_a_terminal(words, "signal.SIG_DFL", mark) as (process, terminal):
        terminal.close()
        assert await process.wait() == code


@COMMANDS
async def test_hung_up_it_leaves_the_terminal_as_it_was(
    words: list[str], mark: bytes, code: int, address: str
) -> None:
    words = [word.format(address) for word in words]
    async with at_a_terminal(words, "signal.SIG_DFL", mark) as (process, terminal):
        process.send_signal(signal.SIGHUP)
        shown = b""
        with contextlib.suppress(OSError):  # of a terminal that nobody has open any more
            while data := await trio.to_thread.run_sync(terminal.read, 4096):
                shown += data
        assert await process.wait() == code
        assert termios.tcgetattr(terminal)[3] & termios.ECHO
        assert (words[0] in ("serve", "bench")) == (GIVEN_BACK in shown)


async def test_a_prompt_ends_with_its_terminal_though_hanging_up_is_ignored(address: str) -> None:
    words = ["connect", address]
    async with at_a_terminal(words, "signal.SIG_IGN", b"m>") as (process, terminal):
        terminal.close()
        assert await process.wait() == 1


async def test_a_run_goes_on_without_its_terminal_if_hanging_up_is_ignored(
    address: str, tmp_path: Path
) -> None:
    results = tmp_path / "results.json"
    words = ["bench", address, "--duration", "1", "--warmup", "0", "--json", str(results)]
    ignored = at_a_terminal(words, "signal.SIG_IGN", b"measuring", subprocess.DEVNULL)
    async with ignored as (process, terminal):
        terminal.close()
        assert await process.wait() == 0
    assert not json.loads(results.read_text("utf-8"))["interrupted"]
