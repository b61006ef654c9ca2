"""For the tests of those who use this package: connections without sockets, streams with faults,
and `check_codec`."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import trio
import trio.testing

from ._check_codec import check_codec
from ._client import open_connection
from ._codec import Codec, ReceiveT, SendT
from ._connection import Connection
from ._faulty_stream import Cut, CuttingStream, End, Fault, FaultyStream, Reset, Stall
from ._server import Server

__all__ = [
    "Cut",
    "CuttingStream",
    "End",
    "Fault",
    "FaultyStream",
    "Reset",
    "Stall",
    "check_codec",
    "connection_pair",
    "open_memory_connection",
]


@contextlib.asynccontextmanager
async def open_memory_connection(
    server: Server[SendT, ReceiveT],
) -> AsyncIterator[Connection[SendT, ReceiveT]]:
    """Connect to a server in memory::

        async with open_memory_connection(Server(echo)) as connection:
            await connection.send(b"hello")
            assert await connection.receive() == b"hello"

    The server serves this one connection, in a task of its own, with its hooks, events and limits;
    the client's end speaks the server's codec. Leaving the block closes the client's end and waits
    until the server has finished with the connection; after its ``close_timeout`` it is cancelled.
    An exception of the block comes out as it is, in no exception group.
    """
    client_end, server_end = trio.testing.memory_stream_pair()
    failure: BaseException | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve_stream, server_end)
        try:
            async with open_connection(client_end, codec=server.codec) as connection:
                yield connection
        except BaseException as error:  # noqa: BLE001 - because it is raised again below
            failure = error
        nursery.cancel_scope.deadline = trio.current_time() + server.limits.close_timeout
    if failure is not None:
        try:
            raise failure
        finally:
            failure = None  # or this frame and the traceback would keep each other


def connection_pair(
    codec: Codec[SendT, ReceiveT],
) -> tuple[Connection[SendT, ReceiveT], Connection[SendT, ReceiveT]]:
    """Two connections with each other, in memory, that speak ``codec``."""
    left, right = trio.testing.memory_stream_pair()
    return open_connection(left, codec=codec), open_connection(right, codec=codec)
