"""`Delimited` and `Lines`: messages that end with a delimiter."""

from __future__ import annotations

from typing import Any, Literal, cast

import attrs

from ._buffer import ReceiveBuffer
from ._codec import NEED_DATA, Buffer, Codec, NeedData, Reader, Writer, to_bytes
from ._errors import EncodeError, MessageTooLargeError, ProtocolError
from ._validators import whole_number


def _find_end(buffer: ReceiveBuffer, delimiter: bytes, max_size: int, slack: int = 0) -> int:
    """How many bytes stand in front of the first delimiter; -1 if it has not come.

    ``slack`` is how many more than ``max_size`` they may be.

    Raises:
      MessageTooLargeError: if they are more, or are going to be. Nothing is consumed.
    """
    length = buffer.find(delimiter)
    # Without a delimiter, the last bytes that are there may be the beginning of one.
    least = length if length >= 0 else len(buffer) - len(delimiter) + 1
    if least > max_size + slack:
        raise MessageTooLargeError(
            f"the peer sent {least} bytes{'' if length >= 0 else ' or more'} before the "
            f"delimiter {delimiter!r}; max_size allows {max_size} bytes"
        )
    return length


def _take(buffer: ReceiveBuffer, length: int, delimiter_size: int) -> bytes:
    """Consume the message that `_find_end` has found, and its delimiter."""
    begin = buffer.start
    end = begin + length
    data = buffer.data
    if end + delimiter_size <= len(data):
        buffer.start = end + delimiter_size
        return data[begin:end]
    message = cast(bytes, buffer.take(length))  # not None: that many bytes were searched
    buffer.skip(delimiter_size)
    return message


@attrs.define(eq=False)
class DelimitedReader(Reader[bytes]):
    """The reader of `Delimited`; its ``max_size`` may be changed between two messages."""

    delimiter: bytes
    max_size: int

    def decode(self, buffer: ReceiveBuffer) -> bytes | Literal[NeedData.NEED_DATA]:
        delimiter = self.delimiter
        length = _find_end(buffer, delimiter, self.max_size)
        return NEED_DATA if length < 0 else _take(buffer, length, len(delimiter))


@attrs.define(eq=False)
class DelimitedWriter(Writer[bytes]):
    """The writer of `Delimited`; its ``max_size`` may be changed between two messages."""

    delimiter: bytes
    max_size: int

    def encode(self, message: Buffer) -> bytes:
        if type(message) is not bytes:
            message = to_bytes(message, "Delimited")
        length = len(message)
        if length > self.max_size:
            raise EncodeError(
                f"the message has {length} bytes; max_size allows {self.max_size} bytes"
            )
        frame = message + self.delimiter
        # Looked for in the frame, for the message's end and the delimiter's beginning may make a
        # delimiter together: b"a\r" and b"\r\n" are fine, b"a-" before b"--" is not.
        if frame.find(self.delimiter) != length:
            raise EncodeError(
                f"the message contains its own delimiter {self.delimiter!r}, or ends in a way that "
                f"makes one with it: the peer would see another message"
            )
        return frame


def _delimiter(_instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if type(value) is not bytes:
        raise TypeError(f"{attribute.name} must be bytes, not {value!r}")
    if not value:
        raise ValueError(f"{attribute.name} must have at least one byte")


@attrs.frozen
class Delimited(Codec[bytes, bytes]):
    r"""Messages of bytes, each followed by a delimiter, which is not part of the message.

    Args:
      delimiter: One byte or more (`bytes`), for example ``b"\0"`` as in STOMP.
      max_size: The largest message accepted and sent, in bytes, without the delimiter. A peer that
          sends more without a delimiter is refused.

    A message that contains the delimiter cannot be sent: `EncodeError`.
    """

    delimiter: bytes = attrs.field(validator=_delimiter)
    max_size: int = attrs.field(
        default=2**20, validator=whole_number(0, unit="bytes"), kw_only=True
    )

    def reader(self) -> DelimitedReader:
        return DelimitedReader(self.delimiter, self.max_size)

    def writer(self) -> DelimitedWriter:
        return DelimitedWriter(self.delimiter, self.max_size)


@attrs.define(eq=False)
class LinesReader(Reader[str]):
    """The reader of `Lines`; its ``max_size`` may be changed between two lines."""

    encoding: str
    max_size: int

    def decode(self, buffer: ReceiveBuffer) -> str | Literal[NeedData.NEED_DATA]:
        max_size = self.max_size
        # One byte more, for the carriage return that does not count.
        length = _find_end(buffer, b"\n", max_size, slack=1)
        if length < 0:
            return NEED_DATA
        if length > max_size and buffer.peek(1, max_size) != b"\r":
            raise MessageTooLargeError(
                f"the peer sent a line of {length} bytes; max_size allows {max_size} bytes"
            )
        line = _take(buffer, length, 1)
        if line[-1:] == b"\r":
            line = line[:-1]
        try:
            return line.decode(self.encoding)
        except UnicodeError as error:
            raise ProtocolError(
                f"the peer sent a line that is not {self.encoding}: {error}; "
                f"the setting is encoding"
            ) from None


@attrs.define(eq=False)
class LinesWriter(Writer[str]):
    """The writer of `Lines`; its ``max_size`` may be changed between two lines."""

    encoding: str
    newline: bytes
    max_size: int

    def encode(self, message: str) -> bytes:
        if not isinstance(message, str):
            raise EncodeError(f"Lines sends str, not {type(message).__name__}")
        try:
            line = message.encode(self.encoding)
        except UnicodeError as error:
            raise EncodeError(
                f"the line cannot be written in {self.encoding}: {error}; the setting is encoding"
            ) from None
        if b"\n" in line:
            raise EncodeError("the line contains a newline: the peer would see two lines")
        if line[-1:] == b"\r":
            raise EncodeError("the line ends with a carriage return: the peer would strip it")
        if len(line) > self.max_size:
            raise EncodeError(
                f"the line has {len(line)} bytes; max_size allows {self.max_size} bytes"
            )
        return line + self.newline


def _encoding(_instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{attribute.name} must be the name of a text encoding, not {value!r}")
    try:
        transparent = "a\r\n".encode(value) == b"a\r\n"
    except (LookupError, ValueError) as error:  # the latter for what can encode nothing
        raise ValueError(f"{attribute.name} must name a text encoding: {error}") from None
    if not transparent:
        raise ValueError(f"{attribute.name} must write newlines as ASCII does; {value!r} does not")


def _newline(_instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if type(value) is not bytes or value not in (b"\n", b"\r\n"):
        raise ValueError(rf'{attribute.name} must be b"\n" or b"\r\n", not {value!r}')


@attrs.frozen
class Lines(Codec[str, str]):
    r"""Lines of text (`str`). Received lines end with ``\n`` or ``\r\n``, which is stripped.

    Args:
      encoding: A text encoding that writes newlines as ASCII does; UTF-8 (RFC 3629) by default.
          A line that is not in it is a `ProtocolError`.
      newline: What ends a sent line: ``b"\n"`` or ``b"\r\n"`` (as RFC 5321 and others demand).
      max_size: The largest line accepted and sent, in bytes of its encoding, without the newline.

    A last line that does not end with a newline is an `IncompleteMessageError`.
    """

    encoding: str = attrs.field(default="utf-8", validator=_encoding, kw_only=True)
    newline: bytes = attrs.field(default=b"\n", validator=_newline, kw_only=True)
    max_size: int = attrs.field(
        default=2**20, validator=whole_number(0, unit="bytes"), kw_only=True
    )

    def reader(self) -> LinesReader:
        return LinesReader(self.encoding, self.max_size)

    def writer(self) -> LinesWriter:
        return LinesWriter(self.encoding, self.newline, self.max_size)
