"""Any bytes through a `Connection`, over a stream in memory.

Its reader is replaced, its limits are changed, receiving is cancelled, and messages are sent back,
wherever the case says so. What is received must be what the readers make of all the bytes in one
piece, one after the other; what the peer gets must be the frames that were sent.
"""

from __future__ import annotations

from typing import Any

import attrs
import trio
import trio.testing

from trio_bytetalk import (
    NEED_DATA,
    ChunksReader,
    Codec,
    Connection,
    EncodeError,
    MessageTooLargeError,
    ProtocolError,
    Reader,
    ReceiveBuffer,
    open_connection,
)

from .choices import Choices
from .codecs import any_codec, frames
from .driving import Refused, joined, pieces, same

_END = "the end"  # of the stream, where it is clean

_WHILE_NOTHING_COMES = 0.001  # seconds, of virtual time


def check(data: bytes) -> None:
    """Raise for what must not be.

    The bytes are what to do and when, what to put into right frames, and the rest as it is.
    """
    choices = Choices(data)
    case = _Case(choices)
    trio.run(case.run, clock=trio.testing.MockClock(autojump_threshold=0))


def _settings(reader: Any) -> Any:
    """The reader, or the one within, that frames the bytes and so has most of the settings."""
    while hasattr(reader, "inner"):
        reader = reader.inner
    return reader


@attrs.define(eq=False)
class _Case:
    choices: Choices
    codecs: list[Codec[Any, Any]] = attrs.field(init=False)
    steps: Choices = attrs.field(init=False)
    pieces: list[bytes] = attrs.field(init=False)
    # The model: all the bytes in one piece, and a reader that is the like of the connection's.
    buffer: ReceiveBuffer = attrs.field(init=False, factory=ReceiveBuffer)
    reader: Reader[Any] = attrs.field(init=False)
    sent: bytes = b""  # by the connection

    def __attrs_post_init__(self) -> None:
        choices = self.choices
        self.codecs = [any_codec(choices) for _ in range(1 + choices.below(3))]
        cutting = Choices(choices.take(1 + choices.below(16)))
        self.steps = Choices(choices.take(choices.below(32)))
        stream = b""
        for _ in range(choices.below(8)):
            stream += frames(choices.one_of(self.codecs), [choices.take(choices.below(64))])
        stream += choices.rest()
        self.pieces = pieces(stream, cutting)
        self.buffer.feed(stream)
        self.reader = self.codecs[0].reader()

    async def run(self) -> None:
        stream, peer = trio.testing.memory_stream_pair()
        async with open_connection(stream, codec=self.codecs[0]) as connection:
            for piece in self.pieces:
                await peer.send_all(piece)
                if not await self.receive(connection):
                    break
            else:
                await peer.send_eof()
                if await self.receive(connection):
                    raise AssertionError("the peer has finished, and it is still waited for")
            await connection.flush()
        got = b""
        async for chunk in peer:
            got += chunk
        assert got == self.sent, f"the peer got {got!r}, sent was {self.sent!r}"

    async def receive(self, connection: Connection[Any, Any]) -> bool:
        """Receive what is there, and compare it; False if nothing more can come."""
        while True:
            came: Any = None
            with trio.move_on_after(_WHILE_NOTHING_COMES) as scope:
                if self.steps.below(8) == 7:
                    scope.cancel()
                try:
                    came = await connection.receive()
                except ProtocolError as error:
                    came = Refused.of(error)
                except trio.EndOfChannel:
                    came = _END
            if scope.cancelled_caught:
                await self.step(connection, None)
                if scope.deadline <= trio.current_time():
                    return True
                continue
            taken = len(self.buffer)
            expected = self.expected(came)
            assert same(came, expected), f"{came!r} was received where {expected!r} was expected"
            if came is _END or (isinstance(came, Refused) and taken == len(self.buffer)):
                return False
            if isinstance(came, Refused):
                if issubclass(came.error, MessageTooLargeError):
                    return False  # what of it is consumed may depend on how it was cut
            else:
                await self.step(connection, came)

    def expected(self, came: Any) -> Any:
        if isinstance(self.reader, ChunksReader) and type(came) is bytes:
            return self.buffer.take(len(came))
        try:
            message = self.reader.decode(self.buffer)
            if message is NEED_DATA:
                message = self.reader.decode_eof(self.buffer)
        except ProtocolError as error:
            return Refused.of(error)
        return _END if message is NEED_DATA else message

    async def step(self, connection: Connection[Any, Any], message: Any) -> None:
        """What happens between two messages, or while none is there."""
        step = self.steps.below(8)
        if step == 1:
            codec = self.steps.one_of(self.codecs)
            self.reader = codec.reader()
            connection.use(codec)
        elif step == 2:
            codec = self.steps.one_of(self.codecs)
            self.reader, connection.reader = codec.reader(), codec.reader()
        elif step == 3:
            limit = self.steps.below(64)
            for reader in (self.reader, connection.reader):
                if hasattr(_settings(reader), "max_size"):
                    _settings(reader).max_size = limit
        elif step > 3:
            try:
                frame = connection.writer.encode(message)
            except EncodeError:
                return
            self.sent += joined(frame)
            if step == 4:
                connection.send_nowait(message)
            else:
                await connection.send(message)
