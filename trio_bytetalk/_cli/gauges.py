"""What a server's statistics say once a second: rates, queues, and who is busiest."""

from __future__ import annotations

import heapq
import math
import operator
from collections import deque
from typing import Any, Final

import attrs
import trio

from .._connection import ConnectionStatistics
from .._server import Server, ServerStatistics
from .figures import duration, plural, size
from .peers import NO_TRAFFIC, Peer, Peers, Traffic

# How many samples are kept: a minute, at one a second.
HISTORY: Final = 60

# With many connections, they are looked at one by one less often than samples are taken: about so
# many a second. That keeps it to a few hundredths of a processor, as each takes some 10 µs.
_LOOKED_AT_A_SECOND: Final = 2000

# So many connections are looked at between two of the scheduler's turns. It takes a few
# milliseconds.
_AT_ONCE: Final = 200


@attrs.frozen
class Busy:
    """One of the busiest connections."""

    address: str
    name: str
    since: float
    """When it connected, on Trio's clock."""
    rate: Traffic = NO_TRAFFIC
    queued: int = 0


@attrs.frozen
class Backlog:
    """What is queued, and has not been sent."""

    connections: int = 0
    """How many have unsent bytes."""
    bytes: int = 0
    most: int = 0
    """In bytes, of one connection."""


@attrs.frozen
class Sample:
    """What is seen of a server at one time."""

    now: float
    """On Trio's clock."""
    uptime: float
    server: ServerStatistics
    total: Traffic
    rate: Traffic
    history: tuple[Traffic, ...]
    """The rates of the last minute, this one included."""
    samples: int
    """How many there have been."""
    backlog: Backlog
    busiest: tuple[Busy, ...]


@attrs.define(eq=False)
class Gauges:
    """Takes samples of a server."""

    server: Server[Any, Any]
    peers: Peers
    _began: float = attrs.field(factory=trio.current_time, init=False)
    _at: float = attrs.field(init=False)
    _total: Traffic = attrs.field(default=NO_TRAFFIC, init=False)
    _history: deque[Traffic] = attrs.field(factory=lambda: deque(maxlen=HISTORY), init=False)
    _samples: int = attrs.field(default=0, init=False)

    # Of the connections one by one.
    _looked_at: float = attrs.field(init=False)
    _look_due: float = attrs.field(default=-math.inf, init=False)
    _backlog: Backlog = attrs.field(factory=Backlog, init=False)
    _busiest: tuple[Busy, ...] = attrs.field(default=(), init=False)

    def __attrs_post_init__(self) -> None:
        self._at = self._looked_at = self._began

    async def sample(self, rows: int) -> Sample:
        """Take a sample, with the busiest connections, ``rows`` of them.

        Others have their turns meanwhile. Cancelled, there is none.
        """
        now = trio.current_time()
        numbers = self.server.statistics()
        total = _traffic(numbers)
        rate = total.since(self._total, now - self._at)
        if now > self._at:
            self._history.append(rate)
            self._samples += 1
        self._at, self._total = now, total
        if now >= self._look_due:
            await self._look_at_connections(now - self._looked_at, rows)
            self._looked_at = now
            self._look_due = now + numbers.connections / _LOOKED_AT_A_SECOND - 1
        return Sample(
            now=now,
            uptime=now - self._began,
            server=numbers,
            total=total,
            rate=rate,
            history=tuple(self._history),
            samples=self._samples,
            backlog=self._backlog,
            busiest=self._busiest,
        )

    def summary(self) -> str:
        """What was done in all, in a line."""
        numbers = self.server.statistics()
        return (
            f"served {plural(numbers.connections_total, 'connection')} "
            f"in {duration(trio.current_time() - self._began)}: "
            f"{plural(numbers.messages_received, 'message')}, {size(numbers.bytes_received)} in; "
            f"{plural(numbers.messages_sent, 'message')}, {size(numbers.bytes_sent)} out"
        )

    async def _look_at_connections(self, seconds: float, rows: int) -> None:
        waiting = queued = most = 0
        # Those that do nothing are many as a rule, so nothing is made for them.
        active: list[tuple[float, float, int, int, Busy]] = []
        idle: list[Peer] = []
        for number, connection in enumerate(self.server.connections, 1):
            if number % _AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
            peer = self.peers.of(connection)
            numbers = connection.statistics()
            if numbers.bytes_queued:
                waiting += 1
                queued += numbers.bytes_queued
                most = max(most, numbers.bytes_queued)
            elif _moved(numbers) == peer.moved:
                idle.append(peer)
                continue
            traffic = _traffic(numbers)
            rate = traffic.since(peer.traffic, seconds)
            peer.traffic, peer.moved = traffic, _moved(numbers)
            one = Busy(peer.address, peer.name, peer.since, rate, numbers.bytes_queued)
            messages = rate.messages_in + rate.messages_out
            active.append((messages, rate.bytes_in + rate.bytes_out, one.queued, number, one))
        busiest = [one for *_, one in heapq.nlargest(rows, active)]
        busiest += (
            Busy(peer.address, peer.name, peer.since)
            for peer in heapq.nsmallest(rows - len(busiest), idle, key=_since)
        )
        self._backlog, self._busiest = Backlog(waiting, queued, most), tuple(busiest)


def _moved(numbers: ConnectionStatistics) -> int:
    """Differs from what it was if anything was received or sent meanwhile."""
    return (
        numbers.messages_received
        + numbers.messages_sent
        + numbers.bytes_received
        + numbers.bytes_sent
    )


_since: Final = operator.attrgetter("since")


def _traffic(numbers: ConnectionStatistics | ServerStatistics) -> Traffic:
    return Traffic(
        numbers.messages_received,
        numbers.messages_sent,
        numbers.bytes_received,
        numbers.bytes_sent,
    )
