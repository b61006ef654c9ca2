"""What processor time the two sides of a load used, and waited for, by the kernel's count."""

from __future__ import annotations

import os
import time

import attrs


@attrs.frozen
class ProcessClock:
    """Counts the processor time of one process."""

    pid: int

    def running(self) -> float:
        """Seconds for which it has been running, to the nanosecond."""
        # What the C library's clock_getcpuclockid(3) computes; Python has it for threads only.
        return time.clock_gettime_ns((~self.pid << 3) | 2) / 1e9

    def waiting(self) -> float:
        """Seconds for which its first thread could have run, but another program did.

        Zero where the kernel does not count it.
        """
        try:
            with open(f"/proc/{self.pid}/schedstat") as schedstat:
                return int(schedstat.read().split()[1]) / 1e9
        except FileNotFoundError:
            return 0.0


@attrs.frozen
class Usage:
    """What happened between two readings of the clocks."""

    elapsed: float
    server_cpu: float
    server_waited: float
    generator_cpu: float
    generator_waited: float

    @property
    def server_busy(self) -> float:
        """The share of the time in which the server was running. Near 1, it was the bottleneck."""
        return self.server_cpu / self.elapsed

    @property
    def generator_busy(self) -> float:
        """The same of the generator."""
        return self.generator_cpu / self.elapsed

    @property
    def disturbed(self) -> float:
        """The share of the time in which other programs kept one of them from running."""
        return max(self.server_waited, self.generator_waited) / self.elapsed


class Stopwatch:
    """Reads the wall clock and both sides' clocks together. It runs from its making on."""

    def __init__(self, server: ProcessClock) -> None:
        self._clocks = server, ProcessClock(os.getpid())
        self._before = [(clock.running(), clock.waiting()) for clock in self._clocks]
        self._start = time.perf_counter()

    def stop(self) -> Usage:
        """Read them again."""
        elapsed = time.perf_counter() - self._start
        server, generator = (
            (clock.running() - running, clock.waiting() - waiting)
            for clock, (running, waiting) in zip(self._clocks, self._before, strict=True)
        )
        return Usage(elapsed, *server, *generator)
