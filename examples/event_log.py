"""An echo server that another task watches: every event of every connection, as one stream.

    python examples/event_log.py
    python examples/echo_client.py hello world      # in another terminal

Ctrl-C (or SIGTERM) lets conversations finish, a second one ends them.
"""

import argparse
import logging
import sys
from functools import partial

import trio

from trio_bytetalk import (
    ClientConnected,
    ClientDisconnected,
    Connection,
    Event,
    MessageReceived,
    MessageWritten,
    Server,
    Subscription,
    stop_on_signals,
)


async def echo(connection: Connection[bytes, bytes]) -> None:
    async for message in connection:
        await connection.send(message)


async def write_log(events: Subscription[Event]) -> None:
    async for event in events:  # it ends when the server has stopped
        match event:
            case ClientConnected(connection):
                text = "connected"
            case MessageReceived(connection, message):
                text = f"received {message!r:.60}"
            case MessageWritten(connection, message):
                text = f"was sent {message!r:.60}"
            case ClientDisconnected(connection):
                numbers = connection.statistics()
                text = (
                    f"left: {connection.close_reason} "
                    f"({numbers.bytes_received} bytes in, {numbers.bytes_sent} out)"
                )
        # In a thread, for a terminal can be slow, or even stopped.
        await trio.to_thread.run_sync(print, connection.remote_address, text)
    print(f"end of the log; {events.dropped} events were dropped")


async def main(host: str, port: int) -> str | None:
    server = Server(echo)
    # If the terminal is slow, lines are lost; with overflow="wait" the server would wait for it.
    with stop_on_signals(server):
        async with server.events(overflow="drop_oldest") as events, trio.open_nursery() as serving:
            try:
                listeners = await serving.start(partial(server.serve_tcp, port, host=host))
            except (OSError, ValueError) as error:
                return str(error)
            print("event log of {} port {}".format(*listeners[0].socket.getsockname()))
            serving.start_soon(write_log, events)
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
