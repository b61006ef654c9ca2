"""trio_bytetalk: whatever one member says goes to every member."""

from __future__ import annotations

from functools import partial

import trio

from benchmarks.contenders._serving import LOOPBACK, announce, listener_port, parse_options
from trio_bytetalk import Buffer, Connection, Server


async def main() -> None:
    parse_options()
    server: Server[Buffer, bytes]

    async def member(connection: Connection[Buffer, bytes]) -> None:
        await connection.send(b"welcome")
        async for message in connection:
            server.broadcast(message)

    server = Server(member)
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(server.serve_tcp, 0, host=LOOPBACK))
        announce(listener_port(listeners[0]))


if __name__ == "__main__":
    trio.run(main)
