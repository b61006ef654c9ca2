"""`LengthPrefixed`: each message behind its length, as byte_talk, Twisted and many others do."""

from __future__ import annotations

from typing import Literal

import attrs

from ._buffer import ReceiveBuffer
from ._codec import NEED_DATA, Buffer, Codec, NeedData, Reader, Writer, to_bytes
from ._errors import EncodeError, MessageTooLargeError
from ._validators import one_of, whole_number

# From this size on a payload is cheaper to hand over as it is, in a second piece, than to copy
# behind its header; below it the copy costs less than the second piece does.
_JOIN_BELOW = 4096

ByteOrder = Literal["big", "little"]


@attrs.define(eq=False)
class LengthPrefixedReader(Reader[bytes]):
    """The reader of `LengthPrefixed`; its ``max_size`` may be changed between two messages."""

    size: int
    byteorder: ByteOrder
    max_size: int

    def decode(self, buffer: ReceiveBuffer) -> bytes | Literal[NeedData.NEED_DATA]:
        # The fast path: header and payload lie within the front. Reading the length of a header
        # that is cut off gives some number, so the header's end is checked along with the frame's.
        data = buffer.data
        begin = buffer.start + self.size
        length = int.from_bytes(data[buffer.start : begin], self.byteorder)
        end = begin + length
        if end <= len(data) and length <= self.max_size:
            buffer.start = end
            return data[begin:end]

        header = buffer.peek(self.size)
        if header is None:
            return NEED_DATA
        length = int.from_bytes(header, self.byteorder)
        if length > self.max_size:
            raise MessageTooLargeError(
                f"the peer announced a message of {length} bytes; "
                f"max_size allows {self.max_size} bytes"
            )
        message = buffer.take(length, skip=self.size)
        return NEED_DATA if message is None else message


@attrs.define(eq=False)
class LengthPrefixedWriter(Writer[bytes]):
    """The writer of `LengthPrefixed`; its ``max_size`` may be changed between two messages."""

    size: int
    byteorder: ByteOrder
    max_size: int

    def encode(self, message: Buffer) -> bytes | tuple[bytes, bytes]:
        if type(message) is not bytes:
            message = to_bytes(message, "LengthPrefixed")
        length = len(message)
        if length > self.max_size or length >> 8 * self.size:
            raise EncodeError(self._why_too_long(length))
        header = length.to_bytes(self.size, self.byteorder)
        if length < _JOIN_BELOW:
            return header + message
        return header, message

    def _why_too_long(self, length: int) -> str:
        if length > self.max_size:
            return f"the message has {length} bytes; max_size allows {self.max_size} bytes"
        return (
            f"the message has {length} bytes; a length field of size={self.size} holds at most "
            f"{(1 << 8 * self.size) - 1}"
        )


@attrs.frozen
class LengthPrefixed(Codec[bytes, bytes]):
    """Frames of an unsigned length field and so many bytes of payload.

    The default is what byte_talk and Twisted's ``Int32StringReceiver`` speak.

    Args:
      size: The size of the length field, 1 to 8 bytes.
      byteorder: ``"big"`` (network byte order, as in RFC 1700) or ``"little"``.
      max_size: The largest payload accepted and sent, in bytes. A longer one that a peer announces
          is refused before any memory is taken for it.

    Messages are received as `bytes`; `bytes`, `bytearray` and `memoryview` can be sent.
    """

    size: int = attrs.field(default=4, validator=whole_number(1, 8, unit="bytes"))
    byteorder: ByteOrder = attrs.field(default="big", validator=one_of("big", "little"))
    max_size: int = attrs.field(default=2**20, validator=whole_number(0, unit="bytes"))

    def reader(self) -> LengthPrefixedReader:
        return LengthPrefixedReader(self.size, self.byteorder, self.max_size)

    def writer(self) -> LengthPrefixedWriter:
        return LengthPrefixedWriter(self.size, self.byteorder, self.max_size)
