"""Under any plan of faults: each message once and in order, or it is said what broke, and where.

Hypothesis draws the plans. A server's own stream fails, in memory; or that of a peer at the other
end of a real socket, which the server serves in its fastest way; or a client's. Time is virtual:
what stalls for ever has to be ended by a limit, or the test fails.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from cancelling import own_tasks
from conftest import Tls
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs import Pair, Stream, frame, memory, tight_unix, unix

from trio_bytetalk import (
    ClientConnected,
    ClientDisconnected,
    CloseReason,
    Connection,
    Event,
    IdleTimeoutError,
    IncompleteMessageError,
    MessageReceived,
    MessageTimeoutError,
    SendTimeoutError,
    Server,
    _epoll,
    open_connection,
)
from trio_bytetalk.testing import Cut, End, Fault, FaultyStream, Reset, Stall

# The close_timeout is longer than the short stalls of a plan together, every other limit shorter
# than each of the long ones. An idle_timeout may count once more from the last reply.
LIMITS: dict[str, Any] = {
    "message_timeout": 50,
    "send_timeout": 50,
    "idle_timeout": 200,
    "close_timeout": 5,
    "write_buffer_size": 100,
}
SHORT, LONG, VERY_LONG = 1, 70, 1000

# In virtual seconds: more than all limits and stalls together, so whoever takes longer hangs.
PATIENCE = 100_000

places = st.integers(0, 40) | st.integers(0, 20_000)
cuts = st.builds(Cut, places)
stalls = st.builds(Stall, places, st.sampled_from([SHORT, SHORT, LONG, VERY_LONG])) | st.builds(
    Stall, places
)
plans = st.tuples(
    st.lists(cuts, max_size=6),
    st.lists(stalls, max_size=2),
    st.lists(st.builds(End, places) | st.builds(Reset, places), max_size=2),
).map(lambda faults: list(itertools.chain(*faults)))

sizes = st.lists(st.sampled_from([0, 1, 5, 30, 3000, 9000]), max_size=6)


def limits_for(*plans: Sequence[Fault]) -> dict[str, Any]:
    """With no ``idle_timeout`` where none is needed: that is the default, and a path of its own."""
    if any(isinstance(each, Stall) and each.seconds > LONG for plan in plans for each in plan):
        return LIMITS
    return {**LIMITS, "idle_timeout": None}


def messages_of(sizes: Sequence[int]) -> list[bytes]:
    """No two alike, if they have any bytes: one that comes twice is noticed."""
    return [bytes([number + 1]) * size for number, size in enumerate(sizes)]


def run(main: Callable[..., Awaitable[None]], *args: Any) -> None:
    """In virtual time, with a limit."""

    async def bounded() -> None:
        with trio.fail_after(PATIENCE):
            await main(*args)
            await trio.testing.wait_all_tasks_blocked()
            assert not {"trio_bytetalk: pump", "trio_bytetalk: announcer"} & set(own_tasks())

    trio.run(bounded, clock=trio.testing.MockClock(autojump_threshold=0))


@attrs.define
class Report:
    """What is known at the end of one side's connection."""

    sent: list[bytes]
    """By its peer, to it."""
    limits: dict[str, Any] = attrs.field(factory=LIMITS.copy)
    heard: list[bytes] = attrs.field(factory=list)
    reason: Any = None
    bytes_received: int = 0
    bytes_sent: int = 0
    peer_got: bytes = b""

    def note(self, connection: Connection[Any, Any]) -> None:
        self.reason = connection.close_reason
        numbers = connection.statistics()
        self.bytes_received, self.bytes_sent = numbers.bytes_received, numbers.bytes_sent
        assert numbers.messages_received == len(self.heard)

    @property
    def ends(self) -> list[int]:
        """How many bytes come before each message, and before the end."""
        return list(itertools.accumulate((4 + len(m) for m in self.sent), initial=0))

    def check(self, replies: Sequence[bytes]) -> None:
        """Nothing came twice, out of order, or altered; and no byte is left out of account."""
        assert self.heard == self.sent[: len(self.heard)]
        assert b"".join(map(frame, replies)).startswith(self.peer_got)
        whole = sum(end <= self.bytes_received for end in self.ends) - 1
        assert len(self.heard) <= whole

    def check_reason(
        self, receiving: Sequence[Fault], sending: Sequence[Fault], *, remote: bool = False
    ) -> None:
        """The reason is one that a fault explains, at the place where that fault is.

        ``remote`` is whether the faults are those of the peer's stream, over a real socket.
        """
        here = self.bytes_received
        between = here in self.ends
        met = [fault for fault in receiving if fault.after == here]
        ended = any(isinstance(fault, End) for fault in met) or here == self.ends[-1]
        if remote:  # closing a Unix socket is an end to its peer, if it has read everything
            ended = ended or any(isinstance(fault, Reset) for fault in (*receiving, *sending))
        stalled = max((fault.seconds for fault in met if isinstance(fault, Stall)), default=0)
        sent_stalled = sum(fault.seconds for fault in sending if isinstance(fault, Stall))
        unsendable = any(
            isinstance(fault, End | Reset) and (remote or fault.after >= self.bytes_sent)
            for fault in sending
        )
        reason = self.reason
        if reason is CloseReason.END_OF_STREAM:
            assert ended
            assert between
            assert len(self.heard) == self.ends.index(here)
        elif type(reason) is IncompleteMessageError:
            assert ended
            assert not between
        elif type(reason) is MessageTimeoutError:
            assert stalled >= LONG
            assert not between
        elif type(reason) is IdleTimeoutError:
            assert stalled >= VERY_LONG
            assert between
        elif type(reason) is SendTimeoutError:
            # A peer that sees the end of what it reads goes on writing, and reads no more.
            assert sent_stalled >= LONG or (
                remote and any(isinstance(fault, End) for fault in sending)
            )
        else:
            assert type(reason) is trio.BrokenResourceError
            assert reason.__cause__ is None or isinstance(reason.__cause__, OSError)
            assert (
                unsendable
                or any(isinstance(fault, Reset) for fault in met)
                or (remote and any(isinstance(fault, Reset) for fault in receiving))
            )


def foretell(sent: Sequence[bytes], receiving: Sequence[Fault]) -> tuple[int, Any]:
    """How many messages a reader whose own sending has no faults gets, and why it ends then."""
    ends = Report(list(sent)).ends
    waited = 0.0
    frame_of_wait = (-1, False)
    for fault in sorted(receiving, key=lambda fault: fault.after):
        if fault.after > ends[-1]:
            break
        between = fault.after in ends
        got = sum(end <= fault.after for end in ends) - 1
        if isinstance(fault, Stall):
            if frame_of_wait != (got, between):
                frame_of_wait, waited = (got, between), 0.0
            waited += fault.seconds
            if not between and waited >= LIMITS["message_timeout"]:
                return got, MessageTimeoutError
            if between and waited >= 2 * LIMITS["idle_timeout"]:
                return got, IdleTimeoutError
        elif isinstance(fault, End):
            return got, CloseReason.END_OF_STREAM if between else IncompleteMessageError
        elif isinstance(fault, Reset):
            return got, trio.BrokenResourceError
    return len(sent), CloseReason.END_OF_STREAM


def kind_of(reason: object) -> object:
    return reason if isinstance(reason, CloseReason) else type(reason)


# -- a server that echoes


async def write(stream: Stream, data: bytes) -> None:
    with contextlib.suppress(trio.BrokenResourceError):
        await stream.send_all(data)
        await stream.send_eof()


async def read(stream: Stream, report: Report) -> None:
    with contextlib.suppress(trio.BrokenResourceError):
        async for chunk in stream:
            report.peer_got += chunk


async def served(ours: Stream, theirs: Stream, report: Report) -> None:
    """Have a server talk with a peer that sends ``report.sent`` and then the end."""
    life: list[type[Event]] = []

    async def echo(connection: Connection[bytes, bytes]) -> None:
        async for message in connection:
            report.heard.append(message)
            await connection.send(message)

    async def note(event: Event) -> None:
        life.append(type(event))
        if isinstance(event, ClientDisconnected):
            report.note(event.connection)

    server = Server(echo, **report.limits)
    server.client_connected.connect(note)
    server.message_received.connect(note)
    server.client_disconnected.connect(note)

    async with theirs, trio.open_nursery() as nursery:
        nursery.start_soon(converse, theirs, report)
        await server.serve_stream(ours)
        await trio.testing.wait_all_tasks_blocked()  # until the peer has read the last of it
        nursery.cancel_scope.cancel()
    assert life == [ClientConnected, *[MessageReceived] * len(report.heard), ClientDisconnected]


async def converse(stream: Stream, report: Report) -> None:
    async with stream, trio.open_nursery() as nursery:
        nursery.start_soon(write, stream, b"".join(map(frame, report.sent)))
        nursery.start_soon(read, stream, report)


def check_as_foretold(report: Report, receiving: Sequence[Fault]) -> None:
    """What must have been heard, and why it ended, if nothing that was sent met with a fault."""
    got, reason = foretell(report.sent, receiving)
    assert len(report.heard) == got
    assert kind_of(report.reason) == reason


@settings(max_examples=150)
@given(sizes=sizes, receiving=plans)
def test_a_server_whose_reading_fails_hears_all_that_came_before_and_says_why_it_ended(
    sizes: list[int], receiving: list[Fault]
) -> None:
    async def main() -> None:
        ours, theirs = memory()
        report = Report(messages_of(sizes), limits_for(receiving))
        await served(FaultyStream(ours, receiving=receiving), theirs, report)
        report.check(report.heard)
        report.check_reason(receiving, [])
        check_as_foretold(report, receiving)
        if report.reason is CloseReason.END_OF_STREAM or type(report.reason) is (
            IncompleteMessageError
        ):
            assert report.peer_got == b"".join(map(frame, report.heard))

    run(main)


@settings(max_examples=250)
@given(sizes=sizes, receiving=plans, sending=plans)
def test_a_server_whose_stream_fails_both_ways_doubles_and_alters_nothing_and_says_why_it_ended(
    sizes: list[int], receiving: list[Fault], sending: list[Fault]
) -> None:
    async def main() -> None:
        ours, theirs = memory()
        report = Report(messages_of(sizes), limits_for(receiving, sending))
        faulty = FaultyStream(ours, receiving=receiving, sending=sending)
        await served(faulty, theirs, report)
        report.check(report.heard)
        report.check_reason(receiving, sending)
        if report.reason is CloseReason.END_OF_STREAM and not any(
            isinstance(fault, End | Reset) or (isinstance(fault, Stall) and fault.seconds > SHORT)
            for fault in sending
        ):
            assert report.peer_got == b"".join(map(frame, report.heard))

    run(main)


@pytest.mark.parametrize("crowded", [False, True])
@pytest.mark.parametrize("make", [unix, tight_unix])
def test_a_server_whose_peers_stream_fails_on_a_real_socket_says_why_it_ended(
    monkeypatch: pytest.MonkeyPatch, make: Callable[[], Pair], crowded: bool
) -> None:
    if crowded:  # then another way of waiting is taken
        monkeypatch.setattr(_epoll, "_FEW", 0)

    @settings(max_examples=100)
    @given(sizes=sizes, receiving=plans, sending=plans)
    def each(sizes: list[int], receiving: list[Fault], sending: list[Fault]) -> None:
        async def main() -> None:
            ours, theirs = make()
            report = Report(messages_of(sizes), limits_for(receiving, sending))
            # What the server receives is what its peer sends.
            faulty = FaultyStream(theirs, receiving=sending, sending=receiving)
            await served(ours, faulty, report)
            report.check(report.heard)
            report.check_reason(receiving, sending, remote=True)

        run(main)

    each()


@given(sizes=sizes, seed=st.integers(0, 10_000))
def test_a_server_with_faults_by_chance(sizes: list[int], seed: int) -> None:
    async def main() -> None:
        ours, theirs = memory()
        report = Report(messages_of(sizes))
        faulty = FaultyStream.random(ours, seed, size=200)
        await served(faulty, theirs, report)
        report.check(report.heard)

    run(main)


# -- a client


async def used(ours: Stream, theirs: Stream, report: Report, to_send: Sequence[bytes]) -> None:
    """Have a client's connection send ``to_send``, and receive all that its peer sends."""
    raised: Exception = trio.EndOfChannel()
    async with theirs, trio.open_nursery() as nursery:
        nursery.start_soon(converse, theirs, report)
        async with (
            open_connection(ours, **report.limits) as connection,
            trio.open_nursery() as sending,
        ):

            @sending.start_soon
            async def send() -> None:
                with contextlib.suppress(trio.BrokenResourceError):
                    for message in to_send:
                        await connection.send(message)

            try:
                async for message in connection:
                    report.heard.append(message)
            except (IncompleteMessageError, trio.BrokenResourceError) as error:
                raised = error
                sending.cancel_scope.cancel()
            for _ in range(2):  # it is the same however often one asks
                with pytest.raises(type(raised)):
                    await connection.receive()
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    report.note(connection)
    # Sending may break after the end of what is received, or before that is met.
    if not isinstance(raised, trio.EndOfChannel):
        assert type(report.reason) is type(raised)


@settings(max_examples=150)
@given(sizes=sizes, to_send=sizes, receiving=plans)
def test_a_client_whose_reading_fails_is_told_of_it(
    sizes: list[int], to_send: list[int], receiving: list[Fault]
) -> None:
    async def main() -> None:
        ours, theirs = memory()
        report = Report(messages_of(sizes), limits_for(receiving))
        requests = messages_of(to_send)
        await used(FaultyStream(ours, receiving=receiving), theirs, report, requests)
        report.check(requests)
        report.check_reason(receiving, [])
        check_as_foretold(report, receiving)
        if report.reason is CloseReason.END_OF_STREAM:
            assert report.peer_got == b"".join(map(frame, requests))

    run(main)


@settings(max_examples=200)
@given(sizes=sizes, to_send=sizes, receiving=plans, sending=plans)
def test_a_client_whose_stream_fails_both_ways_is_told_of_it(
    sizes: list[int], to_send: list[int], receiving: list[Fault], sending: list[Fault]
) -> None:
    async def main() -> None:
        ours, theirs = memory()
        report = Report(messages_of(sizes), limits_for(receiving, sending))
        requests = messages_of(to_send)
        faulty = FaultyStream(ours, receiving=receiving, sending=sending)
        await used(faulty, theirs, report, requests)
        report.check(requests)
        report.check_reason(receiving, sending)

    run(main)


@pytest.mark.parametrize("make", [unix, tight_unix])
def test_a_client_whose_servers_stream_fails_on_a_real_socket_is_told_of_it(
    make: Callable[[], Pair],
) -> None:
    @settings(max_examples=100)
    @given(sizes=sizes, to_send=sizes, receiving=plans, sending=plans)
    def each(
        sizes: list[int], to_send: list[int], receiving: list[Fault], sending: list[Fault]
    ) -> None:
        async def main() -> None:
            ours, theirs = make()
            report = Report(messages_of(sizes), limits_for(receiving, sending))
            requests = messages_of(to_send)
            faulty = FaultyStream(theirs, receiving=sending, sending=receiving)
            await used(ours, faulty, report, requests)
            report.check(requests)
            report.check_reason(receiving, sending, remote=True)

        run(main)

    each()


# -- TLS


@attrs.define(eq=False)
class Counting(FaultyStream):
    """Knows how many bytes were sent."""

    count: int = 0

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await super().send_all(data)
        self.count += len(data)


@pytest.mark.parametrize("kind", [End, Reset])
def test_tls_cut_off_anywhere_is_never_a_clean_end(
    tls: Tls, kind: type[End | Reset], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, logger="trio_bytetalk")

    @settings(max_examples=60)
    @given(after=st.integers(0, 3000), sizes=sizes)
    def each(after: int, sizes: list[int]) -> None:
        async def main() -> None:
            sent = messages_of(sizes)
            heard: list[bytes] = []
            reasons: list[Any] = []
            finished: list[bool] = []

            async def listen(connection: Connection[bytes, bytes]) -> None:
                async for message in connection:
                    heard.append(message)  # noqa: PERF401 - when it breaks, what came counts

            server = Server(listen, **LIMITS)

            @server.on_disconnect
            async def note(connection: Connection[bytes, bytes]) -> None:
                reasons.append(connection.close_reason)

            ours, theirs = memory()
            counting = Counting(theirs)
            client = tls.at_client(counting)

            async def send() -> None:
                async with counting:
                    with contextlib.suppress(trio.BrokenResourceError):
                        await client.send_all(b"".join(map(frame, sent)))
                        await client.aclose()
                        finished.append(True)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                faulty = FaultyStream(ours, receiving=[kind(after)])
                await server.serve_stream(faulty, ssl_context=tls.server)
            assert heard == sent[: len(heard)]
            if finished and after >= counting.count:
                assert reasons == [CloseReason.END_OF_STREAM]
                assert heard == sent
            else:
                assert list(map(type, reasons)) in ([], [trio.BrokenResourceError])

        run(main)

    each()
