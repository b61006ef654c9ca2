"""`ContentLength`: messages behind a header that says how long they are, as language servers do."""

from __future__ import annotations

import re
from typing import Literal, cast

import attrs

from ._buffer import ReceiveBuffer, _Search
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

_NAME = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"  # a token of RFC 9110, section 5.6.2
_VALUE = rb"[\t\x20-\x7e]*"

# What any header may begin with: whole lines, and then a part of one or of the empty line.
_BEGINNING = re.compile(
    rb"(?:%b:%b\r\n)+(?:%b(?::%b\r?)?|\r\n?)?|(?:%b(?::%b\r?)?)?"
    % (_NAME, _VALUE, _NAME, _VALUE, _NAME, _VALUE)
)

_NUMBER = re.compile(rb"[0-9]{1,%d}" % _MOST_DIGITS)


def _tail(beginning: bytes) -> bytes:
    """A few bytes that may be followed by what a header's ``beginning`` may be, which is right."""
    _, newline, line = beginning.rpartition(b"\n")
    name, colon, value = line.partition(b":")
    return (b"a:\r\n" if newline else b"") + name[:1] + colon + value[-1:]


def _length_in(header: bytes) -> int:
    """What a header, without the empty line at its end, says of the message's length.

    Raises:
      ProtocolError: if it says nothing, or nothing clear.
    """
    length: bytes | None = None
    for line in header.split(b"\r\n"):
        name, _, value = line.partition(b":")
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

    # How far a header that is not whole was found right: what the buffer remembers of its search,
    # which tells whether it still is the same header, and the `_tail` of that much.
    _seen: tuple[_Search | None, bytes] = attrs.field(default=(None, b""), init=False, repr=False)

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
          ProtocolError: with the first byte that no header can have there.
          MessageTooLargeError: if it is over ``max_header_size``, or is going to be.
        """
        search, tail = self._seen
        seen = 0
        if search is not None and search is buffer._search and search.start == buffer.start:
            seen = search.searched
        else:
            tail = b""
        length = buffer.find(_EMPTY_LINE)
        is_whole = length >= 0
        size = length + len(_EMPTY_LINE) if is_whole else len(buffer)
        # Beyond the limit nothing is looked at, for in small pieces it would not have come so far.
        fresh = tail + cast(
            bytes, buffer.peek(max(0, min(size, self.max_header_size) - seen), seen)
        )
        right = cast("re.Match[bytes]", _BEGINNING.match(fresh)).end()
        if right < len(fresh):
            place = seen + right - len(tail)
            line = cast(bytes, buffer.peek(place)).rpartition(b"\n")[2]
            raise ProtocolError(
                f"the peer sent {fresh[right : right + 1]!r} in a header, behind {line[-40:]!r}; "
                f"expected is a name, a colon and a value on each line, in ASCII"
            )
        least = size if is_whole else size + 1
        if least > self.max_header_size:
            raise MessageTooLargeError(
                f"the peer sent a header of {least} bytes{'' if is_whole else ' or more'}; "
                f"max_header_size allows {self.max_header_size} bytes"
            )
        if is_whole:
            return buffer.peek(length)
        self._seen = (buffer._search, _tail(fresh))
        return None


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
    carriage return and a line feed; that is refused with the first byte that cannot be right. What
    is sent has ``Content-Length`` and no other field.
    """

    max_size: int = attrs.field(default=2**20, validator=whole_number(0, unit="bytes"))
    max_header_size: int = attrs.field(
        default=4096, validator=whole_number(_LEAST_HEADER_SIZE, unit="bytes"), kw_only=True
    )

    def reader(self) -> ContentLengthReader:
        return ContentLengthReader(self.max_size, self.max_header_size)

    def writer(self) -> ContentLengthWriter:
        return ContentLengthWriter(self.max_size)
