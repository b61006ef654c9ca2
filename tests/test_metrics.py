"""Statistics as metrics: all of them, few series, and read in any thread."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from trio_bytetalk import Connection, Ending, Server, ServerStatistics
from trio_bytetalk._metrics import METRICS, StatisticsReader, measured
from trio_bytetalk.testing import open_memory_connection


async def consume(connection: Connection[bytes, bytes]) -> None:
    async for _ in connection:
        pass


def all_series(statistics: ServerStatistics) -> dict[str, Any]:
    return {metric.name: [*measured(metric, {"it": statistics})] for metric in METRICS}


def test_each_number_of_the_statistics_is_in_a_metric() -> None:
    nothing = Server().statistics()
    before = all_series(nothing)
    for field in attrs.fields(ServerStatistics):
        value: Any = 1
        if field.name == "endings":
            value = {**nothing.endings, Ending.BROKEN: 1}
        changed = all_series(attrs.evolve(nothing, **{field.name: value}))
        assert changed != before, f"{field.name} is in no metric"


def test_a_metric_has_the_same_series_whatever_happens() -> None:
    names = [metric.name for metric in METRICS]
    assert len(names) == len(set(names))
    for metric in METRICS:
        series = metric.series(Server().statistics())
        assert len(series) <= len(Ending)
        assert {tuple(attributes) for attributes, _ in series} == {
            () if metric.attribute is None else (metric.attribute,)
        }


async def test_each_listener_is_in_one_state() -> None:
    numbers = attrs.evolve(
        Server().statistics(), listeners=7, listeners_at_limit=2, listeners_out_of_resources=1
    )
    (metric,) = (metric for metric in METRICS if metric.name == "listeners")
    assert [value for _, value in metric.series(numbers)] == [4, 2, 1]
    assert {"bytetalk.server": "it", "bytetalk.state": "accepting"} in [
        attributes for attributes, _ in measured(metric, {"it": numbers})
    ]


async def test_it_is_read_in_the_trio_thread_and_in_others() -> None:
    one, two = Server(consume), Server(consume)
    reader = StatisticsReader({"one": one, "two": two}, math.inf)
    async with open_memory_connection(one) as connection:
        await connection.send(b"hello")
        await trio.testing.wait_all_tasks_blocked()
        here = reader.read()
        there = await trio.to_thread.run_sync(reader.read)
        assert here.keys() == {"one", "two"}
        assert here["one"].connections == there["one"].connections == 1
        assert here["two"].connections == there["two"].connections == 0


async def test_it_is_read_in_another_run_of_trio() -> None:
    reader = StatisticsReader({"it": Server()}, 5)

    async def another() -> dict[str, ServerStatistics]:
        return reader.read()

    assert await trio.to_thread.run_sync(trio.run, another) == reader.read()


def test_after_the_run_it_is_as_it_was_at_its_end() -> None:
    async def main() -> StatisticsReader:
        server = Server(consume)
        reader = StatisticsReader({"it": server}, 5)
        async with open_memory_connection(server) as connection:
            await connection.send(b"hello")
        assert not reader.is_over
        return reader

    reader = trio.run(main)
    assert reader.is_over
    assert reader.read()["it"].messages_received == 1


async def test_a_trio_thread_that_waits_for_the_reading_is_not_waited_for_for_ever() -> None:
    reader = StatisticsReader({"it": Server()}, 0.01)
    errors: list[Exception] = []

    def read() -> None:
        try:
            reader.read()
        except TimeoutError as error:
            errors.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    thread.join()  # which stops all of Trio
    (error,) = errors
    assert "in 0.01 seconds; the setting is timeout" in str(error)
    assert (await trio.to_thread.run_sync(reader.read)).keys() == {"it"}  # no harm is done


def test_it_is_made_in_trio() -> None:
    with pytest.raises(RuntimeError, match=r"within trio\.run"):
        StatisticsReader({"it": Server()}, 5)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: StatisticsReader({}, 5), TypeError, "servers must be a dict"),
        (lambda: StatisticsReader(Server(), 5), TypeError, "servers must be a dict"),  # type: ignore[arg-type] # wrong on purpose
        (lambda: StatisticsReader({"it": None}, 5), TypeError, "servers must be a dict"),  # type: ignore[dict-item] # wrong on purpose
        (lambda: StatisticsReader({1: Server()}, 5), TypeError, "servers must be a dict"),  # type: ignore[dict-item] # wrong on purpose
        (lambda: StatisticsReader({"it": Server()}, 0), ValueError, "timeout must be more than 0"),
        (lambda: StatisticsReader({"it": Server()}, None), TypeError, "timeout must be a number"),  # type: ignore[arg-type] # wrong on purpose
    ],
)
async def test_wrong_arguments(
    make: Callable[[], object], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        make()
