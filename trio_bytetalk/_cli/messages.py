"""Messages to and from text: how they are shown, and how typed lines become messages."""

from __future__ import annotations

import enum
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from .._codec import Buffer, Codec
from .._errors import one_line
from .._fixed_size import Structs
from .._messages import sends_text
from .escapes import escaped, printable, unescaped

# So many bytes on a line of a hex dump, as xxd and Wireshark have it.
_DUMP_WIDTH: Final = 16
_IN_ASCII: Final = bytes(byte if 32 <= byte < 127 else ord(".") for byte in range(256))

# How much of a line that is wrong is shown.
_LINE_SHOWN: Final = 60

# Characters that text has beside the printable ones.
_TEXT_CONTROLS: Final = str.maketrans("", "", "\t\n\r")


class Kind(enum.Enum):
    """What a codec's messages are, to someone who types them."""

    TEXT = "text, as it is typed"
    BYTES = r"bytes: text, with \xNN, \n, \r, \t, \0 and \\ for what cannot be typed"
    VALUES = "JSON"


def kind_of(codec: Codec[Any, Any]) -> Kind:
    """What the codec sends, as its class declares; `Kind.VALUES` if that is neither text nor bytes.

    So what a codec of the user's sends is declared by its class: ``Codec[str, ...]``.
    """
    try:
        return Kind.TEXT if sends_text(codec) else Kind.BYTES
    except TypeError:
        return Kind.VALUES


def parse_message(line: str, codec: Codec[Any, Any]) -> Any:
    """The message that a typed line, without its newline, stands for.

    Raises:
      ValueError: if it stands for none; on one line.
    """
    return parser(codec)(line)


def parser(codec: Codec[Any, Any]) -> Callable[[str], Any]:
    """`parse_message` for many lines of the same codec."""
    kind = kind_of(codec)
    if kind is Kind.TEXT:
        return str
    if kind is Kind.BYTES:
        return unescaped
    return _parse_record if isinstance(codec, Structs) else _parse_value


def _parse_value(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"this codec's messages are typed as JSON: {error}") from None


def _parse_record(line: str) -> tuple[Any, ...]:
    """The tuple for a JSON list, whose strings stand for bytes."""
    value = _parse_value(line)
    if not isinstance(value, list):
        raise ValueError("a record is typed as a JSON list, such as [1, 2]")
    return tuple(unescaped(each) if isinstance(each, str) else each for each in value)


def message_of(data: bytes, codec: Codec[Any, Any]) -> Any:
    """The message that all of a file is, whatever bytes it has.

    Raises:
      ValueError: if it is none; on one line.
    """
    if kind_of(codec) is Kind.BYTES:
        return data
    return parse_message(data.decode(), codec)


def parse_hex(line: str) -> bytes:
    """The bytes of hex digits, with spaces or colons between bytes if wanted.

    Raises:
      ValueError: for anything else.
    """
    try:
        return bytes.fromhex(line.replace(":", " "))
    except ValueError:
        shown = one_line(line, _LINE_SHOWN)
        raise ValueError(f"two hex digits for each byte were expected, not {shown!r}") from None


def show(message: Any) -> str:
    """A message on one line, safe for a terminal: text with escapes, hex, or JSON."""
    if isinstance(message, bytes | bytearray | memoryview) and text_of(message) is None:
        return bytes(message).hex(" ")
    return line_of(message)


def line_of(message: Any) -> str:
    """A message on one line, safe for a terminal, as it would be typed to be sent.

    (Only text with characters that are not printable could not be typed so, for it has no escapes.)
    """
    if isinstance(message, str):
        return printable(message)
    if isinstance(message, bytes | bytearray | memoryview):
        return escaped(message)
    try:
        text = json.dumps(message, ensure_ascii=False, default=_no_json)
        # The escapes must be those of JSON.
        return text if text.isprintable() else json.dumps(message, default=_no_json)
    except (TypeError, ValueError):  # of other keys, or within itself
        return printable(repr(message))
    except RecursionError:
        return "(a value nested too deeply to be shown)"


def _no_json(value: Any) -> str:
    return escaped(value) if isinstance(value, bytes) else repr(value)


def text_of(data: Buffer) -> str | None:
    """What ``data`` says, if it is text in UTF-8 without control characters; newlines are fine."""
    try:
        text = str(data, "utf-8")
    except UnicodeDecodeError:
        return None
    # Most text is printable as it is, and the way around is ten times as long.
    is_text = text.isprintable() or text.translate(_TEXT_CONTROLS).isprintable()
    return text if is_text else None


def bytes_of(frame: Buffer | Sequence[Buffer]) -> bytes:
    """A frame, as a writer has returned it, in one piece."""
    return bytes(frame) if isinstance(frame, bytes | bytearray | memoryview) else b"".join(frame)


def hex_dump(data: Buffer) -> Iterator[str]:
    """Lines of offset, hex and ASCII, as by ``xxd`` or ``hexdump -C``."""
    data = bytes(data)
    for offset in range(0, len(data), _DUMP_WIDTH):
        row = data[offset : offset + _DUMP_WIDTH]
        ascii_only = row.translate(_IN_ASCII).decode()
        yield f"{offset:08x}  {row.hex(' '):<{3 * _DUMP_WIDTH}} |{ascii_only}|"
