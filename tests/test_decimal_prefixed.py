"""`Netstring` and `OctetCounted`: any cutting of any bytes, and digits that do not add up."""

from __future__ import annotations

import re
import tracemalloc
from typing import Any, TypeAlias

import pytest
from driving import Outcome, cut, cuts, joined, read_all
from hypothesis import example, given
from hypothesis import strategies as st

from trio_bytetalk import (
    NEED_DATA,
    EncodeError,
    IncompleteMessageError,
    MessageTooLargeError,
    Netstring,
    OctetCounted,
    ProtocolError,
    ReceiveBuffer,
)
from trio_bytetalk.testing import connection_pair

AnyCodec: TypeAlias = Netstring | OctetCounted
BOTH: list[type[AnyCodec]] = [Netstring, OctetCounted]

both = pytest.mark.parametrize("kind", BOTH)


def framed(kind: type[AnyCodec], message: bytes) -> bytes:
    if kind is Netstring:
        return str(len(message)).encode() + b":" + message + b","
    return str(len(message)).encode() + b" " + message


def length_of(kind: type[AnyCodec], length: int) -> bytes:
    """What announces a message of that many bytes."""
    return str(length).encode() + (b":" if kind is Netstring else b" ")


def as_it_should_be(kind: type[AnyCodec], max_size: int, data: bytes) -> Outcome:
    """What a reader is to make of ``data``, by the plainest means."""
    number = rb"(0|[1-9][0-9]*):" if kind is Netstring else rb"([1-9][0-9]*) "
    trailer = b"," if kind is Netstring else b""
    messages: list[bytes] = []
    while data:
        digits = re.match(b"[0-9]*", data)
        assert digits
        if not digits[0].startswith(b"0") and int(digits[0] or b"0") > max_size:
            return Outcome(messages, MessageTooLargeError)
        header = re.match(number, data)
        if not header:
            # Right so far, or wrong already?
            separator = b":" if kind is Netstring else b" "
            whole = any(re.match(number, data + rest) for rest in (separator, b"1" + separator))
            return Outcome(messages, IncompleteMessageError if whole else ProtocolError)
        begin = header.end()
        end = begin + int(header[1])
        if len(data) < end + len(trailer):
            return Outcome(messages, IncompleteMessageError)
        if not data.startswith(trailer, end):
            return Outcome(messages, ProtocolError)
        messages.append(data[begin:end])
        data = data[end + len(trailer) :]
    return Outcome(messages)


# Of what a frame is made of, so that frames and what is nearly one are everywhere.
dense = st.lists(st.sampled_from(b"0123:, a"), max_size=12).map(bytes)


@both
@given(
    whole=st.lists(st.binary(max_size=120), max_size=4),
    rest=dense | st.binary(max_size=6),
    max_size=st.integers(1, 200),
    sizes=cuts(),
)
@example([], b"0:,0:,", 1, [1])
@example([], b"00:,", 1, [])
@example([], b"01:a,", 1, [1])
@example([], b"0a", 1, [])
@example([], b":,", 1, [])
@example([], b"1:a;", 9, [])
@example([], b"1:a", 9, [])
@example([], b"10", 9, [1])
@example([], b" a", 9, [])
@example([], b"1", 9, [])
def test_any_cutting_of_any_bytes_gives_the_same_messages_or_the_same_error(
    kind: type[AnyCodec], whole: list[bytes], rest: bytes, max_size: int, sizes: list[int]
) -> None:
    stream = b"".join(framed(kind, message) for message in whole) + rest
    codec = kind(max_size)
    expected = as_it_should_be(kind, max_size, stream)
    pieces = cut(stream, sizes)
    assert read_all(codec.reader(), [stream]) == expected
    assert read_all(codec.reader(), pieces) == expected
    assert read_all(codec.reader(), pieces, patient=True) == expected


@both
@given(messages=st.lists(st.binary(min_size=1, max_size=120)), sizes=cuts())
def test_what_is_written_is_read(
    kind: type[AnyCodec], messages: list[bytes], sizes: list[int]
) -> None:
    codec = kind()
    stream = b"".join(joined(codec.writer().encode(message)) for message in messages)
    assert stream == b"".join(framed(kind, message) for message in messages)
    assert read_all(codec.reader(), cut(stream, sizes)) == Outcome(messages)


@both
@pytest.mark.parametrize("length", [1, 9, 10, 4095, 4096, 99_999, 100_000, 999_999, 1_048_576])
def test_lengths_where_a_digit_is_added(kind: type[AnyCodec], length: int) -> None:
    codec = kind()
    message = (b"0123456789" * 110_000)[:length]
    stream = framed(kind, message)
    for form in (bytes, bytearray, memoryview):
        assert joined(codec.writer().encode(form(message))) == stream
    for sizes in ([], [1], [1, 1], [7], [8], [9, 4096], [len(stream) - 1], [65_536] * 40):
        assert read_all(codec.reader(), cut(stream * 2, sizes)) == Outcome([message] * 2)


@both
def test_large_payload_is_sent_as_it_is_and_a_small_one_in_one_piece(kind: type[AnyCodec]) -> None:
    writer = kind().writer()
    large = b"." * 4096
    pieces = writer.encode(large)
    assert pieces[1] is large
    assert all(pieces)  # an empty one would be work for nothing
    assert type(writer.encode(large[1:])) is bytes


@both
@pytest.mark.parametrize("form", [bytearray, memoryview])
@pytest.mark.parametrize("length", [3, 5000])
def test_message_that_its_owner_changes_after_sending_is_sent_as_it_was(
    kind: type[AnyCodec], form: type, length: int
) -> None:
    data = bytearray(b"a" * length)
    encoded = kind().writer().encode(form(data))
    data[:] = b"b" * length
    assert joined(encoded) == framed(kind, b"a" * length)


@both
@pytest.mark.parametrize(
    ("held", "wanted"), [(b"", 1), (b"1", 2), (b"12", 3), (b"12_", 15), (b"12_abc", 15)]
)
def test_what_is_not_whole_stays_for_another_reader(
    kind: type[AnyCodec], held: bytes, wanted: int
) -> None:
    held = held.replace(b"_", b":" if kind is Netstring else b" ")
    buffer = ReceiveBuffer()
    buffer.feed(held)
    assert kind().reader().decode(buffer) is NEED_DATA
    if wanted == 15 and kind is Netstring:
        wanted += 1  # the comma
    assert buffer.wanted == wanted
    assert buffer.take(len(held)) == held


def test_a_netstring_without_its_comma_is_not_whole() -> None:
    buffer = ReceiveBuffer()
    reader = Netstring().reader()
    buffer.feed(b"3:abc")
    assert reader.decode(buffer) is NEED_DATA
    assert buffer.wanted == 6
    buffer.feed(b",4")
    assert reader.decode(buffer) == b"abc"
    assert buffer.take(1) == b"4"


@both
@pytest.mark.parametrize("chunk", [2**21, 2**16, 5000, 100])
def test_large_payload_is_copied_but_once(kind: type[AnyCodec], chunk: int) -> None:
    stream = framed(kind, bytes(2**20))
    buffer = ReceiveBuffer()
    for piece in cut(stream, [chunk] * (len(stream) // chunk)):
        buffer.feed(piece)
    reader = kind().reader()
    tracemalloc.start()
    try:
        message = reader.decode(buffer)
        assert tracemalloc.get_traced_memory()[1] < 1.1 * 2**20
    finally:
        tracemalloc.stop()
    assert message == bytes(2**20)


# -- the mistakes of others


def error_of(codec: AnyCodec, data: bytes) -> ProtocolError:
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


@both
@pytest.mark.parametrize("max_size", [1, 5, 9, 10, 99, 100, 999, 1000, 1001, 2**20, 2**64, 10**25])
@pytest.mark.parametrize("with_more", [b"", b"abcdef"])
def test_limit_is_exact(kind: type[AnyCodec], max_size: int, with_more: bytes) -> None:
    codec = kind(max_size)
    error = error_of(codec, length_of(kind, max_size + 1) + with_more)
    assert type(error) is MessageTooLargeError
    assert str(error) == (
        f"the peer announced a message of {max_size + 1} bytes or more; "
        f"max_size allows {max_size} bytes"
    )
    buffer = ReceiveBuffer()
    announced = length_of(kind, max_size)
    buffer.feed(announced)
    tracemalloc.start()
    try:
        assert codec.reader().decode(buffer) is NEED_DATA
        assert tracemalloc.get_traced_memory()[1] < 50_000
    finally:
        tracemalloc.stop()
    assert buffer.wanted == len(announced) + max_size + (kind is Netstring)


@both
def test_endless_digits_are_refused_with_the_first_that_is_too_much(kind: type[AnyCodec]) -> None:
    for max_size, digits in ((5, b"6"), (99, b"100"), (999, b"1000"), (2**20, b"1048577")):
        codec = kind(max_size)
        assert type(error_of(codec, digits)) is MessageTooLargeError
        assert type(error_of(codec, digits + b"7" * 100_000)) is MessageTooLargeError
        buffer = ReceiveBuffer()
        buffer.feed(digits[:-1])
        assert codec.reader().decode(buffer) is NEED_DATA


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b":", "sent b':' where a digit of a message's length was expected"),
        (b",", "sent b',' where a digit of a message's length was expected"),
        (b"-1:", "sent b'-' where a digit"),
        (b"+1:a,", "sent b'+' where a digit"),
        (b" 1:a,", "sent b' ' where a digit"),
        (b"1 :a,", "sent b' ' where a digit of a message's length or b':' was expected"),
        (b"1_0:a,", "sent b'_' where a digit"),
        (b"0x1:a,", "sent b'x' where a digit"),
        (b"\xb2:ab,", r"sent b'\xb2' where a digit"),  # a superscript 2 to str.isdigit()
        (b"\xd9\xa1:a,", r"sent b'\xd9' where a digit"),  # an Arabic 1 to int()
        (b"00", "sent a length that begins with 0 and goes on with b'0'"),
        (b"01:a,", "sent a length that begins with 0 and goes on with b'1'"),
        (b"0:x", "sent b'x' behind a message of 0 bytes, where b',' was expected"),
        (b"3:abc;", "sent b';' behind a message of 3 bytes, where b',' was expected"),
        (b"3:abcd,", "sent b'd' behind a message of 3 bytes, where b',' was expected"),
        (b"3:abc3:abc,", "sent b'3' behind a message of 3 bytes, where b',' was expected"),
    ],
)
def test_what_is_no_netstring(data: bytes, why: str) -> None:
    error = error_of(Netstring(), data)
    assert type(error) is ProtocolError
    assert str(error).startswith("the peer " + why)
    assert read_all(Netstring().reader(), cut(data, [1] * len(data))).error is ProtocolError


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b" ", "sent b' ' where a digit of a message's length was expected"),
        (b"<13>1 - a b c", "sent b'<' where a digit"),  # a line, as of RFC 6587, section 3.4.2
        (b"1:a", "sent b':' where a digit of a message's length or b' ' was expected"),
        (b"0 ", "sent a length that begins with 0; OctetCounted has no empty message"),
        (b"01 a", "sent a length that begins with 0; OctetCounted has no empty message"),
        (b"0", "sent a length that begins with 0; OctetCounted has no empty message"),
    ],
)
def test_what_is_not_octet_counted(data: bytes, why: str) -> None:
    error = error_of(OctetCounted(), data)
    assert type(error) is ProtocolError
    assert str(error).startswith("the peer " + why)


def test_wrong_comma_behind_a_message_of_many_chunks_is_refused_again_and_again() -> None:
    reader = Netstring().reader()
    buffer = ReceiveBuffer()
    for piece in (b"20000:", bytes(10_000), bytes(10_000), b"."):
        buffer.feed(piece)
    for _ in range(2):
        with pytest.raises(ProtocolError, match=r"sent b'\.' behind a message of 20000 bytes"):
            reader.decode(buffer)


@both
def test_max_size_may_be_changed_in_mid_stream(kind: type[AnyCodec]) -> None:
    codec = kind(max_size=1)
    reader, writer = codec.reader(), codec.writer()
    buffer = ReceiveBuffer()
    buffer.feed(framed(kind, b"a") + framed(kind, b"bc") + framed(kind, b"d" * 30)[:-2])
    assert reader.decode(buffer) == b"a"
    reader.max_size = writer.max_size = 2
    assert reader.decode(buffer) == b"bc"
    assert joined(writer.encode(b"bc")) == framed(kind, b"bc")
    reader.max_size = writer.max_size = 30
    assert reader.decode(buffer) is NEED_DATA
    # Lowered while a message is coming, which then is too large.
    reader.max_size = writer.max_size = 29
    with pytest.raises(MessageTooLargeError, match="30 bytes or more; max_size allows 29"):
        reader.decode(buffer)
    with pytest.raises(EncodeError, match="30 bytes; max_size allows 29"):
        writer.encode(bytes(30))


# -- what cannot be sent


@both
@pytest.mark.parametrize("message", ["text", None, 5])
def test_message_of_the_wrong_type(kind: type[AnyCodec], message: Any) -> None:
    with pytest.raises(EncodeError, match=f"^{kind.__name__} sends .*{type(message).__name__}$"):
        kind().writer().encode(message)


@both
def test_message_over_max_size(kind: type[AnyCodec]) -> None:
    writer = kind(3).writer()
    assert writer.encode(b"abc") == framed(kind, b"abc")
    with pytest.raises(EncodeError, match="4 bytes; max_size allows 3 bytes"):
        writer.encode(b"abcd")


def test_empty_message_is_a_netstring_and_cannot_be_octet_counted() -> None:
    assert Netstring(0).writer().encode(b"") == b"0:,"
    assert read_all(Netstring(0).reader(), [b"0:,0:,1"]) == Outcome(
        [b"", b""], MessageTooLargeError
    )
    with pytest.raises(EncodeError, match="the message is empty, and OctetCounted cannot say so"):
        OctetCounted().writer().encode(b"")


@both
async def test_connection_is_usable_after_a_message_that_cannot_be_sent(
    kind: type[AnyCodec],
) -> None:
    left, right = connection_pair(kind(20_000))
    async with left, right:
        with pytest.raises(EncodeError):
            await left.send(bytes(20_001))
        for length in (1, 200, 20_000):
            await left.send(bytes(length))
            assert await right.receive() == bytes(length)


# -- what others send


def test_the_examples_of_the_specification_of_netstrings() -> None:
    codec = Netstring()
    hello = bytes.fromhex("31 32 3a 68 65 6c 6c 6f 20 77 6f 72 6c 64 21 2c")
    assert codec.writer().encode(b"hello world!") == hello
    assert codec.writer().encode(b"") == b"0:,"
    assert read_all(codec.reader(), [hello + b"0:,"]) == Outcome([b"hello world!", b""])


def test_the_example_of_the_specification_of_scgi() -> None:
    pairs = ["CONTENT_LENGTH", "27", "SCGI", "1", "REQUEST_METHOD", "POST"]
    pairs += ["REQUEST_URI", "/deepthought"]
    headers = b"".join(each.encode() + b"\0" for each in pairs)
    request = b"70:" + headers + b",What is the answer to life?"
    buffer = ReceiveBuffer()
    buffer.feed(request)
    assert Netstring().reader().decode(buffer) == headers
    assert buffer.take(27) == b"What is the answer to life?"


def test_what_logger_sends() -> None:
    # Recorded from: logger --tcp --octet-count --rfc5424 -t app $'disk full\nsecond line'
    event = (
        b"<13>1 2026-11-23T22:30:56.268701+00:00 vm app - - "
        b'[timeQuality tzKnown="1" isSynced="0"] disk full\nsecond line'
    )
    recorded = b"110 " + event
    assert read_all(OctetCounted().reader(), [recorded * 2]) == Outcome([event] * 2)
    assert OctetCounted().writer().encode(event) == recorded


# -- settings


@pytest.mark.parametrize(
    ("kind", "max_size", "error"),
    [
        (Netstring, -1, ValueError),
        (Netstring, 1.0, TypeError),
        (Netstring, None, TypeError),
        (OctetCounted, 0, ValueError),
        (OctetCounted, True, TypeError),
    ],
)
def test_wrong_setting_is_named(
    kind: type[AnyCodec], max_size: Any, error: type[Exception]
) -> None:
    with pytest.raises(error, match=rf"^max_size must be .*not {max_size!r}$"):
        kind(max_size)


@both
def test_the_default_is_a_mebibyte(kind: type[AnyCodec]) -> None:
    assert kind() == kind(max_size=1_048_576)
    assert hash(kind()) == hash(kind(2**20))
    assert kind().reader().max_size == kind().writer().max_size == 2**20
    assert len({each() for each in BOTH}) == 2
