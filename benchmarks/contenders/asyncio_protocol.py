"""An asyncio ``Protocol``, on asyncio's own loop or on uvloop: asyncio's fastest way."""

from __future__ import annotations

import asyncio
from typing import cast

from benchmarks.contenders._loops import run
from benchmarks.contenders._serving import LOOPBACK, announce, parse_options

MAX_SIZE = 1 << 20


class Echo(asyncio.Protocol):
    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.buffer = bytearray()

    def data_received(self, data: bytes) -> None:
        buffer = self.buffer
        buffer += data
        while len(buffer) >= 4:
            size = int.from_bytes(buffer[:4], "big")
            if size > MAX_SIZE:
                self.transport.close()
                return
            if len(buffer) < 4 + size:
                break
            message = bytes(buffer[4 : 4 + size])
            del buffer[: 4 + size]
            self.transport.write(len(message).to_bytes(4, "big") + message)

    def pause_writing(self) -> None:
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.transport.resume_reading()


async def main() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Echo, LOOPBACK, 0)
    announce(server.sockets[0].getsockname()[1])
    await server.serve_forever()


if __name__ == "__main__":
    options = parse_options("loop", "max-size")
    MAX_SIZE = options.max_size
    run(options.loop, main())
