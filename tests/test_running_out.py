"""Running out: of descriptors, of places for connections. Who waits is served as soon as can be.

The limit of descriptors is the real one, lowered for the moment. Time is virtual, and the sockets
are Unix sockets, which it does not overtake.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from conftest import Tls
from pairs import frame, reset

from trio_bytetalk import Connection, Server, _epoll, open_connection, open_unix_connection

LOCALHOST = "127.0.0.1"

BytesConnection = Connection[bytes, bytes]


async def echo(connection: BytesConnection) -> None:
    async for message in connection:
        await connection.send(message)


async def talk(connection: BytesConnection) -> None:
    await connection.send(b"hello")
    assert await connection.receive() == b"hello"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s"


@pytest.fixture(autouse=True)
def _all_levels(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="trio_bytetalk")


def levels(caplog: pytest.LogCaptureFixture) -> list[int]:
    assert not [record for record in caplog.records if record.exc_info]
    return [record.levelno for record in caplog.records]


# -- descriptors


@contextlib.contextmanager
def room_for(count: int) -> Iterator[None]:
    """The process gets ``count`` more descriptors, and then none."""
    lowest = [os.dup(0) for _ in range(count + 1)]  # those that will be given out next
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest[-1], before[1]))
    for fd in lowest:
        os.close(fd)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@attrs.define
class Crowd:
    """Clients that have their sockets already, and connect when there are no more to be had."""

    path: Path
    sockets: list[socket.socket]

    async def come(self) -> None:
        for one in self.sockets:
            one.connect(os.fspath(self.path))
            one.send(frame(b"hello"))
            one.setblocking(False)
        await trio.sleep(5)  # many times as long as the listener waits between two attempts

    def served(self) -> list[socket.socket]:
        """Those who have their answer."""
        return [one for one in self.sockets if _has_arrived(one)]


def _has_arrived(one: socket.socket) -> bool:
    with contextlib.suppress(BlockingIOError):
        return one.recv(100, socket.MSG_PEEK) != b""
    return False


@pytest.fixture
def crowd(path: Path) -> Iterator[Crowd]:
    with contextlib.ExitStack() as stack:
        yield Crowd(path, [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(8)])


async def test_at_the_descriptor_limit_the_listener_waits_and_says_so_once(
    autojump_clock: trio.testing.MockClock,
    nursery: trio.Nursery,
    company: None,
    crowd: Crowd,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = Server(echo)
    await nursery.start(server.serve_unix, crowd.path)
    async with open_unix_connection(crowd.path) as good:
        await talk(good)
        with room_for(3):
            await crowd.come()
            for gone in range(6):
                # Three are served, the others wait in the backlog, and the first is not disturbed.
                assert len(server.connections) == 1 + min(3, 8 - gone)
                assert crowd.served() == crowd.sockets[gone : gone + 3]
                began = trio.current_time()
                await talk(good)
                assert trio.current_time() == began  # virtual time
                assert levels(caplog) == [logging.ERROR]
                # One leaves; its descriptor is kept, so the server's is all that gets free.
                crowd.sockets[gone].recv(100)
                crowd.sockets[gone].shutdown(socket.SHUT_RDWR)
                await trio.sleep(1)
        assert os.strerror(errno.EMFILE) in caplog.text
        # A while later, it is said that there is room again.
        await trio.sleep(2)
        assert levels(caplog) == [logging.ERROR, logging.INFO]
        async with open_unix_connection(crowd.path) as late:
            await talk(late)
    assert server.statistics().connections_total == 1 + 8 + 1


async def test_a_connection_for_whose_epoll_there_is_no_descriptor_is_served_without(
    autojump_clock: trio.testing.MockClock,
    nursery: trio.Nursery,
    monkeypatch: pytest.MonkeyPatch,
    crowd: Crowd,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(_epoll, "_FEW", 0)
    server = Server(echo)
    await nursery.start(server.serve_unix, crowd.path)
    with room_for(2):
        await crowd.come()
        assert crowd.served() == crowd.sockets[:2]
    await trio.sleep(1)
    assert crowd.served() == crowd.sockets
    for one in crowd.sockets:  # those with an epoll, and those without
        assert one.recv(100) == frame(b"hello")
        one.send(frame(b"again"))
    await trio.testing.wait_all_tasks_blocked()
    assert crowd.served() == crowd.sockets
    await trio.sleep(1)
    assert levels(caplog) == [logging.ERROR, logging.INFO]


async def test_tls_at_the_descriptor_limit(
    autojump_clock: trio.testing.MockClock,
    nursery: trio.Nursery,
    crowd: Crowd,
    tls: Tls,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = Server(echo)
    await nursery.start(functools.partial(server.serve_unix, crowd.path, ssl_context=tls.server))
    sockets = [trio.socket.from_stdlib_socket(one) for one in crowd.sockets]
    served = 0

    async def client(number: int) -> None:
        nonlocal served
        await sockets[number].connect(os.fspath(crowd.path))
        stream = tls.at_client(trio.SocketStream(sockets[number]))
        await stream.do_handshake()
        async with open_connection(stream) as connection:
            await talk(connection)
            served += 1
            await trio.sleep(60)

    with room_for(2):
        async with trio.open_nursery() as clients:
            for number in range(len(sockets)):
                clients.start_soon(client, number)
            await trio.sleep(30)
            assert served == 2
            assert levels(caplog) == [logging.ERROR]
    assert served == len(sockets)
    assert levels(caplog) == [logging.ERROR, logging.INFO]


async def test_a_client_without_a_descriptor_is_told_so(path: Path, nursery: trio.Nursery) -> None:
    await nursery.start(Server(echo).serve_unix, path)
    with room_for(0), pytest.raises(OSError, match=r"cannot connect to .*s': Too many open files"):
        async with open_unix_connection(path):
            raise AssertionError
    async with open_unix_connection(path) as connection:
        await talk(connection)


# -- what accept() fails with where one connection is concerned, and not the listener


@attrs.define
class Failing:
    """A listening socket whose accept() fails before it succeeds; otherwise it is the real one."""

    socket: trio.socket.SocketType
    errors: list[int]

    async def accept(self) -> Any:
        await trio.lowlevel.checkpoint()
        if self.errors:
            number = self.errors.pop()
            raise OSError(number, os.strerror(number))
        return await self.socket.accept()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.socket, name)


async def test_errors_of_connections_that_are_gone_before_they_are_accepted_end_nothing(
    nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    # accept(2), "Error handling"; and EPERM, of a firewall.
    errors = [
        errno.ECONNABORTED,
        errno.EPERM,
        errno.ENETDOWN,
        errno.EPROTO,
        errno.ENOPROTOOPT,
        errno.EHOSTDOWN,
        errno.ENONET,
        errno.EHOSTUNREACH,
        errno.EOPNOTSUPP,
        errno.ENETUNREACH,
    ]
    listeners = await trio.open_tcp_listeners(0, host=LOCALHOST)
    address = listeners[0].socket.getsockname()
    failing: Any = Failing(listeners[0].socket, errors)
    listeners[0].socket = failing
    await nursery.start(Server(echo).serve_listeners, listeners)
    async with open_connection(await trio.open_tcp_stream(*address)) as connection:
        await talk(connection)
    assert errors == []
    assert levels(caplog) == []


# -- places


async def test_the_limit_of_connections_is_exact_however_they_end(nursery: trio.Nursery) -> None:
    most = served = 0

    async def counting_echo(connection: BytesConnection) -> None:
        nonlocal most, served
        most = max(most, len(server.connections))
        async for message in connection:
            served += 1
            await connection.send(message)

    server = Server(counting_echo, max_connections=3)
    listeners = await nursery.start(functools.partial(server.serve_tcp, 0, host=LOCALHOST))
    address = listeners[0].socket.getsockname()

    async def client(number: int) -> None:
        stream = await trio.open_tcp_stream(*address)
        if number % 4 == 0:
            reset(stream)  # still in the backlog, most of these
            return
        await stream.send_all(frame(b"hello"))
        assert await stream.receive_some() == frame(b"hello")
        if number % 4 == 1:
            reset(stream)
        elif number % 4 == 2:
            await stream.send_all(b"GET ")
            with contextlib.suppress(trio.BrokenResourceError):
                assert await stream.receive_some() == b""
            await stream.aclose()
        else:
            await stream.aclose()

    async with trio.open_nursery() as clients:
        for number in range(100):
            clients.start_soon(client, number)
    assert most == 3
    assert served == 75


async def test_the_next_one_is_served_as_soon_as_one_leaves(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, crowd: Crowd
) -> None:
    server = Server(echo, max_connections=3)
    await nursery.start(server.serve_unix, crowd.path)
    await crowd.come()
    for gone in range(5):
        assert crowd.served() == crowd.sockets[gone : gone + 3]
        assert len(server.connections) == 3
        crowd.sockets[gone].recv(100)
        crowd.sockets[gone].shutdown(socket.SHUT_RDWR)
        began = trio.current_time()
        await trio.testing.wait_all_tasks_blocked()
        assert trio.current_time() == began  # virtual time
    assert server.statistics().connections_total == 8
