"""The transport floor: how bytes move, over any Trio stream and over the fast path for sockets.

What both must do is shown over both: ``pair`` and ``tight_pair`` (see ``conftest.py``) are a pair
of streams of each kind in turn.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import logging
import os
import random
import re
import socket
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Literal

import attrs
import pytest
import trio
import trio.testing
from conftest import Connect, Tls, fields_of
from pairs import (
    Pair,
    Stream,
    counted_writes,
    frame,
    lockstep,
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
    Buffer,
    BytetalkError,
    CloseReason,
    Codec,
    Connection,
    EncodeError,
    GivenUpError,
    IdleTimeoutError,
    LengthPrefixed,
    MessageTimeoutError,
    MessageWritten,
    NeedData,
    Reader,
    ReceiveBuffer,
    SendTimeoutError,
    Server,
    Writer,
    _epoll,
    open_connection,
)
from trio_bytetalk.testing import Cut, CuttingStream, FaultyStream, Reset

pytestmark = pytest.mark.usefixtures("company")

AnyConnection = Connection[Any, Any]


async def echo(connection: AnyConnection) -> None:
    async for message in connection:
        await connection.send(message)


async def send_each(connection: AnyConnection, messages: Sequence[bytes]) -> None:
    for message in messages:
        await connection.send(message)


async def send_on(connection: AnyConnection, message: bytes = b"lost") -> None:
    """Send until that fails."""
    while True:
        await connection.send(message)
        await trio.testing.wait_all_tasks_blocked()


def fill(connection: AnyConnection) -> list[bytes]:
    """Send until there is no room; what was sent."""
    sent: list[bytes] = []
    while True:
        message = b"%d" % len(sent) + bytes(100)
        try:
            connection.send_nowait(message)
        except trio.WouldBlock:
            return sent
        sent.append(message)


def frames(messages: Sequence[bytes]) -> bytes:
    return b"".join(map(frame, messages))


def own_system_tasks() -> list[str]:
    root = trio.lowlevel.current_root_task()
    assert root is not None
    return sorted(
        re.sub(r" of connection \d+$", "", task.name)
        for nursery in root.child_nurseries
        for task in nursery.child_tasks
        if task.name.startswith("trio_bytetalk")
    )


# -- everything arrives, in order


async def test_messages_of_all_sizes_come_back_whole_and_in_order(
    pair: Pair, connect: Connect
) -> None:
    codec = LengthPrefixed(max_size=4 * 2**20)
    left, right = (connect(stream, codec=codec) for stream in pair)
    noise = random.Random(1)
    sizes = [0, 1, 3, 4, 5, 4091, 4092, 4095, 4096, 4097, 65_531, 65_532, 65_536, 65_537]
    sizes += [262_139, 262_140, 262_144, 2**20, 2**20 + 1, 3 * 2**20, 0, 0, 10]
    messages = [
        noise.randbytes(size) for size in sizes + random.Random(2).sample(sizes, len(sizes))
    ]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(echo, right)
        nursery.start_soon(send_each, left, messages)
        for message in messages:
            assert await left.receive() == message
        await left.send_eof()


async def test_thousands_of_messages_through_a_narrow_stream_keep_their_order(
    tight_pair: Pair, connect: Connect
) -> None:
    left, right = (connect(stream, write_buffer_size=500) for stream in tight_pair)
    noise = random.Random(3)
    messages = [b"%d " % n + bytes(noise.choice([0, 1, 50, 500, 5000])) for n in range(2000)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(echo, right)
        nursery.start_soon(send_each, left, messages)
        for message in messages:
            assert await left.receive() == message
        await left.send_eof()


@attrs.define(eq=False)
class ChunkReader(Reader[bytes]):
    """Takes what there is."""

    def decode(self, buffer: ReceiveBuffer) -> bytes | Literal[NeedData.NEED_DATA]:
        return buffer.take(len(buffer)) or NEED_DATA


@attrs.define(eq=False)
class PiecesWriter(Writer[Buffer | Sequence[Buffer]]):
    """Takes frames as they are."""

    def encode(self, message: Buffer | Sequence[Buffer]) -> Buffer | Sequence[Buffer]:
        return message


@attrs.frozen
class Raw(Codec[Buffer | Sequence[Buffer], bytes]):
    """Frames of any shape that a writer may give them."""

    def reader(self) -> ChunkReader:
        return ChunkReader()

    def writer(self) -> PiecesWriter:
        return PiecesWriter()


SHAPES: list[Buffer | Sequence[Buffer]] = [
    b"",
    (),
    [b"", b""],
    [b"", b"between nothing and nothing", b""],
    b"bytes",
    bytearray(b"bytearray"),
    memoryview(b"memoryview"),
    [b"header", b"payload" * 10_000],
    [bytes([number]) * 5000 for number in range(200)],
    [bytes([number]) * 5 for number in range(200)],
    [bytearray(b"one"), memoryview(b"another"), b"a third"] * 30,
    [b""] * 100 + [b"x" * 300_000] + [b""] * 100,
    b"y" * 700_000,
]


async def test_frames_of_any_shape_are_sent_whole(pair: Pair, connect: Connect) -> None:
    connection = connect(pair[0], codec=Raw())
    expected = b"".join(
        shape if isinstance(shape, bytes | bytearray | memoryview) else b"".join(shape)
        for shape in SHAPES * 2
    )
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def send() -> None:
            for shape in SHAPES * 2:
                await connection.send(shape)
            await connection.send_eof()

        assert await read_to_end(pair[1]) == expected
    assert connection.statistics().bytes_sent == len(expected)


async def test_frames_of_any_shape_pass_through_a_narrow_stream(
    tight_pair: Pair, connect: Connect
) -> None:
    connection = connect(tight_pair[0], codec=Raw(), write_buffer_size=1)
    shapes = [
        [bytes([number]) * 5000 for number in range(100)],
        [bytes([number]) * 7 for number in range(100)],
        [b"", b"z" * 10_000, b""],
    ]
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def send() -> None:
            for shape in shapes:
                await connection.send(shape)
            await connection.send_eof()

        assert await read_to_end(tight_pair[1]) == b"".join(itertools.chain(*shapes))


def large_buffers() -> tuple[trio.SocketStream, trio.SocketStream]:
    """TCP, where our system takes far more than the peer's does: it holds what is on the way."""
    left, right = tcp()
    left.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_SNDBUF, 4 * 2**20)
    left.setsockopt(trio.socket.IPPROTO_TCP, trio.socket.TCP_NOTSENT_LOWAT, 2**31 - 1)
    return left, right


async def test_frame_of_more_pieces_than_one_system_call_takes(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trio_bytetalk._transport._GATHER_PIECES", 4)
    ours, peer = large_buffers()
    connection = connect(ours, codec=Raw())
    shape = [bytes([number]) * 4100 for number in range(30)]
    await connection.send(shape)
    await connection.flush()  # it fits into the system's buffers: nothing to wait for
    assert await read_exactly(peer, 30 * 4100) == b"".join(shape)
    await peer.aclose()


async def test_messages_of_many_tasks_are_sent_in_the_order_of_the_calls(
    pair: Pair, connect: Connect
) -> None:
    left, right = map(connect, pair)
    calls: list[bytes] = []

    async def send() -> None:
        for _ in range(50):
            calls.append(b"%d" % len(calls))
            await left.send(calls[-1])

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(send)
        received = [await right.receive() for _ in range(1000)]
    assert received == calls


# -- bursts


async def test_replies_to_a_burst_leave_in_one_write(pair: Pair, connect: Connect) -> None:
    ours, peer = pair
    connection = connect(ours)
    burst = [b"%d" % number for number in range(1000)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.send_all, frames(burst))
        message = await connection.receive()
        with counted_writes(ours) as writes:
            await connection.send(message)
            for expected in burst[1:]:
                message = await connection.receive()
                assert message == expected
                await connection.send(message)
            nursery.start_soon(connection.flush)
            assert await read_exactly(peer, len(frames(burst))) == frames(burst)
    assert writes.count == 1


async def test_replies_to_a_long_burst_leave_before_its_end(connect: Connect) -> None:
    ours, peer = unix()
    connection = connect(ours, write_buffer_size=1000)
    burst = [bytes(100)] * 100
    await peer.send_all(frames(burst))
    for _ in burst:
        await connection.send(await connection.receive())
        assert connection.statistics().bytes_queued <= 1000
    assert connection.statistics().bytes_sent > 9000
    await connection.flush()
    assert await read_exactly(peer, len(frames(burst))) == frames(burst)
    await peer.aclose()


async def test_reply_leaves_though_its_task_never_comes_back(
    pair: Pair, connect: Connect, autojump_clock: trio.testing.MockClock
) -> None:
    ours, peer = pair
    connection = connect(ours)

    async def handle() -> None:
        await connection.send(await connection.receive())
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.send_all, frames([b"one", b"two"]))
        nursery.start_soon(handle)
        with trio.fail_after(1):
            assert await read_exactly(peer, 7) == frame(b"one")
        nursery.cancel_scope.cancel()


async def test_reply_leaves_at_the_next_turn_of_the_scheduler(connect: Connect) -> None:
    ours, peer = unix()
    connection = connect(ours)
    for _ in range(20):
        await peer.send_all(frames([b"one", b"two"]))
        await connection.send(await connection.receive())
        assert connection.statistics().bytes_queued == 7
        # The turn that begins with the first may have taken this task before the flusher.
        await trio.lowlevel.checkpoint()
        await trio.lowlevel.checkpoint()
        assert connection.statistics().bytes_queued == 0
        await connection.receive()
    await peer.aclose()


async def test_replies_to_a_burst_follow_what_was_queued_before_it(
    tight_pair: Pair, connect: Connect
) -> None:
    ours, peer = tight_pair
    connection = connect(ours, write_buffer_size=1000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.send_all, frames([b"one", b"two", b"three"]))
        await connection.receive()
        before = fill(connection)

        @nursery.start_soon
        async def reply() -> None:
            for _ in range(2):
                await connection.send(await connection.receive())
            await connection.send_eof()

        await trio.testing.wait_all_tasks_blocked()
        assert await read_to_end(peer) == frames([*before, b"two", b"three"])


# -- back-pressure


async def test_send_waits_while_the_peer_does_not_read(tight_pair: Pair, connect: Connect) -> None:
    ours, peer = tight_pair
    connection = connect(ours, write_buffer_size=1000)
    sent = fill(connection)
    assert 1000 < connection.statistics().bytes_queued <= 1000 + len(frame(sent[-1]))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.send, b"the last")
        await trio.testing.wait_all_tasks_blocked()
        assert connection.statistics().messages_sent == len(sent)
        assert connection.statistics().senders_waiting == 1
        with pytest.raises(trio.WouldBlock):
            connection.send_nowait(b"too many")
        expected = frames([*sent, b"the last"])
        assert await read_exactly(peer, len(expected)) == expected
    await connection.flush()
    assert connection.statistics().messages_sent == len(sent) + 1
    assert connection.statistics().bytes_queued == 0
    assert connection.statistics().bytes_sent == len(expected)


async def test_message_larger_than_the_buffer_waits_for_room_only(
    tight_pair: Pair, connect: Connect
) -> None:
    ours, peer = tight_pair
    connection = connect(ours, write_buffer_size=1)
    await connection.send(bytes(100_000))
    with pytest.raises(trio.WouldBlock):
        connection.send_nowait(b"")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.send, bytes(50_000))
        expected = frames([bytes(100_000), bytes(50_000)])
        assert await read_exactly(peer, len(expected)) == expected


async def test_tasks_that_wait_to_send_go_on_one_after_the_other(
    tight_pair: Pair, connect: Connect
) -> None:
    ours, peer = tight_pair
    connection = connect(ours, write_buffer_size=1000)
    sent = fill(connection)
    went_on: list[int] = []

    async def send(number: int) -> None:
        await connection.send(b"%d" % number + bytes(2000))
        went_on.append(number)

    progress: list[int] = []
    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(send, number)
            await trio.testing.wait_all_tasks_blocked()
        expected = frames(sent + [b"%d" % number + bytes(2000) for number in range(20)])
        data = b""
        while len(data) < len(expected):
            assert sorted(went_on) == list(range(len(went_on)))
            progress.append(len(went_on))
            data += await peer.receive_some(1000)
            await trio.testing.wait_all_tasks_blocked()
    assert data == expected
    # They did not all go on at once, but as there was room.
    assert len(set(progress)) > 10


async def test_cancelled_while_waiting_to_send_leaves_no_trace(
    tight_pair: Pair, connect: Connect
) -> None:
    ours, peer = tight_pair
    connection = connect(ours, write_buffer_size=1000)
    sent = fill(connection)
    scopes = [trio.CancelScope() for _ in range(5)]

    async def send(number: int) -> None:
        with scopes[number]:
            await connection.send(b"waits: %d" % number)

    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(send, number)
            await trio.testing.wait_all_tasks_blocked()
        for number in (3, 0, 4, 1, 2):
            scopes[number].cancel()
            await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(connection.aclose)
        assert await read_to_end(peer) == frames(sent)


async def test_cancelling_some_senders_lets_the_others_go_on_in_order(
    tight_pair: Pair, connect: Connect
) -> None:
    ours, peer = tight_pair
    connection = connect(ours, write_buffer_size=1000)
    sent = fill(connection)
    scopes = [trio.CancelScope() for _ in range(5)]

    async def send(number: int) -> None:
        with scopes[number]:
            await connection.send(b"waits: %d" % number)

    expected = frames([*sent, b"waits: 1", b"waits: 3"])
    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(send, number)
            await trio.testing.wait_all_tasks_blocked()
        for number in (0, 2, 4):
            scopes[number].cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert await read_exactly(peer, len(expected)) == expected
    await connection.flush()
    assert connection.statistics().bytes_queued == 0
    # There is room again, and no one waits any more.
    connection.send_nowait(b"afterwards")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.flush)
        assert await read_exactly(peer, 14) == frame(b"afterwards")


async def test_last_waiting_sender_is_cancelled_and_sending_goes_on(
    tight_pair: Pair, connect: Connect
) -> None:
    ours, peer = tight_pair
    connection = connect(ours, write_buffer_size=1000)
    sent = fill(connection)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.send, b"cancelled")
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.send, b"not cancelled")
        expected = frames([*sent, b"not cancelled"])
        assert await read_exactly(peer, len(expected)) == expected


@attrs.define(eq=False)
class NumberingWriter(Writer[bytes]):
    """Puts a number before each message; the peer would notice if one was left out."""

    stateful = True
    next_number: int = 0

    def encode(self, message: bytes) -> bytes:
        if message == b"unspeakable":
            raise EncodeError("not this")
        self.next_number += 1
        return frame(b"%d:" % self.next_number + message)


@attrs.frozen
class Numbered(Codec[bytes, bytes]):
    def reader(self) -> Reader[bytes]:
        return LengthPrefixed().reader()

    def writer(self) -> NumberingWriter:
        return NumberingWriter()


async def test_cancelled_message_takes_no_number_with_it(
    tight_pair: Pair, connect: Connect
) -> None:
    ours, peer = tight_pair
    connection = connect(ours, codec=Numbered(), write_buffer_size=1000)
    sent = fill(connection)
    scopes = [trio.CancelScope() for _ in range(5)]
    refused: list[bytes] = []

    async def send(number: int, message: bytes) -> None:
        with scopes[number]:
            try:
                await connection.send(message)
            except EncodeError:
                refused.append(message)
                await connection.send(b"an apology")

    messages = [b"A", b"B", b"unspeakable", b"D", b"E"]
    async with trio.open_nursery() as nursery:
        for number, message in enumerate(messages):
            nursery.start_soon(send, number, message)
            await trio.testing.wait_all_tasks_blocked()
        for number in (0, 3):
            scopes[number].cancel()
        await trio.testing.wait_all_tasks_blocked()
        arrived = [*sent, b"B", b"E", b"an apology"]
        expected = frames([b"%d:" % number + message for number, message in enumerate(arrived, 1)])
        assert await read_exactly(peer, len(expected)) == expected
    assert refused == [b"unspeakable"]
    assert connection.statistics().messages_sent == len(arrived)


# -- flush


async def test_flush_with_nothing_to_write_is_a_checkpoint(pair: Pair, connect: Connect) -> None:
    connection = connect(pair[0])
    with trio.testing.assert_checkpoints():
        await connection.flush()


async def test_flush_waits_until_the_peer_has_made_room(tight_pair: Pair, connect: Connect) -> None:
    ours, peer = tight_pair
    connection = connect(ours, write_buffer_size=1000)
    sent = fill(connection)
    flushed: list[int] = []

    async def flush() -> None:
        await connection.flush()
        flushed.append(connection.statistics().bytes_sent)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(flush)
        nursery.start_soon(flush)
        await trio.testing.wait_all_tasks_blocked()
        assert flushed == []
        await read_exactly(peer, len(frames(sent)))
    assert flushed == [len(frames(sent))] * 2


async def test_flush_does_not_wait_for_what_is_sent_later(
    tight_pair: Pair, connect: Connect
) -> None:
    ours, peer = tight_pair
    connection = connect(ours, write_buffer_size=10**6)
    connection.send_nowait(bytes(100_000))
    flushed = trio.Event()
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def flush() -> None:
            await connection.flush()
            flushed.set()

        await trio.testing.wait_all_tasks_blocked()
        connection.send_nowait(bytes(500_000))
        while not flushed.is_set():
            await peer.receive_some(10_000)
            await trio.testing.wait_all_tasks_blocked()
    assert connection.statistics().bytes_queued > 300_000


async def test_cancelled_flush_does_no_harm(tight_pair: Pair, connect: Connect) -> None:
    ours, peer = tight_pair
    connection = connect(ours, write_buffer_size=1000)
    sent = fill(connection)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.flush)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.aclose)
        assert await read_to_end(peer) == frames(sent)


async def test_flush_says_that_the_connection_broke(tight_pair: Pair, connect: Connect) -> None:
    ours, peer = tight_pair
    connection = connect(ours, write_buffer_size=1000)
    fill(connection)
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def flush() -> None:
            with pytest.raises(trio.BrokenResourceError):
                await connection.flush()

        await trio.testing.wait_all_tasks_blocked()
        await peer.aclose()
    with pytest.raises(trio.BrokenResourceError):
        await connection.flush()


async def test_flush_says_that_the_connection_was_closed(
    tight_pair: Pair, connect: Connect
) -> None:
    connection = connect(tight_pair[0], write_buffer_size=1000)
    fill(connection)
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def flush() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await connection.flush()

        await trio.testing.wait_all_tasks_blocked()
        await trio.aclose_forcefully(connection)
    with pytest.raises(trio.ClosedResourceError):
        await connection.flush()


# -- half-closing


async def test_after_the_end_was_sent_receiving_goes_on(pair: Pair, connect: Connect) -> None:
    ours, peer = pair
    connection = connect(ours)
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def say_and_finish() -> None:
            await connection.send(b"a question")
            await connection.send_eof()

        assert await read_to_end(peer) == frame(b"a question")
        for _ in range(2):
            with pytest.raises(trio.ClosedResourceError, match=r"send_eof\(\)"):
                await connection.send(b"too late")
            with pytest.raises(trio.ClosedResourceError, match=r"send_eof\(\)"):
                connection.send_nowait(b"too late")
        nursery.start_soon(peer.send_all, frame(b"an answer"))
        assert await connection.receive() == b"an answer"
        await trio.testing.wait_all_tasks_blocked()
        await peer.aclose()
        with pytest.raises(trio.EndOfChannel):
            await connection.receive()
    await connection.aclose()
    assert connection.close_reason is CloseReason.END_OF_STREAM


async def test_sending_the_end_again_is_harmless(pair: Pair, connect: Connect) -> None:
    connection = connect(pair[0])
    await connection.send_eof()
    await connection.send_eof()
    assert await read_to_end(pair[1]) == b""


async def test_the_end_comes_behind_what_was_queued_and_before_what_waited(
    tight_pair: Pair, connect: Connect
) -> None:
    ours, peer = tight_pair
    connection = connect(ours, write_buffer_size=1000)
    sent = fill(connection)
    async with trio.open_nursery() as nursery:
        for _ in range(3):

            @nursery.start_soon
            async def send() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await connection.send(bytes(20_000))

        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(connection.send_eof)
        await trio.testing.wait_all_tasks_blocked()
        assert await read_to_end(peer) == frames(sent)


async def test_cancelled_while_sending_the_end_it_can_be_done_again(
    tight_pair: Pair, connect: Connect
) -> None:
    ours, peer = tight_pair
    connection = connect(ours, write_buffer_size=1000)
    sent = fill(connection)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.send_eof)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.send_eof)
        assert await read_to_end(peer) == frames(sent)


@attrs.define(eq=False)
class PlainStream(trio.abc.Stream):
    """A stream that cannot be half-closed, as TLS's cannot."""

    stream: Stream

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self.stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self.stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self.stream.aclose()


async def test_stream_that_cannot_be_half_closed_goes_on(connect: Connect) -> None:
    ours, peer = memory()
    connection = connect(PlainStream(ours))
    with pytest.raises(BytetalkError, match="PlainStream cannot be half-closed"):
        await connection.send_eof()
    await connection.send(b"still here")
    assert await read_exactly(peer, 14) == frame(b"still here")


async def test_the_end_of_a_broken_connection_cannot_be_sent(connect: Connect) -> None:
    ours, peer = tcp()
    connection = connect(ours)
    reset(peer)
    with pytest.raises(trio.BrokenResourceError):
        await connection.receive()
    with pytest.raises(trio.BrokenResourceError):
        await connection.send_eof()


async def test_the_end_of_a_connection_that_another_task_closes_cannot_be_sent(
    pair: Pair, connect: Connect
) -> None:
    """Whichever of the two comes first, in whatever order the scheduler has them go on."""
    for steps in range(8):
        left, right = unix() if isinstance(pair[0], trio.SocketStream) else memory()
        connection = connect(left)

        async def send_eof(connection: AnyConnection = connection) -> None:
            with contextlib.suppress(trio.ClosedResourceError):
                await connection.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_eof)
            for _ in range(steps // 2):
                await trio.lowlevel.checkpoint()
            await connection.aclose()
        assert connection.close_reason is CloseReason.CLOSED
        await right.aclose()


async def test_what_others_send_while_start_tls_flushes_waits_for_tls(
    connect: Connect, tls: Tls
) -> None:
    ours, theirs = tight_unix()
    connection = connect(ours, write_buffer_size=1000)
    peer = tls.at_client(theirs)
    late = [bytes([number]) * 2000 for number in range(4)]
    scopes = [trio.CancelScope() for _ in late]

    async def send(number: int) -> None:
        with scopes[number]:
            await connection.send(late[number])

    async with trio.open_nursery() as nursery:
        await connection.send(bytes(200_000))
        nursery.start_soon(connection.send, b"waits for room")
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(partial(connection.start_tls, tls.server, server_side=True))
        await trio.testing.wait_all_tasks_blocked()
        for number in range(4):
            nursery.start_soon(send, number)
            await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.WouldBlock):
            connection.send_nowait(b"has no room")
        assert connection.statistics().senders_waiting == 5
        scopes[0].cancel()
        expected = frame(bytes(200_000)) + frame(b"waits for room")
        assert await read_exactly(theirs, len(expected)) == expected
        await trio.testing.wait_all_tasks_blocked()
        scopes[2].cancel()  # by now it waits for room under TLS
        await trio.testing.wait_all_tasks_blocked()
        assert connection.statistics().senders_waiting == 1
        expected = frame(late[1]) + frame(late[3])
        received = b""
        while len(received) < len(expected):
            received += await peer.receive_some()
        assert received == expected
    await trio.aclose_forcefully(peer)


async def test_what_is_sent_while_start_tls_flushes_waits_for_tls_though_there_is_room(
    connect: Connect, tls: Tls
) -> None:
    ours, theirs = tight_unix()
    connection = connect(ours, write_buffer_size=10**6)
    peer = tls.at_client(theirs)
    async with trio.open_nursery() as nursery:
        await connection.send(bytes(200_000))
        nursery.start_soon(partial(connection.start_tls, tls.server, server_side=True))
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(connection.send, b"secret")
        await trio.testing.wait_all_tasks_blocked()
        assert connection.statistics().senders_waiting == 1
        assert await read_exactly(theirs, 200_004) == frame(bytes(200_000))
        assert await peer.receive_some() == frame(b"secret")
    await trio.aclose_forcefully(peer)


async def test_what_is_written_before_and_under_tls_is_announced_in_order(
    connect: Connect, tls: Tls
) -> None:
    ours, theirs = memory()
    connection = connect(ours)
    peer = tls.at_client(theirs)
    told: list[bytes] = []
    go_on = trio.Event()

    async def hook(event: MessageWritten) -> None:
        await go_on.wait()
        told.append(event.message)

    connection.message_written.connect(hook)
    async with trio.open_nursery() as nursery:
        for message in b"one", b"two":
            await connection.send(message)
        nursery.start_soon(partial(connection.start_tls, tls.server, server_side=True))
        assert await read_exactly(theirs, 14) == frame(b"one") + frame(b"two")
        await peer.do_handshake()
        await connection.send(b"three")
        await connection.flush()
        assert told == []
        go_on.set()
        await trio.testing.wait_all_tasks_blocked()
        assert told == [b"one", b"two", b"three"]
    await trio.aclose_forcefully(peer)


async def test_tls_begins_though_a_hook_is_far_behind(connect: Connect, tls: Tls) -> None:
    """Then who has been waiting sends in the clear; under TLS, the hook is the first to send."""
    ours, theirs = memory()
    connection = connect(ours, write_buffer_size=10)
    peer = tls.at_client(theirs)
    begun = trio.Event()

    async def hook(event: MessageWritten) -> None:
        if event.message == b"first":
            await begun.wait()
            await connection.send(b"by the hook")

    connection.message_written.connect(hook)
    async with trio.open_nursery() as nursery:
        await connection.send(b"first")
        await connection.send(bytes(300))
        await connection.flush()
        clear = frame(b"first") + frame(bytes(300))
        assert await read_exactly(theirs, len(clear)) == clear
        nursery.start_soon(connection.send, b"waits")
        await trio.testing.wait_all_tasks_blocked()
        assert connection.statistics().senders_waiting == 1
        nursery.start_soon(partial(connection.start_tls, tls.server, server_side=True))
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(connection.send, b"held")
        await trio.testing.wait_all_tasks_blocked()
        begun.set()
        assert await read_exactly(theirs, 9) == frame(b"waits")
        expected = frame(b"by the hook") + frame(b"held")
        received = b""
        while len(received) < len(expected):
            received += await peer.receive_some()
        assert received == expected
    await trio.aclose_forcefully(peer)


# -- closing


async def test_closing_sends_what_is_queued(tight_pair: Pair, connect: Connect) -> None:
    ours, peer = tight_pair
    connection = connect(ours, write_buffer_size=100_000)
    sent = fill(connection)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.aclose)
        assert await read_to_end(peer) == frames(sent)
    assert connection.close_reason is CloseReason.CLOSED
    assert connection.statistics().bytes_queued == 0


async def test_closing_sends_replies_that_a_burst_still_holds_back(
    pair: Pair, connect: Connect
) -> None:
    ours, peer = pair
    connection = connect(ours)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.send_all, frames([b"one", b"two"]))
        await connection.send(await connection.receive())
        nursery.start_soon(connection.aclose)
        assert await read_to_end(peer) == frame(b"one")
        await peer.aclose()


async def test_closing_gives_up_on_a_peer_that_does_not_read(
    tight_pair: Pair, connect: Connect, autojump_clock: trio.testing.MockClock
) -> None:
    connection = connect(tight_pair[0], write_buffer_size=1000, close_timeout=3)
    fill(connection)
    start = trio.current_time()
    await connection.aclose()
    assert trio.current_time() == start + 3
    assert connection.close_reason is CloseReason.CLOSED


async def test_senders_wait_for_listeners_that_are_thousands_of_messages_behind(
    pair: Pair, connect: Connect
) -> None:
    ours, peer = pair
    connection = connect(ours)
    go_on = trio.Event()
    told = 0

    async def hook(_event: MessageWritten) -> None:
        nonlocal told
        await go_on.wait()
        told += 1

    connection.message_written.connect(hook)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_to_end, peer)
        sent = 0
        for _ in range(3):
            await trio.testing.wait_all_tasks_blocked()
            with contextlib.suppress(trio.WouldBlock):
                while sent < 10_000:
                    connection.send_nowait(b"")
                    sent += 1
        assert sent == 4096
        # Its peer has everything, so there is nothing to disconnect it for.
        assert not connection._transport.is_full
        async with trio.open_nursery() as waiting:
            waiting.start_soon(connection.send, b"waits")
            await trio.testing.wait_all_tasks_blocked()
            go_on.set()
        await connection.aclose()
    assert told == sent + 1
    await peer.aclose()


async def test_while_thousands_of_messages_are_announced_others_have_their_turns(
    pair: Pair, connect: Connect
) -> None:
    ours, peer = pair
    connection = connect(ours)
    go_on = trio.Event()
    told = 0
    seen: set[int] = set()

    async def hook(_event: MessageWritten) -> None:
        nonlocal told
        if not told:
            await go_on.wait()
        told += 1

    connection.message_written.connect(hook)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_to_end, peer)
        for _ in range(2000):
            await connection.send(b"")
        await trio.testing.wait_all_tasks_blocked()
        go_on.set()
        while told < 2000:
            seen.add(told)
            await trio.lowlevel.checkpoint()
        await connection.aclose()
    assert len(seen) > 10  # in each of Trio's turns, which of the two is first is random
    assert {count % 64 for count in seen} == {0}
    await peer.aclose()


async def test_closing_after_a_send_timeout_says_no_more_to_who_takes_nothing(
    tls: Tls, connect: Connect, autojump_clock: trio.testing.MockClock
) -> None:
    ours, theirs = tight_unix()
    peer = tls.at_client(theirs)
    connection = connect(ours, send_timeout=2, close_timeout=30)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.do_handshake)
        await connection.start_tls(tls.server, server_side=True)
    start = trio.current_time()
    with pytest.raises(SendTimeoutError):
        await send_on(connection, bytes(100_000))
    await connection.aclose()
    assert trio.current_time() < start + 30
    await trio.aclose_forcefully(peer)


@pytest.mark.parametrize("last", [[b"bye"], []])
async def test_closing_tls_while_another_task_receives_much_ends_it_in_order(
    last: list[bytes], connect: Connect, tls: Tls
) -> None:
    for count in range(1, 30):
        ours, theirs = unix()
        peer = connect(theirs)
        connection = connect(ours)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(peer.start_tls, tls.client, server_hostname="example.org"))
            await connection.start_tls(tls.server, server_side=True)
        enough = trio.Event()

        async def receive(
            connection: AnyConnection = connection, count: int = count, enough: trio.Event = enough
        ) -> None:
            with contextlib.suppress(trio.ClosedResourceError):
                for _ in range(count):
                    await connection.receive()
                enough.set()
                while True:
                    await connection.receive()

        async def send_much(peer: AnyConnection = peer) -> None:
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                for _ in range(60):
                    await peer.send(bytes(4000))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            nursery.start_soon(send_much)
            await enough.wait()
            await send_each(connection, last)
            nursery.start_soon(connection.aclose)
            assert [message async for message in peer] == last
            await peer.aclose()


async def test_cancelled_closing_closes_at_once(
    tight_pair: Pair, connect: Connect, autojump_clock: trio.testing.MockClock
) -> None:
    ours, peer = tight_pair
    connection = connect(ours, write_buffer_size=1000)
    sent = fill(connection)
    start = trio.current_time()
    with trio.move_on_after(1) as scope:
        await connection.aclose()
    assert scope.cancelled_caught
    assert trio.current_time() == start + 1
    assert connection.close_reason is CloseReason.CANCELLED
    rest = await read_to_end(peer)
    assert frames(sent).startswith(rest)
    with pytest.raises(trio.ClosedResourceError):
        await connection.send(b"")


async def test_closing_forcefully_does_not_wait(
    tight_pair: Pair, connect: Connect, autojump_clock: trio.testing.MockClock
) -> None:
    connection = connect(tight_pair[0], write_buffer_size=1000)
    fill(connection)
    start = trio.current_time()
    await trio.aclose_forcefully(connection)
    assert trio.current_time() == start


async def test_closing_twice_is_harmless(pair: Pair, connect: Connect) -> None:
    connection = connect(pair[0])
    for _ in range(2):
        await connection.aclose()
        assert connection.close_reason is CloseReason.CLOSED
    with trio.testing.assert_checkpoints():
        await connection.aclose()


async def test_two_tasks_close_and_both_wait_for_the_end(
    tight_pair: Pair, connect: Connect
) -> None:
    ours, peer = tight_pair
    connection = connect(ours, write_buffer_size=1000)
    sent = fill(connection)
    closed: list[object] = []

    async def close() -> None:
        await connection.aclose()
        closed.append(connection.close_reason)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(close)
        nursery.start_soon(close)
        await trio.testing.wait_all_tasks_blocked()
        assert closed == []
        assert await read_to_end(peer) == frames(sent)
    assert closed == [CloseReason.CLOSED] * 2


async def test_tasks_that_wait_hear_that_another_one_closes(
    tight_pair: Pair, connect: Connect
) -> None:
    connection = connect(tight_pair[0], write_buffer_size=1000)
    fill(connection)

    async def hear(operation: Callable[[], Awaitable[object]]) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await operation()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hear, connection.receive)
        nursery.start_soon(hear, connection.flush)
        for _ in range(3):
            nursery.start_soon(hear, lambda: connection.send(b"waits"))
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(trio.aclose_forcefully, connection)


async def test_send_that_says_it_was_closed_has_sent_nothing(
    tight_pair: Pair, connect: Connect
) -> None:
    ours, peer = tight_pair
    connection = connect(ours, write_buffer_size=1000)
    sent = fill(connection)
    outcomes: list[bytes] = []

    async def send() -> None:
        try:
            await connection.send(b"between the chairs")
        except trio.ClosedResourceError:
            return
        outcomes.append(b"between the chairs")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)

        @nursery.start_soon
        async def close_as_soon_as_there_is_room() -> None:
            while connection.statistics().bytes_queued > 1000:
                await trio.lowlevel.checkpoint()
            await connection.aclose()

        data = await read_to_end(peer)
    assert data == frames(sent + outcomes)


# -- closing with input that nobody has read: it must not destroy what was sent


@pytest.mark.parametrize("undecrypted", [False, True])
async def test_closing_tls_with_unread_input_does_not_destroy_what_was_sent(
    pair: Pair, connect: Connect, tls: Tls, undecrypted: bool, nursery: trio.Nursery
) -> None:
    ours, peers = pair
    peer = tls.at_client(peers)
    connection = connect(ours)
    async with trio.open_nursery() as handshake:
        handshake.start_soon(partial(connection.start_tls, tls.server, server_side=True))
        await peer.do_handshake()
    nursery.start_soon(peer.send_all, frame(b"read") * 3)
    assert await connection.receive() == b"read"
    if undecrypted:
        # More than is read at once, so that some stays with TLS, and some under it.
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(peer.send_all, frame(b"read") + frame(bytes(100_000)))
        for _ in range(3):
            assert await connection.receive() == b"read"
    connection.send_nowait(bytes(1000))
    nursery.start_soon(connection.aclose)
    # A clean end, which TLS would not take a reset or a mere end of the stream for.
    assert await read_to_end(peer) == frame(bytes(1000))
    await trio.aclose_forcefully(peer)


async def test_closing_tls_within_tls(connect: Connect, tls: Tls) -> None:
    """As through a proxy that is spoken to over TLS: each says its closing word."""
    ours, peers = tcp()
    outer_peer = tls.at_client(peers)
    peer = tls.at_client(outer_peer)
    outer = tls.at_server(ours)
    inner = tls.at_server(outer)
    connection = connect(inner)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.do_handshake)
        await inner.do_handshake()
    await peer.send_all(frame(b"read") * 3 + frame(bytes(100_000)))
    assert await connection.receive() == b"read"
    connection.send_nowait(bytes(1000))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.aclose)
        assert await read_to_end(peer) == frame(bytes(1000))
        assert await read_to_end(outer_peer) == b""
        await peer.aclose()
    assert (inner.transport_stream, outer.transport_stream) == (outer, ours)


async def test_closing_tls_before_its_handshake_does_not_begin_one(
    connect: Connect, tls: Tls, autojump_clock: trio.testing.MockClock
) -> None:
    ours, peer = tcp()
    connection = connect(tls.at_server(ours), close_timeout=1)
    await connection.aclose()
    await peer.aclose()


@pytest.mark.parametrize("with_epoll", [False, True])
@pytest.mark.parametrize("half_closed", [False, True])
async def test_closing_with_unread_input_does_not_destroy_what_was_sent(
    connect: Connect, half_closed: bool, with_epoll: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not with_epoll:
        monkeypatch.setattr("trio_bytetalk._transport.EPOLL_AVAILABLE", False)
    ours, peer = large_buffers()
    connection = connect(ours)
    await peer.send_all(frame(b"a request") + frame(b"one more") * 1000)
    assert await connection.receive() == b"a request"
    await peer.send_all(frame(b"yet one more") * 1000)
    if half_closed:
        await peer.send_eof()
    reply = bytes(150_000)
    await connection.send(reply)
    await connection.flush()  # the system has it all now; the peer cannot have
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.aclose)
        await trio.testing.wait_all_tasks_blocked()
        assert await read_to_end(peer) == frame(reply)
        await peer.aclose()
    assert connection.close_reason is CloseReason.CLOSED


async def test_closing_does_not_wait_for_ever_for_a_peer_that_does_not_finish(
    connect: Connect, autojump_clock: trio.testing.MockClock
) -> None:
    ours, peer = unix()
    connection = connect(ours, close_timeout=4)
    await peer.send_all(b"something")
    start = trio.current_time()
    await connection.aclose()
    assert trio.current_time() == start + 4
    await peer.aclose()


async def test_closing_does_not_wait_for_a_peer_that_sends_nothing(
    connect: Connect, autojump_clock: trio.testing.MockClock
) -> None:
    ours, peer = unix()
    start = trio.current_time()
    await connect(ours).aclose()
    assert trio.current_time() == start
    await peer.aclose()


@pytest.mark.parametrize("with_epoll", [False, True])
async def test_closing_while_the_peer_goes_on_sending_reads_it_away(
    connect: Connect,
    autojump_clock: trio.testing.MockClock,
    with_epoll: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not with_epoll:
        monkeypatch.setattr("trio_bytetalk._transport.EPOLL_AVAILABLE", False)
    ours, peer = unix()
    start = trio.current_time()
    connection = connect(ours)
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def flood() -> None:
            for _ in range(100):
                await peer.send_all(bytes(100_000))
            assert await read_to_end(peer) == b""
            await peer.aclose()

        await trio.testing.wait_all_tasks_blocked()
        await connection.aclose()
    assert trio.current_time() == start  # the peer heard of the end at once


# -- breaking


@pytest.mark.parametrize("fast", [True, False])
async def test_reset_breaks_the_connection_for_good(connect: Connect, fast: bool) -> None:
    ours, peer = tcp()
    connection = connect(ours if fast else PlainStream(ours))
    reset(peer)
    for _ in range(3):
        with pytest.raises(trio.BrokenResourceError, match="reset by peer"):
            await connection.receive()
    with pytest.raises(trio.BrokenResourceError):
        await send_on(connection)
    for _ in range(3):
        with pytest.raises(trio.BrokenResourceError):
            await connection.send(b"lost")
        with pytest.raises(trio.BrokenResourceError):
            connection.send_nowait(b"lost")
    await connection.aclose()
    assert isinstance(connection.close_reason, trio.BrokenResourceError)
    assert isinstance(connection.close_reason.__cause__, ConnectionResetError)


@pytest.mark.parametrize("with_epoll", [True, False])
@pytest.mark.parametrize("begun", [b"", b"\0\0\0\5hel"])
@pytest.mark.parametrize("size", [1, 100_000])
async def test_a_reset_that_sending_meets_first_is_no_end_of_the_stream(
    size: int, begun: bytes, with_epoll: bool, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system tells it once, and reading after that would find an end."""
    if not with_epoll:
        monkeypatch.setattr("trio_bytetalk._transport.EPOLL_AVAILABLE", False)
    ours, peer = tcp()
    connection = connect(ours)
    await peer.send_all(frame(b"hello") + begun)
    assert await connection.receive() == b"hello"
    reset(peer)
    with contextlib.suppress(trio.BrokenResourceError):
        await connection.send(bytes(size))
        await connection.flush()
    for _ in range(2):
        with pytest.raises(trio.BrokenResourceError, match="Connection reset by peer"):
            await connection.receive()
    await connection.aclose()
    assert str(connection.close_reason) == "the connection broke: Connection reset by peer"


async def test_what_was_given_up_with_nothing_to_be_sent_ends_in_order(
    connect: Connect, autojump_clock: trio.testing.MockClock
) -> None:
    ours, peer = memory()
    connection = connect(ours, idle_timeout=3)
    with pytest.raises(IdleTimeoutError):
        await connection.receive()
    await connection.aclose()
    assert await read_to_end(peer) == b""


async def test_what_broke_a_connection_first_is_what_everybody_hears(connect: Connect) -> None:
    ours, peer = tcp()
    connection = connect(ours)
    go_on = trio.Event()

    async def hook(_event: MessageWritten) -> None:
        await go_on.wait()
        raise ZeroDivisionError

    connection.message_written.connect(hook)
    await connection.send(b"x")
    await trio.testing.wait_all_tasks_blocked()
    reset(peer)
    with pytest.raises(trio.BrokenResourceError, match="reset by peer"):
        await send_on(connection)
    go_on.set()
    await trio.testing.wait_all_tasks_blocked()
    with pytest.raises(trio.BrokenResourceError, match="reset by peer"):
        await connection.send(b"x")


async def test_under_tls_receiving_tells_what_sending_met(connect: Connect, tls: Tls) -> None:
    ours, theirs = tcp()
    connection = connect(tls.at_server(ours))
    peer = tls.at_client(theirs)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.send_all, frame(b"hello"))
        assert await connection.receive() == b"hello"
    reset(theirs)
    with pytest.raises(trio.BrokenResourceError):
        await send_on(connection)
    with pytest.raises(trio.BrokenResourceError, match="Connection reset by peer"):
        await connection.receive()
    await connection.aclose()
    assert isinstance(connection.close_reason, trio.BrokenResourceError)
    assert isinstance(connection.close_reason.__cause__, ConnectionResetError)


async def test_a_peer_that_closes_has_finished_though_sending_to_it_fails(
    connect: Connect,
) -> None:
    ours, peer = tcp()
    connection = connect(ours)
    await peer.send_all(frame(b"hello"))
    await peer.aclose()
    with pytest.raises(trio.BrokenResourceError):
        await send_on(connection)
    assert await connection.receive() == b"hello"
    with pytest.raises(trio.EndOfChannel):
        await connection.receive()


async def test_sending_to_a_peer_that_is_gone_breaks_the_connection(
    pair: Pair, connect: Connect, autojump_clock: trio.testing.MockClock
) -> None:
    ours, peer = pair
    connection = connect(ours)
    await peer.aclose()
    with pytest.raises(trio.BrokenResourceError):
        await send_on(connection)
    for _ in range(2):
        with pytest.raises(trio.BrokenResourceError):
            await connection.send(b"lost")
    await connection.aclose()
    assert isinstance(connection.close_reason, trio.BrokenResourceError)


async def test_what_had_come_before_the_connection_broke_is_received(
    pair: Pair, connect: Connect, autojump_clock: trio.testing.MockClock
) -> None:
    ours, peer = pair
    connection = connect(ours)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.send_all, frames([b"one", b"two", b"three"]))
        assert await connection.receive() == b"one"
    await peer.aclose()
    with pytest.raises(trio.BrokenResourceError):
        await send_on(connection)
    assert await connection.receive() == b"two"
    assert await connection.receive() == b"three"


async def test_tasks_that_wait_to_send_hear_that_the_connection_broke(
    tight_pair: Pair, connect: Connect
) -> None:
    ours, peer = tight_pair
    connection = connect(ours, write_buffer_size=1000)
    fill(connection)
    async with trio.open_nursery() as nursery:
        for _ in range(3):

            @nursery.start_soon
            async def send() -> None:
                with pytest.raises(trio.BrokenResourceError):
                    await connection.send(b"lost")

        await trio.testing.wait_all_tasks_blocked()
        await peer.aclose()


class OopsError(Exception):
    """What the streams of these tests raise."""


@attrs.define(eq=False)
class BuggyStream(PlainStream):
    """A stream with a bug."""

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        raise OopsError("a bug in send_all")


async def test_bug_in_a_stream_breaks_its_connection_and_nothing_else(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    ours, _ = memory()
    connection = connect(BuggyStream(ours))
    await connection.send(b"lost")
    with pytest.raises(trio.BrokenResourceError, match="a bug in send_all") as info:
        await connection.flush()
    assert isinstance(info.value.__cause__, OopsError)
    assert "BuggyStream" in caplog.text
    assert "a bug in send_all" in caplog.text
    await connection.aclose()
    assert isinstance(connection.close_reason, trio.BrokenResourceError)
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("trio_bytetalk.transport", logging.ERROR)
    assert record.exc_info is not None
    assert fields_of(record) == {
        "event": "stream_failed",
        "connection": connection.number,
        "error": "OopsError",
        "reason": "a bug in send_all",
    }


@attrs.define(eq=False)
class UncloseableStream(PlainStream):
    """A stream that does not like to be closed, but is."""

    error: Exception

    async def aclose(self) -> None:
        await self.stream.aclose()
        raise self.error


@pytest.mark.parametrize("error", [trio.BrokenResourceError(), OopsError("a bug in aclose")])
async def test_stream_that_fails_to_close_is_closed_all_the_same(
    error: Exception, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    ours, peer = memory()
    connection = connect(UncloseableStream(ours, error))
    await connection.aclose()
    assert connection.close_reason is CloseReason.CLOSED
    assert await read_to_end(peer) == b""
    assert ("a bug in aclose" in caplog.text) == isinstance(error, OopsError)
    for record in caplog.records:
        assert (record.name, record.levelno) == ("trio_bytetalk.transport", logging.ERROR)
        assert fields_of(record) == {
            "event": "closing_failed",
            "connection": connection.number,
            "error": "OopsError",
            "reason": "a bug in aclose",
        }


@pytest.mark.parametrize("error", [trio.BrokenResourceError(), OopsError("a bug in aclose")])
async def test_stream_that_fails_to_close_after_a_failed_handshake_ends_nothing(
    error: Exception, tls: Tls, caplog: pytest.LogCaptureFixture
) -> None:
    class Uncloseable(PlainStream):
        async def aclose(self) -> None:
            raise error

    ours, peer = memory()
    await peer.send_all(b"GET / HTTP/1.1")
    await Server(echo).serve_stream(Uncloseable(ours), ssl_context=tls.server)
    events = [fields_of(record)["event"] for record in caplog.records]
    unclosed = ["closing_failed"] if isinstance(error, OopsError) else []
    assert events == ["handshake_failed", *unclosed]


async def test_task_dump_says_whose_workers_they_are(connect: Connect, tls: Tls) -> None:
    def workers() -> set[str]:
        root = trio.lowlevel.current_root_task()
        assert root is not None
        tasks = (task for nursery in root.child_nurseries for task in nursery.child_tasks)
        return {task.name for task in tasks if " of connection " in task.name}

    async def hook(_event: MessageWritten) -> None:
        await trio.sleep_forever()

    for start_tls in False, True:
        left, right = (connect(stream) for stream in memory())
        if start_tls:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(left.start_tls, tls.server, server_side=True))
                await right.start_tls(tls.client, server_hostname="example.org")
        left.message_written.connect(hook)
        await left.send(b"hello")
        await right.receive()
        await trio.testing.wait_all_tasks_blocked()
        mine = {name for name in workers() if name.endswith(f" {left.number}")}
        assert mine == {
            f"trio_bytetalk: {work} of connection {left.number}" for work in ("announcer", "pump")
        }


async def test_send_timeout_gives_up_a_peer_that_takes_nothing(
    tight_pair: Pair, connect: Connect, autojump_clock: trio.testing.MockClock
) -> None:
    connection = connect(tight_pair[0], write_buffer_size=1000, send_timeout=7)
    start = trio.current_time()
    fill(connection)

    async def hear(operation: Callable[[], Awaitable[object]]) -> None:
        with pytest.raises(SendTimeoutError, match="7 seconds; the setting is send_timeout"):
            await operation()
        assert trio.current_time() == start + 7

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hear, connection.receive)
        nursery.start_soon(hear, connection.flush)
        nursery.start_soon(hear, lambda: connection.send(b"waits"))
    await hear(connection.receive)
    await hear(lambda: connection.send(b"too late"))
    await trio.testing.wait_all_tasks_blocked()
    assert "trio_bytetalk: pump" not in own_system_tasks()
    await connection.aclose()
    assert trio.current_time() == start + 7
    assert isinstance(connection.close_reason, SendTimeoutError)
    assert isinstance(connection.close_reason, GivenUpError)


async def test_receive_hears_of_a_send_timeout_that_nobody_waited_for(
    tight_pair: Pair, connect: Connect, autojump_clock: trio.testing.MockClock
) -> None:
    connection = connect(tight_pair[0], write_buffer_size=1000, send_timeout=7)
    fill(connection)
    await trio.sleep(10)
    with trio.fail_after(1):
        for _ in range(2):
            with pytest.raises(SendTimeoutError):
                await connection.receive()


async def test_peer_that_takes_something_now_and_then_is_not_given_up(
    tight_pair: Pair, connect: Connect, autojump_clock: trio.testing.MockClock
) -> None:
    ours, peer = tight_pair
    connection = connect(ours, write_buffer_size=10**6, send_timeout=7)
    connection.send_nowait(bytes(500_000))
    data = b""
    while len(data) < 500_004:
        await trio.sleep(6)
        data += await peer.receive_some()
    assert data == frame(bytes(500_000))
    await trio.sleep(100)  # nothing is queued, so there is nothing to take
    await connection.send(b"still here")


async def test_no_send_timeout_is_for_ever(
    tight_pair: Pair, connect: Connect, autojump_clock: trio.testing.MockClock
) -> None:
    ours, peer = tight_pair
    connection = connect(ours, write_buffer_size=1000, send_timeout=None)
    sent = fill(connection)
    await trio.sleep(10**6)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.aclose)
        assert await read_to_end(peer) == frames(sent)


async def test_connection_given_up_while_it_writes_stays_given_up(
    tight_pair: Pair,
    connect: Connect,
    autojump_clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    ours, peer = tight_pair
    connection = connect(ours, write_buffer_size=10**6, message_timeout=3)
    connection.send_nowait(bytes(300_000))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.send_all, b"\x00\x00")
        with pytest.raises(MessageTimeoutError):
            await connection.receive()
    # Now that it is too late, the peer reads what was under way.
    with trio.move_on_after(1):
        while True:
            await peer.receive_some()
    with pytest.raises(MessageTimeoutError):
        await connection.flush()
    await connection.aclose()
    assert isinstance(connection.close_reason, MessageTimeoutError)
    assert not caplog.records


# -- telling that a message was written


async def test_message_counts_as_written_when_the_system_has_its_last_byte(
    tight_pair: Pair, connect: Connect
) -> None:
    ours, peer = tight_pair
    connection = connect(ours)
    ends: list[tuple[int, int]] = []

    async def on_written(event: MessageWritten) -> None:
        ends.append((len(event.message), connection.statistics().bytes_sent))

    connection.message_written.connect(on_written)
    async with connection.message_written.subscribe() as written:
        await connection.send(bytes(100_000))
        await connection.send(bytes(200_000))
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.WouldBlock):
            written.receive_nowait()
        # How far a stream that takes no part of what it is given has come is seen every 64 KiB.
        await read_exactly(peer, 100_004 + 65_536)
        assert await written.receive() == MessageWritten(connection, bytes(100_000))
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.WouldBlock):
            written.receive_nowait()
        await read_exactly(peer, 200_004 - 65_536)
        assert await written.receive() == MessageWritten(connection, bytes(200_000))
        await trio.testing.wait_all_tasks_blocked()
    assert [size for size, _ in ends] == [100_000, 200_000]
    assert ends[0][1] >= 100_004
    assert ends[1][1] == 300_008


async def test_messages_are_told_to_be_written_in_the_order_of_sending(
    pair: Pair, connect: Connect
) -> None:
    left, right = (connect(stream, write_buffer_size=300) for stream in pair)
    sent: list[bytes] = []
    written: list[bytes] = []

    async def on_written(event: MessageWritten) -> None:
        written.append(event.message)
        await trio.lowlevel.checkpoint()

    left.message_written.connect(on_written)

    async def send() -> None:
        for _ in range(20):
            sent.append(b"%d" % len(sent) + bytes(40))
            await left.send(sent[-1])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(left.send, b"")  # an empty frame is one, too
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(5):
            nursery.start_soon(send)
        received = [await right.receive() for _ in range(101)]
    await left.aclose()
    assert received == written == [b"", *sent]


async def test_message_without_any_bytes_is_told_to_be_written_too(
    pair: Pair, connect: Connect
) -> None:
    connection = connect(pair[0], codec=Raw())
    async with connection.message_written.subscribe() as written:
        for nothing in ((), b"", [b""]):
            await connection.send(nothing)
            assert await written.receive() == MessageWritten(connection, nothing)


async def test_slow_hook_holds_up_those_who_send(pair: Pair, connect: Connect) -> None:
    connection = connect(pair[0], write_buffer_size=1000)
    may_go_on = trio.Event()

    async def on_written(_event: MessageWritten) -> None:
        await may_go_on.wait()

    connection.message_written.connect(on_written)
    await connection.send(b"written, and not told yet")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pair[1].receive_some)
        await trio.testing.wait_all_tasks_blocked()
        sent: list[bytes] = []
        while more := fill(connection):
            sent += more
            await trio.testing.wait_all_tasks_blocked()
        assert len(sent) < 300

        nursery.start_soon(connection.send, b"waits")
        await trio.testing.wait_all_tasks_blocked()
        assert connection.statistics().messages_sent == 1 + len(sent)
        may_go_on.set()
        expected = frames([*sent, b"waits"])
        assert await read_exactly(pair[1], len(expected)) == expected


@attrs.define(eq=False)
class Hooked:
    """A connection whose hook, at the first message written, does what it is told."""

    connection: AnyConnection
    peer: Stream
    sent: list[bytes]
    hook_is_done: trio.Event = attrs.field(factory=trio.Event)

    async def begin(self, action: Callable[[], Awaitable[object]]) -> None:
        """Have the hook run, with a full queue behind the message that it is told of."""
        first = trio.Event()

        async def on_written(_event: MessageWritten) -> None:
            if not first.is_set():
                first.set()
                await trio.testing.wait_all_tasks_blocked()
                await action()
                self.hook_is_done.set()

        self.connection.message_written.connect(on_written)
        await self.connection.send(b"first")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first.wait)
            assert await read_exactly(self.peer, 9) == frame(b"first")
        self.sent += fill(self.connection)


@pytest.fixture
def hooked(tight_pair: Pair, connect: Connect) -> Hooked:
    connection = connect(tight_pair[0], write_buffer_size=100_000, close_timeout=None)
    return Hooked(connection, tight_pair[1], [])


async def test_hook_may_flush(hooked: Hooked) -> None:
    await hooked.begin(hooked.connection.flush)
    assert await read_exactly(hooked.peer, len(frames(hooked.sent))) == frames(hooked.sent)
    await hooked.hook_is_done.wait()


async def test_hook_may_send_though_the_queue_is_full(hooked: Hooked) -> None:
    connection = hooked.connection
    await hooked.begin(lambda: connection.send(b"by the hook"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.send, b"by another")
        await trio.testing.wait_all_tasks_blocked()
        rest = await read_exactly(hooked.peer, len(frames([*hooked.sent, b"by the hook"])) + 14)
    await hooked.hook_is_done.wait()
    assert rest in (
        frames([*hooked.sent, b"by the hook", b"by another"]),
        frames([*hooked.sent, b"by another", b"by the hook"]),
    )


async def test_hook_may_send_while_others_wait_for_it_to_be_done(
    tight_pair: Pair, connect: Connect, autojump_clock: trio.testing.MockClock
) -> None:
    """They wait because too much is written and not told yet; and because the queue is full."""
    ours, peer = tight_pair
    connection = connect(ours, write_buffer_size=1000)
    go_on = trio.Event()
    sent_by_hook: list[bytes] = []

    async def on_written(_event: MessageWritten) -> None:
        if not sent_by_hook:
            await go_on.wait()
            for message in (b"by the hook", bytes(200_000), b"by the hook, too"):
                sent_by_hook.append(message)
                await connection.send(message)

    async def send() -> None:
        for _ in range(1000):
            await connection.send(bytes(100))

    connection.message_written.connect(on_written)
    received: list[bytes] = []
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def receive() -> None:
            async with open_connection(peer) as other:
                received.extend([message async for message in other])

        async with trio.open_nursery() as senders:
            senders.start_soon(send)
            senders.start_soon(send)
            await trio.testing.wait_all_tasks_blocked()
            assert connection.statistics().messages_sent < 500
            go_on.set()
        await connection.aclose()
    assert len(received) == 2003
    assert [message for message in received if message != bytes(100)] == sent_by_hook


async def test_hook_may_be_cancelled_while_it_flushes_or_sends(hooked: Hooked) -> None:
    connection = hooked.connection
    flushing, sending = trio.CancelScope(), trio.CancelScope()

    async def action() -> None:
        with sending:
            await connection.send(b"cancelled")
        with flushing:
            await connection.flush()
        await connection.send(b"the end")

    await hooked.begin(action)
    await trio.testing.wait_all_tasks_blocked()
    sending.cancel()
    await trio.testing.wait_all_tasks_blocked()
    data = bytes(await hooked.peer.receive_some(3000))
    flushing.cancel()
    expected = frames([*hooked.sent, b"the end"])
    data += await read_exactly(hooked.peer, len(expected) - len(data))
    assert data == expected
    assert sending.cancelled_caught
    assert flushing.cancelled_caught
    await hooked.hook_is_done.wait()


async def test_hook_may_close(hooked: Hooked) -> None:
    await hooked.begin(hooked.connection.aclose)
    assert await read_to_end(hooked.peer) == frames(hooked.sent)
    await hooked.peer.aclose()
    await hooked.hook_is_done.wait()
    assert hooked.connection.close_reason is CloseReason.CLOSED


async def test_hook_may_close_what_is_being_closed(hooked: Hooked) -> None:
    await hooked.begin(hooked.connection.aclose)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hooked.connection.aclose)
        assert await read_to_end(hooked.peer) == frames(hooked.sent)
    assert hooked.hook_is_done.is_set()
    assert hooked.connection.close_reason is CloseReason.CLOSED


async def test_hook_that_waits_does_not_hold_up_a_flush(hooked: Hooked) -> None:
    go_on = trio.Event()
    await hooked.begin(go_on.wait)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hooked.connection.flush)
        assert await read_exactly(hooked.peer, len(frames(hooked.sent))) == frames(hooked.sent)
    # The hook goes on while others flush, and what comes then is written as ever.
    async with trio.open_nursery() as nursery:
        sent = fill(hooked.connection)
        nursery.start_soon(hooked.connection.flush)
        await trio.testing.wait_all_tasks_blocked()
        go_on.set()
        await trio.testing.wait_all_tasks_blocked()
        assert await read_exactly(hooked.peer, len(frames(sent))) == frames(sent)


async def test_send_timeout_while_a_hook_flushes(
    tight_pair: Pair, connect: Connect, autojump_clock: trio.testing.MockClock
) -> None:
    connection = connect(tight_pair[0], write_buffer_size=100_000, send_timeout=7)
    hooked = Hooked(connection, tight_pair[1], [])

    async def action() -> None:
        start = trio.current_time()
        with pytest.raises(SendTimeoutError):
            await connection.flush()
        assert trio.current_time() == start + 7

    await hooked.begin(action)
    await hooked.hook_is_done.wait()
    await connection.aclose()
    assert isinstance(connection.close_reason, SendTimeoutError)


async def test_closing_waits_for_hooks_but_not_for_ever(
    pair: Pair, connect: Connect, autojump_clock: trio.testing.MockClock
) -> None:
    ended: list[object] = []
    for patience, expected in ((2, "in time"), (4, "cancelled")):
        ours, peer = memory() if isinstance(pair[0], trio.StapledStream) else unix()
        connection = connect(ours, close_timeout=3)

        async def on_written(_event: MessageWritten, patience: int = patience) -> None:
            try:
                await trio.sleep(patience)
            except trio.Cancelled:
                ended.append("cancelled")
                raise
            ended.append("in time")

        connection.message_written.connect(on_written)
        await connection.send(b"hello")
        start = trio.current_time()
        await connection.aclose()
        assert trio.current_time() == start + min(patience, 3)
        await trio.testing.wait_all_tasks_blocked()
        assert ended.pop() == expected
        await peer.aclose()


async def test_closing_at_once_cancels_a_flushing_hook(hooked: Hooked) -> None:
    await hooked.begin(hooked.connection.flush)
    await trio.testing.wait_all_tasks_blocked()
    await trio.aclose_forcefully(hooked.connection)
    await trio.testing.wait_all_tasks_blocked()
    assert not hooked.hook_is_done.is_set()
    assert "trio_bytetalk: pump" not in own_system_tasks()
    assert "trio_bytetalk: relief" not in own_system_tasks()


# -- TLS takes the stream over


@pytest.mark.parametrize("make", [memory, unix, tight_unix])
async def test_tls_begins_behind_all_that_was_sent_before_it(
    make: Callable[[], Pair], connect: Connect, tls: Tls
) -> None:
    left, right = (connect(stream, write_buffer_size=1000) for stream in make())
    in_the_clear = fill(left) if make is tight_unix else []
    in_the_clear += [b"%d waits" % number for number in range(10)]
    async with trio.open_nursery() as nursery:
        for message in in_the_clear[-10:]:
            nursery.start_soon(left.send, message)
            await trio.testing.wait_all_tasks_blocked()
        # The client, who speaks first, begins when it has received all that is in the clear.
        nursery.start_soon(partial(left.start_tls, tls.server, server_side=True))
        await trio.testing.wait_all_tasks_blocked()
        assert [await right.receive() for _ in in_the_clear] == in_the_clear
        await right.start_tls(tls.client, server_hostname="example.org")
    before = left.statistics()
    assert before.bytes_sent == right.statistics().bytes_received
    messages = [bytes(size) for size in (0, 10, 100_000)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(echo, right)
        nursery.start_soon(send_each, left, messages)
        for message in messages:
            assert await left.receive() == message
        nursery.cancel_scope.cancel()
    await left.aclose()
    await right.aclose()
    assert "trio_bytetalk: pump" not in own_system_tasks()


# -- stopping: what has arrived by now is received, and no more


def cut_memory() -> Pair:
    """In memory, where every read brings little."""
    left, right = memory()
    return CuttingStream(left, sizes=itertools.repeat(10_000)), right


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("with_epoll", [False, True])
@pytest.mark.parametrize("make", [memory, cut_memory, unix])
async def test_stopped_server_receives_what_has_arrived(
    make: Callable[[], Pair],
    with_epoll: bool,
    secure: bool,
    finished: bool,
    tls: Tls,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not with_epoll:
        monkeypatch.setattr("trio_bytetalk._transport.EPOLL_AVAILABLE", False)
    received: list[bytes] = []
    reasons: list[object] = []

    async def handle(connection: AnyConnection) -> None:
        async for message in connection:
            received.append(message)
            server.stop()
            if not (finished and secure):  # which is a peer that hears no more
                connection.send_nowait(b"reply")

    server = Server(handle)

    @server.on_disconnect
    async def note(connection: AnyConnection) -> None:
        reasons.append(connection.close_reason)

    ours, theirs = make()
    peer: trio.abc.Stream = theirs
    serve = partial(server.serve_stream, ours)
    if secure:
        peer = tls.at_client(theirs)
        serve = partial(serve, ssl_context=tls.server)
    messages = [b"%d" % number + bytes(50_000) for number in range(3)]
    async with trio.open_nursery() as nursery:
        if secure:
            nursery.start_soon(serve)
        await peer.send_all(frames(messages))
        if finished and secure:
            await peer.aclose()
        elif finished:
            await theirs.send_eof()
        if not secure:
            nursery.start_soon(serve)
        if not (finished and secure):
            assert await read_to_end(peer) == frames([b"reply"] * 3)
        await trio.aclose_forcefully(peer)
    assert received == messages
    assert reasons == [CloseReason.END_OF_STREAM if finished else CloseReason.SERVER_STOPPED]


class Fountain(PlainStream):
    """A stream that has something to read whenever it is asked."""

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        return frame(bytes(200_000))


async def test_stopped_server_does_not_receive_for_ever_from_a_stream_that_never_pauses(
    nursery: trio.Nursery,
) -> None:
    received = 0

    async def handle(connection: AnyConnection) -> None:
        nonlocal received
        server.stop(None)
        async for _ in connection:
            received += 1

    server = Server(handle, close_timeout=0.001)
    ours, peer = unix()
    await server.serve_stream(Fountain(ours))
    assert 8 * 2**20 <= received * 200_004 < 9 * 2**20
    await trio.aclose_forcefully(peer)


async def test_a_stream_that_breaks_while_a_stopped_server_receives_the_rest() -> None:
    received: list[bytes] = []

    async def handle(connection: AnyConnection) -> None:
        server.stop(None)
        received.append(await connection.receive())
        with pytest.raises(trio.BrokenResourceError, match=r"the connection broke: .*reset"):
            await connection.receive()
        received.append(b"and then it broke")

    server = Server(handle)
    ours, peer = memory()
    await peer.send_all(frames([b"whole", b"cut"]))
    await server.serve_stream(FaultyStream(ours, receiving=[Cut(9), Reset(12)]))
    assert received == [b"whole", b"and then it broke"]


@pytest.mark.parametrize("secure", [False, True])
async def test_receiving_nothing_from_a_stopped_server_is_a_checkpoint(
    secure: bool, tls: Tls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trio_bytetalk._transport.EPOLL_AVAILABLE", False)
    ours, theirs = unix()
    done = False
    stream: trio.abc.Stream = ours
    if secure:
        stream = tls.at_server(ours)
        peer = tls.at_client(theirs)

    async def handle(connection: AnyConnection) -> None:
        nonlocal done
        server.stop(None)
        with trio.testing.assert_checkpoints(), contextlib.suppress(trio.EndOfChannel):
            await connection.receive()
        done = True

    server = Server(handle)
    async with trio.open_nursery() as nursery:
        if secure:
            nursery.start_soon(peer.do_handshake)
        await server.serve_stream(stream)
    assert done
    await theirs.aclose()


async def test_the_socket_is_closed_behind_a_stopped_server_that_receives_the_rest(
    tls: Tls,
) -> None:
    ours, theirs = tcp()
    stream = tls.at_server(ours)
    peer = tls.at_client(theirs)
    errors: list[Exception] = []

    async def handle(connection: AnyConnection) -> None:
        server.stop(None)
        ours.socket.close()
        try:
            await connection.receive()
        except trio.ClosedResourceError as error:
            errors.append(error)

    server = Server(handle)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.do_handshake)
        await server.serve_stream(stream)
    assert len(errors) == 1
    await theirs.aclose()


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("steps", range(12))
async def test_closed_by_another_task_while_a_stopped_server_receives_the_rest(
    steps: int, secure: bool, tls: Tls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trio_bytetalk._transport.EPOLL_AVAILABLE", False)
    ours, theirs = tcp()
    stream: trio.abc.Stream = ours
    peer: trio.abc.Stream = theirs
    if secure:
        stream = tls.at_server(ours)
        peer = tls.at_client(theirs)

    async def handle(connection: AnyConnection) -> None:
        assert await connection.receive() == b"first"
        await arrived.wait()
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def receive() -> None:
                with contextlib.suppress(trio.ClosedResourceError):
                    async for _ in connection:
                        pass

            server.stop(None)
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
            assert connection.local_address == address
            await connection.aclose()

    address = ours.socket.getsockname()
    arrived = trio.Event()
    server = Server(handle)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve_stream, stream)
        await peer.send_all(frame(b"first"))
        for _ in range(20):  # each is a record, and a read
            await peer.send_all(frame(bytes(1000)))
        arrived.set()
        assert await read_to_end(peer) == b""
        await trio.aclose_forcefully(peer)
    if isinstance(stream, trio.SSLStream):
        assert stream.transport_stream is ours


@pytest.mark.parametrize("how", ["stop", "use"])
@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("make", [memory, unix])
async def test_what_interrupts_receiving_the_rest_loses_none_of_it(
    make: Callable[[], Pair], secure: bool, how: str, tls: Tls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trio_bytetalk._transport.EPOLL_AVAILABLE", False)
    for steps in range(8):
        ours, theirs = make()
        stream: trio.abc.Stream = ours
        peer: trio.abc.Stream = theirs
        if secure:
            stream = tls.at_server(ours)
            peer = tls.at_client(theirs)
        received: list[bytes] = []
        connections: list[AnyConnection] = []
        arrived = trio.Event()

        async def handle(
            connection: AnyConnection,
            received: list[bytes] = received,
            connections: list[AnyConnection] = connections,
            arrived: trio.Event = arrived,
        ) -> None:
            connections.append(connection)
            await arrived.wait()
            received.extend([message async for message in connection])

        server = Server(handle)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.serve_stream, stream)
            for number in range(60):  # each is a record, and a read
                await peer.send_all(frame(b"%d" % number))
            await trio.testing.wait_all_tasks_blocked()
            server.stop(None)
            arrived.set()
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
            if how == "stop":
                server.stop(None)
            elif connections:
                connections[0].use(LengthPrefixed())
            assert await read_to_end(peer) == b""
            await trio.aclose_forcefully(peer)
        assert received == [b"%d" % number for number in range(60)]


@pytest.mark.parametrize("steps", range(6))
async def test_what_interrupts_the_rest_loses_none_of_it_though_nothing_can_be_sent(
    steps: int,
) -> None:
    received: list[bytes] = []
    arrived = trio.Event()

    async def handle(connection: AnyConnection) -> None:
        with pytest.raises(trio.BrokenResourceError):
            await send_on(connection)
        await arrived.wait()
        received.extend([message async for message in connection])

    ours, peer = memory()
    assert isinstance(peer, trio.StapledStream)
    server = Server(handle)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve_stream, ours)
        await peer.receive_stream.aclose()
        for number in range(100):
            await peer.send_all(frame(b"%d" % number))
            await trio.testing.wait_all_tasks_blocked()
        server.stop(None)
        arrived.set()
        for _ in range(steps):
            await trio.lowlevel.checkpoint()
        server.stop(None)
    assert received == [b"%d" % number for number in range(100)]
    await peer.aclose()


async def test_what_trickles_in_is_not_the_rest_that_has_arrived() -> None:
    received = 0

    class Trickling(FaultyStream):
        async def receive_some(self, max_bytes: int | None = None) -> bytes:
            nonlocal received
            for _ in range(30):
                await trio.lowlevel.checkpoint()
            received += 1
            return b"x"

    async def handle(connection: AnyConnection) -> None:
        server.stop(None)
        async for _ in connection:
            pass

    server = Server(handle)
    ours, peer = memory()
    await server.serve_stream(Trickling(ours))
    assert 0 < received < 20
    await peer.aclose()


@pytest.mark.parametrize("steps", range(6))
async def test_broken_while_a_stopped_server_receives_the_rest_it_is_closed_all_the_same(
    steps: int, tls: Tls, caplog: pytest.LogCaptureFixture
) -> None:
    ours, theirs = tcp()
    stream = tls.at_server(ours)
    peer = tls.at_client(theirs)
    arrived = trio.Event()

    async def handle(connection: AnyConnection) -> None:
        await arrived.wait()
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def notice_and_close() -> None:
                for _ in range(steps):
                    await trio.lowlevel.checkpoint()
                with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    await connection.send(b"x")
                    await connection.flush()
                await connection.aclose()

            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                async for _ in connection:
                    pass

    server = Server(handle)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve_stream, stream)
        for _ in range(60):
            await peer.send_all(frame(b"hello"))
        await trio.aclose_forcefully(theirs)
        await trio.testing.wait_all_tasks_blocked()
        server.stop(None)
        arrived.set()
    assert ours.socket.fileno() == -1
    assert [record for record in caplog.records if record.levelno > logging.WARNING] == []


async def test_cancelled_while_it_closes_and_another_task_receives_the_rest(tls: Tls) -> None:
    for steps in range(6):
        ours, theirs = tcp()
        stream = tls.at_server(ours)
        peer = tls.at_client(theirs)
        arrived = trio.Event()

        async def handle(
            connection: AnyConnection, arrived: trio.Event = arrived, steps: int = steps
        ) -> None:
            await arrived.wait()
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def break_and_close() -> None:
                    for _ in range(steps):
                        await trio.lowlevel.checkpoint()
                    connection._give_up(trio.BrokenResourceError("given up"))
                    await trio.aclose_forcefully(connection)

                with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    async for _ in connection:
                        pass

        server = Server(handle)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.serve_stream, stream)
            for _ in range(60):
                await peer.send_all(frame(b"hello"))
            await trio.testing.wait_all_tasks_blocked()
            server.stop(None)
            arrived.set()
        assert ours.socket.fileno() == -1
        await trio.aclose_forcefully(peer)


async def test_receiving_the_rest_is_cancelled_with_one_exception() -> None:
    seen: list[BaseException] = []

    async def handle(connection: AnyConnection) -> None:
        async def receive() -> None:
            try:
                await connection.receive()
            except BaseException as error:
                seen.append(error)
                raise

        server.stop(None)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            for _ in range(3):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()

    ours, peer = memory()
    server = Server(handle)
    await server.serve_stream(ours)
    await peer.aclose()
    (error,) = seen
    assert isinstance(error, trio.Cancelled)


async def test_what_ends_the_program_while_the_rest_is_received_does_end_it() -> None:
    class Exiting(FaultyStream):
        async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
            raise SystemExit(3)

    async def handle(connection: AnyConnection) -> None:
        server.stop(None)
        await connection.receive()

    ours, peer = memory()
    server = Server(handle)
    with pytest.RaisesGroup(SystemExit, flatten_subgroups=True):
        await server.serve_stream(Exiting(ours))
    await peer.aclose()


async def test_stopped_server_does_not_receive_for_ever_from_a_peer_that_never_pauses() -> None:
    async def handle(connection: AnyConnection) -> None:
        async for message in connection:
            assert message == bytes(1000)
            server.stop()

    server = Server(handle, close_timeout=0.001)
    for _ in range(5):
        ours, peer = socket.socketpair()

        def flood(peer: socket.socket = peer) -> None:
            with peer, contextlib.suppress(ConnectionError):
                while True:
                    peer.sendall(frame(bytes(1000)) * 1000)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(trio.to_thread.run_sync, flood))
            await server.serve_stream(trio.SocketStream(trio.socket.from_stdlib_socket(ours)))


async def test_what_arrives_after_the_stop_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # As if one byte only had been there when the system was asked, and the rest came behind it.
    monkeypatch.setattr("trio_bytetalk._epoll.Readiness.bytes_waiting", lambda _: 1)
    received: list[bytes] = []

    async def handle(connection: AnyConnection) -> None:
        await stopped.wait()
        received.extend([message async for message in connection])

    stopped = trio.Event()
    server = Server(handle)
    ours, peer = unix()
    await peer.send_all(frames([bytes(1000)] * 100))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve_stream, ours)
        await trio.testing.wait_all_tasks_blocked()
        server.stop()
        stopped.set()
        assert await read_to_end(peer) == b""
        await peer.aclose()
    assert 0 < len(received) < 100


@pytest.mark.parametrize("forcefully", [False, True])
async def test_closed_while_what_has_arrived_is_received(forcefully: bool) -> None:
    # The order in which Trio runs the two tasks is random.
    for _ in range(40):
        ours, peer = unix()
        stopped = trio.Event()

        async def handle(connection: AnyConnection, stopped: trio.Event = stopped) -> None:
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def close() -> None:
                    await stopped.wait()
                    if forcefully:
                        await trio.aclose_forcefully(connection)
                    else:
                        await connection.aclose()

                await stopped.wait()
                with pytest.raises((trio.ClosedResourceError, trio.EndOfChannel)):
                    await connection.receive()

        server = Server(handle)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.serve_stream, ours)
            await trio.testing.wait_all_tasks_blocked()
            server.stop()
            stopped.set()
        await peer.aclose()


# -- whose the stream is


async def test_closing_the_stream_behind_the_back_of_its_connection(connect: Connect) -> None:
    ours, _ = memory()
    connection = connect(ours)
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def receive() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await connection.receive()

        await trio.testing.wait_all_tasks_blocked()
        await ours.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await send_on(connection)
    await connection.aclose()
    assert connection.close_reason is CloseReason.CLOSED


async def test_socket_is_the_connections_and_closing_its_former_stream_touches_nothing(
    connect: Connect,
) -> None:
    ours, peer = unix()
    connection = connect(ours)
    await ours.aclose()
    # Were the descriptor free now, one of these would get its number.
    pipe = os.pipe()
    await connection.send(b"hello")
    assert await read_exactly(peer, 9) == frame(b"hello")
    await connection.aclose()
    other_pipe = os.pipe()
    for read_end, write_end in (pipe, other_pipe):
        os.write(write_end, b"mine")
        with pytest.raises(trio.ClosedResourceError):
            await connection.send(b"hello")
        with pytest.raises(trio.ClosedResourceError):
            await connection.receive()
        assert os.read(read_end, 100) == b"mine"
        os.close(read_end)
        os.close(write_end)
    await peer.aclose()


async def test_what_is_no_plain_socket_goes_through_trios_own_interface(connect: Connect) -> None:
    ours, peer = unix()
    left, right = connect(PlainStream(ours)), connect(PlainStream(peer))
    await left.send(b"hello")
    assert await right.receive() == b"hello"


async def test_without_epoll_sockets_go_through_trios_own_interface(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trio_bytetalk._transport.EPOLL_AVAILABLE", False)
    ours, peer = tcp()
    address = ours.socket.getsockname()
    left, right = connect(ours), connect(peer)
    messages = [bytes(size) for size in (0, 10, 100_000)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_each, left, messages)
        for message in messages:
            assert await right.receive() == message
    assert left.local_address == right.remote_address == address


async def test_addresses_are_the_sockets(connect: Connect) -> None:
    ours, peer = tcp()
    expected = (ours.socket.getsockname(), ours.socket.getpeername())
    connection = connect(ours)
    assert (connection.local_address, connection.remote_address) == expected
    await connection.aclose()
    assert (connection.local_address, connection.remote_address) == (None, expected[1])
    await peer.aclose()


async def test_under_tls_addresses_are_the_sockets(connect: Connect, tls: Tls) -> None:
    ours, peer = tcp()
    expected = (ours.socket.getsockname(), ours.socket.getpeername())
    connection = connect(tls.at_client(ours))
    assert (connection.local_address, connection.remote_address) == expected
    await peer.aclose()


async def test_what_is_no_socket_has_no_address(connect: Connect) -> None:
    connection = connect(memory()[0])
    assert connection.local_address is None
    assert connection.remote_address is None


async def test_socket_that_was_reset_before_it_was_used_has_no_address(connect: Connect) -> None:
    ours, peer = tcp()
    reset(peer)
    connection = connect(ours)
    assert connection.remote_address is None
    with pytest.raises(trio.BrokenResourceError):
        await connection.receive()


# -- fairness


async def test_reply_to_a_lone_message_costs_no_checkpoint(connect: Connect) -> None:
    ours, peer = unix()
    connection = connect(ours)
    for _ in range(100):
        await peer.send_all(frame(b"ping"))
        assert await connection.receive() == b"ping"
        with trio.testing.assert_no_checkpoints():
            await connection.send(b"pong")
    assert await read_exactly(peer, 800) == frame(b"pong") * 100
    await peer.aclose()


@attrs.define
class Turns:
    """Counts the turns that another task gets."""

    count: int = 0

    async def run(self) -> None:
        while True:
            self.count += 1
            await trio.lowlevel.checkpoint()


async def test_receiving_lets_others_run_at_least_once_for_each_chunk(
    connect: Connect,
) -> None:
    ours, peer = unix()
    connection = connect(ours)
    messages = [bytes(100)] * 80_000
    turns = Turns()
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def send() -> None:
            for at in range(0, len(messages), 1000):
                await peer.send_all(frames(messages[at : at + 1000]))

        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(turns.run)
        at_once = 0
        for _ in messages:
            before = turns.count
            await connection.receive()
            at_once = at_once + 1 if turns.count == before else 0
            # 256 KiB is the most that is read at once. But the scheduler's turns have no order: one
            # may end with us, and the next one begin with us.
            assert at_once <= 2 * (256 * 1024 // 104 + 1)
        nursery.cancel_scope.cancel()
    await peer.aclose()


async def test_receiving_task_notices_its_cancellation_within_the_chunk(
    pair: Pair, connect: Connect
) -> None:
    ours, peer = pair
    connection = connect(ours)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.send_all, frames([b"x"] * 100))
        received = 0
        with trio.CancelScope() as scope:
            async for _ in connection:
                received += 1
                scope.cancel()
        assert scope.cancelled_caught
        assert 1 <= received <= 100
        for _ in range(100 - received):
            await connection.receive()


@pytest.mark.parametrize("in_pieces", [False, True])
async def test_sending_lets_others_run(pair: Pair, connect: Connect, in_pieces: bool) -> None:
    left, right = (connect(stream, write_buffer_size=1000) for stream in pair)
    message: Any = b"x" * 16
    if in_pieces:
        left.writer = PiecesWriter()
        message = (b"\0\0\0\x10", message)
    turns = Turns()
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def receive() -> None:
            for _ in range(10_000):
                await right.receive()

        @nursery.start_soon
        async def send() -> None:
            at_once = 0
            for _ in range(10_000):
                before = turns.count
                await left.send(message)
                at_once = at_once + 1 if turns.count == before else 0
                assert at_once <= 100
            await left.flush()
            nursery.cancel_scope.cancel()

        nursery.start_soon(turns.run)


async def test_sending_task_notices_its_cancellation_soon(pair: Pair, connect: Connect) -> None:
    left = connect(pair[0], write_buffer_size=1000)
    with trio.CancelScope() as scope:
        scope.cancel()
        for _ in range(1000):
            await left.send(b"x" * 16)
    assert scope.cancelled_caught
    sent = left.statistics().messages_sent
    assert sent <= 100
    async with trio.open_nursery() as nursery:
        nursery.start_soon(left.aclose)
        assert await read_to_end(pair[1]) == frames([b"x" * 16] * sent)


# -- nothing is left


async def test_closed_connections_leave_no_task_and_no_descriptor(tight_pair: Pair) -> None:
    async def live(ours: Stream, peer: Stream) -> None:
        left = open_connection(ours, write_buffer_size=1000)
        right = open_connection(peer)
        async with left, right, trio.open_nursery() as nursery:
            nursery.start_soon(send_each, left, [bytes(5000)] * 5)
            nursery.start_soon(send_each, right, [b"hello"] * 5)
            for _ in range(5):
                await right.receive()
                await left.receive()
            fill(left)
            right_closes_first = trio.Event()

            @nursery.start_soon
            async def close() -> None:
                await trio.aclose_forcefully(right)
                right_closes_first.set()

            await right_closes_first.wait()

    await live(*tight_pair)
    await trio.testing.wait_all_tasks_blocked()
    descriptors = set(os.listdir("/proc/self/fd"))
    tasks = own_system_tasks()
    assert len(tasks) <= 3, "one each for readiness, flushing and timers"
    make = unix if isinstance(tight_pair[0], trio.SocketStream) else memory
    for _ in range(20):
        pair = make()
        await live(*pair)
    await trio.testing.wait_all_tasks_blocked()
    assert own_system_tasks() == tasks
    assert len(os.listdir("/proc/self/fd")) == len(descriptors)


async def test_run_that_ends_with_open_connections_ends_cleanly() -> None:
    kept: list[AnyConnection] = []

    async def leave_open() -> None:
        for pair in (memory(), unix()):
            connection = open_connection(pair[0], write_buffer_size=1000)
            kept.append(connection)
            await connection.send(bytes(1_000_000))
            with pytest.raises(trio.WouldBlock):
                connection.send_nowait(b"")
            kept.append(open_connection(pair[1]))
            await trio.lowlevel.checkpoint()

    await trio.to_thread.run_sync(trio.run, leave_open)
    for connection in kept:
        transport = connection._transport
        if hasattr(transport, "_socket"):
            transport._socket.close()


async def test_send_timeout_is_not_put_off_by_who_wakes_the_reader_up(
    connect: Connect, autojump_clock: trio.testing.MockClock
) -> None:
    ours, peer = tight_unix()
    connection = connect(ours, send_timeout=5)
    start = trio.current_time()
    fill(connection)
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def receive() -> None:
            with pytest.raises(SendTimeoutError):
                await connection.receive()
            nursery.cancel_scope.cancel()

        for _ in range(100):
            await trio.sleep(2)
            connection.reader = LengthPrefixed().reader()
    assert trio.current_time() == start + 5
    await peer.aclose()


# -- exactly when


async def test_every_sixteenth_write_lets_others_run(connect: Connect) -> None:
    """Each is a system call; a burst's replies, which share one, are counted by their bytes."""
    ours, peer = unix()
    connection = connect(ours)
    steps = Steps(trio.lowlevel.current_task())
    trio.lowlevel.add_instrument(steps)
    at_once = []
    sent = 0
    for _ in range(100):
        before = steps.count
        await connection.send(b"x")
        if steps.count != before:
            at_once.append(sent)
            sent = 0
        sent += 1
    trio.lowlevel.remove_instrument(steps)
    assert at_once == [16] * 6
    await peer.aclose()


@attrs.define(eq=False)
class Steps(trio.abc.Instrument):
    """Counts the steps of a task."""

    task: trio.lowlevel.Task
    count: int = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += task is self.task


async def test_queue_is_full_with_more_than_its_size_and_not_before(
    connect: Connect, autojump_clock: trio.testing.MockClock
) -> None:
    ours, _ = lockstep()
    connection = connect(ours, write_buffer_size=1000)
    connection.send_nowait(bytes(996))
    assert connection.statistics().bytes_queued == 1000
    connection.send_nowait(b"")
    with pytest.raises(trio.WouldBlock):
        connection.send_nowait(b"")


async def test_large_message_leaves_at_once(pair: Pair, connect: Connect) -> None:
    connection = connect(pair[0])
    for size in (5000, 10_000):
        await connection.send(bytes(size))
        assert await read_exactly(pair[1], 4 + size) == frame(bytes(size))


async def test_large_message_is_given_to_a_stream_in_one_piece(connect: Connect) -> None:
    ours, peer = memory()
    connection = connect(ours)
    with counted_writes(ours) as writes:
        await connection.send(bytes(5000))
        assert await read_exactly(peer, 5004) == frame(bytes(5000))
    assert writes.count == 1


async def test_message_behind_a_burst_is_not_held_back(pair: Pair, connect: Connect) -> None:
    ours, peer = pair
    connection = connect(ours)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.send_all, frames([b"1", b"2"]))
        for message in (b"1", b"2"):
            assert await connection.receive() == message
            await connection.send(message)
        assert await read_exactly(peer, 10) == frames([b"1", b"2"])
    await connection.send(b"3")
    assert await read_exactly(peer, 5) == frame(b"3")


async def test_large_replies_to_a_burst_leave_in_one_write(pair: Pair, connect: Connect) -> None:
    ours, peer = pair
    connection = connect(ours)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.send_all, frames([b"x"] * 5))
        assert await connection.receive() == b"x"
        with counted_writes(ours) as writes:
            await connection.send(bytes(5000))
            for _ in range(4):
                assert await connection.receive() == b"x"
                await connection.send(bytes(5000))
            nursery.start_soon(connection.flush)
            assert await read_exactly(peer, 5 * 5004) == frame(bytes(5000)) * 5
    assert writes.count == 1


async def test_full_queue_of_replies_is_written_before_it_is_said_to_be_full(
    connect: Connect,
) -> None:
    ours, peer = unix()
    connection = connect(ours, write_buffer_size=1000)
    await peer.send_all(frames([b"one", b"two"]))
    assert await connection.receive() == b"one"
    for _ in range(20):  # the system has room for all of them
        connection.send_nowait(bytes(500))
    await connection.flush()
    assert await read_exactly(peer, 20 * 504) == frame(bytes(500)) * 20
    await peer.aclose()


async def test_connection_that_is_found_broken_by_that_is_not_said_to_be_full(
    connect: Connect,
) -> None:
    ours, peer = tcp()
    connection = connect(ours, write_buffer_size=1000)
    await peer.send_all(frames([b"one", b"two"]))
    assert await connection.receive() == b"one"
    connection.send_nowait(bytes(2000))
    reset(peer)
    with pytest.raises(trio.BrokenResourceError):
        connection.send_nowait(b"x")


async def test_broadcasts_of_one_turn_leave_in_one_write_with_what_is_sent_then() -> None:
    ours, peer = unix()
    server = Server(echo)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve_stream, ours)
        await trio.testing.wait_all_tasks_blocked()
        (connection,) = server.connections
        with counted_writes(ours) as writes:
            server.broadcast(b"1")
            connection.send_nowait(b"2")
            await connection.send(b"3")
            assert connection.statistics().bytes_queued == 15
            server.broadcast(b"4")
            await trio.testing.wait_all_tasks_blocked()
            assert writes.count == 1
        assert await read_exactly(peer, 20) == frames([b"1", b"2", b"3", b"4"])
        await peer.aclose()


async def test_broadcasts_of_one_turn_are_written_when_they_come_to_much() -> None:
    ours, peer = unix()
    server = Server(echo, write_buffer_size=1000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve_stream, ours)
        await trio.testing.wait_all_tasks_blocked()
        (connection,) = server.connections
        for _ in range(100):
            assert server.broadcast(bytes(96)).queued == 1
            assert connection.statistics().bytes_queued <= 1100
        assert await read_exactly(peer, 10_000) == frame(bytes(96)) * 100
        await peer.aclose()


async def test_broadcast_passes_over_what_is_found_to_be_broken() -> None:
    ours, peer = tcp()

    async def handle(connection: AnyConnection) -> None:
        await stop.wait()

    stop = trio.Event()
    server = Server(handle)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve_stream, ours)
        await trio.testing.wait_all_tasks_blocked()
        (connection,) = server.connections
        reset(peer)
        with pytest.raises(trio.BrokenResourceError):
            await send_on(connection)
        result = server.broadcast(b"x")
        assert (result.queued, result.skipped) == (0, 0)
        stop.set()


# -- telling that a message was written, once more


@pytest.mark.parametrize("some_told", [False, True])
async def test_what_was_told_or_never_to_be_told_leaves_room(
    connect: Connect, some_told: bool
) -> None:
    ours, peer = memory()
    connection = connect(ours, write_buffer_size=100)
    for _ in range(100):
        await connection.send(bytes(96))
    told: list[bytes] = []
    go_on = trio.Event()

    async def on_written(event: MessageWritten) -> None:
        told.append(event.message)
        if event.message == b"slow":
            await go_on.wait()

    connection.message_written.connect(on_written)
    if some_told:
        for _ in range(100):
            await connection.send(bytes(96))
            await trio.testing.wait_all_tasks_blocked()
        assert len(told) == 100
    await connection.send(b"slow")
    for _ in range(10):
        await trio.testing.wait_all_tasks_blocked()
        connection.send_nowait(bytes(96))  # there is room for 1,600 bytes that are written
    go_on.set()
    await connection.aclose()
    assert len(await read_to_end(peer)) == (210 if some_told else 110) * 100 + 8


@pytest.mark.parametrize("make", [memory, unix])
async def test_who_waits_for_a_slow_hook_is_not_overtaken_when_nobody_listens_any_more(
    connect: Connect, make: Callable[[], Pair]
) -> None:
    ours, peer = make()
    connection = connect(ours, write_buffer_size=100)
    go_on = trio.Event()

    async def on_written(_event: MessageWritten) -> None:
        await go_on.wait()

    handle = connection.message_written.connect(on_written)
    with contextlib.suppress(trio.WouldBlock):
        while True:
            connection.send_nowait(bytes(46))
            await trio.testing.wait_all_tasks_blocked()
            await peer.send_all(frame(b"so that its turn is a new one"))
            await connection.receive()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.send, b"first")
        await trio.testing.wait_all_tasks_blocked()
        handle.disconnect()
        nursery.start_soon(connection.send, b"second")
        await trio.testing.wait_all_tasks_blocked()
        go_on.set()
    await connection.aclose()
    assert (await read_to_end(peer)).endswith(frames([bytes(46), b"first", b"second"]))
    await peer.aclose()


async def test_hook_that_closes_is_told_of_nothing_more_and_leaves_no_task(
    connect: Connect,
) -> None:
    ours, _ = memory()
    connection = connect(ours)
    told: list[bytes] = []

    async def on_written(event: MessageWritten) -> None:
        told.append(event.message)
        await trio.testing.wait_all_tasks_blocked()
        await connection.aclose()
        closed.set()

    closed = trio.Event()
    connection.message_written.connect(on_written)
    for message in (b"1", b"2", b"3"):
        await connection.send(message)
    await closed.wait()
    await trio.testing.wait_all_tasks_blocked()
    assert told == [b"1"]
    assert not [name for name in own_system_tasks() if "announcer" in name or "pump" in name]


# -- what it says, and what it holds


@attrs.define(eq=False)
class SilentlyBrokenStream(PlainStream):
    """A stream that breaks and does not say why."""

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        raise trio.BrokenResourceError

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self.receive_some()


async def test_reason_that_a_connection_broke_is_told_as_far_as_it_is_known(
    connect: Connect,
) -> None:
    connection = connect(SilentlyBrokenStream(memory()[0]))
    with pytest.raises(
        trio.BrokenResourceError, match=r"^the connection broke: BrokenResourceError\(\)$"
    ):
        await connection.receive()
    ours, peer = tcp()
    connection = connect(ours)
    reset(peer)
    with pytest.raises(
        trio.BrokenResourceError, match=r"^the connection broke: Connection reset by peer$"
    ):
        await connection.receive()


@pytest.mark.parametrize("make", [lockstep, tight_unix])
async def test_closed_connection_is_let_go_of_though_its_peer_took_nothing(
    make: Callable[[], Pair],
) -> None:
    ours, peer = make()
    connection = open_connection(ours, write_buffer_size=1000, send_timeout=1000)
    fill(connection)
    await trio.testing.wait_all_tasks_blocked()
    await trio.aclose_forcefully(connection)
    await peer.aclose()
    await trio.testing.wait_all_tasks_blocked()
    alive = weakref.ref(connection._transport)
    del connection
    gc.collect()
    assert alive() is None


def test_connection_may_be_closed_by_a_generator_when_the_run_is_over() -> None:
    """Trio ends the async generators that are left when its system tasks have ended already."""
    closed: list[object] = []
    generators: list[AsyncIterator[None]] = []

    async def lines(ours: Stream) -> AsyncIterator[None]:
        connection = open_connection(ours)
        try:
            await connection.send(bytes(300_000))  # more than a socket takes
            await trio.testing.wait_all_tasks_blocked()
            yield
        finally:
            with contextlib.suppress(trio.WouldBlock):
                connection.send_nowait(b"goodbye")
            try:
                await connection.aclose()
            finally:
                closed.append(connection.close_reason)

    async def main() -> None:
        for ours in (memory()[0], trio.SocketStream(trio.socket.from_stdlib_socket(here))):
            generator = lines(ours)
            generators.append(generator)
            await anext(generator)

    here, there = socket.socketpair()
    with there:
        trio.run(main)
    assert closed == [CloseReason.CANCELLED] * 2


# -- how often the system is asked


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many bytes each read of a socket brought; -1 for those in vain."""
    sizes: list[int] = []
    read = os.read

    def counting(fd: int, size: int) -> bytes:
        sizes.append(-1)
        data = read(fd, size)
        sizes[-1] = len(data)
        return data

    monkeypatch.setattr(os, "read", counting)
    return sizes


async def test_lone_messages_cost_one_read_each_also_behind_a_burst(
    connect: Connect, reads: list[int]
) -> None:
    ours, peer = unix()
    connection = connect(ours)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.send_all, frame(bytes(65_536 - 4)) + frame(b"x"))
        for _ in range(2):
            await connection.receive()

    async def receive() -> None:
        assert await connection.receive() == b"lone"

    for _ in range(3):
        reads.clear()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await trio.testing.wait_all_tasks_blocked()
            await peer.send_all(frame(b"lone"))
        assert reads == [8]
    await peer.aclose()


async def test_read_that_was_full_by_chance_is_followed_by_one_in_vain(
    connect: Connect, reads: list[int]
) -> None:
    ours, peer = unix()
    connection = connect(ours)
    await peer.send_all(frame(bytes(65_536 - 4)))
    assert await connection.receive() == bytes(65_536 - 4)
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def receive() -> None:
            assert await connection.receive() == b"x"

        await trio.testing.wait_all_tasks_blocked()
        assert reads == [65_536, -1]
        await peer.send_all(frame(b"x"))
    assert reads == [65_536, -1, 5]
    await peer.aclose()


async def test_what_is_more_than_one_read_is_read_on_at_once(
    connect: Connect, reads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trio_bytetalk._transport._READ_SIZE", 1000)
    ours, peer = unix()
    connection = connect(ours)
    await peer.send_all(frame(bytes(96)) * 25)
    assert await connection.receive() == bytes(96)
    assert reads == [1000, 1000, 500]
    assert connection.statistics().chunks_received == 3
    await peer.aclose()


async def test_offers_to_the_system_are_counted(connect: Connect) -> None:
    ours, peer = unix()
    connection = connect(ours)
    for message in (b"x", bytes(5000)):
        before = connection.statistics().flushes
        await connection.send(message)
        await connection.flush()
        await connection.flush()
        assert connection.statistics().flushes == before + 1
    await peer.send_all(frames([b"1", b"2"]))
    for _ in range(2):
        await connection.send(await connection.receive())
    await connection.flush()
    assert connection.statistics().flushes == 3
    await peer.aclose()


LONE: list[Any] = [b"y" * 700_000, [b"y" * 350_000] * 2, [b"y" * 3500] * 200]


@pytest.mark.parametrize("frame", LONE, ids=["bytes", "pieces", "many pieces"])
async def test_lone_frame_that_is_not_taken_at_once_fills_the_queue_and_is_written_on(
    frame: Any, connect: Connect
) -> None:
    ours, peer = unix()
    connection = connect(ours, codec=Raw(), write_buffer_size=1000)
    await connection.send(frame)
    statistics = connection.statistics()
    assert statistics.bytes_sent + statistics.bytes_queued == 700_000
    assert statistics.bytes_queued > 1000
    assert await read_exactly(peer, 700_000) == b"y" * 700_000
    await connection.send(frame)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.send, b"z")
        await trio.testing.wait_all_tasks_blocked()
        assert connection.statistics().messages_sent == 2
        assert await read_exactly(peer, 700_001) == b"y" * 700_000 + b"z"
    statistics = connection.statistics()
    assert (statistics.bytes_sent, statistics.bytes_queued) == (1_400_001, 0)
    await peer.aclose()


async def test_most_that_was_queued_is_remembered(tight_pair: Pair, connect: Connect) -> None:
    ours, peer = tight_pair
    connection = connect(ours, write_buffer_size=10**6)
    assert connection.statistics().most_bytes_queued == 0
    for size in (1000, 300_000, 2000):
        await connection.send(bytes(size))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.flush)
            assert await read_exactly(peer, 4 + size) == frame(bytes(size))
    assert connection.statistics().most_bytes_queued == 300_004


async def test_chunks_and_offers_of_a_stream_are_counted(connect: Connect) -> None:
    ours, peer = memory()
    connection = connect(ours)
    for number in range(1, 4):
        await peer.send_all(frame(b"x") * 3)
        for _ in range(3):
            await connection.send(await connection.receive())
        assert await read_exactly(peer, 15) == frame(b"x") * 3
        statistics = connection.statistics()
        assert (statistics.chunks_received, statistics.flushes) == (number, number)


async def test_offers_in_the_background_are_counted(connect: Connect) -> None:
    ours, peer = tight_unix()
    connection = connect(ours)
    await connection.send(bytes(50_000))
    await trio.testing.wait_all_tasks_blocked()
    before = connection.statistics().flushes
    wakes = 0
    with counted_writes(ours) as writes:
        while connection.statistics().bytes_queued:
            await peer.receive_some(10_000)
            wakes += 1
            await trio.testing.wait_all_tasks_blocked()
    assert 0 < connection.statistics().flushes - before <= min(wakes, writes.count)
    await peer.aclose()


# -- stopping, once more


async def test_end_that_came_with_the_last_bytes_before_the_stop_is_the_peers() -> None:
    reasons: list[object] = []
    received: list[bytes] = []
    ours, peer = unix()

    async def handle(connection: AnyConnection) -> None:
        received.append(await connection.receive())
        await peer.send_all(frames([b"2", b"3"]))
        await peer.send_eof()
        server.stop()
        received.extend([message async for message in connection])
        await connection.aclose()
        reasons.append(connection.close_reason)

    server = Server(handle)
    await peer.send_all(frame(b"1"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve_stream, ours)
        assert await read_to_end(peer) == b""
        await peer.aclose()
    assert received == [b"1", b"2", b"3"]
    assert reasons == [CloseReason.END_OF_STREAM]


async def test_receiving_while_the_server_stops_is_a_checkpoint() -> None:
    ours, peer = unix()
    ended: list[bool] = []

    async def handle(connection: AnyConnection) -> None:
        server.stop()
        with trio.testing.assert_checkpoints(), pytest.raises(trio.EndOfChannel):
            await connection.receive()
        ended.append(True)

    server = Server(handle)
    await server.serve_stream(ours)
    assert ended == [True]
    await peer.aclose()


async def test_large_reply_to_a_burst_leaves_in_one_write(connect: Connect) -> None:
    ours, peer = unix()
    connection = connect(ours)
    await peer.send_all(frames([b"1", b"2"]))
    assert await connection.receive() == b"1"
    with counted_writes(ours) as writes:
        await connection.send(bytes(5000))
        await connection.flush()
    assert writes.count == 1
    await peer.aclose()


async def test_closing_what_broke_with_a_full_queue_is_a_checkpoint(
    tight_pair: Pair, connect: Connect
) -> None:
    ours, peer = tight_pair
    connection = connect(ours, write_buffer_size=1000)
    fill(connection)
    await peer.aclose()
    with pytest.raises(trio.BrokenResourceError):
        await connection.flush()
    with trio.testing.assert_checkpoints():
        await connection.aclose()


@pytest.mark.skipif(not _epoll.EPOLL_AVAILABLE, reason="this system has no epoll")
async def test_descriptor_is_not_watched_any_more_when_it_is_closed_or_given_to_tls(
    connect: Connect, tls: Tls
) -> None:
    left, right = unix()
    fds = [
        stream.socket.fileno() for stream in (left, right) if isinstance(stream, trio.SocketStream)
    ]
    client, server = connect(left), connect(right)
    registered = _epoll._hub.get().registered
    assert set(fds) <= set(registered)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(server.start_tls, tls.server, server_side=True))
        await client.start_tls(tls.client, server_hostname="example.org")
    assert not set(fds) & set(registered)
    ours, peer = unix()
    assert isinstance(ours, trio.SocketStream)
    fd = ours.socket.fileno()
    connection = connect(ours)
    assert fd in registered
    await connection.aclose()
    assert fd not in registered
    await peer.aclose()


async def test_server_that_stops_does_not_wait_for_what_may_be_on_its_way(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def handle(connection: AnyConnection) -> None:
        server.stop()
        with pytest.raises(trio.EndOfChannel):
            await connection.receive()

    server = Server(handle)
    ours, _peer = memory()
    start = trio.current_time()
    await server.serve_stream(ours)
    assert trio.current_time() == start


@pytest.mark.parametrize("make", [memory, unix])
async def test_numbers_go_on_under_tls(
    make: Callable[[], Pair], connect: Connect, tls: Tls
) -> None:
    left, right = map(connect, make())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(left.send, bytes(5000))
        assert await right.receive() == bytes(5000)
        await right.send(b"x")
        assert await left.receive() == b"x"
    before = [attrs.astuple(each.statistics())[4:12] for each in (left, right)]
    assert all(any(numbers) for numbers in before)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(left.start_tls, tls.server, server_side=True))
        await right.start_tls(tls.client, server_hostname="example.org")
    assert [attrs.astuple(each.statistics())[4:12] for each in (left, right)] == before


@pytest.mark.parametrize("message", [b"hello", [b"hel", b"lo"]])
async def test_what_meets_a_socket_without_any_room_is_written_when_there_is_some(
    message: bytes | list[bytes], connect: Connect
) -> None:
    ours, peer = tight_unix()
    assert isinstance(ours, trio.SocketStream)
    before = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            before += os.write(ours.socket.fileno(), b"x")
    await connect(ours, codec=Raw()).send(message)
    assert await read_exactly(peer, before + 5) == b"x" * before + b"hello"
    await peer.aclose()


# -- who has heard that not all was sent


@pytest.mark.parametrize("method", ["send", "send_nowait", "flush"])
async def test_who_sends_or_flushes_hears_of_a_failure_and_not_the_log(
    method: str,
    tight_pair: Pair,
    connect: Connect,
    caplog: pytest.LogCaptureFixture,
    autojump_clock: trio.testing.MockClock,
) -> None:
    caplog.set_level(logging.INFO, logger="trio_bytetalk")
    connection = connect(tight_pair[0], send_timeout=2)

    async def hear() -> None:
        if method == "send":
            await connection.send(b"")
        elif method == "send_nowait":
            connection.send_nowait(b"")
        else:
            await connection.flush()

    await connection.send(bytes(200_000))
    await trio.sleep(3)
    with pytest.raises(SendTimeoutError):
        await hear()
    await connection.aclose()
    assert caplog.records == []


async def test_who_hears_only_of_the_end_that_was_sent_before_does_not_hear_of_a_failure(
    tight_pair: Pair,
    connect: Connect,
    caplog: pytest.LogCaptureFixture,
    autojump_clock: trio.testing.MockClock,
) -> None:
    connection = connect(tight_pair[0], send_timeout=2)
    await connection.send(bytes(200_000))
    with trio.move_on_after(1):
        await connection.send_eof()
    for _ in range(2):  # before it fails, and after it
        with pytest.raises(trio.ClosedResourceError, match="send_eof"):
            await connection.send(b"")
        await trio.sleep(2)
    await connection.aclose()
    (record,) = caplog.records
    assert fields_of(record)["event"] == "unsent"
    assert fields_of(record)["error"] == "SendTimeoutError"


async def test_who_flushes_and_hears_only_of_the_closing_does_not_hear_what_it_left_unsent(
    tight_pair: Pair,
    connect: Connect,
    caplog: pytest.LogCaptureFixture,
    autojump_clock: trio.testing.MockClock,
) -> None:
    connection = connect(tight_pair[0], close_timeout=2)
    await connection.send(bytes(200_000))
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def flush() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await connection.flush()

        await trio.testing.wait_all_tasks_blocked()
        await connection.aclose()
    (record,) = caplog.records
    assert fields_of(record)["event"] == "unsent"
    assert "error" not in fields_of(record)


# -- once more, to the byte and to the turn


async def test_message_that_lacks_its_last_byte_does_not_count_as_written(
    connect: Connect,
) -> None:
    ours, peer = lockstep()
    connection = connect(ours)
    async with connection.message_written.subscribe() as written:
        message = bytes(64 * 1024 - 3)  # whose frame's last byte is given to the stream by itself
        await connection.send(message)
        await read_exactly(peer, 64 * 1024)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.WouldBlock):
            written.receive_nowait()
        await read_exactly(peer, 1)
        assert await written.receive() == MessageWritten(connection, message)


async def test_queue_that_is_just_full_is_no_reason_to_disconnect_for_it() -> None:
    async def hook(_event: MessageWritten) -> None:
        await trio.sleep_forever()

    server = Server(echo, write_buffer_size=2000)
    server.message_written.connect(hook)
    ours, peer = lockstep()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve_stream, ours)
        await trio.testing.wait_all_tasks_blocked()
        (connection,) = server.connections
        for count in [500] * 7 + [96]:
            for _ in range(count):
                assert server.broadcast(b"").queued == 1
            await read_exactly(peer, 4 * count)
            await trio.testing.wait_all_tasks_blocked()
        for _ in range(500):
            assert server.broadcast(b"").queued == 1
        assert connection.statistics().bytes_queued == 2000
        # Now the listener is 4,096 messages behind. That is why there is no room for more.
        assert server.broadcast(b"", when_full="close").skipped == 1
        await trio.testing.wait_all_tasks_blocked()
        assert server.connections == {connection}
        nursery.cancel_scope.cancel()
    await peer.aclose()


async def test_stopping_ends_the_wait_of_who_has_received_nothing_yet(pair: Pair) -> None:
    reasons: list[object] = []
    server = Server(echo)

    @server.on_disconnect
    async def note(connection: AnyConnection) -> None:
        reasons.append(connection.close_reason)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve_stream, pair[0])
        await trio.testing.wait_all_tasks_blocked()
        server.stop(None)
    assert reasons == [CloseReason.SERVER_STOPPED]


@pytest.mark.parametrize("with_epoll", [False, True])
async def test_closing_after_a_send_timeout_does_not_wait_for_the_peer_to_finish(
    with_epoll: bool,
    connect: Connect,
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not with_epoll:
        monkeypatch.setattr("trio_bytetalk._transport.EPOLL_AVAILABLE", False)
    ours, peer = tight_unix()
    connection = connect(ours, send_timeout=2)
    await connection.send(bytes(200_000))
    await peer.send_all(b"unread")
    with pytest.raises(SendTimeoutError):
        await connection.flush()
    start = trio.current_time()
    await connection.aclose()
    assert trio.current_time() == start
    await peer.aclose()
