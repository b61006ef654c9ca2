"""`EventEmitter` and its listeners: who hears what, in which order, and what a slow one does."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, get_args

import attrs
import pytest
import trio
import trio.testing

from trio_bytetalk import (
    BytetalkError,
    ClientConnected,
    ClientDisconnected,
    Event,
    EventEmitter,
    LengthPrefixed,
    MessageReceived,
    MessageWritten,
    Server,
    Subscription,
    SubscriptionOverflowError,
)
from trio_bytetalk._events import deliver
from trio_bytetalk.testing import connection_pair, open_memory_connection

POLICIES = ["wait", "drop_oldest", "drop_newest", "close"]


def drain(subscription: Subscription[Any]) -> list[Any]:
    """The events that are there."""
    events = []
    while True:
        try:
            events.append(subscription.receive_nowait())
        except trio.WouldBlock:
            return events


def noting(name: str, log: list[Any]) -> Callable[[Any], Awaitable[None]]:
    """A hook that notes what it hears."""

    async def hook(event: Any) -> None:
        log.append((name, event))

    return hook


# -- subscriptions


async def test_subscriber_hears_all_from_its_making_to_its_closing() -> None:
    emitter = EventEmitter[int]()
    await emitter.emit(0)
    async with emitter.subscribe() as events:
        await emitter.emit(1)
        await emitter.emit(2)
        assert await events.receive() == 1
        assert drain(events) == [2]
        assert emitter.has_listeners
    assert not emitter.has_listeners
    await emitter.emit(3)
    with pytest.raises(trio.ClosedResourceError):
        await events.receive()
    with pytest.raises(trio.ClosedResourceError):
        events.receive_nowait()


async def test_subscription_is_taken_for_a_receive_channel_by_code_that_knows_only_trio() -> None:
    async def consume(channel: trio.abc.ReceiveChannel[int]) -> list[int]:
        received = []
        async with channel:
            async for value in channel:
                received.append(value)
                if value == 3:
                    break
        return received

    emitter = EventEmitter[int]()
    subscription = emitter.subscribe()
    assert isinstance(subscription, trio.abc.ReceiveChannel)
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def _emit() -> None:
            for value in range(5):
                await emitter.emit(value)
                await trio.testing.wait_all_tasks_blocked()

        assert await consume(subscription) == [0, 1, 2, 3]
    assert not emitter.has_listeners


async def test_subscription_ends_behind_its_last_event_when_its_connection_does() -> None:
    left, right = connection_pair(LengthPrefixed())
    one_by_one = left.message_received.subscribe()
    iterated = left.message_received.subscribe()
    hooked: list[Any] = []
    left.message_received.connect(noting("hook", hooked))
    async with left, right:
        await right.send(b"first")
        await right.send(b"second")
        await left.receive()
        await left.receive()

    assert [event.message async for event in iterated] == [b"first", b"second"]
    assert [event async for event in iterated] == []
    assert (await one_by_one.receive()).message == b"first"
    assert one_by_one.receive_nowait().message == b"second"
    for _ in range(2):
        with pytest.raises(trio.EndOfChannel):
            await one_by_one.receive()
        with pytest.raises(trio.EndOfChannel):
            one_by_one.receive_nowait()
    assert len(hooked) == 2


async def test_subscriber_that_waits_is_told_when_its_connection_ends() -> None:
    left, right = connection_pair(LengthPrefixed())
    received: list[Any] = []

    async def follow(events: Subscription[MessageReceived]) -> None:
        received.extend([event async for event in events])
        received.append("end")

    async def wait(events: Subscription[MessageReceived]) -> None:
        with pytest.raises(trio.EndOfChannel):
            await events.receive()

    async with right, trio.open_nursery() as nursery:
        nursery.start_soon(follow, left.message_received.subscribe())
        nursery.start_soon(wait, left.message_received.subscribe())
        await trio.testing.wait_all_tasks_blocked()
        await left.aclose()
    assert received == ["end"]


async def test_events_that_are_there_are_received_without_a_checkpoint() -> None:
    emitter = EventEmitter[int]()
    async with emitter.subscribe() as events:
        await emitter.emit(1)
        await emitter.emit(2)
        with trio.testing.assert_no_checkpoints():
            assert await events.receive() == 1
            assert await anext(events) == 2


async def test_waiting_for_an_event_is_a_checkpoint() -> None:
    emitter = EventEmitter[int]()
    async with emitter.subscribe() as events, trio.open_nursery() as nursery:
        for receive in (events.receive, events.__anext__):
            nursery.start_soon(emitter.emit, 1)
            with trio.testing.assert_checkpoints():
                assert await receive() == 1


async def test_cancelled_receive_loses_no_event() -> None:
    emitter = EventEmitter[int]()
    received: list[int] = []

    async def receive_now_and_then(events: Subscription[int]) -> None:
        while len(received) < 200:
            with trio.CancelScope() as scope:
                nursery.start_soon(cancel, scope, len(received) % 4)
                received.append(await events.receive())

    async def cancel(scope: trio.CancelScope, turns: int) -> None:
        for _ in range(turns):
            await trio.lowlevel.checkpoint()
        scope.cancel()

    async with emitter.subscribe(buffer_size=1) as events, trio.open_nursery() as nursery:
        nursery.start_soon(receive_now_and_then, events)
        for value in range(200):
            await emitter.emit(value)
            await trio.lowlevel.checkpoint()
    assert received == list(range(200))


@pytest.mark.parametrize("close_first", [True, False])
async def test_task_that_waits_for_an_event_is_told_when_its_subscription_is_closed(
    close_first: bool,
) -> None:
    emitter = EventEmitter[int]()
    events = emitter.subscribe()

    async def wait() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await (events.receive() if close_first else anext(events))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        events.close()
    events.close()
    with trio.testing.assert_checkpoints():
        await events.aclose()


async def test_closing_loses_what_was_not_received() -> None:
    emitter = EventEmitter[int]()
    async with emitter.subscribe() as events:
        await emitter.emit(1)
    with pytest.raises(trio.ClosedResourceError):
        await anext(events)


@pytest.mark.parametrize(
    ("settings", "error", "named"),
    [
        ({"buffer_size": 0}, ValueError, "buffer_size must be 1 or more events, not 0"),
        ({"buffer_size": 1.5}, TypeError, "buffer_size must be a whole number of events"),
        ({"buffer_size": None}, TypeError, "buffer_size must be a whole number of events"),
        ({"overflow": "explode"}, ValueError, "overflow must be 'wait' or 'drop_oldest' or"),
        ({"overflow": None}, ValueError, "overflow must be 'wait' or"),
    ],
)
def test_wrong_setting_is_named_and_leaves_no_listener(
    settings: dict[str, Any], error: type[Exception], named: str
) -> None:
    emitter = EventEmitter[int]()
    with pytest.raises(error, match=named):
        emitter.subscribe(**settings)
    with pytest.raises(error, match=named):
        Server().events(**settings)
    assert not emitter.has_listeners


# -- slow subscribers


async def test_slow_subscriber_makes_the_emitter_wait_and_misses_nothing() -> None:
    emitter = EventEmitter[int]()
    emitted = []

    async def emit() -> None:
        for value in range(6):
            await emitter.emit(value)
            emitted.append(value)

    async with emitter.subscribe(buffer_size=2) as events, trio.open_nursery() as nursery:
        nursery.start_soon(emit)
        await trio.testing.wait_all_tasks_blocked()
        assert emitted == [0, 1]
        for value in range(6):
            assert await events.receive() == value
            await trio.testing.wait_all_tasks_blocked()
            assert emitted == list(range(min(value + 3, 6)))
        assert events.dropped == 0


async def test_slow_subscriber_loses_the_oldest() -> None:
    emitter = EventEmitter[int]()
    async with emitter.subscribe(buffer_size=3, overflow="drop_oldest") as events:
        for value in range(10):
            await emitter.emit(value)
            assert events.dropped == max(0, value - 2)
        assert drain(events) == [7, 8, 9]
        await emitter.emit(10)
        assert drain(events) == [10]
        assert events.dropped == 7


async def test_slow_subscriber_loses_the_newest() -> None:
    emitter = EventEmitter[int]()
    async with emitter.subscribe(buffer_size=3, overflow="drop_newest") as events:
        for value in range(10):
            await emitter.emit(value)
            assert events.dropped == max(0, value - 2)
        assert drain(events) == [0, 1, 2]
        await emitter.emit(10)
        assert drain(events) == [10]
        assert events.dropped == 7


@pytest.mark.parametrize("how", ["receive", "receive_nowait", "async for"])
async def test_slow_subscription_ends_with_an_error_behind_the_events_that_it_has(how: str) -> None:
    emitter = EventEmitter[int]()
    async with emitter.subscribe(buffer_size=2, overflow="close") as events:
        await emitter.emit(0)
        await emitter.emit(1)
        assert emitter.has_listeners
        await emitter.emit(2)
        assert not emitter.has_listeners
        await emitter.emit(3)
        assert events.dropped == 0

        received = []

        async def receive() -> None:
            while how == "async for":
                received.append(await anext(events))
            while how == "receive":
                received.append(await events.receive())
            while True:
                received.append(events.receive_nowait())

        for _ in range(2):
            with pytest.raises(SubscriptionOverflowError) as caught:
                await receive()
            assert "2 events were waiting" in str(caught.value)
            assert "the settings are buffer_size and overflow" in str(caught.value)
            assert isinstance(caught.value, BytetalkError)
        assert received == [0, 1]


@pytest.mark.parametrize("policy", POLICIES)
async def test_subscriber_that_keeps_up_hears_the_same_under_every_policy(policy: Any) -> None:
    emitter = EventEmitter[int]()
    async with emitter.subscribe(buffer_size=2, overflow=policy) as events:
        for value in range(0, 20, 2):
            await emitter.emit(value)
            await emitter.emit(value + 1)
            assert drain(events) == [value, value + 1]
        assert events.dropped == 0
        assert (events.buffer_size, events.overflow) == (2, policy)


async def test_subscriber_leaves_while_the_emitter_waits_for_it() -> None:
    emitter = EventEmitter[int]()
    log: list[Any] = []
    emitter.connect(noting("hook", log))
    leaving = emitter.subscribe(buffer_size=1)
    staying = emitter.subscribe()
    async with trio.open_nursery() as nursery:
        await emitter.emit(1)
        nursery.start_soon(emitter.emit, 2)
        await trio.testing.wait_all_tasks_blocked()
        assert log == [("hook", 1)]
        await leaving.aclose()
    assert log == [("hook", 1), ("hook", 2)]
    assert drain(staying) == [1, 2]


async def test_subscribers_leave_while_the_emitter_waits_for_another() -> None:
    emitter = EventEmitter[int]()
    # Whatever the order, one of the others has been told before the slow one and one has not.
    before, slow, after = emitter.subscribe(), emitter.subscribe(buffer_size=1), emitter.subscribe()
    await emitter.emit(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(emitter.emit, 2)
        await trio.testing.wait_all_tasks_blocked()
        before.close()
        after.close()
        assert await slow.receive() == 1
    assert await slow.receive() == 2


async def test_cancelled_emitter_has_not_told_the_subscriber_that_it_waited_for() -> None:
    emitter = EventEmitter[int]()
    log: list[Any] = []
    emitter.connect(noting("hook", log))
    async with emitter.subscribe(buffer_size=1) as events:
        await emitter.emit(1)
        with trio.move_on_after(0):
            await emitter.emit(2)
        assert drain(events) == [1]
        await emitter.emit(3)
        assert drain(events) == [3]
    assert log == [("hook", 1), ("hook", 3)]


async def test_event_that_is_waited_with_is_received_even_if_the_connection_ends() -> None:
    left, right = connection_pair(LengthPrefixed())
    events = left.message_received.subscribe(buffer_size=1)
    received = []

    async def handle() -> None:
        received.append(await left.receive())
        received.append(await left.receive())

    async with right, trio.open_nursery() as nursery:
        await right.send(b"first")
        await right.send(b"second")
        nursery.start_soon(handle)
        await trio.testing.wait_all_tasks_blocked()
        assert received == [b"first"]
        await left.aclose()
        assert [event.message async for event in events] == [b"first", b"second"]
    assert received == [b"first", b"second"]


# -- hooks


async def test_hook_is_awaited_in_the_emitting_task() -> None:
    emitter = EventEmitter[int]()
    tasks = []

    async def hook(event: int) -> None:
        await trio.lowlevel.checkpoint()
        tasks.append(trio.lowlevel.current_task())

    emitter.connect(hook)
    await emitter.emit(1)
    assert tasks == [trio.lowlevel.current_task()]


async def test_hooks_are_told_in_the_order_of_connecting_and_subscriptions_before_them() -> None:
    emitter = EventEmitter[int]()
    log: list[Any] = []
    emitter.connect(noting("a", log))
    early = emitter.subscribe()

    async def look(event: int) -> None:
        log.append(("subscriptions", [drain(early), drain(late)]))

    emitter.connect(look)
    emitter.connect(noting("b", log))
    late = emitter.subscribe()
    await emitter.emit(1)
    assert log == [("a", 1), ("subscriptions", [[1], [1]]), ("b", 1)]


async def test_hook_that_receives_messages_itself_does_not_upset_the_order_of_subscribers() -> None:
    inner, outer = EventEmitter[int](), EventEmitter[int]()

    async def emit_the_next(event: int) -> None:
        if event < 3:
            await inner.emit(event + 1)

    # The hook stands before the forwarding; the subscription is at its other end.
    inner.connect(emit_the_next)
    inner.connect(outer)
    async with outer.subscribe() as events:
        await inner.emit(1)
        assert drain(events) == [1, 2, 3]


async def test_failed_hook_fails_the_emission_and_the_listeners_after_it_hear_nothing() -> None:
    emitter = EventEmitter[int]()
    log: list[Any] = []
    failure = OSError("the disk is full")

    async def fail(event: int) -> None:
        if event == 1:
            raise failure

    emitter.connect(noting("before", log))
    emitter.connect(fail)
    emitter.connect(noting("after", log))
    async with emitter.subscribe() as events:
        with pytest.raises(OSError, match="disk is full") as caught:
            await emitter.emit(1)
        assert caught.value is failure
        await emitter.emit(2)
        assert drain(events) == [1, 2]
    assert log == [("before", 1), ("before", 2), ("after", 2)]


async def test_cancelled_hook_ends_the_emission() -> None:
    emitter = EventEmitter[int]()
    log: list[Any] = []

    async def wait(event: int) -> None:
        await trio.sleep_forever()

    emitter.connect(noting("before", log))
    emitter.connect(wait)
    emitter.connect(noting("after", log))
    with trio.move_on_after(0) as scope:
        await emitter.emit(1)
    assert scope.cancelled_caught
    assert log == [("before", 1)]


async def test_listeners_that_come_and_go_during_an_emission_count_from_the_next_one() -> None:
    emitter = EventEmitter[int]()
    log: list[Any] = []
    leaving, coming = noting("leaving", log), noting("coming", log)
    subscriptions = []

    async def rearrange(event: int) -> None:
        emitter.disconnect(leaving)
        emitter.connect(coming)
        subscriptions.append(emitter.subscribe())

    emitter.connect(rearrange)
    emitter.connect(leaving)
    await emitter.emit(1)
    assert log == [("leaving", 1)]
    assert drain(subscriptions[0]) == []
    await emitter.emit(2)
    assert log == [("leaving", 1), ("coming", 2)]
    assert drain(subscriptions[0]) == [2]


class Room:
    """Something of a user's with methods for hooks."""

    def __init__(self) -> None:
        self.log: list[Any] = []

    async def hear(self, *event: Any) -> None:
        self.log.append(event)

    def hear_nothing(self, event: Any) -> None:
        raise AssertionError


async def test_bound_method_is_one_listener_however_often_it_is_named() -> None:
    emitter = EventEmitter[int]()
    room, other_room = Room(), Room()
    emitter.connect(room.hear)
    emitter.connect(room.hear)
    emitter.connect(other_room.hear)
    await emitter.emit(1)
    emitter.disconnect(room.hear)
    emitter.disconnect(room.hear)
    await emitter.emit(2)
    assert room.log == [(1,)]
    assert other_room.log == [(1,), (2,)]


async def test_handle_disconnects_and_doing_it_again_is_harmless() -> None:
    emitter = EventEmitter[int]()
    log: list[Any] = []
    handle = emitter.connect(noting("first", log))
    emitter.connect(noting("second", log))
    handle.disconnect()
    handle.disconnect()
    await emitter.emit(1)
    assert log == [("second", 1)]


def a_plain_function(event: Any) -> None:
    raise AssertionError


@pytest.mark.parametrize(
    "function",
    [
        a_plain_function,
        Room().hear_nothing,
        lambda event: None,
        print,
        functools.partial(a_plain_function),
        functools.partial(functools.partial(a_plain_function)),
    ],
)
def test_function_that_is_not_async_is_rejected_when_it_is_connected(function: Any) -> None:
    emitter = EventEmitter[int]()
    with pytest.raises(
        TypeError, match=r"a listener .* must be an async function: write .* `async"
    ):
        emitter.connect(function)
    assert not emitter.has_listeners
    server = Server()
    for decorator in (server.on_connect, server.on_message, server.on_disconnect):
        with pytest.raises(TypeError, match="a hook must be an async function: write"):
            decorator(function)
    with pytest.raises(TypeError, match="handler must be an async function: write"):
        Server(function)


@pytest.mark.parametrize("function", [None, 5, "name"])
def test_what_cannot_even_be_called_is_rejected_when_it_is_connected(function: Any) -> None:
    with pytest.raises(TypeError, match=f"must be an async function, not {function!r}"):
        EventEmitter[int]().connect(function)
    with pytest.raises(TypeError, match=f"a hook must be an async function, not {function!r}"):
        Server().on_connect(function)


async def test_whatever_is_async_can_be_connected() -> None:
    log: list[Any] = []

    class Greeter:
        async def __call__(self, event: int) -> None:
            log.append("object")

    async def with_more(more: str, event: int) -> None:
        log.append(more)

    @functools.wraps(with_more)
    def wrapper(event: int) -> Awaitable[None]:
        return with_more("wrapped", event)

    emitter = EventEmitter[int]()
    emitter.connect(Greeter())
    emitter.connect(functools.partial(with_more, "partial"))
    emitter.connect(wrapper)
    await emitter.emit(1)
    assert log == ["object", "partial", "wrapped"]


# -- forwarding


async def test_forwarded_event_is_heard_at_every_emitter_until_the_handle_is_disconnected() -> None:
    first, second, third = EventEmitter[int](), EventEmitter[int](), EventEmitter[int]()
    handle = first.connect(second)
    second.connect(third)
    assert not first.has_listeners
    async with second.subscribe() as at_second, third.subscribe() as at_third:
        assert first.has_listeners
        await first.emit(1)
        assert (drain(at_second), drain(at_third)) == ([1], [1])
        await second.emit(2)
        assert (drain(at_second), drain(at_third)) == ([2], [2])
        handle.disconnect()
        assert not first.has_listeners
        await first.emit(3)
        assert (drain(at_second), drain(at_third)) == ([], [])


async def test_emitter_connected_twice_forwards_once() -> None:
    first, second = EventEmitter[int](), EventEmitter[int]()
    first.connect(second)
    first.connect(second)
    async with second.subscribe() as events:
        await first.emit(1)
        assert drain(events) == [1]


async def test_emitters_and_subscriptions_that_look_alike_are_not_taken_for_each_other() -> None:
    source, second, third = EventEmitter[int](), EventEmitter[int](), EventEmitter[int]()
    source.connect(second)
    source.connect(third)
    closed, events = third.subscribe(), third.subscribe()
    closed.close()
    await source.emit(1)
    assert drain(events) == [1]
    assert len({source, second, third, closed, events}) == 5


def test_emitters_that_would_forward_in_a_circle_are_rejected() -> None:
    first, second, third = EventEmitter[int](), EventEmitter[int](), EventEmitter[int]()
    first.connect(second)
    second.connect(noting("hook", []))
    second.connect(third)
    for source, target in ((first, first), (second, first), (third, second), (third, first)):
        with pytest.raises(ValueError, match="forward to each other without end"):
            source.connect(target)
    first.disconnect(second)
    third.connect(first)


async def test_emission_that_nobody_hears_costs_no_checkpoint() -> None:
    emitter = EventEmitter[int]()
    emitter.connect(EventEmitter[int]())
    with trio.testing.assert_no_checkpoints():
        await emitter.emit(1)


# -- the events of a server


async def test_events_of_a_server_are_one_stream_in_order() -> None:
    server = Server()

    @server.on_message
    async def echo(connection: Any, message: bytes) -> None:
        await connection.send(message)

    async with server.events() as events:
        async with open_memory_connection(server) as client:
            await client.send(b"hello")
            assert await client.receive() == b"hello"
        story = []
        for event in drain(events):
            match event:
                case ClientConnected(connection):
                    story.append("connected")
                case MessageReceived(same, message):
                    story.append(f"received {message.decode()}")
                    assert same is connection
                case MessageWritten(same, message):
                    story.append(f"written {message.decode()}")
                    assert same is connection
                case ClientDisconnected(same):
                    story.append("disconnected")
                    assert same is connection
        assert story == ["connected", "received hello", "written hello", "disconnected"]
        for emitter in (server.client_connected, server.message_written):
            assert emitter.has_listeners
    for emitter in (server.client_connected, server.message_written):
        assert not emitter.has_listeners


async def test_method_hooked_to_a_server_twice_is_called_once_and_with_friendly_arguments() -> None:
    server, room = Server(), Room()
    for _ in range(2):
        assert server.on_connect(room.hear) == room.hear
        assert server.on_message(room.hear) == room.hear
        assert server.on_disconnect(room.hear) == room.hear
    async with open_memory_connection(server) as client:
        await client.send(b"hello")
    connection = room.log[0][0]
    assert room.log == [(connection,), (connection, b"hello"), (connection,)]


@pytest.mark.parametrize("kind", get_args(Event))
def test_event_cannot_be_changed_by_one_listener_for_the_next(kind: type) -> None:
    event = kind(*range(len(attrs.fields(kind))))
    for field in attrs.fields(kind):
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            setattr(event, field.name, None)
    assert event == kind(*range(len(attrs.fields(kind))))


# -- several tasks that receive from one subscription


async def test_each_event_goes_to_one_of_the_tasks_that_wait_for_it() -> None:
    emitter = EventEmitter[int]()
    received: list[int] = []
    async with emitter.subscribe() as events, trio.open_nursery() as nursery:

        async def receive() -> None:
            received.append(await events.receive())

        for _ in range(3):
            nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        for number in range(3):
            await emitter.emit(number)
    assert sorted(received) == [0, 1, 2]


async def test_task_that_waits_behind_one_that_is_cancelled_takes_its_place() -> None:
    emitter = EventEmitter[int]()
    async with emitter.subscribe() as events, trio.open_nursery() as nursery:
        first = trio.CancelScope()

        @nursery.start_soon
        async def give_up() -> None:
            with first:
                await events.receive()

        await trio.testing.wait_all_tasks_blocked()

        @nursery.start_soon
        async def receive() -> None:
            assert await events.receive() == 1

        await trio.testing.wait_all_tasks_blocked()
        first.cancel()
        await trio.testing.wait_all_tasks_blocked()
        await emitter.emit(1)


async def test_every_task_that_waits_hears_that_the_subscription_was_closed() -> None:
    emitter = EventEmitter[int]()
    events = emitter.subscribe()
    async with trio.open_nursery() as nursery:

        async def receive() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await events.receive()

        for _ in range(3):
            nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        events.close()


async def test_every_task_that_waits_hears_of_the_end() -> None:
    emitter = EventEmitter[int]()
    events = emitter.subscribe(buffer_size=1, overflow="close")
    outcomes: list[object] = []
    async with trio.open_nursery() as nursery:

        async def receive() -> None:
            try:
                outcomes.append(await events.receive())
            except SubscriptionOverflowError as error:
                outcomes.append(type(error))

        for _ in range(3):
            nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        await emitter.emit(1)
        await emitter.emit(2)
    assert outcomes.count(1) == 1
    assert outcomes.count(SubscriptionOverflowError) == 2
    with pytest.raises(SubscriptionOverflowError):
        events.receive_nowait()


# -- a buffer is as large as it was asked for, however the subscriber takes from it


@pytest.mark.parametrize("taken", range(6))
async def test_as_many_events_wait_as_there_is_room_for(taken: int) -> None:
    emitter = EventEmitter[int]()
    async with emitter.subscribe(buffer_size=5) as events, trio.open_nursery() as nursery:
        emitted: list[int] = []

        @nursery.start_soon
        async def emit() -> None:
            for number in range(20):
                await emitter.emit(number)
                emitted.append(number)

        await trio.testing.wait_all_tasks_blocked()
        assert len(emitted) == 5
        assert [await events.receive() for _ in range(taken)] == list(range(taken))
        await trio.testing.wait_all_tasks_blocked()
        assert len(emitted) == 5 + taken
        assert [await events.receive() for _ in range(20 - taken)] == list(range(taken, 20))


async def test_what_waits_for_a_subscriber_is_counted_wherever_it_waits(
    nursery: trio.Nursery,
) -> None:
    emitter = EventEmitter[int]()
    async with emitter.subscribe(buffer_size=3) as events:
        assert events.waiting == 0
        for value in range(3):
            await emitter.emit(value)
        assert events.waiting == 3
        nursery.start_soon(emitter.emit, 3)
        await trio.testing.wait_all_tasks_blocked()
        assert events.waiting == 4  # one of them with its emitter
        assert await events.receive() == 0
        assert events.waiting == 3
        assert drain(events) == [1, 2, 3]
        assert events.waiting == 0


@pytest.mark.parametrize("taken", range(6))
async def test_what_is_dropped_is_the_oldest_or_the_newest_wherever_it_waits(taken: int) -> None:
    emitter = EventEmitter[int]()
    oldest = emitter.subscribe(buffer_size=5, overflow="drop_oldest")
    newest = emitter.subscribe(buffer_size=5, overflow="drop_newest")
    for number in range(5):
        await emitter.emit(number)
    for events in (oldest, newest):
        assert [await events.receive() for _ in range(taken)] == list(range(taken))
    for number in range(5, 12):
        await emitter.emit(number)
    assert drain(oldest) == list(range(7, 12))
    assert drain(newest) == list(range(taken, 5 + taken))
    assert oldest.dropped == newest.dropped == 7 - taken
    oldest.close()
    newest.close()


async def test_emitting_tasks_are_served_in_the_order_in_which_they_came() -> None:
    emitter = EventEmitter[int]()
    async with emitter.subscribe(buffer_size=1) as events, trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(emitter.emit, number)
            await trio.testing.wait_all_tasks_blocked()
        assert [await events.receive() for _ in range(10)] == list(range(10))


async def test_events_that_wait_for_room_when_the_subscription_is_closed_let_their_tasks_go() -> (
    None
):
    emitter = EventEmitter[int]()
    events = emitter.subscribe(buffer_size=1)
    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(emitter.emit, number)
        await trio.testing.wait_all_tasks_blocked()
        events.close()
    with pytest.raises(trio.ClosedResourceError):
        events.receive_nowait()


async def test_event_that_still_comes_after_closing_is_no_error() -> None:
    emitter = EventEmitter[int]()
    events = emitter.subscribe()

    first = emitter.subscribe()
    listeners = emitter._flat_listeners()
    await emitter.emit(1)
    events.close()
    await deliver(2, listeners)
    assert drain(first) == [1, 2]
    first.close()


@pytest.mark.parametrize("count", [1, 5])
async def test_events_that_were_not_taken_before_closing_are_gone(count: int) -> None:
    emitter = EventEmitter[int]()
    events = emitter.subscribe()
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def receive() -> None:
            for _ in range(2):
                with pytest.raises(trio.ClosedResourceError):
                    await events.receive()

        await trio.testing.wait_all_tasks_blocked()
        for number in range(count):
            await deliver(number, emitter._flat_listeners())  # without a checkpoint
        events.close()


async def test_as_many_events_wait_as_the_default_says() -> None:
    emitter = EventEmitter[int]()
    async with emitter.subscribe(overflow="drop_newest") as events:
        for number in range(1030):
            await emitter.emit(number)
        assert drain(events) == list(range(1024))
        assert events.dropped == 6


async def test_iterating_lets_go_an_emitting_task_for_each_event_that_is_taken() -> None:
    emitter = EventEmitter[int]()
    emitted = []

    async def emit(number: int) -> None:
        await emitter.emit(number)
        emitted.append(number)

    async with emitter.subscribe(buffer_size=3) as events, trio.open_nursery() as nursery:
        for number in range(6):
            nursery.start_soon(emit, number)
            await trio.testing.wait_all_tasks_blocked()
        for taken in range(3):
            assert emitted == list(range(3 + taken))
            assert await anext(events) == taken
            await trio.testing.wait_all_tasks_blocked()
        assert emitted == list(range(6))


async def test_events_that_were_in_the_subscribers_hands_are_gone_when_it_closes() -> None:
    emitter = EventEmitter[int]()
    events = emitter.subscribe()
    await emitter.emit(1)
    await emitter.emit(2)
    assert await events.receive() == 1
    events.close()
    with pytest.raises(trio.ClosedResourceError):
        events.receive_nowait()
    with pytest.raises(trio.ClosedResourceError):
        await anext(events)


async def test_event_that_still_comes_after_the_end_is_not_heard() -> None:
    left, right = connection_pair(LengthPrefixed())
    events = left.message_received.subscribe()
    async with right:
        async with left:
            await right.send(b"in time")
            assert await left.receive() == b"in time"
        # As by an emission that had begun before the connection ended.
        await deliver(MessageReceived(left, b"late"), deque([events]))
        assert [event.message async for event in events] == [b"in time"]


@pytest.mark.parametrize("overflow", ["drop_oldest", "drop_newest"])
async def test_dropped_events_are_counted_in_the_servers_statistics(overflow: Any) -> None:
    server = Server()
    event: Any = "event"
    assert server.statistics().events_dropped == 0
    async with server.client_connected.subscribe(buffer_size=1, overflow=overflow) as subscription:
        for _ in range(4):
            await server.client_connected.emit(event)
        assert subscription.dropped == 3
    assert server.statistics().events_dropped == 3


async def test_subscribing_to_what_has_ended_ends_at_once() -> None:
    connection, peer = connection_pair(LengthPrefixed())
    emitter = connection.message_received
    await connection.aclose()
    await peer.aclose()
    async with emitter.subscribe() as events:
        with pytest.raises(trio.EndOfChannel):
            await events.receive()


async def test_hooks_can_be_interrupted_though_a_system_task_tells_them() -> None:
    protected: list[bool] = []

    async def hook(_event: MessageWritten) -> None:
        protected.append(trio.lowlevel.currently_ki_protected())

    connection, peer = connection_pair(LengthPrefixed())
    connection.message_written.connect(hook)
    await connection.send(b"x")
    await connection.aclose()
    await peer.aclose()
    assert protected == [False]
