"""A whole terminal that is drawn on for as long as a program runs in its foreground."""

from __future__ import annotations

import os
import signal
import sys
import termios
from functools import partial
from typing import IO, Any, NoReturn

import attrs
import trio
from rich.console import Console, RenderableType
from rich.live import Live


def is_ours(stream: IO[str]) -> bool:
    """Whether this program is in the foreground of a terminal, where it may draw."""
    try:
        return os.tcgetpgrp(stream.fileno()) == os.getpgrp()
    except OSError:  # it is not one that controls jobs
        return True


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

    def __attrs_post_init__(self) -> None:
        self._live = Live(
            console=self.console,
            screen=True,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    @property
    def is_taken(self) -> bool:
        """Whether it is drawn on."""
        return self._live.is_started

    def take(self) -> None:
        """Begin to draw."""
        if self.keyboard is not None:
            self._before = termios.tcgetattr(self.keyboard)
            silent = [*self._before]
            silent[3] &= ~termios.ECHO  # of the local flags
            # Ctrl-S would hold up the thread that draws, and with it the end of the program.
            silent[0] &= ~termios.IXON
            termios.tcsetattr(self.keyboard, termios.TCSANOW, silent)
        self._live.start()

    def give_back(self) -> None:
        """Have the terminal as it was, and forget what has been typed meanwhile."""
        self._live.stop()
        if self.keyboard is not None and self._before is not None:
            termios.tcflush(self.keyboard, termios.TCIFLUSH)
            termios.tcsetattr(self.keyboard, termios.TCSANOW, self._before)
            self._before = None

    async def draw(self, picture: RenderableType) -> None:
        """Draw in another thread, for a terminal that takes no more must hold up nothing else."""
        await trio.to_thread.run_sync(partial(self._live.update, picture, refresh=True))

    async def give_back_at_ctrl_z(self) -> NoReturn:
        """Give it back before the program is suspended."""
        with trio.open_signal_receiver(signal.SIGTSTP) as signals:
            while True:
                await anext(signals)
                self.give_back()
                os.kill(os.getpid(), signal.SIGSTOP)
