"""`Codec.compressed`: how much a frame may grow to, exactly, and frames of something else."""

from __future__ import annotations

import gzip
import pickle
import random
import sys
import tracemalloc
import zlib
from typing import Any, Literal

import pytest
from driving import Outcome, cut, cuts, joined, read_all
from hypothesis import given
from hypothesis import strategies as st

from trio_bytetalk import (
    NEED_DATA,
    Codec,
    CompressedReader,
    CompressedWriter,
    EncodeError,
    IncompleteMessageError,
    InvalidMessageError,
    LengthPrefixed,
    Lines,
    MessageTooLargeError,
    NeedData,
    Reader,
    ReceiveBuffer,
    Writer,
)
from trio_bytetalk.testing import connection_pair

Method = Literal["zlib", "gzip", "deflate"]
METHODS: tuple[Method, ...] = ("zlib", "gzip", "deflate")
METHOD = pytest.mark.parametrize("method", METHODS)


def compress(method: Method, message: bytes) -> bytes:
    """By the plainest means."""
    if method == "gzip":
        return gzip.compress(message)
    data = zlib.compress(message)
    return data if method == "zlib" else data[2:-4]


def frame(payload: bytes) -> bytes:
    return joined(LengthPrefixed().writer().encode(payload))


def decode_one(codec: Codec[Any, bytes], payload: bytes) -> bytes | Literal[NeedData.NEED_DATA]:
    """What a reader makes of one payload in a frame; which must then be gone."""
    buffer = ReceiveBuffer()
    buffer.feed(frame(payload) + b"next")
    try:
        return codec.reader().decode(buffer)
    finally:
        assert buffer.take(len(buffer)) == b"next"


# -- what is sent is received


@METHOD
@given(st.lists(st.binary(max_size=300)), st.integers(0, 9), cuts())
def test_what_is_written_is_read_in_any_pieces(
    method: Method, messages: list[bytes], level: int, sizes: list[int]
) -> None:
    codec = LengthPrefixed().compressed(method, level=level)
    writer = codec.writer()
    pieces = cut(b"".join(joined(writer.encode(message)) for message in messages), sizes)
    assert read_all(codec.reader(), pieces) == Outcome(messages)
    assert read_all(codec.reader(), pieces, patient=True) == Outcome(messages)


@METHOD
@pytest.mark.parametrize("message", [b"", b"a", bytes(2**20), bytes(range(256)) * 300])
def test_others_read_what_is_written_and_write_what_is_read(method: Method, message: bytes) -> None:
    codec = LengthPrefixed().compressed(method)
    payload = joined(codec.writer().encode(message))[4:]
    assert len(payload) < 5000
    if method == "gzip":
        assert gzip.decompress(payload) == message
    else:
        assert zlib.decompress(payload, 15 if method == "zlib" else -15) == message
    assert decode_one(codec, compress(method, message)) == message


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_kind_of_bytes_can_be_sent(kind: Any) -> None:
    codec = LengthPrefixed().compressed()
    [message] = read_all(codec.reader(), [joined(codec.writer().encode(kind(b"abc")))]).messages
    assert message == b"abc"


def test_level_decides_on_the_size() -> None:
    message = bytes(i * i % 251 for i in range(5000)) * 2
    sizes = {
        level: len(joined(LengthPrefixed().compressed(level=level).writer().encode(message)))
        for level in range(10)
    }
    assert sizes[0] > len(message) > sizes[1] >= sizes[9]


async def test_frames_of_one_message_each_over_a_connection() -> None:
    left, right = connection_pair(LengthPrefixed().compressed())
    async with left, right:
        for message in (b"one", b"", b"two" * 100_000):
            await left.send(message)
            assert await right.receive() == message
        assert left.statistics().bytes_sent < 2000


def test_it_can_be_done_twice() -> None:
    codec = LengthPrefixed(max_size=1000).compressed().compressed("gzip", max_size=2**24)
    message = bytes(2**24)
    data = joined(codec.writer().encode(message))
    assert len(data) < 200
    assert read_all(codec.reader(), [data]) == Outcome([message])


# -- the limit


@METHOD
@pytest.mark.parametrize("max_size", [0, 1, 2, 1000, 32 * 1024, 100_000])
@pytest.mark.parametrize("unit", [b"\0", bytes(range(256))])
def test_limit_is_exact(method: Method, max_size: int, unit: bytes) -> None:
    codec = LengthPrefixed().compressed(method, max_size=max_size)
    longest = (unit * max_size)[:max_size]
    assert decode_one(codec, compress(method, longest)) == longest
    assert joined(codec.writer().encode(longest))
    for excess in (b"\0", unit * 10_000):
        payload = compress(method, longest + excess)
        with pytest.raises(MessageTooLargeError) as caught:
            decode_one(codec, payload)
        assert str(caught.value) == (
            f"the peer sent {len(payload)} bytes that decompress to more than max_size, which is "
            f"{max_size} bytes"
        )
        with pytest.raises(EncodeError, match=f"bytes; max_size of .* allows {max_size} bytes"):
            codec.writer().encode(longest + excess)


@METHOD
@pytest.mark.parametrize("max_size", [0, 1000, 1_000_000])
def test_no_more_is_decompressed_than_the_limit_allows(method: Method, max_size: int) -> None:
    bomb = compress(method, bytes(2**27))
    reader = LengthPrefixed().compressed(method, max_size=max_size).reader()
    buffer = ReceiveBuffer()
    buffer.feed(frame(bomb))
    tracemalloc.start()
    try:
        with pytest.raises(MessageTooLargeError):
            reader.decode(buffer)
        # zlib's window; the frame, and its rest, twice; the parts of a message, and their sum.
        assert tracemalloc.get_traced_memory()[1] < 100_000 + 3 * len(bomb) + 2 * max_size
    finally:
        tracemalloc.stop()


def test_limit_larger_than_any_memory_is_none() -> None:
    codec = LengthPrefixed().compressed(max_size=2 * sys.maxsize)
    assert decode_one(codec, zlib.compress(b"a" * 1000)) == b"a" * 1000


def test_limits_may_be_changed_between_two_messages() -> None:
    codec = LengthPrefixed(max_size=20).compressed(max_size=3)
    reader, writer = codec.reader(), codec.writer()
    assert isinstance(reader, CompressedReader)
    assert isinstance(writer, CompressedWriter)
    with pytest.raises(EncodeError):
        writer.encode(b"four")
    writer.max_size = 1000
    data = joined(writer.encode(b"four"))
    buffer = ReceiveBuffer()
    buffer.feed(data + data)
    with pytest.raises(MessageTooLargeError):
        reader.decode(buffer)
    reader.max_size = 4
    assert reader.decode(buffer) == b"four"

    message = bytes(range(100))
    with pytest.raises(EncodeError, match=r"^the message has 1\d\d bytes; max_size allows 20"):
        writer.encode(message)  # that of the frame
    writer.inner.max_size = reader.inner.max_size = 1000  # type: ignore[attr-defined]
    reader.max_size = 100
    buffer.feed(joined(writer.encode(message)))
    assert reader.decode(buffer) == message


async def test_message_too_large_does_not_concern_the_next() -> None:
    left, right = connection_pair(LengthPrefixed().compressed())
    async with left, right:
        right.use(LengthPrefixed().compressed(max_size=3))
        for message in (b"one", b"three", b"two"):
            await left.send(message)
        assert await right.receive() == b"one"
        with pytest.raises(MessageTooLargeError):
            await right.receive()
        assert await right.receive() == b"two"


# -- frames that are something else


@METHOD
@pytest.mark.parametrize("message", [b"", b"abc", bytes(range(256)) * 100, bytes(100_000)])
@pytest.mark.parametrize("exactly", [True, False])
def test_data_that_is_cut_short(method: Method, message: bytes, exactly: bool) -> None:
    codec = LengthPrefixed().compressed(method, max_size=len(message) if exactly else 2**20)
    payload = compress(method, message)
    for size in {*range(min(50, len(payload))), *range(len(payload) - 20, len(payload))} - {-1}:
        with pytest.raises(InvalidMessageError) as caught:
            decode_one(codec, payload[: max(size, 0)])
        assert caught.value.reason == f"the data compressed by {method} is cut short"


@METHOD
@pytest.mark.parametrize("more", [b"x", b"x" * 1000])
def test_data_that_is_followed_by_more(method: Method, more: bytes) -> None:
    codec = LengthPrefixed().compressed(method)
    payload = compress(method, b"abc") + more
    with pytest.raises(InvalidMessageError) as caught:
        decode_one(codec, payload)
    assert caught.value.frame == payload
    assert caught.value.reason == f"{len(more)} bytes follow the data compressed by {method}"


def test_gzip_of_several_members_is_not_one_message() -> None:
    codec = LengthPrefixed().compressed("gzip")
    with pytest.raises(InvalidMessageError, match="21 bytes follow"):
        decode_one(codec, gzip.compress(b"a") + gzip.compress(b"b"))


@pytest.mark.parametrize(("method", "header"), [("zlib", 0), ("gzip", 10)])
def test_data_that_is_damaged_at_any_bit_is_not_taken_for_the_message(
    method: Method, header: int
) -> None:
    codec = LengthPrefixed().compressed(method)
    payload = compress(method, b"hello, hello, hello")
    for index in range(header, len(payload)):
        for bit in range(8):
            damaged = bytearray(payload)
            damaged[index] ^= 1 << bit
            with pytest.raises(InvalidMessageError):
                decode_one(codec, bytes(damaged))


@METHOD
def test_data_that_is_not_compressed_says_what_zlib_says(method: Method) -> None:
    with pytest.raises(InvalidMessageError) as caught:
        decode_one(LengthPrefixed().compressed(method), b"\xffnothing")
    assert isinstance(caught.value.__cause__, zlib.error)
    assert caught.value.reason == f"not compressed by {method}: {caught.value.__cause__}"


@METHOD
@given(st.binary(max_size=60))
def test_any_frame_is_a_message_or_an_error_and_is_gone(method: Method, payload: bytes) -> None:
    codec = LengthPrefixed().compressed(method, max_size=100)
    try:
        message = decode_one(codec, payload)
    except (InvalidMessageError, MessageTooLargeError):
        return
    assert isinstance(message, bytes)
    assert len(message) <= 100


@pytest.mark.parametrize(("written", "read"), [("zlib", "gzip"), ("gzip", "deflate")])
def test_other_methods_are_refused(written: Method, read: Method) -> None:
    with pytest.raises(InvalidMessageError, match=f"not compressed by {read}"):
        decode_one(LengthPrefixed().compressed(read), compress(written, b"abc"))


def test_message_that_is_not_bytes_cannot_be_sent() -> None:
    with pytest.raises(EncodeError, match=r"^compressed\(\) sends bytes, .* not str$"):
        LengthPrefixed().compressed().writer().encode("text")  # type: ignore[arg-type]


# -- what is passed on


class WholeReader(Reader[bytes]):
    """The stream up to its end is one message; a user's own."""

    def decode(self, buffer: ReceiveBuffer) -> Literal[NeedData.NEED_DATA]:
        return NEED_DATA

    def decode_eof(self, buffer: ReceiveBuffer) -> bytes | Literal[NeedData.NEED_DATA]:
        return buffer.take(len(buffer)) or NEED_DATA


class CountingWriter(Writer[bytes]):
    stateful = True
    count = 0

    def encode(self, message: bytes) -> bytes:
        self.count += 1
        return bytes([self.count]) + message


class Whole(Codec[bytes, bytes]):
    def reader(self) -> WholeReader:
        return WholeReader()

    def writer(self) -> CountingWriter:
        return CountingWriter()


def test_last_message_that_only_the_end_completes_is_decompressed_too() -> None:
    reader = Whole().compressed().reader()
    assert read_all(reader, cut(zlib.compress(b"abc"), [1, 2, 3])) == Outcome([b"abc"])
    assert read_all(reader, []) == Outcome([])
    assert read_all(reader, [b"x"]) == Outcome([], InvalidMessageError)
    buffer = ReceiveBuffer()
    buffer.feed(b"x")
    with pytest.raises(IncompleteMessageError, match="LengthPrefixedReader has 1 byte of"):
        LengthPrefixed().compressed().reader().decode_eof(buffer)


def test_frame_depends_on_others_only_if_the_inner_writers_frames_do() -> None:
    assert Whole().compressed().writer().stateful
    assert Whole().compressed().json().writer().stateful
    assert not LengthPrefixed().compressed().writer().stateful
    assert not LengthPrefixed().compressed().json().writer().stateful


# -- settings


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        (
            {"method": "lzma"},
            ValueError,
            "method must be 'zlib' or 'gzip' or 'deflate', not 'lzma'",
        ),
        ({"level": 10}, ValueError, "level must be 0 to 9 steps, not 10"),
        (
            {"level": "best"},
            TypeError,
            "level must be a whole number of steps (0 to 9), not 'best'",
        ),
        ({"max_size": -1}, ValueError, "max_size must be 0 or more bytes, not -1"),
        (
            {"max_size": None},
            TypeError,
            "max_size must be a whole number of bytes (0 or more), not None",
        ),
    ],
)
def test_wrong_setting_is_named(
    settings: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error) as caught:
        LengthPrefixed().compressed(**settings)
    assert str(caught.value) == text


def test_codecs_of_equal_settings_are_equal() -> None:
    codec = LengthPrefixed(2).compressed("gzip", level=1, max_size=9)
    assert codec == LengthPrefixed(2).compressed("gzip", level=1, max_size=9)
    assert hash(codec) == hash(LengthPrefixed(2).compressed("gzip", level=1, max_size=9))
    assert pickle.loads(pickle.dumps(codec)) == codec
    for other in (
        LengthPrefixed(4).compressed("gzip", level=1, max_size=9),
        LengthPrefixed(2).compressed("zlib", level=1, max_size=9),
        LengthPrefixed(2).compressed("gzip", level=2, max_size=9),
        LengthPrefixed(2).compressed("gzip", level=1, max_size=8),
    ):
        assert codec != other


def test_the_default_is_zlib_and_a_mebibyte() -> None:
    assert LengthPrefixed().compressed() == LengthPrefixed().compressed(
        "zlib", level=6, max_size=1_048_576
    )


def test_text_cannot_be_compressed_so_it_says_what_it_got() -> None:
    with pytest.raises(EncodeError, match="Lines sends str, not bytes"):
        Lines().compressed().writer().encode(b"x")  # type: ignore[misc]  # which is the mistake


@METHOD
def test_a_peer_may_refer_back_as_far_as_the_method_allows(method: Method) -> None:
    """RFC 1951, 3.2.5: 32 KiB. A peer that does would not be understood with a smaller window."""
    far = random.Random(6).randbytes(32_000)
    payload = compress(method, far + far)
    assert len(payload) < 40_000  # or it was not referred back to
    assert decode_one(LengthPrefixed().compressed(method), payload) == far + far
    written = joined(LengthPrefixed().compressed(method).writer().encode(far + far))
    assert len(written) < 40_000
