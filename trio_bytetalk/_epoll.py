"""Waiting for sockets through one edge-triggered epoll (Linux) for all connections of a Trio run.

`trio.lowlevel.wait_readable` arms Trio's own epoll anew for every wait, a system call each time.
Here a socket is registered once, and a single system task waits, through Trio, for the epoll
itself, and reschedules the tasks whose sockets have something. Under load one wake-up of that task
serves many connections.

Where there are a few sockets only, each is waited for through Trio itself: for a lone message, the
way over the system task is a turn of the scheduler longer.

Edge-triggered means that an event is told once: whoever has seen one must try until the operation
would block, or transfers less than asked (see epoll(7), questions 9 and 10), before waiting again.
`Readiness.readable` and `Readiness.writable` keep account of that.
"""

from __future__ import annotations

import contextlib
import select
import sys
from collections.abc import AsyncGenerator, Awaitable, Generator
from typing import TypeVar, cast

import attrs
import outcome
import trio

ResultT = TypeVar("ResultT")

EPOLL_AVAILABLE = sys.platform == "linux"

# Up to so many sockets of a run are waited for one by one.
_FEW = 4

_READ_EVENTS = EPOLL_AVAILABLE and select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET


def bytes_waiting(fd: int) -> int:
    """How many bytes can be read from a socket by now; 0 if it cannot say."""
    # Imported here, for there are systems without, and these say nothing.
    try:
        import fcntl
        import termios

        answer = bytearray(4)
        fcntl.ioctl(fd, termios.FIONREAD, answer)
    except (ImportError, OSError, ValueError):  # closed, which reading will show
        return 0
    return int.from_bytes(answer, sys.byteorder)


class _Wake(outcome.Outcome[None]):
    """What a task is woken up with. Unlike `outcome.Value`, it can be used any number of times."""

    def unwrap(self) -> None:
        pass

    def send(self, gen: Generator[ResultT, None, object]) -> ResultT:
        return gen.send(None)

    async def asend(self, agen: AsyncGenerator[ResultT, None]) -> ResultT:
        return await agen.asend(None)


_WAKE = _Wake()


@attrs.define(eq=False)
class Readiness:
    """What is known of one registered socket, and the tasks that wait for it, one each way."""

    readable: bool = attrs.field(default=False, init=False)
    """Whether a read might not block. (Data that is there already makes the first event.)"""

    writable: bool = attrs.field(default=True, init=False)
    """Whether a write might not block."""

    hung_up: bool = attrs.field(default=False, init=False)
    """Whether the end of the stream, or an error, is known to stand behind the data."""

    _hub: _Hub
    _fd: int
    _watched: bool = attrs.field(default=False, init=False)  # by the epoll
    _watches_writable: bool = attrs.field(default=False, init=False)
    _reads_alone: bool = attrs.field(default=False, init=False)  # whether a task waits so
    _writes_alone: bool = attrs.field(default=False, init=False)
    _closed: bool = attrs.field(default=False, init=False)
    _read_task: trio.lowlevel.Task | None = attrs.field(default=None, init=False)
    _write_task: trio.lowlevel.Task | None = attrs.field(default=None, init=False)

    def wait_readable(self) -> Awaitable[object]:
        """Wait until a read might not block, or until `wake_reader`; always a checkpoint.

        To be awaited at once. (Not a coroutine function: it would cost every wake-up.)
        """
        if not self._watched and not self._hub.watch_if_crowded(self):
            return self._wait_readable_alone()
        self._read_task = trio.lowlevel.current_task()
        return trio.lowlevel.wait_task_rescheduled(self._abort_read)  # noqa: ASYNC105 - the caller awaits it

    async def wait_writable(self) -> None:
        """Wait until a write might not block, or until `close`; always a checkpoint."""
        if not self._watched:
            await self._wait_writable_alone()
            return
        if not self._watches_writable:
            # Most sockets are never full; those that never were are spared the events. If it is
            # writable by now, modify() tells that at once.
            self._watches_writable = True
            self._hub.epoll.modify(self._fd, _READ_EVENTS | select.EPOLLOUT)
        self._write_task = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(self._abort_write)

    def bytes_waiting(self) -> int:
        """How many bytes can be read by now; 0 if the socket cannot say."""
        return bytes_waiting(self._fd)

    def wake_reader(self) -> None:
        """Let a task in `wait_readable` return now."""
        task = self._read_task
        if task is not None:
            self._read_task = None
            trio.lowlevel.reschedule(task, _WAKE)
        elif self._reads_alone:
            trio.lowlevel.notify_closing(self._fd)  # a task that waits to write goes on waiting

    def close(self) -> None:
        """Unregister, and let the waiting tasks return. To be called while the socket is open."""
        self._hub.unregister(self)
        self._closed = True
        if self._writes_alone:
            trio.lowlevel.notify_closing(self._fd)
        self.wake_reader()
        self._wake_writer()

    def notify(self, events: int) -> None:
        """The epoll reported ``events``, and not `select.EPOLLIN` alone."""
        hangs_up = events & (select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR)
        if hangs_up:
            self.hung_up = True
        if hangs_up or events & select.EPOLLIN:
            self.readable = True
            self.wake_reader()
        self.writable = True  # or it would not have been reported
        self._wake_writer()

    async def _wait_readable_alone(self) -> None:
        self._reads_alone = True
        try:
            await trio.lowlevel.wait_readable(self._fd)
        except trio.ClosedResourceError:
            pass  # woken up
        else:
            self.readable = True
        finally:
            self._reads_alone = False

    async def _wait_writable_alone(self) -> None:
        self._writes_alone = True
        try:
            while not (self.writable or self._closed):
                # It ends with ClosedResourceError when the reader is woken up, too.
                with contextlib.suppress(trio.ClosedResourceError):
                    await trio.lowlevel.wait_writable(self._fd)
                    self.writable = True
        finally:
            self._writes_alone = False

    def _wake_writer(self) -> None:
        task = self._write_task
        if task is not None:
            self._write_task = None
            trio.lowlevel.reschedule(task)

    def _abort_read(self, _: object) -> trio.lowlevel.Abort:
        self._read_task = None
        return trio.lowlevel.Abort.SUCCEEDED

    def _abort_write(self, _: object) -> trio.lowlevel.Abort:
        self._write_task = None
        return trio.lowlevel.Abort.SUCCEEDED


# What events of descriptors that nobody knows go to.
_STALE = Readiness(cast("_Hub", None), -1)


@attrs.define(eq=False)
class _Hub:
    epoll: select.epoll = attrs.field(init=False)  # made when there are many sockets
    running: bool = attrs.field(default=False, init=False)
    registered: dict[int, Readiness] = attrs.field(factory=dict)

    def watch_if_crowded(self, readiness: Readiness) -> bool:
        """Whether the epoll watches a socket, which it begins to do if there are many."""
        if len(self.registered) > _FEW:
            # The process may have no descriptor left for an epoll, or the system no room for one
            # more socket in it (epoll(7), max_user_watches).
            with contextlib.suppress(OSError):
                if not self.running:
                    self.epoll = select.epoll()
                    trio.lowlevel.spawn_system_task(self.run, name="trio_bytetalk: epoll")
                    self.running = True
                self.epoll.register(readiness._fd, _READ_EVENTS)
                readiness._watched = True
        return readiness._watched

    def unregister(self, readiness: Readiness) -> None:
        if self.registered.get(readiness._fd) is readiness:
            del self.registered[readiness._fd]
            # It is closed when the run is over and its last tasks clean up.
            if readiness._watched and not self.epoll.closed:
                self.epoll.unregister(readiness._fd)

    async def run(self) -> None:
        with self.epoll:
            poll = self.epoll.poll
            fd = self.epoll.fileno()
            while True:
                await trio.lowlevel.wait_readable(fd)
                # Under load there will be more at the scheduler's next turn: to look costs a third
                # of waiting, which has to arm Trio's own epoll again.
                while found := poll(0):
                    self.notify(found)
                    await trio.lowlevel.checkpoint()

    def notify(self, found: list[tuple[int, int]]) -> None:
        """Wake up the tasks that wait for what the epoll has found."""
        registered = self.registered
        reschedule = trio.lowlevel.reschedule
        for fd, events in found:
            # One that was never unregistered may live on in a forked process, and speak up.
            readiness = registered.get(fd) or _STALE
            if events == select.EPOLLIN:  # as nearly always, and so without a call
                readiness.readable = True
                task = readiness._read_task
                if task is not None:
                    readiness._read_task = None
                    reschedule(task, _WAKE)
            else:
                readiness.notify(events)


_hub: trio.lowlevel.RunVar[_Hub] = trio.lowlevel.RunVar("trio_bytetalk._epoll.hub")


def register(fd: int) -> Readiness:
    """Register a non-blocking socket's descriptor with this Trio run's epoll."""
    try:
        hub = _hub.get()
    except LookupError:
        hub = _Hub()
        _hub.set(hub)
    readiness = Readiness(hub, fd)
    hub.registered[fd] = readiness
    hub.watch_if_crowded(readiness)
    return readiness
