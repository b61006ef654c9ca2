"""Cancelling anything, anywhere: no message is lost, none comes twice, no frame is cut.

Each scenario runs again and again, and its task is cancelled once each time: the first time where
it first stops, the second time where it stops next, and so on, until it runs through.
"""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from cancelling import Canceller, Moment, cancelled_everywhere, own_tasks
from conftest import Tls
from pairs import Pair, frame, lockstep, memory, read_to_end, tight_unix, unix

from trio_bytetalk import (
    CloseReason,
    Connection,
    IdleTimeoutError,
    LengthPrefixed,
    Lines,
    MessageReceived,
    MessageWritten,
    Reader,
    ReceiveBuffer,
    _epoll,
    open_connection,
)

AnyConnection = Connection[Any, Any]


@attrs.frozen
class Kind:
    """A kind of streams; sockets are also waited for as if they were many."""

    make: Callable[[], Pair]
    in_a_crowd: bool = False

    def __str__(self) -> str:
        return self.make.__name__ + " in a crowd" * self.in_a_crowd


KINDS = [
    Kind(memory),
    Kind(lockstep),
    *(Kind(each, in_a_crowd) for each in (unix, tight_unix) for in_a_crowd in (False, True)),
]

OVER_TLS = [each for each in KINDS if each.make in (memory, tight_unix)]


@pytest.fixture(params=KINDS, ids=str)
def make(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Pair]:
    kind: Kind = request.param
    if kind.in_a_crowd:
        monkeypatch.setattr(_epoll, "_FEW", 0)
    return kind.make


# -- an echo server with bursts, congestion, listeners, and a protocol that changes

SWITCH = b"switch"


def conversation() -> tuple[list[bytes], bytes]:
    """Messages in turn binary and in lines, with a `SWITCH` in between; and the bytes that came.

    As few as do it: what is tested takes time in proportion to the square of their number.
    """
    noise = random.Random(4)
    messages: list[bytes] = []
    data = b""
    for framing in (frame, lambda message: message + b"\r\n", frame):
        sizes = noise.sample([0, 3, 30, 300, 3000], 5)
        part = [b"%d " % number + b"x" * size for number, size in enumerate(sizes)]
        part.append(SWITCH)
        messages += part
        data += b"".join(map(framing, part))
    return messages, data


def cut(data: bytes) -> Iterator[bytes]:
    """In chunks of all sizes: single bytes, and many messages at once."""
    noise = random.Random(5)
    at = 0
    while at < len(data):
        size = noise.choice([1, 2, 100, 500, 2000])
        yield data[at : at + size]
        at += size


async def converse(peer: trio.abc.Stream, data: bytes, received: list[bytes]) -> None:
    """Send ``data`` and read the replies, slowly, both in bits and pieces."""

    async def write() -> None:
        for chunk in cut(data):
            await peer.send_all(chunk)
        if isinstance(peer, trio.abc.HalfCloseableStream):  # TLS has no half-close
            await peer.send_eof()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        replies = b""
        for size in itertools.cycle([50, 1, 4000, 2000]):
            await trio.testing.wait_all_tasks_blocked()  # until there is no room for replies
            chunk = await peer.receive_some(size)
            if not chunk:
                break
            replies += chunk
    buffer = ReceiveBuffer()
    buffer.feed(replies)
    reader = LengthPrefixed().reader()
    while len(buffer):
        message = reader.decode(buffer)
        assert isinstance(message, bytes), "a frame was cut"
        received.append(message)


async def echo_with_all_its_troubles(
    pair: Pair,
    canceller: Canceller,
    messages: list[bytes],
    data: bytes,
    *,
    listening: bool,
    tls: Tls | None = None,
) -> None:
    ours, raw_peer = pair
    connection: AnyConnection = open_connection(ours, write_buffer_size=100)
    peer: trio.abc.Stream = raw_peer
    hooked: list[Any] = []
    heard: list[Any] = []
    written: list[Any] = []
    received: list[bytes] = []

    async def hook(event: MessageReceived) -> None:
        hooked.append(as_bytes(event.message))
        await trio.lowlevel.checkpoint()

    async def written_hook(event: MessageWritten) -> None:
        written.append(event.message)
        await trio.lowlevel.checkpoint()

    async def echo() -> None:
        readers: Iterator[Reader[Any]] = itertools.cycle(
            [Lines().reader(), LengthPrefixed().reader()]
        )
        reply: bytes | None = None
        echoed = 0
        while tls is None or echoed < len(messages):
            with canceller.scope():
                while tls is None or echoed < len(messages):
                    if reply is None:
                        reply = as_bytes(await connection.receive())
                        if reply == SWITCH:
                            connection.reader = next(readers)
                    await connection.send(reply)
                    reply = None
                    echoed += 1

    async with connection, trio.open_nursery() as nursery:
        if tls is not None:
            peer = tls.at_client(peer)
            nursery.start_soon(peer.do_handshake)
            await connection.start_tls(tls.server, server_side=True)
        if listening:
            connection.message_received.connect(hook)
            connection.message_written.connect(written_hook)
            events = connection.message_received.subscribe(buffer_size=1)

            @nursery.start_soon
            async def listen() -> None:
                async for event in events:
                    heard.append(as_bytes(event.message))
                    await trio.lowlevel.checkpoint()

        nursery.start_soon(converse, peer, data, received)
        with contextlib.suppress(trio.EndOfChannel):
            await echo()
        if tls is None:
            with canceller.scope():
                await connection.send_eof()
            await connection.send_eof()
        await connection.aclose()
    await peer.aclose()
    assert received == messages
    assert connection.statistics().messages_received == len(messages)
    assert connection.statistics().messages_sent == len(messages)
    if listening:
        assert heard == hooked == written == messages


def as_bytes(message: bytes | str) -> bytes:
    return message if isinstance(message, bytes) else message.encode()


@pytest.mark.parametrize("listening", [False, True])
async def test_echo_cancelled_anywhere_loses_and_doubles_nothing(
    make: Callable[[], Pair], moment: Moment, listening: bool
) -> None:
    messages, data = conversation()

    async def scenario(canceller: Canceller) -> None:
        await echo_with_all_its_troubles(make(), canceller, messages, data, listening=listening)

    assert await cancelled_everywhere(moment, scenario) > 10


@pytest.mark.parametrize("make", OVER_TLS, ids=str, indirect=True)
@pytest.mark.parametrize("listening", [False, True])
async def test_echo_over_tls_cancelled_anywhere_loses_and_doubles_nothing(
    make: Callable[[], Pair], moment: Moment, tls: Tls, listening: bool
) -> None:
    messages, data = conversation()

    async def scenario(canceller: Canceller) -> None:
        await echo_with_all_its_troubles(
            make(), canceller, messages, data, listening=listening, tls=tls
        )

    assert await cancelled_everywhere(moment, scenario) > 10


@attrs.define(eq=False)
class CancelNowAndThen(Canceller):
    """Cancels not once but again and again."""

    noise: random.Random = attrs.field(factory=random.Random, kw_only=True)

    def _count(self, task: trio.lowlevel.Task) -> None:
        super()._count(task)
        if self.step <= 0:
            self.step = self.noise.randint(1, 9)


@pytest.mark.parametrize("seed", range(10))
async def test_echo_cancelled_again_and_again_loses_and_doubles_nothing(
    make: Callable[[], Pair], moment: Moment, seed: int
) -> None:
    canceller = CancelNowAndThen(1, moment, noise=random.Random(seed))
    trio.lowlevel.add_instrument(canceller)
    await echo_with_all_its_troubles(make(), canceller, *conversation(), listening=seed % 2 == 1)
    assert canceller.fired


@pytest.mark.parametrize("make", OVER_TLS, ids=str, indirect=True)
@pytest.mark.parametrize("seed", range(4))
async def test_echo_over_tls_cancelled_again_and_again_loses_and_doubles_nothing(
    make: Callable[[], Pair], moment: Moment, tls: Tls, seed: int
) -> None:
    canceller = CancelNowAndThen(1, moment, noise=random.Random(seed))
    trio.lowlevel.add_instrument(canceller)
    await echo_with_all_its_troubles(
        make(), canceller, *conversation(), listening=seed % 2 == 1, tls=tls
    )
    assert canceller.fired


# -- closing and TLS: whatever is cancelled, nothing is left open


async def test_closing_cancelled_anywhere_closes(
    make: Callable[[], Pair], moment: Moment, autojump_clock: trio.testing.MockClock
) -> None:
    async def scenario(canceller: Canceller) -> None:
        ours, peer = make()
        connection: AnyConnection = open_connection(ours, write_buffer_size=1_000_000)
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def send() -> None:
                with contextlib.suppress(trio.BrokenResourceError):
                    await peer.send_all(frame(b"not read"))

            await trio.testing.wait_all_tasks_blocked()
            connection.send_nowait(bytes(500_000))
            nursery.start_soon(read_to_end, peer)
            with canceller.scope():
                await connection.aclose()
            assert connection.close_reason in (CloseReason.CLOSED, CloseReason.CANCELLED)
            with pytest.raises(trio.ClosedResourceError):
                await connection.send(b"")
            await connection.aclose()
            await trio.testing.wait_all_tasks_blocked()
            await peer.aclose()
            nursery.cancel_scope.cancel()
        assert "trio_bytetalk: pump" not in own_tasks()

    await cancelled_everywhere(moment, scenario)


@pytest.mark.parametrize(
    "make", [each for each in KINDS if each.make in (memory, unix)], ids=str, indirect=True
)
async def test_start_of_tls_cancelled_anywhere_can_be_closed(
    make: Callable[[], Pair], moment: Moment, tls: Tls, autojump_clock: trio.testing.MockClock
) -> None:
    async def scenario(canceller: Canceller) -> None:
        left, right = map(open_connection, make())

        async def serve() -> None:
            with contextlib.suppress(trio.BrokenResourceError):
                await right.start_tls(tls.server, server_side=True)
                with contextlib.suppress(trio.EndOfChannel):
                    while True:
                        await right.send(await right.receive())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            with canceller.scope():
                await left.start_tls(tls.client, server_hostname="example.org")
                await left.send(b"hello")
                assert await left.receive() == b"hello"
            await left.aclose()
        await right.aclose()
        assert "trio_bytetalk: pump" not in own_tasks()

    assert await cancelled_everywhere(moment, scenario) > 3


# -- a timeout and a cancellation at the same moment


@pytest.mark.usefixtures("company")
async def test_cancelled_at_the_moment_of_a_timeout_it_did_not_time_out(
    autojump_clock: trio.testing.MockClock,
) -> None:
    # In which order the two are noticed is random.
    for _ in range(20):
        ours, peer = unix()
        async with open_connection(ours, idle_timeout=10) as connection:
            with trio.move_on_after(10) as scope:
                with contextlib.suppress(IdleTimeoutError):
                    await connection.receive()
            if scope.cancelled_caught:
                await peer.aclose()
                with pytest.raises(trio.EndOfChannel):
                    await connection.receive()
        await peer.aclose()
