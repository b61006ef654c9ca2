"""The whole thing at a glance: an echo server, clients that talk to it, and what happens meanwhile.

    python examples/demo.py
    python examples/demo.py --clients 200 --messages 100

Server and clients are in one process here, but they talk over a real TCP port. Ctrl-C (or SIGTERM)
stops the server: what it has received it still answers.
"""

import argparse
import logging
import sys
from collections import Counter
from functools import partial

import trio

from trio_bytetalk import (
    ClientConnected,
    ClientDisconnected,
    Connection,
    Event,
    MessageReceived,
    Server,
    Subscription,
    open_tcp_connection,
    stop_on_signals,
)

HOST = "127.0.0.1"
LINES_OF_A_KIND = 20  # are shown, lest a larger run flood the terminal


async def echo(connection: Connection[bytes, bytes]) -> None:
    async for message in connection:
        await connection.send(message)


async def show(events: Subscription[Event], began: float) -> None:
    """Print what happens, as it happens, until the server has stopped."""
    seen: Counter[str] = Counter()
    async for event in events:
        match event:
            case ClientConnected():
                kind, text = "connected", ""
            case MessageReceived(_, message):
                kind, text = "message", message.decode()
            case ClientDisconnected(connection):
                kind, text = "disconnected", str(connection.close_reason)
            case _:
                continue
        seen[kind] += 1
        if seen[kind] <= LINES_OF_A_KIND:
            seconds = trio.current_time() - began
            port = event.connection.remote_address[1]
            print(f"{seconds:7.3f} s   client at port {port:<5}   {kind:<12}   {text}".rstrip())
    for kind, count in seen.items():
        if count > LINES_OF_A_KIND:
            print(f"            ... and {count - LINES_OF_A_KIND} more of: {kind}")


async def talk(name: str, port: int, messages: int) -> None:
    async with open_tcp_connection(HOST, port) as connection:
        for number in range(1, messages + 1):
            question = f"hello {number} from {name}".encode()
            try:
                await connection.send(question)
                answer = await connection.receive()
            except (trio.EndOfChannel, trio.BrokenResourceError):
                print(f"{name} was told that the server stops, at message {number}")
                return
            if answer != question:
                raise ValueError(f"{name} sent {question!r} and received {answer!r}")


async def main(clients: int, messages: int, port: int) -> str | None:
    server = Server(echo)
    began = trio.current_time()
    failure: str | None = None
    with stop_on_signals(server):
        async with server.events() as events, trio.open_nursery() as nursery:
            try:
                listeners = await nursery.start(partial(server.serve_tcp, port, host=HOST))
            except (OSError, ValueError) as error:
                return str(error)
            port = listeners[0].socket.getsockname()[1]
            print(
                f"echo server on {HOST} port {port}, {clients} clients, {messages} messages each\n"
            )

            nursery.start_soon(show, events, began)
            try:
                async with trio.open_nursery() as talks:
                    for number in range(1, clients + 1):
                        talks.start_soon(talk, f"client {number}", port, messages)
            except* OSError as errors:
                failure = str(errors.exceptions[0])
            server.stop()
    if failure is not None:
        return failure

    seconds = trio.current_time() - began
    numbers = server.statistics()
    print(
        f"\n{numbers.connections_total} clients sent {numbers.messages_received} messages and "
        f"received {numbers.messages_sent}, each one as it was sent:\n"
        f"{numbers.bytes_received} bytes in, {numbers.bytes_sent} bytes out, {seconds:.2f} seconds"
    )
    return None


def count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 on")
    return int(text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=count, default=5)
    parser.add_argument("--messages", type=count, default=4, help="sent by each client")
    parser.add_argument("--port", type=count, default=0, help="0 has the system choose one")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.exit(trio.run(main, options.clients, options.messages, options.port))
