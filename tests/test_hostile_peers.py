"""Peers that misbehave, each beside a well-behaved client that notices nothing of it.

The two tables, `RUDE` and `SLOW`, are what to read: who comes, how the server is set up, and how
that ends. Whoever it is, it costs little memory and one log record, which has no traceback, and
leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import random
import resource
import socket
import ssl
import struct
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from conftest import Tls
from pairs import frame, reset

from trio_bytetalk import (
    Codec,
    Connection,
    IdleTimeoutError,
    IncompleteMessageError,
    LengthPrefixed,
    Lines,
    MessageTimeoutError,
    MessageTooLargeError,
    QueueFullError,
    SendTimeoutError,
    Server,
    open_connection,
)

LOCALHOST = "127.0.0.1"

# What a peer may cost while it is there: a message of max_size (1 MiB), which may have to be joined
# from its pieces, or a queue of write_buffer_size (256 KiB), and what the test itself needs.
MEMORY = 4 * 2**20

AnyConnection = Connection[Any, Any]


async def echo(connection: AnyConnection) -> None:
    async for message in connection:
        await connection.send(message)


@attrs.define(eq=False)
class Site:
    """A server, and how to get there."""

    server: Server[Any, Any]
    tls: Tls | None  # whether and how it serves TLS
    address: Any = attrs.field(init=False)

    async def serve(self, nursery: trio.Nursery, path: Path | None) -> None:
        """On a Unix socket, if there is a path, or else TCP."""
        context = None if self.tls is None else self.tls.server
        if path is not None:
            self.address = os.fspath(path)
            serve = functools.partial(self.server.serve_unix, path, ssl_context=context)
        else:
            serve = functools.partial(self.server.serve_tcp, 0, host=LOCALHOST, ssl_context=context)
        (listener,) = await nursery.start(serve)
        self.address = listener.socket.getsockname()

    async def dial(self) -> trio.SocketStream:
        """Connect, and do no handshake."""
        if isinstance(self.address, str):
            return await trio.open_unix_socket(self.address)
        return await trio.open_tcp_stream(*self.address)

    async def dial_tls(self) -> trio.SSLStream[trio.SocketStream]:
        assert self.tls is not None
        stream = self.tls.at_client(await self.dial())
        await stream.do_handshake()
        return stream

    @contextlib.asynccontextmanager
    async def good_client(self) -> AsyncIterator[AnyConnection]:
        stream = await (self.dial() if self.tls is None else self.dial_tls())
        async with open_connection(stream, codec=self.server.codec) as connection:
            await talk(connection)
            yield connection


async def talk(connection: AnyConnection) -> None:
    """A round trip. Broadcasts may come in between."""
    message: Any = "hello" if isinstance(connection.writer, type(Lines().writer())) else b"hello"
    await connection.send(message)
    while await connection.receive() != message:
        pass


@attrs.define
class Talk:
    """The round trips that a well-behaved client makes, on and on."""

    connection: AnyConnection
    pause: float
    rounds: int = 0
    slowest: float = 0
    _more: trio.Event = attrs.field(factory=trio.Event)

    async def go_on(self) -> None:
        while True:
            began = trio.current_time()
            await talk(self.connection)
            self.slowest = max(self.slowest, trio.current_time() - began)
            self.rounds += 1
            self._more.set()
            self._more = trio.Event()
            await trio.sleep(self.pause)

    async def some_more(self) -> None:
        """Wait for a few round trips more."""
        target = self.rounds + 3
        while self.rounds < target:
            await self._more.wait()


# -- what they do


async def see_it_end(stream: trio.abc.ReceiveStream) -> None:
    """Read until the server has closed the connection, in order or by a reset."""
    with contextlib.suppress(trio.BrokenResourceError):
        while await stream.receive_some():
            pass


def says(data: bytes) -> Callable[[Site], Awaitable[None]]:
    """It sends this, and waits."""

    async def attack(site: Site) -> None:
        async with await site.dial() as stream:
            with contextlib.suppress(trio.BrokenResourceError):
                await stream.send_all(data)
            await see_it_end(stream)

    return attack


def goes_on(beginning: bytes, more: bytes, pause: float) -> Callable[[Site], Awaitable[None]]:
    """It sends the beginning, and then more and more of the rest, and reads nothing."""

    async def attack(site: Site) -> None:
        async with await site.dial() as stream:
            with contextlib.suppress(trio.BrokenResourceError):
                await stream.send_all(beginning)
                while True:
                    await stream.send_all(more)
                    await trio.sleep(pause)

    return attack


def tls_hello() -> bytes:
    """What a TLS client says first."""
    outgoing = ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(
        ssl.MemoryBIO(), outgoing, server_hostname="example.org"
    )
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


async def leaves_in_mid_frame(site: Site) -> None:
    async with await site.dial() as stream:
        await stream.send_all(frame(b"hello")[:-1])


async def resets_in_mid_frame(site: Site) -> None:
    stream = await site.dial()
    await stream.send_all(frame(b"hello")[:-1])
    ours = stream.socket.getsockname()
    while not any(
        one.remote_address == ours and one.statistics().bytes_undecoded
        for one in site.server.connections
    ):
        await trio.lowlevel.checkpoint()
    reset(stream)


async def resets_in_the_accept_queue(site: Site) -> None:
    # Without a checkpoint, so the server has not run in between.
    with socket.create_connection(site.address) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def resets_in_the_handshake(site: Site) -> None:
    stream = await site.dial()
    await stream.send_all(tls_hello())
    await stream.receive_some()
    reset(stream)


async def cuts_tls(site: Site) -> None:
    """It closes the TCP connection, and does not say within TLS that it has finished."""
    stream = await site.dial_tls()
    await stream.send_all(frame(b"the last word"))
    await stream.receive_some()
    await stream.transport_stream.aclose()


async def connects_only(site: Site) -> None:
    async with await site.dial() as stream:
        await see_it_end(stream)


async def never_reads(site: Site) -> None:
    """It sends and sends messages, each of which has an answer."""
    async with await site.dial() as stream:
        with contextlib.suppress(trio.BrokenResourceError):
            while True:
                await stream.send_all(frame(bytes(10_000)))
                check_queues(site.server, 10_000)


def hears_broadcasts(when_full: Any) -> Callable[[Site], Awaitable[None]]:
    """It never reads what it is sent, which is broadcasts."""

    async def attack(site: Site) -> None:
        async with await site.dial():
            while len(site.server.connections) < 2:
                await trio.lowlevel.checkpoint()
            while len(site.server.connections) > 1:
                site.server.broadcast(bytes(50_000), when_full=when_full)
                check_queues(site.server, 50_000)
                await trio.sleep(1)
        assert site.server.statistics().broadcasts_skipped >= 1

    return attack


def check_queues(server: Server[Any, Any], largest: int) -> None:
    """No more is queued for anybody than the settings allow, and one frame."""
    most = server.limits.write_buffer_size + 4 + largest
    assert all(one.statistics().bytes_queued <= most for one in server.connections)


# -- who they are


@attrs.frozen(kw_only=True)
class Peer:
    name: str
    does: Callable[[Site], Awaitable[None]]
    reason: type[Exception] | None  # None: there was no connection yet, only a handshake
    level: int
    record: str  # what the log record says, among other things
    codec: Codec[Any, Any] = attrs.field(factory=LengthPrefixed)
    limits: dict[str, Any] = attrs.field(factory=dict)
    tls: bool = False
    seconds: float = 0  # how long the server puts up with it at least, and not much longer


RUDE = [
    Peer(
        name="random bytes",
        does=says(random.Random(4).randbytes(100_000)),
        reason=MessageTooLargeError,
        level=logging.WARNING,
        record="max_size",
    ),
    Peer(
        name="an HTTP request",
        does=says(b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n"),
        reason=MessageTooLargeError,
        level=logging.WARNING,
        record="announced a message of 1195725856 bytes; max_size",
    ),
    Peer(
        name="a TLS hello at a plain port",
        does=says(tls_hello()),
        reason=MessageTooLargeError,
        level=logging.WARNING,
        record="max_size",
    ),
    Peer(
        name="no TLS hello at a TLS port",
        does=says(frame(b"hello")),
        tls=True,
        reason=None,
        level=logging.WARNING,
        record="the TLS handshake failed",
    ),
    Peer(
        name="an HTTP request at a TLS port",
        does=says(b"GET / HTTP/1.1\r\n\r\n"),
        tls=True,
        reason=None,
        level=logging.WARNING,
        record="the TLS handshake failed",
    ),
    Peer(
        name="a length of 4 GiB",
        does=says(b"\xff\xff\xff\xff"),
        reason=MessageTooLargeError,
        level=logging.WARNING,
        record="announced a message of 4294967295 bytes; max_size allows 1048576 bytes",
    ),
    Peer(
        name="an endless line",
        does=says(b"x" * 3 * 2**20),
        codec=Lines(),
        reason=MessageTooLargeError,
        level=logging.WARNING,
        record="bytes or more; max_size allows 1048576 bytes",
    ),
    Peer(
        name="the end in mid-frame",
        does=leaves_in_mid_frame,
        reason=IncompleteMessageError,
        level=logging.WARNING,
        record="in the middle of a message",
    ),
    Peer(
        name="a reset in mid-frame",
        does=resets_in_mid_frame,
        reason=trio.BrokenResourceError,
        level=logging.INFO,
        record="reset by peer",
    ),
    Peer(
        name="a reset in the accept queue",
        does=resets_in_the_accept_queue,
        reason=trio.BrokenResourceError,
        level=logging.INFO,
        record="reset by peer",
    ),
    Peer(
        name="a reset in the accept queue of a TLS port",
        does=resets_in_the_accept_queue,
        tls=True,
        reason=None,
        level=logging.WARNING,
        record="reset by peer",
    ),
    Peer(
        name="a reset in the handshake",
        does=resets_in_the_handshake,
        tls=True,
        reason=None,
        level=logging.WARNING,
        record="reset by peer",
    ),
    Peer(
        name="TLS that is cut off",
        does=cuts_tls,
        tls=True,
        reason=trio.BrokenResourceError,
        level=logging.INFO,
        record="EOF",
    ),
]

SLOW = [
    Peer(
        name="a byte every 100 ms",
        does=goes_on((2**20).to_bytes(4, "big"), b"x", 0.1),
        reason=MessageTimeoutError,
        level=logging.WARNING,
        record="message_timeout",
        seconds=60,
    ),
    Peer(
        name="a byte of a line every 100 ms",
        does=goes_on(b"", b"x", 0.1),
        codec=Lines(),
        reason=MessageTimeoutError,
        level=logging.WARNING,
        record="message_timeout",
        seconds=60,
    ),
    Peer(
        name="more and more after it was refused",
        does=goes_on(b"GET " + bytes(2**20), bytes(10_000), 0.1),
        reason=MessageTooLargeError,
        level=logging.WARNING,
        record="max_size",  # and then it is read for close_timeout, 5 seconds, or less
    ),
    Peer(
        name="nothing at all",
        does=connects_only,
        limits={"idle_timeout": 30},
        reason=IdleTimeoutError,
        level=logging.WARNING,
        record="idle_timeout",
        seconds=30,
    ),
    Peer(
        name="answers that are not read",
        does=never_reads,
        reason=SendTimeoutError,
        level=logging.WARNING,
        record="send_timeout",
        seconds=60,
    ),
    Peer(
        name="broadcasts that are not read, and skipped",
        does=hears_broadcasts("skip"),
        reason=SendTimeoutError,
        level=logging.WARNING,
        record="send_timeout",
        seconds=60,
    ),
    Peer(
        name="broadcasts that are not read, and end it",
        does=hears_broadcasts("close"),
        reason=QueueFullError,
        level=logging.WARNING,
        record="write_buffer_size and when_full",
    ),
    Peer(
        name="no handshake",
        does=connects_only,
        tls=True,
        reason=None,
        level=logging.WARNING,
        record="handshake_timeout",
        seconds=10,
    ),
    Peer(
        name="half a handshake",
        does=says(tls_hello()[:100]),
        tls=True,
        reason=None,
        level=logging.WARNING,
        record="handshake_timeout",
        seconds=10,
    ),
    Peer(
        name="a byte of a handshake every 100 ms",
        does=goes_on(tls_hello()[:5], b"x", 0.1),
        tls=True,
        reason=None,
        level=logging.WARNING,
        record="the TLS handshake",
        seconds=10,
    ),
]


# -- what comes of it


@pytest.fixture(autouse=True)
def _all_levels(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="trio_bytetalk")


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@contextlib.contextmanager
def little_memory() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MEMORY


async def check(
    peer: Peer,
    tls: Tls,
    caplog: pytest.LogCaptureFixture,
    path: Path | None,
    pause: float,
) -> None:
    """``peer`` comes to a server that has a well-behaved client, and all is as the table says."""
    server: Server[Any, Any] = Server(echo, codec=peer.codec, **peer.limits)
    site = Site(server, tls if peer.tls else None)
    async with trio.open_nursery() as nursery, server.client_disconnected.subscribe() as ends:
        await site.serve(nursery, path)
        async with site.good_client() as good, trio.open_nursery() as clients:
            talking = Talk(good, pause)
            clients.start_soon(talking.go_on)
            await talking.some_more()
            before = descriptors()
            began = trio.current_time()
            rounds = talking.rounds
            with little_memory():
                await peer.does(site)
                if peer.reason is not None:
                    ended = (await ends.receive()).connection
                    assert type(ended.close_reason) is peer.reason
                while not caplog.records:
                    await trio.lowlevel.checkpoint()
            if pause:  # in virtual time, by which a round trip takes none
                seconds = trio.current_time() - began
                assert peer.seconds <= seconds <= peer.seconds + 15  # while queues fill up
                assert talking.rounds - rounds >= peer.seconds - 1
                assert talking.slowest == 0
            await talking.some_more()
            while descriptors() != before:
                await trio.lowlevel.checkpoint()
            (theirs,) = server.connections
            assert theirs.close_reason is None
            clients.cancel_scope.cancel()
        server.stop()
    (record,) = caplog.records
    assert record.levelno == peer.level
    assert record.exc_info is None
    assert peer.record in record.getMessage()
    assert record.getMessage().isprintable()


@pytest.mark.parametrize("peer", RUDE, ids=lambda peer: peer.name)
async def test_rude_peer(peer: Peer, tls: Tls, caplog: pytest.LogCaptureFixture) -> None:
    await check(peer, tls, caplog, path=None, pause=0)


@pytest.mark.parametrize("peer", SLOW, ids=lambda peer: peer.name)
async def test_slow_peer(
    peer: Peer,
    tls: Tls,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    autojump_clock: trio.testing.MockClock,
) -> None:
    # Virtual time does not overtake what is sent through a Unix socket.
    await check(peer, tls, caplog, path=tmp_path / "s", pause=1)


# -- a thousand at once

CROWD = 1000

# What a TLS handshake may cost the server's process, buffers of the TLS library and the other end
# included.
HANDSHAKE_MEMORY = 200_000


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    needed = 2 * CROWD + 200
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        pytest.skip(f"this system gives a process {hard} descriptors, and {needed} are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def resident_memory() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


async def test_a_thousand_handshakes_that_never_end(
    tls: Tls,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    autojump_clock: trio.testing.MockClock,
    many_descriptors: None,
) -> None:
    site = Site(Server(echo), tls)
    hello = tls_hello()
    async with trio.open_nursery() as nursery:
        await site.serve(nursery, tmp_path / "s")
        async with site.good_client() as good:
            before = descriptors()
            memory = resident_memory()
            crowd = [await site.dial() for _ in range(CROWD)]
            for number, stream in enumerate(crowd):
                await stream.send_all(hello[: number % len(hello)])
            began = trio.current_time()
            await trio.testing.wait_all_tasks_blocked()
            assert descriptors() == before + 2 * CROWD
            assert resident_memory() - memory < CROWD * HANDSHAKE_MEMORY
            # Beside them all is well, for who is there and for who comes.
            await talk(good)
            async with site.good_client():
                assert len(site.server.connections) == 2
            assert trio.current_time() == began
            assert caplog.records == []
            for stream in crowd:
                await see_it_end(stream)
                await stream.aclose()
            assert trio.current_time() - began == site.server.limits.handshake_timeout
            await talk(good)
            while descriptors() != before:
                await trio.lowlevel.checkpoint()
        site.server.stop()
    assert len(caplog.records) == CROWD
    for record in caplog.records:
        assert record.levelno == logging.WARNING
        assert record.exc_info is None
        assert "handshake_timeout" in record.getMessage()
