"""Record the pictures of ``bytetalk``'s pages: real programs in real terminals, drawn as SVG.

    python3 noxfile.py pictures -- [SESSION...]

Each program runs in a pseudo-terminal; what it writes goes through a terminal emulator (pyte), and
what that shows is the picture. The numbers in it are those of the machine and the moment.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import itertools
import os
import re
import resource
import signal
import struct
import sys
import termios
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import attrs
import pyte
import trio
from rich.console import CONSOLE_SVG_FORMAT, Console
from rich.style import Style
from rich.terminal_theme import MONOKAI
from rich.text import Text

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "docs" / "source" / "reference" / "pictures"
PORT = 5555
PATIENCE = 60  # seconds, for a screen to show what is waited for

# Without what rich has in its pictures to fetch a font from elsewhere.
SVG = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)

# pyte's names of the eight colours, and those that rich has for them.
_RICH_COLOURS = {"default": None, "brown": "yellow"}


class Screen(pyte.Screen):
    """A screen that answers a program which asks where the cursor is."""

    def __init__(self, columns: int, lines: int, master: int) -> None:
        self._master = master
        super().__init__(columns, lines)

    def write_process_input(self, data: str) -> None:
        os.write(self._master, data.encode())


@attrs.define(eq=False)
class Terminal:
    """A program, and the screen of the terminal that it runs in."""

    title: str
    screen: pyte.Screen
    master: int
    process: trio.Process
    _changed: trio.Event = attrs.field(factory=trio.Event, init=False)

    async def pump(self) -> None:
        """Show what the program writes, until it has ended."""
        stream = pyte.ByteStream(self.screen)
        while True:
            await trio.lowlevel.wait_readable(self.master)
            try:
                data = os.read(self.master, 65536)
            except OSError:  # EIO: nobody has the other side open any more
                return
            if not data:
                return
            stream.feed(data)
            self._changed.set()
            self._changed = trio.Event()

    async def type(self, text: str) -> None:
        os.write(self.master, text.encode())
        await trio.lowlevel.checkpoint()

    async def shows(self, text: str, times: int = 1) -> None:
        """Wait until ``text`` is so many times on the screen."""
        with trio.move_on_after(PATIENCE):
            while sum(line.count(text) for line in self.screen.display) < times:
                await self._changed.wait()
            return
        shown = "\n".join(self.screen.display)
        raise RuntimeError(f"{self.title}: {text!r} is not {times} times in\n{shown}")

    def draw(self, since: str = "") -> str:
        """The screen as it is now, as SVG: from the last line on that begins with ``since``."""
        screen = self.screen
        begin = [row for row in range(screen.lines) if screen.display[row].startswith(since)]
        first = begin[-1] if since else 0
        used = max((row for row in range(screen.lines) if screen.display[row].strip()), default=0)
        console = Console(
            record=True, width=screen.columns, file=io.StringIO(), color_system="truecolor"
        )
        for row in range(first, used + 1):
            cells = [screen.buffer[row][column] for column in range(screen.columns)]
            line = Text()
            for style, run in itertools.groupby(cells, _style):
                line.append("".join(cell.data for cell in run), style)
            console.print(line, no_wrap=True, overflow="crop", crop=False)
        # Every picture is in a document of its own, so they may have the same names in them.
        return console.export_svg(
            title=self.title, theme=MONOKAI, code_format=SVG, unique_id="terminal"
        )


def _style(cell: pyte.screens.Char) -> Style:
    return Style(
        color=_colour(cell.fg),
        bgcolor=_colour(cell.bg),
        bold=cell.bold,
        italic=cell.italics,
        underline=cell.underscore,
        reverse=cell.reverse,
    )


def _colour(name: str) -> str | None:
    if name in _RICH_COLOURS:
        return _RICH_COLOURS[name]
    if len(name) == 6 and all(digit in "0123456789abcdefABCDEF" for digit in name):
        return f"#{name}"
    return f"bright_{name.removeprefix('bright')}" if name.startswith("bright") else name


@contextlib.asynccontextmanager
async def terminal(
    *arguments: str, columns: int = 80, lines: int = 24, room: int = 0
) -> AsyncIterator[Terminal]:
    """Run ``bytetalk ARGUMENTS`` in a terminal of that size, and end it.

    The screen has ``room`` for so many more lines, which the program does not know of: what it
    prints at the end is seen whole, though it had the terminal filled with a live view before.
    """
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "trio_bytetalk", *arguments],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        env=os.environ | {"TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": str(lines)},
    )
    os.close(slave)
    title = " ".join(("bytetalk", *arguments))
    result = Terminal(title, Screen(columns, lines + room, master), master, process)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(result.pump)
        try:
            yield result
        finally:
            process.send_signal(signal.SIGTERM)
            with trio.CancelScope(shield=True):
                await process.wait()
            nursery.cancel_scope.cancel()
    os.close(master)


def keep(name: str, shown: Terminal, since: str = "") -> None:
    path = PICTURES / f"{name}.svg"
    path.parent.mkdir(exist_ok=True)
    path.write_text(shown.draw(since), encoding="utf-8")
    print(path.relative_to(ROOT))


async def first_minute() -> None:
    """A server, and somebody who talks to it."""
    async with terminal("serve", "echo") as server:
        await server.shows("to talk to it")
        async with terminal("connect", f":{PORT}") as client:
            await client.shows("> ")
            for count, typed in enumerate(("hello", "is anybody there?", "/hex 00 ff 01"), 1):
                await client.type(typed + "\r")
                await client.shows(" ←  ", times=count)
                await trio.sleep(1.5)  # as one types; so the rates have something to show
            keep("connect", client)
            keep("serve-80", server)


async def sniffing() -> None:
    """What passes between a client and a server that speak JSON."""
    codec = "json+lines"
    async with terminal("serve", "echo", "--codec", codec) as server:
        await server.shows("to talk to it")
        sniff = ("sniff", "localhost:6000", f":{PORT}", "--codec", codec)
        async with (
            terminal(*sniff, lines=12) as sniffer,
            terminal("connect", ":6000", "--codec", codec) as client,
        ):
            await client.shows("> ")
            for typed in ('{"question": "how many?"}', "[1, 2, 3]", '"\\u001b[2J"'):
                await client.type(typed + "\r")
                await trio.sleep(0.5)
            await sniffer.shows(" ← ", times=3)
            keep("sniff", sniffer)


async def many() -> None:
    """5,000 connections under load, seen from both sides."""
    room = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (room, room))
    bench = ("bench", f":{PORT}", "--connections", "5000", "--duration", "15")
    async with terminal("serve", "echo", columns=200, lines=50) as server:
        await server.shows("to talk to it")
        async with terminal(*bench, lines=34, room=30) as client:
            await server.shows("5,000 open")
            await trio.sleep(10)
            keep("serve-200", server)
            keep("bench-live", client)
            await client.process.wait()
            await trio.sleep(0.5)
            keep("bench", client, since=f"bytetalk bench :{PORT}")


SESSIONS: dict[str, Callable[[], Awaitable[None]]] = {
    "first_minute": first_minute,
    "sniffing": sniffing,
    "many": many,
}


def main() -> None:
    names = sys.argv[1:] or list(SESSIONS)
    for name in names:
        if name not in SESSIONS:
            sys.exit(f"there is no session {name!r}; there are: {', '.join(SESSIONS)}")
    for name in names:
        trio.run(SESSIONS[name])


if __name__ == "__main__":
    main()
