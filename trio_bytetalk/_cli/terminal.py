"""A terminal with a prompt: lines are typed there while what happens is printed above it."""

from __future__ import annotations

import asyncio
import contextlib
import math
import sys
from collections import deque
from collections.abc import Callable

import attrs
import trio
from prompt_toolkit import PromptSession
from prompt_toolkit.application import run_in_terminal

# So many lines may wait to be printed; then whoever writes more waits, so that a peer that floods
# us is slowed down rather than kept in memory.
_MOST_UNPRINTED = 1000


class _InterruptedError(Exception):
    """Ctrl-C. (A KeyboardInterrupt would end the asyncio loop where it is.)"""


@attrs.define(eq=False)
class Terminal:
    """What is typed comes out of ``lines``; what is written appears above the prompt.

    prompt_toolkit needs an asyncio loop, and gets one in a thread of its own: Trio keeps the main
    thread. As long as `run` runs, only that other thread touches the terminal.
    """

    prompt: str
    lines: trio.MemoryReceiveChannel[str] = attrs.field(init=False)
    """The lines typed, without their newlines. It ends with Ctrl-D."""

    _typed: trio.MemorySendChannel[str] = attrs.field(init=False)
    _trio: trio.lowlevel.TrioToken = attrs.field(
        factory=trio.lowlevel.current_trio_token, init=False
    )
    _unprinted: deque[str] = attrs.field(factory=deque, init=False)  # both threads' own
    _scheduled: bool = attrs.field(default=False, init=False)
    _printed: trio.Event = attrs.field(factory=trio.Event, init=False)
    _running: bool = attrs.field(default=False, init=False)
    _stopping: bool = attrs.field(default=False, init=False)

    # The other thread's.
    _loop: asyncio.AbstractEventLoop | None = attrs.field(default=None, init=False)
    _asking: asyncio.Future[str] | None = attrs.field(default=None, init=False)
    _printing: object = attrs.field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        # Without a limit, for it holds what a person has typed.
        self._typed, self.lines = trio.open_memory_channel[str](math.inf)

    async def run(self) -> None:
        """Show the prompt until Ctrl-D.

        Raises:
          KeyboardInterrupt: Ctrl-C was typed, which is a key like any other at the prompt.

        Cancelled, it takes the prompt away, with what has been typed there.
        """
        self._running = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._stop_when_cancelled)
            interrupted = await trio.to_thread.run_sync(lambda: asyncio.run(self._ask()))
            nursery.cancel_scope.cancel()
        self._running = False
        self._print()
        self._typed.close()
        if interrupted:
            raise KeyboardInterrupt

    async def write(self, line: str) -> None:
        """Print a line above the prompt, after waiting while very many are to be printed.

        Cancelled, it is printed all the same.
        """
        self._unprinted.append(line)
        if not self._running:
            self._print()
        elif not self._scheduled:
            self._scheduled = True
            self._call(self._print_soon)
        while len(self._unprinted) > _MOST_UNPRINTED:
            self._printed = trio.Event()
            await self._printed.wait()

    async def _stop_when_cancelled(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            self._stopping = True
            self._call(self._stop)

    def _call(self, function: Callable[[], object]) -> None:
        """Have the other thread call a function, unless it is not there yet or not any more."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(function)

    # -- the other thread

    async def _ask(self) -> bool:
        """Pass on what is typed until Ctrl-D or Ctrl-C; say whether it was the latter."""
        session: PromptSession[str] = PromptSession(
            erase_when_done=True, interrupt_exception=_InterruptedError
        )
        self._loop = asyncio.get_running_loop()
        self._print_soon()  # what was written before there was a loop
        try:
            while not self._stopping:
                self._asking = asyncio.ensure_future(session.prompt_async(self.prompt))
                line = await self._asking
                self._trio.run_sync_soon(self._typed.send_nowait, line)
        except _InterruptedError:
            return True
        except (EOFError, asyncio.CancelledError):
            pass
        return False

    def _stop(self) -> None:
        if self._asking is not None:
            self._asking.cancel()

    def _print_soon(self) -> None:
        self._printing = run_in_terminal(self._print)

    def _print(self) -> None:
        self._scheduled = False
        for _ in range(len(self._unprinted)):
            sys.stdout.write(self._unprinted.popleft() + "\n")
        sys.stdout.flush()
        self._trio.run_sync_soon(self._has_printed)

    def _has_printed(self) -> None:
        self._printed.set()
