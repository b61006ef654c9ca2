"""An echo server: sends every message back to where it came from.

    python examples/echo_server.py
    python examples/echo_client.py hello world      # in another terminal

Ctrl-C (or SIGTERM) lets conversations finish, a second one ends them.
"""

import argparse
import logging
import sys
from functools import partial

import trio

from trio_bytetalk import Connection, Server, stop_on_signals


async def echo(connection: Connection[bytes, bytes]) -> None:
    async for message in connection:
        await connection.send(message)


async def main(host: str, port: int) -> str | None:
    server = Server(echo)
    with stop_on_signals(server):
        async with trio.open_nursery() as serving:
            try:
                listeners = await serving.start(partial(server.serve_tcp, port, host=host))
            except (OSError, ValueError) as error:
                return str(error)
            print("echo server on {} port {}".format(*listeners[0].socket.getsockname()))

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
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.exit(trio.run(main, options.host, options.port))
