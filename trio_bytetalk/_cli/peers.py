"""Who is connected to the server of ``bytetalk serve``, and what is logged of each."""

from __future__ import annotations

import logging
from typing import Any, Final

import attrs
import trio

from .._connection import CloseReason, Connection, Ending, QueueFullError
from .._errors import BytetalkError, in_words
from .._server import Server
from .addresses import name_of
from .figures import duration, plural, size

_logger = logging.getLogger("trio_bytetalk.serve")

# How much of what an error says is shown; what a peer sent may be a part of it.
_REASON_SHOWN = 200


@attrs.frozen
class Traffic:
    """Messages and bytes, in all or a second."""

    messages_in: float = 0
    messages_out: float = 0
    bytes_in: float = 0
    bytes_out: float = 0

    def since(self, before: Traffic, seconds: float) -> Traffic:
        """The rates since ``before``."""
        if seconds <= 0:
            return NO_TRAFFIC
        return Traffic(
            (self.messages_in - before.messages_in) / seconds,
            (self.messages_out - before.messages_out) / seconds,
            (self.bytes_in - before.bytes_in) / seconds,
            (self.bytes_out - before.bytes_out) / seconds,
        )


NO_TRAFFIC: Final = Traffic()


@attrs.define(eq=False)
class Peer:
    """What is known of a connection beyond its statistics: it is the connection's context."""

    address: str
    """Fit for a terminal, and no other connection's."""

    since: float
    """When it connected, on Trio's clock."""

    name: str
    """What it calls itself; its address unless it has said otherwise."""

    traffic: Traffic = NO_TRAFFIC
    """What there had been when `Gauges` last saw that there was some."""

    moved: int = 0
    """The sum of all four."""


@attrs.define(eq=False)
class Peers:
    """Gives each connection of a server its `Peer`, and logs its beginning and its end."""

    server: Server[Any, Any]
    _nameless: int = attrs.field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        self.server.on_connect(self._came)
        self.server.on_disconnect(self._went)

    async def _came(self, connection: Connection[Any, Any]) -> None:
        _logger.info("%s connected", self.of(connection).address)

    async def _went(self, connection: Connection[Any, Any]) -> None:
        peer = self.of(connection)
        numbers = connection.statistics()
        reason = in_words(connection.close_reason, _REASON_SHOWN)
        if connection._ending() is Ending.FAILED:  # the server has logged that, with a traceback
            reason = "its handler failed"
        elif isinstance(connection.close_reason, QueueFullError):  # which tells of no option
            reason = "it was too slow to take what is sent to all"
        unsent = numbers.bytes_queued
        # As the server has it: what breaks the protocol is worth a look, and what an orderly end
        # leaves unsent; a reset is not.
        is_news = isinstance(connection.close_reason, BytetalkError) or (
            unsent and isinstance(connection.close_reason, CloseReason)
        )
        _logger.log(
            logging.WARNING if is_news else logging.INFO,
            "%s disconnected: %s; in %s, %s; out %s, %s%s; %s",
            peer.address,
            reason,
            plural(numbers.messages_received, "message"),
            size(numbers.bytes_received),
            plural(numbers.messages_sent, "message"),
            size(numbers.bytes_sent),
            f", and {plural(unsent, 'byte')} that it has not taken" if unsent else "",
            duration(trio.current_time() - peer.since),
        )

    def of(self, connection: Connection[Any, Any]) -> Peer:
        """The connection's `Peer`, made when it is first asked for."""
        if connection.context is None:
            address = name_of(connection.remote_address)
            if not isinstance(connection.remote_address, tuple):
                # Clients of a Unix socket have no address of their own, as a rule.
                self._nameless += 1
                address = f"{address}#{self._nameless}"
            connection.context = Peer(address, trio.current_time(), address)
        peer: Peer = connection.context
        return peer
