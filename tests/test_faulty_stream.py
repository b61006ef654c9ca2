"""`FaultyStream` and `CuttingStream`: what fails where, what is raised, and what the peer sees."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import trio
import trio.testing
from conftest import Tls
from pairs import KINDS, read_exactly, read_to_end, tcp

from trio_bytetalk import Connection, LengthPrefixed, Server, open_connection
from trio_bytetalk.testing import Cut, CuttingStream, End, Fault, FaultyStream, Reset, Stall

# -- as any stream of Trio's


async def faultless() -> tuple[FaultyStream, FaultyStream]:
    left, right = trio.testing.memory_stream_pair()
    return FaultyStream(left), FaultyStream(right)


async def faultless_and_clogged() -> tuple[FaultyStream, FaultyStream]:
    left, right = trio.testing.lockstep_stream_pair()
    return FaultyStream(left), FaultyStream(right)


async def cut_everywhere() -> tuple[FaultyStream, FaultyStream]:
    left, right = trio.testing.memory_stream_pair()
    cuts = [Cut(place) for place in range(1000)]
    return (
        FaultyStream(left, receiving=cuts, sending=cuts),
        FaultyStream(right, receiving=cuts, sending=cuts),
    )


@pytest.mark.parametrize("make", [faultless, cut_everywhere])
async def test_without_fatal_faults_it_is_a_stream_by_trios_own_standard(make: Any) -> None:
    await trio.testing.check_half_closeable_stream(make, faultless_and_clogged)


# -- receiving


def faulty(data: bytes, *receiving: Fault) -> FaultyStream:
    """A stream from which ``data`` can be read, and then its end."""
    _, theirs = trio.testing.memory_stream_pair()
    theirs.receive_stream.put_data(data)
    theirs.receive_stream.put_eof()
    return FaultyStream(theirs, receiving=receiving)


async def test_no_read_goes_over_a_cut() -> None:
    stream = faulty(b"abcdefghij", Cut(7), Cut(2), Cut(2), Cut(0), Cut(50))
    assert [chunk async for chunk in stream] == [b"ab", b"cdefg", b"hij"]


async def test_the_readers_own_maximum_moves_no_cut() -> None:
    stream = faulty(b"abcdefghij", Cut(4))
    assert await stream.receive_some(3) == b"abc"
    assert await stream.receive_some(3) == b"d"
    assert await stream.receive_some(100) == b"efghij"


async def test_a_read_that_stalls_goes_on_when_its_time_is_over(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stream = faulty(b"abcd", Stall(0, 5), Stall(2, 3), Stall(2, 4))
    assert await stream.receive_some() == b"ab"
    assert trio.current_time() == 5
    assert await stream.receive_some() == b"cd"
    assert trio.current_time() == 12
    assert await stream.receive_some() == b""


async def test_a_stall_is_for_ever_unless_told_otherwise(
    autojump_clock: trio.testing.MockClock,
) -> None:
    assert Stall(2) == Stall(2, math.inf)
    stream = faulty(b"abcd", Stall(2))
    assert await stream.receive_some() == b"ab"
    with trio.move_on_after(1_000_000) as scope:
        await stream.receive_some()
    assert scope.cancelled_caught


async def test_a_stall_goes_on_while_nobody_reads_and_a_cancelled_read_loses_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stream = faulty(b"abcd", Cut(2), Stall(2, 10))
    with trio.CancelScope() as scope:
        scope.cancel()
        await stream.receive_some()
    assert await stream.receive_some() == b"ab"
    for time in (3, 6):
        with trio.move_on_at(time):
            await stream.receive_some()
    await trio.sleep_until(8)
    assert await stream.receive_some() == b"cd"
    assert trio.current_time() == 10


@pytest.mark.parametrize("kind", KINDS)
async def test_a_truncated_stream_looks_like_its_end_and_its_rest_is_never_seen(kind: str) -> None:
    left, right = KINDS[kind]()
    async with left, FaultyStream(right, receiving=[End(3)]) as stream:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(left.send_all, b"abcdef")
            assert await read_to_end(stream) == b"abc"
            assert await stream.receive_some() == b""
            nursery.cancel_scope.cancel()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, b"sending goes on")
            assert await read_exactly(left, 15) == b"sending goes on"


async def end_or_break(stream: trio.abc.ReceiveStream) -> bytes:
    """What can be read until there is nothing more, for whatever reason."""
    data = b""
    with contextlib.suppress(trio.BrokenResourceError):
        async for chunk in stream:
            data += chunk
    return data


@pytest.mark.parametrize("kind", KINDS)
async def test_a_reset_breaks_both_directions_and_the_peer_notices(kind: str) -> None:
    left, right = KINDS[kind]()
    async with (
        left,
        FaultyStream(right, receiving=[Reset(3)]) as stream,
        trio.open_nursery() as nursery,
    ):

        @nursery.start_soon
        async def peer() -> None:
            with contextlib.suppress(trio.BrokenResourceError):
                await left.send_all(b"abcdef")
            assert await end_or_break(left) == b""

        assert await read_exactly(stream, 3) == b"abc"
        for call in (
            stream.receive_some,
            stream.send_eof,
            stream.wait_send_all_might_not_block,
            functools.partial(stream.send_all, b"more"),
        ):
            with pytest.raises(trio.BrokenResourceError, match="reset by peer") as caught:
                await call()
            assert type(caught.value.__cause__) is ConnectionResetError


async def test_the_peer_of_a_tcp_socket_gets_a_reset() -> None:
    left, right = tcp()
    async with left, FaultyStream(right, receiving=[Reset(3)]) as stream:
        await left.send_all(b"abc")
        assert await read_exactly(stream, 3) == b"abc"
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        with pytest.raises(trio.BrokenResourceError) as caught:
            await left.receive_some()
        assert type(caught.value.__cause__) is ConnectionResetError


async def test_a_reset_by_a_stream_whose_socket_was_closed_beneath_it() -> None:
    left, right = tcp()
    async with left, FaultyStream(right, receiving=[Reset(0)]) as stream:
        await right.aclose()
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()


# -- sending


@pytest.mark.parametrize("kind", KINDS)
async def test_a_half_close_that_nobody_asked_for(kind: str) -> None:
    left, right = KINDS[kind]()
    async with left, FaultyStream(right, sending=[Cut(2), End(4)]) as stream:
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def send() -> None:
                with pytest.raises(trio.BrokenResourceError, match="Broken pipe") as caught:
                    await stream.send_all(b"abcdef")
                assert type(caught.value.__cause__) is BrokenPipeError
                for call in (
                    functools.partial(stream.send_all, b""),
                    stream.wait_send_all_might_not_block,
                ):
                    with pytest.raises(trio.BrokenResourceError):
                        await call()
                await stream.send_eof()

            assert await read_to_end(left) == b"abcd"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(left.send_all, b"receiving goes on")
            assert await read_exactly(stream, 17) == b"receiving goes on"


@pytest.mark.parametrize("fault", [End(4), Reset(4)])
async def test_what_fails_behind_the_last_byte_fails_at_once_and_its_sender_had_success(
    fault: Fault,
) -> None:
    left, right = trio.testing.memory_stream_pair()
    stream = FaultyStream(right, sending=[fault])
    await stream.send_all(b"abc")
    await stream.send_all(b"d")
    assert await read_to_end(left) == b"abcd"
    with pytest.raises(trio.BrokenResourceError):
        await stream.send_all(b"e")


async def test_an_end_that_comes_before_all_is_met_by_half_closing_too() -> None:
    left, right = trio.testing.memory_stream_pair()
    stream = FaultyStream(right, sending=[End(0)])
    await stream.send_eof()
    assert await left.receive_some() == b""
    with pytest.raises(trio.BrokenResourceError):
        await stream.send_all(b"")


async def test_what_is_sent_is_cut_and_stalls(autojump_clock: trio.testing.MockClock) -> None:
    left, right = trio.testing.lockstep_stream_pair()
    stream = FaultyStream(right, sending=[Cut(2), Stall(4, 7), Stall(6, 1), Stall(6, 2)])
    came: list[tuple[float, bytes]] = []
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def read() -> None:
            came.extend([(trio.current_time(), bytes(chunk)) async for chunk in left])

        await stream.send_all(b"abcdef")
        assert trio.current_time() == 7
        await stream.wait_send_all_might_not_block()
        assert trio.current_time() == 10
        await stream.send_eof()
    assert came == [(0, b"ab"), (0, b"cd"), (7, b"ef")]


async def test_a_reset_while_sending_breaks_a_read_that_waits_or_stalls(
    autojump_clock: trio.testing.MockClock,
) -> None:
    for receiving in ([], [Stall(0)]):
        for kind in KINDS:
            left, right = KINDS[kind]()
            stream = FaultyStream(right, receiving=receiving, sending=[Reset(3)])
            async with left, stream, trio.open_nursery() as nursery:

                @nursery.start_soon
                async def read(stream: FaultyStream = stream) -> None:
                    with pytest.raises(trio.BrokenResourceError, match="reset"):
                        await stream.receive_some()

                nursery.start_soon(end_or_break, left)
                await trio.testing.wait_all_tasks_blocked()
                with pytest.raises(trio.BrokenResourceError, match="reset"):
                    await stream.send_all(b"abcdef")


# -- closing, and wrong use


Call = Callable[[FaultyStream], Any]
SENDING: list[Call] = [
    lambda stream: stream.send_all(b"x"),
    lambda stream: stream.send_eof(),
    lambda stream: stream.wait_send_all_might_not_block(),
]


@pytest.mark.parametrize("call", [lambda stream: stream.receive_some(), *SENDING])
async def test_a_task_that_stalls_is_told_of_the_closing_and_no_other_may_join_it(
    autojump_clock: trio.testing.MockClock, call: Call
) -> None:
    _, right = trio.testing.memory_stream_pair()
    stream = FaultyStream(right, receiving=[Stall(0)], sending=[Stall(0)])
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def wait() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await call(stream)

        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError, match=r"another task is (receiv|send)ing"):
            await call(stream)
        await stream.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await call(stream)


async def test_a_stream_closed_beneath_it_is_closed() -> None:
    _, right = trio.testing.memory_stream_pair()
    stream = FaultyStream(right)
    await right.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await stream.receive_some()


@pytest.mark.parametrize("kind", [Cut, Stall, End, Reset])
@pytest.mark.parametrize(("after", "error"), [(-1, ValueError), (1.5, TypeError)])
def test_a_fault_nowhere_is_refused(kind: Any, after: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"^after must be .*0 or more.*, not {after}"):
        kind(after)


@pytest.mark.parametrize(("seconds", "error"), [(0, ValueError), ("soon", TypeError)])
def test_a_stall_of_no_time_is_refused(seconds: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"^seconds must be"):
        Stall(0, seconds)


@pytest.mark.parametrize("direction", ["receiving", "sending"])
def test_what_is_no_fault_is_refused(direction: str) -> None:
    left, _ = trio.testing.memory_stream_pair()
    with pytest.raises(TypeError, match="a fault must be a Cut, Stall, End or Reset, not 5"):
        FaultyStream(left, **{direction: [5]})  # type: ignore[arg-type] # which is the point


@pytest.mark.parametrize(
    ("max_bytes", "error"), [(0, ValueError), (-1, ValueError), ("five", TypeError)]
)
async def test_a_maximum_that_is_none_is_refused(max_bytes: Any, error: type[Exception]) -> None:
    stream = faulty(b"abc")
    with pytest.raises(error, match=f"^max_bytes must be .*, not {max_bytes!r}"):
        await stream.receive_some(max_bytes)
    assert await stream.receive_some() == b"abc"


# -- by chance


def test_the_same_seed_has_the_same_faults_and_they_are_all_met_with() -> None:
    left, _ = trio.testing.memory_stream_pair()
    kinds = set()
    for seed in range(50):
        stream = FaultyStream.random(left, seed, size=50, seconds=10)
        again = FaultyStream.random(left, seed, size=50, seconds=10)
        assert (stream.receiving, stream.sending) == (again.receiving, again.sending)
        assert repr(stream.receiving) in repr(stream)
        for plan in (stream.receiving, stream.sending):
            assert all(0 <= fault.after <= 50 for fault in plan)
            stalls = {fault.seconds for fault in plan if isinstance(fault, Stall)}
            assert all(0 < seconds <= 10 for seconds in stalls - {math.inf})
            assert math.inf not in stalls or not any(isinstance(f, End | Reset) for f in plan)
            kinds |= {type(fault) for fault in plan} | stalls & {math.inf}
    assert kinds == {Cut, Stall, End, Reset, math.inf}
    assert FaultyStream.random(left, 1).receiving != FaultyStream.random(left, 2).receiving


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"size": -1}, ValueError, "size must be 0 or more bytes, not -1"),
        ({"size": 1.5}, TypeError, "size must be a whole number of bytes"),
        ({"seconds": 0}, ValueError, "seconds must be more than 0 seconds, not 0"),
        ({"seconds": math.inf}, ValueError, "seconds must be finite; some stalls last for ever"),
        ({"seconds": "1"}, TypeError, "seconds must be a number of seconds, not '1'"),
    ],
)
def test_wrong_odds_are_refused_by_name(
    arguments: dict[str, Any], error: type[Exception], words: str
) -> None:
    left, _right = trio.testing.memory_stream_pair()
    with pytest.raises(error, match=words):
        FaultyStream.random(left, 1, **arguments)


async def test_of_a_cancelled_write_nothing_is_counted() -> None:
    left, right = trio.testing.memory_stream_pair()
    stream = FaultyStream(left, sending=[End(5)])
    hook = left.send_stream.send_all_hook
    left.send_stream.send_all_hook = trio.sleep_forever  # when it is all sent
    async with trio.open_nursery() as writing:
        writing.start_soon(stream.send_all, b"abc")
        await trio.testing.wait_all_tasks_blocked()
        writing.cancel_scope.cancel()
    left.send_stream.send_all_hook = hook
    await stream.send_all(b"12345")
    assert await read_to_end(right) == b"abc12345"


# -- under TLS


async def test_a_truncated_tls_stream_is_no_clean_end(tls: Tls) -> None:
    left, right = trio.testing.memory_stream_pair()
    server = tls.at_server(left)
    client = tls.at_client(FaultyStream(right, receiving=[End(5000)]))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.send_all, bytes(100_000))
        with pytest.raises(trio.BrokenResourceError):
            await read_to_end(client)


# -- CuttingStream


def cutting(
    data: bytes, *, sizes: Iterable[int] = (), delays: Iterable[float] = ()
) -> CuttingStream:
    """A stream from which ``data`` can be read, and then its end."""
    _, theirs = trio.testing.memory_stream_pair()
    theirs.receive_stream.put_data(data)
    theirs.receive_stream.put_eof()
    return CuttingStream(theirs, sizes=sizes, delays=delays)


async def test_reads_are_cut_as_told_and_then_no_more() -> None:
    stream = cutting(b"abcdefghij", sizes=[1, 2, 100])
    assert [chunk async for chunk in stream] == [b"a", b"bc", b"defghij"]
    stream = cutting(b"abcdefghij", sizes=[4])
    assert [chunk async for chunk in stream] == [b"abcd", b"efghij"]
    stream = cutting(b"abcdefghij")
    assert [chunk async for chunk in stream] == [b"abcdefghij"]


async def test_endless_numbers_cut_every_read() -> None:
    stream = cutting(b"abcdefg", sizes=itertools.cycle([1, 2]))
    assert [chunk async for chunk in stream] == [b"a", b"bc", b"d", b"ef", b"g"]
    stream = cutting(b"abc", sizes=itertools.repeat(1))
    assert [chunk async for chunk in stream] == [b"a", b"b", b"c"]


async def test_the_readers_own_maximum_counts_too() -> None:
    stream = cutting(b"abcdefghij", sizes=[3, 3])
    assert await stream.receive_some(2) == b"ab"
    assert await stream.receive_some(100) == b"cde"
    assert await stream.receive_some(4) == b"fghi"
    assert await stream.receive_some() == b"j"
    assert await stream.receive_some() == b""


async def test_reads_are_delayed_as_told(autojump_clock: trio.testing.MockClock) -> None:
    stream = cutting(b"abcd", sizes=itertools.repeat(1), delays=[3, 0, 5])
    times = [trio.current_time() async for _ in stream]
    assert times == [3, 3, 8, 8]


async def test_a_cancelled_read_loses_nothing(autojump_clock: trio.testing.MockClock) -> None:
    stream = cutting(b"abcd", sizes=itertools.repeat(2), delays=[10, 0, 10])
    with trio.move_on_after(1):
        await stream.receive_some()
    assert await stream.receive_some() == b"ab"
    with trio.move_on_after(1):
        await stream.receive_some()
    with trio.CancelScope() as scope:
        scope.cancel()
        await stream.receive_some()
    assert await stream.receive_some() == b"cd"


async def test_a_cancelled_read_uses_up_no_size() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    stream = CuttingStream(theirs, sizes=[2, 3])
    with trio.CancelScope() as scope:
        scope.cancel()
        await stream.receive_some()
    await ours.send_all(b"abcdef")
    assert [await stream.receive_some() for _ in range(3)] == [b"ab", b"cde", b"f"]


@pytest.mark.parametrize("size", [0, -1])
async def test_sizes_that_would_look_like_the_end_are_refused(size: int) -> None:
    stream = cutting(b"abcd", sizes=[size])
    with pytest.raises(ValueError, match=f"sizes must be 1 or more, not {size}"):
        await stream.receive_some()
    with pytest.raises(ValueError, match=f"max_bytes must be 1 or more, not {size}"):
        await stream.receive_some(size)
    assert await stream.receive_some() == b"abcd"


async def test_the_end_is_an_end_whatever_the_sizes() -> None:
    stream = cutting(b"", sizes=[5, 5])
    assert await stream.receive_some() == b""
    assert await stream.receive_some() == b""


async def test_what_is_written_goes_through_and_so_do_half_closing_and_closing() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    async with CuttingStream(ours, sizes=itertools.repeat(1)) as stream:
        await stream.wait_send_all_might_not_block()
        await stream.send_all(b"hello")
        assert await theirs.receive_some() == b"hello"
        await stream.send_eof()
        assert await theirs.receive_some() == b""
        await theirs.send_all(b"yes")
        assert await stream.receive_some() == b"y"
    with pytest.raises(trio.BrokenResourceError):
        await theirs.send_all(b"?")


async def echo(connection: Connection[Any, Any]) -> None:
    async for message in connection:
        await connection.send(message)


async def test_a_connection_over_a_stream_cut_to_single_bytes() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    cut = CuttingStream(theirs, sizes=itertools.repeat(1))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Server(echo).serve_stream, cut)
        async with open_connection(ours, codec=LengthPrefixed()) as connection:
            for message in (b"", b"hello", b"x" * 300):
                await connection.send(message)
                assert await connection.receive() == message
