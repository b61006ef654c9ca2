"""trio_bytetalk, as its README opens: a handler that iterates over messages."""

from __future__ import annotations

from functools import partial
from typing import Any

import trio

from benchmarks.contenders._serving import (
    LOOPBACK,
    announce,
    listener_port,
    parse_options,
    server_tls_context,
)
from trio_bytetalk import Codec, Connection, Delimited, LengthPrefixed, Lines, Server


async def echo(connection: Connection[Any, Any]) -> None:
    async for message in connection:
        await connection.send(message)


async def count_messages(server: Server[Any, Any]) -> None:
    """The least that a subscriber can do: hear of every message."""
    count = 0
    async with server.message_received.subscribe() as events:
        async for _ in events:
            count += 1


def choose_codec(framing: str, max_size: int) -> Codec[Any, Any]:
    if framing == "lines":
        return Lines()
    if framing == "delimited":
        return Delimited(b"\n")
    return LengthPrefixed(max_size=max_size)


async def main() -> None:
    options = parse_options("tls", "max-size", "framing", "subscriber")
    server = Server(echo, codec=choose_codec(options.framing, options.max_size))
    serve = partial(server.serve_tcp, 0, host=LOOPBACK, ssl_context=server_tls_context(options.tls))
    async with trio.open_nursery() as nursery:
        if options.subscriber:
            nursery.start_soon(count_messages, server)
        listeners = await nursery.start(serve)
        announce(listener_port(listeners[0]))


if __name__ == "__main__":
    trio.run(main)
