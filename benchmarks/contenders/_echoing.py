"""What the echo servers on Trio that take no options share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import trio

from benchmarks.contenders._serving import LOOPBACK, announce, listener_port, parse_options


def serve(echo: Callable[[trio.SocketStream], Awaitable[object]]) -> None:
    """Serve each connection by ``echo`` until killed."""
    parse_options()
    trio.run(_serve, echo)


async def _serve(echo: Callable[[trio.SocketStream], Awaitable[object]]) -> None:
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, echo, 0, host=LOOPBACK))
        announce(listener_port(listeners[0]))
