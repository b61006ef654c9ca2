"""Printing that holds nobody up: what the output is too slow for is counted, and left out."""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from typing import Final, TextIO

import attrs
import trio

# So much may wait to be printed: as many lines as a terminal shows within some tenths of a second,
# and as many characters as a few of the largest messages have in hex.
_MOST_LINES: Final = 10_000
_MOST_CHARACTERS: Final = 16 * 2**20


@attrs.define(eq=False)
class Printer:
    """Lines are put here, and `run` prints them.

    Args:
      write: Writes text. It is called in a thread, for it may wait as long as it likes.
      not_shown: The line that stands where so many were left out.
    """

    write: Callable[[str], object]
    not_shown: Callable[[int], str]
    dropped: int = attrs.field(default=0, init=False)
    """How many lines were left out."""

    _lines: list[str] = attrs.field(factory=list, init=False)
    _size: int = attrs.field(default=0, init=False)
    _missing: int = attrs.field(default=0, init=False)  # at the end of these lines
    _closed: bool = attrs.field(default=False, init=False)
    _failed: bool = attrs.field(default=False, init=False)
    _changed: trio.Event = attrs.field(factory=trio.Event, init=False)

    @property
    def has_room(self) -> bool:
        """Whether a line is worth being made."""
        if self._failed:
            return False
        return len(self._lines) < _MOST_LINES and self._size < _MOST_CHARACTERS

    def put(self, line: str) -> None:
        """Print a line, soon. One that is there although there is no room is of more weight.

        Even so there is an end: twice as many lines.
        """
        if self._failed or len(self._lines) >= 2 * _MOST_LINES:
            self.drop()
            return
        self._mark_missing()
        self._lines.append(line)
        self._size += len(line)
        self._changed.set()

    def drop(self) -> None:
        """Count a line that is left out."""
        self._missing += 1
        self.dropped += 1
        self._changed.set()

    def close(self) -> None:
        """Have `run` return when all is printed."""
        self._closed = True
        self._changed.set()

    async def run(self) -> None:
        """Print until it is closed.

        Raises:
          OSError: as ``write`` does. Then no more is printed: all that is put is left out, and
              counted.

        Cancelled, it does not wait for what is being printed, and prints no more.
        """
        try:
            while self._lines or self._missing or not self._closed:
                if self._lines or self._missing:
                    self._mark_missing()
                    count = len(self._lines)
                    text = "\n".join(self._lines) + "\n"
                    self._lines.clear()
                    self._size = 0
                    try:
                        await trio.to_thread.run_sync(self.write, text, abandon_on_cancel=True)
                    except OSError:
                        self._failed = True
                        self.dropped += count
                        raise
                else:
                    self._changed = trio.Event()
                    await self._changed.wait()
        finally:
            self.dropped += len(self._lines)

    def _mark_missing(self) -> None:
        if self._missing:
            self._lines.append(self.not_shown(self._missing))
            self._missing = 0


def writing_to(stream: TextIO) -> Callable[[str], object]:
    """What writes to a stream: all of it, at once, in whatever encoding the stream has.

    It leaves the stream's own buffer alone: a thread that waits in there when the program ends
    would have the interpreter abort.
    """
    try:
        descriptor = stream.fileno()
    except OSError:  # it is in memory
        return stream.write
    encoding = stream.encoding

    def write(text: str) -> None:
        write_all(descriptor, text.encode(encoding, "backslashreplace"))

    return write


def write_all(descriptor: int, data: bytes) -> None:
    """Write, and wait for as long as that takes."""
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(descriptor, left) :]
        except BlockingIOError:  # someone who shares it wants it so
            select.select([], [descriptor], [])
