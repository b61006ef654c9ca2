"""`Server`: one life for each connection, however it ends; limits, stopping, broadcasting."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import logging
import math
import os
import re
import socket
import ssl
import subprocess
import sys
import termios
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, assert_type

import attrs
import pytest
import trio
import trio.testing
import trustme
from conftest import Tls, fields_of
from pairs import frame, memory, read_exactly, read_to_end, reset, tcp, tight_unix

from trio_bytetalk import (
    NEED_DATA,
    BroadcastResult,
    ClientConnected,
    ClientDisconnected,
    CloseReason,
    Codec,
    Connection,
    EncodeError,
    Ending,
    Event,
    IdleTimeoutError,
    IncompleteMessageError,
    InvalidMessageError,
    LengthPrefixed,
    Lines,
    MessageReceived,
    MessageTimeoutError,
    MessageTooLargeError,
    MessageWritten,
    ProtocolError,
    QueueFullError,
    Reader,
    ReceiveBuffer,
    SendTimeoutError,
    Server,
    Subscription,
    Writer,
    open_connection,
    open_tcp_connection,
    open_unix_connection,
)
from trio_bytetalk._log import address_in_words
from trio_bytetalk.testing import Cut, FaultyStream, open_memory_connection

LOCALHOST = "127.0.0.1"

BytesConnection = Connection[bytes, bytes]
BytesServer = Server[bytes, bytes]


class OopsError(Exception):
    """What the users' code of these tests raises."""


async def echo(connection: BytesConnection) -> None:
    async for message in connection:
        await connection.send(message)


async def sleep_until_closed(connection: BytesConnection) -> None:
    async for _ in connection:
        pass


async def sleep_forever(_connection: BytesConnection) -> None:
    await trio.sleep_forever()


async def talk(connection: BytesConnection, message: bytes = b"hello") -> None:
    await connection.send(message)
    assert await connection.receive() == message


async def listen(nursery: trio.Nursery, server: Server[Any, Any], **options: Any) -> int:
    """Have ``server`` serve TCP in the background; its port."""
    serve = functools.partial(server.serve_tcp, 0, host=LOCALHOST, **options)
    listeners: list[trio.SocketListener] = await nursery.start(serve)
    port: int = listeners[0].socket.getsockname()[1]
    return port


StreamPair = Callable[[], tuple[trio.StapledStream[Any, Any], trio.StapledStream[Any, Any]]]


class MemoryListener(trio.abc.Listener[trio.abc.Stream]):
    """A listener in memory, for virtual time. Its backlog holds streams, and errors to raise."""

    def __init__(self) -> None:
        self._backlog, self._accepting = trio.open_memory_channel[trio.abc.Stream | OSError](
            math.inf
        )
        self.accepted = 0
        self.closed = False

    def dial(
        self, pair: StreamPair = trio.testing.memory_stream_pair
    ) -> trio.StapledStream[Any, Any]:
        """The client's end of a new stream."""
        ours, theirs = pair()
        self._backlog.send_nowait(theirs)
        return ours

    def fail(self, number: int) -> None:
        self._backlog.send_nowait(OSError(number, os.strerror(number)))

    async def accept(self) -> trio.abc.Stream:
        arrival = await self._accepting.receive()
        if isinstance(arrival, OSError):
            raise arrival
        self.accepted += 1
        return arrival

    async def aclose(self) -> None:
        self.closed = True
        self._accepting.close()
        self._backlog.close()
        await trio.lowlevel.checkpoint()


@pytest.fixture(autouse=True)
def _all_levels(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="trio_bytetalk")


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def server_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    return context


@pytest.fixture
def client_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def open_tls_connection(
    port: int, context: ssl.SSLContext, server_hostname: str = "localhost"
) -> contextlib.AbstractAsyncContextManager[BytesConnection]:
    return open_tcp_connection(
        LOCALHOST, port, ssl_context=context, server_hostname=server_hostname
    )


def logged(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name.startswith("trio_bytetalk")]


def only_record(caplog: pytest.LogCaptureFixture) -> logging.LogRecord:
    (record,) = logged(caplog)
    return record


def check_whole_lives(heard: Sequence[Event]) -> None:
    """Every connection came once, at first, and went once, at last."""
    for connection in {event.connection for event in heard}:
        life = [type(event) for event in heard if event.connection is connection]
        assert life[0] is ClientConnected
        assert life[-1] is ClientDisconnected
        assert life.count(ClientConnected) == life.count(ClientDisconnected) == 1


def connections_in(heard: Sequence[Event]) -> list[Connection[Any, Any]]:
    """In the order of coming."""
    return [event.connection for event in heard if isinstance(event, ClientConnected)]


def waiting_in(events: Subscription[Event]) -> list[Event]:
    """What a subscriber has not read yet."""
    heard: list[Event] = []
    with contextlib.suppress(trio.WouldBlock, trio.EndOfChannel):
        while True:
            heard.append(events.receive_nowait())
    return heard


# -- every connection has one life, and one reason for its end


@attrs.define
class Watched:
    """What `bystander` has seen."""

    port: int
    victim: Connection[Any, Any] = attrs.field(init=False)
    heard: list[Event] = attrs.field(factory=list)


@contextlib.asynccontextmanager
async def bystander(nursery: trio.Nursery, server: BytesServer) -> AsyncIterator[Watched]:
    """A server with a connection that lives on, while the block has another one come and go."""
    async with server.events() as events:
        watched = Watched(await listen(nursery, server))
        async with open_tcp_connection(LOCALHOST, watched.port) as other:
            await talk(other)
            yield watched
            async for event in events:
                watched.heard.append(event)
                if isinstance(event, ClientDisconnected):
                    break
            await talk(other)
        server.stop()
        watched.heard += [event async for event in events]
    check_whole_lives(watched.heard)
    survivor, watched.victim = connections_in(watched.heard)
    assert survivor.close_reason is CloseReason.END_OF_STREAM


async def test_the_peer_finishes(nursery: trio.Nursery, caplog: pytest.LogCaptureFixture) -> None:
    async with (
        bystander(nursery, Server(echo)) as watched,
        open_tcp_connection(LOCALHOST, watched.port) as connection,
    ):
        await talk(connection)
    assert watched.victim.close_reason is CloseReason.END_OF_STREAM
    assert logged(caplog) == []


async def test_the_peer_resets_the_connection(
    nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    async with bystander(nursery, Server(echo)) as watched:
        stream = await trio.open_tcp_stream(LOCALHOST, watched.port)
        await stream.send_all(frame(b"hello"))
        await stream.receive_some()
        reset(stream)
    reason = watched.victim.close_reason
    assert type(reason) is trio.BrokenResourceError
    assert isinstance(reason.__cause__, ConnectionResetError)
    record = only_record(caplog)
    assert record.levelno == logging.INFO
    assert record.exc_info is None
    assert "reset" in record.getMessage()
    assert fields_of(record) == {
        "event": "connection_ended",
        "connection": watched.victim.number,
        "remote": "{}:{}".format(*watched.victim.remote_address),
        "ending": "broken",
        "error": "BrokenResourceError",
        "reason": str(reason),
    }


async def test_the_handler_fails(nursery: trio.Nursery, caplog: pytest.LogCaptureFixture) -> None:
    error = OopsError("in the handler")

    async def handler(connection: BytesConnection) -> None:
        async for message in connection:
            if message == b"fail":
                raise error
            await connection.send(message)

    async with (
        bystander(nursery, Server(handler)) as watched,
        open_tcp_connection(LOCALHOST, watched.port) as connection,
    ):
        await talk(connection)
        await connection.send(b"fail")
        with pytest.raises(trio.EndOfChannel):
            await connection.receive()
    assert watched.victim.close_reason is error
    record = only_record(caplog)
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None
    assert record.exc_info[1] is error
    assert record.getMessage().startswith(f"the handler or a hook of {watched.victim!r}"[:-40])
    assert fields_of(record) == {
        "event": "handler_failed",
        "connection": watched.victim.number,
        "remote": "{}:{}".format(*watched.victim.remote_address),
        "ending": "failed",
        "error": "OopsError",
        "reason": "in the handler",
    }


async def test_an_on_connect_hook_fails(
    nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    server = Server(echo)
    error = OopsError("in the connect hook")
    met: list[BytesConnection] = []

    @server.on_connect
    async def greet(connection: BytesConnection) -> None:
        met.append(connection)
        if len(met) == 2:
            raise error

    async with (
        bystander(nursery, server) as watched,
        open_tcp_connection(LOCALHOST, watched.port) as connection,
    ):
        with pytest.raises(trio.EndOfChannel):
            await connection.receive()
    assert watched.victim.close_reason is error
    record = only_record(caplog)
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None


async def test_hooks_behind_an_on_connect_hook_that_fails_are_not_called(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = Server(echo)
    called: list[str] = []

    @server.on_connect
    async def refuse(connection: BytesConnection) -> None:
        raise OopsError

    @server.on_connect
    async def greet(connection: BytesConnection) -> None:
        called.append("connect")

    @server.on_disconnect
    async def part(connection: BytesConnection) -> None:
        called.append("disconnect")

    await served_end(server)
    assert called == ["disconnect"]
    assert only_record(caplog).levelno == logging.ERROR


@pytest.mark.parametrize("handler", [None, echo])
async def test_an_on_message_hook_fails(
    nursery: trio.Nursery,
    caplog: pytest.LogCaptureFixture,
    handler: Callable[[BytesConnection], Awaitable[None]] | None,
) -> None:
    server = Server(handler)
    error = OopsError("in the message hook")

    @server.on_message
    async def look(connection: BytesConnection, message: bytes) -> None:
        if message == b"fail":
            raise error
        if server.handler is None:
            await connection.send(message)

    async with (
        bystander(nursery, server) as watched,
        open_tcp_connection(LOCALHOST, watched.port) as connection,
    ):
        await talk(connection)
        await connection.send(b"fail")
        with pytest.raises(trio.EndOfChannel):
            await connection.receive()
    assert watched.victim.close_reason is error
    record = only_record(caplog)
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None


async def test_an_on_disconnect_hook_fails(
    nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    server = Server(echo)
    error = OopsError("in the disconnect hook")
    told: list[str] = []

    @server.on_disconnect
    async def fail(connection: BytesConnection) -> None:
        told.append("first")
        if len(told) == 1:
            raise error

    @server.on_disconnect
    async def go_on(connection: BytesConnection) -> None:
        told.append("second")

    async with (
        bystander(nursery, server) as watched,
        open_tcp_connection(LOCALHOST, watched.port) as connection,
    ):
        await talk(connection)
    assert watched.victim.close_reason is CloseReason.END_OF_STREAM
    assert told == ["first", "second"] * 2
    record = only_record(caplog)
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None
    assert record.exc_info[1] is error
    assert "a hook failed at ClientDisconnected" in record.getMessage()
    assert fields_of(record) == {
        "event": "hook_failed",
        "connection": watched.victim.number,
        "remote": "{}:{}".format(*watched.victim.remote_address),
        "error": "OopsError",
        "reason": str(error),
    }


async def test_the_peer_breaks_the_protocol(
    nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        bystander(nursery, Server(echo)) as watched,
        await trio.open_tcp_stream(LOCALHOST, watched.port) as stream,
    ):
        await stream.send_all(b"GET / HTTP/1.1\r\n\r\n")
        assert await stream.receive_some() == b""
    assert type(watched.victim.close_reason) is MessageTooLargeError
    record = only_record(caplog)
    assert record.levelno == logging.WARNING
    assert record.exc_info is None
    assert "max_size" in record.getMessage()
    assert fields_of(record) == {
        "event": "connection_ended",
        "connection": watched.victim.number,
        "remote": "{}:{}".format(*watched.victim.remote_address),
        "ending": "protocol_error",
        "error": "MessageTooLargeError",
        "reason": str(watched.victim.close_reason),
    }


async def test_the_peer_finishes_inside_a_message(
    nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        bystander(nursery, Server(echo)) as watched,
        await trio.open_tcp_stream(LOCALHOST, watched.port) as stream,
    ):
        await stream.send_all(frame(b"hello")[:-1])
    assert type(watched.victim.close_reason) is IncompleteMessageError
    record = only_record(caplog)
    assert record.levelno == logging.WARNING
    assert record.exc_info is None


async def test_a_message_once_begun_does_not_arrive(
    nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        bystander(nursery, Server(echo, message_timeout=0.02)) as watched,
        await trio.open_tcp_stream(LOCALHOST, watched.port) as stream,
    ):
        await stream.send_all(frame(b"hello")[:-1])
        assert await stream.receive_some() == b""
    assert type(watched.victim.close_reason) is MessageTimeoutError
    record = only_record(caplog)
    assert record.levelno == logging.WARNING
    assert record.exc_info is None
    assert "message_timeout" in record.getMessage()


async def test_another_task_closes_the_connection(
    nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    server = Server(echo)
    async with (
        bystander(nursery, server) as watched,
        open_tcp_connection(LOCALHOST, watched.port) as connection,
    ):
        await talk(connection)
        (victim,) = (
            each for each in server.connections if each.remote_address == connection.local_address
        )
        await victim.aclose()
        with pytest.raises(trio.EndOfChannel):
            await connection.receive()
    assert watched.victim is victim
    assert victim.close_reason is CloseReason.CLOSED
    assert logged(caplog) == []


async def test_the_handler_closes_or_returns(
    nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    async def once(connection: BytesConnection) -> None:
        message = await connection.receive()
        await connection.send(message)
        if message == b"close":
            await connection.aclose()

    server = Server(once)
    port = await listen(nursery, server)
    async with server.events() as events:
        for message in (b"close", b"return"):
            async with open_tcp_connection(LOCALHOST, port) as connection:
                await talk(connection, message)
                with pytest.raises(trio.EndOfChannel):
                    await connection.receive()
        server.stop()
        heard = [event async for event in events]
    check_whole_lives(heard)
    assert [each.close_reason for each in connections_in(heard)] == [CloseReason.CLOSED] * 2
    assert logged(caplog) == []


async def test_the_serve_call_is_cancelled(caplog: pytest.LogCaptureFixture) -> None:
    server = Server(echo)
    async with server.events() as events:
        async with trio.open_nursery() as nursery:
            port = await listen(nursery, server)
            async with (
                open_tcp_connection(LOCALHOST, port) as one,
                open_tcp_connection(LOCALHOST, port) as two,
            ):
                await talk(one)
                await talk(two)
                nursery.cancel_scope.cancel()
                with trio.CancelScope(shield=True):
                    for connection in (one, two):
                        with pytest.raises(trio.EndOfChannel):
                            await connection.receive()
        heard = waiting_in(events)
    check_whole_lives(heard)
    assert [each.close_reason for each in connections_in(heard)] == [CloseReason.CANCELLED] * 2
    assert not server.is_running
    assert logged(caplog) == []


@pytest.mark.parametrize(("stopped", "reason"), [(False, "CANCELLED"), (True, "SERVER_STOPPED")])
async def test_a_handler_with_its_own_nursery_is_cancelled(
    autojump_clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
    stopped: bool,
    reason: str,
) -> None:
    async def handler(_connection: BytesConnection) -> None:
        # What a cancellation looks like that comes out of a nursery: a group.
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            nursery.start_soon(trio.sleep_forever)

    server = Server(handler)
    client_end, server_end = trio.testing.memory_stream_pair()
    async with server.events() as events:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.serve_stream, server_end)
            await trio.testing.wait_all_tasks_blocked()
            if stopped:
                server.stop(timeout=1)
            else:
                nursery.cancel_scope.cancel()
        (connection,) = connections_in(waiting_in(events))
    assert connection.close_reason is CloseReason[reason]
    assert await client_end.receive_some() == b""
    assert logged(caplog) == []


async def test_the_server_stops_in_order(
    nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    server = Server(echo)
    port = await listen(nursery, server)
    async with server.events() as events, open_tcp_connection(LOCALHOST, port) as connection:
        await talk(connection)
        server.stop()
        with pytest.raises(trio.EndOfChannel):
            await connection.receive()
        heard = [event async for event in events]
    check_whole_lives(heard)
    assert [each.close_reason for each in connections_in(heard)] == [CloseReason.SERVER_STOPPED]
    assert logged(caplog) == []


async def test_a_handler_that_does_not_end_is_cancelled_after_the_stop_timeout(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    server = Server(sleep_forever)
    listener = MemoryListener()
    async with server.events() as events, trio.open_nursery() as nursery:
        await nursery.start(server.serve_listeners, [listener])
        async with open_connection(listener.dial()) as connection:
            await trio.testing.wait_all_tasks_blocked()
            server.stop(timeout=7)
            with pytest.raises(trio.EndOfChannel):
                await connection.receive()
            assert trio.current_time() == 7
        heard = [event async for event in events]
    check_whole_lives(heard)
    assert [each.close_reason for each in connections_in(heard)] == [CloseReason.SERVER_STOPPED]
    assert logged(caplog) == []


@pytest.mark.parametrize(
    ("limits", "error"),
    [({"idle_timeout": 3}, IdleTimeoutError), ({"send_timeout": 3}, SendTimeoutError)],
)
async def test_a_silent_or_slow_peer_is_given_up(
    autojump_clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
    limits: dict[str, Any],
    error: type[Exception],
) -> None:
    async def greet(connection: BytesConnection) -> None:
        if "send_timeout" in limits:
            await connection.send(b"hello")
        async for _ in connection:
            pass

    server = Server(greet, **limits)
    listener = MemoryListener()
    async with server.events() as events, trio.open_nursery() as nursery:
        await nursery.start(server.serve_listeners, [listener])
        # In lockstep, a byte is taken when it is received, and not before.
        async with listener.dial(trio.testing.lockstep_stream_pair):
            async for event in events:
                if isinstance(event, ClientDisconnected):
                    break
            server.stop()
    assert trio.current_time() == 3
    assert type(event.connection.close_reason) is error
    record = only_record(caplog)
    assert record.levelno == logging.WARNING
    assert record.exc_info is None


# -- what comes out of a handler


def is_group_of(reason: Any, *kinds: type[Exception]) -> bool:
    return isinstance(reason, ExceptionGroup) and [*map(type, reason.exceptions)] == [*kinds]


async def served_end(server: BytesServer) -> Connection[Any, Any]:
    """Serve one connection, in memory, whose peer sends b"hello" and finishes; its end."""
    client_end, server_end = trio.testing.memory_stream_pair()
    async with server.events() as events, open_connection(client_end) as client:
        await client.send(b"hello")
        await client.send_eof()
        await server.serve_stream(server_end)
        heard = waiting_in(events)
    check_whole_lives(heard)
    (connection,) = connections_in(heard)
    return connection


async def test_a_handlers_own_nursery_fails(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        raise OopsError

    async def handler(connection: BytesConnection) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)
            await trio.sleep_forever()

    connection = await served_end(Server(handler))
    assert is_group_of(connection.close_reason, OopsError)
    record = only_record(caplog)
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None


async def test_a_peers_fault_comes_out_of_a_handlers_own_nursery(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def handler(connection: BytesConnection) -> None:
        connection.use(LengthPrefixed(max_size=1))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.receive)

    connection = await served_end(Server(handler))
    assert type(connection.close_reason) is MessageTooLargeError
    record = only_record(caplog)
    assert record.levelno == logging.WARNING
    assert record.exc_info is None


async def test_a_peers_fault_while_the_handlers_other_tasks_are_closed_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def handler(connection: BytesConnection) -> None:
        connection.use(LengthPrefixed(max_size=1))

        async def receive() -> None:
            async with connection:
                await connection.receive()

        async def follow() -> None:
            with trio.CancelScope(shield=True):
                while connection.close_reason is None:
                    await trio.lowlevel.checkpoint()
                await connection.flush()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            nursery.start_soon(follow)

    connection = await served_end(Server(handler))
    assert type(connection.close_reason) is MessageTooLargeError
    assert only_record(caplog).levelno == logging.WARNING


async def test_a_fault_of_the_peer_and_one_of_the_handler(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(connection: BytesConnection) -> None:
        connection.use(LengthPrefixed(max_size=1))
        try:
            await connection.receive()
        except MessageTooLargeError as error:
            raise ExceptionGroup("both", [error, OopsError()]) from None

    connection = await served_end(Server(handler))
    assert is_group_of(connection.close_reason, MessageTooLargeError, OopsError)
    assert only_record(caplog).levelno == logging.ERROR


async def test_an_error_and_a_cancellation_come_out_of_a_handler_together(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail_at_the_end() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise OopsError

    async def handler(_connection: BytesConnection) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail_at_the_end)
            nursery.start_soon(trio.sleep_forever)

    server = Server(handler)
    listener = MemoryListener()
    async with server.events() as events:
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve_listeners, [listener])
            async with listener.dial():
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
        heard = waiting_in(events)
    check_whole_lives(heard)
    (connection,) = connections_in(heard)
    assert is_group_of(connection.close_reason, OopsError)
    assert only_record(caplog).levelno == logging.ERROR


async def test_a_keyboard_interrupt_ends_the_server_and_tells_of_it() -> None:
    async def handler(connection: BytesConnection) -> None:
        async for _ in connection:
            raise KeyboardInterrupt

    server = Server(handler)
    async with server.events() as events:
        with pytest.RaisesGroup(KeyboardInterrupt, flatten_subgroups=True):
            async with trio.open_nursery() as nursery:
                port = await listen(nursery, server)
                async with (
                    open_tcp_connection(LOCALHOST, port),
                    open_tcp_connection(LOCALHOST, port) as connection,
                ):
                    await connection.send(b"fatal")
                    await trio.sleep_forever()
        heard = waiting_in(events)
    check_whole_lives(heard)
    reasons = [each.close_reason for each in connections_in(heard)]
    assert [type(reason) for reason in reasons] == [CloseReason, KeyboardInterrupt]
    assert reasons[0] is CloseReason.CANCELLED


async def test_a_keyboard_interrupt_in_a_group_is_the_reason_as_it_is() -> None:
    async def handler(_connection: BytesConnection) -> None:
        raise BaseExceptionGroup("from a nursery", [KeyboardInterrupt()])

    server = Server(handler)
    async with server.events() as events:
        with pytest.RaisesGroup(KeyboardInterrupt):
            await served_end(server)
        (connection,) = connections_in(waiting_in(events))
    assert isinstance(connection.close_reason, BaseExceptionGroup)


async def test_the_handlers_upstream_breaks(caplog: pytest.LogCaptureFixture) -> None:
    # A proxy's other connection: this one's peer has no part in it.
    async def proxy(connection: BytesConnection) -> None:
        upstream, gone = trio.testing.memory_stream_pair()
        await gone.aclose()
        async with open_connection(upstream) as other:
            await other.send(await connection.receive())
            await other.flush()

    connection = await served_end(Server(proxy))
    assert type(connection.close_reason) is trio.BrokenResourceError
    record = only_record(caplog)
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None


async def test_the_peer_breaks_a_rule_that_the_handler_checks(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # Which message may come when is above the framing, and a peer's fault all the same.
    error = ProtocolError("the peer sent b'hello', and expected was its name")

    async def handler(connection: BytesConnection) -> None:
        await connection.receive()
        raise error

    connection = await served_end(Server(handler))
    assert connection.close_reason is error
    record = only_record(caplog)
    assert record.levelno == logging.WARNING
    assert record.exc_info is None
    assert "expected was its name" in record.getMessage()


async def test_an_earlier_fault_of_the_peers_is_still_its_own_when_the_handler_raises_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    faults: list[InvalidMessageError] = []

    async def handler(connection: Connection[bytes, int]) -> None:
        while len(faults) < 2:
            try:
                await connection.receive()
            except InvalidMessageError as error:
                faults.append(error)
        raise faults[0]

    client_end, server_end = trio.testing.memory_stream_pair()
    await client_end.send_all(frame(b"one") + frame(b"2") + frame(b"three"))
    with_codec = Server(handler, codec=LengthPrefixed().map(decode=int))
    async with with_codec.events() as events:
        await with_codec.serve_stream(server_end)
        [connection] = connections_in(waiting_in(events))
    assert connection.close_reason is faults[0]
    record = only_record(caplog)
    assert record.levelno == logging.WARNING
    assert record.exc_info is None


async def test_the_handlers_upstream_breaks_the_protocol(caplog: pytest.LogCaptureFixture) -> None:
    async def proxy(connection: BytesConnection) -> None:
        upstream, server = trio.testing.memory_stream_pair()
        await server.send_all(b"HTTP/1.1 400")
        async with open_connection(upstream) as other:
            await other.receive()

    connection = await served_end(Server(proxy))
    assert type(connection.close_reason) is MessageTooLargeError
    record = only_record(caplog)
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None


class Gullible(Reader[bytes]):
    """A reader that has what it was sent in its errors, as it is."""

    def decode(self, buffer: ReceiveBuffer) -> Any:
        data = buffer.take(len(buffer)) if len(buffer) else None
        if data is None:
            return NEED_DATA
        raise ProtocolError(data.decode("latin-1") * 1000 if data != b"nothing" else "")


@pytest.mark.parametrize("hook_fails", [False, True])
async def test_a_peer_cannot_write_log_lines_of_its_own(
    caplog: pytest.LogCaptureFixture, hook_fails: bool
) -> None:
    async def handler(connection: BytesConnection) -> None:
        connection.reader = Gullible()
        async for _ in connection:
            raise AssertionError

    server = Server(handler)
    if hook_fails:

        @server.on_disconnect
        async def part(connection: BytesConnection) -> None:
            raise OopsError

    client_end, server_end = trio.testing.memory_stream_pair()
    await client_end.send_all(b"x\r\nINFO:root:all is well\x1b[2K\x85")
    await client_end.send_eof()
    await server.serve_stream(server_end)
    messages = [record.getMessage() for record in logged(caplog)]
    assert len(messages) == 1 + hook_fails
    for message in messages:
        assert message.isprintable()
        assert r"x\r\nINFO:root:all is well\x1b[2K\x85" in message
        assert len(message) < 2000


async def test_an_error_without_words_is_named_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(connection: BytesConnection) -> None:
        connection.reader = Gullible()
        async for _ in connection:
            raise AssertionError

    client_end, server_end = trio.testing.memory_stream_pair()
    await client_end.send_all(b"nothing")
    await client_end.send_eof()
    await Server(handler).serve_stream(server_end)
    assert only_record(caplog).getMessage().endswith("ends: ProtocolError('')")


async def test_the_handler_uses_a_closed_connection_of_its_own_making(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def handler(connection: BytesConnection) -> None:
        await connection.send_eof()
        await connection.send(b"too late")

    connection = await served_end(Server(handler))
    assert type(connection.close_reason) is trio.ClosedResourceError
    assert only_record(caplog).levelno == logging.ERROR


async def test_an_on_disconnect_hook_that_fails_when_it_is_cancelled_ends_nothing(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def cleans_up() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise OopsError

    async def handler(_connection: BytesConnection) -> None:
        pass

    server = Server(handler)

    @server.on_disconnect
    async def part(_connection: BytesConnection) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cleans_up)
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve_stream, trio.testing.memory_stream_pair()[0])
        await trio.testing.wait_all_tasks_blocked()
        server.stop(1)
    assert "a hook failed at" in only_record(caplog).getMessage()


@pytest.mark.parametrize("with_epoll", [False, True])
async def test_a_fault_that_the_handler_has_caught_is_the_reason_though_more_has_come(
    with_epoll: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not with_epoll:
        monkeypatch.setattr("trio_bytetalk._transport.EPOLL_AVAILABLE", False)
    more = trio.Event()

    async def handler(connection: BytesConnection) -> None:
        with pytest.raises(MessageTooLargeError):
            await connection.receive()
        await more.wait()

    server = Server(handler)
    ours, theirs = tcp()
    async with server.events() as events, trio.open_nursery() as nursery:
        nursery.start_soon(server.serve_stream, ours)
        await theirs.send_all(b"\xff" * 10)
        await trio.testing.wait_all_tasks_blocked()
        await theirs.send_all(b"more")
        more.set()
        assert await theirs.receive_some() == b""
        await theirs.aclose()
        while server.is_running:
            await trio.lowlevel.checkpoint()
        (connection,) = connections_in(waiting_in(events))
    assert type(connection.close_reason) is MessageTooLargeError
    assert server.statistics().endings[Ending.PROTOCOL_ERROR] == 1


@pytest.mark.parametrize("stopped", [False, True])
async def test_cut_short_while_the_last_is_being_sent(
    stopped: bool, autojump_clock: trio.testing.MockClock
) -> None:
    async def handler(connection: BytesConnection) -> None:
        await connection.send(bytes(1000))

    server = Server(handler, close_timeout=100)
    async with server.events() as events:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.serve_stream, trio.testing.lockstep_stream_pair()[0])
            await trio.testing.wait_all_tasks_blocked()
            if stopped:
                server.stop(1)
            else:
                nursery.cancel_scope.cancel()
        (connection,) = connections_in(waiting_in(events))
    expected = CloseReason.SERVER_STOPPED if stopped else CloseReason.CANCELLED
    assert connection.close_reason is expected


async def test_an_on_connect_hook_turns_a_client_away(caplog: pytest.LogCaptureFixture) -> None:
    server = Server(echo)

    @server.on_connect
    async def refuse(connection: BytesConnection) -> None:
        await connection.send(b"go away")
        await connection.aclose()

    connection = await served_end(server)
    assert connection.close_reason is CloseReason.CLOSED
    assert connection.statistics().messages_received == 0
    assert connection.statistics().messages_sent == 1
    assert logged(caplog) == []


async def test_the_peer_finishes_where_the_handler_wants_a_message(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # As a port scan does, or a load balancer's health check: no reason for a traceback.
    async def handler(connection: BytesConnection) -> None:
        while True:
            await connection.receive()

    connection = await served_end(Server(handler))
    assert connection.close_reason is CloseReason.END_OF_STREAM
    assert logged(caplog) == []


async def test_the_handlers_upstream_finishes(caplog: pytest.LogCaptureFixture) -> None:
    async def proxy(connection: BytesConnection) -> None:
        upstream, gone = trio.testing.memory_stream_pair()
        await gone.aclose()
        async with open_connection(upstream) as other:
            await other.receive()

    connection = await served_end(Server(proxy))
    assert type(connection.close_reason) is trio.EndOfChannel
    assert only_record(caplog).levelno == logging.ERROR


# -- what subscribers are promised


async def test_hooks_and_events_of_one_connection_in_their_order() -> None:
    server = Server(echo)
    order: list[str] = []

    @server.on_connect
    async def connected(connection: BytesConnection) -> None:
        order.append("connected")
        assert connection in server.connections
        assert connection.server is server
        assert connection.close_reason is None

    @server.on_message
    async def received(connection: BytesConnection, message: bytes) -> None:
        order.append(f"received {message!r}")

    @server.on_disconnect
    async def disconnected(connection: BytesConnection) -> None:
        order.append("disconnected")
        assert connection not in server.connections
        assert connection.close_reason is CloseReason.END_OF_STREAM

    async with server.events() as events:
        connection = await served_end(server)
        assert waiting_in(events) == [
            ClientConnected(connection),
            MessageReceived(connection, b"hello"),
            MessageWritten(connection, b"hello"),
            ClientDisconnected(connection),
        ]
    assert order == ["connected", "received b'hello'", "disconnected"]


async def test_a_subscriber_to_one_kind_of_events() -> None:
    server = Server(echo)
    async with (
        server.client_connected.subscribe() as comings,
        server.client_disconnected.subscribe() as goings,
        server.message_received.subscribe() as received,
        server.message_written.subscribe() as written,
    ):
        connection = await served_end(server)
        assert comings.receive_nowait() == ClientConnected(connection)
        assert goings.receive_nowait() == ClientDisconnected(connection)
        assert received.receive_nowait() == MessageReceived(connection, b"hello")
        assert written.receive_nowait() == MessageWritten(connection, b"hello")


async def test_a_cancelled_server_still_tells_a_slow_subscriber_of_every_life(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    server = Server(echo)
    listener = MemoryListener()
    async with server.events(buffer_size=1) as events:
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve_listeners, [listener])
            ends = [listener.dial() for _ in range(3)]
            # One waits in the buffer now, and two connections wait to tell of themselves.
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                heard = [await events.receive() for _ in range(6)]
        assert waiting_in(events) == []
    check_whole_lives(heard)
    assert len(connections_in(heard)) == 3
    assert trio.current_time() == 0
    for end in ends:
        await end.aclose()
    assert logged(caplog) == []


async def test_a_cancelled_server_does_not_wait_long_for_a_subscriber_that_never_reads(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    server = Server(echo, close_timeout=3)
    listener = MemoryListener()
    async with server.events(buffer_size=1), trio.open_nursery() as nursery:
        await nursery.start(server.serve_listeners, [listener])
        async with listener.dial():
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    assert trio.current_time() == 3
    record = only_record(caplog)
    assert record.levelno == logging.ERROR
    assert "1 listeners did not take ClientDisconnected" in record.getMessage()
    assert fields_of(record) == {
        "event": "event_not_taken",
        "connection": fields_of(record)["connection"],
        "remote": None,
        "listeners": 1,
    }
    assert f"<Connection {fields_of(record)['connection']} with" in record.getMessage()


async def test_an_on_disconnect_hook_hears_of_a_cancelled_connection_and_may_wait_a_little(
    autojump_clock: trio.testing.MockClock,
) -> None:
    server = Server(echo)
    listener = MemoryListener()
    goodbyes: list[object] = []

    @server.on_disconnect
    async def say_goodbye(connection: BytesConnection) -> None:
        await trio.sleep(1)
        goodbyes.append(connection.close_reason)

    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve_listeners, [listener])
        async with listener.dial():
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    assert goodbyes == [CloseReason.CANCELLED]
    assert trio.current_time() == 1


async def test_an_on_disconnect_hook_begun_before_the_cancellation_is_not_called_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    server = Server(echo)
    listener = MemoryListener()
    calls: list[object] = []

    @server.on_disconnect
    async def hang(connection: BytesConnection) -> None:
        calls.append(connection)
        await trio.sleep_forever()

    @server.on_disconnect
    async def after(connection: BytesConnection) -> None:
        calls.append(connection)

    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve_listeners, [listener])
        async with listener.dial():
            pass
        await trio.testing.wait_all_tasks_blocked()
        assert len(calls) == 1
        nursery.cancel_scope.cancel()
    assert len(calls) == 2


# -- stopping


async def test_what_was_received_before_the_stop_is_handled_and_answered(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    # Over a Unix socket: what is written to one is with the other side at once.
    begin = trio.Event()

    async def late_echo(connection: BytesConnection) -> None:
        await begin.wait()
        await echo(connection)

    server = Server(late_echo)
    await nursery.start(server.serve_unix, tmp_path / "s")
    messages = [b"%1000d" % number for number in range(80)]  # more than one read of 64 KiB
    async with open_unix_connection(tmp_path / "s") as connection:
        for message in messages:
            await connection.send(message)
        await connection.flush()
        while not server.connections:
            await trio.lowlevel.checkpoint()
        server.stop()
        begin.set()
        assert [message async for message in connection] == messages
    assert server.statistics().messages_received == 80


@pytest.mark.parametrize("subscribed", [False, True])
@pytest.mark.parametrize("secure", [False, True])
async def test_a_stop_under_load_loses_no_reply(
    nursery: trio.Nursery, tls: Tls, subscribed: bool, secure: bool
) -> None:
    server = Server(echo)
    port = await listen(nursery, server, ssl_context=tls.server if secure else None)
    client_tls: dict[str, Any] = {}
    if secure:
        client_tls = {"ssl_context": tls.client, "server_hostname": "example.org"}
    replies = 0

    async def load() -> None:
        nonlocal replies
        async with (
            open_tcp_connection(LOCALHOST, port, **client_tls) as connection,
            trio.open_nursery() as senders,
        ):

            async def send() -> None:
                try:
                    while True:
                        await connection.send(b"x" * 100)
                except trio.BrokenResourceError:
                    pass  # the server has closed it

            senders.start_soon(send)
            async for _ in connection:
                replies += 1
            senders.cancel_scope.cancel()

    async with contextlib.AsyncExitStack() as stack:
        if subscribed:
            await stack.enter_async_context(server.events(buffer_size=10, overflow="drop_newest"))
        async with trio.open_nursery() as clients:
            for _ in range(10):
                clients.start_soon(load)
            while replies < 2000:
                await trio.lowlevel.checkpoint()
            server.stop()
    totals = server.statistics()
    assert totals.connections_total == 10
    assert totals.messages_received == totals.messages_sent == replies


@pytest.mark.parametrize("secure", [False, True])
async def test_a_client_that_never_stops_sending_does_not_hold_up_the_stop(
    nursery: trio.Nursery,
    server_context: ssl.SSLContext,
    client_context: ssl.SSLContext,
    secure: bool,
) -> None:
    async def slow_echo(connection: BytesConnection) -> None:
        async for message in connection:
            for _ in range(10):
                await trio.lowlevel.checkpoint()
            await connection.send(message)

    server = Server(slow_echo)
    port = await listen(nursery, server, ssl_context=server_context if secure else None)
    replies = 0
    async with contextlib.AsyncExitStack() as stack:
        events = await stack.enter_async_context(server.client_disconnected.subscribe())
        connection = await stack.enter_async_context(
            open_tls_connection(port, client_context)
            if secure
            else open_tcp_connection(LOCALHOST, port)
        )
        async with trio.open_nursery() as senders:

            async def send() -> None:
                with contextlib.suppress(trio.BrokenResourceError):  # when the server has closed it
                    while True:
                        await connection.send(b"x" * 1000)

            senders.start_soon(send)
            # What the server has not read resets a TLS connection, and the last replies are lost.
            try:
                async for _ in connection:
                    replies += 1
                    if replies == 100:
                        server.stop(timeout=None)
            except trio.BrokenResourceError:
                assert secure
            senders.cancel_scope.cancel()
        await connection.aclose()
        event = await events.receive()
    assert event.connection.close_reason is CloseReason.SERVER_STOPPED
    if not secure:
        assert server.statistics().messages_received == replies
        assert server.statistics().messages_sent == replies


async def test_stopping_twice_and_at_once(autojump_clock: trio.testing.MockClock) -> None:
    server = Server(sleep_forever)
    listener = MemoryListener()
    async with trio.open_nursery() as nursery, listener.dial():
        await nursery.start(server.serve_listeners, [listener])
        await trio.testing.wait_all_tasks_blocked()
        server.stop(timeout=None)
        await trio.sleep(100)
        assert server.is_running
        server.stop(timeout=20)
        await trio.sleep(1)
        server.stop(timeout=1000)  # a later one does not lengthen it
        await trio.sleep(18)
        assert server.is_running
        server.stop(timeout=0)
        await trio.testing.wait_all_tasks_blocked()
        assert not server.is_running
        assert trio.current_time() == 119


async def test_the_shorter_of_two_stops_counts(autojump_clock: trio.testing.MockClock) -> None:
    server = Server(sleep_forever)
    listener = MemoryListener()
    async with listener.dial():
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve_listeners, [listener])
            await trio.testing.wait_all_tasks_blocked()
            server.stop(timeout=5)
            server.stop(timeout=50)
        assert trio.current_time() == 5


async def test_a_stop_before_serving_changes_nothing(nursery: trio.Nursery) -> None:
    server = Server(echo)
    server.stop()
    assert not server.is_running
    async with open_tcp_connection(LOCALHOST, await listen(nursery, server)) as connection:
        await talk(connection)


class SlowResolver(trio.abc.HostnameResolver):
    """Finds every name to be this machine's, when told to go on."""

    def __init__(self) -> None:
        self.asked = trio.Event()
        self.go_on = trio.Event()

    async def getaddrinfo(self, *_args: object, **_kwargs: object) -> Any:
        self.asked.set()
        await self.go_on.wait()
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (LOCALHOST, 0))]

    async def getnameinfo(self, *_args: object) -> Any:
        raise NotImplementedError


@pytest.mark.parametrize("seconds", [10, 0])
async def test_a_stop_while_the_server_is_starting(seconds: int) -> None:
    resolver = SlowResolver()
    trio.socket.set_custom_hostname_resolver(resolver)
    server = Server(echo)

    async def stop_in_between() -> None:
        await resolver.asked.wait()
        assert server.is_running
        server.stop(seconds)
        resolver.go_on.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stop_in_between)
        serve = functools.partial(server.serve_tcp, 0, host="slow.example")
        (listener,) = await nursery.start(serve)
    assert listener.socket.fileno() == -1
    assert not server.is_running


@pytest.mark.parametrize("place", ["on_connect", "on_message", "on_disconnect", "handler"])
async def test_a_stop_from_within(nursery: trio.Nursery, place: str) -> None:
    async def stopping_echo(connection: BytesConnection) -> None:
        async for message in connection:
            await connection.send(message)
            if place == "handler":
                server.stop()

    server = Server(stopping_echo)

    async def stop(connection: BytesConnection, message: bytes = b"") -> None:
        server.stop()

    if place != "handler":
        getattr(server, place)(stop)
    async with server.events() as events:
        async with open_tcp_connection(LOCALHOST, await listen(nursery, server)) as connection:
            await connection.send(b"hello")
            if place == "on_disconnect":
                await connection.send_eof()
            assert [message async for message in connection] in ([b"hello"], [])
        heard = [event async for event in events]
    check_whole_lives(heard)
    assert not server.is_running
    (only,) = connections_in(heard)
    expected = "END_OF_STREAM" if place == "on_disconnect" else "SERVER_STOPPED"
    assert only.close_reason is CloseReason[expected]


async def test_a_connection_accepted_in_the_moment_of_the_stop_has_its_messages_answered(
    tmp_path: Path,
) -> None:
    server = Server(echo)
    inner = trio.socket.socket(socket.AF_UNIX)
    await inner.bind(os.fspath(tmp_path / "s"))
    inner.listen()

    class StoppingListener(MemoryListener):
        async def accept(self) -> trio.abc.Stream:
            stream, _ = await inner.accept()
            server.stop()
            return trio.SocketStream(stream)

    with inner:
        async with server.events() as events, open_unix_connection(tmp_path / "s") as connection:
            await connection.send(b"hello")
            await connection.flush()
            await server.serve_listeners([StoppingListener()])
            assert [message async for message in connection] == [b"hello"]
            heard = [event async for event in events]
    check_whole_lives(heard)
    assert [each.close_reason for each in connections_in(heard)] == [CloseReason.SERVER_STOPPED]


async def test_subscriptions_end_with_the_last_serve_call_and_not_before() -> None:
    server = Server(echo)
    first, second = MemoryListener(), MemoryListener()
    async with server.events() as events, trio.open_nursery() as nursery:
        await nursery.start(server.serve_listeners, [first])
        async with trio.open_nursery() as inner:
            await inner.start(server.serve_listeners, [second])
            inner.cancel_scope.cancel()
        assert server.is_running
        async with open_connection(first.dial()) as connection:
            await talk(connection)
        server.stop()
        heard = [event async for event in events]
    check_whole_lives(heard)
    assert len(heard) == 4


async def test_subscriptions_outlive_the_first_serve_call_that_a_stop_ends() -> None:
    may_end = trio.Event()

    async def wait(_connection: BytesConnection) -> None:
        await may_end.wait()

    server = Server(wait)
    listener = MemoryListener()
    async with server.events() as events, trio.open_nursery() as nursery:
        async with trio.open_nursery() as first:
            await first.start(server.serve_listeners, [MemoryListener()])
            await nursery.start(server.serve_listeners, [listener])
            async with listener.dial():
                await trio.testing.wait_all_tasks_blocked()
                server.stop()
        assert server.is_running
        may_end.set()
        heard = [event async for event in events]
    check_whole_lives(heard)
    assert len(connections_in(heard)) == 1


async def test_what_is_not_sent_when_the_time_of_the_stop_is_over_is_logged(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def send_and_go(connection: BytesConnection) -> None:
        await connection.send(bytes(100_000))

    server = Server(send_and_go, close_timeout=50)
    ours, peer = trio.testing.lockstep_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve_stream, ours)
        await trio.testing.wait_all_tasks_blocked()
        server.stop(2)
    await peer.aclose()
    record = only_record(caplog)
    assert record.levelno == logging.WARNING
    assert "is closed with 100004 bytes unsent: the time of Server.stop was over" in (
        record.getMessage()
    )


async def test_what_was_logged_at_closing_is_not_logged_again_at_the_stop(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def close_and_sleep(connection: BytesConnection) -> None:
        await connection.send(bytes(100_000))
        await connection.aclose()
        await trio.sleep_forever()

    server = Server(close_and_sleep, close_timeout=5)
    ours, peer = trio.testing.lockstep_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve_stream, ours)
        await trio.sleep(10)
        server.stop(0)
    await peer.aclose()
    assert "setting is close_timeout" in only_record(caplog).getMessage()


async def test_what_was_not_sent_is_logged_though_the_closing_cancels_the_handler(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """For another task of its nursery flushes, and fails."""

    async def flush_and_close(connection: BytesConnection) -> None:
        await connection.send(bytes(100_000))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.flush)
            await trio.testing.wait_all_tasks_blocked()
            await connection.aclose()

    ours, peer = trio.testing.lockstep_stream_pair()
    await Server(flush_and_close, close_timeout=5).serve_stream(ours)
    await peer.aclose()
    assert "setting is close_timeout" in only_record(caplog).getMessage()


async def test_a_peer_that_breaks_the_protocol_and_takes_nothing_has_one_record(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def send_much(connection: BytesConnection) -> None:
        await connection.send(bytes(100_000))
        await connection.receive()

    ours, peer = trio.testing.lockstep_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Server(send_much, close_timeout=5).serve_stream, ours)
        await peer.send_all(b"\xff\xff\xff\xff")
    await peer.aclose()
    assert "ends: the peer announced a message of" in only_record(caplog).getMessage()


async def test_what_was_lost_before_the_stop_is_not_blamed_on_its_time(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def cut_and_sleep(connection: BytesConnection) -> None:
        await connection.send(bytes(100_000))
        with trio.move_on_after(1):
            await connection.aclose()
        await trio.sleep_forever()

    server = Server(cut_and_sleep)
    ours, peer = trio.testing.lockstep_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve_stream, ours)
        await trio.sleep(10)
        server.stop(0)
    await peer.aclose()
    assert logged(caplog) == []


async def test_a_stop_without_a_limit_that_the_program_cancels_is_not_over_time(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def send_and_go(connection: BytesConnection) -> None:
        await connection.send(bytes(100_000))

    server = Server(send_and_go, close_timeout=50)
    ours, peer = trio.testing.lockstep_stream_pair()
    with trio.move_on_after(3):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.serve_stream, ours)
            await trio.testing.wait_all_tasks_blocked()
            server.stop(None)
    await peer.aclose()
    assert logged(caplog) == []


@pytest.mark.parametrize("reset_by", ["send_timeout", "peer"])
async def test_what_was_not_sent_before_the_handler_returned_without_knowing_is_logged(
    reset_by: str, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def send_and_sleep(connection: BytesConnection) -> None:
        await connection.send(bytes(1_000_000))
        await trio.sleep(10)

    server = Server(send_and_sleep, send_timeout=2)
    ours, peer = trio.testing.lockstep_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve_stream, ours)
        await trio.testing.wait_all_tasks_blocked()
        if reset_by == "peer":
            await peer.aclose()
    await peer.aclose()
    record = only_record(caplog)
    assert record.levelno == (logging.INFO if reset_by == "peer" else logging.WARNING)
    assert "is closed with 1000004 bytes unsent: " in record.getMessage()


async def test_subscriptions_end_with_a_serve_call_that_was_begun_while_another_was_stopping() -> (
    None
):
    may_end = trio.Event()

    async def wait(_connection: BytesConnection) -> None:
        await may_end.wait()

    server = Server(wait)
    first, second = memory(), memory()
    async with server.events() as events, trio.open_nursery() as nursery:
        async with trio.open_nursery() as stopping:
            stopping.start_soon(server.serve_stream, first[0])
            await trio.testing.wait_all_tasks_blocked()
            server.stop(None)
            server.handler = sleep_until_closed
            nursery.start_soon(server.serve_stream, second[0])
            await trio.testing.wait_all_tasks_blocked()
            may_end.set()
        assert server.is_running
        await second[1].aclose()
        heard = [event async for event in events]
    assert len(connections_in(heard)) == 2
    await first[1].aclose()
    # A new one is a new beginning.
    async with server.events() as events:
        third = memory()
        await third[1].aclose()
        await server.serve_stream(third[0])
        assert len(waiting_in(events)) == 2
        with pytest.raises(trio.WouldBlock):
            events.receive_nowait()


async def test_a_cancelled_server_keeps_its_subscriptions() -> None:
    server = Server(echo)
    async with server.events() as events:
        async with trio.open_nursery() as nursery:
            await listen(nursery, server)
            nursery.cancel_scope.cancel()
        with pytest.raises(trio.WouldBlock):
            events.receive_nowait()


async def test_several_serve_calls_at_once_and_one_stop(tmp_path: Path) -> None:
    server = Server(echo)
    client_end, server_end = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        port = await listen(nursery, server)
        another_port = await listen(nursery, server)
        await nursery.start(server.serve_unix, tmp_path / "s")
        nursery.start_soon(server.serve_stream, server_end)
        async with (
            open_tcp_connection(LOCALHOST, port) as one,
            open_tcp_connection(LOCALHOST, another_port) as two,
            open_unix_connection(tmp_path / "s") as three,
            open_connection(client_end) as four,
        ):
            for connection in (one, two, three, four):
                await talk(connection)
            assert len(server.connections) == 4
            server.stop()
            for connection in (one, two, three, four):
                with pytest.raises(trio.EndOfChannel):
                    await connection.receive()
    assert not server.is_running


async def test_serving_again_after_a_stop() -> None:
    server = Server(echo)
    for total in (1, 2, 3):
        async with server.events() as events, trio.open_nursery() as nursery:
            async with open_tcp_connection(LOCALHOST, await listen(nursery, server)) as connection:
                await talk(connection)
                server.stop()
            assert len([event async for event in events]) == 4
        assert server.statistics().connections_total == total


@pytest.mark.parametrize(
    ("seconds", "error"), [(-1, ValueError), (math.nan, ValueError), ("soon", TypeError)]
)
async def test_a_wrong_stop_timeout(seconds: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="timeout must be"):
        Server(echo).stop(seconds)


# -- accepting, and the limit of connections


async def test_connections_beyond_the_limit_wait_in_the_backlog(
    autojump_clock: trio.testing.MockClock,
) -> None:
    server = Server(echo, max_connections=2)
    listener = MemoryListener()
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve_listeners, [listener])
        connections = [open_connection(listener.dial()) for _ in range(5)]
        for served, connection in enumerate(connections, start=2):
            await trio.testing.wait_all_tasks_blocked()
            assert len(server.connections) == min(2, 7 - served)
            assert listener.accepted == min(served, 5)
            with trio.fail_after(1):
                await talk(connection)
            await connection.aclose()
        nursery.cancel_scope.cancel()
    assert server.statistics().connections_total == 5


async def test_the_limit_holds_on_tcp(nursery: trio.Nursery) -> None:
    most = 0

    async def counting_echo(connection: BytesConnection) -> None:
        nonlocal most
        most = max(most, len(server.connections))
        await echo(connection)

    server = Server(counting_echo, max_connections=3)
    port = await listen(nursery, server)

    async def client() -> None:
        async with open_tcp_connection(LOCALHOST, port) as connection:
            await talk(connection)

    async with trio.open_nursery() as clients:
        for _ in range(30):
            clients.start_soon(client)
    assert most == 3
    assert server.statistics().connections_total == 30


@pytest.mark.parametrize(("limit", "count"), [(3, 2), (1, 3)])
async def test_the_limit_holds_for_several_listeners_together(
    limit: int, count: int, autojump_clock: trio.testing.MockClock
) -> None:
    most = 0

    async def counting_echo(connection: BytesConnection) -> None:
        nonlocal most
        most = max(most, len(server.connections))
        await echo(connection)

    server = Server(counting_echo, max_connections=limit)
    listeners = [MemoryListener() for _ in range(count)]

    async def client(listener: MemoryListener) -> None:
        async with open_connection(listener.dial()) as connection:
            await talk(connection)

    with trio.fail_after(1):
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve_listeners, listeners)
            async with trio.open_nursery() as clients:
                for listener in listeners * 10:
                    clients.start_soon(client, listener)
            nursery.cancel_scope.cancel()
    assert most == limit
    assert server.statistics().connections_total == 10 * count


async def test_a_place_that_gets_free_goes_to_whichever_listener_has_someone_waiting(
    autojump_clock: trio.testing.MockClock,
) -> None:
    server = Server(echo, max_connections=1)
    busy, quiet = MemoryListener(), MemoryListener()
    with trio.fail_after(1):
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve_listeners, [quiet, busy])
            async with open_connection(quiet.dial()) as first:
                await talk(first)
                second, third = open_connection(busy.dial()), open_connection(busy.dial())
                await trio.testing.wait_all_tasks_blocked()
                assert len(server.connections) == 1
            await talk(second)
            await second.aclose()
            await talk(third)
            await third.aclose()
            nursery.cancel_scope.cancel()


async def test_a_stop_while_a_connection_waits_for_its_place(
    autojump_clock: trio.testing.MockClock,
) -> None:
    server = Server(echo, max_connections=1)
    one, two = MemoryListener(), MemoryListener()
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve_listeners, [one, two])
        async with open_connection(one.dial()) as first:
            await talk(first)
            async with open_connection(two.dial()) as second:
                await trio.testing.wait_all_tasks_blocked()
                assert two.accepted == 1
                server.stop()
                with pytest.raises(trio.EndOfChannel):
                    await second.receive()
    assert server.statistics().connections_total == 1
    assert server.statistics().connections_refused == 1


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
async def test_running_out_of_descriptors_is_survived_and_logged_once_for_each_time(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    server = Server(echo)
    listener = MemoryListener()
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve_listeners, [listener])
        for episode in (1, 2):
            began = trio.current_time()
            for _ in range(5):
                listener.fail(number)
            async with open_connection(listener.dial()) as connection:
                await trio.testing.wait_all_tasks_blocked()
                assert server.statistics().listeners_out_of_resources == 1
                await talk(connection)
            assert server.statistics().listeners_out_of_resources == 0
            assert server.statistics().times_out_of_resources == episode
            assert trio.current_time() - began <= 5 * 0.5  # it keeps nobody waiting for long
            assert trio.current_time() - began >= 5 * 0.01  # and it does not spin
            await trio.sleep(2)
            records = logged(caplog)[-2:]
            assert len(logged(caplog)) == 2 * episode
            assert [record.levelno for record in records] == [logging.ERROR, logging.INFO]
            assert os.strerror(number) in records[0].getMessage()
            assert [*map(fields_of, records)] == [
                {
                    "event": "accept_paused",
                    "listener": "MemoryListener",
                    "error": type(OSError(number, "")).__name__,
                    "reason": str(OSError(number, os.strerror(number))),
                },
                {"event": "accept_resumed", "listener": "MemoryListener"},
            ]
        nursery.cancel_scope.cancel()


async def test_being_at_the_limit_for_long_is_one_time_though_a_place_gets_free_now_and_then(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    server = Server(echo)
    listener = MemoryListener()
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve_listeners, [listener])
        for _ in range(50):
            listener.fail(errno.EMFILE)
            async with open_connection(listener.dial()) as connection:
                await talk(connection)
        assert [record.levelno for record in logged(caplog)] == [logging.ERROR]
        await trio.sleep(2)
        assert [record.levelno for record in logged(caplog)] == [logging.ERROR, logging.INFO]
        nursery.cancel_scope.cancel()


async def test_running_out_again_with_nobody_accepted_in_between_is_another_time(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    listener = MemoryListener()
    async with trio.open_nursery() as nursery:
        await nursery.start(Server(echo).serve_listeners, [listener])
        for _ in range(2):
            for _ in range(3):
                listener.fail(errno.EMFILE)
            await trio.testing.wait_all_tasks_blocked()
            await trio.sleep(3600)
        # That it is over is said when it is, and not when somebody comes.
        assert [record.levelno for record in logged(caplog)] == [logging.ERROR, logging.INFO] * 2
        assert listener.accepted == 0
        nursery.cancel_scope.cancel()


async def test_another_error_of_accept_ends_the_server(
    autojump_clock: trio.testing.MockClock,
) -> None:
    server = Server(echo)
    listeners = [MemoryListener(), MemoryListener()]
    async with server.events() as events, listeners[0].dial():
        with pytest.RaisesGroup(
            pytest.RaisesExc(OSError, check=lambda error: error.errno == errno.EPERM),
            flatten_subgroups=True,
        ):
            async with trio.open_nursery() as nursery:
                await nursery.start(server.serve_listeners, listeners)
                await trio.testing.wait_all_tasks_blocked()
                listeners[1].fail(errno.EPERM)
        heard = waiting_in(events)
    check_whole_lives(heard)
    assert [each.close_reason for each in connections_in(heard)] == [CloseReason.CANCELLED]
    assert all(listener.closed for listener in listeners)


async def test_a_listener_is_closed_by_its_owner() -> None:
    server = Server(echo)
    one, two = MemoryListener(), MemoryListener()
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve_listeners, [one, two])
        async with open_connection(one.dial()) as first, open_connection(two.dial()) as second:
            await talk(first)
            await one.aclose()
            await talk(first)
            await talk(second)
            await two.aclose()
            await talk(first)
            await talk(second)
            assert server.is_running
    assert not server.is_running


async def test_a_cancelled_server_closes_all_of_its_listeners() -> None:
    server = Server(echo)
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(server.serve_tcp, 0)
        more = [MemoryListener(), MemoryListener()]
        await nursery.start(server.serve_listeners, more)
        nursery.cancel_scope.cancel()
    assert all(listener.socket.fileno() == -1 for listener in listeners)
    assert all(listener.closed for listener in more)


async def test_start_returns_the_listeners(nursery: trio.Nursery, tmp_path: Path) -> None:
    server = Server(echo)
    listeners = await nursery.start(server.serve_tcp, 0)
    assert all(isinstance(listener, trio.SocketListener) for listener in listeners)
    (unix,) = await nursery.start(server.serve_unix, tmp_path / "s")
    assert isinstance(unix, trio.SocketListener)
    own = [MemoryListener(), MemoryListener()]
    assert await nursery.start(server.serve_listeners, own) == own


@attrs.frozen
class Flaky(Codec[bytes, bytes]):
    """A codec whose ``reader()`` fails as often as told."""

    failures: list[Exception] = attrs.field(eq=False)

    def reader(self) -> Reader[bytes]:
        if self.failures:
            raise self.failures.pop()
        return LengthPrefixed().reader()

    def writer(self) -> Writer[bytes]:
        return LengthPrefixed().writer()


async def test_a_codec_that_fails_to_make_a_reader_costs_one_connection_only(
    nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    server = Server(codec=Flaky([OopsError("no reader")]))
    port = await listen(nursery, server)
    async with server.events() as events:
        async with await trio.open_tcp_stream(LOCALHOST, port) as stream:
            address = stream.socket.getsockname()
            assert await stream.receive_some() == b""
        record = only_record(caplog)
        assert record.levelno == logging.ERROR
        assert record.exc_info is not None
        assert re.match(r"no connection \d+ with 127\.0\.0\.1:\d+", record.getMessage())
        fields = fields_of(record)
        assert f"connection {fields.pop('connection')} " in record.getMessage()
        assert fields == {
            "event": "connection_refused",
            "remote": "{}:{}".format(*address),
            "error": "OopsError",
            "reason": "no reader",
        }
        assert waiting_in(events) == []
        async with open_tcp_connection(LOCALHOST, port) as connection:
            await connection.send(b"hello")
            assert type(await events.receive()) is ClientConnected
            assert type(await events.receive()) is MessageReceived
    assert server.statistics().connections_total == 1
    assert server.statistics().connections_refused == 1


# -- TLS


async def test_tls(
    nursery: trio.Nursery,
    server_context: ssl.SSLContext,
    client_context: ssl.SSLContext,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = Server(echo)
    port = await listen(nursery, server, ssl_context=server_context)
    async with server.events() as events:
        async with open_tls_connection(port, client_context) as connection:
            for size in (1, 100_000):
                await talk(connection, b"x" * size)
            (theirs,) = server.connections
            assert theirs.remote_address == connection.local_address
        server.stop()
        heard = [event async for event in events]
    check_whole_lives(heard)
    assert [each.close_reason for each in connections_in(heard)] == [CloseReason.END_OF_STREAM]
    assert logged(caplog) == []


async def test_a_client_that_connects_and_says_nothing_holds_up_no_other(
    nursery: trio.Nursery, server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    server = Server(echo)
    port = await listen(nursery, server, ssl_context=server_context)
    async with (
        await trio.open_tcp_stream(LOCALHOST, port),
        open_tls_connection(port, client_context) as connection,
    ):
        await talk(connection)
        assert len(server.connections) == 1


async def test_a_client_that_says_nothing_is_dropped_when_the_handshakes_time_is_up(
    autojump_clock: trio.testing.MockClock,
    server_context: ssl.SSLContext,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = Server(echo, handshake_timeout=7)
    client_end, server_end = trio.testing.memory_stream_pair()
    async with server.events() as events:
        await server.serve_stream(server_end, ssl_context=server_context)
        assert waiting_in(events) == []
    assert trio.current_time() == 7
    assert await client_end.receive_some() == b""
    record = only_record(caplog)
    assert record.levelno == logging.WARNING
    assert record.exc_info is None
    assert "handshake_timeout" in record.getMessage()
    fields = fields_of(record)
    assert f"no connection {fields.pop('connection')} with an unnamed peer: " in record.getMessage()
    assert record.getMessage().endswith(fields.pop("reason"))
    assert fields == {"event": "handshake_failed", "remote": None, "error": "HandshakeTimeoutError"}


async def test_a_plain_client_at_a_tls_port(
    nursery: trio.Nursery,
    server_context: ssl.SSLContext,
    client_context: ssl.SSLContext,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = Server(echo)
    port = await listen(nursery, server, ssl_context=server_context)
    async with open_tls_connection(port, client_context) as other:
        await talk(other)
        async with server.events() as events:
            async with await trio.open_tcp_stream(LOCALHOST, port) as stream:
                address = address_in_words(stream.socket.getsockname())
                await stream.send_all(frame(b"hello"))
                with contextlib.suppress(trio.BrokenResourceError):
                    while await stream.receive_some():
                        pass
            assert waiting_in(events) == []
        await talk(other)
    record = only_record(caplog)
    assert record.levelno == logging.WARNING
    assert record.exc_info is None
    assert f" with {address}: the TLS handshake failed" in record.getMessage()


async def test_a_tls_client_at_a_plain_port(
    nursery: trio.Nursery, client_context: ssl.SSLContext, caplog: pytest.LogCaptureFixture
) -> None:
    server = Server(echo)
    port = await listen(nursery, server)
    async with open_tcp_connection(LOCALHOST, port) as other:
        with pytest.raises(trio.BrokenResourceError, match="the TLS handshake failed"):
            async with open_tls_connection(port, client_context):
                raise AssertionError
        await talk(other)
    record = only_record(caplog)
    assert record.levelno == logging.WARNING
    assert "max_size" in record.getMessage()


async def test_a_tls_client_that_does_not_trust_the_server(
    nursery: trio.Nursery,
    server_context: ssl.SSLContext,
    client_context: ssl.SSLContext,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = Server(echo)
    port = await listen(nursery, server, ssl_context=server_context)
    async with open_tls_connection(port, client_context) as other:
        await talk(other)
        with pytest.raises(trio.BrokenResourceError, match=r"handshake failed.*[Hh]ostname"):
            async with open_tls_connection(port, client_context, "example.org"):
                raise AssertionError
        while not logged(caplog):
            await trio.lowlevel.checkpoint()
        await talk(other)
    record = only_record(caplog)
    assert record.levelno == logging.WARNING
    assert "the TLS handshake failed" in record.getMessage()


async def test_a_client_resets_the_connection_during_the_handshake(
    nursery: trio.Nursery,
    server_context: ssl.SSLContext,
    client_context: ssl.SSLContext,
    caplog: pytest.LogCaptureFixture,
) -> None:
    port = await listen(nursery, Server(echo), ssl_context=server_context)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    stream = await trio.open_tcp_stream(LOCALHOST, port)
    address = address_in_words(stream.socket.getsockname())
    await stream.send_all(outgoing.read())
    await stream.receive_some()
    reset(stream)
    while not logged(caplog):
        await trio.lowlevel.checkpoint()
    record = only_record(caplog)
    assert record.levelno == logging.WARNING
    failed = f" with {address}: the TLS handshake failed: Connection reset by peer"
    assert record.getMessage().endswith(failed)


async def test_handshakes_count_towards_the_limit_of_connections(
    autojump_clock: trio.testing.MockClock, server_context: ssl.SSLContext
) -> None:
    server = Server(echo, max_connections=1, handshake_timeout=7)
    listener = MemoryListener()
    serve = functools.partial(server.serve_listeners, [listener], ssl_context=server_context)
    async with trio.open_nursery() as nursery, listener.dial(), listener.dial():
        await nursery.start(serve)
        await trio.testing.wait_all_tasks_blocked()
        assert listener.accepted == 1
        await trio.sleep(8)
        assert listener.accepted == 2
        nursery.cancel_scope.cancel()


async def test_a_server_is_cancelled_or_stopped_during_a_handshake(
    autojump_clock: trio.testing.MockClock,
    server_context: ssl.SSLContext,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = Server(echo)
    listener = MemoryListener()
    serve = functools.partial(server.serve_listeners, [listener], ssl_context=server_context)
    for stopped in (False, True):
        listener = MemoryListener()
        serve = functools.partial(server.serve_listeners, [listener], ssl_context=server_context)
        async with trio.open_nursery() as nursery:
            await nursery.start(serve)
            client_end = listener.dial()
            await trio.testing.wait_all_tasks_blocked()
            if stopped:
                server.stop(timeout=1)
            else:
                nursery.cancel_scope.cancel()
        assert await client_end.receive_some() == b""
    assert server.statistics().connections_total == 0
    assert logged(caplog) == []


async def test_a_connection_whose_handshake_ends_after_the_stop_is_stopped_too(
    autojump_clock: trio.testing.MockClock,
    server_context: ssl.SSLContext,
    client_context: ssl.SSLContext,
) -> None:
    server = Server(echo)
    ours, theirs = memory()
    peer = trio.SSLStream(theirs, client_context, server_hostname="localhost")
    start = trio.current_time()
    async with server.events() as events:
        async with trio.open_nursery() as nursery:
            serve = functools.partial(server.serve_stream, ssl_context=server_context)
            nursery.start_soon(serve, ours)
            await trio.testing.wait_all_tasks_blocked()
            server.stop(timeout=5)
            await peer.send_all(frame(b"hello"))
            assert await read_to_end(peer) == frame(b"hello")
            await peer.aclose()
        heard = [event async for event in events]
    assert trio.current_time() == start
    check_whole_lives(heard)
    assert [each.close_reason for each in connections_in(heard)] == [CloseReason.SERVER_STOPPED]


async def test_what_was_received_over_tls_before_the_stop_is_handled_and_answered(
    nursery: trio.Nursery,
    tmp_path: Path,
    server_context: ssl.SSLContext,
    client_context: ssl.SSLContext,
) -> None:
    begin = trio.Event()

    async def late_echo(connection: BytesConnection) -> None:
        await begin.wait()
        await echo(connection)

    server = Server(late_echo)
    serve = functools.partial(server.serve_unix, tmp_path / "s", ssl_context=server_context)
    await nursery.start(serve)
    messages = [b"%1000d" % number for number in range(80)]  # more than one read of 64 KiB
    async with open_unix_connection(
        tmp_path / "s", ssl_context=client_context, server_hostname="localhost"
    ) as connection:
        for message in messages:
            await connection.send(message)
        await connection.flush()
        while not server.connections:
            await trio.lowlevel.checkpoint()
        server.stop()
        begin.set()
        assert [message async for message in connection] == messages


@pytest.mark.parametrize("kind", ["tls over a socket", "tls in memory", "in pieces"])
async def test_what_has_arrived_before_the_stop_is_handled_however_busy_the_program_is(
    nursery: trio.Nursery,
    server_context: ssl.SSLContext,
    client_context: ssl.SSLContext,
    kind: str,
) -> None:
    # Of TLS, each message is a record, and each record is a turn of the scheduler.
    begin = trio.Event()
    received: list[bytes] = []

    async def late(connection: BytesConnection) -> None:
        await begin.wait()
        received.extend([message async for message in connection])

    async def busy_neighbour() -> None:
        while True:
            time.sleep(0.001)  # noqa: ASYNC251 - that is what makes it one
            await trio.lowlevel.checkpoint()

    messages = [b"%d" % number for number in range(120)]
    server = Server(late)
    ours: trio.abc.HalfCloseableStream
    theirs: trio.abc.HalfCloseableStream
    ours, theirs = tcp() if kind == "tls over a socket" else memory()
    under = theirs
    peer: trio.abc.Stream = ours
    if kind == "in pieces":
        whole = sum(map(len, map(frame, messages)))
        theirs = FaultyStream(theirs, receiving=[Cut(place) for place in range(0, whole, 3)])
        nursery.start_soon(server.serve_stream, theirs)
    else:
        peer = trio.SSLStream(ours, client_context, server_hostname="localhost")
        serve = functools.partial(server.serve_stream, ssl_context=server_context)
        nursery.start_soon(serve, theirs)
    for message in messages:
        await peer.send_all(frame(message))
    if isinstance(under, trio.SocketStream):
        record = 5 + 1 + 16  # what TLS 1.3 adds to what is in one (RFC 8446, 5.2)
        arriving = sum(len(frame(message)) + record for message in messages)
        waiting = bytearray(4)
        while int.from_bytes(waiting, sys.byteorder) < arriving:
            await trio.lowlevel.checkpoint()
            fcntl.ioctl(under.socket.fileno(), termios.FIONREAD, waiting)
    nursery.start_soon(busy_neighbour)
    server.stop(None)
    begin.set()
    while server.is_running:
        await trio.lowlevel.checkpoint()
    nursery.cancel_scope.cancel()
    with trio.CancelScope(shield=True):
        await trio.aclose_forcefully(ours)
    assert received == messages


async def test_a_tls_stream_that_has_not_shaken_hands_has_the_same_limit_for_that(
    server_context: ssl.SSLContext, autojump_clock: trio.testing.MockClock
) -> None:
    server = Server(echo, handshake_timeout=3)
    ours, peer = memory()
    await server.serve_stream(trio.SSLStream(ours, server_context, server_side=True))
    assert trio.current_time() == pytest.approx(autojump_clock.current_time(), abs=0)
    assert server.statistics().handshakes_timed_out == 1
    await peer.aclose()


@pytest.mark.parametrize("serve", ["serve_tcp", "serve_unix", "serve_listeners", "serve_stream"])
async def test_a_wrong_ssl_context_is_refused_before_anything_is_served(
    serve: str, client_context: ssl.SSLContext, tmp_path: Path
) -> None:
    server = Server(echo)
    target: dict[str, Any] = {
        "serve_tcp": 0,
        "serve_unix": tmp_path / "s",
        "serve_listeners": [],
        "serve_stream": trio.testing.memory_stream_pair()[0],
    }
    with pytest.raises(ValueError, match="ssl_context is for the other side"):
        await getattr(server, serve)(target[serve], ssl_context=client_context)
    with pytest.raises(TypeError, match=r"ssl_context must be an ssl\.SSLContext, not 'cert\.pem'"):
        await getattr(server, serve)(target[serve], ssl_context="cert.pem")
    assert not server.is_running
    assert files_in(tmp_path) == []


# -- other streams


def files_in(path: Path) -> list[str]:
    return sorted(os.listdir(path))


async def test_a_unix_socket_with_and_without_tls(
    nursery: trio.Nursery,
    tmp_path: Path,
    server_context: ssl.SSLContext,
    client_context: ssl.SSLContext,
) -> None:
    server = Server(echo)
    await nursery.start(server.serve_unix, tmp_path / "plain")
    async with open_unix_connection(tmp_path / "plain") as connection:
        await talk(connection)
    serve = functools.partial(server.serve_unix, tmp_path / "tls", ssl_context=server_context)
    await nursery.start(serve)
    async with open_unix_connection(
        tmp_path / "tls", ssl_context=client_context, server_hostname="localhost"
    ) as connection:
        await talk(connection)
    assert files_in(tmp_path) == ["plain", "tls"]
    server.stop()
    await trio.testing.wait_all_tasks_blocked()
    assert files_in(tmp_path) == []


async def test_a_unix_sockets_file_is_gone_while_the_last_connections_are_still_served(
    tmp_path: Path,
) -> None:
    # Another server may take the place then; it must not lose its file when this one has ended.
    old, new = Server(echo), Server(echo)
    path = tmp_path / "s"
    done = trio.Event()

    @old.on_disconnect
    async def wait(connection: BytesConnection) -> None:
        await done.wait()

    async with trio.open_nursery() as nursery:
        async with trio.open_nursery() as old_nursery:
            await old_nursery.start(old.serve_unix, path)
            async with open_unix_connection(path) as connection:
                await talk(connection)
                old.stop()
                await trio.testing.wait_all_tasks_blocked()
                assert old.is_running
                assert not path.exists()
                await nursery.start(new.serve_unix, path)
                done.set()
        async with open_unix_connection(path) as connection:
            await talk(connection)
        nursery.cancel_scope.cancel()
    assert not path.exists()


async def test_one_stream_is_served_in_the_current_task() -> None:
    server = Server(echo)
    client_end, server_end = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve_stream, server_end)
        async with open_connection(client_end) as connection:
            await talk(connection)
            assert server.is_running
    assert not server.is_running


async def test_the_pipes_of_a_child_process_are_served() -> None:
    child = """if True:
        import sys
        sys.stdout.buffer.write(b"\\0\\0\\0\\5hello")
        sys.stdout.buffer.flush()
        sys.exit(0 if sys.stdin.buffer.read(9) == b"\\0\\0\\0\\5hello" else 1)
    """
    process = await trio.lowlevel.open_process(
        [sys.executable, "-c", child], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    server = Server(echo)
    async with server.events() as events:
        await server.serve_stream(trio.StapledStream(process.stdin, process.stdout))
        (connection,) = connections_in(waiting_in(events))
    assert connection.remote_address is None
    assert connection.close_reason is CloseReason.END_OF_STREAM
    assert await process.wait() == 0


async def test_what_is_no_stream_is_not_served() -> None:
    server = Server(echo)
    mistake: Any = 5
    with pytest.raises(TypeError, match=r"stream must be a trio\.abc\.Stream, not 5"):
        await server.serve_stream(mistake)
    assert not server.is_running


# -- broadcasting


@attrs.define(eq=False)
class TalliedWriter(Writer[bytes]):
    tally: list[bytes]

    def encode(self, message: bytes) -> bytes:
        self.tally.append(message)
        if message == b"unspeakable":
            raise EncodeError("this protocol has no such word")
        return frame(message)


class StatefulWriter(TalliedWriter):
    stateful = True


@attrs.frozen
class Tallied(Codec[bytes, bytes]):
    """`LengthPrefixed` with a list of what was encoded."""

    name: str
    stateful: bool = False
    tally: list[bytes] = attrs.field(factory=list, eq=False)

    def reader(self) -> Reader[bytes]:
        return LengthPrefixed().reader()

    def writer(self) -> Writer[bytes]:
        return (StatefulWriter if self.stateful else TalliedWriter)(self.tally)


async def silent(connection: Connection[Any, Any]) -> None:
    async for _ in connection:
        pass


async def dial(
    stack: contextlib.AsyncExitStack,
    listener: MemoryListener,
    server: Server[Any, Any],
    pair: StreamPair = trio.testing.memory_stream_pair,
) -> tuple[BytesConnection, Connection[Any, Any]]:
    """A new connection: the client's end and the server's."""
    before = server.connections
    client = await stack.enter_async_context(open_connection(listener.dial(pair)))
    await trio.testing.wait_all_tasks_blocked()
    (theirs,) = server.connections - before
    return client, theirs


@pytest.fixture
async def listener() -> AsyncIterator[MemoryListener]:
    async with MemoryListener() as listener:
        yield listener


async def test_a_broadcast_reaches_everyone_but_the_excluded(
    nursery: trio.Nursery, listener: MemoryListener
) -> None:
    server = Server(silent)
    await nursery.start(server.serve_listeners, [listener])
    async with contextlib.AsyncExitStack() as stack:
        clients, theirs = zip(*[await dial(stack, listener, server) for _ in range(4)], strict=True)
        assert server.broadcast(b"to all") == BroadcastResult(queued=4, skipped=0)
        assert server.broadcast(b"but 0", exclude=theirs[0]).queued == 3
        assert server.broadcast(b"but 0, 1", exclude=theirs[:2]).queued == 2
        assert server.broadcast(b"but 0, 1, 2", exclude=set(theirs[:3])).queued == 1
        assert server.broadcast(b"none", exclude=server.connections).queued == 0
        assert server.broadcast(b"end").queued == 4
        expected = [b"to all", b"but 0", b"but 0, 1", b"but 0, 1, 2", b"end"]
        for number, client in enumerate(clients):
            for message in [expected[0], *expected[1:4][:number], expected[4]]:
                assert await client.receive() == message


async def test_a_broadcast_is_encoded_once_for_each_codec(
    nursery: trio.Nursery, listener: MemoryListener
) -> None:
    one, same, two = Tallied("one"), Tallied("one"), Tallied("two")
    stateful, replaced = Tallied("stateful", stateful=True), Tallied("replaced")
    codecs = [one, one, same, two, two, stateful, stateful, replaced, replaced]
    server: Server[bytes, bytes] = Server(silent, codec=one)
    remaining = list(codecs)

    @server.on_connect
    async def choose(connection: Connection[bytes, bytes]) -> None:
        codec = remaining.pop(0)
        if codec is replaced:
            connection.writer = codec.writer()
        else:
            connection.use(codec)

    await nursery.start(server.serve_listeners, [listener])
    async with contextlib.AsyncExitStack() as stack:
        clients = [(await dial(stack, listener, server))[0] for _ in codecs]
        assert server.broadcast(b"news").queued == 9
        assert len(one.tally) + len(same.tally) == 1
        assert len(two.tally) == 1
        assert len(stateful.tally) == 2
        assert len(replaced.tally) == 2
        for client in clients:
            assert await client.receive() == b"news"


async def test_a_broadcast_that_one_codec_cannot_encode_is_queued_for_no_one(
    nursery: trio.Nursery, listener: MemoryListener
) -> None:
    server: Server[Any, Any] = Server(silent)

    @server.on_connect
    async def choose(connection: Connection[Any, Any]) -> None:
        if len(server.connections) == 3:
            connection.use(Lines())

    await nursery.start(server.serve_listeners, [listener])
    async with contextlib.AsyncExitStack() as stack:
        pairs = [await dial(stack, listener, server) for _ in range(5)]
        for wrong in (b"bytes are no line", 5):
            with pytest.raises(EncodeError):
                server.broadcast(wrong)
        assert server.statistics().messages_sent == 0
        assert all(theirs.statistics().bytes_queued == 0 for _, theirs in pairs)
        server.broadcast(b"fine", exclude=pairs[2][1])
        assert await pairs[0][0].receive() == b"fine"


async def test_a_broadcast_that_a_stateful_writer_cannot_encode(
    nursery: trio.Nursery, listener: MemoryListener
) -> None:
    server: Server[bytes, bytes] = Server(silent, codec=Tallied("one", stateful=True))
    await nursery.start(server.serve_listeners, [listener])
    async with contextlib.AsyncExitStack() as stack:
        client, _ = await dial(stack, listener, server)
        with pytest.raises(EncodeError, match="no such word"):
            server.broadcast(b"unspeakable")
        server.broadcast(b"speakable")
        assert await client.receive() == b"speakable"


@pytest.mark.parametrize("when_full", ["skip", "close"])
async def test_a_broadcast_does_not_wait_for_a_client_whose_queue_is_full(
    nursery: trio.Nursery,
    listener: MemoryListener,
    caplog: pytest.LogCaptureFixture,
    when_full: Any,
) -> None:
    server = Server(silent, write_buffer_size=1000)
    await nursery.start(server.serve_listeners, [listener])
    async with contextlib.AsyncExitStack() as stack:
        quick, _ = await dial(stack, listener, server)
        slow, theirs = await dial(stack, listener, server, trio.testing.lockstep_stream_pair)
        results = []
        for _number in range(3):
            results.append(server.broadcast(b"x" * 2000, when_full=when_full))
            assert await quick.receive() == b"x" * 2000
        if when_full == "skip":
            assert results == [BroadcastResult(queued=2, skipped=0)] + 2 * [
                BroadcastResult(queued=1, skipped=1)
            ]
            assert theirs.close_reason is None
            assert await slow.receive() == b"x" * 2000
            await trio.testing.wait_all_tasks_blocked()
            assert server.broadcast(b"again").queued == 2
            assert await slow.receive() == b"again"
            assert server.statistics().broadcasts_skipped == 2
            assert logged(caplog) == []
        else:
            assert results == [
                BroadcastResult(queued=2, skipped=0),
                BroadcastResult(queued=1, skipped=1),
                BroadcastResult(queued=1, skipped=0),
            ]
            await trio.testing.wait_all_tasks_blocked()
            assert type(theirs.close_reason) is QueueFullError
            assert server.statistics().broadcasts_skipped == 1
            record = only_record(caplog)
            assert record.levelno == logging.WARNING
            assert record.exc_info is None
            assert "write_buffer_size and when_full" in record.getMessage()


@pytest.mark.parametrize(
    ("when_full", "ending"), [("skip", Ending.END_OF_STREAM), ("close", Ending.QUEUE_FULL)]
)
async def test_a_broadcast_to_who_has_finished_and_takes_nothing_is_no_failure_of_the_handlers(
    when_full: Any, ending: Ending, caplog: pytest.LogCaptureFixture
) -> None:
    go_on = trio.Event()

    async def answer(connection: BytesConnection) -> None:
        await connection.send(bytes(100_000))
        try:
            await connection.receive()
        finally:
            await go_on.wait()

    server = Server(answer, write_buffer_size=1000)
    ours, peer = tight_unix()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve_stream, ours)
        await peer.send_eof()
        await trio.testing.wait_all_tasks_blocked()
        assert server.broadcast(b"x", when_full=when_full).skipped == 1
        go_on.set()
        await read_to_end(peer)
    assert endings(server) == {ending: 1}
    assert [record.exc_info for record in caplog.records] == [None] * (when_full == "close")
    await peer.aclose()


async def test_a_broadcast_leaves_out_who_is_about_to_go_on_under_tls(tls: Tls) -> None:
    async def secure(connection: BytesConnection) -> None:
        await connection.send(bytes(200_000))
        await connection.start_tls(tls.server)
        await connection.receive()

    server = Server(secure)
    ours, theirs = tight_unix()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve_stream, ours)
        await trio.testing.wait_all_tasks_blocked()
        assert server.broadcast(b"news") == BroadcastResult(queued=0, skipped=1)
        assert await read_exactly(theirs, 200_004) == frame(bytes(200_000))
        peer = tls.at_client(theirs)
        await peer.do_handshake()
        await peer.aclose()


@attrs.frozen
class Unhashable(LengthPrefixed):
    names: list[str] = attrs.field(factory=list)


async def test_codecs_without_a_hash_can_be_broadcast_to() -> None:
    async def use_its_own(connection: BytesConnection) -> None:
        connection.use(Unhashable())
        async for message in connection:
            await connection.send(message)

    for handler, codec in (use_its_own, LengthPrefixed()), (echo, Unhashable()):
        server = Server(handler, codec=codec)
        async with (
            open_memory_connection(server) as one,
            open_memory_connection(server) as other,
        ):
            for client in one, other:
                await client.send(b"x")
                assert await client.receive() == b"x"
            assert server.broadcast(b"news").queued == 2
            assert await one.receive() == await other.receive() == b"news"


class Defective(Writer[bytes]):
    def encode(self, message: bytes) -> bytes:
        raise OopsError


class DefectiveLater(Defective):
    stateful = True


@attrs.frozen
class DefectiveCodec(Codec[bytes, bytes]):
    def reader(self) -> Reader[bytes]:
        return LengthPrefixed().reader()

    def writer(self) -> Writer[bytes]:
        return Defective()


def use_defective(connection: BytesConnection) -> None:
    connection.writer = Defective()


def use_defective_later(connection: BytesConnection) -> None:
    connection.writer = DefectiveLater()


def use_defective_codec(connection: BytesConnection) -> None:
    connection.use(DefectiveCodec())


@attrs.frozen
class StatefulDefectiveCodec(DefectiveCodec):
    def writer(self) -> Writer[bytes]:
        return DefectiveLater()


@pytest.mark.parametrize("use", [use_defective, use_defective_later, use_defective_codec])
async def test_a_broadcast_reaches_the_others_though_one_connections_writer_fails(
    use: Callable[[BytesConnection], None], caplog: pytest.LogCaptureFixture
) -> None:
    async def become_defective(connection: BytesConnection) -> None:
        async for _ in connection:
            use(connection)
            faulty.append(connection)
            await noticing.wait()

    faulty: list[BytesConnection] = []
    noticing = trio.Event()
    server = Server(become_defective)
    async with open_memory_connection(server) as one, open_memory_connection(server) as other:
        await one.send(b"now")
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(2):
            assert server.broadcast(b"hello") == BroadcastResult(queued=1, skipped=0)
            assert await other.receive() == b"hello"
        noticing.set()
        with pytest.raises(trio.EndOfChannel):
            await one.receive()
    assert isinstance(faulty[0].close_reason, OopsError)
    assert only_record(caplog).levelno == logging.ERROR


@pytest.mark.parametrize("codec", [DefectiveCodec(), StatefulDefectiveCodec()])
async def test_a_broadcast_that_the_codec_fails_at_is_its_callers_affair(
    codec: Codec[bytes, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    server = Server(sleep_until_closed, codec=codec)
    async with open_memory_connection(server):
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(OopsError):
            server.broadcast(b"hello")
        assert len(server.connections) == 1
    assert logged(caplog) == []


async def test_a_broadcast_disconnects_nobody_because_our_own_listeners_are_slow() -> None:
    server = Server(sleep_forever)
    never = trio.Event()

    @server.message_written.connect
    async def hang(event: MessageWritten) -> None:
        await never.wait()

    ours, peer = memory()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve_stream, ours)
        await trio.testing.wait_all_tasks_blocked()
        result = BroadcastResult(queued=1, skipped=0)
        while result.queued:
            result = server.broadcast(b"", when_full="close")
        assert result.skipped == 1
        (connection,) = server.connections
        await trio.testing.wait_all_tasks_blocked()
        assert "open" in repr(connection)
        never.set()
        await trio.testing.wait_all_tasks_blocked()
        assert server.broadcast(b"").queued == 1
        nursery.cancel_scope.cancel()
    await peer.aclose()


async def test_broadcasts_and_sent_messages_keep_the_order_of_the_calls(
    nursery: trio.Nursery, listener: MemoryListener
) -> None:
    server = Server(silent)
    await nursery.start(server.serve_listeners, [listener])
    async with contextlib.AsyncExitStack() as stack:
        client, theirs = await dial(stack, listener, server)
        for number in range(0, 30, 3):
            server.broadcast(b"%d" % number)
            await theirs.send(b"%d" % (number + 1))
            theirs.send_nowait(b"%d" % (number + 2))
        for number in range(30):
            assert await client.receive() == b"%d" % number


async def test_a_broadcast_leaves_out_connections_that_are_closing_or_not_ready(
    nursery: trio.Nursery, listener: MemoryListener
) -> None:
    server = Server(silent)
    may_enter = trio.Event()
    may_leave = trio.Event()

    @server.on_connect
    async def greet(connection: BytesConnection) -> None:
        if len(server.connections) == 4:
            assert server.broadcast(b"someone comes").queued == 1
            await may_enter.wait()

    @server.on_message
    async def close(connection: BytesConnection, message: bytes) -> None:
        if message == b"half":
            await connection.send_eof()
        await connection.aclose()
        await may_leave.wait()

    await nursery.start(server.serve_listeners, [listener])
    async with contextlib.AsyncExitStack() as stack:
        stays, _ = await dial(stack, listener, server)
        closed, _ = await dial(stack, listener, server)
        half, theirs = await dial(stack, listener, server)
        await closed.send(b"whole")
        await theirs.send_eof()
        await trio.testing.wait_all_tasks_blocked()
        comes, _ = await dial(stack, listener, server)
        assert server.broadcast(b"news") == BroadcastResult(queued=1, skipped=0)
        assert await stays.receive() == b"someone comes"
        assert await stays.receive() == b"news"
        for gone in (closed, half):
            with pytest.raises(trio.EndOfChannel):
                await gone.receive()
        may_enter.set()
        may_leave.set()
        await trio.testing.wait_all_tasks_blocked()
        assert server.broadcast(b"more").queued == 2
        assert await comes.receive() == b"more"


@pytest.mark.parametrize("listening", [False, True])
async def test_broadcasts_to_a_client_that_has_gone_unnoticed_reach_the_others(
    nursery: trio.Nursery, tmp_path: Path, listening: bool
) -> None:
    server = Server(silent, write_buffer_size=1000)
    if listening:
        server.message_written.subscribe()
    await nursery.start(server.serve_unix, tmp_path / "s")
    async with open_unix_connection(tmp_path / "s") as one:
        gone = await trio.open_unix_socket(tmp_path / "s")
        async with open_unix_connection(tmp_path / "s") as two:
            while len(server.connections) < 3:
                await trio.lowlevel.checkpoint()
            gone.socket.close()
            # Its task has not run since. As more than write_buffer_size is queued, the second
            # broadcast tries to write, and finds out.
            assert server.broadcast(b"1" * 2000) == BroadcastResult(queued=3, skipped=0)
            assert server.broadcast(b"2" * 2000) == BroadcastResult(queued=2, skipped=0)
            for connection in (one, two):
                assert await connection.receive() == b"1" * 2000
                assert await connection.receive() == b"2" * 2000


async def test_message_written_comes_for_broadcasts_too(
    nursery: trio.Nursery, listener: MemoryListener
) -> None:
    server = Server(silent)
    await nursery.start(server.serve_listeners, [listener])
    async with contextlib.AsyncExitStack() as stack:
        _, theirs = await dial(stack, listener, server)
        async with server.message_written.subscribe() as written:
            server.broadcast(b"news")
            assert await written.receive() == MessageWritten(theirs, b"news")


async def test_a_wrong_policy_for_full_queues() -> None:
    mistake: Any = "wait"
    with pytest.raises(ValueError, match="when_full must be 'skip' or 'close', not 'wait'"):
        Server(echo).broadcast(b"news", when_full=mistake)


async def test_a_broadcast_with_no_one_there() -> None:
    assert Server(echo).broadcast(b"news") == BroadcastResult(queued=0, skipped=0)


# -- looking


async def test_connections_and_statistics(nursery: trio.Nursery, listener: MemoryListener) -> None:
    server = Server(echo)
    assert server.connections == frozenset()
    assert not server.is_running
    await nursery.start(server.serve_listeners, [listener])
    assert server.is_running
    async with contextlib.AsyncExitStack() as stack:
        one, theirs = await dial(stack, listener, server)
        two, other = await dial(stack, listener, server)
        assert server.connections == {theirs, other}
        await talk(one, b"12345")
        await talk(two, b"123")
        await talk(two, b"")
        await two.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert server.connections == {theirs}
        for _ in range(2):  # looking changes nothing
            numbers = server.statistics()
            assert attrs.asdict(numbers) == {
                "connections": 1,
                "connections_total": 2,
                "connections_accepted": 2,
                "connections_refused": 0,
                "endings": dict.fromkeys(Ending, 0) | {Ending.END_OF_STREAM: 1},
                "handshakes": 0,
                "handshakes_failed": 0,
                "handshakes_timed_out": 0,
                "listeners": 1,
                "listeners_at_limit": 0,
                "listeners_out_of_resources": 0,
                "times_at_limit": 0,
                "times_out_of_resources": 0,
                "messages_received": 3,
                "messages_sent": 3,
                "bytes_received": 3 * 4 + 5 + 3,
                "bytes_sent": 3 * 4 + 5 + 3,
                "chunks_received": 3,
                "flushes": 3,
                "bytes_queued": 0,
                "most_bytes_queued": 4 + 5,
                "bytes_undecoded": 0,
                "senders_waiting": 0,
                "broadcasts_skipped": 0,
                "subscriptions": 0,
                "events_waiting": 0,
                "events_dropped": 0,
            }


def endings(server: Server[Any, Any]) -> dict[Ending, int]:
    """Those that have come."""
    return {ending: count for ending, count in server.statistics().endings.items() if count}


async def close_it(_server: BytesServer, client: trio.abc.Stream) -> None:
    await client.aclose()


async def say_nothing(_server: BytesServer, _client: trio.abc.Stream) -> None:
    pass


async def send_rubbish(_server: BytesServer, client: trio.abc.Stream) -> None:
    await client.send_all(b"GET / HTTP/1.1")


async def send_a_part(_server: BytesServer, client: trio.abc.Stream) -> None:
    await client.send_all(frame(b"hello")[:-1])


async def send_hello(_server: BytesServer, client: trio.abc.Stream) -> None:
    await client.send_all(frame(b"hello"))


async def stop_it(server: BytesServer, _client: trio.abc.Stream) -> None:
    server.stop(0)


async def fill_it(server: BytesServer, _client: trio.abc.Stream) -> None:
    for _ in range(3):
        server.broadcast(b"x" * 2000, when_full="close")


async def end_at_once(_connection: BytesConnection) -> None:
    pass


async def fail(_connection: BytesConnection) -> None:
    raise OopsError


async def fail_upstream(_connection: BytesConnection) -> None:
    raise trio.BrokenResourceError("another one")


async def swallow(connection: BytesConnection) -> None:
    with contextlib.suppress(ProtocolError, trio.BrokenResourceError):
        await connection.receive()


async def check_a_rule(connection: BytesConnection) -> None:
    raise ProtocolError(f"not {await connection.receive()!r}")


async def greet_in_vain(connection: BytesConnection) -> None:
    await trio.sleep(1)
    await connection.send(b"hello")
    await connection.flush()


async def secure_in_vain(connection: BytesConnection) -> None:
    await connection.start_tls(ssl.create_default_context(ssl.Purpose.CLIENT_AUTH))


async def fail_when_written(connection: BytesConnection) -> None:
    connection.message_written.connect(lambda _event: fail(connection))
    await connection.send(b"hello")
    await trio.sleep(1)


@pytest.mark.parametrize(
    ("ending", "handler", "act"),
    [
        (Ending.END_OF_STREAM, echo, close_it),
        (Ending.CLOSED, end_at_once, say_nothing),
        (Ending.SERVER_STOPPED, sleep_forever, stop_it),
        (Ending.FAILED, fail, say_nothing),
        (Ending.FAILED, fail_upstream, say_nothing),
        (Ending.FAILED, fail_when_written, say_nothing),
        (Ending.PROTOCOL_ERROR, echo, send_rubbish),
        (Ending.PROTOCOL_ERROR, swallow, send_rubbish),
        (Ending.PROTOCOL_ERROR, check_a_rule, send_hello),
        (Ending.BROKEN, greet_in_vain, close_it),
        (Ending.MESSAGE_TIMEOUT, echo, send_a_part),
        (Ending.MESSAGE_TIMEOUT, swallow, send_a_part),
        (Ending.IDLE_TIMEOUT, echo, say_nothing),
        (Ending.SEND_TIMEOUT, echo, send_hello),
        (Ending.HANDSHAKE_TIMEOUT, secure_in_vain, say_nothing),
        (Ending.QUEUE_FULL, echo, fill_it),
    ],
)
async def test_endings_are_counted_by_their_kinds(
    autojump_clock: trio.testing.MockClock,
    ending: Ending,
    handler: Callable[[BytesConnection], Awaitable[None]],
    act: Callable[[BytesServer, trio.abc.Stream], Awaitable[None]],
) -> None:
    server = Server(
        handler,
        message_timeout=7,
        idle_timeout=11,
        send_timeout=7,
        handshake_timeout=7,
        write_buffer_size=1000,
    )
    pair: StreamPair = trio.testing.memory_stream_pair
    if ending in (Ending.SEND_TIMEOUT, Ending.QUEUE_FULL):
        pair = trio.testing.lockstep_stream_pair  # where a byte is taken when it is received
    ours, theirs = pair()
    async with trio.open_nursery() as nursery, server.events() as events, ours:
        nursery.start_soon(server.serve_stream, theirs)
        assert type(await events.receive()) is ClientConnected
        await act(server, ours)
        assert endings(server) in ({}, {ending: 1})
        while not isinstance(await events.receive(), ClientDisconnected):
            pass
        assert endings(server) == {ending: 1}  # whoever hears of the end finds it counted


async def test_cancelled_connections_are_counted_as_such_also_by_a_ctrl_c() -> None:
    async def interrupt(_connection: BytesConnection) -> None:
        raise KeyboardInterrupt

    server = Server(sleep_forever)
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(server.serve_stream, trio.testing.memory_stream_pair()[0])
        await trio.testing.wait_all_tasks_blocked()
        assert endings(server) == {}
        nursery.cancel_scope.cancel()
    assert endings(server) == {Ending.CANCELLED: 2}
    server.handler = interrupt
    with pytest.raises(KeyboardInterrupt):
        await server.serve_stream(trio.testing.memory_stream_pair()[0])
    assert endings(server) == {Ending.CANCELLED: 3}


async def test_a_connection_that_another_task_is_closing_has_a_reason_when_it_is_told_of() -> None:
    told = trio.Event()

    async def end_when_told(_connection: BytesConnection) -> None:
        await told.wait()

    server = Server(end_when_told)
    reasons: list[object] = []

    @server.on_disconnect
    async def note(connection: BytesConnection) -> None:
        reasons.append(connection.close_reason)

    ours, theirs = trio.testing.lockstep_stream_pair()
    async with trio.open_nursery() as closing, ours:
        async with trio.open_nursery() as serving:
            serving.start_soon(server.serve_stream, theirs)
            await trio.testing.wait_all_tasks_blocked()
            (connection,) = server.connections
            await connection.send(b"what no one takes")
            closing.start_soon(connection.aclose)
            await trio.testing.wait_all_tasks_blocked()
            told.set()
            await trio.testing.wait_all_tasks_blocked()
            assert endings(server) == {}
            serving.cancel_scope.cancel()
        assert endings(server) == {Ending.CANCELLED: 1}
        assert reasons == [CloseReason.CANCELLED]


async def test_listeners_and_their_waiting_are_counted(
    autojump_clock: trio.testing.MockClock,
) -> None:
    server = Server(echo, max_connections=1)
    one, two = MemoryListener(), MemoryListener()

    def counts() -> tuple[int, ...]:
        numbers = server.statistics()
        return numbers.listeners, numbers.listeners_at_limit, numbers.times_at_limit

    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve_listeners, [one, two])
        assert counts() == (2, 0, 0)
        async with open_connection(one.dial()) as first:
            await talk(first)
            assert counts() == (2, 1, 1)  # the other one learns of it when it has accepted
            async with open_connection(two.dial()):
                await trio.testing.wait_all_tasks_blocked()
                assert counts() == (2, 2, 2)
                assert server.statistics().connections == 1
                assert server.statistics().connections_accepted == 2
        await trio.testing.wait_all_tasks_blocked()
        assert server.statistics().connections_total == 2
        assert counts()[:2] == (2, 0)
        await one.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert counts()[:2] == (1, 0)
        assert server.statistics().connections == 0
        nursery.cancel_scope.cancel()
    assert counts()[:2] == (0, 0)


async def test_what_is_refused_is_counted_and_all_that_was_accepted_is_accounted_for(
    autojump_clock: trio.testing.MockClock, server_context: ssl.SSLContext
) -> None:
    server = Server(echo, max_connections=3, handshake_timeout=7)
    listener = MemoryListener()

    def check(accepted: int, refused: int, *handshakes: int) -> None:
        numbers = server.statistics()
        assert numbers.connections_total == 0
        assert (numbers.connections_accepted, numbers.connections_refused) == (accepted, refused)
        counted = numbers.handshakes, numbers.handshakes_failed, numbers.handshakes_timed_out
        assert counted == handshakes

    async with trio.open_nursery() as nursery, contextlib.AsyncExitStack() as stack:
        await nursery.start(
            functools.partial(server.serve_listeners, [listener], ssl_context=server_context)
        )
        for _ in range(3):
            client = await stack.enter_async_context(listener.dial())
        await trio.testing.wait_all_tasks_blocked()
        check(3, 0, 3, 0, 0)
        await client.send_all(b"GET / HTTP/1.1\r\n\r\n")
        await trio.testing.wait_all_tasks_blocked()
        check(3, 1, 2, 1, 0)
        await trio.sleep(8)
        check(3, 3, 0, 3, 2)
        await stack.enter_async_context(listener.dial())
        await trio.testing.wait_all_tasks_blocked()
        check(4, 3, 1, 3, 2)
        nursery.cancel_scope.cancel()
    check(4, 4, 0, 3, 2)  # it did not fail, it was cut short


async def test_what_waits_in_queues_is_added_up(
    nursery: trio.Nursery, listener: MemoryListener
) -> None:
    server = Server(silent, write_buffer_size=1000)
    await nursery.start(server.serve_listeners, [listener])
    async with contextlib.AsyncExitStack() as stack, trio.open_nursery() as senders:
        ours = trio.testing.lockstep_stream_pair
        (one, theirs), (two, others) = [await dial(stack, listener, server, ours) for _ in range(2)]
        await theirs.send(b"x" * 2000)
        await others.send(b"x" * 3000)
        senders.start_soon(others.send, b"waits")
        await trio.testing.wait_all_tasks_blocked()
        numbers = server.statistics()
        assert numbers.bytes_queued == 5008
        assert numbers.most_bytes_queued == 3004
        assert numbers.senders_waiting == 1
        assert await one.receive() == b"x" * 2000
        assert await two.receive() == b"x" * 3000
        assert await two.receive() == b"waits"
        await two.aclose()
        await trio.testing.wait_all_tasks_blocked()
        numbers = server.statistics()
        assert numbers.bytes_queued == numbers.senders_waiting == 0
        assert numbers.most_bytes_queued == 3004  # ever


async def test_bytes_that_are_no_message_yet_are_added_up(
    nursery: trio.Nursery, listener: MemoryListener
) -> None:
    server = Server(echo)
    await nursery.start(server.serve_listeners, [listener])
    async with listener.dial() as one, listener.dial() as two:
        for client in one, two:
            await client.send_all(frame(b"hello")[:-1])
        await trio.testing.wait_all_tasks_blocked()
        assert server.statistics().bytes_undecoded == 2 * (4 + 4)


async def test_subscriptions_and_what_they_dropped_are_counted_after_their_end_too() -> None:
    server = Server(echo)
    async with (
        server.events(buffer_size=2, overflow="drop_oldest") as newest,
        server.message_received.subscribe(buffer_size=1, overflow="drop_newest"),
        server.message_received.subscribe(),
        open_memory_connection(server) as connection,
    ):
        for _ in range(3):
            await talk(connection)
        numbers = server.statistics()
        assert numbers.subscriptions == 3
        # One heard of the connection, and of six messages or five that are written by now.
        assert numbers.events_dropped == newest.dropped + 2
        assert newest.dropped > 3
        assert numbers.events_waiting == 2 + 1 + 3
    assert server.statistics().subscriptions == 0
    assert server.statistics().events_waiting == 0
    assert server.statistics().events_dropped == newest.dropped + 2


def task_names() -> list[str]:
    """As a task dump shows them."""
    names = []
    task = trio.lowlevel.current_task()
    while task.parent_nursery is not None:
        task = task.parent_nursery.parent_task
    tasks = [task]
    while tasks:
        task = tasks.pop()
        names.append(task.name)
        for nursery in task.child_nurseries:
            tasks += nursery.child_tasks
    return names


async def test_a_task_dump_says_which_task_is_which_connections(
    nursery: trio.Nursery, listener: MemoryListener, tmp_path: Path
) -> None:
    server = Server(echo)
    port = await listen(nursery, server)
    path = str(tmp_path / "socket")
    await nursery.start(server.serve_unix, path)
    await nursery.start(server.serve_listeners, [listener])
    async with (
        open_tcp_connection(LOCALHOST, port) as by_tcp,
        open_unix_connection(path) as by_unix,
        open_connection(listener.dial()) as in_memory,
    ):
        for connection in by_tcp, by_unix, in_memory:
            await talk(connection)
        names = task_names()
        for acceptor in f"127.0.0.1:{port}", path, "MemoryListener":
            assert names.count(f"acceptor ({acceptor})") == 1
        for connection in server.connections:
            name = f"connection {connection.number}"
            if connection.remote_address:
                name += " ({}:{})".format(*connection.remote_address)
            assert names.count(name) == 1


async def test_a_task_dump_knows_a_connection_before_its_handshake_is_done(
    nursery: trio.Nursery, server_context: ssl.SSLContext
) -> None:
    server = Server(echo)
    port = await listen(nursery, server, ssl_context=server_context)
    async with await trio.open_tcp_stream(LOCALHOST, port) as stream:
        while not server.statistics().handshakes:
            await trio.lowlevel.checkpoint()
        address = "{}:{}".format(*stream.socket.getsockname())
        (name,) = (name for name in task_names() if name.startswith("connection "))
        assert re.fullmatch(rf"connection \d+ \({re.escape(address)}\)", name)


async def test_a_server_whose_signals_are_forwarded_by_hand_hears_nothing_else() -> None:
    server = Server(echo, forward_messages=False)
    async with server.events() as events:
        connection = await served_end(server)
        assert waiting_in(events) == [ClientConnected(connection), ClientDisconnected(connection)]


# -- settings and types


def not_async(_connection: BytesConnection) -> None:
    raise AssertionError


SECONDS = ("message_timeout", "send_timeout", "idle_timeout", "handshake_timeout", "close_timeout")


@pytest.mark.parametrize(
    ("setting", "value", "error"),
    [
        ("handler", 5, TypeError),
        ("handler", not_async, TypeError),
        ("codec", LengthPrefixed, TypeError),
        ("codec", "lines", TypeError),
        ("max_connections", 0, ValueError),
        ("max_connections", -1, ValueError),
        ("max_connections", 2.5, TypeError),
        ("max_connections", True, TypeError),
        ("forward_messages", "no", TypeError),
        ("write_buffer_size", 0, ValueError),
        ("write_buffer_size", 1e6, TypeError),
        ("write_buffer_size", None, TypeError),
        *((name, value, ValueError) for name in SECONDS for value in (0, -1, math.nan)),
        *((name, value, TypeError) for name in SECONDS for value in ("1", True)),
        ("max_size", 5, TypeError),
    ],
)
def test_a_wrong_setting_is_refused_by_name(
    setting: str, value: object, error: type[Exception]
) -> None:
    settings: dict[str, Any] = {setting: value}
    with pytest.raises(error, match=setting):
        Server(**settings)


def test_no_limit_is_none_or_infinity() -> None:
    for never in (None, math.inf):
        settings: dict[str, Any] = dict.fromkeys(SECONDS, never)
        server = Server(max_connections=None, **settings)
        assert all(getattr(server.limits, name) == math.inf for name in SECONDS)


@pytest.mark.parametrize("decorator", ["on_connect", "on_message", "on_disconnect"])
def test_a_hook_that_is_not_async_is_refused(decorator: str) -> None:
    with pytest.raises(TypeError, match="must be an async function"):
        getattr(Server(), decorator)(not_async)


def test_a_decorated_hook_stays_what_it_is() -> None:
    server = Server()
    for decorator in (server.on_connect, server.on_message, server.on_disconnect):

        async def hook(*_arguments: object) -> None:
            pass

        assert decorator(hook) is hook


def test_the_codec_gives_the_types_of_the_messages() -> None:
    async def handler(_connection: Connection[str, str]) -> None:
        raise AssertionError

    assert_type(Server(), Server[bytes, bytes])
    assert_type(Server(echo), Server[bytes, bytes])
    assert_type(Server(codec=Lines()), Server[str, str])
    assert_type(Server(handler, codec=Lines()), Server[str, str])


# -- streams that do not behave


@attrs.define(eq=False)
class Odd(trio.abc.Stream):
    """A stream that fails in a way that no stream should."""

    stream: trio.abc.Stream
    fails_to_receive: bool = False

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        if self.fails_to_receive:
            raise OSError("the tunnel is down")
        return await self.stream.receive_some(max_bytes)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self.stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self.stream.aclose()
        raise OSError("the tunnel cannot be closed")


async def test_a_stream_that_fails_to_close_is_logged_and_harms_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def handler(connection: Connection[bytes, bytes]) -> None:
        async for message in connection:
            await connection.send(message)

    server = Server(handler)
    ends = server.client_disconnected.subscribe()
    left, right = trio.testing.memory_stream_pair()
    await right.send_eof()
    await server.serve_stream(Odd(left))
    await right.aclose()
    assert (await ends.receive()).connection.close_reason is CloseReason.END_OF_STREAM
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None
    ends.close()


async def test_a_stream_that_fails_in_the_handshake_is_logged_and_harms_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    left, right = trio.testing.memory_stream_pair()
    with contextlib.suppress(OSError):  # of closing it
        await Server().serve_stream(Odd(left, fails_to_receive=True), ssl_context=context)
    await right.aclose()
    assert "the tunnel is down" in caplog.text


async def test_cancelled_server_without_time_limits_does_not_wait_for_ever_for_a_subscriber(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(connection: Connection[bytes, bytes]) -> None:
        await trio.sleep_forever()

    server = Server(handler, close_timeout=None)
    subscription = server.events(
        buffer_size=1
    )  # which nobody reads, and which ClientConnected fills
    left, right = trio.testing.memory_stream_pair()
    start = trio.current_time()
    with trio.move_on_after(1):
        await server.serve_stream(left)
    assert trio.current_time() - start == 11
    assert "did not take" in caplog.text
    subscription.close()
    await right.aclose()


async def test_a_written_hook_that_meets_a_peers_reset_has_not_failed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    written = trio.Event()
    was_reset = trio.Event()

    async def on_written(event: MessageWritten) -> None:
        written.set()
        await was_reset.wait()
        while True:
            await event.connection.send(b"acknowledged")
            await event.connection.flush()

    server = Server(echo)
    server.message_written.connect(on_written)
    ours, theirs = tcp()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve_stream, ours)
        await theirs.send_all(frame(b"hello"))
        await written.wait()
        reset(theirs)
        was_reset.set()
    assert fields_of(only_record(caplog))["event"] == "connection_ended"
    assert endings(server) == {Ending.BROKEN: 1}


async def test_a_task_that_waits_for_tls_is_not_blamed_for_a_handshake_that_is_not_begun(
    tls: Tls, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def secure(connection: BytesConnection) -> None:
        await connection.receive()
        await connection.send(bytes(200_000))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.start_tls, tls.server)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(connection.send, b"secret")

    server = Server(secure)
    ours, theirs = tight_unix()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve_stream, ours)
        await theirs.send_all(frame(b"STARTTLS") + frame(b"no handshake"))
        assert await read_to_end(theirs) == frame(bytes(200_000))
    assert fields_of(only_record(caplog))["error"] == "ProtocolError"
    assert endings(server) == {Ending.PROTOCOL_ERROR: 1}
    await theirs.aclose()


async def test_a_handlers_own_failure_is_logged_though_a_hook_had_failed_before(
    caplog: pytest.LogCaptureFixture,
) -> None:
    failed = trio.Event()

    async def fail_later(connection: BytesConnection) -> None:
        await connection.send(b"x")
        await failed.wait()
        raise OopsError

    server = Server(fail_later)

    async def on_written(_event: MessageWritten) -> None:
        failed.set()
        raise ValueError("hook")

    server.message_written.connect(on_written)
    async with open_memory_connection(server) as client:
        async for _ in client:
            pass
    assert [fields_of(record)["event"] for record in caplog.records] == [
        "written_hook_failed",
        "handler_failed",
    ]
    assert endings(server)[Ending.FAILED] == 1


async def test_what_a_failed_written_hook_brings_about_is_not_blamed_on_anyone_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    failure = ValueError("hook")
    reasons: list[object] = []

    async def echo(connection: Connection[bytes, bytes]) -> None:
        async for message in connection:
            await connection.send(message)

    server = Server(echo)

    async def on_written(_event: MessageWritten) -> None:
        raise failure

    @server.on_disconnect
    async def on_disconnect(connection: Connection[bytes, bytes]) -> None:
        reasons.append(connection.close_reason)

    server.message_written.connect(on_written)
    async with open_memory_connection(server) as client:
        await client.send(b"x")
        assert await client.receive() == b"x"
        with pytest.raises(trio.EndOfChannel):
            await client.receive()
    assert reasons == [failure]
    (record,) = caplog.records
    assert "message_written hook failed" in record.getMessage()
