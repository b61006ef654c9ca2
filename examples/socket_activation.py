"""An echo server on sockets that somebody else has opened: systemd, or a program like it.

    systemd-socket-activate -l 5555 python examples/socket_activation.py

The descriptors are handed over as systemd does it: from 3 on, LISTEN_FDS of them, for the process
LISTEN_PID. Whoever opened them keeps the port while this program is restarted, so that no client is
refused meanwhile.
"""

import logging
import os
import socket
import sys

import trio

from trio_bytetalk import Connection, Server, stop_on_signals

FIRST = 3  # SD_LISTEN_FDS_START in sd_listen_fds(3)


def inherited_listeners() -> list[trio.SocketListener]:
    """The listening sockets that this process was started with."""
    if os.environ.pop("LISTEN_PID", None) != str(os.getpid()):
        return []  # they are not for us, but for the process that started us
    listeners = []
    for descriptor in range(FIRST, FIRST + int(os.environ.pop("LISTEN_FDS", "0"))):
        os.set_inheritable(descriptor, False)
        opened = socket.socket(fileno=descriptor)  # it sees for itself of what kind it is
        listeners.append(trio.SocketListener(trio.socket.from_stdlib_socket(opened)))
    return listeners


async def echo(connection: Connection[bytes, bytes]) -> None:
    async for message in connection:
        await connection.send(message)


async def main() -> str | None:
    listeners = inherited_listeners()
    if not listeners:
        return "no listening sockets were handed over (LISTEN_PID and LISTEN_FDS)"
    server = Server(echo)
    with stop_on_signals(server):
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve_listeners, listeners)
            print(f"echo server on {len(listeners)} inherited sockets")
    return None


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    sys.exit(trio.run(main))
