"""`stop_on_signals`: Ctrl-C and SIGTERM stop servers in order, and then at once."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import attrs
import trio

from ._log import fields, get_logger
from ._server import Server, check_stop_timeout

_logger = get_logger("server")

# What a terminal's Ctrl-C sends, and what service managers and containers send.
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def stop_on_signals(*servers: Server[Any, Any], timeout: float | None = 10) -> Iterator[None]:
    """Within this block, SIGINT (Ctrl-C) or SIGTERM stops ``servers``, and a second one at once.

    The first signal calls `Server.stop` with the ``timeout``, the second one calls it with 0. The
    ``serve_`` calls return then, as after any stop, so leave the block when they have::

        with stop_on_signals(server):
            await server.serve_tcp(5555)

    From the third on, for handlers that no cancellation ends, a signal does what it did outside of
    the block: mostly, SIGINT is a `KeyboardInterrupt` and SIGTERM ends the process. So it is while
    none of the servers is running, and was not stopped by a signal either, for nothing is there
    that could end in order. Servers that are started again after a signal begin anew: the next
    signal is their first. What each signal brings about is logged to ``trio_bytetalk.server``, at
    the level INFO.

    A signal that is ignored already stays ignored: so shells without job control protect what they
    start in the background from a Ctrl-C that is not meant for it.

    Args:
      servers: The servers to stop, all at the first signal.
      timeout: For how many seconds connections may go on after the first signal; None is no limit.

    Raises:
      TypeError, ValueError: for what is no server, or a wrong ``timeout``.
      RuntimeError: outside of the main thread, which alone is told of signals, or of Trio; within
          another such block; or if a signal has a handler that Python cannot put back.

    The block cannot be cancelled, for it does not wait. When it is left, the signals do what they
    did before; a handler that has come in place of this block's own stays.
    """
    if not servers:
        raise TypeError("stop_on_signals needs one server or more, and got none")
    for server in servers:
        if not isinstance(server, Server):
            raise TypeError(f"stop_on_signals needs a Server, not {server!r}")
    check_stop_timeout(timeout)
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError(
            "stop_on_signals works in the main thread only, because Python handles signals there; "
            "in another one, have server.stop() called in some other way"
        )
    token = trio.lowlevel.current_trio_token()
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number, handler in before.items():
        if handler is None:
            raise RuntimeError(
                f"{number.name} has a handler that was not installed by Python, so it could not "
                "be put back; have server.stop() called in some other way"
            )
        owner = getattr(handler, "__self__", None)
        if isinstance(owner, _Watch) and owner.is_active:
            raise RuntimeError(
                "stop_on_signals is at work already; give all servers to one block: "
                "stop_on_signals(server, another_server)"
            )
    watch = _Watch(servers, timeout, token, before)
    handle = watch.handle  # one object, to be known again
    try:
        for number, handler in before.items():
            if handler != signal.SIG_IGN:
                signal.signal(number, handle)
        yield
    finally:
        watch.is_active = False
        for number, handler in before.items():
            if signal.getsignal(number) is handle:
                signal.signal(number, handler)


@attrs.define(eq=False)
class _Watch:
    servers: tuple[Server[Any, Any], ...]
    timeout: float | None
    token: trio.lowlevel.TrioToken
    before: dict[signal.Signals, Any]
    """What the signals did outside of the block."""

    is_active: bool = True
    heard: int = 0
    """How many signals have come that are to stop the servers as they run now."""

    heeded: int = 0
    """How many of these have been acted upon."""

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """Handle a signal. It comes between any two instructions of the main thread."""
        name = signal.Signals(number)
        runs = [run for server in self.servers for run in server._runs]
        if self.heard == self.heeded and not all(run.stopping for run in runs):
            self.heard = self.heeded = 0  # what has run since the last signal knows nothing of it
        if not self.is_active or self.heard == 2 or not (runs or self.heard):
            ours = signal.signal(name, self.before[name])
            try:
                signal.raise_signal(name)
            finally:
                signal.signal(name, ours)
            return
        timeout = 0 if self.heard else self.timeout
        self.heard += 1
        # A run that ends at this moment has stopped its servers already.
        with contextlib.suppress(trio.RunFinishedError):
            self.token.run_sync_soon(self.stop, name, timeout)

    def stop(self, name: signal.Signals, timeout: float | None) -> None:
        """Stop, between two steps of Trio's tasks."""
        self.heeded += 1
        for server in self.servers:
            server.stop(timeout)
        limit = None if timeout == math.inf else timeout
        extra = fields("stopping", signal=name.name, timeout=limit)
        if timeout == 0:
            _logger.info("%s: stopping at once", name.name, extra=extra)
        else:
            _logger.info("%s: stopping; once more to stop at once", name.name, extra=extra)
