"""Load: connections that are opened, used for one message, and closed, as fast as they can be."""

from __future__ import annotations

import errno
import select
import socket
import time

import attrs

from benchmarks.generator.clocks import ProcessClock, Stopwatch, Usage
from benchmarks.generator.connections import (
    PATIENCE,
    ServerFailedError,
    bind_source,
    poll_or_fail,
)
from benchmarks.generator.traffic import Traffic


@attrs.frozen
class Turnover:
    """How many connections lived and ended while the clock ran."""

    connections: int
    usage: Usage


def run_turnover(
    port: int,
    server: ProcessClock,
    traffic: Traffic,
    *,
    at_once: int,
    warmup: float,
    seconds: float,
) -> Turnover:
    """Open a connection, have one message echoed, close it, and open the next.

    Args:
      port: where the server listens.
      server: the server's processor time.
      traffic: what the one message is taken from.
      at_once: how many connections are at some stage of this at any time. Less than the shortest
        default backlog among the contenders, so that no connection is delayed by a full one.
      warmup: seconds of the same before the clock starts.
      seconds: seconds with the clock running.
    """
    with select.epoll() as epoll:
        turnstile = _Turnstile(port, traffic, epoll)
        try:
            for _ in range(at_once):
                turnstile.open()
            turnstile.run_until(time.perf_counter() + warmup)
            stopwatch = Stopwatch(server)
            count = turnstile.run_until(time.perf_counter() + seconds)
            usage = stopwatch.stop()
        finally:
            turnstile.close()
    return Turnover(count, usage)


class _Turnstile:
    def __init__(self, port: int, traffic: Traffic, epoll: select.epoll) -> None:
        self._address = ("127.0.0.1", port)
        self._traffic = traffic
        self._epoll = epoll
        self._data = memoryview(traffic.data)
        self._buffer = memoryview(bytearray(traffic.frame + 1))
        self._opened = 0
        self._open: dict[int, tuple[socket.socket, int]] = {}
        self._connecting: set[int] = set()

    def open(self) -> None:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        bind_source(sock, self._opened)
        fd = sock.fileno()
        self._open[fd] = sock, self._traffic.starting_offset(self._opened)
        self._opened += 1
        code = sock.connect_ex(self._address)
        if code == 0:
            self._speak(fd)
            self._epoll.register(fd, select.EPOLLIN)
        elif code == errno.EINPROGRESS:
            self._connecting.add(fd)
            self._epoll.register(fd, select.EPOLLOUT)
        else:
            raise ServerFailedError(f"cannot connect: {errno.errorcode[code]}")

    def _speak(self, fd: int) -> None:
        sock, offset = self._open[fd]
        sock.sendall(self._data[offset : offset + self._traffic.frame])

    def run_until(self, end: float) -> int:
        """Go on until then, and say how many connections lived and ended."""
        clock = time.perf_counter
        deadline = end + PATIENCE
        count = 0
        while clock() < end:
            for fd, _ in poll_or_fail(self._epoll, deadline):
                if fd in self._connecting:
                    self._connecting.remove(fd)
                    self._speak(fd)
                    self._epoll.modify(fd, select.EPOLLIN)
                    continue
                sock, offset = self._open.pop(fd)
                size = sock.recv_into(self._buffer)
                # So small a message arrives in one piece, or the load is not what it says.
                if size != self._traffic.frame:
                    raise ServerFailedError(f"expected {self._traffic.frame} bytes, got {size}")
                self._traffic.check(self._buffer[:size], offset)
                sock.close()
                count += 1
                self.open()
        return count

    def close(self) -> None:
        for sock, _ in self._open.values():
            sock.close()
