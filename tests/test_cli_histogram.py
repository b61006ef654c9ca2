"""Latencies, counted: against all of them, sorted."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_bytetalk._cli.histogram import Bin, Histogram, bucket_of, upper_edge

LARGEST = 2**63 - 1

# Of all magnitudes alike: evenly drawn numbers would nearly all be years.
latencies = st.integers(0, 62).flatmap(lambda bits: st.integers(0, 2 ** (bits + 1) - 1))


def histogram_of(values: list[int]) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    return histogram


@given(latencies)
def test_a_bucket_holds_what_is_less_than_one_percent_below_its_edge(value: int) -> None:
    edge = upper_edge(bucket_of(value))
    assert value <= edge <= value * (1 + Fraction(1, 128))


@given(latencies)
def test_buckets_are_in_order_and_next_to_each_other(value: int) -> None:
    bucket = bucket_of(value)
    assert bucket_of(upper_edge(bucket)) == bucket
    assert bucket_of(upper_edge(bucket) + 1) == bucket + 1


def test_the_largest_latency_is_counted() -> None:
    assert histogram_of([LARGEST]).percentiles(100) == [LARGEST]


@given(st.lists(latencies, min_size=1), st.sampled_from([0, 0.1, 50, 90, 99, 99.9, 100]))
def test_a_percentile_is_that_of_the_sorted_latencies(values: list[int], percent: float) -> None:
    (found,) = histogram_of(values).percentiles(percent)
    rank = max(math.ceil(Fraction(str(percent)) / 100 * len(values)), 1)
    exact = sorted(values)[rank - 1]
    assert exact <= found <= exact * (1 + Fraction(1, 128))


def test_a_percentile_is_what_it_is_called() -> None:
    # As floats, 99.9 percent of 41,000 are more than 40,959.
    histogram = histogram_of([1] * 40_959 + [2] * 41)
    assert histogram.percentiles(99.9, 100) == [1, 2]


@given(st.lists(latencies, min_size=1))
def test_the_mean_is_right_to_one_percent(values: list[int]) -> None:
    exact = sum(values) / len(values)
    assert histogram_of(values).mean() == pytest.approx(exact, rel=1 / 128)


@given(st.lists(latencies), st.lists(latencies))
def test_merging_is_counting_both(some: list[int], others: list[int]) -> None:
    merged = histogram_of(some)
    merged.merge(histogram_of(others))
    both = histogram_of(some + others)
    assert merged.counts == both.counts
    assert len(merged) == len(some) + len(others)


def test_nothing_has_no_percentiles_and_no_mean() -> None:
    with pytest.raises(ValueError, match="no percentiles of nothing"):
        Histogram().percentiles(50)
    with pytest.raises(ValueError, match="no mean of nothing"):
        Histogram().mean()
    assert list(Histogram().buckets()) == []
    assert Histogram().bins(10) == []


@given(st.lists(latencies, min_size=1))
def test_buckets_are_those_with_something_in_them(values: list[int]) -> None:
    buckets = list(histogram_of(values).buckets())
    assert [edge for edge, _ in buckets] == sorted({upper_edge(bucket_of(v)) for v in values})
    assert sum(count for _, count in buckets) == len(values)


@given(st.lists(latencies, min_size=1), st.integers(1, 50))
def test_bins_have_all_latencies_in_order(values: list[int], most: int) -> None:
    bins = histogram_of(values).bins(most)
    assert 1 <= len(bins) <= most
    assert sum(each.count for each in bins) == len(values)
    assert all(one.high == other.low for one, other in itertools.pairwise(bins))
    assert bins[0].low <= upper_edge(bucket_of(min(values)))
    assert max(values) < bins[-1].high
    # Right where an edge does not go through a bucket that has something in it.
    for each in bins[1:-1]:
        exact = sum(each.low <= value < each.high for value in values)
        close = sum(each.low * 0.99 <= value < each.high * 1.01 for value in values)
        surely = sum(each.low * 1.01 <= value < each.high * 0.99 for value in values)
        assert surely <= exact <= close
        assert surely <= each.count <= close


@pytest.mark.parametrize(
    ("most", "edges"),
    [
        (1, [10_000, 1_000_000]),  # powers of ten are too many: the last bin has the rest
        (2, [10_000, 100_000, 1_000_000]),
        (3, [10_000, 30_000, 100_000, 300_000]),
        (5, [20_000, 50_000, 100_000, 200_000, 500_000]),
        (10, [16_000, 25_000, 40_000, 63_000, 100_000, 160_000, 250_000]),
    ],
)
def test_bins_are_as_fine_as_they_may_be_with_round_edges(most: int, edges: list[int]) -> None:
    bins = histogram_of([20_000, 60_000, 60_000, 220_000]).bins(most)
    assert [each.low for each in bins] + [bins[-1].high] == edges


def test_bins_of_a_single_latency() -> None:
    assert histogram_of([0]).bins(10) == [Bin(0, 1, 1)]
    assert histogram_of([10_000_000]).bins(10) == [Bin(10_000_000, 11_200_000, 1)]
