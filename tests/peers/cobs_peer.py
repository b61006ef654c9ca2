"""The package cobs over a socket: frames that end with a zero, each answered as answers.py says.

python cobs_peer.py cobs [PORT]
"""

import sys

from answers import answer
from cobs import cobs
from one_connection import connect


def main(_protocol: str, port: str | None = None) -> None:
    with connect(port) as connection:
        rest = b""
        while chunk := connection.recv(65536):
            *frames, rest = (rest + chunk).split(b"\0")
            for frame in frames:
                connection.sendall(cobs.encode(answer(cobs.decode(frame))) + b"\0")
        assert rest == b""


main(*sys.argv[1:])
