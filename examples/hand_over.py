"""An echo server that a newer one takes over from, without a client being refused.

    python examples/hand_over.py
    kill -HUP PROCESS               # in another terminal, with the number that it has printed

At SIGHUP it starts its own file again, as that is by now, with the sockets it listens on. Both
processes accept from then on. When the new one serves, it has the old one stop in order; should it
end before that, the old one goes on. The new one is not the terminal's any more, so it is ended
with ``kill`` instead of Ctrl-C.
"""

import argparse
import logging
import os
import signal
import socket
import sys
from functools import partial

import trio

from trio_bytetalk import Connection, Server, stop_on_signals

SOCKETS = "HAND_OVER_SOCKETS"  # the descriptors of the sockets that a new process inherits
OLD = "HAND_OVER_OLD"  # the number of the process that it takes over from


def start_successor(listeners: list[trio.SocketListener]) -> int:
    """Start this program anew, with the listening sockets; return its process number."""
    descriptors = [listener.socket.fileno() for listener in listeners]
    variables = {SOCKETS: " ".join(map(str, descriptors)), OLD: str(os.getpid())}
    for descriptor in descriptors:
        os.set_inheritable(descriptor, True)
    # Not by subprocess, to which a child that outlives its parent is a mistake.
    command = [sys.executable, *sys.orig_argv[1:]]
    successor = os.posix_spawn(command[0], command, os.environ | variables)
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    return successor


def inherited_listeners() -> list[trio.SocketListener]:
    """The sockets that `start_successor` has passed on to this process, if it has."""
    listeners = []
    for descriptor in map(int, os.environ.pop(SOCKETS, "").split()):
        os.set_inheritable(descriptor, False)
        sock = trio.socket.from_stdlib_socket(socket.socket(fileno=descriptor))
        listeners.append(trio.SocketListener(sock))
    return listeners


async def hand_over_at_sighup(
    listeners: list[trio.SocketListener], task_status: trio.TaskStatus[None]
) -> None:
    with trio.open_signal_receiver(signal.SIGHUP) as signals:
        task_status.started()
        async for _ in signals:
            successor = start_successor(listeners)
            # If all is well, it outlives this process.
            await trio.to_thread.run_sync(os.waitpid, successor, 0, abandon_on_cancel=True)
            print(f"process {successor} has failed; going on", flush=True)


async def echo(connection: Connection[bytes, bytes]) -> None:
    async for message in connection:
        await connection.send(message)


async def main(host: str, port: int) -> str | None:
    server = Server(echo)
    serve = partial(server.serve_tcp, port, host=host)
    if inherited := inherited_listeners():
        serve = partial(server.serve_listeners, inherited)
    async with trio.open_nursery() as nursery:
        with stop_on_signals(server):
            async with trio.open_nursery() as serving:
                try:
                    listeners = await serving.start(serve)
                except (OSError, ValueError) as error:
                    return str(error)
                await nursery.start(hand_over_at_sighup, listeners)
                address = "{} port {}".format(*listeners[0].socket.getsockname())
                print(f"echo server on {address}, process {os.getpid()}", flush=True)
                if os.environ.pop(OLD, None) == str(os.getppid()):  # and it is still there
                    os.kill(os.getppid(), signal.SIGTERM)
        nursery.cancel_scope.cancel()
    return None


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=5555, help="0 has the system choose one")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.exit(trio.run(main, options.host, options.port))
