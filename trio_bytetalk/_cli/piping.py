"""Messages from an input and to an output, where no person is at both ends of them."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import attrs
import click
import trio

from .._buffer import ReceiveBuffer
from .._chunks import Chunks
from .._codec import NEED_DATA, Buffer, Codec
from .._connection import Connection
from .._delimited import Delimited
from .._errors import EncodeError, MessageTooLargeError
from .failures import too_few_replies
from .figures import plural
from .messages import Kind, bytes_of, kind_of, line_of, message_of, parser

READ_SIZE: Final = 64 * 1024

# So many bytes may wait to be written to the output; then no more is received.
_MOST_UNWRITTEN: Final = 256 * 1024

# What is longer is taken for something else than lines, and than a file that someone names.
LONGEST: Final = 64 * 2**20

# For how long the end of the input is waited for when the peer has finished.
_GRACE: Final = 0.5


class Input(enum.Enum):
    """How messages are read."""

    LINES = "lines"
    WHOLE = "whole"
    RAW = "raw"


class Output(enum.Enum):
    """How messages are written."""

    LINES = "lines"
    RAW = "raw"


class InputError(click.ClickException):
    """Ends the program, for what it was given to send cannot be sent."""

    exit_code = 2


@attrs.define(eq=False)
class Sink:
    """An output that blocks, written to in other threads: many pieces at once, as they gather."""

    write: Callable[[bytes], object]
    _pieces: list[bytes] = attrs.field(factory=list, init=False)
    _size: int = attrs.field(default=0, init=False)  # what is being written counts, too
    _filled: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot, init=False)
    _emptied: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot, init=False)

    async def run(self) -> None:
        """Write what is put, until cancelled. Whatever ``write`` raises ends it."""
        while True:
            while not self._pieces:
                await self._filled.park()
            data = b"".join(self._pieces)
            self._pieces.clear()
            # Whoever reads the output may stop reading it for good.
            await trio.to_thread.run_sync(self.write, data, abandon_on_cancel=True)
            self._size -= len(data)
            self._emptied.unpark_all()

    def put(self, data: bytes) -> bool:
        """Have ``data`` written; say whether one had better wait for `room` now."""
        if not self._pieces:
            self._filled.unpark()
        self._pieces.append(data)
        self._size += len(data)
        return self._size > _MOST_UNWRITTEN

    @property
    def is_full(self) -> bool:
        """Whether very much is to be written."""
        return self._size > _MOST_UNWRITTEN

    async def room(self) -> None:
        """Wait until that is not so."""
        while self.is_full:
            await self._emptied.park()

    async def drain(self) -> None:
        """Wait until all is written."""
        while self._size:
            await self._emptied.park()


@attrs.define(eq=False)
class Piping:
    """One connection between an input and an output.

    Args:
      connection: It is not closed.
      codec: The connection's.
      read: Returns some bytes of the input, and none at its end; called in other threads.
      write: Writes bytes to the output; called in other threads.
      input, output: How these are messages.
      replies: After so many messages it ends; None is never.
      wait: The connection is not half-closed when the input has ended. Instead it is over when
          nothing has come for so many seconds.
    """

    connection: Connection[Any, Any]
    codec: Codec[Any, Any]
    read: Callable[[], bytes]
    write: Callable[[bytes], object]
    input: Input = Input.LINES
    output: Output = Output.LINES
    replies: int | None = None
    wait: float | None = None

    _sink: Sink = attrs.field(init=False)
    _scope: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)
    _received: int = attrs.field(default=0, init=False)
    _reading: bool = attrs.field(default=False, init=False)
    _sent: trio.Event = attrs.field(factory=trio.Event, init=False)  # all of the input
    _waiting: bool = attrs.field(default=False, init=False)  # for silence
    _finished: bool = attrs.field(default=False, init=False)  # the peer
    _failure: trio.BrokenResourceError | None = attrs.field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self._sink = Sink(self.write)

    async def run(self) -> None:
        """Send what the input has, and write what comes, until both have ended.

        Raises:
          InputError: if the input is nothing that can be sent.
          click.ClickException: if there were fewer replies than demanded, or the peer finished
              before it had all of the input.
          ProtocolError, trio.BrokenResourceError: as `Connection.receive` does.
          OSError: as ``read`` and ``write`` do.

        What was received before an error is written. Cancelled or interrupted, it leaves the
        threads alone that read and write, for nobody may ever read the output.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._sink.run)
            try:
                with self._scope:
                    await self._exchange()
                self._judge()
            except Exception:
                await self._sink.drain()
                raise
            await self._sink.drain()
            nursery.cancel_scope.cancel()

    async def _exchange(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send_all)
            if await self._receive_all():
                self._finished = True
                # That the input has ended, too, may not have been seen yet.
                with trio.move_on_after(_GRACE):
                    await self._sent.wait()
                if not self._sent.is_set() and not self._reading:
                    raise _early_end()
            nursery.cancel_scope.cancel()

    def _judge(self) -> None:
        """Raise if something is missing, although all has ended."""
        undecoded = self.connection.statistics().bytes_undecoded
        if undecoded and self._scope.cancelled_caught and self._failure is None:
            raise click.ClickException(
                f"no more came for {self.wait:g} seconds, and what came last, "
                f"{plural(undecoded, 'byte')}, is no whole message (--wait gives more time; "
                "is --codec the one that the server uses?)"
            )
        if self.replies is not None and self._received < self.replies:
            raise self._failure or too_few_replies(self._received, self.replies)
        if self._failure is not None:
            raise self._failure

    # -- what is received

    async def _receive_all(self) -> bool:
        """Write what comes; say whether that was all, and not only as much as is wanted."""
        encode = _raw if self.output is Output.RAW else _line
        sink = self._sink
        async for message in self.connection:
            self._received += 1
            if sink.put(encode(message)):
                self._scope.deadline = math.inf  # the output may take as long as it likes
                await sink.room()
            if self._waiting:
                self._expect_more()
            if self._received == self.replies:
                return False
        return True

    def _expect_more(self) -> None:
        """Wait for the next message, but not for ever."""
        if self.wait is not None and not self._sink.is_full:
            self._scope.deadline = trio.current_time() + self.wait

    # -- what is sent

    async def _send_all(self) -> None:
        # The frames are made here, many at a time, for those of a connection leave at once.
        self.connection.writer = Chunks().writer()
        try:
            if self.input is Input.LINES:
                await self._send_lines()
            elif self.input is Input.WHOLE:
                await self._send_whole()
            else:
                await self._send_raw()
            if self.wait is None:
                await self.connection.send_eof()
            else:
                await self.connection.flush()
        except trio.BrokenResourceError as error:
            # The peer's last words may still be on their way.
            self._failure = error
        else:
            self._waiting = self.wait is not None
            self._expect_more()
        self._sent.set()

    async def _send_lines(self) -> None:
        frames = _Frames(self.codec)
        buffer = ReceiveBuffer()
        reader = Delimited(b"\n", max_size=LONGEST).reader()
        while chunk := await self._read():
            buffer.feed(chunk)
            lines: list[bytes] = []
            try:
                while (line := reader.decode(buffer)) is not NEED_DATA:
                    lines.append(line)
                    lines += reader.decode_ahead(buffer, READ_SIZE)  # which is faster
            except MessageTooLargeError:
                raise InputError(
                    f"line {frames.lines + len(lines) + 1} of the input has more than "
                    f"{LONGEST} bytes; --input whole sends all of it as one message"
                ) from None
            buffer.compact()
            await self._send(frames.of_lines(lines))
        rest = buffer.take(len(buffer))
        if rest:
            await self._send(frames.of_lines([rest]))

    async def _send_whole(self) -> None:
        data = bytearray()
        while chunk := await self._read():
            data += chunk
        await self._send(_Frames(self.codec).of_whole(bytes(data)))

    async def _send_raw(self) -> None:
        while chunk := await self._read():
            await self._send(chunk)

    async def _send(self, frames: bytes) -> None:
        if self._finished:
            raise _early_end()
        if frames:
            await self.connection.send(frames)

    async def _read(self) -> bytes:
        self._reading = True
        try:
            return await trio.to_thread.run_sync(self.read, abandon_on_cancel=True)
        finally:
            self._reading = False


@attrs.define(eq=False)
class _Frames:
    """Makes frames of what is read."""

    codec: Codec[Any, Any]
    lines: int = attrs.field(default=0, init=False)
    _encode: Callable[[Any], Buffer | Sequence[Buffer]] = attrs.field(init=False)
    _parse: Callable[[bytes], Any] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._encode = self.codec.writer().encode
        self._parse = _line_parser(self.codec)

    def of_lines(self, lines: Iterable[bytes]) -> bytes:
        """The frames of messages, each of which is a line."""
        encode = self._encode
        parse = self._parse
        pieces: list[Buffer] = []
        for line in lines:
            self.lines += 1
            try:
                frame = encode(parse(line))
            except (ValueError, EncodeError) as error:
                raise InputError(f"line {self.lines} of the input: {error}") from error
            if isinstance(frame, bytes | bytearray | memoryview):
                pieces.append(frame)
            else:
                pieces += frame
        return b"".join(pieces)

    def of_whole(self, data: bytes) -> bytes:
        """The frame of the message that ``data`` is."""
        try:
            return bytes_of(self._encode(message_of(data, self.codec)))
        except (ValueError, EncodeError) as error:
            raise InputError(f"the input: {error}") from error


def _early_end() -> click.ClickException:
    return click.ClickException("the peer finished before it had all of the input")


def _line_parser(codec: Codec[Any, Any]) -> Callable[[bytes], Any]:
    """What makes messages of lines that have been read."""
    parse = parser(codec)
    if kind_of(codec) is not Kind.BYTES:
        # Text and JSON may have either kind of newline.
        return lambda line: parse(line.removesuffix(b"\r").decode())
    # Bytes are sent as they are.
    return lambda line: parse(line.decode("utf-8", "surrogateescape")) if b"\\" in line else line


def _line(message: Any) -> bytes:
    return line_of(message).encode() + b"\n"


def _raw(message: Any) -> bytes:
    if isinstance(message, bytes | bytearray | memoryview):
        return bytes(message)
    return message.encode("utf-8", "surrogatepass") if isinstance(message, str) else _line(message)
