"""`Server`: listeners, one task for each connection, and stopping."""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Final, Generic, Literal, TypeVar, Unpack, cast, overload

import attrs
import trio

from ._codec import Codec, ReceiveT, SendT
from ._connection import (
    CloseReason,
    Connection,
    Ending,
    HandshakeTimeoutError,
    QueueFullError,
    check_ssl_context,
    handshake,
    numbers,
    wrap_tls,
)
from ._errors import BytetalkError, EncodeError, in_words, leaves
from ._events import (
    BUFFER_SIZE,
    ClientConnected,
    ClientDisconnected,
    ConnectionHook,
    Event,
    EventEmitter,
    MessageHook,
    MessageReceived,
    MessageWritten,
    Overflow,
    Subscription,
    check_async,
    deliver,
)
from ._length_prefixed import LengthPrefixed
from ._limits import LimitOptions, Limits
from ._listeners import open_tcp_listeners, open_unix_listener
from ._log import ERROR_SHOWN, address_in_words, fields, get_logger
from ._transport import Frame, address_of, close_forcefully

_logger = get_logger("server")

# In a log line: who came through a Unix socket, or had gone before its address was asked for.
_UNNAMED: Final = "an unnamed peer"

# accept() fails with these when the process or the system has run out of something. Waiting helps,
# if connections end meanwhile; trio.serve_listeners waits as long.
_OUT_OF_RESOURCES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_ACCEPT_PAUSE: Final = 0.1

# For how many seconds accept() must not have failed so, for that to be over: at the limit, each
# connection that ends lets one more in, and there would be no end of log lines.
_ACCEPT_CALM: Final = 1

# For how many seconds a cancelled server may go on telling of its connections' ends, at the most.
_LAST_WORDS: Final = 10

Handler = Callable[[Connection[SendT, ReceiveT]], Awaitable[object]]
_ConnectHookT = TypeVar("_ConnectHookT", bound=Callable[[Any], Awaitable[object]])
_MessageHookT = TypeVar("_MessageHookT", bound=Callable[[Any, Any], Awaitable[object]])
_ListenerT = TypeVar("_ListenerT", bound=trio.abc.Listener[Any])


@attrs.frozen(kw_only=True)
class ServerStatistics:
    """Numbers of a server, as of the moment that `Server.statistics` was called."""

    connections: int
    """Connections open now."""
    connections_total: int
    """Connections ever made, the open ones included."""
    connections_accepted: int
    """Streams ever accepted, or given to `Server.serve_stream`.

    Each one becomes a connection, or is refused, or has that before it still.
    """
    connections_refused: int
    """Accepted, and closed before they were connections.

    The handshake or the codec failed, or the server ended.
    """
    endings: Mapping[Ending, int]
    """How many connections have ended in each way; all the ways are there."""

    handshakes: int
    """TLS handshakes under way now."""
    handshakes_failed: int
    handshakes_timed_out: int
    """Those of the failed ones that took more than ``handshake_timeout``."""

    listeners: int
    """Listeners that are being served now."""
    listeners_at_limit: int
    """Those that accept no one now, because ``max_connections`` are being served."""
    listeners_out_of_resources: int
    """Those that accept no one now, because the system has run out of descriptors or memory."""
    times_at_limit: int
    """How many times a listener has had to wait, because of ``max_connections``."""
    times_out_of_resources: int
    """How many times a listener has found the system to have run out, and gone on to do so."""

    messages_received: int
    messages_sent: int
    bytes_received: int
    bytes_sent: int
    chunks_received: int
    """In how many pieces the bytes came."""
    flushes: int
    """How often the operating system was offered bytes to be sent."""
    bytes_queued: int
    """Bytes that wait to be sent now, of all connections."""
    most_bytes_queued: int
    """The most that were queued at any one time for any one connection."""
    bytes_undecoded: int
    """Bytes received that are not decoded yet, of all connections.

    Those of a burst that is being worked through may be decoded ahead, and do not count here.
    """
    senders_waiting: int
    """How many tasks wait in `Connection.send` for room in a queue."""
    broadcasts_skipped: int
    """How many times `Server.broadcast` left out a connection because its queue was full."""

    subscriptions: int
    """Subscriptions to this server's events; those to a connection's own are not counted."""
    events_waiting: int
    """Events that their subscribers have not received yet."""
    events_dropped: int
    """Events that subscriptions have dropped, those included that have ended."""


@attrs.frozen(kw_only=True)
class BroadcastResult:
    """What became of one `Server.broadcast`."""

    queued: int
    """For how many connections the message was queued."""
    skipped: int
    """How many were left out, or disconnected, because there was no room for it."""


@attrs.define(eq=False)
class _Run:
    """One call of a ``serve_`` method."""

    accepting: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    serving: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    stopping: bool = False


@attrs.define
class _Totals:
    """What the connections that have ended add to the statistics."""

    connections: int = 0
    messages_received: int = 0
    messages_sent: int = 0
    bytes_received: int = 0
    bytes_sent: int = 0
    chunks_received: int = 0
    flushes: int = 0
    most_bytes_queued: int = 0

    def add(self, connection: Connection[Any, Any]) -> None:
        transport = connection._transport
        self.connections += 1
        self.messages_received += connection._messages_delivered()
        self.messages_sent += connection._messages_sent
        self.bytes_received += transport.bytes_received
        self.bytes_sent += transport.bytes_written
        self.chunks_received += transport.chunks
        self.flushes += transport.flushes
        self.most_bytes_queued = max(self.most_bytes_queued, transport.most_queued)


class Server(Generic[SendT, ReceiveT]):
    """Serves connections, each in a task of its own.

    Args:
      handler: An async function that is called with each `Connection`; the connection is closed
          when it returns. Without one, messages are received and left to the hooks.
      codec: The protocol that connections begin with.
      max_connections: How many connections are served at once; further ones wait in the
          listeners' backlog. No limit by default.
      forward_messages: Whether this server's ``message_received`` and ``message_written`` hear
          every connection. If not, they hear those that are forwarded by hand:
          ``connection.message_received.connect(server.message_received)``.
      limits: The settings of `Limits`, each as a keyword argument.

    Raises:
      TypeError, ValueError: for a wrong setting, which the message names.

    An exception of a handler or a hook ends its connection, is that connection's
    ``close_reason``, and is logged, with its traceback, to the logger ``trio_bytetalk.server``. A
    peer's fault is logged on one line and without one, also if it is the handler that raises
    `ProtocolError`; that the peer has finished where the handler wanted a message is none. Other
    connections are not affected.
    """

    client_connected: EventEmitter[ClientConnected]
    """Hears of a connection before all else. Its hooks may choose the protocol."""

    client_disconnected: EventEmitter[ClientDisconnected]
    """Hears that a connection has ended, after all else."""

    message_received: EventEmitter[MessageReceived]
    """Hears of each message that is delivered."""

    message_written: EventEmitter[MessageWritten]
    """Hears of each message that the operating system has taken as a whole."""

    @overload
    def __init__(
        self: Server[bytes, bytes],
        handler: Handler[bytes, bytes] | None = None,
        *,
        max_connections: int | None = None,
        forward_messages: bool = True,
        **limits: Unpack[LimitOptions],
    ) -> None: ...

    @overload
    def __init__(
        self,
        handler: Handler[SendT, ReceiveT] | None = None,
        *,
        codec: Codec[SendT, ReceiveT],
        max_connections: int | None = None,
        forward_messages: bool = True,
        **limits: Unpack[LimitOptions],
    ) -> None: ...

    def __init__(
        self,
        handler: Handler[Any, Any] | None = None,
        *,
        codec: Codec[Any, Any] | None = None,
        max_connections: int | None = None,
        forward_messages: bool = True,
        **limits: Unpack[LimitOptions],
    ) -> None:
        if handler is not None:
            check_async("handler", handler)
        if codec is not None and not isinstance(codec, Codec):
            raise TypeError(f"codec must be a Codec, not {codec!r}")
        if max_connections is not None and type(max_connections) is not int:
            raise TypeError(
                f"max_connections must be a whole number or None, not {max_connections!r}"
            )
        if max_connections is not None and max_connections < 1:
            raise ValueError(f"max_connections must be 1 or more, not {max_connections!r}")
        if not isinstance(forward_messages, bool):
            raise TypeError(f"forward_messages must be True or False, not {forward_messages!r}")
        self.handler: Handler[SendT, ReceiveT] | None = handler
        self.codec: Codec[SendT, ReceiveT] = cast(Any, LengthPrefixed()) if codec is None else codec
        self.max_connections = max_connections
        self.forward_messages = forward_messages
        self.limits: Limits = Limits(**limits)
        self.client_connected = EventEmitter()
        self.client_disconnected = EventEmitter()
        self.message_received = EventEmitter()
        self.message_written = EventEmitter()
        self._connections: set[Connection[SendT, ReceiveT]] = set()
        self._runs: set[_Run] = set()
        self._was_stopped = False  # one of them, or one before them
        self._serving = 0
        self._room = trio.lowlevel.ParkingLot()
        self._ended = _Totals()
        self._endings = dict.fromkeys(Ending, 0)
        self._accepted = self._refused = 0
        self._handshakes = self._handshakes_failed = self._handshakes_timed_out = 0
        self._listeners = self._listeners_exhausted = 0
        self._times_at_limit = self._times_exhausted = 0
        self._broadcasts_skipped = 0

    # -- hooks and events

    def on_connect(self, hook: _ConnectHookT) -> _ConnectHookT:
        """Decorator: ``async def hook(connection)`` is awaited before a connection is served.

        It is the place to choose the connection's protocol and set its context.
        """
        self.client_connected.connect(ConnectionHook(hook))
        return hook

    def on_disconnect(self, hook: _ConnectHookT) -> _ConnectHookT:
        """Decorator: ``async def hook(connection)`` is awaited after a connection has ended.

        It is called exactly once for each connection, also when the server has been cancelled; it
        has ``close_timeout`` seconds then. One that is at work at that moment is cancelled, as all
        else is.
        """
        self.client_disconnected.connect(ConnectionHook(hook))
        return hook

    def on_message(self, hook: _MessageHookT) -> _MessageHookT:
        """Decorator: ``async def hook(connection, message)`` is awaited for each message received.

        The next message of that connection is not received before it returns.
        """
        self.message_received.connect(MessageHook(hook))
        return hook

    def events(
        self, *, buffer_size: int = BUFFER_SIZE, overflow: Overflow = "wait"
    ) -> Subscription[Event]:
        """Subscribe to all four emitters at once; one stream, in order.

        It ends when `stop` has been carried out, with the last ``serve_`` call that was at work
        meanwhile. A server that was cancelled may serve again, so there it does not.

        The arguments are those of `EventEmitter.subscribe`.
        """
        return Subscription(
            buffer_size,
            overflow,
            self._emitters,
        )

    @property
    def _emitters(self) -> tuple[EventEmitter[Any], ...]:
        return (
            self.client_connected,
            self.client_disconnected,
            self.message_received,
            self.message_written,
        )

    # -- serving

    async def serve_tcp(
        self,
        port: int,
        *,
        host: str | None = None,
        backlog: int | None = None,
        reuse_port: bool = False,
        ssl_context: ssl.SSLContext | None = None,
        task_status: trio.TaskStatus[list[trio.SocketListener]] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Listen on a TCP port and serve until stopped or cancelled.

        With ``await nursery.start(server.serve_tcp, 0)`` you get the listeners when connections
        are being accepted.

        Args:
          port: The port; 0 has the system choose one, for each address another.
          host: The name or address to listen on; all of the machine's by default.
          backlog: How many connections may wait to be accepted; by default as many as the system
              allows.
          reuse_port: Whether other processes may listen on the same port, and share its connections
              (``SO_REUSEPORT``, where the system has it).
          ssl_context: Serve TLS. Each handshake is done in its connection's task.

        Raises:
          OSError: if the port cannot be listened on; the message says which, and why.
        """
        with self._run() as run:
            _check_server_context(ssl_context)
            listeners = await open_tcp_listeners(port, host, backlog, reuse_port)
            await self._serve(run, listeners, ssl_context, task_status)

    async def serve_unix(
        self,
        path: str | os.PathLike[str],
        *,
        backlog: int | None = None,
        ssl_context: ssl.SSLContext | None = None,
        task_status: trio.TaskStatus[list[trio.SocketListener]] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Listen on a Unix socket and serve until stopped or cancelled.

        The socket's file is removed when listening ends. One that a dead server left behind is
        replaced.

        Raises:
          OSError: if the path cannot be listened on; the message says why.
        """
        with self._run() as run:
            _check_server_context(ssl_context)
            listener, remove_file = await open_unix_listener(path, backlog)
            await self._serve(run, [listener], ssl_context, task_status, remove_file)

    async def serve_listeners(
        self,
        listeners: Sequence[_ListenerT],
        *,
        ssl_context: ssl.SSLContext | None = None,
        task_status: trio.TaskStatus[list[_ListenerT]] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve any Trio listeners until stopped or cancelled, and close them."""
        with self._run() as run:
            _check_server_context(ssl_context)
            await self._serve(run, list(listeners), ssl_context, task_status)

    async def serve_stream(
        self, stream: trio.abc.Stream, *, ssl_context: ssl.SSLContext | None = None
    ) -> None:
        """Serve one connected Trio stream in the current task, until the connection ends.

        The stream may be anything: one end of an in-memory pair, the pipes to a subprocess, an
        inherited socket. It is closed at the end. A `trio.SSLStream` shakes hands first if it has
        not. Whether to serve it is the caller's decision, so ``max_connections`` does not hold it
        up; it counts among them, though.
        """
        if not isinstance(stream, trio.abc.Stream):
            raise TypeError(f"stream must be a trio.abc.Stream, not {stream!r}")
        with self._run() as run, run.serving:
            _check_server_context(ssl_context)
            self._accepted += 1
            self._serving += 1
            known = next(numbers), address_of(stream)
            await self._serve_connection(run, stream, ssl_context, *known)

    def stop(self, timeout: float | None = 10) -> None:
        """Stop serving, in order; the ``serve_`` calls return when that is done.

        No more connections are accepted. Each connection's iterator ends after the messages that
        have arrived; what its handler sends is flushed, and it is closed. Connections that are not
        done after ``timeout`` seconds are cancelled; None is no limit.

        This does not wait, so it can be called from anywhere in the Trio thread: a hook, a handler,
        another task. `stop_on_signals` calls it at a signal. Calling it again may shorten the time,
        ``stop(0)`` ends it at once; a server that is not running stays as it is. What is not cut
        short is that subscribers hear how each connection ended: one that does not read, with
        ``overflow="wait"``, can take ``close_timeout`` twice, at the most 20 seconds.
        """
        check_stop_timeout(timeout)
        for run in self._runs:
            run.stopping = True
            run.accepting.cancel()
            if timeout is not None:
                deadline = trio.current_time() + timeout
                run.serving.deadline = min(run.serving.deadline, deadline)
        for connection in self._connections:
            connection._stop()

    def broadcast(
        self,
        message: SendT,
        *,
        exclude: Connection[SendT, ReceiveT] | Collection[Connection[SendT, ReceiveT]] = (),
        when_full: Literal["skip", "close"] = "skip",
    ) -> BroadcastResult:
        """Send a message to every connection, without waiting for any.

        It is encoded once for each codec in use, and written at the scheduler's next turn. Two
        broadcasts reach every connection in the order of the calls.

        Args:
          exclude: A connection, or several, to be left out.
          when_full: What becomes of a connection that has more than ``write_buffer_size`` bytes
              queued: ``"skip"`` leaves it out, ``"close"`` gives it up with `QueueFullError`. One
              whose listeners to `Connection.message_written` are far behind is left out.

        Raises:
          EncodeError: if a codec in use cannot represent the message. Nothing was queued then.
              (A stateful writer encodes only when there is room, so after others have queued.)

        If the server's codec raises something else, so does this (and with a stateful writer, some
        have the message already). A writer or codec that a connection was given later ends that
        connection then.

        Connections whose ``on_connect`` hooks are still at work are left out: their protocol is
        not settled. So are those whose queue `Connection.start_tls` is emptying, which count as
        skipped.
        """
        if when_full not in ("skip", "close"):
            raise ValueError(f"when_full must be 'skip' or 'close', not {when_full!r}")
        excluded = (exclude,) if isinstance(exclude, Connection) else exclude
        frames: dict[Codec[SendT, ReceiveT], Frame] = {}
        to_queue = []
        for connection in self._connections:
            if (
                connection._settled
                and connection._transport.refusal is None
                and connection not in excluded
            ):
                try:
                    frame = connection._frame_for_broadcast(message, frames)
                except EncodeError:
                    raise
                except Exception as error:
                    if connection._codec == self.codec:
                        raise  # it is the others', too, so the message is to blame
                    connection._writer_failed(error)
                else:
                    to_queue.append((connection, frame))
        queued = skipped = 0
        for connection, frame in to_queue:
            try:
                outcome = connection._queue_broadcast(frame, message)
            except EncodeError:
                raise
            except Exception as error:
                if connection._codec == self.codec:
                    raise
                connection._writer_failed(error)
                continue
            if outcome is True:
                queued += 1
            elif outcome is False:
                skipped += 1
                if when_full == "close" and connection._transport.is_full:
                    connection._give_up(
                        QueueFullError(
                            "the connection had no room for a broadcast; "
                            "the settings are write_buffer_size and when_full"
                        )
                    )
        self._broadcasts_skipped += skipped
        return BroadcastResult(queued=queued, skipped=skipped)

    # -- looking

    @property
    def connections(self) -> frozenset[Connection[SendT, ReceiveT]]:
        """The connections that are open now."""
        return frozenset(self._connections)

    @property
    def is_running(self) -> bool:
        """Whether any ``serve_`` call is at work, its stopping included."""
        return bool(self._runs)

    def statistics(self) -> ServerStatistics:
        """Numbers of this server, as of now, over all its connections ever.

        Nothing is kept for them but what a connection counts anyhow: they are added up here, a
        microsecond or so for each open connection.
        """
        totals = attrs.evolve(self._ended)
        queued = undecoded = senders = 0
        for connection in self._connections:
            totals.add(connection)
            queued += connection._transport.queued
            senders += connection._transport.senders_waiting
            undecoded += len(connection._buffer)
        subscriptions = {
            listener
            for emitter in self._emitters
            for listener in emitter._listeners
            if isinstance(listener, Subscription)
        }
        return ServerStatistics(
            connections=len(self._connections),
            connections_total=totals.connections,
            connections_accepted=self._accepted,
            connections_refused=self._refused,
            endings=dict(self._endings),
            handshakes=self._handshakes,
            handshakes_failed=self._handshakes_failed,
            handshakes_timed_out=self._handshakes_timed_out,
            listeners=self._listeners,
            listeners_at_limit=len(self._room),
            listeners_out_of_resources=self._listeners_exhausted,
            times_at_limit=self._times_at_limit,
            times_out_of_resources=self._times_exhausted,
            messages_received=totals.messages_received,
            messages_sent=totals.messages_sent,
            bytes_received=totals.bytes_received,
            bytes_sent=totals.bytes_sent,
            chunks_received=totals.chunks_received,
            flushes=totals.flushes,
            bytes_queued=queued,
            most_bytes_queued=totals.most_bytes_queued,
            bytes_undecoded=undecoded,
            senders_waiting=senders,
            broadcasts_skipped=self._broadcasts_skipped,
            subscriptions=len(subscriptions),
            events_waiting=sum(subscription.waiting for subscription in subscriptions),
            events_dropped=sum(emitter._dropped for emitter in self._emitters),
        )

    # -- within

    @contextlib.contextmanager
    def _run(self) -> Iterator[_Run]:
        run = _Run()
        self._runs.add(run)
        try:
            yield run
        finally:
            self._runs.remove(run)
            self._was_stopped |= run.stopping
            if self._was_stopped and not self._runs:
                self._was_stopped = False
                for emitter in self._emitters:
                    emitter._end_subscriptions()

    async def _serve(
        self,
        run: _Run,
        listeners: list[_ListenerT],
        ssl_context: ssl.SSLContext | None,
        task_status: trio.TaskStatus[list[_ListenerT]],
        before_closing: Callable[[], None] | None = None,
    ) -> None:
        with run.serving:
            async with trio.open_nursery() as connections, contextlib.AsyncExitStack() as listening:
                for listener in listeners:
                    listening.push_async_callback(trio.aclose_forcefully, listener)
                if before_closing is not None:
                    listening.callback(before_closing)
                with run.accepting:
                    async with trio.open_nursery() as acceptors:
                        for listener in listeners:
                            self._listeners += 1
                            acceptors.start_soon(
                                self._listen,
                                run,
                                listener,
                                connections,
                                ssl_context,
                                name=f"acceptor ({_listener_in_words(listener)})",
                            )
                        task_status.started(listeners)

    async def _listen(
        self,
        run: _Run,
        listener: trio.abc.Listener[Any],
        connections: trio.Nursery,
        ssl_context: ssl.SSLContext | None,
    ) -> None:
        """A listener's task. ``_listeners`` counts it already."""
        try:
            await self._accept(run, listener, connections, ssl_context)
        finally:
            self._listeners -= 1

    async def _accept(
        self,
        run: _Run,
        listener: trio.abc.Listener[Any],
        connections: trio.Nursery,
        ssl_context: ssl.SSLContext | None,
    ) -> None:
        calm_at = math.inf  # when it will be long enough that accept() has not failed, if it has
        while True:
            await self._wait_for_room()
            stream: trio.abc.Stream | None = None
            try:
                # A cancel scope for each connection would cost a hundredth of it.
                patience = (
                    contextlib.nullcontext() if calm_at == math.inf else trio.move_on_at(calm_at)
                )
                with patience:
                    stream = await listener.accept()
            except trio.ClosedResourceError:
                return  # closed by its owner: nothing more will come
            except OSError as error:
                if error.errno not in _OUT_OF_RESOURCES:
                    raise
                if calm_at == math.inf:
                    self._times_exhausted += 1
                    extra = fields("accept_paused", error, listener=_listener_in_words(listener))
                    _logger.error("accepting no connections for now: %s", error, extra=extra)
                calm_at = trio.current_time() + _ACCEPT_CALM
                self._listeners_exhausted += 1
                try:
                    await trio.sleep(_ACCEPT_PAUSE)
                finally:
                    self._listeners_exhausted -= 1
                continue
            if trio.current_time() >= calm_at:
                calm_at = math.inf
                extra = fields("accept_resumed", listener=_listener_in_words(listener))
                _logger.info("accepting connections again", extra=extra)
            if stream is None:
                continue
            self._accepted += 1
            number, address = next(numbers), address_of(stream)
            try:
                # Another listener's connection may have taken the place meanwhile.
                await self._wait_for_room()
            except trio.Cancelled:
                self._refused += 1
                with trio.CancelScope(shield=True):
                    await close_forcefully(stream, number)
                raise
            self._serving += 1
            connections.start_soon(
                self._serve_connection,
                run,
                stream,
                ssl_context,
                number,
                address,
                name=_task_name(number, address),
            )

    async def _wait_for_room(self) -> None:
        if self.max_connections is not None and self._serving >= self.max_connections:
            self._times_at_limit += 1
            while self._serving >= self.max_connections:
                await self._room.park()

    async def _serve_connection(
        self,
        run: _Run,
        stream: trio.abc.Stream,
        ssl_context: ssl.SSLContext | None,
        number: int,
        address: Any,
    ) -> None:
        """One connection's task. ``_serving`` counts it already."""
        connection: Connection[SendT, ReceiveT] | None = None
        try:
            if ssl_context is not None:
                stream = wrap_tls(stream, ssl_context, server_side=True)
            # One that was given may be new, too.
            if isinstance(stream, trio.SSLStream) and not await self._shake_hands(
                stream, number, address
            ):
                return
            try:
                known = number, address
                connection = Connection(stream, self.codec, self.limits, self, known)
            except Exception as error:
                # The codec's own code, or a system limit: not a reason to end the server.
                remote = address_in_words(address)
                extra = fields("connection_refused", error, connection=number, remote=remote)
                peer = remote or _UNNAMED
                _logger.exception("no connection %d with %s", number, peer, extra=extra)
                await close_forcefully(stream, number)
                return
            self._connections.add(connection)
            try:
                await self._handle(run, connection)
            finally:
                self._connections.remove(connection)
                self._ended.add(connection)
                self._endings[connection._ending()] += 1
                await self._tell_of_end(connection)
        finally:
            if connection is None:
                self._refused += 1
            self._serving -= 1
            # All of them: the first in the row may have no one to accept, and another listener may.
            self._room.unpark_all()

    async def _shake_hands(self, secure: trio.SSLStream[Any], number: int, address: Any) -> bool:
        """Do the TLS handshake; False if it failed, which is logged."""
        self._handshakes += 1
        try:
            await handshake(secure, self.limits)
        except Exception as error:
            self._handshakes_failed += 1
            self._handshakes_timed_out += isinstance(error, HandshakeTimeoutError)
            # A BrokenResourceError, or else a bug of the stream's, which is to be seen.
            traceback = None if isinstance(error, trio.BrokenResourceError) else error
            remote = address_in_words(address)
            extra = fields("handshake_failed", error, connection=number, remote=remote)
            words = "no connection %d with %s: %s"
            said = number, remote or _UNNAMED, in_words(error, ERROR_SHOWN)
            _logger.warning(words, *said, exc_info=traceback, extra=extra)
            await close_forcefully(secure, number)
            return False
        except BaseException:
            with trio.CancelScope(shield=True):
                await close_forcefully(secure, number)
            raise
        finally:
            self._handshakes -= 1
        return True

    async def _handle(self, run: _Run, connection: Connection[SendT, ReceiveT]) -> None:
        """From the first event to the closed stream."""
        if run.stopping:
            connection._stop()
        try:
            await self._tell_of_beginning(connection)
            connection._settled = True
            if self.handler is not None:
                await self.handler(connection)
            else:
                await connection._consume()
        except BaseException as error:
            rest = _judge(connection, error, stopping=run.stopping)
            if rest is error:
                raise
            if rest is not None:
                raise rest from None
        finally:
            was_closed = connection.close_reason is not None
            try:
                await connection.aclose()
            except trio.Cancelled:
                if run.stopping:  # and the stop's time was over while the last was being sent
                    connection._conclude(CloseReason.SERVER_STOPPED)
                    if not was_closed and trio.current_time() >= run.serving.deadline:
                        connection._note_unsent("the time of Server.stop was over")
                raise

    async def _tell_of_beginning(self, connection: Connection[SendT, ReceiveT]) -> None:
        if not self.client_connected._listeners:
            return
        event = ClientConnected(connection)
        listeners = self.client_connected._flat_listeners()
        try:
            await deliver(event, listeners)
        finally:
            # Whatever cuts this short, subscribers will be told of the end, so of this before.
            listeners = deque(one for one in listeners if isinstance(one, Subscription))
            await self._tell_the_rest(event, listeners)

    async def _tell_of_end(self, connection: Connection[SendT, ReceiveT]) -> None:
        if not self.client_disconnected._listeners:
            return
        event = ClientDisconnected(connection)
        listeners = self.client_disconnected._flat_listeners()
        try:
            if trio.current_effective_deadline() != -math.inf:
                await _deliver_and_log(event, listeners)
        finally:
            await self._tell_the_rest(event, listeners)

    async def _tell_the_rest(
        self, event: ClientConnected | ClientDisconnected, listeners: deque[Any]
    ) -> None:
        """Cancelled or not, tell these listeners; but a cancelled server does not wait long."""
        if listeners:
            patience = min(self.limits.close_timeout, _LAST_WORDS)
            with trio.move_on_after(patience, shield=True):
                await _deliver_and_log(event, listeners)
            if listeners:
                extra = event.connection._log_fields("event_not_taken", listeners=len(listeners))
                words = "%d listeners did not take %r in time"
                _logger.error(words, len(listeners), event, extra=extra)


async def _deliver_and_log(
    event: ClientConnected | ClientDisconnected, listeners: deque[Any]
) -> None:
    while listeners:
        try:
            await deliver(event, listeners)
        except BaseException as error:
            ours, rest = _split(error)
            if ours is not None:
                extra = event.connection._log_fields("hook_failed", ours)
                _logger.error("a hook failed at %r", event, exc_info=ours, extra=extra)
            if rest is error:
                raise
            if rest is not None:
                raise rest from None


def _judge(
    connection: Connection[Any, Any], error: BaseException, *, stopping: bool
) -> BaseException | None:
    """Decide what ``error`` means for ``connection``, log it, and return what is not its own."""
    ours, rest = _split(error)
    if ours is None:
        if all(isinstance(leaf, trio.Cancelled) for leaf in leaves(error)):
            connection._conclude(CloseReason.SERVER_STOPPED if stopping else CloseReason.CANCELLED)
        else:
            connection._conclude(error)
        return rest
    faults = [leaf for leaf in leaves(ours) if not _tells_of_end(connection, leaf)]
    is_peers_fault = all(map(connection._is_peers_fault, faults))
    if not faults:
        pass  # the handler has noticed the end, no more
    elif is_peers_fault and isinstance(connection._reason, BaseException):
        pass  # a hook had failed, which was logged, and this is what came of it
    elif is_peers_fault:
        connection._conclude(faults[0])
        connection._is_logged = True
        # A reset is everyday life; a peer that breaks the protocol, or stalls, is worth a look.
        level = logging.WARNING if isinstance(faults[0], BytetalkError) else logging.INFO
        ending = connection._ending().value
        extra = connection._log_fields("connection_ended", faults[0], ending=ending)
        words = in_words(faults[0], ERROR_SHOWN)
        _logger.log(level, "%r ends: %s", connection, words, extra=extra)
    else:
        connection._conclude(ours, failed=True)
        extra = connection._log_fields("handler_failed", ours, ending=Ending.FAILED.value)
        words = "the handler or a hook of %r failed"
        _logger.error(words, connection, exc_info=ours, extra=extra)
    return rest


def _split(error: BaseException) -> tuple[BaseException | None, BaseException | None]:
    """What of ``error`` is a failure, and what is not, as cancellation."""
    if isinstance(error, BaseExceptionGroup):
        return error.split(Exception)
    return (error, None) if isinstance(error, Exception) else (None, error)


def _tells_of_end(connection: Connection[Any, Any], error: BaseException) -> bool:
    """Whether ``error`` says no more than that receiving, or the connection, has ended."""
    if isinstance(error, trio.EndOfChannel):
        return isinstance(connection._end, trio.EndOfChannel)
    return connection._is_closed_error(error)


def _task_name(number: int, address: Any) -> str:
    if type(address) is tuple and len(address) == 2:  # IPv4, at a third of the cost
        return f"connection {number} ({address[0]}:{address[1]})"
    remote = address_in_words(address)
    return f"connection {number} ({remote})" if remote else f"connection {number}"


def _listener_in_words(listener: trio.abc.Listener[Any]) -> str:
    if isinstance(listener, trio.SocketListener):
        with contextlib.suppress(OSError):  # its owner may have closed it
            return address_in_words(listener.socket.getsockname()) or "unnamed"
    return type(listener).__name__


def _check_server_context(ssl_context: ssl.SSLContext | None) -> None:
    if ssl_context is not None:
        check_ssl_context(ssl_context, server_side=True)


def check_stop_timeout(timeout: float | None) -> None:
    """Refuse what is no time limit for `Server.stop`."""
    if timeout is not None and not isinstance(timeout, int | float):
        raise TypeError(f"timeout must be a number of seconds, or None, not {timeout!r}")
    if timeout is not None and not timeout >= 0:  # also refuses NaN
        raise ValueError(f"timeout must be 0 or more seconds, or None, not {timeout!r}")
