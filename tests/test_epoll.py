"""The epoll of all of a run's sockets: what is registered, who is woken, and that nothing stays."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Generator
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from trio_bytetalk import _epoll
from trio_bytetalk._epoll import Readiness, register

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="this system has no epoll")


@pytest.fixture(autouse=True)
def crowd(monkeypatch: pytest.MonkeyPatch) -> None:
    """The few sockets of a test are taken for many."""
    monkeypatch.setattr(_epoll, "_FEW", 0)


@attrs.define
class Ends:
    """A registered socket, and its peer."""

    readiness: Readiness
    here: socket.socket
    there: socket.socket

    def fill(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                self.here.send(bytes(65_536))
        self.readiness.writable = False

    def empty(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                self.there.recv(1_000_000)


@pytest.fixture
async def ends() -> AsyncIterator[Ends]:
    here, there = socket.socketpair()
    with here, there:
        here.setblocking(False)
        there.setblocking(False)
        readiness = register(here.fileno())
        yield Ends(readiness, here, there)
        if here.fileno() in _epoll._hub.get().registered:
            readiness.close()


async def wait_readable(readiness: Readiness) -> None:
    await readiness.wait_readable()


async def test_socket_may_be_written_to_at_once_and_read_when_something_came(ends: Ends) -> None:
    assert ends.readiness.writable
    assert not ends.readiness.readable


async def test_data_wakes_the_reader(ends: Ends) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_readable, ends.readiness)
        await trio.testing.wait_all_tasks_blocked()
        assert not ends.readiness.readable
        ends.there.send(b"x")
    assert ends.readiness.readable
    assert not ends.readiness.hung_up


async def test_data_that_was_there_before_makes_the_first_event() -> None:
    here, there = socket.socketpair()
    with here, there:
        there.send(b"x")
        readiness = register(here.fileno())
        await wait_readable(readiness)
        assert readiness.readable
        assert readiness.bytes_waiting() == 1
        readiness.close()


async def test_data_is_noted_though_nobody_waits(ends: Ends) -> None:
    ends.there.send(b"x")
    other_here, other_there = socket.socketpair()
    with other_here, other_there:
        other_there.send(b"x")
        other = register(other_here.fileno())
        await wait_readable(other)  # whatever came before has been seen then
        other.close()
    assert ends.readiness.readable


async def test_room_wakes_the_writer_each_time(ends: Ends) -> None:
    for _ in range(2):
        ends.fill()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ends.readiness.wait_writable)
            await trio.testing.wait_all_tasks_blocked()
            assert not ends.readiness.writable
            ends.empty()
        assert ends.readiness.writable
        assert not ends.readiness.hung_up


async def test_epoll_is_told_once_what_to_watch_a_socket_for(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = _epoll._hub.get()
    await trio.testing.wait_all_tasks_blocked()  # its task has the real one now
    told = []

    @attrs.define
    class Epoll:
        real: Any
        closed = False

        def register(self, fd: int, _events: int) -> None:
            told.append("register")

        def modify(self, fd: int, events: int) -> None:
            told.append("modify")
            self.real.modify(fd, events)

    with monkeypatch.context() as patch:
        patch.setattr(hub, "epoll", Epoll(hub.epoll))
        for _ in range(3):
            ends.there.send(b"x")
            await ends.readiness.wait_readable()
            ends.here.recv(1)
            ends.fill()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ends.readiness.wait_writable)
                await trio.testing.wait_all_tasks_blocked()
                ends.empty()
    assert told == ["modify"]


async def test_room_that_came_before_the_wait_is_told_of(ends: Ends) -> None:
    ends.fill()
    ends.empty()
    await ends.readiness.wait_writable()
    assert ends.readiness.writable


async def test_room_does_not_wake_the_reader_nor_data_the_writer(ends: Ends) -> None:
    woken = []

    async def read() -> None:
        await ends.readiness.wait_readable()
        woken.append("reader")

    async def write() -> None:
        await ends.readiness.wait_writable()
        woken.append("writer")

    ends.fill()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        nursery.start_soon(write)
        await trio.testing.wait_all_tasks_blocked()
        ends.there.send(b"x")
        await trio.testing.wait_all_tasks_blocked()
        assert woken == ["reader"]
        ends.empty()
        await trio.testing.wait_all_tasks_blocked()
        assert woken == ["reader", "writer"]


async def test_room_alone_makes_nothing_readable(ends: Ends) -> None:
    ends.fill()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_readable, ends.readiness)
        await trio.testing.wait_all_tasks_blocked()
        async with trio.open_nursery() as writing:
            writing.start_soon(ends.readiness.wait_writable)
            await trio.testing.wait_all_tasks_blocked()
            ends.empty()
        await trio.testing.wait_all_tasks_blocked()
        assert not ends.readiness.readable
        ends.there.send(b"x")


async def test_the_peers_end_wakes_both_and_stays_known(ends: Ends) -> None:
    ends.fill()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_readable, ends.readiness)
        nursery.start_soon(ends.readiness.wait_writable)
        await trio.testing.wait_all_tasks_blocked()
        ends.there.close()
    assert ends.readiness.hung_up
    assert ends.readiness.readable
    assert ends.readiness.writable


async def test_end_of_what_the_peer_sends_is_known_while_it_may_still_receive(ends: Ends) -> None:
    ends.there.send(b"x")
    ends.there.shutdown(socket.SHUT_WR)
    await wait_readable(ends.readiness)
    assert ends.readiness.hung_up


@pytest.mark.parametrize("name", ["EPOLLRDHUP", "EPOLLHUP", "EPOLLERR"])
async def test_end_and_errors_wake_both_even_alone(ends: Ends, name: str) -> None:
    ends.fill()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_readable, ends.readiness)
        nursery.start_soon(ends.readiness.wait_writable)
        await trio.testing.wait_all_tasks_blocked()
        ends.readiness.notify(getattr(select, name))
    assert ends.readiness.hung_up
    assert ends.readiness.readable
    assert ends.readiness.writable


async def test_reader_can_be_woken_for_other_reasons(ends: Ends) -> None:
    ends.readiness.wake_reader()  # nobody is there: harmless
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_readable, ends.readiness)
        await trio.testing.wait_all_tasks_blocked()
        ends.readiness.wake_reader()
    assert not ends.readiness.readable


async def test_closing_wakes_both_and_forgets_the_socket(ends: Ends) -> None:
    ends.fill()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_readable, ends.readiness)
        nursery.start_soon(ends.readiness.wait_writable)
        await trio.testing.wait_all_tasks_blocked()
        ends.readiness.close()
    hub = _epoll._hub.get()
    assert ends.here.fileno() not in hub.registered
    # Registered anew, it must not be refused as known.
    ends.readiness = register(ends.here.fileno())
    assert ends.readiness._watched


async def test_cancelled_waits_leave_nothing_behind(ends: Ends) -> None:
    ends.fill()
    with trio.move_on_after(0):
        await ends.readiness.wait_readable()
    with trio.move_on_after(0):
        await ends.readiness.wait_writable()
    ends.there.send(b"x")
    ends.empty()
    await wait_readable(ends.readiness)
    assert ends.readiness.readable


async def test_task_whose_wait_was_cancelled_is_not_woken_up_from_another(ends: Ends) -> None:
    ends.fill()
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def sleep_on() -> None:
            for wait in (ends.readiness.wait_readable, ends.readiness.wait_writable):
                with trio.move_on_after(0):
                    await wait()
            await trio.sleep_forever()

        await trio.testing.wait_all_tasks_blocked()
        ends.there.send(b"x")
        ends.empty()
        await trio.testing.wait_all_tasks_blocked()
        assert nursery.child_tasks
        nursery.cancel_scope.cancel()
    assert ends.readiness.readable


async def test_socket_that_was_closed_has_no_bytes_waiting(ends: Ends) -> None:
    ends.there.send(b"four")
    assert ends.readiness.bytes_waiting() == 4
    ends.readiness.close()
    ends.here.close()
    assert ends.readiness.bytes_waiting() == 0


async def test_socket_that_the_epoll_has_no_room_for_is_waited_for_alone(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        closed = False

        def register(self, _fd: int, _events: int) -> None:
            raise OSError(28, "No space left on device")

    hub = _epoll._hub.get()
    await trio.testing.wait_all_tasks_blocked()  # its task has the real one now
    here, there = socket.socketpair()
    with here, there, monkeypatch.context() as patch:
        patch.setattr(hub, "epoll", Full())
        readiness = register(here.fileno())
        there.send(b"x")
        await wait_readable(readiness)
        assert readiness.readable
        readiness.close()


async def test_closing_twice_does_no_harm_to_who_has_the_descriptor_by_then(ends: Ends) -> None:
    before = ends.readiness
    before.close()
    ends.readiness = register(ends.here.fileno())
    before.close()
    ends.there.send(b"x")
    await wait_readable(ends.readiness)
    assert ends.readiness.readable


async def test_event_of_a_descriptor_that_nobody_knows_is_passed_over(ends: Ends) -> None:
    here, there = socket.socketpair()
    with here, there:
        register(here.fileno())
        # As if its owner had been collected, while a forked process still has the socket.
        del _epoll._hub.get().registered[here.fileno()]
        there.send(b"x")
        ends.there.send(b"x")
        await wait_readable(ends.readiness)
    assert ends.readiness.readable


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_every_run_has_its_own_epoll_and_closes_it() -> None:
    hubs = []

    async def main() -> None:
        here, there = socket.socketpair()
        with here, there:
            readiness = register(here.fileno())
            hubs.append(_epoll._hub.get())
            there.send(b"x")
            await wait_readable(readiness)
            readiness.close()

    before = open_descriptors()
    trio.run(main)
    trio.run(main)
    assert open_descriptors() == before
    assert hubs[0] is not hubs[1]
    assert hubs[0].epoll.closed
    assert hubs[1].epoll.closed


def test_closing_after_the_run_is_harmless() -> None:
    left: list[tuple[socket.socket, socket.socket, Readiness]] = []

    async def main() -> None:
        here, there = socket.socketpair()
        left.append((here, there, register(here.fileno())))
        await trio.lowlevel.checkpoint()

    trio.run(main)
    ((here, there, readiness),) = left
    readiness.close()
    here.close()
    there.close()


async def test_as_long_as_there_is_something_trios_own_epoll_is_not_armed_again(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    armed = 0
    trios_own = trio.lowlevel.wait_readable

    async def counting(fd: int) -> None:
        nonlocal armed
        armed += 1
        await trios_own(fd)

    monkeypatch.setattr(trio.lowlevel, "wait_readable", counting)
    for _ in range(100):
        ends.there.send(b"x")
        await ends.readiness.wait_readable()
        ends.here.recv(1)
    assert armed < 90  # about half, for of the two tasks either may get its turn first


async def test_what_wakes_a_task_up_is_an_outcome_as_any_other() -> None:
    def generator() -> Generator[str, None, None]:
        yield "sent"

    async def asynchronous() -> AsyncGenerator[str, None]:
        yield "sent"

    assert _epoll._WAKE.send(generator()) == "sent"
    async with contextlib.aclosing(asynchronous()) as agen:
        assert await _epoll._WAKE.asend(agen) == "sent"


# -- a few sockets


@pytest.fixture
async def lone(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Ends]:
    """A registered socket that does not make a crowd."""
    monkeypatch.setattr(_epoll, "_FEW", 1)
    here, there = socket.socketpair()
    with here, there:
        here.setblocking(False)
        there.setblocking(False)
        lone = Ends(register(here.fileno()), here, there)
        yield lone
        lone.readiness.close()


async def test_lone_socket_is_waited_for_without_the_epoll(lone: Ends) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_readable, lone.readiness)
        await trio.testing.wait_all_tasks_blocked()
        lone.there.send(b"x")
    assert lone.readiness.readable
    assert not _epoll._hub.get().running


async def test_lone_reader_can_be_woken_up(lone: Ends) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_readable, lone.readiness)
        await trio.testing.wait_all_tasks_blocked()
        lone.readiness.wake_reader()
    assert not lone.readiness.readable
    lone.readiness.wake_reader()  # nobody is there
    lone.there.send(b"x")
    await wait_readable(lone.readiness)
    assert lone.readiness.readable


async def test_lone_wait_can_be_cancelled(lone: Ends) -> None:
    for wait in (lone.readiness.wait_readable, lone.readiness.wait_writable):
        lone.fill()
        with trio.CancelScope() as scope:
            scope.cancel()
            await wait()
        assert scope.cancelled_caught


async def test_nothing_is_woken_up_where_nobody_waits_any_more(
    lone: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    lone.there.send(b"x")
    await wait_readable(lone.readiness)
    await lone.readiness.wait_writable()
    woken: list[object] = []
    monkeypatch.setattr(trio.lowlevel, "notify_closing", woken.append)
    lone.readiness.wake_reader()
    lone.readiness.close()
    assert woken == []


async def test_closing_wakes_who_waits_to_write_to_a_lone_socket(lone: Ends) -> None:
    lone.fill()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lone.readiness.wait_writable)
        await trio.testing.wait_all_tasks_blocked()
        lone.readiness.close()
    assert not lone.readiness.writable


async def test_lone_writer_goes_on_when_there_is_room(lone: Ends) -> None:
    lone.fill()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lone.readiness.wait_writable)
        await trio.testing.wait_all_tasks_blocked()
        assert not lone.readiness.writable
        lone.empty()
    assert lone.readiness.writable


async def test_lone_writer_sleeps_on_when_the_reader_is_woken_up(lone: Ends) -> None:
    lone.fill()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_readable, lone.readiness)

        @nursery.start_soon
        async def write() -> None:
            await lone.readiness.wait_writable()
            assert lone.readiness.writable

        await trio.testing.wait_all_tasks_blocked()
        lone.readiness.wake_reader()
        await trio.testing.wait_all_tasks_blocked()
        lone.readiness.wake_reader()  # only the writer is there
        await trio.testing.wait_all_tasks_blocked()
        assert not lone.readiness.writable
        lone.empty()


async def test_closing_wakes_both_who_wait_for_a_lone_socket(lone: Ends) -> None:
    lone.fill()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_readable, lone.readiness)
        nursery.start_soon(lone.readiness.wait_writable)
        await trio.testing.wait_all_tasks_blocked()
        lone.readiness.close()
    assert not lone.readiness.readable
    assert not lone.readiness.writable


async def test_socket_joins_the_crowd_when_it_waits_next(lone: Ends, ends: Ends) -> None:
    assert len(_epoll._hub.get().registered) == 2
    lone.there.send(b"x")
    await wait_readable(lone.readiness)  # by the epoll, which tells what is there already
    assert lone.readiness.readable
    lone.here.recv(1)
    ends.readiness.close()
    lone.there.send(b"x")
    await wait_readable(lone.readiness)  # and stays there
    assert lone.readiness._watched
