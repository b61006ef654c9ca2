"""Not a contender: a server that does as little as a Python program can.

It sends back what came, in large blocks, without looking for messages. What the load generator
reaches against it is the least that the generator can do, so it is printed beside the contenders
as the generator's ceiling.
"""

from __future__ import annotations

import select
import socket
import ssl
from typing import Final

from benchmarks.contenders._serving import (
    LOOPBACK,
    announce,
    parse_options,
    server_tls_context,
)

BLOCK: Final = 256 * 1024
_received: Final = memoryview(bytearray(BLOCK))
_decrypted: Final = bytearray(BLOCK)


class Peer:
    """One connection, echoed."""

    def __init__(self, sock: socket.socket, epoll: select.epoll) -> None:
        self.sock = sock
        self.epoll = epoll
        self.unsent = memoryview(b"")

    def on_readable(self) -> bool:
        """Echo what has come; false once the peer has finished."""
        size = self.sock.recv_into(_received)
        if size:
            self.send(_received[:size])
        return size > 0

    def send(self, data: memoryview) -> None:
        try:
            sent = self.sock.send(data)
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            # Nothing more is read until this has gone, so that nothing piles up.
            self.unsent = memoryview(bytes(data[sent:]))
            self.epoll.modify(self.sock, select.EPOLLOUT)

    def on_writable(self) -> None:
        self.unsent = self.unsent[self.sock.send(self.unsent) :]
        if not self.unsent:
            self.epoll.modify(self.sock, select.EPOLLIN)


class TLSPeer(Peer):
    """The same over TLS. Many records are taken from one system call, and given to one."""

    def __init__(self, sock: socket.socket, epoll: select.epoll, context: ssl.SSLContext) -> None:
        super().__init__(sock, epoll)
        self.incoming = ssl.MemoryBIO()
        self.outgoing = ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_side=True)
        self.shaken_hands = False

    def on_readable(self) -> bool:
        size = self.sock.recv_into(_received)
        if not size:
            return False
        self.incoming.write(_received[:size])
        try:
            if not self.shaken_hands:
                self.tls.do_handshake()
                self.shaken_hands = True
            while True:
                got = int(self.tls.read(BLOCK, _decrypted))  # the stubs say bytes
                if not got:
                    return False
                with memoryview(_decrypted) as plain:
                    self.tls.write(plain[:got])
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLEOFError:
            return False
        if self.outgoing.pending:
            self.send(memoryview(self.outgoing.read()))
        return True


def main() -> None:
    options = parse_options("tls", "max-size")  # it has no messages: any size will do
    context = server_tls_context(options.tls)
    listener = socket.create_server((LOOPBACK, 0), backlog=4096)
    listener.setblocking(False)
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
                peers[sock.fileno()] = (
                    Peer(sock, epoll) if context is None else TLSPeer(sock, epoll, context)
                )
                continue
            try:
                if event & select.EPOLLOUT:
                    peer.on_writable()
                    alive = True
                else:
                    alive = peer.on_readable()
            except ConnectionError:
                alive = False
            if not alive:
                del peers[fd]
                peer.sock.close()


if __name__ == "__main__":
    main()
