"""Samples of a server: what is counted, what a rate is, who is busiest."""

from __future__ import annotations

from collections.abc import AsyncIterator

import attrs
import pytest
import trio
from pairs import lockstep, memory
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_bytetalk import Connection, Ending, Server, open_connection
from trio_bytetalk._cli import gauges
from trio_bytetalk._cli.gauges import HISTORY, Backlog, Gauges
from trio_bytetalk._cli.peers import NO_TRAFFIC, Peers, Traffic

BytesConnection = Connection[bytes, bytes]


@attrs.frozen
class Served:
    """A server whose gauges are looked at."""

    server: Server[bytes, bytes]
    peers: Peers
    gauges: Gauges
    nursery: trio.Nursery

    async def connect(self, *, reading: bool = True) -> BytesConnection:
        """A client's connection; of one that does not read, the server keeps what it sends."""
        ours, theirs = memory() if reading else lockstep()
        self.nursery.start_soon(self.server.serve_stream, theirs)
        connection = open_connection(ours)
        await wait_all_tasks_blocked()
        return connection


@pytest.fixture
async def served(nursery: trio.Nursery) -> AsyncIterator[Served]:
    async def echo(connection: BytesConnection) -> None:
        async for message in connection:
            await connection.send(message)

    server = Server(echo)
    peers = Peers(server)
    yield Served(server, peers, Gauges(server, peers), nursery)
    nursery.cancel_scope.cancel()


async def talk(connection: BytesConnection, count: int) -> None:
    for _ in range(count):
        await connection.send(b"123456")
        assert await connection.receive() == b"123456"


async def test_a_server_that_has_just_begun(served: Served, mock_clock: MockClock) -> None:
    sample = await served.gauges.sample(10)
    assert (sample.uptime, sample.server.connections, sample.samples) == (0, 0, 0)
    assert sample.total == sample.rate == NO_TRAFFIC
    assert sample.history == ()
    assert sample.busiest == ()
    assert sample.backlog == Backlog()


async def test_rates_are_of_the_time_since_the_last_sample(
    served: Served, mock_clock: MockClock
) -> None:
    ann, bob = await served.connect(), await served.connect()
    mock_clock.jump(1)
    first = await served.gauges.sample(10)
    await talk(ann, 4)
    await talk(bob, 1)
    mock_clock.jump(2)
    second = await served.gauges.sample(10)
    mock_clock.jump(2)
    third = await served.gauges.sample(10)
    assert second.total == third.total == Traffic(5, 5, 50, 50)
    assert second.rate == Traffic(2.5, 2.5, 25, 25)
    assert first.rate == third.rate == NO_TRAFFIC
    assert third.history == (first.rate, second.rate, third.rate)
    assert third.samples == 3
    assert (third.uptime, third.server.connections) == (5, 2)
    assert [one.rate for one in second.busiest] == [Traffic(2, 2, 20, 20), Traffic(0.5, 0.5, 5, 5)]
    assert [one.rate for one in third.busiest] == [NO_TRAFFIC, NO_TRAFFIC]
    assert [one.address for one in second.busiest] == ["unix#1", "unix#2"]


async def test_a_minute_is_remembered(served: Served, mock_clock: MockClock) -> None:
    connection = await served.connect()
    await talk(connection, 1)
    for _ in range(HISTORY + 1):
        mock_clock.jump(1)
        sample = await served.gauges.sample(0)
    assert sample.history == (NO_TRAFFIC,) * HISTORY
    assert sample.samples == HISTORY + 1


async def test_the_busiest_come_first_and_then_who_was_first(
    served: Served, mock_clock: MockClock
) -> None:
    connections = []
    for _ in range(5):
        connections.append(await served.connect())
        mock_clock.jump(1)
    await talk(connections[3], 1)
    await talk(connections[4], 2)
    sample = await served.gauges.sample(3)
    assert [one.address for one in sample.busiest] == ["unix#5", "unix#4", "unix#1"]
    assert [sample.now - one.since for one in sample.busiest] == [1, 2, 5]
    assert len((await served.gauges.sample(10)).busiest) == 5


async def test_what_is_not_sent_is_the_backlog(served: Served, mock_clock: MockClock) -> None:
    await served.connect()
    slow = [await served.connect(reading=False) for _ in range(2)]
    for number, connection in enumerate(slow, 1):
        for _ in range(number):
            await connection.send(b"123456")
        await connection.flush()
    await wait_all_tasks_blocked()
    for _ in range(2):
        mock_clock.jump(1)
        sample = await served.gauges.sample(10)
        assert sample.backlog == Backlog(connections=2, bytes=30, most=20)
        # They stay in front, although nothing moves any more.
        assert [one.queued for one in sample.busiest] == [20, 10, 0]


async def test_what_a_peer_calls_itself_is_seen(served: Served) -> None:
    await served.connect()
    [connection] = served.server.connections
    served.peers.of(connection).name = "ann"
    [one] = (await served.gauges.sample(1)).busiest
    assert (one.address, one.name) == ("unix#1", "ann")


async def test_who_has_gone_still_counts(served: Served) -> None:
    connection = await served.connect()
    await talk(connection, 3)
    await connection.aclose()
    await wait_all_tasks_blocked()
    sample = await served.gauges.sample(10)
    assert (sample.server.connections, sample.server.connections_accepted) == (0, 1)
    assert sample.server.endings[Ending.END_OF_STREAM] == 1
    assert sample.total == Traffic(3, 3, 30, 30)


async def test_many_connections_are_looked_at_less_often(
    served: Served, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gauges, "_LOOKED_AT_A_SECOND", 1)
    first, *_ = [await served.connect() for _ in range(3)]
    seen = []
    for _ in range(6):
        await talk(first, 2)
        sample = await served.gauges.sample(1)
        seen.append((sample.rate.messages_in, sample.busiest[0].rate.messages_in))
        mock_clock.jump(1)
    # Every third time; and then it is the rate of all the time since.
    assert seen == [(0, 0), (2, 0), (2, 2), (2, 2), (2, 2), (2, 2)]
    await served.connect()


async def test_a_sample_of_many_connections_holds_nobody_up(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gauges, "_AT_ONCE", 10)
    for _ in range(50):
        served.nursery.start_soon(served.server.serve_stream, memory()[1])
    await wait_all_tasks_blocked()
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count_turns)
        sample = await served.gauges.sample(10)
        nursery.cancel_scope.cancel()
    assert sample.server.connections == 50
    assert turns >= 3  # of five, at either end of which it may not have had its own


async def test_the_summary_says_it_in_a_line(served: Served, mock_clock: MockClock) -> None:
    connection = await served.connect()
    await talk(connection, 3)
    mock_clock.jump(61)
    assert served.gauges.summary() == (
        "served 1 connection in 0:01:01: 3 messages, 30 B in; 3 messages, 30 B out"
    )
