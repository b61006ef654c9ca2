"""`Connection`: a Trio channel of messages over a byte stream."""

from __future__ import annotations

import contextlib
import enum
import functools
import logging
import math
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Generic, Literal

import attrs
import trio

from ._buffer import ReceiveBuffer
from ._codec import NEED_DATA, Buffer, Codec, NeedData, Reader, ReceiveT, SendT, Writer
from ._errors import ProtocolError
from ._events import EventEmitter, MessageReceived, MessageWritten, deliver
from ._limits import Limits
from ._transport import (
    GivenUpError,
    StreamTransport,
    Transport,
    again,
    open_transport,
)

if TYPE_CHECKING:
    from ._server import Server

_logger = logging.getLogger("trio_bytetalk.connection")

# What a connection without a server is listened to by: nobody.
_NOBODY: Final[EventEmitter[Any]] = EventEmitter()


class MessageTimeoutError(GivenUpError):
    """A message once begun did not arrive within ``message_timeout`` seconds."""


class IdleTimeoutError(GivenUpError):
    """Nothing was received or sent for ``idle_timeout`` seconds."""


class HandshakeTimeoutError(GivenUpError):
    """The TLS handshake took more than ``handshake_timeout`` seconds."""


class QueueFullError(GivenUpError):
    """`Server.broadcast` found the queue full and was told to close such a connection."""


class CloseReason(enum.StrEnum):
    """Why a connection ended, where that is no error."""

    END_OF_STREAM = "the peer finished"
    CLOSED = "closed on this side"
    SERVER_STOPPED = "the server stopped"
    CANCELLED = "cancelled"


@attrs.frozen(kw_only=True)
class ConnectionStatistics:
    """Numbers of one connection, as of the moment that `Connection.statistics` was called."""

    messages_received: int
    messages_sent: int
    """Messages queued; those behind the last ``bytes_queued`` bytes are not written yet."""
    bytes_received: int
    bytes_sent: int
    """Bytes that the operating system has taken."""
    bytes_queued: int
    bytes_undecoded: int
    """Bytes received that are not decoded yet."""


@attrs.define(eq=False, init=False, repr=False)
class Connection(
    trio.abc.SendChannel[SendT], trio.abc.ReceiveChannel[ReceiveT], Generic[SendT, ReceiveT]
):
    """A Trio channel of messages: what a handler gets, and what the ``open_`` functions give.

    ``SendT`` is the type of the messages sent, ``ReceiveT`` of those received. Connections are
    made by `Server` and by `open_connection` and its kin; not directly.

    Any number of tasks may send; one at a time may receive. As with all Trio resources, it is
    closed by `aclose` or at the end of an ``async with`` block.
    """

    context: Any
    """Any object of the user's; None at first."""

    server: Server[SendT, ReceiveT] | None
    """The server that accepted the connection; None for a client's."""

    remote_address: Any
    """The peer's address as the `socket` module gives it; None where the stream has none."""

    close_reason: CloseReason | BaseException | None
    """Why the connection ended: an error, or a `CloseReason`. None while it is open."""

    _transport: Transport[Any]
    _buffer: ReceiveBuffer
    _reader: Reader[ReceiveT]
    _writer: Writer[SendT]
    # The bound methods, because they are called for every message.
    _decode: Callable[[ReceiveBuffer], ReceiveT | Literal[NeedData.NEED_DATA]]
    _encode: Callable[[SendT], Buffer | Sequence[Buffer]]
    _codec: Codec[SendT, ReceiveT] | None  # what the writer is of, if no one has replaced it
    _limits: Limits
    _messages_received: int
    _messages_sent: int

    # The emitters that hear this connection's events: its own once it has been asked for, the
    # server's as long as it has not been.
    _on_received: EventEmitter[MessageReceived]
    _on_written: EventEmitter[MessageWritten]

    _special: bool  # whether receive() must look at the next five
    _receiving: bool
    _closed: bool
    _undelivered: tuple[MessageReceived, deque[Any]] | None
    _end: Exception | None  # what receive() raises when the buffer has no message any more
    _eof: bool  # whether that is because the peer has finished
    _stopping: bool  # whether that will be as soon as nothing more is there to be read
    _settled: bool  # whether the server's on_connect hooks are done

    _partial: tuple[int, float]  # where in the stream an unfinished message began, and when
    _raised: ProtocolError | None  # the last one that receive() raised
    _reason: CloseReason | BaseException | None  # the close_reason to be, if it is decided
    _closing: trio.Event | None

    def __init__(
        self,
        stream: trio.abc.Stream,
        codec: Codec[SendT, ReceiveT],
        limits: Limits,
        server: Server[SendT, ReceiveT] | None = None,
    ) -> None:
        self.context = None
        self.server = server
        self.remote_address = address_of(stream)
        self.close_reason = None
        self._transport = open_transport(stream, limits)
        self._buffer = ReceiveBuffer()
        self._limits = limits
        self._messages_received = self._messages_sent = 0
        if server is not None and server.forward_messages:
            self._on_received = server.message_received
            self._on_written = server.message_written
        else:
            self._on_received = self._on_written = _NOBODY
        self._special = self._receiving = self._closed = self._eof = False
        self._stopping = self._settled = False
        self._undelivered = self._end = self._raised = self._reason = self._closing = None
        self._partial = (-1, 0.0)
        self.use(codec)

    def __repr__(self) -> str:
        if self.close_reason is not None:
            state = f"ended: {self.close_reason!s}"
        else:
            state = "closed" if self._closed else "open"
        return f"<Connection with {self.remote_address!r}, {state}>"

    # -- protocol

    @property
    def reader(self) -> Reader[ReceiveT]:
        """What decodes received bytes. May be replaced at any time, by any task.

        Bytes that are not decoded yet belong to the new reader.
        """
        return self._reader

    @reader.setter
    def reader(self, reader: Reader[ReceiveT]) -> None:
        self._reader = reader
        self._decode = reader.decode
        if self._receiving:  # a task is waiting for a message as the old reader saw it
            self._buffer.wanted = 0
            self._transport.interrupt()

    @property
    def writer(self) -> Writer[SendT]:
        """What encodes messages to be sent. May be replaced at any time, by any task."""
        return self._writer

    @writer.setter
    def writer(self, writer: Writer[SendT]) -> None:
        self._writer = writer
        self._encode = writer.encode
        self._codec = None

    def use(self, codec: Codec[SendT, ReceiveT]) -> None:
        """Go on with a new reader and a new writer of ``codec``, in both directions."""
        self.reader = codec.reader()
        self.writer = codec.writer()
        self._codec = codec

    # -- receiving

    async def receive(self) -> ReceiveT:
        """Wait for the next message.

        A message that has arrived already is returned without a checkpoint; there is at least one
        for each chunk of bytes received. Cancelling this never loses a message: the next call
        returns it.

        Raises:
          trio.EndOfChannel: the peer has finished, or the server is stopping, and every message
              was received.
          IncompleteMessageError: the peer has finished in the middle of a message.
          ProtocolError: the peer sent something that is not allowed.
          trio.BrokenResourceError: the connection broke, or was given up: `MessageTimeoutError`,
              `IdleTimeoutError`, `SendTimeoutError`.
          trio.ClosedResourceError: it was closed on this side.
          trio.BusyResourceError: another task is receiving.
        """
        if not self._special and not self._on_received._listeners:
            try:
                message = self._decode(self._buffer)
            except ProtocolError as error:
                self._raised = error
                raise
            if message is not NEED_DATA:
                self._messages_received += 1
                return message
        return await self._receive()

    async def __anext__(self) -> ReceiveT:
        # receive() once more, for it is the hottest path of all: a call less for each message.
        if not self._special and not self._on_received._listeners:
            try:
                message = self._decode(self._buffer)
            except ProtocolError as error:
                self._raised = error
                raise
            if message is not NEED_DATA:
                self._messages_received += 1
                return message
        try:
            return await self._receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None

    async def _receive(self) -> ReceiveT:
        if self._closed:
            raise trio.ClosedResourceError("this connection was closed")
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving from this connection")
        self._receiving = self._special = True
        try:
            if self._undelivered is None:
                message = await self._next_message()
                listeners = self._on_received._flat_listeners()
                if not listeners:
                    self._messages_received += 1
                    return message
                self._undelivered = (MessageReceived(self, message), listeners)
            event, listeners = self._undelivered
            await deliver(event, listeners)
            self._undelivered = None
            self._messages_received += 1
            delivered: ReceiveT = event.message
            return delivered
        except ProtocolError as error:
            self._raised = error
            raise
        finally:
            self._receiving = False
            self._special = self._closed or self._undelivered is not None

    async def _next_message(self) -> ReceiveT:
        buffer = self._buffer
        while True:
            buffer.wanted = 0
            message = self._decode(buffer)
            if message is NEED_DATA and self._eof:
                message = self._reader.decode_eof(buffer)
            if message is not NEED_DATA:
                return message
            if self._end is not None:
                raise again(self._end)
            await self._fill()

    async def _fill(self) -> None:
        """Read until decoding again makes sense, or time is up."""
        buffer = self._buffer
        transport = self._transport
        buffer.compact()
        now = trio.current_time()
        if len(buffer):
            began = transport.bytes_received - len(buffer)
            if self._partial[0] != began:
                self._partial = (began, now)
            deadline = self._partial[1] + self._limits.message_timeout
        else:
            deadline = now + self._limits.idle_timeout
        if deadline == math.inf:
            await self._read()
            return

        written = transport.bytes_written
        with trio.CancelScope(deadline=deadline) as scope:
            await self._read()
        if scope.cancelled_caught:
            if len(buffer):
                self._give_up(
                    MessageTimeoutError(
                        f"a message of which {len(buffer)} bytes came did not arrive in "
                        f"{self._limits.message_timeout} seconds; the setting is message_timeout"
                    )
                )
            elif transport.bytes_written == written:
                self._give_up(
                    IdleTimeoutError(
                        f"nothing came or went for {self._limits.idle_timeout} seconds; "
                        f"the setting is idle_timeout"
                    )
                )

    async def _read(self) -> None:
        buffer = self._buffer
        # The first bytes of a message start its time, so they are reported at once.
        enough = buffer.wanted if len(buffer) else 0
        while self._end is None:
            transport = self._transport
            if self._stopping:
                # What the operating system has by now counts as received before the stop.
                await trio.lowlevel.checkpoint()
                data = transport.read_nowait() or None
            else:
                try:
                    data = await transport.read(buffer.wanted - len(buffer))
                except trio.BrokenResourceError as error:
                    self._end = error
                    return
            if self._closed:
                raise trio.ClosedResourceError("this connection was closed by another task")
            if data:
                buffer.feed(data)
                if len(buffer) >= enough:
                    return
            elif data is not None:
                self._eof = True
                self._end = trio.EndOfChannel("the peer finished")
            elif self._stopping:
                self._end = trio.EndOfChannel("the server is stopping")
            elif isinstance(transport.error, GivenUpError):
                self._end = transport.error
            else:
                return  # interrupted: something has changed

    def _give_up(self, error: Exception) -> None:
        self._end = error
        self._transport.fail(error)
        self._transport.interrupt()

    # -- sending

    async def send(self, message: SendT) -> None:
        """Queue a message, after waiting while more than ``write_buffer_size`` bytes are queued.

        Messages are sent in the order of the calls, from any number of tasks. They leave at once;
        or, while received messages are still waiting in the buffer, together with their
        neighbours when those are worked through, and no later than the scheduler's next turn.
        What the peer does not take at once is sent in the background: use `flush` to wait for
        it. Without anything to wait for, this is a checkpoint now and then only.

        Raises:
          EncodeError: the protocol cannot represent the message. Nothing was queued, and the
              connection is usable.
          trio.BrokenResourceError: the connection broke, or was given up (`SendTimeoutError`).
          trio.ClosedResourceError: it was closed on this side, or `send_eof` was called.

        Cancelled, the message is not sent; a frame is never cut.
        """
        transport = self._transport
        if transport.clear and not self._on_written._listeners:
            frame = self._encode(message)
            if type(frame) is bytes:
                transport.append(frame)
                self._messages_sent += 1
                self._write()
                return
            pieces: Sequence[Buffer] = _pieces(frame)
        else:
            transport.check()
            pieces = _pieces(self._encode(message))
        await transport.put(pieces, self._announcement(message))
        self._messages_sent += 1
        self._write()

    def send_nowait(self, message: SendT) -> None:
        """Queue a message if there is room for it; otherwise as `send`.

        Raises:
          trio.WouldBlock: more than ``write_buffer_size`` bytes are queued, or other tasks wait
              for room already. Nothing was queued.
        """
        self._transport.check()
        if not self._put_nowait(_pieces(self._encode(message)), message):
            raise trio.WouldBlock
        self._write()

    async def flush(self) -> None:
        """Wait until the operating system has taken every byte queued so far.

        Raises:
          trio.BrokenResourceError: the connection broke before that.
          trio.ClosedResourceError: it was closed before that.
        """
        if self._closed:
            raise trio.ClosedResourceError("this connection was closed")
        await self._transport.drain()

    async def send_eof(self) -> None:
        """Half-close: send what is queued, then the end; receiving goes on.

        Raises:
          BytetalkError: the stream cannot do it (TLS cannot, RFC 8446 notwithstanding).
          trio.BrokenResourceError, trio.ClosedResourceError: as for `flush`.
        """
        if self._closed:
            raise trio.ClosedResourceError("this connection was closed")
        await self._transport.send_eof()

    def _put_nowait(self, pieces: Sequence[Buffer], message: SendT) -> bool:
        """Queue an encoded message if there is room for it; say whether there was."""
        if not self._transport.put_nowait(pieces, self._announcement(message)):
            return False
        self._messages_sent += 1
        return True

    def _frame_for_broadcast(
        self, message: SendT, frames: dict[Any, Sequence[Buffer]]
    ) -> Sequence[Buffer]:
        """The encoded message, shared, by way of ``frames``, with connections of equal codecs."""
        codec = self._codec
        if codec is None or self._writer.stateful:
            return _pieces(self._encode(message))
        pieces = frames.get(codec)
        if pieces is None:
            pieces = frames[codec] = _pieces(self._encode(message))
        return pieces

    def _queue_broadcast(self, pieces: Sequence[Buffer], message: SendT) -> bool | None:
        """Queue a frame for the next turn; False if the queue is full, None if it is closed."""
        if self._transport.refusal is not None:
            return None
        if not self._put_nowait(pieces, message):
            return False
        self._transport.defer()
        return True

    def _announcement(self, message: SendT) -> Callable[[], Awaitable[None]] | None:
        if self._on_written.has_listeners:
            return functools.partial(self._announce, message)
        return None

    async def _announce(self, message: SendT) -> None:
        try:
            await self._on_written.emit(MessageWritten(self, message))
        except Exception as error:
            _logger.exception("a message_written hook failed; %r is closed", self)
            self._reason = self._reason or error
            failure = trio.BrokenResourceError("a message_written hook failed")
            failure.__cause__ = error
            self._give_up(failure)

    def _write(self) -> None:
        """Have what was queued written: now, or together with the rest of a burst's replies."""
        transport = self._transport
        buffer = self._buffer
        if transport.deferring or buffer.start < len(buffer.data):
            transport.defer()
        else:
            transport.flush_now()

    # -- closing

    async def aclose(self) -> None:
        """Send what is queued, for at most ``close_timeout`` seconds, and close.

        A task that waits in `receive` or `send` gets `trio.ClosedResourceError`. Closing again
        waits for the first to be done and is harmless. Cancelled, this closes at once, and what
        is queued is lost.
        """
        if self._closing is not None:
            await self._closing.wait()
            return
        self._closing = trio.Event()
        self._closed = self._special = True
        transport = self._transport
        transport.refuse(trio.ClosedResourceError("this connection was closed"))
        transport.interrupt()
        try:
            with trio.CancelScope(deadline=trio.current_time() + self._limits.close_timeout):
                try:
                    with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                        await transport.finish()
                finally:
                    await transport.aclose()
        except trio.Cancelled:
            self._reason = self._reason or CloseReason.CANCELLED
            raise
        finally:
            self.close_reason = self._reason or self._natural_reason()
            for emitter in (self._on_received, self._on_written):
                if self._is_own(emitter):
                    emitter._end_subscriptions()
            self._closing.set()

    def _natural_reason(self) -> CloseReason | BaseException:
        if self._end is not None and not isinstance(self._end, trio.EndOfChannel):
            return self._end
        error = self._transport.error
        if error is not None and not isinstance(error, trio.ClosedResourceError):
            return error
        if self._eof:
            return CloseReason.END_OF_STREAM
        if self._stopping:
            return CloseReason.SERVER_STOPPED
        return CloseReason.CLOSED

    def _conclude(self, reason: CloseReason | BaseException) -> None:
        """The server has seen how this connection ended: better than what it looked like before."""
        self._reason = reason
        if self.close_reason is not None:
            self.close_reason = reason

    def _is_closed_error(self, error: BaseException) -> bool:
        """Whether ``error`` says only that this connection was closed on this side."""
        return self._closed and isinstance(error, trio.ClosedResourceError)

    def _is_peers_fault(self, error: BaseException) -> bool:
        """Whether ``error`` came out of this connection and is its peer's doing."""
        return error is self._raised or any(
            failure is not None
            and isinstance(failure, trio.BrokenResourceError)
            and type(error) is type(failure)
            and error.args == failure.args
            and error.__cause__ is failure.__cause__
            for failure in (self._end, self._transport.error)
        )

    def _stop(self) -> None:
        """The server stops: receiving ends with what has been received by now."""
        self._stopping = True
        self._transport.interrupt()

    # -- TLS

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        *,
        server_hostname: str | None = None,
        server_side: bool | None = None,
    ) -> None:
        """Go on under TLS, as protocols with a STARTTLS command do (RFC 3207, for one).

        What is queued is sent in the clear first. No other task may be receiving.

        Args:
          ssl_context: As made by `ssl.create_default_context`.
          server_hostname: On the client's side, the name that the certificate is checked for.
          server_side: Whether to take the server's part of the handshake; by default a connection
              that a `Server` accepted does.

        Raises:
          ProtocolError: the peer sent more in the clear, which a man in the middle could have
              put there (CVE-2011-0411).
          trio.BrokenResourceError: the handshake failed, or took more than ``handshake_timeout``
              (`HandshakeTimeoutError`).
          trio.BusyResourceError: another task is receiving.

        After an exception, and when cancelled, the connection is broken and can only be closed.
        """
        if server_side is None:
            server_side = self.server is not None
        check_ssl_context(ssl_context, server_side=server_side)
        if self._closed:
            raise trio.ClosedResourceError("this connection was closed")
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving from this connection")
        self._receiving = self._special = True
        try:
            plain = self._transport
            await plain.drain()
            if len(self._buffer):
                raise ProtocolError(
                    f"the peer sent {len(self._buffer)} bytes in the clear, not a TLS handshake"
                )
            plain.detach()
            stream = wrap_tls(plain.stream, ssl_context, server_side, server_hostname)
            self._transport = secure = StreamTransport(stream, self._limits)
            secure.bytes_received = plain.bytes_received
            secure.bytes_written = plain.bytes_written
            try:
                await handshake(stream, self._limits)
            except BaseException as error:
                self._give_up(
                    again(error)
                    if isinstance(error, trio.BrokenResourceError)
                    else trio.BrokenResourceError("the TLS handshake was not finished")
                )
                raise
        except ProtocolError as error:
            self._raised = error
            raise
        finally:
            self._receiving = False
            self._special = self._closed or self._undelivered is not None

    # -- looking

    @property
    def local_address(self) -> Any:
        """This side's address as the `socket` module gives it; None where there is none."""
        return address_of(self._transport.stream, "getsockname")

    @property
    def message_received(self) -> EventEmitter[MessageReceived]:
        """This connection's own emitter of `MessageReceived`; it forwards to the server's."""
        if not self._is_own(self._on_received):
            self._on_received = _forwarding_to(self._on_received)
        return self._on_received

    @property
    def message_written(self) -> EventEmitter[MessageWritten]:
        """This connection's own emitter of `MessageWritten`; it forwards to the server's."""
        if not self._is_own(self._on_written):
            self._on_written = _forwarding_to(self._on_written)
        return self._on_written

    def _is_own(self, emitter: EventEmitter[Any]) -> bool:
        server = self.server
        return emitter is not _NOBODY and (
            server is None
            or (emitter is not server.message_received and emitter is not server.message_written)
        )

    def statistics(self) -> ConnectionStatistics:
        """Numbers of this connection, as of now."""
        transport = self._transport
        return ConnectionStatistics(
            messages_received=self._messages_received,
            messages_sent=self._messages_sent,
            bytes_received=transport.bytes_received,
            bytes_sent=transport.bytes_written,
            bytes_queued=transport.queued,
            bytes_undecoded=len(self._buffer),
        )


def _pieces(frame: Buffer | Sequence[Buffer]) -> Sequence[Buffer]:
    return (frame,) if isinstance(frame, bytes | bytearray | memoryview) else frame


def _forwarding_to(emitter: EventEmitter[Any]) -> EventEmitter[Any]:
    own: EventEmitter[Any] = EventEmitter()
    if emitter is not _NOBODY:
        own.connect(emitter)
    return own


def address_of(
    stream: trio.abc.Stream, name: Literal["getpeername", "getsockname"] = "getpeername"
) -> Any:
    """The address of the socket under ``stream``; None if there is none."""
    while isinstance(stream, trio.SSLStream):
        stream = stream.transport_stream
    if isinstance(stream, trio.SocketStream):
        # The socket has no address any more if it was reset or closed meanwhile.
        with contextlib.suppress(OSError):
            return getattr(stream.socket, name)()
    return None


def check_ssl_context(ssl_context: object, *, server_side: bool) -> None:
    """Raise for a context that could never be used on this side."""
    if not isinstance(ssl_context, ssl.SSLContext):
        raise TypeError(f"ssl_context must be an ssl.SSLContext, not {ssl_context!r}")
    wrong = ssl.PROTOCOL_TLS_CLIENT if server_side else ssl.PROTOCOL_TLS_SERVER
    if ssl_context.protocol == wrong:
        side, purpose = ("server", "CLIENT_AUTH") if server_side else ("client", "SERVER_AUTH")
        raise ValueError(
            f"ssl_context is for the other side; a {side}'s is made by "
            f"ssl.create_default_context(ssl.Purpose.{purpose})"
        )


def wrap_tls(
    stream: trio.abc.Stream,
    ssl_context: ssl.SSLContext,
    server_side: bool,
    server_hostname: str | None = None,
) -> trio.SSLStream[trio.abc.Stream]:
    """TLS over ``stream``. An end without TLS's own closing counts as truncation, not as an end."""
    return trio.SSLStream(
        stream, ssl_context, server_side=server_side, server_hostname=server_hostname
    )


async def handshake(stream: trio.SSLStream[trio.abc.Stream], limits: Limits) -> None:
    """Do the TLS handshake.

    Raises:
      HandshakeTimeoutError: if it takes too long.
      trio.BrokenResourceError: if it fails, with the reason in its message.
    """
    with trio.CancelScope(deadline=trio.current_time() + limits.handshake_timeout) as scope:
        try:
            await stream.do_handshake()
        except trio.BrokenResourceError as error:
            reason = error.__cause__ or error
            raise trio.BrokenResourceError(f"the TLS handshake failed: {reason}") from reason
    if scope.cancelled_caught:
        raise HandshakeTimeoutError(
            f"the TLS handshake took more than {limits.handshake_timeout} seconds; "
            f"the setting is handshake_timeout"
        )
