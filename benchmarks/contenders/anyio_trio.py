"""anyio on its Trio backend.

Its documentation frames messages with ``BufferedByteStream.receive_exactly``
(``--buffered-stream``), which asks the kernel for no more than the bytes it still needs. A
bytearray over ``receive()`` is faster, so that is what anyio is compared by.
"""

from __future__ import annotations

from functools import partial

import anyio
from anyio.abc import ByteStream, SocketAttribute, SocketStream
from anyio.streams.buffered import BufferedByteReceiveStream

from benchmarks.contenders._serving import LOOPBACK, announce, parse_options


async def echo(stream: SocketStream, max_size: int) -> None:
    buffer = bytearray()
    try:
        async with stream:
            async for data in stream:
                buffer += data
                while len(buffer) >= 4:
                    size = int.from_bytes(buffer[:4], "big")
                    if size > max_size:
                        return
                    if len(buffer) < 4 + size:
                        break
                    message = bytes(buffer[4 : 4 + size])
                    del buffer[: 4 + size]
                    await stream.send(len(message).to_bytes(4, "big") + message)
    except anyio.BrokenResourceError:
        pass


async def echo_buffered(stream: ByteStream, max_size: int) -> None:
    reader = BufferedByteReceiveStream(stream)
    try:
        async with stream:
            while True:
                size = int.from_bytes(await reader.receive_exactly(4), "big")
                if size > max_size:
                    return
                message = await reader.receive_exactly(size)
                await stream.send(len(message).to_bytes(4, "big") + message)
    except (anyio.IncompleteRead, anyio.BrokenResourceError):
        pass


async def main() -> None:
    options = parse_options("max-size", "buffered-stream")
    listener = await anyio.create_tcp_listener(local_host=LOOPBACK, local_port=0)
    announce(listener.extra(SocketAttribute.local_port))
    handler = echo_buffered if options.buffered_stream else echo
    await listener.serve(partial(handler, max_size=options.max_size))


if __name__ == "__main__":
    anyio.run(main, backend="trio")
