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
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Generic, TypeVar

import attrs
import trio

from ._codec import Buffer
from ._epoll import EPOLL_AVAILABLE, Readiness, register
from ._errors import BytetalkError
from ._flusher import flush_soon
from ._limits import Limits

# Large enough that a burst of small messages needs few system calls, small enough that the
# allocator keeps the memory (from 128 KiB on malloc asks the kernel for it each time) and that
# one connection's chunk does not hold up the others for long.
_READ_SIZE: Final = 64 * 1024

# How much is read at once at the most when a message is known to be that large.
_LARGE_READ_SIZE: Final = 1024 * 1024

# Frames that are collected in a burst are written before its end if they come to so many bytes.
_FLUSH_SIZE: Final = 64 * 1024

# From this average piece size on, giving writev the pieces costs less than joining them.
_GATHER_FROM: Final = 4096

# How many pieces one writev gets. POSIX promises 16 and Linux takes 1024; being large, not many
# more would fit into a socket's buffer.
_GATHER_PIECES: Final = 64

# How much one send_all of a StreamTransport gets: progress is only seen in between.
_SEND_SIZE: Final = 64 * 1024

# How many writes may succeed without waiting before the writing task must yield.
_WRITES_PER_TURN: Final = 16


class GivenUpError(BytetalkError, trio.BrokenResourceError):
    """This side gave the connection up, because the peer was too slow; the subclasses say at what.

    It is a `trio.BrokenResourceError` too.
    """


class SendTimeoutError(GivenUpError):
    """The peer took no byte of what was queued for ``send_timeout`` seconds."""


Announce = Callable[[], Awaitable[None]]
StreamT = TypeVar("StreamT", bound=trio.abc.Stream)


def again(error: Exception) -> Exception:
    """A fresh copy to raise: an exception raised twice would collect tracebacks."""
    copy = type(error)(*error.args)
    copy.__cause__ = error.__cause__
    return copy


def broken(error: BaseException) -> trio.BrokenResourceError:
    """What to raise for a connection that ``error`` broke, with the reason in its message."""
    reason = error.__cause__ or error
    result = trio.BrokenResourceError(f"the connection broke: {reason}")
    result.__cause__ = reason
    return result


@attrs.define(eq=False)
class Transport(ABC, Generic[StreamT]):
    """The queue of outgoing frames; how bytes move is the subclasses' part.

    `read` has one caller at a time; all else may be called from any task.
    """

    stream: StreamT
    limits: Limits

    bytes_received: int = attrs.field(default=0, init=False)
    bytes_written: int = attrs.field(default=0, init=False)

    queued: int = attrs.field(default=0, init=False)
    """How many bytes are queued that the operating system has not taken."""

    clear: bool = attrs.field(default=True, init=False)
    """Whether `append` may be called right away; `put` does what is needed if not."""

    deferring: bool = attrs.field(default=False, init=False)
    """Whether frames are collected for now: `read`, or the flusher's turn, will write them."""

    refusal: Exception | None = attrs.field(default=None, init=False)
    """Why no more frames are taken, once that is so."""

    error: Exception | None = attrs.field(default=None, init=False)
    """Why nothing more can be written, once that is so."""

    _queue: list[Buffer] = attrs.field(factory=list, init=False)
    # Lists, for they are empty mostly, and an empty deque takes 600 bytes.
    _announcements: list[tuple[int, Announce]] = attrs.field(factory=list, init=False)
    _senders: list[tuple[trio.lowlevel.Task, Sequence[Buffer], Announce | None]] = attrs.field(
        factory=list, init=False
    )
    _drainers: list[trio.lowlevel.Task] = attrs.field(factory=list, init=False)
    _flush_at: int = attrs.field(init=False)
    _writes_left: int = attrs.field(default=_WRITES_PER_TURN, init=False)
    _pump_task: trio.lowlevel.Task | None = attrs.field(default=None, init=False)
    _pump_scope: trio.CancelScope | None = attrs.field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self._flush_at = min(_FLUSH_SIZE, self.limits.write_buffer_size)

    # -- reading

    @abstractmethod
    async def read(self, wanted: int) -> bytes | bytearray | None:
        """Wait for received bytes; always a checkpoint, which comes before anything is received.

        Args:
          wanted: How many bytes the reader would like, if that is known.

        Returns:
          The bytes, ``b""`` at the end of the stream, None if `interrupt` was called.

        Raises:
          trio.BrokenResourceError: if the connection broke.
        """

    @abstractmethod
    def read_nowait(self) -> bytes | bytearray | None:
        """What `read` would return at once; None if it would wait, or nobody can say."""

    @abstractmethod
    def interrupt(self) -> None:
        """Let a task in `read` return now."""

    # -- writing

    def append(self, piece: Buffer) -> None:
        """Queue a frame of one piece. Only when `clear`; `flush_now` or `defer` must follow."""
        self._queue.append(piece)
        self.queued += len(piece)

    async def put(self, pieces: Sequence[Buffer], announce: Announce | None = None) -> None:
        """Queue a frame, after waiting until there is room for it.

        Args:
          announce: Awaited, by the pump, when the operating system has the whole frame.

        Raises:
          trio.ClosedResourceError, trio.BrokenResourceError: if no more frames are taken.

        Cancelled, it has queued nothing.
        """
        if self._writes_left <= 0:
            await trio.lowlevel.checkpoint()
            self._renew_turn()
        if not self.put_nowait(pieces, announce):
            entry = (trio.lowlevel.current_task(), pieces, announce)
            self._senders.append(entry)

            def abort(_: object) -> trio.lowlevel.Abort:
                self._senders.remove(entry)
                return trio.lowlevel.Abort.SUCCEEDED

            # Whoever makes room queues the frame for us: so frames keep the order of the calls.
            await trio.lowlevel.wait_task_rescheduled(abort)
            self.check()

    def put_nowait(self, pieces: Sequence[Buffer], announce: Announce | None = None) -> bool:
        """Queue a frame if there is room for it; say whether there was."""
        self.check()
        if self.queued > self.limits.write_buffer_size and not self._senders:
            self.flush_now()
            self.check()
        if self.queued > self.limits.write_buffer_size or self._senders:
            return False
        self._enqueue(pieces, announce)
        return True

    def check(self) -> None:
        """Raise what the use of a transport that takes no more frames gets."""
        if self.refusal is not None:
            raise again(self.refusal)

    def defer(self) -> None:
        """Write what is queued when the burst ends, or at the scheduler's next turn."""
        if not self.deferring:
            self.deferring = True
            flush_soon(self)
        elif self.queued > self._flush_at:
            self.flush_now()

    @abstractmethod
    def flush_now(self) -> None:
        """Write what is queued, as far as that goes without waiting; the pump does the rest."""

    async def drain(self) -> None:
        """Wait until the operating system has every byte that is queued now.

        Raises:
          trio.ClosedResourceError, trio.BrokenResourceError: if it will never have them.
        """
        target = self.bytes_written + self.queued
        self.flush_now()
        while self.bytes_written < target:
            if self.error is not None:
                raise again(self.error)
            if trio.lowlevel.current_task() is self._pump_task:
                # In an announcement: the pump waits for us, so we do its work meanwhile.
                await self._write_some()
            else:
                await self._wait_for_progress()
        await trio.lowlevel.checkpoint()

    async def finish(self) -> None:
        """`drain`, and wait until everything written is announced."""
        await self.drain()
        while self._pump_task is not None and self._pump_task is not trio.lowlevel.current_task():
            await self._wait_for_progress()

    def refuse(self, error: Exception) -> None:
        """Take no more frames; what is queued is still sent."""
        if self.refusal is None:
            self.refusal = error
            self.clear = False
            for task, _, _ in self._senders:
                trio.lowlevel.reschedule(task)
            self._senders.clear()

    def fail(self, error: Exception) -> None:
        """Nothing can be written any more: what is queued is lost, and whoever waits is told."""
        self.refuse(error)
        if self.error is None:
            self.error = error
            self._queue.clear()
            self._progressed()

    # -- closing

    async def send_eof(self) -> None:
        """Half-close: what was queued is sent, and then the end of the stream."""
        if not isinstance(self.stream, trio.abc.HalfCloseableStream):
            raise BytetalkError(
                f"a {type(self.stream).__name__} cannot be half-closed; TLS, for one, cannot"
            )
        await self.drain()
        await self.stream.send_eof()
        self.refuse(trio.ClosedResourceError("the end was sent, by send_eof()"))

    @abstractmethod
    async def aclose(self) -> None:
        """Close the stream, and let `read` return. Cancelled, the stream is closed all the same."""

    def _stop(self) -> None:
        """No more writing, and no more announcements; one that is under way is cancelled."""
        self.fail(trio.ClosedResourceError("the connection was closed"))
        self._announcements.clear()
        if self._pump_scope is not None and self._pump_task is not trio.lowlevel.current_task():
            self._pump_scope.cancel()

    def detach(self) -> None:
        """Leave the stream alone from now on, so that another transport can go on with it."""

    # -- within

    def _enqueue(self, pieces: Sequence[Buffer], announce: Announce | None) -> None:
        self._queue.extend(pieces)
        self.queued += sum(map(len, pieces))
        if announce is not None:
            self._announcements.append((self.bytes_written + self.queued, announce))
            self._start_pump()

    def _due(self) -> bool:
        return bool(self._announcements) and self._announcements[0][0] <= self.bytes_written

    def _renew_turn(self) -> None:
        self._writes_left = _WRITES_PER_TURN
        self.clear = self.refusal is None and not self._queue

    def _count_write(self) -> None:
        self._writes_left -= 1
        if self._writes_left <= 0:
            self.clear = False

    def _taken(self, count: int) -> None:
        """The operating system has taken ``count`` bytes off the queue."""
        self.bytes_written += count
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
        senders = self._senders
        while senders and self.queued <= self.limits.write_buffer_size:
            task, pieces, announce = senders.pop(0)
            self._enqueue(pieces, announce)
            trio.lowlevel.reschedule(task)
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
        if self._pump_task is None:
            # A system task: it must outlive the cancellation of whoever queued the bytes, so that
            # no frame is cut. It ends when the queue is empty or the transport is closed.
            self._pump_task = trio.lowlevel.spawn_system_task(
                self._pump, name="trio_bytetalk: pump", context=contextvars.copy_context()
            )

    async def _pump(self) -> None:
        """Write what could not be written at once, and announce it, until nothing is left."""
        try:
            with trio.CancelScope() as self._pump_scope:
                while self._queue or self._due():
                    if self._queue:
                        await self._write_some()
                    while self._due():
                        await self._announcements.pop(0)[1]()
        finally:
            self._pump_scope = self._pump_task = None
            self._renew_turn()
            self._progressed()

    async def _write_some(self) -> None:
        """Write a part of the queue, waiting while the peer takes nothing; always a checkpoint."""
        with trio.CancelScope(deadline=trio.current_time() + self.limits.send_timeout) as scope:
            try:
                await self._write_and_wait()
            except trio.BrokenResourceError as error:
                self.fail(broken(error))
            except trio.ClosedResourceError as error:
                self.fail(error)
        if scope.cancelled_caught:
            self.fail(
                SendTimeoutError(
                    f"the peer took none of {self.queued} queued bytes in "
                    f"{self.limits.send_timeout} seconds; the setting is send_timeout"
                )
            )
            self.interrupt()

    @abstractmethod
    async def _write_and_wait(self) -> None:
        """Write something, after waiting until that is possible."""


@attrs.define(eq=False)
class StreamTransport(Transport[trio.abc.Stream]):
    """A transport over any Trio stream, through `trio.abc.Stream` alone."""

    _read_scope: trio.CancelScope | None = attrs.field(default=None, init=False)

    async def read(self, wanted: int) -> bytes | bytearray | None:
        self.flush_now()
        with trio.CancelScope() as self._read_scope:
            try:
                data = await self.stream.receive_some()
            except trio.BrokenResourceError as error:
                raise broken(error) from error.__cause__
            self.bytes_received += len(data)
            self._renew_turn()
            return data
        return None

    def read_nowait(self) -> bytes | None:
        return None

    def interrupt(self) -> None:
        if self._read_scope is not None:
            self._read_scope.cancel()

    def flush_now(self) -> None:
        # send_all is left to the pump in any case: cancelled, it would leave a frame in pieces.
        self.deferring = False
        if self._queue:
            self._start_pump()
            self.clear = False

    async def aclose(self) -> None:
        self._stop()
        try:
            with contextlib.suppress(trio.BrokenResourceError):
                await self.stream.aclose()
        finally:
            self.interrupt()

    async def _write_and_wait(self) -> None:
        data = self._queue[0]
        if len(self._queue) > 1:
            data = b"".join(self._queue)
            self._queue = [data]
        data = data[:_SEND_SIZE]
        await self.stream.send_all(data)
        self._taken(len(data))


@attrs.define(eq=False)
class SocketTransport(Transport[trio.SocketStream]):
    """A transport over a `trio.SocketStream`, on Linux, working on the plain descriptor.

    One task switch for each wake-up: it waits first, unless the last read filled its buffer, and
    then makes the system call itself; and a write that need not wait is nothing but a system call.
    """

    _readiness: Readiness = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self._readiness = register(self.stream.socket.fileno())

    async def read(self, wanted: int) -> bytes | None:
        if self._queue:
            self.flush_now()
        readiness = self._readiness
        if readiness.readable:
            await trio.lowlevel.checkpoint()
        else:
            await readiness.wait_readable()
        self._renew_turn()
        return self._receive(wanted)

    def read_nowait(self) -> bytes | None:
        return self._receive(0)

    def _receive(self, wanted: int) -> bytes | None:
        size = min(wanted, _LARGE_READ_SIZE) if wanted > _READ_SIZE else _READ_SIZE
        try:
            data = os.read(self._fileno(), size)
        except BlockingIOError:
            self._readiness.readable = False
            return None
        except OSError as error:
            raise broken(error) from error
        count = len(data)
        if count < size and not self._readiness.hung_up:
            self._readiness.readable = False
        self.bytes_received += count
        return data

    def interrupt(self) -> None:
        self._readiness.wake_reader()

    def flush_now(self) -> None:
        self.deferring = False
        if self._pump_task is None and self._queue:
            self._count_write()
            self._write()
            if self._queue:
                self._start_pump()
                self.clear = False

    def _fileno(self) -> int:
        fd = self.stream.socket.fileno()
        # Were the socket closed behind our back, its old number might be another file by now.
        if fd < 0:
            raise trio.ClosedResourceError("the connection's socket was closed")
        return fd

    def _write(self) -> None:
        """Write as much as the operating system takes."""
        queue = self._queue
        try:
            while queue:
                data: Buffer = queue[0]
                if len(queue) == 1:
                    size = len(data)
                    written = os.write(self._fileno(), data)
                elif self.queued < len(queue) * _GATHER_FROM:
                    data = b"".join(queue)
                    queue[:] = [data]
                    size = len(data)
                    written = os.write(self._fileno(), data)
                else:
                    pieces = queue[:_GATHER_PIECES]
                    size = sum(map(len, pieces))
                    written = os.writev(self._fileno(), pieces)
                self._taken(written)
                if written < size:
                    break
            else:
                return
        except BlockingIOError:
            pass
        except OSError as error:
            self.fail(broken(error))
        except trio.ClosedResourceError as error:
            self.fail(error)
        self._readiness.writable = False

    async def _write_and_wait(self) -> None:
        if not self._readiness.writable:
            await self._readiness.wait_writable()
        else:
            await trio.lowlevel.checkpoint()
        self._write()

    def detach(self) -> None:
        self._readiness.close()

    async def aclose(self) -> None:
        healthy = self.error is None and not self._readiness.hung_up
        self._stop()
        try:
            if healthy:
                await self._linger()
        finally:
            self.detach()
            await self.stream.aclose()

    async def _linger(self) -> None:
        """If the peer is still sending, say that we have finished, and read on until it has, too.

        Closing a socket that has unread data resets the connection, and that destroys whatever of
        our last messages the peer has not received (RFC 1122, 4.2.2.13).
        """
        with contextlib.suppress(OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            if not self._receive(0):
                return
            self.stream.socket.shutdown(trio.socket.SHUT_WR)
            while await self.read(0) != b"":
                pass


def open_transport(stream: trio.abc.Stream, limits: Limits) -> Transport[Any]:
    """The fastest transport that there is for ``stream``."""
    if EPOLL_AVAILABLE and type(stream) is trio.SocketStream:
        return SocketTransport(stream, limits)
    return StreamTransport(stream, limits)
