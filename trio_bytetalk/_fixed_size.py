"""`FixedSize` and `Structs`: messages that all have the same size, and need no frame."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import Any, Literal

import attrs

from ._buffer import ReceiveBuffer
from ._codec import NEED_DATA, Buffer, Codec, NeedData, Reader, Writer, to_bytes
from ._errors import EncodeError
from ._validators import whole_number


@attrs.define(eq=False)
class FixedSizeReader(Reader[bytes]):
    """The reader of `FixedSize`; its ``size`` may be changed between two messages."""

    size: int

    def decode(self, buffer: ReceiveBuffer) -> bytes | Literal[NeedData.NEED_DATA]:
        begin = buffer.start
        end = begin + self.size
        data = buffer.data
        if end <= len(data):
            buffer.start = end
            return data[begin:end]
        message = buffer.take(self.size)
        return NEED_DATA if message is None else message


@attrs.define(eq=False)
class FixedSizeWriter(Writer[bytes]):
    """The writer of `FixedSize`; its ``size`` may be changed between two messages."""

    size: int

    def encode(self, message: Buffer) -> bytes:
        if type(message) is not bytes:
            message = to_bytes(message, "FixedSize")
        if len(message) != self.size:
            raise EncodeError(
                f"the message has {len(message)} bytes; size says that each has {self.size}"
            )
        return message


@attrs.frozen
class FixedSize(Codec[bytes, bytes]):
    """Messages of bytes that all have the same size, with nothing in between.

    Args:
      size: The size of each message, 1 byte or more. One of any other size cannot be sent:
          `EncodeError`.
    """

    size: int = attrs.field(validator=whole_number(1, unit="bytes"))

    def reader(self) -> FixedSizeReader:
        return FixedSizeReader(self.size)

    def writer(self) -> FixedSizeWriter:
        return FixedSizeWriter(self.size)


@attrs.define(eq=False)
class StructsReader(Reader[tuple[Any, ...]]):
    """The reader of `Structs`."""

    format: str = attrs.field(on_setattr=attrs.setters.frozen)
    _struct: struct.Struct = attrs.field(init=False)
    _size: int = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._struct = struct.Struct(self.format)
        self._size = self._struct.size

    def decode(self, buffer: ReceiveBuffer) -> tuple[Any, ...] | Literal[NeedData.NEED_DATA]:
        # The fast path: within the front, nothing is copied but the values.
        begin = buffer.start
        end = begin + self._size
        if end <= len(buffer.data):
            buffer.start = end
            return self._struct.unpack_from(buffer.data, begin)
        data = buffer.take(self._size)
        return NEED_DATA if data is None else self._struct.unpack(data)


@attrs.define(eq=False)
class StructsWriter(Writer[tuple[Any, ...]]):
    """The writer of `Structs`."""

    format: str = attrs.field(on_setattr=attrs.setters.frozen)
    _struct: struct.Struct = attrs.field(init=False)
    _texts: list[tuple[int, int]] = attrs.field(init=False)  # which fields, and how much they hold

    def __attrs_post_init__(self) -> None:
        self._struct = struct.Struct(self.format)
        self._texts = [
            (fields.start, size if kind == "s" else min(max(size - 1, 0), _LONGEST_PASCAL_STRING))
            for fields, size, kind in _parts(self.format)
            if kind in ("s", "p")
        ]

    def encode(self, message: tuple[Any, ...]) -> bytes:
        if not isinstance(message, tuple):
            raise EncodeError(f"Structs sends tuples, not {type(message).__name__}")
        try:
            frame = self._struct.pack(*message)
        except (struct.error, OverflowError) as error:
            raise EncodeError(self._why_not(message, error)) from None
        for index, most in self._texts:
            length = len(message[index])
            if length > most:  # struct cuts it off without a word
                raise EncodeError(
                    f"field {index} of the message has {length} bytes; format={self.format!r} "
                    f"has room for {most} there"
                )
        return frame

    def _why_not(self, message: tuple[Any, ...], error: Exception) -> str:
        """``error`` with the field's name: its index, for struct does not tell."""
        parts = list(_parts(self.format))
        count = parts[-1][0].stop
        if len(message) != count:
            return f"the message has {len(message)} fields; format={self.format!r} has {count}"
        order = self.format[0] if self.format[0] in _BYTE_ORDERS else ""
        for fields, size, kind in parts:
            for index in fields:
                try:
                    struct.pack(f"{order}{size}{kind}", message[index])
                except (struct.error, OverflowError) as reason:
                    return (
                        f"field {index} of the message, {message[index]!r:.100}, is no {kind!r} of "
                        f"format={self.format!r}: {reason}"
                    )
        return f"the message does not fit format={self.format!r}: {error}"


_BYTE_ORDERS = "@=<>!"

# The length stands in one byte.
_LONGEST_PASCAL_STRING = 255


def _parts(layout: str) -> Iterator[tuple[range, int, str]]:
    """The fields, size and kind of each part of a format: ``3i`` is three fields, ``3s`` one."""
    index = 0
    for digits, kind in re.findall(r"(\d*)([a-zA-Z?])", layout):
        number = int(digits or 1)
        if kind in ("s", "p"):
            count, size = 1, number
        else:
            count, size = 0 if kind == "x" else number, 1
        yield range(index, index + count), size, kind
        index += count


def _format(_instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{attribute.name} must be a format of the struct module, not {value!r}")
    try:
        size = struct.calcsize(value)
    except (struct.error, UnicodeEncodeError) as error:
        raise ValueError(
            f"{attribute.name} must be a format of the struct module, not {value!r}: {error}"
        ) from None
    if not size:
        raise ValueError(f"{attribute.name} must have at least one byte, not {value!r}")


@attrs.frozen
class Structs(Codec[tuple[Any, ...], tuple[Any, ...]]):
    """Records of the `struct` module, one after the other: tuples of numbers and bytes.

    Args:
      format: What a record consists of, as `struct` has it, for example ``"<IhhB"``. Begin it with
          ``<`` (little-endian) or ``>`` (big-endian): otherwise sizes, alignment and byte order are
          those of the machine, and the peer's may be others.

    A tuple that the format cannot represent is an `EncodeError`; so are bytes that are longer than
    their field (``4s``), which `struct` would cut off. Shorter ones are filled up with zero bytes,
    and received with these; a float is received as the field's precision has it.
    """

    format: str = attrs.field(validator=_format)

    def reader(self) -> StructsReader:
        return StructsReader(self.format)

    def writer(self) -> StructsWriter:
        return StructsWriter(self.format)
