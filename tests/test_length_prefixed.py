"""`LengthPrefixed`: any length field, any cutting of any bytes, and messages that cannot be."""

from __future__ import annotations

import re
import socket
import tracemalloc
from multiprocessing.connection import Connection as PipeEnd
from pathlib import Path
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
    LengthPrefixedReader,
    LengthPrefixedWriter,
    MessageTooLargeError,
    ProtocolError,
    ReceiveBuffer,
    _length_prefixed,
)
from trio_bytetalk.testing import connection_pair

ByteOrder = Literal["big", "little"]
SIZES = st.integers(1, 8)
BYTE_ORDERS: st.SearchStrategy[ByteOrder] = st.sampled_from(["big", "little"])


@pytest.fixture(scope="module", autouse=True)
def _nothing_made_before() -> None:
    """What the module keeps for all connections may come from the tests of other modules."""
    _length_prefixed._unpacker.cache_clear()
    _length_prefixed._small_headers.cache_clear()


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


def test_ahead_is_decoded_what_is_whole_and_allowed_and_no_more_than_asked() -> None:
    reader = LengthPrefixed(1, max_size=3).reader()
    buffer = ReceiveBuffer()
    buffer.feed(b"\x01a\x00\x02bc\x03def\x04ghij\x01k\x02")
    assert reader.decode_ahead(buffer, 3) == [b"a", b"", b"bc"]
    assert reader.decode_ahead(buffer, 100) == [b"def"]
    assert reader.decode_ahead(buffer, 100) == []
    reader.max_size = 4
    assert reader.decode_ahead(buffer, 100) == [b"ghij", b"k"]
    assert reader.decode_ahead(buffer, 100) == []
    assert len(buffer) == 1
    buffer.feed(b"lm\x01n\x00")
    assert reader.decode(buffer) == b"lm"
    assert reader.decode_ahead(buffer, 100) == [b"n", b""]  # to the last byte


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
    writer = LengthPrefixed(offset=1).writer()
    pieces = writer.encode(large)
    assert [type(pieces), len(pieces)] == [tuple, 2]
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


def test_message_of_max_size_whatever_that_is() -> None:
    for size in (1000, 1023, 1024, 2000, 4096):
        for codec in (LengthPrefixed(max_size=size), LengthPrefixed(max_size=size, signed=True)):
            stream = joined(codec.writer().encode(bytes(size)))
            assert stream == frame(codec, bytes(size))
            assert read_all(codec.reader(), cut(stream, [1])) == Outcome([bytes(size)])


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


# -- a header, a length that counts otherwise, and what is stripped

ROOT = Path(__file__).parent.parent


def most(codec: LengthPrefixed) -> int:
    return (1 << 8 * codec.size - codec.signed) - 1


@st.composite
def codecs(draw: st.DrawFn) -> LengthPrefixed:
    size, offset, signed = draw(SIZES), draw(st.integers(0, 5)), draw(st.booleans())
    strip = draw(st.sampled_from([None, 0, offset + size]))
    return LengthPrefixed(
        size,
        draw(BYTE_ORDERS),
        draw(st.integers(offset if strip is None else offset + size - strip, 60)),
        signed=signed,
        offset=offset,
        adjustment=draw(st.integers(-20, 20)),
        strip=strip,
        header=draw(st.binary(min_size=offset, max_size=offset)) if strip else b"",
    )


@st.composite
def frames(draw: st.DrawFn, codec: LengthPrefixed) -> bytes:
    """Mostly right, for most settings; its length field is what it should be, or by one off."""
    header = draw(st.binary(min_size=codec.offset, max_size=codec.offset))
    if draw(st.integers(0, 9)):
        header = codec.header or header
    behind = draw(st.binary(max_size=30))
    value = len(behind) - codec.adjustment + draw(st.sampled_from([0] * 8 + [-1, 1]))
    value %= 1 << 8 * codec.size
    return header + value.to_bytes(codec.size, codec.byteorder) + behind


def as_any_should_be(codec: LengthPrefixed, data: bytes) -> Outcome:
    """What `codec` is to make of ``data``, by the plainest means."""
    messages: list[bytes] = []
    ahead = codec.offset + codec.size
    while data:
        if not data.startswith(codec.header[: len(data)]):
            return Outcome(messages, ProtocolError)
        if len(data) < ahead:
            break
        field = data[codec.offset : ahead]
        value = int.from_bytes(field, codec.byteorder, signed=codec.signed)
        behind = value + codec.adjustment
        if value < 0 or behind < 0:
            return Outcome(messages, ProtocolError)
        kept = codec.offset if codec.strip is None else ahead - codec.strip
        if kept + behind > codec.max_size:
            return Outcome(messages, MessageTooLargeError)
        if len(data) < ahead + behind:
            break
        if codec.strip is None:
            messages.append(data[: codec.offset] + data[ahead : ahead + behind])
        else:
            messages.append(data[codec.strip : ahead + behind])
        data = data[ahead + behind :]
    return Outcome(messages, IncompleteMessageError if data else None)


@given(codecs(), st.data())
def test_any_cutting_of_any_bytes_gives_the_same_messages_with_any_settings(
    codec: LengthPrefixed, data: st.DataObject
) -> None:
    stream = b"".join(data.draw(st.lists(frames(codec), max_size=5)))
    stream += data.draw(st.binary(max_size=12))
    expected = as_any_should_be(codec, stream)
    pieces = cut(stream, data.draw(cuts()))
    assert read_all(codec.reader(), [stream]) == expected
    assert read_all(codec.reader(), pieces) == expected
    assert read_all(codec.reader(), pieces, patient=True) == expected


@given(codecs(), st.data())
def test_what_was_read_is_written_as_the_bytes_that_it_was(
    codec: LengthPrefixed, data: st.DataObject
) -> None:
    stream = b"".join(data.draw(st.lists(frames(codec), min_size=1, max_size=3)))
    outcome = read_all(codec.reader(), [stream])
    written = b"".join(joined(codec.writer().encode(message)) for message in outcome.messages)
    assert stream.startswith(written)
    assert outcome.error or stream == written


@given(codecs(), st.binary(max_size=70))
def test_what_can_be_written_is_read_and_what_cannot_has_no_frame(
    codec: LengthPrefixed, message: bytes
) -> None:
    ahead = codec.offset + codec.size
    kept = codec.offset if codec.strip is None else ahead - codec.strip
    value = len(message) - kept - codec.adjustment
    try:
        stream = joined(codec.writer().encode(message))
    except EncodeError:
        if codec.strip == 0 and len(message) <= codec.max_size:
            assert read_all(codec.reader(), [message]) != Outcome([message])
        else:
            possible = len(message) >= kept and 0 <= value <= most(codec)
            assert len(message) > codec.max_size or not possible
    else:
        assert read_all(codec.reader(), [stream]) == Outcome([message])


@pytest.mark.parametrize("strip", [None, 0, 7])
@pytest.mark.parametrize("length", [4000, 4095, 4096, 5000, 200_000])
@pytest.mark.parametrize("sizes", [[], [1] * 9, [1000] * 300, [5000] * 50, [70_000], [7], [8]])
def test_large_message_with_a_header_in_chunks_of_any_size(
    strip: int | None, length: int, sizes: list[int]
) -> None:
    header = b"abc"
    codec = LengthPrefixed(
        signed=True, offset=3, adjustment=1, strip=strip, header=header if strip else b""
    )
    payload = (b"0123456789" * 20_000)[:length]
    frame = header + (length - 1).to_bytes(4, "big") + payload
    message = {None: header + payload, 0: frame, 7: payload}[strip]
    for kind in (bytes, bytearray, memoryview):
        assert joined(codec.writer().encode(kind(message))) == frame
    assert read_all(codec.reader(), cut(frame * 3, sizes)) == Outcome([message] * 3)
    # The last byte with what follows.
    assert read_all(codec.reader(), cut(frame * 3, [len(frame) - 1])) == Outcome([message] * 3)


@pytest.mark.parametrize("strip", [None, 0, 5])
@pytest.mark.parametrize("chunk", [2**16, 2**21])
def test_large_payload_is_copied_but_once(strip: int | None, chunk: int) -> None:
    codec = LengthPrefixed(offset=1, max_size=2**21, strip=strip, header=b"h" if strip else b"")
    stream = b"h" + (2**20).to_bytes(4, "big") + bytes(2**20)
    buffer = ReceiveBuffer()
    for piece in cut(stream, [chunk] * (len(stream) // chunk)):
        buffer.feed(piece)
    reader, writer = codec.reader(), codec.writer()
    tracemalloc.start()
    try:
        message = reader.decode(buffer)
        assert tracemalloc.get_traced_memory()[1] < 1.1 * 2**20
        assert message is not NEED_DATA
        tracemalloc.clear_traces()
        pieces = writer.encode(message)
        assert tracemalloc.get_traced_memory()[1] < 10_000
    finally:
        tracemalloc.stop()
    assert joined(pieces) == stream


@pytest.mark.parametrize("kind", [bytearray, memoryview])
@pytest.mark.parametrize("strip", [None, 0])
def test_message_with_a_header_that_its_owner_changes_after_sending_is_sent_as_it_was(
    kind: type, strip: int | None
) -> None:
    data = bytearray(b"h\x13\x88" + b"a" * 5000 if strip == 0 else b"h" + b"a" * 5000)
    encoded = LengthPrefixed(2, offset=1, strip=strip).writer().encode(kind(data))
    data[:] = b"b" * len(data)
    assert joined(encoded) == b"h\x13\x88" + b"a" * 5000


def test_reader_and_writer_are_of_the_public_classes_whatever_the_settings() -> None:
    for codec in (LengthPrefixed(2), LengthPrefixed(2, offset=1)):
        reader, writer = codec.reader(), codec.writer()
        assert isinstance(reader, LengthPrefixedReader)
        assert isinstance(writer, LengthPrefixedWriter)
        assert (reader.size, reader.byteorder, reader.max_size) == (2, "big", 2**20)
        assert (writer.size, writer.byteorder, writer.max_size) == (2, "big", 2**20)


def test_stripping_the_length_alone_is_the_same_as_saying_nothing() -> None:
    for codec in (LengthPrefixed(strip=4), LengthPrefixed(strip=4, signed=True)):
        assert joined(codec.writer().encode(b"hello")) == b"\x00\x00\x00\x05hello"
        assert read_all(codec.reader(), [b"\x00\x00\x00\x05hello"]) == Outcome([b"hello"])


@pytest.mark.parametrize("held", [b"", b"h", b"h\x00", b"h\x00\x02", b"h\x00\x02a"])
@pytest.mark.parametrize("strip", [None, 0, 3])
def test_what_is_not_whole_stays_for_another_reader_with_a_header_too(
    strip: int | None, held: bytes
) -> None:
    codec = LengthPrefixed(2, offset=1, strip=strip, header=b"h" if strip else b"")
    buffer = ReceiveBuffer()
    buffer.feed(held)
    assert codec.reader().decode(buffer) is NEED_DATA
    wanted = 3 if len(held) < 3 else 5
    if strip == 3 and not held:
        wanted = 1  # to see whether it is the right header
    assert buffer.wanted == wanted
    assert buffer.take(len(held)) == held


# -- the mistakes of others


def error_of(codec: LengthPrefixed, data: bytes) -> ProtocolError:
    """What ``data`` is refused with, twice, for nothing is consumed."""
    buffer = ReceiveBuffer()
    buffer.feed(data)
    reader = codec.reader()
    with pytest.raises(ProtocolError):
        reader.decode(buffer)
    with pytest.raises(ProtocolError) as caught:
        reader.decode(buffer)
    assert buffer.take(len(data)) == data
    assert buffer.wanted == 0
    return caught.value


@pytest.mark.parametrize(
    ("settings", "fits", "too_large", "size"),
    [
        ({"adjustment": 4}, b"\0\0" + b"abcd", b"\0\1", 5),
        ({"adjustment": -2}, b"\0\6" + b"abcd", b"\0\7", 5),
        ({"offset": 1}, b"h\0\3" + b"abc", b"h\0\4", 5),
        ({"offset": 1, "adjustment": 1}, b"h\0\2" + b"abc", b"h\0\3", 5),
        ({"offset": 1, "adjustment": -3}, b"h\0\6" + b"abc", b"h\0\7", 5),
        ({"strip": 0}, b"\0\2" + b"ab", b"\0\3", 5),
        ({"offset": 1, "strip": 3, "header": b"h"}, b"h\0\4" + b"abcd", b"h\0\5", 5),
        ({"offset": 1, "strip": 0, "adjustment": -3}, b"h\0\4" + b"a", b"h\0\5", 5),
    ],
)
def test_limit_is_checked_after_the_adjustment_and_counts_what_is_received(
    settings: dict[str, Any], fits: bytes, too_large: bytes, size: int
) -> None:
    codec = LengthPrefixed(2, max_size=4, **settings)
    outcome = read_all(codec.reader(), [fits])
    assert outcome == read_all(codec.reader(), cut(fits, [1, 1, 1]))
    assert [len(message) for message in outcome.messages] == [4]
    assert outcome.error is None
    assert joined(codec.writer().encode(outcome.messages[0])) == fits
    for with_more in (b"", b"abcdefghij"):
        error = error_of(codec, too_large + with_more)
        assert type(error) is MessageTooLargeError
        assert str(error) == (
            f"the peer announced a message of {size} bytes; max_size allows 4 bytes"
        )
    with pytest.raises(EncodeError, match="the message has 5 bytes; max_size allows 4 bytes"):
        codec.writer().encode(b"h" * 5)


@pytest.mark.parametrize("size", range(1, 9))
@pytest.mark.parametrize("byteorder", ["big", "little"])
def test_negative_length_is_refused_even_if_the_adjustment_makes_it_positive(
    size: int, byteorder: ByteOrder
) -> None:
    for adjustment in (0, 1, 100, -1):
        codec = LengthPrefixed(size, byteorder, signed=True, adjustment=adjustment)
        for value in (-1, -2, -(2 ** (8 * size - 1))):
            data = value.to_bytes(size, byteorder, signed=True) + bytes(200)
            error = error_of(codec, data)
            assert type(error) is ProtocolError
            assert str(error) == (
                f"the peer sent a length of {value}; with adjustment={adjustment} it must be "
                f"{max(0, -adjustment)} or more"
            )


def test_length_that_the_adjustment_makes_negative_is_refused() -> None:
    for settings in ({}, {"signed": True}, {"offset": 1}, {"strip": 0}):
        codec = LengthPrefixed(2, adjustment=-4, **settings)
        header = b"h" * codec.offset
        assert len(read_all(codec.reader(), [header + b"\0\4"]).messages) == 1
        error = error_of(codec, header + b"\0\3" + bytes(10))
        assert type(error) is ProtocolError
        assert str(error) == (
            "the peer sent a length of 3; with adjustment=-4 it must be 4 or more"
        )


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("adjustment", [1, 2**31, 2**63, 2**70])
def test_length_that_the_adjustment_makes_larger_than_any_field_does_not_wrap_around(
    signed: bool, adjustment: int
) -> None:
    codec = LengthPrefixed(8, signed=signed, adjustment=adjustment)
    largest = most(codec).to_bytes(8, "big")
    assert f"a message of {most(codec) + adjustment} bytes" in str(error_of(codec, largest))
    buffer = ReceiveBuffer()
    buffer.feed(largest + b"and so on")
    reader = codec.reader()
    reader.max_size = 2**80
    tracemalloc.start()
    try:
        assert reader.decode(buffer) is NEED_DATA
        assert tracemalloc.get_traced_memory()[1] < 50_000
    finally:
        tracemalloc.stop()
    assert buffer.wanted == 8 + most(codec) + adjustment


@pytest.mark.parametrize(
    ("settings", "longest"),
    [
        ({"signed": True}, 127),
        ({"adjustment": 10}, 265),
        ({"adjustment": -10}, 245),
        ({"signed": True, "adjustment": -100}, 27),
        ({"offset": 2}, 257),
        ({"offset": 2, "strip": 3, "header": b"hh"}, 255),
    ],
)
def test_length_is_never_truncated_to_its_field(settings: dict[str, Any], longest: int) -> None:
    codec = LengthPrefixed(1, **settings)
    message = b"h" * longest
    assert read_all(codec.reader(), [joined(codec.writer().encode(message))]) == Outcome([message])
    with pytest.raises(EncodeError) as caught:
        codec.writer().encode(message + b"h")
    assert str(caught.value) == (
        f"the message has {longest + 1} bytes, for which the length field is {most(codec) + 1}; "
        f"with size=1 and signed={codec.signed} it holds at most {most(codec)}"
    )


def test_message_that_is_too_short_for_the_settings_is_not_sent() -> None:
    with pytest.raises(EncodeError) as caught:
        LengthPrefixed(offset=2).writer().encode(b"h")
    assert str(caught.value) == (
        "the message has 1 bytes; it must have 2 or more, for it begins with a header "
        "(offset=2, strip=None)"
    )
    with pytest.raises(EncodeError) as caught:
        LengthPrefixed(offset=2, strip=0).writer().encode(b"hh\0\0\0")
    assert "it must have 6 or more" in str(caught.value)
    for signed in (False, True):
        codec = LengthPrefixed(signed=signed, offset=1, adjustment=3)
        assert joined(codec.writer().encode(b"habc")) == b"h\0\0\0\0abc"
        with pytest.raises(EncodeError) as caught:
            codec.writer().encode(b"hab")
        assert str(caught.value) == (
            "the message has 3 bytes; with adjustment=3 it must have 4 or more, or its length "
            "field would be negative"
        )


def test_whole_frame_with_a_wrong_length_in_it_is_not_sent() -> None:
    writer = LengthPrefixed(2, offset=1, strip=0).writer()
    assert writer.encode(b"h\0\3abc") == b"h\0\3abc"
    right = b"\0\3"
    for wrong in (b"h\0\2abc", b"h\0\4abc", b"h\3\0abc"):
        with pytest.raises(EncodeError) as caught:
            writer.encode(wrong)
        assert str(caught.value) == (
            f"the length field of the message is {wrong[1:3]!r}; in a whole frame of 6 bytes, as "
            f"strip=0 has it, it must be {right!r}"
        )


def test_frame_with_another_header_is_refused_with_its_first_wrong_byte() -> None:
    codec = LengthPrefixed(1, offset=2, strip=3, header=b"hi")
    for data in (b"ho", b"ho\x05", b"ho\x01a", b"hohohoho"):
        error = error_of(codec, data)
        assert type(error) is ProtocolError
        assert str(error) == (
            "the peer sent a frame that begins with b'ho'; the setting header is b'hi'"
        )
    assert str(error_of(codec, b"oh")).startswith("the peer sent a frame that begins with b'o';")
    outcome = read_all(codec.reader(), [b"hi\x01a" + b"ho\x01b" + b"hi\x01c"])
    assert outcome == Outcome([b"a"], ProtocolError)


def test_header_is_looked_at_byte_by_byte_and_not_waited_for() -> None:
    codec, _ = PROTOCOLS["BGP"]
    assert "begins with b'G'; the setting" in str(error_of(codec, b"G"))
    assert "begins with b'G'; the setting" in str(error_of(codec, b"GET / HTTP/1.1"))
    reader = codec.reader()
    buffer = ReceiveBuffer()
    for count in range(16):
        assert reader.decode(buffer) is NEED_DATA
        assert buffer.wanted == count + 1
        buffer.wanted = 0
        buffer.feed(b"\xff")
    assert reader.decode(buffer) is NEED_DATA
    assert buffer.wanted == 18


@pytest.mark.parametrize(
    ("settings", "least"),
    [
        ({"offset": 10**7}, 10**7),
        ({"offset": 3}, 3),
        ({"offset": 3, "strip": 0}, 5),
        ({"strip": 0}, 2),
    ],
)
def test_limit_that_no_message_can_keep_is_refused(settings: dict[str, Any], least: int) -> None:
    assert LengthPrefixed(2, max_size=least, **settings).max_size == least
    with pytest.raises(ValueError, match=f"^max_size must be {least} or more bytes") as caught:
        LengthPrefixed(2, max_size=least - 1, **settings)
    assert str(caught.value).endswith(f"not {least - 1}")
    LengthPrefixed(2, max_size=0, offset=3, strip=5, header=b"abc")  # of which nothing is kept


def test_limit_that_only_an_empty_payload_keeps() -> None:
    codec = LengthPrefixed(2, offset=3, max_size=3)
    for sizes in ([], [1] * 5, [4]):
        assert read_all(codec.reader(), cut(b"abc\0\0", sizes)) == Outcome([b"abc"])


@pytest.mark.parametrize("strip", [None, 0])
def test_max_size_lowered_below_what_every_message_has(strip: int | None) -> None:
    reader = LengthPrefixed(2, offset=5, strip=strip).reader()
    reader.max_size = 3
    kept = 5 if strip is None else 7
    for size in range(10):
        buffer = ReceiveBuffer()
        buffer.feed(bytes(size))
        if size <= 3:
            assert reader.decode(buffer) is NEED_DATA
            assert buffer.wanted == size + 1
            continue
        # A length that is wrong as well makes no difference.
        buffer.feed(b"\xff" * (9 - size))
        with pytest.raises(MessageTooLargeError) as caught:
            reader.decode(buffer)
        assert str(caught.value) == (
            f"the peer began a message of {kept} bytes or more; max_size allows 3 bytes"
        )


def test_max_size_may_be_changed_in_mid_stream_with_a_header_too() -> None:
    codec = LengthPrefixed(1, offset=1, max_size=3)
    reader, writer = codec.reader(), codec.writer()
    buffer = ReceiveBuffer()
    buffer.feed(b"h\2ab" + b"h\3abc" + b"h\2a")
    assert reader.decode(buffer) == b"hab"
    reader.max_size = writer.max_size = 4
    assert reader.decode(buffer) == b"habc"
    assert joined(writer.encode(b"habc")) == b"h\3abc"
    assert reader.decode(buffer) is NEED_DATA
    # Lowered while a message is coming, which then is one too many.
    reader.max_size = writer.max_size = 2
    with pytest.raises(MessageTooLargeError, match="a message of 3 bytes; max_size allows 2"):
        reader.decode(buffer)
    with pytest.raises(EncodeError, match="3 bytes; max_size allows 2 bytes"):
        writer.encode(b"hab")


def test_max_size_lowered_while_a_message_is_coming() -> None:
    reader = LengthPrefixed(1, max_size=3).reader()
    buffer = ReceiveBuffer()
    buffer.feed(b"\3ab")
    assert reader.decode(buffer) is NEED_DATA
    reader.max_size = 2
    with pytest.raises(MessageTooLargeError):
        reader.decode(buffer)
    reader.max_size = 3
    buffer.feed(b"c")
    assert reader.decode(buffer) == b"abc"


@pytest.mark.parametrize("message", ["text", None, 5])
def test_message_of_the_wrong_type_for_a_frame_with_a_header(message: Any) -> None:
    with pytest.raises(EncodeError, match=f"^LengthPrefixed sends .*{type(message).__name__}$"):
        LengthPrefixed(offset=1).writer().encode(message)


async def test_large_messages_with_a_header_between_two_connections() -> None:
    left, right = connection_pair(LengthPrefixed(offset=1, adjustment=-4))
    async with left, right:
        for length in (0, 1, 4000, 100_000):
            await left.send(b"h" + bytes(length))
            assert await right.receive() == b"h" + bytes(length)


# -- what others send

# Recorded from psql and a PostgreSQL 15 server, kafka-python, Scapy, Apache Thrift for Python,
# dnspython and multiprocessing; for gRPC, grpclib's header in front of a message of protobuf's.
PROTOCOLS: dict[str, tuple[LengthPrefixed, list[tuple[str, bytes]]]] = {
    "PostgreSQL": (
        LengthPrefixed(signed=True, offset=1, adjustment=-4),
        [
            ("51 0000000d 53454c454354203100", b"QSELECT 1\0"),
            ("52 00000008 00000000", b"R\0\0\0\0"),
            ("44 0000000b 0001 00000001 31", b"D\0\1\0\0\0\x011"),
            ("5a 00000005 49", b"ZI"),
            ("58 00000004", b"X"),
        ],
    ),
    "PostgreSQL, start-up": (
        LengthPrefixed(signed=True, adjustment=-4),
        [
            ("00000008 04d2162f", b"\x04\xd2\x16\x2f"),
            (
                (
                    "00000036 00030000 7573657200616e6e00 646174616261736500 73686f7000"
                    "6170706c69636174696f6e5f6e616d6500 7073716c00 00"
                ),
                b"\0\3\0\0user\0ann\0database\0shop\0application_name\0psql\0\0",
            ),
        ],
    ),
    "Kafka": (
        LengthPrefixed(signed=True),
        [
            (
                (
                    "00000022 0012 0004 00000001 00026d65 00"
                    "0d6b61666b612d707974686f6e 07332e302e3132 00"
                ),
                b"\0\x12\0\4\0\0\0\1\0\2me\0\rkafka-python\x073.0.12\0",
            )
        ],
    ),
    "BGP": (
        LengthPrefixed(2, max_size=4078, offset=16, adjustment=-18, strip=18, header=b"\xff" * 16),
        [
            ("ff" * 16 + "0013 04", b"\4"),
            (
                "ff" * 16 + "001d 01 04 fde8 00b4 0a000001 00",
                b"\1\4\xfd\xe8\0\xb4\x0a\0\0\1\0",
            ),
        ],
    ),
    "Thrift, framed": (
        LengthPrefixed(signed=True, max_size=16_384_000),
        [("00000011 80010001 0000000470696e67 00000001 00", b"\x80\1\0\1\0\0\0\4ping\0\0\0\1\0")],
    ),
    "DNS over TCP": (
        LengthPrefixed(2),
        [
            (
                "001d 1234 0100 0001 0000 0000 0000 076578616d706c6503636f6d00 0001 0001",
                b"\x12\x34\1\0\0\1\0\0\0\0\0\0\7example\3com\0\0\1\0\1",
            )
        ],
    ),
    "gRPC": (
        LengthPrefixed(offset=1),
        [("00 00000004 0a026869", b"\0\n\2hi"), ("00 00000000", b"\0")],
    ),
    "multiprocessing": (
        LengthPrefixed(signed=True),
        [("00000005 68656c6c6f", b"hello"), ("00000000", b"")],
    ),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_real_bytes_are_read_and_written_as_they_were(protocol: str) -> None:
    codec, exchanged = PROTOCOLS[protocol]
    messages = [message for _, message in exchanged]
    stream = b"".join(bytes.fromhex(frame) for frame, _ in exchanged)
    assert b"".join(joined(codec.writer().encode(message)) for message in messages) == stream
    assert read_all(codec.reader(), [stream]) == Outcome(messages)
    assert read_all(codec.reader(), cut(stream, [1] * len(stream))) == Outcome(messages)


def test_the_table_in_the_reference_is_of_these_settings() -> None:
    page = (ROOT / "docs" / "source" / "reference" / "codecs.rst").read_text(encoding="utf-8")
    rows = re.findall(
        r"^   \* - `(.+?) <.*>`__$\n     - ``(LengthPrefixed\(.*\))``$", page, re.MULTILINE
    )
    documented = {
        protocol: eval(settings, {"LengthPrefixed": LengthPrefixed}) for protocol, settings in rows
    }
    assert documented == {protocol: codec for protocol, (codec, _) in PROTOCOLS.items()}


def test_the_other_end_is_a_connection_of_multiprocessing() -> None:
    codec, _ = PROTOCOLS["multiprocessing"]
    ours, theirs = socket.socketpair()
    messages = [b"", b"hello", bytes(16_384), bytes(16_385), bytes(60_000)]
    with ours, PipeEnd(theirs.detach()) as end:
        buffer = ReceiveBuffer()
        reader, writer = codec.reader(), codec.writer()
        for message in messages:
            end.send_bytes(message)
            while (received := reader.decode(buffer)) is NEED_DATA:
                buffer.feed(ours.recv(4096))
            assert received == message
            ours.sendall(joined(writer.encode(message)))
            assert end.recv_bytes() == message
        assert not len(buffer)


def test_long_form_of_multiprocessing_is_refused() -> None:
    codec, _ = PROTOCOLS["multiprocessing"]
    data = bytes.fromhex("ffffffff 0000000080000000")
    assert "the peer sent a length of -1" in str(error_of(codec, data))


# What the documentation of Netty's LengthFieldBasedFrameDecoder shows, in its order.
HELLO = b"HELLO, WORLD"


@pytest.mark.parametrize(
    ("settings", "frame", "message"),
    [
        ({"strip": 0}, b"\x00\x0c" + HELLO, b"\x00\x0c" + HELLO),
        ({"strip": 2}, b"\x00\x0c" + HELLO, HELLO),
        ({"adjustment": -2, "strip": 0}, b"\x00\x0e" + HELLO, b"\x00\x0e" + HELLO),
        (
            {"size": 3, "offset": 2, "strip": 0},
            b"\xca\xfe\x00\x00\x0c" + HELLO,
            b"\xca\xfe\x00\x00\x0c" + HELLO,
        ),
        (
            {"size": 3, "adjustment": 2, "strip": 0},
            b"\x00\x00\x0c\xca\xfe" + HELLO,
            b"\x00\x00\x0c\xca\xfe" + HELLO,
        ),
        (
            {"offset": 1, "adjustment": 1, "strip": 3, "header": b"\xca"},
            b"\xca\x00\x0c\xfe" + HELLO,
            b"\xfe" + HELLO,
        ),
        (
            {"offset": 1, "adjustment": -3, "strip": 3, "header": b"\xca"},
            b"\xca\x00\x10\xfe" + HELLO,
            b"\xfe" + HELLO,
        ),
    ],
)
def test_the_examples_of_netty(settings: dict[str, Any], frame: bytes, message: bytes) -> None:
    codec = LengthPrefixed(**({"size": 2} | settings))
    assert read_all(codec.reader(), [frame * 2]) == Outcome([message] * 2)
    assert joined(codec.writer().encode(message)) == frame


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
        ("signed", 1, TypeError),
        ("signed", None, TypeError),
        ("offset", -1, ValueError),
        ("offset", 1.0, TypeError),
        ("adjustment", 0.5, TypeError),
        ("adjustment", True, TypeError),
        ("adjustment", -(2**32), ValueError),
        ("strip", 1, ValueError),
        ("strip", 5, ValueError),
        ("strip", -1, ValueError),
        ("strip", False, TypeError),
        ("strip", "all", TypeError),
        ("header", "text", TypeError),
        ("header", None, TypeError),
        ("header", b"h", ValueError),
    ],
)
def test_wrong_setting_is_named(setting: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=rf"^{setting} must be .*not {value!r}$"):
        LengthPrefixed(**{setting: value})


def test_limit_below_zero_is_refused_as_such_and_not_for_what_every_message_has() -> None:
    with pytest.raises(ValueError, match=r"^max_size must be 0 or more bytes, not -1$"):
        LengthPrefixed(max_size=-1)


@pytest.mark.parametrize("value", [True, 0, None, b""])
def test_settings_behind_max_size_have_to_be_named(value: Any) -> None:
    with pytest.raises(TypeError, match="positional"):
        LengthPrefixed(4, "big", 100, value)  # type: ignore[call-arg]  # which is the mistake


def test_adjustment_after_which_no_length_would_be_possible_is_refused() -> None:
    LengthPrefixed(1, adjustment=-255)
    LengthPrefixed(1, signed=True, adjustment=-127)
    for settings, least in (({}, -255), ({"signed": True}, -127)):
        with pytest.raises(
            ValueError, match=f"^adjustment must be {least} or more bytes"
        ) as caught:
            LengthPrefixed(1, adjustment=least - 1, **settings)  # type: ignore[arg-type]
        assert f"in a field of size=1 and signed={bool(settings)}" in str(caught.value)


@pytest.mark.parametrize("strip", [1, 2, 4])
def test_what_could_not_be_undone_is_not_stripped(strip: int) -> None:
    with pytest.raises(ValueError, match=r"^strip must be None, 0 or offset \+ size = 3, for "):
        LengthPrefixed(2, offset=1, strip=strip)


@pytest.mark.parametrize("header", [b"", b"h", b"hhh"])
def test_header_that_is_stripped_must_be_told_to_the_writer(header: bytes) -> None:
    LengthPrefixed(2, offset=2, strip=4, header=b"hh")
    with pytest.raises(ValueError, match=r"^header must be the 2 bytes that strip=4 takes off in "):
        LengthPrefixed(2, offset=2, strip=4, header=header)


@pytest.mark.parametrize("strip", [None, 0])
def test_header_that_is_part_of_the_messages_is_no_setting(strip: int | None) -> None:
    with pytest.raises(ValueError, match=r"^header must be empty, for a message has all that"):
        LengthPrefixed(2, offset=2, strip=strip, header=b"hh")


def test_codecs_of_equal_settings_are_equal() -> None:
    assert LengthPrefixed(2) == LengthPrefixed(2, "big")
    assert hash(LengthPrefixed(2)) == hash(LengthPrefixed(2, "big"))
    assert LengthPrefixed(2) != LengthPrefixed(2, "little")


def test_reader_and_writer_show_their_settings() -> None:
    settings = "size=2, byteorder='big', max_size=9"
    codec = LengthPrefixed(2, max_size=9)
    assert repr(codec.reader()) == f"LengthPrefixedReader({settings})"
    assert repr(codec.writer()) == f"LengthPrefixedWriter({settings})"
    settings += ", signed=True, offset=0, adjustment=0, strip=None, header=b''"
    codec = LengthPrefixed(2, max_size=9, signed=True)
    assert repr(codec.reader()) == f"LengthFieldReader({settings})"
    assert repr(codec.writer()) == f"LengthFieldWriter({settings})"


def test_one_connection_more_takes_little_memory() -> None:
    codec = LengthPrefixed()
    codec.reader(), codec.writer()  # what is made once
    tracemalloc.start()
    try:
        ends = [(codec.reader(), codec.writer()) for _ in range(1000)]
        size = tracemalloc.get_traced_memory()[0] / len(ends)
    finally:
        tracemalloc.stop()
    assert size < 300
