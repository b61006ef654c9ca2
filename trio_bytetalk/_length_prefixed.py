"""`LengthPrefixed`: each message behind its length, as byte_talk, Twisted and many others do."""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable
from typing import Any, Literal, cast

import attrs

from ._buffer import ReceiveBuffer
from ._codec import NEED_DATA, AheadReader, Buffer, Codec, NeedData, Writer, settle_first, to_bytes
from ._errors import EncodeError, MessageTooLargeError, ProtocolError
from ._validators import one_of, true_or_false, whole_number

# From this size on a payload is cheaper to hand over as it is, in a second piece, than to copy
# behind its header; below it the copy costs less than the second piece does.
JOIN_BELOW = 4096

ByteOrder = Literal["big", "little"]


@functools.cache  # a connection's reader then costs no struct of its own
def _unpacker(
    size: int, byteorder: ByteOrder, signed: bool
) -> Callable[[bytes, int], tuple[int, ...]]:
    """What reads a length field at an offset, in the way of `struct.Struct.unpack_from`.

    That is faster than `int.from_bytes` by a quarter of what decoding a small message takes, but
    knows only sizes that are a power of two.
    """
    code = {1: "b", 2: "h", 4: "i", 8: "q"}.get(size)
    if code is not None:
        order = ">" if byteorder == "big" else "<"
        return struct.Struct(order + (code if signed else code.upper())).unpack_from

    from_bytes = int.from_bytes

    def unpack_from(data: bytes, offset: int) -> tuple[int, ...]:
        return (from_bytes(data[offset : offset + size], byteorder, signed=signed),)

    return unpack_from


@functools.cache
def _small_headers(size: int, byteorder: ByteOrder) -> dict[int, bytes]:
    """The length fields of small messages, for making one takes a third of the time of encoding."""
    lengths = range(min(1024, _most(size) + 1))
    return {length: length.to_bytes(size, byteorder) for length in lengths}


@attrs.define(eq=False)
class LengthPrefixedReader(AheadReader[bytes]):
    """The reader of `LengthPrefixed`; its ``max_size`` may be changed between two messages."""

    size: int = attrs.field(on_setattr=attrs.setters.frozen)
    byteorder: ByteOrder = attrs.field(on_setattr=attrs.setters.frozen)
    max_size: int = attrs.field(on_setattr=settle_first)
    _unpack: Callable[[bytes, int], tuple[int, ...]] = attrs.field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self._unpack = _unpacker(self.size, self.byteorder, False)

    def decode(self, buffer: ReceiveBuffer) -> bytes | Literal[NeedData.NEED_DATA]:
        # The fast path: length and payload lie within the front.
        data = buffer.data
        start = buffer.start
        begin = start + self.size
        there = len(data)
        if begin <= there:
            (length,) = self._unpack(data, start)
            end = begin + length
            if end <= there and length <= self.max_size:
                buffer.start = end
                return data[begin:end]

        header = buffer.peek(self.size)
        if header is None:
            return NEED_DATA
        (length,) = self._unpack(header, 0)
        if length > self.max_size:
            raise MessageTooLargeError(
                f"the peer announced a message of {length} bytes; "
                f"max_size allows {self.max_size} bytes"
            )
        message = buffer.take(length, skip=self.size)
        return NEED_DATA if message is None else message

    def decode_ahead(self, buffer: ReceiveBuffer, most: int) -> list[bytes]:
        data = buffer.data
        there = len(data)
        size = self.size
        last = there - size
        start = buffer.start
        max_size = self.max_size
        unpack = self._unpack
        messages: list[bytes] = []
        append = messages.append
        for _ in range(most):
            if start > last:
                break
            (length,) = unpack(data, start)
            begin = start + size
            end = begin + length
            if end > there or length > max_size:
                break
            append(data[begin:end])
            start = end
        buffer.start = start
        return messages


@attrs.define(eq=False)
class LengthFieldReader(LengthPrefixedReader):
    """The reader for the settings that `LengthPrefixedReader` is spared, for speed."""

    signed: bool
    offset: int
    adjustment: int
    strip: int | None
    header: bytes
    # Of what stands ahead of the payload, length field included, its size and what a message keeps.
    _ahead: int = attrs.field(init=False, repr=False)
    _kept: int = attrs.field(init=False, repr=False)
    _least: int = attrs.field(init=False, repr=False)  # the smallest length that can be meant

    def __attrs_post_init__(self) -> None:
        self._unpack = _unpacker(self.size, self.byteorder, self.signed)
        self._ahead = self.offset + self.size
        self._kept = self.offset if self.strip is None else self._ahead - self.strip
        self._least = max(0, -self.adjustment)

    def decode(self, buffer: ReceiveBuffer) -> bytes | Literal[NeedData.NEED_DATA]:
        # The fast path: a small frame that lies within the front, with nothing wrong in it.
        data = buffer.data
        start = buffer.start
        begin = start + self._ahead
        there = len(data)
        if begin <= there:
            field = start + self.offset
            (value,) = self._unpack(data, field)
            behind = value + self.adjustment
            end = begin + behind
            if (
                end <= there
                and behind < JOIN_BELOW
                and value >= self._least
                and behind + self._kept <= self.max_size
                and (not self.header or data.startswith(self.header, start))
            ):
                buffer.start = end
                strip = self.strip
                if strip is None:
                    return data[start:field] + data[begin:end]
                return data[start + strip : end]

        # First what is there of the header: a peer that sends another is refused with the first
        # byte of that, and not asked for more than one at a time.
        there = len(buffer)
        header = self.header
        begun = cast(bytes, buffer.peek(min(there, len(header)))) if header else b""
        if not header.startswith(begun):
            right = next(i for i, byte in enumerate(begun) if byte != header[i])
            raise ProtocolError(
                f"the peer sent a frame that begins with {begun[: right + 1]!r}; the setting "
                f"header is {header!r}"
            )
        # The codec allows more, but the limit may have been lowered since.
        max_size = self.max_size
        if min(there, self._kept) > max_size:
            raise MessageTooLargeError(
                f"the peer began a message of {self._kept} bytes or more; max_size allows "
                f"{max_size} bytes"
            )
        if there < len(header) or self._kept > max_size:
            buffer.peek(there + 1)  # which says how many are wanted
            return NEED_DATA
        head = buffer.peek(self._ahead)
        if head is None:
            return NEED_DATA
        behind = self._size_behind(head)
        if self.strip is not None:
            message = buffer.take(self._kept + behind, skip=self.strip)
            return NEED_DATA if message is None else message
        if len(buffer) < self._ahead + behind:
            buffer.take(self._ahead + behind)  # which says how many are wanted
            return NEED_DATA
        buffer.skip(self._ahead)
        return _take_behind(head[: self.offset], buffer, behind)

    def _size_behind(self, head: bytes) -> int:
        """How many bytes follow the length field of a frame that begins with ``head``.

        Raises:
          ProtocolError: if there cannot be such a frame, or it is too large.
        """
        (value,) = self._unpack(head, self.offset)
        if value < self._least:
            raise ProtocolError(
                f"the peer sent a length of {value}; with adjustment={self.adjustment} it must be "
                f"{self._least} or more"
            )
        behind = value + self.adjustment
        size = self._kept + behind
        if size > self.max_size:
            raise MessageTooLargeError(
                f"the peer announced a message of {size} bytes; max_size allows "
                f"{self.max_size} bytes"
            )
        return behind


def _take_behind(header: bytes, buffer: ReceiveBuffer, size: int) -> bytes:
    """Consume ``size`` bytes, which must be there, and return them behind ``header``.

    Each is copied once; to take them and then join the two would copy twice.
    """
    pieces: list[bytes | memoryview] = [header]
    while size:
        piece: bytes | memoryview = memoryview(buffer.data)[buffer.start :][:size]
        if piece:
            buffer.start += len(piece)
        else:
            # The front is used up; by taking a byte, which is there, the next chunk becomes it.
            piece = cast(bytes, buffer.take(1))
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


@attrs.define(eq=False)
class LengthPrefixedWriter(Writer[bytes]):
    """The writer of `LengthPrefixed`; its ``max_size`` may be changed between two messages."""

    size: int = attrs.field(on_setattr=attrs.setters.frozen)
    byteorder: ByteOrder = attrs.field(on_setattr=attrs.setters.frozen)
    max_size: int
    _headers: dict[int, bytes] = attrs.field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self._headers = _small_headers(self.size, self.byteorder)

    def encode(self, message: Buffer) -> bytes | tuple[bytes, bytes | memoryview]:
        if type(message) is not bytes:
            message = to_bytes(message, "LengthPrefixed")
        length = len(message)
        header = self._headers.get(length)
        if header is not None and length <= self.max_size:
            return header + message
        if length > self.max_size:
            raise EncodeError(
                f"the message has {length} bytes; max_size allows {self.max_size} bytes"
            )
        try:
            header = length.to_bytes(self.size, self.byteorder)
        except OverflowError:
            raise EncodeError(
                f"the message has {length} bytes; a length field of size={self.size} holds at "
                f"most {_most(self.size)}"
            ) from None
        if length < JOIN_BELOW:
            return header + message
        return header, message


@attrs.define(eq=False)
class LengthFieldWriter(LengthPrefixedWriter):
    """The writer for the settings that `LengthPrefixedWriter` is spared, for speed."""

    signed: bool
    offset: int
    adjustment: int
    strip: int | None
    header: bytes

    def encode(self, message: Buffer) -> bytes | tuple[bytes, bytes | memoryview]:
        if type(message) is not bytes:
            message = to_bytes(message, "LengthPrefixed")
        length = len(message)
        if length > self.max_size:
            raise EncodeError(
                f"the message has {length} bytes; max_size allows {self.max_size} bytes"
            )
        offset = self.offset
        if self.strip == 0:
            ahead = offset + self.size
            field = self._length_field(length - ahead, length)
            if message[offset:ahead] != field:
                raise EncodeError(
                    f"the length field of the message is {message[offset:ahead]!r}; in a whole "
                    f"frame of {length} bytes, as strip=0 has it, it must be {field!r}"
                )
            return message
        if self.strip is None:
            head = message[:offset] + self._length_field(length - offset, length)
            begin = offset
        else:
            head = self.header + self._length_field(length, length)
            begin = 0
        if length < JOIN_BELOW:
            return head + message[begin:]
        return head, memoryview(message)[begin:]

    def _length_field(self, behind: int, length: int) -> bytes:
        """The length field in front of the last ``behind`` bytes of a message of ``length``."""
        if behind < 0:
            raise EncodeError(
                f"the message has {length} bytes; it must have {length - behind} or more, for it "
                f"begins with a header (offset={self.offset}, strip={self.strip})"
            )
        value = behind - self.adjustment
        if value < 0:
            raise EncodeError(
                f"the message has {length} bytes; with adjustment={self.adjustment} it must have "
                f"{length - value} or more, or its length field would be negative"
            )
        try:
            return value.to_bytes(self.size, self.byteorder, signed=self.signed)
        except OverflowError:
            raise EncodeError(
                f"the message has {length} bytes, for which the length field is {value}; with "
                f"size={self.size} and signed={self.signed} it holds at most "
                f"{_most(self.size, self.signed)}"
            ) from None


def _most(size: int, signed: bool = False) -> int:
    """What a length field can hold at most."""
    return (1 << 8 * size - signed) - 1


def _adjustment(codec: LengthPrefixed, attribute: attrs.Attribute[Any], value: Any) -> None:
    if type(value) is not int:
        raise TypeError(f"{attribute.name} must be a whole number of bytes, not {value!r}")
    least = -_most(codec.size, codec.signed)
    if value < least:
        raise ValueError(
            f"{attribute.name} must be {least} or more bytes, for no length is longer in a field "
            f"of size={codec.size} and signed={codec.signed}, not {value!r}"
        )


def _strip(codec: LengthPrefixed, attribute: attrs.Attribute[Any], value: Any) -> None:
    if value is not None and type(value) is not int:
        raise TypeError(f"{attribute.name} must be None or a number of bytes, not {value!r}")
    ahead = codec.offset + codec.size
    if value not in (None, 0, ahead):
        raise ValueError(
            f"{attribute.name} must be None, 0 or offset + size = {ahead}, for of what is left by "
            f"any other number no frame can be made again, not {value!r}"
        )


def _header(codec: LengthPrefixed, attribute: attrs.Attribute[Any], value: Any) -> None:
    if type(value) is not bytes:
        raise TypeError(f"{attribute.name} must be bytes, not {value!r}")
    missing = codec.offset if codec.strip else 0
    if len(value) == missing:
        return
    if missing:
        raise ValueError(
            f"{attribute.name} must be the {missing} bytes that strip={codec.strip} takes off in "
            f"front of the length field, for the writer to put them there, not {value!r}; or "
            f"leave strip out, and messages begin with them"
        )
    raise ValueError(
        f"{attribute.name} must be empty, for a message has all that is in front of the length "
        f"field unless strip = offset + size, not {value!r}"
    )


def _message_fits(codec: LengthPrefixed, _attribute: attrs.Attribute[Any], _value: Any) -> None:
    """That there is a message that is not over ``max_size``; for the last of the settings."""
    kept = codec.offset if codec.strip is None else codec.offset + codec.size - codec.strip
    if kept > codec.max_size:
        raise ValueError(
            f"max_size must be {kept} or more bytes, for each message begins with so many "
            f"(offset={codec.offset}, strip={codec.strip}), not {codec.max_size!r}"
        )


@attrs.frozen
class LengthPrefixed(Codec[bytes, bytes]):
    """Frames of a length field and so many bytes, and what stands around these.

    The default is what byte_talk and Twisted's ``Int32StringReceiver`` speak. The settings behind
    ``max_size`` are for protocols that have more in a frame; they are those of Netty's
    ``LengthFieldBasedFrameDecoder`` and tokio-util's ``LengthDelimitedCodec``. A frame is

    - ``offset`` bytes,
    - the length field,
    - as many bytes as the length field says, plus ``adjustment``,

    and the message is all of it but the length field.

    Args:
      size: The size of the length field, 1 to 8 bytes.
      byteorder: ``"big"`` (network byte order, as in RFC 1700) or ``"little"``.
      max_size: The largest message accepted and sent, in bytes, of the message as it is received
          and sent: a header in it counts, what is stripped does not. A longer one that a peer
          announces is refused before any memory is taken for it. At least as large as what every
          message has: a header (and, with ``strip=0``, the length field).
      signed: Whether the length field is a signed number, as in Java. One below 0 is a
          `ProtocolError`.
      offset: How many bytes stand in front of the length field, such as a type. The message
          begins with them.
      adjustment: How many more bytes stand behind the length field than it says: less than 0 where
          it also counts itself or what is in front of it, more than 0 where there is something
          behind it that it does not count.
      strip: ``0`` to leave the length field in: messages are whole frames, and one to be sent must
          have the right length in it. ``offset + size`` to take off all that is in front of the
          rest, along with the length field. Nothing else, for it could not be undone.
      header: With ``strip=offset + size``, the ``offset`` bytes that begin every frame. They are
          sent, and what begins with others is a `ProtocolError`, with the first byte that is wrong.

    Messages are `bytes`. A `bytearray` or `memoryview` can be sent as well, and is copied; but that
    is at run time, and a type checker knows of `bytes` only.
    """

    size: int = attrs.field(default=4, validator=whole_number(1, 8, unit="bytes"))
    byteorder: ByteOrder = attrs.field(default="big", validator=one_of("big", "little"))
    max_size: int = attrs.field(default=2**20, validator=whole_number(0, unit="bytes"))
    signed: bool = attrs.field(default=False, validator=true_or_false, kw_only=True)
    offset: int = attrs.field(default=0, validator=whole_number(0, unit="bytes"), kw_only=True)
    adjustment: int = attrs.field(default=0, validator=_adjustment, kw_only=True)
    strip: int | None = attrs.field(default=None, validator=_strip, kw_only=True)
    header: bytes = attrs.field(default=b"", validator=[_header, _message_fits], kw_only=True)

    def reader(self) -> LengthPrefixedReader:
        if self._is_plain():
            return LengthPrefixedReader(self.size, self.byteorder, self.max_size)
        return LengthFieldReader(**attrs.asdict(self))

    def writer(self) -> LengthPrefixedWriter:
        if self._is_plain():
            return LengthPrefixedWriter(self.size, self.byteorder, self.max_size)
        return LengthFieldWriter(**attrs.asdict(self))

    def _is_plain(self) -> bool:
        """Whether frames are an unsigned length and so many bytes, and messages the latter."""
        return not (self.signed or self.offset or self.adjustment or self.strip == 0)
