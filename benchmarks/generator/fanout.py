"""Load: many connections, one of which says something that all are to hear."""

from __future__ import annotations

import select
import socket
import statistics
import time
from typing import Final

import attrs

from benchmarks.generator.clocks import ProcessClock, Stopwatch, Usage
from benchmarks.generator.connections import (
    PATIENCE,
    ServerFailedError,
    connect,
    poll_or_fail,
)
from benchmarks.generator.traffic import Traffic, WrongEchoError

_WELCOME: Final = (7).to_bytes(4, "big") + b"welcome"
"""What the servers say to each connection, so that it is known to be a member."""

_BATCH: Final = 32


@attrs.frozen
class Fanout:
    """Times from the message to the last member's having it, in seconds."""

    median: float
    count: int
    usage: Usage


def run_fanout(
    port: int,
    server: ProcessClock,
    traffic: Traffic,
    *,
    connections: int,
    warmup: float,
    seconds: float,
) -> Fanout:
    """One broadcast after the other, each timed until every connection has all of it.

    Args:
      port: where the server listens. It sends every message that it receives to every connection.
      server: the server's processor time.
      traffic: what the messages are taken from.
      connections: how many are to hear it.
      warmup: seconds of the same before the clock starts.
      seconds: seconds with the clock running; at least three broadcasts are timed.
    """
    members: dict[int, socket.socket] = {}
    with select.epoll() as epoll:
        try:
            while len(members) < connections:
                batch = [
                    connect(port, index)
                    for index in range(len(members), min(len(members) + _BATCH, connections))
                ]
                members.update((sock.fileno(), sock) for sock in batch)
                for sock in batch:
                    if sock.recv(64) != _WELCOME:
                        raise WrongEchoError("the server did not welcome a connection")
            for sock in members.values():
                sock.setblocking(False)
                epoll.register(sock, select.EPOLLIN)
            return _time_broadcasts(members, epoll, traffic, server, warmup, seconds)
        finally:
            for sock in members.values():
                sock.close()


def _time_broadcasts(
    members: dict[int, socket.socket],
    epoll: select.epoll,
    traffic: Traffic,
    server: ProcessClock,
    warmup: float,
    seconds: float,
) -> Fanout:
    speaker = next(iter(members.values()))
    receive = {fd: sock.recv_into for fd, sock in members.items()}
    # One byte more than a message, so that a message too many is seen.
    buffer = memoryview(bytearray(traffic.frame + 1))
    clock = time.perf_counter
    offset = 0

    def repeat(end: float, at_least: int) -> list[float]:
        nonlocal offset
        times: list[float] = []
        while clock() < end or len(times) < at_least:
            deadline = clock() + PATIENCE
            start = clock()
            speaker.send(traffic.data[offset : offset + traffic.frame])
            missing = len(members)
            while missing:
                for fd, _ in poll_or_fail(epoll, deadline):
                    size = receive[fd](buffer)
                    if size != traffic.frame:
                        raise ServerFailedError(f"expected {traffic.frame} bytes, got {size}")
                    traffic.check(buffer[:size], offset)
                    missing -= 1
            times.append(clock() - start)
            offset = (offset + traffic.frame) % traffic.cycle
        return times

    repeat(clock() + warmup, 1)
    stopwatch = Stopwatch(server)
    times = repeat(clock() + seconds, 3)
    return Fanout(statistics.median(times), len(times), stopwatch.stop())
