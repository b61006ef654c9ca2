"""``trio_bytetalk.testing``: connections without sockets, and streams cut as told."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable
from typing import Any, assert_type

import pytest
import trio
import trio.testing

from trio_bytetalk import (
    ClientConnected,
    ClientDisconnected,
    CloseReason,
    Connection,
    LengthPrefixed,
    Lines,
    MessageReceived,
    MessageWritten,
    Server,
    open_connection,
)
from trio_bytetalk.testing import CuttingStream, connection_pair, open_memory_connection


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


# -- CuttingStream


def cutting(
    data: bytes, *, sizes: Iterable[int] = (), delays: Iterable[float] = ()
) -> CuttingStream:
    """A stream from which ``data`` can be read, and then its end."""
    _, theirs = trio.testing.memory_stream_pair()
    theirs.receive_stream.put_data(data)
    theirs.receive_stream.put_eof()
    return CuttingStream(theirs, sizes=sizes, delays=delays)


async def test_reads_are_cut_as_told_and_then_no_more() -> None:
    stream = cutting(b"abcdefghij", sizes=[1, 2, 100])
    assert [chunk async for chunk in stream] == [b"a", b"bc", b"defghij"]
    stream = cutting(b"abcdefghij", sizes=[4])
    assert [chunk async for chunk in stream] == [b"abcd", b"efghij"]
    stream = cutting(b"abcdefghij")
    assert [chunk async for chunk in stream] == [b"abcdefghij"]


async def test_endless_numbers_cut_every_read() -> None:
    stream = cutting(b"abcdefg", sizes=itertools.cycle([1, 2]))
    assert [chunk async for chunk in stream] == [b"a", b"bc", b"d", b"ef", b"g"]
    stream = cutting(b"abc", sizes=itertools.repeat(1))
    assert [chunk async for chunk in stream] == [b"a", b"b", b"c"]


async def test_the_readers_own_maximum_counts_too() -> None:
    stream = cutting(b"abcdefghij", sizes=[3, 3])
    assert await stream.receive_some(2) == b"ab"
    assert await stream.receive_some(100) == b"cde"
    assert await stream.receive_some(4) == b"fghi"
    assert await stream.receive_some() == b"j"
    assert await stream.receive_some() == b""


async def test_reads_are_delayed_as_told(autojump_clock: trio.testing.MockClock) -> None:
    stream = cutting(b"abcd", sizes=itertools.repeat(1), delays=[3, 0, 5])
    times = [trio.current_time() async for _ in stream]
    assert times == [3, 3, 8, 8]


async def test_a_cancelled_read_loses_nothing(autojump_clock: trio.testing.MockClock) -> None:
    stream = cutting(b"abcd", sizes=itertools.repeat(2), delays=[10, 0, 10])
    with trio.move_on_after(1):
        await stream.receive_some()
    assert await stream.receive_some() == b"ab"
    with trio.move_on_after(1):
        await stream.receive_some()
    with trio.CancelScope() as scope:
        scope.cancel()
        await stream.receive_some()
    assert await stream.receive_some() == b"cd"


@pytest.mark.parametrize("size", [0, -1])
async def test_sizes_that_would_look_like_the_end_are_refused(size: int) -> None:
    stream = cutting(b"abcd", sizes=[size])
    with pytest.raises(ValueError, match=f"sizes must be 1 or more, not {size}"):
        await stream.receive_some()
    with pytest.raises(ValueError, match=f"max_bytes must be 1 or more, not {size}"):
        await stream.receive_some(size)
    assert await stream.receive_some() == b"abcd"


async def test_the_end_is_an_end_whatever_the_sizes() -> None:
    stream = cutting(b"", sizes=[5, 5])
    assert await stream.receive_some() == b""
    assert await stream.receive_some() == b""


async def test_what_is_written_goes_through_and_so_do_half_closing_and_closing() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    async with CuttingStream(ours, sizes=itertools.repeat(1)) as stream:
        await stream.wait_send_all_might_not_block()
        await stream.send_all(b"hello")
        assert await theirs.receive_some() == b"hello"
        await stream.send_eof()
        assert await theirs.receive_some() == b""
        await theirs.send_all(b"yes")
        assert await stream.receive_some() == b"y"
    with pytest.raises(trio.BrokenResourceError):
        await theirs.send_all(b"?")


async def test_a_connection_over_a_stream_cut_to_single_bytes() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    cut = CuttingStream(theirs, sizes=itertools.repeat(1))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Server(echo).serve_stream, cut)
        async with open_connection(ours, codec=LengthPrefixed()) as connection:
            for message in (b"", b"hello", b"x" * 300):
                await connection.send(message)
                assert await connection.receive() == message
