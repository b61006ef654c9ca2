"""The flusher: what is queued is written at the next turn, and everyone else gets theirs."""

from __future__ import annotations

import collections
import gc
import weakref
from collections.abc import Callable

import attrs
import trio
import trio.testing

from trio_bytetalk import Connection, Server, open_connection

# It has no public name. What it does for connections is seen in the last test; in which turn it
# does so, only from here.
from trio_bytetalk._flusher import flush_soon


@attrs.define(eq=False)
class Flushed:
    """Calls a function when it is flushed."""

    flush_now: Callable[[], None]


class Turns(trio.abc.Instrument):
    """Counts the scheduler's turns: in each it runs every task that can run, in any order."""

    def __init__(self) -> None:
        self.now = 0
        trio.lowlevel.add_instrument(self)

    def after_io_wait(self, timeout: float) -> None:
        self.now += 1


async def turns(count: int) -> None:
    for _ in range(count):
        await trio.lowlevel.checkpoint()


async def test_flushed_in_the_next_turn_and_in_order() -> None:
    turn = Turns()
    log: list[tuple[str, int]] = []
    for _ in range(3):  # at first the flusher is to be started, later it is waiting
        log.clear()
        next_turn = turn.now + 1
        flush_soon(Flushed(lambda: log.append(("first", turn.now))))
        flush_soon(Flushed(lambda: log.append(("second", turn.now))))
        assert log == []
        await turns(2)
        assert log == [("first", next_turn), ("second", next_turn)]
        await trio.testing.wait_all_tasks_blocked()


async def test_many_at_once_leave_the_other_tasks_their_turns() -> None:
    turn = Turns()
    flushed_in: list[int] = []
    begin = turn.now
    for _ in range(300):
        flush_soon(Flushed(lambda: flushed_in.append(turn.now)))
    await turns(10)
    counts = collections.Counter(flushed_in)
    assert counts == {begin + 1: 64, begin + 2: 64, begin + 3: 64, begin + 4: 64, begin + 5: 44}


async def test_what_was_flushed_is_let_go_of() -> None:
    flushed = Flushed(lambda: None)
    seen = weakref.ref(flushed)
    flush_soon(flushed)
    del flushed
    await turns(3)
    gc.collect()
    assert seen() is None


async def test_what_is_queued_by_a_flush_waits_for_the_next_turn() -> None:
    turn = Turns()
    flushed_in: list[int] = []

    def flush() -> None:
        flushed_in.append(turn.now)
        if len(flushed_in) < 10:
            flush_soon(again)

    again = Flushed(flush)
    begin = turn.now
    flush_soon(again)
    await turns(12)
    assert flushed_in == list(range(begin + 1, begin + 11))


def test_every_run_of_trio_has_its_own_and_may_end_with_something_to_do() -> None:
    log: list[int] = []

    async def main(number: int) -> None:
        flush_soon(Flushed(lambda: log.append(number)))
        await turns(2)
        flush_soon(Flushed(lambda: log.append(-number)))

    for number in (1, 2, 3):
        trio.run(main, number)
    assert [number for number in log if number > 0] == [1, 2, 3]


def test_a_task_that_is_cleaned_up_as_the_run_ends_may_still_have_something_to_flush() -> None:
    async def clean_up() -> None:
        try:
            await trio.sleep_forever()
        finally:
            flush_soon(Flushed(lambda: None))

    async def main() -> None:
        flush_soon(Flushed(lambda: None))
        trio.lowlevel.spawn_system_task(clean_up)
        await trio.testing.wait_all_tasks_blocked()

    trio.run(main)


async def test_broadcast_reaches_more_connections_than_are_flushed_in_one_turn() -> None:
    server = Server()
    clients: list[Connection[bytes, bytes]] = []
    async with trio.open_nursery() as nursery:
        for _ in range(150):
            near, far = trio.testing.memory_stream_pair()
            nursery.start_soon(server.serve_stream, far)
            clients.append(open_connection(near))
        await trio.testing.wait_all_tasks_blocked()
        for message in (b"first", b"second"):
            assert server.broadcast(message).queued == 150
            for client in clients:
                assert await client.receive() == message
        for client in clients:
            await client.aclose()
