"""Load: connections that are held open and say nothing."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.generator.connections import open_connections
from benchmarks.generator.traffic import Traffic


def run_held(
    port: int, resident_bytes: Callable[[], int], traffic: Traffic, *, connections: int
) -> float:
    """How much a server's resident memory grows for each connection that it holds.

    Every connection has one message echoed before it falls idle: the server is known to hold it,
    and whatever it makes on first use has been made.

    Args:
      port: where the server listens.
      resident_bytes: reads the server's resident memory.
      traffic: what the one message is taken from.
      connections: how many to hold.

    Returns:
      Bytes for each connection.
    """
    # The first connections pay for what all share: code, free lists, the allocator's arenas.
    with open_connections(port, 200, traffic):
        before = resident_bytes()
        with open_connections(port, connections, traffic):
            return (resident_bytes() - before) / connections
