"""Figures in words: sizes, durations, counts, and the sparkline of what they were."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

_SIZES: Final = ("B", "kB", "MB", "GB", "TB")
_TIMES: Final = ("ns", "µs", "ms", "s")

_BARS: Final = "▁▂▃▄▅▆▇█"
_ASCII_BARS: Final = "_.:-=+*#"


def size(count: float) -> str:
    """Bytes, with a unit of a thousand, a million, ...: at most eight characters."""
    return _scaled(count, _SIZES)


def latency(nanoseconds: float) -> str:
    """Nanoseconds, with a unit of a thousand, a million, ... of them: ``12.3 µs``."""
    return _scaled(nanoseconds, _TIMES)


def number(value: float) -> str:
    """As many digits as its reader can use: ``0.25``, ``8.1``, ``45,123``."""
    if value >= 99.95 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def _scaled(value: float, units: Sequence[str]) -> str:
    """Three digits and the unit that they need, each a thousand of the one before."""
    unit = 0
    while value >= 999.5 and unit < len(units) - 1:
        value /= 1000
        unit += 1
    digits = 0 if not unit or value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f} {units[unit]}"


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
