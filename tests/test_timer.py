"""Timers, in virtual time: set, put off, stopped, forgotten."""

from __future__ import annotations

import gc
import math
import random
import weakref
from functools import partial

import trio
import trio.testing

from trio_bytetalk._timer import Timer


async def test_expires_at_its_deadline(autojump_clock: trio.testing.MockClock) -> None:
    expired: list[float] = []
    timer = Timer(lambda: expired.append(trio.current_time()))
    start = trio.current_time()
    timer.start(start + 5)
    await trio.sleep(4)
    assert expired == []
    await trio.sleep(2)
    assert expired == [start + 5]
    assert timer.deadline == math.inf


async def test_put_off_again_and_again_it_expires_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    expired: list[float] = []
    timer = Timer(lambda: expired.append(trio.current_time()))
    start = trio.current_time()
    for tenth in range(100):
        timer.start(start + tenth / 10 + 3)
        await trio.sleep(0.1)
    assert expired == []
    await trio.sleep(10)
    assert [round(when - start, 6) for when in expired] == [12.9]


async def test_may_be_set_to_an_earlier_time(autojump_clock: trio.testing.MockClock) -> None:
    expired: list[float] = []
    timer = Timer(lambda: expired.append(trio.current_time()))
    start = trio.current_time()
    timer.start(start + 100)
    timer.start(start + 1)
    await trio.sleep(2)
    assert expired == [start + 1]
    # What is left of the first deadline is not taken for one.
    await trio.sleep(200)
    assert expired == [start + 1]


async def test_stopped_it_does_not_expire_and_can_be_started_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    expired: list[float] = []
    timer = Timer(lambda: expired.append(trio.current_time()))
    start = trio.current_time()
    timer.start(start + 1)
    timer.stop()
    await trio.sleep(2)
    assert expired == []
    timer.start(start + 3)
    await trio.sleep(2)
    assert expired == [start + 3]


async def test_of_many_timers_each_expires_in_its_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    expired: list[tuple[int, float]] = []
    start = trio.current_time()

    def expire(number: int) -> None:
        expired.append((number, trio.current_time() - start))

    for number in (3, 1, 2, 2):
        Timer(partial(expire, number)).start(start + number)
    await trio.sleep(10)
    assert expired == [(1, 1), (2, 2), (2, 2), (3, 3)]


async def test_a_deadline_in_the_past_expires_at_the_next_turn() -> None:
    event = trio.Event()
    Timer(event.set).start(trio.current_time() - 1)
    assert not event.is_set()
    with trio.fail_after(10):
        await event.wait()


async def test_infinity_never_comes(autojump_clock: trio.testing.MockClock) -> None:
    timer = Timer(lambda: None)
    timer.start(math.inf)
    await trio.sleep(10_000)
    assert timer.deadline == math.inf


async def test_forgotten_it_lets_go_of_its_owner_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    class Owner:
        def expire(self) -> None:
            raise AssertionError("forgotten, but called")

    owner = Owner()
    seen = weakref.ref(owner)
    timer = Timer(owner.expire)
    timer.start(trio.current_time() + 60)
    timer.forget()
    assert timer.deadline == math.inf
    del owner
    gc.collect()
    assert seen() is None
    timer.start(trio.current_time() + 1)  # harmless
    await trio.sleep(100)


async def test_any_number_of_timers_are_watched_by_one_task(
    autojump_clock: trio.testing.MockClock,
) -> None:
    Timer(lambda: None).start(trio.current_time() + 1)
    before = trio.lowlevel.current_statistics().tasks_living
    for number in range(10):
        Timer(lambda: None).start(trio.current_time() + number)
    assert trio.lowlevel.current_statistics().tasks_living == before


async def test_what_was_put_to_an_earlier_time_again_and_again_does_not_pile_up(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """As where a message that is not whole has a minute, and then there is a day to be idle."""
    day = 86_400
    timer = Timer(lambda: None)
    for _ in range(2000):
        timer.start(trio.current_time() + day)
        timer.start(trio.current_time() + 60)
        timer.start(trio.current_time() + day)
        await trio.sleep(61)
    assert len(gc.get_referrers(timer)) < 500


async def test_set_to_the_same_time_again_and_again_it_has_one_entry() -> None:
    timer = Timer(lambda: None)
    never_set = len(gc.get_referrers(timer))
    for deadline in (trio.current_time() + 1000, math.inf):
        for _ in range(50):
            timer.start(deadline)
    assert len(gc.get_referrers(timer)) == never_set + 1


async def test_forgotten_timers_do_not_wait_for_their_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    day = 86_400
    noise = random.Random(1)
    expired: list[int] = []
    others = [Timer(partial(expired.append, number)) for number in range(200)]
    forgotten = []
    start = trio.current_time()
    for number in noise.sample(range(200), 200):
        others[number].start(start + day + number)
        for _ in range(20):
            timer = Timer(lambda: None)
            timer.start(start + day + noise.random() * 200)
            forgotten.append(weakref.ref(timer))
            timer.forget()
            timer.forget()  # which is no more than once
    del timer
    assert sum(timer() is not None for timer in forgotten) < 500
    await trio.sleep(day - 1)
    for number in range(200):  # each at its time, though others have gone from between them
        assert len(expired) == number
        await trio.sleep_until(start + day + number + 0.5)
    assert expired == list(range(200))
