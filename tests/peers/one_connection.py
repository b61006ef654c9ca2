"""For the peers that use plain sockets: the one connection that they speak over."""

import socket

HOST = "127.0.0.1"


def connect(port: str | None) -> socket.socket:
    """Connect to a port; or, without one, listen, say where, and wait for somebody."""
    if port is not None:
        return socket.create_connection((HOST, int(port)))
    with socket.create_server((HOST, 0)) as listener:
        print("listening on port", listener.getsockname()[1], flush=True)
        return listener.accept()[0]
