"""`ServerCollector`, asked by Prometheus's own server and client library."""

from __future__ import annotations

import importlib
import sys
import urllib.request
from typing import Any

import pytest
import trio
from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.parser import text_string_to_metric_families

from trio_bytetalk import Connection, Ending, Server
from trio_bytetalk.prometheus import ServerCollector
from trio_bytetalk.testing import open_memory_connection

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


async def echo(connection: Connection[bytes, bytes]) -> None:
    async for message in connection:
        await connection.send(message)


def samples_in(page: str) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[f"bytetalk_server_{name}", frozenset(labels.items())]


def registered(**servers: Server[Any, Any]) -> CollectorRegistry:
    registry = CollectorRegistry(auto_describe=True)
    registry.register(ServerCollector(servers))
    return registry


async def test_prometheus_scrapes_it_over_http() -> None:
    server, other = Server(echo), Server(echo)
    registry = registered(chat=server, other=other)
    httpd, thread = start_http_server(0, "127.0.0.1", registry)
    try:
        async with open_memory_connection(server) as connection:
            await connection.send(b"hello")
            await connection.receive()

            def scrape() -> str:
                with urllib.request.urlopen(
                    f"http://127.0.0.1:{httpd.server_port}/metrics"
                ) as page:
                    return str(page.read(), "utf-8")

            samples = samples_in(await trio.to_thread.run_sync(scrape))
    finally:
        await trio.to_thread.run_sync(httpd.shutdown)
        httpd.server_close()
        await trio.to_thread.run_sync(thread.join)
    assert value(samples, "connections", server="chat") == 1
    assert value(samples, "connections", server="other") == 0
    assert value(samples, "connections_opened_total", server="chat") == 1
    assert value(samples, "messages_total", server="chat", direction="receive") == 1
    assert value(samples, "io_bytes_total", server="chat", direction="transmit") == 4 + 5
    assert value(samples, "send_queue_bytes", server="chat") == 0


async def test_names_and_types_are_as_prometheus_wants_them() -> None:
    page = generate_latest(registered(it=Server())).decode()
    types = dict(
        line.removeprefix("# TYPE ").split() for line in page.splitlines() if "# TYPE" in line
    )
    assert types == {
        "bytetalk_server_connections": "gauge",
        "bytetalk_server_connections_opened_total": "counter",
        "bytetalk_server_connections_accepted_total": "counter",
        "bytetalk_server_connections_refused_total": "counter",
        "bytetalk_server_connections_ended_total": "counter",
        "bytetalk_server_handshakes": "gauge",
        "bytetalk_server_handshakes_failed_total": "counter",
        "bytetalk_server_listeners": "gauge",
        "bytetalk_server_listeners_paused_total": "counter",
        "bytetalk_server_messages_total": "counter",
        "bytetalk_server_io_bytes_total": "counter",
        "bytetalk_server_chunks_total": "counter",
        "bytetalk_server_send_queue_bytes": "gauge",
        "bytetalk_server_send_queue_largest_bytes": "gauge",
        "bytetalk_server_receive_buffer_bytes": "gauge",
        "bytetalk_server_senders_waiting": "gauge",
        "bytetalk_server_broadcasts_skipped_total": "counter",
        "bytetalk_server_subscriptions": "gauge",
        "bytetalk_server_events_waiting": "gauge",
        "bytetalk_server_events_dropped_total": "counter",
    }


async def test_connections_make_no_series() -> None:
    server = Server(echo)
    registry = registered(it=server)
    before = samples_in(generate_latest(registry).decode())
    for _ in range(3):
        async with open_memory_connection(server) as connection:
            await connection.send(b"hello")
            await connection.receive()
    after = samples_in(generate_latest(registry).decode())
    assert after.keys() == before.keys()
    ended = Ending.END_OF_STREAM.value
    assert value(after, "connections_ended_total", server="it", ending=ended) == 3


def test_after_the_run_the_last_numbers_stay() -> None:
    async def main() -> CollectorRegistry:
        server = Server(echo)
        registry = registered(it=server)
        async with open_memory_connection(server):
            pass
        return registry

    samples = samples_in(generate_latest(trio.run(main)).decode())
    assert value(samples, "connections_opened_total", server="it") == 1


async def test_wrong_arguments_are_named() -> None:
    with pytest.raises(TypeError, match="servers must be a dict of servers by their names"):
        ServerCollector(Server())  # type: ignore[arg-type] # wrong on purpose
    with pytest.raises(ValueError, match="timeout must be more than 0 seconds"):
        ServerCollector({"it": Server()}, timeout=-1)


def test_without_prometheus_client_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client.core", None)
    monkeypatch.delitem(sys.modules, "trio_bytetalk.prometheus")
    with pytest.raises(ImportError, match=r"pip install '\.\[prometheus\]' in a checkout"):
        importlib.import_module("trio_bytetalk.prometheus")
