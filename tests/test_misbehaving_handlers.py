"""Users' code that fails, hangs, or does not listen: one connection pays, its neighbour does not.

Each test has a server with two connections, in memory and virtual time. The second is the one that
the code under test misbehaves for; the first goes on talking, before and after. Then the server is
stopped, and that takes no longer than it may.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Literal

import attrs
import pytest
import trio
import trio.testing
from pairs import Stream, frame, memory, read_to_end

from trio_bytetalk import (
    ClientConnected,
    ClientDisconnected,
    CloseReason,
    Codec,
    Connection,
    Event,
    EventEmitter,
    LengthPrefixed,
    NeedData,
    Reader,
    ReceiveBuffer,
    Server,
    Subscription,
    SubscriptionOverflowError,
    Writer,
    open_connection,
)
from trio_bytetalk._codec import AheadReader

AnyConnection = Connection[Any, Any]
AnyServer = Server[Any, Any]

STOP_TIMEOUT = 10
CLOSE_TIMEOUT = 3


class OopsError(Exception):
    """What the users' code of these tests raises."""


@pytest.fixture(autouse=True)
def _all_levels(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="trio_bytetalk")


async def echo(connection: AnyConnection) -> None:
    async for message in connection:
        await connection.send(message)


def make_server() -> AnyServer:
    server = Server(echo, close_timeout=CLOSE_TIMEOUT)
    met: list[AnyConnection] = []

    @server.on_connect
    async def mark(connection: AnyConnection) -> None:
        met.append(connection)
        connection.context = "bad" if len(met) == 2 else "good"

    return server


@attrs.define
class Scene:
    server: AnyServer
    good: AnyConnection
    """A client's connection: the neighbour."""
    bad: Stream
    """A client's stream to the connection that is misbehaved for."""
    good_served: AnyConnection
    bad_served: AnyConnection
    stopping_took: int | None = None
    """Seconds, once that is known."""

    async def talk(self) -> None:
        """The neighbour has its answers, and at once."""
        began = trio.current_time()
        for message in (b"", b"hello", b"x" * 100_000):
            await self.good.send(message)
            assert await self.good.receive() == message
        assert trio.current_time() == began


@contextlib.asynccontextmanager
async def neighbours(server: AnyServer, *, begun: bool = True) -> AsyncIterator[Scene]:
    """Two connections with ``server``, which is stopped at the end of the block.

    ``begun`` is whether hooks hear of the beginning of the second.
    """
    lives: dict[AnyConnection, list[type[Event]]] = {}

    async def note(event: ClientConnected | ClientDisconnected) -> None:
        lives.setdefault(event.connection, []).append(type(event))

    # In front of what fails, or hangs.
    for emitter in (server.client_connected, server.client_disconnected):
        emitter._listeners = (note, *emitter._listeners)
    good, good_theirs = memory()
    bad, bad_theirs = memory()
    async with bad, open_connection(good) as connection:
        async with trio.open_nursery() as serving:
            serving.start_soon(server.serve_stream, good_theirs)
            await connection.send(b"first")
            assert await connection.receive() == b"first"
            (good_served,) = server.connections
            async with server.client_disconnected.subscribe() as endings:
                serving.start_soon(server.serve_stream, bad_theirs)
                await trio.testing.wait_all_tasks_blocked()
                with contextlib.suppress(trio.WouldBlock):
                    bad_served = endings.receive_nowait().connection
                for each in server.connections - {good_served}:
                    bad_served = each
            scene = Scene(server, connection, bad, good_served, bad_served)
            await scene.talk()
            yield scene
            await scene.talk()
            stopped = trio.current_time()
            server.stop(STOP_TIMEOUT)
        # Rounded, for what has arrived in memory is waited for for a moment: 0.05 s.
        scene.stopping_took = round(trio.current_time() - stopped)
        with pytest.raises(trio.EndOfChannel):
            await connection.receive()
    assert good_served.close_reason is CloseReason.SERVER_STOPPED
    assert lives[good_served] == [ClientConnected, ClientDisconnected]
    assert lives[bad_served] == [*[ClientConnected] * begun, ClientDisconnected]


def logged(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name.startswith("trio_bytetalk")]


def only_failure(caplog: pytest.LogCaptureFixture) -> BaseException:
    """What the only record, an error of our side's, has the traceback of."""
    (record,) = logged(caplog)
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None
    error = record.exc_info[1]
    assert error is not None
    assert error.__traceback__ is not None
    return error


# -- where users' code runs

Misbehaviour = Callable[[], Awaitable[None]]
"""What is done where the bad connection, or its bad message, comes along."""

Installer = Callable[[AnyServer, Misbehaviour], None]


def handler(server: AnyServer, misbehave: Misbehaviour) -> None:
    async def handle(connection: AnyConnection) -> None:
        async for message in connection:
            if message == b"bad":
                await misbehave()
            await connection.send(message)

    server.handler = handle


def on_connect(server: AnyServer, misbehave: Misbehaviour) -> None:
    @server.on_connect
    async def hook(connection: AnyConnection) -> None:
        if connection.context == "bad":
            await misbehave()


def on_disconnect(server: AnyServer, misbehave: Misbehaviour) -> None:
    @server.on_disconnect
    async def hook(connection: AnyConnection) -> None:
        if connection.context == "bad":
            await misbehave()


def on_message(server: AnyServer, misbehave: Misbehaviour) -> None:
    @server.on_message
    async def hook(connection: AnyConnection, message: bytes) -> None:
        if message == b"bad":
            await misbehave()


def on_message_alone(server: AnyServer, misbehave: Misbehaviour) -> None:
    server.handler = None

    @server.on_message
    async def hook(connection: AnyConnection, message: bytes) -> None:
        if message == b"bad":
            await misbehave()
        await connection.send(message)


def connected_to(emitter: EventEmitter[Any], misbehave: Misbehaviour) -> None:
    async def hook(event: Any) -> None:
        if event.message == b"bad":
            await misbehave()

    emitter.connect(hook)


def message_written(server: AnyServer, misbehave: Misbehaviour) -> None:
    connected_to(server.message_written, misbehave)


def own_message_received(server: AnyServer, misbehave: Misbehaviour) -> None:
    @server.on_connect
    async def connect(connection: AnyConnection) -> None:
        connected_to(connection.message_received, misbehave)


def own_message_written(server: AnyServer, misbehave: Misbehaviour) -> None:
    @server.on_connect
    async def connect(connection: AnyConnection) -> None:
        connected_to(connection.message_written, misbehave)


HOOKS: list[Installer] = [
    handler,
    on_connect,
    on_message,
    on_message_alone,
    message_written,
    own_message_received,
    own_message_written,
]

# Those that hear of a message when it was handled and answered.
AFTERWARDS = (message_written, own_message_written)


# -- code that raises


async def fail() -> None:
    raise OopsError("in the user's code")


@pytest.mark.parametrize("install", HOOKS)
async def test_what_raises_ends_its_connection_and_is_logged_once(
    install: Installer, caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    server = make_server()
    install(server, fail)
    async with neighbours(server) as scene:
        with contextlib.suppress(trio.BrokenResourceError):  # it ended at its beginning
            await scene.bad.send_all(frame(b"bad"))
        assert await read_to_end(scene.bad) == (frame(b"bad") if install in AFTERWARDS else b"")
        await trio.testing.wait_all_tasks_blocked()
        assert scene.server.connections == {scene.good_served}
    assert isinstance(scene.bad_served.close_reason, OopsError)
    assert only_failure(caplog) is scene.bad_served.close_reason
    assert scene.stopping_took == 0


async def test_an_on_disconnect_hook_that_raises_changes_no_reason(
    autojump_clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = make_server()
    on_disconnect(server, fail)
    async with neighbours(server) as scene:
        await scene.bad.send_eof()
        assert await read_to_end(scene.bad) == b""
        await trio.testing.wait_all_tasks_blocked()
        assert scene.server.connections == {scene.good_served}
    assert scene.bad_served.close_reason is CloseReason.END_OF_STREAM
    assert isinstance(only_failure(caplog), OopsError)
    assert scene.stopping_took == 0


Place = Literal[
    "decode", "decode lazily", "decode_ahead", "decode_eof", "encode", "encode later", "junk"
]


@attrs.define(eq=False)
class FragileReader(AheadReader[bytes]):
    """Has a bug in one place."""

    place: Place
    inner: Any = attrs.field(factory=lambda: LengthPrefixed().reader())

    def decode(self, buffer: ReceiveBuffer) -> bytes | Literal[NeedData.NEED_DATA]:
        message: bytes | Literal[NeedData.NEED_DATA] = self.inner.decode(buffer)
        if self.place == "decode" and message == b"bad":
            raise OopsError
        return message

    def decode_ahead(self, buffer: ReceiveBuffer, most: int) -> list[bytes]:
        if self.place == "decode":
            return []  # as it may, and leaves the rest to decode()
        messages: list[bytes] = self.inner.decode_ahead(buffer, most)
        if self.place == "decode_ahead" and b"bad" in messages:
            raise OopsError
        return messages

    def decode_eof(self, buffer: ReceiveBuffer) -> bytes | Literal[NeedData.NEED_DATA]:
        if self.place == "decode_eof" and len(buffer):
            raise OopsError
        return super().decode_eof(buffer)


@attrs.define(eq=False)
class LazyFragileReader(Reader[bytes]):
    """Is asked for one message at a time, a burst's too."""

    inner: FragileReader = attrs.field(factory=lambda: FragileReader("decode"))

    def decode(self, buffer: ReceiveBuffer) -> bytes | Literal[NeedData.NEED_DATA]:
        return self.inner.decode(buffer)


@attrs.define(eq=False)
class FragileWriter(Writer[bytes]):
    place: Place
    inner: Any = attrs.field(factory=lambda: LengthPrefixed().writer())

    def encode(self, message: bytes) -> Any:
        if message == b"bad" and self.place in ("encode", "encode later"):
            raise OopsError
        return [None] if message == b"bad" and self.place == "junk" else self.inner.encode(message)


class FragileCountingWriter(FragileWriter):
    stateful = True


@attrs.frozen
class Fragile(Codec[bytes, bytes]):
    place: Place

    def reader(self) -> Reader[bytes]:
        return LazyFragileReader() if self.place == "decode lazily" else FragileReader(self.place)

    def writer(self) -> Writer[bytes]:
        later = self.place == "encode later"
        return FragileCountingWriter(self.place) if later else FragileWriter(self.place)


@pytest.mark.parametrize(
    ("place", "error", "answered"),
    [
        ("decode", OopsError, [b"fine"]),
        ("decode lazily", OopsError, [b"fine"]),
        ("decode_ahead", OopsError, []),
        ("decode_eof", OopsError, [b"fine", b"bad"]),
        ("encode", OopsError, [b"fine"]),
        ("encode later", OopsError, [b"fine"]),
        ("junk", TypeError, [b"fine"]),
    ],
)
@pytest.mark.parametrize("handled", [True, False])
async def test_a_bug_in_a_reader_or_writer_ends_its_connection_and_is_logged_once(
    caplog: pytest.LogCaptureFixture,
    autojump_clock: trio.testing.MockClock,
    place: Place,
    error: type[Exception],
    answered: list[bytes],
    handled: bool,
) -> None:
    async def answer(connection: AnyConnection, message: bytes) -> None:
        await connection.send(message)

    server = make_server()
    server.codec = Fragile(place)
    if not handled:
        server.handler = None
        server.on_message(answer)
    async with neighbours(server) as scene:
        await scene.bad.send_all(frame(b"fine") + frame(b"bad") + frame(b"more")[:-1])
        await scene.bad.send_eof()
        assert await read_to_end(scene.bad) == b"".join(map(frame, answered))
        await trio.testing.wait_all_tasks_blocked()
        assert scene.server.connections == {scene.good_served}
    assert isinstance(scene.bad_served.close_reason, error)
    assert only_failure(caplog) is scene.bad_served.close_reason
    assert scene.stopping_took == 0


# -- code that never returns


@pytest.mark.parametrize("install", HOOKS)
async def test_what_never_returns_holds_up_its_connection_alone_and_is_cancelled_by_the_stop(
    install: Installer, caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    server = make_server()
    install(server, trio.sleep_forever)
    async with neighbours(server) as scene:
        await scene.bad.send_all(frame(b"bad") + frame(b"more"))
        for _ in range(3):
            await trio.sleep(1000)
            await scene.talk()
        assert scene.server.connections == {scene.good_served, scene.bad_served}
    assert scene.bad_served.close_reason is CloseReason.SERVER_STOPPED
    assert logged(caplog) == []
    if install in AFTERWARDS:
        # The handler has gone on, and only closing waits for the hook.
        assert scene.stopping_took == CLOSE_TIMEOUT
    else:
        assert scene.stopping_took == STOP_TIMEOUT


async def test_an_on_disconnect_hook_that_never_returns_is_cancelled_by_the_stop(
    autojump_clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = make_server()
    on_disconnect(server, trio.sleep_forever)
    async with neighbours(server) as scene:
        await scene.bad.send_eof()
        assert await read_to_end(scene.bad) == b""  # it is closed before
        await trio.sleep(1000)
        await trio.testing.wait_all_tasks_blocked()
        assert scene.server.connections == {scene.good_served}
    assert scene.bad_served.close_reason is CloseReason.END_OF_STREAM
    assert logged(caplog) == []
    assert scene.stopping_took == STOP_TIMEOUT


# -- subscribers


@pytest.mark.parametrize("overflow", ["wait", "drop_oldest", "drop_newest", "close"])
async def test_a_subscribers_task_that_raises_is_no_affair_of_the_servers(
    overflow: Any, caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    server = make_server()
    async with neighbours(server) as scene:

        async def subscriber(task_status: trio.TaskStatus[None]) -> None:
            async with server.events(buffer_size=1, overflow=overflow) as events:
                task_status.started()
                await events.receive()
                await trio.sleep(1)  # while the second and the third event come
                raise OopsError

        with pytest.RaisesGroup(OopsError):
            async with trio.open_nursery() as nursery:
                await nursery.start(subscriber)
                await scene.bad.send_all(b"".join(map(frame, [b"1", b"2", b"3"])))
        await scene.bad.send_all(frame(b"4"))
        await scene.bad.send_eof()
        assert await read_to_end(scene.bad) == b"".join(map(frame, [b"1", b"2", b"3", b"4"]))
    assert scene.bad_served.close_reason is CloseReason.END_OF_STREAM
    assert logged(caplog) == []
    assert scene.stopping_took == 0


NAMES = ["message_received", "message_written"]


def never_read(emitter: EventEmitter[Any], overflow: Any) -> Subscription[Any]:
    return emitter.subscribe(buffer_size=2, overflow=overflow)


@pytest.mark.parametrize("whose", ["server", "connection"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("overflow", ["drop_oldest", "drop_newest", "close"])
async def test_a_subscriber_that_never_reads_holds_up_no_one_if_that_is_its_policy(
    whose: str,
    name: str,
    overflow: Any,
    caplog: pytest.LogCaptureFixture,
    autojump_clock: trio.testing.MockClock,
) -> None:
    server = make_server()
    messages = [b"%d" % number for number in range(10)]
    async with neighbours(server) as scene:
        owner = server if whose == "server" else scene.bad_served
        events = never_read(getattr(owner, name), overflow)
        for message in messages:
            await scene.bad.send_all(frame(message))
            assert await scene.bad.receive_some() == frame(message)
        await scene.bad.send_eof()
        assert await read_to_end(scene.bad) == b""
    kept = messages[-2:] if overflow == "drop_oldest" else messages[:2]
    if whose == "server" and overflow == "drop_oldest":
        kept = [b"hello", b"x" * 100_000]  # of the neighbour's, who came after
    assert [events.receive_nowait().message for _ in range(2)] == kept
    with pytest.raises(
        SubscriptionOverflowError if overflow == "close" else trio.EndOfChannel  # and no more
    ):
        events.receive_nowait()
    neighbours_events = 3 if whose == "server" else 0
    assert events.dropped == (0 if overflow == "close" else 8 + neighbours_events)
    assert scene.bad_served.close_reason is CloseReason.END_OF_STREAM
    assert logged(caplog) == []
    assert scene.stopping_took == 0


async def test_a_connection_waits_for_its_own_subscriber_and_its_neighbour_does_not(
    autojump_clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = make_server()
    async with neighbours(server) as scene:
        events = never_read(scene.bad_served.message_received, "wait")
        await scene.bad.send_all(b"".join(map(frame, [b"1", b"2", b"3", b"4"])))
        await trio.sleep(1000)
        # The third waits to be told of before it is handled.
        assert await scene.bad.receive_some() == frame(b"1") + frame(b"2")
    assert [events.receive_nowait().message for _ in range(2)] == [b"1", b"2"]
    assert scene.bad_served.close_reason is CloseReason.SERVER_STOPPED
    assert logged(caplog) == []
    assert scene.stopping_took == STOP_TIMEOUT


async def test_every_connection_waits_for_a_servers_subscriber_until_it_reads_or_leaves(
    autojump_clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = make_server()
    async with neighbours(server) as scene:
        events = never_read(server.message_received, "wait")
        await scene.bad.send_all(frame(b"1") + frame(b"2") + frame(b"3"))
        await trio.sleep(1000)
        assert await scene.bad.receive_some() == frame(b"1") + frame(b"2")
        await scene.good.send(b"hello")
        with trio.move_on_after(1000) as scope:
            await scene.good.receive()
        assert scope.cancelled_caught  # which is the policy: "wait"
        assert (await events.receive()).message == b"1"
        assert await scene.bad.receive_some() == frame(b"3")
        await events.aclose()
        assert await scene.good.receive() == b"hello"
    assert logged(caplog) == []
    assert scene.stopping_took == 0


async def test_written_messages_of_which_a_subscriber_does_not_hear_are_waited_for_when_closing(
    autojump_clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = make_server()
    async with neighbours(server) as scene:
        events = never_read(scene.bad_served.message_written, "wait")
        messages = [b"%d" % number for number in range(10)]
        await scene.bad.send_all(b"".join(map(frame, messages)))
        await trio.sleep(1000)
        assert await scene.bad.receive_some() == b"".join(map(frame, messages))
    assert [events.receive_nowait().message for _ in range(2)] == messages[:2]
    assert scene.bad_served.close_reason is CloseReason.SERVER_STOPPED
    assert logged(caplog) == []
    assert scene.stopping_took == CLOSE_TIMEOUT


async def test_a_client_waits_for_a_subscriber_to_connections_that_never_reads(
    autojump_clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = make_server()
    events = server.client_connected.subscribe(buffer_size=1)
    async with neighbours(server, begun=False) as scene:
        await scene.bad.send_all(frame(b"not heard"))
        await trio.sleep(1000)
    assert scene.bad_served.statistics().messages_received == 0
    assert scene.bad_served.close_reason is CloseReason.SERVER_STOPPED
    assert events.receive_nowait().connection is scene.good_served
    (record,) = logged(caplog)
    assert record.levelno == logging.ERROR
    assert "1 listeners did not take ClientConnected" in record.getMessage()
    assert scene.stopping_took == STOP_TIMEOUT + CLOSE_TIMEOUT  # as for telling when cancelled
