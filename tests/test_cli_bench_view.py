"""What bench shows, on terminals of several sizes, in lines, and in the end."""

from __future__ import annotations

import io
from typing import Any

import attrs
import pytest
from rich.cells import cell_len
from rich.console import Console

from trio_bytetalk import LengthPrefixed
from trio_bytetalk._cli.bench_view import (
    Picture,
    error_words,
    notes,
    plan_words,
    print_text,
    results,
    second_line,
    share,
)
from trio_bytetalk._cli.histogram import Histogram
from trio_bytetalk._cli.load import Phase, Plan, Result, Second, Snapshot
from trio_bytetalk._cli.payload import generated

MS = 1_000_000

PLAN = Plan(payload=generated(LengthPrefixed(), 64), connections=20, window=4)

SECONDS = tuple(
    Second(
        end=number,
        elapsed=1,
        messages=10_000 + 100 * number,
        bytes_sent=680_000,
        bytes_received=670_000,
        latencies=(2 * MS, 9 * MS, 30 * MS) if number != 2 else None,
        in_flight=80,
        errors=0,
        cpu=0.5,
    )
    for number in range(1, 4)
)


def latencies(*values: int) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    return histogram


SPREAD = latencies(*(2 * MS,) * 90, *(5 * MS,) * 9, 30 * MS)


def snapshot(**changes: Any) -> Snapshot:
    usual = Snapshot(
        plan=PLAN,
        phase=Phase.MEASURING,
        phase_elapsed=3.2,
        opened=20,
        active=20,
        in_flight=80,
        errors={},
        latencies=SPREAD,
        seconds=SECONDS,
        rate=10_200,
    )
    return attrs.evolve(usual, **changes)


def drawn(run: Snapshot, width: int = 80, height: int = 24, encoding: str = "utf-8") -> list[str]:
    """The screen, line by line."""
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="")
    console = Console(
        file=file,
        width=width,
        height=height,
        force_terminal=True,
        color_system=None,
        legacy_windows=False,
    )
    console.print(Picture("bytetalk bench :5555", run))
    file.flush()
    buffer = file.buffer
    assert isinstance(buffer, io.BytesIO)
    return buffer.getvalue().decode(encoding).splitlines()


def test_a_terminal_of_80_columns_and_24_lines() -> None:
    assert [line.rstrip() for line in drawn(snapshot())] == [
        " bytetalk bench :5555",
        " measuring 3 of 10 s ━━━━━━━━━━━━━━━━━━━───────────────────────────────────────",
        "",
        " messages/s       10,300                                       ███  mean 10,200",
        " bytes/s          680 kB sent     670 kB received",
        " connections          20 open   80 messages in flight",
        " errors                0",
        " this program        50% of a processor",
        "",
        " latency  50 % 2.01 ms  90 % 2.01 ms  99 % 5.01 ms  99.9 % 30.0 ms  max 30.0 ms",
        "",
        "  2.00 ms - 2.50 ms  90.00 % ██████████████████████████████████████████████████",
        "  2.50 ms - 3.15 ms   0.00 %",
        "  3.15 ms - 4.00 ms   0.00 %",
        "  4.00 ms - 5.00 ms   0.00 %",
        "  5.00 ms - 6.30 ms   9.00 % █████",
        "  6.30 ms - 8.00 ms   0.00 %",
        "  8.00 ms - 10.0 ms   0.00 %",
        "  10.0 ms - 12.5 ms   0.00 %",
        "  12.5 ms - 16.0 ms   0.00 %",
        "  16.0 ms - 20.0 ms   0.00 %",
        "  20.0 ms - 25.0 ms   0.00 %",
        "  25.0 ms - 31.5 ms   1.00 % ▌",
        " Ctrl-C ends it early and prints the results",
    ]


def test_a_high_terminal_has_the_latest_seconds_below() -> None:
    lines = [line.rstrip() for line in drawn(snapshot(), 80, 50)]
    assert len(lines) == 50
    table = lines.index(
        "     second messages/s       50 %       99 %        max  in flight     errors".rjust(77)
    )
    assert lines[table + 1 : table + 4] == [
        "          1     10,100    2.00 ms    9.00 ms    30.0 ms         80          0",
        "          2     10,200          -          -          -         80          0",
        "          3     10,300    2.00 ms    9.00 ms    30.0 ms         80          0",
    ]


def test_a_wide_terminal_has_the_latest_seconds_beside() -> None:
    lines = drawn(snapshot(), 200, 50)
    assert len(lines) == 50
    header = next(line for line in lines if "in flight" in line and "errors" in line)
    assert header.rstrip().endswith("max  in flight     errors")
    assert header.startswith("  2.00 ms")
    assert max(map(cell_len, lines)) <= 200
    few = drawn(snapshot(latencies=latencies(MS)), 200, 50)
    assert any(line.strip().startswith("3     10,300") for line in few)


@pytest.mark.parametrize("width", [20, 40, 79, 80, 139, 140, 300])
@pytest.mark.parametrize("height", [1, 5, 12, 24, 100])
def test_whatever_the_size_it_fills_the_terminal_and_no_more(width: int, height: int) -> None:
    many = attrs.evolve(SECONDS[0], errors=1234)
    run = snapshot(seconds=(many,) * 120, errors={"the server closed the connection": 1234})
    lines = drawn(run, width, height)
    assert len(lines) == height
    assert max(map(cell_len, lines)) <= width


def test_what_does_not_fit_on_a_line_is_seen_to_be_missing() -> None:
    lines = drawn(snapshot(errors={"the server closed the connection": 2}), 40)
    assert lines[6] == " errors                2 2 x the server…"


def test_while_it_connects_there_are_no_figures() -> None:
    lines = drawn(
        snapshot(
            phase=Phase.OPENING, opened=5, active=5, in_flight=0, seconds=(), latencies=latencies()
        )
    )
    assert lines[1].startswith(" connecting 5 of 20 ━━━━")
    assert lines[3].strip() == "messages/s"
    assert lines[9].strip() == "latency"


@pytest.mark.parametrize(
    ("phase", "elapsed", "warmup", "shown"),
    [
        (Phase.WARMING_UP, 0.5, 1, " warming up 0 of 1 s ━"),
        (Phase.WARMING_UP, 0, 0, " warming up 0 of 0 s ━"),
        (Phase.MEASURING, 12, 1, " measuring 10 of 10 s ━"),
        (Phase.FINISHING, 1, 1, " waiting for the last replies  ━"),
    ],
)
def test_the_progress_of_each_phase(
    phase: Phase, elapsed: float, warmup: float, shown: str
) -> None:
    plan = attrs.evolve(PLAN, warmup=warmup)
    line = drawn(snapshot(plan=plan, phase=phase, phase_elapsed=elapsed))[1]
    assert line.startswith(shown)


def test_errors_and_a_busy_generator_are_told() -> None:
    busy = attrs.evolve(SECONDS[0], cpu=0.97)
    lines = drawn(snapshot(errors={"bad\x1b[2J reply": 2}, seconds=(busy,)))
    assert lines[6].strip() == r"errors                2 2 x bad\x1b[2J reply"
    assert (
        lines[7].strip() == "this program        97% of a processor: it may be what limits the rate"
    )


def test_a_terminal_without_such_characters() -> None:
    lines = drawn(snapshot(latencies=latencies(1500, 1500, 1500, 300_000)), encoding="ascii")
    assert "50 % 1.50 us" in lines[9]
    assert "###" in "".join(lines)
    assert "..." not in lines[1]


def test_errors_on_one_line() -> None:
    assert error_words({"a": 1, "b": 3000}, 2) == "3,000 x b; 1 x a"
    assert error_words({"a": 1, "b": 3, "c": 2}, 1) == "3 x b; and 2 other reasons"


@pytest.mark.parametrize(
    ("count", "total", "shown"),
    [(0, 5, "0.00 %"), (5, 5, "100.00 %"), (1, 3, "33.33 %"), (1, 10**6, "<0.01 %")],
)
def test_shares(count: int, total: int, shown: str) -> None:
    assert share(count, total) == shown


def test_a_second_on_one_line() -> None:
    assert second_line(SECONDS[0]) == (
        "   1.0 s     10,100 messages/s    670 kB/s  50 % 2.00 ms  99 % 9.00 ms  max 30.0 ms"
    )
    wrong = attrs.evolve(SECONDS[1], errors=1)
    assert second_line(wrong) == "   2.0 s     10,200 messages/s    670 kB/s  1 error"


def test_what_was_done() -> None:
    assert plan_words(PLAN, 20) == (
        "20 connections, 4 messages in flight on each, frames of 68 B, a closed loop"
    )
    assert plan_words(attrs.evolve(PLAN, window=1, rate=1500), 7) == (
        "7 of 20 connections, 1 message in flight on each, frames of 68 B, 1,500 messages/s"
    )


RESULT = Result(
    plan=PLAN,
    opened=20,
    elapsed=3,
    messages=30_600,
    bytes_sent=2_040_000,
    bytes_received=2_010_000,
    late=80,
    lost=0,
    unsent=0,
    errors={},
    latencies=SPREAD,
    seconds=SECONDS,
    rate=10_200,
    cpu=0.5,
    interrupted=False,
    exhausted=False,
    stopped=False,
)


def test_the_results() -> None:
    assert results(RESULT, "bytetalk bench :5555").plain.splitlines() == [
        "bytetalk bench :5555",
        "20 connections, 4 messages in flight on each, frames of 68 B, a closed loop",
        "",
        "  messages          10,200/s  30,600 in 3 s",
        "  sent              680 kB/s  2.04 MB in all",
        "  received          670 kB/s  2.01 MB in all",
        "",
        "  latency            2.01 ms  50 %",
        "                     2.01 ms  90 %",
        "                     5.01 ms  99 %",
        "                     30.0 ms  99.9 %",
        "                     30.0 ms  max",
        "                     2.55 ms  mean",
        "",
        "  2.00 ms - 2.50 ms  90.00 % ██████████████████████████████████████████████████",
        "  2.50 ms - 3.15 ms   0.00 %",
        "  3.15 ms - 4.00 ms   0.00 %",
        "  4.00 ms - 5.00 ms   0.00 %",
        "  5.00 ms - 6.30 ms   9.00 % █████",
        "  6.30 ms - 8.00 ms   0.00 %",
        "  8.00 ms - 10.0 ms   0.00 %",
        "  10.0 ms - 12.5 ms   0.00 %",
        "  12.5 ms - 16.0 ms   0.00 %",
        "  16.0 ms - 20.0 ms   0.00 %",
        "  20.0 ms - 25.0 ms   0.00 %",
        "  25.0 ms - 31.5 ms   1.00 % ▌",
        "",
        "  this program           50%  of a processor",
        "  errors                   0",
    ]


def test_results_without_any_reply() -> None:
    result = attrs.evolve(
        RESULT, messages=0, rate=0, latencies=latencies(), lost=20, errors={"gone\n": 19, "x": 1}
    )
    lines = results(result, "").plain.splitlines()
    assert not any(line.startswith("  latency") for line in lines)
    assert lines[-7:] == [
        "",
        "  this program           50%  of a processor",
        "  errors                  20",
        r"                        19 x  gone\n",
        "                         1 x  x",
        "",
        "20 messages got no reply; no latency stands for that.",
    ]


def test_results_without_any_second() -> None:
    lines = results(attrs.evolve(RESULT, elapsed=0, latencies=latencies()), "").plain
    assert "messages/s" not in lines
    assert "\n\n  this program" in lines
    assert "\n\n\n" not in lines


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        (
            {"exhausted": True, "interrupted": True},
            "No connection was left before the time was over.",
        ),
        ({"interrupted": True}, "Interrupted"),
        ({"stopped": True}, "This program was stopped for a while"),
        ({"lost": 1}, "1 message got no reply"),
        ({"unsent": 1000}, "Behind the rate: 1,000 messages"),
        ({"cpu": 0.95}, "This program was busy all the time"),
    ],
)
def test_what_must_be_known_to_read_the_figures(changes: dict[str, Any], note: str) -> None:
    (found,) = notes(attrs.evolve(RESULT, **changes))
    assert found.startswith(note)


def test_a_few_that_are_due_at_the_end_are_not_behind() -> None:
    assert list(notes(attrs.evolve(RESULT, unsent=200))) == []
    assert list(notes(attrs.evolve(RESULT, messages=0, unsent=20))) == []


def test_printed_lines_are_not_folded() -> None:
    file = io.StringIO()
    print_text(Console(file=file, width=10), results(RESULT, "a long title, longer than that"))
    assert "a long title, longer than that\n" in file.getvalue()
    assert "\x1b" not in file.getvalue()


def test_printed_in_ascii_where_there_is_nothing_else() -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    print_text(Console(file=file, width=80), results(RESULT, ""))
    file.flush()
    assert isinstance(file.buffer, io.BytesIO)
    assert b"90.00 % ####" in file.buffer.getvalue()
