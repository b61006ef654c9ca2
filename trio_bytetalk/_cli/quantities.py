"""Quantities on the command line: seconds and rates, and sizes, which may end with K, M or G."""

from __future__ import annotations

import math
import re
from typing import Any, Final

import click

from .._errors import one_line

# A K is 1024.
_UNITS: Final = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30}
_WHOLE: Final = re.compile(r"(-?[0-9]{1,30})([kmg]?)(?:(?<=[kmg])i)?b?", re.IGNORECASE | re.ASCII)

# How much of what is no number is shown.
_SHOWN: Final = 300


def whole_number(text: str) -> int:
    """A whole number, such as ``4``, ``16M`` or ``64KiB``.

    Raises:
      ValueError: for anything else; it says what was expected.
    """
    match = _WHOLE.fullmatch(text)
    if match is None:
        raise ValueError(f"a whole number, such as 4 or 16M, not {one_line(text, _SHOWN)!r}")
    return int(match[1]) * _UNITS[match[2].lower()]


class Size(click.ParamType[int]):
    """A number of bytes, as a parameter of a command.

    Args:
      least: The smallest that makes sense.
    """

    name = "size"

    def __init__(self, least: int = 0) -> None:
        self.least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            size = whole_number(str(value))  # which a default is already
        except ValueError as error:
            self.fail(f"a size is {error}", param, ctx)
        if size < self.least:
            self.fail(f"a size of at least {self.least} was expected, not {value}", param, ctx)
        return size


class Quantity(click.ParamType[float]):
    """Seconds, or so many of something else, as a parameter of a command; never "nan".

    Args:
      unit: What it counts.
      least: The least that there may be; None is for more than 0.
      endless: Whether "none", or "inf", stands for no limit.
    """

    name = "number"

    def __init__(
        self, unit: str = "seconds", *, least: float | None = None, endless: bool = False
    ) -> None:
        self.unit = unit
        self.least = least
        self.endless = endless

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        try:
            number = math.inf if value == "none" else float(value)
        except ValueError:
            number = math.nan
        enough = number > 0 if self.least is None else number >= self.least
        least = "more than 0" if self.least is None else f"at least {self.least:g}"
        if not enough:
            none = ", or 'none'," if self.endless else ""
            self.fail(f"{least} {self.unit}{none} were expected, not {value!r}", param, ctx)
        if number == math.inf and not self.endless:
            words = f"a finite number of {self.unit}, {least}, was expected, not {value!r}"
            self.fail(words, param, ctx)
        return number
