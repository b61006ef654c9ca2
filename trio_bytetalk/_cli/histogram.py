"""Latencies, counted: in little memory however many they are, and to within one percent."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Final

import attrs

# Buckets are one nanosecond wide at first, and then, from one power of two to the next, 128 of
# equal width: so a bucket's edges are less than 1/128 apart, of whatever value.
_STEPS_BITS: Final = 7
_LARGEST_BITS: Final = 63  # 292 years
_BUCKETS: Final = (_LARGEST_BITS - _STEPS_BITS + 1) << _STEPS_BITS

# Where bins may begin, within a power of ten: from coarse to fine, and from the fourth on preferred
# numbers (ISO 3), whose distances are as good as even on a logarithmic scale.
_ROUND: Final = (
    (100,),
    (100, 300),
    (100, 200, 500),
    (100, 160, 250, 400, 630),
    (100, 125, 160, 200, 250, 315, 400, 500, 630, 800),
    (
        *(100, 112, 125, 140, 160, 180, 200, 224, 250, 280),
        *(315, 355, 400, 450, 500, 560, 630, 710, 800, 900),
    ),
)


def bucket_of(nanoseconds: int) -> int:
    """The number of the bucket that a latency is counted in."""
    shift = max(nanoseconds.bit_length() - _STEPS_BITS - 1, 0)
    return (shift << _STEPS_BITS) + (nanoseconds >> shift)


def upper_edge(bucket: int) -> int:
    """The largest latency, in nanoseconds, that is counted in a bucket."""
    shift = max((bucket >> _STEPS_BITS) - 1, 0)
    return ((bucket - (shift << _STEPS_BITS) + 1) << shift) - 1


@attrs.frozen
class Bin:
    """How many latencies were at least ``low`` and less than ``high`` nanoseconds."""

    low: int
    high: int
    count: int


@attrs.define(eq=False)
class Histogram:
    """How often each latency came. What it tells is up to 1/128 above the truth, never below."""

    counts: list[int] = attrs.field(factory=lambda: [0] * _BUCKETS, init=False)
    """For each bucket, how many."""

    def add(self, nanoseconds: int) -> None:
        """Count one latency: 0 or more nanoseconds."""
        # bucket_of() once more, for this is done for each message.
        shift = nanoseconds.bit_length() - 8
        if shift <= 0:
            self.counts[nanoseconds] += 1
        else:
            self.counts[(shift << 7) + (nanoseconds >> shift)] += 1

    def merge(self, other: Histogram) -> None:
        """Count here, too, what the other one has counted."""
        self.counts = [
            ours + theirs for ours, theirs in zip(self.counts, other.counts, strict=True)
        ]

    def __len__(self) -> int:
        return sum(self.counts)

    def percentiles(self, *percents: float) -> list[int]:
        """What latency so many percent did not exceed, in nanoseconds; for 100, the maximum.

        Raises:
          ValueError: if there are no latencies.
        """
        ranks = list(itertools.accumulate(self.counts))
        total = ranks[-1]
        if not total:
            raise ValueError("there are no percentiles of nothing")
        return [
            # 99.9 is meant as it is written, and not as the nearest float.
            upper_edge(bisect.bisect_left(ranks, max(math.ceil(Fraction(str(p)) * total / 100), 1)))
            for p in percents
        ]

    def mean(self) -> float:
        """The mean, in nanoseconds, of the middles of the buckets.

        Raises:
          ValueError: if there are no latencies.
        """
        total = len(self)
        if not total:
            raise ValueError("there is no mean of nothing")
        # The edges of the bucket before the first one are right, too: -1.
        sums = (
            (upper_edge(bucket - 1) + 1 + upper_edge(bucket)) / 2 * n
            for bucket, n in enumerate(self.counts)
            if n
        )
        return math.fsum(sums) / total

    def buckets(self) -> Iterator[tuple[int, int]]:
        """The upper edge and the count of each bucket with something in it, in order."""
        return ((upper_edge(bucket), n) for bucket, n in enumerate(self.counts) if n)

    def bins(self, most: int) -> list[Bin]:
        """From the smallest latency to the largest: bins with round edges, at most so many.

        They are as fine as that allows, evenly on a logarithmic scale, or nearly. If whole powers
        of ten are too many, the last bin has what is left.
        """
        filled = [bucket for bucket, n in enumerate(self.counts) if n]
        if not filled:
            return []
        # A bin's edge may go through a bucket, which then belongs to the upper bin.
        low, high = upper_edge(filled[0]), upper_edge(filled[-1])
        edges: list[int] = []
        for steps in _ROUND:
            finer = _edges(low, high, steps)
            if edges and len(finer) - 1 > most:
                break
            edges = finer
        if len(edges) - 1 > most:
            edges = [*edges[:most], edges[-1]]
        below = [sum(self.counts[: bucket_of(edge)]) for edge in edges]
        below[0], below[-1] = 0, sum(self.counts)
        return [
            Bin(low, high, to - upto)
            for (low, high), (upto, to) in zip(
                itertools.pairwise(edges), itertools.pairwise(below), strict=True
            )
        ]


def _edges(low: int, high: int, steps: tuple[int, ...]) -> list[int]:
    """Round edges, of which the first two have ``low`` between them, and the last two ``high``."""
    candidates = (step * 10**power // 100 for power in itertools.count() for step in steps)
    edges = [0]
    while edges[-1] <= high:
        edge = next(candidates)
        if edge > edges[-1]:  # below ten nanoseconds they are not whole numbers
            edges.append(edge)
    return edges[bisect.bisect_right(edges, low) - 1 :]
