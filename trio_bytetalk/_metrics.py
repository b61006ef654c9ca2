"""What a server's statistics are as metrics: one table for every exporter, and how they are read.

The names are OpenTelemetry's way of naming; Prometheus has them with underscores, the unit and
``_total``. Nothing here is per connection: how many series there are does not depend on traffic.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Literal, cast

import attrs
import trio

from ._server import Server, ServerStatistics
from ._validators import seconds

SERVER: Final = "bytetalk.server"
"""The attribute that tells servers apart."""

# The attributes of the other metrics, each with few values. They are known by their last words.
_ENDING: Final = "bytetalk.ending"
_CAUSE: Final = "bytetalk.cause"
_STATE: Final = "bytetalk.state"
_DIRECTION: Final = "network.io.direction"

Values = Mapping[Any, int] | int


@attrs.frozen
class Metric:
    """One thing that is counted or measured."""

    name: str
    kind: Literal["counter", "updown", "gauge"]
    """A counter only grows, an updown may be added up over servers, a gauge may not."""
    unit: str
    """As UCUM has it: ``By`` is bytes, and what is in braces is a thing that is counted."""
    help: str
    values: Callable[[ServerStatistics], Values]
    """The value; or, if there is an ``attribute``, the value for each value of that."""
    attribute: str | None = None

    def series(self, statistics: ServerStatistics) -> list[tuple[dict[str, str], int]]:
        """Each attribute that there is, and the value that goes with it."""
        values = self.values(statistics)
        if self.attribute is None:
            return [({}, cast(int, values))]
        pairs = cast("Mapping[Any, int]", values).items()
        return [({self.attribute: str(value)}, number) for value, number in pairs]


def _listeners(n: ServerStatistics) -> Values:
    waiting = n.listeners_at_limit + n.listeners_out_of_resources
    return {
        "accepting": n.listeners - waiting,
        "at_limit": n.listeners_at_limit,
        "out_of_resources": n.listeners_out_of_resources,
    }


METRICS: Final = (
    Metric(
        "connections",
        "updown",
        "{connection}",
        "Connections open now.",
        lambda n: n.connections,
    ),
    Metric(
        "connections.opened",
        "counter",
        "{connection}",
        "Connections ever made.",
        lambda n: n.connections_total,
    ),
    Metric(
        "connections.accepted",
        "counter",
        "{connection}",
        "Streams ever accepted.",
        lambda n: n.connections_accepted,
    ),
    Metric(
        "connections.refused",
        "counter",
        "{connection}",
        "Streams accepted and closed before they were connections.",
        lambda n: n.connections_refused,
    ),
    Metric(
        "connections.ended",
        "counter",
        "{connection}",
        "Connections that have ended, by how.",
        lambda n: n.endings,
        _ENDING,
    ),
    Metric(
        "handshakes",
        "updown",
        "{handshake}",
        "TLS handshakes under way.",
        lambda n: n.handshakes,
    ),
    Metric(
        "handshakes.failed",
        "counter",
        "{handshake}",
        "TLS handshakes that failed, by why.",
        lambda n: {
            "timeout": n.handshakes_timed_out,
            "error": n.handshakes_failed - n.handshakes_timed_out,
        },
        _CAUSE,
    ),
    Metric(
        "listeners",
        "updown",
        "{listener}",
        "Listeners that are served, by what they do.",
        _listeners,
        _STATE,
    ),
    Metric(
        "listeners.paused",
        "counter",
        "{pause}",
        "How often listeners have paused, by why.",
        lambda n: {
            "at_limit": n.times_at_limit,
            "out_of_resources": n.times_out_of_resources,
        },
        _STATE,
    ),
    Metric(
        "messages",
        "counter",
        "{message}",
        "Messages received and sent.",
        lambda n: {"receive": n.messages_received, "transmit": n.messages_sent},
        _DIRECTION,
    ),
    Metric(
        "io",
        "counter",
        "By",
        "Bytes received and sent.",
        lambda n: {"receive": n.bytes_received, "transmit": n.bytes_sent},
        _DIRECTION,
    ),
    Metric(
        "chunks",
        "counter",
        "{chunk}",
        "Pieces in which the bytes came, and were offered.",
        lambda n: {"receive": n.chunks_received, "transmit": n.flushes},
        _DIRECTION,
    ),
    Metric(
        "send_queue",
        "updown",
        "By",
        "Bytes that wait to be sent.",
        lambda n: n.bytes_queued,
    ),
    Metric(
        "send_queue.largest",
        "gauge",
        "By",
        "The most that one connection ever had queued.",
        lambda n: n.most_bytes_queued,
    ),
    Metric(
        "receive_buffer",
        "updown",
        "By",
        "Bytes received that are not decoded yet.",
        lambda n: n.bytes_undecoded,
    ),
    Metric(
        "senders.waiting",
        "updown",
        "{task}",
        "Tasks that wait for room in a send queue.",
        lambda n: n.senders_waiting,
    ),
    Metric(
        "broadcasts.skipped",
        "counter",
        "{message}",
        "Messages that a broadcast did not queue, because a queue was full.",
        lambda n: n.broadcasts_skipped,
    ),
    Metric(
        "subscriptions",
        "updown",
        "{subscription}",
        "Subscriptions to the server's events.",
        lambda n: n.subscriptions,
    ),
    Metric(
        "events.waiting",
        "updown",
        "{event}",
        "Events not received by their subscribers yet.",
        lambda n: n.events_waiting,
    ),
    Metric(
        "events.dropped",
        "counter",
        "{event}",
        "Events that subscriptions have dropped.",
        lambda n: n.events_dropped,
    ),
)


def _named_servers(_instance: Any, _attribute: attrs.Attribute[Any], servers: Any) -> None:
    if not isinstance(servers, Mapping) or not servers:
        raise TypeError(f"servers must be a dict of servers by their names, not {servers!r}")
    for name, server in servers.items():
        if not isinstance(name, str) or not isinstance(server, Server):
            raise TypeError(f"servers must be a dict of servers by their names, not {servers!r}")


def _token() -> trio.lowlevel.TrioToken:
    try:
        return trio.lowlevel.current_trio_token()
    except RuntimeError:
        raise RuntimeError(
            "this must be called within trio.run, in the run that is to serve the servers"
        ) from None


@attrs.frozen(eq=False)
class StatisticsReader:
    """Reads the statistics of servers, in whatever thread it is asked to."""

    servers: Mapping[str, Server[Any, Any]] = attrs.field(validator=_named_servers)
    timeout: float = attrs.field(validator=seconds)
    token: trio.lowlevel.TrioToken = attrs.field(factory=_token, init=False)

    def read(self) -> dict[str, ServerStatistics]:
        """The statistics of each server, all of the same moment.

        In another thread than Trio's, this waits for Trio's next turn. When the run is over they
        are what they were at its end.

        Raises:
          TimeoutError: if Trio's thread has done nothing for ``timeout`` seconds; as when it waits
              for this one.
        """
        if not self._is_in_trio():
            answer: queue.SimpleQueue[dict[str, ServerStatistics]] = queue.SimpleQueue()
            try:
                self.token.run_sync_soon(lambda: answer.put(self._look()))
            except trio.RunFinishedError:
                pass  # so nobody changes them any more
            else:
                try:
                    return answer.get(timeout=min(self.timeout, threading.TIMEOUT_MAX))
                except queue.Empty:
                    raise TimeoutError(
                        f"Trio's thread did not get to the statistics in {self.timeout} seconds; "
                        f"the setting is timeout"
                    ) from None
        return self._look()

    @property
    def is_over(self) -> bool:
        """Whether the servers' run has ended."""
        try:
            self.token.run_sync_soon(lambda: None)
        except trio.RunFinishedError:
            return True
        return False

    def _is_in_trio(self) -> bool:
        try:
            return trio.lowlevel.current_trio_token() is self.token
        except RuntimeError:
            return False

    def _look(self) -> dict[str, ServerStatistics]:
        return {name: server.statistics() for name, server in self.servers.items()}


def measured(
    metric: Metric, statistics: Mapping[str, ServerStatistics]
) -> Iterable[tuple[dict[str, str], int]]:
    """The values of ``metric``, each with its attributes, of all servers."""
    for server, numbers in statistics.items():
        for attributes, value in metric.series(numbers):
            yield {SERVER: server} | attributes, value
