"""`ContentLength`: headers of all kinds, in any pieces, and those that are none."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest
from driving import Outcome, cut, cuts, joined, read_all
from hypothesis import given
from hypothesis import strategies as st

from trio_bytetalk import (
    NEED_DATA,
    ContentLength,
    EncodeError,
    IncompleteMessageError,
    MessageTooLargeError,
    ProtocolError,
    ReceiveBuffer,
    _content_length,
)
from trio_bytetalk.testing import connection_pair

# Headers that are right for a message of five bytes; the first is the readers' fast path.
HEADERS = [
    b"Content-Length: 5\r\n",
    b"content-length: 5\r\n",
    b"CONTENT-LENGTH:5\r\n",
    b"Content-Length: 00000000000000000005\r\n",
    b"Content-Length:\t  5 \t\r\n",
    b"Content-Length: 5\r\nContent-Type: application/vscode-jsonrpc; charset=utf-8\r\n",
    b"Content-Type: application/vscode-jsonrpc; charset=utf8\r\nContent-Length: 5\r\n",
    b"X-Empty:\r\n!#$%&'*+-.^_`|~: 9\r\nContent-Length: 5\r\nContent-Lengths: 6\r\nA: b: c\r\n",
]


def cuttings(stream: bytes, sizes: list[int]) -> list[list[bytes]]:
    return [[stream], cut(stream, sizes), cut(stream, [1] * len(stream))]


@given(
    st.lists(st.tuples(st.sampled_from(HEADERS), st.binary(min_size=5, max_size=5)), max_size=5),
    cuts(),
)
def test_any_header_in_any_pieces(frames: list[tuple[bytes, bytes]], sizes: list[int]) -> None:
    stream = b"".join(header + b"\r\n" + message for header, message in frames)
    expected = Outcome([message for _, message in frames])
    for pieces in cuttings(stream, sizes):
        assert read_all(ContentLength().reader(), pieces) == expected
        assert read_all(ContentLength().reader(), pieces, patient=True) == expected


# Of the parts of headers, so that many are nearly right.
PARTS = st.sampled_from(
    [b"Content-Length", b": ", b":", b"0", b"3", b"7", b"\r\n", b"\r\n\r\n", b"\n", b" ", b"abc"]
)


@given(
    st.lists(PARTS | st.binary(max_size=2) | st.sampled_from(HEADERS), max_size=12).map(b"".join),
    cuts(),
)
def test_any_cutting_of_any_bytes_gives_the_same_messages_or_the_same_error(
    stream: bytes, sizes: list[int]
) -> None:
    codec = ContentLength(6, max_header_size=60)
    expected = read_all(codec.reader(), [stream])
    for pieces in cuttings(stream, sizes):
        assert read_all(codec.reader(), pieces) == expected
        assert read_all(codec.reader(), pieces, patient=True) == expected


@given(st.lists(st.binary(max_size=200)), cuts())
def test_what_is_written_is_read(messages: list[bytes], sizes: list[int]) -> None:
    codec = ContentLength()
    stream = b"".join(joined(codec.writer().encode(message)) for message in messages)
    for pieces in cuttings(stream, sizes):
        assert read_all(codec.reader(), pieces) == Outcome(messages)


def test_what_a_language_client_sends_first() -> None:
    request = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {"processId": None}}
    message = json.dumps(request).encode()
    frame = joined(ContentLength().writer().encode(message))
    assert frame == b"Content-Length: 82\r\n\r\n" + message
    assert read_all(ContentLength().reader(), [frame]) == Outcome([message])


def test_large_message_is_sent_as_it_is_and_a_small_one_in_one_piece_with_its_header() -> None:
    writer = ContentLength().writer()
    large = b"." * 4096
    assert writer.encode(large)[1] is large
    assert writer.encode(large[1:]) == b"Content-Length: 4095\r\n\r\n" + large[1:]


@pytest.mark.parametrize("length", [4095, 4096, 70_000])
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_large_message_survives(length: int, kind: type) -> None:
    message = (bytes(range(256)) * 300)[:length]
    stream = joined(ContentLength().writer().encode(kind(message)))
    for sizes in ([], [5], [24], [26], [5, 21, 4096], [1000] * 80):
        assert read_all(ContentLength().reader(), cut(stream, sizes)) == Outcome([message])


@pytest.mark.parametrize("kind", [bytearray, memoryview])
@pytest.mark.parametrize("length", [3, 5000])
def test_message_that_its_owner_changes_after_sending_is_sent_as_it_was(
    kind: type, length: int
) -> None:
    data = bytearray(b"a" * length)
    encoded = ContentLength().writer().encode(kind(data))
    data[:] = b"b" * length
    assert joined(encoded).endswith(b"\r\n\r\n" + b"a" * length)


# -- headers that are none


@pytest.mark.parametrize(
    ("header", "why"),
    [
        (b"", r"b'\\r' in a header, behind b''; expected is a name"),
        (b"Content-Type: text/plain\r\n", "a header without Content-Length"),
        (b"Content-Length: 5\r\nContent-Length: 5\r\n", "a header with two Content-Length fields"),
        (b"Content-Length: 5\r\ncontent-length: 6\r\n", "a header with two Content-Length fields"),
        (b"Content-Length:\r\n", "Content-Length b''; expected is a number"),
        (b"Content-Length: -5\r\n", "Content-Length b'-5'; expected is a number"),
        (b"Content-Length: +5\r\n", r"Content-Length b'\+5'; expected is a number"),
        (b"Content-Length: 1 5\r\n", "Content-Length b'1 5'; expected is a number"),
        (b"Content-Length: 1_5\r\n", "Content-Length b'1_5'; expected is a number"),
        (b"Content-Length: 0x5\r\n", "Content-Length b'0x5'; expected is a number"),
        (b"Content-Length: 5, 5\r\n", "Content-Length b'5, 5'; expected is a number"),
        (b"Content-Length: 5.0\r\n", "Content-Length b'5.0'; expected is a number"),
        (b"Content-Length: " + b"0" * 20 + b"5\r\n", r"Content-Length b'0+5'; .* 20 at the most"),
        (b"Content-Length: " + b"9" * 1000 + b"\r\n", r"Content-Length b'9+; .* 20 at the most"),
        ("Content-Length: \N{ARABIC-INDIC DIGIT FIVE}\r\n".encode(), "in ASCII"),
        (b"Content-Length: \xb5\r\n", "in ASCII"),
        (b"X: caf\xe9\r\nContent-Length: 5\r\n", "in ASCII"),
        (b"X: \0\r\nContent-Length: 5\r\n", "in ASCII"),
        (b"X: \x7f\r\nContent-Length: 5\r\n", "in ASCII"),
        (b"X: y\nContent-Length: 5\r\n", "a name, a colon and a value"),
        (b"X: y\rContent-Length: 5\r\n", "a name, a colon and a value"),
        (b"Content-Length: 5\r\n more\r\n", "b' ' in a header, behind b''; expected is a name"),
        (b"Content-Length : 5\r\n", "b' ' in a header, behind b'Content-Length'"),
        (b" Content-Length: 5\r\n", "b' ' in a header, behind b''"),
        (b"Content-Length\r\n", r"b'\\r' in a header, behind b'Content-Length'"),
        (b": 5\r\n", "b':' in a header, behind b''"),
        (b"GET / HTTP/1.1\r\nContent-Length: 5\r\n", "b' ' in a header, behind b'GET'"),
    ],
)
def test_header_that_is_not_right(header: bytes, why: str) -> None:
    stream = header + b"\r\nhello" + b"Content-Length: 5\r\n\r\nhello"
    for pieces in cuttings(stream, [30]):
        assert read_all(ContentLength().reader(), pieces) == Outcome([], ProtocolError)
    reader = ContentLength().reader()
    buffer = ReceiveBuffer()
    buffer.feed(stream)
    for _ in range(2):  # nothing is consumed, so it does not go away
        with pytest.raises(ProtocolError, match=f"^the peer sent .*{why}"):
            reader.decode(buffer)
    assert buffer.take(len(stream)) == stream


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        (b"", b"\0"),
        (b"", b"\r"),
        (b"", b"\n"),
        (b"", b" "),
        (b"", b":"),
        (b"", b"{"),
        (b"", b"\x16"),  # TLS
        (b"GET", b" "),
        (b"SSH-2.0-OpenSSH_9.2", b"\r"),
        (b"Content-Length", b"\n"),
        (b"Content-Length: 5", b"\n"),
        (b"Content-Length: 5", b"\0"),
        (b"Content-Length: 5\r", b"\r"),
        (b"Content-Length: 5\r", b"5"),
        (b"Content-Length: 5\r\n", b"\n"),
        (b"Content-Length: 5\r\n", b"\t"),
        (b"Content-Length: 5\r\n\r", b"5"),
        (b"A: b\r\nC", b"\r"),
        (b"A: b\r\nC: d\r\n", b"\xff"),
        (b"A: b\r\nC: d\r\n\r", b"\r"),
    ],
)
def test_first_byte_that_no_header_can_have_there_is_refused_with_the_same_words(
    right: bytes, wrong: bytes
) -> None:
    for more in (b"", b"x", b"\r\n\r\n", bytes(5000)):
        stream = right + wrong + more
        errors = set()
        for pieces in (*cuttings(stream[:30], [len(right)]), [stream]):
            reader = ContentLength().reader()
            buffer = ReceiveBuffer()
            held = 0
            for piece in pieces:
                buffer.feed(piece)
                held += len(piece)
                if held > len(right):
                    break
                assert reader.decode(buffer) is NEED_DATA
                assert buffer.wanted == held + 1
                buffer.wanted = 0
            with pytest.raises(ProtocolError) as caught:
                reader.decode(buffer)
            assert type(caught.value) is ProtocolError
            errors.add(str(caught.value))
        line = right.rpartition(b"\n")[2]
        (error,) = errors
        assert error == (
            f"the peer sent {wrong!r} in a header, behind {line!r}; "
            f"expected is a name, a colon and a value on each line, in ASCII"
        )


def test_what_was_found_right_is_of_one_header_only() -> None:
    # What comes later is as long as what the reader has seen, and stands at the same place.
    first = b"Content-Length: 5"
    reader = ContentLength().reader()
    for later in (b"GET / HTTP/1.1 xx", bytes(17), b"Content-Length: 5"):
        buffer = ReceiveBuffer()
        buffer.feed(b"x" + first)
        buffer.start = 1
        assert reader.decode(buffer) is NEED_DATA
        buffer.feed(b"\r\n\r\nhello" + later)
        assert ContentLength().reader().decode(buffer) == b"hello"  # not by the reader itself
        other = ReceiveBuffer()
        other.feed(b"x" + later)
        other.start = 1
        assert other.find(b"\r\n\r\n") == -1  # as a reader has it that was there before
        for place in (buffer, other):
            if later == first:
                assert reader.decode(place) is NEED_DATA
            else:
                with pytest.raises(ProtocolError, match="in a header, behind"):
                    reader.decode(place)
    # With the memory of the search left over, which then is of what was consumed.
    buffer = ReceiveBuffer()
    buffer.feed(b"Content-Length: 5")
    assert reader.decode(buffer) is NEED_DATA
    buffer.start = len("Content-Length")
    with pytest.raises(ProtocolError, match="b':' in a header, behind b''"):
        reader.decode(buffer)


def test_header_in_small_pieces_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at = 0

    class Counting:
        def match(self, data: bytes) -> Any:
            nonlocal looked_at
            looked_at += len(data)
            return beginning.match(data)

    beginning = _content_length._BEGINNING
    monkeypatch.setattr(_content_length, "_BEGINNING", Counting())
    header = b"X-Name: value\r\n" * 1000 + b"Y: " + b"z" * 20_000 + b"\r\nContent-Length: 5\r\n\r\n"
    pieces = cut(header + b"hello", [5] * len(header))
    reader = ContentLength(max_header_size=50_000).reader()
    assert read_all(reader, pieces) == Outcome([b"hello"])
    # And a few bytes for each piece, which stand for all before it.
    assert looked_at < 4 * len(header)


def test_error_for_a_long_line_has_the_last_40_bytes_of_it() -> None:
    buffer = ReceiveBuffer()
    buffer.feed(b"x" * 4000 + b"y" * 39 + b"\r\n\r\n")
    with pytest.raises(ProtocolError, match=f"behind b'x{'y' * 39}'; expected"):
        ContentLength().reader().decode(buffer)


# -- limits


@pytest.mark.parametrize("more", [b"", b"X: y\r\n"])
def test_header_of_max_header_size_is_accepted_and_one_byte_more_is_not(more: bytes) -> None:
    for size, accepted in ((50, True), (51, False)):
        lines = b"Content-Length: 5\r\n" + more
        header = lines + b"Y: " + b"z" * (size - len(lines) - 7) + b"\r\n\r\n"
        assert len(header) == size
        for pieces in cuttings(header + b"hello", [20]):
            outcome = read_all(ContentLength(max_header_size=50).reader(), pieces)
            assert outcome == (
                Outcome([b"hello"]) if accepted else Outcome([], MessageTooLargeError)
            )


def test_header_that_cannot_end_in_time_is_refused_before_it_does() -> None:
    reader = ContentLength(max_header_size=50).reader()
    buffer = ReceiveBuffer()
    buffer.feed(b"." * 49)
    assert reader.decode(buffer) is NEED_DATA
    buffer.feed(b".")
    with pytest.raises(MessageTooLargeError) as caught:
        reader.decode(buffer)
    assert str(caught.value) == (
        "the peer sent a header of 51 bytes or more; max_header_size allows 50 bytes"
    )


def test_what_comes_first_is_told_of_the_limit_or_the_wrong_byte() -> None:
    codec = ContentLength(max_header_size=50)
    for place, error in ((48, ProtocolError), (49, ProtocolError), (50, MessageTooLargeError)):
        stream = b"X: " + b"y" * (place - 3) + b"\0" + b"z" * 50 + b"\r\n\r\n"
        for pieces in cuttings(stream, [30, 9, 9]):
            assert read_all(codec.reader(), pieces) == Outcome([], error)


@pytest.mark.parametrize("with_more", [b"", b"abcd", b"abcdefgh"])
@pytest.mark.parametrize("field", [b"Content-Length: 4\r\n", b"content-length:  4\r\n"])
def test_announced_message_over_max_size_is_refused_when_its_header_is_there(
    field: bytes, with_more: bytes
) -> None:
    stream = field + b"\r\n" + with_more
    buffer = ReceiveBuffer()
    buffer.feed(field.replace(b"4", b"3") + b"\r\nyes" + stream)
    reader = ContentLength(3).reader()
    assert reader.decode(buffer) == b"yes"
    for _ in range(2):
        with pytest.raises(MessageTooLargeError) as caught:
            reader.decode(buffer)
    assert str(caught.value) == "the peer announced a message of 4 bytes; max_size allows 3 bytes"
    assert buffer.take(len(stream)) == stream


def test_no_memory_is_taken_for_what_is_only_announced() -> None:
    reader = ContentLength(10**20).reader()
    buffer = ReceiveBuffer()
    buffer.feed(b"Content-Length: %d\r\n\r\nand so on" % (10**20 - 1))
    tracemalloc.start()
    try:
        assert reader.decode(buffer) is NEED_DATA
        assert tracemalloc.get_traced_memory()[1] < 50_000
    finally:
        tracemalloc.stop()
    assert buffer.wanted == 40 + 10**20 - 1


def test_limits_may_be_changed_between_two_messages() -> None:
    codec = ContentLength(1)
    reader, writer = codec.reader(), codec.writer()
    buffer = ReceiveBuffer()
    buffer.feed(b"Content-Length: 1\r\n\r\naContent-Length: 2\r\n\r\nbcContent-Length: 1\r\n\r\nd")
    assert reader.decode(buffer) == b"a"
    reader.max_size = writer.max_size = 2
    assert reader.decode(buffer) == b"bc"
    assert joined(writer.encode(b"bc")) == b"Content-Length: 2\r\n\r\nbc"
    reader.max_header_size = 20
    with pytest.raises(MessageTooLargeError, match="21 bytes; max_header_size allows 20 bytes"):
        reader.decode(buffer)
    reader.max_header_size = 21
    assert reader.decode(buffer) == b"d"


def test_max_header_size_lowered_while_a_header_is_coming() -> None:
    reader = ContentLength(max_header_size=10_000).reader()
    buffer = ReceiveBuffer()
    buffer.feed(b"X: ")
    buffer.feed(b"y" * 4997)
    assert reader.decode(buffer) is NEED_DATA
    buffer.feed(b"\0\0")  # beyond the new limit, so it is not looked at
    reader.max_header_size = 40
    with pytest.raises(MessageTooLargeError, match="5003 bytes or more; max_header_size allows 40"):
        reader.decode(buffer)


def test_zero_max_size_leaves_empty_messages() -> None:
    codec = ContentLength(0)
    stream = joined(codec.writer().encode(b"")) + b"Content-Length: 1\r\n\r\n"
    assert read_all(codec.reader(), [stream]) == Outcome([b""], MessageTooLargeError)


def test_message_over_max_size_is_not_sent() -> None:
    with pytest.raises(EncodeError, match="4 bytes; max_size allows 3 bytes"):
        ContentLength(3).writer().encode(b"abcd")


# -- reading


@pytest.mark.parametrize(
    ("held", "wanted"),
    [(b"", 1), (b"C", 2), (b"Content-Le", 11), (b"Content-Length: 5\r\n\r\nhi", 26)],
)
def test_what_is_not_whole_stays_for_another_reader(held: bytes, wanted: int) -> None:
    buffer = ReceiveBuffer()
    buffer.feed(held)
    assert ContentLength().reader().decode(buffer) is NEED_DATA
    assert buffer.wanted == wanted
    assert buffer.take(len(held)) == held


@pytest.mark.parametrize("size", range(1, len(b"Content-Length: 5\r\n\r\nhello")))
def test_message_that_is_cut_off_is_incomplete(size: int) -> None:
    stream = b"Content-Length: 5\r\n\r\nhello"[:size]
    assert read_all(ContentLength().reader(), [stream]) == Outcome([], IncompleteMessageError)


# -- what cannot be sent


@pytest.mark.parametrize("message", ["text", None, {"jsonrpc": "2.0"}])
def test_message_of_the_wrong_type(message: Any) -> None:
    with pytest.raises(EncodeError, match=f"^ContentLength sends .*{type(message).__name__}$"):
        ContentLength().writer().encode(message)


async def test_connection_is_usable_after_a_message_that_cannot_be_sent() -> None:
    left, right = connection_pair(ContentLength(4))
    async with left, right:
        for message in (b"12345", "text"):
            with pytest.raises(EncodeError):
                await left.send(message)  # type: ignore[arg-type]  # which is the mistake
        await left.send(b"good")
        assert await right.receive() == b"good"


# -- settings


@pytest.mark.parametrize(
    ("setting", "value", "error"),
    [
        ("max_size", -1, ValueError),
        ("max_size", None, TypeError),
        ("max_header_size", 39, ValueError),
        ("max_header_size", 1e6, TypeError),
    ],
)
def test_wrong_setting_is_named(setting: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=rf"^{setting} must be .*not .*$"):
        ContentLength(**{setting: value})


def test_settings_that_are_not_given() -> None:
    assert ContentLength() == ContentLength(1_048_576, max_header_size=4096)
    assert ContentLength() != ContentLength(max_header_size=100)
    assert hash(ContentLength()) == hash(ContentLength())
    with pytest.raises(TypeError, match="positional"):
        ContentLength(1, 100)  # type: ignore[call-arg]  # which is the mistake


def test_reader_and_writer_show_their_settings() -> None:
    codec = ContentLength(5, max_header_size=50)
    assert repr(codec.reader()) == "ContentLengthReader(max_size=5, max_header_size=50)"
    assert repr(codec.writer()) == "ContentLengthWriter(max_size=5)"
