"""A terminal with a prompt: lines are typed there while what happens is printed above it."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import Callable
from typing import Final, Generic, TypeVar

import attrs
import trio
from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app_or_none, get_app_session
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import has_focus
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import Output
from prompt_toolkit.renderer import print_formatted_text
from prompt_toolkit.styles import Style

T = TypeVar("T")

Fragment = tuple[str, str]
"""A style as prompt_toolkit has it, such as ``ansired``, and text of it."""

# So many lines may wait to be printed; then whoever writes more waits, so that a peer that floods
# us is slowed down rather than kept in memory.
_MOST_UNPRINTED: Final = 1000

_STYLE: Final = Style([])


class _InterruptedError(Exception):
    """Ctrl-C. (A KeyboardInterrupt would end the asyncio loop where it is.)"""


@attrs.define(eq=False)
class Terminal(Generic[T]):
    """What is typed comes out of ``typed``; what is written appears above the prompt.

    prompt_toolkit needs an asyncio loop, and gets one in a thread of its own: Trio keeps the main
    thread. As long as `run` runs, only that other thread touches the terminal.
    """

    prompt: str

    parse: Callable[[str], T]
    """What a line stands for; called in the other thread.

    It raises ValueError, in one line, for a line that makes no sense: that stays at the prompt, and
    the reason is printed above it.
    """

    typed: trio.MemoryReceiveChannel[T] = attrs.field(init=False)
    """What the lines typed stand for. It ends with Ctrl-D."""

    _typing: trio.MemorySendChannel[T] = attrs.field(init=False)
    _output: Output = attrs.field(factory=lambda: get_app_session().output, init=False)
    _trio: trio.lowlevel.TrioToken = attrs.field(
        factory=trio.lowlevel.current_trio_token, init=False
    )
    _unprinted: deque[StyleAndTextTuples] = attrs.field(
        factory=deque, init=False
    )  # both threads' own
    _scheduled: bool = attrs.field(default=False, init=False)
    _printed: trio.Event = attrs.field(factory=trio.Event, init=False)
    _running: bool = attrs.field(default=False, init=False)
    _loop: asyncio.AbstractEventLoop = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        # Without a limit, for it holds what a person has typed.
        self._typing, self.typed = trio.open_memory_channel[T](math.inf)

    async def run(self) -> None:
        """Show the prompt until Ctrl-D.

        Raises:
          KeyboardInterrupt: Ctrl-C was typed, which is a key like any other at the prompt.

        Cancelled, it takes the prompt away, with what has been typed there.
        """
        self._running = True
        self._loop = asyncio.new_event_loop()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._stop_when_cancelled)
                interrupted = await trio.to_thread.run_sync(self._run_loop)
                nursery.cancel_scope.cancel()
        finally:
            self._loop.close()
            self._running = False
            self._print()
            self._typing.close()
        if interrupted:
            raise KeyboardInterrupt

    async def write(self, *line: Fragment) -> None:
        """Print a line above the prompt, after waiting while very many are to be printed.

        Cancelled, it is printed all the same.
        """
        self._unprinted.append([*line, ("", "\n")])
        if not self._running:
            self._print()
        elif not self._scheduled:
            self._scheduled = True
            self._call(self._print_above)
        while len(self._unprinted) > _MOST_UNPRINTED:
            await self._printed.wait()

    async def _stop_when_cancelled(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            self._call(self._stop)

    def _call(self, function: Callable[[], object]) -> None:
        """Have the other thread call a function, unless it has ended."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function)

    def _has_printed(self) -> None:
        self._printed.set()
        self._printed = trio.Event()

    # -- the other thread

    def _run_loop(self) -> bool:
        """Pass on what is typed until Ctrl-D or Ctrl-C; say whether it was the latter."""
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            try:
                runner.run(self._ask())
            except _InterruptedError:
                return True
            except (EOFError, asyncio.CancelledError):
                pass
        return False

    async def _ask(self) -> None:
        session: PromptSession[str] = PromptSession(
            self.prompt,
            key_bindings=self._keys(),
            erase_when_done=True,
            reserve_space_for_menu=0,
            interrupt_exception=_InterruptedError,
            enable_suspend=True,
        )
        while True:
            # An error of the program's is not to wait for a key.
            await session.prompt_async(set_exception_handler=False)

    def _keys(self) -> KeyBindings:
        keys = KeyBindings()

        @keys.add("enter", filter=has_focus(DEFAULT_BUFFER))
        def enter(event: KeyPressEvent) -> None:
            line = event.current_buffer
            try:
                parsed = self.parse(line.text)
            except ValueError as error:
                self._unprinted.append([("ansired", str(error)), ("", "\n")])
                self._print_above()
            except Exception as error:  # noqa: BLE001 - prompt_async raises it
                event.app.exit(exception=error)
            else:
                self._trio.run_sync_soon(self._typing.send_nowait, parsed)
                line.validate_and_handle()

        return keys

    def _stop(self) -> None:
        for task in asyncio.all_tasks():
            task.cancel()

    def _print_above(self) -> None:
        # run_in_terminal would give the terminal back meanwhile, and the terminal would keep a
        # Ctrl-D that is typed just then.
        app = get_app_or_none()
        if app is None:
            self._print()
        else:
            app.renderer.erase()
            self._print()
            app.invalidate()

    # -- the other thread while it runs, and Trio's before and after

    def _print(self) -> None:
        self._scheduled = False
        for _ in range(len(self._unprinted)):
            print_formatted_text(self._output, self._unprinted.popleft(), _STYLE)
        self._trio.run_sync_soon(self._has_printed)
