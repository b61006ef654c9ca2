"""The printer: nothing that it prints to holds up whoever puts lines there."""

from __future__ import annotations

import io
import os
import select
import threading
from collections.abc import Callable

import attrs
import pytest
import trio
import trio.testing

from trio_bytetalk._cli import printer as module
from trio_bytetalk._cli.printer import Printer, write_all, writing_to


@attrs.define
class Output:
    """Where is written to: it may be stopped, as Ctrl-S stops a terminal."""

    written: list[str] = attrs.field(factory=list)
    may_go_on: threading.Event = attrs.field(factory=threading.Event)
    is_stopped: threading.Event = attrs.field(factory=threading.Event)

    def write(self, text: str) -> None:
        self.is_stopped.set()
        self.may_go_on.wait()
        self.written.append(text)

    @property
    def lines(self) -> list[str]:
        return "".join(self.written).splitlines()


@pytest.fixture
def output() -> Output:
    return Output()


@pytest.fixture
def printer(output: Output, monkeypatch: pytest.MonkeyPatch) -> Printer:
    """For three lines, and six of weight."""
    monkeypatch.setattr(module, "_MOST_LINES", 3)
    return Printer(output.write, lambda count: f"({count} not shown)")


def put(printer: Printer, *lines: str) -> None:
    for line in lines:
        if printer.has_room:
            printer.put(line)
        else:
            printer.drop()


async def test_lines_are_printed_in_order_also_while_it_runs(
    printer: Printer, output: Output
) -> None:
    output.may_go_on.set()
    put(printer, "a", "b")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(printer.run)
        await trio.testing.wait_all_tasks_blocked()
        while len(output.lines) < 2:  # it is a thread that writes
            await trio.lowlevel.checkpoint()
        await trio.testing.wait_all_tasks_blocked()
        put(printer, "c")
        printer.close()
    assert output.lines == ["a", "b", "c"]
    assert printer.dropped == 0


async def test_closing_ends_it_while_it_has_nothing_to_do(printer: Printer) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(printer.run)
        await trio.testing.wait_all_tasks_blocked()
        printer.close()


async def test_what_a_stopped_output_misses_is_counted_where_it_is_missing(
    printer: Printer, output: Output
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(printer.run)
        put(printer, "a")
        await trio.to_thread.run_sync(output.is_stopped.wait)
        put(printer, *"bcdefg")
        printer.put("of weight")
        printer.drop()
        output.may_go_on.set()
        printer.close()
    assert output.lines == [*"abcd", "(3 not shown)", "of weight", "(1 not shown)"]
    assert printer.dropped == 4


async def test_after_a_gap_it_goes_on(printer: Printer, output: Output) -> None:
    output.may_go_on.set()
    put(printer, *"abcd")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(printer.run)
        while len(output.lines) < 4:
            await trio.lowlevel.checkpoint()
        put(printer, "e")
        printer.close()
    assert output.lines == [*"abc", "(1 not shown)", "e"]


async def test_what_is_missing_at_the_very_end_is_told_too(
    printer: Printer, output: Output
) -> None:
    output.may_go_on.set()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(printer.run)
        await trio.testing.wait_all_tasks_blocked()
        printer.drop()
        while not output.lines:
            await trio.lowlevel.checkpoint()
        printer.drop()
        printer.close()
    assert output.lines == ["(1 not shown)"] * 2


async def test_lines_of_weight_have_an_end_too(printer: Printer, output: Output) -> None:
    for _ in range(10):
        printer.put("x")
    assert printer.dropped == 4
    output.may_go_on.set()
    printer.close()
    await printer.run()
    assert output.lines == ["x"] * 6 + ["(4 not shown)"]


async def test_long_lines_need_as_much_room_as_many(printer: Printer, output: Output) -> None:
    output.may_go_on.set()
    printer.put("x" * (2**24 - 1))
    assert printer.has_room
    printer.put("x")
    assert not printer.has_room
    printer.close()
    await printer.run()
    assert printer.has_room


async def test_cancelled_it_leaves_a_stopped_output_alone_and_counts_the_rest(
    printer: Printer, output: Output
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(printer.run)
        put(printer, "a")
        await trio.to_thread.run_sync(output.is_stopped.wait)
        put(printer, "b", "c")
        nursery.cancel_scope.cancel()
    assert printer.dropped == 2
    output.may_go_on.set()


async def test_an_output_that_fails_ends_it() -> None:
    def write(_text: str) -> None:
        raise BrokenPipeError

    printer = Printer(write, str)
    printer.put("x")
    with pytest.raises(BrokenPipeError):
        await printer.run()
    assert not printer.has_room
    printer.put("y")
    printer.drop()
    assert printer.dropped == 3


def test_a_descriptor_that_does_not_block_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    data = os.urandom(300_000)
    received = b""
    system_select: Callable[..., object] = select.select

    def read_and_select(*descriptors: object) -> object:
        nonlocal received
        received += os.read(reading, 100_000)
        return system_select(*descriptors)

    monkeypatch.setattr(select, "select", read_and_select)
    write_all(writing, data)
    os.close(writing)
    with os.fdopen(reading, "rb") as rest:
        assert received + rest.read() == data


async def test_what_was_put_while_an_output_failed_is_counted_too() -> None:
    may_go_on = threading.Event()

    def write(_text: str) -> None:
        may_go_on.wait()
        raise OSError

    printer = Printer(write, str)
    printer.put("x")
    with pytest.RaisesGroup(OSError):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(printer.run)
            await trio.testing.wait_all_tasks_blocked()
            printer.put("y")
            may_go_on.set()
    assert printer.dropped == 2


def test_writing_to_memory() -> None:
    stream = io.StringIO()
    writing_to(stream)("a\n")
    assert stream.getvalue() == "a\n"


@pytest.mark.parametrize(
    ("encoding", "written"),
    [("utf-8", "→ é\n".encode()), ("latin-1", b"\\u2192 \xe9\n"), ("ascii", b"\\u2192 \\xe9\n")],
)
@pytest.mark.parametrize("most", [1000, 3], ids=["at once", "in parts"])
def test_writing_to_a_descriptor_all_of_it_in_its_encoding(
    encoding: str, written: bytes, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    system_write: Callable[[int, memoryview], int] = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: system_write(fd, data[:most]))
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as reader:
        with os.fdopen(writing, "w", encoding=encoding) as writer:
            writing_to(writer)("→ é\n")
        assert reader.read() == written
