"""What a load generator sends: messages that a codec can represent, and knows again."""

from __future__ import annotations

import string
import struct
from collections.abc import Iterable
from typing import Any, Final

import attrs

from .._buffer import ReceiveBuffer
from .._codec import NEED_DATA, Codec
from .._errors import BytetalkError, in_words
from .._fixed_size import FixedSize, Structs
from .messages import Kind, bytes_of, kind_of

DEFAULT_SIZE: Final = 64

# So many different messages follow each other, and again: a reply in the wrong place is noticed.
# Of large ones there are fewer, for they are held in memory.
_DIFFERENT: Final = 16
_DIFFERENT_BYTES: Final = 2**20

# Any text can have these. Where one of them is a delimiter, capitals are tried.
_LETTERS: Final = string.ascii_lowercase

# The largest messages: several of them are held in memory, as text and as bytes.
_MOST: Final = 256 * 2**20

_SHOWN: Final = 300


@attrs.frozen
class Payload:
    """Messages to be sent in turn, and the size of each in bytes, as its frame is sent."""

    messages: tuple[Any, ...]
    frame_size: int


def generated(codec: Codec[Any, Any], size: int | None, *, check: bool = True) -> Payload:
    """Messages of ``size`` bytes, or characters where messages are text or values.

    Args:
      size: By default the codec's, if it allows only one, or `DEFAULT_SIZE`.
      check: Whether what comes back is going to be compared, which needs a codec that receives
          what it sends.

    Raises:
      ValueError: if there are none; on one line.
    """
    fixed = _only_size(codec)
    if size is None:
        size = DEFAULT_SIZE if fixed is None else fixed
    elif isinstance(codec, Structs) and size != fixed:
        raise ValueError(f"a record of {codec.format!r} has a size of {fixed}, not {size}")
    if size > _MOST:
        raise ValueError(f"messages of {size:,} bytes are too large: the most is {_MOST:,}")
    count = min(_DIFFERENT, _DIFFERENT_BYTES // (size + 1) + 2)
    try:
        return checked(codec, _messages(codec, _LETTERS, size, count), check=check)
    except ValueError as problem:
        try:
            return checked(codec, _messages(codec, _LETTERS.upper(), size, count), check=check)
        except ValueError:
            raise problem from None


def _only_size(codec: Codec[Any, Any]) -> int | None:
    """The size that all messages of the codec have, if they do."""
    if isinstance(codec, Structs):
        return struct.calcsize(codec.format)
    return codec.size if isinstance(codec, FixedSize) else None


def _messages(codec: Codec[Any, Any], letters: str, size: int, count: int) -> list[Any]:
    text = letters * (size // len(letters) + 2)
    return [_message(text[start : start + size], codec) for start in range(count)]


def _message(text: str, codec: Codec[Any, Any]) -> Any:
    if isinstance(codec, Structs):
        return struct.unpack(codec.format, text.encode())
    return text.encode() if kind_of(codec) is Kind.BYTES else text


def checked(codec: Codec[Any, Any], messages: Iterable[Any], *, check: bool = True) -> Payload:
    """These messages, if the codec can represent them, and, with ``check``, knows them again.

    Raises:
      ValueError: if not; on one line.
    """
    messages = tuple(messages)
    writer, reader, buffer = codec.writer(), codec.reader(), ReceiveBuffer()
    size = 0
    try:
        for message in messages:
            size += len(frame := bytes_of(writer.encode(message)))
            if check:
                # Two together, for then a codec without boundaries shows.
                buffer.feed(frame + bytes_of(writer.encode(message)))
                for _ in range(2):
                    received = reader.decode(buffer)
                    if received is NEED_DATA or received != message:
                        raise ValueError(
                            "this codec does not receive such messages as it sends them, so "
                            "replies cannot be compared; give another codec, or --no-check"
                        )
    except BytetalkError as error:
        raise ValueError(
            f"this codec does not take such messages: {in_words(error, _SHOWN)}"
        ) from None
    return Payload(messages, size // len(messages))
