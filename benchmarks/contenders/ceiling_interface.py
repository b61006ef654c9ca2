"""The least that an echo by `async for` and `await send` can cost, whatever is behind it.

Messages are not looked for: all are taken to be as long as the first. So they are cut out by a list
comprehension and joined again, the headers being a part of them; and nothing is checked or counted.
What is left is the interface: two coroutines for each message.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import trio

from benchmarks.contenders._echoing import serve


class Channel:
    """Messages to be iterated over and sent, and no more."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.fd = stream.socket.fileno()
        self.messages: Iterator[bytes] = iter(())
        self.replies: list[bytes] = []
        self.left = b""

    def __aiter__(self) -> Channel:
        return self

    async def __anext__(self) -> bytes:
        for message in self.messages:
            return message
        return await self.read()

    async def send(self, message: bytes) -> None:
        self.replies.append(message)

    async def read(self) -> bytes:
        replies, self.replies = b"".join(self.replies), []
        while replies:
            try:
                replies = replies[os.write(self.fd, replies) :]
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self.fd)
        data = self.left
        while len(data) < 4 or len(data) < 4 + int.from_bytes(data[:4], "big"):
            await trio.lowlevel.wait_readable(self.fd)
            chunk = os.read(self.fd, 65536)
            if not chunk:
                raise StopAsyncIteration
            data += chunk
        size = 4 + int.from_bytes(data[:4], "big")
        end = len(data) // size * size
        self.left = data[end:]
        self.messages = iter([data[begin : begin + size] for begin in range(0, end, size)])
        return next(self.messages)


async def echo(stream: trio.SocketStream) -> None:
    channel = Channel(stream)
    try:
        async for message in channel:
            await channel.send(message)
    except OSError:
        pass


if __name__ == "__main__":
    serve(echo)
