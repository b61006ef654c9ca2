"""Servers' statistics for Prometheus, by way of its own client library.

This needs the extra ``prometheus``: ``pip install '.[prometheus]'`` in a checkout.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

try:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
    from prometheus_client.registry import Collector
except ImportError as _error:
    raise ImportError(
        "trio_bytetalk.prometheus needs prometheus-client, which comes with the extra prometheus: "
        "pip install '.[prometheus]' in a checkout of trio_bytetalk"
    ) from _error

from . import _metrics
from ._metrics import METRICS, SERVER, StatisticsReader, measured
from ._server import Server

__all__ = ["ServerCollector"]


class ServerCollector(Collector):
    """Has the statistics of servers read whenever Prometheus asks for them, and not before.

    ::

        prometheus_client.REGISTRY.register(ServerCollector({"echo": server}))
        prometheus_client.start_http_server(9000)

    It is made within the Trio run that is to serve the servers. It may be asked in any thread, as
    ``start_http_server`` does: Trio's thread answers, at its next turn. After the run the answer is
    how things were at its end.

    Args:
      servers: Servers by the names that they have in the label ``server``. Give all of a registry's
          servers to one collector, for no two may have metrics of the same names.
      timeout: For how many seconds Trio's thread may be busy with something else. If it is longer,
          the answer is a `TimeoutError`, and Prometheus takes the target to be down.

    Raises:
      TypeError, ValueError: for a wrong argument, which the message names.
      RuntimeError: outside of Trio.
    """

    def __init__(self, servers: Mapping[str, Server[Any, Any]], *, timeout: float = 5) -> None:
        self._reader = StatisticsReader(servers, timeout)

    def collect(self) -> Iterator[Metric]:
        """What the registry calls: each metric, with all its values.

        Raises:
          TimeoutError: if Trio's thread did not answer in time.
        """
        statistics = self._reader.read()
        for metric in METRICS:
            attributes = [SERVER] if metric.attribute is None else [SERVER, metric.attribute]
            labels = [attribute.rpartition(".")[2] for attribute in attributes]
            make = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            family = make(_name(metric), metric.help, labels=labels)
            for having, value in measured(metric, statistics):
                family.add_metric([having[attribute] for attribute in attributes], value)
            yield family


def _name(metric: _metrics.Metric) -> str:
    name = "bytetalk_server_" + metric.name.replace(".", "_")
    return f"{name}_bytes" if metric.unit == "By" else name
