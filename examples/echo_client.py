"""A client for echo_server.py: sends each argument as a message and shows what comes back.

    python examples/echo_client.py hello world

The server must be running.
"""

import argparse
import sys

import trio

from trio_bytetalk import open_tcp_connection


async def main(host: str, port: int, messages: list[str]) -> None:
    try:
        async with open_tcp_connection(host, port) as connection:
            for message in messages:
                began = trio.current_time()
                await connection.send(message.encode())
                reply = await connection.receive()
                milliseconds = (trio.current_time() - began) * 1000
                print(f"{reply.decode()}   ({len(reply)} bytes, {milliseconds:.2f} ms)")
    except (OSError, ValueError) as error:
        sys.exit(str(error))  # it says where to, and why not
    except (trio.EndOfChannel, trio.BrokenResourceError) as error:
        sys.exit(f"the server has gone: {error}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=5555)
    parser.add_argument("messages", nargs="*", default=["hello"])
    options = parser.parse_args()
    trio.run(main, options.host, options.port, options.messages)
