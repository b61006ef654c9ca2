"""`VarintPrefixed`: any cutting of any bytes, and lengths that are too long in either sense."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
from driving import Outcome, cut, cuts, joined, read_all
from hypothesis import example, given
from hypothesis import strategies as st

from trio_bytetalk import (
    NEED_DATA,
    EncodeError,
    IncompleteMessageError,
    MessageTooLargeError,
    ProtocolError,
    ReceiveBuffer,
    VarintPrefixed,
)
from trio_bytetalk.testing import connection_pair

# Where the varint gets a byte longer.
STEPS = [0, 1, 127, 128, 129, 16_383, 16_384, 16_385, 2_097_151, 2_097_152]


def varint(value: int) -> bytes:
    encoded = []
    while True:
        value, low = divmod(value, 128)
        encoded.append(low + 128 * (value > 0))
        if not value:
            return bytes(encoded)


def as_it_should_be(max_size: int, data: bytes) -> Outcome:
    """What a reader is to make of ``data``, by the plainest means."""
    messages: list[bytes] = []
    while data:
        length = size = 0
        while True:
            if size == len(data):
                return Outcome(messages, IncompleteMessageError)
            length += data[size] % 128 * 128**size
            size += 1
            if data[size - 1] < 128:
                break
            if 128**size > max_size:
                return Outcome(messages, MessageTooLargeError)
        if data[:size] != varint(length):
            return Outcome(messages, ProtocolError)
        if length > max_size:
            return Outcome(messages, MessageTooLargeError)
        if len(data) < size + length:
            return Outcome(messages, IncompleteMessageError)
        messages.append(data[size : size + length])
        data = data[size + length :]
    return Outcome(messages)


frames = st.integers(0, 300).map(lambda length: varint(length) + bytes(length))


@given(st.lists(frames, max_size=4), st.binary(max_size=12), st.integers(0, 400), cuts())
@example([], b"\x80\x00", 200, [])
@example([], b"\x80\x00", 200, [1])
@example([], b"\x80", 127, [])
@example([], b"\x80", 128, [])
@example([], b"\xff\x81\x00", 2**14, [2])
@example([], b"\x00", 0, [])
def test_any_cutting_of_any_bytes_gives_the_same_messages_or_the_same_error(
    whole: list[bytes], rest: bytes, max_size: int, sizes: list[int]
) -> None:
    stream = b"".join(whole) + rest
    codec = VarintPrefixed(max_size)
    expected = as_it_should_be(max_size, stream)
    pieces = cut(stream, sizes)
    assert read_all(codec.reader(), [stream]) == expected
    assert read_all(codec.reader(), pieces) == expected
    assert read_all(codec.reader(), pieces, patient=True) == expected


@given(st.lists(st.binary(max_size=300)), cuts())
def test_what_is_written_is_read(messages: list[bytes], sizes: list[int]) -> None:
    codec = VarintPrefixed()
    stream = b"".join(joined(codec.writer().encode(message)) for message in messages)
    assert read_all(codec.reader(), cut(stream, sizes)) == Outcome(messages)


@pytest.mark.parametrize("length", STEPS)
def test_lengths_where_a_byte_is_added(length: int) -> None:
    codec = VarintPrefixed(max_size=length)
    message = (b"0123456789" * 300_000)[:length]
    for kind in (bytes, bytearray, memoryview):
        assert joined(codec.writer().encode(kind(message))) == varint(length) + message
    stream = varint(length) + message
    for sizes in ([], [1], [1, 1], [1, 1, 1], [1, 1, 1, 1], [5, 4096], [65_536] * 50):
        assert read_all(codec.reader(), cut(stream * 2, sizes)) == Outcome([message] * 2)


@pytest.mark.parametrize(
    "held", [b"", b"\x80", b"\x80\x80", b"\x80\x80\x01", b"\x01", b"\x81\x01a"]
)
def test_what_is_not_whole_stays_for_another_reader(held: bytes) -> None:
    buffer = ReceiveBuffer()
    buffer.feed(held)
    assert VarintPrefixed().reader().decode(buffer) is NEED_DATA
    wanted = {b"\x80\x80\x01": 3 + 2**14, b"\x01": 2, b"\x81\x01a": 2 + 129}
    assert buffer.wanted == wanted.get(held, len(held) + 1)
    assert buffer.take(len(held)) == held


def test_large_payload_is_sent_as_it_is_and_a_small_one_in_one_piece_with_its_length() -> None:
    writer = VarintPrefixed().writer()
    large = b"." * 4096
    assert writer.encode(large)[1] is large
    assert type(writer.encode(large[1:])) is bytes


@pytest.mark.parametrize("kind", [bytearray, memoryview])
@pytest.mark.parametrize("length", [3, 300, 5000])
def test_message_that_its_owner_changes_after_sending_is_sent_as_it_was(
    kind: type, length: int
) -> None:
    data = bytearray(b"a" * length)
    encoded = VarintPrefixed().writer().encode(kind(data))
    data[:] = b"b" * length
    assert joined(encoded) == varint(length) + b"a" * length


def test_large_payload_is_copied_but_once() -> None:
    buffer = ReceiveBuffer()
    for piece in cut(varint(2**20) + bytes(2**20), [2**16] * 16):
        buffer.feed(piece)
    reader = VarintPrefixed().reader()
    tracemalloc.start()
    try:
        message = reader.decode(buffer)
        assert tracemalloc.get_traced_memory()[1] < 1.1 * 2**20
    finally:
        tracemalloc.stop()
    assert message == bytes(2**20)


# -- the mistakes of others


def error_of(max_size: int, data: bytes) -> ProtocolError:
    """What ``data`` is refused with, twice, for nothing is consumed."""
    buffer = ReceiveBuffer()
    buffer.feed(data)
    reader = VarintPrefixed(max_size).reader()
    with pytest.raises(ProtocolError):
        reader.decode(buffer)
    with pytest.raises(ProtocolError) as caught:
        reader.decode(buffer)
    assert buffer.take(len(data)) == data
    assert buffer.wanted == 0
    return caught.value


@pytest.mark.parametrize(
    ("data", "length"),
    [
        (b"\x80\x00", 0),
        (b"\x80\x80\x00", 0),
        (b"\x81\x00a", 1),
        (b"\x81\x80\x00a", 1),
        (b"\xff\x00", 127),
        (b"\x80\x81\x00", 128),
    ],
)
def test_length_that_is_padded_with_zeros_is_refused(data: bytes, length: int) -> None:
    error = error_of(2**20, data)
    assert type(error) is ProtocolError
    header = data.rstrip(b"a").hex(" ")
    assert str(error) == (
        f"the peer sent the length {length} padded with zeros, as {header}; expected was its "
        f"shortest form"
    )


@pytest.mark.parametrize(
    ("max_size", "data", "least"),
    [
        (0, b"\x80", 128),
        (127, b"\x80", 128),
        (128, b"\x80\x80", 16_384),
        (16_383, b"\xff\xff", 16_384),
        (2**20, b"\x80\x80\x80", 2_097_152),
        (2**20, b"\xff" * 1000, 2_097_152),
        (2**20, b"\x80\x80\x80\x80\x00", 2_097_152),
        (2**63 - 1, b"\xff" * 9, 2**63),
        (2**64 - 1, b"\xff" * 10, 2**70),
        (2**64 - 1, b"\x80" * 10 + b"\x01", 2**70),
    ],
)
def test_over_long_length_is_refused_with_the_byte_that_makes_it_so(
    max_size: int, data: bytes, least: int
) -> None:
    error = error_of(max_size, data)
    assert type(error) is MessageTooLargeError
    assert str(error) == (
        f"the peer announced a message of {least} bytes or more, or padded its length with zeros; "
        f"max_size allows {max_size} bytes"
    )
    # A byte earlier, it might still have been right.
    buffer = ReceiveBuffer()
    size = len(varint(least)) - 1
    buffer.feed(data[: size - 1])
    assert VarintPrefixed(max_size).reader().decode(buffer) is NEED_DATA


@pytest.mark.parametrize("max_size", [0, 1, 126, 127, 128, 16_383, 16_384, 2**20, 2**63, 2**64 - 1])
@pytest.mark.parametrize("with_more", [b"", b"abcdef"])
def test_limit_is_exact(max_size: int, with_more: bytes) -> None:
    error = error_of(max_size, varint(max_size + 1) + with_more)
    assert type(error) is MessageTooLargeError
    buffer = ReceiveBuffer()
    buffer.feed(varint(max_size))
    tracemalloc.start()
    try:
        message = VarintPrefixed(max_size).reader().decode(buffer)
        assert tracemalloc.get_traced_memory()[1] < 50_000
    finally:
        tracemalloc.stop()
    if max_size:
        assert message is NEED_DATA
        assert buffer.wanted == len(varint(max_size)) + max_size
    else:
        assert message == b""


def test_announced_message_over_max_size_says_how_large_it_is() -> None:
    for max_size, data in ((3, b"\x04abcd"), (200, b"\xc9\x01"), (2**15, b"\x81\x80\x02")):
        error = error_of(max_size, data)
        assert str(error) == (
            f"the peer announced a message of {max_size + 1} bytes; "
            f"max_size allows {max_size} bytes"
        )


def test_max_size_may_be_changed_in_mid_stream() -> None:
    codec = VarintPrefixed(max_size=1)
    reader, writer = codec.reader(), codec.writer()
    buffer = ReceiveBuffer()
    buffer.feed(b"\x01a\x02bc" + varint(200) + b"d" * 199)
    assert reader.decode(buffer) == b"a"
    reader.max_size = writer.max_size = 2
    assert reader.decode(buffer) == b"bc"
    assert joined(writer.encode(b"bc")) == b"\x02bc"
    reader.max_size = writer.max_size = 200
    assert reader.decode(buffer) is NEED_DATA
    # Lowered while a message is coming, which then is too large.
    reader.max_size = writer.max_size = 199
    with pytest.raises(MessageTooLargeError, match="200 bytes; max_size allows 199"):
        reader.decode(buffer)
    with pytest.raises(EncodeError, match="200 bytes; max_size allows 199"):
        writer.encode(bytes(200))
    reader.max_size = 127
    with pytest.raises(MessageTooLargeError, match=r"128 bytes or more, .*max_size allows 127"):
        reader.decode(buffer)


# -- what cannot be sent


@pytest.mark.parametrize("message", ["text", None, 5])
def test_message_of_the_wrong_type(message: Any) -> None:
    with pytest.raises(EncodeError, match=f"^VarintPrefixed sends .*{type(message).__name__}$"):
        VarintPrefixed().writer().encode(message)


def test_message_over_max_size() -> None:
    writer = VarintPrefixed(3).writer()
    assert writer.encode(b"abc") == b"\x03abc"
    with pytest.raises(EncodeError, match="4 bytes; max_size allows 3 bytes"):
        writer.encode(b"abcd")


async def test_connection_is_usable_after_a_message_that_cannot_be_sent() -> None:
    left, right = connection_pair(VarintPrefixed(20_000))
    async with left, right:
        with pytest.raises(EncodeError):
            await left.send(bytes(20_001))
        for length in (0, 1, 200, 20_000):
            await left.send(bytes(length))
            assert await right.receive() == bytes(length)


# -- what others send


@pytest.mark.parametrize(
    ("recorded", "messages"),
    [
        # serialize_length_prefixed of google.protobuf: StringValue "hi", "é" a hundred times, "".
        (
            b"\x04\n\x02hi" + b"\xcb\x01\n\xc8\x01" + "é".encode() * 100 + b"\x00",
            [b"\n\x02hi", b"\n\xc8\x01" + "é".encode() * 100, b""],
        ),
        # mcstatus asking a Minecraft server on port 45115 for its status.
        (
            bytes.fromhex("0f 002f 093132372e302e302e31 b03b 01") + bytes.fromhex("01 00"),
            [b"\0/\x09127.0.0.1\xb0;\x01", b"\0"],
        ),
        # multistream-select, as its specification has it; libp2p begins so.
        (b"\x13/multistream/1.0.0\n", [b"/multistream/1.0.0\n"]),
    ],
    ids=["protobuf", "Minecraft", "libp2p"],
)
def test_real_bytes_are_read_and_written_as_they_were(
    recorded: bytes, messages: list[bytes]
) -> None:
    codec = VarintPrefixed()
    assert read_all(codec.reader(), [recorded]) == Outcome(messages)
    assert read_all(codec.reader(), cut(recorded, [1] * len(recorded))) == Outcome(messages)
    assert b"".join(joined(codec.writer().encode(message)) for message in messages) == recorded


# -- settings


@pytest.mark.parametrize(
    ("max_size", "error"),
    [(-1, ValueError), (2**64, ValueError), (1.0, TypeError), (True, TypeError), (None, TypeError)],
)
def test_wrong_setting_is_named(max_size: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=rf"^max_size must be .*not {max_size!r}$"):
        VarintPrefixed(max_size)


def test_the_default_is_a_mebibyte() -> None:
    assert VarintPrefixed() == VarintPrefixed(max_size=1_048_576)
    assert hash(VarintPrefixed()) == hash(VarintPrefixed(2**20))
    assert VarintPrefixed().reader().max_size == VarintPrefixed().writer().max_size == 2**20


@pytest.mark.parametrize("length", [0, 1, 126, 127, 128, 129, 255, 256, 16_383, 16_384])
@pytest.mark.parametrize("filling", [b"\0", b"\1", b"\x7f", b"\x80", b"\xff"])
def test_many_messages_in_one_chunk_are_told_apart(length: int, filling: bytes) -> None:
    message = length * filling
    stream = 5 * (varint(length) + message)
    assert read_all(VarintPrefixed().reader(), [stream]) == Outcome(5 * [message])
