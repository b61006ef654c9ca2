"""Log records on stderr, or for the live view; with nothing in them that a terminal would obey."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections import deque
from collections.abc import Iterator
from typing import Final

import attrs

from .._errors import in_words, one_line
from .escapes import printable

# How many of the latest records are kept for the live view: as many as a tall terminal has lines.
_KEPT: Final = 200

# How many of the latest errors are kept whole, to be printed when the view has gone.
_ERRORS_KEPT: Final = 10

# A record is one line there; nobody sees more of it.
_SHOWN: Final = 1000


class PrintableFormatter(logging.Formatter):
    """Has what peers sent, which may be part of a record or a traceback, obey nobody."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(map(printable, super().format(record).split("\n")))


_FORMATTER: Final = PrintableFormatter(
    "%(asctime)s %(levelname)-7s %(message)s", "%Y-%m-%d %H:%M:%S"
)


@attrs.frozen
class Entry:
    """A log record, as a line of the live view."""

    time: str
    level: int
    text: str


class LatestRecords(logging.Handler):
    """Keeps the latest records."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: deque[Entry] = deque(maxlen=_KEPT)
        self.errors: deque[str] = deque(maxlen=_ERRORS_KEPT)
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.exc_info is not None and record.exc_info[1] is not None:
            error = record.exc_info[1]
            text = f"{text}: {type(error).__name__}: {in_words(error, _SHOWN)}"
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        self.entries.append(Entry(clock, record.levelno, one_line(text, _SHOWN)))
        self.count += 1
        if record.levelno >= logging.ERROR:
            self.errors.append(_FORMATTER.format(record))


class Unsent(logging.Handler):
    """Counts the bytes that connections were closed without having sent."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.bytes += getattr(record, "bytetalk_unsent", 0)

    @classmethod
    @contextlib.contextmanager
    def counted(cls) -> Iterator[Unsent]:
        """Within this block, that is all that becomes of the package's own records."""
        logger = logging.getLogger("trio_bytetalk")
        before = logger.level, logger.propagate
        self = cls()
        logger.addHandler(self)
        logger.setLevel(logging.INFO)
        logger.propagate = False
        try:
            yield self
        finally:
            logger.removeHandler(self)
            level, logger.propagate = before
            logger.setLevel(level)


def on_stderr() -> logging.Handler:
    """What prints records as lines with a time and a level."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_FORMATTER)
    return handler


@contextlib.contextmanager
def logging_to(handler: logging.Handler, level: int) -> Iterator[None]:
    """Within this block, all loggers' records from ``level`` on go to ``handler``.

    But not the package's own of how a connection has ended, and of what it has left unsent, for
    `Peers` tells both.
    """
    root = logging.getLogger()
    before = root.level
    handler.addFilter(_is_news)
    root.addHandler(handler)
    root.setLevel(level)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(before)
        handler.removeFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    return getattr(record, "bytetalk_event", None) not in ("connection_ended", "unsent")
