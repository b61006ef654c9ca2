"""`ContentLength`: messages behind a header that says how long they are, as language servers do."""

from __future__ import annotations

import re
from typing import Literal

import attrs

from ._buffer import ReceiveBuffer
from ._codec import NEED_DATA, Buffer, Codec, NeedData, Reader, Writer, to_bytes
from ._errors import EncodeError, MessageTooLargeError, ProtocolError
from ._length_prefixed import JOIN_BELOW
from ._validators import whole_number

# More than any message can have; a number of more digits is not even read.
_MOST_DIGITS = 20

_EMPTY_LINE = b"\r\n\r\n"  # behind the last line's end

# The longest header that a writer makes, so that what is sent can be received.
_LEAST_HEADER_SIZE = len("Content-Length: \r\n\r\n") + _MOST_DIGITS

# The header as nearly every peer sends it, which is the fast path.
_USUAL_HEADER = re.compile(rb"(?i:Content-Length): ?(\d{1,%d})\r\n\r\n" % _MOST_DIGITS)

_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # a token of RFC 9110, section 5.6.2
_VALUE = re.compile(rb"[\t\x20-\x7e]*")
_NUMBER = re.compile(rb"[0-9]{1,%d}" % _MOST_DIGITS)


def _length_in(header: bytes) -> int:
    """What a header, without the empty line at its end, says of the message's length.

    Raises:
      ProtocolError: if it says nothing, or nothing clear, or is no header.
    """
    length: bytes | None = None
    for line in header.split(b"\r\n"):
        name, colon, value = line.partition(b":")
        if not colon or not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            raise ProtocolError(
                f"the peer sent {line!r:.100} in a header; expected is a name, a colon and a "
                f"value, in ASCII"
            )
        if name.lower() != b"content-length":
            continue
        if length is not None:
            raise ProtocolError("the peer sent a header with two Content-Length fields")
        length = value.strip(b" \t")
        if not _NUMBER.fullmatch(length):
            raise ProtocolError(
                f"the peer sent Content-Length {length!r:.100}; expected is a number of bytes in "
                f"ASCII digits, {_MOST_DIGITS} at the most"
            )
    if length is None:
        raise ProtocolError("the peer sent a header without Content-Length")
    return int(length)


@attrs.define(eq=False)
class ContentLengthReader(Reader[bytes]):
    """The reader of `ContentLength`; its limits may be changed between two messages."""

    max_size: int
    max_header_size: int

    def decode(self, buffer: ReceiveBuffer) -> bytes | Literal[NeedData.NEED_DATA]:
        data = buffer.data
        start = buffer.start
        usual = _USUAL_HEADER.match(data, start)
        if usual and (header_size := usual.end() - start) <= self.max_header_size:
            length = int(usual[1])
            begin = start + header_size
            end = begin + length
            if end <= len(data) and length <= self.max_size:
                buffer.start = end
                return data[begin:end]
        else:
            header = self._header(buffer)
            if header is None:
                return NEED_DATA
            length = _length_in(header)
            header_size = len(header) + len(_EMPTY_LINE)
        if length > self.max_size:
            raise MessageTooLargeError(
                f"the peer announced a message of {length} bytes; "
                f"max_size allows {self.max_size} bytes"
            )
        message = buffer.take(length, skip=header_size)
        return NEED_DATA if message is None else message

    def _header(self, buffer: ReceiveBuffer) -> bytes | None:
        """The whole header without the empty line at its end, left in the buffer.

        Raises:
          ProtocolError: if there is nothing in it.
          MessageTooLargeError: if it is over ``max_header_size``, or is going to be.
        """
        if buffer.peek(2) == b"\r\n":
            raise ProtocolError("the peer sent an empty line; expected is a header in front of it")
        length = buffer.find(_EMPTY_LINE)
        least = len(buffer) + 1 if length < 0 else length + len(_EMPTY_LINE)
        if least > self.max_header_size:
            raise MessageTooLargeError(
                f"the peer sent a header of {least} bytes{' or more' if length < 0 else ''}; "
                f"max_header_size allows {self.max_header_size} bytes"
            )
        return None if length < 0 else buffer.peek(length)


@attrs.define(eq=False)
class ContentLengthWriter(Writer[bytes]):
    """The writer of `ContentLength`; its ``max_size`` may be changed between two messages."""

    max_size: int

    def encode(self, message: Buffer) -> bytes | tuple[bytes, bytes]:
        if type(message) is not bytes:
            message = to_bytes(message, "ContentLength")
        length = len(message)
        if length > self.max_size:
            raise EncodeError(
                f"the message has {length} bytes; max_size allows {self.max_size} bytes"
            )
        header = b"Content-Length: %d\r\n\r\n" % length
        if length < JOIN_BELOW:
            return header + message
        return header, message


@attrs.frozen
class ContentLength(Codec[bytes, bytes]):
    """Messages behind a header that has a ``Content-Length``, the number of their bytes.

    The base protocol of the Language Server Protocol 3.17, and of the Debug Adapter Protocol. The
    message is what they call the content, JSON in UTF-8 mostly.

    Args:
      max_size: The largest message accepted and sent, in bytes without the header. A longer one
          that a peer announces is refused before any memory is taken for it.
      max_header_size: The largest header accepted, in bytes with the empty line that ends it.

    In a header that is received, the case of names does not matter, and fields other than
    ``Content-Length`` are ignored. It is a `ProtocolError` if that one is missing, is there twice,
    or is anything but ASCII digits; or if the header is not fields in ASCII that each end with a
    carriage return and a line feed. What is sent has ``Content-Length`` and no other field.
    """

    max_size: int = attrs.field(default=2**20, validator=whole_number(0, unit="bytes"))
    max_header_size: int = attrs.field(
        default=4096, validator=whole_number(_LEAST_HEADER_SIZE, unit="bytes"), kw_only=True
    )

    def reader(self) -> ContentLengthReader:
        return ContentLengthReader(self.max_size, self.max_header_size)

    def writer(self) -> ContentLengthWriter:
        return ContentLengthWriter(self.max_size)
