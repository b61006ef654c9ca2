"""Opening connections as a client."""

from __future__ import annotations

import contextlib
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Unpack, cast, overload

import trio

from ._codec import Codec, ReceiveT, SendT
from ._connection import Connection, check_ssl_context, handshake, wrap_tls
from ._length_prefixed import LengthPrefixed
from ._limits import LimitOptions, Limits
from ._listeners import check_host, check_port, renamed

# Each function comes twice for the type checker: without a codec, messages are bytes.


@overload
def open_connection(
    stream: trio.abc.Stream, **limits: Unpack[LimitOptions]
) -> Connection[bytes, bytes]: ...


@overload
def open_connection(
    stream: trio.abc.Stream, *, codec: Codec[SendT, ReceiveT], **limits: Unpack[LimitOptions]
) -> Connection[SendT, ReceiveT]: ...


def open_connection(
    stream: trio.abc.Stream, *, codec: Codec[Any, Any] | None = None, **limits: Unpack[LimitOptions]
) -> Connection[Any, Any]:
    """Exchange messages over a connected Trio stream, which the connection takes over and closes.

    ::

        async with open_connection(stream) as connection:
            await connection.send(b"hello")

    Args:
      stream: Any Trio stream: a socket's, TLS, one end of a pair, the pipes of a process. With a
          `trio.SSLStream`, await its ``do_handshake`` before: within `Connection.receive` it would
          have no limit of time, and to cancel it breaks the connection.
      codec: The protocol to begin with; `LengthPrefixed` by default.
      limits: The settings of `Limits`, each as a keyword argument.

    Raises:
      TypeError, ValueError: for a wrong setting, which the message names.
    """
    if not isinstance(stream, trio.abc.Stream):
        raise TypeError(f"stream must be a trio.abc.Stream, not {stream!r}")
    return Connection(stream, _checked(codec), Limits(**limits))


@overload
def open_tcp_connection(
    host: str,
    port: int,
    *,
    ssl_context: ssl.SSLContext | None = None,
    server_hostname: str | None = None,
    **limits: Unpack[LimitOptions],
) -> AbstractAsyncContextManager[Connection[bytes, bytes]]: ...


@overload
def open_tcp_connection(
    host: str,
    port: int,
    *,
    codec: Codec[SendT, ReceiveT],
    ssl_context: ssl.SSLContext | None = None,
    server_hostname: str | None = None,
    **limits: Unpack[LimitOptions],
) -> AbstractAsyncContextManager[Connection[SendT, ReceiveT]]: ...


def open_tcp_connection(
    host: str,
    port: int,
    *,
    codec: Codec[Any, Any] | None = None,
    ssl_context: ssl.SSLContext | None = None,
    server_hostname: str | None = None,
    **limits: Unpack[LimitOptions],
) -> AbstractAsyncContextManager[Connection[Any, Any]]:
    """Connect to a TCP server: ``async with open_tcp_connection(host, port) as connection:``.

    All addresses of the host are tried, as by `trio.open_tcp_stream` (RFC 8305). The connection is
    closed at the end of the block.

    Args:
      host: A name or an address.
      port: The port.
      codec: The protocol to begin with; `LengthPrefixed` by default.
      ssl_context: Use TLS, as `ssl.create_default_context` sets it up.
      server_hostname: With TLS, the name that the certificate is checked for; ``host`` by default.
      limits: The settings of `Limits`, each as a keyword argument.

    Raises:
      TypeError, ValueError: for a wrong setting, which the message names.
      OSError: if there is no connection; the message says to where, and why.
      trio.BrokenResourceError: if the TLS handshake fails; if it is too slow,
          `HandshakeTimeoutError`.
    """
    check_host(host)
    check_port(port)
    if server_hostname is None and ssl_context is not None:
        server_hostname = host

    async def connect() -> trio.abc.Stream:
        try:
            return await trio.open_tcp_stream(host, port)
        except (OSError, UnicodeError) as error:
            raise renamed(error, f"cannot connect to {host!r} port {port}") from error

    return _open(connect, codec, ssl_context, server_hostname, limits)


@overload
def open_unix_connection(
    path: str | os.PathLike[str],
    *,
    ssl_context: ssl.SSLContext | None = None,
    server_hostname: str | None = None,
    **limits: Unpack[LimitOptions],
) -> AbstractAsyncContextManager[Connection[bytes, bytes]]: ...


@overload
def open_unix_connection(
    path: str | os.PathLike[str],
    *,
    codec: Codec[SendT, ReceiveT],
    ssl_context: ssl.SSLContext | None = None,
    server_hostname: str | None = None,
    **limits: Unpack[LimitOptions],
) -> AbstractAsyncContextManager[Connection[SendT, ReceiveT]]: ...


def open_unix_connection(
    path: str | os.PathLike[str],
    *,
    codec: Codec[Any, Any] | None = None,
    ssl_context: ssl.SSLContext | None = None,
    server_hostname: str | None = None,
    **limits: Unpack[LimitOptions],
) -> AbstractAsyncContextManager[Connection[Any, Any]]:
    """Connect to a server's Unix socket, as `open_tcp_connection` does to a port.

    There is no host to take ``server_hostname`` from: with an ``ssl_context`` that checks names,
    it must be given.
    """
    name = os.fspath(path)

    async def connect() -> trio.abc.Stream:
        try:
            return await trio.open_unix_socket(name)
        except OSError as error:
            raise renamed(error, f"cannot connect to {name!r}") from error

    return _open(connect, codec, ssl_context, server_hostname, limits)


def _open(
    connect: Callable[[], Awaitable[trio.abc.Stream]],
    codec: Codec[SendT, ReceiveT] | None,
    ssl_context: ssl.SSLContext | None,
    server_hostname: str | None,
    options: LimitOptions,
) -> AbstractAsyncContextManager[Connection[SendT, ReceiveT]]:
    # Settings are checked here, before anything is awaited.
    checked = _checked(codec)
    limits = Limits(**options)
    if ssl_context is not None:
        check_ssl_context(ssl_context, server_side=False, server_hostname=server_hostname)
    elif server_hostname is not None:
        raise ValueError("server_hostname is of use with TLS only: give an ssl_context, too")

    @contextlib.asynccontextmanager
    async def opening() -> AsyncIterator[Connection[SendT, ReceiveT]]:
        stream = await connect()
        try:
            if ssl_context is not None:
                stream = wrap_tls(stream, ssl_context, False, server_hostname)
                await handshake(stream, limits)
            connection = Connection(stream, checked, limits)
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        async with connection:
            yield connection

    return opening()


def _checked(codec: Codec[SendT, ReceiveT] | None) -> Codec[SendT, ReceiveT]:
    if codec is None:
        return cast("Codec[SendT, ReceiveT]", LengthPrefixed())
    if not isinstance(codec, Codec):
        raise TypeError(f"codec must be a Codec, not {codec!r}")
    return codec
