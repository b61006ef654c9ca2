"""`Delimited` and `Lines`: messages that end with a delimiter."""

from __future__ import annotations

import codecs
from typing import Any, Literal

import attrs

from ._buffer import ReceiveBuffer
from ._codec import NEED_DATA, Buffer, Codec, NeedData, Reader, Writer
from ._errors import EncodeError, MessageTooLargeError, ProtocolError
from ._validators import whole_number


def _take_delimited(
    buffer: ReceiveBuffer, delimiter: bytes, max_size: int, slack: int = 0
) -> bytes | None:
    """The bytes in front of the first delimiter, which is consumed too; None if it is not there.

    ``slack`` is how many bytes more than ``max_size`` may stand in front of the delimiter.
    """
    length = buffer.find(delimiter)
    limit = max_size + slack
    # Without a delimiter, the last bytes there are may be the beginning of one.
    if length > limit or (length < 0 and len(buffer) - len(delimiter) + 1 > limit):
        raise MessageTooLargeError(
            f"the peer sent {len(buffer) if length < 0 else length} bytes "
            f"{'and no' if length < 0 else 'before the'} delimiter {delimiter!r}; "
            f"max_size allows {max_size} bytes"
        )
    if length < 0:
        return None
    message = buffer.take(length)
    buffer.skip(len(delimiter))
    return message


@attrs.define(eq=False)
class DelimitedReader(Reader[bytes]):
    """The reader of `Delimited`; its ``max_size`` may be changed between two messages."""

    delimiter: bytes
    max_size: int

    def decode(self, buffer: ReceiveBuffer) -> bytes | Literal[NeedData.NEED_DATA]:
        message = _take_delimited(buffer, self.delimiter, self.max_size)
        return NEED_DATA if message is None else message


@attrs.define(eq=False)
class DelimitedWriter(Writer[Buffer]):
    """The writer of `Delimited`; its ``max_size`` may be changed between two messages."""

    delimiter: bytes
    max_size: int

    def encode(self, message: Buffer) -> bytes:
        if not isinstance(message, bytes | bytearray | memoryview):
            raise EncodeError(
                f"Delimited sends bytes, bytearray or memoryview, not {type(message).__name__}"
            )
        frame = bytes(message) + self.delimiter
        length = len(frame) - len(self.delimiter)
        # Looked for in the frame, for the message's end and the delimiter's beginning may make a
        # delimiter together: b"a\r" and b"\r\n" are fine, b"a-" before b"--" is not.
        if frame.find(self.delimiter) != length:
            raise EncodeError(
                f"the message contains its own delimiter {self.delimiter!r}, or ends in a way that "
                f"makes one with it: the peer would see another message"
            )
        if length > self.max_size:
            raise EncodeError(
                f"the message has {length} bytes; max_size allows {self.max_size} bytes"
            )
        return frame


def _delimiter(_instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if type(value) is not bytes:
        raise TypeError(f"{attribute.name} must be bytes, not {value!r}")
    if not value:
        raise ValueError(f"{attribute.name} must have at least one byte")


@attrs.frozen
class Delimited(Codec[Buffer, bytes]):
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
        # One byte more, for the carriage return that does not count.
        line = _take_delimited(buffer, b"\n", self.max_size, slack=1)
        if line is None:
            return NEED_DATA
        if line[-1:] == b"\r":
            line = line[:-1]
        elif len(line) > self.max_size:
            raise MessageTooLargeError(
                f"the peer sent a line of {len(line)} bytes; max_size allows {self.max_size} bytes"
            )
        try:
            return line.decode(self.encoding)
        except UnicodeDecodeError as error:
            raise ProtocolError(
                f"the peer sent a line that is not {self.encoding}: {error.reason} at byte "
                f"{error.start} ({line[error.start : error.end]!r}); the setting is encoding"
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
        except UnicodeEncodeError as error:
            raise EncodeError(
                f"the line cannot be written in {self.encoding}: {error.reason} at character "
                f"{error.start}; the setting is encoding"
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
    try:
        name = codecs.lookup(value).name
        transparent = "a\r\n".encode(name) == b"a\r\n"
    except (LookupError, TypeError) as error:
        raise ValueError(f"{attribute.name} must name a text encoding: {error}") from None
    if not transparent:
        raise ValueError(f"{attribute.name} must write newlines as ASCII does; {value!r} does not")


def _newline(_instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if value not in (b"\n", b"\r\n"):
        raise ValueError(rf'{attribute.name} must be b"\n" or b"\r\n", not {value!r}')


@attrs.frozen
class Lines(Codec[str, str]):
    r"""Lines of text (`str`). Received lines end with ``\n`` or ``\r\n``, which is stripped.

    Args:
      encoding: A text encoding that writes newlines as ASCII does; UTF-8 (RFC 3629) by default.
          A line that is not in it is a `ProtocolError`.
      newline: What ends a sent line: ``b"\n"`` or ``b"\r\n"`` (as RFC 5321 and others demand).
      max_size: The largest line accepted and sent, in bytes of its encoding, without the newline.
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
