"""`VarintPrefixed`: each message behind its length as a varint, as protobuf delimits messages."""

from __future__ import annotations

from typing import Literal

import attrs

from ._buffer import ReceiveBuffer
from ._codec import NEED_DATA, Buffer, Codec, NeedData, Reader, Writer, to_bytes
from ._errors import EncodeError, MessageTooLargeError, ProtocolError
from ._length_prefixed import JOIN_BELOW
from ._validators import whole_number


@attrs.define(eq=False)
class VarintPrefixedReader(Reader[bytes]):
    """The reader of `VarintPrefixed`; its ``max_size`` may be changed between two messages."""

    max_size: int

    def decode(self, buffer: ReceiveBuffer) -> bytes | Literal[NeedData.NEED_DATA]:
        # The fast path: a length of one or two bytes, and its payload within the front.
        data = buffer.data
        begin = buffer.start + 1
        there = len(data)
        if begin < there:
            length = data[begin - 1]
            if length >= 0x80:
                second = data[begin]
                if not 0 < second < 0x80:
                    return self._decode_any(buffer)
                length += (second << 7) - 0x80
                begin += 1
            end = begin + length
            if end <= there and length <= self.max_size:
                buffer.start = end
                return data[begin:end]
        return self._decode_any(buffer)

    def _decode_any(self, buffer: ReceiveBuffer) -> bytes | Literal[NeedData.NEED_DATA]:
        size = 1
        while True:
            header = buffer.peek(size)
            if header is None:
                return NEED_DATA
            if header[-1] < 0x80:
                break
            # Another byte follows, and is 1 at least if it does not pad.
            least = 1 << 7 * size
            if least > self.max_size:
                raise MessageTooLargeError(
                    f"the peer announced a message of {least} bytes or more, or padded its length "
                    f"with zeros; max_size allows {self.max_size} bytes"
                )
            size += 1
        length = sum((byte & 0x7F) << 7 * index for index, byte in enumerate(header))
        if size > 1 and not header[-1]:
            raise ProtocolError(
                f"the peer sent the length {length} padded with zeros, as {header.hex(' ')}; "
                f"expected was its shortest form"
            )
        if length > self.max_size:
            raise MessageTooLargeError(
                f"the peer announced a message of {length} bytes; "
                f"max_size allows {self.max_size} bytes"
            )
        message = buffer.take(length, skip=size)
        return NEED_DATA if message is None else message


def _varint(value: int) -> bytes:
    groups = []
    while value >= 0x80:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)


@attrs.define(eq=False)
class VarintPrefixedWriter(Writer[bytes]):
    """The writer of `VarintPrefixed`; its ``max_size`` may be changed between two messages."""

    max_size: int

    def encode(self, message: Buffer) -> bytes | tuple[bytes, bytes]:
        if type(message) is not bytes:
            message = to_bytes(message, "VarintPrefixed")
        length = len(message)
        if length > self.max_size:
            raise EncodeError(
                f"the message has {length} bytes; max_size allows {self.max_size} bytes"
            )
        header = length.to_bytes(1, "big") if length < 0x80 else _varint(length)
        if length < JOIN_BELOW:
            return header + message
        return header, message


@attrs.frozen
class VarintPrefixed(Codec[bytes, bytes]):
    """Frames of a length as an unsigned LEB128 number ("varint") and so many bytes of payload.

    Seven bits a byte, the lowest first; the eighth says that another byte follows. Protobuf's
    `encoding <https://protobuf.dev/programming-guides/encoding/#varints>`__ defines it, and
    multiformats' `unsigned-varint <https://github.com/multiformats/unsigned-varint>`__ what is kept
    to here: a length in more bytes than it needs is a `ProtocolError`.

    Args:
      max_size: The largest payload accepted and sent, in bytes. A longer one that a peer announces
          is refused before any memory is taken for it, with the first byte that makes it too
          long. At most ``2**64 - 1``, as in protobuf.

    Messages are `bytes`. A `bytearray` or `memoryview` can be sent as well, and is copied; but that
    is at run time, and a type checker knows of `bytes` only.
    """

    max_size: int = attrs.field(default=2**20, validator=whole_number(0, 2**64 - 1, unit="bytes"))

    def reader(self) -> VarintPrefixedReader:
        return VarintPrefixedReader(self.max_size)

    def writer(self) -> VarintPrefixedWriter:
        return VarintPrefixedWriter(self.max_size)
