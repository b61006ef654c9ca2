"""`COBS` and `SLIP`: every cutting, damaged frames, and going on behind these."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterable
from typing import Any

import pytest
from driving import Outcome, cut, cuts, joined, read_all
from hypothesis import example, given
from hypothesis import strategies as st

from trio_bytetalk import (
    COBS,
    NEED_DATA,
    SLIP,
    EncodeError,
    FixedSize,
    IncompleteMessageError,
    InvalidMessageError,
    MessageTooLargeError,
    ProtocolError,
    ReceiveBuffer,
)
from trio_bytetalk.testing import connection_pair

# -- the two protocols as plainly as they can be written


def cobs(message: bytes) -> bytes:
    """The frame of ``message``, made byte by byte."""
    frame = bytearray()
    group = bytearray()
    ended = False  # by being a longest group, so that there is nothing to add at the end
    for byte in message:
        ended = False
        if byte:
            group.append(byte)
        if not byte or len(group) == 254:
            frame += bytes([len(group) + 1]) + group
            group.clear()
            ended = bool(byte)
    if not ended:
        frame += bytes([len(group) + 1]) + group
    return bytes(frame) + b"\0"


def uncobs(frame: bytes) -> bytes | None:
    """The message of ``frame``, which has no delimiter; None if it is malformed."""
    message = b""
    while frame:
        code, frame = frame[0], frame[1:]
        if len(frame) < code - 1:
            return None
        group, frame = frame[: code - 1], frame[code - 1 :]
        message += group
        if code < 255 and frame:
            message += b"\0"
    return message


def slip(message: bytes) -> bytes:
    escapes = {0xC0: b"\xdb\xdc", 0xDB: b"\xdb\xdd"}
    return b"\xc0" + b"".join(escapes.get(byte, bytes([byte])) for byte in message) + b"\xc0"


def unslip(frame: bytes) -> bytes | None:
    message = b""
    while frame:
        byte, frame = frame[:1], frame[1:]
        if byte == b"\xdb":
            if frame[:1] not in (b"\xdc", b"\xdd"):
                return None
            byte, frame = b"\xc0" if frame[0] == 0xDC else b"\xdb", frame[1:]
        message += byte
    return message


Codecs = COBS | SLIP
Event = bytes | type[ProtocolError]


def as_it_should_be(codec: Codecs, stream: bytes) -> list[Event]:
    """What comes out of ``stream`` for an owner that goes on where that is possible."""
    is_cobs = isinstance(codec, COBS)
    delimiter = b"\0" if is_cobs else b"\xc0"
    events: list[Event] = []
    while True:
        rest = stream.lstrip(delimiter)
        if len(stream) - len(rest) > 64:
            events.append(InvalidMessageError)
            stream = stream[65:]
            continue
        frame, whole, behind = rest.partition(delimiter)
        size = len(frame)
        # Of COBS at the least 254 bytes of 255 are the message's; of SLIP, every second.
        if (size - (size + 254) // 255 if is_cobs else (size + 1) // 2) > codec.max_size:
            return [*events, MessageTooLargeError]
        if not whole:
            return [*events, IncompleteMessageError] if (frame if is_cobs else stream) else events
        message = uncobs(frame) if is_cobs else unslip(frame)
        if message is None:
            events.append(InvalidMessageError)
        elif len(message) > codec.max_size:
            return [*events, MessageTooLargeError]
        else:
            events.append(message)
        stream = behind


def read_on(codec: Codecs, pieces: Iterable[bytes], *, patient: bool = False) -> list[Event]:
    """As `read_all`, but it goes on behind an error of which something was consumed."""
    reader = codec.reader()
    buffer = ReceiveBuffer()
    events: list[Event] = []
    for piece in [*pieces, None]:
        if piece is not None:
            buffer.feed(piece)
            if patient and len(buffer) < buffer.wanted:
                continue
        while True:
            buffer.wanted = 0
            size = len(buffer)
            try:
                message = reader.decode(buffer)
                if message is NEED_DATA:
                    assert len(buffer) == size
                    if piece is None:
                        assert reader.decode_eof(buffer) is NEED_DATA
                    break
                events.append(message)
            except ProtocolError as error:
                events.append(type(error))
                if len(buffer) == size:
                    return events
            assert len(buffer) < size
    return events


def cuttings(stream: bytes, sizes: list[int]) -> list[list[bytes]]:
    """In one piece, which is the readers' fast path; as told; and as small as can be."""
    return [[stream], cut(stream, sizes), cut(stream, [1] * len(stream))]


CODECS = st.sampled_from([COBS, SLIP])
# Of bytes that mean something to one of the two.
DENSE = st.lists(st.sampled_from(b"\0\1\2\3\xc0\xdb\xdc\xdd\xffa"), max_size=40).map(bytes)
# Around the length of the longest group, and of two.
LONG = st.builds(
    lambda before, length, after: before + b"x" * length + after,
    DENSE,
    st.sampled_from([0, 253, 254, 255, 507, 508, 509]),
    DENSE,
)


# -- reading and writing


@given(CODECS, DENSE | LONG, st.integers(1, 12) | st.integers(500, 600), cuts())
@example(COBS, b"\0\0\3ab\0\0", 2, [1])
@example(COBS, b"\3a\0\2b\0", 9, [3])
@example(COBS, b"\xff" + b"x" * 254 + b"\1\0", 254, [255])
@example(COBS, b"\xff" + b"x" * 254 + b"\1\1\0", 255, [256])
@example(COBS, b"\xff" + b"x" * 254 + b"\0", 254, [])
@example(SLIP, b"\xc0\xc0a\xdb\xc0b\xdb\xdb\xdc\xc0c\xc0", 3, [2, 2])
@example(SLIP, b"\xc0\xdb\xdd\xdc\xc0", 2, [3])
@example(SLIP, b"\xc0\xdb\xdd\xdb\xdd\xdb\xdd\xc0", 3, [3])
@example(SLIP, b"aaa\xdb\xdb\xdb\xdb\xc0", 3, [3])
def test_any_cutting_of_any_bytes_gives_the_same_messages_and_errors(
    make: type[COBS | SLIP], stream: bytes, max_size: int, sizes: list[int]
) -> None:
    codec = make(max_size)
    expected = as_it_should_be(codec, stream)
    for pieces in cuttings(stream, sizes):
        assert read_on(codec, pieces) == expected
        assert read_on(codec, pieces, patient=True) == expected


@given(CODECS, st.lists(DENSE | LONG | st.binary()), cuts())
def test_what_is_written_is_read(
    make: type[COBS | SLIP], messages: list[bytes], sizes: list[int]
) -> None:
    codec = make()
    if make is SLIP:
        messages = [message for message in messages if message]
    stream = b""
    for message in messages:
        frame = joined(codec.writer().encode(message))
        assert frame == (cobs if make is COBS else slip)(message)
        stream += frame
    for pieces in cuttings(stream, sizes):
        assert read_all(codec.reader(), pieces) == Outcome(messages)


# The examples of the article on COBS in Wikipedia.
LETTERS = bytes(range(1, 256))


@pytest.mark.parametrize(
    ("message", "frame"),
    [
        (b"\0", b"\1\1\0"),
        (b"\0\0", b"\1\1\1\0"),
        (b"\0\x11\0", b"\1\2\x11\1\0"),
        (b"\x11\x22\0\x33", b"\3\x11\x22\2\x33\0"),
        (b"\x11\x22\x33\x44", b"\5\x11\x22\x33\x44\0"),
        (b"\x11\0\0\0", b"\2\x11\1\1\1\0"),
        (LETTERS[:254], b"\xff" + LETTERS[:254] + b"\0"),
        (b"\0" + LETTERS[:254], b"\1\xff" + LETTERS[:254] + b"\0"),
        (LETTERS, b"\xff" + LETTERS[:254] + b"\2\xff\0"),
        (LETTERS[1:] + b"\0", b"\xff" + LETTERS[1:] + b"\1\1\0"),
        (LETTERS[2:] + b"\0\1", b"\xfe" + LETTERS[2:] + b"\2\1\0"),
        (b"", b"\1\0"),
    ],
)
def test_known_frames_of_cobs(message: bytes, frame: bytes) -> None:
    assert COBS().writer().encode(message) == frame
    assert read_all(COBS().reader(), [frame]) == Outcome([message])


def test_longest_group_may_be_followed_by_an_empty_one_which_says_nothing() -> None:
    # As the encoder in the paper has it.
    frame = b"\xff" + LETTERS[:254] + b"\1\0"
    assert read_all(COBS().reader(), [frame]) == Outcome([LETTERS[:254]])


@pytest.mark.parametrize(
    ("message", "frame"),
    [
        (b"a", b"\xc0a\xc0"),
        (b"\xc0", b"\xc0\xdb\xdc\xc0"),
        (b"\xdb", b"\xc0\xdb\xdd\xc0"),
        (b"\xdb\xdc\xdd\xc0", b"\xc0\xdb\xdd\xdc\xdd\xdb\xdc\xc0"),
    ],
)
def test_known_packets_of_slip(message: bytes, frame: bytes) -> None:
    assert SLIP().writer().encode(message) == frame
    assert read_all(SLIP().reader(), [frame]) == Outcome([message])
    assert read_all(SLIP().reader(), [frame[1:]]) == Outcome([message])  # as some do


@pytest.mark.parametrize("make", [COBS, SLIP])
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@pytest.mark.parametrize("byte", [b"\0", b"\1", b"\xc0", b"\xdb"])
def test_large_message_of_any_kind_in_large_chunks(make: Any, kind: type, byte: bytes) -> None:
    message = byte * 50_000 + b"!"
    frame = make().writer().encode(kind(message))
    for size in (4096, 30_000, len(frame) - 1, len(frame), len(frame) + 1):
        pieces = cut(frame * 2, [size] * 60)
        assert read_all(make().reader(), pieces) == Outcome([message] * 2)


@pytest.mark.parametrize("size", [1023, 1024, 1025, 2048, 2049])
@pytest.mark.parametrize("byte", [b"\xdb", b"\xc0", b"a", b"a\xdb", b"\xdb\xdc\xc0", b"\xdd\xdba"])
def test_packet_of_slip_that_is_escaped_in_segments(byte: bytes, size: int) -> None:
    # An escape that would be cut by the end of a segment stays whole.
    message = (byte * size)[:size]
    frame = SLIP().writer().encode(message)
    assert frame == slip(message)
    for shift in (b"", b"b"):
        assert read_all(SLIP().reader(), [shift + frame[1:]]) == Outcome([shift + message])
    damaged = frame[1:-1] + b"\xdb\xc0"
    assert read_on(SLIP(), [damaged + frame]) == [InvalidMessageError, message]
    damaged = b"\xdbx" + frame[1:]
    assert read_on(SLIP(), [damaged + frame]) == [InvalidMessageError, message]


@pytest.mark.parametrize("size", [1015, 1016, 1017, 1024, 1025, 2032, 2033, 3000])
@pytest.mark.parametrize("zeros", [[], [0], [254], [1016], [1023], [1024], [508, 1400]])
def test_message_of_cobs_that_is_stuffed_in_segments(size: int, zeros: list[int]) -> None:
    # Of groups of the longest kind: four of these are the most that a segment has, 1,016 bytes.
    message = bytearray(b"a" * size)
    for place in zeros:
        message[place : place + 1] = b"\0" if place < size else b""
    frame = COBS().writer().encode(message)
    assert frame == cobs(bytes(message))
    assert read_all(COBS().reader(), [frame]) == Outcome([bytes(message)])


# For each the shortest groups, the longest, what is escaped all over, half of it, and not at all.
@pytest.mark.parametrize("make", [COBS, SLIP])
@pytest.mark.parametrize(
    "pattern", [b"\0", b"a\0", b"ab\0", b"a", b"\xc0", b"\xdb", b"\xc0\xdb", b"\xc0a"]
)
def test_no_more_memory_is_taken_than_for_what_comes_out(make: Any, pattern: bytes) -> None:
    size = 2**19
    message = pattern * (size // len(pattern))
    codec = make()
    reader, writer = codec.reader(), codec.writer()
    buffer = ReceiveBuffer()
    tracemalloc.start()
    try:
        frame = writer.encode(message)
        # An eighth more is what Python takes for bytes that are growing.
        assert tracemalloc.get_traced_memory()[1] < 1.13 * len(frame) + 250_000
        buffer.feed(frame)
        tracemalloc.clear_traces()
        received = reader.decode(buffer)
        assert tracemalloc.get_traced_memory()[1] < 1.13 * size + 250_000
    finally:
        tracemalloc.stop()
    assert received == message


# -- frames that are damaged


@pytest.mark.parametrize(
    ("codec", "damaged", "good", "why"),
    [
        (COBS(), b"\2\0", b"\2a\0", "1 bytes that are no frame: the last code of COBS"),
        (COBS(), b"\2a\5bcd\0", b"\2a\0", "6 bytes that are no frame: the last code of COBS"),
        (
            COBS(),
            b"\xff" + b"x" * 253 + b"\0",
            b"\2a\0",
            "254 bytes that are no frame: the last code",
        ),
        (
            SLIP(),
            b"\xc0a\xdbb\xc0",
            b"\xc0a\xc0",
            "3 bytes that are no frame: behind 0xdb",
        ),
        (SLIP(), b"a\xdb\xc0", b"a\xc0", "2 bytes that are no frame: behind 0xdb"),
        (SLIP(), b"\xdb\xdb\xdc\xc0", b"a\xc0", "3 bytes that are no frame: behind 0xdb"),
    ],
)
def test_damaged_frame_is_told_of_and_passed_over(
    codec: Codecs, damaged: bytes, good: bytes, why: str
) -> None:
    for pieces in cuttings(good + damaged + good, [len(good), 1]):
        assert read_on(codec, pieces) == [b"a", InvalidMessageError, b"a"]
    buffer = ReceiveBuffer()
    buffer.feed(damaged + good)
    with pytest.raises(InvalidMessageError, match=f"^the peer sent {why}") as caught:
        codec.reader().decode(buffer)
    assert caught.value.reason in str(caught.value)
    assert caught.value.frame == damaged.strip(b"\0\xc0")
    assert buffer.take(len(buffer)) == good


@pytest.mark.parametrize("codec", [COBS(), SLIP()])
async def test_owner_of_a_connection_may_go_on_behind_a_damaged_frame(codec: Codecs) -> None:
    left, right = connection_pair(codec)
    async with left, right:
        end = b"\0" if isinstance(codec, COBS) else b"\xc0"
        left.writer = FixedSize(3).writer()
        await left.send(b"\xdb" + end + end)
        left.writer = codec.writer()
        await left.send(b"good")
        with pytest.raises(InvalidMessageError):
            await right.receive()
        assert await right.receive() == b"good"


@pytest.mark.parametrize("codec", [COBS(), SLIP()])
def test_delimiters_with_nothing_in_between_are_dropped_but_not_without_end(codec: Codecs) -> None:
    end = b"\0" if isinstance(codec, COBS) else b"\xc0"
    frame = joined(codec.writer().encode(b"a"))
    own = len(frame) - len(frame.lstrip(end))  # what the frame itself begins with
    for pieces in cuttings(end * (64 - own) + frame, [3, 3]):
        assert read_on(codec, pieces) == [b"a"]
    for pieces in cuttings(end * (65 - own) + frame, [3, 3]):
        assert read_on(codec, pieces) == [InvalidMessageError, b"a"]
    for pieces in cuttings(end * 65 * 3 + frame, [100, 3]):
        assert read_on(codec, pieces) == [InvalidMessageError] * 3 + [b"a"]
    buffer = ReceiveBuffer()
    buffer.feed(end * 100)
    with pytest.raises(InvalidMessageError, match="more than 64 delimiters in a row"):
        codec.reader().decode(buffer)
    assert len(buffer) == 35


def test_zero_max_size_leaves_empty_messages_of_cobs() -> None:
    codec = COBS(0)
    stream = joined(codec.writer().encode(b"")) + b"\2a\0"
    assert read_all(codec.reader(), [stream]) == Outcome([b""], MessageTooLargeError)


def test_how_a_stream_may_end() -> None:
    assert read_all(COBS().reader(), [b"\2a\0\0\0"]) == Outcome([b"a"])
    assert read_all(COBS().reader(), [b"\2a\0\0\0\1"]) == Outcome([b"a"], IncompleteMessageError)
    assert read_all(COBS().reader(), [b"\2a\0" + b"\0" * 64]) == Outcome([b"a"])
    long = b"\2a\0" + b"\xff" * 100
    assert read_all(COBS().reader(), [long]) == Outcome([b"a"], IncompleteMessageError)
    # END also begins a packet.
    assert read_all(SLIP().reader(), [b"\xc0a\xc0\xc0"]) == Outcome([b"a"], IncompleteMessageError)
    assert read_all(SLIP().reader(), [b"\xc0a\xc0"]) == Outcome([b"a"])


# -- limits


@pytest.mark.parametrize("make", [COBS, SLIP])
@pytest.mark.parametrize("byte", [b"\0", b"a", b"\xc0"])
@pytest.mark.parametrize("size", [3, 254, 255, 600])
def test_limit_is_of_the_message_and_not_of_what_stuffing_adds(
    make: Any, byte: bytes, size: int
) -> None:
    message = byte * size
    frame = make().writer().encode(message)
    assert make(size).writer().encode(message) == frame
    with pytest.raises(EncodeError, match=f"{size} bytes; max_size allows {size - 1} bytes"):
        make(size - 1).writer().encode(message)
    for pieces in cuttings(frame, [2, 2]):
        assert read_on(make(size), pieces) == [message]
        assert read_on(make(size - 1), pieces) == [MessageTooLargeError]


@pytest.mark.parametrize(
    ("codec", "held", "least"),
    [
        (COBS(10), b"\xff" * 11, b"\xff"),
        (COBS(254), b"\0\0" + b"\xff" * 255, b"\xff\xff"),
        (COBS(255), b"\0" + b"\xff" * 257, b"\xff"),
        (SLIP(10), b"\xc0" + b"a" * 20, b"a"),
    ],
)
def test_message_that_cannot_end_in_time_is_refused_before_it_does(
    codec: Codecs, held: bytes, least: bytes
) -> None:
    reader = codec.reader()
    buffer = ReceiveBuffer()
    buffer.feed(held[:-1])
    assert reader.decode(buffer) is NEED_DATA
    buffer.feed(held[-1:])
    assert reader.decode(buffer) is NEED_DATA
    buffer.feed(least)
    for _ in range(2):  # nothing is consumed, so it does not go away
        with pytest.raises(MessageTooLargeError) as caught:
            reader.decode(buffer)
    assert str(caught.value) == (
        f"the peer sent a message of {codec.max_size + 1} bytes or more; "
        f"max_size allows {codec.max_size} bytes"
    )
    assert buffer.take(len(buffer)) == held + least


@pytest.mark.parametrize(
    ("codec", "frame"), [(COBS(254), b"\2a" * 128 + b"\0"), (SLIP(3), b"\xc0abcd\xc0")]
)
def test_message_whose_frame_is_not_too_long_may_be_too_large(codec: Codecs, frame: bytes) -> None:
    reader = codec.reader()
    buffer = ReceiveBuffer()
    buffer.feed(frame)
    for _ in range(2):
        with pytest.raises(
            MessageTooLargeError, match=r"of (255|4) bytes; max_size allows (254|3) "
        ):
            reader.decode(buffer)
    assert buffer.take(len(frame)) == frame


@pytest.mark.parametrize("make", [COBS, SLIP])
def test_max_size_may_be_changed_between_two_messages(make: Any) -> None:
    codec = make(1)
    reader, writer = codec.reader(), codec.writer()
    buffer = ReceiveBuffer()
    for message in (b"a", b"bc"):
        buffer.feed(make().writer().encode(message))
    assert reader.decode(buffer) == b"a"
    reader.max_size = writer.max_size = 2
    assert reader.decode(buffer) == b"bc"
    assert writer.encode(b"bc") == make().writer().encode(b"bc")


@pytest.mark.parametrize("codec", [COBS(), SLIP()])
def test_frame_is_consumed_with_its_delimiter_and_nothing_more(codec: Codecs) -> None:
    frame = joined(codec.writer().encode(b"a"))
    for pieces in ([frame * 2], cut(frame * 2, [1, 1])):
        buffer = ReceiveBuffer()
        reader = codec.reader()
        for piece in pieces[:-1]:
            buffer.feed(piece)
            assert reader.decode(buffer) is NEED_DATA
        buffer.feed(pieces[-1])
        assert reader.decode(buffer) == b"a"
        assert buffer.peek(len(buffer)) == frame
        assert reader.decode(buffer) == b"a"
        assert len(buffer) == 0


@pytest.mark.parametrize("codec", [COBS(), SLIP()])
@pytest.mark.parametrize("held", [b"", b"\xc0", b"\xc0\xc0a", b"\0\0\3a"])
def test_what_is_not_whole_stays_for_another_reader(codec: Codecs, held: bytes) -> None:
    buffer = ReceiveBuffer()
    buffer.feed(held.replace(b"\0", b"\xc0") if isinstance(codec, SLIP) else held)
    size = len(buffer)
    assert codec.reader().decode(buffer) is NEED_DATA
    assert buffer.wanted == size + 1
    assert len(buffer) == size


@pytest.mark.parametrize("codec", [COBS(), SLIP()])
def test_chunk_that_was_searched_in_vain_is_not_searched_again_for_each_that_follows(
    codec: Codecs,
) -> None:
    # With a front that counts its searches, for the reader works on that directly.
    searched = 0

    class Front(bytes):
        def find(self, *args: Any) -> int:
            nonlocal searched
            searched += 1
            return super().find(*args)

    buffer = ReceiveBuffer()
    buffer.data = Front(b"." * 1000)
    for _ in range(100):
        assert codec.reader().decode(buffer) is NEED_DATA
        buffer.feed(b".")
    assert searched == 1


# -- what cannot be sent


@pytest.mark.parametrize("make", [COBS, SLIP])
@pytest.mark.parametrize("message", ["text", None, 5])
def test_message_of_the_wrong_type(make: Any, message: Any) -> None:
    named = f"^{make.__name__} sends bytes, .*{type(message).__name__}$"
    with pytest.raises(EncodeError, match=named):
        make().writer().encode(message)


def test_empty_packet_of_slip_is_not_sent() -> None:
    with pytest.raises(EncodeError, match=r"the message is empty: .* drop empty packets"):
        SLIP().writer().encode(bytearray())


@pytest.mark.parametrize("codec", [COBS(4), SLIP(4)])
async def test_connection_is_usable_after_a_message_that_cannot_be_sent(codec: Codecs) -> None:
    left, right = connection_pair(codec)
    async with left, right:
        for message in (b"12345", "text"):
            with pytest.raises(EncodeError):
                await left.send(message)  # type: ignore[arg-type]  # which is the mistake
        await left.send(b"\0\xc0")
        assert await right.receive() == b"\0\xc0"


# -- settings


@pytest.mark.parametrize(
    ("make", "value", "error"),
    [
        (COBS, -1, ValueError),
        (COBS, None, TypeError),
        (SLIP, 0, ValueError),
        (SLIP, 1.5, TypeError),
    ],
)
def test_wrong_setting_is_named(make: Any, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=rf"^max_size must be .*not {value!r}$"):
        make(value)


@pytest.mark.parametrize("make", [COBS, SLIP])
def test_settings_that_are_not_given(make: Any) -> None:
    assert make() == make(1_048_576) != make(1)
    assert hash(make()) == hash(make(1_048_576))
