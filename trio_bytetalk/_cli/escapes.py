r"""Bytes and text that are written with escapes: ``\x00``, ``\r\n``, ``\\``."""

from __future__ import annotations

import re

_SHORT = {"\\": "\\", "n": "\n", "r": "\r", "t": "\t", "0": "\0"}
_ESCAPE = re.compile(r"\\(?:x([0-9A-Fa-f]{2})|(.?))", re.DOTALL)


def unescaped(text: str) -> bytes:
    r"""The bytes that ``text`` stands for: its own, in UTF-8, and what its escapes say.

    Raises:
      ValueError: for an escape other than ``\\``, ``\n``, ``\r``, ``\t``, ``\0`` and ``\xNN``.
    """
    pieces = []
    end = 0
    for match in _ESCAPE.finditer(text):
        pieces.append(text[end : match.start()].encode())
        end = match.end()
        if match[1] is not None:
            pieces.append(bytes.fromhex(match[1]))
        elif match[2] in _SHORT:
            pieces.append(_SHORT[match[2]].encode())
        else:
            raise ValueError(
                rf"{match[0]} is no escape; these are: \\, \n, \r, \t, \0 and \xNN (two hex digits)"
            )
    pieces.append(text[end:].encode())
    return b"".join(pieces)


def printable(text: str) -> str:
    """``text``, as it is as far as it is printable, with escapes for what is not.

    Nothing of it can move a cursor, change a colour, or end the line.
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)
