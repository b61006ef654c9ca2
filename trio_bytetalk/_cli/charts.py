"""Charts in SVG, to stand in a page that gives them their colours.

Classes for the page's style sheet: ``axis``, ``bar``, ``small``, and ``line-0``, ``line-1``, ...
for lines with their names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from html import escape
from typing import Final

import attrs

_WIDTH: Final = 800
_HEIGHT: Final = 240
_LEFT: Final = 76  # figures beside the vertical axis
_RIGHT: Final = 16
_TOP: Final = 26
_BOTTOM: Final = 28  # figures below the horizontal axis

# A figure below the axis every so many units, at least.
_TICK_WIDTH: Final = 66

# How far apart the lines of a grid may be, within a power of ten.
_ROUND: Final = (1, 2, 5, 10)

# And where they may be on a logarithmic axis: from coarse to fine.
_LOGARITHMIC_STEPS: Final = ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7))

_GRID_LINES: Final = 7

# With so many points or fewer, each is marked.
_MARKED: Final = 120

_Words = Callable[[float], str]


@attrs.frozen
class Bar:
    """A bar, the words at its left edge, and those that are shown when it is pointed at."""

    value: float
    edge: str
    words: str


@attrs.frozen
class Line:
    """A line of points; None is a gap."""

    name: str
    values: Sequence[float | None]


def bars(title: str, each: Sequence[Bar], words: _Words, last_edge: str) -> str:
    """Bars beside each other, with the edges between them named."""
    top = max((bar.value for bar in each), default=0) or 1
    scale = _Linear(top)
    slot = (_WIDTH - _LEFT - _RIGHT) / max(len(each), 1)
    parts = list(_grid(scale, words))
    every = math.ceil(_TICK_WIDTH / slot)
    for index, bar in enumerate(each):
        x = _LEFT + index * slot
        height = scale.height(bar.value)
        if bar.value:
            height = max(height, 1)  # what is not nothing is seen
        parts.append(
            f'<rect class="bar" x="{x + 0.5:.1f}" y="{_base() - height:.1f}" '
            f'width="{max(slot - 1, 0.5):.1f}" height="{height:.1f}">'
            f"<title>{escape(bar.words)}</title></rect>"
        )
        # The last edge's name ends where the axis does, so it reaches further to the left.
        if index % every == 0 and (len(each) - index) * slot >= 1.2 * _TICK_WIDTH:
            parts.append(_text(x, _HEIGHT - 8, bar.edge, "middle"))
    parts.append(_text(_WIDTH - _RIGHT, _HEIGHT - 8, last_edge, "end"))
    return _svg(title, parts)


def lines(
    title: str, ends: Sequence[float], each: Sequence[Line], words: _Words, *, logarithmic: bool
) -> str:
    """Lines over the seconds of a run, which ended at ``ends``."""
    values = [value for line in each for value in line.values if value is not None]
    scale: _Linear | _Logarithmic = _Linear(max(values, default=0) or 1)
    if logarithmic and values:
        scale = _Logarithmic(max(min(values), 1), max(*values, 1))
    width = _WIDTH - _LEFT - _RIGHT
    last = ends[-1] if ends else 1
    xs = [_LEFT + end / last * width for end in ends]
    parts = list(_grid(scale, words))
    for index, line in enumerate(each):
        points = [
            None if value is None else (x, _base() - scale.height(value))
            for x, value in zip(xs, line.values, strict=True)
        ]
        parts.append(f'<path class="line line-{index}" d="{_path(points)}"/>')
        if len(points) <= _MARKED:
            for point, end, value in zip(points, ends, line.values, strict=True):
                if point is not None and value is not None:
                    parts.append(
                        f'<circle class="dot-{index}" cx="{point[0]:.1f}" cy="{point[1]:.1f}" '
                        f'r="3"><title>{escape(f"{end:.3g} s, {line.name}: {words(value)}")}'
                        "</title></circle>"
                    )
    step = _round_up(last / (width / _TICK_WIDTH))
    for tick in range(int(last / step + 1e-9) + 1):
        x = _LEFT + tick * step / last * width
        parts.append(_text(x, _HEIGHT - 8, f"{tick * step:g} s", "middle"))
    if len(each) > 1:
        x = float(_WIDTH - _RIGHT)
        for index in reversed(range(len(each))):
            name = each[index].name
            parts.append(_text(x, 14, name, "end", f"name-{index}"))
            x -= 8 * len(name) + 18
    return _svg(title, parts)


@attrs.frozen
class _Linear:
    """Heights from 0 on."""

    top: float

    def height(self, value: float) -> float:
        return value / self.top * (_HEIGHT - _TOP - _BOTTOM)

    def grid(self) -> Iterator[float]:
        step = _round_up(self.top / (_GRID_LINES - 2))
        for index in range(int(self.top / step + 1e-9) + 1):
            yield index * step


@attrs.frozen
class _Logarithmic:
    """Heights by the logarithm, from a little below the smallest value on."""

    low: float
    high: float

    def height(self, value: float) -> float:
        low = math.log10(self.low) - 0.1
        high = math.log10(self.high) + 0.05
        position = (math.log10(max(value, self.low)) - low) / (high - low)
        return position * (_HEIGHT - _TOP - _BOTTOM)

    def grid(self) -> Sequence[float]:
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        lines: list[float] = []
        for steps in _LOGARITHMIC_STEPS:
            values = (step * 10.0**power for power in powers for step in steps)
            finer = [value for value in values if self.low <= value <= self.high]
            if len(finer) <= _GRID_LINES or not lines:
                lines = finer
        return lines


def _round_up(value: float) -> float:
    """The next round number."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in _ROUND if step * power >= value * 0.999)


def _base() -> float:
    return _HEIGHT - _BOTTOM


def _grid(scale: _Linear | _Logarithmic, words: _Words) -> Iterator[str]:
    for value in scale.grid():
        y = _base() - scale.height(value)
        yield f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield _text(_LEFT - 8, y + 4, words(value), "end")


def _path(points: Sequence[tuple[float, float] | None]) -> str:
    """Lines from point to point, with gaps where there is none."""
    path = []
    pen_is_down = False
    for point in points:
        if point is not None:
            path.append(f"{'L' if pen_is_down else 'M'}{point[0]:.1f} {point[1]:.1f}")
        pen_is_down = point is not None
    return "".join(path)


def _text(x: float, y: float, words: str, anchor: str, style: str = "small") -> str:
    return (
        f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">'
        f"{escape(words)}</text>"
    )


def _svg(title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">\n'
        f"{_text(0, 14, title, 'start', 'title')}\n" + "\n".join(parts) + "\n</svg>"
    )
