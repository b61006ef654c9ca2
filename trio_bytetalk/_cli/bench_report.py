"""The results of ``bytetalk bench`` in a file: JSON for programs, a page for people."""

from __future__ import annotations

import datetime
import json
import math
import platform
from collections.abc import Iterator, Sequence
from html import escape
from typing import Final

import attrs

from .. import __version__
from .addresses import Address
from .bench_view import PERCENTS, notes, percent_name, plan_words, share
from .charts import Bar, Line, bars, lines
from .figures import latency, number, size
from .load import Result

# How fine the histogram is.
_BINS: Final = 40

_NANO: Final = 1e-9


@attrs.frozen
class About:
    """What a report says beside the results."""

    address: str
    codec: str
    """As the command line names it."""
    began: datetime.datetime

    @classmethod
    def now(cls, address: Address, codec: str) -> About:
        return cls(str(address), codec, datetime.datetime.now(datetime.UTC))

    @property
    def title(self) -> str:
        return f"bytetalk bench {self.address}"


def as_json(result: Result, about: About) -> str:
    """All of it. Times are in seconds, sizes in bytes; see the documentation for the keys."""
    plan, latencies = result.plan, result.latencies
    measured = any(latencies.counts)
    percentiles: dict[str, float] = {}
    if measured:
        found = latencies.percentiles(*PERCENTS)
        percentiles = {f"{p:g}": ns * _NANO for p, ns in zip(PERCENTS, found, strict=True)}
    return json.dumps(
        {
            "program": f"bytetalk {__version__}",
            "python": platform.python_version(),
            "address": about.address,
            "codec": about.codec,
            "began": about.began.isoformat(timespec="seconds"),
            "plan": {
                "connections": plan.connections,
                "window": plan.window,
                "frame_size": plan.payload.frame_size,
                "duration": plan.duration,
                "warmup": plan.warmup,
                "rate": plan.rate,
                "timeout": plan.timeout if math.isfinite(plan.timeout) else None,
                "check": plan.check,
            },
            "connections_opened": result.opened,
            "elapsed": result.elapsed,
            "messages": result.messages,
            "messages_late": result.late,
            "messages_lost": result.lost,
            "messages_unsent": result.unsent,
            "messages_per_second": result.rate,
            "bytes_sent": result.bytes_sent,
            "bytes_received": result.bytes_received,
            "errors": result.errors,
            "interrupted": result.interrupted,
            "no_connection_left": result.exhausted,
            "stopped": result.stopped,
            "processor_share": result.cpu,
            "notes": list(notes(result)),
            "latency": {
                "percentiles": percentiles,
                "mean": latencies.mean() * _NANO if measured else None,
                "histogram": [[edge * _NANO, count] for edge, count in latencies.buckets()],
            },
            "seconds": [
                {
                    "end": second.end,
                    "elapsed": second.elapsed,
                    "messages": second.messages,
                    "bytes_sent": second.bytes_sent,
                    "bytes_received": second.bytes_received,
                    "latency_50": second.latencies[0] * _NANO if second.latencies else None,
                    "latency_99": second.latencies[1] * _NANO if second.latencies else None,
                    "latency_max": second.latencies[2] * _NANO if second.latencies else None,
                    "in_flight": second.in_flight,
                    "errors": second.errors,
                    "processor_share": second.cpu,
                }
                for second in result.seconds
            ],
        },
        indent=2,
    )


_STYLE: Final = """
:root { color-scheme: light dark; --ink: #1f2328; --soft: #59636e; --grid: #d1d9e0;
  --page: #ffffff; --card: #f6f8fa; --one: #0969da; --two: #bc4c00; --three: #8250df;
  --bad: #cf222e; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --soft: #9198a1; --grid: #3d444d; --page: #0d1117; --card: #151b23;
    --one: #4493f8; --two: #db8b4b; --three: #ab7df8; --bad: #f85149; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 1.5rem 1rem; background: var(--page);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.4rem; margin: 0; overflow-wrap: anywhere; }
p { margin: .3rem 0; color: var(--soft); overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: .75rem;
  margin: 1.25rem 0; }
.cards div { background: var(--card); border-radius: .5rem; padding: .6rem .8rem; }
.cards b { display: block; font-size: 1.3rem; font-weight: 600; }
.cards span { color: var(--soft); font-size: .85rem; }
.note { border-left: 4px solid var(--two); padding-left: .7rem; color: var(--ink); }
.bad { color: var(--bad); }
svg { width: 100%; height: auto; margin: .8rem 0; font: 12px system-ui, sans-serif; }
svg text { fill: var(--ink); } svg .title { font-weight: 600; } svg .small { fill: var(--soft); }
svg .axis { stroke: var(--grid); } svg .bar, svg .dot-0, svg .name-0 { fill: var(--one); }
svg .line { fill: none; stroke-width: 2; } svg .line-0 { stroke: var(--one); }
svg .line-1 { stroke: var(--two); } svg .dot-1, svg .name-1 { fill: var(--two); }
svg .line-2 { stroke: var(--three); } svg .dot-2, svg .name-2 { fill: var(--three); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .8rem .2rem 0; text-align: right; border-bottom: 1px solid var(--grid);
  white-space: nowrap; }
th { font-weight: 600; color: var(--soft); } .words { text-align: left; white-space: normal; }
summary { cursor: pointer; margin: 1rem 0 .5rem; }
"""


def as_html(result: Result, about: About) -> str:
    """A page that needs nothing else, in the reader's light or dark colours."""
    title = escape(about.title)
    body = "\n".join(_body(result, about))
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n"
        "</body>\n</html>"
    )


def _body(result: Result, about: About) -> Iterator[str]:
    yield f"<h1>{escape(about.title)}</h1>"
    yield f"<p>{escape(plan_words(result.plan, result.opened))}</p>"
    yield f"<p>{about.began:%Y-%m-%d %H:%M} UTC, bytetalk {__version__}, {escape(about.codec)}</p>"
    latencies = result.latencies
    cards = [(f"{number(result.rate)}", f"messages a second, for {result.elapsed:.3g} s")]
    if any(latencies.counts):
        found = latencies.percentiles(*PERCENTS)
        cards += [
            (latency(ns), f"latency, {percent_name(p)}")
            for p, ns in zip(PERCENTS, found, strict=True)
        ]
        cards.append((latency(latencies.mean()), "latency, mean"))
    if result.elapsed:
        cards.append((f"{size(result.bytes_sent / result.elapsed)}/s", "sent"))
        cards.append((f"{size(result.bytes_received / result.elapsed)}/s", "received"))
    cards.append((f"{result.cpu:.0%}", "of a processor, for the generator"))
    yield '<div class="cards">'
    yield from (f"<div><b>{escape(b)}</b><span>{escape(words)}</span></div>" for b, words in cards)
    yield "</div>"
    yield from (f'<p class="note">{escape(note)}</p>' for note in notes(result))
    if result.errors:
        rows = [(f"{count:,}", reason) for reason, count in result.errors.items()]
        yield _table(("errors", "reason"), rows, "bad")
    yield from _charts(result)


def _charts(result: Result) -> Iterator[str]:
    bins = result.latencies.bins(_BINS)
    if bins:
        total = sum(each.count for each in bins)
        yield bars(
            "Latency: how many messages took so long",
            [
                Bar(
                    each.count,
                    latency(each.low),
                    f"{latency(each.low)} to {latency(each.high)}: "
                    f"{each.count:,} ({share(each.count, total)})",
                )
                for each in bins
            ],
            number,
            latency(bins[-1].high),
        )
    seconds = result.seconds
    ends = [second.end for second in seconds]
    rates = [second.messages / second.elapsed for second in seconds]
    yield lines("Messages a second", ends, [Line("messages/s", rates)], number, logarithmic=False)
    names = ("50 %", "99 %", "max")
    columns = [
        Line(name, [second.latencies[i] if second.latencies else None for second in seconds])
        for i, name in enumerate(names)
    ]
    yield lines("Latency, by the second", ends, columns, latency, logarithmic=True)
    rows = [
        (
            f"{second.end:.3g}",
            number(second.messages / second.elapsed),
            *(map(latency, second.latencies) if second.latencies else ("-",) * 3),
            f"{second.in_flight:,}",
            f"{second.errors:,}",
            f"{second.cpu:.0%}",
        )
        for second in seconds
    ]
    header = ("second", "messages/s", *names, "in flight", "errors", "processor")
    yield f"<details><summary>Each second</summary>{_table(header, rows)}</details>"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], style: str = "") -> str:
    """A table whose columns are figures, but for reasons."""

    def cell(tag: str, column: int, words: str) -> str:
        kind = ' class="words"' if header[column] == "reason" else ""
        return f"<{tag}{kind}>{escape(words)}</{tag}>"

    lines = ["".join(cell("th", i, name) for i, name in enumerate(header))]
    lines += ["".join(cell("td", i, words) for i, words in enumerate(row)) for row in rows]
    inside = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="wide"><table class="{style}">\n{inside}\n</table></div>'
