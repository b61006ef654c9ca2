"""An echo server whose numbers Prometheus, or a browser, can read while it runs.

    pip install '.[prometheus]'
    python examples/metrics.py
    python examples/echo_client.py hello world      # in another terminal
    curl http://127.0.0.1:9000/metrics

Prometheus's client library answers in a thread of its own; the collector has Trio's thread look.
"""

import argparse
import contextlib
import logging
import sys
from collections.abc import Iterator
from functools import partial

import trio
from prometheus_client import CollectorRegistry, start_http_server

from trio_bytetalk import Connection, Server, stop_on_signals
from trio_bytetalk.prometheus import ServerCollector


async def echo(connection: Connection[bytes, bytes]) -> None:
    async for message in connection:
        await connection.send(message)


@contextlib.contextmanager
def metrics_served(registry: CollectorRegistry, host: str, port: int) -> Iterator[int]:
    """Answer Prometheus within the block; the port."""
    httpd, thread = start_http_server(port, host, registry)
    try:
        yield httpd.server_port
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()


async def main(host: str, port: int, metrics_port: int) -> str | None:
    server = Server(echo)
    registry = CollectorRegistry()
    registry.register(ServerCollector({"echo": server}))
    with contextlib.ExitStack() as stack:
        stack.enter_context(stop_on_signals(server))
        async with trio.open_nursery() as serving:
            try:
                listeners = await serving.start(partial(server.serve_tcp, port, host=host))
                actual = stack.enter_context(metrics_served(registry, host, metrics_port))
            except (OSError, ValueError) as error:
                serving.cancel_scope.cancel()
                return str(error)
            print("echo server on {} port {}".format(*listeners[0].socket.getsockname()))
            print(f"metrics on http://{host}:{actual}/metrics")
    return None


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=5555, help="0 has the system choose one")
    parser.add_argument("--metrics-port", type=int, default=9000, help="0: as for --port")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.exit(trio.run(main, options.host, options.port, options.metrics_port))
