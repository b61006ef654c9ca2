"""Trio's tutorial echo server: bytes go back as they came, no message is looked for.

It does less than the others. It is here to show what Trio's own reading and writing cost.
"""

from __future__ import annotations

from functools import partial

import trio

from benchmarks.contenders._serving import LOOPBACK, announce, listener_port, parse_options


async def echo(stream: trio.SocketStream) -> None:
    try:
        async for data in stream:
            await stream.send_all(data)
    except trio.BrokenResourceError:
        pass


async def main() -> None:
    parse_options()
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, echo, 0, host=LOOPBACK))
        announce(listener_port(listeners[0]))


if __name__ == "__main__":
    trio.run(main)
