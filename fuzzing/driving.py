"""Driving readers, with everything checked that holds for any bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import attrs

from trio_bytetalk import (
    NEED_DATA,
    Buffer,
    InvalidMessageError,
    MessageTooLargeError,
    ProtocolError,
    Reader,
    ReceiveBuffer,
)
from trio_bytetalk._codec import AheadReader, ahead_reader

from .choices import Choices


@attrs.frozen
class Refused:
    """A `ProtocolError`, by what must not depend on how the bytes were cut."""

    error: type[ProtocolError]
    reason: str = ""
    frame: Any = None

    @classmethod
    def of(cls, error: ProtocolError) -> Refused:
        text = str(error)
        assert text, f"{error!r} says nothing"
        assert text.isprintable(), f"a peer's bytes could forge a log line: {text!r}"
        if isinstance(error, InvalidMessageError):
            return cls(type(error), error.reason, error.frame)
        return cls(type(error))


def joined(frame: Buffer | Sequence[Buffer]) -> bytes:
    """What a writer has returned, as the peer gets it."""
    return bytes(frame) if isinstance(frame, bytes | bytearray | memoryview) else b"".join(frame)


def same(left: object, right: object) -> bool:
    """Whether messages are the same; not a number is, too."""
    return left == right or repr(left) == repr(right)


@attrs.define(eq=False)
class _Reading:
    """One stream of bytes, and what a reader has made of it."""

    reader: Reader[Any]
    buffer: ReceiveBuffer
    ahead: int
    came: list[Any] = attrs.field(factory=list)
    over: bool = False  # an error that stays

    def decode(self) -> bool:
        """Whether something came."""
        return self._call(self.reader.decode)

    def decode_eof(self) -> bool:
        return self._call(self.reader.decode_eof)

    def _call(self, decode: Callable[[ReceiveBuffer], Any]) -> bool:
        if self.over:
            return False
        buffer = self.buffer
        size = len(buffer)
        wanted, buffer.wanted = buffer.wanted, 0
        try:
            message = decode(buffer)
        except ProtocolError as error:
            self._refused(error, decode, size)
            return True
        if message is NEED_DATA:
            assert len(buffer) == size, "NEED_DATA, but bytes were taken"
            assert not buffer.wanted or buffer.wanted > size, "bytes are wanted that are there"
            return False
        assert len(buffer) < size, "a message that takes no bytes"
        assert size >= wanted, "a message with fewer bytes than were wanted"
        self.came.append(message)
        if self.ahead and isinstance(self.reader, AheadReader) and ahead_reader(self.reader):
            self._decode_ahead(self.reader)
        return True

    def _refused(
        self, error: ProtocolError, decode: Callable[[ReceiveBuffer], Any], size: int
    ) -> None:
        refused = Refused.of(error)
        self.came.append(refused)
        # A reader may notice what is too large before it is whole, and then there is nothing that
        # it could consume to go on behind it.
        self.over = isinstance(error, MessageTooLargeError)
        if len(self.buffer) == size:
            self.over = True
            again: Any
            try:
                again = decode(self.buffer)
            except ProtocolError as second:
                again = Refused.of(second)
            assert again == refused, f"{error!r} is followed by {again!r}"
            assert len(self.buffer) == size, "an error consumes bytes the second time"
        assert len(self.buffer) <= size, "an error that adds bytes"

    def _decode_ahead(self, reader: AheadReader[Any]) -> None:
        """Decode many at once, put them back as a connection may have to, and one by one again."""
        buffer = self.buffer
        start = buffer.start
        messages = reader.decode_ahead(buffer, self.ahead)
        assert len(messages) <= self.ahead
        after, buffer.start = buffer.start, start
        again = [reader.decode(buffer) for _ in messages]
        assert same(again, messages), "decoded ahead it is another message"
        assert buffer.start == after, "decoding ahead takes other bytes"
        self.came.extend(messages)


def read(
    reader: Reader[Any],
    pieces: Iterable[bytes],
    *,
    patient: bool = False,
    ahead: int = 0,
    compact: bool = False,
    buffer: ReceiveBuffer | None = None,
) -> list[Any]:
    """Feed ``pieces`` and then the end; the messages and what was `Refused`, in their order.

    Args:
      reader: A new one.
      pieces: What is fed, with a call of ``decode`` after each.
      patient: Only call it once as many bytes are there as are wanted, as a connection does.
      ahead: How many messages to decode at once, where the reader can.
      compact: Let the buffer let go of what is decoded, as a connection does before it waits.
      buffer: What to feed, if it is a special one.

    Raises:
      AssertionError: for what a reader must not do with any bytes.
      Exception: whatever a reader raises that is no `ProtocolError`.
    """
    reading = _Reading(reader, ReceiveBuffer() if buffer is None else buffer, ahead)
    for piece in pieces:
        reading.buffer.feed(piece)
        if patient and len(reading.buffer) < reading.buffer.wanted:
            continue
        while reading.decode():
            pass
        if compact:
            reading.buffer.compact()
    while reading.decode() or reading.decode_eof():
        pass
    return reading.came


def pieces(data: bytes, choices: Choices) -> list[bytes]:
    """``data``, cut where ``choices`` says."""
    number = choices.below(16)
    if not number:
        return [data[at : at + 1] for at in range(len(data))]
    cut = []
    for _ in range(number):
        size = choices.below(256)
        size = size if size < 128 else (size - 127) * 16
        cut.append(data[:size])
        data = data[size:]
    return [*cut, data]
