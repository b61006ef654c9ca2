"""`Chunks`: the bytes, all of them, in order, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from driving import Outcome, cut, cuts, read_all
from hypothesis import given
from hypothesis import strategies as st

from trio_bytetalk import NEED_DATA, Chunks, EncodeError, LengthPrefixed, ReceiveBuffer
from trio_bytetalk.testing import connection_pair


@given(st.binary(max_size=60), cuts())
def test_what_arrives_is_received_as_it_arrives(stream: bytes, sizes: list[int]) -> None:
    pieces = cut(stream, sizes)
    expected = Outcome([piece for piece in pieces if piece])
    assert read_all(Chunks().reader(), pieces) == expected
    assert read_all(Chunks().reader(), pieces, patient=True) == expected


def test_chunks_that_nobody_took_are_received_as_one() -> None:
    buffer = ReceiveBuffer()
    pieces = [b"ab", b"c", b"." * 5000, b"d"]
    for piece in pieces:
        buffer.feed(piece)
    reader = Chunks().reader()
    assert reader.decode(buffer) == b"".join(pieces)
    assert reader.decode(buffer) is NEED_DATA


def test_chunk_is_not_copied() -> None:
    buffer = ReceiveBuffer()
    chunk = b"." * 60_000
    buffer.feed(chunk)
    assert Chunks().reader().decode(buffer) is chunk
    assert Chunks().writer().encode(chunk) is chunk


def test_what_is_behind_another_codecs_message_is_received_at_once() -> None:
    buffer = ReceiveBuffer()
    buffer.feed(b"\x00\x00\x00\x02hi" + b"and the rest")
    assert LengthPrefixed().reader().decode(buffer) == b"hi"
    assert Chunks().reader().decode(buffer) == b"and the rest"


@pytest.mark.parametrize("kind", [bytearray, memoryview])
def test_message_that_its_owner_changes_after_sending_is_sent_as_it_was(kind: type) -> None:
    data = bytearray(b"aaa")
    frame = Chunks().writer().encode(kind(data))
    data[:] = b"bbb"
    assert frame == b"aaa"


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (b"", "the message is empty"),
        (bytearray(), "the message is empty"),
        ("text", "Chunks sends bytes, bytearray or memoryview, not str"),
        (None, "Chunks sends bytes, bytearray or memoryview, not NoneType"),
    ],
)
async def test_message_that_cannot_be_sent_leaves_the_connection_usable(
    message: Any, why: str
) -> None:
    left, right = connection_pair(Chunks())
    async with left, right:
        with pytest.raises(EncodeError, match=why):
            await left.send(message)
        await left.send(b"good")
        assert await right.receive() == b"good"


def test_all_are_equal() -> None:
    assert Chunks() == Chunks()
    assert hash(Chunks()) == hash(Chunks())
