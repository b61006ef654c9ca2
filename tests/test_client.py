"""The ``open_`` functions: connecting, and what comes of it when that fails."""

from __future__ import annotations

import errno
import functools
import os
import re
import socket
import ssl
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, assert_type

import attrs
import pytest
import trio
import trio.testing
import trustme
from names import Names, Sockets

from trio_bytetalk import (
    CloseReason,
    Connection,
    HandshakeTimeoutError,
    LengthPrefixed,
    Lines,
    MessageTimeoutError,
    Server,
    open_connection,
    open_tcp_connection,
    open_unix_connection,
)

LOCALHOST = "127.0.0.1"


class OopsError(Exception):
    """What the users' code of these tests raises."""


async def echo(connection: Connection[Any, Any]) -> None:
    async for message in connection:
        await connection.send(message)


async def listen(nursery: trio.Nursery, server: Server[Any, Any], **options: Any) -> int:
    """Have ``server`` serve TCP in the background; its port."""
    serve = functools.partial(server.serve_tcp, 0, host=LOCALHOST, **options)
    listeners: list[trio.SocketListener] = await nursery.start(serve)
    port: int = listeners[0].socket.getsockname()[1]
    return port


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "socket"


# -- connecting


async def test_tcp_and_unix_and_any_stream(nursery: trio.Nursery, path: Path) -> None:
    server = Server(echo)
    port = await listen(nursery, server)
    await nursery.start(server.serve_unix, path)
    ours, theirs = trio.testing.memory_stream_pair()
    nursery.start_soon(server.serve_stream, theirs)
    for opening in (
        open_tcp_connection(LOCALHOST, port),
        open_unix_connection(path),
        open_unix_connection(os.fspath(path)),
        open_connection(ours),
    ):
        async with opening as connection:
            await connection.send(b"hello")
            assert await connection.receive() == b"hello"
            assert connection.server is None
            assert connection.close_reason is None
        assert connection.close_reason is CloseReason.CLOSED


async def test_another_codec(nursery: trio.Nursery, path: Path) -> None:
    server = Server(echo, codec=Lines())
    port = await listen(nursery, server)
    await nursery.start(server.serve_unix, path)
    ours, theirs = trio.testing.memory_stream_pair()
    nursery.start_soon(server.serve_stream, theirs)
    for opening in (
        open_tcp_connection(LOCALHOST, port, codec=Lines()),
        open_unix_connection(path, codec=Lines()),
        open_connection(ours, codec=Lines()),
    ):
        async with opening as connection:
            await connection.send("hello")
            assert await connection.receive() == "hello"


async def test_limits_are_taken_to_heart(
    autojump_clock: trio.testing.MockClock, path: Path
) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(path))
        listener.listen()
        async with open_unix_connection(path, message_timeout=7) as connection:
            peer, _ = listener.accept()
            with peer:
                peer.send(b"\0\0")
                with pytest.raises(MessageTimeoutError):
                    await connection.receive()
                assert trio.current_time() == 7


@pytest.mark.parametrize("failure", [OopsError, KeyboardInterrupt, trio.BrokenResourceError])
async def test_an_exception_of_the_block_comes_out_as_it_is(
    nursery: trio.Nursery, path: Path, failure: type[BaseException]
) -> None:
    server = Server(echo)
    port = await listen(nursery, server)
    await nursery.start(server.serve_unix, path)
    ours, _theirs = trio.testing.memory_stream_pair()
    for opening in (
        open_tcp_connection(LOCALHOST, port),
        open_unix_connection(path),
        open_connection(ours),
    ):
        error = failure("as it is")
        with pytest.raises(failure) as caught:
            async with opening as connection:
                raise error
        assert caught.value is error
        assert connection.close_reason is CloseReason.CLOSED


async def test_a_cancelled_block_closes_the_connection(nursery: trio.Nursery) -> None:
    port = await listen(nursery, Server(echo))
    with trio.CancelScope() as scope:
        async with open_tcp_connection(LOCALHOST, port) as connection:
            scope.cancel()
            await connection.receive()
    assert scope.cancelled_caught
    assert connection.close_reason is CloseReason.CANCELLED


# -- no connection


def unused_port() -> int:
    with socket.create_server((LOCALHOST, 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


async def error_of(opening: AbstractAsyncContextManager[object]) -> OSError:
    with pytest.raises(OSError, match="cannot connect to ") as caught:
        async with opening:
            raise AssertionError
    return caught.value


async def test_a_refused_connection() -> None:
    port = unused_port()
    error = await error_of(open_tcp_connection(LOCALHOST, port))
    assert type(error) is ConnectionRefusedError
    assert str(error) == (
        f"[Errno {errno.ECONNREFUSED}] cannot connect to '127.0.0.1' port {port}: "
        f"{os.strerror(errno.ECONNREFUSED)}"
    )


async def test_several_addresses_and_one_reason() -> None:
    Names(twins=["127.0.0.1", "127.0.0.1"])
    error = await error_of(open_tcp_connection("twins", unused_port()))
    assert type(error) is ConnectionRefusedError
    assert str(error).count(os.strerror(errno.ECONNREFUSED)) == 1


async def test_several_addresses_and_as_many_reasons() -> None:
    Sockets(errno.EAFNOSUPPORT, socket.AF_INET6)
    Names(both=["::1", "127.0.0.1"])
    error = await error_of(open_tcp_connection("both", unused_port()))
    for number in (errno.EAFNOSUPPORT, errno.ECONNREFUSED):
        assert os.strerror(number) in str(error)


async def test_a_host_that_does_not_resolve() -> None:
    Names()
    error = await error_of(open_tcp_connection("nowhere.example", 7))
    assert type(error) is socket.gaierror
    assert error.errno == socket.EAI_NONAME
    assert str(error).endswith(
        "cannot connect to 'nowhere.example' port 7: Name or service not known"
    )


async def test_a_host_that_cannot_be_a_name() -> None:
    error = await error_of(open_tcp_connection("two..dots", 7))
    assert type(error) is socket.gaierror
    assert "cannot connect to 'two..dots' port 7: " in str(error)


async def test_a_unix_socket_that_is_not_there_or_not_listened_on(path: Path) -> None:
    error = await error_of(open_unix_connection(path))
    assert type(error) is FileNotFoundError
    assert f"cannot connect to {os.fspath(path)!r}: {os.strerror(errno.ENOENT)}" in str(error)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(os.fspath(path))
    error = await error_of(open_unix_connection(path))
    assert type(error) is ConnectionRefusedError


# -- TLS


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def server_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    return context


@pytest.fixture
def client_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


async def test_the_certificate_is_checked_for_the_host_or_the_name_that_is_given(
    nursery: trio.Nursery, server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    Names(localhost=[LOCALHOST], alias=[LOCALHOST])
    port = await listen(nursery, Server(echo), ssl_context=server_context)
    for host, server_hostname in (("localhost", None), ("alias", "localhost")):
        async with open_tcp_connection(
            host, port, ssl_context=client_context, server_hostname=server_hostname
        ) as connection:
            await connection.send(b"hello")
            assert await connection.receive() == b"hello"
            assert connection.remote_address == (LOCALHOST, port)
    for host, server_hostname in (("alias", None), ("localhost", "example.org")):
        with pytest.raises(trio.BrokenResourceError, match=r"handshake failed.*[Hh]ostname"):
            async with open_tcp_connection(
                host, port, ssl_context=client_context, server_hostname=server_hostname
            ):
                raise AssertionError


async def test_a_certificate_of_someone_else(
    nursery: trio.Nursery, server_context: ssl.SSLContext
) -> None:
    port = await listen(nursery, Server(echo), ssl_context=server_context)
    context = ssl.create_default_context()
    trustme.CA().configure_trust(context)
    with pytest.raises(trio.BrokenResourceError, match=r"handshake failed.*verify"):
        async with open_tcp_connection(
            LOCALHOST, port, ssl_context=context, server_hostname="localhost"
        ):
            raise AssertionError


async def test_a_client_without_name_checks_needs_no_name(
    nursery: trio.Nursery, path: Path, server_context: ssl.SSLContext, authority: trustme.CA
) -> None:
    context = ssl.create_default_context()
    context.check_hostname = False
    authority.configure_trust(context)
    serve = functools.partial(Server(echo).serve_unix, path, ssl_context=server_context)
    await nursery.start(serve)
    async with open_unix_connection(path, ssl_context=context) as connection:
        await connection.send(b"hello")
        assert await connection.receive() == b"hello"


async def test_a_server_that_does_not_answer_the_handshake(
    autojump_clock: trio.testing.MockClock, path: Path, client_context: ssl.SSLContext
) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(path))
        listener.listen()
        with pytest.raises(HandshakeTimeoutError, match="handshake_timeout"):
            async with open_unix_connection(
                path,
                ssl_context=client_context,
                server_hostname="localhost",
                handshake_timeout=7,
            ):
                raise AssertionError
        assert trio.current_time() == 7
        await check_dropped(listener)


async def test_a_client_that_is_cancelled_during_the_handshake(
    autojump_clock: trio.testing.MockClock, path: Path, client_context: ssl.SSLContext
) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(path))
        listener.listen()
        with trio.move_on_after(1) as scope:
            async with open_unix_connection(
                path, ssl_context=client_context, server_hostname="localhost"
            ):
                raise AssertionError
        assert scope.cancelled_caught
        await check_dropped(listener)


async def check_dropped(listener: socket.socket) -> None:
    """The client has begun a handshake, and then closed its connection."""
    peer, _ = listener.accept()
    async with trio.SocketStream(trio.socket.from_stdlib_socket(peer)) as stream:
        assert (await stream.receive_some())[:1] == b"\x16"
        assert await stream.receive_some() == b""


# -- settings and types


class NoReader(LengthPrefixed):
    """A codec whose own code fails."""

    def reader(self) -> Any:
        raise OopsError


async def test_a_codec_that_fails_closes_the_connection_that_was_made(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(path))
        listener.listen()
        with pytest.raises(OopsError):
            async with open_unix_connection(path, codec=NoReader()):
                raise AssertionError
        peer, _ = listener.accept()
        with peer:
            assert peer.recv(1) == b""


async def test_a_codec_that_fails_leaves_a_stream_to_its_owner() -> None:
    ours, theirs = trio.socket.socketpair()
    async with trio.SocketStream(ours) as stream, trio.SocketStream(theirs) as peer:
        with pytest.raises(OopsError):
            open_connection(stream, codec=NoReader())
        await stream.send_all(b"hello")
        assert await peer.receive_some() == b"hello"


def tcp(**settings: Any) -> object:
    return open_tcp_connection(**{"host": LOCALHOST, "port": 7, **settings})


def unix(**settings: Any) -> object:
    return open_unix_connection(**{"path": "socket", **settings})


def stream(**settings: Any) -> object:
    return open_connection(**{"stream": trio.testing.memory_stream_pair()[0], **settings})


@attrs.frozen
class Mistake:
    settings: dict[str, Any]
    error: type[Exception]
    message: str
    functions: tuple[Callable[..., object], ...] = (tcp, unix, stream)


MISTAKES = [
    Mistake({"codec": LengthPrefixed}, TypeError, "codec must be a Codec, not <class"),
    Mistake({"codec": "lines"}, TypeError, "codec must be a Codec, not 'lines'"),
    Mistake({"message_timeout": 0}, ValueError, "message_timeout must be more than 0"),
    Mistake({"send_timeout": "1"}, TypeError, "send_timeout must be a number"),
    Mistake({"idle_timeout": -1}, ValueError, "idle_timeout must be more than 0"),
    Mistake({"handshake_timeout": True}, TypeError, "handshake_timeout must be a number"),
    Mistake({"close_timeout": float("nan")}, ValueError, "close_timeout must be more than 0"),
    Mistake({"write_buffer_size": 0}, ValueError, "write_buffer_size must be 1 or more"),
    Mistake({"max_size": 5}, TypeError, "max_size"),
    Mistake({"stream": 5}, TypeError, "stream must be a trio.abc.Stream, not 5", (stream,)),
    Mistake({"port": "80"}, TypeError, "port must be a whole number, not '80'", (tcp,)),
    Mistake({"port": 65536}, ValueError, "port must be 0 to 65535, not 65536", (tcp,)),
    Mistake({"host": None}, TypeError, "host must be a name or an address, not None", (tcp,)),
    Mistake({"path": 5}, TypeError, "expected str, bytes or os.PathLike object, not int", (unix,)),
    Mistake(
        {"server_hostname": "localhost"},
        ValueError,
        "server_hostname is of use with TLS only",
        (tcp, unix),
    ),
    Mistake(
        {"ssl_context": "cert.pem"},
        TypeError,
        "ssl_context must be an ssl.SSLContext, not 'cert.pem'",
        (tcp, unix),
    ),
    Mistake(
        {"ssl_context": ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)},
        ValueError,
        "ssl_context is for the other side",
        (tcp, unix),
    ),
    Mistake(
        {"ssl_context": ssl.create_default_context()},
        ValueError,
        "server_hostname must be given",
        (unix,),
    ),
]


@pytest.mark.parametrize(
    ("function", "mistake"),
    [(function, mistake) for mistake in MISTAKES for function in mistake.functions],
    ids=lambda value: "-".join(value.settings) if isinstance(value, Mistake) else value.__name__,
)
def test_a_wrong_setting_is_refused_by_name_before_anything_is_opened(
    function: Callable[..., object], mistake: Mistake
) -> None:
    with pytest.raises(mistake.error, match=re.escape(mistake.message)):
        function(**mistake.settings)


async def test_the_codec_gives_the_types_of_the_messages() -> None:
    stream = trio.testing.memory_stream_pair()[0]
    assert_type(open_connection(stream), Connection[bytes, bytes])
    assert_type(open_connection(stream, codec=Lines()), Connection[str, str])
    assert_type(
        open_tcp_connection(LOCALHOST, 7),
        AbstractAsyncContextManager[Connection[bytes, bytes]],
    )
    assert_type(
        open_tcp_connection(LOCALHOST, 7, codec=Lines()),
        AbstractAsyncContextManager[Connection[str, str]],
    )
    assert_type(
        open_unix_connection("socket"), AbstractAsyncContextManager[Connection[bytes, bytes]]
    )
    assert_type(
        open_unix_connection("socket", codec=Lines()),
        AbstractAsyncContextManager[Connection[str, str]],
    )
