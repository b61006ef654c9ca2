"""`EventEmitter`, its subscriptions, and the four events of a server.

An emitter takes the place of a callback signal. Its listeners are subscriptions (memory
channels, read by any task at its own pace), other emitters (forwarding), and hooks (async
functions awaited by the emitting task).
"""

from __future__ import annotations

import functools
import inspect
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, cast, final, get_args

import attrs
import trio

from ._errors import BytetalkError
from ._validators import one_of, whole_number

if TYPE_CHECKING:
    from ._connection import Connection

E = TypeVar("E")

Overflow = Literal["wait", "drop_oldest", "drop_newest", "close"]

# Room for about what one received chunk of small messages brings, so that a subscriber of a busy
# connection is switched to once for each chunk and not once for each message.
BUFFER_SIZE = 1024


class SubscriptionOverflowError(BytetalkError):
    """A subscription with ``overflow="close"`` was ended because its buffer was full."""


@attrs.frozen
class ClientConnected:
    """A connection was made. The first event of every connection."""

    connection: Connection[Any, Any]


@attrs.frozen
class ClientDisconnected:
    """A connection has ended, as its ``close_reason`` says. The last event of every connection."""

    connection: Connection[Any, Any]


@attrs.frozen
class MessageReceived:
    """A message was delivered: it is what `Connection.receive` is about to return."""

    connection: Connection[Any, Any]
    message: Any


@attrs.frozen
class MessageWritten:
    """The operating system has taken the last byte of a message's frame."""

    connection: Connection[Any, Any]
    message: Any


Event = ClientConnected | ClientDisconnected | MessageReceived | MessageWritten
"""What `Server.events` gives."""


@final
@attrs.define(eq=False)
class Subscription(trio.abc.ReceiveChannel[E]):
    """A Trio `~trio.abc.ReceiveChannel` of events, made by `EventEmitter.subscribe`.

    It hears every event from its making to its closing, so nothing is missed between that and
    the first `receive`. Leave its ``async with`` block, or call `aclose` or `close`, to
    unsubscribe; events still in its buffer are then gone.
    """

    buffer_size: int = attrs.field(validator=whole_number(1, unit="events"))
    """How many events may wait to be received."""

    overflow: Overflow = attrs.field(validator=one_of(*get_args(Overflow)))
    """What happens to an event that finds so many waiting."""

    dropped: int = attrs.field(default=0, init=False)
    """How many events ``"drop_oldest"`` or ``"drop_newest"`` have dropped so far."""

    _emitters: tuple[EventEmitter[E], ...]
    _overflowed: bool = attrs.field(default=False, init=False)

    # The channel carries batches, one at a time: it is sent with its first event, and filled until
    # the subscriber comes to take it. So between a busy connection and a busy subscriber the
    # channel is used once for each time that the subscriber gets its turn, not for each event.
    _send: trio.MemorySendChannel[deque[E]] = attrs.field(init=False)
    _receive: trio.MemoryReceiveChannel[deque[E]] = attrs.field(init=False)
    _filling: deque[E] | None = attrs.field(default=None, init=False)
    _taken: deque[E] = attrs.field(factory=deque, init=False)

    # The emitting tasks that wait for room, which there is none of as long as there are any.
    _emitting: deque[tuple[trio.lowlevel.Task, E]] = attrs.field(factory=deque, init=False)

    # Only one task waits for a batch; others that receive wait for that.
    _receiving: bool = attrs.field(default=False, init=False)
    _closed: bool = attrs.field(default=False, init=False)
    _receivers: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot, init=False)

    def __attrs_post_init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[deque[E]](1)
        for emitter in self._emitters:
            emitter._listeners = (*emitter._listeners, self)

    @property
    def waiting(self) -> int:
        """How many events wait to be received, with those that wait for room in the buffer."""
        filling = self._filling
        queued = len(self._taken) + (0 if filling is None else len(filling))
        return queued + len(self._emitting)

    async def receive(self) -> E:
        """The next event.

        Events that are in the buffer already are returned without a checkpoint; there is one at
        least whenever the buffer has been emptied.

        Raises:
          trio.EndOfChannel: if the emitter's owner has ended (the connection disconnected, the
              server stopped) and every event has been received.
          SubscriptionOverflowError: instead of that, if ``overflow="close"`` ended it.
          trio.ClosedResourceError: if the subscription was closed.

        Cancelling it loses no event.
        """
        while not self._taken:
            if self._receiving:
                await self._receivers.park()
                continue
            self._receiving = True
            try:
                try:
                    batch = self._receive.receive_nowait()
                except trio.WouldBlock:
                    batch = await self._receive.receive()
            except trio.EndOfChannel:
                raise self._why_it_ended() from None
            else:
                self._take(batch)
            finally:
                self._receiving = False
                if self._receivers:
                    self._receivers.unpark_all()
        return self._next()

    async def __anext__(self) -> E:
        if self._taken:  # before the inherited one: that costs two more calls
            return self._next() if self._emitting else self._taken.popleft()
        return await super().__anext__()

    def receive_nowait(self) -> E:
        """Like `receive`, but raises `trio.WouldBlock` where it would wait."""
        if not self._taken:
            try:
                self._take(self._receive.receive_nowait())
            except trio.EndOfChannel:
                raise self._why_it_ended() from None
        return self._next()

    def _take(self, batch: deque[E]) -> None:
        if self._closed:  # since the batch was handed over
            raise trio.ClosedResourceError("this subscription was closed")
        self._taken = batch
        self._filling = None

    def _next(self) -> E:
        event = self._taken.popleft()
        if self._emitting:
            task, waiting = self._emitting.popleft()
            self._add(waiting)
            trio.lowlevel.reschedule(task)
        return event

    def close(self) -> None:
        """Unsubscribe. A task that waits in `receive` gets `trio.ClosedResourceError`."""
        self._receive.close()  # first, or the waiting task would get EndOfChannel
        self._closed = True
        self._taken.clear()
        self._filling = None
        self._end()

    async def aclose(self) -> None:
        """Unsubscribe, as `close` does, and execute a checkpoint."""
        self.close()
        await trio.lowlevel.checkpoint()

    def _why_it_ended(self) -> Exception:
        if self._overflowed:
            return SubscriptionOverflowError(
                f"the subscriber was too slow: {self.buffer_size} events were waiting when the "
                f"next one came; the settings are buffer_size and overflow"
            )
        return trio.EndOfChannel()

    def _end(self) -> None:
        """No more events: the subscriber reads what is buffered or being waited with, no more."""
        for emitter in self._emitters:
            emitter._remove(self)
        while self._emitting:
            task, event = self._emitting.popleft()
            self._add(event)
            trio.lowlevel.reschedule(task)
        self._send.close()
        self._filling = None

    def _add(self, event: E) -> None:
        if self._filling is not None:
            self._filling.append(event)
            return
        batch = deque((event,))
        try:
            self._send.send_nowait(batch)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # it has ended since the emission began
        else:
            self._filling = batch

    def _offer(self, event: E) -> bool:
        """Deliver ``event`` without waiting, as the policy says; False if the policy is to wait."""
        filling = self._filling
        if len(self._taken) + (0 if filling is None else len(filling)) >= self.buffer_size:
            if self.overflow == "wait":
                return False
            if self.overflow == "close":
                self._overflowed = True
                self._end()
                return True
            self.dropped += 1
            self._emitters[0]._dropped += 1
            if self.overflow == "drop_newest":
                return True
            (self._taken or cast("deque[E]", filling)).popleft()
        if filling is None:
            self._add(event)
        else:
            filling.append(event)
        return True

    async def _put(self, event: E) -> None:
        """Deliver ``event``, waiting for room if that is the policy. Cancelled: not delivered."""
        if not self._offer(event):
            waiting = (trio.lowlevel.current_task(), event)

            def abort(_: object) -> trio.lowlevel.Abort:
                self._emitting.remove(waiting)
                return trio.lowlevel.Abort.SUCCEEDED

            self._emitting.append(waiting)
            await trio.lowlevel.wait_task_rescheduled(abort)


def check_async(name: str, function: object) -> None:
    """Raise for what cannot be an async function; what may be one passes."""
    if not callable(function):
        raise TypeError(f"{name} must be an async function, not {function!r}")
    inner: object = function
    while isinstance(inner, functools.partial):
        inner = inner.func
    if inspect.isroutine(inner) and not (
        inspect.iscoroutinefunction(inner) or hasattr(inner, "__wrapped__")
    ):
        raise TypeError(f"{name} must be an async function: write {function!r} as `async def`")


def _is_hook(_instance: Any, _attribute: attrs.Attribute[Any], function: Any) -> None:
    check_async("a hook", function)


async def deliver(
    event: E, listeners: deque[Subscription[E] | Callable[[E], Awaitable[object]]]
) -> None:
    """Tell each of ``listeners``, taking it out of the queue when it is told.

    If this is cut short, the queue holds those who have not heard the event. A hook counts as told
    once it has begun.
    """
    while listeners:
        listener = listeners[0]
        if type(listener) is Subscription:
            await listener._put(event)
            listeners.popleft()
        else:
            listeners.popleft()
            await listener(event)


@attrs.frozen
class ConnectionHook:
    """A hook that is given the event's connection."""

    function: Callable[[Connection[Any, Any]], Awaitable[object]] = attrs.field(validator=_is_hook)

    async def __call__(self, event: ClientConnected | ClientDisconnected) -> None:
        await self.function(event.connection)


@attrs.frozen
class MessageHook:
    """A hook that is given the event's connection and message."""

    function: Callable[[Connection[Any, Any], Any], Awaitable[object]] = attrs.field(
        validator=_is_hook
    )

    async def __call__(self, event: MessageReceived | MessageWritten) -> None:
        await self.function(event.connection, event.message)


@attrs.frozen(eq=False)
class ListenerHandle(Generic[E]):
    """What `EventEmitter.connect` returns."""

    _emitter: EventEmitter[E]
    _listener: EventEmitter[E] | Callable[[E], Awaitable[object]]

    def disconnect(self) -> None:
        """Undo the connect. Doing it again is harmless."""
        self._emitter._remove(self._listener)


@attrs.define(eq=False)
class EventEmitter(Generic[E]):
    """Tells its listeners of events: subscriptions, other emitters, hooks.

    Events reach the subscriptions first, those of emitters connected to this one included, and
    then the hooks, in the order of connecting.
    """

    # Replaced and never changed, so that an emission under way keeps to the listeners it began
    # with.
    _listeners: tuple[Subscription[E] | EventEmitter[E] | Callable[[E], Awaitable[object]], ...] = (
        attrs.field(default=(), init=False)
    )

    _dropped: int = attrs.field(default=0, init=False)  # by all its subscriptions ever
    _ended: bool = attrs.field(default=False, init=False)

    def subscribe(
        self, *, buffer_size: int = BUFFER_SIZE, overflow: Overflow = "wait"
    ) -> Subscription[E]:
        """Subscribe to the events from now on.

        Args:
          buffer_size: How many events may wait for the subscriber, 1 or more.
          overflow: What happens to an event that finds so many waiting. ``"wait"``: the emitting
              task waits, so nothing is lost, and a subscriber that never reads holds up its
              connections. ``"drop_oldest"`` and ``"drop_newest"`` lose an event and count it in
              `Subscription.dropped`. ``"close"``: the subscription ends with
              `SubscriptionOverflowError`.

        Returns:
          Subscription: to be used as ``async with emitter.subscribe() as events:``. That of a
              connection which has ended ends at once.
        """
        subscription = Subscription(buffer_size, overflow, (self,))
        if self._ended:
            subscription._end()
        return subscription

    def connect(
        self, listener: EventEmitter[E] | Callable[[E], Awaitable[object]]
    ) -> ListenerHandle[E]:
        """Connect another emitter, to forward events to, or an async function, as a hook.

        A hook is awaited in the emitting task, and the emitting task waits for it. Connecting the
        same listener again changes nothing.

        Raises:
          TypeError: if a hook is a plain ``def`` function.
          ValueError: if emitters would forward in a circle.
        """
        if isinstance(listener, EventEmitter):
            if listener._reaches(self):
                raise ValueError("these emitters would forward to each other without end")
        else:
            check_async("a listener that is no EventEmitter", listener)
        if listener not in self._listeners:
            self._listeners = (*self._listeners, listener)
        return ListenerHandle(self, listener)

    def disconnect(self, listener: EventEmitter[E] | Callable[[E], Awaitable[object]]) -> None:
        """Undo `connect`. A listener that is not connected is no error."""
        self._remove(listener)

    @property
    def has_listeners(self) -> bool:
        """Whether anyone would hear an event, here or at an emitter that this one forwards to."""
        return any(
            not isinstance(listener, EventEmitter) or listener.has_listeners
            for listener in self._listeners
        )

    # System tasks, which emit MessageWritten, are protected from Ctrl-C; hooks must not be.
    @trio.lowlevel.disable_ki_protection
    async def emit(self, event: E) -> None:
        """Tell every listener, one after the other.

        An exception of a hook goes to the caller, and the listeners after it do not hear the
        event. The same holds for cancellation.
        """
        await deliver(event, self._flat_listeners())

    def _remove(self, listener: object) -> None:
        # By equality: a bound method is a new object each time it is named.
        self._listeners = tuple(other for other in self._listeners if other != listener)

    def _reaches(self, other: object) -> bool:
        return self is other or any(
            isinstance(listener, EventEmitter) and listener._reaches(other)
            for listener in self._listeners
        )

    def _flat_listeners(self) -> deque[Subscription[E] | Callable[[E], Awaitable[object]]]:
        """Who is to hear an event, here and at the emitters that this one forwards to."""
        flat: deque[Subscription[E] | Callable[[E], Awaitable[object]]] = deque()
        self._add_to(flat)
        return flat

    def _add_to(self, flat: deque[Subscription[E] | Callable[[E], Awaitable[object]]]) -> None:
        for listener in self._listeners:
            if type(listener) is Subscription:
                # In front, for a hook may take its time, or receive messages itself, and must not
                # upset the order that subscribers see.
                flat.appendleft(listener)
            elif isinstance(listener, EventEmitter):
                listener._add_to(flat)
            else:
                flat.append(listener)

    def _end(self) -> None:
        """The owner has ended: there are no more events, for later subscribers neither."""
        self._ended = True
        self._end_subscriptions()

    def _end_subscriptions(self) -> None:
        """The subscriptions end behind the events they have."""
        for listener in self._listeners:
            if type(listener) is Subscription:
                listener._end()
