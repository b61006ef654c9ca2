"""The chart for the documentation, drawn as SVG.

Bars compare the contenders under the loads that people ask about first; lines below them show how
cost grows. The drawing follows the reader's light or dark mode.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape
from typing import Final

import attrs

from benchmarks.contenders import CONTENDERS
from benchmarks.loads import GROUPS, EchoLoad, VolumeLoad
from benchmarks.results import LoadResults, Results

_WIDTH: Final = 960
_LABELS: Final = 250  # the longest title of a contender, at this size of type
_ROW: Final = 22
_GAP: Final = 28
_PLOT_HEIGHT: Final = 220
_LEFT: Final = 52  # figures beside an axis
_RIGHT: Final = 24  # half of the last figure below one
_LETTER: Final = 5.6  # the mean width of a small one

_BARS: Final = ("burst", "ping50", "bulk")
_LINES: Final = ("sizes", "connections")

_STYLE: Final = """
text { font: 12px system-ui, sans-serif; fill: #24292f; }
.title { font-weight: 600; }
.small { font-size: 11px; fill: #57606a; }
.bar { fill: #8c959f; }
.base { fill: #57606a; }
.ours { fill: #0969da; }
.ours-text { font-weight: 600; }
.axis { stroke: #d0d7de; stroke-width: 1; }
.line { fill: none; stroke-width: 2; }
.line-0 { stroke: #0969da; } .dot-0 { fill: #0969da; }
.line-1 { stroke: #57606a; } .dot-1 { fill: #57606a; }
.line-2 { stroke: #bf8700; } .dot-2 { fill: #bf8700; }
.line-3 { stroke: #8250df; } .dot-3 { fill: #8250df; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  .small { fill: #9198a1; }
  .bar { fill: #656c76; }
  .base { fill: #9198a1; }
  .ours { fill: #4493f8; }
  .axis { stroke: #3d444d; }
  .line-0 { stroke: #4493f8; } .dot-0 { fill: #4493f8; }
  .line-1 { stroke: #9198a1; } .dot-1 { fill: #9198a1; }
  .line-2 { stroke: #d29922; } .dot-2 { fill: #d29922; }
  .line-3 { stroke: #ab7df8; } .dot-3 { fill: #ab7df8; }
}
"""


def draw(results: Results) -> str:
    """Draw what there is to draw.

    Returns:
      A whole SVG document; an empty one if none of the loads was measured.
    """
    parts: list[str] = []
    height = _GAP
    bars = [results.loads[name] for name in _BARS if name in results.loads]
    bars = [load for load in bars if load.baseline and load.value(load.baseline)]
    if bars:
        names = _shown_contenders(bars)
        parts += _bar_chart(bars, names, height)
        height += (len(names) + 3) * _ROW + _GAP
    plots = [plot for name in _LINES if (plot := _plot_of(name, results))]
    if plots:
        width = (_WIDTH - _GAP * (len(plots) - 1)) / len(plots)
        for index, plot in enumerate(plots):
            parts += plot.draw(index * (width + _GAP), height, width)
        height += _PLOT_HEIGHT + 3 * _ROW + _GAP
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        f'width="{_WIDTH}" height="{height}" role="img" '
        f'aria-label="trio_bytetalk compared with other servers">\n'
        f"<style>{_STYLE}</style>\n" + "\n".join(parts) + "\n</svg>\n"
    )


def _shown_contenders(loads: Sequence[LoadResults]) -> list[str]:
    """Those that did the same work under every load."""
    measured = {name for load in loads for name in load.contenders()}
    return [
        name
        for name, contender in CONTENDERS.items()
        if name in measured
        and not contender.is_reference
        and name not in {"ours-subscriber", "trio-unframed"}
    ]


def _bar_chart(loads: Sequence[LoadResults], names: Sequence[str], top: float) -> Iterator[str]:
    panel = (_WIDTH - _LABELS - _GAP * (len(loads) - 1)) / len(loads)
    yield _text(0, top, "Rate; Trio by hand = 1", "title")
    for row, name in enumerate(names):
        style = "ours-text" if CONTENDERS[name].ours else ""
        yield _text(_LABELS - 10, top + (row + 3) * _ROW, CONTENDERS[name].title, style, "end")
    for column, load in enumerate(loads):
        left = _LABELS + column * (panel + _GAP)
        for line, words in enumerate(_two_lines(load.title)):
            yield _text(left, top + line * 15, words, "small")
        yield from _bars(load, names, left, top, panel)


def _bars(
    load: LoadResults, names: Sequence[str], left: float, top: float, width: float
) -> Iterator[str]:
    assert load.baseline is not None
    ratios = {name: load.ratio(name, load.baseline) for name in names}
    longest = max(ratio.median for ratio in ratios.values() if ratio)
    for row, name in enumerate(names):
        ratio = ratios[name]
        if ratio is None:
            continue
        length = max(1.0, ratio.median / longest * (width - 45))
        y = top + (row + 3) * _ROW
        style = "ours" if CONTENDERS[name].ours else "base" if name == load.baseline else "bar"
        yield (
            f'<rect class="{style}" x="{left:.1f}" y="{y - 12:.1f}" '
            f'width="{length:.1f}" height="16" rx="2"/>'
        )
        yield _text(left + length + 6, y, f"{ratio.median:.1f}\N{MULTIPLICATION SIGN}")


def _two_lines(title: str) -> tuple[str, str]:
    first, _, rest = title.partition(", ")
    return first, rest


@attrs.frozen
class _Plot:
    """Lines over a logarithmic horizontal axis."""

    title: str
    unit: str
    ticks: tuple[str, ...]
    xs: tuple[float, ...]
    lines: dict[str, tuple[float | None, ...]]
    logarithmic: bool

    def draw(self, left: float, top: float, width: float) -> Iterator[str]:
        yield _text(left, top, self.title, "title")
        yield _text(left, top + 16, self.unit, "small")
        left, width = left + _LEFT, width - _LEFT - _RIGHT
        top += 28
        bottom = top + _PLOT_HEIGHT
        values = [value for line in self.lines.values() for value in line if value]
        low = 10 ** math.floor(math.log10(min(values))) if self.logarithmic else 0.0
        high = 10 ** math.ceil(math.log10(max(values))) if self.logarithmic else max(values) * 1.1

        def x(value: float) -> float:
            first, last = math.log(self.xs[0]), math.log(self.xs[-1])
            return left + (math.log(value) - first) / (last - first) * width

        def y(value: float) -> float:
            if self.logarithmic:
                share = math.log(value / low) / math.log(high / low)
            else:
                share = value / high
            return bottom - share * _PLOT_HEIGHT

        for mark in self._marks(low, high):
            yield (
                f'<line class="axis" x1="{left:.1f}" x2="{left + width:.1f}" '
                f'y1="{y(mark):.1f}" y2="{y(mark):.1f}"/>'
            )
            yield _text(left - 6, y(mark) + 4, f"{mark:,.0f}", "small", "end")
        for position, tick in zip(self.xs, self.ticks, strict=True):
            yield _text(x(position), bottom + 16, tick, "small", "middle")
        key = left - _LEFT + 8
        for index, (name, line) in enumerate(self.lines.items()):
            points = [(x(at), y(value)) for at, value in zip(self.xs, line, strict=True) if value]
            path = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
            yield f'<polyline class="line line-{index}" points="{path}"/>'
            for px, py in points:
                yield f'<circle class="dot-{index}" cx="{px:.1f}" cy="{py:.1f}" r="2.5"/>'
            yield f'<circle class="dot-{index}" cx="{key:.1f}" cy="{bottom + 34:.1f}" r="4"/>'
            yield _text(key + 8, bottom + 38, CONTENDERS[name].title, "small")
            key += 24 + len(CONTENDERS[name].title) * _LETTER

    def _marks(self, low: float, high: float) -> list[float]:
        if self.logarithmic:
            decades = round(math.log10(high / low))
            return [low * 10**step for step in range(decades + 1)]
        step = 10 ** math.floor(math.log10(high / 2))
        while high / step > 6:
            step *= 2 if high / step <= 12 else 5
        return [index * step for index in range(int(high / step) + 1)]


def _plot_of(group: str, results: Results) -> _Plot | None:
    loads = [load for load in GROUPS[group].loads if load.name in results.loads]
    measured = [results.loads[load.name] for load in loads]
    names = [
        name
        for name, contender in CONTENDERS.items()
        if any(name in load.contenders() for load in measured) and not contender.is_reference
    ]
    if len(loads) < 2 or not names:
        return None
    xs: list[float] = []
    for load in loads:
        assert isinstance(load, EchoLoad)
        xs.append(load.size if isinstance(load, VolumeLoad) else load.connections)
    # Every other tick, where there are many: they would touch.
    every = 2 if len(loads) > 8 else 1
    ticks = tuple(
        load.title.removesuffix(" connections").replace(" ", "") if index % every == 0 else ""
        for index, load in enumerate(loads)
    )
    lines = {
        name: tuple(value.median if (value := load.value(name)) else None for load in measured)
        for name in names
    }
    return _Plot(GROUPS[group].title, measured[0].unit, ticks, tuple(xs), lines, group == "sizes")


def _text(x: float, y: float, words: str, style: str = "", anchor: str = "start") -> str:
    classes = f' class="{style}"' if style else ""
    return f'<text{classes} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'
