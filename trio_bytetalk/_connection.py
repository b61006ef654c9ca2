"""`Connection`: a Trio channel of messages over a byte stream."""

from __future__ import annotations

import contextlib
import enum
import functools
import itertools
import logging
import math
import operator
import signal
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, TypeVar, cast

import attrs
import trio

from ._buffer import ReceiveBuffer
from ._codec import (
    NEED_DATA,
    AheadReader,
    Buffer,
    Codec,
    NeedData,
    Reader,
    ReceiveT,
    SendT,
    Writer,
    ahead_reader,
)
from ._errors import BytetalkError, ProtocolError, in_words, leaves, reason_of
from ._events import (
    EventEmitter,
    MessageHook,
    MessageReceived,
    MessageWritten,
    Subscription,
    deliver,
)
from ._limits import Limits
from ._log import ERROR_SHOWN, address_in_words, fields, get_logger
from ._timer import Timer
from ._transport import (
    Frame,
    GivenUpError,
    SendTimeoutError,
    StreamTransport,
    Transport,
    address_of,
    again,
    open_transport,
)

if TYPE_CHECKING:
    from ._server import Server

NewSendT = TypeVar("NewSendT")
NewReceiveT = TypeVar("NewReceiveT")

_logger = get_logger("connection")

# How often a socket that has more is read before the messages are looked at. More would save a few
# of the scheduler's turns, but let one connection hold up the others for longer.
_READS_AT_ONCE: Final = 4

# How the message of an error begins that a TLS handshake ended with.
HANDSHAKE_FAILED: Final = "the TLS handshake failed"

# How many characters of a close_reason a connection's repr() has.
_REASON_SHOWN: Final = 300

# What a connection that was closed raises; others' ClosedResourceErrors have other words, or none.
_CLOSED: Final = "this connection was closed"
_CLOSED_MEANWHILE: Final = "this connection was closed by another task"
_CLOSED_IN_WORDS: Final = frozenset({_CLOSED, _CLOSED_MEANWHILE})

_BUSY: Final = (
    "another task is receiving from this connection, or this is a hook of a message that is being "
    "received"
)

# The iterator of no messages.
_NOTHING: Final[Iterator[Any]] = iter(())

# How many messages are decoded ahead, at the most and at first: they hold memory, and are decoded
# again if another reader takes over.
_MOST_AHEAD: Final = 128
_FIRST_AHEAD: Final = 16

# What the attrs class itself does takes twice as long, as it is frozen.
_new_event: Final = object.__new__
_set_connection: Final = cast(Any, MessageReceived.connection).__set__
_set_message: Final = cast(Any, MessageReceived.message).__set__

# Where connections get their numbers from: one place for all, so that no two have the same.
numbers: Final = itertools.count(1)

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


class Ending(enum.StrEnum):
    """How connections end, as `ServerStatistics.endings` counts it. The values are for labels."""

    END_OF_STREAM = "end_of_stream"
    """The peer finished."""
    CLOSED = "closed"
    """The handler returned, or closed the connection."""
    SERVER_STOPPED = "server_stopped"
    CANCELLED = "cancelled"
    """It was cut short, by a cancellation or a Ctrl-C."""
    FAILED = "failed"
    """The handler or a hook raised an exception that was no fault of the peer's."""
    PROTOCOL_ERROR = "protocol_error"
    """The peer sent what is not allowed, or finished in the middle of a message."""
    BROKEN = "broken"
    """The peer reset the connection, or it was lost."""
    MESSAGE_TIMEOUT = "message_timeout"
    IDLE_TIMEOUT = "idle_timeout"
    SEND_TIMEOUT = "send_timeout"
    HANDSHAKE_TIMEOUT = "handshake_timeout"
    """That of `Connection.start_tls`; see ``handshakes_timed_out`` for a server that is all TLS."""
    QUEUE_FULL = "queue_full"
    """`Server.broadcast` was told to close connections that have no room."""


# What an error says about an ending: the first that fits.
_ENDINGS: Final = (
    (ProtocolError, Ending.PROTOCOL_ERROR),
    (MessageTimeoutError, Ending.MESSAGE_TIMEOUT),
    (IdleTimeoutError, Ending.IDLE_TIMEOUT),
    (SendTimeoutError, Ending.SEND_TIMEOUT),
    (HandshakeTimeoutError, Ending.HANDSHAKE_TIMEOUT),
    (QueueFullError, Ending.QUEUE_FULL),
    (trio.BrokenResourceError, Ending.BROKEN),
)


@attrs.frozen(kw_only=True)
class ConnectionStatistics:
    """Numbers of one connection, as of the moment that `Connection.statistics` was called."""

    number: int
    """The connection's own, see `Connection.number`."""
    remote_address: Any
    age: float
    """For how many seconds there has been this connection, or was until its end."""
    idle_time: float
    """For how many seconds no byte has come or gone, as far as calls can tell.

    To note the time of every byte would cost more than all these numbers. So what has moved since
    the call before counts as of now: look regularly, and it is as exact as that.
    """
    messages_received: int
    messages_sent: int
    """Messages queued; those behind the last ``bytes_queued`` bytes are not written yet."""
    bytes_received: int
    bytes_sent: int
    """Bytes that the operating system has taken."""
    chunks_received: int
    """In how many pieces the bytes came. With many messages in each, it is a busy peer's."""
    flushes: int
    """How often the operating system was offered bytes; fewer than messages if they gather."""
    bytes_queued: int
    most_bytes_queued: int
    """The most that were queued at any one time."""
    bytes_undecoded: int
    """Bytes received that are not decoded yet."""
    senders_waiting: int
    """How many tasks wait in `Connection.send` for room in the queue."""
    reader: str
    """The class of the reader, by name."""
    writer: str


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

    number: int
    """Counted from 1; no other connection of this process has the same.

    It is what logs and task dumps name the connection by.
    """

    context: Any
    """Any object of the user's; None at first."""

    server: Server[SendT, ReceiveT] | None
    """The server that accepted the connection; None for a client's."""

    remote_address: Any
    """The peer's address as the `socket` module gives it; None where the stream has none."""

    close_reason: CloseReason | BaseException | None
    """Why the connection ended, which is an error or a `CloseReason`. None while it is open."""

    _transport: Transport
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

    # The messages that can be received without waiting: decoded already, many at once, if the
    # reader can do that, or to be decoded one by one. That is what makes bursts cheap. _settle()
    # puts back what was decoded.
    _ahead: Iterator[ReceiveT]
    _ahead_reader: AheadReader[ReceiveT] | None
    _most_ahead: int  # 0: one by one, for decoding ahead was in vain
    _ahead_origin: tuple[int, int]  # where in the front they began, and how many they were

    # The emitters that hear this connection's events: its own once it has been asked for, the
    # server's as long as it has not been.
    _on_received: EventEmitter[MessageReceived]
    _on_written: EventEmitter[MessageWritten]

    _in_hooks: bool  # whether _consume() is having a hook told of a message
    _special: bool  # whether receive() must look at the next five
    _receiving: bool
    _closed: bool
    _undelivered: tuple[ReceiveT, deque[Any]] | None  # a message, and who is to hear of it
    _end: Exception | None  # what receive() raises when the buffer has no message any more
    _eof: bool  # whether that is because the peer has finished
    _at_end: bool  # whether receive() has raised it
    _may_be_idle: bool  # whether there is an idle_timeout to watch
    _stopping: bool  # whether that will be as soon as nothing more is there to be read
    _settled: bool  # whether the server's on_connect hooks are done

    _timer: Timer | None
    _overdue: bool  # whether it has expired
    # Where in the stream an unfinished message began, and how long it has been waited for: that
    # nobody receives for a while is not the peer's fault.
    _partial: tuple[int, float]
    _raised: ProtocolError | None  # the last one that receive() raised
    _raised_at: int  # and how many bytes had been decoded then
    _reason: CloseReason | BaseException | None  # the close_reason to be, if it is decided
    _failed: bool  # whether that is an exception which is not the peer's fault
    _is_logged: bool  # whether the log has said why not all was sent
    # Set when it is closed, and what it takes its time for until then.
    _closing: tuple[trio.Event, trio.CancelScope] | None

    _began: float  # when
    _ended: float | None  # when, if it has
    _moved: tuple[int, float]  # how many bytes statistics() saw last, and since when so many

    def __init__(
        self,
        stream: trio.abc.Stream,
        codec: Codec[SendT, ReceiveT],
        limits: Limits,
        server: Server[SendT, ReceiveT] | None = None,
        known: tuple[int, Any] | None = None,
    ) -> None:
        self.number, self.remote_address = known or (next(numbers), address_of(stream))
        self.context = None
        self.server = server
        self.close_reason = None
        self._buffer = ReceiveBuffer()
        self._limits = limits
        self._may_be_idle = limits.idle_timeout < math.inf
        self._messages_received = self._messages_sent = 0
        if server is not None and server.forward_messages:
            self._on_received = server.message_received
            self._on_written = server.message_written
        else:
            self._on_received = self._on_written = _NOBODY
        self._special = self._receiving = self._closed = self._eof = False
        self._stopping = self._settled = self._overdue = False
        self._at_end = self._in_hooks = self._failed = self._is_logged = False
        self._timer = self._undelivered = self._end = self._raised = self._reason = (
            self._closing
        ) = self._ended = None
        self._began = trio.current_time()
        self._moved = (0, self._began)
        self._partial = (0, 0.0)
        self._ahead = _NOTHING
        self._most_ahead = _FIRST_AHEAD
        self.use(codec)
        # Last, because it takes over the stream: if the codec's own code fails, our caller has it.
        self._transport = open_transport(stream, limits)
        self._transport.number = self.number

    def __repr__(self) -> str:
        if self.close_reason is not None:
            # It is a part of log lines, and the reason may have a peer's words in it.
            state = f"ended: {in_words(self.close_reason, _REASON_SHOWN)}"
        else:
            state = "closed" if self._closed else "open"
        peer = address_in_words(self.remote_address)
        return f"<Connection {self.number} with {peer}, {state}>"

    # -- protocol

    @property
    def reader(self) -> Reader[ReceiveT]:
        """What decodes received bytes. May be replaced at any time, by any task.

        Bytes that are not decoded yet belong to the new reader.
        """
        return self._reader

    @reader.setter
    def reader(self, reader: Reader[ReceiveT]) -> None:
        if not isinstance(reader, Reader):
            raise TypeError(f"reader must be a Reader, not {reader!r}")
        self._settle()
        self._reader = reader
        self._decode = reader.decode
        self._ahead_reader = ahead_reader(reader)
        if self._receiving:  # a task is waiting for a message as the old reader saw it
            self._transport.interrupt()

    @property
    def writer(self) -> Writer[SendT]:
        """What encodes messages to be sent. May be replaced at any time, by any task."""
        return self._writer

    @writer.setter
    def writer(self, writer: Writer[SendT]) -> None:
        if not isinstance(writer, Writer):
            raise TypeError(f"writer must be a Writer, not {writer!r}")
        self._writer = writer
        self._encode = writer.encode
        self._codec = None

    def use(self, codec: Codec[NewSendT, NewReceiveT]) -> Connection[NewSendT, NewReceiveT]:
        """Go on with a new reader and a new writer of ``codec``, in both directions.

        Returns:
          This same connection, which the type checker then knows to have the codec's types.
        """
        same = cast("Connection[NewSendT, NewReceiveT]", self)
        reader, writer = codec.reader(), codec.writer()  # both, before either is used
        same.reader = reader
        same.writer = writer
        same._codec = codec
        return same

    # -- receiving

    async def receive(self) -> ReceiveT:
        """Wait for the next message.

        A message that has arrived already is returned without a checkpoint; there is at least one
        for each chunk of bytes received (256 KiB at the most). Cancelling this never loses a
        message: the next call returns it.

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
        if not self._special:
            for message in self._ahead:
                listeners = self._on_received._listeners
                if listeners and not self._tell_nowait(message, listeners):
                    return await self._deliver(message)
                return message
        return await self._receive()

    async def __anext__(self) -> ReceiveT:
        # receive() once more, for it is the hottest path of all: a call less for each message.
        if not self._special:
            for message in self._ahead:
                listeners = self._on_received._listeners
                if listeners and not self._tell_nowait(message, listeners):
                    return await self._deliver(message)
                return message
        try:
            return await self._receive()
        except trio.EndOfChannel:
            if not self._at_end:
                raise  # it comes from a hook, and is about another channel
            raise StopAsyncIteration from None

    async def _receive(self) -> ReceiveT:
        """Receive where that takes more than decoding: waiting, mostly."""
        if self._closed:
            raise trio.ClosedResourceError(_CLOSED)
        if self._receiving:
            raise trio.BusyResourceError(_BUSY)
        if self._undelivered is not None:
            return await self._deliver_rest(*self._undelivered)
        buffer = self._buffer
        transport = self._transport
        if self._ahead is not _NOTHING:
            self._end_ahead()
            self._most_ahead = min(2 * self._most_ahead or 4, _MOST_AHEAD)
        self._raised_at = -1
        self._at_end = False
        self._receiving = self._special = True
        try:
            while self._end is None:
                if buffer.start < len(buffer.data) or len(buffer):  # the call is for rare cases
                    buffer.wanted = 0
                    message = self._decode(buffer)
                    if message is not NEED_DATA:
                        break
                    buffer.compact()
                    await self._read_in_time()
                else:
                    buffer.clear()  # an idle connection holds no chunk
                    if self._may_be_idle:
                        await self._read_in_time()
                    elif self._stopping or transport.error is not None:
                        await self._read()
                    else:
                        # _read() once more: every message that comes alone passes here.
                        try:
                            await transport.ready()
                            data = None if self._closed else transport.take()
                        except trio.BrokenResourceError as error:
                            self._end = error
                        else:
                            if data and type(data) is bytes and not transport.has_more:
                                buffer.data = data  # feed() does no more for an empty buffer
                            else:
                                self._feed(data)
                            data = None  # which would hold the chunk while we wait
            else:
                message = self._decode(buffer)
                if message is NEED_DATA and self._eof:
                    message = self._reader.decode_eof(buffer)
                if message is NEED_DATA:
                    self._at_end = True
                    transport.is_told |= isinstance(self._end, trio.BrokenResourceError)
                    raise again(self._end)
        except ProtocolError as error:
            self._note(error)
            raise
        finally:
            self._receiving = False
            self._special = self._closed
        self._messages_received += 1
        if buffer.start < len(buffer.data):
            self._look_ahead()
        listeners = self._on_received._listeners
        if listeners and not self._tell_nowait(message, listeners):
            return await self._deliver(message)
        return message

    def _look_ahead(self) -> None:
        """Have the messages that follow, as far as they are here, ready to be received."""
        reader = self._ahead_reader
        if reader is not None and self._most_ahead and reader._settle is None:
            buffer = self._buffer
            start = buffer.start
            messages = reader.decode_ahead(buffer, self._most_ahead)
            if messages:
                self._ahead = iter(messages)
                self._ahead_origin = (start, len(messages))
                self._messages_received += len(messages)
                reader._settle = self._settle
        else:
            self._ahead = self._decode_lazily()

    def _decode_lazily(self) -> Iterator[ReceiveT]:
        buffer = self._buffer
        while buffer.start < len(buffer.data):
            try:
                # Not kept in a variable, for the reader may be replaced at any time.
                message = self._decode(buffer)
            except ProtocolError as error:
                self._note(error)
                raise
            if message is NEED_DATA:
                return
            self._messages_received += 1
            yield message

    def _settle(self) -> None:
        """Put back into the buffer what was decoded and not received."""
        left = operator.length_hint(self._ahead)  # of a list's iterator, exact
        if left:
            self._messages_received -= left
            self._most_ahead = 0  # where that happens once, it happens again
            start, count = self._ahead_origin
            buffer = self._buffer
            buffer.start = start
            for _ in range(count - left):
                self._decode(buffer)
            for _ in self._ahead:  # there may be a loop over it
                pass
        if self._ahead is not _NOTHING:
            self._end_ahead()

    def _end_ahead(self) -> None:
        self._ahead = _NOTHING
        reader = self._ahead_reader
        if reader is not None and reader._settle == self._settle:
            reader._settle = None

    async def _read(self) -> None:
        transport = self._transport
        if isinstance(transport.error, GivenUpError):
            self._end = transport.error
            return
        try:
            if self._stopping:
                # What has arrived by now counts as received before the stop.
                rest = await transport.take_rest(self._buffer.feed)
                self._feed(rest)
                if rest is None and self._end is None:
                    self._end = trio.EndOfChannel("the server is stopping")
            else:
                await transport.ready()
                self._feed(None if self._closed else transport.take())
        except trio.BrokenResourceError as error:
            self._end = error

    def _feed(self, data: bytes | bytearray | None) -> None:
        """Go on with what `Transport.take` has returned."""
        if self._closed:
            raise trio.ClosedResourceError(_CLOSED_MEANWHILE)
        reads = 1
        while data:
            self._buffer.feed(data)
            if reads == _READS_AT_ONCE or not self._transport.has_more:
                return
            data = self._transport.take()
            reads += 1
        error = self._transport.error
        if isinstance(error, GivenUpError) or (data is not None and self._transport.was_lost):
            self._end = self._end or error
        elif data is not None:
            self._eof = True
            self._end = self._end or trio.EndOfChannel("the peer finished")

    async def _read_in_time(self) -> None:
        """Read until decoding again makes sense, or time is up."""
        buffer = self._buffer
        transport = self._transport
        now = trio.current_time()
        size = len(buffer)
        if size:
            began = transport.bytes_received - size
            waited = self._partial[1] if self._partial[0] == began else 0.0
            deadline = now + self._limits.message_timeout - waited
        else:
            deadline = now + self._limits.idle_timeout

        timer = self._timer
        if timer is None:
            timer = self._timer = Timer(self._read_timed_out)
        self._overdue = False
        timer.start(deadline)
        written = transport.bytes_written
        try:
            # The first bytes of a message start its time, so there is no reading on after them.
            while self._end is None:
                reader = self._reader
                await self._read()
                if self._overdue:
                    break
                if not size or len(buffer) >= buffer.wanted or self._reader is not reader:
                    return
        finally:
            timer.stop()
            if size:
                self._partial = (began, waited + trio.current_time() - now)
        if self._overdue:
            if len(buffer) > size or self._end is not None:
                return  # there is something to look at, at the last moment
            if size:
                self._give_up(
                    MessageTimeoutError(
                        f"a message of which {size} bytes came did not arrive in "
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

    def _read_timed_out(self) -> None:
        self._overdue = True
        self._transport.interrupt()

    def _tell_nowait(self, message: ReceiveT, listeners: tuple[Any, ...]) -> bool:
        """If a subscription is all who listen, and has room: tell it. Say whether that was so."""
        listener = listeners[0]
        if type(listener) is not Subscription or len(listeners) > 1:
            return False
        event = _new_event(MessageReceived)
        _set_connection(event, self)
        _set_message(event, message)
        return listener._offer(event)

    async def _consume(self) -> None:
        """Receive every message, for the hooks are all that wants them."""
        message: ReceiveT | None
        try:
            while True:
                await self.receive()
                listeners = self._on_received._listeners
                if len(listeners) != 1 or type(listeners[0]) is not MessageHook:
                    continue
                hook = listeners[0].function
                self._receiving = self._special = self._in_hooks = True
                try:
                    for message in self._ahead:
                        await hook(self, message)
                        if self._closed or self._on_received._listeners is not listeners:
                            break
                finally:
                    self._receiving = self._in_hooks = False
                    self._special = self._closed
                    message = None  # which would hold it while we wait
        except trio.EndOfChannel:
            if not self._at_end:
                raise  # it comes from a hook, and is about another channel

    async def _deliver(self, message: ReceiveT) -> ReceiveT:
        """Tell the listeners of a message, then return it."""
        listeners = self._on_received._listeners
        if len(listeners) == 1 and type(listeners[0]) is MessageHook:
            # As _deliver_rest() would, less the making of an event that no one looks at.
            self._undelivered = (message, deque())
            self._receiving = self._special = True
            try:
                await listeners[0].function(self, message)
                self._undelivered = None
            finally:
                self._receiving = False
                self._special = self._closed or self._undelivered is not None
            return message
        return await self._deliver_rest(message, self._on_received._flat_listeners())

    async def _deliver_rest(self, message: ReceiveT, listeners: deque[Any]) -> ReceiveT:
        """Tell those listeners of a message, then return it.

        If that is cut short, the next `receive` goes on with those who have not heard of it.
        """
        self._undelivered = (message, listeners)
        self._receiving = self._special = True
        try:
            await deliver(MessageReceived(self, message), listeners)
            self._undelivered = None
        finally:
            self._receiving = False
            self._special = self._closed or self._undelivered is not None
        return message

    def _note(self, error: ProtocolError) -> None:
        self._raised = error
        error.__dict__["_connection"] = self.number  # so, for a subclass may be frozen
        self._raised_at = self._transport.bytes_received - len(self._buffer)

    def _give_up(self, error: Exception) -> None:
        self._end = self._end or error  # who receives may have heard of another end already
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
                self._messages_sent += 1
                if transport.deferring or self._ahead is not _NOTHING:
                    # collect() once more, for the hottest path of all.
                    transport._queue.append(frame)
                    transport.queued = queued = transport.queued + len(frame)
                    if queued > transport._flush_at:
                        transport.flush_full()
                    elif not transport.deferring:
                        transport.defer()
                else:
                    transport.write(frame)
                return
            pieces = self._pieces(frame)
            if not transport.deferring and self._ahead is _NOTHING:
                self._messages_sent += 1
                transport.write_pieces(pieces)
                return
            await transport.put(pieces, self._announcement(message))
        else:
            transport.check()
            await transport.put(self._frame(message), self._announcement(message))
        self._messages_sent += 1
        self._write()

    def send_nowait(self, message: SendT) -> None:
        """Queue a message if there is room for it; otherwise as `send`.

        Raises:
          trio.WouldBlock: more than ``write_buffer_size`` bytes are queued, or other tasks wait
              for room already, or listeners to `message_written` are thousands of messages behind,
              or `start_tls` waits until what is queued has left. Nothing was queued.
        """
        self._transport.check()
        if not self._put_nowait(self._frame(message), message):
            raise trio.WouldBlock
        self._write()

    async def flush(self) -> None:
        """Wait until the operating system has taken every byte queued so far.

        Raises:
          trio.BrokenResourceError: the connection broke before that.
          trio.ClosedResourceError: it was closed before that.
        """
        if self._closed:
            raise trio.ClosedResourceError(_CLOSED)
        await self._transport.drain()

    async def send_eof(self) -> None:
        """Half-close: send what is queued, then the end; receiving goes on.

        Cancelled, it is refused to send more, and the end is not sent; to call it again does that.

        Raises:
          BytetalkError: the stream cannot do it (TLS cannot, RFC 8446 notwithstanding).
          trio.BrokenResourceError, trio.ClosedResourceError: as for `flush`.
        """
        if self._closed:
            raise trio.ClosedResourceError(_CLOSED)
        await self._transport.send_eof()

    def _frame(self, message: SendT) -> Frame:
        """The encoded message; or, for a stateful writer, what encodes it when there is room."""
        if self._writer.stateful:
            encode = self._encode  # for the writer may be replaced meanwhile
            return lambda: self._pieces(encode(message))
        return self._pieces(self._encode(message))

    def _pieces(self, frame: Any) -> Sequence[Buffer]:
        """What a writer has returned, checked, because the transport relies on it."""
        if isinstance(frame, bytes):
            return (frame,)
        pieces = (frame,) if isinstance(frame, bytearray | memoryview) else frame
        try:
            # A memoryview may be of anything: only one of bytes has its size as its length.
            return [bytes(p) if isinstance(p, memoryview) else _bytes_only(p) for p in pieces]
        except TypeError as error:
            raise TypeError(
                f"{type(self._writer).__name__}.encode must return bytes, bytearray or memoryview, "
                f"or a sequence of those, and returned {frame!r}"
            ) from error

    def _put_nowait(self, frame: Frame, message: SendT) -> bool:
        """Queue an encoded message if there is room for it; say whether there was."""
        if not self._transport.put_nowait(frame, self._announcement(message)):
            return False
        self._messages_sent += 1
        return True

    def _frame_for_broadcast(self, message: SendT, frames: dict[Any, Frame]) -> Frame:
        """The encoded message, shared, by way of ``frames``, with connections of equal codecs."""
        codec = self._codec
        if codec is None or self._writer.stateful:
            return self._frame(message)
        # By identity first: mostly it is one object, and to compare it would cost more.
        frame = frames.get(id(codec))
        if frame is None:
            key = codec if _has_hash(codec) else id(codec)
            frame = frames.get(key)
            if frame is None:
                frame = frames[key] = self._frame(message)
            frames[id(codec)] = frame
        return frame

    def _queue_broadcast(self, frame: Frame, message: SendT) -> bool | None:
        """Queue a frame for the next turn; False if the queue is full, None if it is closed."""
        transport = self._transport
        if transport.clear and type(frame) is tuple and not self._on_written._listeners:
            (single,) = frame
            self._messages_sent += 1
            transport.collect(single)
            if not transport.deferring:
                transport.defer()
            return True
        try:
            if not self._put_nowait(frame, message):
                return False
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return None  # as was found out just now
        transport.defer()
        return True

    def _announcement(self, message: SendT) -> Callable[[], Awaitable[None]] | None:
        if self._on_written.has_listeners:
            return functools.partial(self._announce, message)
        return None

    async def _announce(self, message: SendT) -> None:
        interrupted: BaseExceptionGroup[BaseException] | None = None
        failed: BaseExceptionGroup[BaseException] | None = None
        try:
            await self._on_written.emit(MessageWritten(self, message))
        except* trio.Cancelled:
            raise
        except* KeyboardInterrupt as group:
            interrupted = group
        except* BaseException as group:  # noqa: BLE001 - no one is here to raise it to
            failed = group
        finally:
            if interrupted is not None:
                try:
                    signal.raise_signal(signal.SIGINT)  # once more, for the main task
                except BaseException:  # noqa: BLE001 - by a handler of the user's: as above
                    failed = failed or interrupted
            if failed is not None and not all(map(self._is_heard_of, leaves(failed))):
                self._hook_failed(failed.exceptions[0] if len(failed.exceptions) == 1 else failed)

    def _hook_failed(self, error: BaseException) -> None:
        self._transport.announce_no_more()
        extra = self._log_fields("written_hook_failed", error)
        self._fail("a message_written hook failed", error, extra)

    def _writer_failed(self, error: BaseException) -> None:
        extra = self._log_fields("writer_failed", error)
        self._fail("the writer failed at a broadcast", error, extra)

    def _fail(self, what: str, error: BaseException, extra: dict[str, Any]) -> None:
        """Give the connection up, for something of its user's has failed, but not its handler."""
        _logger.error("%s; %r is closed", what, self, exc_info=error, extra=extra)
        self._is_logged = True
        self._reason = self._reason or error
        self._failed = True
        failure = trio.BrokenResourceError(what)
        failure.__cause__ = error
        self._give_up(failure)

    def _write(self) -> None:
        """Have what was queued written: now, or together with the rest of a burst's replies."""
        transport = self._transport
        if transport.deferring or self._ahead is not _NOTHING:
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
            if self._transport.in_announcement:  # which the first waits for, so we must not
                await trio.lowlevel.checkpoint()
            else:
                await self._wait_for_closing(*self._closing)
            return
        closed, flushing = self._closing = trio.Event(), trio.CancelScope()
        self._closed = self._special = True
        self._settle()
        transport = self._transport
        transport.refuse(trio.ClosedResourceError(_CLOSED))
        transport.interrupt()
        try:
            flushing.deadline = trio.current_time() + self._limits.close_timeout
            with flushing:
                try:
                    with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                        await transport.finish()
                finally:
                    reason = self._natural_reason()  # now, for closing may read on
                    await transport.aclose()
            if transport.failure is not None:
                self._note_unsent()
        except trio.Cancelled:
            self._reason = self._reason or CloseReason.CANCELLED
            raise
        finally:
            if trio.current_time() >= flushing.deadline:
                self._note_unsent(
                    f"the peer did not take them in {self._limits.close_timeout} seconds; the "
                    "setting is close_timeout"
                )
            self.close_reason = self._reason or reason
            self._ended = trio.current_time()
            if self._timer is not None:
                self._timer.forget()
            for emitter in (self._on_received, self._on_written):
                if self._is_own(emitter):
                    emitter._end()
            closed.set()

    def _note_unsent(self, reason: str = "") -> None:
        """Log what was queued and not sent, unless somebody has heard of that.

        Args:
          reason: Why, if the connection was not broken before.
        """
        transport = self._transport
        unsent = transport.queued
        if not unsent or transport.is_told or self._is_logged:
            return
        self._is_logged = True
        failure = transport.failure
        # A reset is everyday life; a peer that takes nothing is worth a look.
        level = logging.WARNING
        if failure is not None:
            reason = in_words(failure, ERROR_SHOWN)
            if not isinstance(failure, BytetalkError):
                level = logging.INFO
        extra = self._log_fields("unsent", failure, unsent=unsent)
        words = "%r is closed with %d bytes unsent: %s"
        _logger.log(level, words, self, unsent, reason, extra=extra)

    async def _wait_for_closing(self, closed: trio.Event, flushing: trio.CancelScope) -> None:
        try:
            await closed.wait()
        except trio.Cancelled:
            flushing.cancel()
            self._reason = self._reason or CloseReason.CANCELLED
            with trio.CancelScope(shield=True):
                await closed.wait()  # soon, for it waits for nothing any more
            raise

    def _natural_reason(self) -> CloseReason | BaseException:
        if self._end is not None and not isinstance(self._end, trio.EndOfChannel):
            return self._end
        decoded = self._transport.bytes_received - len(self._buffer)
        if self._raised is not None and self._raised_at == decoded:
            return self._raised  # and receiving has not gone on after it
        error = self._transport.error
        if error is not None and not isinstance(error, trio.ClosedResourceError):
            return error
        if self._eof:
            return CloseReason.END_OF_STREAM
        if self._stopping:
            return CloseReason.SERVER_STOPPED
        return CloseReason.CLOSED

    def _conclude(self, reason: CloseReason | BaseException, *, failed: bool = False) -> None:
        """The server has seen how this connection ended: better than what it looked like before."""
        if not isinstance(self._reason, BaseException):  # else a hook had failed before
            self._reason = reason
            self._failed = failed
            if self.close_reason is not None:
                self.close_reason = reason

    def _ending(self) -> Ending:
        """Of which kind the end is that this connection has come to, or is coming to."""
        reason = self.close_reason or self._reason
        if self._failed:
            return Ending.FAILED
        if isinstance(reason, CloseReason):
            return Ending[reason.name]
        for error_type, ending in _ENDINGS:
            if isinstance(reason, error_type):
                return ending
        return Ending.CANCELLED

    def _is_closed_error(self, error: BaseException) -> bool:
        """Whether ``error`` says only that this connection was closed on this side."""
        return self._closed and isinstance(error, trio.ClosedResourceError)

    def _is_peers_fault(self, error: BaseException) -> bool:
        """Whether ``error`` is this connection's peer's doing, and not that of another's."""
        if isinstance(error, ProtocolError):
            # Without a connection it is of a rule that the handler or a hook has checked.
            return error._connection in (None, self.number)
        return self._is_own_failure(error)

    def _is_heard_of(self, error: BaseException) -> bool:
        """Whether ``error`` says only that this connection has ended, or takes no more."""
        transport = self._transport
        return (
            self._is_own_failure(error)
            or _is_copy(error, transport.refusal)
            or _is_copy(error, transport.error)
            or (self._is_closed_error(error) and str(error) in _CLOSED_IN_WORDS)
        )

    def _is_own_failure(self, error: BaseException) -> bool:
        return any(
            isinstance(failure, trio.BrokenResourceError) and _is_copy(error, failure)
            for failure in (self._end, self._transport.error, self._transport.refusal)
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

        What is queued, or waits for room, is sent in the clear first. What other tasks and hooks
        send from now on waits, and is sent under TLS. No other task may be receiving.

        Args:
          ssl_context: As made by `ssl.create_default_context`.
          server_hostname: On the client's side, the name that the certificate is checked for.
          server_side: Whether to take the server's part of the handshake; by default a connection
              that a `Server` accepted does.

        Raises:
          TypeError, ValueError: for settings that cannot work. Nothing has happened then.
          ProtocolError: the peer sent more in the clear, which a man in the middle could have
              put there (CVE-2011-0411).
          trio.BrokenResourceError: the handshake failed, or took more than ``handshake_timeout``
              (`HandshakeTimeoutError`).
          trio.BusyResourceError: another task is receiving.

        After a `ProtocolError` or a `trio.BrokenResourceError`, and when cancelled, the connection
        can only be closed.
        """
        if server_side is None:
            server_side = self.server is not None
        check_ssl_context(ssl_context, server_side=server_side, server_hostname=server_hostname)
        # Raises now what it would raise for server_hostname when the stream is given away already.
        ssl_context.wrap_bio(
            ssl.MemoryBIO(), ssl.MemoryBIO(), server_side, server_hostname=server_hostname
        )
        if self._closed:
            raise trio.ClosedResourceError(_CLOSED)
        if self._receiving:
            raise trio.BusyResourceError(_BUSY)
        plain = self._transport
        if plain.in_announcement:
            raise trio.BusyResourceError("a message_written hook cannot start TLS")
        plain.check()
        self._settle()
        self._receiving = True
        plain.hold()
        try:
            await trio.lowlevel.checkpoint_if_cancelled()  # before the socket is given away
            while plain.queued:  # again and again, for others may have been waiting for room
                await plain.drain()
            plain.check()
            if self._undelivered is not None:
                raise ProtocolError(
                    "the peer sent a message in the clear, not a TLS handshake; receive() has been "
                    "cancelled while listeners were told of it"
                )
            if len(self._buffer):
                raise ProtocolError(
                    f"the peer sent {len(self._buffer)} bytes in the clear, not a TLS handshake"
                )
            stream = wrap_tls(plain.detach(), ssl_context, server_side, server_hostname)
            self._transport = secure = StreamTransport(stream, self._limits)
            secure.take_over(plain)
            try:
                await handshake(stream, self._limits)
            except BaseException as error:
                # While it is closed, too: that need not wait for what cannot be sent.
                self._give_up(
                    again(error)
                    if isinstance(error, trio.BrokenResourceError)
                    else trio.BrokenResourceError("the TLS handshake was not finished")
                )
                raise
        except BaseException as error:
            if self._transport is plain:  # nothing that waits may leave in the clear
                plain.refuse(
                    trio.BrokenResourceError(
                        "start_tls() was not carried out; this connection can only be closed"
                    )
                )
            if isinstance(error, ProtocolError):
                self._note(error)
            raise
        finally:
            self._receiving = False

    # -- looking

    @property
    def local_address(self) -> Any:
        """This side's address as the `socket` module gives it; None where there is none."""
        return self._transport.local_address()

    @property
    def message_received(self) -> EventEmitter[MessageReceived]:
        """This connection's own emitter of `MessageReceived`; it forwards to the server's."""
        if not self._is_own(self._on_received):
            self._on_received = self._forwarding_to(self._on_received)
        return self._on_received

    @property
    def message_written(self) -> EventEmitter[MessageWritten]:
        """This connection's own emitter of `MessageWritten`; it forwards to the server's.

        A hook that raises keeps those behind it from hearing of that frame, even where it has met
        nothing but the connection's end, when it wanted to send.

        While much is written and not yet told, `send` waits for the listeners. A subscriber that
        sends on this same connection before it takes the next event may so wait for itself: give
        it a large ``buffer_size``, or an ``overflow`` that does not wait.
        """
        if not self._is_own(self._on_written):
            self._on_written = self._forwarding_to(self._on_written)
        return self._on_written

    def _forwarding_to(self, emitter: EventEmitter[Any]) -> EventEmitter[Any]:
        own: EventEmitter[Any] = EventEmitter()
        if emitter is not _NOBODY:
            own.connect(emitter)
        if self._ended is not None:
            own._end()
        return own

    def _is_own(self, emitter: EventEmitter[Any]) -> bool:
        server = self.server
        return emitter is not _NOBODY and (
            server is None
            or (emitter is not server.message_received and emitter is not server.message_written)
        )

    def statistics(self) -> ConnectionStatistics:
        """Numbers of this connection, as of now."""
        self._settle()
        transport = self._transport
        now = trio.current_time() if self._ended is None else self._ended
        moved = transport.bytes_received + transport.bytes_written
        if moved != self._moved[0]:
            self._moved = (moved, now)
        return ConnectionStatistics(
            number=self.number,
            remote_address=self.remote_address,
            age=now - self._began,
            idle_time=now - self._moved[1],
            messages_received=self._messages_delivered(),
            messages_sent=self._messages_sent,
            bytes_received=transport.bytes_received,
            bytes_sent=transport.bytes_written,
            chunks_received=transport.chunks,
            flushes=transport.flushes,
            bytes_queued=transport.queued,
            most_bytes_queued=transport.most_queued,
            bytes_undecoded=len(self._buffer),
            senders_waiting=transport.senders_waiting,
            reader=type(self._reader).__name__,
            writer=type(self._writer).__name__,
        )

    def _log_fields(
        self, event: str, error: BaseException | None = None, **others: Any
    ) -> dict[str, Any]:
        remote = address_in_words(self.remote_address)
        return fields(event, error, connection=self.number, remote=remote, **others)

    def _messages_delivered(self) -> int:
        """How many messages were received, less those that are decoded and no more."""
        in_hand = self._undelivered is not None or self._in_hooks
        return self._messages_received - operator.length_hint(self._ahead) - in_hand


def _is_copy(error: BaseException, original: BaseException | None) -> bool:
    """Whether ``error`` was made of ``original`` by `again`, or could have been."""
    return (
        original is not None
        and type(error) is type(original)
        and error.args == original.args
        and error.__cause__ is original.__cause__
    )


def _has_hash(codec: Codec[Any, Any]) -> bool:
    try:
        hash(codec)
    except TypeError:  # of a user's own: it is not frozen, or one of its settings has none
        return False
    return True


def _bytes_only(piece: object) -> Buffer:
    if not isinstance(piece, bytes | bytearray):
        raise TypeError(f"not bytes: {piece!r}")
    return piece


def check_ssl_context(
    ssl_context: object, *, server_side: bool, server_hostname: str | None = None
) -> None:
    """Raise for a context that cannot be used on this side, or would not check what it is to."""
    if not isinstance(ssl_context, ssl.SSLContext):
        raise TypeError(f"ssl_context must be an ssl.SSLContext, not {ssl_context!r}")
    wrong = ssl.PROTOCOL_TLS_CLIENT if server_side else ssl.PROTOCOL_TLS_SERVER
    if ssl_context.protocol == wrong:
        side, purpose = ("server", "CLIENT_AUTH") if server_side else ("client", "SERVER_AUTH")
        raise ValueError(
            f"ssl_context is for the other side; a {side}'s is made by "
            f"ssl.create_default_context(ssl.Purpose.{purpose})"
        )
    # Without a name, the ssl module would accept a certificate of any.
    if not server_side and ssl_context.check_hostname and not server_hostname:
        raise ValueError("server_hostname must be given: the ssl_context checks names")


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
            raise trio.BrokenResourceError(f"{HANDSHAKE_FAILED}: {reason_of(reason)}") from reason
    if scope.cancelled_caught:
        raise HandshakeTimeoutError(
            f"the TLS handshake took more than {limits.handshake_timeout} seconds; "
            f"the setting is handshake_timeout"
        )
