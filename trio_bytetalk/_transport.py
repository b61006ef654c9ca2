"""The transport floor: moving bytes over one Trio stream, and nothing about messages.

A transport reads chunks, and writes frames from a queue: whole, in order, many at once where it
can. `StreamTransport` does so over any Trio stream through Trio's own interface.
`SocketTransport` does the same for a plain socket on Linux, with fewer system calls and task
switches; ``_epoll.py`` says how it waits.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
import socket
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Literal, cast

import attrs
import trio

from ._codec import Buffer
from ._epoll import EPOLL_AVAILABLE, Readiness, bytes_waiting, register
from ._errors import BytetalkError, reason_of
from ._flusher import flush_soon
from ._limits import Limits
from ._log import fields, get_logger
from ._timer import Timer

_logger = get_logger("transport")

# How much is read at once. From 128 KiB on, a C library may give fresh pages for every read, and to
# have those zeroed costs more than to read again.
_READ_SIZE: Final = 64 * 1024

# Frames that are collected in a burst are written before its end if they come to so many bytes.
_FLUSH_SIZE: Final = 64 * 1024

# From this average piece size on, giving writev the pieces costs less than joining them.
_GATHER_FROM: Final = 4096

# How many pieces one writev gets. POSIX promises 16 and Linux takes 1024; being large, not many
# more would fit into a socket's buffer.
_GATHER_PIECES: Final = 64

# How many times write_buffer_size may be written and not announced before senders wait, and how
# many frames, for each holds some hundreds of bytes beside its message.
_UNANNOUNCED: Final = 16
_MOST_UNANNOUNCED: Final = 4096

# How many frames are announced before other tasks have their turn.
_ANNOUNCED_IN_A_ROW: Final = 64

# How much one send_all of a StreamTransport gets: progress is only seen in between.
_SEND_SIZE: Final = 64 * 1024

# When take_rest() has seen all of a stream that cannot be asked what it holds. After so many turns
# of the scheduler without anything: what has arrived is there at once, or some turns later if TLS
# decrypts it, or it comes in pieces, each of which is worth some more turns. Or after so many
# bytes, more than systems hold for a socket.
_REST_TURNS: Final = 100
_REST_TURNS_MORE: Final = 10
_REST_SIZE: Final = 8 * 1024 * 1024

# How many writes may succeed without waiting before the writing task must yield.
_WRITES_PER_TURN: Final = 16


class GivenUpError(BytetalkError, trio.BrokenResourceError):
    """This side gave the connection up, because the peer was too slow; the subclasses say at what.

    It is a `trio.BrokenResourceError` too.
    """


class SendTimeoutError(GivenUpError):
    """The peer took no byte of what was queued for ``send_timeout`` seconds."""


Announce = Callable[[], Awaitable[None]]

Frame = Sequence[Buffer] | Callable[[], Sequence[Buffer]]
"""A frame, or what makes it when there is room for it: for writers that count their frames."""


def again(error: Exception) -> Exception:
    """A fresh copy to raise: an exception raised twice would collect tracebacks."""
    copy = type(error)(*error.args)
    copy.__cause__ = error.__cause__
    return copy


def broken(error: BaseException) -> trio.BrokenResourceError:
    """What to raise for a connection that ``error`` broke, with the reason in its message."""
    reason = error.__cause__ or error
    result = trio.BrokenResourceError(f"the connection broke: {reason_of(reason)}")
    result.__cause__ = reason
    return result


def _end_was_sent() -> trio.ClosedResourceError:
    return trio.ClosedResourceError("no more can be sent after send_eof()")


def _can_be_aborted(_: object) -> trio.lowlevel.Abort:
    return trio.lowlevel.Abort.SUCCEEDED


@attrs.define(eq=False)
class _Worker:
    """A system task that works whenever it is told to, until it is stopped.

    A system task, because its work must outlive the cancellation of whoever gave rise to it: so no
    frame is cut. It is stopped when its transport is closed.
    """

    name: str
    work: Callable[[], Awaitable[None]]
    """Must not raise."""

    busy: bool = attrs.field(default=False, init=False)
    _stopped: bool = attrs.field(default=False, init=False)
    _task: trio.lowlevel.Task | None = attrs.field(default=None, init=False)
    _scope: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)

    @property
    def is_current(self) -> bool:
        """Whether the current task is this one."""
        return trio.lowlevel.current_task() is self._task

    def start(self) -> None:
        """Work, if it is not at work already."""
        if self.busy or self._stopped:
            return
        self.busy = True
        if self._task is None:
            self._task = trio.lowlevel.spawn_system_task(
                self._run, name=f"trio_bytetalk: {self.name}", context=contextvars.copy_context()
            )
        else:
            trio.lowlevel.reschedule(self._task)

    def stop(self) -> None:
        """End the task, in whatever work it may be, unless that is what calls this."""
        self._stopped = True
        if self._task is not None and not self.is_current:
            self._scope.cancel()

    async def _run(self) -> None:
        try:
            with self._scope:
                while not self._stopped:
                    await self.work()
                    self.busy = False
                    if not self._stopped:
                        await trio.lowlevel.wait_task_rescheduled(_can_be_aborted)
        finally:
            self._stopped = True  # the run is over, if it was not told so


@attrs.define(eq=False)
class _Announcer:
    """Tells of frames that are written, one after the other, in a task of its own."""

    transport: Transport
    """The one that writes: another one, when it has taken the first one's place."""

    pending: deque[tuple[int, Announce]] = attrs.field(factory=deque, init=False)
    """How many bytes must have been written, and who tells of it then."""

    reached: int = attrs.field(default=0, init=False)
    """How many bytes were written up to the last frame told of, while any are pending."""

    worker: _Worker | None = attrs.field(default=None, init=False)

    @property
    def is_current(self) -> bool:
        """Whether the current task is this one's."""
        return self.worker is not None and self.worker.is_current

    def start(self) -> None:
        """Begin with what is due, if anything is."""
        if self.pending and self.pending[0][0] <= self.transport.bytes_written:
            if self.worker is None:
                name = f"announcer of connection {self.transport.number}"
                self.worker = _Worker(name, self._announce)
            self.worker.start()

    async def _announce(self) -> None:
        pending = self.pending
        told = 0
        while pending and pending[0][0] <= self.transport.bytes_written:
            await pending[0][1]()
            if pending:  # or the transport was closed meanwhile
                self.reached = pending.popleft()[0]
                self.transport.has_announced()
            told += 1
            if told % _ANNOUNCED_IN_A_ROW == 0:
                await trio.lowlevel.checkpoint()


@attrs.define(eq=False)
class _Sender:
    """A task that waits for room for its frame."""

    transport: Transport
    task: trio.lowlevel.Task
    frame: Frame
    announce: Announce | None
    is_hook: bool
    is_held: bool
    admitted: bool = False
    error: Exception | None = None


@attrs.define(eq=False)
class Transport(ABC):
    """The queue of outgoing frames; how bytes move is the subclasses' part.

    One task at a time may read; all else may be called from any task.
    """

    stream: trio.abc.Stream
    limits: Limits

    number: int = attrs.field(default=0, init=False)
    """The connection's, for the names of tasks and for logs."""

    has_more: bool = attrs.field(default=False, init=False)
    """Whether `take` had so much that it will have more, probably."""

    bytes_received: int = attrs.field(default=0, init=False)
    bytes_written: int = attrs.field(default=0, init=False)

    chunks: int = attrs.field(default=0, init=False)
    """In how many pieces the received bytes were taken."""

    flushes: int = attrs.field(default=0, init=False)
    """How often the operating system, or the stream, was offered bytes to be written."""

    queued: int = attrs.field(default=0, init=False)
    """How many bytes are queued that the operating system has not taken."""

    _most_queued: int = attrs.field(default=0, init=False)  # before something was taken

    clear: bool = attrs.field(default=True, init=False)
    """Whether `write` may be called right away; `put` does what is needed if not."""

    deferring: bool = attrs.field(default=False, init=False)
    """Whether frames are collected for now: `ready`, or the flusher's turn, will write them."""

    refusal: Exception | None = attrs.field(default=None, init=False)
    """Why no more frames are taken, once that is so."""

    error: Exception | None = attrs.field(default=None, init=False)
    """Why nothing more can be written, once that is so."""

    is_told: bool = attrs.field(default=False, init=False)
    """Whether somebody has heard of `failure`, and so that not all is sent."""

    _is_closed: bool = attrs.field(default=False, init=False)  # and had not failed before

    _queue: list[Buffer] = attrs.field(factory=list, init=False)
    _senders: list[_Sender] = attrs.field(factory=list, init=False)
    _holding: bool = attrs.field(default=False, init=False)
    _drainers: list[trio.lowlevel.Task] = attrs.field(factory=list, init=False)
    _flush_at: int = attrs.field(init=False)
    _writes_left: int = attrs.field(default=_WRITES_PER_TURN, init=False)
    _is_stuck: bool = attrs.field(default=False, init=False)  # it failed with something to be sent
    _pump: _Worker | None = attrs.field(default=None, init=False)
    # Made when there is something to be announced: an empty deque takes 600 bytes.
    _announcer: _Announcer | None = attrs.field(default=None, init=False)
    _send_timer: Timer | None = attrs.field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self._flush_at = min(_FLUSH_SIZE, self.limits.write_buffer_size)

    # -- reading

    @abstractmethod
    def ready(self) -> Awaitable[object]:
        """To be awaited before `take`: waits until that may have something, or `interrupt`.

        Awaiting it is always a checkpoint. What is queued is written first. Cancelled, nothing that
        has been received is lost.
        """

    @abstractmethod
    def take(self) -> bytes | bytearray | None:
        """Received bytes, as far as they can be had without waiting.

        Returns:
          ``b""`` at the end of the stream, None if there is nothing now.

        Raises:
          trio.BrokenResourceError: if the connection broke.
        """

    @abstractmethod
    async def take_rest(
        self, feed: Callable[[bytes | bytearray], None]
    ) -> bytes | bytearray | None:
        """Feed what has arrived by now, and hardly more, however fast the peer is.

        Always a checkpoint. Returns and raises what `take` does when nothing is left.
        """

    @abstractmethod
    def interrupt(self) -> None:
        """Let a task that waits for `ready` go on now; one in `take_rest` only if all is over."""

    # -- writing

    @abstractmethod
    def write(self, frame: bytes) -> None:
        """Write a frame now, and queue what is not taken of it. Only when `clear`."""

    def write_pieces(self, pieces: Sequence[Buffer]) -> None:
        """`write` for a frame in pieces."""
        self._enqueue(pieces, None)
        self.flush_now()

    def collect(self, frame: bytes) -> None:
        """Queue a frame that is written later, as `defer` has said. Only when `clear`."""
        self._queue.append(frame)
        self.queued += len(frame)
        if self.queued > self._flush_at:
            self.flush_full()

    def flush_full(self) -> None:
        """What `collect` does when it has collected enough."""
        self.flush_now()
        self._writes_left = 0  # a task that sends on and on must yield now and then
        self.clear = False

    async def put(self, frame: Frame, announce: Announce | None = None) -> None:
        """Queue a frame, after waiting until there is room for it.

        Args:
          announce: Awaited, by a task of its own, when the operating system has the whole frame.

        Raises:
          trio.ClosedResourceError, trio.BrokenResourceError: if no more frames are taken.

        Cancelled, it has queued nothing.
        """
        must_yield = self._writes_left <= 0
        if must_yield:
            await trio.lowlevel.checkpoint_if_cancelled()
        if not self.put_nowait(frame, announce):
            task = trio.lowlevel.current_task()
            is_hook = self.in_announcement
            sender = _Sender(self, task, frame, announce, is_hook, self._holding)
            # The others may be waiting for the hook to be done, so it must not wait behind them.
            is_first = is_hook and not self._holding
            self._senders.insert(0 if is_first else len(self._senders), sender)
            self.clear = False

            def abort(_: object) -> trio.lowlevel.Abort:
                sender.transport._senders.remove(sender)
                sender.transport._update_clear()
                return trio.lowlevel.Abort.SUCCEEDED

            # Whoever makes room queues the frame for us: so frames keep the order of the calls.
            await trio.lowlevel.wait_task_rescheduled(abort)
            if sender.error is not None:
                raise sender.error
            if not sender.admitted:
                sender.transport.check()
        elif must_yield:
            # Only now, or a task that sends meanwhile would overtake us.
            await trio.lowlevel.cancel_shielded_checkpoint()
            self._renew_turn()

    def put_nowait(self, frame: Frame, announce: Announce | None = None) -> bool:
        """Queue a frame if there is room for it; say whether there was."""
        self.check()
        if self.queued > self.limits.write_buffer_size and not self._senders:
            self.flush_now()
            self.check()
        is_hook = self.in_announcement
        if self._holding or not self._has_room(is_hook) or (self._senders and not is_hook):
            return False
        self._enqueue(frame, announce)
        return True

    def check(self) -> None:
        """Raise what the use of a transport that takes no more frames gets."""
        if self.refusal is not None:
            self.is_told |= self.refusal is self.failure
            raise again(self.refusal)

    def defer(self) -> None:
        """Have what is queued written when the burst ends, or at the scheduler's next turn."""
        if not self.deferring:
            self.deferring = True
            flush_soon(self)

    @abstractmethod
    def flush_now(self) -> None:
        """Write what is queued, as far as that goes without waiting; the pump does the rest."""

    async def drain(self) -> None:
        """Wait until the operating system has every byte that is queued now.

        Raises:
          trio.ClosedResourceError, trio.BrokenResourceError: if it will never have them.
        """
        try:
            await self._drained()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.is_told |= self.failure is not None
            raise
        await trio.lowlevel.checkpoint()

    async def _drained(self) -> None:
        target = self.bytes_written + self.queued
        self.flush_now()
        while self.bytes_written < target:
            if self.error is not None:
                raise again(self.error)
            await self._wait_for_progress()

    async def finish(self) -> None:
        """`drain`, and wait until everything written is announced.

        Not a checkpoint if there is nothing to do; and nobody is told by this.
        """
        await self._drained()
        while self._is_announcing and self.error is None and not self.in_announcement:
            await self._wait_for_progress()

    def announce_no_more(self) -> None:
        """Tell nobody of what is written, or going to be."""
        if self._announcer is not None:
            self._announcer.pending.clear()

    def refuse(self, error: Exception) -> None:
        """Take no more frames; what is queued is still sent."""
        if self.refusal is None:
            self.refusal = error
            self.clear = False
            for sender in self._senders:
                trio.lowlevel.reschedule(sender.task)
            self._senders.clear()

    def fail(self, error: Exception) -> None:
        """Nothing can be written any more: what is queued is lost, and whoever waits is told."""
        self.refuse(error)
        if self.error is None:
            self.error = error
            self._is_stuck = bool(self._queue)
            self._queue.clear()
            self._progressed()

    @property
    def most_queued(self) -> int:
        """The largest value that `queued` has had."""
        return max(self._most_queued, self.queued)

    @property
    def failure(self) -> Exception | None:
        """`error`, if it was not closing that brought it about."""
        return None if self._is_closed else self.error

    @property
    def was_lost(self) -> bool:
        """Whether writing has been told that the connection broke, and not by the peer's finishing.

        The system says so only once, and to reading afterwards what looks like an end.
        """
        cause = self.error and self.error.__cause__
        # It is a BrokenPipeError if the peer had finished before.
        return isinstance(cause, OSError) and not isinstance(cause, BrokenPipeError)

    @property
    def is_full(self) -> bool:
        """Whether more is queued than is wanted."""
        return self.queued > self.limits.write_buffer_size

    @property
    def senders_waiting(self) -> int:
        """How many tasks wait for room in the queue."""
        return len(self._senders)

    def hold(self) -> None:
        """Let frames wait from now on, to be sent by the transport that takes this one's place.

        Those that wait for room already do not wait for announcements any more, too: a hook that
        sends now would have both wait for each other.
        """
        self._holding = True
        self.clear = False
        self._admit()

    def take_over(self, before: Transport) -> None:
        """Go on as the transport that had the stream before: numbers, announcements, senders."""
        self.number = before.number
        self.bytes_received = before.bytes_received
        self.bytes_written = before.bytes_written
        self.chunks = before.chunks
        self.flushes = before.flushes
        self._most_queued = before.most_queued
        self._announcer, before._announcer = before._announcer, None
        if self._announcer is not None:
            self._announcer.transport = self
        self._senders = sorted(before._senders, key=lambda sender: not sender.is_hook)
        for sender in self._senders:
            sender.transport = self
            sender.is_held = False
        self._admit()
        self._update_clear()

    @property
    def in_announcement(self) -> bool:
        """Whether the current task is announcing a frame: it must not wait for that to be done."""
        return self._announcer is not None and self._announcer.is_current

    @property
    def _is_announcing(self) -> bool:
        return self._announcer is not None and bool(self._announcer.pending)

    def has_announced(self) -> None:
        """A frame was announced, which may make room for others."""
        self._admit()
        self._progressed()

    # -- closing

    async def send_eof(self) -> None:
        """Half-close: what was queued is sent, and then the end of the stream."""
        if not isinstance(self.stream, trio.abc.HalfCloseableStream):
            raise BytetalkError(
                f"a {type(self.stream).__name__} cannot be half-closed; TLS, for one, cannot"
            )
        self.refuse(_end_was_sent())  # first, or a task that waits to send would come in between
        await self.drain()
        if self.error is not None:  # it was closed meanwhile
            raise again(self.error)
        await self._send_eof()

    async def _send_eof(self) -> None:
        """Send the end of the stream."""
        await cast(trio.abc.HalfCloseableStream, self.stream).send_eof()

    @abstractmethod
    async def aclose(self) -> None:
        """Close the stream, and let `read` return. Cancelled, the stream is closed all the same."""

    def _end(self) -> None:
        """No more writing, and no more announcements; one that is under way is cancelled."""
        if self.error is None:
            self._is_closed = True
            self.fail(trio.ClosedResourceError("the connection was closed"))
        self.announce_no_more()
        if self._send_timer is not None:
            self._send_timer.forget()
        self._stop(self._pump, None if self._announcer is None else self._announcer.worker)

    def local_address(self) -> Any:
        """This side's address, None if there is none."""
        return address_of(self.stream, "getsockname")

    def detach(self) -> trio.abc.Stream:
        """Give the stream away, for another transport to `take_over`. Nothing may be queued."""
        kept = self._senders, self._announcer
        self._senders, self._announcer = [], None
        self._end()
        self._senders, self._announcer = kept
        return self.stream

    # -- within

    def _has_room(self, is_hook: bool = False) -> bool:
        limit = self.limits.write_buffer_size
        announcer = self._announcer
        # Frames that are written and wait to be announced hold memory, too. But they wait for the
        # hook that is being told of one, so it does not wait for them.
        return self.queued <= limit and (
            is_hook
            or announcer is None
            or not announcer.pending
            or (
                self.bytes_written - announcer.reached <= _UNANNOUNCED * limit
                and len(announcer.pending) < _MOST_UNANNOUNCED
            )
        )

    def _enqueue(self, frame: Frame, announce: Announce | None) -> None:
        pieces = frame() if callable(frame) else frame
        self._queue.extend(pieces)
        self.queued += sum(map(len, pieces))
        if self.queued > self.limits.write_buffer_size:
            self.clear = False
        if announce is not None:
            announcer = self._announcer
            if announcer is None:
                announcer = self._announcer = _Announcer(self)
            if not announcer.pending:
                announcer.reached = self.bytes_written
            announcer.pending.append((self.bytes_written + self.queued, announce))
            if not self.queued:  # a frame without any bytes
                announcer.start()

    def _admit(self) -> None:
        """Queue the frames of those who wait, as far as there is room now."""
        senders = self._senders
        while (
            senders
            and not senders[0].is_held
            and self._has_room(senders[0].is_hook or self._holding)
        ):
            sender = senders.pop(0)
            try:
                self._enqueue(sender.frame, sender.announce)
                sender.admitted = True
            except Exception as error:  # noqa: BLE001 - it is raised where it belongs
                sender.error = error
            trio.lowlevel.reschedule(sender.task)

    def _update_clear(self) -> None:
        self.clear = (
            self._has_room()
            and self._writes_left > 0
            and self.refusal is None
            and not self._senders
            and not self._holding
        )

    def _renew_turn(self) -> None:
        self._writes_left = _WRITES_PER_TURN
        self._update_clear()

    def _count_write(self) -> None:
        self.flushes += 1
        self._writes_left -= 1
        if self._writes_left <= 0:
            self.clear = False

    def _taken(self, count: int) -> None:
        """The operating system has taken ``count`` bytes off the queue."""
        self.bytes_written += count
        if self.queued > self._most_queued:
            self._most_queued = self.queued
        self.queued -= count
        queue = self._queue
        if not self.queued:
            queue.clear()
        else:
            done = 0
            while count >= len(queue[done]):
                count -= len(queue[done])
                done += 1
            if count:
                queue[done] = memoryview(queue[done])[count:]
            del queue[:done]
        if self._senders:
            self._admit()
        if self._announcer is not None:
            self._announcer.start()
        if not self.clear:
            self._update_clear()
        if self._drainers:
            self._progressed()

    def _progressed(self) -> None:
        drainers, self._drainers = self._drainers, []
        for task in drainers:
            trio.lowlevel.reschedule(task)

    async def _wait_for_progress(self) -> None:
        task = trio.lowlevel.current_task()

        def abort(_: object) -> trio.lowlevel.Abort:
            self._drainers.remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        self._drainers.append(task)
        await trio.lowlevel.wait_task_rescheduled(abort)

    def _start_pump(self) -> None:
        if self._pump is None:
            self._pump = _Worker(f"pump of connection {self.number}", self._write_all)
        self._pump.start()

    async def _write_all(self) -> None:
        while self._queue:
            await self._write_some()
        self._renew_turn()

    async def _write_some(self) -> None:
        """Write a part of the queue, waiting while the peer takes nothing; always a checkpoint."""
        timer = self._send_timer
        if timer is None:
            timer = self._send_timer = Timer(self._send_timed_out)
        timer.start(trio.current_time() + self.limits.send_timeout)
        try:
            await self._write_and_wait()
        except trio.BrokenResourceError as error:
            self.fail(broken(error))
        except trio.ClosedResourceError as error:
            self.fail(trio.ClosedResourceError(str(error)))
        except Exception as error:
            # A bug of the stream's must not end the whole run, as it would from a system task.
            extra = fields("stream_failed", error, connection=self.number)
            _logger.exception("%r of connection %d failed", self.stream, self.number, extra=extra)
            self.fail(broken(error))
        finally:
            timer.stop()

    def _send_timed_out(self) -> None:
        self.fail(
            SendTimeoutError(
                f"the peer took none of {self.queued} queued bytes in "
                f"{self.limits.send_timeout} seconds; the setting is send_timeout"
            )
        )
        self.interrupt()
        self._stop(self._pump)

    def _stop(self, *workers: _Worker | None) -> None:
        for worker in workers:
            if worker is not None:
                worker.stop()

    @abstractmethod
    async def _write_and_wait(self) -> None:
        """Write something, after waiting until that is possible."""


@attrs.define(eq=False)
class StreamTransport(Transport):
    """A transport over any Trio stream, through `trio.abc.Stream` alone."""

    _read_scope: trio.CancelScope | None = attrs.field(default=None, init=False)
    _received: bytes | bytearray | None = attrs.field(default=None, init=False)
    _reading: bool = attrs.field(default=False, init=False)
    _resting: bool = attrs.field(default=False, init=False)  # in take_rest()
    _closing: trio.Event | None = attrs.field(default=None, init=False)  # set if no one is reading

    async def ready(self) -> None:
        self._reading = True
        try:
            await self._read(self.stream)
        finally:
            self._leave_off()

    async def _read(self, stream: trio.abc.Stream | _Arrived) -> None:
        self.flush_now()
        with trio.CancelScope() as self._read_scope:
            try:
                self._received = await stream.receive_some()
            except trio.BrokenResourceError as error:
                if error.__cause__ is None and self.failure is not None:
                    raise again(self.failure) from self.failure.__cause__  # TLS says it only once
                raise broken(error) from error.__cause__

    def take(self) -> bytes | bytearray | None:
        data, self._received = self._received, None
        if data:
            self.bytes_received += len(data)
            self.chunks += 1
        return data

    async def take_rest(
        self, feed: Callable[[bytes | bytearray], None]
    ) -> bytes | bytearray | None:
        self._reading = self._resting = True
        try:
            await trio.lowlevel.checkpoint()
            tls: trio.SSLStream[Any] | None = None
            bottom = self.stream
            while isinstance(bottom, trio.SSLStream):
                tls, bottom = bottom, bottom.transport_stream
            if not isinstance(bottom, trio.SocketStream):
                return await self._take_while_it_comes(feed)
            arrived = _Arrived(bottom, bytes_waiting(bottom.socket.fileno()))
            if tls is None:
                return await self._take_all(arrived, feed)
            tls.transport_stream = arrived
            try:
                return await self._take_all(self.stream, feed)
            finally:
                tls.transport_stream = bottom
        finally:
            self._leave_off()

    async def _take_all(
        self, stream: trio.abc.Stream | _Arrived, feed: Callable[[bytes | bytearray], None]
    ) -> bytes | bytearray | None:
        with contextlib.suppress(_NothingMoreError):
            while True:
                await self._read(stream)
                data = self.take()
                if not data:
                    return data
                feed(data)
        return None

    async def _take_while_it_comes(
        self, feed: Callable[[bytes | bytearray], None]
    ) -> bytes | bytearray | None:
        """`take_rest` for a stream that nobody can ask what it holds."""
        turns, size = _REST_TURNS, 0
        data: bytes | bytearray | None = None
        failure: Exception | None = None

        async def lose_patience() -> None:
            nonlocal turns
            while turns:
                turns -= 1
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lose_patience)
                try:
                    while size < _REST_SIZE:
                        await self._read(self.stream)
                        data = self.take()
                        if not data:
                            break
                        feed(data)
                        size += len(data)
                        turns = min(turns + _REST_TURNS_MORE, _REST_TURNS)
                        data = None
                except Exception as error:  # noqa: BLE001 - raised below: the nursery would wrap it
                    failure = error
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup:
            await trio.lowlevel.checkpoint_if_cancelled()  # who receives looks for no group
            raise
        if failure is not None:
            raise failure
        return data

    def _leave_off(self) -> None:
        self._reading = self._resting = False
        if self._closing is not None:
            self._closing.set()

    def interrupt(self) -> None:
        # What take_rest() has not been through yet would be lost; it ends soon, and by itself.
        is_wanted = self._closing is None and not isinstance(self.error, GivenUpError)
        if self._read_scope is not None and not (self._resting and is_wanted):
            self._read_scope.cancel()

    def write(self, frame: bytes) -> None:
        self.collect(frame)
        self.flush_now()

    def flush_now(self) -> None:
        # send_all is left to the pump in any case: cancelled, it would leave a frame in pieces.
        self.deferring = False
        if self._queue:
            self._start_pump()

    async def aclose(self) -> None:
        self._closing = trio.Event()
        self._end()
        try:
            try:
                if self._reading:  # and then TLS could not say its closing word
                    self.interrupt()
                    await self._closing.wait()
            finally:
                if self._is_closed:
                    await _close(self.stream)
                elif self._is_stuck or _lacks_handshake(self.stream):
                    await trio.aclose_forcefully(self.stream)  # a closing word would wait, too
                else:
                    await self.stream.aclose()
        except trio.BrokenResourceError:
            pass
        except Exception as error:  # noqa: BLE001 - but who closes a connection must rely on that
            _note_unclosed(self.stream, self.number, error)

    async def _write_and_wait(self) -> None:
        data = self._queue[0]
        if len(self._queue) > 1:
            data = b"".join(self._queue)
            self._queue = [data]
        data = data[:_SEND_SIZE]
        self.flushes += 1
        await self.stream.send_all(data)
        if self.error is None:  # or the queue was cleared meanwhile
            self._taken(len(data))


async def close_forcefully(stream: trio.abc.Stream, number: int) -> None:
    """Close the stream of connection ``number`` at once, even if the stream has a bug there."""
    try:
        await trio.aclose_forcefully(stream)
    except trio.BrokenResourceError:
        pass
    except Exception as error:  # noqa: BLE001 - it is logged, and one connection's trouble stays its own
        _note_unclosed(stream, number, error)


def _note_unclosed(stream: trio.abc.Stream, number: int, error: Exception) -> None:
    extra = fields("closing_failed", error, connection=number)
    words = "%r of connection %d could not be closed"
    _logger.error(words, stream, number, exc_info=error, extra=extra)


async def _close(stream: trio.abc.Stream) -> None:
    """Close a stream, although the peer may still be sending, with what was sent arriving whole."""
    if isinstance(stream, trio.SSLStream):
        await _close_tls(stream)
    elif isinstance(stream, trio.SocketStream):
        await _close_socket(stream)
    else:
        await stream.aclose()


async def _close_tls(stream: trio.SSLStream[Any]) -> None:
    """`_close` for TLS, which cannot say its closing word while it holds what nobody has taken."""
    if _lacks_handshake(stream):
        await trio.aclose_forcefully(stream)
        return
    under = stream.transport_stream
    try:
        stream.transport_stream = _LastWords(under)
        with contextlib.suppress(
            _NothingMoreError, trio.BrokenResourceError, trio.BusyResourceError
        ):
            while await stream.receive_some():
                pass
    finally:
        try:
            await stream.aclose()
        finally:
            stream.transport_stream = under


def _lacks_handshake(stream: trio.abc.Stream) -> bool:
    """Whether nothing is to be said or lost in closing TLS.

    Trio would wait for a handshake that another task does, and for ever if that fails.
    """
    if isinstance(stream, trio.SSLStream):
        try:
            stream.version()
        except trio.NeedHandshakeError:
            return True
    return False


class _NothingMoreError(Exception):
    """TLS has been through all that it is to have."""


@attrs.define(eq=False)
class _Arrived:
    """What a socket has received by now: in its place, for as long as that is read."""

    transport_stream: trio.SocketStream
    left: int

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self.transport_stream.send_all(data)

    async def receive_some(self, _max_bytes: int | None = None) -> bytes | bytearray:
        socket = self.transport_stream.socket
        fd = socket.fileno()  # negative if another task has closed it, which reading will tell
        # When nothing is left, the end of the stream may be, and that has arrived, too.
        if self.left <= 0 and fd >= 0 and (bytes_waiting(fd) or not socket.is_readable()):
            raise _NothingMoreError
        data = await self.transport_stream.receive_some(min(max(self.left, 1), _READ_SIZE))
        self.left -= len(data)
        return data

    async def aclose(self) -> None:
        await self.transport_stream.aclose()


@attrs.define(eq=False)
class _LastWords:
    """What a TLS stream has under it while it is closed: it may send, but hears no more."""

    transport_stream: trio.abc.Stream

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self.transport_stream.send_all(data)

    async def receive_some(self, _max_bytes: int | None = None) -> bytes:
        raise _NothingMoreError

    async def aclose(self) -> None:
        await _close(self.transport_stream)


async def _close_socket(stream: trio.SocketStream) -> None:
    """`_close` for a socket, whose `SocketTransport` does it in the same way and says why."""
    try:
        with contextlib.suppress(trio.BrokenResourceError):
            if stream.socket.is_readable():
                await stream.send_eof()
                while await stream.receive_some():
                    pass
    finally:
        await stream.aclose()


@attrs.define(eq=False)
class SocketTransport(Transport):
    """A transport over a `trio.SocketStream`, on Linux, working on the plain descriptor.

    It takes the descriptor out of the stream, which saves memory, and time that would go into
    looking whether someone has closed it. It needs one task switch for each wake-up, as it waits
    first, unless the last read filled its buffer, and then makes the system call itself; and a
    write that need not wait is nothing but a system call.
    """

    _socket: socket.socket = attrs.field(init=False)
    _fd: int = attrs.field(init=False)
    _readiness: Readiness = attrs.field(init=False)
    _peer_finished: bool = attrs.field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        trio_socket = cast(trio.SocketStream, self.stream).socket
        self._readiness = register(trio_socket.fileno())
        self._socket = socket.socket(
            trio_socket.family, trio_socket.type, trio_socket.proto, fileno=trio_socket.detach()
        )
        self._fd = self._socket.fileno()

    def ready(self) -> Awaitable[object]:
        if self._queue:
            self.flush_now()
        readiness = self._readiness
        if readiness.readable:
            return trio.lowlevel.checkpoint()  # noqa: ASYNC105 - the caller awaits it
        return readiness.wait_readable()

    def take(self) -> bytes | None:
        if self.clear:
            self._writes_left = _WRITES_PER_TURN
        else:
            self._renew_turn()
        self.has_more = False
        try:
            data = os.read(self._fd, _READ_SIZE)
        except BlockingIOError:
            self._readiness.readable = False
            return None
        except OSError as error:
            raise broken(error) from error
        count = len(data)
        self.bytes_received += count
        if count:
            self.chunks += 1
        else:
            self._peer_finished = True
        if count == _READ_SIZE:
            self.has_more = True
        elif not self._readiness.hung_up:
            self._readiness.readable = False
        return data

    async def take_rest(
        self, feed: Callable[[bytes | bytearray], None]
    ) -> bytes | bytearray | None:
        await trio.lowlevel.checkpoint()
        arrived = self._readiness.bytes_waiting()
        while True:
            data = self.take()
            if not data:
                return data
            feed(data)
            arrived -= len(data)
            if arrived < 0:
                return None

    def interrupt(self) -> None:
        self._readiness.wake_reader()

    def write(self, frame: bytes) -> None:
        size = len(frame)
        if not self._queue:
            self._count_write()
            try:
                written = os.write(self._fd, frame)
            except OSError as error:
                self._keep((frame,), error)
                return
            if written == size:
                self.bytes_written += written
                return
            self.bytes_written += written
            self._queue.append(memoryview(frame)[written:])
            self.queued += size - written
            self.flush_now()
            self._update_clear()
        else:
            self.collect(frame)  # the pump is at work

    def write_pieces(self, pieces: Sequence[Buffer]) -> None:
        if not self._queue and len(pieces) <= _GATHER_PIECES:
            # As the general way does it, less what it does for other frames.
            self._count_write()
            try:
                written = os.writev(self._fd, pieces)
            except OSError as error:
                self._keep(pieces, error)
                return
            if written == sum(map(len, pieces)):
                self.bytes_written += written
                return
            self._enqueue(pieces, None)
            self._taken(written)
            self.flush_now()
        else:
            super().write_pieces(pieces)

    def _keep(self, pieces: Sequence[Buffer], error: OSError) -> None:
        """Queue a frame of which nothing could be written."""
        self._enqueue(pieces, None)
        if isinstance(error, BlockingIOError):
            self._readiness.writable = False
            self._start_pump()
        else:
            self.fail(broken(error))  # now: the system says only once what is wrong

    def flush_now(self) -> None:
        self.deferring = False
        if self._queue and not (self._pump is not None and self._pump.busy):
            self._count_write()
            self._write()
            if self._queue:
                self._start_pump()

    def _write(self) -> None:
        """Write as much as the operating system takes."""
        queue = self._queue
        try:
            while queue:
                data: Buffer = queue[0]
                if len(queue) == 1:
                    size = len(data)
                    written = os.write(self._fd, data)
                elif self.queued < len(queue) * _GATHER_FROM:
                    data = b"".join(queue)
                    queue[:] = [data]
                    size = len(data)
                    written = os.write(self._fd, data)
                else:
                    pieces = queue[:_GATHER_PIECES]
                    size = sum(map(len, pieces))
                    written = os.writev(self._fd, pieces)
                self._taken(written)
                if written < size:
                    break
            else:
                return
        except BlockingIOError:
            pass
        except OSError as error:
            self.fail(broken(error))
        self._readiness.writable = False

    async def _write_and_wait(self) -> None:
        if not self._readiness.writable:
            await self._readiness.wait_writable()
        else:
            await trio.lowlevel.checkpoint()
        self.flushes += 1
        self._write()

    def local_address(self) -> Any:
        with contextlib.suppress(OSError):
            return self._socket.getsockname()
        return None

    def detach(self) -> trio.abc.Stream:
        super().detach()
        self._readiness.close()
        return trio.SocketStream(trio.socket.from_stdlib_socket(self._socket))

    async def _send_eof(self) -> None:
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError as error:
            raise broken(error) from error

    async def aclose(self) -> None:
        self._end()
        try:
            if self._is_closed and not self._peer_finished:
                await self._linger()
        finally:
            self._readiness.close()
            self._fd = -1
            self._socket.close()
        await trio.lowlevel.checkpoint()

    async def _linger(self) -> None:
        """If the peer is still sending, say that we have finished, and read on until it has, too.

        Closing a socket that has unread data resets the connection, and that destroys whatever of
        our last messages the peer has not received (RFC 1122, 4.2.2.13).
        """
        with contextlib.suppress(OSError, trio.BrokenResourceError):
            if not self.take():
                return
            self._socket.shutdown(socket.SHUT_WR)
            while self.take() != b"":
                await self.ready()


def address_of(
    stream: trio.abc.Stream, name: Literal["getpeername", "getsockname"] = "getpeername"
) -> Any:
    """The address of the socket under ``stream``; None if there is none."""
    while isinstance(stream, trio.SSLStream | _Arrived | _LastWords):
        stream = stream.transport_stream
    if isinstance(stream, trio.SocketStream):
        # The socket has no address any more if it was reset or closed meanwhile.
        with contextlib.suppress(OSError):
            return getattr(stream.socket, name)()
    return None


def open_transport(stream: trio.abc.Stream, limits: Limits) -> Transport:
    """The fastest transport that there is for ``stream``."""
    if EPOLL_AVAILABLE and type(stream) is trio.SocketStream:
        return SocketTransport(stream, limits)
    return StreamTransport(stream, limits)
