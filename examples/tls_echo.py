"""An echo server for lines of text under TLS.

    python -m trustme               # writes server.pem, server.key and client.pem, for localhost
    python examples/tls_echo.py --cert server.pem --key server.key
    bytetalk connect :5555 --codec lines --tls-ca client.pem        # in another terminal

Without --cert it makes a certificate for this run (with trustme), which nobody has to trust. A
client in Python would connect with

    context = ssl.create_default_context(cafile="client.pem")
    open_tcp_connection("localhost", 5555, codec=Lines(), ssl_context=context)
"""

import argparse
import logging
import ssl
import sys
from functools import partial
from pathlib import Path

import trio

from trio_bytetalk import Connection, Lines, Server, stop_on_signals


def load_context(cert: Path | None, key: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    if cert is None:
        try:
            import trustme
        except ImportError:
            sys.exit("give a --cert, or pip install trustme for one to try things out with")
        trustme.CA().issue_cert("localhost", "127.0.0.1", "::1").configure_cert(context)
        return context
    try:
        # Read first, for load_cert_chain does not say which of the two files it cannot read.
        for file in filter(None, (cert, key)):
            file.read_bytes()
        context.load_cert_chain(cert, key)
    except ssl.SSLError as error:
        sys.exit(f"{cert} and {key or 'its key'} are no certificate and key: {error.strerror}")
    except OSError as error:
        sys.exit(f"cannot read {error.filename}: {error.strerror}")
    return context


async def echo(connection: Connection[str, str]) -> None:
    async for line in connection:
        await connection.send(line)


async def main(host: str, port: int, context: ssl.SSLContext) -> str | None:
    server = Server(echo, codec=Lines())
    serve = partial(server.serve_tcp, port, host=host, ssl_context=context)
    with stop_on_signals(server):
        async with trio.open_nursery() as serving:
            try:
                listeners = await serving.start(serve)
            except (OSError, ValueError) as error:
                return str(error)
            print("TLS echo server on {} port {}".format(*listeners[0].socket.getsockname()))
    return None


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=5555, help="0 has the system choose one")
    parser.add_argument("--cert", type=Path, help="a PEM file, with the chain")
    parser.add_argument("--key", type=Path, help="a PEM file, if the key is not in --cert's")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if options.key and not options.cert:
        parser.error("--key needs --cert")
    sys.exit(trio.run(main, options.host, options.port, load_context(options.cert, options.key)))
