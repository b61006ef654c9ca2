"""Listening: addresses that cannot be listened on, shared ports, and the files of Unix sockets."""

from __future__ import annotations

import errno
import functools
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from names import Names, Sockets

from trio_bytetalk import (
    Connection,
    Server,
    open_tcp_connection,
    open_unix_connection,
)

LOCALHOST = "127.0.0.1"


async def echo(connection: Connection[bytes, bytes]) -> None:
    async for message in connection:
        await connection.send(message)


async def talk(connection: Connection[bytes, bytes]) -> None:
    await connection.send(b"hello")
    assert await connection.receive() == b"hello"


async def listen(nursery: trio.Nursery, *arguments: Any, **options: Any) -> list[Any]:
    """The addresses that a new server listens on in the background."""
    serve = functools.partial(Server(echo).serve_tcp, *arguments, **options)
    listeners: list[trio.SocketListener] = await nursery.start(serve)
    return [listener.socket.getsockname() for listener in listeners]


async def error_of(*arguments: Any, **options: Any) -> OSError:
    """What a server raises that cannot listen on TCP."""
    with pytest.raises(OSError, match=r"cannot listen on |reuse_port") as caught:
        await Server(echo).serve_tcp(*arguments, **options)
    return caught.value


async def unix_error_of(path: Path) -> OSError:
    with pytest.raises(OSError, match=re.escape(f"cannot listen on {os.fspath(path)!r}")) as caught:
        await Server(echo).serve_unix(path)
    return caught.value


# -- TCP


async def test_a_port_of_the_systems_choice_on_every_address(nursery: trio.Nursery) -> None:
    for reuse_port in (False, True):
        serve = functools.partial(Server(echo).serve_tcp, 0, reuse_port=reuse_port)
        listeners: list[trio.SocketListener] = await nursery.start(serve)
        addresses = [listener.socket.getsockname() for listener in listeners]
        assert {address[0] for address in addresses} - {"::"} == {"0.0.0.0"}
        for host, port, *_ in addresses:
            async with open_tcp_connection(host, port) as connection:
                await talk(connection)
        for listener in listeners:
            if listener.socket.family == socket.AF_INET6:  # each address has a listener of its own
                assert listener.socket.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1


@pytest.mark.parametrize("reuse_port", [False, True])
async def test_one_host_and_a_backlog(nursery: trio.Nursery, reuse_port: bool) -> None:
    ((host, port),) = await listen(nursery, 0, host=LOCALHOST, backlog=1, reuse_port=reuse_port)
    assert host == LOCALHOST
    async with open_tcp_connection(host, port) as connection:
        await talk(connection)


async def test_a_port_in_use(nursery: trio.Nursery) -> None:
    ((_, port),) = await listen(nursery, 0, host=LOCALHOST)
    for reuse_port in (False, True):
        error = await error_of(port, host=LOCALHOST, reuse_port=reuse_port)
        assert error.errno == errno.EADDRINUSE
        assert str(error) == (
            f"[Errno {errno.EADDRINUSE}] cannot listen on '127.0.0.1' port {port}: "
            f"{os.strerror(errno.EADDRINUSE)}"
        )


async def test_a_port_that_several_servers_share(nursery: trio.Nursery) -> None:
    ((_, port),) = await listen(nursery, 0, host=LOCALHOST, reuse_port=True)
    assert await listen(nursery, port, host=LOCALHOST, reuse_port=True) == [(LOCALHOST, port)]
    for _ in range(4):
        async with open_tcp_connection(LOCALHOST, port) as connection:
            await talk(connection)


async def test_a_shared_port_where_the_system_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "SO_REUSEPORT")
    error = await error_of(0, reuse_port=True)
    assert error.errno == errno.ENOTSUP
    assert "the setting is reuse_port" in str(error)


@pytest.mark.parametrize("reuse_port", [False, True])
async def test_a_port_that_needs_privileges(reuse_port: bool) -> None:
    # Whether this process has them, or the system wants them, does not matter so.
    Sockets(errno.EACCES, socket.AF_INET, socket.AF_INET6)
    error = await error_of(80, reuse_port=reuse_port)
    assert type(error) is PermissionError
    assert str(error) == "[Errno 13] cannot listen on port 80: Permission denied"


@pytest.mark.parametrize("reuse_port", [False, True])
async def test_a_system_without_ipv6(nursery: trio.Nursery, reuse_port: bool) -> None:
    Sockets(errno.EAFNOSUPPORT, socket.AF_INET6)
    ((host, port),) = await listen(nursery, 0, reuse_port=reuse_port)
    assert host == "0.0.0.0"
    async with open_tcp_connection(LOCALHOST, port) as connection:
        await talk(connection)
    error = await error_of(7, host="::1", reuse_port=reuse_port)
    assert error.errno == errno.EAFNOSUPPORT
    assert "cannot listen on '::1' port 7: Address family not supported" in str(error)


@pytest.mark.parametrize("reuse_port", [False, True])
async def test_one_address_of_several_cannot_be_listened_on(reuse_port: bool) -> None:
    Names(both=["127.0.0.1", "::1"])
    sockets = Sockets(errno.EMFILE, socket.AF_INET6)
    error = await error_of(0, host="both", reuse_port=reuse_port)
    assert error.errno == errno.EMFILE
    (first,) = sockets.made
    assert first.fileno() == -1


@pytest.mark.parametrize("reuse_port", [False, True])
async def test_a_host_that_does_not_resolve(reuse_port: bool) -> None:
    Names()
    error = await error_of(7, host="nowhere.example", reuse_port=reuse_port)
    assert type(error) is socket.gaierror
    assert error.errno == socket.EAI_NONAME
    assert str(error).endswith(
        "cannot listen on 'nowhere.example' port 7: Name or service not known"
    )


@pytest.mark.parametrize("reuse_port", [False, True])
async def test_a_host_that_cannot_be_a_name(reuse_port: bool) -> None:
    error = await error_of(7, host="two..dots", reuse_port=reuse_port)
    assert type(error) is socket.gaierror
    assert "cannot listen on 'two..dots' port 7: " in str(error)
    assert "label" in str(error)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"port": -1}, ValueError, "port must be 0 to 65535, not -1"),
        ({"port": 65536}, ValueError, "port must be 0 to 65535, not 65536"),
        ({"port": "80"}, TypeError, "port must be a whole number, not '80'"),
        ({"port": True}, TypeError, "port must be a whole number, not True"),
        ({"port": None}, TypeError, "port must be a whole number, not None"),
        ({"host": 5}, TypeError, "host must be a name or an address, not 5"),
        ({"backlog": 0}, ValueError, "backlog must be 1 or more, not 0"),
        ({"backlog": "all"}, TypeError, "backlog must be a whole number or None, not 'all'"),
        ({"backlog": True}, TypeError, "backlog must be a whole number or None, not True"),
    ],
)
async def test_a_wrong_argument_is_refused_by_name(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    for reuse_port in (False, True):
        with pytest.raises(error, match=message):
            await Server(echo).serve_tcp(**{"port": 0, **arguments}, reuse_port=reuse_port)


# -- Unix sockets


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "socket"


def file_number(path: Path) -> int | None:
    """What tells a file from another one of the same name; None if there is none."""
    try:
        return path.lstat().st_ino
    except FileNotFoundError:
        return None


async def test_a_unix_sockets_file_lives_as_long_as_the_server(path: Path) -> None:
    for name in (path, os.fspath(path)):
        async with trio.open_nursery() as nursery:
            await nursery.start(Server(echo).serve_unix, name)
            async with open_unix_connection(name) as connection:
                await talk(connection)
            assert file_number(path) is not None
            nursery.cancel_scope.cancel()
        assert file_number(path) is None


async def test_a_file_that_a_dead_server_left_behind_is_replaced(
    nursery: trio.Nursery, path: Path
) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(os.fspath(path))
    assert file_number(path) is not None
    await nursery.start(Server(echo).serve_unix, path)
    async with open_unix_connection(path) as connection:
        await talk(connection)


async def test_the_socket_of_a_live_server_is_left_alone(nursery: trio.Nursery, path: Path) -> None:
    await nursery.start(Server(echo).serve_unix, path)
    error = await unix_error_of(path)
    assert error.errno == errno.EADDRINUSE
    assert os.strerror(errno.EADDRINUSE) in str(error)
    async with open_unix_connection(path) as connection:
        await talk(connection)


def write(path: Path) -> None:
    path.write_text("dear diary")


@pytest.mark.parametrize("make", [write, Path.mkdir])
async def test_what_is_no_socket_is_left_alone(path: Path, make: Callable[[Path], object]) -> None:
    make(path)
    before = file_number(path)
    error = await unix_error_of(path)
    assert error.errno == errno.EADDRINUSE
    assert file_number(path) == before


async def test_a_socket_of_another_kind_is_left_alone(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(os.fspath(path))
        before = file_number(path)
        error = await unix_error_of(path)
        assert os.strerror(error.errno or 0) in str(error)
        assert file_number(path) == before


async def test_a_file_that_someone_else_has_put_in_our_sockets_place_is_left_alone(
    path: Path,
) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(Server(echo).serve_unix, path)
        os.unlink(path)
        write(path)
        nursery.cancel_scope.cancel()
    assert file_number(path) is not None


async def test_a_file_that_someone_else_has_removed_is_not_missed(path: Path) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(Server(echo).serve_unix, path)
        os.unlink(path)
        nursery.cancel_scope.cancel()
    assert file_number(path) is None


async def test_a_directory_that_does_not_exist(tmp_path: Path) -> None:
    error = await unix_error_of(tmp_path / "nowhere" / "socket")
    assert type(error) is FileNotFoundError
    assert os.strerror(errno.ENOENT) in str(error)


@pytest.mark.parametrize("path", ["", b""])
async def test_a_path_that_is_empty(path: Any) -> None:
    with pytest.raises(ValueError, match="path must be that of a socket, and it is empty"):
        await Server().serve_unix(path)


async def test_a_path_that_is_too_long_for_a_socket(tmp_path: Path) -> None:
    error = await unix_error_of(tmp_path / ("x" * 200))
    assert "too long" in str(error)


async def test_the_backlog_of_a_unix_socket(path: Path) -> None:
    def connect_all() -> int:
        """How many connections find room before one would have to wait."""
        sockets = [socket.socket(socket.AF_UNIX) for _ in range(20)]
        try:
            for number, each in enumerate(sockets):
                each.setblocking(False)
                try:
                    each.connect(os.fspath(path))
                except BlockingIOError:
                    return number
            return len(sockets)
        finally:
            for each in sockets:
                each.close()

    for backlog, room in ((1, range(1, 5)), (None, [20])):
        async with trio.open_nursery() as nursery:
            serve = functools.partial(Server(echo).serve_unix, path, backlog=backlog)
            await nursery.start(serve)
            assert connect_all() in room
            nursery.cancel_scope.cancel()


async def test_a_wrong_backlog_of_a_unix_socket(path: Path) -> None:
    mistake: Any = "all"
    with pytest.raises(TypeError, match="backlog must be a whole number or None"):
        await Server(echo).serve_unix(path, backlog=mistake)
    with pytest.raises(ValueError, match="backlog must be 1 or more"):
        await Server(echo).serve_unix(path, backlog=-1)
    assert file_number(path) is None
