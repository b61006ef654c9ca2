"""A terminal with a prompt, typed at through a pipe."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import nullcontext

import attrs
import pytest
import trio
import trio.testing
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput

from trio_bytetalk._cli import terminal
from trio_bytetalk._cli.terminal import Terminal

UP, CTRL_C, CTRL_D, CTRL_U = "\x1b[A", "\x03", "\x04", "\x15"


@attrs.define
class Screen(DummyOutput):
    """An output that remembers what was written to it, and can be made to wait."""

    writes: list[str] = attrs.field(factory=list)
    going_on: threading.Event = attrs.field(factory=threading.Event)

    def __attrs_post_init__(self) -> None:
        self.going_on.set()

    def write(self, data: str) -> None:
        self.going_on.wait()
        self.writes.append(data)

    @property
    def printed(self) -> list[str]:
        """The parts of printed lines; what belongs to the prompt is written by characters."""
        return [text for text in self.writes if len(text.strip("\r\n")) > 1]

    async def shows(self, text: str) -> None:
        """Wait until something is a part of the prompt."""
        while text not in "".join(self.writes):
            await trio.lowlevel.checkpoint()


@pytest.fixture
def screen() -> Iterator[Screen]:
    screen = Screen()
    yield screen
    screen.going_on.set()


@pytest.fixture
def keys(screen: Screen) -> Iterator[PipeInput]:
    with create_pipe_input() as keys, create_app_session(keys, screen):
        yield keys


def number(line: str) -> int:
    """A parser, for the tests."""
    try:
        return int(line)
    except ValueError:
        raise ValueError(f"a number was expected, not {line}") from None


async def typed(at: Terminal[int]) -> list[int]:
    return [each async for each in at.typed]


async def test_what_is_typed_comes_out(keys: PipeInput) -> None:
    terminal = Terminal("> ", number)
    keys.send_text(f"12\n345\n{CTRL_D}")
    await terminal.run()
    assert await typed(terminal) == [12, 345]


async def test_it_comes_out_while_the_prompt_is_there(keys: PipeInput) -> None:
    terminal = Terminal("> ", number)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(terminal.run)
        for each in (1, 2, 3):
            keys.send_text(f"{each}\n")
            assert await terminal.typed.receive() == each
        keys.send_text(CTRL_D)
    assert await typed(terminal) == []


async def test_a_line_that_makes_no_sense_stays_to_be_edited(
    keys: PipeInput, screen: Screen
) -> None:
    terminal = Terminal("> ", number)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(terminal.run)
        keys.send_text("12x\n\b3\n")
        assert await terminal.typed.receive() == 123
        keys.send_text("nonsense\n")
        await screen.shows("a number was expected, not nonsense")
        keys.send_text(f"{CTRL_U}4\n{CTRL_D}")
    assert await typed(terminal) == [4]


async def test_the_reason_is_told_whole_however_narrow_the_terminal_is(
    keys: PipeInput, screen: Screen
) -> None:
    terminal = Terminal("> ", number)
    line = "x" * 200  # at 80 columns
    keys.send_text(f"{line}\n{CTRL_U}{CTRL_D}")
    await terminal.run()
    assert screen.printed == [f"a number was expected, not {line}"]


async def test_keys_are_the_prompts_while_lines_are_printed(
    keys: PipeInput, screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given back for as long as that takes, the terminal would take a Ctrl-D for itself."""
    given_back = 0

    def give_back(_: PipeInput) -> nullcontext[None]:
        nonlocal given_back
        given_back += 1
        return nullcontext()

    monkeypatch.setattr(type(keys), "cooked_mode", give_back)
    terminal = Terminal("> ", number)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(terminal.run)
        keys.send_text("1\n")
        await terminal.typed.receive()
        await screen.shows(">")
        await terminal.write(("", "while"))
        await screen.shows("while")
        assert given_back == 0
        keys.send_text(CTRL_D)


async def test_lines_are_remembered(keys: PipeInput, screen: Screen) -> None:
    terminal = Terminal("> ", number)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(terminal.run)
        keys.send_text("1\n2\n")
        assert [await terminal.typed.receive() for _ in range(2)] == [1, 2]
        keys.send_text("9")
        await screen.shows("9")
        keys.send_text(f"\b{UP}{UP}3\n")
        assert await terminal.typed.receive() == 13
        keys.send_text(CTRL_D)


async def test_ctrl_c_interrupts(keys: PipeInput) -> None:
    terminal = Terminal("> ", number)
    keys.send_text(f"1\n2{CTRL_C}")
    with pytest.raises(KeyboardInterrupt):
        await terminal.run()
    assert await typed(terminal) == [1]


async def test_lines_are_printed_before_while_and_after_it_runs(
    keys: PipeInput, screen: Screen
) -> None:
    terminal = Terminal("> ", number)
    await terminal.write(("ansired", "bef"), ("", "ore"))
    assert screen.printed == ["bef", "ore"]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(terminal.run)
        keys.send_text("1\n")
        await terminal.typed.receive()
        await terminal.write(("", "while"))
        keys.send_text("2\n")
        await terminal.typed.receive()
        keys.send_text(CTRL_D)
    await terminal.write(("", "after"))
    assert screen.printed == ["bef", "ore", "while", "after"]


async def test_the_prompt_makes_room_for_what_is_printed_and_comes_back(
    keys: PipeInput, screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal("> ", number)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(terminal.run)
        keys.send_text("12")
        await screen.shows("12")
        screen.writes.clear()
        monkeypatch.setattr(screen, "erase_down", lambda: screen.writes.append("(erased)"))
        await terminal.write(("", "while"))
        await screen.shows("12")
        assert "".join(screen.writes).startswith("(erased)while\r\n(erased)> 12")
        keys.send_text(f"{CTRL_U}{CTRL_D}")


async def test_nothing_that_is_written_can_move_the_cursor(keys: PipeInput, screen: Screen) -> None:
    terminal = Terminal("> ", number)
    await terminal.write(("", "a\rb"))
    assert screen.printed == ["ab"]


async def test_whoever_writes_faster_than_it_is_printed_waits(
    keys: PipeInput, screen: Screen
) -> None:
    at = Terminal("> ", number)
    written = 0

    async def write() -> None:
        nonlocal written
        for _ in range(3000):
            await at.write(("", "x" * 10))
            written += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(at.run)
        await screen.shows(">")
        screen.going_on.clear()
        async with trio.open_nursery() as writing:
            writing.start_soon(write)
            writing.start_soon(write)
            await trio.testing.wait_all_tasks_blocked()
            try:
                assert written <= terminal._MOST_UNPRINTED + 2
            finally:
                screen.going_on.set()
        keys.send_text(CTRL_D)
    assert screen.printed == ["x" * 10] * 6000


async def test_cancelled_it_takes_the_prompt_away(keys: PipeInput) -> None:
    terminal = Terminal("> ", number)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(terminal.run)
        keys.send_text("1\n2")
        await terminal.typed.receive()
        nursery.cancel_scope.cancel()
    assert nursery.cancel_scope.cancelled_caught
    assert await typed(terminal) == []


@pytest.mark.parametrize("turns", [0, 1, 2])
async def test_cancelled_as_it_begins(turns: int, keys: PipeInput, screen: Screen) -> None:
    terminal = Terminal("> ", number)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(terminal.run)
        for _ in range(turns):
            await trio.lowlevel.checkpoint()
        await terminal.write(("", "printed"))
        nursery.cancel_scope.cancel()
    assert await typed(terminal) == []
    assert screen.printed == ["printed"]


async def test_what_is_written_as_it_ends_is_printed(keys: PipeInput, screen: Screen) -> None:
    terminal = Terminal("> ", number)

    async def write() -> None:
        async for each in terminal.typed:
            await terminal.write(("", f"got {each}"))
        await terminal.write(("", "and no more"))

    keys.send_text("".join(f"{i}\n" for i in range(20)) + CTRL_D)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(terminal.run)
        nursery.start_soon(write)
    assert screen.printed == [*(f"got {i}" for i in range(20)), "and no more"]


async def test_a_broken_terminal(keys: PipeInput, screen: Screen) -> None:
    terminal = Terminal("> ", number)

    def broken(_line: str) -> int:
        raise ZeroDivisionError

    terminal.parse = broken
    keys.send_text("1\n")
    with pytest.RaisesGroup(ZeroDivisionError):
        await terminal.run()
    assert await typed(terminal) == []
