"""`FaultyStream`: a stream that fails where it is told to, for tests of what must survive that.

A plan is two rows of faults, one for each direction, and each fault stands behind so many bytes.
So a plan says the same whatever the sizes of reads and writes are, a random one can be had again
by its seed, and hypothesis can draw one: ``st.builds(Reset, st.integers(0, 100))``.

Nothing is read ahead: a read asks the stream below for no more than comes before the next fault.
That is why a cancelled read cannot lose anything here.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import random
import socket
import struct
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, Self

import attrs
import trio

from ._validators import seconds, whole_number

# How long FaultyStream.random() stalls, and how much of a stream it reaches, if not told: more than
# any limit's default, and more than a short test sends.
_RANDOM_SECONDS = 100
_RANDOM_SIZE = 1000

_bytes = whole_number(0, unit="bytes")


@attrs.frozen
class Cut:
    """No read, or write, goes over this point: what is on its two sides comes in two pieces.

    On a socket, the two pieces of a write may have become one by the time that the peer reads.
    """

    after: int = attrs.field(validator=_bytes)
    """Behind so many bytes of this direction."""


@attrs.frozen
class Stall:
    """Nothing goes on here for a while; for ever by default."""

    after: int = attrs.field(validator=_bytes)
    """Behind so many bytes of this direction."""

    seconds: float = attrs.field(default=math.inf, validator=seconds)
    """For how long, from when a call first comes here."""


@attrs.frozen
class End:
    """The stream ends here, in this direction only, though more was to come.

    Receiving, this is a truncated stream: it looks like an end, and the rest is never seen.
    Sending, it is a half-close that nobody asked for: the peer sees the end, and to send more
    raises `trio.BrokenResourceError`.
    """

    after: int = attrs.field(validator=_bytes)
    """Behind so many bytes of this direction."""


@attrs.frozen
class Reset:
    """The connection breaks here, in both directions.

    Every call raises `trio.BrokenResourceError` from then on, one that is waiting included. The
    stream below is closed; if it is a TCP socket, its peer gets a reset, and as with any reset it
    may not get what was sent before that and is still on its way.
    """

    after: int = attrs.field(validator=_bytes)
    """Behind so many bytes of this direction."""


Fault = Cut | Stall | End | Reset
"""What a plan of a `FaultyStream` is made of."""


def _in_order(faults: Iterable[Fault]) -> tuple[Fault, ...]:
    plan = tuple(faults)
    for fault in plan:
        if not isinstance(fault, Fault):
            raise TypeError(f"a fault must be a Cut, Stall, End or Reset, not {fault!r}")
    return tuple(sorted(plan, key=lambda fault: fault.after))


def _finite(_instance: Any, attribute: attrs.Attribute[Any], value: float) -> None:
    if value == math.inf:
        raise ValueError(f"{attribute.name} must be finite; some stalls last for ever anyway")


@attrs.frozen
class _Odds:
    """What a plan made by chance is drawn from."""

    size: int = attrs.field(validator=_bytes)
    seconds: float = attrs.field(validator=[seconds, _finite])

    def draw(self, chance: random.Random) -> Iterator[Fault]:
        """A plan for one direction: mostly of what is harmless, and one fatal fault at the most."""
        for _ in range(chance.randint(0, 8)):
            yield Cut(chance.randint(0, self.size))
        for _ in range(chance.randint(0, 2)):
            pause = chance.uniform(self.seconds / 100, self.seconds)
            yield Stall(chance.randint(0, self.size), pause)
        match chance.choice(["nothing", "nothing", "nothing", "stall", "end", "reset"]):
            case "stall":
                yield Stall(chance.randint(0, self.size))
            case "end":
                yield End(chance.randint(0, self.size))
            case "reset":
                yield Reset(chance.randint(0, self.size))


@attrs.define(eq=False)
class _Direction:
    """How far one direction has come, and what is ahead of it."""

    faults: deque[Fault]
    passed: int = 0
    stalled_until: float | None = None  # while a stall is under way
    _busy: bool = False

    @contextlib.contextmanager
    def used(self, by: str) -> Iterator[None]:
        if self._busy:
            raise trio.BusyResourceError(f"another task is {by}")
        self._busy = True
        try:
            yield
        finally:
            self._busy = False

    @property
    def due(self) -> Fault | None:
        """The fault that the next byte would have to pass."""
        return self.faults[0] if self.faults and self.faults[0].after <= self.passed else None

    def room(self, size: int | None) -> int | None:
        """How many of ``size`` bytes come before the next fault; None is any number."""
        if not self.faults:
            return size
        room = self.faults[0].after - self.passed
        return room if size is None else min(size, room)


@attrs.define(eq=False)
class FaultyStream(trio.abc.HalfCloseableStream):
    """A stream that cuts, stalls, ends and breaks where it is told to, over any other one::

        FaultyStream(stream, receiving=[Cut(3), Stall(10, seconds=90)], sending=[Reset(100)])

    It may be on either side of what is tested: over the stream that a connection gets, or over its
    peer's end.

    Args:
      stream: The stream that is read from and written to: a `trio.SocketStream`, a pair in memory,
          or any other. If it is the one under TLS, it is TLS's bytes that are counted.
      receiving: The faults of what is read from it, in any order; each once.
      sending: The faults of what is written to it.

    A fault is met by the call that would pass it. `End` and `Reset` of what is sent come as soon as
    the bytes before them are sent; a `send_all` that had no more to send has succeeded.
    """

    stream: trio.abc.HalfCloseableStream
    receiving: tuple[Fault, ...] = attrs.field(default=(), converter=_in_order, kw_only=True)
    sending: tuple[Fault, ...] = attrs.field(default=(), converter=_in_order, kw_only=True)
    _received: _Direction = attrs.field(init=False, repr=False)
    _sent: _Direction = attrs.field(init=False, repr=False)
    _was_reset: bool = attrs.field(default=False, init=False, repr=False)
    _closed: bool = attrs.field(default=False, init=False, repr=False)
    _over: trio.Event = attrs.field(factory=trio.Event, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self._received = _Direction(deque(self.receiving))
        self._sent = _Direction(deque(self.sending))

    @classmethod
    def random(
        cls,
        stream: trio.abc.HalfCloseableStream,
        seed: int,
        *,
        size: int = _RANDOM_SIZE,
        seconds: float = _RANDOM_SECONDS,
    ) -> Self:
        """One with faults by chance: cuts and stalls, and in each direction perhaps a fatal one.

        Args:
          seed: The same seed has the same faults; ``repr()`` of the stream shows them.
          size: They are behind so many bytes at the most, of either direction.
          seconds: How long a stall that is not for ever may last.

        Raises:
          TypeError, ValueError: for a ``size`` or ``seconds`` that is no such number.
        """
        odds = _Odds(size, seconds)
        chance = random.Random(seed)  # noqa: S311 - faults are to be had again, not kept secret
        return cls(
            stream,
            receiving=odds.draw(chance),
            sending=odds.draw(chance),
        )

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Read, as far as the next fault.

        Raises:
          trio.BrokenResourceError: from a `Reset` on, or if the stream below is broken.
          trio.ClosedResourceError: if this was closed, by another task too.
          trio.BusyResourceError: if another task is receiving.

        Cancelling it loses no byte. A stall goes on meanwhile.
        """
        _check_max_bytes(max_bytes)
        with self._received.used("receiving"):
            fault = await self._meet(self._received)
            if isinstance(fault, End):
                await trio.lowlevel.checkpoint()
                return b""
            with self._as_told():
                data = await self.stream.receive_some(self._received.room(max_bytes))
            self._received.passed += len(data)
            return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Write, in pieces from fault to fault.

        Raises:
          trio.BrokenResourceError: at an `End`, and from a `Reset` on, when the bytes before it
              have been sent; or if the stream below is broken.
          trio.ClosedResourceError: if this was closed, by another task too, or `send_eof` called.
          trio.BusyResourceError: if another task is sending.

        Cancelled, or failed, some of ``data`` may have been sent, as with any Trio stream. Nobody
        knows how much of it, so of the piece under way nothing is counted: what is sent after a
        cancellation meets its faults late by so many bytes.
        """
        with self._sent.used("sending"), memoryview(data) as left:
            sent = 0
            while True:
                await self._meet_sending()
                room = self._sent.room(len(left) - sent)
                with self._as_told():
                    await self.stream.send_all(left[sent:][:room])
                passed = len(left[sent:][:room])
                self._sent.passed += passed
                sent += passed
                if sent == len(left):
                    break
            if isinstance(self._sent.due, End | Reset):
                with contextlib.suppress(trio.BrokenResourceError):
                    await self._meet_sending()

    async def wait_send_all_might_not_block(self) -> None:
        """Wait while what is sent stalls, and then for the stream below.

        It raises what `send_all` does.
        """
        with self._sent.used("sending"):
            await self._meet_sending()
            with self._as_told():
                await self.stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        """Half-close, behind any stall that is due; after an `End`, that is done already.

        It raises what `send_all` does, but for an `End`.
        """
        with self._sent.used("sending"):
            fault = await self._meet(self._sent)
            if isinstance(fault, End):
                await self._end()
                return
            with self._as_told():
                await self.stream.send_eof()

    async def aclose(self) -> None:
        """Close the stream below. A task that stalls here gets `trio.ClosedResourceError`.

        Cancelled, it is closed all the same.
        """
        self._closed = True
        self._over.set()
        await self.stream.aclose()

    async def _meet(self, direction: _Direction) -> Fault | None:
        """Go through the faults that are due; what is returned, if anything, is an `End`."""
        self._check()
        while (fault := direction.due) is not None:
            if isinstance(fault, Stall):
                if direction.stalled_until is None:
                    direction.stalled_until = trio.current_time() + fault.seconds
                with trio.CancelScope(deadline=direction.stalled_until):
                    await self._over.wait()
                self._check()
                direction.stalled_until = None
            elif isinstance(fault, Reset):
                await self._reset()
            elif isinstance(fault, End):
                return fault
            direction.faults.popleft()
        return None

    async def _meet_sending(self) -> None:
        if await self._meet(self._sent) is not None:
            await self._end()
            raise _broken(errno.EPIPE)

    async def _end(self) -> None:
        """Have the peer see the end of what is sent; to do it again changes nothing."""
        with self._as_told():
            await self.stream.send_eof()

    async def _reset(self) -> None:
        self._was_reset = True
        self._over.set()
        if isinstance(self.stream, trio.SocketStream):
            with contextlib.suppress(OSError):  # it is closed, or no TCP
                # To linger for no time: closing discards what is queued and resets (socket(7)).
                self.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await trio.aclose_forcefully(self.stream)
        self._check()

    def _check(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this stream was closed")
        if self._was_reset:
            raise _broken(errno.ECONNRESET)

    @contextlib.contextmanager
    def _as_told(self) -> Iterator[None]:
        """A reset of our own making looks like one, though the stream below was closed for it."""
        try:
            yield
        except trio.ClosedResourceError:
            self._check()
            raise


def _broken(number: int) -> trio.BrokenResourceError:
    """As a socket would break, with the system's error as the cause."""
    cause = OSError(number, os.strerror(number))  # whose class is that of the number
    error = trio.BrokenResourceError(str(cause))
    error.__cause__ = cause
    return error


def _check_max_bytes(max_bytes: Any) -> None:
    if max_bytes is not None and not isinstance(max_bytes, int):
        raise TypeError(f"max_bytes must be a whole number or None, not {max_bytes!r}")
    if max_bytes is not None and max_bytes < 1:
        raise ValueError(f"max_bytes must be 1 or more, not {max_bytes!r}")


# Not iter() itself, for these tell a type checker what the arguments may be.
def _iterator_of_int(numbers: Iterable[int]) -> Iterator[int]:
    return iter(numbers)


def _iterator_of_float(numbers: Iterable[float]) -> Iterator[float]:
    return iter(numbers)


@attrs.define(eq=False)
class CuttingStream(FaultyStream):
    """A `FaultyStream` that also cuts, and delays, one read after the other, as told.

    Args:
      stream: The stream that is read from and written to.
      sizes: How many bytes each `receive_some` returns at the most, 1 or more; one number after the
          other.
      delays: How many seconds each `receive_some` takes longer, likewise.

    When the numbers are used up, reads are not cut, or not delayed, any more; `itertools.repeat`
    and `itertools.cycle` never are. What is written goes through unchanged.
    """

    sizes: Iterator[int] = attrs.field(converter=_iterator_of_int, default=(), kw_only=True)
    delays: Iterator[float] = attrs.field(converter=_iterator_of_float, default=(), kw_only=True)
    _size: int | None = attrs.field(default=None, init=False, repr=False)

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """At most the next of ``sizes`` bytes, after the next of ``delays`` seconds."""
        _check_max_bytes(max_bytes)
        delay = next(self.delays, 0)
        if delay:
            await trio.sleep(delay)
        if self._size is None:  # else a read that was cancelled has left it
            size = next(self.sizes, None)
            if size is not None and size < 1:  # no bytes would mean the end of the stream
                raise ValueError(f"sizes must be 1 or more, not {size!r}")
            self._size = size
        sizes = [size for size in (self._size, max_bytes) if size is not None]
        data = await super().receive_some(min(sizes, default=None))
        self._size = None
        return data
