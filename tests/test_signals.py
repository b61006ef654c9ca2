"""`stop_on_signals`: real signals, sent to this process."""

from __future__ import annotations

import logging
import math
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing
from conftest import fields_of
from pairs import memory

from trio_bytetalk import Connection, Server, open_connection, stop_on_signals

SIGNALS = (signal.SIGINT, signal.SIGTERM)

BytesConnection = Connection[bytes, bytes]


async def echo(connection: BytesConnection) -> None:
    async for message in connection:
        await connection.send(message)


async def never_ends(_connection: BytesConnection) -> None:
    await trio.sleep_forever()


def handlers() -> list[Any]:
    return [signal.getsignal(number) for number in SIGNALS]


@pytest.fixture(params=SIGNALS, ids=lambda number: number.name)
def number(request: pytest.FixtureRequest) -> signal.Signals:
    result: signal.Signals = request.param
    return result


async def test_the_first_signal_stops_in_order(
    number: signal.Signals, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    begin = trio.Event()

    async def late_echo(connection: BytesConnection) -> None:
        await begin.wait()
        await echo(connection)

    before = handlers()
    server = Server(late_echo)
    ours, theirs = memory()
    with stop_on_signals(server, timeout=None):
        nursery.start_soon(server.serve_stream, theirs)
        async with open_connection(ours) as connection:
            messages = [b"1", b"2", b"3"]
            for message in messages:
                await connection.send(message)
            await trio.testing.wait_all_tasks_blocked()
            signal.raise_signal(number)
            await trio.testing.wait_all_tasks_blocked()
            begin.set()
            assert [message async for message in connection] == messages
        await trio.testing.wait_all_tasks_blocked()
        assert not server.is_running
    assert handlers() == before
    assert caplog.messages == [f"{number.name}: stopping; once more to stop at once"]
    said = {"event": "stopping", "signal": number.name, "timeout": None}
    assert [*map(fields_of, caplog.records)] == [said]


@pytest.mark.parametrize("second", SIGNALS)
@pytest.mark.parametrize("at_once", [False, True])
async def test_a_second_signal_stops_at_once(
    number: signal.Signals,
    second: signal.Signals,
    at_once: bool,
    autojump_clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    server = Server(never_ends)
    began = trio.current_time()
    with stop_on_signals(server, timeout=math.inf):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.serve_stream, memory()[0])
            await trio.testing.wait_all_tasks_blocked()
            signal.raise_signal(number)
            if not at_once:
                await trio.testing.wait_all_tasks_blocked()
                assert server.is_running
            signal.raise_signal(second)
    assert trio.current_time() == began
    assert caplog.messages == [
        f"{number.name}: stopping; once more to stop at once",
        f"{second.name}: stopping at once",
    ]
    assert [*map(fields_of, caplog.records)] == [
        {"event": "stopping", "signal": number.name, "timeout": None},
        {"event": "stopping", "signal": second.name, "timeout": 0},
    ]


@pytest.mark.parametrize("seconds", [0, 7])
async def test_who_is_not_done_in_time_is_cancelled(
    seconds: int, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    server = Server(never_ends)
    began = trio.current_time()
    with stop_on_signals(server, timeout=seconds):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.serve_stream, memory()[0])
            await trio.testing.wait_all_tasks_blocked()
            signal.raise_signal(signal.SIGTERM)
    assert trio.current_time() == began + seconds
    how = "stopping; once more to stop at once" if seconds else "stopping at once"
    assert caplog.messages == [f"SIGTERM: {how}"]
    assert [fields_of(record)["timeout"] for record in caplog.records] == [seconds]


async def test_several_servers_stop_together(autojump_clock: trio.testing.MockClock) -> None:
    servers = [Server(echo), Server(echo), Server(echo)]
    with stop_on_signals(*servers):
        async with trio.open_nursery() as nursery:
            for server in servers[1:]:  # one may not be running
                nursery.start_soon(server.serve_stream, memory()[0])
            await trio.testing.wait_all_tasks_blocked()
            signal.raise_signal(signal.SIGTERM)


async def test_a_signal_during_a_servers_start_stops_it(
    nursery: trio.Nursery, number: signal.Signals
) -> None:
    server = Server(echo)
    with stop_on_signals(server):

        @nursery.start_soon
        async def send_signal() -> None:
            assert server.is_running
            signal.raise_signal(number)

        await server.serve_tcp(0, host="127.0.0.1")


async def test_while_no_server_is_running_a_signal_does_what_it_did_before(
    number: signal.Signals,
) -> None:
    heard: list[int] = []
    before = signal.signal(number, lambda number, _frame: heard.append(number))
    try:
        with stop_on_signals(Server(echo)):
            signal.raise_signal(number)
            signal.raise_signal(number)
            assert heard == [number, number]
    finally:
        signal.signal(number, before)


def test_ctrl_c_while_no_server_is_running_is_a_keyboard_interrupt() -> None:
    async def main() -> None:
        with stop_on_signals(Server(echo)):
            signal.raise_signal(signal.SIGINT)
            raise AssertionError

    with pytest.raises(KeyboardInterrupt):
        trio.run(main)


async def test_a_signal_after_the_servers_have_stopped_for_one_is_harmless(
    number: signal.Signals, nursery: trio.Nursery
) -> None:
    server = Server(echo)
    with stop_on_signals(server):
        nursery.start_soon(server.serve_stream, memory()[0])
        await trio.testing.wait_all_tasks_blocked()
        signal.raise_signal(number)
        while server.is_running:
            await trio.lowlevel.checkpoint()
        signal.raise_signal(number)
        await trio.testing.wait_all_tasks_blocked()


def test_a_signal_after_the_end_of_trio_is_harmless() -> None:
    """As it may come between the run's end and the block's, where a task is given up."""
    server = Server(echo)
    block = stop_on_signals(server)

    async def main() -> None:
        block.__enter__()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.serve_stream, memory()[0])
            await trio.testing.wait_all_tasks_blocked()
            signal.raise_signal(signal.SIGTERM)

    trio.run(main)
    signal.raise_signal(signal.SIGTERM)
    block.__exit__(None, None, None)


@pytest.mark.parametrize("third", SIGNALS)
async def test_from_the_third_on_a_signal_does_what_it_did_before(
    nursery: trio.Nursery, third: signal.Signals
) -> None:
    """For a handler that no cancellation ends must not keep the program from being ended."""
    end = trio.Event()

    async def shielded(_connection: BytesConnection) -> None:
        with trio.CancelScope(shield=True):
            await end.wait()

    heard: list[int] = []
    before = signal.signal(third, lambda number, _frame: heard.append(number))
    server = Server(shielded)
    try:
        with stop_on_signals(server):
            nursery.start_soon(server.serve_stream, memory()[0])
            await trio.testing.wait_all_tasks_blocked()
            for times in (0, 0, 1, 2):
                signal.raise_signal(third)
                await trio.testing.wait_all_tasks_blocked()
                assert heard == [third] * times
                assert server.is_running
            end.set()
            await trio.testing.wait_all_tasks_blocked()
            assert not server.is_running
    finally:
        end.set()
        signal.signal(third, before)


def test_from_the_third_on_ctrl_c_ends_a_handler_that_spins() -> None:
    interrupted = False

    async def spin(_connection: BytesConnection) -> None:
        nonlocal interrupted
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            interrupted = True
            raise

    async def main() -> None:
        server = Server(spin)
        with stop_on_signals(server):
            await server.serve_stream(memory()[0])

    trio.run(main)  # what the first two have asked for has its way now
    assert interrupted


@pytest.mark.parametrize("how", ["in order", "at once"])
async def test_a_server_started_again_begins_anew(
    nursery: trio.Nursery, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    said = []
    server = Server(echo)
    with stop_on_signals(server, timeout=None):
        for _ in range(3):
            ours, theirs = memory()
            nursery.start_soon(server.serve_stream, theirs)
            async with open_connection(ours) as connection:
                await trio.testing.wait_all_tasks_blocked()
                await connection.send(b"last words")
                signal.raise_signal(signal.SIGTERM)
                said.append("SIGTERM: stopping; once more to stop at once")
                if how == "at once":
                    signal.raise_signal(signal.SIGTERM)
                    said.append("SIGTERM: stopping at once")
                await trio.testing.wait_all_tasks_blocked()
                if how == "in order":
                    assert await connection.receive() == b"last words"
            await trio.testing.wait_all_tasks_blocked()
            assert not server.is_running
    assert caplog.messages == said


async def test_a_server_that_is_stopping_for_another_reason_is_not_stopped_at_once(
    nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    server = Server(never_ends)
    with stop_on_signals(server):
        nursery.start_soon(server.serve_stream, memory()[0])
        await trio.testing.wait_all_tasks_blocked()
        server.stop(None)
        signal.raise_signal(signal.SIGTERM)
        await trio.testing.wait_all_tasks_blocked()
        assert server.is_running
        signal.raise_signal(signal.SIGTERM)
        await trio.testing.wait_all_tasks_blocked()
    assert caplog.messages == [
        "SIGTERM: stopping; once more to stop at once",
        "SIGTERM: stopping at once",
    ]


async def test_one_block_at_a_time() -> None:
    before = handlers()
    with stop_on_signals(Server()):
        within = handlers()
        with pytest.raises(RuntimeError, match="give all servers"), stop_on_signals(Server()):
            raise AssertionError
        assert handlers() == within
    assert handlers() == before


async def test_a_handler_that_came_in_its_place_stays(number: signal.Signals) -> None:
    heard: list[int] = []
    before = signal.signal(number, lambda number, _frame: heard.append(number))
    try:
        with stop_on_signals(Server()):
            ours = signal.getsignal(number)
            signal.signal(number, signal.default_int_handler)
        assert signal.getsignal(number) is signal.default_int_handler
        # Who put it there may now put back what was before that; it must do no harm, and a new
        # block must not take it for one that is at work.
        signal.signal(number, ours)
        signal.raise_signal(number)
        with stop_on_signals(Server()):
            signal.raise_signal(number)
        assert signal.getsignal(number) == ours
        assert heard == [number, number]
    finally:
        signal.signal(number, before)


async def test_what_is_ignored_stays_ignored(number: signal.Signals, nursery: trio.Nursery) -> None:
    """As a shell without job control has it for what it starts in the background."""
    before = signal.signal(number, signal.SIG_IGN)
    server = Server(never_ends)
    try:
        with stop_on_signals(server):
            nursery.start_soon(server.serve_stream, memory()[0])
            await trio.testing.wait_all_tasks_blocked()
            signal.raise_signal(number)
            await trio.testing.wait_all_tasks_blocked()
            assert server.is_running
            server.stop(0)
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)


async def test_a_handler_that_could_not_be_put_back_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # As if a library in C had installed it, which only another library in C could do here.
    monkeypatch.setattr(signal, "getsignal", lambda _number: None)
    with pytest.raises(RuntimeError, match="SIGINT has a handler that was not"):
        stop_on_signals(Server()).__enter__()


async def test_an_error_comes_out_of_the_block_as_it_is() -> None:
    before = handlers()
    with pytest.raises(OSError, match="as it is"), stop_on_signals(Server()):
        raise OSError("as it is")
    assert handlers() == before


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: stop_on_signals(), TypeError, "needs one server or more"),
        (lambda: stop_on_signals("server"), TypeError, "needs a Server, not 'server'"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: stop_on_signals(Server(), timeout=-1), ValueError, "timeout must be 0 or more"),
        (lambda: stop_on_signals(Server(), timeout=math.nan), ValueError, "timeout must be 0"),
        (lambda: stop_on_signals(Server(), timeout="5"), TypeError, "timeout must be a number"),  # type: ignore[arg-type]  # wrong on purpose
    ],
)
async def test_a_wrong_argument_is_refused_by_name(
    call: Callable[[], Any], error: type[Exception], words: str
) -> None:
    before = handlers()
    with pytest.raises(error, match=words), call():
        raise AssertionError
    assert handlers() == before


def test_another_thread_is_told_that_it_hears_no_signals() -> None:
    errors: list[BaseException] = []

    async def main() -> None:
        with stop_on_signals(Server()):
            raise AssertionError

    def run() -> None:
        try:
            trio.run(main)
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    [error] = errors
    assert "stop_on_signals works in the main thread only" in str(error)


def test_outside_of_trio_there_is_nothing_to_stop() -> None:
    before = handlers()
    with pytest.raises(RuntimeError), stop_on_signals(Server()):
        raise AssertionError
    assert handlers() == before
