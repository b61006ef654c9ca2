"""Writing what a task has left in its queue, at the scheduler's next turn.

While a burst of received messages is worked through, replies are collected and written together
when the burst ends. If the task yields in the middle of the burst instead, they must not stay: this
system task, one for each Trio run, writes them at the scheduler's next turn.
"""

from __future__ import annotations

from typing import Protocol

import attrs
import trio

# How many connections are flushed in one turn: at some 5 µs each, the other tasks wait for a
# millisecond at the most.
_BATCH = 64


class Flushable(Protocol):
    """What can be flushed."""

    def flush_now(self) -> None:
        """Write what is queued, as far as that goes without waiting. It must not raise."""


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
            due, self.due = self.due[:_BATCH], self.due[_BATCH:]
            for flushable in due:
                flushable.flush_now()
            del due, flushable  # which would hold them while we wait
            if self.due:
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
