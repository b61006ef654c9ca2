"""Compressed messages in frames: what `Codec.compressed` returns.

Only what zlib knows. A bzip2 stream takes megabytes to read, however small, and one of lzma as much
as its first bytes say: neither suits a limit for each message. `Codec.map` takes them all the same.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Sequence
from typing import Final, Literal

import attrs

from ._buffer import ReceiveBuffer
from ._codec import NEED_DATA, Buffer, Codec, Compression, NeedData, Reader, Writer, to_bytes
from ._errors import EncodeError, MessageTooLargeError
from ._messages import invalid_message
from ._validators import one_of, whole_number

# What zlib calls window bits: how far back a stream may refer (15 is as far as there is), and, by
# its sign or by adding 16, what is around it.
_WINDOW_BITS: Final = {"zlib": 15, "gzip": 16 + 15, "deflate": -15}


@attrs.define(eq=False)
class CompressedReader(Reader[bytes]):
    """The reader of `Codec.compressed`; its ``max_size`` may be changed between two messages."""

    inner: Reader[bytes]
    method: Compression
    max_size: int

    def decode(self, buffer: ReceiveBuffer) -> bytes | Literal[NeedData.NEED_DATA]:
        frame = self.inner.decode(buffer)
        return NEED_DATA if frame is NEED_DATA else self._decompress(frame)

    def decode_eof(self, buffer: ReceiveBuffer) -> bytes | Literal[NeedData.NEED_DATA]:
        frame = self.inner.decode_eof(buffer)
        return NEED_DATA if frame is NEED_DATA else self._decompress(frame)

    def _decompress(self, frame: bytes) -> bytes:
        max_size = self.max_size
        stream = zlib.decompressobj(_WINDOW_BITS[self.method])
        try:
            # A length of 0 would mean no limit.
            message = stream.decompress(frame, min(max_size, sys.maxsize) or 1)
            size = len(message)
            if not stream.eof:  # there may be no more than the end, or one byte too many
                size += len(stream.decompress(stream.unconsumed_tail, 1))
        except zlib.error as error:
            raise invalid_message(frame, f"not compressed by {self.method}: {error}") from error
        if size > max_size:
            raise MessageTooLargeError(
                f"the peer sent {len(frame)} bytes that decompress to more than max_size, which is "
                f"{max_size} bytes"
            )
        if not stream.eof:
            raise invalid_message(frame, f"the data compressed by {self.method} is cut short")
        if stream.unused_data:
            raise invalid_message(
                frame,
                f"{len(stream.unused_data)} bytes follow the data compressed by {self.method}",
            )
        return message


@attrs.define(eq=False)
class CompressedWriter(Writer[bytes]):
    """The writer of `Codec.compressed`; its ``max_size`` may be changed between two messages."""

    inner: Writer[bytes]
    method: Compression
    level: int
    max_size: int

    @property
    def stateful(self) -> bool:  # type: ignore[override]  # each instance has its inner one's
        """Whether the inner writer is."""
        return self.inner.stateful

    def encode(self, message: Buffer) -> Buffer | Sequence[Buffer]:
        message = to_bytes(message, "compressed()")
        if len(message) > self.max_size:
            raise EncodeError(
                f"the message has {len(message)} bytes; max_size of compressed() allows "
                f"{self.max_size} bytes"
            )
        return self.inner.encode(zlib.compress(message, self.level, _WINDOW_BITS[self.method]))


@attrs.frozen
class Compressed(Codec[bytes, bytes]):
    """What `Codec.compressed` returns."""

    inner: Codec[bytes, bytes]
    method: Compression = attrs.field(validator=one_of(*_WINDOW_BITS))
    level: int = attrs.field(validator=whole_number(0, 9, unit="steps"))
    max_size: int = attrs.field(validator=whole_number(0, unit="bytes"))

    def reader(self) -> CompressedReader:
        return CompressedReader(self.inner.reader(), self.method, self.max_size)

    def writer(self) -> CompressedWriter:
        return CompressedWriter(self.inner.writer(), self.method, self.level, self.max_size)
