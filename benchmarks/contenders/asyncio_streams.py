"""asyncio's streams, on its own loop or on uvloop: ``readexactly``, or ``readline`` for lines."""

from __future__ import annotations

import asyncio

from benchmarks.contenders._loops import run
from benchmarks.contenders._serving import LOOPBACK, announce, parse_options

MAX_SIZE = 1 << 20


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            size = int.from_bytes(await reader.readexactly(4), "big")
            if size > MAX_SIZE:
                break
            message = await reader.readexactly(size)
            writer.write(len(message).to_bytes(4, "big") + message)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    writer.close()


async def echo_lines(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while line := await reader.readline():
            writer.write(line)
            await writer.drain()
    except ConnectionError:
        pass
    writer.close()


async def main(handler: str) -> None:
    server = await asyncio.start_server(echo_lines if handler == "lines" else echo, LOOPBACK, 0)
    announce(server.sockets[0].getsockname()[1])
    await server.serve_forever()


if __name__ == "__main__":
    options = parse_options("loop", "max-size", "framing")
    MAX_SIZE = options.max_size
    run(options.loop, main(options.framing))
