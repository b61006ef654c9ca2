"""The generator's ends of the connections."""

from __future__ import annotations

import select
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from benchmarks.generator.traffic import BLOCK, Traffic

PATIENCE: Final = 20.0
"""Seconds after which a server that says nothing is taken to have failed."""

_BATCH: Final = 32
"""Connections opened before the first of them must have been served. Less than the shortest
default backlog among the contenders (50), so that no connection is ever refused or delayed."""

_SHARE: Final = 16
"""The window is filled up again when this part of it has come back, and the kernel reports a socket
when as much is there (SO_RCVLOWAT). Otherwise a server that sends each reply by itself would be
measured at how fast it can wake the generator: asyncio's Protocol came to 155,000 messages a second
instead of 250,000, with the generator 55% busy instead of 10%."""

_BATCH_BYTES: Final = 4096
_BATCH_MESSAGES: Final = 64
"""No more than this is left to gather. Of more, TCP acknowledges so late, or small segments fill
the receive buffer so far, that a server had to wait: one was found idle for half of the time."""

_LARGE: Final = 8 * 1024
"""Bytes of a message above which copying is most of what it costs."""

_SAMPLE: Final = 8
"""How many reads of large messages there are for each that is looked at."""

_TURN: Final = BLOCK
"""Bytes that one connection may send before the next one has its turn."""

_received = memoryview(bytearray(BLOCK))
_decrypted = bytearray(BLOCK)


class ServerFailedError(Exception):
    """The server closed a connection, or said nothing for too long."""


def loopback_source(index: int) -> str:
    """A client address for the connection of this number.

    Every address in 127.0.0.0/8 is this host, and each has ports of its own: no load runs out of
    ports, however many connections of earlier loads the kernel still remembers.
    """
    return f"127.0.0.{1 + index // 256 % 250}"


def connect(port: int, index: int) -> socket.socket:
    """Open one blocking connection."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.settimeout(PATIENCE)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        bind_source(sock, index)
        sock.connect(("127.0.0.1", port))
    except BaseException:
        sock.close()
        raise
    return sock


def bind_source(sock: socket.socket, index: int) -> None:
    """Give a socket its client address, and let ``connect`` choose the port."""
    # IP_BIND_ADDRESS_NO_PORT (24, not in the socket module): without it the kernel must find a
    # port that is free for every destination, and there are not enough of those.
    sock.setsockopt(socket.IPPROTO_IP, 24, 1)
    sock.bind((loopback_source(index), 0))


class EchoConnection:
    """One connection that keeps a number of messages in flight, and checks what comes back."""

    __slots__ = (
        "_batch",
        "_check",
        "_checks_every",
        "_cycle",
        "_data",
        "_frame",
        "_last",
        "_origin",
        "_piece",
        "_receive",
        "_send",
        "_until_check",
        "_window",
        "received",
        "sent",
        "sock",
        "wants_to_send",
    )

    def __init__(
        self, sock: socket.socket, traffic: Traffic, index: int, window: int, piece: int
    ) -> None:
        self.sock = sock
        self._checks_every = 1
        self.received = 0
        self.sent = 0
        self.wants_to_send = False
        self._data = memoryview(traffic.data)
        self._check = traffic.check
        self._frame = traffic.frame
        self._cycle = traffic.cycle
        self._origin = traffic.starting_offset(index)
        self._window = window
        gathered = min(window // _SHARE, _BATCH_BYTES // traffic.frame, _BATCH_MESSAGES)
        self._batch = max(1, gathered) * traffic.frame
        self._last: int | None = None
        self._piece = piece
        self._until_check = 0
        self._receive = sock.recv_into
        self._send = sock.send

    def greet(self) -> None:
        """Send one message on a connection that still blocks."""
        start = self._origin
        self.sock.sendall(self._data[start : start + min(self._frame, BLOCK)])
        self.sent = min(self._frame, BLOCK)

    def await_greeting(self) -> None:
        """Wait until the first message is back, so that the server is known to serve this."""
        while self.received < self.sent:
            self.take()

    def begin(self) -> None:
        """Stop blocking, and let small replies gather before the kernel reports them."""
        self.sock.setblocking(False)
        if self._batch > self._frame:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, self._batch)

    def spare_the_generator(self) -> None:
        """From now on, look at one of several reads only, where messages are large.

        Copying large messages out of the kernel costs the generator as much as it costs a server.
        What is not looked at is thrown away by the kernel; what is must still be at its place in
        the stream. The warm-up before this has looked at every byte.
        """
        if self._frame > _LARGE:
            self._checks_every = _SAMPLE

    def finish(self) -> None:
        """Begin no other message, and let the kernel report whatever there is."""
        self._last = self.sent + -self.sent % self._frame
        self._batch = 1
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)

    def is_finished(self) -> bool:
        """Whether all is back that was sent."""
        return self.received == self._last

    def _owed(self) -> int:
        if self._last is not None:
            return self._last - self.sent
        return (self._window + self.received // self._frame) * self._frame - self.sent

    def take(self) -> int:
        """Read once, compare, and say how many bytes it was."""
        if self._until_check:
            self._until_check -= 1
            size = self._receive(_received, BLOCK, socket.MSG_TRUNC)
        else:
            self._until_check = self._checks_every - 1
            size = self._receive(_received)
            self._check(_received[:size], (self._origin + self.received) % self._cycle)
        if not size:
            raise ServerFailedError("the server closed a connection")
        self.received += size
        return size

    def top_up(self) -> None:
        """Send until the window is full again, the kernel takes no more, or the turn is over."""
        owed = self._owed()
        if owed < self._batch and not self.wants_to_send:
            return
        data = self._data
        turn = _TURN
        while owed > 0 and turn > 0:
            start = (self._origin + self.sent) % self._cycle
            try:
                size = self._send(data[start : start + min(owed, self._piece)])
            except BlockingIOError:
                break
            self.sent += size
            owed -= size
            turn -= size
        self.wants_to_send = owed > 0


class TLSEchoConnection(EchoConnection):
    """The same over TLS.

    OpenSSL reads a socket twice for each record. Memory buffers take all the records that have
    come with one system call, which keeps the generator ahead of servers that send small ones.
    """

    __slots__ = ("_incoming", "_outgoing", "_tls", "_unsent")

    def __init__(
        self,
        sock: socket.socket,
        traffic: Traffic,
        index: int,
        window: int,
        piece: int,
        context: ssl.SSLContext,
    ) -> None:
        super().__init__(sock, traffic, index, window, piece)
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="localhost")
        self._unsent = memoryview(b"")

    def _handshake(self) -> None:
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self.sock.sendall(self._outgoing.read())
                self._incoming.write(self.sock.recv(BLOCK))
            else:
                self.sock.sendall(self._outgoing.read())
                return

    def greet(self) -> None:
        self._handshake()
        self._tls.write(self._data[self._origin : self._origin + self._frame])
        self.sent = self._frame
        self.sock.sendall(self._outgoing.read())

    def spare_the_generator(self) -> None:
        pass  # what is not read is not decrypted

    def take(self) -> int:
        size = self._receive(_received)
        if not size:
            raise ServerFailedError("the server closed a connection")
        self._incoming.write(_received[:size])
        total = 0
        with suppress(ssl.SSLWantReadError), memoryview(_decrypted) as plain:
            while size := int(self._tls.read(BLOCK, _decrypted)):  # the stubs say bytes
                offset = (self._origin + self.received) % self._cycle
                self._check(plain[:size], offset)
                self.received += size
                total += size
        return total

    def top_up(self) -> None:
        if not self._unsent:
            owed = self._owed()
            if owed < self._batch:
                return
            data = self._data
            while owed > 0:
                start = (self._origin + self.sent) % self._cycle
                size = self._tls.write(data[start : start + min(owed, BLOCK)])
                self.sent += size
                owed -= size
            self._unsent = memoryview(self._outgoing.read())
        with suppress(BlockingIOError):
            while self._unsent:
                self._unsent = self._unsent[self._send(self._unsent) :]
        self.wants_to_send = bool(self._unsent)


@contextmanager
def open_connections(
    port: int,
    count: int,
    traffic: Traffic,
    *,
    window: int = 1,
    piece: int = BLOCK,
    tls: ssl.SSLContext | None = None,
) -> Iterator[list[EchoConnection]]:
    """Open connections, and have one message echoed on each, so that all are known to be served.

    Args:
      port: where the server listens.
      count: how many connections.
      traffic: what they send.
      window: messages that each keeps in flight.
      piece: the most bytes that one system call sends.
      tls: the context for TLS, or ``None`` for plain TCP.
    """
    connections: list[EchoConnection] = []
    try:
        while len(connections) < count:
            batch = []
            for index in range(len(connections), min(len(connections) + _BATCH, count)):
                sock = connect(port, index)
                if tls is None:
                    connection = EchoConnection(sock, traffic, index, window, piece)
                else:
                    connection = TLSEchoConnection(sock, traffic, index, window, piece, tls)
                batch.append(connection)
                connections.append(connection)
            for connection in batch:
                connection.greet()
            if traffic.frame <= BLOCK:
                for connection in batch:
                    connection.await_greeting()
        for connection in connections:
            connection.begin()
        yield connections
    finally:
        for connection in connections:
            connection.sock.close()


def poll_or_fail(epoll: select.epoll, deadline: float) -> list[tuple[int, int]]:
    """Wait for events, and take a long silence for a failure."""
    events = epoll.poll(PATIENCE)
    if not events:
        raise ServerFailedError(f"nothing came from the server for {PATIENCE:.0f} s")
    if time.perf_counter() > deadline:
        raise ServerFailedError("the load took longer than it may")
    return events
