"""Figures in words: sizes, durations, counts, and the sparkline of what they were."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

_UNITS: Final = ("kB", "MB", "GB", "TB")

_BARS: Final = "▁▂▃▄▅▆▇█"
_ASCII_BARS: Final = "_.:-=+*#"


def size(count: float) -> str:
    """Bytes, with a unit of a thousand, a million, ...: at most eight characters."""
    if round(count) < 1000:
        return f"{count:.0f} B"
    for unit in _UNITS:
        count /= 1000
        if count < 999.5 or unit == _UNITS[-1]:
            break
    # Three digits, as far as they go.
    return f"{count:.{2 if count < 9.995 else 1 if count < 99.95 else 0}f} {unit}"


def duration(seconds: float) -> str:
    """Seconds if it is less than a minute, else hours, minutes and seconds."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def plural(count: int, noun: str) -> str:
    """A count and what of."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def sparkline(values: Sequence[float], ended: int, width: int, *, ascii_only: bool = False) -> str:
    """The last of ``values`` as bars, the newest at the right end of ``width`` columns.

    Args:
      values: At equal distances in time.
      ended: How many there have been ever. It has bars that stand for several values stand for the
          same ones, and move by a whole column, as long as they are shown.
      width: In columns; what there is no value for is blank.
      ascii_only: Whether the terminal may have no other characters.
    """
    if width < 1 or not values:
        return " " * width
    bars = _ASCII_BARS if ascii_only else _BARS
    each = math.ceil(len(values) / width)
    columns: dict[int, float] = {}
    for index, value in enumerate(values, ended - len(values)):
        column = index // each
        columns[column] = max(value, columns.get(column, 0))
    heights = list(columns.values())[-width:]
    most = max(heights) or 1
    # Nothing, and only that, is the lowest bar.
    top = len(bars) - 1
    return "".join(bars[math.ceil(height / most * top)] for height in heights).rjust(width)
