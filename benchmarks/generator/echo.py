"""Load: a number of connections, each with a number of messages in flight."""

from __future__ import annotations

import itertools
import select
import ssl
import time
from abc import ABC, abstractmethod
from typing import Final

import attrs

from benchmarks.generator.clocks import ProcessClock, Stopwatch, Usage
from benchmarks.generator.connections import (
    PATIENCE,
    EchoConnection,
    ServerFailedError,
    open_connections,
    poll_or_fail,
)
from benchmarks.generator.traffic import BLOCK, Traffic, WrongEchoError

_SMALL: Final = 4096
"""Messages up to this size come in one piece, but for rare exceptions."""

_READABLE: Final = select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR


@attrs.frozen
class Echoed:
    """What came back while the clock ran."""

    size: int
    """Bytes echoed, frames included, counted as they arrived."""

    messages: float
    usage: Usage


def run_echo(
    port: int,
    server: ProcessClock,
    traffic: Traffic,
    *,
    connections: int,
    window: int,
    piece: int = BLOCK,
    tls: ssl.SSLContext | None = None,
    warmup: float,
    seconds: float,
) -> Echoed:
    """Keep the load up for a while, and count what comes back after the warm-up.

    Args:
      port: where the server listens.
      server: the server's processor time.
      traffic: what to send.
      connections: how many connections.
      window: messages that each keeps in flight.
      piece: the most bytes that one system call sends.
      tls: the context for TLS, or ``None`` for plain TCP.
      warmup: seconds of the same load before the clock starts.
      seconds: seconds with the clock running.

    Raises:
      WrongEchoError: a byte that came back is not the byte that was sent.
      ServerFailedError: the server closed a connection or stopped answering.
    """
    with (
        open_connections(port, connections, traffic, window=window, piece=piece, tls=tls) as opened,
        select.epoll() as epoll,
    ):
        loop: _Loop
        if window == 1 and traffic.frame <= min(piece, _SMALL) and tls is None:
            loop = _PingPong(epoll, opened, traffic)
        else:
            loop = _Windows(epoll, opened)
        loop.run_until(time.perf_counter() + warmup)
        for connection in opened:
            connection.spare_the_generator()
        stopwatch = Stopwatch(server)
        size = loop.run_until(time.perf_counter() + seconds)
        usage = stopwatch.stop()
        loop.finish()
    return Echoed(size, size / traffic.frame, usage)


class _Loop(ABC):
    """Keeps the load up."""

    @abstractmethod
    def run_until(self, end: float) -> int:
        """Go on until then, and say how many bytes came back."""

    @abstractmethod
    def finish(self) -> None:
        """Send nothing new, and wait until all is back: a message that was lost is missed here."""


class _Windows(_Loop):
    """Any number of messages in flight."""

    def __init__(self, epoll: select.epoll, connections: list[EchoConnection]) -> None:
        self._epoll = epoll
        self._connections = {connection.sock.fileno(): connection for connection in connections}
        self._waiting_to_send: set[int] = set()
        for fd, connection in self._connections.items():
            epoll.register(fd, select.EPOLLIN)
            connection.top_up()
            if connection.wants_to_send:
                self._wait_to_send(fd)

    def _wait_to_send(self, fd: int) -> None:
        self._waiting_to_send.add(fd)
        self._epoll.modify(fd, select.EPOLLIN | select.EPOLLOUT)

    def _all_is_sent(self, fd: int) -> None:
        self._waiting_to_send.discard(fd)
        self._epoll.modify(fd, select.EPOLLIN)

    def run_until(self, end: float) -> int:
        clock = time.perf_counter
        deadline = end + PATIENCE
        total = 0
        while clock() < end:
            total += self._turn(deadline)
        return total

    def _turn(self, deadline: float) -> int:
        """Wait for events, work through them, and say how many bytes came back."""
        connections, waiting = self._connections, self._waiting_to_send
        total = 0
        for fd, event in poll_or_fail(self._epoll, deadline):
            connection = connections[fd]
            if event & _READABLE:
                total += connection.take()
            connection.top_up()
            if connection.wants_to_send is not (fd in waiting):
                if connection.wants_to_send:
                    self._wait_to_send(fd)
                else:
                    self._all_is_sent(fd)
        return total

    def finish(self) -> None:
        deadline = time.perf_counter() + PATIENCE
        for connection in self._connections.values():
            connection.finish()
        while not all(connection.is_finished() for connection in self._connections.values()):
            self._turn(deadline)


class _PingPong(_Loop):
    """One small message in flight on each connection.

    Here the kernel costs a server little more than it costs the generator, so the generator has to
    do as little as it can for itself: it compares whole messages, in as few calls as possible.
    """

    def __init__(
        self, epoll: select.epoll, connections: list[EchoConnection], traffic: Traffic
    ) -> None:
        self._epoll = epoll
        self._frame = traffic.frame
        self._next = itertools.cycle(traffic.messages()).__next__
        self._receive = {}
        self._send = {}
        self._expected = {}
        for connection in connections:
            fd = connection.sock.fileno()
            epoll.register(fd, select.EPOLLIN)
            self._receive[fd] = connection.sock.recv
            self._send[fd] = connection.sock.send
            self._expected[fd] = message = self._next()
            connection.sock.send(message)

    def run_until(self, end: float) -> int:
        epoll, expected, next_message = self._epoll, self._expected, self._next
        receive, send, frame = self._receive, self._send, self._frame
        clock = time.perf_counter
        deadline = end + PATIENCE
        total = 0
        while clock() < end:
            for fd, _ in poll_or_fail(epoll, deadline):
                received = receive[fd](frame)
                if received != expected[fd]:
                    self._take_piece(fd, received)
                    continue
                total += frame
                expected[fd] = message = next_message()
                send[fd](message)
        return total

    def _take_piece(self, fd: int, received: bytes) -> None:
        """Not what was expected: a piece of it, or nothing of the kind."""
        expected = self._expected[fd]
        if not received:
            raise ServerFailedError("the server closed a connection")
        if not expected.startswith(received):
            raise WrongEchoError(f"expected {expected.hex()}, got {received.hex()}")
        self._expected[fd] = expected[len(received) :]

    def finish(self) -> None:
        missing = len(self._expected)
        deadline = time.perf_counter() + PATIENCE
        while missing:
            for fd, _ in poll_or_fail(self._epoll, deadline):
                received = self._receive[fd](self._frame)
                missing -= received == self._expected[fd]
                self._take_piece(fd, received)
