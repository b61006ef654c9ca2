r"""`COBS` and `SLIP`: frames that end with a byte that stuffing keeps out of them.

The delimiter occurs nowhere within a frame, so a reader that got a damaged one is at the right
place again with the next delimiter. Therefore what is malformed is consumed, and raises
InvalidMessageError: whoever owns the connection may go on behind it.

Delimiters with nothing in between are dropped, for they are sent to keep what was on the line
before apart from the next frame. They stay in the buffer until that frame is there, like the
beginning of any message.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Literal, cast

import attrs

from ._buffer import ReceiveBuffer
from ._codec import NEED_DATA, Buffer, Codec, NeedData, Reader, Writer, to_bytes
from ._errors import EncodeError, InvalidMessageError, MessageTooLargeError
from ._validators import whole_number

# What is stuffed at once: for a larger message, the lists and copies on the way to the frame would
# take many times the memory of the frame.
_SEGMENT_SIZE = 1024

# So many in a row are what a careful peer and a noisy line may bring. An endless stream of them
# must not fill the buffer.
_MOST_DELIMITERS = 64


@attrs.frozen
class _Stuffing:
    """What the two protocols do not have in common, for `_find_frame`."""

    delimiter: bytes
    end: re.Pattern[bytes]  # the last byte of a frame that is not empty, and its delimiter
    least: Callable[[int], int]  # the size of the smallest message with so many bytes of frame


def _find_frame(
    buffer: ReceiveBuffer, stuffing: _Stuffing, max_size: int
) -> tuple[int, int] | None:
    """Bring the next frame to the buffer's front; where it begins and ends in its ``data``.

    Returns:
      None if there is no whole frame.

    Raises:
      MessageTooLargeError: if its message is over ``max_size``, or is going to be.
      InvalidMessageError: if there are too many delimiters before it. They are consumed.
    """
    found = buffer._find_any(stuffing.end, 2)
    size = len(buffer)
    head = cast(bytes, buffer.peek(min(size, _MOST_DELIMITERS + 1)))  # not None: they are there
    delimiters = len(head) - len(head.lstrip(stuffing.delimiter))
    if delimiters > _MOST_DELIMITERS:
        buffer.skip(delimiters)
        raise _invalid(head, f"more than {_MOST_DELIMITERS} delimiters in a row")
    end = found[1] - 1 if found else size
    least = stuffing.least(end - delimiters)
    if least > max_size:
        raise _too_large(f"{least} bytes or more", max_size)
    if not found:
        return None
    buffer._reach(end + 1)  # with the delimiter
    return buffer.start + delimiters, buffer.start + end


def _too_large(sent: str, max_size: int) -> MessageTooLargeError:
    return MessageTooLargeError(
        f"the peer sent a message of {sent}; max_size allows {max_size} bytes"
    )


def _invalid(frame: bytes, reason: str) -> InvalidMessageError:
    return InvalidMessageError(
        f"the peer sent {len(frame)} bytes that are no frame: {reason}", reason=reason, frame=frame
    )


def _checked(message: Buffer, codec: str, max_size: int) -> bytes:
    if type(message) is not bytes:
        message = to_bytes(message, codec)
    if len(message) > max_size:
        raise EncodeError(f"the message has {len(message)} bytes; max_size allows {max_size} bytes")
    return message


# -- COBS

# A frame consists of groups: a code, which is one more than the number of bytes behind it, and
# these bytes. Each group stands for its bytes and a zero, but the longest one has no zero, and that
# of the last one is not a part of the message.
_LONGEST_CODE = 255
_LONGEST_GROUP = 254
_LONGEST_GROUPS = _SEGMENT_SIZE - _SEGMENT_SIZE % _LONGEST_GROUP  # the bytes of a segment of these
_CODES = [bytes([1 + length]) for length in range(_LONGEST_CODE)]

_COBS = _Stuffing(
    b"\0",
    re.compile(rb"[^\0]\0"),
    # The most that can be codes without a zero, and the last.
    lambda length: length - -(-length // _LONGEST_CODE),
)


def _without_codes(data: bytes, begin: int, end: int) -> bytes | None:
    """The message of the frame from ``begin`` to ``end``; None if the last group is cut off."""
    # Not joined out of a list of pieces: the shortest has one byte, and its entry takes eight.
    message = io.BytesIO()
    write = message.write
    code = _LONGEST_CODE  # no zero in front of the first group
    while begin < end:
        if code != _LONGEST_CODE:
            write(b"\0")
        code = data[begin]
        write(data[begin + 1 : begin + code])
        begin += code
    return message.getvalue() if begin == end else None


@attrs.define(eq=False)
class COBSReader(Reader[bytes]):
    """The reader of `COBS`; its ``max_size`` may be changed between two messages."""

    max_size: int

    def decode(self, buffer: ReceiveBuffer) -> bytes | Literal[NeedData.NEED_DATA]:
        # The fast path: the frame lies within the front, is small enough however it is stuffed, and
        # has no other delimiter before it.
        begin = buffer.start
        end = buffer.data.find(b"\0", begin) if buffer._search is None else -1
        if not 0 < end - begin <= self.max_size:
            place = _find_frame(buffer, _COBS, self.max_size)
            if place is None:
                return NEED_DATA
            begin, end = place
        message = _without_codes(buffer.data, begin, end)
        if message is None:
            frame = buffer.data[begin:end]
            buffer.start = end + 1
            raise _invalid(frame, "the last code of COBS stands for more bytes than there are")
        if len(message) > self.max_size:
            raise _too_large(f"{len(message)} bytes", self.max_size)
        buffer.start = end + 1
        return message

    def decode_eof(self, buffer: ReceiveBuffer) -> bytes | Literal[NeedData.NEED_DATA]:
        # Zeros end frames and begin none; `decode` has seen that there are not too many.
        size = len(buffer)
        if size <= _MOST_DELIMITERS and not cast(bytes, buffer.peek(size)).strip(b"\0"):
            return NEED_DATA
        return super().decode_eof(buffer)


def _with_codes(segment: bytes, *, zero_follows: bool = False) -> bytes:
    """The groups of a part of a message that begins with one."""
    pieces: list[bytes] = []
    for part in segment.split(b"\0"):
        rest = part
        if len(part) >= _LONGEST_GROUP:
            full = len(part) - len(part) % _LONGEST_GROUP
            for begin in range(0, full, _LONGEST_GROUP):
                pieces += b"\xff", part[begin : begin + _LONGEST_GROUP]
            rest = part[full:]
        pieces.append(_CODES[len(rest)])
        pieces.append(rest)
    if part and not rest and not zero_follows:
        # The segment ends with a longest group, which says itself that no zero follows.
        del pieces[-2:]
    return b"".join(pieces)


@attrs.define(eq=False)
class COBSWriter(Writer[bytes]):
    """The writer of `COBS`; its ``max_size`` may be changed between two messages."""

    max_size: int

    def encode(self, message: Buffer) -> bytes:
        message = _checked(message, "COBS", self.max_size)
        length = len(message)
        if length <= _SEGMENT_SIZE:
            return _with_codes(message) + b"\0"
        frame = io.BytesIO()
        begin = 0
        while length - begin > _SEGMENT_SIZE:
            zero = message.rfind(b"\0", begin, begin + _SEGMENT_SIZE)
            if zero >= 0:
                frame.write(_with_codes(message[begin:zero], zero_follows=True))
                begin = zero + 1
            else:
                end = begin + _LONGEST_GROUPS
                frame.write(_with_codes(message[begin:end]))
                begin = end
        frame.write(_with_codes(message[begin:]))
        frame.write(b"\0")
        return frame.getvalue()


@attrs.frozen
class COBS(Codec[bytes, bytes]):
    """Frames in which Consistent Overhead Byte Stuffing leaves no zero byte, with one behind each.

    The encoding is that of Cheshire and Baker, "Consistent Overhead Byte Stuffing", IEEE/ACM
    Transactions on Networking 7(2), 1999. It makes a message longer by one byte, and by at most
    one more for each 254.

    Args:
      max_size: The largest message accepted and sent, in bytes without what stuffing adds.

    Zero bytes with nothing in between are dropped when receiving. (An empty message is no such
    nothing: it can be sent.) More than 64 in a row, or a malformed frame, are an
    `InvalidMessageError`: they have been consumed, and receiving can go on.
    """

    max_size: int = attrs.field(default=2**20, validator=whole_number(0, unit="bytes"))

    def reader(self) -> COBSReader:
        return COBSReader(self.max_size)

    def writer(self) -> COBSWriter:
        return COBSWriter(self.max_size)


# -- SLIP

_END = b"\xc0"
_ESC = b"\xdb"
_ESCAPED_END = b"\xdb\xdc"
_ESCAPED_ESC = b"\xdb\xdd"

_SLIP = _Stuffing(
    _END,
    re.compile(rb"[^\xc0]\xc0"),
    lambda length: -(-length // 2),  # all of them escaped
)


def _unescaped(data: bytes, begin: int, end: int) -> bytes | None:
    """The packet of the frame from ``begin`` to ``end``; None if it is malformed."""
    if end - begin <= _SEGMENT_SIZE:
        return _unescaped_segment(data[begin:end])
    packet = io.BytesIO()
    while begin < end:
        until = min(begin + _SEGMENT_SIZE, end)
        if until < end and data[until - 1] == _ESC[0]:
            until += 1  # with what is escaped
        segment = _unescaped_segment(data[begin:until])
        if segment is None:
            return None
        packet.write(segment)
        begin = until
    return packet.getvalue()


def _unescaped_segment(segment: bytes) -> bytes | None:
    escapes = segment.count(_ESC)
    if not escapes:
        return segment
    if segment.count(_ESCAPED_END) + segment.count(_ESCAPED_ESC) != escapes:
        return None
    # In this order, for the other way round the second would see what the first has made.
    return segment.replace(_ESCAPED_END, _END).replace(_ESCAPED_ESC, _ESC)


@attrs.define(eq=False)
class SLIPReader(Reader[bytes]):
    """The reader of `SLIP`; its ``max_size`` may be changed between two messages."""

    max_size: int

    def decode(self, buffer: ReceiveBuffer) -> bytes | Literal[NeedData.NEED_DATA]:
        # The fast path: the frame lies within the front, is small enough however it is stuffed, and
        # has one delimiter before it, or none.
        begin = buffer.start
        end = -1
        if buffer._search is None:
            end = buffer.data.find(_END, begin)
            if end == begin:
                begin += 1
                end = buffer.data.find(_END, begin)
        if not 0 < end - begin <= self.max_size:
            place = _find_frame(buffer, _SLIP, self.max_size)
            if place is None:
                return NEED_DATA
            begin, end = place
        message = _unescaped(buffer.data, begin, end)
        if message is None:
            frame = buffer.data[begin:end]
            buffer.start = end + 1
            raise _invalid(frame, "behind 0xdb SLIP has 0xdc or 0xdd and nothing else")
        if len(message) > self.max_size:
            raise _too_large(f"{len(message)} bytes", self.max_size)
        buffer.start = end + 1
        return message


def _escaped(segment: bytes) -> bytes:
    return segment.replace(_ESC, _ESCAPED_ESC).replace(_END, _ESCAPED_END)


@attrs.define(eq=False)
class SLIPWriter(Writer[bytes]):
    """The writer of `SLIP`; its ``max_size`` may be changed between two messages."""

    max_size: int

    def encode(self, message: Buffer) -> bytes:
        message = _checked(message, "SLIP", self.max_size)
        if not message:
            raise EncodeError("the message is empty: SLIP's receivers drop empty packets")
        length = len(message)
        if length <= _SEGMENT_SIZE:
            return b"%b%b%b" % (_END, _escaped(message), _END)
        frame = io.BytesIO()
        frame.write(_END)
        for begin in range(0, length, _SEGMENT_SIZE):
            frame.write(_escaped(message[begin : begin + _SEGMENT_SIZE]))
        frame.write(_END)
        return frame.getvalue()


@attrs.frozen
class SLIP(Codec[bytes, bytes]):
    """Packets as on serial lines, with an END byte (0xc0) at both ends.

    As RFC 1055 says: END and ESC (0xdb) within a packet are escaped, and what is sent has an END in
    front as well, to keep it apart from noise that the line may have had before. What is received
    need not have that one.

    Args:
      max_size: The largest packet accepted and sent, in bytes without what escaping adds.

    Empty packets are dropped when receiving, and cannot be sent: `EncodeError`. More than 64 END in
    a row, or an ESC with anything behind it but what RFC 1055 gives, are an `InvalidMessageError`:
    they have been consumed, and receiving can go on.
    """

    max_size: int = attrs.field(default=2**20, validator=whole_number(1, unit="bytes"))

    def reader(self) -> SLIPReader:
        return SLIPReader(self.max_size)

    def writer(self) -> SLIPWriter:
        return SLIPWriter(self.max_size)
