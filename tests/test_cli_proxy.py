"""The proxy: bytes pass both ways, untouched, and ends are passed on as what they are."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import attrs
import click
import pytest
import trio
import trio.testing
from conftest import Tls
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs import (
    KINDS,
    Pair,
    Stream,
    has_ipv6,
    lockstep,
    memory,
    read_exactly,
    read_to_end,
    tcp,
    tight_unix,
)
from pairs import reset as reset_pair

from trio_bytetalk._cli import proxy
from trio_bytetalk._cli.addresses import Address
from trio_bytetalk._cli.proxy import (
    accept_from,
    connect,
    forward,
    leads_to,
    listening,
    reset,
    secured,
)

WITH_IPV6 = pytest.mark.skipif(not has_ipv6(), reason="there is no IPv6 here")


async def ignore(_data: bytes) -> None:
    pass


@attrs.define(eq=False)
class Proxied:
    """A user and a server, with the proxy between them; what it sees, and how it ended."""

    user: Any
    client: trio.abc.Stream
    target: trio.abc.Stream
    server: Any
    requests: list[bytes] = attrs.field(factory=list)
    replies: list[bytes] = attrs.field(factory=list)
    outcome: Any = "not ended"
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)

    @classmethod
    def of(cls, left: Callable[[], Any], right: Callable[[], Any]) -> Proxied:
        return cls(*left(), *right())

    async def see_request(self, data: bytes) -> None:
        self.requests.append(data)

    async def see_reply(self, data: bytes) -> None:
        self.replies.append(data)

    async def run(self) -> None:
        with self.scope:
            self.outcome = await forward(self.client, self.target, self.see_request, self.see_reply)

    async def close(self) -> None:
        for stream in (self.user, self.client, self.target, self.server):
            await trio.aclose_forcefully(stream)


@contextlib.asynccontextmanager
async def proxied(
    left: Callable[[], Any] = memory, right: Callable[[], Any] = memory
) -> AsyncIterator[Proxied]:
    between = Proxied.of(left, right)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(between.run)
        yield between
    await between.close()


async def is_reset(stream: Stream) -> bool:
    """Whether what comes, if anything, ends with a reset."""
    with pytest.raises(trio.BrokenResourceError) as caught:
        await read_to_end(stream)
    return isinstance(caught.value.__cause__, ConnectionResetError)


# -- the bytes


@pytest.mark.parametrize("kind", KINDS)
@given(
    st.lists(st.binary(min_size=1, max_size=50), max_size=10),
    st.lists(st.binary(min_size=1, max_size=50), max_size=10),
)
@settings(max_examples=20)
def test_both_sides_get_exactly_the_bytes_and_the_end(
    kind: str, requests: list[bytes], replies: list[bytes]
) -> None:
    async def send(stream: Stream, pieces: list[bytes]) -> None:
        for piece in pieces:
            await stream.send_all(piece)
        await stream.send_eof()

    async def receive(stream: Stream, got: list[bytes]) -> None:
        got.append(await read_to_end(stream))

    async def main() -> None:
        heard: list[bytes] = []
        answered: list[bytes] = []
        async with proxied(KINDS[kind], KINDS[kind]) as between, trio.open_nursery() as nursery:
            nursery.start_soon(send, between.user, requests)
            nursery.start_soon(receive, between.server, heard)
            nursery.start_soon(send, between.server, replies)
            nursery.start_soon(receive, between.user, answered)
        assert heard == [b"".join(requests)]
        assert answered == [b"".join(replies)]
        assert between.outcome is None
        assert b"".join(between.requests) == heard[0]
        assert b"".join(between.replies) == answered[0]
        assert between.requests[-1] == between.replies[-1] == b""

    trio.run(main)


async def test_much_passes_through_small_buffers() -> None:
    data = os.urandom(3_000_000)
    async with proxied(tcp, tcp) as between, trio.open_nursery() as nursery:

        async def send() -> None:
            await between.user.send_all(data)
            await between.user.send_eof()

        nursery.start_soon(send)
        assert await read_to_end(between.server) == data
        await between.server.send_eof()


async def test_bytes_are_passed_on_before_they_are_looked_at() -> None:
    looking = trio.Event()

    async def look(_data: bytes) -> None:
        await looking.wait()

    user, client = memory()
    target, server = memory()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(forward, client, target, look, look)
        await user.send_all(b"request")
        assert await server.receive_some() == b"request"
        await server.send_all(b"reply")
        assert await user.receive_some() == b"reply"
        looking.set()
        await user.send_eof()
        await server.send_eof()


async def test_a_slow_target_slows_the_client(autojump_clock: object) -> None:
    async with proxied(lockstep, lockstep) as between:
        with trio.move_on_after(1) as scope:
            for _ in range(10):
                await between.user.send_all(bytes(proxy._READ_SIZE))
        assert scope.cancelled_caught
        assert between.requests == []  # and the first is still being sent
        between.scope.cancel()


async def test_no_more_is_read_at_once_than_that() -> None:
    async with proxied() as between:
        await between.user.send_all(bytes(10 * proxy._READ_SIZE))
        await between.user.send_eof()
        await between.server.send_eof()
    assert max(map(len, between.requests)) == proxy._READ_SIZE


# -- ends


@pytest.mark.parametrize("kind", KINDS)
async def test_a_half_close_of_the_client_is_passed_on_and_replies_still_come(kind: str) -> None:
    async with proxied(KINDS[kind], KINDS[kind]) as between:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(between.user.send_all, b"request")
            assert await read_exactly(between.server, 7) == b"request"
        await between.user.send_eof()
        assert await read_to_end(between.server) == b""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(between.server.send_all, b"reply")
            assert await read_exactly(between.user, 5) == b"reply"
        await between.server.send_eof()
        assert await read_to_end(between.user) == b""
    assert between.outcome is None


@pytest.mark.parametrize("kind", KINDS)
async def test_a_half_close_of_the_target_is_passed_on_and_requests_still_go(kind: str) -> None:
    async with proxied(KINDS[kind], KINDS[kind]) as between:
        await between.server.send_eof()
        assert await read_to_end(between.user) == b""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(between.user.send_all, b"request")
            assert await read_exactly(between.server, 7) == b"request"
        await between.user.send_eof()
        assert await read_to_end(between.server) == b""
    assert between.outcome is None


async def test_a_reset_by_the_client_is_a_reset_to_the_target() -> None:
    async with proxied(tcp, tcp) as between:
        await between.user.send_all(b"request")
        assert await between.server.receive_some() == b"request"
        reset_pair(between.user)
        assert await is_reset(between.server)
    assert between.outcome == "the client is gone: Connection reset by peer"


async def test_a_reset_by_the_target_is_a_reset_to_the_client() -> None:
    async with proxied(tcp, tcp) as between:
        await between.server.send_all(b"reply")
        assert await between.user.receive_some() == b"reply"
        reset_pair(between.server)
        assert await is_reset(between.user)
    assert between.outcome == "the target is gone: Connection reset by peer"


async def test_what_a_target_said_before_it_went_still_arrives() -> None:
    async with proxied(memory, memory) as between:
        await between.server.receive_stream.aclose()  # nothing can be sent to it any more
        await between.user.send_all(b"request")
        await trio.testing.wait_all_tasks_blocked()
        assert between.requests == [b"request"]  # seen, though it got no further
        await between.server.send_all(b"last words")
        assert await read_exactly(between.user, 10) == b"last words"
        assert between.outcome == "not ended"
        await between.server.send_eof()
    assert str(between.outcome).startswith("the target is gone: ")


async def test_what_broke_first_is_what_is_told() -> None:
    async with proxied(lockstep, memory) as between:
        await between.server.receive_stream.aclose()
        await between.user.send_all(b"request")
        await between.server.send_all(b"reply")
        await trio.testing.wait_all_tasks_blocked()
        await between.user.aclose()
    assert str(between.outcome).startswith("the target is gone: ")


async def test_a_target_that_goes_after_it_has_finished_is_no_end_in_order() -> None:
    async with proxied(memory, tcp) as between:
        await between.server.send_eof()
        assert await read_to_end(between.user) == b""
        reset_pair(between.server)
        while between.outcome == "not ended":
            with contextlib.suppress(trio.BrokenResourceError):
                await between.user.send_all(b"request")
    assert str(between.outcome).startswith("the target is gone: ")


async def test_a_client_that_left_while_replies_came_is_gone_to_the_target() -> None:
    async with proxied(tcp, tcp) as between:
        await between.user.send_all(b"request")
        assert await between.server.receive_some() == b"request"
        await between.user.aclose()  # in order, but there is no one to receive now
        assert await between.server.receive_some() == b""
        with contextlib.suppress(trio.BrokenResourceError):
            while between.outcome == "not ended":
                await between.server.send_all(b"reply")
    assert str(between.outcome).startswith("the client is gone: ")


@attrs.define(eq=False)
class Unfinishable(trio.abc.HalfCloseableStream):
    """A stream of which the end cannot be sent."""

    stream: trio.abc.HalfCloseableStream

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self.stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self.stream.receive_some(max_bytes)

    async def send_eof(self) -> None:
        raise trio.BrokenResourceError("no end")

    async def aclose(self) -> None:
        await self.stream.aclose()


async def test_a_half_close_that_cannot_be_passed_on_breaks_the_connection() -> None:
    target, server = memory()
    async with proxied(memory, lambda: (Unfinishable(target), server)) as between:
        await between.user.send_eof()
        await trio.testing.wait_all_tasks_blocked()
        await between.server.send_all(b"reply")
        assert await between.user.receive_some() == b"reply"
        await between.server.send_eof()
    assert between.outcome == "the target is gone: no end"


async def test_after_a_failure_the_other_end_is_none_in_order() -> None:
    """The replies could not be sent, so the client's half-close is not passed on as one."""
    async with proxied(memory, tcp) as between:
        await between.user.receive_stream.aclose()
        await between.server.send_all(b"reply")
        await trio.testing.wait_all_tasks_blocked()
        await between.user.send_all(b"request")
        assert await read_exactly(between.server, 7) == b"request"
        await between.user.send_eof()
        assert await is_reset(between.server)
    assert str(between.outcome).startswith("the client is gone: ")


async def test_cancelled_it_resets_both() -> None:
    async with proxied(tcp, tcp) as between:
        await between.user.send_all(b"request")
        assert await between.server.receive_some() == b"request"
        between.scope.cancel()
        assert await is_reset(between.user)
        assert await is_reset(between.server)
    assert between.outcome == "not ended"


async def test_reset_of_a_closed_stream_does_nothing() -> None:
    left, right = tcp()
    await left.aclose()
    await reset(left)
    await right.aclose()


# -- TLS, which cannot half-close


async def secure_pair(tls: Tls, raw: Callable[[], Pair] = memory) -> tuple[Any, Any]:
    """The two ends of a TLS connection, the server's first."""
    left, right = raw()
    server = tls.at_server(left)
    client = tls.at_client(right)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.do_handshake)
        nursery.start_soon(client.do_handshake)
    return server, client


@contextlib.asynccontextmanager
async def to_tls(
    tls: Tls, left: Callable[[], Pair] = memory, raw: Callable[[], Pair] = memory
) -> AsyncIterator[Proxied]:
    server, target = await secure_pair(tls, raw)
    async with proxied(left, lambda: (target, server)) as between:
        yield between


@contextlib.asynccontextmanager
async def from_tls(
    tls: Tls, right: Callable[[], Pair] = memory, raw: Callable[[], Pair] = memory
) -> AsyncIterator[Proxied]:
    client, user = await secure_pair(tls, raw)
    async with proxied(lambda: (user, client), right) as between:
        yield between


async def test_both_ways_through_tls(tls: Tls) -> None:
    async with to_tls(tls) as between:
        await between.user.send_all(b"request")
        assert await between.server.receive_some() == b"request"
        await between.server.send_all(b"reply")
        assert await between.user.receive_some() == b"reply"
        await between.server.aclose()
        assert await between.user.receive_some() == b""
        await between.user.send_eof()
    assert between.outcome is None


async def test_a_target_behind_tls_has_time_to_answer_after_the_client_has_finished(
    tls: Tls, autojump_clock: object
) -> None:
    async with to_tls(tls) as between:
        await between.user.send_eof()
        for _ in range(5):
            await trio.sleep(proxy._SILENCE - 1)
            await between.server.send_all(b"reply")
            assert await between.user.receive_some() == b"reply"
        began = trio.current_time()
        assert await between.server.receive_some() == b""  # the closing words
        assert proxy._SILENCE <= trio.current_time() - began <= 2 * proxy._SILENCE
    assert between.outcome is None
    assert between.requests == [b""]


async def test_a_client_that_is_slow_to_take_the_answer_is_no_silence(
    tls: Tls, autojump_clock: object
) -> None:
    reply = bytes(200_000)
    async with to_tls(tls, tight_unix) as between:
        await between.user.send_eof()
        await between.server.send_all(reply)
        await trio.sleep(10 * proxy._SILENCE)
        assert await read_to_end(between.user) == reply
    assert between.outcome is None


async def test_a_client_that_leaves_before_the_answer_is_not_waited_for(
    tls: Tls, autojump_clock: object
) -> None:
    async with to_tls(tls) as between:
        await between.user.send_eof()
        await between.user.receive_stream.aclose()
        await between.server.send_all(b"reply")
        began = trio.current_time()
        with pytest.raises(trio.BrokenResourceError):
            await between.server.receive_some()
        assert trio.current_time() == began
    assert str(between.outcome).startswith("the client is gone: ")


async def test_a_target_behind_tls_that_ends_meanwhile_ends_it_at_once(
    tls: Tls, autojump_clock: object
) -> None:
    async with to_tls(tls) as between:
        await between.user.send_eof()
        await between.server.aclose()
        began = trio.current_time()
        assert await between.user.receive_some() == b""
    assert trio.current_time() == began
    assert between.outcome is None


async def test_a_target_that_has_finished_is_the_end_for_a_client_behind_tls(
    tls: Tls, autojump_clock: object
) -> None:
    async with from_tls(tls) as between:
        await between.server.send_all(b"reply")
        await between.server.send_eof()
        assert await between.user.receive_some() == b"reply"
        assert await between.user.receive_some() == b""  # in order, with the closing words
    assert between.outcome is None


async def test_last_words_arrive_at_a_client_behind_tls_that_is_still_talking(tls: Tls) -> None:
    async with from_tls(tls, lockstep, tcp) as between:
        for _ in range(3):  # the proxy is not even done with the first
            await between.user.send_all(b"request")
        await trio.testing.wait_all_tasks_blocked()
        await between.server.send_all(b"reply")
        await between.server.send_eof()
        assert await read_exactly(between.user, 5) == b"reply"
        assert await between.user.receive_some() == b""
    assert between.outcome is None


async def test_an_end_without_the_closing_words_of_tls_is_an_end(tls: Tls) -> None:
    async with to_tls(tls) as between:
        await between.server.send_all(b"reply")
        await trio.aclose_forcefully(between.server)
        assert await read_to_end(between.user) == b"reply"
        await between.user.send_eof()
    assert between.outcome is None


async def test_a_reset_reaches_through_tls(tls: Tls) -> None:
    async with from_tls(tls, tcp, tcp) as between:
        reset_pair(between.server)
        assert await is_reset(between.user)


async def test_what_is_no_tls_breaks_the_connection(tls: Tls) -> None:
    async with to_tls(tls) as between:
        raw = between.server.transport_stream
        await raw.send_all(b"this is no TLS")
        with contextlib.suppress(trio.BrokenResourceError):
            assert await between.user.receive_some() == b""
    assert "SSL" in str(between.outcome)


# -- connecting and listening


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s"


def address_of(listener: trio.SocketListener) -> Address:
    name = listener.socket.getsockname()
    return Address(path=name) if isinstance(name, str) else Address(*name[:2])


@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_listening_and_connecting(kind: str, path: Path) -> None:
    address = Address("127.0.0.1") if kind == "tcp" else Address(path=os.fspath(path))
    async with listening(address) as (listener,):
        stream = await connect(address_of(listener), None, None)
        accepted = await listener.accept()
        await accepted.send_all(b"hello")
        assert await stream.receive_some() == b"hello"
        await stream.aclose()
        await accepted.aclose()
        with pytest.raises(click.ClickException, match=r"^cannot listen on .* in use \("):
            await listening(address_of(listener)).__aenter__()
    assert listener.socket.fileno() == -1
    assert not await trio.Path(path).exists()


async def test_without_a_host_it_is_this_machine() -> None:
    async with listening(Address()) as listeners:
        hosts = {listener.socket.getsockname()[0] for listener in listeners}
        assert hosts <= {"127.0.0.1", "::1"}  # and nobody else's
        for listener in listeners:
            port = listener.socket.getsockname()[1]
            with contextlib.suppress(OSError):  # "localhost" may be of the other family alone
                await (await connect(Address(port=port), None, None)).aclose()
                return
    raise AssertionError("on none of the addresses")


@pytest.mark.parametrize(
    ("listen", "target", "leads"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "localhost", True),
        ("127.0.0.1", None, True),
        ("127.0.0.1", "0.0.0.0", True),
        ("127.0.0.1", "127.0.0.2", False),
        ("127.0.0.1", "::1", False),
        ("0.0.0.0", "127.0.0.1", True),
        pytest.param(
            "0.0.0.0",
            "127.0.0.2",
            True,
            marks=pytest.mark.skipif(sys.platform != "linux", reason="this one is Linux's"),
        ),
        ("0.0.0.0", "0.0.0.0", True),
        ("0.0.0.0", "192.0.2.1", False),  # which is nobody's (RFC 5737)
        ("0.0.0.0", "no..name", False),
        # Whoever listens on all addresses of one family listens on none of the other's.
        ("0.0.0.0", "::1", False),
        pytest.param("::", "127.0.0.1", False, marks=WITH_IPV6),
        pytest.param("::", "::1", True, marks=WITH_IPV6),
        pytest.param("::", "::", True, marks=WITH_IPV6),
        # An address of IPv4 may be written as one of IPv6.
        ("127.0.0.1", "::ffff:127.0.0.1", True),
        ("127.0.0.1", "::ffff:127.0.0.2", False),
        ("0.0.0.0", "::ffff:127.0.0.1", True),
        ("0.0.0.0", "::ffff:0.0.0.0", True),
        pytest.param("::", "::ffff:127.0.0.1", False, marks=WITH_IPV6),
    ],
)
async def test_whether_a_target_is_the_proxy_itself(
    listen: str, target: str | None, leads: bool
) -> None:
    async with listening(Address(listen)) as listeners:
        port = listeners[0].socket.getsockname()[1]
        assert await leads_to(Address(target, port), listeners) == leads
        assert not await leads_to(Address(target, port - 1), listeners)
        assert not await leads_to(Address(path="/no/such/socket"), listeners)


async def test_whether_a_path_is_the_proxys_own(tmp_path: Path) -> None:
    path, link, other = (tmp_path / name for name in ("listen", "link", "other"))
    link.symlink_to(path)
    other.touch()
    async with listening(Address(path=str(path))) as listeners:
        assert await leads_to(Address(path=str(path)), listeners)
        assert await leads_to(Address(path=str(link)), listeners)
        assert not await leads_to(Address(path=str(other)), listeners)
        assert not await leads_to(Address(path=str(tmp_path / "nothing")), listeners)
        assert not await leads_to(Address(port=1), listeners)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        (Address("127.0.0.1", 1), "cannot connect to 127.0.0.1:1: Connection refused"),
        (Address(path="/nonexistent/s"), "cannot connect to unix:/nonexistent/s: No such file"),
        (Address("a..b", 1), "cannot connect to a..b:1: "),
    ],
)
async def test_no_connection(address: Address, words: str) -> None:
    with pytest.raises(OSError, match=words):
        await connect(address, None, None)


async def accept_tls(listener: trio.SocketListener, tls: Tls) -> None:
    stream = await secured(await listener.accept(), tls.server)
    with contextlib.suppress(trio.BrokenResourceError):
        await stream.send_all(b"hello")
    await stream.aclose()


async def test_connecting_with_tls(tls: Tls) -> None:
    async with listening(Address("127.0.0.1")) as (listener,), trio.open_nursery() as nursery:
        nursery.start_soon(accept_tls, listener, tls)
        stream = await connect(address_of(listener), tls.client, "example.org")
        assert await stream.receive_some() == b"hello"
        await stream.aclose()


async def test_the_name_to_be_checked_is_the_hosts_unless_there_is_another(tls: Tls) -> None:
    async with listening(Address("127.0.0.1")) as (listener,), trio.open_nursery() as nursery:

        async def accept() -> None:
            with pytest.raises(trio.BrokenResourceError):
                await accept_tls(listener, tls)

        nursery.start_soon(accept)
        with pytest.raises(trio.BrokenResourceError, match=r"not valid for '127\.0\.0\.1'"):
            await connect(address_of(listener), tls.client, None)


async def test_a_handshake_that_fails_or_is_cancelled_closes_the_stream(
    tls: Tls, autojump_clock: object
) -> None:
    left, right = memory()
    await right.send_all(b"GET / HTTP/1.1\r\n\r\n")
    with pytest.raises(trio.BrokenResourceError, match="handshake failed"):
        await secured(left, tls.server)
    with pytest.raises(trio.ClosedResourceError):
        await left.send_all(b"x")

    left, right = memory()
    with trio.move_on_after(1):
        await secured(left, tls.server)
    with pytest.raises(trio.ClosedResourceError):
        await left.send_all(b"x")

    left, right = memory()
    with pytest.raises(trio.BrokenResourceError, match="more than 10 seconds"):
        await secured(left, tls.server)


# -- accepting


@attrs.define(eq=False)
class Crowded(trio.abc.Listener[trio.SocketStream]):
    """What can be accepted, what goes wrong, or for how long nothing happens; then nothing more."""

    outcomes: list[trio.SocketStream | OSError | float]
    times: list[float] = attrs.field(factory=list)

    async def accept(self) -> trio.SocketStream:
        self.times.append(trio.current_time())
        if not self.outcomes:
            await trio.sleep_forever()
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, float):
            await trio.sleep(outcome)
            return await self.accept()
        if isinstance(outcome, OSError):
            raise outcome
        return outcome

    async def aclose(self) -> None:
        raise AssertionError("it is not the proxy's to close")


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
async def test_out_of_descriptors_it_waits_and_complains_once(
    number: int, autojump_clock: object
) -> None:
    stream, other = tcp()
    full = OSError(number, "full")
    listener = Crowded([full, full, full, stream, full, 0.8, full, 1.0, full])
    taken: list[trio.SocketStream] = []
    complaints: list[OSError] = []
    with trio.move_on_after(10):
        await accept_from(listener, taken.append, complaints.append)
    assert taken == [stream]
    assert complaints == [full, full]  # one for each time that it is over for a while
    assert [round(time - listener.times[0], 3) for time in listener.times] == [
        *(0, 0.1, 0.2, 0.3, 0.3),
        *(0.4, 1.2, 1.3, 2.3, 2.4),
    ]
    await stream.aclose()
    await other.aclose()


async def test_a_listener_that_fails_is_no_matter_of_waiting() -> None:
    taken: list[object] = []
    with pytest.raises(OSError, match="broken"):
        await accept_from(Crowded([OSError(errno.EINVAL, "broken")]), taken.append, taken.append)
