"""The live view: what is drawn at which size, when, and that the terminal is given back."""

from __future__ import annotations

import io
import logging
import os
import signal
import threading
from collections.abc import AsyncIterator, Sequence
from typing import Any

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from pairs import memory
from rich.cells import cell_len
from rich.console import Console, RenderableType
from trio.testing import MockClock

from trio_bytetalk import Connection, Ending, Server
from trio_bytetalk._cli import live
from trio_bytetalk._cli.gauges import Backlog, Busy, Gauges, Sample
from trio_bytetalk._cli.live import Picture, show
from trio_bytetalk._cli.logs import Entry, LatestRecords
from trio_bytetalk._cli.peers import NO_TRAFFIC, Peers, Traffic
from trio_bytetalk._cli.screen import Screen

TITLE = "echo on 127.0.0.1:5555, codec length:4"

# What rich writes to have the terminal's other screen, and no cursor, and to give it back.
TAKEN = "\x1b[?1049h\x1b[H\x1b[?25l"
GIVEN_BACK = "\x1b[?25h\x1b[?1049l"


def busy(number: int, rate: Traffic = NO_TRAFFIC, queued: int = 0) -> Busy:
    address = f"127.0.0.1:{40000 + number}"
    return Busy(address, address, 90, rate, queued)


def sample(**values: Any) -> Sample:
    """Of a server that does nothing, but for ``values``, of the sample or of the server."""
    numbers = attrs.asdict(Server().statistics())
    of_server = {name: values.pop(name) for name in list(values) if name in numbers}
    idle: dict[str, Any] = {
        "now": 100.0,
        "uptime": 90.0,
        "server": attrs.evolve(Server().statistics(), **of_server),
        "total": NO_TRAFFIC,
        "rate": NO_TRAFFIC,
        "history": (),
        "samples": 0,
        "backlog": Backlog(),
        "busiest": (),
    }
    return Sample(**(idle | values))


def entries(count: int) -> list[Entry]:
    return [Entry("12:00:00", logging.INFO, f"event {number}") for number in range(count)]


def full(connections: int, latest: Sequence[Entry]) -> Picture:
    """A server with much to do."""
    rate = Traffic(1_234_567, 65_432, 98_765_432, 1_234)
    return Picture(
        TITLE,
        sample(
            connections=connections,
            connections_accepted=connections + 7,
            endings={Ending.CLOSED: 0, Ending.END_OF_STREAM: 2, Ending.PROTOCOL_ERROR: 5},
            total=Traffic(12_345_678_901, 1, 5e12, 1),
            rate=rate,
            history=(NO_TRAFFIC, rate) * 30,
            samples=60,
            backlog=Backlog(3, 700_000, 400_000),
            busiest=tuple(busy(n, rate, n) for n in range(min(connections, 100))),
        ),
        latest,
    )


def drawn(picture: Picture, width: int, height: int, *, encoding: str = "utf-8") -> list[str]:
    """The lines that are seen, without what is blank at their ends."""
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(
        file=file, width=width, height=height, force_terminal=True, legacy_windows=False
    )
    text = "".join(segment.text for segment in picture.__rich_console__(console, console.options))
    lines = text.split("\n")
    assert len(lines) == height
    assert {cell_len(line) for line in lines} == {width}
    return [line.rstrip() for line in lines]


# -- what is drawn


def test_a_server_without_connections_at_80x24() -> None:
    assert drawn(Picture(TITLE, sample(), entries(2)), 80, 24)[:14] == [
        " echo on 127.0.0.1:5555, codec length:4                              up 0:01:30",
        " connections  0 open  0 accepted  0 ended",
        " endings      none",
        " messages in          0/s                                 0 in all",
        " messages out         0/s                                 0 in all",
        " bytes in           0 B/s                                 0 B in all",
        " bytes out          0 B/s                                 0 B in all",
        " unsent       nothing",
        "─ 0 connections ────────────────────────────────────────────────────────────────",
        " peer                            msgs in/s     out/s  bytes/s   unsent       age",
        "─ latest events ────────────────────────────────────────────────────────────────",
        " 12:00:00 event 0",
        " 12:00:00 event 1",
        "",
    ]


def test_a_busy_server_at_80x24() -> None:
    assert drawn(full(5000, entries(100)), 80, 24) == [
        " echo on 127.0.0.1:5555, codec length:4                              up 0:01:30",
        " connections  5,000 open  5,007 accepted  7 ended",
        " endings      5 protocol error, 2 end of stream",
        f" messages in  1,234,567/s {'█' * 30}  12,345,678,901 in all",
        f" messages out    65,432/s {'█' * 30}  1 in all",
        f" bytes in       98.8 MB/s {'█' * 30}  5.00 TB in all",
        f" bytes out      1.23 kB/s {'█' * 30}  1 B in all",
        " unsent       700 kB for 3 connections, at most 400 kB",
        "─ busiest of 5,000 connections ─────────────────────────────────────────────────",
        " peer                            msgs in/s     out/s  bytes/s   unsent       age",
        *(
            f" 127.0.0.1:{40000 + n}                 1,234,567    65,432  98.8 MB"
            f" {f'{n} B' if n else '-':>8}    10.0 s"
            for n in range(7)
        ),
        "─ latest events ────────────────────────────────────────────────────────────────",
        *(f" 12:00:00 event {n}" for n in range(94, 100)),
    ]


def test_that_not_all_connections_are_shown_is_said() -> None:
    for height, connections in ((24, 7), (24, 8), (17, 4), (17, 5)):
        lines = drawn(full(connections, entries(100)), 80, height)
        shown = sum("127.0.0.1:4" in line for line in lines)
        words = "" if shown == connections else "busiest of "
        assert lines[8].startswith(f"─ {words}{connections} connections ─")
    wide = [drawn(full(n, entries(100)), 200, 30)[8] for n in (20, 21)]
    assert [line[:24] for line in wide] == ["─ 20 connections ───────", "─ busiest of 21 connecti"]


def test_less_than_a_message_a_second_is_not_nothing() -> None:
    rate = Traffic(0.25, 1 / 3, 68, 12.4)
    peers = (busy(0, rate),)
    lines = drawn(Picture(TITLE, sample(connections=1, busiest=peers, rate=rate), []), 80, 24)
    assert lines[3].startswith(" messages in       0.25/s ")
    assert lines[4].startswith(" messages out      0.33/s ")
    assert lines[10] == (
        " 127.0.0.1:40000                      0.25      0.33     80 B        -    10.0 s"
    )


def test_at_200x50_connections_and_events_stand_side_by_side() -> None:
    lines = drawn(full(5000, entries(100)), 200, 50)
    assert lines[3].endswith("12,345,678,901 in all")
    assert "▁█" * 30 in lines[3]
    assert lines[8].startswith("─ busiest of 5,000 connections ─")
    assert lines[8].index("─ latest events ─") == 100
    for number, line in enumerate(lines[10:]):
        assert line.startswith(f" 127.0.0.1:{40000 + number} ")
        assert line[100:] == f" 12:00:00 event {60 + number}" if number else True
    assert lines[-1].endswith("event 99")


@pytest.mark.parametrize(("connections", "events"), [(1, 100), (100, 1)])
def test_at_200x50_either_side_may_be_the_longer_one(connections: int, events: int) -> None:
    lines = drawn(full(connections, entries(events)), 200, 50)
    assert sum("127.0.0.1:4" in line for line in lines) == min(connections, 40)
    assert sum(" event " in line for line in lines) == min(events, 41)


def test_a_tiny_terminal_has_what_matters_most() -> None:
    assert drawn(full(1, entries(5)), 40, 10) == [
        " echo on 127.0.0.1:5555, co… up 0:01:30",
        " connections  1 open  8 accepted  7 end…",
        f" messages in  1,234,567/s   {'█' * 12}",
        f" messages out    65,432/s   {'█' * 12}",
        f" bytes in       98.8 MB/s   {'█' * 12}",
        f" bytes out      1.23 kB/s   {'█' * 12}",
        " unsent       700 kB for 3 connections,…",
        " 12:00:00 event 2",
        " 12:00:00 event 3",
        " 12:00:00 event 4",
    ]


def test_what_connections_leave_over_is_for_events_and_the_other_way_round() -> None:
    lines = drawn(full(2, entries(100)), 80, 24)
    assert sum(" event " in line for line in lines) == 11
    lines = drawn(full(100, entries(2)), 80, 24)
    assert sum("127.0.0.1:4" in line for line in lines) == 11


@given(
    st.integers(1, 250), st.integers(1, 80), st.integers(0, 200), st.integers(0, 200), st.booleans()
)
def test_every_terminal_is_filled_exactly(
    width: int, height: int, connections: int, events: int, ascii_only: bool
) -> None:
    encoding = "ascii" if ascii_only else "utf-8"
    lines = drawn(full(connections, entries(events)), width, height, encoding=encoding)
    if ascii_only:
        assert all(line.isascii() for line in lines)


def test_wide_characters_have_their_room() -> None:
    latest = [Entry("12:00:00", logging.INFO, "日本語" * 40)]
    peers = (Busy("127.0.0.1:1", "日本語" * 10, 0),)
    for width in (79, 80, 200):
        drawn(Picture(TITLE, sample(connections=1, busiest=peers), latest), width, 24)


def test_a_name_stands_before_its_address() -> None:
    peers = (Busy("127.0.0.1:40001", "ann", 0),)
    lines = drawn(Picture(TITLE, sample(connections=1, busiest=peers), []), 80, 24)
    assert lines[8].startswith("─ 1 connection ─")
    assert lines[10].startswith(" ann 127.0.0.1:40001  ")


def test_where_there_is_no_room_columns_are_left_out_from_the_right() -> None:
    lines = drawn(full(1, []), 50, 24)
    assert lines[9] == " peer                 msgs in/s     out/s  bytes/s"


def test_what_keeps_connections_from_being_made_is_seen() -> None:
    lines = drawn(
        Picture(
            TITLE,
            sample(
                connections_refused=2,
                handshakes=1,
                listeners_at_limit=1,
                listeners_out_of_resources=1,
                senders_waiting=4,
                backlog=Backlog(1, 300, 300),
            ),
            [],
        ),
        120,
        24,
    )
    assert lines[1] == (
        " connections  0 open  0 accepted  0 ended  2 refused  1 in handshake  at --max-connections"
        "  out of descriptors or memory"
    )
    assert lines[7] == " unsent       300 B for 1 connection, at most 300 B; 4 senders waiting"


def test_peers_cannot_write_markup() -> None:
    latest = [Entry("12:00:00", logging.INFO, "[bold red]not red[/] :smile:")]
    assert " 12:00:00 [bold red]not red[/] :smile:" in drawn(
        Picture(TITLE, sample(), latest), 80, 24
    )


def test_warnings_and_errors_are_coloured_unless_colours_are_not_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    latest = [
        Entry("12:00:00", level, logging.getLevelName(level))
        for level in (logging.INFO, logging.WARNING, logging.ERROR)
    ]
    picture = Picture(TITLE, sample(), latest)

    def output() -> str:
        file = io.StringIO()
        console = Console(
            file=file, force_terminal=True, width=80, height=24, color_system="standard"
        )
        console.print(picture)
        return file.getvalue()

    colourful = output()
    assert "INFO\x1b" not in colourful
    assert "\x1b[33mWARNING\x1b" in colourful
    assert "\x1b[1;31mERROR\x1b" in colourful
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[33m" not in output()


# -- when it is drawn


@attrs.define(eq=False)
class WatchedScreen(Screen):
    """Says whether the other thread is at work."""

    is_drawing: bool = False

    async def draw(self, picture: RenderableType) -> None:
        self.is_drawing = True
        await super().draw(picture)
        self.is_drawing = False


@attrs.define
class View:
    """A live view that is being shown, and what it has written."""

    server: Server[Any, Any]
    file: io.StringIO
    console: Console
    screen: WatchedScreen
    records: LatestRecords
    nursery: trio.Nursery

    async def seen(self, text: str) -> None:
        """Wait until ``text`` has been drawn since the last call, and all is quiet again."""
        while text not in self.file.getvalue() or self.screen.is_drawing:
            await trio.lowlevel.checkpoint()
        await trio.testing.wait_all_tasks_blocked()
        self.file.seek(0)
        self.file.truncate()

    def log(self, text: str) -> None:
        self.records.handle(logging.makeLogRecord({"msg": text, "levelno": logging.INFO}))


@pytest.fixture
async def view(nursery: trio.Nursery) -> AsyncIterator[View]:
    async def wait(connection: Connection[bytes, bytes]) -> None:
        await connection.receive()

    server = Server(wait)
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=80, height=24)
    view = View(server, file, console, WatchedScreen(console, None), LatestRecords(), nursery)
    gauges = Gauges(server, Peers(server))
    nursery.start_soon(lambda: show(TITLE, gauges, records=view.records, screen=view.screen))
    yield view
    nursery.cancel_scope.cancel()


async def test_it_is_drawn_at_once_and_then_every_second(view: View, mock_clock: MockClock) -> None:
    await view.seen("0 open")
    view.nursery.start_soon(view.server.serve_stream, memory()[0])
    mock_clock.jump(0.75)
    await trio.testing.wait_all_tasks_blocked()
    assert view.file.getvalue() == ""
    mock_clock.jump(0.25)
    await view.seen("1 open")
    mock_clock.jump(1)
    await view.seen("up 0:00:02")


async def test_what_happens_is_seen_sooner(view: View, mock_clock: MockClock) -> None:
    await view.seen("0 open")
    view.log("something happened")
    mock_clock.jump(0.25)
    await view.seen("something happened")


async def test_another_size_of_the_terminal_is_noticed(view: View, mock_clock: MockClock) -> None:
    await view.seen("─" * 60)
    view.console.size = (40, 10)
    mock_clock.jump(0.25)
    await view.seen(" messages in ")
    view.log("there is no room for a heading")
    mock_clock.jump(0.25)
    await view.seen("there is no room")
    assert "─" not in view.file.getvalue()


async def test_many_connections_are_sampled_less_often(
    view: View, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "_SAMPLED_A_SECOND", 2)
    await view.seen("0 open")
    for _ in range(6):
        view.nursery.start_soon(view.server.serve_stream, memory()[0])
    await trio.testing.wait_all_tasks_blocked()
    mock_clock.jump(1)
    await view.seen("6 open")
    for _ in range(2):
        mock_clock.jump(1)
        await trio.testing.wait_all_tasks_blocked()
    assert view.file.getvalue() == ""
    mock_clock.jump(1)
    await view.seen("up 0:00:04")


async def test_a_terminal_that_takes_no_more_holds_up_the_view_alone(
    mock_clock: MockClock, nursery: trio.Nursery
) -> None:
    stuck, goes_on = threading.Event(), threading.Event()

    class Stuck(io.StringIO):
        def write(self, text: str) -> int:
            if "open" in text:
                stuck.set()
                goes_on.wait()
            return super().write(text)

    server: Server[Any, Any] = Server()
    screen = Screen(Console(file=Stuck(), force_terminal=True, width=80, height=24), None)
    gauges = Gauges(server, Peers(server))
    nursery.start_soon(lambda: show(TITLE, gauges, records=LatestRecords(), screen=screen))
    while not stuck.is_set():
        await trio.lowlevel.checkpoint()
    nursery.start_soon(server.serve_stream, memory()[0])
    while server.statistics().connections < 1:
        await trio.lowlevel.checkpoint()
    goes_on.set()
    nursery.cancel_scope.cancel()


# -- the terminal


async def test_the_terminal_is_given_back_when_it_ends(mock_clock: MockClock) -> None:
    server: Server[Any, Any] = Server()
    file = io.StringIO()
    screen = Screen(Console(file=file, force_terminal=True, width=80, height=24), None)
    gauges = Gauges(server, Peers(server))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: show(TITLE, gauges, records=LatestRecords(), screen=screen))
        while "0 open" not in file.getvalue():
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert file.getvalue().startswith(TAKEN)
    assert file.getvalue().endswith(GIVEN_BACK)
    assert not screen.is_taken


async def test_the_terminal_is_given_back_when_drawing_fails(mock_clock: MockClock) -> None:
    server: Server[Any, Any] = Server()
    file = io.StringIO()
    screen = Screen(Console(file=file, force_terminal=True, width=80, height=24), None)
    records = LatestRecords()
    records.entries.append(None)  # type: ignore[arg-type]  # so it fails
    with pytest.RaisesGroup(AttributeError):
        await show(TITLE, Gauges(server, Peers(server)), records=records, screen=screen)
    assert file.getvalue() == TAKEN + GIVEN_BACK


async def test_ctrl_z_gives_the_terminal_back_first(
    view: View, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await view.seen(TAKEN)
    stopped = []

    def kill(process: int, number: int) -> None:
        stopped.append((process, number, view.screen.is_taken))

    monkeypatch.setattr(os, "kill", kill)
    signal.raise_signal(signal.SIGTSTP)
    await view.seen(GIVEN_BACK)
    assert stopped == [(os.getpid(), signal.SIGSTOP, False)]
    mock_clock.jump(0.25)
    await view.seen(TAKEN)


async def test_in_the_background_nothing_is_drawn(
    view: View, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await view.seen("0 open")
    monkeypatch.setattr(os, "kill", lambda *_: None)
    monkeypatch.setattr("trio_bytetalk._cli.screen._is_in_foreground", lambda _: False)
    signal.raise_signal(signal.SIGTSTP)
    await view.seen(GIVEN_BACK)
    for _ in range(4):
        mock_clock.jump(1)
        await trio.testing.wait_all_tasks_blocked()
    assert view.file.getvalue() == ""
    monkeypatch.setattr("trio_bytetalk._cli.screen._is_in_foreground", lambda _: True)
    mock_clock.jump(0.25)
    await view.seen("up 0:00:04")
