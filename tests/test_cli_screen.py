"""A terminal that is drawn on as a whole: how it is taken, and given back as it was."""

from __future__ import annotations

import io
import os
import pty
import select
import signal
import sys
import termios
from collections.abc import Callable, Iterator

import pytest
import trio
import trio.testing
from rich.console import Console
from rich.text import Text
from trio.testing import MockClock

from trio_bytetalk._cli.screen import Screen, Stderr, keyboard

# What rich writes to have the terminal's other screen, and no cursor, and to give it back.
TAKEN = "\x1b[?1049h\x1b[H\x1b[?25l"
GIVEN_BACK = "\x1b[?25h\x1b[?1049l"

# In seconds; only a failure takes so long.
PATIENCE = 60


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """Both ends of a terminal: ours, and the program's."""
    ours, theirs = pty.openpty()
    yield ours, theirs
    os.close(ours)
    os.close(theirs)


def echoes(descriptor: int) -> bool:
    flags: int = termios.tcgetattr(descriptor)[3]
    return bool(flags & termios.ECHO)


def can_be_stopped(descriptor: int) -> bool:
    """By Ctrl-S, until Ctrl-Q."""
    flags: int = termios.tcgetattr(descriptor)[0]
    return bool(flags & termios.IXON)


def test_what_is_typed_is_not_seen_and_forgotten(terminal: tuple[int, int]) -> None:
    ours, theirs = terminal
    file = io.StringIO()
    screen = Screen(Console(file=file, force_terminal=True), theirs)
    screen.take()
    assert not echoes(theirs)
    assert not can_be_stopped(theirs)
    os.write(ours, b"not for the shell\n")
    screen.give_back()
    assert echoes(theirs)
    assert can_be_stopped(theirs)
    os.write(ours, b"for the shell\n")
    assert select.select([theirs], [], [], PATIENCE)[0]
    screen.give_back()
    assert select.select([theirs], [], [], 0)[0]
    assert os.read(theirs, 100) == b"for the shell\n"
    assert file.getvalue() == TAKEN + GIVEN_BACK


async def test_it_is_drawn_on_while_it_is_taken() -> None:
    file = io.StringIO()
    screen = Screen(Console(file=file, force_terminal=True, width=80, height=24), None)
    assert not screen.is_taken
    screen.take()
    assert screen.is_taken
    await screen.draw(Text("a picture"))
    screen.give_back()
    assert not screen.is_taken
    written = file.getvalue()
    assert written.startswith(TAKEN)
    assert "a picture" in written
    assert written.endswith(GIVEN_BACK)


async def test_ctrl_z_gives_it_back_before_the_program_is_stopped(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = io.StringIO()
    screen = Screen(Console(file=file, force_terminal=True, width=80, height=24), None)
    stopped = []

    def kill(process: int, number: int) -> None:
        stopped.append((process, number, screen.is_taken))

    monkeypatch.setattr(os, "kill", kill)
    nursery.start_soon(screen._give_back_at_ctrl_z)
    await trio.testing.wait_all_tasks_blocked()
    for count in 1, 2:
        screen.take()
        signal.raise_signal(signal.SIGTSTP)
        while len(stopped) < count:
            await trio.lowlevel.checkpoint()
    assert stopped == [(os.getpid(), signal.SIGSTOP, False)] * 2
    assert file.getvalue().endswith(GIVEN_BACK)
    nursery.cancel_scope.cancel()


async def test_a_picture_is_drawn_once_for_each_size_and_each_time_that_it_is_taken(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    async def run_here(function: Callable[[], object]) -> None:
        function()  # for virtual time does not wait for other threads
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(trio.to_thread, "run_sync", run_here)
    monkeypatch.setattr(os, "kill", lambda *_: None)
    monkeypatch.setenv("TERM", "xterm")
    file = io.StringIO()
    screen = Screen(Console(file=file, force_terminal=True, width=80, height=24), None)
    looks = 0

    async def look() -> Text:
        nonlocal looks
        looks += 1
        return Text("a picture")

    def drawn() -> int:
        count = file.getvalue().count("a picture")
        file.seek(0)
        file.truncate()
        return count

    async with trio.open_nursery() as nursery:
        nursery.start_soon(screen.show, look, 1)
        await trio.sleep(3.5)
        assert (drawn(), looks) == (1, 4)
        screen.console.size = (40, 10)
        await trio.sleep(4)
        assert (drawn(), looks) == (1, 8)
        signal.raise_signal(signal.SIGTSTP)
        await trio.sleep(4)
        assert (drawn(), looks) == (1, 12)
        nursery.cancel_scope.cancel()


def test_what_is_typed_on(terminal: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    _, theirs = terminal
    with os.fdopen(os.dup(theirs)) as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        assert keyboard() == stream.fileno()
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert keyboard() is None
    monkeypatch.setattr(sys, "stdin", None)
    assert keyboard() is None


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"TTY_COMPATIBLE": "0"},
        {"TTY_COMPATIBLE": "1"},
        {"TTY_INTERACTIVE": "0"},
        {"TTY_INTERACTIVE": "1"},
        {"FORCE_COLOR": ""},
        {"FORCE_COLOR": "1"},
    ],
)
async def test_a_terminal_is_drawn_on_and_a_file_is_not_whatever_is_said_of_colours(
    variables: dict[str, str], terminal: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert not Screen(Stderr(), None).is_usable
    ours, theirs = terminal
    with os.fdopen(os.dup(theirs), "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        screen = Screen(Stderr(), None)
        assert screen.is_usable
        screen.take()
        await screen.draw(Text("a picture"))
        screen.give_back()
    shown = b""
    while GIVEN_BACK.encode() not in shown:
        shown += os.read(ours, 4096)
    assert b"a picture" in shown


def test_a_terminal_is_drawn_on_if_it_can_be_and_in_its_foreground(
    terminal: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    _, theirs = terminal
    with os.fdopen(os.dup(theirs), "w") as stream:
        screen = Screen(Console(file=stream, force_terminal=True), None)
        assert screen.is_usable  # it is nobody's controlling terminal
        monkeypatch.setattr(os, "tcgetpgrp", lambda _: os.getpgrp() + 1)
        assert not screen.is_usable
        monkeypatch.setattr(os, "tcgetpgrp", lambda _: os.getpgrp())
        assert screen.is_usable
        monkeypatch.setenv("TERM", "dumb")
        assert not screen.is_usable


def test_when_nobody_reads_the_standard_error_it_says_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Broken())
    console = Stderr()
    console.print("a line")
    assert console.quiet


# -- a terminal that goes


@pytest.fixture
def going() -> Iterator[tuple[Screen, Callable[[], None]]]:
    """A screen on a terminal, and what has that terminal go."""
    ours, theirs = pty.openpty()
    stream = os.fdopen(theirs, "wb", 0)
    console = Console(file=io.TextIOWrapper(stream, write_through=True), force_terminal=True)
    with stream, os.fdopen(ours, "rb", 0) as other_end:
        yield Screen(console, theirs), other_end.close


async def looks(screen: Screen, go: Callable[[], None], goes_at: int) -> list[bool]:
    """Show pictures, of which this one sees the terminal go; whether it was taken at each."""
    taken: list[bool] = []

    async def look() -> str:
        if len(taken) == goes_at:
            go()
        if len(taken) == goes_at + 3:
            nursery.cancel_scope.cancel()
        taken.append(screen.is_taken)
        return f"picture {len(taken)}"

    async with trio.open_nursery() as nursery:
        await screen.show(look, 0.001)
    return taken


@pytest.mark.parametrize(
    ("goes_at", "taken"),
    [(0, [False, False, False, False]), (1, [False, True, False, False, False])],
    ids=["before it is taken", "while it is drawn on"],
)
async def test_what_is_shown_goes_on_unseen_when_the_terminal_goes(
    goes_at: int,
    taken: list[bool],
    going: tuple[Screen, Callable[[], None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    screen, go = going
    assert await looks(screen, go, goes_at) == taken
    assert not screen.is_usable


def test_a_terminal_that_has_gone_need_not_be_given_back(
    going: tuple[Screen, Callable[[], None]],
) -> None:
    screen, go = going
    screen.take()
    go()
    screen.give_back()
    assert not screen.is_taken


async def test_a_terminal_that_takes_nothing_for_once_is_left_as_it_was(
    terminal: tuple[int, int],
) -> None:
    """As one that somebody else has made not to block."""

    class Full(io.StringIO):
        def write(self, text: str) -> int:
            if "a picture" in text:
                raise BlockingIOError
            return super().write(text)

    _, theirs = terminal
    file = Full()
    screen = Screen(Console(file=file, force_terminal=True), theirs)
    screen.take()
    await screen.draw(Text("a picture"))
    assert not screen.is_taken
    assert file.getvalue() == TAKEN + GIVEN_BACK
    assert echoes(theirs)
