"""Load: one connection, one message in flight, each round trip timed."""

from __future__ import annotations

import statistics
import time

import attrs

from benchmarks.generator.clocks import ProcessClock, Stopwatch, Usage
from benchmarks.generator.connections import ServerFailedError, connect
from benchmarks.generator.traffic import BLOCK, Traffic


@attrs.frozen
class RoundTrips:
    """Times of round trips, in seconds."""

    median: float
    percentile_99: float
    count: int
    usage: Usage


def run_latency(
    port: int,
    server: ProcessClock,
    traffic: Traffic,
    *,
    warmup: float,
    seconds: float,
) -> RoundTrips:
    """Send a message, wait for it, and again.

    The socket blocks: one call sends and one receives, which is as little as a client can do.
    """
    data = memoryview(traffic.data)
    buffer = memoryview(bytearray(BLOCK))
    clock = time.perf_counter
    with connect(port, 0) as sock:
        sock.settimeout(None)  # with a timeout, Python polls before each call
        send, receive = sock.sendall, sock.recv_into
        offset = 0

        def repeat(end: float) -> list[float]:
            nonlocal offset
            times = []
            now = 0.0
            while now < end:
                start = clock()
                send(data[offset : offset + traffic.frame])
                got = 0
                while got < traffic.frame:
                    size = receive(buffer[got:])
                    if not size:
                        raise ServerFailedError("the server closed the connection")
                    got += size
                now = clock()
                times.append(now - start)
                traffic.check(buffer[:got], offset)
                offset = (offset + traffic.frame) % traffic.cycle
            return times

        repeat(clock() + warmup)
        stopwatch = Stopwatch(server)
        times = repeat(clock() + seconds)
        usage = stopwatch.stop()
    times.sort()
    return RoundTrips(statistics.median(times), times[len(times) * 99 // 100], len(times), usage)
