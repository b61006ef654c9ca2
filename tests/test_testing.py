"""``trio_bytetalk.testing``: connections without sockets."""

from __future__ import annotations

import logging
from typing import Any, assert_type

import pytest
import trio
import trio.testing

from trio_bytetalk import (
    ClientConnected,
    ClientDisconnected,
    CloseReason,
    Connection,
    Lines,
    MessageReceived,
    MessageWritten,
    Server,
)
from trio_bytetalk.testing import connection_pair, open_memory_connection


class OopsError(Exception):
    """What the users' code of these tests raises."""


async def echo(connection: Connection[Any, Any]) -> None:
    async for message in connection:
        await connection.send(message)


async def sleep_forever(_connection: Connection[Any, Any]) -> None:
    await trio.sleep_forever()


# -- open_memory_connection


async def test_a_server_in_memory() -> None:
    server = Server(echo)
    async with open_memory_connection(server) as connection:
        assert_type(connection, Connection[bytes, bytes])
        await connection.send(b"hello")
        assert await connection.receive() == b"hello"
        assert len(server.connections) == 1
        assert server.is_running
    assert connection.close_reason is CloseReason.CLOSED
    assert not server.is_running


async def test_the_servers_codec_is_spoken() -> None:
    async with open_memory_connection(Server(echo, codec=Lines())) as connection:
        assert_type(connection, Connection[str, str])
        await connection.send("hello")
        assert await connection.receive() == "hello"


async def test_hooks_and_events_as_on_a_network() -> None:
    server = Server(echo)
    hooks = []

    @server.on_connect
    async def connected(connection: Connection[Any, Any]) -> None:
        hooks.append("connected")

    @server.on_disconnect
    async def disconnected(connection: Connection[Any, Any]) -> None:
        hooks.append("disconnected")

    async with server.events() as events:
        async with open_memory_connection(server) as connection:
            await connection.send(b"hello")
            assert await connection.receive() == b"hello"
        heard = [events.receive_nowait() for _ in range(4)]
        with pytest.raises(trio.WouldBlock):
            events.receive_nowait()
    kinds = [ClientConnected, MessageReceived, MessageWritten, ClientDisconnected]
    assert [type(event) for event in heard] == kinds
    assert heard[0].connection.close_reason is CloseReason.END_OF_STREAM
    assert hooks == ["connected", "disconnected"]


async def test_leaving_the_block_waits_for_the_handler(
    autojump_clock: trio.testing.MockClock,
) -> None:
    done = []

    async def thorough(connection: Connection[Any, Any]) -> None:
        async for _ in connection:
            pass
        await trio.sleep(3)
        done.append(connection)

    async with open_memory_connection(Server(thorough)) as connection:
        await connection.send(b"hello")
    assert len(done) == 1
    assert trio.current_time() == 3


async def test_a_handler_that_never_ends_is_cancelled_after_the_close_timeout(
    autojump_clock: trio.testing.MockClock,
) -> None:
    server = Server(sleep_forever, close_timeout=7)
    async with server.client_disconnected.subscribe() as events:
        async with open_memory_connection(server):
            await trio.sleep(100)
        assert trio.current_time() == 107
        event = events.receive_nowait()
    assert event.connection.close_reason is CloseReason.CANCELLED


@pytest.mark.parametrize("handler", [echo, sleep_forever])
@pytest.mark.parametrize("failure", [OopsError, KeyboardInterrupt, SystemExit])
async def test_an_exception_of_the_block_comes_out_as_it_is(
    autojump_clock: trio.testing.MockClock, handler: Any, failure: type[BaseException]
) -> None:
    error = failure("as it is")
    with pytest.raises(failure) as caught:
        async with open_memory_connection(Server(handler)) as connection:
            raise error
    assert caught.value is error
    assert connection.close_reason is CloseReason.CLOSED


async def test_a_cancelled_block_ends_at_once(autojump_clock: trio.testing.MockClock) -> None:
    for handler in (echo, sleep_forever):
        with trio.CancelScope() as scope:
            async with open_memory_connection(Server(handler)) as connection:
                scope.cancel()
                await connection.receive()
        assert scope.cancelled_caught
    assert trio.current_time() == 0


async def test_an_exception_of_the_handler_is_the_servers_affair(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail(_connection: Connection[Any, Any]) -> None:
        raise OopsError

    with caplog.at_level(logging.ERROR, logger="trio_bytetalk"):
        async with open_memory_connection(Server(fail)) as connection:
            with pytest.raises(trio.EndOfChannel):
                await connection.receive()
    assert len(caplog.records) == 1


async def test_a_server_that_ends_for_good_takes_the_block_with_it() -> None:
    async def fail(connection: Connection[Any, Any]) -> None:
        await connection.receive()
        raise KeyboardInterrupt

    with pytest.RaisesGroup(KeyboardInterrupt):
        async with open_memory_connection(Server(fail)) as connection:
            await connection.send(b"go")
            await trio.sleep_forever()


async def test_a_server_that_is_stopped() -> None:
    server = Server(echo)
    async with open_memory_connection(server) as connection:
        await connection.send(b"hello")
        assert await connection.receive() == b"hello"
        server.stop()
        with pytest.raises(trio.EndOfChannel):
            await connection.receive()


async def test_several_connections_to_one_server() -> None:
    server = Server(echo)
    async with open_memory_connection(server) as one, open_memory_connection(server) as two:
        await trio.testing.wait_all_tasks_blocked()
        assert server.broadcast(b"news").queued == 2
        assert await one.receive() == await two.receive() == b"news"


# -- connection_pair


async def test_a_pair_of_connections() -> None:
    left, right = connection_pair(Lines())
    assert_type(left, Connection[str, str])
    async with left, right:
        await left.send("from the left")
        await right.send("from the right")
        assert await left.receive() == "from the right"
        assert await right.receive() == "from the left"
        await left.aclose()
        assert [message async for message in right] == []
    assert left.close_reason is CloseReason.CLOSED
    assert right.close_reason is CloseReason.END_OF_STREAM
