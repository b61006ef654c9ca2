"""For the tests of those who use this package: connections without sockets, and `check_codec`."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterable, Iterator

import attrs
import trio
import trio.testing

from ._check_codec import check_codec
from ._client import open_connection
from ._codec import Codec, ReceiveT, SendT
from ._connection import Connection
from ._server import Server

__all__ = ["CuttingStream", "check_codec", "connection_pair", "open_memory_connection"]


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


# Not iter() itself, for these tell a type checker what the arguments may be.
def _iterator_of_int(numbers: Iterable[int]) -> Iterator[int]:
    return iter(numbers)


def _iterator_of_float(numbers: Iterable[float]) -> Iterator[float]:
    return iter(numbers)


@attrs.define(eq=False)
class CuttingStream(trio.abc.HalfCloseableStream):
    """A stream that cuts, and delays, what is read from another one, as told.

    Args:
      stream: The stream that is read from and written to.
      sizes: How many bytes each `receive_some` returns at the most, 1 or more; one number after the
          other.
      delays: How many seconds each `receive_some` takes longer, likewise.

    When the numbers are used up, reads are not cut, or not delayed, any more; `itertools.repeat`
    and `itertools.cycle` never are. What is written goes through unchanged.
    """

    stream: trio.abc.HalfCloseableStream
    sizes: Iterator[int] = attrs.field(converter=_iterator_of_int, default=(), kw_only=True)
    delays: Iterator[float] = attrs.field(converter=_iterator_of_float, default=(), kw_only=True)
    _left: bytes = attrs.field(default=b"", init=False)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """At most the next of ``sizes`` bytes, after the next of ``delays`` seconds."""
        if max_bytes is not None and max_bytes < 1:
            raise ValueError(f"max_bytes must be 1 or more, not {max_bytes!r}")
        delay = next(self.delays, 0)
        if delay:
            await trio.sleep(delay)
        if self._left:
            await trio.lowlevel.checkpoint()
        else:
            self._left = bytes(await self.stream.receive_some())
        size = next(self.sizes, len(self._left))
        if size < 1 and self._left:  # no bytes would mean the end of the stream
            raise ValueError(f"sizes must be 1 or more, not {size!r}")
        if max_bytes is not None:
            size = min(size, max_bytes)
        data, self._left = self._left[:size], self._left[size:]
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self.stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        await self.stream.send_eof()

    async def aclose(self) -> None:
        await self.stream.aclose()
