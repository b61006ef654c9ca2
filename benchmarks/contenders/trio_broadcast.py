"""A broadcast as a Trio user writes it by hand: a loop of ``send_all``."""

from __future__ import annotations

from functools import partial

import trio

from benchmarks.contenders._serving import LOOPBACK, announce, listener_port, parse_options

members: set[trio.SocketStream] = set()


def frame(message: bytes) -> bytes:
    return len(message).to_bytes(4, "big") + message


async def broadcast(message: bytes) -> None:
    data = frame(message)
    for stream in list(members):
        try:
            await stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            members.discard(stream)


async def member(stream: trio.SocketStream) -> None:
    members.add(stream)
    buffer = bytearray()
    try:
        await stream.send_all(frame(b"welcome"))
        async for data in stream:
            buffer += data
            while len(buffer) >= 4:
                size = int.from_bytes(buffer[:4], "big")
                if len(buffer) < 4 + size:
                    break
                message = bytes(buffer[4 : 4 + size])
                del buffer[: 4 + size]
                await broadcast(message)
    except trio.BrokenResourceError:
        pass
    finally:
        members.discard(stream)


async def main() -> None:
    parse_options()
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, member, 0, host=LOOPBACK))
        announce(listener_port(listeners[0]))


if __name__ == "__main__":
    trio.run(main)
