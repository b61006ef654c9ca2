"""trio_bytetalk through its hooks: the server is told of each message."""

from __future__ import annotations

from functools import partial

import trio

from benchmarks.contenders._serving import (
    LOOPBACK,
    announce,
    listener_port,
    parse_options,
    server_tls_context,
)
from trio_bytetalk import Buffer, Connection, LengthPrefixed, Server


async def main() -> None:
    options = parse_options("tls", "max-size")
    server = Server(codec=LengthPrefixed(max_size=options.max_size))

    @server.on_message
    async def echo(connection: Connection[Buffer, bytes], message: bytes) -> None:
        await connection.send(message)

    serve = partial(server.serve_tcp, 0, host=LOOPBACK, ssl_context=server_tls_context(options.tls))
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(serve)
        announce(listener_port(listeners[0]))


if __name__ == "__main__":
    trio.run(main)
