"""Not a contender: whole length-prefixed messages with one copy in and one copy out.

Each message is received into the place that it is sent from, by as many system calls as it takes.
No server that waits for a whole message can cost less; what it costs when messages arrive in small
pieces is what the system calls explain.
"""

from __future__ import annotations

import select
import socket

from benchmarks.contenders._serving import LOOPBACK, announce, parse_options


class Peer:
    """One connection: a message is taken, and then given back."""

    def __init__(self, sock: socket.socket, max_size: int) -> None:
        self.sock = sock
        self.frame = memoryview(bytearray(4 + max_size))
        self.start()

    def start(self) -> None:
        self.position = 0
        self.end = 4  # until the header says more

    def take(self) -> bool:
        """Read once; true when the message is complete.

        Raises:
          ConnectionError: the peer has finished.
        """
        size = self.sock.recv_into(self.frame[self.position : self.end])
        if not size:
            raise ConnectionResetError("the peer has finished")
        self.position += size
        if self.position == 4 == self.end:
            self.end += int.from_bytes(self.frame[:4], "big")
        elif self.position == self.end:
            self.position = 0
            return True
        return False

    def give(self) -> bool:
        """Send once; true when all of the message has gone."""
        self.position += self.sock.send(self.frame[self.position : self.end])
        return self.position == self.end


def main() -> None:
    options = parse_options("max-size")
    listener = socket.create_server((LOOPBACK, 0), backlog=4096)
    epoll = select.epoll()
    epoll.register(listener, select.EPOLLIN)
    announce(listener.getsockname()[1])
    peers: dict[int, Peer] = {}
    while True:
        for fd, event in epoll.poll():
            peer = peers.get(fd)
            if peer is None:
                sock, _ = listener.accept()
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                epoll.register(sock, select.EPOLLIN)
                peers[sock.fileno()] = Peer(sock, options.max_size)
                continue
            try:
                if event & select.EPOLLOUT:
                    if peer.give():
                        peer.start()
                        epoll.modify(fd, select.EPOLLIN)
                elif peer.take():
                    epoll.modify(fd, select.EPOLLOUT)
            except ConnectionError:
                del peers[fd]
                peer.sock.close()


if __name__ == "__main__":
    main()
