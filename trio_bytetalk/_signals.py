"""`stop_on_signals`: Ctrl-C and SIGTERM stop servers in order, and then at once."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import attrs
import trio

from ._server import Server, check_stop_timeout

_logger = logging.getLogger("trio_bytetalk.server")

# What a terminal's Ctrl-C sends, and what service managers and containers send.
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def stop_on_signals(*servers: Server[Any, Any], timeout: float | None = 10) -> Iterator[None]:
    """Within this block, SIGINT (Ctrl-C) or SIGTERM stops ``servers``, and a second one at once.

    The first signal calls `Server.stop` with the ``timeout``, each further one calls it with 0. The
    ``serve_`` calls return then, as after any stop, so leave the block when they have::

        with stop_on_signals(server):
            await server.serve_tcp(5555)

    While none of the servers is running, and was not stopped by a signal either, a signal does what
    it did outside of the block: nothing is there that could end in order. What each signal brings
    about is logged to ``trio_bytetalk.server``, at the level INFO.

    Args:
      servers: The servers to stop, all at the first signal.
      timeout: For how many seconds connections may go on after the first signal; None is no limit.

    Raises:
      TypeError, ValueError: for what is no server, or a wrong ``timeout``.
      RuntimeError: outside of the main thread, which alone is told of signals, or of Trio.

    The block cannot be cancelled, for it does not wait. When it is left, the signals do what they
    did before.
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
    watch = _Watch(servers, timeout, trio.lowlevel.current_trio_token())
    with contextlib.ExitStack() as stack:
        for number in _SIGNALS:
            watch.before[number] = signal.signal(number, watch.handle)
            stack.callback(signal.signal, number, watch.before[number])
        yield


@attrs.define(eq=False)
class _Watch:
    servers: tuple[Server[Any, Any], ...]
    timeout: float | None
    token: trio.lowlevel.TrioToken
    stopping: bool = False
    before: dict[signal.Signals, Any] = attrs.field(factory=dict)
    """What the signals did outside of the block."""

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """Handle a signal. It comes between any two instructions of the main thread."""
        name = signal.Signals(number)
        if not self.stopping and not any(server.is_running for server in self.servers):
            ours = signal.signal(name, self.before[name])
            try:
                signal.raise_signal(name)
            finally:
                signal.signal(name, ours)
            return
        timeout = 0 if self.stopping else self.timeout
        self.stopping = True
        # A run that ends at this moment has stopped its servers already.
        with contextlib.suppress(trio.RunFinishedError):
            self.token.run_sync_soon(self.stop, name, timeout)

    def stop(self, name: signal.Signals, timeout: float | None) -> None:
        """Stop, between two steps of Trio's tasks."""
        for server in self.servers:
            server.stop(timeout)
        if timeout == 0:
            _logger.info("%s: stopping at once", name.name)
        else:
            _logger.info("%s: stopping; once more to stop at once", name.name)
