"""A protocol of your own: items of a type, a length, a value, and a checksum.

    python examples/custom_protocol.py

      0      1         3                  3 + length
      | type |  length  |  value ...       |  CRC-32 of all that  |

A codec is three small classes that know nothing of networks: it can be tried on plain bytes.
"""

import zlib
from functools import partial
from struct import Struct
from typing import Literal

import attrs
import trio

from trio_bytetalk import (
    NEED_DATA,
    Codec,
    Connection,
    EncodeError,
    MessageTooLargeError,
    NeedData,
    ProtocolError,
    Reader,
    ReceiveBuffer,
    Server,
    Writer,
    open_tcp_connection,
)
from trio_bytetalk.testing import check_codec

HEADER = Struct("!BH")
CHECKSUM = Struct("!L")


@attrs.frozen
class Item:
    type: int
    value: bytes


class ChecksumError(ProtocolError):
    """An item was damaged on its way."""


@attrs.define(eq=False)
class ItemReader(Reader[Item]):
    max_size: int

    def decode(self, buffer: ReceiveBuffer) -> Item | Literal[NeedData.NEED_DATA]:
        header = buffer.peek(HEADER.size)
        if header is None:
            return NEED_DATA
        kind, length = HEADER.unpack(header)
        if length > self.max_size:  # before waiting for it
            raise MessageTooLargeError(f"a value of {length} bytes; max_size is {self.max_size}")
        rest = buffer.take(length + CHECKSUM.size, skip=HEADER.size)
        if rest is None:
            return NEED_DATA
        value, (expected,) = rest[:length], CHECKSUM.unpack(rest[length:])
        actual = zlib.crc32(header + value)
        if actual != expected:
            raise ChecksumError(f"type {kind} came with CRC {expected:08x}, not {actual:08x}")
        return Item(kind, value)


@attrs.define(eq=False)
class ItemWriter(Writer[Item]):
    max_size: int

    def encode(self, item: Item) -> bytes:
        if not 0 <= item.type <= 0xFF or len(item.value) > self.max_size:
            raise EncodeError(f"{item} has no type of one byte, or is over {self.max_size} bytes")
        body = HEADER.pack(item.type, len(item.value)) + item.value
        return body + CHECKSUM.pack(zlib.crc32(body))


@attrs.frozen
class Items(Codec[Item, Item]):
    max_size: int = attrs.field(default=1000, validator=attrs.validators.in_(range(0x10000)))

    def reader(self) -> ItemReader:
        return ItemReader(self.max_size)

    def writer(self) -> ItemWriter:
        return ItemWriter(self.max_size)


async def answer(connection: Connection[Item, Item]) -> None:
    async for item in connection:
        await connection.send(Item(item.type, item.value.upper()))


async def main() -> None:
    frame = Items().writer().encode(Item(7, b"hello"))
    print(f"the frame    {frame.hex(' ')}")
    buffer = ReceiveBuffer()
    reader = Items().reader()
    buffer.feed(frame[:-1])
    print(f"without end  {reader.decode(buffer)!r}")
    buffer.feed(frame[-1:])
    print(f"and with it  {reader.decode(buffer)!r}")

    check_codec(
        Items(),
        [Item(0, b""), Item(7, b"hello"), Item(255, bytes(1000))],
        refused=[Item(256, b""), Item(7, bytes(1001))],
        malformed=[frame[:-1] + b"?"],
        size_of=lambda item: len(item.value),
    )
    print("check_codec  finds nothing wrong")

    server = Server(answer, codec=Items())
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(server.serve_tcp, 0, host="127.0.0.1"))
        port = listeners[0].socket.getsockname()[1]
        async with open_tcp_connection("127.0.0.1", port, codec=Items()) as connection:
            await connection.send(Item(7, b"over tcp"))
            print(f"over TCP     {await connection.receive()}")
            try:
                await connection.send(Item(7, bytes(2000)))
            except EncodeError:
                print("too long     EncodeError, and the connection is as good as before")
            await connection.send(Item(8, b"still here"))
            print(f"over TCP     {await connection.receive()}")

        # What the server does about a damaged frame: it tells its log, and closes.
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        async with stream:
            await stream.send_all(frame[:-1] + b"?")
            print(f"damaged      the server answers {await stream.receive_some()!r}")
        server.stop()


if __name__ == "__main__":
    trio.run(main)
