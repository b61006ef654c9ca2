"""Opening listeners, with errors that say what could not be listened on."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import AsyncIterator

import trio


async def open_tcp_listeners(
    port: int, host: str | None, backlog: int | None, reuse_port: bool
) -> list[trio.SocketListener]:
    """`trio.open_tcp_listeners`, with ``reuse_port``, and errors that name the address."""
    where = f"port {port}" if host is None else f"{host!r} port {port}"
    if type(port) is not int:
        raise TypeError(f"port must be a whole number, not {port!r}")
    if not 0 <= port <= 0xFFFF:
        raise ValueError(f"port must be 0 to 65535, not {port}")
    try:
        if reuse_port:
            return await _open_reusing_listeners(port, host, backlog)
        return await trio.open_tcp_listeners(port, host=host, backlog=backlog)
    except OSError as error:
        raise renamed(error, f"cannot listen on {where}") from error


async def _open_reusing_listeners(
    port: int, host: str | None, backlog: int | None
) -> list[trio.SocketListener]:
    if not hasattr(socket, "SO_REUSEPORT"):
        raise OSError(errno.ENOTSUP, "this system has no SO_REUSEPORT; the setting is reuse_port")
    listeners: list[trio.SocketListener] = []
    async with contextlib.AsyncExitStack() as on_error:
        for family, kind, protocol, _, address in await trio.socket.getaddrinfo(
            host, port, type=trio.socket.SOCK_STREAM, flags=trio.socket.AI_PASSIVE
        ):
            sock = trio.socket.socket(family, kind, protocol)
            on_error.callback(sock.close)
            sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_REUSEADDR, 1)
            sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_REUSEPORT, 1)
            if family == trio.socket.AF_INET6:
                sock.setsockopt(trio.socket.IPPROTO_IPV6, trio.socket.IPV6_V6ONLY, 1)
            await sock.bind(address)
            # As trio.open_tcp_listeners has it: as much as the system allows.
            sock.listen(0xFFFF if backlog is None else min(backlog, 0xFFFF))
            listeners.append(trio.SocketListener(sock))
        on_error.pop_all()
    return listeners


@contextlib.asynccontextmanager
async def open_unix_listener(
    path: str | os.PathLike[str], backlog: int | None
) -> AsyncIterator[trio.SocketListener]:
    """A listener on a Unix socket, whose file is removed at the end."""
    name = os.fspath(path)
    sock = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
    with sock:
        try:
            try:
                await sock.bind(name)
            except OSError as error:
                if error.errno != errno.EADDRINUSE or not await _is_dead_socket(name):
                    raise
                os.unlink(name)
                await sock.bind(name)
            ours = os.stat(name)
            sock.listen(0xFFFF if backlog is None else min(backlog, 0xFFFF))
        except OSError as error:
            raise renamed(error, f"cannot listen on {name!r}") from error
        try:
            yield trio.SocketListener(sock)
        finally:
            with contextlib.suppress(OSError):
                # Unless someone else has put another file there meanwhile.
                if os.path.samestat(os.stat(name), ours):
                    os.unlink(name)


async def _is_dead_socket(name: str) -> bool:
    """Whether ``name`` is a socket that no one listens on."""
    if not stat.S_ISSOCK(os.stat(name).st_mode):
        return False
    with trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM) as probe:
        try:
            await probe.connect(name)
        except ConnectionRefusedError:
            return True
    return False


def renamed(error: OSError, what: str) -> OSError:
    """An error of the same kind that says what failed."""
    reasons = error.__cause__
    if error.errno is None and isinstance(reasons, BaseExceptionGroup):
        # trio.open_tcp_stream tried several addresses; the first one's reason serves best.
        first = reasons.exceptions[0]
        if isinstance(first, OSError):
            error = first
    if isinstance(error, socket.gaierror):
        return socket.gaierror(error.errno, f"{what}: {error.strerror}")
    if error.errno is None:
        return OSError(f"{what}: {error}")
    return OSError(error.errno, f"{what}: {os.strerror(error.errno)}")
