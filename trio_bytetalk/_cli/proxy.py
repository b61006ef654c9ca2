"""A proxy's work: whoever connects is connected to the target, and bytes pass both ways.

What passes is neither changed nor understood here. Ends are passed on as what they are: a
half-close as a half-close, a reset as a reset.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import math
import os
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Final, NoReturn, TypeAlias

import attrs
import trio

from .._chunks import Chunks
from .._client import open_connection
from .._connection import handshake, wrap_tls
from .._errors import in_words
from .._limits import Limits
from .._listeners import open_tcp_listeners, open_unix_listener, renamed
from .addresses import Address, for_clients
from .failures import cannot_listen

Stream: TypeAlias = trio.abc.Stream
See: TypeAlias = Callable[[bytes], Awaitable[object]]

# What is read at once, and thus all that is held of what a slow receiver has not taken.
_READ_SIZE: Final = 65536

# Seconds. TLS cannot say that this side has finished and still listens. So a target that is reached
# by TLS is closed when it has said nothing for so long after the client's end.
_SILENCE: Final = 5.0

# Seconds for TLS's closing words.
_CLOSING: Final = 5.0

# Errors that are no fault of the connection's, and for how many seconds to accept none then: as
# trio.serve_listeners has it.
_OUT_OF_RESOURCES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_ACCEPT_PAUSE: Final = 0.1

# After so many seconds without such an error, another one is news. In between, a connection may get
# the last descriptor, and fail for want of one for the target.
_ACCEPT_CALM: Final = 1.0

# To linger for no time: closing discards what is queued and resets (socket(7)).
_NO_LINGER: Final = struct.pack("ii", 1, 0)


@contextlib.asynccontextmanager
async def listening(address: Address) -> AsyncIterator[list[trio.SocketListener]]:
    """Listen on an address within a block; the listeners are closed at its end.

    Without a host it is this machine's own, for what passes may be secret, and nobody is asked who
    they are.

    Raises:
      click.ClickException: if that is not possible; the message says where, why, and what to do.
    """
    with contextlib.ExitStack() as stack:
        try:
            if address.path is None:
                listeners = await open_tcp_listeners(
                    address.port, address.host or "localhost", None, False
                )
            else:
                listener, remove_file = await open_unix_listener(address.path, None)
                listeners = [listener]
        except OSError as error:
            raise cannot_listen(error, address.path) from error
        for each in listeners:
            stack.callback(each.socket.close)
        if address.path is not None:
            stack.callback(remove_file)
        yield listeners


async def leads_to(target: Address, listeners: Sequence[trio.SocketListener]) -> bool:
    """Whether who connects to the target comes to one of these listeners.

    A name that cannot be resolved, or a path that is not there, leads nowhere.
    """
    if target.path is not None:
        names = (listener.socket.getsockname() for listener in listeners)
        return any(_is_same_file(name, target.path) for name in names if type(name) is str)
    sockets = [each.socket for each in listeners if each.socket.family != socket.AF_UNIX]
    if all(each.getsockname()[1] != target.port for each in sockets):
        return False
    try:
        found = await trio.socket.getaddrinfo(
            target.host or "localhost", target.port, type=socket.SOCK_STREAM
        )
    except (OSError, UnicodeError):
        return False
    for found_family, _, _, _, found_address in found:
        family, address = _unmapped(found_family, found_address)
        there = for_clients(address)
        for each in sockets:
            name = each.getsockname()
            if each.family != family or name[1] != target.port:
                continue
            here = for_clients(name)
            # Who listens on all addresses of the family listens on each that can be bound to.
            if here[:2] == there[:2] or (here != name and await _is_own(family, there)):
                return True
    return False


def _unmapped(family: int, address: Any) -> tuple[int, Any]:
    """Where a connection goes: an address of IPv6 may stand for one of IPv4 (RFC 4291, 2.5.5.2)."""
    if family == socket.AF_INET6:
        mapped = ipaddress.IPv6Address(address[0]).ipv4_mapped
        if mapped is not None:
            return socket.AF_INET, (str(mapped), address[1])
    return family, address


def _is_same_file(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


async def _is_own(family: int, address: Any) -> bool:
    with trio.socket.socket(family, socket.SOCK_DGRAM) as sock:
        try:
            await sock.bind((address[0], 0, *address[2:]))
        except OSError:
            return False
    return True


async def connect(
    address: Address, ssl_context: ssl.SSLContext | None, server_hostname: str | None
) -> Stream:
    """A stream to an address. With TLS, the handshake has been done.

    Raises:
      OSError: if there is no connection; the message says to where, and why.
      trio.BrokenResourceError: if the TLS handshake fails.
    """
    try:
        if address.path is None:
            stream = await trio.open_tcp_stream(address.host or "localhost", address.port)
        else:
            stream = await trio.open_unix_socket(address.path)
    except (OSError, UnicodeError) as error:
        raise renamed(error, f"cannot connect to {address}") from error
    if ssl_context is None:
        return stream
    name = address.certified if server_hostname is None else server_hostname
    return await secured(stream, ssl_context, server_hostname=name)


async def secured(
    stream: Stream, ssl_context: ssl.SSLContext, *, server_hostname: str | None = None
) -> Stream:
    """TLS over a stream, as a server unless there is a ``server_hostname``.

    Raises:
      trio.BrokenResourceError: if the handshake fails or takes too long. Then, and if it is
          cancelled, the stream is reset.
    """
    secure = wrap_tls(stream, ssl_context, server_hostname is None, server_hostname)
    try:
        await handshake(secure, Limits())
    except BaseException:
        await reset(secure)
        raise
    return secure


async def accept_from(
    listener: trio.abc.Listener[trio.SocketStream],
    take: Callable[[trio.SocketStream], object],
    complain: Callable[[OSError], object],
) -> NoReturn:
    """Give each connection to ``take``. Without descriptors for more, wait until there are some.

    That is complained of once, until it has not happened for a second.
    """
    calm_at = -math.inf
    while True:
        try:
            stream = await listener.accept()
        except OSError as error:
            if error.errno not in _OUT_OF_RESOURCES:
                raise
            if trio.current_time() >= calm_at:
                complain(error)
            calm_at = trio.current_time() + _ACCEPT_CALM
            await trio.sleep(_ACCEPT_PAUSE)
        else:
            take(stream)


async def reset(stream: Stream) -> None:
    """Close a stream so that its peer gets a reset, where it is TCP. It is not cancelled."""
    below: Any = stream.transport_stream if isinstance(stream, trio.SSLStream) else stream
    if isinstance(below, trio.SocketStream):
        with contextlib.suppress(OSError):
            below.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    with trio.CancelScope(shield=True):
        await trio.aclose_forcefully(stream)


async def forward(client: Stream, target: Stream, see_request: See, see_reply: See) -> str | None:
    """Pass bytes on between two streams, both ways, until both have ended; then close both.

    Args:
      see_request: Is called with what has come from the client, when it has been passed on, and
          with nothing at the end.
      see_reply: The same, for what comes from the target.

    Returns:
      None if all ended in order; otherwise what broke: then both have got a reset. Cancelled, both
      get one, too.
    """
    forwarding = _Forwarding(client, target)
    await forwarding.run(see_request, see_reply)
    return forwarding.broken


@attrs.define(eq=False)
class _Direction:
    source: Stream
    sink: Stream
    see: See
    reads: int = 0
    is_sending: bool = False
    is_over: bool = False


@attrs.define(eq=False)
class _Forwarding:
    client: Stream
    target: Stream
    broken: str | None = None
    in_order: bool = False
    over: trio.CancelScope = attrs.field(factory=trio.CancelScope)

    async def run(self, see_request: See, see_reply: See) -> None:
        requests = _Direction(self.client, self.target, see_request)
        replies = _Direction(self.target, self.client, see_reply)
        try:
            with self.over:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self.pump, requests, replies)
                    nursery.start_soon(self.pump, replies, requests)
        finally:
            for stream in (self.client, self.target):
                if self.in_order:
                    await _close(stream)
                else:
                    await reset(stream)

    async def pump(self, this: _Direction, other: _Direction) -> None:
        while True:
            try:
                data = await _receive(this.source)
            except trio.BrokenResourceError as error:
                # It will not receive anything either.
                self.note(this.source, error)
                self.over.cancel()
                return
            this.reads += 1
            ending = not data
            try:
                if data:
                    this.is_sending = True
                    await this.sink.send_all(data)
                    this.is_sending = False
                elif self.broken is None and isinstance(this.sink, trio.abc.HalfCloseableStream):
                    await this.sink.send_eof()
            except trio.BrokenResourceError as error:
                # What it had sent before may still be on its way through the other direction.
                self.note(this.sink, error)
                ending = True
            await this.see(data)
            if ending:
                break
        this.is_over = True
        if not other.is_over and self.broken is None:
            if isinstance(this.sink, trio.abc.HalfCloseableStream):
                return
            if this.sink is self.target:
                await _until_silent(other)
            # To a client behind TLS, the end of what the target says is the end of all.
        self.in_order = self.broken is None
        if other.is_over or self.in_order:
            self.over.cancel()

    def note(self, stream: Stream, error: trio.BrokenResourceError) -> None:
        if self.broken is None:
            who = "the client" if stream is self.client else "the target"
            self.broken = f"{who} is gone: {_reason(error)}"


async def _receive(stream: Stream) -> bytes:
    try:
        return bytes(await stream.receive_some(_READ_SIZE))
    except trio.BrokenResourceError as error:
        # The end without TLS's closing words. So many programs end like this that a reset, which
        # might destroy what is still on its way, is not what they mean.
        if isinstance(error.__cause__, ssl.SSLEOFError):
            return b""
        raise


async def _until_silent(direction: _Direction) -> None:
    reads = -1
    while direction.is_sending or direction.reads != reads:
        reads = direction.reads
        await trio.sleep(_SILENCE)


async def _close(stream: Stream) -> None:
    with trio.move_on_after(_CLOSING, shield=True):
        if isinstance(stream, trio.SSLStream):
            # A connection knows how TLS is closed so that what was said last arrives.
            await open_connection(stream, codec=Chunks()).aclose()
        else:
            await stream.aclose()


def _reason(error: trio.BrokenResourceError) -> str:
    cause = error.__cause__
    if (
        isinstance(cause, OSError)
        and cause.errno is not None
        and not isinstance(cause, ssl.SSLError)
    ):
        return os.strerror(cause.errno)
    return in_words(cause or error, 200)
