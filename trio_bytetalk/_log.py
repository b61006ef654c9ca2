"""The loggers of all floors, in whose records nobody else can write lines of their own.

What a record says in words, it has in fields, too, for formatters that write JSON.
"""

from __future__ import annotations

import contextlib
import logging
import traceback
from collections.abc import Iterator
from typing import Any, Final

from ._errors import in_words, one_line

# How many characters of an error a record has: more than any of this package's, unless the peer
# sent what is mostly unprintable.
ERROR_SHOWN: Final = 1000

# As many as a Unix socket's path has, at the most.
_ADDRESS_SHOWN: Final = 108

_MARGIN = "  | "


def get_logger(floor: str) -> logging.Logger:
    """The logger ``trio_bytetalk.FLOOR``."""
    logger = logging.getLogger(f"trio_bytetalk.{floor}")
    logger.addFilter(_guard)
    return logger


def fields(event: str, error: BaseException | None = None, **others: Any) -> dict[str, Any]:
    """What a record has in fields: values that JSON has, under names that are nobody else's."""
    found = {"event": event, **others}
    if error is not None:
        found["error"] = type(error).__name__
        found["reason"] = in_words(error, ERROR_SHOWN)
    return {f"bytetalk_{name}": value for name, value in found.items()}


def address_in_words(address: Any) -> str | None:
    """A socket's address as one writes it, on one line; None if there is none."""
    if not address:  # an unnamed Unix socket's is empty
        return None
    if isinstance(address, tuple) and isinstance(address[0], str):
        host, port, *more = address
        if more and more[1]:
            host += f"%{more[1]}"  # the zone of a link-local address
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if isinstance(address, bytes):  # Linux's abstract names begin with a zero byte
        address = "@" + address[1:].decode(errors="backslashreplace")
    return one_line(str(address), _ADDRESS_SHOWN)


def _guard(record: logging.LogRecord) -> bool:
    """Give a traceback a margin if there are words in it that are more than a line.

    They may be a peer's, quoted by whoever raised the exception. `logging.Formatter` shows the
    text that it finds here; the exception itself stays in the record as it is.
    """
    error = record.exc_info[1] if record.exc_info else None
    if error is not None:
        try:
            if not all(text.isprintable() for text in _words(error)):
                lines = "".join(traceback.format_exception(error)).rstrip("\n").split("\n")
                record.exc_text = "\n".join(_MARGIN + _printable(line) for line in lines)
        except Exception:  # noqa: BLE001 - what is so odd must not end who logs it
            words = f"{type(error).__name__}: {in_words(error, ERROR_SHOWN)}"
            record.exc_text = f"{_MARGIN}(no traceback could be made) {_printable(words)}"
    return True


def _printable(line: str) -> str:
    return line if line.isprintable() else repr(line)[1:-1]


def _words(error: BaseException) -> Iterator[str]:
    """What a traceback says of ``error`` and of all that led to it, apart from code."""
    left = [traceback.TracebackException.from_exception(error, limit=0)]
    while left:
        one = left.pop()
        for text in one.format_exception_only():
            yield text.removesuffix("\n")
        # Of a note's several lines, each is a text of its own there.
        notes = getattr(one, "__notes__", None) or ()
        for note in (notes,) if isinstance(notes, str) else notes:
            with contextlib.suppress(Exception):  # the traceback says that it failed, and no more
                yield str(note)
        left += filter(None, (one.__cause__, one.__context__, *(one.exceptions or ())))
