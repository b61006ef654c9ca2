"""`LengthPrefixed`: any length field, any cutting of any bytes, and messages that cannot be."""

from __future__ import annotations

import tracemalloc
from typing import Any, Literal

import pytest
from driving import Outcome, cut, cuts, joined, read_all
from hypothesis import given
from hypothesis import strategies as st

from trio_bytetalk import (
    NEED_DATA,
    EncodeError,
    IncompleteMessageError,
    LengthPrefixed,
    MessageTooLargeError,
    ReceiveBuffer,
)
from trio_bytetalk.testing import connection_pair

ByteOrder = Literal["big", "little"]
SIZES = st.integers(1, 8)
BYTE_ORDERS: st.SearchStrategy[ByteOrder] = st.sampled_from(["big", "little"])


def frame(codec: LengthPrefixed, message: bytes) -> bytes:
    return len(message).to_bytes(codec.size, codec.byteorder) + message


def as_it_should_be(codec: LengthPrefixed, data: bytes) -> Outcome:
    """What `codec` is to make of ``data``, by the plainest means."""
    messages: list[bytes] = []
    while len(data) >= codec.size:
        length = int.from_bytes(data[: codec.size], codec.byteorder)
        if length > codec.max_size:
            return Outcome(messages, MessageTooLargeError)
        if len(data) < codec.size + length:
            break
        messages.append(data[codec.size : codec.size + length])
        data = data[codec.size + length :]
    return Outcome(messages, IncompleteMessageError if data else None)


@given(SIZES, BYTE_ORDERS, st.integers(0, 30), st.data())
def test_any_cutting_of_any_bytes_gives_the_same_messages_or_the_same_error(
    size: int, byteorder: ByteOrder, max_size: int, data: st.DataObject
) -> None:
    codec = LengthPrefixed(size, byteorder, max_size)
    frames = data.draw(st.lists(st.binary(max_size=max_size).map(lambda m: frame(codec, m))))
    stream = b"".join(frames) + data.draw(st.binary(max_size=12))
    expected = as_it_should_be(codec, stream)
    pieces = cut(stream, data.draw(cuts()))
    assert read_all(codec.reader(), pieces) == expected
    assert read_all(codec.reader(), pieces, patient=True) == expected


@pytest.mark.parametrize("byteorder", ["big", "little"])
@pytest.mark.parametrize("size", range(1, 9))
def test_byte_by_byte(size: int, byteorder: ByteOrder) -> None:
    codec = LengthPrefixed(size, byteorder)
    messages = [b"", b"a", b"b" * 200]
    stream = b"".join(frame(codec, message) for message in messages)
    assert read_all(codec.reader(), cut(stream, [1] * len(stream))) == Outcome(messages)


@given(SIZES, BYTE_ORDERS, st.lists(st.binary(max_size=255)), cuts())
def test_what_is_written_is_read(
    size: int, byteorder: ByteOrder, messages: list[bytes], sizes: list[int]
) -> None:
    codec = LengthPrefixed(size, byteorder)
    writer = codec.writer()
    stream = b"".join(joined(writer.encode(message)) for message in messages)
    assert read_all(codec.reader(), cut(stream, sizes)) == Outcome(messages)


@pytest.mark.parametrize("length", [4095, 4096, 70_000])
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_large_message_survives_whether_it_is_joined_to_its_header_or_not(
    length: int, kind: type
) -> None:
    codec = LengthPrefixed()
    message = bytes(range(256)) * (length // 256 + 1)
    message = message[:length]
    stream = joined(codec.writer().encode(kind(message)))
    assert stream == frame(codec, message)
    for sizes in ([], [2], [4], [5], [2, 2, 1, 4096], [4, length - 1], [1000] * 80):
        assert read_all(codec.reader(), cut(stream, sizes)) == Outcome([message])


def test_large_payload_is_sent_as_it_is_and_a_small_one_in_one_piece_with_its_header() -> None:
    writer = LengthPrefixed().writer()
    large = b"." * 4096
    assert writer.encode(large)[1] is large
    assert type(writer.encode(large[1:])) is bytes


@pytest.mark.parametrize("kind", [bytearray, memoryview])
@pytest.mark.parametrize("length", [3, 5000])
def test_message_that_its_owner_changes_after_sending_is_sent_as_it_was(
    kind: type, length: int
) -> None:
    data = bytearray(b"a" * length)
    encoded = LengthPrefixed(2).writer().encode(kind(data))
    data[:] = b"b" * length
    assert joined(encoded) == length.to_bytes(2, "big") + b"a" * length


def test_memoryview_of_larger_items_is_sent_by_its_bytes() -> None:
    items = memoryview(b"abcdefgh").cast("I")
    assert joined(LengthPrefixed(1).writer().encode(items)) == b"\x08abcdefgh"


def test_the_default_is_four_bytes_big_endian_and_a_mebibyte() -> None:
    codec = LengthPrefixed()
    assert joined(codec.writer().encode(b"hello")) == b"\x00\x00\x00\x05hello"
    assert (codec.size, codec.byteorder, codec.max_size) == (4, "big", 1_048_576)
    assert joined(LengthPrefixed(2, "little").writer().encode(b"hello")) == b"\x05\x00hello"


# -- limits


@pytest.mark.parametrize("with_more", [b"", b"abcd", b"abcdefgh"])
def test_announced_message_over_max_size_is_refused_when_its_header_is_there(
    with_more: bytes,
) -> None:
    codec = LengthPrefixed(max_size=3)
    buffer = ReceiveBuffer()
    buffer.feed(b"\x00\x00\x00\x03yes" + b"\x00\x00\x00\x04" + with_more)
    reader = codec.reader()
    assert reader.decode(buffer) == b"yes"
    for _ in range(2):  # nothing is consumed, so it does not go away
        with pytest.raises(MessageTooLargeError) as caught:
            reader.decode(buffer)
    assert str(caught.value) == ("the peer announced a message of 4 bytes; max_size allows 3 bytes")
    assert buffer.peek(4) == b"\x00\x00\x00\x04"
    assert buffer.wanted == 0


@pytest.mark.parametrize("max_size", [2**20, 2**64])
def test_no_memory_is_taken_for_what_is_only_announced(max_size: int) -> None:
    reader = LengthPrefixed(8, max_size=max_size).reader()
    buffer = ReceiveBuffer()
    buffer.feed(b"\x7f" + b"\xff" * 7 + b"and so on")
    tracemalloc.start()
    try:
        if max_size < 2**63:
            with pytest.raises(MessageTooLargeError):
                reader.decode(buffer)
        else:
            assert reader.decode(buffer) is NEED_DATA
            assert buffer.wanted == 8 + 2**63 - 1
        assert tracemalloc.get_traced_memory()[1] < 50_000
    finally:
        tracemalloc.stop()


def test_max_size_may_be_changed_between_two_messages() -> None:
    codec = LengthPrefixed(1, max_size=1)
    reader, writer = codec.reader(), codec.writer()
    buffer = ReceiveBuffer()
    buffer.feed(b"\x01a\x02bc")
    assert reader.decode(buffer) == b"a"
    reader.max_size = writer.max_size = 2
    assert reader.decode(buffer) == b"bc"
    assert joined(writer.encode(b"bc")) == b"\x02bc"


def test_zero_max_size_leaves_empty_messages() -> None:
    codec = LengthPrefixed(1, max_size=0)
    assert read_all(codec.reader(), [b"\x00\x00\x01"]) == Outcome([b"", b""], MessageTooLargeError)


# -- reading


@pytest.mark.parametrize("held", [b"", b"\x00", b"\x00\x00\x00\x02", b"\x00\x00\x00\x02h"])
def test_what_is_not_whole_stays_for_another_reader(held: bytes) -> None:
    buffer = ReceiveBuffer()
    buffer.feed(held)
    assert LengthPrefixed().reader().decode(buffer) is NEED_DATA
    assert buffer.wanted == (4 if len(held) < 4 else 6)
    assert buffer.take(len(held)) == held


def test_the_next_message_may_be_of_another_size_and_byte_order() -> None:
    buffer = ReceiveBuffer()
    buffer.feed(b"\x01a" + b"\x02\x00bc" + b"\x00\x00\x03def")
    assert LengthPrefixed(1).reader().decode(buffer) == b"a"
    assert LengthPrefixed(2, "little").reader().decode(buffer) == b"bc"
    assert LengthPrefixed(3).reader().decode(buffer) == b"def"


# -- what cannot be sent


@pytest.mark.parametrize("message", ["text", None, 5, [1, 2], object])
def test_message_of_the_wrong_type(message: Any) -> None:
    with pytest.raises(EncodeError) as caught:
        LengthPrefixed().writer().encode(message)
    assert "bytes, bytearray or memoryview" in str(caught.value)
    assert f"not {type(message).__name__}" in str(caught.value)


def test_message_over_max_size() -> None:
    writer = LengthPrefixed(max_size=3).writer()
    assert joined(writer.encode(b"abc")) == b"\x00\x00\x00\x03abc"
    with pytest.raises(EncodeError, match=r"4 bytes; max_size allows 3 bytes"):
        writer.encode(b"abcd")


@pytest.mark.parametrize("size", [1, 2])
def test_message_too_long_for_its_length_field(size: int) -> None:
    writer = LengthPrefixed(size).writer()
    most = 256**size - 1
    assert len(joined(writer.encode(bytes(most)))) == size + most
    with pytest.raises(EncodeError) as caught:
        writer.encode(bytes(most + 1))
    assert str(caught.value) == (
        f"the message has {most + 1} bytes; a length field of size={size} holds at most {most}"
    )


async def test_connection_is_usable_after_a_message_that_cannot_be_sent() -> None:
    left, right = connection_pair(LengthPrefixed(1))
    async with left, right:
        for message in (bytes(256), "text"):
            with pytest.raises(EncodeError):
                await left.send(message)  # type: ignore[arg-type]  # which is the mistake
        await left.send(b"good")
        assert await right.receive() == b"good"


# -- settings


@pytest.mark.parametrize(
    ("setting", "value", "error"),
    [
        ("size", 0, ValueError),
        ("size", 9, ValueError),
        ("size", 4.0, TypeError),
        ("size", True, TypeError),
        ("byteorder", "middle", ValueError),
        ("byteorder", None, ValueError),
        ("max_size", -1, ValueError),
        ("max_size", "1 MiB", TypeError),
        ("max_size", None, TypeError),
    ],
)
def test_wrong_setting_is_named(setting: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=rf"^{setting} must be .*not {value!r}$"):
        LengthPrefixed(**{setting: value})


def test_codecs_of_equal_settings_are_equal() -> None:
    assert LengthPrefixed(2) == LengthPrefixed(2, "big")
    assert hash(LengthPrefixed(2)) == hash(LengthPrefixed(2, "big"))
    assert LengthPrefixed(2) != LengthPrefixed(2, "little")
