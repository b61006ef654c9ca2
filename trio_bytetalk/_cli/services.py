"""What the servers of ``bytetalk serve`` do with messages: echo, chat, log."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Callable
from typing import Any, Final

import attrs
import click
import trio

from .._codec import Codec
from .._connection import CloseReason, Connection
from .._errors import EncodeError, ProtocolError
from .._fixed_size import FixedSize, Structs
from .._messages import Typed
from .._server import Server
from .messages import Kind, kind_of, show, text_of
from .peers import Peers

# So many lines may wait to be printed; then whoever sends more waits, as slow as the output is.
_MOST_UNPRINTED: Final = 1000

# For how many seconds what is left is printed after the server has ended.
LAST_LINES: Final = 5

_NAMING: Final = "/name "
_LONGEST_NAME: Final = 20


async def echo(connection: Connection[Any, Any]) -> None:
    """Send back what comes."""
    async for message in connection:
        try:
            await connection.send(message)
        except EncodeError as error:
            raise ProtocolError(f"what was received cannot be sent back: {error}") from error


@attrs.define(eq=False)
class Chat:
    """Passes on to all others what each says, with the name or the address in front.

    Text and bytes are put behind ``name: ``; JSON and MessagePack into ``{"from": ..., "message":
    ...}``. Records of a fixed size, and the messages of one's own codecs, are passed on as they
    are; nothing is said there about who comes and goes.
    """

    server: Server[Any, Any]
    peers: Peers
    _labelled: Callable[[str, Any], Any] | None = attrs.field(init=False)
    _noticed: Callable[[str], Any] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._labelled, self._noticed = _speech(self.server.codec)
        self.server.on_disconnect(self._leaves)

    async def handle(self, connection: Connection[Any, Any]) -> None:
        """Serve one of them."""
        peer = self.peers.of(connection)
        others = len(self.server.connections) - 1
        await self._answer(
            connection,
            f"you are {peer.name}, with {others} more; {_NAMING}NAME to be called that "
            "(bytetalk connect: with two slashes)",
        )
        self._tell(f"{peer.name} joined", connection)
        async for message in connection:
            name = self._name_in(message)
            if name is None:
                self._pass_on(message, connection)
            elif not (name.isidentifier() and len(name) <= _LONGEST_NAME):
                await self._answer(
                    connection, f"a name is one word of at most {_LONGEST_NAME} letters"
                )
            elif any(self.peers.of(one).name == name for one in self.server.connections):
                await self._answer(connection, f"{name} is taken")
            else:
                self._tell(f"{peer.name} is {name} now", connection)
                peer.name = name
                await self._answer(connection, f"you are {name} now")

    async def _leaves(self, connection: Connection[Any, Any]) -> None:
        # When the server stops, all leave, and nobody would be there to whom it is news.
        if connection.close_reason not in (CloseReason.SERVER_STOPPED, CloseReason.CANCELLED):
            self._tell(f"{self.peers.of(connection).name} left", connection)

    def _name_in(self, message: Any) -> str | None:
        """The name that someone wants to have, if that is what a message is about."""
        if self._labelled is None:
            return None
        text = text_of(message) if isinstance(message, bytes | bytearray) else message
        if isinstance(text, str) and text.startswith(_NAMING):
            return text.removeprefix(_NAMING).strip()
        return None

    async def _answer(self, connection: Connection[Any, Any], notice: str) -> None:
        if self._labelled is not None:
            with contextlib.suppress(EncodeError):  # a codec may have little room, or be of ASCII
                await connection.send(self._noticed(notice))

    def _tell(self, notice: str, connection: Connection[Any, Any]) -> None:
        if self._labelled is not None:
            # Who is so slow that there is no room has to go, rather than miss lines unawares.
            with contextlib.suppress(EncodeError):
                self.server.broadcast(self._noticed(notice), exclude=connection, when_full="close")

    def _pass_on(self, message: Any, connection: Connection[Any, Any]) -> None:
        if self._labelled is not None:
            message = self._labelled(self.peers.of(connection).name, message)
        try:
            self.server.broadcast(message, exclude=connection, when_full="close")
        except EncodeError as error:
            raise ProtocolError(f"what was received cannot be passed on: {error}") from error


def _speech(
    codec: Codec[Any, Any],
) -> tuple[Callable[[str, Any], Any] | None, Callable[[str], Any]]:
    """What puts a name to a message, and what makes a message of a notice.

    The former is None if messages of this codec have no place for names.
    """
    kind = kind_of(codec)
    if not _is_free(codec):
        return None, str
    if kind is Kind.TEXT:
        return lambda name, message: f"{name}: {message}", lambda notice: f"* {notice}"
    if kind is Kind.BYTES:
        return (
            lambda name, message: b"%b: %b" % (name.encode(), message),
            lambda notice: b"* %b" % notice.encode(),
        )
    return (
        lambda name, message: {"from": name, "message": message},
        lambda notice: {"notice": notice},
    )


def _is_free(codec: Codec[Any, Any]) -> bool:
    """Whether messages may be longer than those that came, and of other keys."""
    if kind_of(codec) is Kind.VALUES and not (isinstance(codec, Typed) and codec.send is Any):
        return False
    inner: Any = codec
    while inner is not None:
        if isinstance(inner, FixedSize | Structs):
            return False
        inner = getattr(inner, "inner", None)
    return True


@attrs.define(eq=False)
class Log:
    """Prints what comes, a line each: the time, the connection, the message."""

    peers: Peers
    write: Callable[[str], object]
    """Is called in another thread, so that it may block."""

    _lines: trio.MemorySendChannel[str] = attrs.field(init=False)
    _unprinted: trio.MemoryReceiveChannel[str] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._lines, self._unprinted = trio.open_memory_channel[str](_MOST_UNPRINTED)

    async def handle(self, connection: Connection[Any, Any]) -> None:
        """Serve one of them."""
        peer = self.peers.of(connection)
        async for message in connection:
            now = datetime.datetime.now().isoformat(timespec="milliseconds")
            await self._lines.send(f"{now} {peer.address} {show(message)}\n")

    async def run(self) -> None:
        """Print, until `finish` is called and all is printed."""
        async for line in self._unprinted:
            lines = [line]
            try:
                while len(lines) < _MOST_UNPRINTED:
                    lines.append(self._unprinted.receive_nowait())
            except (trio.WouldBlock, trio.EndOfChannel):
                pass
            try:
                await trio.to_thread.run_sync(self.write, "".join(lines), abandon_on_cancel=True)
            except BrokenPipeError as error:
                raise click.ClickException(
                    "nobody reads the output any more: what came last was not printed"
                ) from error

    def finish(self) -> None:
        """Nobody is served any more."""
        self._lines.close()
