"""The least that a Trio task for each connection can cost: it waits, reads and writes.

It waits as trio_bytetalk does, through one epoll for all, and makes the system calls itself. What
comes is sent back as it is: nothing is framed, checked, counted, limited or told.
"""

from __future__ import annotations

import os
from functools import partial

import trio

from benchmarks.contenders._serving import LOOPBACK, announce, listener_port, parse_options
from trio_bytetalk._epoll import register


async def echo(stream: trio.SocketStream) -> None:
    fd = stream.socket.fileno()
    readiness = register(fd)
    try:
        while True:
            await readiness.wait_readable()
            try:
                data = os.read(fd, 65536)
            except BlockingIOError:
                continue
            if not data:
                break
            while data:
                try:
                    data = data[os.write(fd, data) :]
                except BlockingIOError:
                    readiness.writable = False
                    await readiness.wait_writable()
    except OSError:
        pass
    finally:
        readiness.close()


async def main() -> None:
    parse_options()
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, echo, 0, host=LOOPBACK))
        announce(listener_port(listeners[0]))


if __name__ == "__main__":
    trio.run(main)
