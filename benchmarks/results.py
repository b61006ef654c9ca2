"""What was measured, and what can be computed from it."""

from __future__ import annotations

import json
import os
import platform
import socket
import statistics
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from math import prod
from pathlib import Path
from typing import Any, Final

import attrs

from benchmarks.loads import Fraction, Goal, Load, Point, Sample

_PACKAGES: Final = ("trio_bytetalk", "trio", "anyio", "easynetwork", "uvloop", "twisted")

DISTURBED: Final = 0.05
"""The share of a measurement's time that other programs may have without its being marked."""


@attrs.frozen
class Spread:
    """A median, and how far the rounds were apart."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))


@attrs.define
class LoadResults:
    """Every sample of one load."""

    title: str
    unit: str
    lower_is_better: bool
    baseline: str | None
    settings: dict[str, Any]
    environment: dict[str, Any]
    samples: dict[str, list[Sample | None]] = attrs.field(factory=dict)
    """For each contender, one for each round; ``None`` where it could not be measured."""

    failures: dict[str, str] = attrs.field(factory=dict)
    """For each contender that failed, what went wrong."""

    skipped: dict[str, str] = attrs.field(factory=dict)
    """For each contender that cannot run here, what is missing."""

    @classmethod
    def begin(cls, load: Load, environment: dict[str, Any]) -> LoadResults:
        return cls(
            load.title,
            load.unit,
            load.lower_is_better,
            load.baseline,
            load.settings(),
            environment,
        )

    def contenders(self) -> list[str]:
        """Those that were measured at least once."""
        return [name for name, samples in self.samples.items() if any(samples)]

    def value(self, contender: str) -> Spread | None:
        """The contender's figures, in the load's unit."""
        values = [sample.value for sample in self.samples.get(contender, ()) if sample]
        return Spread.of(values) if values else None

    def disturbed(self) -> tuple[int, int]:
        """How many samples other programs disturbed, and how many there are."""
        samples = [sample for row in self.samples.values() for sample in row if sample]
        return sum(sample.disturbed > DISTURBED for sample in samples), len(samples)

    def mean_of(self, contender: str, field: str) -> float | None:
        """The mean of one of a sample's other figures, where all samples have it."""
        values = [getattr(sample, field) for sample in self.samples.get(contender, ()) if sample]
        return None if not values or None in values else statistics.fmean(values)

    def ratio(self, contender: str, against: str, field: str = "value") -> Spread | None:
        """One contender's figure over another's, each taken from the same round."""
        pairs = zip(self.samples.get(contender, ()), self.samples.get(against, ()), strict=False)
        ratios = [
            getattr(one, field) / getattr(other, field)
            for one, other in pairs
            if one and other and getattr(one, field) and getattr(other, field)
        ]
        return Spread.of(ratios) if ratios else None


@attrs.define
class Results:
    """Every load's results, by the load's name."""

    loads: dict[str, LoadResults] = attrs.field(factory=dict)

    def spread(self, fraction: Fraction, field: str = "value") -> Spread | None:
        """The value of a fraction in each round, summed up; ``None`` if a part is missing."""
        over = [self._values(point, field) for point in fraction.over]
        under = [self._values(point, field) for point in fraction.under]
        values = []
        for row in zip(*over, *under, strict=False):
            # A part that is missing, or so slow that nothing came of it, has no ratio.
            figures = [figure for figure in row if figure]
            if len(figures) == len(row):
                values.append(prod(figures[: len(over)]) / prod(figures[len(over) :]))
        return Spread.of(values) if values else None

    def _values(self, point: Point, field: str) -> list[float | None]:
        load = self.loads.get(point.load)
        if load is None:
            return []
        return [
            getattr(sample, field) if sample else None
            for sample in load.samples.get(point.contender, ())
        ]

    def reached(self, goal: Goal, field: str = "value") -> Spread | None:
        """How far a goal was reached; by the worst, where it has several fractions.

        Args:
          goal: the goal.
          field: the figure of a sample that counts.
        """
        spreads = [
            spread
            for fraction in goal.fractions
            if (spread := self.spread(fraction, field)) is not None
        ]
        if not spreads:
            return None
        choose = max if goal.at_most else min
        return choose(spreads, key=lambda spread: spread.median)

    def has_failures(self) -> bool:
        """Whether any contender failed under any load."""
        return any(load.failures for load in self.loads.values())

    def to_json(self) -> str:
        loads = {
            name: {
                **attrs.asdict(load, filter=lambda field, _: field.name != "samples"),
                "contenders": {
                    contender: {
                        "median": spread and spread.median,
                        "samples": [sample and attrs.asdict(sample) for sample in samples],
                    }
                    for contender, samples in load.samples.items()
                    for spread in [load.value(contender)]
                },
            }
            for name, load in self.loads.items()
        }
        return json.dumps({"format": 1, "loads": loads}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Results:
        results = cls()
        for name, stored in json.loads(text)["loads"].items():
            contenders = stored.pop("contenders")
            load = results.loads[name] = LoadResults(**stored)
            for contender, figures in contenders.items():
                load.samples[contender] = [
                    sample and Sample(**sample) for sample in figures["samples"]
                ]
        return results


def environment(
    command: str, rounds: int, seconds: float, cores: dict[str, int | None]
) -> dict[str, Any]:
    """The machine, the versions, and the way in which the figures came about."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "command": command,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": _processor(),
        "processors": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "versions": versions,
        "rounds": rounds,
        "seconds": seconds,
        "cores": cores,
        "congestion_control": _congestion_control(),
    }


def _congestion_control() -> str:
    """TCP's congestion control, which paces even the loopback interface when it is BBR."""
    with socket.socket() as sock:
        name = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
    return name.rstrip(b"\0").decode()


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
