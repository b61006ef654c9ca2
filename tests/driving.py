"""Driving a reader by hand, as the tests of codecs do: no connection, no Trio."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import attrs
from hypothesis import strategies as st

from trio_bytetalk import NEED_DATA, Buffer, ProtocolError, Reader, ReceiveBuffer
from trio_bytetalk._codec import AheadReader, ahead_reader


@attrs.frozen
class Outcome:
    """What a reader made of a whole stream of bytes."""

    messages: list[Any]
    error: type[ProtocolError] | None = None


def read_all(reader: Reader[Any], pieces: Iterable[bytes], *, patient: bool = False) -> Outcome:
    """Feed ``pieces`` and then the end, decoding all that can be decoded after each.

    ``patient`` is to decode only once there are as many bytes as the buffer says are wanted, as a
    connection does. Any exception but a `ProtocolError` is the test's failure.

    A reader that can decode many messages in one call is asked for those, too: the outcome must
    be the same.
    """
    pieces = list(pieces)
    outcome = _read_all(reader, pieces, patient)
    if ahead_reader(reader) is not None:
        for most in (1, 2, 100):
            assert _read_all(reader, pieces, patient, most) == outcome
    return outcome


def _read_all(
    reader: Reader[Any], pieces: Iterable[bytes], patient: bool, ahead: int = 0
) -> Outcome:
    buffer = ReceiveBuffer()
    messages: list[Any] = []

    def decode() -> bool:
        size = len(buffer)
        pointless = size < buffer.wanted
        buffer.wanted = 0
        message = reader.decode(buffer)
        if message is NEED_DATA:
            assert len(buffer) == size
            return False
        assert not pointless
        messages.append(message)
        if ahead and isinstance(reader, AheadReader):
            more = reader.decode_ahead(buffer, ahead)
            assert len(more) <= ahead
            messages.extend(more)
        return True

    def decode_eof() -> bool:
        message = reader.decode_eof(buffer)
        if message is NEED_DATA:
            return False
        messages.append(message)
        return True

    try:
        for piece in pieces:
            buffer.feed(piece)
            if patient and len(buffer) < buffer.wanted:
                continue
            while decode():
                pass
        while decode() or decode_eof():
            pass
    except ProtocolError as error:
        return Outcome(messages, type(error))
    return Outcome(messages)


def cut(data: bytes, sizes: Iterable[int]) -> list[bytes]:
    """``data`` in pieces of ``sizes`` bytes, and what is left after these."""
    pieces = []
    for size in sizes:
        pieces.append(data[:size])
        data = data[size:]
    return [*pieces, data]


def cuts() -> st.SearchStrategy[list[int]]:
    """Sizes for `cut`: mostly of a few bytes, none at all included."""
    return st.lists(st.integers(0, 9), max_size=40)


def joined(frame: Buffer | Sequence[Buffer]) -> bytes:
    """What a writer has returned, as the peer gets it."""
    return bytes(frame) if isinstance(frame, bytes | bytearray | memoryview) else b"".join(frame)
