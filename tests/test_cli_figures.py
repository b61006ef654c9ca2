"""Figures in words, and as bars."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_bytetalk._cli.figures import duration, latency, number, plural, size, sparkline


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 B"),
        (0.4, "0 B"),
        (999, "999 B"),
        (999.6, "1.00 kB"),
        (1000, "1.00 kB"),
        (9994, "9.99 kB"),
        (9996, "10.0 kB"),
        (99_940, "99.9 kB"),
        (99_960, "100 kB"),
        (999_400, "999 kB"),
        (999_600, "1.00 MB"),
        (12_345_678, "12.3 MB"),
        (5e9, "5.00 GB"),
        (5e12, "5.00 TB"),
        (5e15, "5000 TB"),
    ],
)
def test_a_size_has_three_digits_and_a_unit(count: float, words: str) -> None:
    assert size(count) == words


@given(st.floats(0, 9e15))
def test_a_size_is_short(count: float) -> None:
    assert len(size(count)) <= 8


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0.0 s"),
        (59.94, "59.9 s"),
        (59.96, "0:01:00"),
        (61, "0:01:01"),
        (3599.6, "1:00:00"),
        (100 * 3600 + 1, "100:00:01"),
    ],
)
def test_a_duration_is_seconds_or_looks_like_a_clock(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("nanoseconds", "words"),
    [
        (0, "0 ns"),
        (999, "999 ns"),
        (999.6, "1.00 µs"),
        (1234, "1.23 µs"),
        (99_960, "100 µs"),
        (999_600, "1.00 ms"),
        (10_027_007, "10.0 ms"),
        (2.5e9, "2.50 s"),
        (3600e9, "3600 s"),
    ],
)
def test_a_latency_has_three_digits_and_a_unit(nanoseconds: float, words: str) -> None:
    assert latency(nanoseconds) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0, "0"),
        (0.25, "0.25"),
        (7, "7"),
        (8.12, "8.1"),
        (99.94, "99.9"),
        (99.96, "100"),
        (45123.4, "45,123"),
    ],
)
def test_a_number_has_as_many_digits_as_are_of_use(value: float, words: str) -> None:
    assert number(value) == words


def test_one_is_one_and_all_else_are_many() -> None:
    assert plural(1, "message") == "1 message"
    assert plural(0, "message") == "0 messages"
    assert plural(1234, "message") == "1,234 messages"


def test_a_sparkline_grows_from_the_right() -> None:
    assert sparkline([], 0, 5) == "     "
    assert sparkline([1, 8], 2, 5) == "   ▂█"
    assert sparkline([0, 0], 2, 2) == "▁▁"


def test_only_nothing_is_the_lowest_bar() -> None:
    assert sparkline([0, 1, 1_000_000], 3, 3) == "▁▂█"


def test_a_sparkline_without_room_is_empty() -> None:
    assert sparkline([1], 1, 0) == ""


def test_a_terminal_without_blocks_gets_ascii() -> None:
    line = sparkline(range(8), 8, 8, ascii_only=True)
    assert line.isascii()
    assert len(set(line)) == 8


def test_where_there_is_little_room_a_bar_is_the_highest_of_several() -> None:
    assert sparkline([0, 7, 0, 0, 3.5, 0], 6, 3) == "█▁▅"


def test_bars_that_stand_for_several_stay_the_same_while_they_move() -> None:
    values = [0.0, 7, 0, 0, 7, 0, 7, 7, 0, 0, 0, 7, 0, 0]
    shapes = []
    for ended in range(6, len(values) + 1):
        line = sparkline(values[ended - 6 : ended], ended, 3)
        shapes.append(line)
    # With an even end, all bars are whole, and each is where it was, or one further to the left.
    for early, late in zip(shapes[::2], shapes[2::2], strict=False):
        assert late[:2] == early[1:]


@given(
    st.lists(st.floats(0, 1e12), max_size=60),
    st.integers(0, 100),
    st.integers(0, 200),
    st.booleans(),
)
def test_a_sparkline_has_exactly_its_width(
    values: list[float], before: int, width: int, ascii_only: bool
) -> None:
    line = sparkline(values, before + len(values), width, ascii_only=ascii_only)
    assert len(line) == width
