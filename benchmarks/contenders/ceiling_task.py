"""The least that a Trio task for each connection can cost: it waits, reads and writes.

It waits as trio_bytetalk does, through one epoll for all, and makes the system calls itself. What
comes is sent back as it is: nothing is framed, checked, counted, limited or told.
"""

from __future__ import annotations

import os

import trio

from benchmarks.contenders._echoing import serve
from trio_bytetalk._epoll import register

# As much as trio_bytetalk reads at once.
_READ_SIZE = 65536


async def echo(stream: trio.SocketStream) -> None:
    fd = stream.socket.fileno()
    readiness = register(fd)
    try:
        while True:
            if not readiness.readable:
                await readiness.wait_readable()
            try:
                data = os.read(fd, _READ_SIZE)
            except BlockingIOError:
                readiness.readable = False
                continue
            if not data:
                break
            # What comes when there is nothing more makes an event of its own (see _epoll.py).
            if len(data) < _READ_SIZE:
                readiness.readable = False
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


if __name__ == "__main__":
    serve(echo)
