"""Load on a server: how much is sent and when, what is counted, and how it ends.

The servers are in memory, and take virtual time for their replies; so all times are exact.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from pairs import lockstep

from trio_bytetalk import Codec, Connection, EncodeError, LengthPrefixed, Server, open_connection
from trio_bytetalk._cli.load import Load, Opener, Phase, Plan, Result, Second
from trio_bytetalk._cli.payload import Payload, generated

Clock = trio.testing.MockClock

Handler = Callable[[Connection[bytes, bytes]], Awaitable[None]]

PAYLOAD = generated(LengthPrefixed(), 4)

MS = 1_000_000  # nanoseconds


def plan(**settings: Any) -> Plan:
    usual: dict[str, Any] = {"payload": PAYLOAD, "connections": 1, "warmup": 0, "duration": 1}
    return Plan(**(usual | settings))


def opener(nursery: trio.Nursery, handler: Handler, **options: Any) -> Opener:
    """What opens connections to a server in memory."""
    server = Server(handler)

    @contextlib.asynccontextmanager
    async def open_one() -> AsyncIterator[Connection[Any, Any]]:
        ours, theirs = lockstep() if options else trio.testing.memory_stream_pair()
        nursery.start_soon(server.serve_stream, theirs)
        async with open_connection(ours, **options) as connection:
            yield connection

    return open_one


def echo(delay: float) -> Handler:
    """A server that takes so many seconds for each reply."""

    async def handle(connection: Connection[bytes, bytes]) -> None:
        async for message in connection:
            await trio.sleep(delay)
            await connection.send(message)

    return handle


def milliseconds(result: Result, *percents: float) -> list[float]:
    return [each / MS for each in result.latencies.percentiles(*percents)]


def about(milliseconds: float) -> Any:
    """A latency as a histogram has it."""
    return pytest.approx(milliseconds, rel=0.01)


# -- what is counted


async def test_rate_and_latencies(nursery: trio.Nursery, autojump_clock: Clock) -> None:
    result = await Load(plan(connections=2, duration=2), opener(nursery, echo(0.01))).run()
    assert result.opened == 2
    assert result.elapsed == pytest.approx(2)
    assert result.messages == pytest.approx(400, abs=2)
    assert result.rate == pytest.approx(200, abs=1)
    assert milliseconds(result, 0, 50, 100) == [about(10)] * 3
    # Each is 8 bytes with its length; those in flight at the end have been sent, too.
    assert result.bytes_received == 8 * result.messages
    assert result.bytes_sent == pytest.approx(result.bytes_received, abs=16)
    assert len(result.latencies) == result.messages + result.late
    assert (result.lost, result.unsent, result.errors) == (0, 0, {})
    assert not result.interrupted
    assert not result.exhausted


async def test_each_second_is_told(nursery: trio.Nursery, autojump_clock: Clock) -> None:
    told: list[Second] = []

    def cpu_time() -> float:
        return trio.current_time() / 4

    load = Load(
        plan(duration=2.5), opener(nursery, echo(0.1)), on_second=told.append, cpu_time=cpu_time
    )
    result = await load.run()
    assert result.seconds == tuple(told)
    assert [second.end for second in told] == pytest.approx([1, 2, 2.5])
    assert [second.elapsed for second in told] == pytest.approx([1, 1, 0.5])
    assert [second.messages for second in told] == pytest.approx([10, 10, 5], abs=1)
    assert sum(second.bytes_received for second in told) == 8 * result.messages
    assert [second.cpu for second in told] == pytest.approx([0.25] * 3)
    assert result.cpu == pytest.approx(0.25)
    assert {second.in_flight for second in told} == {1}
    for second in told:
        assert second.latencies == (about(100 * MS),) * 3


async def test_a_second_without_replies(nursery: trio.Nursery, autojump_clock: Clock) -> None:
    result = await Load(plan(duration=2), opener(nursery, echo(1.5))).run()
    assert [second.messages for second in result.seconds] == [0, 1]
    assert result.seconds[0].latencies is None


async def test_the_warm_up_does_not_count(nursery: trio.Nursery, autojump_clock: Clock) -> None:
    async def slow_at_first(connection: Connection[bytes, bytes]) -> None:
        async for message in connection:
            await trio.sleep(0.4 if trio.current_time() < 1 else 0.05)
            await connection.send(message)

    result = await Load(plan(warmup=2, duration=1), opener(nursery, slow_at_first)).run()
    assert result.elapsed == pytest.approx(1)
    assert milliseconds(result, 100) == [about(50)]
    assert result.messages == pytest.approx(20, abs=1)


async def test_without_a_warm_up_the_first_bytes_count(
    nursery: trio.Nursery, mock_clock: Clock
) -> None:
    """Over sockets, which have them at once."""

    @contextlib.asynccontextmanager
    async def open_one() -> AsyncIterator[Connection[Any, Any]]:
        ours, theirs = trio.socket.socketpair()
        with theirs:
            async with open_connection(trio.SocketStream(ours)) as connection:
                yield connection

    results = []

    async def run() -> None:
        results.append(await Load(plan(connections=2, window=100), open_one).run())

    nursery.start_soon(run)
    for _ in range(2):  # until it is over, and then until no reply is waited for any more
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(10)
    await trio.testing.wait_all_tasks_blocked()
    (result,) = results
    assert result.lost == 200
    assert result.bytes_sent == 200 * 8


async def test_a_reply_after_the_end_is_waited_for_and_counts_as_late(
    nursery: trio.Nursery, autojump_clock: Clock
) -> None:
    result = await Load(plan(duration=1), opener(nursery, echo(0.8))).run()
    assert trio.current_time() == pytest.approx(1.6)
    assert (result.messages, result.late, result.lost) == (1, 1, 0)
    assert len(result.latencies) == 2


async def test_a_reply_that_does_not_come_is_lost_in_the_end(
    nursery: trio.Nursery, autojump_clock: Clock
) -> None:
    async def never(connection: Connection[bytes, bytes]) -> None:
        await trio.sleep_forever()

    result = await Load(plan(connections=3, timeout=7), opener(nursery, never)).run()
    assert trio.current_time() == pytest.approx(8)
    assert (result.messages, result.late, result.lost) == (0, 0, 3)
    assert not any(result.latencies.counts)


async def test_being_late_by_seconds_spoils_no_figure(
    nursery: trio.Nursery, autojump_clock: Clock
) -> None:
    def stall(second: Second) -> None:
        if second.end < 1.5:
            autojump_clock.jump(2.2)

    load = Load(plan(duration=4), opener(nursery, echo(0.1)), on_second=stall)
    result = await load.run()
    assert [second.end for second in result.seconds] == pytest.approx([1, 3.2, 4])
    assert result.elapsed == pytest.approx(4)


# -- how much is sent


async def test_as_many_messages_are_in_flight_as_the_window_says(
    nursery: trio.Nursery, autojump_clock: Clock
) -> None:
    batches = []

    async def in_batches(connection: Connection[bytes, bytes]) -> None:
        while True:
            batch = [await connection.receive() for _ in range(5)]
            with trio.move_on_after(0.1):
                batch.append(await connection.receive())  # there is no sixth
            batches.append(len(batch))
            for message in batch:
                await connection.send(message)

    result = await Load(plan(window=5, duration=0.95), opener(nursery, in_batches)).run()
    assert set(batches) == {5}
    assert result.messages == 45
    assert result.late == 5


@pytest.mark.parametrize("window", [2, 1000])
async def test_a_window_larger_than_what_the_sockets_hold(
    nursery: trio.Nursery, autojump_clock: Clock, window: int
) -> None:
    async def polite(connection: Connection[bytes, bytes]) -> None:
        async for message in connection:  # and no other before this has been taken
            await trio.sleep(0.01)
            await connection.send(message)
            await connection.flush()

    open_one = opener(nursery, polite, write_buffer_size=1)
    result = await Load(plan(window=window), open_one).run()
    assert result.messages > 90
    assert (result.lost, result.errors) == (0, {})
    # Where a reply came while there was no room to send, the next message was sent later.
    assert result.seconds[0].in_flight >= 2


async def test_what_the_server_never_took_is_not_lost(
    nursery: trio.Nursery, autojump_clock: Clock
) -> None:
    """A message that still waits to be sent at the end has not been sent."""
    received = []

    async def stalling(connection: Connection[bytes, bytes]) -> None:
        received.append(await connection.receive())
        await trio.sleep_forever()

    opened: list[Connection[Any, Any]] = []
    open_one = opener(nursery, stalling, write_buffer_size=1)

    @contextlib.asynccontextmanager
    async def noted() -> AsyncIterator[Connection[Any, Any]]:
        async with open_one() as connection:
            opened.append(connection)
            yield connection

    result = await Load(plan(window=1000), noted).run()
    assert received
    assert 0 < result.lost == opened[0].statistics().messages_sent < 1000


# -- a rate


async def test_with_a_rate_each_message_has_its_time(
    nursery: trio.Nursery, autojump_clock: Clock
) -> None:
    arrivals = []

    async def handle(connection: Connection[bytes, bytes]) -> None:
        async for message in connection:
            arrivals.append(trio.current_time())
            await connection.send(message)

    result = await Load(plan(connections=2, rate=8, duration=2), opener(nursery, handle)).run()
    assert arrivals[:16] == pytest.approx([number / 8 for number in range(16)])
    assert result.messages == pytest.approx(16, abs=2)
    assert milliseconds(result, 100) == [0]
    assert result.unsent == 0


async def test_latencies_with_a_rate_have_the_time_that_messages_waited_to_be_sent(
    nursery: trio.Nursery, autojump_clock: Clock
) -> None:
    """Of ten messages a second, each of those that are due while the server stalls is late."""

    async def stalls_once(connection: Connection[bytes, bytes]) -> None:
        async for message in connection:
            await trio.sleep(1 if 1.05 < trio.current_time() < 1.15 else 0.01)
            await connection.send(message)

    closed = await Load(plan(duration=4), opener(nursery, stalls_once)).run()
    assert milliseconds(closed, 99, 100) == [about(10), about(1000)]
    clock = trio.current_time()

    async def stalls_later(connection: Connection[bytes, bytes]) -> None:
        async for message in connection:
            now = trio.current_time() - clock
            await trio.sleep(1 if 1.05 < now < 1.15 else 0.01)
            await connection.send(message)

    opened = await Load(plan(duration=4, rate=10), opener(nursery, stalls_later)).run()
    assert opened.messages == pytest.approx(40, abs=1)
    # 1000, 910, 820, ... 100 ms, and all others 10 ms.
    assert milliseconds(opened, 100, 90, 80) == [about(1000), about(640), about(280)]


async def test_what_is_due_and_not_sent_is_told(
    nursery: trio.Nursery, autojump_clock: Clock
) -> None:
    result = await Load(plan(duration=4, rate=10, window=5), opener(nursery, echo(1))).run()
    # One a second is answered, and five more are in flight.
    assert result.unsent == pytest.approx(31, abs=1)
    assert result.messages + result.late + result.unsent == pytest.approx(40, abs=1)


# -- errors


async def test_a_reply_must_be_what_was_sent(nursery: trio.Nursery, autojump_clock: Clock) -> None:
    async def wrong_in_the_end(connection: Connection[bytes, bytes]) -> None:
        for _ in range(5):
            message = await connection.receive()
            await trio.sleep(0.1)
            await connection.send(message)
        await connection.send(b"bbbb")
        await trio.sleep_forever()

    settings = plan(duration=2)
    result = await Load(settings, opener(nursery, wrong_in_the_end)).run()
    assert result.errors == {"a reply was not what had been sent": 1}
    assert (result.messages, result.lost) == (5, 0)  # for it came
    unchecked = attrs.evolve(settings, check=False)
    result = await Load(unchecked, opener(nursery, wrong_in_the_end)).run()
    assert result.errors == {}
    assert result.messages == 6


@pytest.mark.parametrize(
    ("frame", "error", "lost"),
    [
        (b"\0\0\0\4bbbb", "a reply was not what had been sent", 0),
        (b"\xff\xff\xff\xff", "the peer announced a message of 4294967295 bytes", 0),
        (b"\0\0\0\4bb", "the peer finished in the middle of a message", 3),
        (b"", "the server closed the connection", 3),
    ],
)
async def test_messages_are_lost_if_it_is_the_server_that_ends_the_connection(
    nursery: trio.Nursery, autojump_clock: Clock, frame: bytes, error: str, lost: int
) -> None:
    @contextlib.asynccontextmanager
    async def open_one() -> AsyncIterator[Connection[Any, Any]]:
        ours, theirs = trio.testing.memory_stream_pair()

        async def answer() -> None:
            await theirs.receive_some()
            await theirs.send_all(frame)
            if lost:
                await theirs.send_eof()

        nursery.start_soon(answer)
        async with open_connection(ours) as connection:
            yield connection

    result = await Load(plan(window=3), open_one).run()
    assert result.exhausted
    (found,) = result.errors
    assert found.startswith(error)
    assert (result.messages, result.lost) == (0, lost)


async def test_replies_must_come_in_order(nursery: trio.Nursery, autojump_clock: Clock) -> None:
    async def swapping(connection: Connection[bytes, bytes]) -> None:
        first, second = await connection.receive(), await connection.receive()
        await connection.send(second)
        await connection.send(first)
        await trio.sleep_forever()

    result = await Load(plan(window=2), opener(nursery, swapping)).run()
    assert result.errors == {"a reply was not what had been sent": 1}


async def test_a_message_that_answers_none_is_an_error(
    nursery: trio.Nursery, autojump_clock: Clock
) -> None:
    async def talkative(connection: Connection[bytes, bytes]) -> None:
        message = await connection.receive()
        for _ in range(2):
            await connection.send(message)
        await trio.sleep_forever()

    result = await Load(plan(rate=0.5), opener(nursery, talkative)).run()
    assert result.errors == {"a message came from the server that answers none": 1}
    assert (result.messages, result.lost) == (0, 0)


async def test_when_one_connection_ends_the_others_go_on(
    nursery: trio.Nursery, autojump_clock: Clock
) -> None:
    count = 0

    async def one_leaves(connection: Connection[bytes, bytes]) -> None:
        nonlocal count
        count += 1
        leaves = count == 1
        async for message in connection:
            await trio.sleep(0.1)
            if leaves and trio.current_time() > 0.95:
                return
            await connection.send(message)

    load = Load(plan(connections=3, duration=2), opener(nursery, one_leaves))
    result = await load.run()
    assert result.errors == {"the server closed the connection": 1}
    assert result.lost == 1
    assert not result.exhausted
    assert [second.errors for second in result.seconds] == [1, 1]
    assert [second.in_flight for second in result.seconds] == [2, 2]
    assert result.messages == pytest.approx(9 + 2 * 20, abs=3)


async def test_when_all_have_ended_the_run_is_over(
    nursery: trio.Nursery, autojump_clock: Clock
) -> None:
    async def leaves(connection: Connection[bytes, bytes]) -> None:
        with trio.move_on_after(2.5):
            await echo(0.1)(connection)

    result = await Load(plan(connections=2, duration=100), opener(nursery, leaves)).run()
    assert trio.current_time() == pytest.approx(2.5)
    assert result.exhausted
    assert result.errors == {"the server closed the connection": 2}
    assert [second.elapsed for second in result.seconds] == pytest.approx([1, 1, 0.5])
    assert result.messages == pytest.approx(48, abs=2)


async def test_when_all_have_ended_in_the_warm_up_nothing_was_measured(
    nursery: trio.Nursery, autojump_clock: Clock
) -> None:
    async def leaves(connection: Connection[bytes, bytes]) -> None:
        await connection.receive()

    result = await Load(plan(warmup=100), opener(nursery, leaves)).run()
    assert result.exhausted
    assert (result.seconds, result.elapsed, result.rate, result.late) == ((), 0, 0, 0)


@attrs.frozen
class Failing(Codec[bytes, bytes]):
    """Cannot send one message."""

    failing: bytes

    def reader(self) -> Any:
        return LengthPrefixed().reader()

    def writer(self) -> Any:
        def encode(message: bytes) -> bytes:
            if message == self.failing:
                raise EncodeError("not this one")
            return message

        return LengthPrefixed().map(encode=encode).writer()


@pytest.mark.parametrize("failing", [1, 3])
async def test_what_fails_in_sending_is_an_error(
    nursery: trio.Nursery, failing: int, autojump_clock: Clock
) -> None:
    """Whichever of the two tasks it is that sends: the first two are sent by one of them."""
    messages = (b"0", b"1", b"2", b"3")
    open_one = opener(nursery, echo(0.1), codec=Failing(messages[failing]))
    result = await Load(plan(payload=Payload(messages, 5), window=2), open_one).run()
    assert result.errors == {"not this one": 1}
    assert result.exhausted


# -- opening


async def test_without_any_connection_the_first_reason_is_raised(autojump_clock: Clock) -> None:
    @contextlib.asynccontextmanager
    async def refused() -> AsyncIterator[Connection[Any, Any]]:
        raise ConnectionRefusedError(errno.ECONNREFUSED, "refused, as it happens")
        yield

    load = Load(plan(connections=3), refused)
    with pytest.raises(ConnectionRefusedError, match="refused, as it happens"):
        await load.run()
    assert load.snapshot().errors == {"refused, as it happens": 3}


async def test_with_some_connections_it_goes_on(
    nursery: trio.Nursery, autojump_clock: Clock
) -> None:
    open_one = opener(nursery, echo(0.1))
    count = 0

    @contextlib.asynccontextmanager
    async def every_other() -> AsyncIterator[Connection[Any, Any]]:
        nonlocal count
        count += 1
        if count % 2:
            raise OSError("no room")
        async with open_one() as connection:
            yield connection

    result = await Load(plan(connections=5), every_other).run()
    assert result.opened == 2
    assert result.errors == {"no room": 3}
    assert result.messages == pytest.approx(20, abs=2)


async def test_opening_takes_no_longer_than_the_timeout(autojump_clock: Clock) -> None:
    @contextlib.asynccontextmanager
    async def black_hole() -> AsyncIterator[Connection[Any, Any]]:
        await trio.sleep_forever()
        yield

    with pytest.raises(
        TimeoutError, match="no connection within 3 seconds; the option is --timeout"
    ):
        await Load(plan(timeout=3), black_hole).run()
    assert trio.current_time() == pytest.approx(3)


async def test_so_many_are_opened_at_a_time_and_all_start_together(
    nursery: trio.Nursery, autojump_clock: Clock
) -> None:
    open_one = opener(nursery, echo(0.1))
    opening = most = 0

    @contextlib.asynccontextmanager
    async def slowly() -> AsyncIterator[Connection[Any, Any]]:
        nonlocal opening, most
        opening += 1
        most = max(most, opening)
        await trio.sleep(0.5)
        opening -= 1
        async with open_one() as connection:
            yield connection

    load = Load(plan(connections=80), slowly)
    nursery.start_soon(load.run)
    await trio.sleep(0.75)
    seen = load.snapshot()
    assert (seen.phase, seen.opened, seen.in_flight, seen.rate) == (Phase.OPENING, 32, 0, 0)
    assert most == 32
    await trio.sleep(1)
    seen = load.snapshot()
    assert (seen.phase, seen.opened, seen.active, seen.in_flight) == (Phase.MEASURING, 80, 80, 80)
    assert seen.phase_elapsed == pytest.approx(0.25)


# -- looking at it, being stopped, and ending it early


async def test_that_the_program_was_stopped_matters_once_it_sends(
    nursery: trio.Nursery, autojump_clock: Clock
) -> None:
    open_one = opener(nursery, echo(0.1))

    @contextlib.asynccontextmanager
    async def slowly() -> AsyncIterator[Connection[Any, Any]]:
        await trio.sleep(1)
        async with open_one() as connection:
            yield connection

    for time, matters in ((0.5, False), (1.5, True)):
        load = Load(plan(), slowly)
        async with trio.open_nursery() as running:
            running.start_soon(load.run)
            await trio.sleep(time)
            load.resumed()
        assert load.stopped is matters
        assert load.snapshot().phase is Phase.DONE


async def test_a_snapshot_has_what_there_is_until_now(
    nursery: trio.Nursery, autojump_clock: Clock
) -> None:
    load = Load(plan(warmup=1, duration=300, window=2), opener(nursery, echo(0.75)))
    nursery.start_soon(load.run)
    await trio.sleep(0.5)
    seen = load.snapshot()
    assert seen.phase is Phase.WARMING_UP
    assert seen.phase_elapsed == pytest.approx(0.5)
    await trio.sleep(130)
    seen = load.snapshot()
    assert seen.phase is Phase.MEASURING
    assert seen.in_flight == 2
    assert len(seen.latencies) == pytest.approx(129.5 / 0.75, abs=2)
    assert len(seen.seconds) == 120
    assert seen.seconds[-1].end == pytest.approx(129)
    assert seen.rate == pytest.approx(1 / 0.75, abs=0.02)
    before = list(seen.latencies.counts)
    await trio.sleep(1)
    assert seen.latencies.counts == before
    load.interrupt()
    await trio.sleep(2)
    assert load.snapshot().phase is Phase.DONE


async def interrupted(load: Load, *times: float) -> Result:
    """The result, if it is interrupted at these times."""

    async def interrupt() -> None:
        for time in times:
            await trio.sleep_until(time)
            load.interrupt()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(interrupt)
        result = await load.run()
        nursery.cancel_scope.cancel()
    assert result.interrupted
    assert not result.exhausted
    return result


async def test_interrupted_it_waits_for_the_last_replies_only(
    nursery: trio.Nursery, autojump_clock: Clock
) -> None:
    result = await interrupted(Load(plan(duration=100), opener(nursery, echo(0.4))), 1.5)
    assert trio.current_time() == pytest.approx(1.6)
    assert result.elapsed == pytest.approx(1.5)
    assert (result.messages, result.late, result.lost) == (3, 1, 0)


async def test_interrupted_twice_it_waits_for_nothing(
    nursery: trio.Nursery, autojump_clock: Clock
) -> None:
    result = await interrupted(Load(plan(duration=100), opener(nursery, echo(0.4))), 1.5, 1.55)
    assert trio.current_time() == pytest.approx(1.55)
    assert (result.messages, result.late, result.lost) == (3, 0, 1)


async def test_interrupted_while_it_waits_for_the_last_replies(
    nursery: trio.Nursery, autojump_clock: Clock
) -> None:
    result = await interrupted(Load(plan(duration=1), opener(nursery, echo(5))), 2)
    assert trio.current_time() == pytest.approx(2)
    assert (result.messages, result.lost) == (0, 1)


async def test_interrupted_as_a_second_is_over(
    nursery: trio.Nursery, autojump_clock: Clock
) -> None:
    load = Load(plan(duration=100), opener(nursery, echo(0.4)))
    load.on_second = lambda second: load.interrupt()
    result = await load.run()
    assert [second.elapsed for second in result.seconds] == pytest.approx([1])


async def test_interrupted_in_the_warm_up_nothing_was_measured(
    nursery: trio.Nursery, autojump_clock: Clock
) -> None:
    result = await interrupted(Load(plan(warmup=100), opener(nursery, echo(0.4))), 1)
    assert trio.current_time() == pytest.approx(1.2)
    assert (result.seconds, result.messages, result.late, result.lost) == ((), 0, 0, 0)


async def test_interrupted_twice_at_once_no_connection_has_ended_by_itself(
    nursery: trio.Nursery, autojump_clock: Clock
) -> None:
    load = Load(plan(warmup=100), opener(nursery, echo(0.4)))

    async def interrupt() -> None:
        await trio.sleep(1)
        load.interrupt()
        load.interrupt()

    nursery.start_soon(interrupt)
    result = await load.run()
    assert result.interrupted
    assert not result.exhausted


async def test_interrupted_while_connections_are_opened(autojump_clock: Clock) -> None:
    @contextlib.asynccontextmanager
    async def black_hole() -> AsyncIterator[Connection[Any, Any]]:
        await trio.sleep_forever()
        yield

    result = await interrupted(Load(plan(), black_hole), 1)
    assert trio.current_time() == pytest.approx(1)
    assert (result.opened, result.seconds) == (0, ())
