"""A load on a server: connections that send messages, wait for the replies, and take the times.

Each connection has at most `Plan.window` messages for which no reply has come. As long as there is
no `Plan.rate`, a reply has the next message sent, so that the server itself sets the pace: a closed
loop. With a rate, each message has its time, whether replies come or not, and latencies are counted
from that time: what waits because the server stalls counts as late.
"""

from __future__ import annotations

import contextlib
import enum
import math
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

import attrs
import trio

from .._connection import Connection
from .._errors import BytetalkError, IncompleteMessageError
from .failures import explained
from .histogram import Histogram
from .payload import Payload

Opener = Callable[[], AbstractAsyncContextManager[Connection[Any, Any]]]

# So many connections are being opened at a time: no more than any server's backlog holds.
_OPENING_AT_ONCE: Final = 32

# What ends a connection, and is no mistake of this program's.
_EXPECTED: Final = (OSError, BytetalkError, trio.BrokenResourceError)

SECOND: Final = 1e9  # nanoseconds

# Of less than this, in seconds, no rate can be told.
_SHORTEST: Final = 0.001

SECONDS_SHOWN: Final = 120


@attrs.frozen(kw_only=True)
class Plan:
    """What is to be done to the server. Times are in seconds."""

    payload: Payload
    connections: int = 10
    window: int = 1
    duration: float = 10
    """For how long messages are sent, after the warm-up."""
    warmup: float = 1
    timeout: float = 10
    """How long opening a connection may take, and waiting for replies at the end."""
    rate: float | None = None
    """Messages a second, of all connections together; None for as many as the server answers."""
    check: bool = True
    """Whether replies are compared with what was sent."""


class Phase(enum.Enum):
    """Where a run is."""

    OPENING = "connecting"
    WARMING_UP = "warming up"
    MEASURING = "measuring"
    FINISHING = "waiting for the last replies"
    DONE = "done"


@attrs.frozen(kw_only=True)
class Second:
    """What one second of measuring has shown; the last one may be shorter."""

    end: float
    """Seconds since measuring began."""
    elapsed: float
    messages: int
    """Replies received."""
    bytes_sent: int
    bytes_received: int
    latencies: tuple[int, int, int] | None
    """The median, the 99th percentile and the maximum in nanoseconds, if there were any."""
    in_flight: int
    """At the end of it."""
    errors: int
    """Until the end of it."""
    cpu: float
    """The share of one processor that this program used."""


@attrs.frozen(kw_only=True)
class Result:
    """What came of a run."""

    plan: Plan
    opened: int
    elapsed: float
    """Seconds of measuring."""
    messages: int
    """Replies received in that time."""
    bytes_sent: int
    bytes_received: int
    late: int
    """Replies received after it, to messages that were sent before it ended."""
    lost: int
    """Messages sent that were not answered at all.

    But for those of connections that this program ended because of what the server had sent: their
    replies may have come.
    """
    unsent: int
    """With a rate: messages whose time came, and that were not sent until the end."""
    errors: dict[str, int]
    """Why connections could not be opened or ended early, and how many, the most frequent first."""
    latencies: Histogram
    """Of ``messages`` and ``late``."""
    seconds: tuple[Second, ...]
    rate: float
    """Messages a second."""
    cpu: float
    interrupted: bool
    exhausted: bool
    """Whether no connection was left before the time was over."""
    stopped: bool
    """Whether this program itself was stopped, as by Ctrl-Z, while it sent."""


@attrs.frozen(kw_only=True)
class Snapshot:
    """What there is to see at one moment of a run; another thread may look at it."""

    plan: Plan
    phase: Phase
    phase_elapsed: float
    """For how many seconds it has been in this phase."""
    opened: int
    active: int
    """How many connections are open now."""
    in_flight: int
    """How many messages wait for their replies."""
    errors: dict[str, int]
    latencies: Histogram
    """All that were measured until now."""
    seconds: tuple[Second, ...]
    """The latest ones, at most `SECONDS_SHOWN`."""
    rate: float
    """Messages a second, over all of the time measured."""


@attrs.frozen
class _Traffic:
    """What connections and processor have done until now."""

    time: float
    cpu: float
    bytes_sent: int
    bytes_received: int


@attrs.define(eq=False)
class Load:
    """One run. `snapshot` shows how it goes on."""

    plan: Plan
    opener: Opener
    on_second: Callable[[Second], object] = lambda second: None
    """Told of each second as it is over."""
    cpu_time: Callable[[], float] = time.process_time

    phase: Phase = attrs.field(default=Phase.OPENING, init=False)
    opened: int = attrs.field(default=0, init=False)
    active: int = attrs.field(default=0, init=False)
    errors: Counter[str] = attrs.field(factory=Counter, init=False)
    seconds: list[Second] = attrs.field(factory=list, init=False)
    interrupted: bool = attrs.field(default=False, init=False)
    stopped: bool = attrs.field(default=False, init=False)
    recent: Histogram = attrs.field(factory=Histogram, init=False)
    """Latencies since the last second was over."""

    _links: list[_Link] = attrs.field(factory=list, init=False)
    _before: Histogram = attrs.field(factory=Histogram, init=False)  # those of earlier seconds
    _undecided: int = attrs.field(init=False)  # connections neither open nor refused
    _all_decided: trio.Event = attrs.field(factory=trio.Event, init=False)
    _opening: trio.CapacityLimiter = attrs.field(init=False)
    _start: trio.Event = attrs.field(factory=trio.Event, init=False)
    _everything: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)
    _sending: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)
    _phase_began: float = attrs.field(init=False)
    _last: _Traffic = attrs.field(init=False)
    _refusal: Exception | None = attrs.field(default=None, init=False)
    _lost: int = attrs.field(default=0, init=False)
    _unsent: int = attrs.field(default=0, init=False)
    _exhausted: bool = attrs.field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self._undecided = self.plan.connections
        self._opening = trio.CapacityLimiter(_OPENING_AT_ONCE)
        self._phase_began = trio.current_time()

    def snapshot(self) -> Snapshot:
        """What there is to see now."""
        latencies = Histogram()
        latencies.merge(self._before)
        latencies.merge(self.recent)
        return Snapshot(
            plan=self.plan,
            phase=self.phase,
            phase_elapsed=trio.current_time() - self._phase_began,
            opened=self.opened,
            active=self.active,
            in_flight=self._in_flight(),
            errors=dict(self.errors),
            latencies=latencies,
            seconds=tuple(self.seconds[-SECONDS_SHOWN:]),
            rate=self._rate(),
        )

    def _in_flight(self) -> int:
        return sum(len(link.pending) for link in self._links)

    def _rate(self) -> float:
        """Messages a second, over all of the time measured."""
        elapsed = math.fsum(second.elapsed for second in self.seconds)
        return sum(second.messages for second in self.seconds) / elapsed if elapsed else 0.0

    # -- the run

    async def run(self) -> Result:
        """Open the connections, warm up, measure, wait for the last replies.

        Raises:
          OSError, trio.BrokenResourceError, BytetalkError: no connection could be opened; the first
              of the reasons.

        Cancelled, there is no result: see `interrupt`.
        """
        with self._everything:
            async with trio.open_nursery() as nursery:
                for _ in range(self.plan.connections):
                    nursery.start_soon(_Link(self).run)
                await self._all_decided.wait()
                if self.opened:
                    await self._measure()
        self._enter(Phase.DONE)
        if self._refusal is not None and not self.opened:
            raise self._refusal
        return self._result()

    def interrupt(self) -> None:
        """End it early: wait for the last replies only; and the second time, for nothing."""
        if self.interrupted or self.phase in (Phase.OPENING, Phase.FINISHING):
            self._everything.cancel()
        self.interrupted = True
        self._sending.cancel()

    def resumed(self) -> None:
        """Be told that this program had been stopped, and now goes on.

        The clock went on, too: what was in flight seems to have taken so long.
        """
        if self.phase is not Phase.OPENING:
            self.stopped = True

    async def _measure(self) -> None:
        plan = self.plan
        self._enter(Phase.WARMING_UP)
        for number, link in enumerate(self._links):
            link.schedule(number, len(self._links))
        self._start.set()
        with self._sending:
            if plan.warmup:  # else nothing must have been sent before this
                await trio.sleep(plan.warmup)
            self._enter(Phase.MEASURING)
            self.recent = Histogram()
            self._last = self._traffic()
            mark = self._phase_began
            end = mark + plan.duration
            while mark < end:
                mark = min(mark + 1, end)
                await trio.sleep_until(mark)
                self._end_second()
        if self._sending.cancelled_caught and self.phase is Phase.MEASURING:
            self._end_second()
        self._enter(Phase.FINISHING)
        self._everything.deadline = trio.current_time() + plan.timeout
        for link in self._links:
            self._unsent += link.stop()

    def _enter(self, phase: Phase) -> None:
        self.phase = phase
        self._phase_began = trio.current_time()

    def _traffic(self) -> _Traffic:
        # statistics() of 5,000 connections takes 45 ms, which replies would wait for.
        transports = [link.connection._transport for link in self._links]
        return _Traffic(
            trio.current_time(),
            self.cpu_time(),
            sum(each.bytes_written for each in transports),
            sum(each.bytes_received for each in transports),
        )

    def _end_second(self) -> None:
        if trio.current_time() - self._last.time < _SHORTEST:
            return  # interrupted just as the last one was over; or that one was late
        last, self._last = self._last, self._traffic()
        recent, self.recent = self.recent, Histogram()
        self._before.merge(recent)
        messages = len(recent)
        elapsed = self._last.time - last.time
        latencies = recent.percentiles(50, 99, 100) if messages else None
        second = Second(
            end=self._last.time - self._phase_began,
            elapsed=elapsed,
            messages=messages,
            bytes_sent=self._last.bytes_sent - last.bytes_sent,
            bytes_received=self._last.bytes_received - last.bytes_received,
            latencies=(latencies[0], latencies[1], latencies[2]) if latencies else None,
            in_flight=self._in_flight(),
            errors=self.errors.total(),
            cpu=(self._last.cpu - last.cpu) / elapsed,
        )
        self.seconds.append(second)
        self.on_second(second)

    def _result(self) -> Result:
        seconds = self.seconds
        elapsed = math.fsum(second.elapsed for second in seconds)
        latencies = Histogram()
        if seconds:
            latencies.merge(self._before)
            latencies.merge(self.recent)
        return Result(
            plan=self.plan,
            opened=self.opened,
            elapsed=elapsed,
            messages=sum(second.messages for second in seconds),
            bytes_sent=sum(second.bytes_sent for second in seconds),
            bytes_received=sum(second.bytes_received for second in seconds),
            late=len(self.recent) if seconds else 0,
            lost=self._lost,
            unsent=self._unsent,
            errors=dict(self.errors.most_common()),
            latencies=latencies,
            seconds=tuple(seconds),
            rate=self._rate(),
            cpu=math.fsum(s.cpu * s.elapsed for s in seconds) / elapsed if elapsed else 0.0,
            interrupted=self.interrupted,
            exhausted=self._exhausted,
            stopped=self.stopped,
        )

    # -- what connections tell

    def _decided(self, link: _Link | None, error: Exception | None = None) -> None:
        """A connection is open, or could not be opened."""
        if link is not None:
            self._links.append(link)
            self.opened += 1
            self.active += 1
        if error is not None:
            self._refusal = self._refusal or error
            self.errors[explained(error)] += 1
        self._undecided -= 1
        if not self._undecided:
            self._all_decided.set()

    def _ended(self, link: _Link) -> None:
        self.active -= 1
        self._lost += len(link.pending)
        link.pending.clear()
        if link.failure is not None:
            self.errors[link.failure] += 1
        is_under_way = self.phase in (Phase.WARMING_UP, Phase.MEASURING) and not self.interrupted
        if is_under_way and not self.active:
            self._exhausted = True
            self._sending.cancel()


@attrs.define(eq=False)
class _Link:
    """One connection: a task that receives and sends, and one that sends where that takes waiting.

    With a single task, a window larger than what the sockets hold would be a deadlock: a server
    that waits until its replies are taken would wait for us, and we for it to take messages.
    """

    load: Load
    connection: Connection[Any, Any] = attrs.field(init=False)
    pending: deque[float] = attrs.field(factory=deque, init=False)
    """For each message without a reply, in order, when it was sent, or should have been."""
    failure: str | None = attrs.field(default=None, init=False)

    _sent: int = attrs.field(default=0, init=False)
    _room: trio.Event | None = attrs.field(default=None, init=False)  # the sender waits for it
    _sending: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)
    _stopped: bool = attrs.field(default=False, init=False)
    _due: float = attrs.field(default=math.inf, init=False)  # when the next one is to be sent
    _step: float = attrs.field(default=0, init=False)  # and the one after it, so much later

    async def run(self) -> None:
        load = self.load
        async with contextlib.AsyncExitStack() as stack:
            try:
                async with load._opening:
                    await self._open(stack)
            except _EXPECTED as error:
                load._decided(None, error)
                return
            load._decided(self)
            try:
                await load._start.wait()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._receive, nursery.cancel_scope)
                    with self._sending:
                        await self._send(nursery.cancel_scope)
                    if not self.pending:
                        nursery.cancel_scope.cancel()
            finally:
                load._ended(self)

    async def _open(self, stack: contextlib.AsyncExitStack) -> None:
        timeout = self.load.plan.timeout
        try:
            with trio.fail_after(timeout):
                self.connection = await stack.enter_async_context(self.load.opener())
        except trio.TooSlowError:
            raise TimeoutError(
                f"no connection within {timeout:g} seconds; the option is --timeout"
            ) from None

    def schedule(self, number: int, count: int) -> None:
        """It starts now, as one of so many."""
        rate = self.load.plan.rate
        if rate is not None:
            self._step = count / rate
            self._due = trio.current_time() + number / rate

    def stop(self) -> int:
        """Send no more, and end when each message has its reply; how many were due besides."""
        self._stopped = True
        self._room = None
        self._sending.cancel()
        late = trio.current_time() - self._due
        return math.ceil(late / self._step) if late > 0 else 0

    async def _send(self, everything: trio.CancelScope) -> None:
        """Send as many messages as the window, and the rate, allow."""
        plan, pending = self.load.plan, self.pending
        messages = plan.payload.messages
        try:
            while True:
                if len(pending) >= plan.window:
                    self._room = trio.Event()
                    await self._room.wait()
                    self._room = None
                    continue
                if plan.rate is None:
                    pending.append(trio.current_time())
                else:
                    await trio.sleep_until(self._due)
                    pending.append(self._due)
                try:
                    await self.connection.send(messages[self._sent % len(messages)])
                except trio.Cancelled:
                    # It was not sent. (There is nothing to take back where a server has sent more
                    # than it was asked.)
                    with contextlib.suppress(IndexError):
                        pending.pop()
                    raise
                self._sent += 1
                self._due += self._step
        except _EXPECTED as error:
            self._fail(error)
            everything.cancel()

    async def _receive(self, everything: trio.CancelScope) -> None:
        load, connection, pending = self.load, self.connection, self.pending
        plan = load.plan
        messages = plan.payload.messages
        received = 0
        try:
            async for reply in connection:
                if not pending:
                    raise _WrongError("a message came from the server that answers none")
                if plan.check and reply != messages[received % len(messages)]:
                    raise _WrongError("a reply was not what had been sent")
                now = trio.current_time()
                load.recent.add(int((now - pending.popleft()) * SECOND))
                received += 1
                if self._room is not None:
                    if plan.rate is None:
                        # What the sender would do, without a task switch for each message.
                        try:
                            connection.send_nowait(messages[self._sent % len(messages)])
                        except trio.WouldBlock:
                            self._room.set()
                        else:
                            pending.append(now)
                            self._sent += 1
                    else:
                        self._room.set()
                elif self._stopped and not pending:
                    break
            else:
                raise ConnectionError("the server closed the connection")
        except _EXPECTED as error:
            self._fail(error)
        everything.cancel()

    def _fail(self, error: Exception) -> None:
        if isinstance(error, BytetalkError) and not isinstance(error, IncompleteMessageError):
            self.pending.clear()  # it is this program that ends the connection
        # Both tasks notice; the one that is first knows best.
        self.failure = self.failure or explained(error)


class _WrongError(BytetalkError):
    """The server did what no echo does."""
