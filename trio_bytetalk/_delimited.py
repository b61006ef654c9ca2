"""`Delimited` and `Lines`: messages that end with a delimiter."""

from __future__ import annotations

import itertools
import re
from typing import Any, AnyStr, Literal, cast

import attrs

from ._buffer import ReceiveBuffer
from ._codec import NEED_DATA, AheadReader, Buffer, Codec, NeedData, Writer, settle_first, to_bytes
from ._errors import EncodeError, InvalidMessageError, MessageTooLargeError
from ._validators import text_encoding, true_or_false, whole_number

# Both readers begin with a fast path: one search of the buffer's front, which is all that a burst
# of short messages needs. A front that was searched in vain already (`_search` is not None) is left
# to the buffer, which remembers how far it came: to search it again for each chunk that follows
# would not be linear.

_CARRIAGE_RETURN = ord("\r")

# What is split at once: no more than that is copied for nothing if it has more messages than asked.
_AHEAD_SIZE = 16 * 1024

Delimiter = bytes | tuple[bytes, ...]


def _several(delimiter: Delimiter) -> tuple[bytes, ...]:
    return delimiter if isinstance(delimiter, tuple) else (delimiter,)


def _pattern(delimiter: Delimiter) -> re.Pattern[bytes]:
    """What finds the first delimiter. (A single one is found faster by `bytes.find`.)"""
    # In any order, for none begins with another.
    return re.compile(b"|".join(map(re.escape, _several(delimiter))))


def _in_words(delimiter: Delimiter) -> str:
    return " or ".join(map(repr, _several(delimiter)))


def _front(buffer: ReceiveBuffer, delimiter: bytes) -> bytes:
    """The messages that are whole, as far as they are looked at at once."""
    start = buffer.start
    end = buffer.data.rfind(delimiter, start, start + _AHEAD_SIZE)
    return b"" if end < 0 else buffer.data[start : end + len(delimiter)]


def _split(
    buffer: ReceiveBuffer, front: AnyStr, delimiter: AnyStr, most: int, max_size: int
) -> list[AnyStr]:
    """Take what stands in front of each of up to ``most`` delimiters in the `_front`.

    Nothing is taken if one of these messages is too large.
    """
    messages = front.split(delimiter, most)
    rest = messages.pop()
    if not messages or len(max(messages, key=len)) > max_size:
        return []
    buffer.start += len(front) - len(rest)
    return messages


@attrs.define(eq=False)
class DelimitedReader(AheadReader[bytes]):
    """The reader of `Delimited`; its ``max_size`` may be changed between two messages."""

    delimiter: Delimiter = attrs.field(on_setattr=attrs.setters.frozen)
    max_size: int = attrs.field(on_setattr=settle_first)
    keep: bool = attrs.field(default=False, on_setattr=attrs.setters.frozen)
    _only: bytes | None = attrs.field(init=False)  # None if there are several
    _pattern: re.Pattern[bytes] = attrs.field(init=False)
    _longest: int = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        delimiters = _several(self.delimiter)
        self._only = delimiters[0] if len(delimiters) == 1 else None
        self._pattern = _pattern(self.delimiter)
        self._longest = max(map(len, delimiters))

    def decode(self, buffer: ReceiveBuffer) -> bytes | Literal[NeedData.NEED_DATA]:
        if buffer._search is None:
            data = buffer.data
            begin = buffer.start
            if self._only is not None:
                end = data.find(self._only, begin)
                after = end + self._longest
            elif match := self._pattern.search(data, begin):
                end, after = match.span()
            else:
                end = -1
            if 0 <= end - begin <= self.max_size:
                buffer.start = after
                return data[begin : after if self.keep else end]
        return self._decode(buffer)

    def _decode(self, buffer: ReceiveBuffer) -> bytes | Literal[NeedData.NEED_DATA]:
        """Wherever the message lies, if it is there."""
        if self._only is not None:
            length = buffer.find(self._only)
            after = length + self._longest
        else:
            length, after = buffer._find_any(self._pattern, self._longest) or (-1, -1)
        is_whole = length >= 0
        # Without a delimiter, the last bytes that are there may be the beginning of one.
        least = length if is_whole else len(buffer) - self._longest + 1
        if least > self.max_size:
            raise MessageTooLargeError(
                f"the peer sent {least} bytes{'' if is_whole else ' or more'} before the "
                f"delimiter {_in_words(self.delimiter)}; max_size allows {self.max_size} bytes"
            )
        if not is_whole:
            return NEED_DATA
        # Not None: so many bytes were searched.
        message = cast(bytes, buffer.take(after if self.keep else length))
        buffer.skip(after - len(message))
        return message

    def decode_ahead(self, buffer: ReceiveBuffer, most: int) -> list[bytes]:
        if self._only is not None and not self.keep:
            front = _front(buffer, self._only)
            return _split(buffer, front, self._only, most, self.max_size)
        messages = []
        data = buffer.data
        begin = buffer.start
        for match in itertools.islice(self._pattern.finditer(data, begin), most):
            end, after = match.span()
            if end - begin > self.max_size:
                break
            messages.append(data[begin : after if self.keep else end])
            begin = after
        buffer.start = begin
        return messages


@attrs.define(eq=False)
class DelimitedWriter(Writer[bytes]):
    """The writer of `Delimited`; its ``max_size`` may be changed between two messages."""

    delimiter: Delimiter = attrs.field(on_setattr=attrs.setters.frozen)
    max_size: int
    keep: bool = False
    _first: bytes = attrs.field(init=False)
    _is_only: bool = attrs.field(init=False)
    _pattern: re.Pattern[bytes] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        delimiters = _several(self.delimiter)
        self._first = delimiters[0]
        self._is_only = len(delimiters) == 1
        self._pattern = _pattern(self.delimiter)

    def encode(self, message: Buffer) -> bytes:
        if type(message) is not bytes:
            message = to_bytes(message, "Delimited")
        if self.keep:
            return self._encode_kept(message)
        length = len(message)
        if length > self.max_size:
            raise self._too_large(length)
        frame = message + self._first
        # Looked for in the frame, for the message's end and the delimiter's beginning may make a
        # delimiter together: b"a\r" and b"\r\n" are fine, b"a-" before b"--" is not.
        if frame.find(self._first) != length or not (self._is_only or self._ends(frame, length)):
            raise EncodeError(
                f"the message contains its own delimiter {_in_words(self.delimiter)}, or ends in a "
                f"way that makes one with {self._first!r}: the peer would see another message"
            )
        return frame

    def _ends(self, frame: bytes, length: int) -> bool:
        """Whether the first delimiter in ``frame`` comes after ``length`` bytes."""
        match = self._pattern.search(frame)
        return match is not None and match.start() == length

    def _encode_kept(self, message: bytes) -> bytes:
        match = self._pattern.search(message)
        if match is None or match.end() != len(message):
            raise EncodeError(
                f"the message must end with its delimiter {_in_words(self.delimiter)}, and contain "
                f"none before that: with keep=True the delimiter is a part of the message"
            )
        if match.start() > self.max_size:
            raise self._too_large(match.start())
        return message

    def _too_large(self, length: int) -> EncodeError:
        return EncodeError(f"the message has {length} bytes; max_size allows {self.max_size} bytes")


def _normal(delimiter: bytes | list[bytes] | tuple[bytes, ...]) -> Delimiter:
    # Equal codecs frame alike, so those that frame alike had better be equal.
    if isinstance(delimiter, list | tuple):
        return delimiter[0] if len(delimiter) == 1 else tuple(delimiter)
    return delimiter


def _delimiter(_instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    name = attribute.name
    if value == ():
        raise ValueError(f"{name} must be one or more, not an empty sequence")
    for each in _several(value):
        if type(each) is not bytes:
            raise TypeError(f"{name} must be bytes, or a list or tuple of bytes, not {value!r}")
        if not each:
            raise ValueError(f"{name} must have at least one byte, not {value!r}")
    for one, other in itertools.permutations(_several(value), 2):
        if one == other:
            raise ValueError(f"{name} must be given once each; {one!r} is there twice")
        if one in other[:-1]:
            raise ValueError(
                f"{name} must not have one that occurs within another before its end, as {one!r} "
                f"does in {other!r}: which of them it is, only later bytes would tell"
            )


@attrs.frozen
class Delimited(Codec[bytes, bytes]):
    r"""Messages of bytes, each followed by a delimiter.

    Args:
      delimiter: One byte or more (`bytes`), for example ``b"\0"``; or several of these (a list or
          tuple), the first of which to come ends the message. What is sent ends with the first of
          the list. None may occur within another, except at its end: ``(b"\r\n", b"\n")`` is fine;
          ``(b"\r\n", b"\r")`` is not, for after ``b"\r"`` nobody knows what follows, if anything.
      keep: Whether the delimiter is a part of the message, when receiving and when sending. If it
          is not (the default), it is stripped from what is received and added to what is sent.
      max_size: The largest message accepted and sent, in bytes, without the delimiter. A peer that
          sends more without a delimiter is refused.

    A message that contains a delimiter cannot be sent: `EncodeError`; nor, with ``keep``, can one
    that does not end with one.
    """

    delimiter: Delimiter = attrs.field(converter=_normal, validator=_delimiter)
    keep: bool = attrs.field(default=False, validator=true_or_false, kw_only=True)
    max_size: int = attrs.field(
        default=2**20, validator=whole_number(0, unit="bytes"), kw_only=True
    )

    def reader(self) -> DelimitedReader:
        return DelimitedReader(self.delimiter, self.max_size, self.keep)

    def writer(self) -> DelimitedWriter:
        return DelimitedWriter(self.delimiter, self.max_size, self.keep)


@attrs.define(eq=False)
class LinesReader(AheadReader[str]):
    """The reader of `Lines`; its ``max_size`` may be changed between two lines."""

    encoding: str = attrs.field(on_setattr=settle_first)
    max_size: int = attrs.field(on_setattr=settle_first)

    def decode(self, buffer: ReceiveBuffer) -> str | Literal[NeedData.NEED_DATA]:
        if buffer._search is None:
            data = buffer.data
            begin = buffer.start
            newline = end = data.find(b"\n", begin)
            if end > begin and data[end - 1] == _CARRIAGE_RETURN:
                end -= 1
            if 0 <= end - begin <= self.max_size:
                buffer.start = newline + 1
                line = data[begin:end]
                try:
                    return line.decode(self.encoding)
                except UnicodeError as error:
                    raise self._undecodable(line, error) from None
        return self._decode(buffer)

    def _decode(self, buffer: ReceiveBuffer) -> str | Literal[NeedData.NEED_DATA]:
        """Wherever the line lies, if it is there."""
        max_size = self.max_size
        length = buffer.find(b"\n")
        is_whole = length >= 0
        known = length if is_whole else len(buffer)
        # One byte more may be the carriage return that does not count.
        if known > max_size + 1 or (length > max_size and buffer.peek(1, max_size) != b"\r"):
            raise MessageTooLargeError(
                f"the peer sent a line of {known} bytes{'' if is_whole else ' or more'}; "
                f"max_size allows {max_size} bytes"
            )
        if not is_whole:
            return NEED_DATA
        # Not None: so many bytes were searched.
        line = cast(bytes, buffer.take(length)).removesuffix(b"\r")
        buffer.skip(1)
        try:
            return line.decode(self.encoding)
        except UnicodeError as error:
            raise self._undecodable(line, error) from None

    def decode_ahead(self, buffer: ReceiveBuffer, most: int) -> list[str]:
        front = _front(buffer, b"\n")
        try:
            text = front.decode(self.encoding)
        except UnicodeError:
            return []
        if len(text) != len(front):
            return []  # a line's size is that of its bytes, which decode() looks at
        # With the carriage return, which does not count: so the largest line is left to decode().
        lines = _split(buffer, text, "\n", most, self.max_size)
        return [line.removesuffix("\r") for line in lines] if "\r" in text else lines

    def _undecodable(self, line: bytes, error: UnicodeError) -> InvalidMessageError:
        reason = f"not {self.encoding}: {error}"
        return InvalidMessageError(
            f"the peer sent a line that is {reason}; the setting is encoding",
            reason=reason,
            frame=line,
        )


@attrs.define(eq=False)
class LinesWriter(Writer[str]):
    """The writer of `Lines`; its ``max_size`` may be changed between two lines."""

    encoding: str
    newline: bytes
    max_size: int

    def encode(self, message: str) -> bytes:
        if type(message) is not str and not isinstance(message, str):
            raise EncodeError(f"Lines sends str, not {type(message).__name__}")
        if "\n" in message:
            raise EncodeError("the line contains a newline: the peer would see two lines")
        if message[-1:] == "\r":
            raise EncodeError("the line ends with a carriage return: the peer would strip it")
        try:
            line = message.encode(self.encoding)
        except UnicodeError as error:
            raise EncodeError(
                f"the line cannot be written in {self.encoding}: {error}; the setting is encoding"
            ) from None
        if len(line) > self.max_size:
            raise EncodeError(
                f"the line has {len(line)} bytes; max_size allows {self.max_size} bytes"
            )
        return line + self.newline


def _newline(_instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if type(value) is not bytes or value not in (b"\n", b"\r\n"):
        raise ValueError(rf'{attribute.name} must be b"\n" or b"\r\n", not {value!r}')


@attrs.frozen
class Lines(Codec[str, str]):
    r"""Lines of text (`str`). Received lines end with ``\n`` or ``\r\n``, which is stripped.

    Args:
      encoding: A text encoding that writes ASCII characters as ASCII does; UTF-8 (RFC 3629) by
          default. A line that is not in it is an `InvalidMessageError`, and receiving can go on
          behind it. Encodings with escape sequences, such as UTF-7 and ISO-2022-JP, are refused:
          text that looks like one would arrive as other text. (Shift JIS, EUC-JP, EUC-KR and the
          code pages 932 and 950 are not, but have a few characters that arrive as their likes, as
          the yen sign does as a backslash.)
      newline: What ends a sent line: ``b"\n"`` or ``b"\r\n"`` (as RFC 5321 and others demand).
      max_size: The largest line accepted and sent, in bytes of its encoding, without the newline.

    A last line that does not end with a newline is an `IncompleteMessageError`.
    """

    encoding: str = attrs.field(
        default="utf-8", validator=text_encoding(like_ascii=True), kw_only=True
    )
    newline: bytes = attrs.field(default=b"\n", validator=_newline, kw_only=True)
    max_size: int = attrs.field(
        default=2**20, validator=whole_number(0, unit="bytes"), kw_only=True
    )

    def reader(self) -> LinesReader:
        return LinesReader(self.encoding, self.max_size)

    def writer(self) -> LinesWriter:
        return LinesWriter(self.encoding, self.newline, self.max_size)
