"""Opening listeners, with errors that say what could not be listened on."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Callable
from typing import Final

import trio

# As much as the system allows: it cuts this down itself. Linux keeps the number in 16 bits before
# version 4.1, hence no more; trio.open_tcp_listeners does the same.
_MAX_BACKLOG: Final = 0xFFFF


async def open_tcp_listeners(
    port: int, host: str | None, backlog: int | None, reuse_port: bool
) -> list[trio.SocketListener]:
    """`trio.open_tcp_listeners`, with ``reuse_port``, and errors that name the address."""
    check_port(port)
    if host is not None:
        check_host(host)
    _check_backlog(backlog)
    if reuse_port and not hasattr(socket, "SO_REUSEPORT"):
        raise OSError(errno.ENOTSUP, "this system has no SO_REUSEPORT; the setting is reuse_port")
    try:
        if reuse_port:
            return await _open_reusing_listeners(port, host, backlog)
        return await trio.open_tcp_listeners(port, host=host, backlog=backlog)
    except (OSError, UnicodeError) as error:
        where = f"port {port}" if host is None else f"{host!r} port {port}"
        raise renamed(error, f"cannot listen on {where}") from error


async def _open_reusing_listeners(
    port: int, host: str | None, backlog: int | None
) -> list[trio.SocketListener]:
    addresses = await trio.socket.getaddrinfo(
        host, port, type=trio.socket.SOCK_STREAM, flags=trio.socket.AI_PASSIVE
    )
    listeners: list[trio.SocketListener] = []
    unsupported: OSError | None = None
    with contextlib.ExitStack() as on_error:
        for family, kind, protocol, _, address in addresses:
            try:
                sock = trio.socket.socket(family, kind, protocol)
            except OSError as error:
                # A system without IPv6 may still give IPv6 addresses; one of a kind that it has
                # is enough.
                if error.errno != errno.EAFNOSUPPORT:
                    raise
                unsupported = error
                continue
            on_error.callback(sock.close)
            sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_REUSEADDR, 1)
            sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_REUSEPORT, 1)
            if family == trio.socket.AF_INET6:
                sock.setsockopt(trio.socket.IPPROTO_IPV6, trio.socket.IPV6_V6ONLY, 1)
            await sock.bind(address)
            sock.listen(_MAX_BACKLOG if backlog is None else min(backlog, _MAX_BACKLOG))
            listeners.append(trio.SocketListener(sock))
        if unsupported is not None and not listeners:
            raise unsupported
        on_error.pop_all()
    return listeners


async def open_unix_listener(
    path: str | os.PathLike[str], backlog: int | None
) -> tuple[trio.SocketListener, Callable[[], None]]:
    """A listener on a Unix socket, and what removes the socket's file.

    Call that before the listener is closed: an open socket keeps its file's identity from being
    given to another file.
    """
    name = os.fspath(path)
    if not name:  # which Linux would take for a request to choose a name
        raise ValueError("path must be that of a socket, and it is empty")
    _check_backlog(backlog)
    sock = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
    with contextlib.ExitStack() as on_error:
        on_error.callback(sock.close)
        try:
            try:
                await sock.bind(name)
            except OSError as error:
                if error.errno != errno.EADDRINUSE or not await _is_dead_socket(name):
                    raise
                os.unlink(name)
                await sock.bind(name)
            ours = os.stat(name)
            sock.listen(_MAX_BACKLOG if backlog is None else min(backlog, _MAX_BACKLOG))
        except OSError as error:
            raise renamed(error, f"cannot listen on {name!r}") from error
        on_error.pop_all()

    def remove_file() -> None:
        with contextlib.suppress(OSError):
            # Unless someone else has put another file there meanwhile.
            if os.path.samestat(os.stat(name), ours):
                os.unlink(name)

    return trio.SocketListener(sock), remove_file


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


def check_port(port: object) -> None:
    """Raise for what is no TCP port."""
    # bool is an int to Python; as a port it is a mistake.
    if type(port) is not int:
        raise TypeError(f"port must be a whole number, not {port!r}")
    if not 0 <= port <= 0xFFFF:
        raise ValueError(f"port must be 0 to 65535, not {port}")


def check_host(host: object) -> None:
    """Raise for what is no host."""
    if not isinstance(host, str):
        raise TypeError(f"host must be a name or an address, not {host!r}")


def _check_backlog(backlog: object) -> None:
    if backlog is None:
        return
    if type(backlog) is not int:
        raise TypeError(f"backlog must be a whole number or None, not {backlog!r}")
    if backlog < 1:
        raise ValueError(f"backlog must be 1 or more, not {backlog}")


def renamed(error: OSError | UnicodeError, what: str) -> OSError:
    """An error of the same kind that says what failed."""
    if isinstance(error, UnicodeError):
        # So Python refuses a name that cannot be written for the DNS, an empty label for one.
        return socket.gaierror(socket.EAI_NONAME, f"{what}: {error}")
    causes = [error]
    if isinstance(error.__cause__, BaseExceptionGroup):
        # trio.open_tcp_stream has tried several addresses; each may have had its own reason.
        causes = [one for one in error.__cause__.exceptions if isinstance(one, OSError)]
    reasons = ", ".join(dict.fromkeys(map(_reason, causes)))
    first = causes[0]
    if first.errno is None:
        return OSError(f"{what}: {reasons}")
    if isinstance(first, socket.gaierror):
        return socket.gaierror(first.errno, f"{what}: {reasons}")
    return OSError(first.errno, f"{what}: {reasons}")


def _reason(error: OSError) -> str:
    if error.errno is None:
        return str(error)
    if isinstance(error, socket.gaierror):
        return str(error.strerror)
    # Not the error's own text: Trio has put an address of its own into that.
    return os.strerror(error.errno)
