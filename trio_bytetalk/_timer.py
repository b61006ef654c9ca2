"""Timeouts that cost nothing while they do not pass.

A cancel scope around every wait costs more than the wait. But a timeout of many seconds is hardly
ever reached: it is set, and put off, thousands of times for once that it passes. So to set a
`Timer` is to store a number; one system task for each Trio run wakes up when the earliest of the
numbers *as they once were* is reached, and mostly finds that it has been put off since.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable

import attrs
import trio


@attrs.define(eq=False)
class Timer:
    """Calls ``expire`` when `trio.current_time` reaches ``deadline``.

    ``expire`` runs in a system task: it must neither wait nor raise.
    """

    expire: Callable[[], None]

    deadline: float = attrs.field(default=math.inf, init=False)
    """Set by `start`; infinity while the timer does not run."""

    _looked_at: float = attrs.field(default=math.inf, init=False)
    """When the system task will next look at the deadline."""

    def start(self, deadline: float) -> None:
        """Run until ``deadline``, instead of until whatever it was before."""
        self.deadline = deadline
        if deadline < self._looked_at:
            self._looked_at = deadline
            _watch().add(deadline, self)

    def stop(self) -> None:
        """Do not run any more."""
        self.deadline = math.inf

    def forget(self) -> None:
        """Stop for good, and let go of what ``expire`` belongs to.

        The system task keeps the timer itself for a while, as long as they are not many.
        """
        self.deadline = self._looked_at = math.inf
        self.expire = _do_nothing


def _do_nothing() -> None:
    """What a timer that was forgotten would call."""


# How many entries there may be before it is worth looking for those that are out of date.
_FEW = 100


@attrs.define(eq=False)
class _Watch:
    # The count keeps timers of the same moment from being compared with each other.
    heap: list[tuple[float, int, Timer]] = attrs.field(factory=list)
    count: itertools.count[int] = attrs.field(factory=itertools.count)
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    room: int = _FEW

    def add(self, when: float, timer: Timer) -> None:
        heap = self.heap
        if len(heap) > self.room:
            # Timers that were forgotten or put to an earlier time: they may be due in a day only.
            heap[:] = [entry for entry in heap if entry[0] == entry[2]._looked_at]
            heapq.heapify(heap)
            self.room = 2 * len(heap) + _FEW
        heapq.heappush(heap, (when, next(self.count), timer))
        # An earlier deadline than it was sleeping for wakes the task up in time.
        self.scope.deadline = min(self.scope.deadline, when)

    async def run(self) -> None:
        heap = self.heap
        while True:
            with trio.CancelScope(deadline=heap[0][0] if heap else math.inf) as self.scope:
                await trio.sleep_forever()
            now = trio.current_time()
            while heap and heap[0][0] <= now:
                when, _, timer = heapq.heappop(heap)
                if when != timer._looked_at:
                    continue  # it was set to an earlier time meanwhile, and has an entry for that
                timer._looked_at = math.inf
                if timer.deadline <= now:
                    timer.deadline = math.inf
                    timer.expire()
                elif timer.deadline < math.inf:
                    timer.start(timer.deadline)


_watch_var: trio.lowlevel.RunVar[_Watch] = trio.lowlevel.RunVar("trio_bytetalk._timer")


def _watch() -> _Watch:
    try:
        return _watch_var.get()
    except LookupError:
        watch = _Watch()
        _watch_var.set(watch)
        trio.lowlevel.spawn_system_task(watch.run, name="trio_bytetalk: timers")
        return watch
