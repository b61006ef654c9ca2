"""One connection, two protocols: lines of text, and length-prefixed blobs in between.

    python examples/two_protocols.py

The client does not wait for the server to be ready for blobs: the line that announces them, the
blobs, and the line behind them arrive in one piece. A new codec takes over exactly where the old
one left off, so no byte is lost or misread.
"""

import hashlib
from functools import partial
from typing import Any

import trio

from trio_bytetalk import Connection, LengthPrefixed, Lines, Server, open_connection

LINES = Lines()
BLOBS = LengthPrefixed(size=2)
ADDRESS = "127.0.0.1"


# The types of the messages change on the way, hence Any.
async def store(connection: Connection[Any, Any]) -> None:
    async for line in connection:
        waiting = connection.statistics().bytes_undecoded
        print(f"server: line {line!r}, with {waiting} bytes of what follows")
        match line.split():
            case ["store", count] if count.isdecimal():
                connection.use(BLOBS)
                for _ in range(int(count)):
                    blob = await connection.receive()
                    print(f"server: blob of {len(blob)} bytes")
                    await connection.send(hashlib.sha256(blob).digest())
                connection.use(LINES)
                await connection.send(f"stored {count} blobs")
            case ["bye"]:
                return
            case _:
                await connection.send(f"what is {line!r}?")


async def talk(port: int) -> None:
    blobs = [b"\n" * 10, b"store 1\n" * 10, bytes(range(256)) * 10]  # none looks like a blob

    # A writer can be used without any connection; here, to put both protocols into one piece.
    encode_line, encode_blob = LINES.writer().encode, BLOBS.writer().encode
    frames = [encode_line(f"store {len(blobs)}"), *map(encode_blob, blobs), encode_line("bye")]
    piece = b"".join(frame if isinstance(frame, bytes) else b"".join(frame) for frame in frames)
    stream = await trio.open_tcp_stream(ADDRESS, port)
    await stream.send_all(piece)
    print(f"client: sent 2 lines and {len(blobs)} blobs at once, {len(piece)} bytes")

    connection: Connection[Any, Any] = open_connection(stream, codec=BLOBS)
    async with connection:
        for blob in blobs:
            right = await connection.receive() == hashlib.sha256(blob).digest()
            print(f"client: the server has {'the right' if right else 'another'} blob")
        connection.use(LINES)
        async for line in connection:
            print(f"client: line {line!r}")


async def main() -> None:
    server = Server(store, codec=LINES)
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(server.serve_tcp, 0, host=ADDRESS))
        await talk(listeners[0].socket.getsockname()[1])
        server.stop()


if __name__ == "__main__":
    trio.run(main)
