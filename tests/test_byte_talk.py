"""What the users of the C++ ancestor, byte_talk, have: one test for each thing."""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from collections.abc import Iterator
from typing import Any, Literal

import pytest
import trio
import trio.testing

from trio_bytetalk import (
    NEED_DATA,
    ClientConnected,
    CloseReason,
    Connection,
    LengthPrefixed,
    Lines,
    MessageReceived,
    MessageWritten,
    NeedData,
    Reader,
    ReceiveBuffer,
    Server,
    Writer,
    open_tcp_connection,
)
from trio_bytetalk.testing import open_memory_connection

AnyConnection = Connection[Any, Any]

LOCALHOST = "127.0.0.1"


async def echo(connection: AnyConnection) -> None:
    async for message in connection:
        await connection.send(message)


async def talk(connection: AnyConnection, message: bytes = b"hello") -> None:
    await connection.send(message)
    assert await connection.receive() == message


async def listen(nursery: trio.Nursery, server: Server[Any, Any]) -> int:
    serve = functools.partial(server.serve_tcp, 0, host=LOCALHOST)
    listeners: list[trio.SocketListener] = await nursery.start(serve)
    port: int = listeners[0].socket.getsockname()[1]
    return port


class PairReader(Reader[bytes]):
    """A protocol of a user's own: every message has two bytes."""

    def decode(self, buffer: ReceiveBuffer) -> bytes | Literal[NeedData.NEED_DATA]:
        message = buffer.take(2)
        return NEED_DATA if message is None else message


class PairWriter(Writer[bytes]):
    def encode(self, message: bytes) -> bytes:
        return message


async def test_each_connections_reader_and_writer_are_chosen_in_the_connect_hook() -> None:
    server: Server[Any, Any] = Server(echo)
    choices: Iterator[str] = iter(["pairs", "lines", "default"])

    @server.on_connect
    async def choose(connection: AnyConnection) -> None:
        choice = next(choices)
        if choice == "pairs":
            connection.reader = PairReader()
            connection.writer = PairWriter()
        elif choice == "lines":
            connection.use(Lines())

    async with open_memory_connection(server) as pairs:
        pairs.reader = PairReader()
        pairs.writer = PairWriter()
        await pairs.send(b"abcd")
        assert await pairs.receive() == b"ab"
        assert await pairs.receive() == b"cd"
        async with open_memory_connection(server) as lines:
            lines.use(Lines())
            await lines.send("a line")
            assert await lines.receive() == "a line"
            async with open_memory_connection(server) as default:
                await talk(default)


async def test_a_connections_signals_are_forwarded_to_the_servers() -> None:
    server = Server(echo, forward_messages=False)

    @server.on_connect
    async def forward(connection: AnyConnection) -> None:
        if len(server.connections) == 1:
            connection.message_received.connect(server.message_received)
            connection.message_written.connect(server.message_written)

    async with (
        server.message_received.subscribe() as received,
        server.message_written.subscribe() as written,
        open_memory_connection(server) as forwarded,
    ):
        await talk(forwarded, b"forwarded")
        (theirs,) = server.connections
        async with open_memory_connection(server) as quiet:
            await talk(quiet, b"quiet")
        await talk(forwarded, b"again")
        for message in (b"forwarded", b"again"):
            assert await received.receive() == MessageReceived(theirs, message)
            assert await written.receive() == MessageWritten(theirs, message)


async def test_each_connections_signals_are_handled_by_themselves() -> None:
    server = Server(echo, forward_messages=False)
    heard: dict[str, list[object]] = {"first": [], "second": []}

    @server.on_connect
    async def listen_to_each(connection: AnyConnection) -> None:
        name = "first" if len(server.connections) == 1 else "second"

        async def hear(event: MessageReceived | MessageWritten) -> None:
            assert event.connection is connection
            heard[name].append((type(event), event.message))

        connection.message_received.connect(hear)
        connection.message_written.connect(hear)

    async with server.events() as events, open_memory_connection(server) as first:
        await talk(first, b"1")
        async with open_memory_connection(server) as second:
            await talk(second, b"2")
            await trio.testing.wait_all_tasks_blocked()
            kinds = [type(events.receive_nowait()) for _ in range(2)]
            assert kinds == [ClientConnected, ClientConnected]
            with pytest.raises(trio.WouldBlock):
                events.receive_nowait()
    assert heard == {
        "first": [(MessageReceived, b"1"), (MessageWritten, b"1")],
        "second": [(MessageReceived, b"2"), (MessageWritten, b"2")],
    }


async def test_each_client_has_its_context() -> None:
    server = Server()

    @server.on_connect
    async def begin(connection: AnyConnection) -> None:
        assert connection.context is None
        connection.context = {"count": 0}

    @server.on_message
    async def count(connection: AnyConnection, message: bytes) -> None:
        connection.context["count"] += 1
        await connection.send(b"%d" % connection.context["count"])

    async with open_memory_connection(server) as one, open_memory_connection(server) as two:
        for connection, expected in ((one, b"1"), (one, b"2"), (two, b"1"), (one, b"3")):
            await connection.send(b"count")
            assert await connection.receive() == expected
        counts = sorted(connection.context["count"] for connection in server.connections)
        assert counts == [1, 3]


async def test_a_client_is_written_to_from_anywhere(nursery: trio.Nursery) -> None:
    server = Server(echo)
    async with open_memory_connection(server) as client:
        await talk(client)
        (theirs,) = server.connections

        async def write() -> None:
            await theirs.send(b"from another task")

        nursery.start_soon(write)
        assert await client.receive() == b"from another task"
        theirs.send_nowait(b"without waiting")
        assert await client.receive() == b"without waiting"
        await trio.to_thread.run_sync(trio.from_thread.run, theirs.send, b"from another thread")
        assert await client.receive() == b"from another thread"


async def test_a_client_is_disconnected_from_anywhere(nursery: trio.Nursery) -> None:
    server = Server(echo)
    async with open_memory_connection(server) as client:
        await talk(client)
        (theirs,) = server.connections
        async with server.client_disconnected.subscribe() as events:
            nursery.start_soon(theirs.aclose)
            with pytest.raises(trio.EndOfChannel):
                await client.receive()
            assert (await events.receive()).connection is theirs
        assert theirs.close_reason is CloseReason.CLOSED
        assert server.connections == frozenset()


async def test_the_server_is_stopped_and_says_whether_it_is_running() -> None:
    server = Server(echo)
    assert not server.is_running
    async with trio.open_nursery() as nursery:
        port = await listen(nursery, server)
        assert server.is_running
        async with open_tcp_connection(LOCALHOST, port) as client:
            await talk(client)
            server.stop()
            assert server.is_running  # until the last connection is done
            with pytest.raises(trio.EndOfChannel):
                await client.receive()
    assert not server.is_running
    with pytest.raises(ConnectionRefusedError):
        async with open_tcp_connection(LOCALHOST, port):
            raise AssertionError


async def test_a_thousand_connections_in_one_thread(nursery: trio.Nursery) -> None:
    resource = pytest.importorskip("resource")
    number = 1000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * number + 200
    if soft < needed:
        if 0 <= hard < needed:
            pytest.skip(f"the system allows {hard} descriptors; {needed} are needed")
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    threads = set(threading.enumerate())
    server = Server(echo)
    port = await listen(nursery, server)
    everyone_is_here = trio.Event()
    here = 0
    replies = []

    async def client(name: bytes) -> None:
        nonlocal here
        async with open_tcp_connection(LOCALHOST, port) as connection:
            await talk(connection, name)
            here += 1
            if here == number:
                everyone_is_here.set()
            await everyone_is_here.wait()
            await talk(connection, b"again " + name)
            assert len(server.connections) == number
            replies.append(await connection.receive())

    async with trio.open_nursery() as clients:
        for index in range(number):
            clients.start_soon(client, b"%d" % index)
        await everyone_is_here.wait()
        while server.statistics().messages_received < 2 * number:
            await trio.lowlevel.checkpoint()
        assert len(server.connections) == number
        assert server.broadcast(b"to all").queued == number
    assert replies == [b"to all"] * number
    # One that an earlier test left to Trio's thread cache may have gone.
    assert threads.issuperset(threading.enumerate())
    assert server.statistics().connections_total == number


async def test_other_connections_are_untouched_by_one_connections_error(
    nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    class OopsError(Exception):
        pass

    server: Server[bytes, bytes] = Server(codec=LengthPrefixed(max_size=100))

    @server.on_message
    async def echo_or_fail(connection: AnyConnection, message: bytes) -> None:
        if message == b"fail":
            raise OopsError
        await connection.send(message)

    port = await listen(nursery, server)
    with caplog.at_level(logging.CRITICAL, logger="trio_bytetalk"):
        async with contextlib.AsyncExitStack() as stack:
            others = [
                await stack.enter_async_context(open_tcp_connection(LOCALHOST, port))
                for _ in range(5)
            ]
            for fault in (b"fail", b"x" * 101):
                async with open_tcp_connection(LOCALHOST, port) as faulty:
                    await talk(faulty)
                    await faulty.send(fault)
                    with pytest.raises(trio.EndOfChannel):
                        await faulty.receive()
                for other in others:
                    await talk(other)
            assert len(server.connections) == 5
