"""The connection floor: a Trio channel of messages, over streams of each kind."""

from __future__ import annotations

import array
import contextlib
import gc
import logging
import signal
import ssl
import tracemalloc
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any, Literal

import attrs
import pytest
import trio
import trio.testing
from conftest import Connect, Tls, fields_of
from pairs import (
    TIGHT_KINDS,
    Pair,
    counted_writes,
    frame,
    memory,
    read_exactly,
    read_to_end,
    reset,
    tcp,
    tight_unix,
    unix,
)

from trio_bytetalk import (
    NEED_DATA,
    BroadcastResult,
    CloseReason,
    Codec,
    Connection,
    Delimited,
    EncodeError,
    Ending,
    GivenUpError,
    HandshakeTimeoutError,
    IdleTimeoutError,
    IncompleteMessageError,
    LengthPrefixed,
    LengthPrefixedReader,
    Lines,
    MessageReceived,
    MessageTimeoutError,
    MessageTooLargeError,
    MessageWritten,
    NeedData,
    ProtocolError,
    Reader,
    ReceiveBuffer,
    SendTimeoutError,
    Server,
    Writer,
    _transport,
    open_connection,
)
from trio_bytetalk._log import address_in_words
from trio_bytetalk.testing import FaultyStream, connection_pair, open_memory_connection

AnyConnection = Connection[Any, Any]


BUFFERED: dict[str, Callable[[], Pair]] = {"memory": memory, "unix": unix, "tcp": tcp}


@pytest.fixture(params=BUFFERED)
async def pair(request: pytest.FixtureRequest) -> AsyncIterator[Pair]:
    """Two connected streams that have room for what a test writes, of each kind in turn."""
    left, right = BUFFERED[request.param]()
    yield left, right
    await trio.aclose_forcefully(left)
    await trio.aclose_forcefully(right)


# -- a Trio channel, exactly


async def copy(source: trio.abc.ReceiveChannel[bytes], target: trio.abc.SendChannel[bytes]) -> None:
    """Code that has never heard of this package."""
    async with target:
        async for value in source:
            await target.send(value)


async def test_code_that_knows_trios_channels_only_can_use_it(pair: Pair, connect: Connect) -> None:
    left, right = map(connect, pair)
    assert isinstance(left, trio.abc.SendChannel)
    assert isinstance(left, trio.abc.ReceiveChannel)
    send, receive = trio.open_memory_channel[bytes](10)
    for number in range(3):
        await send.send(b"%d" % number)
    await send.aclose()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(copy, receive, left)
        assert [message async for message in right] == [b"0", b"1", b"2"]


async def test_after_a_clean_end_there_is_nothing_more_however_often_one_asks(
    pair: Pair, connect: Connect
) -> None:
    connection = connect(pair[0])
    await pair[1].send_all(frame(b"last"))
    await pair[1].send_eof()
    assert await connection.receive() == b"last"
    for _ in range(3):
        with pytest.raises(trio.EndOfChannel):
            await connection.receive()
    assert [message async for message in connection] == []
    await connection.send(b"still")  # the other direction is another matter
    await connection.aclose()
    assert connection.close_reason is CloseReason.END_OF_STREAM


async def test_end_in_the_middle_of_a_message_is_an_error(pair: Pair, connect: Connect) -> None:
    connection = connect(pair[0])
    await pair[1].send_all(frame(b"whole") + frame(b"cut")[:-1])
    await pair[1].send_eof()
    assert await connection.receive() == b"whole"
    for _ in range(2):
        with pytest.raises(IncompleteMessageError, match="6 bytes"):
            await connection.receive()


async def test_reset_is_a_broken_resource_however_often_one_asks(connect: Connect) -> None:
    left, right = tcp()
    connection = connect(left)
    await right.send_all(frame(b"whole"))
    assert await connection.receive() == b"whole"
    reset(right)
    for _ in range(2):
        with pytest.raises(trio.BrokenResourceError, match="reset"):
            await connection.receive()
    with pytest.raises(trio.BrokenResourceError, match="reset"):
        await connection.__anext__()
    await connection.aclose()
    assert isinstance(connection.close_reason, trio.BrokenResourceError)


async def test_closed_means_closed_even_with_messages_in_the_buffer(
    pair: Pair, connect: Connect
) -> None:
    connection = connect(pair[0])
    await pair[1].send_all(frame(b"one") + frame(b"two"))
    assert await connection.receive() == b"one"
    await connection.aclose()
    uses: list[Callable[[], Awaitable[object]]] = [
        connection.receive,
        connection.__anext__,
        lambda: connection.send(b"x"),
        connection.flush,
        connection.send_eof,
        lambda: connection.start_tls(ssl.create_default_context(), server_hostname="x"),
    ]
    for use in uses:
        with pytest.raises(trio.ClosedResourceError):
            await use()
    with pytest.raises(trio.ClosedResourceError):
        connection.send_nowait(b"x")
    assert connection.close_reason is CloseReason.CLOSED


async def test_waiting_task_hears_that_another_one_closes(pair: Pair, connect: Connect) -> None:
    connection = connect(pair[0])

    async def wait() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await connection.receive()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        await connection.aclose()


async def test_two_tasks_cannot_receive_at_once(pair: Pair, connect: Connect) -> None:
    connection = connect(pair[0])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.receive)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await connection.receive()
        with pytest.raises(trio.BusyResourceError, match="or this is a hook"):
            await connection.start_tls(ssl.create_default_context(), server_hostname="x")
        await pair[1].send_all(frame(b"for the first"))


async def test_announced_size_over_the_limit_is_refused_again_and_again(
    pair: Pair, connect: Connect
) -> None:
    connection = connect(pair[0], codec=LengthPrefixed(max_size=10))
    await pair[1].send_all(frame(b"fits") + frame(b"does not fit"))
    assert await connection.receive() == b"fits"
    for _ in range(2):
        with pytest.raises(MessageTooLargeError, match="max_size"):
            await connection.receive()
    with pytest.raises(MessageTooLargeError, match="max_size"):
        await connection.__anext__()


async def test_message_that_cannot_be_sent_leaves_the_connection_usable(
    pair: Pair, connect: Connect
) -> None:
    connection = connect(pair[0], codec=LengthPrefixed(max_size=3))
    for wrong in ("text", None, b"four"):
        with pytest.raises(EncodeError):
            await connection.send(wrong)
        with pytest.raises(EncodeError):
            connection.send_nowait(wrong)
    assert connection.statistics().bytes_queued == 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_exactly, pair[1], 7)
        await connection.send(b"ok.")
        await connection.flush()
    assert connection.statistics().messages_sent == 1


async def test_send_nowait_says_when_it_would_block(tight_pair: Pair, connect: Connect) -> None:
    connection = connect(tight_pair[0], write_buffer_size=1000)
    sent = 0
    with contextlib.suppress(trio.WouldBlock):
        while True:
            connection.send_nowait(bytes(100))
            sent += 1
    with pytest.raises(trio.WouldBlock):
        connection.send_nowait(b"")
    assert connection.statistics().messages_sent == sent
    async with trio.open_nursery() as nursery:
        received: list[bytes] = []

        async def read() -> None:
            received.append(await read_exactly(tight_pair[1], sent * 104))

        nursery.start_soon(read)
        await connection.flush()
    assert received == [frame(bytes(100)) * sent]


# -- the protocol may change at any moment


async def test_reader_switched_between_two_messages_of_one_chunk(
    pair: Pair, connect: Connect
) -> None:
    connection = connect(pair[0], codec=Lines())
    await pair[1].send_all(b"line\n" + frame(b"\nbinary\n") + b"a;b;" + b"line\r\nend\n")
    assert await connection.receive() == "line"
    connection.use(LengthPrefixed())
    assert await connection.receive() == b"\nbinary\n"
    connection.reader = Delimited(b";").reader()
    assert await connection.receive() == b"a"
    assert await connection.receive() == b"b"
    lines = connection.use(Lines())
    assert lines is connection
    assert await lines.receive() == "line"
    assert await lines.receive() == "end"


async def test_reader_switched_by_another_task_while_one_waits(
    pair: Pair, connect: Connect
) -> None:
    connection = connect(pair[0], codec=LengthPrefixed(max_size=2**32))
    received = []

    async def receive() -> None:
        received.append(await connection.receive())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await pair[1].send_all(b"text\n")
        await trio.testing.wait_all_tasks_blocked()
        connection.reader = LengthPrefixed(max_size=2**40).reader()
        await trio.testing.wait_all_tasks_blocked()
        assert received == []
        connection.reader = Lines().reader()
    assert received == ["text"]


async def test_writer_switched_between_two_messages(pair: Pair, connect: Connect) -> None:
    connection = connect(pair[0])
    async with trio.open_nursery() as nursery:
        received: list[bytes] = []

        async def read() -> None:
            received.append(await read_exactly(pair[1], 5 + 4))

        nursery.start_soon(read)
        await connection.send(b"1")
        connection.writer = Lines().writer()
        await connection.send("two")
    assert received == [frame(b"1") + b"two\n"]
    assert connection.writer.encode("x") == b"x\n"


@attrs.define(eq=False)
class PairsReader(Reader[Any]):
    """Two messages out of each byte, the second one out of nothing; None at the very end."""

    pending: bytes | None = None
    ended: bool = False

    def decode(self, buffer: ReceiveBuffer) -> bytes | Literal[NeedData.NEED_DATA]:
        if self.pending is not None:
            message, self.pending = self.pending, None
            return message
        byte = buffer.take(1)
        if byte is None:
            return NEED_DATA
        self.pending = byte.upper()
        return byte

    def decode_eof(self, buffer: ReceiveBuffer) -> Literal[NeedData.NEED_DATA] | None:
        if self.ended:
            return NEED_DATA
        self.ended = True
        return None


async def test_reader_that_makes_messages_out_of_little_and_of_the_end(
    pair: Pair, connect: Connect
) -> None:
    connection = connect(pair[0])
    connection.reader = PairsReader()
    assert isinstance(connection.reader, PairsReader)
    await pair[1].send_all(b"ab")
    await pair[1].send_eof()
    assert [message async for message in connection] == [b"a", b"A", b"b", b"B", None]


class SkippingReader(Reader[bytes]):
    """Consumes what it refuses, so that one can go on after the error."""

    def decode(self, buffer: ReceiveBuffer) -> bytes | Literal[NeedData.NEED_DATA]:
        byte = buffer.take(1)
        if byte is None:
            return NEED_DATA
        if byte == b"!":
            raise ProtocolError("no shouting")
        return byte


async def test_receiving_goes_on_after_an_error_that_its_reader_has_consumed(
    pair: Pair, connect: Connect
) -> None:
    connection = connect(pair[0])
    connection.reader = SkippingReader()
    await pair[1].send_all(b"a!b!")
    assert await connection.receive() == b"a"
    with pytest.raises(ProtocolError):
        await connection.receive()
    assert await connection.receive() == b"b"
    with pytest.raises(ProtocolError):
        await connection.__anext__()
    await pair[1].send_all(b"c")
    assert await connection.receive() == b"c"
    await connection.aclose()
    assert connection.close_reason is CloseReason.CLOSED


# -- cancelled anywhere


@attrs.define(eq=False)
class CancelAt(trio.abc.Instrument):
    """Cancels a scope when a task is about to run for the ``left``-th time."""

    task: trio.lowlevel.Task
    scope: trio.CancelScope
    left: int

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self.task:
            self.left -= 1
            if self.left == 0:
                self.scope.cancel()


MESSAGES = [b"%d:" % number + bytes(number * 37 % 900) for number in range(60)] + [bytes(300_000)]


@pytest.mark.parametrize("kind", ["memory", "unix", "tcp"])
async def test_cancelling_receive_at_each_of_its_steps_loses_no_message(kind: str) -> None:
    """Again and again, with the cancellation one step later, until it comes too late."""
    make = BUFFERED[kind]
    steps = 0
    too_late = False
    while not too_late:
        steps += 1
        left, right = make()
        connection: AnyConnection = connect_plainly(left)
        delivered: list[bytes] = []
        heard: list[bytes] = []

        async def on_received(event: MessageReceived) -> None:
            await trio.lowlevel.checkpoint()
            heard.append(event.message)  # noqa: B023 - used within the same round

        connection.message_received.connect(on_received)

        async def feed() -> None:
            stream = b"".join(map(frame, MESSAGES))
            for begin in range(0, len(stream), 7001):
                await right.send_all(stream[begin : begin + 7001])  # noqa: B023 - likewise
            await right.send_eof()  # noqa: B023 - likewise

        async with trio.open_nursery() as nursery:
            nursery.start_soon(feed)
            with trio.CancelScope() as scope:
                instrument = CancelAt(trio.lowlevel.current_task(), scope, steps)
                trio.lowlevel.add_instrument(instrument)
                try:
                    while True:
                        delivered.append(await connection.receive())
                except trio.EndOfChannel:
                    too_late = True
                finally:
                    trio.lowlevel.remove_instrument(instrument)
            delivered.extend([message async for message in connection])
        assert delivered == MESSAGES
        # A hook that was cancelled is not begun again; that is one message at most.
        assert len(MESSAGES) - len(heard) <= 1
        await connection.aclose()
        await right.aclose()
        steps += len(MESSAGES) // 20  # not every step of so many, but others each time
    assert steps > 20


@pytest.mark.parametrize("kind", ["lockstep", "tight_unix"])
async def test_cancelling_send_at_each_of_its_steps_cuts_no_frame(kind: str) -> None:
    steps = 0
    too_late = False
    while not too_late:
        steps += 1
        left, right = TIGHT_KINDS[kind]()
        connection: AnyConnection = connect_plainly(left, write_buffer_size=2000)
        counted: list[bytes] = []
        arrived: list[bytes] = []

        async def read() -> None:
            arrived.append(await read_to_end(right))  # noqa: B023 - used within the same round

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            with trio.CancelScope() as scope:
                instrument = CancelAt(trio.lowlevel.current_task(), scope, steps)
                trio.lowlevel.add_instrument(instrument)
                try:
                    for message in MESSAGES:
                        await connection.send(message)
                        counted.append(message)
                    too_late = True
                finally:
                    trio.lowlevel.remove_instrument(instrument)
            await connection.send(b"the end")
            counted.append(b"the end")
            await connection.aclose()
        assert arrived == [b"".join(map(frame, counted))]
        await right.aclose()
    assert steps > 3


def connect_plainly(stream: trio.abc.Stream, **options: Any) -> AnyConnection:
    return open_connection(stream, **options)


async def cancel_when_it_waits(use: Callable[[], Awaitable[object]]) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(use)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()


async def test_message_whose_hook_is_cancelled_is_received_next(
    pair: Pair, connect: Connect
) -> None:
    server = Server()
    seen: list[bytes] = []

    @server.on_message
    async def hook(connection: AnyConnection, message: bytes) -> None:
        seen.append(message)
        if message == b"slow":
            await trio.sleep_forever()

    connection = connect(pair[0])
    connection.message_received.connect(server.message_received)
    await pair[1].send_all(frame(b"slow") + frame(b"next"))
    await cancel_when_it_waits(connection.receive)
    assert await connection.receive() == b"slow"
    assert await connection.receive() == b"next"
    assert seen == [b"slow", b"next"]


async def test_message_whose_only_hook_is_cancelled_is_received_next(pair: Pair) -> None:
    received: list[bytes] = []

    async def handle(connection: AnyConnection) -> None:
        await cancel_when_it_waits(connection.receive)
        received.extend([message async for message in connection])

    server = Server(handle)

    @server.on_message
    async def hook(_connection: AnyConnection, message: bytes) -> None:
        if message == b"slow":
            await trio.sleep_forever()

    ours, peer = pair
    await peer.send_all(frame(b"slow") + frame(b"next"))
    await peer.send_eof()
    await server.serve_stream(ours)
    assert received == [b"slow", b"next"]


async def test_subscriber_that_was_not_told_for_cancellation_is_told_next(
    pair: Pair, connect: Connect
) -> None:
    connection = connect(pair[0])
    events = connection.message_received.subscribe(buffer_size=1)
    hooked = []

    async def hook(event: MessageReceived) -> None:
        hooked.append(event.message)

    connection.message_received.connect(hook)
    await pair[1].send_all(frame(b"1") + frame(b"2"))
    assert await connection.receive() == b"1"
    await cancel_when_it_waits(connection.receive)
    assert hooked == [b"1"]
    assert events.receive_nowait().message == b"1"
    assert await connection.receive() == b"2"
    assert events.receive_nowait().message == b"2"
    assert hooked == [b"1", b"2"]
    events.close()


async def test_another_task_may_not_receive_while_listeners_are_told(
    pair: Pair, connect: Connect
) -> None:
    connection = connect(pair[0])
    go_on = trio.Event()
    busy = []

    async def hook(event: MessageReceived) -> None:
        if not go_on.is_set():
            with pytest.raises(trio.BusyResourceError):
                await connection.receive()
            busy.append(event.message)
            await go_on.wait()

    connection.message_received.connect(hook)
    await pair[1].send_all(frame(b"1") + frame(b"2"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.receive)
        await trio.testing.wait_all_tasks_blocked()
        assert busy == [b"1"]
        go_on.set()
    assert await connection.receive() == b"2"


async def test_hook_that_fails_costs_no_message(pair: Pair, connect: Connect) -> None:
    connection = connect(pair[0])
    failed = False

    async def hook(event: MessageReceived) -> None:
        nonlocal failed
        if not failed:
            failed = True
            raise ValueError("once")

    connection.message_received.connect(hook)
    await pair[1].send_all(frame(b"1"))
    with pytest.raises(ValueError, match="once"):
        await connection.receive()
    assert await connection.receive() == b"1"


# -- time


async def trickle(stream: trio.abc.SendStream, data: bytes, every: float) -> None:
    with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        for byte in data:
            await stream.send_all(bytes([byte]))
            await trio.sleep(every)


def virtual_pair(kind: str) -> Pair:
    return {"memory": memory, "unix": unix}[kind]()


VIRTUAL = pytest.mark.parametrize("kind", ["memory", "unix"])


@VIRTUAL
async def test_message_once_begun_must_arrive_in_time(
    kind: str, connect: Connect, autojump_clock: trio.testing.MockClock
) -> None:
    left, right = virtual_pair(kind)
    connection = connect(left, message_timeout=5)
    async with right, trio.open_nursery() as nursery:
        nursery.start_soon(trickle, right, frame(bytes(100)), 0.1)
        start = trio.current_time()
        for _ in range(2):
            with pytest.raises(MessageTimeoutError, match="message_timeout") as caught:
                await connection.receive()
            assert isinstance(caught.value, trio.BrokenResourceError)
        assert 5 <= trio.current_time() - start < 5.3
        with pytest.raises(MessageTimeoutError):
            await connection.send(b"x")
        await connection.aclose()
        nursery.cancel_scope.cancel()
    assert isinstance(connection.close_reason, MessageTimeoutError)


@VIRTUAL
async def test_message_that_is_slow_but_in_time_arrives(
    kind: str, connect: Connect, autojump_clock: trio.testing.MockClock
) -> None:
    left, right = virtual_pair(kind)
    connection = connect(left, message_timeout=5)
    async with right, trio.open_nursery() as nursery:
        nursery.start_soon(trickle, right, frame(bytes(20)) + frame(bytes(20)), 0.2)
        # 4.8 seconds each, and the second one's time begins with its own first byte
        assert await connection.receive() == bytes(20)
        assert await connection.receive() == bytes(20)
        # Silence between messages is no message begun.
        await trio.sleep(100)
        nursery.start_soon(right.send_all, frame(b"late"))
        assert await connection.receive() == b"late"


@VIRTUAL
async def test_handler_that_takes_its_time_does_not_cost_the_peer_its_own(
    kind: str, connect: Connect, autojump_clock: trio.testing.MockClock
) -> None:
    left, right = virtual_pair(kind)
    connection = connect(left, message_timeout=5)
    async with right:
        await right.send_all(frame(b"one") + frame(b"two")[:3])
        assert await connection.receive() == b"one"
        await trio.sleep(60)  # the handler's time
        await right.send_all(frame(b"two")[3:])
        assert await connection.receive() == b"two"


@VIRTUAL
async def test_message_that_comes_at_the_last_moment_counts(
    kind: str, connect: Connect, autojump_clock: trio.testing.MockClock
) -> None:
    left, right = virtual_pair(kind)
    connection = connect(left, message_timeout=5)
    async with right, trio.open_nursery() as nursery:
        await right.send_all(frame(b"x")[:1])

        async def last_moment() -> None:
            await trio.sleep(5)
            await right.send_all(frame(b"x")[1:])

        nursery.start_soon(last_moment)
        try:
            assert await connection.receive() == b"x"
        except MessageTimeoutError:
            pass  # the clock was quicker: fair as well, but nothing in between


@VIRTUAL
async def test_silent_peer_is_given_up_if_that_is_set(
    kind: str, connect: Connect, autojump_clock: trio.testing.MockClock
) -> None:
    left, right = virtual_pair(kind)
    connection = connect(left, idle_timeout=30)
    async with right:
        await right.send_all(frame(b"x"))
        assert await connection.receive() == b"x"
        start = trio.current_time()
        with pytest.raises(IdleTimeoutError, match="idle_timeout"):
            await connection.receive()
        assert trio.current_time() - start == pytest.approx(30)
        await connection.aclose()
    assert isinstance(connection.close_reason, IdleTimeoutError)


@VIRTUAL
async def test_sending_is_no_idleness_and_a_message_begun_is_not_either(
    kind: str, connect: Connect, autojump_clock: trio.testing.MockClock
) -> None:
    left, right = virtual_pair(kind)
    connection = connect(left, idle_timeout=30, message_timeout=60)
    async with right, trio.open_nursery() as nursery:

        async def send_now_and_then() -> None:
            for _ in range(4):
                await trio.sleep(20)
                await connection.send(b"news")
            await right.send_all(frame(b"x")[:3])
            await trio.sleep(50)
            await right.send_all(frame(b"x")[3:])

        nursery.start_soon(send_now_and_then)
        assert await connection.receive() == b"x"


@VIRTUAL
async def test_by_default_silence_may_last(
    kind: str, connect: Connect, autojump_clock: trio.testing.MockClock
) -> None:
    left, right = virtual_pair(kind)
    connection = connect(left)
    async with right, trio.open_nursery() as nursery:

        async def send_at_last() -> None:
            await trio.sleep(80_000)
            await right.send_all(frame(b"x"))

        nursery.start_soon(send_at_last)
        assert await connection.receive() == b"x"


async def test_receive_hears_that_the_connection_was_given_up(
    tight_pair: Pair, connect: Connect, autojump_clock: trio.testing.MockClock
) -> None:
    connection = connect(tight_pair[0], send_timeout=5, write_buffer_size=10)
    await connection.send(bytes(1_000_000))
    for _ in range(2):
        with pytest.raises(GivenUpError, match="send_timeout"):
            await connection.receive()


async def test_given_up_while_nobody_was_receiving(
    tight_pair: Pair, connect: Connect, autojump_clock: trio.testing.MockClock
) -> None:
    connection = connect(tight_pair[0], send_timeout=5, write_buffer_size=10)
    await connection.send(bytes(1_000_000))
    await trio.sleep(6)
    with pytest.raises(GivenUpError, match="send_timeout"):
        await connection.receive()


# -- TLS in mid-connection


async def greet(connection: AnyConnection, context: ssl.SSLContext) -> None:
    assert await connection.receive() == "STARTTLS"
    await connection.send("go ahead")
    await connection.start_tls(context, server_side=True)
    async for line in connection:
        await connection.send(line)


@pytest.mark.parametrize("make", [memory, unix, tcp])
async def test_connection_goes_on_under_tls(
    make: Callable[[], Pair], connect: Connect, tls: Tls
) -> None:
    client, server = (connect(stream, codec=Lines()) for stream in make())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(greet, server, tls.server)
        await client.send("STARTTLS")
        assert await client.receive() == "go ahead"
        before = client.statistics()
        await client.start_tls(tls.client, server_hostname="example.org")
        for number in range(100):
            await client.send(f"line {number}")
        for number in range(100):
            assert await client.receive() == f"line {number}"
        assert client.statistics().bytes_received > before.bytes_received
        assert client.remote_address == client.remote_address
        await client.aclose()


async def test_a_servers_connection_takes_the_servers_part(tls: Tls) -> None:
    async def handler(connection: Connection[str, str]) -> None:
        await connection.start_tls(tls.server)
        async for line in connection:
            await connection.send(line)

    async with open_memory_connection(Server(handler, codec=Lines())) as client:
        await client.start_tls(tls.client, server_hostname="example.org")
        await client.send("secret")
        assert await client.receive() == "secret"


async def test_what_came_in_the_clear_is_not_taken_for_what_came_under_tls(
    pair: Pair, connect: Connect, tls: Tls
) -> None:
    connection = connect(pair[0], codec=Lines())
    await pair[1].send_all(b"STARTTLS\nDELETE ALL\n")
    assert await connection.receive() == "STARTTLS"
    with pytest.raises(ProtocolError, match="11 bytes in the clear") as caught:
        await connection.start_tls(tls.server, server_side=True)
    await connection.aclose()
    assert connection.close_reason is caught.value


async def test_handshake_that_fails_breaks_the_connection(
    pair: Pair, connect: Connect, tls: Tls
) -> None:
    connection = connect(pair[0])
    await pair[1].send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    with pytest.raises(trio.BrokenResourceError, match="TLS handshake failed"):
        await connection.start_tls(tls.client, server_hostname="example.org")
    for use in (connection.receive, lambda: connection.send(b"x")):
        with pytest.raises(trio.BrokenResourceError):
            await use()
    await connection.aclose()
    assert isinstance(connection.close_reason, trio.BrokenResourceError)


async def test_wrong_name_in_the_certificate_is_refused(connect: Connect, tls: Tls) -> None:
    client, server = map(connect, memory())

    async def serve() -> None:
        with contextlib.suppress(trio.BrokenResourceError):  # of which there are several
            await server.start_tls(tls.server, server_side=True)
            await server.receive()
            raise AssertionError

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        with pytest.raises(trio.BrokenResourceError, match="certificate"):
            await client.start_tls(tls.client, server_hostname="example.com")
        await client.aclose()


async def test_handshake_that_never_ends_is_given_up(
    connect: Connect, tls: Tls, autojump_clock: trio.testing.MockClock
) -> None:
    left, right = memory()
    connection = connect(left, handshake_timeout=3)
    async with right:
        with pytest.raises(HandshakeTimeoutError, match="handshake_timeout"):
            await connection.start_tls(tls.client, server_hostname="example.org")
        with pytest.raises(trio.BrokenResourceError):
            await connection.receive()


async def test_cancelled_handshake_leaves_a_connection_to_be_closed(
    pair: Pair, connect: Connect, tls: Tls
) -> None:
    connection = connect(pair[0])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_exactly, pair[1], 1)
        await cancel_when_it_waits(
            partial(connection.start_tls, tls.client, server_hostname="example.org")
        )
        with pytest.raises(trio.BrokenResourceError, match="not finished"):
            await connection.send(b"x")
        await connection.aclose()
        nursery.cancel_scope.cancel()


async def test_end_without_tlss_own_is_no_clean_end(connect: Connect, tls: Tls) -> None:
    client, server = map(connect, tcp())
    async with trio.open_nursery() as nursery:

        async def serve() -> None:
            await server.start_tls(tls.server, server_side=True)
            await server.send(b"x")
            await server.flush()
            with pytest.raises(trio.BrokenResourceError):
                await server.receive()

        nursery.start_soon(serve)
        await client.start_tls(tls.client, server_hostname="example.org")
        assert await client.receive() == b"x"
        with trio.CancelScope() as scope:
            scope.cancel()
            await client.aclose()  # at once: no time for a goodbye
    assert client.close_reason is CloseReason.CANCELLED


@pytest.mark.parametrize("server_side", [False, True])
async def test_context_of_the_wrong_side_or_kind_is_refused_before_anything_is_sent(
    server_side: bool, connect: Connect, tls: Tls
) -> None:
    left, right = memory()
    connection = connect(left)
    wrong = tls.client if server_side else tls.server
    own = r"server's .*\.CLIENT_AUTH\)" if server_side else r"client's .*\.SERVER_AUTH\)"
    with pytest.raises(ValueError, match=f"ssl_context is for the other side; a {own}$"):
        await connection.start_tls(wrong, server_side=server_side)
    with pytest.raises(TypeError, match=r"ssl_context must be an ssl\.SSLContext"):
        await connection.start_tls(True, server_side=server_side)  # type: ignore[arg-type]  # wrong on purpose
    await connection.send(b"in the clear")
    assert await read_exactly(right, 16) == frame(b"in the clear")


async def test_what_had_been_sent_before_start_tls_leaves_in_the_clear(
    connect: Connect, tls: Tls
) -> None:
    ours, theirs = tight_unix()
    connection = connect(ours, write_buffer_size=1000)
    peer = tls.at_client(theirs)
    messages = [bytes([number]) * 100_000 for number in range(4)]
    async with trio.open_nursery() as nursery:
        for message in messages:  # all but the first wait for room
            nursery.start_soon(connection.send, message)
            await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(partial(connection.start_tls, tls.server, server_side=True))
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(connection.send, b"secret")
        for message in messages:
            assert await read_exactly(theirs, 100_004) == frame(message)
        assert await peer.receive_some() == frame(b"secret")
    await trio.aclose_forcefully(peer)


async def test_waiting_for_tls_and_waking_up_to_a_connection_that_is_closed(
    connect: Connect, tls: Tls
) -> None:
    """First before the handshake, then during it."""
    for amount in 200_000, 1:
        ours, theirs = tight_unix()
        connection = connect(ours, write_buffer_size=1000)
        await connection.send(bytes(amount))
        told: list[Exception] = []

        async def send(connection: AnyConnection = connection, told: Any = told) -> None:
            for _ in range(3):
                try:
                    await connection.send(bytes(2000))
                except trio.ClosedResourceError as error:
                    told.append(error)

        async def start_tls(connection: AnyConnection = connection) -> None:
            with pytest.raises((trio.ClosedResourceError, trio.BrokenResourceError)):
                await connection.start_tls(tls.server, server_side=True)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(start_tls)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(send)
            nursery.start_soon(send)
            await trio.testing.wait_all_tasks_blocked()
            await trio.aclose_forcefully(connection)
        assert len(told) >= 4
        await theirs.aclose()


@pytest.mark.parametrize("way", ["itself", "by another task", "after another task"])
async def test_start_tls_does_not_wait_for_hooks_that_send(
    way: str, connect: Connect, tls: Tls
) -> None:
    ours, theirs = tight_unix()
    connection = connect(ours, write_buffer_size=100_000)
    peer = tls.at_client(theirs)
    lock = trio.Lock()
    begun = trio.Event()
    messages = [b"in the clear", b"more in the clear"]

    async def send(message: bytes) -> None:
        async with lock:
            await connection.send(message)

    async def hook(event: MessageWritten) -> None:
        if event.message != messages[0]:
            return
        await begun.wait()
        if way == "by another task":
            async with trio.open_nursery() as nursery:
                nursery.start_soon(connection.send, b"by the hook")
        elif way == "itself":
            await connection.send(b"by the hook")
        else:
            await send(b"by the hook")

    connection.message_written.connect(hook)
    async with trio.open_nursery() as nursery:
        await connection.send(messages[0])
        await connection.send(bytes(200_000))
        nursery.start_soon(connection.send, messages[1])
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(partial(connection.start_tls, tls.server, server_side=True))
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(send, b"held")
        await trio.testing.wait_all_tasks_blocked()
        begun.set()
        await trio.testing.wait_all_tasks_blocked()
        clear = frame(messages[0]) + frame(bytes(200_000)) + frame(messages[1])
        assert await read_exactly(theirs, len(clear)) == clear
        expected = frame(b"held") + frame(b"by the hook")
        received = b""
        while len(received) < len(expected):
            received += await peer.receive_some()
        assert sorted(received) == sorted(expected)
    await trio.aclose_forcefully(peer)


async def test_a_connection_that_was_given_up_is_not_revived_by_start_tls(
    connect: Connect, tls: Tls, autojump_clock: trio.testing.MockClock
) -> None:
    connection = connect(memory()[0], idle_timeout=3)
    with pytest.raises(IdleTimeoutError):
        await connection.receive()
    with pytest.raises(IdleTimeoutError):
        await connection.start_tls(tls.server, server_side=True)

    await connection.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await connection.start_tls(tls.server, server_side=True)

    connection = connect(memory()[0])
    await cancel_when_it_waits(partial(connection.start_tls, tls.server, server_side=True))
    with pytest.raises(trio.BrokenResourceError, match="not finished"):
        await connection.start_tls(tls.server, server_side=True)


async def test_start_tls_tells_that_a_hook_has_failed(connect: Connect, tls: Tls) -> None:
    ours, theirs = memory()
    connection = connect(ours)

    async def hook(_event: MessageWritten) -> None:
        raise ZeroDivisionError

    connection.message_written.connect(hook)
    await connection.send(b"x")
    await trio.testing.wait_all_tasks_blocked()
    with pytest.raises(trio.BrokenResourceError, match="hook failed"):
        await connection.start_tls(tls.server, server_side=True)
    assert await read_exactly(theirs, 5) == frame(b"x")


async def test_who_waits_for_room_under_tls_hears_why_the_handshake_failed(
    connect: Connect, tls: Tls
) -> None:
    ours, theirs = tight_unix()
    connection = connect(ours, write_buffer_size=1000)

    async def start_tls() -> None:
        with pytest.raises(trio.BrokenResourceError, match="TLS handshake failed"):
            await connection.start_tls(tls.server, server_side=True)

    async def send() -> None:
        with pytest.raises(trio.BrokenResourceError, match="TLS handshake failed"):
            await connection.send(bytes(2000))

    async with trio.open_nursery() as nursery:
        await connection.send(bytes(200_000))
        nursery.start_soon(start_tls)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(connection.send, bytes(2000))
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(send)
        await read_exactly(theirs, 200_004)
        await theirs.send_all(b"GET / HTTP/1.1\r\n\r\n")
    await theirs.aclose()


async def test_start_tls_that_is_cancelled_before_it_begins_gives_nothing_away(
    connect: Connect, tls: Tls
) -> None:
    """So closing is in order, although the peer sends what nobody reads."""
    ours, theirs = tcp()
    connection = connect(ours)
    await connection.send(b"sent")
    await theirs.send_all(bytes(50_000))
    with trio.CancelScope() as scope:
        scope.cancel()
        await connection.start_tls(tls.server, server_side=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.aclose)
        assert await read_to_end(theirs) == frame(b"sent")
        await theirs.aclose()
    assert connection.close_reason is CloseReason.CLOSED


async def test_start_tls_after_the_end_was_sent_is_refused_at_once(
    connect: Connect, tls: Tls, autojump_clock: trio.testing.MockClock
) -> None:
    ours, theirs = tight_unix()
    connection = connect(ours, close_timeout=1)
    await connection.send(bytes(200_000))
    await cancel_when_it_waits(connection.send_eof)
    start = trio.current_time()
    with pytest.raises(trio.ClosedResourceError, match="send_eof"):
        await connection.start_tls(tls.server, server_side=True)
    assert trio.current_time() == start
    await theirs.aclose()


async def test_closing_does_not_wait_for_a_handshake_behind_a_failed_hook(
    connect: Connect, tls: Tls, autojump_clock: trio.testing.MockClock
) -> None:
    ours, _theirs = memory()
    connection = connect(ours, close_timeout=5)
    go_on = trio.Event()

    async def hook(_event: MessageWritten) -> None:
        await go_on.wait()
        raise ZeroDivisionError

    async def start_tls() -> None:
        with pytest.raises((trio.BrokenResourceError, trio.ClosedResourceError)):
            await connection.start_tls(tls.server, server_side=True)

    connection.message_written.connect(hook)
    await connection.send(b"go ahead")
    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(start_tls)
        await trio.testing.wait_all_tasks_blocked()
        go_on.set()
        await trio.testing.wait_all_tasks_blocked()
        await connection.aclose()
    assert trio.current_time() == start
    assert isinstance(connection.close_reason, ZeroDivisionError)


@pytest.mark.parametrize("queued", [True, False])
async def test_closing_does_not_wait_for_what_a_failed_handshake_holds_up(
    queued: bool, connect: Connect, tls: Tls, autojump_clock: trio.testing.MockClock
) -> None:
    ours, theirs = memory()
    connection = connect(ours, close_timeout=5)

    async def start_tls() -> None:
        with pytest.raises((trio.BrokenResourceError, trio.ClosedResourceError)):
            await connection.start_tls(tls.server, server_side=True)

    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(start_tls)
        await trio.testing.wait_all_tasks_blocked()
        if queued:
            await connection.send(b"x")
        nursery.start_soon(connection.aclose)
        await trio.testing.wait_all_tasks_blocked()
        with contextlib.suppress(trio.BrokenResourceError):
            await theirs.send_all(b"GET / HTTP/1.1\r\n\r\n")
    assert trio.current_time() == start


@attrs.define(eq=False)
class Numbered(Writer[bytes]):
    sign: bytes
    count: int = 0
    stateful = True

    def encode(self, message: bytes) -> bytes:
        self.count += 1
        return frame(b"%s%d %s" % (self.sign, self.count, message))


async def test_a_message_that_waits_for_room_is_its_writers_though_that_is_replaced(
    connect: Connect,
) -> None:
    ours, theirs = tight_unix()
    connection = connect(ours, write_buffer_size=1000)
    await connection.send(bytes(200_000))
    connection.writer = Numbered(b"old ")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.send, b"one")
        await trio.testing.wait_all_tasks_blocked()
        connection.writer = Numbered(b"new ")
        nursery.start_soon(connection.send, b"two")
        expected = frame(bytes(200_000)) + frame(b"old 1 one") + frame(b"new 1 two")
        assert await read_exactly(theirs, len(expected)) == expected
    await theirs.aclose()


async def test_an_end_at_the_last_moment_is_no_idle_timeout(
    connect: Connect, mock_clock: trio.testing.MockClock
) -> None:
    for _ in range(20):  # the scheduler has either of the two first
        ours, theirs = trio.testing.memory_stream_pair()
        connection = connect(ours, idle_timeout=3)

        async def receive(connection: AnyConnection = connection) -> None:
            with pytest.raises(trio.EndOfChannel):
                await connection.receive()
            await connection.send(b"goodbye")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(4)
            theirs.send_stream.close()
        assert await read_exactly(theirs, 11) == frame(b"goodbye")


@pytest.mark.parametrize("end", ["aclose", "send_eof"])
async def test_closing_sends_all_though_a_hook_cannot_send_any_more(
    end: str, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    ours, theirs = tight_unix()
    connection = connect(ours, write_buffer_size=1_000_000)

    async def hook(event: MessageWritten) -> None:
        await event.connection.send(b"acknowledged")

    connection.message_written.connect(hook)
    received: list[bytes] = []
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            await connection.send(bytes(100_000))

        @nursery.start_soon
        async def read() -> None:
            received.append(await read_to_end(theirs))

        await getattr(connection, end)()
    assert received == [3 * frame(bytes(100_000))]
    await connection.aclose()
    assert connection.close_reason is CloseReason.CLOSED
    assert caplog.records == []
    await theirs.aclose()


@pytest.mark.parametrize("is_early", [True, False])
@pytest.mark.parametrize("use", ["send", "flush", "send_eof", "receive"])
async def test_a_hook_that_meets_the_end_of_its_connection_has_not_failed(
    use: str, is_early: bool, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    ours, theirs = tight_unix()
    connection = connect(ours)
    go_on = trio.Event()

    async def hook(event: MessageWritten) -> None:
        await go_on.wait()
        await getattr(event.connection, use)(*([b"x"] if use == "send" else []))

    async def send_eof() -> None:
        with contextlib.suppress(trio.ClosedResourceError):
            await connection.send_eof()

    connection.message_written.connect(hook)
    for message in b"small", bytes(100_000):
        await connection.send(message)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_eof)
        await trio.testing.wait_all_tasks_blocked()
        if is_early:
            go_on.set()
            await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(connection.aclose)
        await trio.testing.wait_all_tasks_blocked()
        go_on.set()
        await trio.testing.wait_all_tasks_blocked()
        assert await read_to_end(theirs) == frame(b"small") + frame(bytes(100_000))
    assert connection.close_reason is CloseReason.CLOSED
    assert caplog.records == []
    await theirs.aclose()


async def test_a_hook_that_flushes_when_closing_runs_out_of_time_has_not_failed(
    connect: Connect, caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    ours, theirs = tight_unix()
    connection = connect(ours, close_timeout=2)

    async def hook(event: MessageWritten) -> None:
        await event.connection.flush()

    connection.message_written.connect(hook)
    for message in b"small", bytes(100_000):
        await connection.send(message)
    await trio.testing.wait_all_tasks_blocked()
    await connection.aclose()
    assert [fields_of(record)["event"] for record in caplog.records] == ["unsent"]
    assert connection.close_reason is CloseReason.CLOSED
    await theirs.aclose()


async def test_a_hook_that_fails_by_itself_while_it_is_closed_is_told_of(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    ours, theirs = tight_unix()
    connection = connect(ours)
    channel, _ = trio.open_memory_channel[bytes](1)
    channel.close()

    async def hook(event: MessageWritten) -> None:
        await channel.send(event.message)

    connection.message_written.connect(hook)
    await connection.send(bytes(100_000))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_to_end, theirs)
        await connection.aclose()
    assert [fields_of(record)["event"] for record in caplog.records] == ["written_hook_failed"]
    await theirs.aclose()


@pytest.mark.parametrize("is_cancelled", [True, False])
async def test_what_waits_for_tls_never_leaves_in_the_clear(
    is_cancelled: bool, connect: Connect, tls: Tls
) -> None:
    ours, theirs = tight_unix()
    connection = connect(ours, write_buffer_size=1000)
    scope = trio.CancelScope()

    async def start_tls() -> None:
        with scope, pytest.raises(ProtocolError):
            await connection.start_tls(tls.server, server_side=True)

    async def send() -> None:
        with pytest.raises(trio.BrokenResourceError, match="can only be closed"):
            await connection.send(b"secret")

    await theirs.send_all(frame(b"STARTTLS") + frame(b"no handshake"))
    assert await connection.receive() == b"STARTTLS"
    await connection.send(bytes(200_000))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(start_tls)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked()
        if is_cancelled:
            scope.cancel()
        assert await read_exactly(theirs, 200_004) == frame(bytes(200_000))
    await send()
    await connection.aclose()
    assert await read_to_end(theirs) == b""
    await theirs.aclose()


# -- events of one connection


async def test_own_signals_of_a_clients_connection() -> None:
    left, right = connection_pair(LengthPrefixed())
    async with left, right:
        received = right.message_received.subscribe()
        written = left.message_written.subscribe()
        assert left.message_written is left.message_written
        await left.send(b"x")
        assert await right.receive() == b"x"
        assert await received.receive() == MessageReceived(right, b"x")
        assert await written.receive() == MessageWritten(left, b"x")
    # Subscriptions to a connection's own emitters end with it.
    with pytest.raises(trio.EndOfChannel):
        await received.receive()
    assert [event async for event in written] == []


async def test_own_signals_are_forwarded_to_the_servers_unless_disconnected() -> None:
    heard: list[bytes] = []

    async def handler(connection: AnyConnection) -> None:
        own = connection.message_received.subscribe()
        assert await connection.receive() == b"1"
        connection.message_received.disconnect(server.message_received)
        assert await connection.receive() == b"2"
        heard.extend([own.receive_nowait().message, own.receive_nowait().message])

    server = Server(handler)
    servers = server.message_received.subscribe()
    async with open_memory_connection(server) as client:
        await client.send(b"1")
        await client.send(b"2")
    assert heard == [b"1", b"2"]
    assert servers.receive_nowait().message == b"1"
    with pytest.raises(trio.WouldBlock):
        servers.receive_nowait()
    servers.close()


async def test_listeners_of_an_own_signal_that_nobody_hears_cost_no_message() -> None:
    left, right = connection_pair(LengthPrefixed())
    async with left, right:
        assert not right.message_received.has_listeners
        other: Any = type(right.message_received)()
        right.message_received.connect(other)  # which no one listens to
        await left.send(b"x")
        assert await right.receive() == b"x"
        assert right.statistics().messages_received == 1


async def test_failing_hook_of_a_written_message_ends_the_connection(
    pair: Pair, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    connection = connect(pair[0])
    failure = ValueError("no")

    async def hook(event: MessageWritten) -> None:
        raise failure

    connection.message_written.connect(hook)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_exactly, pair[1], 5)
        await connection.send(b"x")
        with pytest.raises(trio.BrokenResourceError, match="message_written hook failed"):
            await connection.receive()
    with pytest.raises(trio.BrokenResourceError):
        await connection.send(b"y")
    await connection.aclose()
    assert connection.close_reason is failure
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("trio_bytetalk.connection", logging.ERROR)
    assert record.exc_info is not None
    assert fields_of(record) == {
        "event": "written_hook_failed",
        "connection": connection.number,
        "remote": address_in_words(connection.remote_address),
        "error": type(failure).__name__,
        "reason": str(failure),
    }


async def test_hook_of_a_written_message_can_be_interrupted(pair: Pair, connect: Connect) -> None:
    connection = connect(pair[0])
    protected: list[bool] = []

    async def hook(event: MessageWritten) -> None:
        protected.append(trio.lowlevel.currently_ki_protected())

    connection.message_written.connect(hook)
    await connection.send(b"x")
    await connection.aclose()
    assert protected == [False]


def test_an_interrupt_in_a_hook_of_a_written_message_ends_the_program() -> None:
    async def hook(event: MessageWritten) -> None:
        signal.raise_signal(signal.SIGINT)

    async def main() -> None:
        async with open_connection(memory()[0]) as connection:
            connection.message_written.connect(hook)
            await connection.send(b"x")
            await trio.sleep_forever()

    with pytest.raises(KeyboardInterrupt):
        trio.run(main)


async def test_an_interrupt_that_a_handler_of_the_users_raises_ends_the_connection_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def hook(event: MessageWritten) -> None:
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        async with open_connection(memory()[0]) as connection:
            connection.message_written.connect(hook)
            await connection.send(b"x")
            with pytest.raises(trio.BrokenResourceError):
                await connection.receive()
    finally:
        signal.signal(signal.SIGINT, before)
    assert fields_of(caplog.records[0])["event"] == "written_hook_failed"


async def test_failing_hook_of_written_messages_is_told_of_once(
    pair: Pair, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    ours, peer = pair
    connection = connect(ours)
    go_on = trio.Event()

    async def hook(event: MessageWritten) -> None:
        await go_on.wait()
        raise ZeroDivisionError

    connection.message_written.connect(hook)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_to_end, peer)
        for _ in range(5):
            await connection.send(b"x")
        await trio.testing.wait_all_tasks_blocked()
        go_on.set()
        with pytest.raises(trio.BrokenResourceError):
            await connection.receive()
        await connection.aclose()
    await peer.aclose()
    assert len(caplog.records) == 1


async def test_who_has_heard_of_it_or_failed_in_closing_is_not_told_of_what_was_not_sent(
    connect: Connect,
    caplog: pytest.LogCaptureFixture,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """In closing, a hook fails; the next one, another task's cancelled closing cuts it short."""
    caplog.set_level(logging.INFO, logger="trio_bytetalk")
    ours, peer = tight_unix()
    connection = connect(ours, close_timeout=50)

    async def hook(event: MessageWritten) -> None:
        raise ZeroDivisionError

    connection.message_written.connect(hook)
    connection.send_nowait(b"")
    connection.send_nowait(bytes(300_000))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_exactly, peer, 4)
        await connection.aclose()
    await peer.aclose()
    assert [fields_of(record)["event"] for record in caplog.records] == ["written_hook_failed"]
    caplog.clear()

    ours, peer = tight_unix()
    connection = connect(ours, close_timeout=50)
    connection.send_nowait(bytes(300_000))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.aclose)
        with trio.move_on_after(1):
            await connection.aclose()
    await peer.aclose()
    assert caplog.records == []


@pytest.mark.parametrize("why", ["close_timeout", "send_timeout"])
async def test_what_was_not_sent_when_it_is_closed_is_logged(
    why: str,
    tight_pair: Pair,
    connect: Connect,
    caplog: pytest.LogCaptureFixture,
    autojump_clock: trio.testing.MockClock,
) -> None:
    limits = {"close_timeout": 5, "send_timeout": 60}
    limits[why] = 2
    connection = connect(tight_pair[0], **limits)
    await connection.send(bytes(200_000))
    await connection.aclose()
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("trio_bytetalk.connection", logging.WARNING)
    found = fields_of(record)
    unsent = found["unsent"]
    assert found["event"] == "unsent"
    assert 0 < unsent <= 200_004
    words = record.getMessage()
    assert f"is closed with {unsent} bytes unsent: " in words
    assert "in 2 seconds; the setting is " + why in words
    if why == "send_timeout":
        assert connection.close_reason.__class__ is SendTimeoutError
        assert found["error"] == "SendTimeoutError"
    else:
        assert connection.close_reason is CloseReason.CLOSED
    await tight_pair[1].aclose()


async def test_what_was_not_sent_is_logged_once_though_closing_the_stream_takes_long(
    connect: Connect, caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    class SlowToClose(FaultyStream):
        async def aclose(self) -> None:
            with trio.CancelScope(shield=True):
                await trio.sleep(10)
            await super().aclose()

    ours, peer = trio.testing.lockstep_stream_pair()
    connection = connect(SlowToClose(ours), send_timeout=2, close_timeout=5)
    await connection.send(bytes(200_000))
    await connection.aclose()
    assert trio.current_time() >= 12
    (record,) = caplog.records
    assert fields_of(record)["error"] == "SendTimeoutError"
    await peer.aclose()


@pytest.mark.parametrize("method", ["flush", "send_eof"])
async def test_who_only_hears_that_it_was_closed_is_not_told_of_what_was_not_sent(
    method: str,
    tight_pair: Pair,
    connect: Connect,
    caplog: pytest.LogCaptureFixture,
    autojump_clock: trio.testing.MockClock,
) -> None:
    ours, peer = tight_pair
    connection = connect(ours, close_timeout=5)
    await connection.send(bytes(200_000))

    async def wait() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await getattr(connection, method)()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        await connection.aclose()
    await peer.aclose()
    (record,) = caplog.records
    assert "the setting is close_timeout" in record.getMessage()


async def test_who_flushes_as_it_breaks_in_closing_is_told_and_not_the_log(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="trio_bytetalk")
    for _ in range(10):  # in which order the two hear of it is random
        ours, peer = trio.testing.lockstep_stream_pair()
        connection = connect(ours)
        await connection.send(bytes(200_000))

        async def flush(connection: AnyConnection = connection) -> None:
            with pytest.raises(trio.BrokenResourceError):
                await connection.flush()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(flush)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(connection.aclose)
            await trio.testing.wait_all_tasks_blocked()
            await peer.aclose()
    assert caplog.records == []


async def test_a_stream_that_is_closed_under_its_connection_is_no_slow_peer(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="trio_bytetalk")
    ours, peer = trio.testing.lockstep_stream_pair()
    connection = connect(ours)
    await connection.send(bytes(200_000))
    await trio.testing.wait_all_tasks_blocked()
    await ours.aclose()
    await connection.aclose()
    await peer.aclose()
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert "close_timeout" not in record.getMessage()


async def test_what_was_not_sent_to_a_peer_that_has_finished_is_logged(
    connect: Connect,
    caplog: pytest.LogCaptureFixture,
    autojump_clock: trio.testing.MockClock,
) -> None:
    ours, peer = tight_unix()
    connection = connect(ours, close_timeout=5)
    await connection.send(bytes(200_000))
    await peer.send_eof()
    with pytest.raises(trio.EndOfChannel):
        await connection.receive()
    await connection.aclose()
    await peer.aclose()
    (record,) = caplog.records
    assert fields_of(record)["event"] == "unsent"


async def test_who_was_told_by_start_tls_or_while_receiving_is_not_told_by_the_log(
    connect: Connect, tls: Tls, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for in_start_tls in True, False:
        ours, peer = tight_unix()
        connection = connect(ours)
        await connection.send(bytes(200_000))

        async def hear(
            connection: AnyConnection = connection, in_start_tls: bool = in_start_tls
        ) -> None:
            use = (
                partial(connection.start_tls, tls.server, server_side=True)
                if in_start_tls
                else connection.receive
            )
            with pytest.raises(trio.BrokenResourceError):
                await use()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(hear)
            await trio.testing.wait_all_tasks_blocked()
            await peer.aclose()
        await connection.aclose()
    assert caplog.records == []


async def test_what_was_sent_or_cancelled_or_told_of_before_is_not_logged_at_closing(
    tight_pair: Pair,
    connect: Connect,
    caplog: pytest.LogCaptureFixture,
    autojump_clock: trio.testing.MockClock,
) -> None:
    ours, peer = tight_pair
    connection = connect(ours, send_timeout=2)
    await connection.send(bytes(200_000))
    with pytest.raises(SendTimeoutError):
        await connection.flush()
    await connection.aclose()
    await peer.aclose()

    ours, peer = tight_unix()
    connection = connect(ours, send_timeout=2)
    await connection.send(bytes(200_000))
    with pytest.raises(SendTimeoutError):
        await connection.receive()
    await connection.aclose()
    await peer.aclose()

    ours, peer = unix()
    connection = connect(ours)
    await connection.send(bytes(1000))
    await connection.aclose()
    await peer.aclose()

    ours, peer = tight_unix()
    connection = connect(ours)
    await connection.send(bytes(200_000))
    await trio.aclose_forcefully(connection)
    await peer.aclose()
    assert caplog.records == []


# -- looking at it


async def test_what_a_connection_says_of_itself(connect: Connect) -> None:
    left, right = tcp()
    here, there = left.socket.getsockname(), right.socket.getsockname()
    connection = connect(left, codec=Lines())
    assert connection.remote_address == there
    assert connection.local_address == here
    assert connection.server is None
    assert connection.context is None
    connection.context = {"name": "ann"}
    assert connection.context == {"name": "ann"}
    assert connection.close_reason is None
    peer = address_in_words(there)
    assert repr(connection) == f"<Connection {connection.number} with {peer}, open>"
    await right.send_all(b"one\ntwo\nthr")
    assert await connection.receive() == "one"
    assert await connection.receive() == "two"
    await connection.send("four")
    await connection.flush()
    numbers = attrs.asdict(connection.statistics())
    assert numbers.pop("age") >= numbers.pop("idle_time") >= 0
    assert numbers == {
        "number": connection.number,
        "remote_address": there,
        "messages_received": 2,
        "messages_sent": 1,
        "bytes_received": 11,
        "bytes_sent": 5,
        "chunks_received": 1,
        "flushes": 1,
        "bytes_queued": 0,
        "most_bytes_queued": 5,  # for "thr" may have been the rest of a burst
        "bytes_undecoded": 3,
        "senders_waiting": 0,
        "reader": "LinesReader",
        "writer": "LinesWriter",
    }
    await right.aclose()
    await connection.aclose()
    assert repr(connection) == (
        f"<Connection {connection.number} with {peer}, ended: closed on this side>"
    )
    assert connection.local_address is None


async def test_closing_again_and_cancelled_closes_at_once_too(
    connect: Connect, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    connection = connect(trio.testing.lockstep_stream_pair()[0])
    await connection.send(b"what no one takes")
    nursery.start_soon(connection.aclose)
    await trio.testing.wait_all_tasks_blocked()
    with trio.move_on_after(1) as scope:
        await connection.aclose()
    assert scope.cancelled_caught
    assert connection.close_reason is CloseReason.CANCELLED
    assert trio.current_time() == 1


async def test_no_two_connections_have_the_same_number(connect: Connect) -> None:
    async with open_memory_connection(Server(wait_for_the_end)) as client:
        assert client.server is None
        others = [connect(stream) for stream in memory()]
        assert len({client.number, *(other.number for other in others)}) == 3
        assert others[0].number < others[1].number


async def wait_for_the_end(connection: AnyConnection) -> None:
    async for _ in connection:
        pass


async def test_age_and_idle_time(connect: Connect, autojump_clock: trio.testing.MockClock) -> None:
    connection, peer = (connect(stream) for stream in memory())

    def times() -> tuple[float, float]:
        numbers = connection.statistics()
        return numbers.age, numbers.idle_time

    await trio.sleep(3)
    assert times() == (3, 3)
    await peer.send(b"hello")
    await connection.receive()
    assert times() == (3, 0)
    await trio.sleep(2)
    assert times() == (5, 2)
    await connection.send(b"hello")
    await connection.flush()
    await trio.sleep(2)
    assert times() == (7, 0)  # that these bytes are old no one has seen
    await trio.sleep(2)
    assert times() == (9, 2)
    await connection.aclose()
    await trio.sleep(2)
    assert times() == (9, 2)  # as they were at the end


async def test_what_waits_to_be_sent_is_counted_and_the_most_of_it_remembered(
    connect: Connect, nursery: trio.Nursery
) -> None:
    left, right = (
        connect(stream, write_buffer_size=1000) for stream in trio.testing.lockstep_stream_pair()
    )
    await left.send(b"x" * 2000)
    for message in b"waits", b"waits, too":
        nursery.start_soon(left.send, message)
        await trio.testing.wait_all_tasks_blocked()
    numbers = left.statistics()
    assert numbers.bytes_queued == numbers.most_bytes_queued == 2004
    assert numbers.senders_waiting == 2
    for message in b"x" * 2000, b"waits", b"waits, too":
        assert await right.receive() == message
    await left.flush()
    numbers = left.statistics()
    assert numbers.bytes_queued == numbers.senders_waiting == 0
    assert numbers.most_bytes_queued == 2004
    assert numbers.flushes == 2  # the two came in together
    assert right.statistics().chunks_received >= 2


async def test_numbers_go_on_under_tls(connect: Connect, tls: Tls) -> None:
    left, right = (connect(stream) for stream in tight_unix())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(left.send, b"x" * 300_000)
        assert await right.receive() == b"x" * 300_000
    before = left.statistics(), right.statistics()
    assert before[0].most_bytes_queued > 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(left.start_tls, tls.server, server_side=True))
        await right.start_tls(tls.client, server_hostname="example.org")
    for connection, old in zip((left, right), before, strict=True):
        new = connection.statistics()
        assert (new.number, new.age >= old.age) == (old.number, True)
        for name in ("bytes_received", "bytes_sent", "chunks_received", "flushes"):
            assert getattr(new, name) == getattr(old, name)
        assert new.most_bytes_queued == old.most_bytes_queued


@pytest.mark.parametrize(
    ("error", "ending"),
    [
        (None, Ending.END_OF_STREAM),
        (ProtocolError("a rule"), Ending.PROTOCOL_ERROR),
        (ZeroDivisionError(), Ending.FAILED),
        (KeyboardInterrupt(), Ending.CANCELLED),
    ],
)
async def test_how_it_ended_is_counted_by_its_server(
    error: BaseException | None, ending: Ending
) -> None:
    async def handler(connection: AnyConnection) -> None:
        await wait_for_the_end(connection)
        if error is not None:
            raise error

    server = Server(handler)
    ours, theirs = memory()
    async with ours:
        await ours.send_eof()
        with contextlib.suppress(KeyboardInterrupt):
            await server.serve_stream(theirs)
    assert server.statistics().endings == dict.fromkeys(Ending, 0) | {ending: 1}


async def test_peer_that_finished_and_then_took_nothing_has_broken_the_connection(
    connect: Connect,
) -> None:
    left, right = unix()
    connection = connect(left)
    await right.aclose()
    with pytest.raises(trio.EndOfChannel):
        await connection.receive()
    await connection.send(b"x")
    with pytest.raises(trio.BrokenResourceError):
        await connection.send(b"y")
    await connection.aclose()
    assert isinstance(connection.close_reason, trio.BrokenResourceError)


async def test_tls_waits_for_what_other_tasks_go_on_sending(
    tight_pair: Pair, connect: Connect, tls: Tls
) -> None:
    connection = connect(tight_pair[0], write_buffer_size=1000)
    peer = connect(tight_pair[1])
    received: list[bytes] = []

    async def send_twice() -> None:
        await connection.send(bytes(50_000))
        await connection.send(bytes(60_000))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_twice)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(partial(connection.start_tls, tls.server, server_side=True))
        received.extend([await peer.receive(), await peer.receive()])
        await peer.start_tls(tls.client, server_hostname="example.org")
    assert received == [bytes(50_000), bytes(60_000)]


async def test_repr_while_it_closes(connect: Connect) -> None:
    left, right = memory()
    connection = connect(left)
    seen = []

    async def hook(_event: MessageWritten) -> None:
        await connection.aclose()

    async def look(_event: MessageWritten) -> None:
        seen.append(repr(connection))

    connection.message_written.connect(look)
    async with trio.open_nursery() as nursery:
        await connection.send(b"x")
        nursery.start_soon(connection.aclose)
        await trio.testing.wait_all_tasks_blocked()
    await right.aclose()
    (said,) = seen
    assert said in [f"<Connection {connection.number} with None, {x}>" for x in ("open", "closed")]


@attrs.frozen
class Plain(Codec[Any, Any]):
    """Any frame that a test gives it."""

    def reader(self) -> SkippingReader:
        return SkippingReader()

    def writer(self) -> Writer[Any]:
        return PlainWriter()


class PlainWriter(Writer[Any]):
    def encode(self, message: Any) -> Any:
        return message


async def test_a_codec_of_ones_own_is_as_good_as_any() -> None:
    left, right = connection_pair(Plain())
    async with left, right:
        await left.send([b"ab", bytearray(b"c"), memoryview(b"d")])
        await left.send(bytearray(b"e"))
        assert [await right.receive() for _ in range(5)] == [b"a", b"b", b"c", b"d", b"e"]


async def echo(connection: AnyConnection) -> None:
    async with connection:
        async for message in connection:
            await connection.send(message)


async def burst(connection: AnyConnection, count: int) -> AsyncIterator[bytes]:
    for number in range(count):
        await connection.send(b"%d" % number)
    await connection.send_eof()
    async for message in connection:
        yield message


async def test_connections_as_pipes_of_messages(pair: Pair, connect: Connect) -> None:
    left, right = map(connect, pair)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(echo, right)
        received = [int(message) async for message in burst(left, 500)]
    assert received == list(range(500))


# -- as a server has it


async def test_hook_alone_hears_each_message_before_it_is_received(
    pair: Pair, connect: Connect
) -> None:
    server = Server()
    heard: list[bytes] = []

    @server.on_message
    async def hook(connection: AnyConnection, message: bytes) -> None:
        heard.append(message)
        await connection.send(message)

    connection = connect(pair[0])
    connection.message_received.connect(server.message_received)
    own = Server()
    own.on_message(hook)
    other = connect(pair[1])
    async with open_memory_connection(own) as client:
        for number in range(3):
            await client.send(b"%d" % number)
        assert [await client.receive() for _ in range(3)] == [b"0", b"1", b"2"]
    assert heard == [b"0", b"1", b"2"]
    assert own.statistics().messages_received == 3
    await other.send(b"forwarded")
    assert await connection.receive() == b"forwarded"
    assert heard[3:] == [b"forwarded"]


async def test_large_replies_to_a_burst_are_collected_too(pair: Pair, connect: Connect) -> None:
    left, right = map(connect, pair)
    large = bytes(5000)  # sent as header and payload
    async with trio.open_nursery() as nursery:
        nursery.start_soon(echo, right)
        for _ in range(3):
            await left.send(large)
        await left.send_eof()
        assert [message async for message in left] == [large] * 3


class Returning(Writer[Any]):
    """Returns as a frame what it is given as a message."""

    def encode(self, message: Any) -> Any:
        return message


@pytest.mark.parametrize("wrong", ["text", ["text"], [b"fine", None], 5, [5]])
async def test_writer_that_returns_no_bytes_is_named_and_nothing_is_queued(
    wrong: object, pair: Pair, connect: Connect
) -> None:
    connection = connect(pair[0])
    connection.writer = Returning()
    with pytest.raises(TypeError, match=r"Returning\.encode must return bytes"):
        await connection.send(wrong)
    with pytest.raises(TypeError, match=r"Returning\.encode must return bytes"):
        connection.send_nowait(wrong)
    assert connection.statistics().bytes_queued == 0
    await connection.send([b"a", bytearray(b"b"), memoryview(b"c")])
    await connection.send(memoryview(array.array("H", [0x6464])))
    assert await read_exactly(pair[1], 5) == b"abcdd"


class Failing(Writer[bytes]):
    """Numbers its frames, and refuses some messages."""

    stateful = True

    def __init__(self) -> None:
        self.count = 0

    def encode(self, message: bytes) -> bytes:
        if message == b"refuse":
            raise EncodeError("as asked")
        self.count += 1
        return b"%d%s;" % (self.count, message)


async def test_writer_that_counts_does_so_for_what_is_sent_only(
    tight_pair: Pair, connect: Connect
) -> None:
    connection = connect(tight_pair[0], write_buffer_size=100)
    connection.writer = Failing()
    peer = connect(tight_pair[1], codec=Delimited(b";"))
    sent = 0
    with contextlib.suppress(trio.WouldBlock):
        while True:
            connection.send_nowait(bytes(200))
            sent += 1
    for _ in range(3):
        with pytest.raises(trio.WouldBlock):
            connection.send_nowait(b"lost")
    await cancel_when_it_waits(partial(connection.send, b"cancelled"))

    async def refuse() -> None:
        with pytest.raises(EncodeError, match="as asked"):
            await connection.send(b"refuse")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(refuse)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(connection.send, b"last")
        await trio.testing.wait_all_tasks_blocked()
        for number in range(1, sent + 1):
            assert await peer.receive() == b"%d" % number + bytes(200)
        assert await peer.receive() == b"%dlast" % (sent + 1)


async def test_closed_by_another_task_before_the_handshake(
    tight_pair: Pair, connect: Connect, tls: Tls
) -> None:
    connection = connect(tight_pair[0], close_timeout=0.01)
    await connection.send(bytes(300_000))

    async def start_tls(why: str) -> None:
        with pytest.raises(trio.ClosedResourceError, match=why):
            await connection.start_tls(tls.client, server_hostname="example.org")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(start_tls, "was closed")
        await trio.testing.wait_all_tasks_blocked()
        await connection.aclose()
    assert connection.local_address is None
    await start_tls("^this connection was closed$")


@pytest.mark.parametrize("size", [0, 30_000])
async def test_closed_by_another_task_at_the_last_moment_before_the_handshake(
    size: int, connect: Connect, tls: Tls
) -> None:
    for turns in range(8):
        left, right = tight_unix()
        connection = connect(left)
        connection.send_nowait(bytes(size))

        async def start_tls() -> None:
            with pytest.raises((trio.ClosedResourceError, trio.BrokenResourceError)):
                await connection.start_tls(  # noqa: B023 - used within the same round
                    tls.client, server_hostname="example.org"
                )

        async with trio.open_nursery() as nursery:
            nursery.start_soon(start_tls)
            nursery.start_soon(read_to_end, right)
            for _ in range(turns):
                await trio.lowlevel.checkpoint()
            await trio.aclose_forcefully(connection)
        await right.aclose()
        assert connection.close_reason in (CloseReason.CLOSED, CloseReason.CANCELLED)


async def test_written_hook_cannot_start_tls(pair: Pair, connect: Connect, tls: Tls) -> None:
    connection = connect(pair[0])
    refused = trio.Event()

    async def hook(_event: MessageWritten) -> None:
        with pytest.raises(trio.BusyResourceError, match="hook"):
            await connection.start_tls(tls.client, server_hostname="example.org")
        refused.set()

    connection.message_written.connect(hook)
    await connection.send(b"x")
    await refused.wait()


async def test_written_hook_that_is_cancelled_and_fails_at_that(
    pair: Pair, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    connection = connect(pair[0], close_timeout=0.01)

    async def fail() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("on the way out")

    async def hook(_event: MessageWritten) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)
            nursery.start_soon(trio.sleep_forever)

    connection.message_written.connect(hook)
    await connection.send(b"x")
    await trio.testing.wait_all_tasks_blocked()
    await connection.aclose()
    await trio.testing.wait_all_tasks_blocked()
    (record,) = caplog.records
    assert "message_written hook failed" in record.getMessage()


async def test_failed_written_hook_stays_the_reason_when_the_server_is_cancelled(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    failure = ValueError("hook")
    reasons: list[object] = []

    async def handler(connection: AnyConnection) -> None:
        await connection.send(b"x")
        await trio.sleep_forever()

    async def on_written(_event: MessageWritten) -> None:
        raise failure

    server = Server(handler)
    server.message_written.connect(on_written)

    @server.on_disconnect
    async def on_disconnect(connection: AnyConnection) -> None:
        reasons.append(connection.close_reason)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve_stream, pair[0])
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert reasons == [failure]
    assert len(caplog.records) == 1


async def test_written_hook_that_is_cancelled_is_no_failure(
    pair: Pair, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    connection = connect(pair[0], close_timeout=0.01)

    async def hook(_event: MessageWritten) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)

    connection.message_written.connect(hook)
    await connection.send(b"x")
    await trio.testing.wait_all_tasks_blocked()
    await connection.aclose()
    await trio.testing.wait_all_tasks_blocked()
    assert connection.close_reason is CloseReason.CLOSED
    assert caplog.records == []


async def test_client_without_a_name_to_check_the_certificate_for_is_refused(
    pair: Pair, connect: Connect, tls: Tls
) -> None:
    connection = connect(pair[0])
    with pytest.raises(ValueError, match="server_hostname must be given"):
        await connection.start_tls(tls.client)


async def test_written_hook_that_exits_ends_its_connection_and_nothing_else(
    pair: Pair, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    connection = connect(pair[0])

    async def hook(_event: MessageWritten) -> None:
        raise SystemExit(3)

    connection.message_written.connect(hook)
    await connection.send(b"x")
    with pytest.raises(trio.BrokenResourceError):
        await connection.receive()
    await connection.aclose()
    assert isinstance(connection.close_reason, SystemExit)
    assert len(caplog.records) == 1


async def test_wrong_reader_or_writer_is_refused_and_nothing_changes(
    pair: Pair, connect: Connect
) -> None:
    connection = connect(pair[0])
    reader, writer = connection.reader, connection.writer
    with pytest.raises(TypeError, match="reader must be a Reader"):
        connection.reader = None  # type: ignore[assignment]  # wrong on purpose
    with pytest.raises(TypeError, match="writer must be a Writer"):
        connection.writer = reader  # type: ignore[assignment]  # wrong on purpose
    assert (connection.reader, connection.writer) == (reader, writer)


async def test_a_clients_reason_is_the_error_that_it_was_told_of(
    pair: Pair, connect: Connect
) -> None:
    connection = connect(pair[0], codec=LengthPrefixed(max_size=3))
    await pair[1].send_all(frame(b"large"))
    with pytest.raises(MessageTooLargeError) as caught:
        await connection.receive()
    await connection.aclose()
    assert connection.close_reason is caught.value


class Counting(Writer[bytes]):
    """Numbers its frames, so none fits another connection."""

    stateful = True

    def __init__(self) -> None:
        self.count = 0

    def encode(self, message: bytes) -> bytes:
        self.count += 1
        return b"%d:%s\n" % (self.count, message)


async def until_closed(connection: AnyConnection) -> None:
    async for message in connection:
        if message == b"count":
            connection.writer = Counting()
            await connection.send(b"you")


async def test_broadcast_shares_frames_where_that_is_right() -> None:
    server = Server(until_closed)
    async with (
        open_memory_connection(server) as first,
        open_memory_connection(server) as second,
        open_memory_connection(server) as third,
    ):
        await trio.testing.wait_all_tasks_blocked()
        await third.send(b"count")
        lines = third.use(Lines())
        assert await lines.receive() == "1:you"
        result = server.broadcast(b"all")
        assert (result.queued, result.skipped) == (3, 0)
        assert await first.receive() == b"all"
        assert await second.receive() == b"all"
        assert await lines.receive() == "2:all"


async def test_broadcast_leaves_out_who_is_full_or_gone(tight_pair: Pair, connect: Connect) -> None:
    async def never_read(connection: AnyConnection) -> None:
        await trio.sleep_forever()

    server = Server(never_read, write_buffer_size=10, close_timeout=0.01)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve_stream, tight_pair[0])
        await trio.testing.wait_all_tasks_blocked()
        (connection,) = server.connections
        full = False
        while not full:
            full = server.broadcast(bytes(1000)).skipped == 1
        nursery.start_soon(connection.aclose)
        await trio.testing.wait_all_tasks_blocked()
        result = server.broadcast(b"too late")
        assert (result.queued, result.skipped) == (0, 0)
        nursery.cancel_scope.cancel()


async def test_broadcast_to_a_codec_without_a_hash() -> None:
    @attrs.frozen
    class Unhashable(LengthPrefixed):
        names: list[str] = attrs.field(factory=list)

    server = Server(echo, codec=Unhashable())
    async with open_memory_connection(server) as one, open_memory_connection(server) as other:
        for client in one, other:
            await client.send(b"x")
            assert await client.receive() == b"x"
        assert server.broadcast(b"news") == BroadcastResult(queued=2, skipped=0)
        assert await one.receive() == await other.receive() == b"news"


async def test_broadcast_leaves_out_who_is_broken() -> None:
    server = Server(until_closed)
    left, right = tcp()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve_stream, left)
        await trio.testing.wait_all_tasks_blocked()
        (connection,) = server.connections
        connection._give_up(trio.BrokenResourceError("as far as this side knows"))
        result = server.broadcast(b"x")
        assert (result.queued, result.skipped) == (0, 0)
        nursery.cancel_scope.cancel()
    await right.aclose()


async def test_broadcast_leaves_out_who_is_found_to_be_broken() -> None:
    server = Server(until_closed, write_buffer_size=1000)
    left, right = unix()
    assert isinstance(right, trio.SocketStream)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve_stream, left)
        await trio.testing.wait_all_tasks_blocked()
        (connection,) = server.connections
        connection.message_written.subscribe()
        right.socket.close()  # and its task has not run since
        results = [server.broadcast(bytes(2000)) for _ in range(2)]
        assert [result.queued for result in results] == [1, 0]
        nursery.cancel_scope.cancel()


async def receive_on(connection: AnyConnection) -> None:
    """Receive until that fails."""
    while True:
        await connection.receive()


async def test_given_up_while_the_rest_is_received_it_has_not_ended_in_order() -> None:
    outcomes = []
    for steps in range(12):
        ours, peer = memory()
        connection: AnyConnection = connect_plainly(ours)
        await peer.send_all(frame(b"x") * 5)
        await peer.send_eof()
        connection._stop()
        given_up = False

        async def give_up(connection: AnyConnection = connection, steps: int = steps) -> None:
            nonlocal given_up
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
            connection._give_up(trio.BrokenResourceError("given up"))
            given_up = True

        async with trio.open_nursery() as nursery:
            nursery.start_soon(give_up)
            with pytest.raises((trio.BrokenResourceError, trio.EndOfChannel)) as caught:
                await receive_on(connection)
            outcomes.append((given_up, caught.type))
        await connection.aclose()
        await peer.aclose()
    assert (True, trio.BrokenResourceError) in outcomes
    assert (True, trio.EndOfChannel) not in outcomes


@pytest.mark.parametrize("make", [memory, unix])
async def test_stopped_server_ends_receiving_behind_what_has_arrived(
    make: Callable[[], Pair],
) -> None:
    left, right = make()
    reasons = []
    received = []

    async def handler(connection: AnyConnection) -> None:
        received.append(await connection.receive())
        server.stop()
        received.extend([message async for message in connection])
        with pytest.raises(trio.EndOfChannel):
            await connection.receive()

    server = Server(handler)

    @server.on_disconnect
    async def hook(connection: AnyConnection) -> None:
        reasons.append(connection.close_reason)

    await right.send_all(frame(b"1") + frame(b"2"))
    await right.send_all(frame(b"3") + frame(b"cut")[:2])
    await server.serve_stream(left)
    assert received == [b"1", b"2", b"3"]
    assert reasons == [CloseReason.SERVER_STOPPED]
    await right.aclose()


async def test_the_handlers_failure_is_the_reason_whatever_the_stream_did(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    failure = ValueError("handler")
    reasons: list[object] = []

    async def handler(connection: AnyConnection) -> None:
        await connection.aclose()
        assert connection.close_reason is CloseReason.CLOSED
        raise failure

    server = Server(handler)

    @server.on_disconnect
    async def hook(connection: AnyConnection) -> None:
        reasons.append(connection.close_reason)

    await server.serve_stream(pair[0])
    assert reasons == [failure]
    (record,) = caplog.records
    assert record.levelno == logging.ERROR


async def test_the_peers_fault_and_the_own_close_are_told_apart_from_failures(
    caplog: pytest.LogCaptureFixture,
) -> None:
    reasons: list[object] = []

    async def handler(connection: AnyConnection) -> None:
        while True:
            await connection.receive()

    server = Server(handler, codec=LengthPrefixed(max_size=5))

    @server.on_disconnect
    async def hook(connection: AnyConnection) -> None:
        reasons.append(connection.close_reason)

    for message in (frame(b"fine"), frame(b"fine") + frame(b"larger")):
        left, right = memory()
        await right.send_all(message)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.serve_stream, left)
            await trio.testing.wait_all_tasks_blocked()
            for connection in server.connections:
                await connection.aclose()
        await right.aclose()
    assert reasons[0] is CloseReason.CLOSED
    assert isinstance(reasons[1], MessageTooLargeError)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.exc_info is None


async def test_hook_may_close_while_another_task_does(connect: Connect) -> None:
    left, right = memory()
    connection = connect(left)

    async def hook(_event: MessageWritten) -> None:
        await trio.testing.wait_all_tasks_blocked()
        await connection.aclose()

    connection.message_written.connect(hook)
    async with right:
        await connection.send(b"x")
        await connection.aclose()
        assert await read_to_end(right) == frame(b"x")


@pytest.mark.parametrize("by_a_hook", [False, True])
async def test_protocol_error_that_the_users_code_raises_is_its_peers_fault(
    caplog: pytest.LogCaptureFixture, by_a_hook: bool
) -> None:
    error = ProtocolError("the peer sent b'bye' before b'hello'")
    ended: list[AnyConnection] = []

    async def refuse(*_: object) -> None:
        raise error

    async def handler(connection: AnyConnection) -> None:
        ended.append(connection)
        await (connection.receive() if by_a_hook else refuse())

    server = Server(handler)
    if by_a_hook:
        server.on_message(refuse)
    async with open_memory_connection(server) as client:
        await client.send(b"bye")
        with pytest.raises(trio.EndOfChannel):
            await client.receive()
    assert ended[0].close_reason is error
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.exc_info is None


# -- TLS that is refused, cut off, or finished


async def test_tls_settings_that_cannot_work_leave_the_connection_as_it_was(
    pair: Pair, connect: Connect, tls: Tls
) -> None:
    ours, peer = pair
    connection = connect(ours)
    with pytest.raises(ValueError, match="server_hostname"):
        await connection.start_tls(tls.client)
    for impossible in ("", ".example.org", "x" * 300):
        with pytest.raises(ValueError, match=r"hostname|label"):
            await connection.start_tls(tls.client, server_hostname=impossible)
    await connection.send(b"in the clear")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.aclose)
        assert await read_to_end(peer) == frame(b"in the clear")
        await peer.aclose()


@pytest.mark.parametrize("make", [memory, unix, tcp])
async def test_tls_cut_off_is_no_end_of_stream(
    make: Callable[[], Pair], connect: Connect, tls: Tls
) -> None:
    ours, theirs = make()
    peer = tls.at_server(theirs)
    connection = connect(ours)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.do_handshake)
        await connection.start_tls(tls.client, server_hostname="example.org")
    await peer.send_all(frame(b"whole"))
    assert await connection.receive() == b"whole"
    await theirs.aclose()  # the stream below, so that nothing is said under TLS
    for _ in range(3):
        with pytest.raises(trio.BrokenResourceError):
            await connection.receive()
    await connection.aclose()
    assert isinstance(connection.close_reason, trio.BrokenResourceError)


@pytest.mark.parametrize("make", [memory, unix, tcp])
async def test_tls_finished_properly_is_an_end_of_stream(
    make: Callable[[], Pair], connect: Connect, tls: Tls
) -> None:
    left, right = map(connect, make())
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def serve() -> None:
            await right.start_tls(tls.server, server_side=True)
            await right.send(b"last")
            await right.aclose()

        await left.start_tls(tls.client, server_hostname="example.org")
        assert await left.receive() == b"last"
        for _ in range(3):
            with pytest.raises(trio.EndOfChannel):
                await left.receive()


# -- closing and listeners


async def test_received_hook_may_close(pair: Pair, connect: Connect) -> None:
    ours, peer = pair
    connection = connect(ours)

    async def hook(_event: MessageReceived) -> None:
        await connection.aclose()

    connection.message_received.connect(hook)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.send_all, frame(b"the last"))

        @nursery.start_soon
        async def peer_follows() -> None:
            assert await read_to_end(peer) == b""
            await peer.aclose()

        assert await connection.receive() == b"the last"
        with pytest.raises(trio.ClosedResourceError):
            await connection.receive()


async def test_message_that_waits_for_a_slow_subscriber_survives_closing(
    pair: Pair, connect: Connect
) -> None:
    ours, peer = pair
    connection = connect(ours)
    events = connection.message_received.subscribe(buffer_size=1)
    received: list[bytes] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.send_all, frame(b"one") + frame(b"two"))

        @nursery.start_soon
        async def receive() -> None:
            received.extend([await connection.receive(), await connection.receive()])
            with pytest.raises(trio.ClosedResourceError):
                await connection.receive()

        await trio.testing.wait_all_tasks_blocked()
        assert connection.statistics().messages_received == 1
        await trio.aclose_forcefully(connection)
        assert [event.message async for event in events] == [b"one", b"two"]
    assert received == [b"one", b"two"]


# -- the reader, once more


async def test_reader_switched_at_the_moment_that_bytes_arrive(connect: Connect) -> None:
    ours, peer = memory()
    connection = connect(ours)
    received: list[object] = []

    async def receive() -> None:
        received.append(await connection.receive())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await peer.send_all(b"\x00\x01\x00\x00")  # the length of a message that is not to come
        await trio.testing.wait_all_tasks_blocked()
        await peer.send_all(b"ABC\n")
        # The receiving task is to run next, with the new bytes, and does not yet.
        connection.reader = Lines().reader()
        with trio.fail_after(5):
            await trio.testing.wait_all_tasks_blocked()
        assert received == ["\x00\x01\x00\x00ABC"]


@attrs.frozen
class Faulty(Codec[Any, Any]):
    """A codec with a bug."""

    def reader(self) -> Reader[Any]:
        raise ZeroDivisionError

    def writer(self) -> Writer[Any]:
        raise ZeroDivisionError


async def test_codec_that_fails_leaves_the_stream_to_the_caller(
    pair: Pair, connect: Connect
) -> None:
    ours, peer = pair
    with pytest.raises(ZeroDivisionError):
        open_connection(ours, codec=Faulty())
    connection = connect(ours)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.send, b"hello")
        assert await read_exactly(peer, 9) == frame(b"hello")


# -- time, once more


@pytest.mark.parametrize("make", [memory, unix])
async def test_message_timeout_counts_while_someone_receives_only(
    make: Callable[[], Pair], connect: Connect, autojump_clock: trio.testing.MockClock
) -> None:
    ours, peer = make()
    connection = connect(ours, message_timeout=10)
    await peer.send_all(frame(b"hello")[:5])
    with trio.move_on_after(6):
        await connection.receive()
    await trio.sleep(100)  # nobody receives, which is not the peer's fault
    await peer.send_all(frame(b"hello")[5:])
    assert await connection.receive() == b"hello"
    await peer.aclose()


@pytest.mark.parametrize("make", [memory, unix])
async def test_message_timeout_is_not_put_off_by_receiving_in_short_turns(
    make: Callable[[], Pair], connect: Connect, autojump_clock: trio.testing.MockClock
) -> None:
    ours, peer = make()
    connection = connect(ours, message_timeout=10)
    await peer.send_all(frame(b"hello")[:5])
    start = trio.current_time()
    for _ in range(3):
        with trio.move_on_after(3):
            await connection.receive()
    with pytest.raises(MessageTimeoutError):
        await connection.receive()
    assert trio.current_time() == start + 10
    await peer.aclose()


@pytest.mark.parametrize("make", [memory, unix])
async def test_idle_timeout_is_counted_from_the_last_byte_that_moved(
    make: Callable[[], Pair], connect: Connect, autojump_clock: trio.testing.MockClock
) -> None:
    ours, peer = make()
    connection = connect(ours, idle_timeout=10)

    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def send() -> None:
            await trio.sleep(4)
            await connection.send(b"news")

        start = trio.current_time()
        with pytest.raises(IdleTimeoutError):
            await connection.receive()
        # Never too early; how late it may be is a question of cost.
        assert start + 14 <= trio.current_time() <= start + 20
    await peer.aclose()


# -- many messages at once: decoded ahead or one by one, it makes no difference


@attrs.define(eq=False)
class OneByOneReader(Reader[Any]):
    """What another reader makes of the bytes, one message at a time."""

    reader: Reader[Any]

    def decode(self, buffer: ReceiveBuffer) -> Any:
        return self.reader.decode(buffer)


@attrs.frozen
class OneByOne(Codec[Any, Any]):
    """Another codec, less what makes it fast."""

    codec: Codec[Any, Any]

    def reader(self) -> Reader[Any]:
        return OneByOneReader(self.codec.reader())

    def writer(self) -> Writer[Any]:
        return self.codec.writer()


BURSTS: dict[str, tuple[Codec[Any, Any], list[Any]]] = {
    "length": (LengthPrefixed(), [b"%d" % number for number in range(300)]),
    "delimited": (Delimited(b"\n"), [b"%d" % number for number in range(300)]),
    "delimiters": (Delimited([b"\n", b"\0"]), [b"%d" % number for number in range(300)]),
    "lines": (Lines(), [str(number) for number in range(300)]),
}


@pytest.fixture(params=BURSTS)
def many(request: pytest.FixtureRequest) -> tuple[Codec[Any, Any], list[Any]]:
    return BURSTS[request.param]


@pytest.fixture(params=[False, True], ids=["ahead", "one by one"])
def codec_of(request: pytest.FixtureRequest) -> Callable[[Codec[Any, Any]], Codec[Any, Any]]:
    def as_it_is(codec: Codec[Any, Any]) -> Codec[Any, Any]:
        return codec

    return OneByOne if request.param else as_it_is


CodecOf = Callable[[Codec[Any, Any]], Codec[Any, Any]]


def framed(codec: Codec[Any, Any], messages: list[Any]) -> bytes:
    writer = codec.writer()
    frames = [writer.encode(message) for message in messages]
    return b"".join(frame for frame in frames if isinstance(frame, bytes))


async def test_burst_is_received_in_order(
    many: tuple[Codec[Any, Any], list[Any]], codec_of: CodecOf, pair: Pair, connect: Connect
) -> None:
    codec, messages = many
    connection = connect(pair[0], codec=codec_of(codec))
    stream = framed(codec, messages)
    await pair[1].send_all(stream + stream[: len(stream) // 2])
    await trio.testing.wait_all_tasks_blocked()
    assert [await connection.receive() for _ in messages] == messages
    before = len(messages)
    assert connection.statistics().messages_received == before
    await pair[1].send_all(stream[len(stream) // 2 :])
    assert [await connection.receive() for _ in messages] == messages
    statistics = connection.statistics()
    assert statistics.messages_received == 2 * before
    assert statistics.bytes_undecoded == 0


async def test_statistics_in_the_middle_of_a_burst_count_what_was_delivered(
    many: tuple[Codec[Any, Any], list[Any]], codec_of: CodecOf, connect: Connect
) -> None:
    codec, messages = many
    ours, peer = memory()
    connection = connect(ours, codec=codec_of(codec))
    await peer.send_all(framed(codec, messages))
    for count, message in enumerate(messages, start=1):
        assert await connection.receive() == message
        statistics = connection.statistics()
        assert statistics.messages_received == count
        assert statistics.bytes_undecoded == len(framed(codec, messages[count:]))


@pytest.mark.parametrize("count", [1, 2, 3, 127, 128, 129, 130, 200, 299])
async def test_reader_that_is_replaced_in_the_middle_of_a_burst_gets_the_rest(
    many: tuple[Codec[Any, Any], list[Any]], codec_of: CodecOf, connect: Connect, count: int
) -> None:
    codec, messages = many
    ours, peer = memory()
    connection = connect(ours, codec=codec_of(codec))
    await peer.send_all(framed(codec, messages))
    assert [await connection.receive() for _ in range(count)] == messages[:count]
    connection.reader = Everything()
    assert await connection.receive() == framed(codec, messages[count:])
    assert connection.statistics().messages_received == count + 1


@attrs.define(eq=False)
class Everything(Reader[bytes]):
    """Whatever is there is a message."""

    def decode(self, buffer: ReceiveBuffer) -> bytes | Literal[NeedData.NEED_DATA]:
        return buffer.take(len(buffer)) or NEED_DATA


async def test_limit_that_is_changed_in_the_middle_of_a_burst_holds_for_the_next_message(
    connect: Connect,
) -> None:
    codecs: list[tuple[Codec[Any, Any], Any]] = [
        (LengthPrefixed(max_size=5), b"small"),
        (Delimited(b"\n", max_size=5), b"small"),
        (Delimited([b"\n", b"\0"], max_size=5), b"small"),
        (Lines(max_size=5), "small"),
    ]
    for codec, message in codecs:
        ours, peer = memory()
        connection = connect(ours, codec=codec)
        await peer.send_all(framed(codec, [message] * 10))
        assert [await connection.receive() for _ in range(3)] == [message] * 3
        reader: Any = connection.reader
        reader.max_size = 4
        with pytest.raises(MessageTooLargeError):
            await connection.receive()
        reader.max_size = 5
        assert [await connection.receive() for _ in range(7)] == [message] * 7


async def test_fault_in_a_burst_is_met_when_its_turn_comes(
    codec_of: CodecOf, pair: Pair, connect: Connect
) -> None:
    connection = connect(pair[0], codec=codec_of(LengthPrefixed(max_size=5)))
    await pair[1].send_all(frame(b"one") + frame(b"two") + frame(b"too large") + frame(b"three"))
    assert await connection.receive() == b"one"
    assert await connection.receive() == b"two"
    for _ in range(2):
        with pytest.raises(MessageTooLargeError):
            await connection.receive()
    await connection.aclose()
    assert isinstance(connection.close_reason, MessageTooLargeError)


async def test_end_in_the_middle_of_a_burst_is_met_when_its_turn_comes(
    codec_of: CodecOf, pair: Pair, connect: Connect
) -> None:
    connection = connect(pair[0], codec=codec_of(LengthPrefixed()))
    await pair[1].send_all(frame(b"one") + frame(b"two") + frame(b"three")[:-1])
    await pair[1].send_eof()
    assert [await connection.receive(), await connection.receive()] == [b"one", b"two"]
    with pytest.raises(IncompleteMessageError):
        await connection.receive()


async def test_closing_in_the_middle_of_a_burst_ends_it(
    codec_of: CodecOf, pair: Pair, connect: Connect
) -> None:
    connection = connect(pair[0], codec=codec_of(LengthPrefixed()))
    await pair[1].send_all(frame(b"x") * 10)
    for _ in range(3):
        assert await anext(connection) == b"x"
    await trio.aclose_forcefully(connection)
    for receive in (connection.receive, connection.__anext__):
        with pytest.raises(trio.ClosedResourceError):
            await receive()
    assert connection.statistics().messages_received == 3
    assert connection.statistics().bytes_undecoded == 7 * 5


async def test_start_tls_in_the_middle_of_a_burst_is_refused(
    codec_of: CodecOf, tls: Tls, connect: Connect
) -> None:
    ours, peer = memory()
    connection = connect(ours, codec=codec_of(LengthPrefixed()))
    await peer.send_all(frame(b"STARTTLS") + frame(b"injected"))
    assert await connection.receive() == b"STARTTLS"
    with pytest.raises(ProtocolError, match="12 bytes in the clear"):
        await connection.start_tls(tls.server, server_side=True)


async def test_listener_that_comes_in_the_middle_of_a_burst_hears_of_the_rest(
    codec_of: CodecOf, connect: Connect
) -> None:
    ours, peer = memory()
    connection = connect(ours, codec=codec_of(LengthPrefixed()))
    await peer.send_all(b"".join(frame(b"%d" % number) for number in range(4)))
    heard = []

    async def hook(event: MessageReceived) -> None:
        heard.append(event.message)

    assert await connection.receive() == b"0"
    async with connection.message_received.subscribe() as events:
        assert await connection.receive() == b"1"
        handle = connection.message_received.connect(hook)
        assert await connection.receive() == b"2"
        handle.disconnect()
        assert await connection.receive() == b"3"
        assert [(await events.receive()).message for _ in range(3)] == [b"1", b"2", b"3"]
    assert heard == [b"2"]


async def test_subclass_that_overrides_decode_alone_is_asked_for_every_message(
    connect: Connect,
) -> None:
    @attrs.define(eq=False)
    class Upper(LengthPrefixedReader):
        def decode(self, buffer: ReceiveBuffer) -> bytes | Literal[NeedData.NEED_DATA]:
            message = super().decode(buffer)
            return message if message is NEED_DATA else message.upper()

    ours, peer = memory()
    connection = connect(ours)
    connection.reader = Upper(4, "big", 100)
    await peer.send_all(frame(b"a") + frame(b"b") + frame(b"c"))
    assert [await connection.receive() for _ in range(3)] == [b"A", b"B", b"C"]


async def test_hooks_may_change_anything_in_the_middle_of_a_burst(codec_of: CodecOf) -> None:
    heard = []
    server = Server(codec=codec_of(LengthPrefixed()))

    async def also(event: MessageReceived) -> None:
        heard.append(("also", event.message))

    @server.on_message
    async def hook(connection: AnyConnection, message: bytes) -> None:
        heard.append(("hook", message))
        if message == b"listen":
            server.message_received.connect(also)
        elif message == b"stop listening":
            server.message_received.disconnect(also)
        elif message == b"lines":
            connection.reader = Delimited(b"\n").reader()
        elif message == b"close":
            await connection.aclose()

    ours, peer = memory()
    words = [b"1", b"listen", b"2", b"stop listening", b"3", b"lines"]
    await peer.send_all(b"".join(map(frame, words)) + b"4\n5\nclose\n6\n7\n")
    await server.serve_stream(ours)
    assert heard == [
        ("hook", b"1"),
        ("hook", b"listen"),
        ("hook", b"2"),
        ("also", b"2"),
        ("hook", b"stop listening"),
        ("also", b"stop listening"),  # it was listening when this began
        ("hook", b"3"),
        ("hook", b"lines"),
        ("hook", b"4"),
        ("hook", b"5"),
        ("hook", b"close"),
    ]


async def test_hook_cannot_receive_from_the_connection_that_it_is_told_of(
    codec_of: CodecOf,
) -> None:
    heard: list[Any] = []
    server = Server(codec=codec_of(LengthPrefixed()))

    @server.on_message
    async def hook(connection: AnyConnection, message: bytes) -> None:
        heard.append(message)
        with pytest.raises(trio.BusyResourceError):
            await connection.receive()

    ours, peer = memory()
    await peer.send_all(frame(b"a") + frame(b"b") + frame(b"c"))
    await peer.send_eof()
    await server.serve_stream(ours)
    assert heard == [b"a", b"b", b"c"]


async def test_connection_that_went_on_after_a_fault_does_not_end_for_it(connect: Connect) -> None:
    @attrs.define(eq=False)
    class Skipping(Reader[bytes]):
        def decode(self, buffer: ReceiveBuffer) -> bytes | Literal[NeedData.NEED_DATA]:
            message = buffer.take(1)
            if message == b"!":
                raise ProtocolError("the peer sent an exclamation mark")
            return NEED_DATA if message is None else message

    ours, peer = memory()
    connection = connect(ours)
    connection.reader = Skipping()
    await peer.send_all(b"ab!")
    await peer.send_eof()
    assert [await connection.receive(), await connection.receive()] == [b"a", b"b"]
    with pytest.raises(ProtocolError):
        await connection.receive()
    with pytest.raises(trio.EndOfChannel):
        await connection.receive()
    await connection.aclose()
    assert connection.close_reason is CloseReason.END_OF_STREAM


async def test_replies_to_a_burst_are_written_when_they_come_to_much(connect: Connect) -> None:
    ours, peer = unix()
    connection = connect(ours, write_buffer_size=1000)
    await peer.send_all(frame(b"x") * 50)
    with counted_writes(ours) as writes:
        for _ in range(50):
            assert await connection.receive() == b"x"
            await connection.send(bytes(100))
        await connection.flush()
    assert 3 < writes.count < 12
    assert await read_exactly(peer, 50 * 104) == frame(bytes(100)) * 50
    await peer.aclose()


async def test_interrupted_wait_goes_on(pair: Pair, connect: Connect) -> None:
    connection = connect(pair[0])
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def receive() -> None:
            assert await connection.receive() == b"message"

        await trio.testing.wait_all_tasks_blocked()
        connection.reader = LengthPrefixed().reader()
        await trio.testing.wait_all_tasks_blocked()
        await pair[1].send_all(frame(b"message"))


@pytest.mark.parametrize("rude", [False, True])
async def test_end_that_is_found_while_the_server_stops_is_the_peers(rude: bool) -> None:
    ours, peer = tcp()

    async def handle(connection: AnyConnection) -> None:
        await connection.receive()
        server.stop()
        if rude:
            reset(peer)
        else:
            await peer.send_eof()
        with pytest.raises(trio.BrokenResourceError if rude else trio.EndOfChannel, match="peer"):
            await connection.receive()

    server = Server(handle)
    await peer.send_all(frame(b"begin"))
    await server.serve_stream(ours)
    await trio.aclose_forcefully(peer)


# -- broadcasting


async def test_broadcasts_of_one_turn_reach_equal_codecs_in_order_and_encoded_once() -> None:
    encoded = []

    @attrs.define(eq=False)
    class NotingWriter(Writer[bytes]):
        def encode(self, message: bytes) -> bytes:
            encoded.append(message)
            return frame(message)

    @attrs.frozen
    class Noting(Codec[bytes, bytes]):
        def reader(self) -> Reader[bytes]:
            return LengthPrefixed().reader()

        def writer(self) -> Writer[bytes]:
            return NotingWriter()

    server = Server(codec=Noting())

    @server.on_connect
    async def choose(connection: AnyConnection) -> None:
        connection.use(Noting())

    async with contextlib.AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(open_memory_connection(server)) for _ in range(3)
        ]
        await trio.testing.wait_all_tasks_blocked()
        for message in (b"one", b"two", b"three"):
            assert server.broadcast(message).queued == 3
        for client in clients:
            assert [await client.receive() for _ in range(3)] == [b"one", b"two", b"three"]
    assert encoded == [b"one", b"two", b"three"]


# -- what decoding ahead must not change


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("iterates", [False, True])
async def test_end_of_a_channel_that_a_hook_uses_is_not_the_connections(
    iterates: bool, count: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def handle(connection: AnyConnection) -> None:
        async for _ in connection:
            pass

    server = Server(handle if iterates else None)
    heard = []

    @server.on_message
    async def hook(_connection: AnyConnection, message: bytes) -> None:
        heard.append(message)
        if len(heard) == count:
            send, receive = trio.open_memory_channel[None](0)
            send.close()
            await receive.receive()

    reasons = []

    @server.on_disconnect
    async def note(connection: AnyConnection) -> None:
        reasons.append(connection.close_reason)

    ours, peer = memory()
    await peer.send_all(frame(b"x") * 4)
    await server.serve_stream(ours)
    assert len(heard) == count
    assert [type(reason) for reason in reasons] == [trio.EndOfChannel]
    assert "Traceback" in caplog.text


@attrs.define(eq=False)
class CountingReader(LengthPrefixedReader):
    """Counts the messages that it has decoded."""

    decoded: int = 0

    def decode(self, buffer: ReceiveBuffer) -> bytes | Literal[NeedData.NEED_DATA]:
        self.decoded += 1
        return super().decode(buffer)

    def decode_ahead(self, buffer: ReceiveBuffer, most: int) -> list[bytes]:
        messages = super().decode_ahead(buffer, most)
        self.decoded += len(messages)
        return messages


async def test_what_is_put_back_again_and_again_is_soon_not_decoded_ahead(connect: Connect) -> None:
    ours, peer = memory()
    connection = connect(ours)
    readers = [CountingReader(4, "big", 100), CountingReader(4, "big", 100)]
    await peer.send_all(frame(b"x") * 1000)
    for number in range(1000):
        connection.reader = readers[number % 2]
        assert await connection.receive() == b"x"
    assert sum(reader.decoded for reader in readers) < 1100

    connection.reader = reader = CountingReader(4, "big", 100)
    await peer.send_all(frame(b"x") * 1000)
    for number in range(1000):
        assert await connection.receive() == b"x"
        assert connection.statistics().messages_received == 1000 + number + 1
    assert reader.decoded < 1100


async def test_bursts_are_decoded_ahead_once_more_when_nothing_is_put_back(
    connect: Connect,
) -> None:
    ours, peer = memory()
    connection = connect(ours)
    await peer.send_all(frame(b"x") * 3)
    assert await connection.receive() == b"x"
    connection.reader = reader = CountingReader(4, "big", 100)
    await peer.send_all(frame(b"x") * 1000)
    for _ in range(600):
        assert await connection.receive() == b"x"
    decoded = reader.decoded
    for _ in range(5):
        assert await connection.receive() == b"x"
    assert reader.decoded - decoded in (0, 129)


async def test_statistics_within_a_hook_count_the_messages_before(codec_of: CodecOf) -> None:
    counts = []
    server = Server(codec=codec_of(LengthPrefixed()))

    @server.on_message
    async def hook(connection: AnyConnection, message: bytes) -> None:
        statistics = server.statistics()
        counts.append((statistics.messages_received, connection.statistics().messages_received))

    ours, peer = memory()
    await peer.send_all(frame(b"x") * 5)
    await peer.send_eof()
    await server.serve_stream(ours)
    assert counts == [(number, number) for number in range(5)]
    assert server.statistics().messages_received == 5


async def test_decode_that_is_set_in_the_instance_is_called_for_every_message(
    connect: Connect,
) -> None:
    class Machine(LengthPrefixedReader):
        def __init__(self) -> None:
            super().__init__(4, "big", 100)
            self.__dict__["decode"] = self.shout

        def shout(self, buffer: ReceiveBuffer) -> bytes | Literal[NeedData.NEED_DATA]:
            message = LengthPrefixedReader.decode(self, buffer)
            return message if message is NEED_DATA else message.upper()

    ours, peer = memory()
    connection = connect(ours)
    connection.reader = Machine()
    await peer.send_all(frame(b"a") + frame(b"b") + frame(b"c"))
    assert [await connection.receive() for _ in range(3)] == [b"A", b"B", b"C"]


async def test_limit_of_a_reader_that_two_connections_share_holds_for_both(
    connect: Connect,
) -> None:
    reader = LengthPrefixed().reader()
    connections = []
    for _ in range(2):
        ours, peer = memory()
        connection = connect(ours)
        connection.reader = reader
        await peer.send_all(frame(b"1") + frame(b"22") + frame(b"33"))
        assert await connection.receive() == b"1"
        connections.append(connection)
    reader.max_size = 1
    for connection in connections:
        with pytest.raises(MessageTooLargeError):
            await connection.receive()
    reader.max_size = 2
    for connection in connections:
        assert [await connection.receive(), await connection.receive()] == [b"22", b"33"]


async def test_waiting_connection_holds_nothing_of_what_it_has_received() -> None:
    @attrs.define(eq=False)
    class Padded(Reader[bytes]):
        def decode(self, buffer: ReceiveBuffer) -> bytes | Literal[NeedData.NEED_DATA]:
            while buffer.peek(1) == b"\n":
                buffer.skip(len(buffer) - 1 or 1)
            return buffer.take(len(buffer)) or NEED_DATA

    @attrs.frozen
    class PaddedCodec(Codec[bytes, bytes]):
        def reader(self) -> Reader[bytes]:
            return Padded()

        def writer(self) -> Writer[bytes]:
            return LengthPrefixed().writer()

    codecs: list[tuple[Codec[Any, Any], bytes]] = [
        (PaddedCodec(), b"\n" * 60_000),
        (LengthPrefixed(), frame(b"x") + frame(bytes(60_000))),
    ]
    for codec, data in codecs:
        server = Server(codec=codec)

        @server.on_message
        async def hook(_connection: AnyConnection, message: bytes) -> None:
            pass

        ours, peer = tcp()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.serve_stream, ours)
            await trio.testing.wait_all_tasks_blocked()
            gc.collect()
            tracemalloc.start()
            for _ in range(3):
                await peer.send_all(bytes(data))
                await trio.testing.wait_all_tasks_blocked(0.01)
            held, _ = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert held < 30_000
            nursery.cancel_scope.cancel()
        await peer.aclose()


# -- what is decoded, and when


async def feed_in_turns(stream: trio.abc.SendStream, data: bytes, size: int) -> None:
    """Each piece when all tasks have done what they can with those before."""
    for begin in range(0, len(data), size):
        await trio.testing.wait_all_tasks_blocked()
        await stream.send_all(data[begin : begin + size])


async def test_large_message_is_decoded_when_it_is_whole_and_not_tried_for_each_chunk(
    pair: Pair, connect: Connect
) -> None:
    connection = connect(pair[0])
    connection.reader = reader = CountingReader(4, "big", 10_000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed_in_turns, pair[1], frame(bytes(3)) + frame(bytes(400)), 9)
        assert await connection.receive() == bytes(3)
        assert await connection.receive() == bytes(400)
    # The second one when its first bytes are there, then its length, and when it is whole.
    assert reader.decoded <= 1 + 3


async def test_reader_is_not_asked_for_messages_where_nothing_is(
    pair: Pair, connect: Connect
) -> None:
    asked = []

    @attrs.define(eq=False)
    class Asked(Reader[bytes]):
        def decode(self, buffer: ReceiveBuffer) -> bytes | Literal[NeedData.NEED_DATA]:
            asked.append(len(buffer))
            return buffer.take(1) or NEED_DATA

    connection = connect(pair[0])
    connection.reader = Asked()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed_in_turns, pair[1], b"abcdef", 2)
        assert [await connection.receive() for _ in range(6)] == [
            b"%c" % each for each in b"abcdef"
        ]
    assert asked == [2, 1] * 3


@pytest.mark.parametrize("make", [unix, tcp])
async def test_messages_behind_a_read_that_ended_with_one_are_not_lost(
    make: Callable[[], Pair], connect: Connect
) -> None:
    ours, peer = make()
    connection = connect(ours)
    # A power of two divides whatever is read at once.
    message = bytes(12)
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def send() -> None:
            await peer.send_all(frame(message) * 20_000)
            await peer.aclose()

        await trio.testing.wait_all_tasks_blocked()
        assert len([each async for each in connection if each == message]) == 20_000


async def test_no_more_than_four_reads_are_made_before_others_have_their_turn(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_transport, "_READ_SIZE", 1000)
    ours, peer = unix()
    connection = connect(ours)
    async with peer:
        await peer.send_all(frame(b"abcdef") * 550)
        for first in range(0, 5500, 4000):
            assert await connection.receive() == b"abcdef"
            assert connection.statistics().bytes_received == min(first + 4000, 5500)
            for _ in range(399 if not first else 149):
                assert await connection.receive() == b"abcdef"


async def test_stream_that_gives_bytearrays_makes_messages_of_bytes(connect: Connect) -> None:
    ours, peer = memory()
    receive_some = ours.receive_some

    async def receive_bytearray(max_bytes: int | None = None) -> bytearray:
        return bytearray(await receive_some(max_bytes))

    ours.receive_some = receive_bytearray  # type: ignore[method-assign]  # as streams of others may do
    connection = connect(ours)
    for _ in range(2):
        await peer.send_all(frame(b"one") + frame(b"two"))
        for expected in (b"one", b"two"):
            message = await connection.receive()
            assert (type(message), message) == (bytes, expected)


async def test_reader_replaced_by_a_hook_gets_what_follows_that_message() -> None:
    heard = []
    server = Server()

    @server.on_message
    async def hook(connection: AnyConnection, message: bytes) -> None:
        heard.append(message)
        if message == b"raw":
            connection.reader = Everything()

    ours, peer = memory()
    await peer.send_all(b"".join(map(frame, [b"1", b"2", b"raw", b"3", b"4"])))
    await peer.send_eof()
    await server.serve_stream(ours)
    assert heard == [b"1", b"2", b"raw", frame(b"3") + frame(b"4")]


async def test_server_whose_only_listener_is_a_subscription_receives_for_it() -> None:
    server = Server()
    events = server.message_received.subscribe()
    ours, peer = memory()
    await peer.send_all(b"".join(map(frame, [b"1", b"2", b"3"])))
    await peer.send_eof()
    await server.serve_stream(ours)
    assert [events.receive_nowait().message for _ in range(3)] == [b"1", b"2", b"3"]
    events.close()


async def test_end_of_a_hooks_channel_is_told_from_the_end_that_came_before(
    connect: Connect,
) -> None:
    ours, peer = memory()
    connection = connect(ours)
    await peer.send_eof()
    assert [message async for message in connection] == []
    connection.reader = PairsReader()  # which makes a message of the end

    async def hook(_event: MessageReceived) -> None:
        raise trio.EndOfChannel("of another channel")

    connection.message_received.connect(hook)
    with pytest.raises(trio.EndOfChannel, match="of another channel"):
        await connection.__anext__()


# -- why it ended


async def test_reset_in_the_middle_of_a_message_is_no_end(connect: Connect) -> None:
    left, right = tcp()
    connection = connect(left)
    await right.send_all(frame(b"whole") + frame(b"cut")[:-1])
    assert await connection.receive() == b"whole"
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def receive() -> None:
            with pytest.raises(trio.BrokenResourceError, match="reset"):
                await connection.receive()

        await trio.testing.wait_all_tasks_blocked()
        reset(right)


async def test_reset_that_sending_meets_first_is_no_end(connect: Connect) -> None:
    left, right = tcp()
    connection = connect(left)
    await right.send_all(frame(b"hello"))
    assert await connection.receive() == b"hello"
    reset(right)
    with contextlib.suppress(trio.BrokenResourceError):
        await connection.send(b"lost")
        await connection.flush()
    with pytest.raises(trio.BrokenResourceError, match="reset"):
        await connection.receive()


async def test_fault_in_a_burst_is_the_reason_when_it_ends_there(
    codec_of: CodecOf, connect: Connect
) -> None:
    ours, peer = memory()
    connection = connect(ours, codec=codec_of(LengthPrefixed(max_size=5)))
    await peer.send_all(frame(b"fine") * 3 + frame(b"larger"))
    for _ in range(3):
        assert await connection.receive() == b"fine"
    with pytest.raises(MessageTooLargeError) as caught:
        await connection.receive()
    await connection.aclose()
    assert connection.close_reason is caught.value


@pytest.mark.parametrize("before", [b"", b"\n", b"a\n"])
async def test_fault_is_not_the_reason_once_another_reader_has_gone_on_behind_it(
    before: bytes, connect: Connect
) -> None:
    ours, peer = memory()
    connection = connect(ours, codec=Delimited(b"\n", max_size=3))
    await peer.send_all(before + b"larger")
    for message in before.splitlines():
        assert await connection.receive() == message
    with pytest.raises(MessageTooLargeError):
        await connection.receive()
    connection.reader = Delimited(b"\n").reader()
    await cancel_when_it_waits(connection.receive)
    await connection.aclose()
    assert connection.close_reason is CloseReason.CLOSED


async def test_failed_written_hook_is_the_cause_of_what_others_get(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    ours, _ = memory()
    connection = connect(ours)
    failure = ValueError("no")

    async def hook(_event: MessageWritten) -> None:
        raise failure

    connection.message_written.connect(hook)
    await connection.send(b"x")
    with pytest.raises(trio.BrokenResourceError) as caught:
        await connection.receive()
    assert caught.value.__cause__ is failure


@pytest.mark.parametrize("own_failure", [False, True])
async def test_what_the_peer_broke_is_told_from_what_the_handler_did_then(
    own_failure: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def handle(connection: AnyConnection) -> None:
        try:
            await connection.receive()
        except trio.BrokenResourceError:
            if own_failure:
                raise ValueError("the handler's") from None
            raise

    server = Server(handle)
    left, right = tcp()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve_stream, left)
        await trio.testing.wait_all_tasks_blocked()
        reset(right)
    levels = [record.levelno for record in caplog.records]
    if own_failure:
        assert levels == [logging.ERROR]
    else:
        assert all(level < logging.ERROR for level in levels)


async def test_stop_ends_a_wait_for_the_next_message(pair: Pair) -> None:
    received = []

    async def handle(connection: AnyConnection) -> None:
        received.extend([message async for message in connection])

    server = Server(handle)
    ours, peer = pair
    await peer.send_all(frame(b"x"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve_stream, ours)
        await trio.testing.wait_all_tasks_blocked()
        assert received == []
        server.stop()
    assert received == [b"x"]


async def test_a_message_in_the_clear_that_nobody_has_received_yet_does_not_come_under_tls(
    connect: Connect, tls: Tls
) -> None:
    # Cancelled while a subscriber has no room, receive() would return it the next time.
    ours, peer = memory()
    connection = connect(ours)
    async with connection.message_received.subscribe(buffer_size=1) as events:
        await peer.send_all(frame(b"one") + frame(b"evil"))
        assert await connection.receive() == b"one"
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(connection.receive)
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        events.receive_nowait()
        with pytest.raises(ProtocolError, match="sent a message in the clear, not a TLS handshake"):
            await connection.start_tls(tls.server, server_side=True)


@pytest.mark.parametrize("emitter", ["message_received", "message_written"])
@pytest.mark.parametrize("known_before", [False, True])
async def test_a_subscription_to_a_connection_that_has_ended_ends_at_once(
    connect: Connect, emitter: str, known_before: bool
) -> None:
    connection = connect(memory()[0])
    if known_before:
        assert getattr(connection, emitter) is getattr(connection, emitter)
    await connection.aclose()
    async with getattr(connection, emitter).subscribe() as events:
        assert [event async for event in events] == []


async def test_given_up_while_the_server_stops_is_told_as_that(
    mock_clock: trio.testing.MockClock,
) -> None:
    errors: list[Exception] = []

    async def handle(connection: AnyConnection) -> None:
        await connection.send(bytes(1000))
        await trio.testing.wait_all_tasks_blocked()
        server.stop()
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def let_time_pass() -> None:
                for _ in range(5):
                    await trio.lowlevel.checkpoint()
                mock_clock.jump(5)

            with pytest.raises(trio.BrokenResourceError) as caught:
                await connection.receive()  # which reads on for some turns of the scheduler
        errors.append(caught.value)

    server = Server(handle, send_timeout=5, close_timeout=1)
    left, _right = TIGHT_KINDS["lockstep"]()
    await server.serve_stream(left)
    assert "send_timeout" in str(errors[0])


# -- time, at the last moment


async def test_message_that_comes_together_with_its_timeout_counts(
    mock_clock: trio.testing.MockClock, connect: Connect
) -> None:
    # Which of the two is seen first is left to chance by the scheduler.
    for _ in range(20):
        ours, peer = memory()
        connection = connect(ours, message_timeout=5)
        connection.reader = LengthPrefixed().reader()
        received = []

        async def receive() -> None:
            received.append(await connection.receive())  # noqa: B023 - used within the same round

        async with trio.open_nursery() as nursery:
            await peer.send_all(frame(b"x")[:1])
            nursery.start_soon(receive)
            await trio.testing.wait_all_tasks_blocked()
            await peer.send_all(frame(b"x")[1:])
            mock_clock.jump(5)
        assert received == [b"x"]
        # Nor does it count against the next one, for which time has hardly begun.
        async with trio.open_nursery() as nursery:
            await peer.send_all(frame(b"y")[:1])
            nursery.start_soon(receive)
            await trio.testing.wait_all_tasks_blocked()
            connection.reader = LengthPrefixed().reader()
            await trio.testing.wait_all_tasks_blocked()
            await peer.send_all(frame(b"y")[1:])
        assert received == [b"x", b"y"]


@VIRTUAL
async def test_first_byte_of_a_message_ends_idleness_whatever_the_one_before_wanted(
    kind: str, connect: Connect, autojump_clock: trio.testing.MockClock
) -> None:
    left, right = virtual_pair(kind)
    connection = connect(left, idle_timeout=30, message_timeout=5)
    async with right, trio.open_nursery() as nursery:
        nursery.start_soon(feed_in_turns, right, frame(bytes(20)), 10)
        assert await connection.receive() == bytes(20)
        nursery.start_soon(right.send_all, frame(b"x")[:1])
        start = trio.current_time()
        with pytest.raises(MessageTimeoutError):
            await connection.receive()
        assert trio.current_time() - start == pytest.approx(5)


# -- what is sent, and when


@pytest.mark.parametrize("nowait", [False, True])
@pytest.mark.parametrize("size", [1, 5000])
async def test_lone_message_is_written_at_once_and_replies_to_a_burst_together(
    size: int, nowait: bool, codec_of: CodecOf, connect: Connect
) -> None:
    ours, peer = unix()
    connection = connect(ours, codec=codec_of(LengthPrefixed()))
    message = bytes(size)  # from 4096 bytes on it is in two pieces

    async def send() -> None:
        if nowait:
            connection.send_nowait(message)
        else:
            await connection.send(message)

    async with peer:
        with counted_writes(ours) as writes:
            await send()
            assert writes.count == 1
            await peer.send_all(frame(b"lone"))  # which is counted as well
            assert await connection.receive() == b"lone"
            await send()
            assert writes.count == 3
            await peer.send_all(frame(b"x") * 4)
            for _ in range(3):
                assert await connection.receive() == b"x"
                await send()
            assert writes.count == 4
            # They do not wait for the end of the burst once the task does something else.
            assert await read_exactly(peer, 5 * (4 + size)) == frame(message) * 5
        assert writes.count == 5


async def test_messages_sent_are_counted_whichever_way_they_go(
    tight_pair: Pair, connect: Connect
) -> None:
    connection = connect(tight_pair[0], write_buffer_size=1000)
    peer = connect(tight_pair[1])
    count = 0

    async def send(message: bytes) -> None:
        nonlocal count
        await connection.send(message)
        count += 1
        assert connection.statistics().messages_sent == count

    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def receive() -> None:
            async for _ in peer:
                pass

        await send(b"small")
        await send(bytes(5000))
        await send(bytes(50_000))
        await send(b"waits for room")
        await send(bytes(5000))
        async with connection.message_written.subscribe(buffer_size=100):
            await send(b"is announced")
            await send(bytes(5000))
        await connection.aclose()


async def test_closed_is_closed_even_for_what_could_not_be_sent_anyway(
    connect: Connect, tls: Tls
) -> None:
    connection = connect(memory()[0])
    await connection.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await connection.send("text")
    with pytest.raises(trio.ClosedResourceError):
        connection.send_nowait("text")

    connection = connect(tls.at_server(memory()[0]))  # which cannot be half-closed
    await connection.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await connection.send_eof()


async def test_broadcast_encodes_by_itself_for_writers_that_were_set_by_hand() -> None:
    writers: list[Writer[Any]] = [Delimited(b";").writer(), Delimited(b"!").writer()]

    async def handle(connection: AnyConnection) -> None:
        if writers:
            connection.writer = writers.pop(0)
        await trio.sleep_forever()

    server = Server(handle)
    async with contextlib.AsyncExitStack() as stack:
        streams = []
        nursery = await stack.enter_async_context(trio.open_nursery())
        for _ in range(3):
            ours, peer = memory()
            nursery.start_soon(server.serve_stream, ours)
            await trio.testing.wait_all_tasks_blocked()
            streams.append(peer)
        server.broadcast(b"x")
        assert await read_exactly(streams[0], 2) == b"x;"
        assert await read_exactly(streams[1], 2) == b"x!"
        assert await read_exactly(streams[2], 5) == frame(b"x")
        nursery.cancel_scope.cancel()


class Defective(Writer[bytes]):
    def encode(self, message: bytes) -> bytes:
        raise ZeroDivisionError


class DefectiveLater(Defective):
    stateful = True


@pytest.mark.parametrize("kind", [Defective, DefectiveLater])
async def test_writer_that_fails_at_a_broadcast_ends_its_own_connection_alone(
    kind: type[Writer[bytes]], caplog: pytest.LogCaptureFixture
) -> None:
    ends: list[tuple[object, str]] = []

    async def handle(connection: AnyConnection) -> None:
        async for message in connection:
            if message == b"fail":
                connection.writer = kind()
            else:
                results.append(server.broadcast(message))

    results: list[BroadcastResult] = []
    server = Server(handle)

    @server.on_disconnect
    async def note(connection: AnyConnection) -> None:
        ends.append((connection.close_reason, connection._ending().value))

    async with open_memory_connection(server) as faulty, open_memory_connection(server) as other:
        await faulty.send(b"fail")
        await trio.testing.wait_all_tasks_blocked()
        await other.send(b"hello")
        assert await other.receive() == b"hello"
        with pytest.raises(trio.EndOfChannel):
            await faulty.receive()
        await other.send(b"again")
        assert await other.receive() == b"again"
    (reason, ending), *_ = ends
    assert isinstance(reason, ZeroDivisionError)
    assert ending == "failed"
    assert results == [BroadcastResult(queued=1, skipped=0)] * 2
    (record,) = caplog.records
    assert fields_of(record)["event"] == "writer_failed"
    assert "the writer failed at a broadcast; <Connection" in record.getMessage()


@attrs.frozen
class CountingCodec(Codec[bytes, bytes]):
    """Equal for all connections, while its writers are not."""

    def reader(self) -> Reader[bytes]:
        return Everything()

    def writer(self) -> Writer[bytes]:
        return Counting()


async def test_broadcast_encodes_for_each_connection_where_a_writer_has_a_state() -> None:
    async def handle(connection: AnyConnection) -> None:
        await connection.send(b"hello")
        await trio.sleep_forever()

    server = Server(handle, codec=CountingCodec())
    async with trio.open_nursery() as nursery:
        peers = []
        for sent in range(2):
            ours, peer = memory()
            nursery.start_soon(server.serve_stream, ours)
            await trio.testing.wait_all_tasks_blocked()
            if not sent:
                server.broadcast(b"first")
            peers.append(peer)
        server.broadcast(b"second")
        await trio.testing.wait_all_tasks_blocked()
        assert await peers[0].receive_some() == b"1:hello\n2:first\n3:second\n"
        assert await peers[1].receive_some() == b"1:hello\n2:second\n"
        nursery.cancel_scope.cancel()


async def test_broadcast_is_announced_and_counted() -> None:
    server = Server(until_closed)
    async with open_memory_connection(server) as first, open_memory_connection(server) as second:
        await trio.testing.wait_all_tasks_blocked()
        server.broadcast(b"unheard")
        assert [each.statistics().messages_sent for each in server.connections] == [1, 1]
        async with server.message_written.subscribe() as events:
            server.broadcast(b"heard")
            for client in (first, second):
                assert [await client.receive(), await client.receive()] == [b"unheard", b"heard"]
            assert [(await events.receive()).message for _ in range(2)] == [b"heard"] * 2
        assert [each.statistics().messages_sent for each in server.connections] == [2, 2]


# -- closing, once more


async def test_closing_that_waits_for_a_slow_peer_is_closed_already_for_all_others(
    tight_pair: Pair, connect: Connect
) -> None:
    connection = connect(tight_pair[0], close_timeout=1000)
    told = []

    async def receive() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await connection.receive()
        told.append("receiver")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await connection.send(bytes(300_000))
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(connection.aclose)
        await trio.testing.wait_all_tasks_blocked()
        assert told == ["receiver"]
        with pytest.raises(trio.ClosedResourceError):
            await connection.send(b"x")
        with pytest.raises(trio.ClosedResourceError):
            connection.send_nowait(b"x")
        assert connection.close_reason is None
        nursery.start_soon(read_exactly, tight_pair[1], 4 + 300_000)
        await trio.testing.wait_all_tasks_blocked()
        await tight_pair[1].aclose()


async def test_stream_is_closed_once_however_often_its_connection_is(connect: Connect) -> None:
    ours, _ = memory()
    closed = []
    aclose = ours.aclose

    async def counting() -> None:
        closed.append(1)
        await aclose()

    ours.aclose = counting  # type: ignore[method-assign]  # to count
    connection = connect(ours)
    for _ in range(3):
        await connection.aclose()
    assert closed == [1]


async def test_hook_that_closes_while_another_task_does_passes_a_checkpoint(
    connect: Connect,
) -> None:
    ours, _ = memory()
    connection = connect(ours)
    done = trio.Event()

    async def hook(_event: MessageWritten) -> None:
        await trio.testing.wait_all_tasks_blocked()
        with trio.testing.assert_checkpoints():
            await connection.aclose()
        done.set()

    connection.message_written.connect(hook)
    await connection.send(b"x")
    await connection.aclose()
    assert done.is_set()


async def test_closed_connection_is_let_go_of_though_its_timers_ran() -> None:
    ours, peer = memory()
    connection: AnyConnection = connect_plainly(ours, message_timeout=1000, idle_timeout=1000)
    await peer.send_all(frame(b"x")[:2])
    await cancel_when_it_waits(connection.receive)
    await connection.aclose()
    alive = weakref.ref(connection)
    del connection
    gc.collect()
    assert alive() is None


# -- TLS, once more


async def test_nobody_receives_while_tls_is_being_started(connect: Connect, tls: Tls) -> None:
    ours, peer = memory()
    connection = connect(ours)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_exactly, peer, 1)
        nursery.start_soon(partial(connection.start_tls, tls.client, server_hostname="example.org"))
        await trio.testing.wait_all_tasks_blocked()
        for receive in (connection.receive, connection.__anext__):
            with pytest.raises(trio.BusyResourceError):
                await receive()
        nursery.cancel_scope.cancel()


async def test_bytes_are_counted_on_under_tls(connect: Connect, tls: Tls) -> None:
    client, server = (connect(stream, codec=Lines()) for stream in memory())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(greet, server, tls.server)
        await client.send("STARTTLS")
        assert await client.receive() == "go ahead"
        await client.start_tls(tls.client, server_hostname="example.org")
        await client.send("secret")
        assert await client.receive() == "secret"
        await client.flush()
        for connection, sent, received in (
            (client, b"STARTTLS\nsecret\n", b"go ahead\nsecret\n"),
            (server, b"go ahead\nsecret\n", b"STARTTLS\nsecret\n"),
        ):
            statistics = connection.statistics()
            assert (statistics.bytes_sent, statistics.bytes_received) == (len(sent), len(received))
        nursery.cancel_scope.cancel()


async def test_message_before_tls_is_announced_all_the_same(connect: Connect, tls: Tls) -> None:
    ours, peer = memory()
    connection = connect(ours)
    announced = []

    async def hook(event: MessageWritten) -> None:
        await trio.testing.wait_all_tasks_blocked()
        announced.append(event.message)

    connection.message_written.connect(hook)
    async with trio.open_nursery() as nursery:
        await connection.send(b"in the clear")
        await connection.flush()
        nursery.start_soon(partial(connection.start_tls, tls.client, server_hostname="example.org"))
        assert await read_exactly(peer, 16) == frame(b"in the clear")
        await read_exactly(peer, 1)
        while not announced:
            await trio.testing.wait_all_tasks_blocked()
        assert announced == [b"in the clear"]
        nursery.cancel_scope.cancel()


async def test_fault_of_another_connections_peer_is_the_handlers_own(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def handle(_connection: AnyConnection) -> None:
        upstream, theirs = memory()
        await theirs.send_all(frame(b"larger"))
        async with connect_plainly(upstream, codec=LengthPrefixed(max_size=5)) as other:
            await other.receive()

    ours, _peer = memory()
    await Server(handle).serve_stream(ours)
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None


# -- numbers


async def test_age_begins_with_the_connection_and_bytes_of_both_ways_end_idleness(
    connect: Connect, autojump_clock: trio.testing.MockClock
) -> None:
    await trio.sleep(5)
    ours, peer = memory()
    connection = connect(ours)
    await trio.sleep(10)
    statistics = connection.statistics()
    assert (statistics.age, statistics.idle_time) == (10, 10)
    # As much comes as goes.
    await peer.send_all(frame(b"x"))
    await connection.send(await connection.receive())
    await connection.flush()
    statistics = connection.statistics()
    assert (statistics.age, statistics.idle_time) == (10, 0)
    await trio.sleep(1)
    statistics = connection.statistics()
    assert (statistics.age, statistics.idle_time) == (11, 1)


async def test_mistyped_attribute_is_an_error(connect: Connect) -> None:
    connection: Any = connect(memory()[0])
    with pytest.raises(AttributeError, match="contxt"):
        connection.contxt = {"name": "ann"}


async def test_failed_written_hook_counts_as_failure_of_ours(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def handle(connection: AnyConnection) -> None:
        await connection.send(b"x")
        await trio.sleep_forever()

    async def fail(_event: MessageWritten) -> None:
        raise trio.BrokenResourceError("of another stream")

    server = Server(handle)
    server.message_written.connect(fail)
    ours, _peer = memory()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve_stream, ours)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert [ending for ending, count in server.statistics().endings.items() if count] == ["failed"]


async def test_stream_that_cannot_be_closed_is_logged_with_its_connections_number(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    ours, _ = memory()

    async def fail() -> None:
        raise OSError("a bug in aclose")

    ours.aclose = fail  # type: ignore[method-assign]  # to fail
    connection = connect(ours)
    await connection.aclose()
    assert f" of connection {connection.number} could not be closed" in caplog.text
