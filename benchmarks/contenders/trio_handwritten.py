"""What a Trio user writes by hand: ``serve_tcp``, a bytearray, ``send_all`` for each message."""

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


async def echo(stream: trio.abc.Stream, max_size: int) -> None:
    buffer = bytearray()
    try:
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
                await stream.send_all(len(message).to_bytes(4, "big") + message)
    except trio.BrokenResourceError:
        pass  # the peer went away; every other connection lives on


async def main() -> None:
    options = parse_options("tls", "max-size")
    handler = partial(echo, max_size=options.max_size)
    context = server_tls_context(options.tls)
    async with trio.open_nursery() as nursery:
        if context is None:
            listeners = await nursery.start(partial(trio.serve_tcp, handler, 0, host=LOOPBACK))
        else:
            listeners = await nursery.start(
                partial(trio.serve_ssl_over_tcp, handler, 0, context, host=LOOPBACK)
            )
        announce(listener_port(listeners[0]))


if __name__ == "__main__":
    trio.run(main)
