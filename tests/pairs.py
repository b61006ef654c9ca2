"""Pairs of connected streams, of each kind that a transport meets; and who cuts them short."""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import attrs
import trio
import trio.testing

Stream = trio.abc.HalfCloseableStream
Pair = tuple[Stream, Stream]


def memory() -> Pair:
    """In memory, with all the room there is."""
    return trio.testing.memory_stream_pair()


def lockstep() -> Pair:
    """In memory, with no room at all: sending ends when the peer has read it."""
    return trio.testing.lockstep_stream_pair()


def unix() -> Pair:
    """Unix sockets: what is written can be read at once, so virtual time does not overtake it."""
    left, right = trio.socket.socketpair()
    return trio.SocketStream(left), trio.SocketStream(right)


def tight_unix() -> Pair:
    """Unix sockets that have room for a few kilobytes only."""
    left, right = unix()
    for stream in (left, right):
        assert isinstance(stream, trio.SocketStream)
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    return left, right


def tcp() -> tuple[trio.SocketStream, trio.SocketStream]:
    """TCP over the loopback interface."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        left = socket.create_connection(listener.getsockname())
        right, _ = listener.accept()
    return (
        trio.SocketStream(trio.socket.from_stdlib_socket(left)),
        trio.SocketStream(trio.socket.from_stdlib_socket(right)),
    )


def has_ipv6() -> bool:
    """Whether this machine has a loopback interface for it."""
    try:
        with socket.socket(socket.AF_INET6) as listener:
            listener.bind(("::1", 0))
    except OSError:
        return False
    return True


KINDS: dict[str, Callable[[], Pair]] = {
    "memory": memory,
    "lockstep": lockstep,
    "unix": unix,
    "tcp": tcp,
}

TIGHT_KINDS: dict[str, Callable[[], Pair]] = {"lockstep": lockstep, "tight_unix": tight_unix}


def reset(stream: Stream) -> None:
    """Close a socket in the rude way: its peer gets a reset (TCP)."""
    assert isinstance(stream, trio.SocketStream)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()


def frame(message: bytes) -> bytes:
    """What `LengthPrefixed` makes of a message by default."""
    return len(message).to_bytes(4, "big") + message


async def read_to_end(stream: trio.abc.ReceiveStream) -> bytes:
    """All that comes."""
    return b"".join([chunk async for chunk in stream])


async def read_exactly(stream: trio.abc.ReceiveStream, size: int) -> bytes:
    """So many bytes, and none more."""
    data = b""
    while len(data) < size:
        chunk = await stream.receive_some(size - len(data))
        assert chunk, f"the stream ended after {len(data)} of {size} bytes"
        data += chunk
    return data


@attrs.define
class Writes:
    """How many times something was written."""

    count: int = 0


@contextlib.contextmanager
def counted_writes(stream: Stream) -> Iterator[Writes]:
    """Count the writes to one end of a pair in memory, or the system calls that write to sockets.

    The latter are seen as strace sees them, whoever makes them in whatever way: as calls of the
    functions that make system calls.
    """
    writes = Writes()
    if isinstance(stream, trio.StapledStream):
        send_all = stream.send_stream.send_all

        async def counting_send_all(data: bytes | bytearray | memoryview) -> None:
            writes.count += 1
            await send_all(data)

        stream.send_stream.send_all = counting_send_all
        yield writes
        stream.send_stream.send_all = send_all
        return

    def profile(_frame: FrameType, event: str, function: Any) -> None:
        if event == "c_call" and (
            (function.__name__ in ("write", "writev") and function.__module__ == "posix")
            or (
                function.__name__ in ("send", "sendmsg")
                and isinstance(function.__self__, socket.SocketType)
            )
        ):
            writes.count += 1

    sys.setprofile(profile)
    try:
        yield writes
    finally:
        sys.setprofile(None)
