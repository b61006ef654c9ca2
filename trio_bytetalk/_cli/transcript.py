"""The lines that say what passes through a proxy: for people, or as JSON for scripts."""

from __future__ import annotations

import functools
import json
import time
from abc import ABC, abstractmethod
from typing import Any, Final

import attrs
import click

from .escapes import escaped, with_arrows
from .figures import plural
from .messages import hex_dump, show, text_of
from .tap import Message, Problem, ProblemKind

_BYTES: Final = (bytes, bytearray, memoryview)

_to_json: Final = json.JSONEncoder(default=repr, allow_nan=False).encode


@attrs.frozen
class Way:
    """One of the two directions."""

    arrow: str
    name: str
    colour: str


REQUESTS: Final = Way("→", "to_target", "cyan")
REPLIES: Final = Way("←", "to_client", "green")


class Transcript(ABC):
    """What lines look like. ``now`` is in seconds since the epoch, ``number`` the connection's."""

    @abstractmethod
    def message(self, now: float, number: int, way: Way, seen: Message) -> str:
        """A message."""

    @abstractmethod
    def problem(self, now: float, number: int, way: Way, seen: Problem) -> str:
        """Something that could not be decoded."""

    @abstractmethod
    def note(self, now: float, number: int | None, event: str, text: str, **facts: Any) -> str:
        """Anything else: ``text`` for people, ``event`` and ``facts`` for scripts."""


@attrs.frozen
class Readable(Transcript):
    """For people.

    Args:
      most: How many bytes, or characters, of a message are shown.
      hex: Whether frames are dumped.
      colours: Whether it is for a terminal that has colours.
      encoding: What the lines will be encoded in, which may have no arrows.
    """

    most: int
    hex: bool = False
    colours: bool = False
    encoding: str | None = None

    def message(self, now: float, number: int, way: Way, seen: Message) -> str:
        text, data = self._content(seen)
        if self.hex:
            data = seen.frame
        front = self._front(now, number, way)
        return self._dumped(f"{front} {len(seen.frame):>7,}  {text}", data)

    def problem(self, now: float, number: int, way: Way, seen: Problem) -> str:
        front = self._front(now, number, way)
        what = f"not decodable from byte {seen.offset:,} on: {seen.reason}; still passing bytes"
        if seen.kind is ProblemKind.INVALID:
            front += f" {len(seen.frame):>7,} "
            what = f"not decodable: {seen.reason}"
        elif seen.kind is ProblemKind.UNFINISHED:
            what = f"unfinished from byte {seen.offset:,} on: {seen.reason}"
        return self._dumped(f"{front} {self._styled(what, 'red')}", seen.frame)

    def note(self, now: float, number: int | None, event: str, text: str, **facts: Any) -> str:
        text = with_arrows(text, self.encoding)
        return f"{self._front(now, number)} {self._styled(text, 'yellow')}"

    def _front(self, now: float, number: int | None, way: Way | None = None) -> str:
        who = "" if number is None else f"#{number}"
        clock = f"{_time_of_day(int(now))}.{int(now * 1000) % 1000:03}"
        front = f"{clock} {who:>5} {with_arrows(way.arrow, self.encoding) if way else ' '}"
        return self._styled(front, way.colour if way else "yellow")

    def _styled(self, text: str, colour: str) -> str:
        return click.style(text, fg=colour) if self.colours else text

    def _content(self, seen: Message) -> tuple[str, Any]:
        """A message as text, or else as bytes to be dumped."""
        message = seen.message
        if isinstance(message, _BYTES):
            head = _head(message, self.most)
            if text_of(head) is None:
                return "", message
            return escaped(head) + _more(len(message) - len(head), "byte"), b""
        if isinstance(message, str) and not seen.is_value:
            rest = len(message) - self.most
            return show(message[: self.most]) + _more(rest, "character"), b""
        if isinstance(message, str):  # "1" is not 1
            text = json.dumps(message, ensure_ascii=not message.isprintable())
        else:
            text = show(message)
        return text[: self.most] + _more(len(text) - self.most, "character"), b""

    def _dumped(self, line: str, data: Any) -> str:
        lines = [line.rstrip(), *(f"  {row}" for row in hex_dump(data[: self.most]))]
        if len(data) > self.most:
            lines.append(f" {_more(len(data) - self.most, 'byte')}")
        return "\n".join(lines)


@attrs.frozen
class JsonLines(Transcript):
    """For scripts: an object a line."""

    def message(self, now: float, number: int, way: Way, seen: Message) -> str:
        message = seen.message
        if isinstance(message, _BYTES):
            message = text_of(message)
        facts = {"offset": seen.offset, "size": len(seen.frame)}
        data = {"bytes": seen.frame.hex()}
        try:
            return self._line(now, number, "message", way, **facts, message=message, **data)
        except (TypeError, ValueError, RecursionError):  # it is nothing that JSON has
            return self._line(now, number, "message", way, **facts, message=show(message), **data)

    def problem(self, now: float, number: int, way: Way, seen: Problem) -> str:
        return self._line(
            now,
            number,
            seen.kind.value,
            way,
            offset=seen.offset,
            reason=seen.reason,
            bytes=seen.frame.hex(),
        )

    def note(self, now: float, number: int | None, event: str, text: str, **facts: Any) -> str:
        return self._line(now, number, event, None, **facts)

    def _line(
        self, now: float, number: int | None, event: str, way: Way | None, **facts: Any
    ) -> str:
        line: dict[str, Any] = {"time": round(now, 6), "event": event}
        if number is not None:
            line["connection"] = number
        if way is not None:
            line["direction"] = way.name
        return _to_json(line | facts)


@functools.lru_cache(1)
def _time_of_day(now: int) -> str:
    return time.strftime("%H:%M:%S", time.localtime(now))


def _head(data: Any, most: int) -> bytes:
    """The first bytes, up to where a character of UTF-8 ends if it is that."""
    end = most
    # A character has up to three bytes behind its first.
    while end > most - 3 and end < len(data) and data[end] & 0xC0 == 0x80:
        end -= 1
    return bytes(data[: max(end, 0)])


def _more(count: int, what: str) -> str:
    return f" ... {plural(count, what)} more" if count > 0 else ""
