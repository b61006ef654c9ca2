"""`Codec`, `Reader` and `Writer`: protocols written by users, and what the base classes promise."""

from __future__ import annotations

import copy
import json
import pickle
import struct
from typing import Any, Literal, TypeVar, assert_type

import attrs
import msgspec
import pytest
import trio
import trio.testing
from driving import Outcome, cut, cuts, read_all
from hypothesis import given
from hypothesis import strategies as st

from trio_bytetalk import (
    NEED_DATA,
    Buffer,
    Chunks,
    Codec,
    Connection,
    EncodeError,
    IncompleteMessageError,
    InvalidMessageError,
    LengthPrefixed,
    LengthPrefixedReader,
    Lines,
    NeedData,
    Netstring,
    ProtocolError,
    Reader,
    ReceiveBuffer,
    Server,
    Writer,
    open_connection,
)
from trio_bytetalk._codec import AheadReader, ahead_reader
from trio_bytetalk.testing import connection_pair, open_memory_connection

# -- a protocol of a user's, with attrs: numbered messages of a type and a text


@attrs.frozen
class Tagged:
    tag: int
    text: str


@attrs.define(eq=False)
class TaggedReader(Reader[Tagged]):
    magic: int
    expected: int = 0

    def decode(self, buffer: ReceiveBuffer) -> Tagged | Literal[NeedData.NEED_DATA]:
        header = buffer.peek(4)
        if header is None:
            return NEED_DATA
        magic, number, tag, size = struct.unpack("4B", header)
        if magic != self.magic:
            raise ProtocolError(f"a message begins with {self.magic}, not {magic}")
        payload = buffer.take(size, skip=4)
        if payload is None:
            return NEED_DATA
        if number != self.expected:
            raise ProtocolError(f"expected message {self.expected}, not {number}")
        self.expected = (self.expected + 1) % 256
        return Tagged(tag, payload.decode("latin-1"))


@attrs.define(eq=False)
class TaggedWriter(Writer[Tagged]):
    magic: int
    number: int = 0

    stateful = True

    def encode(self, message: Tagged) -> list[Buffer]:
        payload = message.text.encode("latin-1")
        header = struct.pack("4B", self.magic, self.number, message.tag, len(payload))
        self.number = (self.number + 1) % 256
        return [header, payload]


@attrs.frozen
class TaggedCodec(Codec[Tagged, Tagged]):
    magic: int = 0xBE

    def reader(self) -> TaggedReader:
        return TaggedReader(self.magic)

    def writer(self) -> TaggedWriter:
        return TaggedWriter(self.magic)


# -- and one in plain classes: JSON lines, of which the last need not end


class JsonReader(Reader[Any]):
    def __init__(self, separator: bytes) -> None:
        self.separator = separator

    def decode(self, buffer: ReceiveBuffer) -> Any:
        size = buffer.find(self.separator)
        if size < 0:
            return NEED_DATA
        line = buffer.take(size)
        buffer.skip(1)
        return self.parse(line)

    def decode_eof(self, buffer: ReceiveBuffer) -> Any:
        if not len(buffer):
            return NEED_DATA
        return self.parse(buffer.take(len(buffer)))

    def parse(self, line: bytes | None) -> Any:
        try:
            return json.loads(line or b"")
        except ValueError as error:
            raise ProtocolError(f"not JSON: {error}") from None


class JsonWriter(Writer[Any]):
    def __init__(self, separator: bytes) -> None:
        self.separator = separator

    def encode(self, message: Any) -> bytes:
        return json.dumps(message).encode() + self.separator


class JsonCodec(Codec[Any, Any]):
    def __init__(self, separator: bytes = b"\n") -> None:
        self.separator = separator

    def reader(self) -> JsonReader:
        return JsonReader(self.separator)

    def writer(self) -> JsonWriter:
        return JsonWriter(self.separator)


TAGGED = [Tagged(1, "hello"), Tagged(2, ""), Tagged(255, "é" * 255)]
JSON: list[Any] = [None, 0, False, "", [], {"a": None}, None]


@given(cuts())
def test_protocol_of_a_users_in_any_pieces(sizes: list[int]) -> None:
    tagged, json_lines = TaggedCodec().writer(), JsonCodec().writer()
    stream = b"".join(piece for message in TAGGED for piece in tagged.encode(message))
    assert read_all(TaggedCodec().reader(), cut(stream, sizes)) == Outcome(TAGGED)
    stream = b"".join(map(json_lines.encode, JSON))
    assert read_all(JsonCodec().reader(), cut(stream, sizes)) == Outcome(JSON)


@pytest.mark.parametrize(("codec", "messages"), [(TaggedCodec(), TAGGED), (JsonCodec(), JSON)])
async def test_protocol_of_a_users_over_a_connection(
    codec: Codec[Any, Any], messages: list[Any]
) -> None:
    left, right = connection_pair(codec)
    async with left, right:
        for message in messages:
            await left.send(message)
        await left.send_eof()
        assert [message async for message in right] == messages


async def test_none_is_a_message_like_any_other() -> None:
    left, right = connection_pair(JsonCodec())
    async with left, right:
        await left.send(None)
        assert await right.receive() is None
        await left.send("after it")
        assert await right.receive() == "after it"


@pytest.mark.parametrize("codec", [TaggedCodec(), JsonCodec()])
async def test_error_of_a_users_reader_is_what_the_connection_raises(
    codec: Codec[Any, Any],
) -> None:
    left, right = connection_pair(LengthPrefixed())
    async with left, right:
        right.use(codec)
        await left.send(b"{\n")
        with pytest.raises(ProtocolError, match=r"^(a message begins with 190, not 0|not JSON: )"):
            await right.receive()


def test_reader_that_consumes_a_faulty_message_goes_on_behind_it() -> None:
    buffer = ReceiveBuffer()
    buffer.feed(b"faulty\n1\n")
    reader = JsonReader(b"\n")
    with pytest.raises(ProtocolError, match="not JSON"):
        reader.decode(buffer)
    assert reader.decode(buffer) == 1


def test_reader_that_does_not_consume_a_faulty_message_is_at_its_end() -> None:
    buffer = ReceiveBuffer()
    buffer.feed(b"faulty")
    reader = TaggedReader(1)
    for _ in range(2):
        with pytest.raises(ProtocolError, match="begins with 1, not 102"):
            reader.decode(buffer)


# -- the end of the stream


def test_end_between_two_messages_is_clean_by_default() -> None:
    assert TaggedReader(1).decode_eof(ReceiveBuffer()) is NEED_DATA


def test_end_within_a_message_is_an_error_by_default() -> None:
    buffer = ReceiveBuffer()
    buffer.feed(b"\1\2")
    with pytest.raises(IncompleteMessageError) as caught:
        TaggedReader(1).decode_eof(buffer)
    assert str(caught.value) == (
        "the peer finished in the middle of a message: TaggedReader has 2 bytes of it and needs "
        "more"
    )
    assert buffer.take(1) == b"\1"
    with pytest.raises(IncompleteMessageError, match="has 1 byte of it"):
        TaggedReader(1).decode_eof(buffer)
    assert buffer.take(1) == b"\2"


async def test_last_message_that_only_the_end_completes() -> None:
    stream, other_end = trio.testing.memory_stream_pair()
    async with open_connection(stream, codec=JsonCodec()) as connection:
        await other_end.send_all(b"1\nnull")
        await other_end.aclose()
        assert [message async for message in connection] == [1, None]


# -- switching in the middle of the stream


@given(cuts(), st.lists(st.binary(max_size=9), max_size=3))
def test_reader_switched_between_two_messages_of_one_chunk(
    sizes: list[int], payloads: list[bytes]
) -> None:
    frames = b"".join(bytes([len(payload)]) + payload for payload in payloads)
    stream = f"{len(payloads)}\n".encode() + frames + b"null\n"
    lines, binary, last = Lines().reader(), LengthPrefixed(1).reader(), JsonReader(b"\n")
    buffer = ReceiveBuffer()
    received: list[Any] = []
    for piece in cut(stream, sizes):
        buffer.feed(piece)
        while True:
            reader: Reader[Any] = lines
            if received:
                reader = binary if len(received) <= int(received[0]) else last
            message = reader.decode(buffer)
            if message is NEED_DATA:
                break
            received.append(message)
            if len(received) == len(payloads) + 2:
                break
    assert received == [str(len(payloads)), *payloads, None]
    assert not len(buffer)


async def test_connection_switched_between_two_messages_of_one_chunk() -> None:
    stream, other_end = trio.testing.memory_stream_pair()
    first: Codec[Any, Any] = Lines()
    async with open_connection(stream, codec=first) as connection:
        await other_end.send_all(b"hello\n\x02\n\n" + b"[1]\n" + b"\x00\x01x")
        assert await connection.receive() == "hello"
        connection.reader = LengthPrefixed(1).reader()
        assert await connection.receive() == b"\n\n"
        connection.reader = JsonReader(b"\n")
        assert await connection.receive() == [1]
        connection.use(LengthPrefixed(2))
        assert await connection.receive() == b"x"


# -- broadcasting, which encodes once for equal codecs


async def broadcast_to(codecs: list[Codec[Any, Any]], message: Any) -> list[Any]:
    """What clients of one server get that has given each another codec."""
    waiting = iter(codecs)
    server: Server[Any, Any] = Server(codec=LengthPrefixed())

    @server.on_connect
    async def choose(connection: Connection[Any, Any]) -> None:
        connection.use(next(waiting))

    received = []
    async with trio.open_nursery() as nursery:
        clients = []
        for codec in codecs:
            near, far = trio.testing.memory_stream_pair()
            nursery.start_soon(server.serve_stream, far)
            clients.append(open_connection(near, codec=codec))
            await trio.testing.wait_all_tasks_blocked()
        assert server.broadcast(message).queued == len(codecs)
        for client in clients:
            received.append(await client.receive())
            await client.aclose()
    return received


async def test_plain_codecs_of_other_settings_are_not_taken_for_equal() -> None:
    # They would get each other's frames.
    assert JsonCodec(b"\n") != JsonCodec(b";")
    assert JsonCodec() != JsonCodec()
    codecs: list[Codec[Any, Any]] = [JsonCodec(b"\n"), JsonCodec(b";")]
    assert await broadcast_to(codecs, ["all"]) == [["all"], ["all"]]


async def test_writers_that_count_what_they_send_get_to_encode_for_themselves() -> None:
    assert TaggedCodec(7) == TaggedCodec(7)
    assert hash(TaggedCodec(7)) == hash(TaggedCodec(7))
    codecs: list[Codec[Any, Any]] = [TaggedCodec(), TaggedCodec(), TaggedCodec()]
    assert await broadcast_to(codecs, TAGGED[0]) == [TAGGED[0]] * 3


def test_a_frame_depends_on_nothing_before_it_unless_its_writer_says_so() -> None:
    assert not JsonWriter.stateful
    assert not LengthPrefixed().writer().stateful
    assert TaggedWriter.stateful


# -- messages on top of frames: any codec has that, and the type checker knows the messages


class Order(msgspec.Struct, tag=True):
    id: int


class Cancel(msgspec.Struct, tag=True):
    id: int


class Receipt(msgspec.Struct):
    total: float


def tagged_from(order: Order) -> Tagged:
    return Tagged(order.id, "order")


def order_from(tagged: Tagged) -> Order:
    if tagged.text != "order":
        raise ValueError(f"what is {tagged.text!r}?")
    return Order(tagged.tag)


T = TypeVar("T")


def json_of(message_type: type[T]) -> Codec[T, T]:
    """A user's helper: what a type checker has as type[T] goes through."""
    return LengthPrefixed().json(message_type)


async def conversation(
    client: Codec[Any, Any], server: Codec[Any, Any], sent: Any, answer: Any
) -> tuple[Any, Any]:
    """What each side makes of what the other one sends."""
    left, right = trio.testing.memory_stream_pair()
    async with open_connection(left, codec=client) as near, open_connection(right) as far:
        far.use(server)
        await near.send(sent)
        received = await far.receive()
        await far.send(answer)
        return received, await near.receive()


def test_types_of_what_is_put_on_frames() -> None:
    frames = LengthPrefixed()
    assert_type(frames.json(), Codec[Any, Any])
    assert_type(frames.json(Order), Codec[Order, Order])
    assert_type(frames.json(list[Order]), Codec[list[Order], list[Order]])
    assert_type(frames.json(Order | Cancel), Codec[Order | Cancel, Order | Cancel])
    assert_type(frames.json(Order | None), Codec[Order | None, Order | None])
    assert_type(frames.json(Order, send=Receipt), Codec[Receipt, Order])
    assert_type(
        frames.json(Order | Cancel, send=list[Receipt]), Codec[list[Receipt], Order | Cancel]
    )
    assert_type(frames.msgpack(), Codec[Any, Any])
    assert_type(frames.msgpack(Order), Codec[Order, Order])
    assert_type(frames.msgpack(Order | Cancel, send=Receipt), Codec[Receipt, Order | Cancel])
    assert_type(frames.text(), Codec[str, str])
    assert_type(frames.text().json(Order), Codec[Order, Order])
    assert_type(frames.compressed(), Codec[bytes, bytes])
    assert_type(frames.compressed().json(Order), Codec[Order, Order])
    assert_type(Lines().json(Order), Codec[Order, Order])
    assert_type(json_of(Order), Codec[Order, Order])
    assert_type(JsonCodec().json(Order, text=True), Codec[Order, Order])
    assert_type(TaggedCodec().map(decode=order_from, encode=tagged_from), Codec[Order, Order])
    assert_type(TaggedCodec().map(decode=order_from), Codec[Tagged, Order])
    assert_type(TaggedCodec().map(encode=tagged_from), Codec[Order, Tagged])
    assert_type(frames.map(decode=len), Codec[bytes, int])

    # A mistake where it is one: without an error here, these comments would be one.
    with pytest.raises(TypeError, match="Typed sends"):
        frames.json(Order).json(Order)  # type: ignore[misc]
    with pytest.raises(TypeError, match="TaggedCodec sends"):
        TaggedCodec().json(Order)  # type: ignore[misc]
    TaggedCodec().text()  # type: ignore[misc]
    TaggedCodec().compressed()  # type: ignore[misc]
    Lines().msgpack(Order)  # type: ignore[misc]
    frames.map(decode=order_from)  # type: ignore[arg-type]


async def test_types_of_connections_and_handlers() -> None:
    async def answer(connection: Connection[Receipt, Order]) -> None:
        async for order in connection:
            assert_type(order, Order)
            await connection.send(Receipt(order.id * 1.5))

    # Which a handler of other messages could not be given.
    Server(answer, codec=LengthPrefixed().json(Receipt, send=Order))  # type: ignore[arg-type]

    server = Server(answer, codec=LengthPrefixed().json(Order, send=Receipt))
    assert_type(server, Server[Receipt, Order])
    async with open_memory_connection(server) as same:
        client = same.use(LengthPrefixed().json(Receipt, send=Order))
        assert_type(client, Connection[Order, Receipt])
        await client.send(Order(2))
        receipt = await client.receive()
        assert_type(receipt, Receipt)
        assert receipt == Receipt(3.0)


async def test_messages_on_a_protocol_of_a_users() -> None:
    codec = TaggedCodec().map(decode=order_from, encode=tagged_from)
    assert await conversation(codec, codec, Order(7), Order(8)) == (Order(7), Order(8))
    assert await conversation(codec, TaggedCodec(), Order(7), Tagged(8, "order")) == (
        Tagged(7, "order"),
        Order(8),
    )
    with pytest.raises(InvalidMessageError, match="what is 'no order'"):
        await conversation(codec, TaggedCodec(), Order(7), Tagged(8, "no order"))


async def test_formats_on_frames_are_what_the_other_side_sees_in_them() -> None:
    frames = LengthPrefixed()
    for codec, sent, frame in (
        (frames.text(), "é", "é".encode()),
        (frames.text("latin-1"), "é", b"\xe9"),
        (frames.json(Order), Order(1), b'{"type":"Order","id":1}'),
        (frames.json(), [1], b"[1]"),
        (frames.msgpack(Order), Order(1), b"\x82\xa4type\xa5Order\xa2id\x01"),
        (frames.msgpack(), [1], b"\x91\x01"),
    ):
        assert await conversation(codec, frames, sent, frame) == (frame, sent)
    for method in ("zlib", "gzip", "deflate"):
        codec = frames.compressed(method).json()
        assert await conversation(codec, codec, [1], [2]) == ([1], [2])


# -- the rest


@pytest.mark.parametrize("base", [Codec, Reader, Writer])
def test_half_a_protocol_cannot_be_made(base: type) -> None:
    with pytest.raises(TypeError, match="abstract"):
        type("Half", (base,), {})()


@pytest.mark.parametrize("codec", [LengthPrefixed(), Lines(), TaggedCodec(), JsonCodec()])
def test_readers_and_writers_have_a_state_and_so_equal_only_themselves(
    codec: Codec[Any, Any],
) -> None:
    readers_and_writers = [codec.reader(), codec.reader(), codec.writer(), codec.writer()]
    assert len(set(readers_and_writers)) == 4


@pytest.mark.parametrize("codec", [LengthPrefixed(), Lines(), Chunks(), Netstring()])
def test_mistyped_setting_of_a_reader_or_writer_is_an_error(codec: Codec[Any, Any]) -> None:
    ends: list[Any] = [codec.reader(), codec.writer()]
    for end in ends:
        with pytest.raises(AttributeError, match="max_sise"):
            end.max_sise = 100


def test_reader_that_decodes_ahead_shows_its_settings_and_must_say_how() -> None:
    assert repr(Lines(max_size=9).reader()) == "LinesReader(encoding='utf-8', max_size=9)"
    with pytest.raises(TypeError, match="abstract"):
        type("Half", (AheadReader,), {"decode": LengthPrefixedReader.decode})()


def test_need_data_stays_itself() -> None:
    assert repr(NEED_DATA) == "NEED_DATA"
    assert NEED_DATA is NeedData.NEED_DATA
    assert copy.deepcopy(NEED_DATA) is NEED_DATA
    assert pickle.loads(pickle.dumps(NEED_DATA)) is NEED_DATA


def test_bytes_that_may_change_are_copied_and_what_is_not_bytes_is_named() -> None:
    data = bytearray(b"abc")
    writer = LengthPrefixed(1).writer()
    frame = writer.encode(data)
    data[:] = b"xyz"
    assert frame == b"\x03abc"
    with pytest.raises(EncodeError, match=r"^LengthPrefixed sends bytes, .* not str$"):
        writer.encode("abc")  # type: ignore[arg-type]  # which is the mistake


async def test_user_protocol_is_served_as_the_built_in_ones_are() -> None:
    async def echo(connection: Connection[Tagged, Tagged]) -> None:
        async for message in connection:
            await connection.send(attrs.evolve(message, tag=message.tag + 1))

    async with open_memory_connection(Server(echo, codec=TaggedCodec())) as connection:
        for message in TAGGED[:2]:
            await connection.send(message)
            assert await connection.receive() == attrs.evolve(message, tag=message.tag + 1)


# -- readers that can decode many messages at once


def test_setting_of_a_reader_without_a_connection_can_be_changed() -> None:
    reader = LengthPrefixed(max_size=1).reader()
    buffer = ReceiveBuffer()
    buffer.feed(b"\0\0\0\2ab")
    with pytest.raises(ProtocolError):
        reader.decode(buffer)
    reader.max_size = 2
    assert reader.decode(buffer) == b"ab"


def test_change_of_a_setting_puts_back_first_what_was_decoded_with_the_old_one() -> None:
    reader = LengthPrefixed(max_size=1).reader()
    seen = []
    reader._settle = lambda: seen.append(reader.max_size)
    reader.max_size = 2
    assert seen == [1]
    assert reader.max_size == 2


def test_reader_decodes_ahead_if_the_class_that_decodes_it_can() -> None:
    class Derived(LengthPrefixedReader):
        pass

    class Overriding(LengthPrefixedReader):
        def decode(self, buffer: ReceiveBuffer) -> bytes | Literal[NeedData.NEED_DATA]:
            return super().decode(buffer)

    derived = Derived(4, "big", 100)
    assert ahead_reader(derived) is derived
    assert ahead_reader(Overriding(4, "big", 100)) is None
    assert ahead_reader(TaggedCodec().reader()) is None


def test_what_is_not_said_has_its_default() -> None:
    frames: Any = LengthPrefixed()
    for typed in (frames.json, frames.msgpack):
        assert typed(int) == typed(int, send=int)
        assert typed(int) != typed(int, send=str)
        assert typed(int, send=str) == typed(int, send=str)
    assert frames.compressed() == frames.compressed("zlib", level=6, max_size=1_048_576)


@pytest.mark.parametrize(
    ("base", "method"),
    [(Reader, "decode"), (Writer, "encode"), (Codec, "reader"), (Codec, "writer")],
)
def test_what_a_protocol_must_have_is_asked_for_when_it_is_made(base: Any, method: str) -> None:
    with pytest.raises(TypeError, match=f"abstract.*{method}"):
        type(
            "Incomplete", (base,), {name: None for name in ("reader", "writer") if name != method}
        )()
