"""`observe_servers`, collected by OpenTelemetry's own SDK."""

from __future__ import annotations

import importlib
import logging
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator

import attrs
import pytest
import trio
import trio.testing
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, NumberDataPoint, Sum

from trio_bytetalk import Connection, Server, ServerStatistics
from trio_bytetalk.opentelemetry import observe_servers
from trio_bytetalk.testing import open_memory_connection


async def echo(connection: Connection[bytes, bytes]) -> None:
    async for message in connection:
        await connection.send(message)


@attrs.define
class Collected:
    """What an SDK with a reader in memory has collected."""

    reader: InMemoryMetricReader
    provider: MeterProvider
    values: dict[tuple[str, frozenset[tuple[str, object]]], float] = attrs.field(factory=dict)
    kinds: dict[str, tuple[str, str]] = attrs.field(factory=dict)
    """Of each metric, the kind and the unit."""

    def collect(self) -> None:
        self.values.clear()
        data = self.reader.get_metrics_data()
        if data is None:
            return
        for resource in data.resource_metrics:
            for scope in resource.scope_metrics:
                assert scope.scope.name == "trio_bytetalk"
                for metric in scope.metrics:
                    kind = type(metric.data).__name__
                    if isinstance(metric.data, Sum):
                        kind = "counter" if metric.data.is_monotonic else "updown"
                    self.kinds[metric.name] = kind, metric.unit or ""
                    for point in metric.data.data_points:
                        assert isinstance(point, NumberDataPoint)
                        attributes = frozenset((point.attributes or {}).items())
                        self.values[metric.name, attributes] = point.value

    def value(self, name: str, **attributes: str) -> float:
        having = {key.replace("_", "."): value for key, value in attributes.items()}
        return self.values[f"bytetalk.server.{name}", frozenset(having.items())]


@pytest.fixture
def collected() -> Iterator[Collected]:
    reader = InMemoryMetricReader()
    provider = MeterProvider(metric_readers=[reader])
    yield Collected(reader, provider)
    provider.shutdown()


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_the_sdk_collects_it_in_whatever_thread(
    elsewhere: bool, collected: Collected
) -> None:
    server, other = Server(echo), Server(echo)
    observe_servers({"chat": server, "other": other}, meter_provider=collected.provider)
    async with open_memory_connection(server) as connection:
        await connection.send(b"hello")
        await connection.receive()
        if elsewhere:
            await trio.to_thread.run_sync(collected.collect)
        else:
            collected.collect()
    assert collected.value("connections", bytetalk_server="chat") == 1
    assert collected.value("connections", bytetalk_server="other") == 0
    sent = {"bytetalk_server": "chat", "network_io_direction": "transmit"}
    assert collected.value("io", **sent) == 4 + 5
    assert collected.value("messages", **sent) == 1


async def test_names_kinds_and_units(collected: Collected) -> None:
    observe_servers({"it": Server()}, meter_provider=collected.provider)
    collected.collect()
    assert collected.kinds == {
        f"bytetalk.server.{name}": (kind, unit)
        for name, kind, unit in [
            ("connections", "updown", "{connection}"),
            ("connections.opened", "counter", "{connection}"),
            ("connections.accepted", "counter", "{connection}"),
            ("connections.refused", "counter", "{connection}"),
            ("connections.ended", "counter", "{connection}"),
            ("handshakes", "updown", "{handshake}"),
            ("handshakes.failed", "counter", "{handshake}"),
            ("listeners", "updown", "{listener}"),
            ("listeners.paused", "counter", "{pause}"),
            ("messages", "counter", "{message}"),
            ("io", "counter", "By"),
            ("chunks", "counter", "{chunk}"),
            ("send_queue", "updown", "By"),
            ("send_queue.largest", "Gauge", "By"),
            ("receive_buffer", "updown", "By"),
            ("senders.waiting", "updown", "{task}"),
            ("broadcasts.skipped", "counter", "{message}"),
            ("subscriptions", "updown", "{subscription}"),
            ("events.waiting", "updown", "{event}"),
            ("events.dropped", "counter", "{event}"),
        ]
    }


async def test_a_collection_is_one_look_at_each_server(
    collected: Collected, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(echo)
    looks = []

    def look() -> ServerStatistics:
        looks.append(server)
        return Server.statistics(server)

    monkeypatch.setattr(server, "statistics", look)
    observe_servers({"it": server}, meter_provider=collected.provider)
    assert looks == []
    for number in 1, 2, 3:
        async with open_memory_connection(server):
            await trio.testing.wait_all_tasks_blocked()
            collected.collect()
            assert len(looks) == number
            assert collected.value("connections.opened", bytetalk_server="it") == number


async def test_a_trio_thread_that_waits_for_the_collection_is_not_waited_for_for_ever(
    collected: Collected, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, logger="opentelemetry")  # it logs that once for each metric
    observe_servers({"it": Server()}, meter_provider=collected.provider, timeout=0.01)
    block_trio_while(collected.collect)
    assert collected.values == {}
    await trio.to_thread.run_sync(collected.collect)
    assert collected.value("connections", bytetalk_server="it") == 0


def block_trio_while(work: Callable[[], None]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


async def test_wrong_arguments_are_named() -> None:
    with pytest.raises(TypeError, match="servers must be a dict of servers by their names"):
        observe_servers({})


async def test_servers_that_are_observed_later_are_added(collected: Collected) -> None:
    """The SDK itself would forget them: its instruments are there already."""
    server, other = Server(echo), Server(echo)
    observe_servers({"chat": server}, meter_provider=collected.provider)
    collected.collect()
    observe_servers({"other": other}, meter_provider=collected.provider)
    async with open_memory_connection(other):
        await trio.testing.wait_all_tasks_blocked()
        collected.collect()
    assert collected.value("connections", bytetalk_server="chat") == 0
    assert collected.value("connections", bytetalk_server="other") == 1


def test_a_server_of_a_later_run_takes_the_place_of_one_of_its_name(
    collected: Collected,
) -> None:
    async def main(count: int) -> None:
        server = Server(echo)
        observe_servers({"chat": server}, meter_provider=collected.provider)
        for _ in range(count):
            async with open_memory_connection(server):
                pass

    async def others() -> None:
        observe_servers({"a": Server(echo), "b": Server(echo)}, meter_provider=collected.provider)

    trio.run(others)
    for count in (1, 2):
        trio.run(main, count)
        collected.collect()
        assert collected.value("connections.opened", bytetalk_server="chat") == count
        assert collected.value("connections.opened", bytetalk_server="a") == 0


async def test_each_server_has_a_name_of_its_own(collected: Collected) -> None:
    observe_servers({"chat": Server(echo)}, meter_provider=collected.provider)
    with pytest.raises(ValueError, match="a server called 'chat' is observed already"):
        observe_servers(
            {"other": Server(echo), "chat": Server(echo)}, meter_provider=collected.provider
        )
    collected.collect()
    assert {dict(attributes)["bytetalk.server"] for _, attributes in collected.values} == {"chat"}
    reader = InMemoryMetricReader()
    observe_servers({"chat": Server(echo)}, meter_provider=MeterProvider(metric_readers=[reader]))
    collected.reader = reader
    collected.collect()
    assert collected.value("connections", bytetalk_server="chat") == 0


async def test_the_global_provider_is_known_by_its_name_and_as_what_it_is(
    collected: Collected, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules["trio_bytetalk.opentelemetry"]
    monkeypatch.setattr(module, "_observed", weakref.WeakKeyDictionary())
    provider = collected.provider
    observe_servers({"a": Server()}, meter_provider=provider)
    monkeypatch.setattr(module, "get_meter_provider", lambda: provider)
    observe_servers({"b": Server()})
    observe_servers({"c": Server()}, meter_provider=provider)
    collected.collect()
    names = {dict(attributes)["bytetalk.server"] for _, attributes in collected.values}
    assert names == {"a", "b", "c"}


def test_the_global_provider_may_be_set_up_at_any_time() -> None:
    """It is so for a whole process, so this has one of its own."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", GLOBALLY], capture_output=True, text=True, check=False
    )
    assert (done.stderr, done.stdout) == ("", "['a', 'b', 'c', 'd']\n")


GLOBALLY = """
import trio
from opentelemetry.metrics import set_meter_provider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from trio_bytetalk import Server
from trio_bytetalk.opentelemetry import observe_servers

async def main():
    observe_servers({"a": Server()})
    observe_servers({"b": Server()})
    reader = InMemoryMetricReader()
    provider = MeterProvider(metric_readers=[reader])
    set_meter_provider(provider)
    observe_servers({"c": Server()})
    observe_servers({"d": Server()}, meter_provider=provider)
    (metrics,) = reader.get_metrics_data().resource_metrics[0].scope_metrics
    points = next(iter(metrics.metrics)).data.data_points
    print(sorted(point.attributes["bytetalk.server"] for point in points))

trio.run(main)
"""


def test_without_the_api_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.metrics", None)
    monkeypatch.delitem(sys.modules, "trio_bytetalk.opentelemetry")
    with pytest.raises(ImportError, match=r"pip install '\.\[opentelemetry\]' in a checkout"):
        importlib.import_module("trio_bytetalk.opentelemetry")
