"""Servers' statistics as OpenTelemetry metrics, by way of its own API.

This needs the extra ``opentelemetry``: ``pip install '.[opentelemetry]'`` in a checkout. To have
the metrics exported, a program sets up OpenTelemetry's SDK, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final
from weakref import WeakKeyDictionary

import attrs

try:
    from opentelemetry.metrics import (
        CallbackOptions,
        MeterProvider,
        Observation,
        get_meter_provider,
    )
except ImportError as _error:
    raise ImportError(
        "trio_bytetalk.opentelemetry needs opentelemetry-api, which comes with the extra "
        "opentelemetry: pip install '.[opentelemetry]' in a checkout of trio_bytetalk"
    ) from _error

from . import __version__
from ._metrics import METRICS, Metric, StatisticsReader, measured
from ._server import Server, ServerStatistics

__all__ = ["observe_servers"]


def observe_servers(
    servers: Mapping[str, Server[Any, Any]],
    *,
    meter_provider: MeterProvider | None = None,
    timeout: float = 5,
) -> None:
    """Have the statistics of servers read whenever OpenTelemetry collects metrics.

    ::

        observe_servers({"echo": server})

    It is called within the Trio run that is to serve the servers. The SDK may collect in any
    thread, as its ``PeriodicExportingMetricReader`` does: Trio's thread answers, at its next turn.
    After the run the metrics are what they were at its end. The meter is called ``trio_bytetalk``.

    It may be called again, also in another run: those servers are added to the ones that the
    provider has. There is no way to take any out, but in a later run a server may have the name of
    one of an earlier run, and takes its place.

    Args:
      servers: Servers by the names that they have in the attribute ``bytetalk.server``.
      meter_provider: The global one by default.
      timeout: For how many seconds Trio's thread may be busy with something else. If it is longer,
          the callbacks raise `TimeoutError`, which the SDK logs, and nothing is reported that time.
          So it is if Trio's thread waits for the collection: call ``shutdown`` and ``force_flush``
          of the SDK by way of `trio.to_thread.run_sync`, or after the run. Nor is anything
          reported of servers in other calls then.

    Raises:
      TypeError, ValueError: for a wrong argument, which the message names; or for a name that the
          provider has a server of already, in a run that is not over.
      RuntimeError: outside of Trio.
    """
    reader = StatisticsReader(servers, timeout)
    globally = get_meter_provider()
    provider = globally if meter_provider is None else meter_provider
    keys: list[object] = [provider, _GLOBAL] if provider is globally else [provider]
    for key in keys:
        if key in _observed:
            _observed[key].add(reader)
            return
    snapshots = _Snapshots((reader,))
    for key in keys:
        _observed[key] = snapshots
    meter = provider.get_meter("trio_bytetalk", __version__)
    for metric in METRICS:
        make = {
            "counter": meter.create_observable_counter,
            "updown": meter.create_observable_up_down_counter,
            "gauge": meter.create_observable_gauge,
        }[metric.kind]
        name = f"bytetalk.server.{metric.name}"
        make(name, [_callback(metric, snapshots)], unit=metric.unit, description=metric.help)


def _callback(
    metric: Metric, snapshots: _Snapshots
) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def observe(_options: CallbackOptions) -> Iterable[Observation]:
        return [
            Observation(value, attributes)
            for attributes, value in measured(metric, snapshots.get(metric))
        ]

    return observe


@attrs.define(eq=False)
class _Snapshots:
    """One look at the servers of one provider for all metrics of a collection.

    When one begins no callback is told. But each metric is in it once, so a metric that comes again
    is the first one of the next.
    """

    readers: tuple[StatisticsReader, ...]
    statistics: dict[str, ServerStatistics] | TimeoutError = attrs.field(factory=dict, init=False)
    seen: set[str] = attrs.field(factory=lambda: {metric.name for metric in METRICS}, init=False)

    def add(self, reader: StatisticsReader) -> None:
        names = reader.servers.keys()
        for each in self.readers:
            for name in each.servers.keys() & names:
                if not each.is_over:
                    raise ValueError(f"a server called {name!r} is observed already")
        # Of one name, the last counts.
        kept = (each for each in self.readers if not each.servers.keys() <= names)
        self.readers = (*kept, reader)

    def get(self, metric: Metric) -> dict[str, ServerStatistics]:
        if metric.name in self.seen:
            self.seen = set()
            try:
                self.statistics = {
                    name: numbers
                    for reader in self.readers
                    for name, numbers in reader.read().items()
                }
            except TimeoutError as error:  # once, and not once for each metric
                self.statistics = error
        self.seen.add(metric.name)
        if isinstance(self.statistics, TimeoutError):
            raise TimeoutError(*self.statistics.args)
        return self.statistics


# The SDK keeps the instruments that there are when they are made again, and forgets the new ones'
# callbacks; so who is observed by a provider is kept here.
_observed: Final[WeakKeyDictionary[object, _Snapshots]] = WeakKeyDictionary()

# The key of the global provider, too, which is a proxy until the SDK is set up, and another after.
_GLOBAL: Final = MeterProvider
