"""`check_codec`: it passes what is right, and tells of each mistake by its smallest case.

The codecs that come with the package are in a table, `BUILT_IN`: a line for each kind of use. The
mistakes are those of earlier codec libraries and of beginners, each a small class.
"""

from __future__ import annotations

import itertools
import json
import re
import struct
import textwrap
import zlib
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import attrs
import pytest

from trio_bytetalk import (
    COBS,
    NEED_DATA,
    SLIP,
    Chunks,
    Codec,
    ContentLength,
    Delimited,
    EncodeError,
    FixedSize,
    IncompleteMessageError,
    LengthPrefixed,
    Lines,
    MessageTooLargeError,
    Netstring,
    OctetCounted,
    ProtocolError,
    Reader,
    ReceiveBuffer,
    Structs,
    VarintPrefixed,
    Writer,
)
from trio_bytetalk.testing import check_codec

BYTES = [b"", b"a", b"hello", bytes(range(256))]
REFUSED: list[Any] = ["text", bytes(2**20 + 1)]
JSON: list[Any] = [None, 0, "", "x" * 200, [], {"a": [1.5, True, None]}]
TEXTS = ["", "a", "caf\xe9 \u20ac", "x" * 300]

# A codec, messages, and the other arguments of check_codec.
BUILT_IN: list[tuple[Codec[Any, Any], Sequence[Any], dict[str, Any]]] = [
    (LengthPrefixed(), BYTES, {"refused": [None, *REFUSED]}),
    (LengthPrefixed(1), [b"", b"a", bytes(255)], {"refused": [bytes(256)]}),
    (LengthPrefixed(2, "little"), BYTES, {"refused": [bytes(65_536)]}),
    (LengthPrefixed(8, max_size=300), BYTES, {"malformed": [b"\xff" * 8]}),
    (Delimited(b"\0"), [b"", b"a", b"x" * 300], {"refused": [b"a\0b", b"\0", "text"]}),
    (Delimited(b"--"), [b"", b"a", b"b-a"], {"refused": [b"a-", b"a--b"]}),
    (Delimited(b"\r\n", max_size=256), [b"", b"a\rb\n", b"x" * 256], {"refused": [b"x" * 257]}),
    (Lines(), TEXTS, {"refused": ["a\n", "a\r", b"bytes"], "malformed": [b"\xff\n"]}),
    (Lines(newline=b"\r\n", max_size=300), TEXTS, {"refused": ["x" * 301]}),
    (Lines(encoding="latin-1"), ["", "caf\xe9"], {"refused": ["\u20ac"]}),
    (Delimited((b"\r\n", b";")), [b"", b"a\rb\n"], {"refused": [b"a;b", b"\r\n"]}),
    (
        Delimited((b"\r\n", b";"), keep=True),
        [b";", b"a\r\n", b"hello;"],
        {
            "refused": [b"", b"hello", b"a;b;"],
            "size_of": lambda message: len(message.removesuffix(b";").removesuffix(b"\r\n")),
        },
    ),
    # The length field of others: PostgreSQL, Kafka, BGP, gRPC, Java, and whole frames.
    (
        LengthPrefixed(4, offset=1, adjustment=-4),
        [b"Q", b"Qselect", b"X" * 300],
        {"refused": [b""]},
    ),
    (LengthPrefixed(4, signed=True, max_size=300), BYTES, {"malformed": [b"\xff" * 4]}),
    (
        LengthPrefixed(2, offset=16, adjustment=-18, strip=18, header=b"\xff" * 16),
        BYTES,
        {"malformed": [bytes(18), b"\xff" * 16 + b"\0\1"]},
    ),
    (LengthPrefixed(4, offset=1), [b"\0", b"\1abc"], {"refused": [b""]}),
    (
        LengthPrefixed(1, offset=1, adjustment=2, strip=0),
        [b"a\0cc", b"a\3bcdcc"],
        {"refused": [b"", b"a\3bc", b"a\0ccc"]},
    ),
    (LengthPrefixed(1, signed=True), [b"", bytes(127)], {"refused": [bytes(128)]}),
    (VarintPrefixed(), BYTES, {"refused": REFUSED, "malformed": [b"\x80\x00", b"\xff" * 11]}),
    (Netstring(), BYTES, {"refused": REFUSED, "malformed": [b"1:ab", b"01:a,", b":,", b"-1:,"]}),
    (
        OctetCounted(),
        BYTES[1:],
        {"refused": [b"", *REFUSED], "malformed": [b" a", b"x a", b"-1 a"]},
    ),
    (FixedSize(3), [b"abc", bytes(3)], {"refused": [b"", b"ab", b"abcd", "abc"]}),
    (
        Structs(">Hd4s?"),
        [(1, 2.5, b"abcd", True), (0, float("nan"), bytes(4), False)],
        {"refused": [(70_000, 0.0, b"", False), (1,), (1, 2.5, b"abcde", True), None]},
    ),
    (
        ContentLength(),
        [*BYTES, b"\r\n\r\n"],
        {
            "refused": REFUSED,
            "malformed": [b"\r\n", b"X: y\r\n\r\n", b"Content-Length: -1\r\n\r\n"],
        },
    ),
    (
        COBS(),
        [*BYTES, b"\0\0", bytes(range(1, 255)), bytes(300)],
        {"refused": REFUSED, "malformed": [b"\3a\0", b"\2\0"]},
    ),
    (
        SLIP(),
        [*BYTES[1:], b"\xc0\xdb\xdc\xdd", b"\xc0\xdb" * 500],
        {"refused": [b"", *REFUSED], "malformed": [b"\xdbx\xc0"]},
    ),
    (SLIP(20), [b"a", b"\xc0" * 20], {"refused": [bytes(21)], "malformed": [b"x" * 43]}),
    (Chunks(), [b"abc", b"d", bytes(300)], {"framed": False, "refused": [b"", "text"]}),
    # Messages on top of frames.
    (LengthPrefixed(2).text(), TEXTS, {"refused": ["\udcff"], "malformed": [b"\0\1\xff"]}),
    (LengthPrefixed(2).json(), JSON, {"refused": [object], "malformed": [b"\0\1{"]}),
    (LengthPrefixed(2).msgpack(), JSON, {"refused": [object], "malformed": [b"\0\1\xc1"]}),
    (Lines().json(dict[str, int]), [{}, {"a": 1}], {"malformed": [b"[]\n"]}),
    (Lines().map(decode=str.split, encode=" ".join), [["a"], ["a", "b"]], {"refused": [[1]]}),
    (LengthPrefixed(2).compressed(), BYTES, {"malformed": [b"\0\1x"]}),
    (Delimited(b"\0").map(encode=bytes.fromhex), ["", "61"], {"received": [b"", b"a"]}),
    (LengthPrefixed().compressed("gzip", max_size=300).json(), JSON, {"refused": ["x" * 300]}),
]


@pytest.mark.parametrize(
    ("codec", "messages", "options"), BUILT_IN, ids=lambda each: repr(each)[:60]
)
def test_built_in_codec_is_right(
    codec: Codec[Any, Any], messages: Sequence[Any], options: dict[str, Any]
) -> None:
    check_codec(codec, messages, **options)


# -- a protocol to break: a length of two bytes, and so many bytes


@attrs.define(eq=False)
class GoodReader(Reader[bytes]):
    max_size: int = 1000

    def decode(self, buffer: ReceiveBuffer) -> Any:
        header = buffer.peek(2)
        if header is None:
            return NEED_DATA
        size = int.from_bytes(header, "big")
        if size > self.max_size:
            raise MessageTooLargeError(f"{size} bytes; max_size is {self.max_size}")
        message = buffer.take(size, skip=2)
        return NEED_DATA if message is None else message


@attrs.define(eq=False)
class GoodWriter(Writer[bytes]):
    max_size: int = 1000

    def encode(self, message: bytes) -> Any:
        if not isinstance(message, bytes | bytearray | memoryview):
            raise EncodeError("only bytes are sent")
        if len(message) > self.max_size:
            raise EncodeError(f"{len(message)} bytes; max_size is {self.max_size}")
        return len(message).to_bytes(2, "big") + bytes(message)


class Plain(Codec[Any, Any]):
    """A codec of any reader and writer."""

    def __init__(
        self,
        reader: Callable[[], Reader[Any]] = GoodReader,
        writer: Callable[[], Writer[Any]] = GoodWriter,
    ) -> None:
        self.make_reader = reader
        self.make_writer = writer

    def __repr__(self) -> str:
        return "Plain()"

    def reader(self) -> Reader[Any]:
        return self.make_reader()

    def writer(self) -> Writer[Any]:
        return self.make_writer()


@attrs.frozen
class Told:
    """What check_codec has told of a mistake, in parts."""

    title: str
    facts: dict[str, str]
    causes: str
    size: str

    def __getitem__(self, name: str) -> str:
        return self.facts[name]


def mistake(codec: Codec[Any, Any], messages: Sequence[Any] = BYTES, **options: Any) -> Told:
    """What is told of a codec that is not right."""
    with pytest.raises(AssertionError) as caught:
        check_codec(codec, messages, **options)
    told, _, causes = str(caught.value).partition("\n\nWhat usually causes this: ")
    causes, _, size = causes.partition("\nThis is the smallest case found: ")
    first, empty, *lines = told.splitlines()
    assert first.startswith(f"{codec!r}: ")
    assert not empty
    facts = dict(line.split(maxsplit=1) for line in lines)
    assert {"came", "expected"} <= set(facts)
    assert len({line.index(facts[line.split()[0]]) for line in lines}) == 1  # in one column
    return Told(
        first.removeprefix(f"{codec!r}: "), facts, " ".join(causes.split()), size.removesuffix(".")
    )


def test_the_protocol_is_right_before_it_is_broken() -> None:
    check_codec(Plain(), BYTES, refused=[bytes(1001), "text"], malformed=[b"\xff\xff"])


def test_an_explanation_as_it_is_read() -> None:
    class Hasty(GoodReader):
        def decode(self, buffer: ReceiveBuffer) -> Any:
            size = buffer.take(2)
            if size is None:
                return NEED_DATA
            message = buffer.take(int.from_bytes(size, "big"))
            return NEED_DATA if message is None else message

    with pytest.raises(AssertionError) as caught:
        check_codec(Plain(Hasty), [b"hello"])
    assert str(caught.value) == textwrap.dedent(
        """\
        Plain(): NEED_DATA, but bytes were taken from the buffer

          sent      b'h'
          arrived   b'\\x00\\x01' | b'h'
          came      NEED_DATA, and 2 bytes of 2 were taken
          expected  NEED_DATA, and none taken

        What usually causes this: a header, or the beginning of a payload, is taken (take, skip, or
        moving `start`) before the rest is there. Use peek() for the header, and take(size,
        skip=...) for both at once. To find a beginning, skip bytes together with the message.
        This is the smallest case found: 1 message, 3 bytes, 1 cut."""
    )


# -- readers that are broken


def test_bytes_consumed_while_more_is_needed() -> None:
    class Broken(GoodReader):
        def decode(self, buffer: ReceiveBuffer) -> Any:
            if len(buffer) < 2:
                return NEED_DATA
            size = int.from_bytes(buffer.take(2) or b"", "big")
            message = buffer.take(size)
            return NEED_DATA if message is None else message

    told = mistake(Plain(Broken))
    assert told.title == "NEED_DATA, but bytes were taken from the buffer"
    assert told["sent"] == "b'a'"
    assert told["arrived"] == r"b'\x00\x01' | b'a'"
    assert "take(size, skip=...)" in told.causes
    assert told.size == "1 message, 3 bytes, 1 cut"


def test_two_messages_decoded_at_once() -> None:
    class Broken(GoodReader):
        def decode(self, buffer: ReceiveBuffer) -> Any:
            message = super().decode(buffer)
            if message is not NEED_DATA and len(buffer):
                super().decode(buffer)
            return message

    told = mistake(Plain(Broken))
    assert told.title == "not exactly one message was taken"
    assert told["sent"] == "b'', b''"
    assert told["came"] == "b'' after 4 bytes, 4 taken"
    assert told["expected"] == "b'', 2 taken"
    assert "belongs to whoever reads next" in told.causes
    assert told.size == "2 messages, 4 bytes, 0 cuts"


def test_all_that_has_arrived_is_read_ahead() -> None:
    class Broken(Reader[bytes]):
        def __init__(self) -> None:
            self.own = ReceiveBuffer()
            self.reader = GoodReader()

        def decode(self, buffer: ReceiveBuffer) -> Any:
            self.own.feed(buffer.take(len(buffer)) or b"")
            return self.reader.decode(self.own)

    told = mistake(Plain(Broken))
    assert told.title == "NEED_DATA, but bytes were taken from the buffer"
    assert told["arrived"] == r"b'\x00' | b'\x00'"
    assert told.size == "1 message, 2 bytes, 1 cut"


def test_trailer_left_in_the_buffer() -> None:
    class Broken(Reader[bytes]):
        def decode(self, buffer: ReceiveBuffer) -> Any:
            size = buffer.find(b"\n")
            return NEED_DATA if size < 0 else buffer.take(size)

    told = mistake(Plain(Broken, Delimited(b"\n").writer), [b"a"], received=[b"a"])
    assert told.title == "not exactly one message was taken"
    assert told["sent"] == "b'a'"
    assert told["came"] == "b'a' after 2 bytes, 1 taken"
    assert "the delimiter is left behind" in told.causes
    told = mistake(Plain(Broken, Delimited(b"\n").writer), [b""])
    assert told.title == "a message that takes no bytes from the buffer"


def test_delimiter_that_a_boundary_cuts_is_missed() -> None:
    class Broken(Reader[bytes]):
        searched = 0

        def decode(self, buffer: ReceiveBuffer) -> Any:
            data = buffer.peek(len(buffer)) or b""
            size = data.find(b"\r\n", self.searched)
            if size < 0:
                self.searched = len(data)
                return NEED_DATA
            self.searched = 0
            return buffer.take(size + 2)[:-2]  # type: ignore[index]  # it is there

    told = mistake(Plain(Broken, Delimited(b"\r\n").writer))
    assert told.title == "the reader waits for more bytes than the message has"
    assert told["sent"] == "b''"
    assert told["arrived"] == r"b'\r' | b'\n'"
    assert told["expected"] == "b'', 2 taken"
    assert "a delimiter that a piece boundary cuts in two is missed" in told.causes
    assert told.size == "1 message, 2 bytes, 1 cut"


def test_only_the_front_of_the_buffer_is_looked_at() -> None:
    class Broken(GoodReader):
        def decode(self, buffer: ReceiveBuffer) -> Any:
            data = buffer.data[buffer.start :]
            size = int.from_bytes(data[:2], "big")
            if len(data) < 2 + size:
                return NEED_DATA
            buffer.start += 2 + size
            return data[2 : 2 + size]

    told = mistake(Plain(Broken))
    # With one byte of two there, it takes that for the length.
    assert told.title == "the reader waits for more bytes than the message has"
    assert told["sent"] == "b''"
    assert told["arrived"] == r"b'\x00' | b'\x00'"
    assert "looks only at `data`" in told.causes


def test_offset_kept_while_the_buffer_lets_go_of_decoded_bytes() -> None:
    class Broken(Reader[bytes]):
        at = 0

        def decode(self, buffer: ReceiveBuffer) -> Any:
            buffer._reach(len(buffer))  # all of it becomes the front
            if not self.at:
                self.at = buffer.start
            size = buffer.data.find(b"\n", self.at)
            if size < 0:
                return NEED_DATA
            message = buffer.data[self.at : size]
            self.at = buffer.start = size + 1
            return message

    told = mistake(Plain(Broken, Delimited(b"\n").writer), [b"abc", b"defg"])
    assert told.title in (
        "the reader waits for more bytes than the message has",
        "a message was not received as it was sent",
    )
    assert told["sent"].count(",") == 1
    assert "remembers an offset while the buffer moves on" in told.causes
    assert "2 messages" in told.size


def test_offset_kept_while_a_connection_lets_go_of_decoded_bytes() -> None:
    class Broken(Reader[bytes]):
        begin: int | None = None

        def decode(self, buffer: ReceiveBuffer) -> Any:
            if self.begin is None and len(buffer):
                self.begin = buffer.start
            size = buffer.find(b"\n")
            if size < 0:
                return NEED_DATA
            buffer.start, self.begin = self.begin or 0, None
            return (buffer.take(size + 1) or b"")[:-1]

    told = mistake(Plain(Broken, Delimited(b"\n").writer), [b"a", b"b"])
    assert told["sent"].count(",") == 1
    assert told["arrived"].count("|") == 1
    assert "remembers an offset while the buffer moves on" in told.causes


def test_more_wanted_than_the_message_has() -> None:
    class Broken(GoodReader):
        def decode(self, buffer: ReceiveBuffer) -> Any:
            if len(buffer) < 8:
                buffer.peek(8)
            return super().decode(buffer) if len(buffer) >= 2 else NEED_DATA

    told = mistake(Plain(Broken))
    assert told.title == "the reader waits for more bytes than the message has"
    assert told["sent"] == "b''"
    assert told["came"] == "NEED_DATA after 0 bytes, wanted=8"
    assert told["expected"] == "NEED_DATA, wanted at most 2"
    assert "wait for ever" in told.causes


def test_header_of_a_fixed_size_waited_for_where_a_shorter_message_is_whole() -> None:
    class Broken(GoodReader):
        def decode(self, buffer: ReceiveBuffer) -> Any:
            return NEED_DATA if buffer.peek(4) is None else super().decode(buffer)

    told = mistake(Plain(Broken), [b"abcdef"])
    assert told.title == "the reader waits for more bytes than the message has"
    assert told["came"] == "NEED_DATA after 0 bytes, wanted=4"
    assert "more bytes than the shortest message has" in told.causes


def test_message_returned_before_it_is_whole() -> None:
    class Broken(GoodReader):
        def decode(self, buffer: ReceiveBuffer) -> Any:
            header = buffer.peek(2)
            if header is None:
                return NEED_DATA
            buffer.skip(2)
            return buffer.take(min(int.from_bytes(header, "big"), len(buffer)))

    told = mistake(Plain(Broken), [b"abc"])
    assert told.title == "a message came before all of its bytes were there"
    assert told["arrived"] == r"b'\x00\x01' | b'a'"
    assert told["came"] == "b'' after 2 bytes, 2 taken"
    assert told["expected"] == "NEED_DATA"


def test_part_of_a_header_taken_for_a_faulty_one() -> None:
    class Broken(GoodReader):
        def decode(self, buffer: ReceiveBuffer) -> Any:
            if len(buffer) == 1:
                raise ProtocolError("half a length")
            return super().decode(buffer)

    told = mistake(Plain(Broken), [b"a"])
    assert told.title == "a message that was sent is refused by the reader"
    assert told["arrived"] == r"b'\x00' | b'\x00'"
    assert told["came"] == "ProtocolError('half a length') after 1 byte"
    assert told["expected"] == "NEED_DATA"
    assert "takes a part of a message" in told.causes


def test_message_refused_that_was_sent() -> None:
    class Broken(GoodReader):
        def decode(self, buffer: ReceiveBuffer) -> Any:
            if len(buffer) == 3:
                raise ProtocolError("too short")
            return super().decode(buffer)

    told = mistake(Plain(Broken), [b"a"])
    assert told["came"] == "ProtocolError('too short') after 3 bytes"
    assert told["expected"] == "b'a', 3 taken"


def test_buffer_tampered_with_in_a_way_that_only_others_would_see() -> None:
    class Broken(Reader[bytes]):
        def decode(self, buffer: ReceiveBuffer) -> Any:
            kind = buffer.peek(1)
            if kind:
                buffer.data = buffer.data.replace(kind, b"!", 1)
            return Delimited(b"\n").reader().decode(buffer)

    class Marked(Writer[bytes]):
        def encode(self, message: bytes) -> Any:
            return b"?\n"

    told = mistake(Plain(Broken, Marked), [b"!"], received=[b"!"])
    assert told.title == "NEED_DATA, but the buffer's bytes are others than before"
    assert told["came"] == "b'!' in the buffer"
    assert told["expected"] == "b'?' in the buffer"


def test_message_object_used_again_for_the_next_one() -> None:
    class Broken(Reader[list[int]]):
        def __init__(self) -> None:
            self.reader = GoodReader()
            self.message: list[int] = []

        def decode(self, buffer: ReceiveBuffer) -> Any:
            message = self.reader.decode(buffer)
            if message is NEED_DATA:
                return NEED_DATA
            self.message[:] = message
            return self.message

    told = mistake(Plain(Broken), [b"a", b"b"], received=[[97], [98]])
    assert told.title == "a message changed after it had been received"
    assert told["came"] == "[98]"
    assert told["expected"] == "[97]"
    assert told.size == "2 messages, 6 bytes, 0 cuts"


def test_decoding_again_with_nothing_new_is_something_else() -> None:
    class Broken(GoodReader):
        def __init__(self) -> None:
            super().__init__()
            self.looked: int | None = None

        def decode(self, buffer: ReceiveBuffer) -> Any:
            if self.looked == len(buffer):
                raise ProtocolError("nothing new")
            message = super().decode(buffer)
            self.looked = len(buffer) if message is NEED_DATA else None
            return message

    told = mistake(Plain(Broken))
    assert told.title == "a message that was sent is refused by the reader"
    assert told["came"].startswith("ProtocolError('nothing new') after ")
    assert told["expected"] == "NEED_DATA"


@pytest.mark.parametrize("where", ["class", "codec"])
def test_state_shared_between_readers(where: str) -> None:
    class Broken(GoodReader):
        parts: ClassVar[list[bytes]] = []

        def decode(self, buffer: ReceiveBuffer) -> Any:
            # One byte at a time, remembering what the length was.
            if not self.parts:
                header = buffer.peek(2)
                if header is None:
                    return NEED_DATA
                self.parts.append(header)
            message = buffer.take(int.from_bytes(self.parts[0], "big"), skip=2)
            if message is None:
                return NEED_DATA
            self.parts.clear()
            return message

    shared = Broken()
    told = mistake(Plain(Broken if where == "class" else lambda: shared))
    assert told.title == "two connections of one codec disturb each other"
    assert told["expected"].startswith("each receives what was sent to it")
    assert "class attribute" in told.causes


def test_endless_loop() -> None:
    class Broken(GoodReader):
        def decode(self, buffer: ReceiveBuffer) -> Any:
            while (message := super().decode(buffer)) is NEED_DATA:
                pass
            return message

    told = mistake(Plain(Broken))
    assert told.title == "the reader does not come to an end"
    assert "return NEED_DATA instead" in told.causes

    class AlsoBroken(GoodReader):
        def decode(self, buffer: ReceiveBuffer) -> Any:
            while not len(buffer):
                pass
            return super().decode(buffer)

    assert mistake(Plain(AlsoBroken)).title == "the reader does not come to an end"


# -- the end of the stream


def test_truncation_accepted_as_a_clean_end() -> None:
    class Broken(GoodReader):
        def decode_eof(self, buffer: ReceiveBuffer) -> Any:
            return NEED_DATA

    told = mistake(Plain(Broken))
    assert told.title == "decode_eof does not tell how the stream ended"
    assert told["sent"] == "b''"
    assert told["arrived"] == r"b'\x00'"
    assert told["came"] == "NEED_DATA with 1 byte left"
    assert told["expected"] == "IncompleteMessageError"


def test_rest_at_the_end_taken_for_a_message() -> None:
    class Broken(GoodReader):
        def decode_eof(self, buffer: ReceiveBuffer) -> Any:
            return buffer.take(len(buffer)) or NEED_DATA

    told = mistake(Plain(Broken))
    assert told.title == "decode_eof does not tell how the stream ended"
    assert told["came"] == r"b'\x00' with 1 byte left"
    assert "open_ended=True" in told.causes


def test_message_out_of_nothing_at_the_end() -> None:
    class Broken(GoodReader):
        def decode_eof(self, buffer: ReceiveBuffer) -> Any:
            return b""

    told = mistake(Plain(Broken), open_ended=True)
    assert told.title == "a message that takes no bytes from the buffer"
    assert told["came"] == "b''"
    assert "a message of nothing" in told.causes


def test_clean_end_refused() -> None:
    class Broken(GoodReader):
        def decode_eof(self, buffer: ReceiveBuffer) -> Any:
            raise IncompleteMessageError("unexpected end")

    told = mistake(Plain(Broken))
    assert told.title == "decode_eof does not tell how the stream ended"
    assert told["expected"] == "NEED_DATA, for a clean end"


@pytest.mark.parametrize("left", [0, 1])
def test_end_refused_with_another_error(left: int) -> None:
    class Broken(GoodReader):
        def decode_eof(self, buffer: ReceiveBuffer) -> Any:
            if len(buffer) >= left:
                raise ProtocolError("unexpected end")
            return NEED_DATA

    told = mistake(Plain(Broken), open_ended=not left)
    assert told.title == "decode_eof does not tell how the stream ended"
    assert told["came"].endswith(f"with {left} byte{'' if left else 's'} left")


class OpenReader(Reader[Any]):
    def decode(self, buffer: ReceiveBuffer) -> Any:
        size = buffer.find(b"\n")
        if size < 0:
            return NEED_DATA
        return self.parse((buffer.take(size + 1) or b"")[:-1])

    def decode_eof(self, buffer: ReceiveBuffer) -> Any:
        rest = buffer.take(len(buffer))
        return self.parse(rest) if rest else NEED_DATA

    def parse(self, line: bytes) -> Any:
        try:
            return json.loads(line)
        except ValueError as error:
            raise ProtocolError(str(error)) from None


class JsonWriter(Writer[Any]):
    def encode(self, message: Any) -> bytes:
        try:
            return json.dumps(message).encode() + b"\n"
        except (TypeError, ValueError) as error:
            raise EncodeError(str(error)) from None


def test_protocol_whose_last_message_need_not_end() -> None:
    messages = [None, 1, [], {"a": [True]}, "\u20ac", float("nan"), [float("nan")]]
    check_codec(Plain(OpenReader, JsonWriter), messages, open_ended=True, refused=[{1}])


# -- limits


def test_limit_off_by_one_in_the_reader() -> None:
    class Broken(GoodReader):
        def decode(self, buffer: ReceiveBuffer) -> Any:
            header = buffer.peek(2)
            if header is not None and int.from_bytes(header, "big") >= self.max_size:
                raise MessageTooLargeError("too large")
            return super().decode(buffer)

    told = mistake(Plain(Broken))
    assert told.title == "max_size is not exact"
    assert told["sent"] == "b''"
    assert told["came"] == "the reader refuses it with max_size=0"
    assert told["expected"] == "it passes from max_size=0 on, and not below"
    assert ">= for >" in told.causes


def test_limit_off_by_one_in_the_writer() -> None:
    class Broken(GoodWriter):
        def encode(self, message: bytes) -> Any:
            if isinstance(message, bytes) and len(message) > self.max_size + 1:
                raise EncodeError("too large")
            return len(message).to_bytes(2, "big") + message

    told = mistake(Plain(writer=Broken))
    assert told.title == "max_size is not exact"
    assert told["sent"] == "b'a'"
    assert told["came"] == "the writer lets it pass with max_size=0"
    assert told["expected"] == "it passes from max_size=1 on, and not below"


def test_limit_off_by_one_for_what_comes_in_pieces() -> None:
    class Broken(GoodReader):
        def decode(self, buffer: ReceiveBuffer) -> Any:
            header = buffer.peek(2)
            size = int.from_bytes(header or b"", "big")
            if header and size == self.max_size and len(buffer) < 2 + size:
                raise MessageTooLargeError("too large")
            return super().decode(buffer)

    told = mistake(Plain(Broken))
    assert told.title == "max_size is not exact"
    assert told["sent"] == "b'a'"
    assert told["came"] == "the reader refuses it with max_size=1"
    assert told["expected"] == "it passes from max_size=1 on, and not below"


def test_limit_that_counts_the_header() -> None:
    class BrokenReader(GoodReader):
        def decode(self, buffer: ReceiveBuffer) -> Any:
            header = buffer.peek(2)
            if header is not None and int.from_bytes(header, "big") + 2 > self.max_size:
                raise MessageTooLargeError("too large")
            return super().decode(buffer)

    class BrokenWriter(GoodWriter):
        def encode(self, message: bytes) -> Any:
            frame = super().encode(message)
            if len(frame) > self.max_size:
                raise EncodeError("too large")
            return frame

    codec = Plain(BrokenReader, BrokenWriter)
    told = mistake(codec)
    assert told.title == "max_size is not exact"
    assert "leaves the header" in told.causes
    assert "size_of=" in told.causes
    check_codec(codec, BYTES, size_of=lambda message: len(message) + 2)


def test_limit_of_reader_and_writer_differ_where_nothing_is_known_of_sizes() -> None:
    class NumberReader(GoodReader):
        def decode(self, buffer: ReceiveBuffer) -> Any:
            message = super().decode(buffer)
            return message if message is NEED_DATA else message.count(b"x")

    class NumberWriter(GoodWriter):
        def encode(self, message: Any) -> Any:
            if not isinstance(message, int):
                raise EncodeError("only numbers are sent")
            if message > self.max_size + self.slack:
                raise EncodeError("too large")
            return message.to_bytes(2, "big") + b"x" * message

        slack = 0

    class BrokenWriter(NumberWriter):
        slack = -1

    check_codec(Plain(NumberReader, NumberWriter), [0, 1, 30])
    told = mistake(Plain(NumberReader, BrokenWriter), [0, 1, 30])
    assert told.title == "max_size is not exact"
    assert told["sent"] == "0"


def test_limit_checked_after_the_payload_arrived() -> None:
    class Broken(GoodReader):
        def decode(self, buffer: ReceiveBuffer) -> Any:
            header = buffer.peek(2)
            if header is None:
                return NEED_DATA
            size = int.from_bytes(header, "big")
            message = buffer.peek(size, 2)
            if message is None:
                return NEED_DATA
            if size > self.max_size:
                raise MessageTooLargeError("too large")
            buffer.skip(2 + size)
            return message

    told = mistake(Plain(Broken))
    assert told.title == "a message over max_size is refused only after it has arrived"
    assert told["sent"] == "b'he'"
    assert told["came"] == "NEED_DATA with 3 of 4 bytes there and max_size=0"
    assert "fill the memory" in told.causes
    # Where no shorter message can be made of it, the one that is given will do.
    told = mistake(Plain(Broken), [b"", bytes(900)], received=[b"", bytes(900)])
    assert re.fullmatch(r"NEED_DATA with \d+ of 902 bytes there and max_size=\d+", told["came"])


def test_too_large_by_another_error() -> None:
    class Broken(GoodReader):
        def decode(self, buffer: ReceiveBuffer) -> Any:
            try:
                return super().decode(buffer)
            except MessageTooLargeError:
                raise ProtocolError("too large") from None

    told = mistake(Plain(Broken))
    assert told.title == "a message over max_size is refused with another error"
    assert told["expected"] == "MessageTooLargeError"


def test_too_large_waited_for() -> None:
    class Broken(GoodReader):
        def decode(self, buffer: ReceiveBuffer) -> Any:
            try:
                return super().decode(buffer)
            except MessageTooLargeError:
                return NEED_DATA

    told = mistake(Plain(Broken))
    assert told.title == "a message over max_size is refused with another error"
    assert told["came"].startswith("IncompleteMessageError(")
    assert "waited for" in told.causes


@attrs.define(eq=False)
class SkippingReader(GoodReader):
    """Consumes what is too large, if all of it is there, or only a part."""

    def skipped(self, size: int, there: int) -> int:
        return 2 + size if there >= 2 + size else 0

    def decode(self, buffer: ReceiveBuffer) -> Any:
        size = int.from_bytes(buffer.peek(2) or b"", "big")
        if size > self.max_size:
            buffer.skip(self.skipped(size, len(buffer)))
            raise MessageTooLargeError("too large")
        return super().decode(buffer)


def test_too_large_and_consumed_is_right_too() -> None:
    check_codec(Plain(SkippingReader), BYTES)


@pytest.mark.parametrize(
    "skipped", [lambda size, there: 2, lambda size, there: there], ids=["header", "all_there"]
)
def test_too_large_and_consumed_in_part(skipped: Callable[[int, int], int]) -> None:
    class Broken(SkippingReader):
        def skipped(self, size: int, there: int) -> int:
            return skipped(size, there)

    told = mistake(Plain(Broken))
    assert told.title == "a message over max_size is consumed in part"
    assert told["sent"] == "b'a', b'a'"
    assert re.search(r" behind \d bytes consumed$", told["came"])
    assert told["expected"].startswith("b'a', for max_size was raised to 1")
    assert "Consume the whole message, or nothing" in told.causes


def test_varint_without_end() -> None:
    @attrs.define(eq=False)
    class Broken(Reader[bytes]):
        max_size: int = 1000

        def decode(self, buffer: ReceiveBuffer) -> Any:
            size = 0
            for i in range(len(buffer)):
                byte = (buffer.peek(1, i) or b"")[0]
                size |= (byte & 0x7F) << min(7 * i, 63)
                if size > self.max_size:
                    raise MessageTooLargeError("too large")
                if byte < 0x80:
                    message = buffer.take(size, skip=i + 1)
                    return NEED_DATA if message is None else message
            return NEED_DATA

    told = mistake(Plain(Broken, VarintPrefixed(1000).writer))
    assert told.title == "bytes without end are waited for"
    assert told["arrived"].endswith("(100000 bytes)")
    assert told["came"] == "NEED_DATA with max_size=300"
    assert "nothing limits the header" in told.causes


@pytest.mark.parametrize("skipped", [b" ", b"0"])
def test_bytes_skipped_in_front_of_a_message_without_end(skipped: bytes) -> None:
    class Broken(GoodReader):
        def decode(self, buffer: ReceiveBuffer) -> Any:
            front = 0
            while buffer.peek(1, front) == skipped:
                front += 1
            header = buffer.peek(2, front)
            size = int.from_bytes(header or b"", "big")
            if size > self.max_size:
                raise MessageTooLargeError("too large")
            message = buffer.take(size, skip=2 + front) if header else None
            return NEED_DATA if message is None else message

    assert mistake(Plain(Broken)).title == "bytes without end are waited for"


def test_limit_remembered_from_the_beginning() -> None:
    @attrs.define(eq=False)
    class Broken(GoodReader):
        first: int | None = None

        def decode(self, buffer: ReceiveBuffer) -> Any:
            if self.first is None:
                self.first = self.max_size
            now, self.max_size = self.max_size, self.first
            try:
                return super().decode(buffer)
            finally:
                self.max_size = now

    told = mistake(Plain(Broken))
    assert told.title == "max_size cannot be changed between two messages"
    assert told["came"] == "the second is refused"
    assert told["expected"].endswith("after max_size was raised behind the first")

    class OnlyLowered(Broken):
        def decode(self, buffer: ReceiveBuffer) -> Any:
            if self.first is not None:
                self.first = max(self.first, self.max_size)
            return super().decode(buffer)

    told = mistake(Plain(OnlyLowered))
    assert told["came"] == "the second passes"
    assert told["expected"].endswith("after max_size was lowered behind the first")


@attrs.frozen
class Limited(Codec[bytes, bytes]):
    """A codec with a limit of its own, in several states of repair."""

    max_size: int = 1000
    reader_type: Any = GoodReader
    writer_type: Any = GoodWriter
    handed_on: bool = True

    def reader(self) -> Reader[bytes]:
        reader: Reader[bytes] = (
            self.reader_type(self.max_size) if self.handed_on else self.reader_type()
        )
        return reader

    def writer(self) -> Writer[bytes]:
        writer: Writer[bytes] = self.writer_type(self.max_size)
        return writer


def test_limit_of_the_codec_reaches_its_readers_and_writers() -> None:
    check_codec(Limited(300), BYTES)
    told = mistake(Limited(300, handed_on=False))
    assert told.title == "the max_size of the codec does not reach its readers and writers"
    assert told["came"] == "GoodReader has max_size=1000"
    assert told["expected"] == "max_size=300"


def test_limit_that_cannot_be_changed_is_checked_by_way_of_the_codec() -> None:
    @attrs.frozen(eq=False)
    class Fixed(Reader[bytes]):
        max_size: int

        def decode(self, buffer: ReceiveBuffer) -> Any:
            return GoodReader(self.max_size).decode(buffer)

    @attrs.frozen(eq=False)
    class Broken(Reader[bytes]):
        max_size: int

        def decode(self, buffer: ReceiveBuffer) -> Any:
            return GoodReader(self.max_size + 1).decode(buffer)

    check_codec(Limited(reader_type=Fixed), BYTES)
    told = mistake(Limited(reader_type=Broken))
    assert told.title == "max_size is not exact"
    assert told["sent"] == "b'a'"

    @attrs.define(eq=False)
    class Hidden(Reader[bytes]):
        _limit: int

        def decode(self, buffer: ReceiveBuffer) -> Any:
            return GoodReader(self._limit).decode(buffer)

    @attrs.define(eq=False)
    class HiddenToo(Hidden):
        def decode(self, buffer: ReceiveBuffer) -> Any:
            return GoodReader(self._limit - 1).decode(buffer)

    check_codec(Limited(reader_type=Hidden), BYTES)
    assert mistake(Limited(reader_type=HiddenToo)).title == "max_size is not exact"

    class PlainLimited(Plain):  # which cannot be made anew with another limit
        max_size = 300

    check_codec(PlainLimited(lambda: Fixed(300), lambda: GoodWriter(300)), BYTES)


def test_limit_shared_by_all_readers() -> None:
    class Shared(GoodReader):
        limit: ClassVar[list[int]] = [1000]

        @property
        def max_size(self) -> int:
            return self.limit[0]

        @max_size.setter
        def max_size(self, value: int) -> None:
            self.limit[0] = value

    told = mistake(Plain(lambda: object.__new__(Shared)))
    assert told.title == "two connections of one codec disturb each other"
    assert told["came"] == "max_size=1001 in another Shared"


def test_no_limit_is_not_an_integer() -> None:
    class UnlimitedReader(GoodReader):
        def decode(self, buffer: ReceiveBuffer) -> Any:
            return GoodReader(2**20).decode(buffer)

    class UnlimitedWriter(GoodWriter):
        def encode(self, message: bytes) -> Any:
            return GoodWriter(65_535).encode(message)

    codec = Plain(lambda: UnlimitedReader(None), lambda: UnlimitedWriter(None))  # type: ignore[arg-type]
    check_codec(codec, BYTES)


# -- any bytes


def test_length_that_is_no_number_raises_what_is_no_protocol_error() -> None:
    class Broken(Reader[bytes]):
        def decode(self, buffer: ReceiveBuffer) -> Any:
            digits = buffer.find(b":")
            if digits < 0:
                return NEED_DATA
            size = int(buffer.peek(digits) or b"")
            message = buffer.take(size, skip=digits + 1)
            return NEED_DATA if message is None else message

    class Netstrings(Writer[bytes]):
        def encode(self, message: bytes) -> bytes:
            if not isinstance(message, bytes):
                raise EncodeError("only bytes are sent")
            return b"%d:%b" % (len(message), message)

    told = mistake(Plain(Broken, Netstrings))
    assert told.title == "the reader raised what is no ProtocolError"
    assert told["arrived"] == "b':'"
    assert told["came"].startswith("decode raised ValueError")
    assert "UnicodeDecodeError" in told.causes
    assert told.size == "1 byte, 0 cuts"


@pytest.mark.parametrize(
    ("error", "parse"),
    [
        ("UnicodeDecodeError", lambda message: message.decode()),
        ("error", lambda message: struct.unpack("!H", message)),
        ("IndexError", lambda message: message[1]),
    ],
)
def test_errors_of_pythons_own_on_garbage(error: str, parse: Callable[[bytes], Any]) -> None:
    class Broken(GoodReader):
        def decode(self, buffer: ReceiveBuffer) -> Any:
            message = super().decode(buffer)
            return message if message is NEED_DATA else parse(message)

    told = mistake(Plain(Broken), [b"ab"], received=[parse(b"ab")])
    assert told.title == "the reader raised what is no ProtocolError"
    assert told["came"].startswith(f"decode raised {error}(")
    assert len(told["arrived"]) < len(repr(b"\x00\x01\x00" * 4))


def test_error_differs_by_cutting() -> None:
    class Broken(GoodReader):
        def decode(self, buffer: ReceiveBuffer) -> Any:
            header = buffer.peek(2)
            if header is not None and len(buffer) == 2 and header == b"\xff\xff":
                raise ProtocolError("a reserved length")
            return super().decode(buffer)

    told = mistake(Plain(Broken))
    assert told.title == "bytes that are no messages mean something else when they are cut"
    assert told["arrived"] == r"b'\xff\xff' | b'\xff'"
    assert told["came"] == "ProtocolError"
    assert told["expected"] == "MessageTooLargeError, as in one piece"
    assert told.size == "3 bytes, 1 cut"


def test_error_that_does_not_stay() -> None:
    class Broken(GoodReader):
        faults = 0

        def __init__(self) -> None:
            self.max_size = 1000

        def decode(self, buffer: ReceiveBuffer) -> Any:
            header = buffer.peek(2)
            if header and header[0] == 0xFF:
                self.faults += 1
                if self.faults == 1:
                    raise ProtocolError("a reserved length")
            return super().decode(buffer)

    class Dynamic(Broken):
        __slots__ = ("faults",)

    told = mistake(Plain(lambda: type("Broken", (Broken,), {})()))
    assert told.title == "an error with nothing consumed is another one the next time"
    assert told["arrived"] == r"b'\xff\xff'"
    assert told["expected"] == "the same error twice, or the faulty bytes consumed"


def test_bytes_skipped_in_search_of_a_message() -> None:
    class Broken(GoodReader):
        def decode(self, buffer: ReceiveBuffer) -> Any:
            while buffer.peek(1) == b"\xff":
                buffer.skip(1)
            return super().decode(buffer)

    told = mistake(Plain(Broken))
    assert told.title == "NEED_DATA, but bytes were taken from the buffer"
    assert told["arrived"] == r"b'\xff'"
    assert "skip bytes together with the message" in told.causes


def test_message_that_takes_nothing() -> None:
    class Broken(GoodReader):
        def decode(self, buffer: ReceiveBuffer) -> Any:
            return b"" if buffer.peek(1) == b"\xff" else super().decode(buffer)

    told = mistake(Plain(Broken))
    assert told.title == "a message that takes no bytes from the buffer"
    assert "again and again" in told.causes


def test_malformed_bytes_are_refused() -> None:
    told = mistake(Plain(), malformed=[b"\x00\x01a", b"\xff"])
    assert told.title == "malformed bytes are not refused"
    assert told["arrived"] == r"b'\x00\x01a'"
    assert told["came"] == "b'a'"
    assert mistake(Plain(), malformed=[b"\x00\x05a"])["came"] == "IncompleteMessageError"


def test_long_bytes_that_cannot_be_made_shorter() -> None:
    class Broken(GoodReader):
        def decode(self, buffer: ReceiveBuffer) -> Any:
            if buffer.peek(150) == b"\xff" * 150:
                raise IndexError
            return super().decode(buffer) if len(buffer) < 150 else NEED_DATA

    told = mistake(Plain(Broken), [b"a"], received=[b"a"], malformed=[b"\xff" * 150])
    assert told.title == "the reader raised what is no ProtocolError"
    assert told["arrived"].endswith("(150 bytes)")


# -- writers that are broken


def test_length_truncated_to_its_field() -> None:
    class BrokenReader(Reader[bytes]):
        def decode(self, buffer: ReceiveBuffer) -> Any:
            return LengthPrefixed(1).reader().decode(buffer)

    class Broken(Writer[bytes]):
        def encode(self, message: bytes) -> bytes:
            return bytes([len(message) & 0xFF]) + message

    told = mistake(Plain(BrokenReader, Broken), [b"abc"])
    assert told.title == "a message was not received as it was sent"
    assert told["sent"].endswith("(256 bytes)")
    assert told["came"] == "b'' after 257 bytes, 1 taken"
    assert told["expected"].endswith("(256 bytes), 257 taken")
    assert "the length is truncated to its field" in told.causes


def test_length_over_its_field_raises_what_is_no_encode_error() -> None:
    class Broken(Writer[bytes]):
        def encode(self, message: bytes) -> bytes:
            return struct.pack("B", len(message)) + message

    told = mistake(Plain(LengthPrefixed(1).reader, Broken), [b"abc"])
    assert told.title == "the writer raised what is no EncodeError"
    assert told["sent"].endswith("(256 bytes)")
    assert "struct.error" in told.causes


def test_delimiter_sent_within_a_message() -> None:
    class Broken(Writer[bytes]):
        def encode(self, message: bytes) -> bytes:
            return message + b"\n"

    codec = Plain(Delimited(b"\n").reader, Broken)
    told = mistake(codec, [b"ok", b"\n"])
    assert told.title == "a message was not received as it was sent"
    assert told["sent"] == r"b'\n'"
    assert told["came"] == "b'' after 2 bytes, 1 taken"
    assert "as a delimiter" in told.causes
    told = mistake(codec, [b"ok"], refused=[b"a\nb"])
    assert told.title == "a message that must be refused was sent"
    assert told["sent"] == "b''"
    assert told["refused"] == r"b'a\nb'"
    assert told["came"] == r"the frame b'a\nb\n'"
    assert "a delimiter within the message" in told.causes


@pytest.mark.parametrize("delimiter", ["\n", "\r\n", "--"])
@pytest.mark.parametrize("text", [False, True])
def test_delimiter_sent_within_a_message_that_was_not_given(text: bool, delimiter: str) -> None:
    end = delimiter.encode()

    class BrokenWriter(Writer[Any]):
        def encode(self, message: Any) -> bytes:
            if not isinstance(message, str if text else bytes):
                raise EncodeError("another type")
            return (message if isinstance(message, bytes) else str(message).encode()) + end

    class BrokenReader(Reader[Any]):
        def decode(self, buffer: ReceiveBuffer) -> Any:
            message = Delimited(end).reader().decode(buffer)
            return message.decode("latin-1") if text and message is not NEED_DATA else message

    messages: list[Any] = ["", "a", "hello" * 50] if text else [b"", b"a", b"hello" * 50]
    told = mistake(Plain(BrokenReader, BrokenWriter), messages)
    assert told.title == "a message was not received as it was sent"
    assert repr(delimiter[-1])[1:-1] in told["sent"]
    assert "as a delimiter" in told.causes


def test_part_of_the_delimiter_at_the_end_of_a_message() -> None:
    class Broken(Writer[bytes]):
        def encode(self, message: bytes) -> bytes:
            if not isinstance(message, bytes) or b"--" in message:
                raise EncodeError("only bytes, and no delimiter in them")
            return message + b"--"

    told = mistake(Plain(Delimited(b"--").reader, Broken), [b"", b"a"])
    assert told.title == "a message was not received as it was sent"
    assert told["sent"] == "b'-'"


@attrs.define(eq=False)
class Numbered(GoodWriter):
    """Puts a number, that of the message, before each frame."""

    number: int = 0
    stateful = True

    def encode(self, message: Any) -> Any:
        frame = super().encode(message)
        self.number += 1
        return bytes([self.number % 256]) + frame


@attrs.define(eq=False)
class NumberedReader(GoodReader):
    number: int = 0

    def decode(self, buffer: ReceiveBuffer) -> Any:
        header = buffer.peek(3)
        if header is None:
            return NEED_DATA
        if header[0] != (self.number + 1) % 256:
            raise ProtocolError(f"message {header[0]} after {self.number}")
        size = int.from_bytes(header[1:], "big")
        if size > self.max_size:
            raise MessageTooLargeError("too large")
        message = buffer.take(size, skip=3)
        if message is None:
            return NEED_DATA
        self.number += 1
        return message


def test_protocol_with_a_state_is_right() -> None:
    check_codec(Plain(NumberedReader, Numbered), BYTES, refused=[bytes(1001)])


def test_writer_broken_by_what_it_refused() -> None:
    class Broken(Numbered):
        def encode(self, message: Any) -> Any:
            self.number += 1
            return bytes([self.number % 256]) + GoodWriter.encode(self, message)

    told = mistake(Plain(NumberedReader, Broken), refused=[bytes(1001)])
    assert told.title == "the writer is not usable any more after a message that it refused"
    assert told["sent"] == "b''"
    assert told["refused"].endswith("(1001 bytes)")
    assert "Check first, change last" in told.causes
    # An object that no codec can send finds it, where nothing is said to be refused.
    assert mistake(Plain(NumberedReader, Broken)).title == told.title


def test_writer_broken_for_good_by_what_it_refused() -> None:
    class Broken(Numbered):
        def encode(self, message: Any) -> Any:
            if self.number < 0:
                raise EncodeError("broken")
            number, self.number = self.number, -1
            frame = GoodWriter.encode(self, message)
            self.number = number + 1
            return bytes([self.number % 256]) + frame

    told = mistake(Plain(NumberedReader, Broken))
    assert told.title == "the writer is not usable any more after a message that it refused"
    assert told["came"] == "broken"


def test_state_that_is_not_declared() -> None:
    class Broken(Numbered):
        stateful = False

    told = mistake(Plain(NumberedReader, Broken))
    assert told.title == "frames of the same message are not the same"
    assert told["came"] == r"b'\x02\x00\x00' the second time"
    assert told["expected"] == r"b'\x01\x00\x00'"
    assert "stateful = True" in told.causes


def test_writers_that_share_a_counter() -> None:
    numbers = itertools.count(1)

    class Broken(GoodWriter):
        stateful = True

        def encode(self, message: Any) -> Any:
            frame = super().encode(message)
            return bytes([next(numbers) % 256]) + frame

    told = mistake(Plain(NumberedReader, Broken))
    assert "sent" in told.facts

    class Salted(GoodWriter):
        def __init__(self) -> None:
            super().__init__()
            self.salt = next(numbers)

        def encode(self, message: Any) -> Any:
            return bytes([self.salt]) + super().encode(message)

        __slots__ = ("salt",)

    told = mistake(Plain(NumberedReader, Salted))
    assert told.title == "frames of the same message are not the same"
    assert told["came"].endswith("from another writer of the codec")


def test_equal_codecs_that_frame_differently() -> None:
    ids = itertools.count()

    @attrs.frozen
    class Broken(Codec[bytes, bytes]):
        id: int = attrs.field(init=False, eq=False, factory=lambda: next(ids))

        def reader(self) -> Reader[bytes]:
            return Delimited(bytes([self.id, 10])).reader()

        def writer(self) -> Writer[bytes]:
            return Delimited(bytes([self.id, 10])).writer()

    told = mistake(Broken())
    assert told.title == "frames of the same message are not the same"
    assert told["sent"] == "b''"
    assert told["came"] == r"b'\x01\n' from an equal codec"
    assert told["expected"] == r"b'\x00\n'"
    assert "a setting is left out of the comparison" in told.causes


def test_codec_that_a_broadcast_cannot_look_up() -> None:
    @attrs.define
    class Broken(Codec[bytes, bytes]):
        def reader(self) -> Reader[bytes]:
            return GoodReader()

        def writer(self) -> Writer[bytes]:
            return GoodWriter()

    told = mistake(Broken())
    assert told.title == "the codec has no hash"
    assert "frozen" in told.causes


def test_codec_that_cannot_be_copied_is_its_own_equal() -> None:
    class Unique(Plain):
        def __copy__(self) -> Any:
            raise TypeError("there is one of me")

    check_codec(Unique(), BYTES)


@pytest.mark.parametrize("kind", ["bytearray", "memoryview"])
def test_frame_that_holds_the_callers_own_object(kind: str) -> None:
    class Broken(GoodWriter):
        def encode(self, message: Any) -> Any:
            frame = super().encode(message)
            return (frame[:2], message) if type(message).__name__ == kind else frame

    told = mistake(Plain(writer=Broken), [b"", b"abc"])
    assert told.title == "a frame changed after the writer had returned it"
    assert told["sent"] == "b'a'"
    assert told["came"] == rf"b'\x00\x01\x9e' after the {kind} that was sent was changed"
    assert told["expected"] == r"b'\x00\x01a'"
    assert "bytes(message)" in told.causes


def test_frame_in_a_bytearray_that_is_used_again() -> None:
    class Broken(GoodWriter):
        buffer = bytearray()
        stateful = True

        def encode(self, message: Any) -> Any:
            frame = super().encode(message)
            self.buffer[:] = bytes([len(self.buffer) & 1]) + frame
            return self.buffer

    told = mistake(Plain(NumberedReader, Broken))
    assert told.title == "a frame changed after the writer had returned it"
    assert told["came"].endswith("after another message was encoded")


@pytest.mark.parametrize("frame", [None, "text", [b"a", "b"], (byte for byte in [b"a"])])
def test_what_cannot_be_sent(frame: Any) -> None:
    class Broken(Writer[bytes]):
        def encode(self, message: bytes) -> Any:
            return frame

    told = mistake(Plain(writer=Broken))
    assert told.title == "the writer returned what cannot be sent"
    assert "sent" in told.facts


def test_frame_without_a_byte() -> None:
    class Broken(Writer[bytes]):
        def encode(self, message: bytes) -> Any:
            return message

    told = mistake(Plain(writer=Broken))
    assert told.title == "a frame without a byte"
    assert told["sent"] == "b''"


def test_message_that_the_writer_refuses() -> None:
    told = mistake(Plain(), [b"", "text"])
    assert told.title == "a message that was given is refused by the writer"
    assert told["sent"] == "'text'"
    assert "refused=[...]" in told.causes


# -- what it costs


class Rescanning(Reader[bytes]):
    def decode(self, buffer: ReceiveBuffer) -> Any:
        buffer.find(b"\r\n")  # for which the search below is forgotten, and the other way round
        size = buffer.find(b"\n")
        return NEED_DATA if size < 0 else (buffer.take(size + 1) or b"")[:-1]


class Rejoining(Reader[bytes]):
    def decode(self, buffer: ReceiveBuffer) -> Any:
        size = (buffer.peek(len(buffer)) or b"").find(b"\n")
        return NEED_DATA if size < 0 else (buffer.take(size + 1) or b"")[:-1]


class Searching(Reader[bytes]):
    def decode(self, buffer: ReceiveBuffer) -> Any:
        buffer._reach(len(buffer))  # all of it becomes the front
        size = buffer.data.find(b"\n", buffer.start)
        return NEED_DATA if size < 0 else (buffer.take(size - buffer.start + 1) or b"")[:-1]


class SearchingTheFront(Reader[bytes]):
    def decode(self, buffer: ReceiveBuffer) -> Any:
        if buffer.data.find(b"\n", buffer.start) < 0 and buffer.find(b"\n") < 0:
            return NEED_DATA
        return (buffer.take(buffer.find(b"\n") + 1) or b"")[:-1]


class Matching(Reader[bytes]):
    def decode(self, buffer: ReceiveBuffer) -> Any:
        found = buffer._find_any(re.compile(rb"[\n]"), 1)
        buffer._search = None
        return NEED_DATA if found is None else (buffer.take(found[1]) or b"")[:-1]


@pytest.mark.parametrize("reader", [Rescanning, Rejoining, Searching, SearchingTheFront, Matching])
def test_message_in_many_pieces_looked_at_from_the_beginning(reader: type[Reader[bytes]]) -> None:
    told = mistake(Plain(reader, Delimited(b"\n").writer), [b"a"])
    assert told.title == "the cost grows with the square of the bytes"
    assert re.fullmatch(r"1 message of \d+ bytes in \d+ pieces", told["arrived"])
    assert re.fullmatch(r"[\d,]+ bytes were looked at or copied", told["came"])
    assert re.fullmatch(r"at most [\d,]+, in \d+ calls of decode", told["expected"])
    assert "joins once" in told.causes


def test_message_given_that_is_large_enough_for_its_cost() -> None:
    told = mistake(
        Plain(Rejoining, Delimited(b"\n").writer), [b"", b"x" * 3000], received=[b"", b"x" * 3000]
    )
    assert told["arrived"] == "1 message of 3001 bytes in 429 pieces"


def test_many_messages_in_a_chunk_copied_for_each() -> None:
    class Broken(GoodReader):
        def decode(self, buffer: ReceiveBuffer) -> Any:
            rest = buffer.data[buffer.start :]
            message = super().decode(buffer)
            del rest
            return message

    told = mistake(Plain(Broken))
    assert told.title == "the cost grows with the square of the bytes"
    assert told["arrived"] == "400 messages of 800 bytes in 1 piece"
    assert "copying all that is there" in told.causes


@pytest.mark.parametrize(
    "look",
    [
        lambda data, start: data.find(b"\n", start),
        lambda data, start: data.index(b"\xff"),
        lambda data, start: data.split(b"\0"),
        lambda data, start: data + b"",
        lambda data, start: data.count(b"\n", start),
        lambda data, start: list(data),
    ],
)
def test_looks_at_all_of_the_data_are_counted(look: Callable[[bytes, int], Any]) -> None:
    class Broken(GoodReader):
        def decode(self, buffer: ReceiveBuffer) -> Any:
            if len(buffer) > 500:
                try:
                    look(buffer.data, buffer.start)
                except ValueError:
                    pass
            return super().decode(buffer)

    told = mistake(Plain(Broken), [b"a"])
    assert told.title == "the cost grows with the square of the bytes"


# -- protocols without boundaries


class Arrived(Reader[bytes]):
    def decode(self, buffer: ReceiveBuffer) -> Any:
        return buffer.take(len(buffer)) or NEED_DATA


class AsItIs(Writer[bytes]):
    def encode(self, message: Any) -> Any:
        if not isinstance(message, bytes):
            raise EncodeError("only bytes are sent")
        return message


def test_protocol_without_boundaries() -> None:
    codec = Plain(Arrived, AsItIs)
    check_codec(codec, [b"abc", b"d"], framed=False, refused=["text"])
    told = mistake(codec, [b"abc"], framed=False, refused=[b"d"])
    assert told.title == "a message that must be refused was sent"
    assert told["refused"] == "b'd'"


def test_protocol_without_boundaries_that_loses_bytes() -> None:
    class Broken(Reader[bytes]):
        def decode(self, buffer: ReceiveBuffer) -> Any:
            data = buffer.take(len(buffer))
            return data[-3:] if data else NEED_DATA

    told = mistake(Plain(Broken, AsItIs), [b"abc", b"defg"], framed=False)
    assert told.title == "the bytes that were sent are not those that came"
    assert told["sent"] == "b'defg'"
    assert told["came"] == "b'efg'"
    assert told["expected"] == "b'defg', in any pieces"

    class Refusing(Reader[bytes]):
        def decode(self, buffer: ReceiveBuffer) -> Any:
            raise ProtocolError("no")

    told = mistake(Plain(Refusing, AsItIs), [b"abc"], framed=False)
    assert told["came"] == "ProtocolError"


# -- no false alarms


class Parsed(Codec[Any, Any]):
    """The protocol above with messages of another type."""

    def __init__(self, encode: Callable[[Any], bytes], decode: Callable[[bytes], Any]) -> None:
        self.codec = Plain().map(encode=encode, decode=decode)

    def reader(self) -> Reader[Any]:
        return self.codec.reader()

    def writer(self) -> Writer[Any]:
        return self.codec.writer()


class Array:
    """Messages as arrays are: without a hash, and with a ``==`` that is neither true nor false."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, numbers: Sequence[int]) -> None:
        self.numbers = list(numbers)

    def __repr__(self) -> str:
        return f"Array({self.numbers})"

    def __eq__(self, other: object) -> Any:
        assert isinstance(other, Array)
        return Array([a == b for a, b in zip(self.numbers, other.numbers, strict=False)])

    def __bool__(self) -> bool:
        raise ValueError("the truth value of an array is ambiguous")


@pytest.mark.parametrize("wrapped", [lambda array: array, lambda array: [array]])
def test_messages_whose_comparison_is_neither_true_nor_false(wrapped: Callable[[Any], Any]) -> None:
    def encode(message: Any) -> bytes:
        array = message[0] if isinstance(message, list) else message
        return bytes(array.numbers)

    messages = [wrapped(Array([])), wrapped(Array([1, 2, 3]))]
    check_codec(Parsed(encode, lambda data: wrapped(Array(data))), messages)
    told = mistake(Parsed(encode, lambda data: wrapped(Array(data[:2]))), messages)
    assert told.title == "a message was not received as it was sent"


def test_messages_that_are_true_when_equal() -> None:
    class Odd(int):
        def __eq__(self, other: object) -> Any:
            return "yes" if int(self) == other else ""

        __hash__ = None  # type: ignore[assignment]

    check_codec(
        Parsed(lambda odd: bytes([int(odd)]), lambda data: Odd(sum(data))), [Odd(1), Odd(2)]
    )


@attrs.define(eq=False)
class GreetedReader(GoodReader):
    """Wants a greeting in front of the first message; the end before it is too early."""

    greeted: bool = False

    def decode(self, buffer: ReceiveBuffer) -> Any:
        if self.greeted:
            return super().decode(buffer)
        header = buffer.peek(5)
        if header is None:
            return NEED_DATA
        if header[:3] != b"HI\n":
            raise ProtocolError("no greeting")
        size = int.from_bytes(header[3:], "big")
        if size > self.max_size:
            raise MessageTooLargeError("too large")
        message = buffer.take(size, skip=5)
        if message is None:
            return NEED_DATA
        self.greeted = True
        return message

    def decode_eof(self, buffer: ReceiveBuffer) -> Any:
        if not self.greeted:
            raise IncompleteMessageError("no greeting")
        return super().decode_eof(buffer)


@attrs.define(eq=False)
class GreetingWriter(GoodWriter):
    stateful = True
    greeting: bytes = b"HI\n"

    def encode(self, message: bytes) -> Any:
        frame = super().encode(message)
        greeting, self.greeting = self.greeting, b""
        return [greeting, frame]


def test_protocol_that_begins_with_a_greeting() -> None:
    check_codec(Plain(GreetedReader, GreetingWriter), BYTES, refused=["text", bytes(1001)])


def test_protocol_that_must_end_with_a_good_bye() -> None:
    class PartingReader(GoodReader):
        parted = False

        def __init__(self) -> None:
            super().__init__()

        def decode(self, buffer: ReceiveBuffer) -> Any:
            message = super().decode(buffer)
            if message is not NEED_DATA:
                self.parted = message == b"bye"
            return message

        def decode_eof(self, buffer: ReceiveBuffer) -> Any:
            if not self.parted:
                raise IncompleteMessageError("the peer went without a word")
            return super().decode_eof(buffer)

    messages = [b"", b"a", b"bye"]
    check_codec(Plain(PartingReader), messages)
    told = mistake(Plain(PartingReader), messages[:2])
    assert told.title == "decode_eof does not tell how the stream ended"


@pytest.mark.parametrize("consumes", [False, True])
def test_protocol_with_a_checksum_behind(consumes: bool) -> None:
    class SummedReader(GoodReader):
        def decode(self, buffer: ReceiveBuffer) -> Any:
            header = buffer.peek(2)
            if header is None:
                return NEED_DATA
            size = int.from_bytes(header, "big")
            if size > self.max_size:
                raise MessageTooLargeError("too large")
            rest = buffer.peek(size + 4, 2)
            if rest is None:
                return NEED_DATA
            right = zlib.crc32(rest[:-4]).to_bytes(4, "big") == rest[-4:]
            if right or consumes:
                buffer.skip(size + 6)
            if not right:
                raise ProtocolError("a wrong checksum")
            return rest[:-4]

    class SummedWriter(GoodWriter):
        def encode(self, message: bytes) -> Any:
            return super().encode(message) + zlib.crc32(message).to_bytes(4, "big")

    frame = SummedWriter().encode(b"a")
    check_codec(
        Plain(SummedReader, SummedWriter), BYTES, refused=["text"], malformed=[frame[:-1] + b"?"]
    )


def test_limit_of_a_writer_that_cannot_be_changed() -> None:
    @attrs.frozen(eq=False)
    class Fixed(Writer[int]):
        max_size: int = 255

        def encode(self, message: int) -> bytes:
            return b"\0\1" + bytes([message])

    class NumberReader(GoodReader):
        def decode(self, buffer: ReceiveBuffer) -> Any:
            message = super().decode(buffer)
            return message if message is NEED_DATA else int.from_bytes(message, "big")

    check_codec(Plain(NumberReader, Fixed), [0, 7])


# -- the arguments, and how it is told


def test_arguments_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="messages must have at least one message"):
        check_codec(LengthPrefixed(), [])
    with pytest.raises(ValueError, match="received must have 2 messages as well, not 1"):
        check_codec(LengthPrefixed(), [b"a", b"b"], received=[b"a"])


def test_messages_received_as_another_type() -> None:
    class Upper(GoodReader):
        def decode(self, buffer: ReceiveBuffer) -> Any:
            message = super().decode(buffer)
            return message if message is NEED_DATA else message.decode("latin-1").upper()

    check_codec(Plain(Upper), [b"a", b""], received=["A", ""])
    told = mistake(Plain(Upper), [b"a", b"b"])
    assert told["came"] == "'' after 2 bytes, 2 taken"
    assert told["expected"] == "b'', 2 taken"
    assert "received=[...]" in told.causes


def test_messages_may_be_an_iterator_and_of_any_bytes() -> None:
    check_codec(Plain(), iter([b"", bytearray(b"ab"), memoryview(b"abc")]))


def test_many_messages_and_long_ones() -> None:
    messages = [bytes([i]) * i for i in range(60)]
    check_codec(Plain(), messages)
    check_codec(LengthPrefixed(), [b"x" * 100_000])


def test_one_among_many_messages_is_found() -> None:
    class Broken(GoodWriter):
        def encode(self, message: Any) -> Any:
            frame = super().encode(message)
            return frame.replace(b"7", b"8")

    messages = [str(i).encode() for i in range(100, 150)]
    told = mistake(Plain(writer=Broken), messages)
    assert told["sent"] == "b'7'"
    assert told["came"] == "b'8' after 3 bytes, 3 taken"


def test_the_original_exception_is_shown_with_its_traceback() -> None:
    class Broken(GoodReader):
        def decode(self, buffer: ReceiveBuffer) -> Any:
            raise KeyError("nothing")

    with pytest.raises(AssertionError) as caught:
        check_codec(Plain(Broken), BYTES)
    assert isinstance(caught.value.__cause__, KeyError)


def test_messages_whose_comparison_fails_are_not_equal() -> None:
    class Odd:
        def __eq__(self, other: object) -> bool:
            raise TypeError("not comparable")

        __hash__ = None  # type: ignore[assignment]

        def __repr__(self) -> str:
            return "odd " * 100

    told = mistake(Plain(), [b"a"], received=[Odd()])
    assert told["expected"].endswith("(400 characters), 3 taken")


def test_protocol_that_sends_any_object() -> None:
    class AnyWriter(GoodWriter):
        def encode(self, message: Any) -> Any:
            return super().encode(str(message).encode())

    class AnyReader(GoodReader):
        def decode(self, buffer: ReceiveBuffer) -> Any:
            message = super().decode(buffer)
            return message if message is NEED_DATA else message.decode("latin-1")

    check_codec(Plain(AnyReader, AnyWriter), [1, 20], received=["1", "20"])


def test_the_same_seed_gives_the_same_case() -> None:
    class Broken(GoodReader):
        def decode(self, buffer: ReceiveBuffer) -> Any:
            message = super().decode(buffer)
            if message is not NEED_DATA and sum(message) % 97 == 96:
                return struct.unpack("!H", message)
            return message

    assert mistake(Plain(Broken), seed=5) == mistake(Plain(Broken), seed=5)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_interruptions_are_not_mistakes(interruption: type[BaseException]) -> None:
    class Interrupted(GoodReader):
        def decode(self, buffer: ReceiveBuffer) -> Any:
            raise interruption

    with pytest.raises(interruption):
        check_codec(Plain(Interrupted), BYTES)


def test_codec_that_sends_one_type_and_receives_another() -> None:
    @attrs.define(eq=False)
    class Numbers(Reader[int]):
        max_size: int = 1000

        def decode(self, buffer: ReceiveBuffer) -> Any:
            message = GoodReader(self.max_size).decode(buffer)
            return message if message is NEED_DATA else int.from_bytes(message, "big")

    server = Plain(Numbers)
    client = Plain(writer=lambda: GoodWriter(300))
    check_codec(server, BYTES, peer=client)
    check_codec(client, [b"", b"\1"], peer=server, received=[0, 1])
    check_codec(Lines().json(int, send=str), ["a", ""], peer=Lines().json(str, send=int))
    told = mistake(server, [b"a"], peer=Plain(Delimited(b"\n").reader))
    assert told.title == "the reader waits for more bytes than the message has"
    with pytest.raises(AssertionError, match="the max_size of the codec does not reach"):
        check_codec(Plain(), BYTES, peer=Limited(300, handed_on=False))


@pytest.mark.parametrize("has_eq", [False, True])
def test_messages_that_cannot_be_compared(has_eq: bool) -> None:
    class Word:
        def __init__(self, data: bytes) -> None:
            self.data = data

    class Failing(Word):
        def __eq__(self, other: object) -> bool:
            raise TypeError("not comparable")

        __hash__ = None  # type: ignore[assignment]

    word = Failing if has_eq else Word
    told = mistake(Parsed(lambda message: message.data, word), [word(b"a")])
    assert told.title == "a message cannot be compared with what was sent"
    assert "has no __eq__" in told.causes
    assert "delimiter" not in told.causes


def test_protocol_without_boundaries_that_is_not_said_to_be_one() -> None:
    assert "say framed=False" in mistake(Chunks(), [b"a"]).causes
