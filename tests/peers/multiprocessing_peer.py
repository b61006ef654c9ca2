"""A Listener or a Client of multiprocessing.connection, with authentication.

Each message is answered as answers.py says.

python multiprocessing_peer.py KEY [PORT]
"""

import sys
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener

from answers import answer

HOST = "127.0.0.1"


def connect(key: bytes, port: str | None = None) -> "Connection[bytes, bytes]":
    if port is not None:
        return Client((HOST, int(port)), authkey=key)
    with Listener((HOST, 0), authkey=key) as listener:
        print(f"listening on port {listener.address[1]}")
        return listener.accept()


def main(key: str, port: str | None = None) -> None:
    try:
        connection = connect(key.encode(), port)
    except AuthenticationError as error:
        print(error)
        return
    with connection:
        try:
            while True:
                connection.send_bytes(answer(connection.recv_bytes()))
        except EOFError:
            pass


main(*sys.argv[1:])
