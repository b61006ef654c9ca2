"""A terminal that is drawn on as a whole: how it is taken, and given back as it was."""

from __future__ import annotations

import io
import os
import pty
import signal
import sys
import termios
from collections.abc import Iterator

import pytest
import trio
import trio.testing
from rich.console import Console
from rich.text import Text

from trio_bytetalk._cli.screen import Screen, is_ours, keyboard

# What rich writes to have the terminal's other screen, and no cursor, and to give it back.
TAKEN = "\x1b[?1049h\x1b[H\x1b[?25l"
GIVEN_BACK = "\x1b[?25h\x1b[?1049l"


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
    assert os.read(theirs, 100) == b"for the shell\n"
    screen.give_back()
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
    nursery.start_soon(screen.give_back_at_ctrl_z)
    await trio.testing.wait_all_tasks_blocked()
    for count in 1, 2:
        screen.take()
        signal.raise_signal(signal.SIGTSTP)
        while len(stopped) < count:
            await trio.lowlevel.checkpoint()
    assert stopped == [(os.getpid(), signal.SIGSTOP, False)] * 2
    assert file.getvalue().endswith(GIVEN_BACK)
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


def test_a_terminal_is_ours_in_its_foreground(
    terminal: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, theirs = terminal
    with os.fdopen(os.dup(theirs), "w") as stream:
        assert is_ours(stream)  # it is nobody's controlling terminal
        monkeypatch.setattr(os, "tcgetpgrp", lambda _: os.getpgrp() + 1)
        assert not is_ours(stream)
        monkeypatch.setattr(os, "tcgetpgrp", lambda _: os.getpgrp())
        assert is_ours(stream)
