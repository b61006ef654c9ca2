"""A tap on a stream of bytes: the messages in it, decoded from a copy; no I/O, no Trio."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import Any, Final, TypeAlias

import attrs

from .._buffer import ReceiveBuffer
from .._codec import NEED_DATA, Codec, Reader
from .._errors import ProtocolError, in_words
from . import messages
from .figures import plural

# How much of an error is shown; what a peer sent may be a part of it.
_SHOWN: Final = 300

# How much of what cannot be decoded is shown: what the other protocol is may be seen from it.
_SPECIMEN: Final = 16


@attrs.define
class Message:
    """A message, and the bytes that it was."""

    offset: int
    """How many bytes came before it in this direction."""

    frame: bytes
    """As it passed."""

    message: Any

    is_value: bool
    """Whether it is one of JSON or the like, and not text or bytes as they are."""


class ProblemKind(enum.Enum):
    """What a problem means to what comes behind it."""

    INVALID = "invalid"
    """One message cannot be decoded; those behind it can."""

    UNDECODABLE = "undecodable"
    """Nothing from here on can be decoded."""

    UNFINISHED = "unfinished"
    """The stream has ended here."""


@attrs.define
class Problem:
    """What could not be decoded."""

    offset: int
    """How many bytes came before it in this direction."""

    frame: bytes
    """What it was; unless one message alone is meant, only its first bytes."""

    reason: str
    """On one line."""

    kind: ProblemKind


Seen: TypeAlias = Message | Problem


def _failure(error: Exception) -> str:
    return f"the codec failed: {type(error).__name__}: {in_words(error, _SHOWN)}"


@attrs.define(eq=False)
class Tap:
    """One direction of a connection, as a codec understands it.

    Args:
      codec: Whose reader decodes it.
      most: How many bytes of an unfinished message are kept.
    """

    codec: Codec[Any, Any] = attrs.field(repr=False)
    most: int
    size: int = attrs.field(default=0, init=False)
    """How many bytes have come."""

    _reader: Reader[Any] | None = attrs.field(init=False)  # None: there is no decoding any more
    _buffer: ReceiveBuffer = attrs.field(factory=ReceiveBuffer, init=False)
    _pieces: list[bytes] = attrs.field(
        factory=list, init=False
    )  # what the buffer holds, as it came
    _values: bool = attrs.field(init=False)
    _failure: str | None = attrs.field(default=None, init=False)  # to be told with the first bytes

    def __attrs_post_init__(self) -> None:
        try:
            self._reader = self.codec.reader()
        except Exception as error:  # noqa: BLE001 - a user's codec may fail; the bytes pass on
            self._reader = None
            self._failure = _failure(error)
        self._values = messages.kind_of(self.codec) is messages.Kind.VALUES

    def feed(self, data: bytes) -> Iterator[Seen]:
        """What can be decoded now that ``data`` has come. Go through all of it."""
        if self._failure is not None:
            reason, self._failure = self._failure, None
            yield Problem(self.size, data[:_SPECIMEN], reason, ProblemKind.UNDECODABLE)
        self.size += len(data)
        if self._reader is None:
            return
        buffer = self._buffer
        buffer.feed(data)
        self._pieces.append(data)
        if len(buffer) >= buffer.wanted:
            yield from self._decode(self._reader, at_end=False)
        if len(buffer) > self.most:
            reason = f"no message has ended within {plural(self.most, 'byte')}"
            yield self._give_up(
                f"{reason}; the setting is --max-undecoded", ProblemKind.UNDECODABLE
            )

    def end(self) -> Iterator[Seen]:
        """What can be decoded now that no more will come."""
        if self._reader is not None:
            yield from self._decode(self._reader, at_end=True)

    def _decode(self, reader: Reader[Any], *, at_end: bool) -> Iterator[Seen]:
        buffer = self._buffer
        raw: bytes | None = None  # all of the pieces, once a frame is to be cut out of them
        start = 0
        left = len(buffer)
        while left or at_end:
            offset = self.size - left
            problem = None
            message: Any = NEED_DATA
            buffer.wanted = 0
            try:
                message = reader.decode(buffer)
                if message is NEED_DATA and at_end:
                    message = reader.decode_eof(buffer)
            except ProtocolError as error:
                problem = in_words(error, _SHOWN)
            except Exception as error:  # noqa: BLE001 - a user's codec may fail; the bytes pass on
                problem = _failure(error)
            used = left - len(buffer)
            left -= used
            frame = b""
            if used:
                if raw is None:
                    raw = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
                frame = raw[start : start + used]
                start += used
            if problem is None:
                if message is NEED_DATA:
                    break
                yield Message(offset, frame, message, self._values)
            elif used:
                # A reader that consumed the faulty message lets the connection go on.
                yield Problem(offset, frame, problem, ProblemKind.INVALID)
            else:
                yield self._give_up(
                    problem, ProblemKind.UNFINISHED if at_end else ProblemKind.UNDECODABLE
                )
                return
        if not left:
            self._pieces.clear()
            buffer.clear()
        elif raw is not None:
            self._pieces = [raw[start:]]
            buffer.compact()

    def _give_up(self, reason: str, kind: ProblemKind) -> Problem:
        begin = self.size - len(self._buffer)
        first = self._buffer.peek(min(_SPECIMEN, len(self._buffer))) or b""
        self._reader = None
        self._buffer.clear()
        self._pieces.clear()
        return Problem(begin, first, reason, kind)
