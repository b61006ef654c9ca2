"""What ``bytetalk bench`` shows: a screen while it runs, lines instead of it, and the results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import attrs
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from .escapes import printable
from .figures import latency, number, plural, size, sparkline
from .histogram import Histogram
from .load import Phase, Plan, Result, Second, Snapshot

PERCENTS: Final = (50, 90, 99, 99.9, 100)

# Above this share of a processor, this program is likely to be what limits the rate.
BUSY: Final = 0.9

# From so many columns on, the seconds stand beside the histogram, and not below it.
_WIDE: Final = 140

# The histogram of the results, and the longest bars: a longer one says no more.
_RESULT_BINS: Final = 12
_RESULT_WIDTH: Final = 80
_LONGEST_BAR: Final = 100

# How many reasons there is room for, where there is not much.
_ERRORS_SHOWN: Final = 3

# A rate is kept if no more than this part of the messages could not be sent in time.
_BEHIND: Final = 0.01

_LABEL: Final = 15

_EIGHTHS: Final = ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")

_SECOND_COLUMNS: Final = ("second", "messages/s", "50 %", "99 %", "max", "in flight", "errors")
_SECOND_WIDTH: Final = 11

_ASCII: Final = str.maketrans("µ━─…█▏▎▍▌▋▊▉", "u=-.#|||||##")


def print_text(console: Console, text: Text) -> None:
    """Print whole lines, however long, in characters that the output has."""
    if console.options.ascii_only:
        text = _in_ascii(text)
    console.print(text, soft_wrap=True)


def _in_ascii(text: Text) -> Text:
    copy = text.copy()
    copy.plain = text.plain.translate(_ASCII)
    return copy


# -- while it runs


@attrs.frozen
class Picture:
    """What is seen of a run: it fills whatever terminal it is drawn on."""

    title: str
    run: Snapshot

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, height = options.size
        for line in _page(self, width, height, options.ascii_only)[:height]:
            line.no_wrap = True
            line.overflow = "ellipsis"
            yield _in_ascii(line) if options.ascii_only else line


def _page(picture: Picture, width: int, height: int, ascii_only: bool) -> list[Text]:
    run = picture.run
    latencies = run.latencies
    lines = [
        _title(picture.title, width),
        _progress(run, width),
        Text(),
        *_gauges(run, width, ascii_only),
        Text(),
        _percentiles(latencies),
        Text(),
    ]
    left = height - len(lines) - 1
    if width >= _WIDE:
        column = width - len(_SECOND_COLUMNS) * _SECOND_WIDTH - 3
        bars = histogram_lines(latencies, left, column)
        seconds = _seconds(run.seconds, left)
        for number in range(max(len(bars), len(seconds))):
            line = bars[number] if number < len(bars) else Text()
            line.pad_right(column + 3 - line.cell_len)
            lines.append(line + seconds[number] if number < len(seconds) else line)
    else:
        # The histogram needs no more lines than these; the seconds get what it leaves.
        bars = histogram_lines(latencies, min(left, 20), width)
        lines += bars
        if left - len(bars) > 3:
            lines += [Text(), *_seconds(run.seconds, left - len(bars) - 1)]
    lines = lines[: height - 1]
    lines += [Text()] * (height - 1 - len(lines))
    return [*lines, Text(" Ctrl-C ends it early and prints the results", "dim")]


def _title(title: str, width: int) -> Text:
    text = Text(f" {title}", "bold reverse")
    text.truncate(width, overflow="ellipsis")
    text.pad_right(max(width - text.cell_len, 0))
    return text


def _progress(run: Snapshot, width: int) -> Text:
    plan, elapsed = run.plan, run.phase_elapsed
    done, words = 1.0, ""
    if run.phase is Phase.OPENING:
        done, words = run.opened / plan.connections, f"{run.opened:,} of {plan.connections:,}"
    elif run.phase in (Phase.WARMING_UP, Phase.MEASURING):
        whole = plan.warmup if run.phase is Phase.WARMING_UP else plan.duration
        done = min(elapsed / whole, 1.0) if whole else 1.0
        words = f"{min(elapsed, whole):.0f} of {whole:g} s"
    text = Text(f" {run.phase.value} {words} ")
    room = max(width - text.cell_len - 1, 0)
    filled = round(room * done)
    text.append("━" * filled, "green")
    text.append("─" * (room - filled), "dim")
    return text


def _gauges(run: Snapshot, width: int, ascii_only: bool) -> Iterator[Text]:
    seconds = run.seconds
    last = seconds[-1] if seconds else None
    line = _labelled("messages/s")
    if last is not None:
        line.append(f"{number(last.messages / last.elapsed):>9}", "bold")
        words = f"  mean {number(run.rate)}"
        bars = min(max(width - _LABEL - 10 - len(words) - 1, 0), 60)
        rates = [second.messages / second.elapsed for second in seconds]
        line.append(f" {sparkline(rates, len(seconds), bars, ascii_only=ascii_only)}", "cyan")
        line.append(words)
    yield line
    line = _labelled("bytes/s")
    if last is not None:
        line.append(f"{size(last.bytes_sent / last.elapsed):>9} sent")
        line.append(f"{size(last.bytes_received / last.elapsed):>11} received")
    yield line
    line = _labelled("connections")
    line.append(f"{run.active:>9,} open {plural(run.in_flight, 'message'):>13} in flight")
    yield line
    line = _labelled("errors")
    errors = sum(run.errors.values())
    line.append(f"{errors:>9,}", "bold red" if errors else "")
    if errors:
        line.append(f" {error_words(run.errors, _ERRORS_SHOWN)}", "red")
    yield line
    line = _labelled("this program")
    if last is not None:
        busy = last.cpu >= BUSY
        line.append(f"{last.cpu:>9.0%} of a processor", "yellow" if busy else "")
        if busy:
            line.append(": it may be what limits the rate", "yellow")
    yield line


def _labelled(label: str) -> Text:
    text = Text()
    text.append(f" {label:<{_LABEL - 1}}", "dim")
    return text


def _percentiles(latencies: Histogram) -> Text:
    text = Text()
    text.append(" latency", "dim")  # with what follows just short enough for 80 columns
    if any(latencies.counts):
        for percent, value in zip(PERCENTS, latencies.percentiles(*PERCENTS), strict=True):
            text.append(f"  {percent_name(percent)} ", "dim")
            text.append(latency(value), "bold")
    return text


def percent_name(percent: float) -> str:
    """What a percentile is called."""
    return "max" if percent == 100 else f"{percent:g} %"


def histogram_lines(latencies: Histogram, most: int, width: int) -> list[Text]:
    """A line with a bar for each of at most so many bins."""
    bins = latencies.bins(most) if most > 0 else []
    total = sum(each.count for each in bins)
    highest = max((each.count for each in bins), default=0)
    lines = []
    for each in bins:
        text = Text(f" {latency(each.low):>8} - {latency(each.high):<8}", "dim")
        text.append(f"{share(each.count, total):>8} ", "not dim")
        room = min(width - text.cell_len - 1, _LONGEST_BAR)
        text.append(_bar(each.count / highest, room), "cyan not dim")
        text.rstrip()
        lines.append(text)
    return lines


def share(count: int, total: int) -> str:
    """A part of a whole in percent: what is not nothing is not shown as nothing."""
    if count and count / total < 0.0001:
        return "<0.01 %"
    return f"{count / total:.2%}".replace("%", " %")


def _bar(part: float, room: int) -> str:
    """A bar as long as this part of the room; what is not nothing is seen."""
    eighths = max(round(part * room * 8), 1 if part else 0)
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8]


def _seconds(seconds: Sequence[Second], most: int) -> list[Text]:
    """A table of the latest seconds, the newest last."""
    lines = [Text("".join(f"{name:>{_SECOND_WIDTH}}" for name in _SECOND_COLUMNS), "dim")]
    for second in seconds[-(most - 1) :] if most > 1 else ():
        cells = [
            f"{second.end:.0f}",
            number(second.messages / second.elapsed),
            *(map(latency, second.latencies) if second.latencies else ("-",) * 3),
            f"{second.in_flight:,}",
            f"{second.errors:,}",
        ]
        lines.append(Text("".join(f"{cell:>{_SECOND_WIDTH}}" for cell in cells)))
    return lines


def error_words(errors: Mapping[str, int], most: int) -> str:
    """The most frequent reasons, each with how often it came, on one line."""
    reasons = sorted(errors.items(), key=lambda item: -item[1])
    words = [f"{count:,} x {printable(reason)}" for reason, count in reasons[:most]]
    if len(reasons) > most:
        words.append(f"and {plural(len(reasons) - most, 'other reason')}")
    return "; ".join(words)


# -- lines instead of it


def second_line(second: Second) -> str:
    """One second on one line."""
    words = [f"{second.end:6.1f} s {number(second.messages / second.elapsed):>10} messages/s"]
    words.append(f"{size(second.bytes_received / second.elapsed):>8}/s")
    if second.latencies:
        median, high, maximum = second.latencies
        words.append(
            f"50 % {latency(median):>7}  99 % {latency(high):>7}  max {latency(maximum):>7}"
        )
    if second.errors:
        words.append(plural(second.errors, "error"))
    return "  ".join(words)


# -- what came of it


def plan_words(plan: Plan, opened: int) -> str:
    """What was done, on one line."""
    connections = plural(plan.connections, "connection")
    if opened < plan.connections:
        connections = f"{opened:,} of {connections}"
    pace = "a closed loop" if plan.rate is None else f"{number(plan.rate)} messages/s"
    return (
        f"{connections}, {plural(plan.window, 'message')} in flight on each, "
        f"frames of {size(plan.payload.frame_size)}, {pace}"
    )


def results(result: Result, title: str) -> Text:
    """All of it, as lines of text."""
    text = Text()
    text.append(f"{title}\n", "bold")
    text.append(f"{plan_words(result.plan, result.opened)}\n\n")
    if result.elapsed:
        rate = number(result.rate)
        _row(text, "messages", f"{rate}/s", f"{result.messages:,} in {result.elapsed:.3g} s")
        for label, count in (("sent", result.bytes_sent), ("received", result.bytes_received)):
            _row(text, label, f"{size(count / result.elapsed)}/s", f"{size(count)} in all")
    latencies = result.latencies
    if any(latencies.counts):
        text.append("\n")
        for percent, value in zip(PERCENTS, latencies.percentiles(*PERCENTS), strict=True):
            label = "latency" if percent == PERCENTS[0] else ""
            _row(text, label, latency(value), percent_name(percent))
        _row(text, "", latency(latencies.mean()), "mean")
        text.append("\n")
        for line in histogram_lines(latencies, _RESULT_BINS, _RESULT_WIDTH):
            text.append_text(line).append("\n")
    if result.elapsed:
        text.append("\n")
    _row(text, "this program", f"{result.cpu:.0%}", "of a processor")
    _row(text, "errors", f"{sum(result.errors.values()):,}", "")
    for reason, count in result.errors.items():
        _row(text, "", f"{count:,} x", printable(reason), "red")
    for note in notes(result):
        text.append(f"\n{note}\n", "yellow")
    text.rstrip()
    return text


def _row(text: Text, label: str, figure: str, words: str, style: str = "") -> None:
    text.append(f"  {label:<{_LABEL - 1}}", "dim")
    text.append(f"{figure:>12}", style or "bold")
    text.append(f"  {words}".rstrip() + "\n", style)


def notes(result: Result) -> Iterator[str]:
    """What must be known to read the figures."""
    if result.exhausted:
        yield "No connection was left before the time was over."
    elif result.interrupted:
        yield "Interrupted before the time was over."
    if result.stopped:
        yield (
            "This program was stopped for a while, as Ctrl-Z does, and that time counts: the rate "
            "is too low, and the highest latencies are not the server's."
        )
    if result.lost:
        yield f"{plural(result.lost, 'message')} got no reply; no latency stands for that."
    due = result.unsent + result.messages
    if result.unsent > max(due * _BEHIND, result.opened):
        yield (
            f"Behind the rate: {plural(result.unsent, 'message')} could not be sent in time, for "
            f"the window was full. Their latencies, which are missing, would have been the highest."
        )
    if result.cpu >= BUSY:
        yield (
            "This program was busy all the time, so it may be what limited the rate, and not the "
            "server. Several of them at once can tell."
        )
