"""`Chunks`: no messages at all, but the bytes as they arrive."""

from __future__ import annotations

from typing import Literal, cast

import attrs

from ._buffer import ReceiveBuffer
from ._codec import NEED_DATA, Buffer, Codec, NeedData, Reader, Writer, to_bytes
from ._errors import EncodeError


@attrs.define(eq=False)
class ChunksReader(Reader[bytes]):
    """The reader of `Chunks`."""

    def decode(self, buffer: ReceiveBuffer) -> bytes | Literal[NeedData.NEED_DATA]:
        size = len(buffer)
        # Not None, for so many are there. A chunk that is taken whole is not copied.
        return cast(bytes, buffer.take(size)) if size else NEED_DATA


@attrs.define(eq=False)
class ChunksWriter(Writer[bytes]):
    """The writer of `Chunks`."""

    def encode(self, message: Buffer) -> bytes:
        if type(message) is not bytes:
            message = to_bytes(message, "Chunks")
        if not message:
            raise EncodeError("the message is empty: the peer would receive nothing for it")
        return message


@attrs.frozen
class Chunks(Codec[bytes, bytes]):
    """No frames: what is received is whatever has arrived, one byte or more.

    For what has no messages, such as a proxy, a file that is sent until the end of the stream, or
    the part of a conversation that only someone else can make sense of. What was sent as one
    message may be received as several, and several as one.

    There is no ``max_size``: a message is what one read from the network brings, or what was read
    along with the last message of another codec. An empty message cannot be sent: `EncodeError`.
    """

    def reader(self) -> ChunksReader:
        return ChunksReader()

    def writer(self) -> ChunksWriter:
        return ChunksWriter()
