"""An echo server: sends every message back to where it came from.

    python examples/echo_server.py
    python examples/echo_client.py hello world      # in another terminal

Ctrl-C (or SIGTERM) lets conversations finish, a second one ends them.
"""

import argparse
import signal
import sys
from functools import partial

import trio

from trio_bytetalk import Connection, Server


async def echo(connection: Connection[bytes, bytes]) -> None:
    async for message in connection:
        await connection.send(message)


async def stop_on_signals(
    server: Server[bytes, bytes],
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        await anext(signals)
        print("stopping; once more to stop at once")
        server.stop()
        await anext(signals)
        print("stopping at once")
        server.stop(0)


async def main(host: str, port: int) -> str | None:
    server = Server(echo)
    async with trio.open_nursery() as watching:
        async with trio.open_nursery() as serving:
            try:
                listeners = await serving.start(partial(server.serve_tcp, port, host=host))
            except (OSError, ValueError) as error:
                return str(error)
            await watching.start(stop_on_signals, server)
            print("echo server on {} port {}".format(*listeners[0].socket.getsockname()))
        watching.cancel_scope.cancel()  # the server has stopped: no signal is waited for any more

    numbers = server.statistics()
    print(f"clients: {numbers.connections_total}, messages: {numbers.messages_received}")
    return None


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=5555, help="0 has the system choose one")
    options = parser.parse_args()
    sys.exit(trio.run(main, options.host, options.port))
