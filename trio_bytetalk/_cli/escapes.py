r"""Bytes and text that are written with escapes: ``\x00``, ``\r\n``, ``\\``."""

from __future__ import annotations

import re

from .._codec import Buffer

_SHORT = {"\\": "\\", "n": "\n", "r": "\r", "t": "\t", "0": "\0"}
_LONG = {"\\": r"\\", "\n": r"\n", "\r": r"\r", "\t": r"\t"}
_IN_ASCII = str.maketrans("→←", "><")
_ESCAPE = re.compile(r"\\(?:x([0-9A-Fa-f]{2})|(.?))", re.DOTALL)


def unescaped(text: str) -> bytes:
    r"""The bytes that ``text`` stands for: its own, in UTF-8, and what its escapes say.

    Raises:
      ValueError: for an escape other than ``\\``, ``\n``, ``\r``, ``\t``, ``\0`` and ``\xNN``.
    """
    # Surrogates are what Python has for bytes of the outside that are not UTF-8.
    if "\\" not in text:
        return text.encode("utf-8", "surrogateescape")
    pieces = []
    end = 0
    for match in _ESCAPE.finditer(text):
        pieces.append(text[end : match.start()].encode("utf-8", "surrogateescape"))
        end = match.end()
        if match[1] is not None:
            pieces.append(bytes.fromhex(match[1]))
        elif match[2] in _SHORT:
            pieces.append(_SHORT[match[2]].encode())
        else:
            raise ValueError(
                rf"{printable(match[0])} is no escape; these are: \\, \n, \r, \t, \0 and \xNN "
                "(two hex digits)"
            )
    pieces.append(text[end:].encode("utf-8", "surrogateescape"))
    return b"".join(pieces)


def escaped(data: Buffer) -> str:
    """What stands for ``data`` to `unescaped`: printable text as it is, the rest with escapes."""
    text = str(data, "utf-8", "surrogateescape")
    if "\\" not in text and text.isprintable():
        return text
    return "".join(map(_escaped, text))


def _escaped(character: str) -> str:
    if character in _LONG:
        return _LONG[character]
    if character.isprintable():
        return character
    return "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", "surrogateescape"))


def with_arrows(text: str, encoding: str | None) -> str:
    """``text`` of ours with its arrows, or with ``>`` and ``<`` if the encoding has none."""
    try:
        "→←".encode(encoding or "utf-8")
    except UnicodeEncodeError:
        return text.translate(_IN_ASCII)
    return text


def printable(text: str) -> str:
    """``text``, as it is as far as it is printable, with escapes for what is not.

    Nothing of it can move a cursor, change a colour, or end the line.
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)
