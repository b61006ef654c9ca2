"""The live view of ``bytetalk serve``: a whole terminal, drawn anew once a second."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NoReturn

import attrs
import trio
from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions
from rich.segment import Segment
from rich.style import Style

from .._server import ServerStatistics
from .figures import duration, number, plural, size, sparkline
from .gauges import Busy, Gauges, Sample
from .logs import Entry, LatestRecords
from .screen import Screen

# In seconds. Statistics cost something for each connection; what has happened, and what size the
# terminal is, does not.
_SAMPLING: Final = 1
_DRAWING: Final = 0.25

# With more connections than this, samples are as much rarer: adding up so many takes 40 ms.
_SAMPLED_A_SECOND: Final = 10_000

# How many columns the totals' labels have, and from how many of all on they are told in full.
_LABEL: Final = 14
_TOTALS_IN_FULL: Final = 60

# From so many columns on, connections and events stand side by side.
_WIDE: Final = 140

# From so many lines on there is room for connections, and for why they ended.
_HIGH: Final = 16

_PLAIN: Final = Style.null()
_TITLE: Final = Style.parse("bold reverse")
_HEADING: Final = Style.parse("bold")
_DIM: Final = Style.parse("dim")
_BARS: Final = Style.parse("cyan")
_WARNING: Final = Style.parse("yellow")
_ERROR: Final = Style.parse("bold red")

# A line's pieces, each with its style.
_Line = list[tuple[str, Style]]


@attrs.frozen
class Picture:
    """What is seen: it fills whatever terminal it is drawn on.

    Nothing in it is markup, so that peers can be quoted.
    """

    title: str
    sample: Sample
    entries: Sequence[Entry]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        width, height = options.size
        ascii_only = options.ascii_only
        lines = list(_page(self, width, height, ascii_only))[:height]
        lines += [[]] * (height - len(lines))
        for row, line in enumerate(lines):
            if row:
                yield Segment.line()
            yield from _cut(line, width, ascii_only)


def _cut(line: _Line, width: int, ascii_only: bool) -> Iterator[Segment]:
    """A line of exactly so many columns."""
    left = width
    for text, style in line:
        columns = cell_len(text)
        if columns > left:
            more = "" if ascii_only or not left else "…"
            text = set_cell_size(text, left - len(more)) + more
            columns = left
        yield Segment(text, style)
        left -= columns
    yield Segment(" " * left, line[-1][1] if line and line[-1][1] == _TITLE else _PLAIN)


def _page(picture: Picture, width: int, height: int, ascii_only: bool) -> Iterator[_Line]:
    sample = picture.sample
    head = [_title(picture, width, ascii_only), *_totals(sample, width, height, ascii_only)]
    yield from head
    left = height - len(head)
    if height < _HIGH:
        yield from _events(picture.entries, left)
        return
    if width >= _WIDE:
        column = width // 2
        shown = min(len(sample.busiest), left - 2)
        busiest = [_heading(_busiest_title(sample, shown), column - 2, ascii_only)]
        busiest += _connections(sample, shown, column - 2)
        events = [_heading("latest events", width - column, ascii_only)]
        events += _events(picture.entries, left - 1)
        for row in range(max(len(busiest), len(events))):
            connection = busiest[row] if row < len(busiest) else []
            gap = column - sum(cell_len(text) for text, _ in connection)
            yield [
                *connection,
                (" " * gap, _PLAIN),
                *(events[row] if row < len(events) else []),
            ]
        return
    # Three lines are headings. Connections have three fifths of the others, and what is left over
    # by either goes to the other.
    left -= 3
    shown = min(len(sample.busiest), max(left * 3 // 5, left - len(picture.entries)))
    yield _heading(_busiest_title(sample, shown), width, ascii_only)
    yield from _connections(sample, shown, width)
    yield _heading("latest events", width, ascii_only)
    yield from _events(picture.entries, left - shown)


def _title(picture: Picture, width: int, ascii_only: bool) -> _Line:
    right = f" up {_uptime(picture.sample.uptime)} "
    room = max(width - len(right), 0)
    left = [segment.text for segment in _cut([(f" {picture.title}", _TITLE)], room, ascii_only)]
    return [("".join(left), _TITLE), (right, _TITLE)]


def _uptime(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def _totals(sample: Sample, width: int, height: int, ascii_only: bool) -> Iterator[_Line]:
    server = sample.server
    yield [
        *_label("connections"),
        (f"{server.connections:,} open", _HEADING),
        (
            f"  {server.connections_accepted:,} accepted  {sum(server.endings.values()):,} ended",
            _PLAIN,
        ),
        *_trouble(server),
    ]
    if height >= _HIGH:
        ways = sorted(server.endings.items(), key=lambda item: -item[1])
        endings = [f"{count:,} {way.value.replace('_', ' ')}" for way, count in ways if count]
        yield [*_label("endings"), (", ".join(endings) or "none", _PLAIN)]
    for label, each, unit, field in (
        ("messages in", number, _count, "messages_in"),
        ("messages out", number, _count, "messages_out"),
        ("bytes in", size, size, "bytes_in"),
        ("bytes out", size, size, "bytes_out"),
    ):
        rates = [getattr(rate, field) for rate in sample.history]
        total = f"  {unit(getattr(sample.total, field))} in all" if width >= _TOTALS_IN_FULL else ""
        room = width - _LABEL - 12 - max(len(total), 24 if total else 0)
        bars = min(max(room, 0), 60)
        yield [
            *_label(label),
            (f"{each(getattr(sample.rate, field)) + '/s':>11} ", _HEADING),
            (sparkline(rates, sample.samples, bars, ascii_only=ascii_only), _BARS),
            (total, _DIM),
        ]
    backlog = sample.backlog
    unsent = "nothing"
    if backlog.connections:
        unsent = (
            f"{size(backlog.bytes)} for {plural(backlog.connections, 'connection')}, "
            f"at most {size(backlog.most)}"
        )
        if sample.server.senders_waiting:
            unsent += f"; {plural(sample.server.senders_waiting, 'sender')} waiting"
    yield [*_label("unsent"), (unsent, _WARNING if backlog.connections else _PLAIN)]


def _trouble(server: ServerStatistics) -> Iterator[tuple[str, Style]]:
    """What keeps connections from being made."""
    if server.connections_refused:
        yield f"  {server.connections_refused:,} refused", _WARNING
    if server.handshakes:
        yield f"  {server.handshakes:,} in handshake", _PLAIN
    if server.listeners_at_limit:
        yield "  at --max-connections", _WARNING
    if server.listeners_out_of_resources:
        yield "  out of descriptors or memory", _ERROR


def _count(count: float) -> str:
    return f"{count:,.0f}"


def _label(text: str) -> _Line:
    return [(f" {text:<{_LABEL - 1}}", _DIM)]


def _heading(text: str, width: int, ascii_only: bool) -> _Line:
    dash = "-" if ascii_only else "─"
    rest = max(width - len(text) - 4, 0)
    return [(f"{dash} ", _DIM), (text, _HEADING), (f" {dash * (rest + 1)}", _DIM)]


def _busiest_title(sample: Sample, shown: int) -> str:
    connections = plural(sample.server.connections, "connection")
    return f"busiest of {connections}" if sample.server.connections > shown else connections


def _connections(sample: Sample, most: int, width: int) -> Iterator[_Line]:
    # What has a fixed width, and what it is.
    columns: list[tuple[str, int, Callable[[Busy], str]]] = [
        ("msgs in/s", 10, lambda one: number(one.rate.messages_in)),
        ("out/s", 10, lambda one: number(one.rate.messages_out)),
        ("bytes/s", 9, lambda one: size(one.rate.bytes_in + one.rate.bytes_out)),
        ("unsent", 9, lambda one: size(one.queued) if one.queued else "-"),
        ("age", 10, lambda one: duration(max(sample.now - one.since, 0))),
    ]
    while columns and width - 1 - sum(column[1] for column in columns) < 16:
        columns.pop()
    first = min(width - 1 - sum(column[1] for column in columns), 48)
    heading = f" {'peer':<{first}}" + "".join(f"{name:>{wide}}" for name, wide, _ in columns)
    yield [(heading, _DIM)]
    for one in sample.busiest[:most]:
        name = one.address if one.name == one.address else f"{one.name} {one.address}"
        yield [
            (f" {set_cell_size(name, first)}", _PLAIN),
            ("".join(f"{figure(one):>{wide}}" for _, wide, figure in columns), _PLAIN),
        ]


def _events(entries: Sequence[Entry], most: int) -> Iterator[_Line]:
    """The latest, with the newest last."""
    for entry in entries[-most:] if most > 0 else ():
        style = _PLAIN
        if entry.level >= logging.ERROR:
            style = _ERROR
        elif entry.level >= logging.WARNING:
            style = _WARNING
        yield [(f" {entry.time} ", _DIM), (entry.text, style)]


async def show(title: str, gauges: Gauges, *, records: LatestRecords, screen: Screen) -> NoReturn:
    """Draw as `Screen.show` does, until cancelled."""
    due = -math.inf
    sample: Sample

    async def look() -> Picture:
        nonlocal due, sample
        now = trio.current_time()
        if now >= due:
            sample = await gauges.sample(screen.console.height)
            due = now + max(_SAMPLING, sample.server.connections / _SAMPLED_A_SECOND)
        return Picture(title, sample, tuple(records.entries))

    await screen.show(look, _DRAWING)
