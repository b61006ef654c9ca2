"""Cancelling anything, anywhere: a scenario runs again for each place where it can be cancelled."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections.abc import Awaitable, Callable, Iterator
from typing import Literal

import attrs
import trio
import trio.testing

Moment = Literal["as it stops", "before it goes on"]


@attrs.define(eq=False)
class Canceller(trio.abc.Instrument):
    """Cancels what runs in its `scope`, at one of the moments at which its tasks switch.

    ``"as it stops"`` is where a wait is aborted. ``"before it goes on"`` is where the wait has been
    successful already, and the cancellation is noticed at the next checkpoint.
    """

    step: int
    moment: Moment
    fired: bool = False
    _children: bool = False
    _task: trio.lowlevel.Task | None = None
    _scope: trio.CancelScope | None = None

    @contextlib.contextmanager
    def scope(self, *, children: bool = False) -> Iterator[None]:
        """Count the steps of this task, or also those of all the ``children`` that it has here."""
        self._children = children
        self._task = trio.lowlevel.current_task()
        try:
            with trio.CancelScope() as self._scope:
                yield
        finally:
            self._scope = None

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if self.moment == "as it stops":
            self._count(task)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if self.moment == "before it goes on":
            self._count(task)

    def _count(self, task: trio.lowlevel.Task) -> None:
        if self._scope is not None and (task is self._task or (self._children and self._has(task))):
            self.step -= 1
            if self.step == 0:
                self.fired = True
                self._scope.cancel()

    def _has(self, task: trio.lowlevel.Task) -> bool:
        while task.parent_nursery is not None:
            task = task.parent_nursery.parent_task
            if task is self._task:
                return True
        return False


Scenario = Callable[[Canceller], Awaitable[None]]


async def cancelled_everywhere(moment: Moment, scenario: Scenario) -> int:
    """Run ``scenario`` with a cancellation at each step; how many steps there were."""
    for step in itertools.count(1):
        canceller = Canceller(step, moment)
        trio.lowlevel.add_instrument(canceller)
        try:
            await scenario(canceller)
        finally:
            trio.lowlevel.remove_instrument(canceller)
        if not canceller.fired:
            return step
    raise AssertionError


def own_tasks() -> list[str]:
    """The package's system tasks: some for each Trio run, and some for a connection."""
    root = trio.lowlevel.current_root_task()
    assert root is not None
    return sorted(
        re.sub(r" of connection \d+$", "", task.name)
        for nursery in root.child_nurseries
        for task in nursery.child_tasks
        if task.name.startswith("trio_bytetalk")
    )


def descriptors() -> int:
    """How many this process has open."""
    return len(os.listdir("/proc/self/fd"))


async def cancelled_everywhere_leaving_nothing(moment: Moment, scenario: Scenario) -> int:
    """`cancelled_everywhere`, with no task and no descriptor left behind after any run."""
    await scenario(Canceller(0, moment))  # what there is once for each Trio run is made now
    await trio.testing.wait_all_tasks_blocked()
    before = own_tasks(), descriptors()

    async def check(canceller: Canceller) -> None:
        await scenario(canceller)
        await trio.testing.wait_all_tasks_blocked()
        assert (own_tasks(), descriptors()) == before

    return await cancelled_everywhere(moment, check)
