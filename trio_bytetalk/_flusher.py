"""Writing what a task has left in its queue, at the scheduler's next turn.

While a burst of received messages is worked through, replies are collected and written together
when the burst ends. If the task yields in the middle of the burst instead, they must not stay: this
system task, one for each Trio run, is then the next to run, and writes them.
"""

from __future__ import annotations

from typing import Protocol

import attrs
import trio

# How many connections are flushed before the other tasks get their turn: at some 5 µs each, a
# millisecond at the most.
_BATCH = 64


class Flushable(Protocol):
    """What can be flushed."""

    def flush_now(self) -> None:
        """Write what is queued, as far as that goes without waiting."""


@attrs.define(eq=False)
class _Flusher:
    due: list[Flushable] = attrs.field(factory=list)
    parked: trio.lowlevel.Task | None = None

    def wake(self) -> None:
        if self.parked is not None:
            trio.lowlevel.reschedule(self.parked)
            self.parked = None

    def abort(self, _: object) -> trio.lowlevel.Abort:
        self.parked = None
        return trio.lowlevel.Abort.SUCCEEDED

    async def run(self) -> None:
        while True:
            if not self.due:
                self.parked = trio.lowlevel.current_task()
                await trio.lowlevel.wait_task_rescheduled(self.abort)
            due, self.due = self.due, []
            for count, flushable in enumerate(due, start=1):
                flushable.flush_now()
                if count % _BATCH == 0:
                    await trio.lowlevel.checkpoint()


_flusher: trio.lowlevel.RunVar[_Flusher] = trio.lowlevel.RunVar("trio_bytetalk._flusher")


def flush_soon(flushable: Flushable) -> None:
    """Have ``flushable.flush_now()`` called at the scheduler's next turn."""
    try:
        flusher = _flusher.get()
    except LookupError:
        flusher = _Flusher()
        _flusher.set(flusher)
        trio.lowlevel.spawn_system_task(flusher.run, name="trio_bytetalk: flusher")
    flusher.due.append(flushable)
    flusher.wake()
