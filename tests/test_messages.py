"""Messages on top of frames: functions, text, JSON and MessagePack, and what is none of these."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import pickle
import struct
import sys
import xml.etree.ElementTree
from collections.abc import Callable
from decimal import Decimal
from typing import Annotated, Any, Literal, TypeVar, Union

import attrs
import msgspec
import pytest
import trio
import trio.testing
from driving import Outcome, cut, cuts, joined, read_all
from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from trio_bytetalk import (
    NEED_DATA,
    Buffer,
    Codec,
    Connection,
    Delimited,
    EncodeError,
    FixedSize,
    IncompleteMessageError,
    InvalidMessageError,
    LengthPrefixed,
    Lines,
    MappedReader,
    MappedWriter,
    MessageTooLargeError,
    NeedData,
    ProtocolError,
    Reader,
    ReceiveBuffer,
    Server,
    Structs,
    VarintPrefixed,
    Writer,
    open_connection,
)
from trio_bytetalk.testing import connection_pair, open_memory_connection


class Order(msgspec.Struct, tag=True):
    id: int
    item: str
    prices: list[int] = []


class Cancel(msgspec.Struct, tag=True, frozen=True):
    id: int


@attrs.frozen
class Receipt:
    id: int
    total: float


ORDERS = [Order(1, "a teapot", [12]), Order(2, "line\nbreak\r\n\u2028", []), Order(-3, "é" * 300)]


def frame(payload: bytes) -> bytes:
    return joined(LengthPrefixed().writer().encode(payload))


def fed(data: bytes) -> ReceiveBuffer:
    buffer = ReceiveBuffer()
    buffer.feed(data)
    return buffer


def decode_one(codec: Codec[Any, Any], payload: bytes) -> Any:
    """What a reader makes of one payload in a length-prefixed frame."""
    return codec.reader().decode(fed(frame(payload)))


def encoded(codec: Codec[Any, Any], *messages: Any) -> bytes:
    writer = codec.writer()
    return b"".join(joined(writer.encode(message)) for message in messages)


def fail(error: Exception) -> Callable[[Any], Any]:
    def function(message: Any) -> Any:
        raise error

    return function


# -- what is sent is received, however it is cut

CODECS: list[tuple[Codec[Any, Any], list[Any]]] = [
    (LengthPrefixed().json(Order), ORDERS),
    (LengthPrefixed().json(Order | Cancel), [*ORDERS, Cancel(4)]),
    (LengthPrefixed().json(list[Order]), [ORDERS, [], ORDERS[:1]]),
    (LengthPrefixed().json(), [None, {"a": [1, 2.5, True, "\n"]}, [], ""]),
    (LengthPrefixed().json(Receipt), [Receipt(1, 0.5)]),
    (Lines().json(Order), ORDERS),
    (Lines().json(), [None, {"a": [1, 2.5, True, "\n"]}, [], ""]),
    (Lines(newline=b"\r\n").json(Order | None), [*ORDERS, None]),
    (Delimited(b"\n").json(Order), ORDERS),
    (LengthPrefixed().text().json(Order), ORDERS),
    (LengthPrefixed().msgpack(Order), ORDERS),
    (LengthPrefixed().msgpack(), [None, {"a": [1, 2.5, True, b"\0"]}, {1: 2}]),
    (LengthPrefixed(2).text(), ["", "é", "x" * 300]),
    (LengthPrefixed(2).text("utf-16"), ["", "é", "x" * 300]),
    (LengthPrefixed().compressed().json(Order), ORDERS),
    (Lines().map(decode=str.split, encode=" ".join), [[], ["a"], ["a", "b"]]),
]


@pytest.mark.parametrize(("codec", "messages"), CODECS)
@given(sizes=cuts())
def test_what_is_written_is_read_in_any_pieces(
    codec: Codec[Any, Any], messages: list[Any], sizes: list[int]
) -> None:
    pieces = cut(encoded(codec, *messages), sizes)
    assert read_all(codec.reader(), pieces) == Outcome(messages)
    assert read_all(codec.reader(), pieces, patient=True) == Outcome(messages)


@pytest.mark.parametrize(("codec", "messages"), CODECS)
async def test_what_is_sent_is_received(codec: Codec[Any, Any], messages: list[Any]) -> None:
    left, right = connection_pair(codec)
    async with left, right:
        for message in messages:
            await left.send(message)
        await left.send_eof()
        assert [message async for message in right] == messages


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        st.lists,
        max_leaves=20,
    )
)
def test_json_over_lines_is_one_line_whatever_is_in_it(message: Any) -> None:
    line = encoded(Lines().json(), message)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert read_all(Lines().json().reader(), [line]) == Outcome([message])


def test_json_that_was_written_elsewhere_cannot_smuggle_in_a_second_line() -> None:
    with pytest.raises(EncodeError, match="the line contains a newline"):
        encoded(Lines().json(), msgspec.Raw(b"[1,\n2]"))


NAN, INFINITY = math.nan, math.inf


@pytest.mark.parametrize(
    ("message", "number"),
    [
        (NAN, "nan"),
        (-INFINITY, "-inf"),
        ({"a": INFINITY}, "inf"),
        ({"a": None, "b": [{"c": (1.5, -NAN)}]}, "nan"),
        ([None, 2**70, NAN], "nan"),  # of which MessagePack has one as little as the other
        ({"a": msgspec.Raw(b"null"), "b": INFINITY}, "inf"),
        (Receipt(1, INFINITY), "inf"),
        ({1: {NAN}}, "nan"),
    ],
)
@pytest.mark.parametrize("codec", [LengthPrefixed().json(), Lines().json(), Lines().json(float)])
def test_numbers_that_json_has_not_are_refused_rather_than_sent_as_null(
    codec: Codec[Any, Any], message: Any, number: str
) -> None:
    with pytest.raises(EncodeError) as caught:
        encoded(codec, message)
    assert str(caught.value) == (
        f"a message of type {type(message).__name__} cannot be sent: JSON has no number {number}"
    )


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"null": None}, '{"null":null}'),
        ([None, 2**70, 1.5], "[null,1180591620717411303424,1.5]"),
        ([None, b"\xcb\x7f\xf8", {"a": (1.5,)}], '[null,"y3/4",{"a":[1.5]}]'),  # looks like NaN
        ([msgspec.Raw(b'{"a": null}'), 2**70], '[{"a": null},1180591620717411303424]'),
        ([Decimal("NaN"), None, 2**70], '["NaN",null,1180591620717411303424]'),
        ({NAN: None}, '{"nan":null}'),  # keys are text anyway
        ({-INFINITY: 2**70, "a": None}, '{"-inf":1180591620717411303424,"a":null}'),
    ],
)
@pytest.mark.parametrize("codec", [LengthPrefixed().json(), Lines().json()])
def test_null_that_is_meant_is_sent(codec: Codec[Any, Any], message: Any, text: str) -> None:
    assert text.encode() in encoded(codec, message)


@given(
    st.recursive(
        st.none() | st.integers(-(2**80), 2**80) | st.floats() | st.binary(max_size=9),
        lambda inner: st.lists(inner) | st.dictionaries(st.floats(), inner),
        max_leaves=20,
    )
)
def test_json_has_all_that_was_in_the_message_or_there_is_none(message: Any) -> None:
    def finite(value: Any) -> bool:
        if isinstance(value, float):
            return math.isfinite(value)
        if isinstance(value, dict):
            return all(map(finite, value.values()))
        return all(map(finite, value)) if isinstance(value, list) else True

    try:
        encoded(LengthPrefixed().json(), message)
    except EncodeError:
        assert not finite(message)
    else:
        assert finite(message)


def test_the_frames_are_plain_json_and_plain_messagepack() -> None:
    assert encoded(LengthPrefixed(1).json(), {"a": [1, "é"]}) == b'\x0e{"a":[1,"\xc3\xa9"]}'
    assert encoded(Lines().json(Receipt), Receipt(1, 0.5)) == b'{"id":1,"total":0.5}\n'
    assert encoded(LengthPrefixed(1).msgpack(), {"a": [1]}) == b"\x05\x81\xa1a\x91\x01"
    assert encoded(LengthPrefixed(1).text("latin-1"), "é") == b"\x01\xe9"


@given(st.binary(max_size=60))
@pytest.mark.parametrize(
    "codec",
    [
        LengthPrefixed().json(),
        LengthPrefixed().json(Order),
        LengthPrefixed().json(Order | Cancel),
        LengthPrefixed().msgpack(),
        LengthPrefixed().msgpack(Order),
        LengthPrefixed().msgpack(set),
        LengthPrefixed().text(),
        LengthPrefixed().text("utf-16"),
        LengthPrefixed().text().json(dict[int, float]),
    ],
)
def test_any_frame_is_a_message_or_an_invalid_one_and_is_gone(
    codec: Codec[Any, Any], payload: bytes
) -> None:
    buffer = fed(frame(payload) + b"next")
    with contextlib.suppress(InvalidMessageError):
        codec.reader().decode(buffer)
    assert buffer.take(len(buffer)) == b"next"


# -- messages that are not valid


@pytest.mark.parametrize(
    ("codec", "payload", "reason"),
    [
        (
            LengthPrefixed().json(Order),
            b'{"type":"Order","id":1,"item":"x","prices":[1,"2"]}',
            "Expected `int`, got `str` - at `$.prices[1]`",
        ),
        (
            LengthPrefixed().json(Order),
            b'{"type":"Order","id":1}',
            "Object missing required field `item`",
        ),
        (LengthPrefixed().json(Order), b"{", "truncated"),
        (LengthPrefixed().json(), b"[1,]", "(byte 3)"),
        (LengthPrefixed().json(), b"", "truncated"),
        (LengthPrefixed().json(), b"1 1", "(byte 3)"),
        (
            LengthPrefixed().msgpack(list[int]),
            b"\x92\x01\xc0",
            " - at `$[1]`",
        ),
        (LengthPrefixed().msgpack(), b"\xdd\xff\xff\xff\xff", "truncated"),
        (LengthPrefixed().msgpack(set), b"\x91\x80", "unhashable type: 'dict'"),
        (
            LengthPrefixed().text(),
            b"ab\xff",
            "'utf-8' codec can't decode byte 0xff in position 2: invalid start byte",
        ),
        (
            LengthPrefixed().map(decode=int),
            b"seven",
            "invalid literal for int() with base 10: b'seven'",
        ),
        (
            LengthPrefixed().map(decode=lambda frame: float(frame).__round__()),
            b"inf",
            "cannot convert float infinity to integer",
        ),
    ],
)
def test_message_that_is_not_valid_says_where_and_why(
    codec: Codec[Any, Any], payload: bytes, reason: str
) -> None:
    with pytest.raises(InvalidMessageError) as caught:
        decode_one(codec, payload)
    error = caught.value
    assert reason in error.reason
    assert error.frame == payload
    assert str(error) == (
        f"the peer sent a message that is not valid: {error.reason}; it is {payload!r}"
    )
    assert error.__cause__ is not None
    assert str(error.__cause__) == error.reason


@pytest.mark.parametrize("notation", ["json", "msgpack"])
def test_nesting_too_deep_for_python_is_the_peers_fault(notation: str) -> None:
    codec = getattr(LengthPrefixed(), notation)()
    payload = (b"[" if notation == "json" else b"\x91") * 100_000
    with pytest.raises(InvalidMessageError, match="maximum recursion depth exceeded"):
        decode_one(codec, payload)


def test_the_cause_is_there_whatever_its_words() -> None:
    """As those of pydantic's errors, whose details are what an answer is made of."""

    class DetailedError(ValueError):
        details = ("field", "missing")

    def convert(frame: bytes) -> object:
        raise DetailedError(f"1 validation error\n{frame!r}\n  field missing")

    with pytest.raises(InvalidMessageError) as caught:
        decode_one(LengthPrefixed().map(decode=convert), b"{}")
    assert isinstance(caught.value.__cause__, DetailedError)
    assert caught.value.reason == r"1 validation error\nb'{}'\n  field missing"


def test_error_shows_an_excerpt_of_a_long_frame_and_has_all_of_it() -> None:
    payload = b'"' + b"\x1b\n" * 5000
    with pytest.raises(InvalidMessageError) as caught:
        decode_one(LengthPrefixed().json(int), payload)
    assert caught.value.frame == payload
    assert str(caught.value) == (
        f"the peer sent a message that is not valid: {caught.value.reason}; "
        f"it is {payload[:60]!r} and so on, 10001 bytes in all"
    )
    with pytest.raises(InvalidMessageError, match=r"it is '«{60}' and so on, 70 characters in all"):
        Lines().json().reader().decode(fed(("«" * 70 + "\n").encode()))


def test_error_shows_a_frame_that_is_neither_bytes_nor_text_by_its_repr() -> None:
    def decode(words: list[str]) -> int:
        raise ValueError("too many words")

    codec = Lines().map(decode=str.split).map(decode=decode)
    with pytest.raises(InvalidMessageError) as caught:
        codec.reader().decode(fed(b"a b\n"))
    assert caught.value.frame == ["a", "b"]
    assert str(caught.value).endswith(": too many words; it is ['a', 'b']")
    with pytest.raises(InvalidMessageError) as caught:
        codec.reader().decode(fed(b"a " * 1000 + b"\n"))
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_error_shows_any_kind_of_bytes_as_bytes(kind: Callable[[bytes], Any]) -> None:
    codec = LengthPrefixed().map(decode=kind).map(decode=lambda message: int(bytes(message), 2))
    with pytest.raises(InvalidMessageError, match=r"; it is b'xyz'$"):
        decode_one(codec, b"xyz")


def test_reason_is_one_printable_line_though_a_peer_had_a_hand_in_it() -> None:
    def decode(payload: bytes) -> None:
        raise ValueError(payload.decode())

    codec = LengthPrefixed().map(decode=decode)
    with pytest.raises(InvalidMessageError) as caught:
        decode_one(codec, b"first\nWARNING: second")
    assert caught.value.reason == r"first\nWARNING: second"
    with pytest.raises(InvalidMessageError) as caught:
        decode_one(codec, b"begin" + b"x" * 100_000 + b"- at `$.end`")
    assert caught.value.reason.startswith("beginxxx")
    assert caught.value.reason.endswith("xxx- at `$.end`")
    assert len(caught.value.reason) == 305


def test_error_of_a_users_own_is_raised_as_it_is() -> None:
    class TooOldError(ProtocolError):
        pass

    def decode(payload: bytes) -> None:
        raise TooOldError("version 1")

    buffer = fed(frame(b"1") + b"next")
    with pytest.raises(TooOldError, match=r"^version 1$"):
        LengthPrefixed().map(decode=decode).reader().decode(buffer)
    assert buffer.take(len(buffer)) == b"next"


def test_bug_in_a_function_comes_out_and_the_frame_is_consumed_once() -> None:
    def decode(payload: bytes) -> Any:
        return {b"1": 1}[payload]

    buffer = fed(frame(b"1") + frame(b"2") + frame(b"1"))
    reader = LengthPrefixed().map(decode=decode).reader()
    assert reader.decode(buffer) == 1
    with pytest.raises(KeyError):
        reader.decode(buffer)
    assert reader.decode(buffer) == 1
    assert reader.decode(buffer) is NEED_DATA


def parse_timestamp(payload: bytes) -> Timestamp:
    return Timestamp.FromString(payload)


def timestamp_bytes(message: Timestamp) -> bytes:
    payload: bytes = message.SerializeToString()
    return payload


TIMESTAMPS = VarintPrefixed().map(
    decode=parse_timestamp, encode=timestamp_bytes, errors=(DecodeError, KeyError)
)


async def test_error_of_a_library_can_mean_that_a_message_is_not_valid() -> None:
    assert not issubclass(DecodeError, ValueError)
    left: Connection[Any, Timestamp]
    left, right = connection_pair(TIMESTAMPS)
    async with left, right:
        await left.send(Timestamp(seconds=5, nanos=6))
        left.writer, mapped = VarintPrefixed().writer(), left.writer
        await left.send(b"\x08")  # the tag of a number, and no number
        left.writer = mapped
        await left.send(Timestamp(seconds=7))
        assert await right.receive() == Timestamp(seconds=5, nanos=6)
        with pytest.raises(InvalidMessageError, match=r"Error parsing message.*; it is b'\\x08'$"):
            await right.receive()
        assert await right.receive() == Timestamp(seconds=7)


@given(st.binary(max_size=40))
def test_any_bytes_are_a_protobuf_message_or_an_invalid_one(payload: bytes) -> None:
    buffer = fed(joined(VarintPrefixed().writer().encode(payload)) + b"next")
    with contextlib.suppress(InvalidMessageError):
        TIMESTAMPS.reader().decode(buffer)
    assert buffer.take(len(buffer)) == b"next"


VERBS = {"GET": 1, "SET": 2}
NAMES = {1: "GET", 2: "SET"}


@pytest.mark.parametrize(
    ("codec", "line", "message", "reason"),
    [
        (Lines().map(decode=VERBS.__getitem__, errors=KeyError), "PUT", None, "KeyError('PUT')"),
        (Lines().map(encode=NAMES.__getitem__, errors=KeyError), None, 3, "KeyError(3)"),
        (
            Lines().map(decode=fail(IndexError()), errors=(KeyError, LookupError)),
            "",
            None,
            "IndexError()",
        ),
        (
            Lines().map(decode=xml.etree.ElementTree.XML, errors=SyntaxError),
            "<a",
            None,
            "unclosed token: line 1, column 0",
        ),
        (
            LengthPrefixed().map(encode=struct.Struct(">H").pack, errors=struct.error),
            None,
            2**16,
            "'H' format requires 0 <= number <= 65535",
        ),
    ],
)
def test_errors_that_mean_it_of_either_function(
    codec: Codec[Any, Any], line: str | None, message: Any, reason: str
) -> None:
    if line is not None:
        with pytest.raises(InvalidMessageError) as caught:
            codec.reader().decode(fed(line.encode() + b"\n"))
        assert caught.value.reason == reason
    else:
        with pytest.raises(EncodeError) as refused:
            codec.writer().encode(message)
        assert str(refused.value) == f"a message of type int cannot be sent: {reason}"


def test_errors_are_beside_those_that_mean_it_anyway() -> None:
    codec = Lines().map(decode=int, encode=float.hex, errors=KeyError)
    with pytest.raises(InvalidMessageError, match="invalid literal"):
        codec.reader().decode(fed(b"x\n"))
    with pytest.raises(EncodeError, match="doesn't apply to a 'str' object"):
        codec.writer().encode("x")  # type: ignore[arg-type]  # which is the mistake
    with pytest.raises(ZeroDivisionError):
        Lines().map(decode=fail(ZeroDivisionError()), errors=KeyError).reader().decode(fed(b"\n"))


@pytest.mark.parametrize(
    "wrong", [KeyError(), "KeyError", int, KeyboardInterrupt, None, [KeyError]]
)
@pytest.mark.parametrize("in_a_tuple", [True, False])
def test_errors_that_are_none(wrong: Any, in_a_tuple: bool) -> None:
    with pytest.raises(TypeError) as caught:
        Lines().map(decode=len, errors=(ValueError, wrong) if in_a_tuple else wrong)
    assert str(caught.value) == (
        f"errors must be an exception class or a tuple of these, not {wrong!r}"
    )


async def test_function_that_asks_for_more_data_is_a_bug_rather_than_a_wait_for_ever() -> None:
    def decode(payload: bytes) -> Any:
        return NEED_DATA if payload == b"part" else payload

    text = r"decode at .* returned NEED_DATA for a whole frame; it must return a message, or raise"
    # A TypeError of the function's own is something else than this one.
    for codec in (LastLine().map(decode=decode), LastLine().map(decode=decode, errors=TypeError)):
        near, far = trio.testing.memory_stream_pair()
        async with open_connection(near, codec=codec) as connection:
            await far.send_all(b"part\nwhole\npart")
            await far.aclose()
            with pytest.raises(TypeError, match=text):
                await connection.receive()
            assert await connection.receive() == b"whole"
            with pytest.raises(TypeError, match=text):
                await connection.receive()
            with pytest.raises(trio.EndOfChannel):
                await connection.receive()


def test_errors_of_the_inner_reader_are_its_own() -> None:
    reader = LengthPrefixed(max_size=3).json().reader()
    buffer = fed(frame(b"four"))
    for _ in range(2):
        with pytest.raises(MessageTooLargeError, match="4 bytes; max_size allows 3"):
            reader.decode(buffer)
    with pytest.raises(IncompleteMessageError, match="LengthPrefixedReader has 5 bytes"):
        reader.decode_eof(fed(b"\0\0\0\2x"))


# -- the end of the stream


class LastLineReader(Reader[bytes]):
    """Lines, of which the last need not end; a user's own."""

    def decode(self, buffer: ReceiveBuffer) -> bytes | Literal[NeedData.NEED_DATA]:
        size = buffer.find(b"\n")
        if size < 0:
            return NEED_DATA
        line = buffer.take(size)
        buffer.skip(1)
        return line or b""

    def decode_eof(self, buffer: ReceiveBuffer) -> bytes | Literal[NeedData.NEED_DATA]:
        return buffer.take(len(buffer)) or NEED_DATA


class LastLineWriter(Writer[bytes]):
    stateful = True

    def encode(self, message: bytes) -> Buffer:
        return message + b"\n"


class LastLine(Codec[bytes, bytes]):
    def reader(self) -> LastLineReader:
        return LastLineReader()

    def writer(self) -> LastLineWriter:
        return LastLineWriter()


def test_last_message_that_only_the_end_completes_is_converted_too() -> None:
    codec = LastLine().json(int)
    assert read_all(codec.reader(), [b"1\n2\n3"]) == Outcome([1, 2, 3])
    assert read_all(codec.reader(), [b"1\n2\n"]) == Outcome([1, 2])
    assert read_all(codec.reader(), [b"1\nx"]) == Outcome([1], InvalidMessageError)
    buffer = fed(b"x")
    reader = codec.reader()
    assert reader.decode(buffer) is NEED_DATA
    with pytest.raises(InvalidMessageError):
        reader.decode_eof(buffer)
    assert reader.decode_eof(buffer) is NEED_DATA


# -- messages that cannot be sent


def recursive() -> list[Any]:
    itself: list[Any] = []
    itself.append(itself)
    return itself


@pytest.mark.parametrize(
    ("codec", "message", "reason"),
    [
        (LengthPrefixed().json(), object(), "Encoding objects of type object is unsupported"),
        (LengthPrefixed().json(), {(1, 2): 3}, "Only dicts with str-like"),
        (LengthPrefixed().json(), "\ud800", r"can't encode character '\\ud800'"),
        (LengthPrefixed().json(), recursive(), "maximum recursion depth"),
        (Lines().json(), object(), "Encoding objects of type object is unsupported"),
        (LengthPrefixed().msgpack(), 2**70, "can't serialize ints"),
        (LengthPrefixed().text("ascii"), "é", "'ascii' codec can't encode character"),
        (LengthPrefixed().text(), b"bytes", "'str' objects doesn't apply to a 'bytes' object"),
        (LengthPrefixed().map(encode=fail(ValueError("no\nway"))), 1, r"no\\nway$"),
        (LengthPrefixed().map(encode=fail(ValueError("x" * 1000))), 1, r"x{150} \.\.\. x{150}$"),
    ],
)
async def test_message_that_cannot_be_sent(
    codec: Codec[Any, Any], message: Any, reason: str
) -> None:
    left, right = connection_pair(codec)
    async with left, right:
        with pytest.raises(EncodeError, match=reason) as caught:
            await left.send(message)
        assert str(caught.value).startswith(
            f"a message of type {type(message).__name__} cannot be sent: "
        )
        assert caught.value.__cause__ is not None
        left.use(LengthPrefixed())
        right.use(LengthPrefixed())
        await left.send(b"good")
        assert await right.receive() == b"good"


def test_refusal_of_msgspecs_own_kind_is_an_encode_error() -> None:
    writer = LengthPrefixed().json().writer()
    assert isinstance(writer, MappedWriter)
    assert issubclass(msgspec.EncodeError, writer.errors)


@pytest.mark.parametrize("error", [EncodeError("mine"), KeyError("a bug")])
def test_other_errors_of_an_encoding_function_come_out_as_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        encoded(LengthPrefixed().map(encode=fail(error)), 1)
    assert caught.value is error


def test_refusal_of_the_inner_writer_is_its_own() -> None:
    with pytest.raises(EncodeError, match=r"^the message has 5 bytes; max_size allows 4 bytes"):
        encoded(LengthPrefixed(max_size=4).json(), [1, 2])
    # Not taken for a refusal of the conversion, so as a bug it comes out as one.
    with pytest.raises(TypeError, match="concat"):
        encoded(LastLine().map(encode=str), 1)  # type: ignore[arg-type]  # which is the mistake


# -- functions for one direction


def test_direction_without_a_function_stays_as_it_is() -> None:
    received = Lines().map(decode=len)
    assert type(received.writer()) is type(Lines().writer())
    assert received.reader().decode(fed(b"abc\n")) == 3
    sent = Lines().map(encode=str)
    assert type(sent.reader()) is type(Lines().reader())
    assert encoded(sent, 3) == b"3\n"


def test_map_without_functions_or_with_something_else() -> None:
    with pytest.raises(TypeError, match=r"^map\(\) needs a function for decode, encode, or both$"):
        Lines().map()  # type: ignore[call-overload]  # which is the mistake
    with pytest.raises(TypeError, match=r"^decode must be a function of one message, not 'utf-8'$"):
        Lines().map(decode="utf-8")  # type: ignore[call-overload]  # which is the mistake


@pytest.mark.parametrize("encoding", ["raw_unicode_escape", "idna", "iso2022_jp", "iso2022_kr"])
def test_encoding_in_which_text_may_arrive_as_other_text(encoding: str) -> None:
    with pytest.raises(ValueError, match=r"^encoding must be one in which all ASCII text arrives"):
        LengthPrefixed().text(encoding)


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-16", "utf-32-le", "latin-1", "cp037", "gb18030", "utf-7"]
)
@given(text=st.text(st.characters(max_codepoint=127)))
def test_encodings_in_which_any_text_arrives_as_it_was(encoding: str, text: str) -> None:
    codec = LengthPrefixed().text(encoding)
    assert read_all(codec.reader(), [encoded(codec, text)]) == Outcome([text])


@pytest.mark.parametrize(
    ("encoding", "error"), [("no-such", ValueError), ("hex", ValueError), (8, TypeError)]
)
def test_encoding_that_is_none(encoding: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"^encoding must"):
        LengthPrefixed().text(encoding)


# -- bytes or text


MessageT = TypeVar("MessageT")


class ShoutingWriter(Writer[str]):
    def encode(self, message: str) -> bytes:
        return f"{message}!".encode()


class Shouting(Codec[str, str]):
    """A user's codec of text, which would send anything, were it asked to."""

    def reader(self) -> Reader[str]:
        return Delimited(b"!").text().reader()

    def writer(self) -> Writer[str]:
        return ShoutingWriter()


class Shouted(Shouting):
    """A subclass declares nothing anew."""


class Undeclared(Codec):  # type: ignore[type-arg]  # as someone without a type checker would
    def reader(self) -> Reader[Any]:
        return LastLineReader()

    def writer(self) -> Writer[Any]:
        return LastLineWriter()


class BytesLike(Undeclared, Codec[Buffer, bytes]):
    pass


class Either(Undeclared, Codec[Union[str, bytes], bytes]):  # noqa: UP007 - other than with |
    pass


class AnyLine(Shouting, Codec[Any, Any]):
    pass


class Generic(Undeclared, Codec[MessageT, MessageT]):
    pass


class Specific(Generic[bytes]):
    pass


@pytest.mark.parametrize(
    ("codec", "frame"),
    [
        (Shouting(), b"[1]!"),
        (Shouted(), b"[1]!"),
        (LastLine(), b"[1]\n"),
        (BytesLike(), b"[1]\n"),
        (Either(), b"[1]\n"),
        (Lines().map(decode=str.strip), b"[1]\n"),
        (Lines().map(decode=str.strip).map(decode=str.strip), b"[1]\n"),
        (LastLine().map(decode=bytes.decode), b"[1]\n"),
        # These refuse most messages, "{}" for example.
        (FixedSize(3).text(), b"[1]"),
        (Lines(max_size=3), b"[1]\n"),
        (Delimited(b"}").text(), b"[1]}"),
        (FixedSize(3), b"[1]"),
    ],
)
def test_json_is_text_where_the_inner_codecs_class_says_so(
    codec: Codec[Any, Any], frame: bytes
) -> None:
    assert encoded(codec.json(), [1]) == frame


@pytest.mark.parametrize(
    ("codec", "name"),
    [
        (Lines().map(encode=str.strip), "map(encode=...)"),
        (LastLine().map(encode=bytes.strip).map(decode=bytes.strip), "map(encode=...)"),
        (AnyLine(), "AnyLine"),
        (Undeclared(), "Undeclared"),
        (Specific(), "Specific"),
        (Structs("<I"), "Structs"),
        (LengthPrefixed().msgpack(bytes), "Typed"),
    ],
)
def test_codec_that_does_not_say_what_it_sends_must_be_told(
    codec: Codec[Any, Any], name: str
) -> None:
    with pytest.raises(TypeError) as caught:
        codec.json()
    assert str(caught.value) == (
        f"json() cannot see what {name} sends: give it text=True if that is str, text=False if it "
        "is bytes"
    )


def test_json_is_text_or_bytes_as_told() -> None:
    stripped = Lines().map(decode=str.strip, encode=str.strip)
    assert encoded(stripped.json(text=True), [1]) == b"[1]\n"
    assert encoded(stripped.json(list[int], text=True), [1]) == b"[1]\n"
    hidden = Lines().map(decode=bytes.fromhex, encode=bytes.hex)
    assert encoded(hidden.json(list[int], send=list[int], text=False), [1]) == b"5b315d\n"
    assert encoded(Specific().json(text=False), [1]) == b"[1]\n"
    assert encoded(LengthPrefixed(1).msgpack(bytes).json(text=False), 1) == b"\3\xc4\1" + b"1"
    assert Lines().json(text=True) == Lines().json() != Lines().json(text=False)
    with pytest.raises(TypeError, match=r"^text must be True or False, or None .* not 'utf-8'$"):
        Lines().json(text="utf-8")  # type: ignore[call-overload]  # which is the mistake


def test_nothing_of_the_users_is_called_while_the_codec_is_made() -> None:
    class Untouched(Codec[str, str]):
        def reader(self) -> Reader[str]:
            raise AssertionError

        writer = reader  # type: ignore[assignment]

    Untouched().map(decode=fail(AssertionError())).json()
    Untouched().map(encode=fail(AssertionError())).json(text=True)


def test_messagepack_is_never_text() -> None:
    with pytest.raises(EncodeError, match=r"^Lines sends str, not bytes$"):
        encoded(Lines().msgpack(), 1)  # type: ignore[misc]  # which is the mistake


def test_json_in_text_of_another_encoding() -> None:
    codec = Lines(encoding="latin-1").json()
    assert encoded(codec, "é") == b'"\xe9"\n'
    assert codec.reader().decode(fed(b'"\xe9"\n')) == "é"
    with pytest.raises(EncodeError, match="the line cannot be written in latin-1"):
        encoded(codec, "€")


# -- types


def test_type_that_msgspec_does_not_support_is_refused_at_once() -> None:
    with pytest.raises(TypeError, match="Type unions may not contain"):
        LengthPrefixed().json(Order | dict[str, int])
    with pytest.raises(TypeError, match="is not supported"):
        LengthPrefixed().msgpack(5)  # type: ignore[call-overload]  # which is the mistake


@pytest.mark.parametrize("method", ["json", "msgpack"])
def test_without_msgspec_the_error_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setitem(sys.modules, "msgspec", None)
    with pytest.raises(ModuleNotFoundError) as caught:
        getattr(LengthPrefixed(), method)(dict)
    assert str(caught.value) == (
        f"{method}() needs msgspec, which comes with the extra msgspec: "
        "pip install '.[msgspec]' in a checkout of trio_bytetalk"
    )
    assert caught.value.name == "msgspec"


def test_messages_of_another_type_than_the_one_received() -> None:
    codec = LengthPrefixed().json(Order, send=Receipt)
    assert read_all(codec.reader(), [frame(msgspec.json.encode(ORDERS[0]))]).messages == ORDERS[:1]
    assert encoded(codec, Receipt(1, 2.0)) == frame(b'{"id":1,"total":2.0}')


# -- settings


def strip(text: str) -> str:
    return text.strip()


PREFIXED = LengthPrefixed()
SAME: list[Callable[[], Codec[Any, Any]]] = [
    lambda: LengthPrefixed().json(Order),
    lambda: LengthPrefixed().json(list[Order], send=Receipt),
    lambda: LengthPrefixed().json(Order | Cancel),
    lambda: Lines().json(),
    lambda: LengthPrefixed().msgpack(dict[str, Order]),
    lambda: LengthPrefixed().text(),
    lambda: LengthPrefixed().text().map(decode=strip, encode=str.upper),
    lambda: LengthPrefixed().map(decode=len, errors=KeyError),
    lambda: LengthPrefixed().map(decode=len, errors=(KeyError, struct.error)),
    lambda: LengthPrefixed(2).compressed(level=9).json(Order),
]


@pytest.mark.parametrize("make", SAME)
def test_codecs_that_are_made_alike_are_equal(make: Callable[[], Codec[Any, Any]]) -> None:
    codec = make()
    assert codec == make()
    assert hash(codec) == hash(make())
    assert sum(codec == other() for other in SAME) == 1
    assert pickle.loads(pickle.dumps(codec)) == copy.copy(codec) == copy.deepcopy(codec) == codec
    message = ORDERS[0] if "Order'" in repr(codec) else None
    if message and "list" not in repr(codec):
        assert encoded(pickle.loads(pickle.dumps(codec)), message) == encoded(codec, message)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        codec.inner = PREFIXED  # type: ignore[attr-defined]


def test_codecs_that_differ_in_anything_are_not_equal() -> None:
    codec = LengthPrefixed().json(Order)
    others: list[Codec[Any, Any]] = [
        LengthPrefixed(2).json(Order),
        LengthPrefixed().json(Cancel),
        LengthPrefixed().json(Order, send=Cancel),
        LengthPrefixed().json(Cancel, send=Order),
        LengthPrefixed().msgpack(Order),
        LengthPrefixed().json(),
    ]
    assert codec not in others
    assert LengthPrefixed().map(decode=len) != LengthPrefixed().map(decode=len, encode=bytes)
    assert LengthPrefixed().map(decode=len) != LengthPrefixed().map(decode=len, errors=KeyError)
    assert LengthPrefixed().text() != LengthPrefixed().text("ascii")


def test_type_that_has_no_hash_is_no_hindrance() -> None:
    class Function:
        __hash__ = None  # type: ignore[assignment]

        def __call__(self, message: bytes) -> bytes:
            return message

    function = Function()
    annotated = Annotated[int, ["no hash"]]
    for codec, same in (
        (LengthPrefixed().json(annotated), LengthPrefixed().json(annotated)),
        (
            LengthPrefixed().map(decode=function, encode=function),
            LengthPrefixed().map(decode=function, encode=function),
        ),
    ):
        assert codec == same
        assert hash(codec) == hash(same)


def test_codec_shows_what_it_was_made_of() -> None:
    assert repr(LengthPrefixed(2).compressed().json(int, send=str)) == (
        f"Typed(inner=Compressed(inner={LengthPrefixed(2)!r}, method='zlib', level=6, "
        f"max_size=1048576), notation='json', receive=<class 'int'>, send=<class 'str'>, "
        f"is_text=False)"
    )


def test_max_size_of_the_inner_reader_and_writer_may_be_changed_between_two_messages() -> None:
    codec = LengthPrefixed(max_size=3).json()
    reader, writer = codec.reader(), codec.writer()
    assert isinstance(reader, MappedReader)
    assert isinstance(writer, MappedWriter)
    assert joined(writer.encode([1])) == frame(b"[1]")
    buffer = fed(frame(b"[1]") + frame(b"[12]"))
    assert reader.decode(buffer) == [1]
    with pytest.raises(MessageTooLargeError):
        reader.decode(buffer)
    reader.inner.max_size = writer.inner.max_size = 4  # type: ignore[attr-defined]
    assert reader.decode(buffer) == [12]
    assert joined(writer.encode([12])) == frame(b"[12]")
    with pytest.raises(AttributeError):
        reader.max_size = 5  # type: ignore[attr-defined]  # not taken for a setting of its own


# -- broadcasting


async def test_message_is_encoded_once_for_all_equal_codecs_and_by_each_stateful_writer() -> None:
    calls = []

    def encode(message: str) -> bytes:
        calls.append(message)
        return message.encode()

    for inner, expected in ((LengthPrefixed(), 1), (LastLine(), 3)):
        server: Server[str, bytes] = Server(codec=inner.map(encode=encode))
        assert server.codec.writer().stateful is (expected == 3)
        calls.clear()
        async with (
            open_memory_connection(server) as one,
            open_memory_connection(server) as two,
            open_memory_connection(server) as three,
        ):
            await trio.testing.wait_all_tasks_blocked()
            assert server.broadcast("all").queued == 3
            assert [await each.receive() for each in (one, two, three)] == [b"all"] * 3
        assert calls == ["all"] * expected


# -- answering a message that is not valid, and going on


async def send_raw(connection: Connection[Any, Any], *payloads: bytes) -> None:
    """Send what may be no message at all."""
    writer = connection.writer
    connection.writer = LengthPrefixed().writer()
    for payload in payloads:
        await connection.send(payload)
    connection.writer = writer


VALID = b'{"type":"Order","id":1,"item":"x"}'
PAYLOADS = [VALID, b"{}", b"nonsense", VALID, b'{"type":"Order","id":"1"}']


def answer_to(payload: bytes) -> str:
    try:
        return f"order {msgspec.json.decode(payload, type=Order).id}"
    except msgspec.DecodeError as error:
        return str(error)


ANSWERS = list(map(answer_to, PAYLOADS))


async def answer_all(connection: Connection[str, Order]) -> None:
    while True:
        try:
            async for order in connection:
                await connection.send(f"order {order.id}")
            return
        except InvalidMessageError as error:
            await connection.send(error.reason)


async def answer_one_by_one(connection: Connection[str, Order]) -> None:
    while True:
        try:
            order = await connection.receive()
        except InvalidMessageError as error:
            connection.send_nowait(error.reason)
        except trio.EndOfChannel:
            return
        else:
            connection.send_nowait(f"order {order.id}")


@pytest.mark.parametrize("handler", [answer_all, answer_one_by_one])
@pytest.mark.parametrize("together", [True, False])
async def test_handler_answers_what_is_not_valid_and_goes_on(
    handler: Any, together: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    server = Server(handler, codec=LengthPrefixed().json(Order, send=str))
    async with open_memory_connection(server) as connection:
        client: Connection[Order, str] = connection.use(LengthPrefixed().json(str, send=Order))
        if together:
            await send_raw(client, *PAYLOADS)
            assert [await client.receive() for _ in PAYLOADS] == ANSWERS
        else:
            for payload, answer in zip(PAYLOADS, ANSWERS, strict=True):
                await send_raw(client, payload)
                assert await client.receive() == answer
        await client.send(Order(8, "still here"))
        assert await client.receive() == "order 8"
    assert not caplog.records
    numbers = server.statistics()
    assert numbers.messages_received == 3
    assert numbers.messages_sent == 6


async def test_hooks_go_on_too_with_a_handler_that_receives_for_them() -> None:
    async def receive_all(connection: Connection[str, Order]) -> None:
        while True:
            try:
                async for _ in connection:
                    pass
                return
            except InvalidMessageError as error:
                await connection.send(error.reason)

    server = Server(receive_all, codec=LengthPrefixed().json(Order, send=str))

    @server.on_message
    async def confirm(connection: Connection[str, Order], order: Order) -> None:
        await connection.send(f"order {order.id}")

    async with open_memory_connection(server) as connection:
        client: Connection[Order, str] = connection.use(LengthPrefixed().json(str, send=Order))
        await send_raw(client, *PAYLOADS)
        assert [await client.receive() for _ in PAYLOADS] == ANSWERS


@pytest.mark.parametrize("with_hooks", [True, False])
async def test_message_that_is_not_valid_ends_the_connection_if_no_one_catches_it(
    with_hooks: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def count(connection: Connection[Any, Any]) -> None:
        async for _ in connection:
            pass

    ended = []
    server: Server[Any, Order] = Server(
        None if with_hooks else count, codec=LengthPrefixed().json(Order)
    )

    @server.on_disconnect
    async def note(connection: Connection[Any, Any]) -> None:
        ended.append(connection.close_reason)

    async with open_memory_connection(server) as connection:
        await send_raw(connection, VALID, b"{}\n", VALID)
        with pytest.raises(trio.EndOfChannel):
            await connection.receive()
    [reason] = ended
    assert isinstance(reason, InvalidMessageError)
    assert reason.frame == b"{}\n"
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert record.exc_info is None
    assert record.getMessage().endswith(r"it is b'{}\n'")
    assert server.statistics().messages_received == 1


async def test_bug_in_a_decoding_function_ends_one_connection_with_a_traceback_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def count(connection: Connection[Any, Any]) -> None:
        async for _ in connection:
            pass

    server = Server(count, codec=LengthPrefixed().map(decode={b"1": 1}.__getitem__))
    async with open_memory_connection(server) as connection:
        await connection.send(b"1")
        await connection.send(b"2")
        with pytest.raises(trio.EndOfChannel):
            await connection.receive()
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None
    assert record.exc_info[0] is KeyError


async def test_client_goes_on_after_a_bug_that_it_has_caught_itself() -> None:
    near, far = trio.testing.memory_stream_pair()
    async with open_connection(near, codec=Lines().map(decode={"1": 1}.__getitem__)) as connection:
        await far.send_all(b"1\n2\n1\n")
        assert await connection.receive() == 1
        with pytest.raises(KeyError):
            await connection.receive()
        assert await connection.receive() == 1
        await far.aclose()
        assert [message async for message in connection] == []


async def test_last_message_that_is_not_valid_is_followed_by_a_clean_end() -> None:
    near, far = trio.testing.memory_stream_pair()
    async with open_connection(near, codec=LastLine().json(int)) as connection:
        await far.send_all(b"1\nx")
        await far.aclose()
        assert await connection.receive() == 1
        with pytest.raises(InvalidMessageError):
            await connection.receive()
        with pytest.raises(trio.EndOfChannel):
            await connection.receive()


class TextOut(Codec[str, bytes]):
    """What it sends is text, and what it receives is not."""

    def reader(self) -> Reader[bytes]:
        return Delimited(b"\n").reader()

    def writer(self) -> Writer[str]:
        return Lines().writer()


def test_json_is_of_the_type_that_the_codec_sends_and_not_of_what_it_receives() -> None:
    encode = TextOut().json(int, text=None).writer().encode
    assert joined(encode(7)) == joined(Lines().writer().encode("7"))
