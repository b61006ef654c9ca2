"""A whole terminal that is drawn on for as long as a program runs in its foreground."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import termios
from collections.abc import Awaitable, Callable
from functools import partial
from typing import IO, Any, Final, NoReturn

import attrs
import trio
from rich.console import Console, RenderableType
from rich.live import Live

# What is raised where a terminal has gone, for example.
_FAILURES: Final = (OSError, termios.error)


class Stderr(Console):
    """The standard error: whether it is a terminal, no variable that is for colours decides.

    When nobody reads it any more, the program goes on.
    """

    def __init__(self) -> None:
        is_terminal = sys.stderr.isatty()
        super().__init__(stderr=True, force_terminal=is_terminal, force_interactive=is_terminal)

    def on_broken_pipe(self) -> None:
        self.quiet = True


def keyboard() -> int | None:
    """The descriptor of the standard input, if that is a terminal."""
    stdin = sys.stdin  # None if it was closed before the program began
    return stdin.fileno() if stdin is not None and stdin.isatty() else None


@attrs.define(eq=False)
class Screen:
    """A terminal: drawn on as a whole, with nothing of what is typed, or as it was before.

    Args:
      console: What is drawn on.
      keyboard: The descriptor of the terminal that is typed on; None if there is none.
    """

    console: Console
    keyboard: int | None
    _live: Live = attrs.field(init=False)
    _before: list[Any] | None = attrs.field(default=None, init=False)
    _has_failed: bool = attrs.field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self._live = Live(
            console=self.console,
            screen=True,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    @property
    def is_usable(self) -> bool:
        """Whether it can be drawn on, and this program is in its foreground, where it may."""
        console = self.console
        is_able = console.is_terminal and not console.is_dumb_terminal and not self._has_failed
        return is_able and _is_in_foreground(console.file)

    @property
    def is_taken(self) -> bool:
        """Whether it is drawn on."""
        return self._live.is_started

    async def show(
        self, look: Callable[[], Awaitable[RenderableType]], interval: float
    ) -> NoReturn:
        """Draw what there is to see until cancelled; then the terminal is as it was.

        A program that goes on in the background after Ctrl-Z does not draw. When drawing fails, for
        the terminal may have gone, nothing is drawn any more, and all else goes on.

        Args:
          look: Returns a picture. One that equals the last is drawn only if the size is another.
          interval: So many seconds are between two looks.
        """
        drawn: object = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._give_back_at_ctrl_z)
                while True:
                    picture = await look()
                    if not self.is_taken and self.is_usable:
                        self.take()
                        drawn = None
                    seen = (picture, self.console.size)
                    if self.is_taken and seen != drawn:
                        drawn = seen
                        await self.draw(picture)
                    await trio.sleep(interval)
        finally:
            self.give_back()

    def take(self) -> None:
        """Begin to draw."""
        try:
            if self.keyboard is not None:
                self._before = termios.tcgetattr(self.keyboard)
                silent = [*self._before]
                silent[3] &= ~termios.ECHO  # of the local flags
                # Ctrl-S would hold up the thread that draws, and with it the end of the program.
                silent[0] &= ~termios.IXON
                termios.tcsetattr(self.keyboard, termios.TCSANOW, silent)
            with self.console:  # which writes at the end, so that it has begun if that fails
                self._live.start()
        except _FAILURES:
            self._fail()

    def give_back(self) -> None:
        """Have the terminal as it was, if it is there, and forget what has been typed meanwhile."""
        with contextlib.suppress(OSError):
            self._live.stop()
        if self.keyboard is not None and self._before is not None:
            with contextlib.suppress(*_FAILURES):
                termios.tcflush(self.keyboard, termios.TCIFLUSH)
                termios.tcsetattr(self.keyboard, termios.TCSANOW, self._before)
            self._before = None

    async def draw(self, picture: RenderableType) -> None:
        """Draw in another thread, for a terminal that takes no more must hold up nothing else."""
        try:
            await trio.to_thread.run_sync(partial(self._live.update, picture, refresh=True))
        except OSError:
            self._fail()

    def _fail(self) -> None:
        self._has_failed = True
        self.give_back()

    async def _give_back_at_ctrl_z(self) -> NoReturn:
        """Give it back before the program is suspended."""
        with trio.open_signal_receiver(signal.SIGTSTP) as signals:
            while True:
                await anext(signals)
                self.give_back()
                os.kill(os.getpid(), signal.SIGSTOP)


def _is_in_foreground(stream: IO[str]) -> bool:
    try:
        return os.tcgetpgrp(stream.fileno()) == os.getpgrp()
    except OSError:  # it is not one that controls jobs
        return True
