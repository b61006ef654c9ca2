"""The clients, in a process of their own and in plain Trio: ``python -m soak.clients PORT ...``."""

from __future__ import annotations

import json
import random
import socket
import struct
import sys

import attrs
import trio

_BURST = 20  # messages in flight on one connection, at the most
_PATIENCE = 60  # seconds for a burst to come back, while thousands of others are on their way
_AT_ONCE = 200  # connections being opened, fewer than what a listener's backlog holds


@attrs.define(eq=False)
class Clients:
    """What they do, and have counted. Every message has a number of its own."""

    port: int
    connections: int
    messages: int
    random: random.Random
    opened: int = 0
    orderly: int = 0
    half_closed: int = 0
    resets: int = 0
    sent: int = 0
    echoed: int = 0
    given_up: int = 0  # sent before a reset, and not waited for
    ready: int = 0
    all_ready: trio.Event = attrs.field(factory=trio.Event)
    opening: trio.CapacityLimiter = attrs.field(factory=lambda: trio.CapacityLimiter(_AT_ONCE))

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.report)
            async with trio.open_nursery() as clients:
                for _ in range(self.connections):
                    clients.start_soon(self.client)
            nursery.cancel_scope.cancel()
        self.tell()

    def tell(self) -> None:
        names = ("opened", "orderly", "half_closed", "resets", "sent", "echoed", "given_up")
        print(json.dumps({name: getattr(self, name) for name in names}), flush=True)

    async def report(self) -> None:
        while True:
            await trio.sleep(1)
            self.tell()

    async def client(self) -> None:
        """One connection after the other, until all messages are sent."""
        first = True
        while first or self.sent < self.messages:
            async with self.opening:
                stream = await trio.open_tcp_stream("127.0.0.1", self.port)
                self.opened += 1
                await self.exchange(stream, 1 if self.messages else 0)  # it is accepted by then
            if first:
                first = False
                self.ready += 1
                if self.ready == self.connections:
                    self.all_ready.set()
                await self.all_ready.wait()
            ended = False
            while not ended and self.sent < self.messages:
                ended = await self.step(stream)
            if not ended:
                self.orderly += 1
                await stream.aclose()

    async def step(self, stream: trio.SocketStream) -> bool:
        """A burst, and at times the end of the connection; whether that was so."""
        count = min(self.random.randint(1, _BURST), self.messages - self.sent)
        way = self.random.random()
        if way < 0.95:
            await self.exchange(stream, count)
            return False
        if way < 0.97:
            await self.exchange(stream, count)
            await stream.aclose()
            self.orderly += 1
        elif way < 0.985:
            frames = self.frames(count)
            with trio.fail_after(_PATIENCE):
                await stream.send_all(frames)
                await stream.send_eof()
                echo = b"".join([chunk async for chunk in stream])
            self.compare(echo, frames, count)
            await stream.aclose()
            self.half_closed += 1
        else:
            await stream.send_all(self.frames(count))
            self.given_up += count
            self.resets += 1
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            stream.socket.close()
        return True

    async def exchange(self, stream: trio.SocketStream, count: int) -> None:
        frames = self.frames(count)
        echo = b""
        with trio.move_on_after(_PATIENCE):
            await stream.send_all(frames)
            while len(echo) < len(frames):
                chunk = await stream.receive_some()
                if not chunk:
                    break
                echo += chunk
        self.compare(echo, frames, count)

    def frames(self, count: int) -> bytes:
        """The next messages: a number, and some bytes to make them differ in size."""
        begin = self.sent
        self.sent += count
        payloads = [b"%d:" % number + bytes(number % 97) for number in range(begin, begin + count)]
        return b"".join(struct.pack(">I", len(each)) + each for each in payloads)

    def compare(self, echo: bytes, frames: bytes, count: int) -> None:
        if echo != frames:
            raise AssertionError(
                f"expected were {len(frames)} bytes, the {count} messages that were sent, once "
                f"each and in order; {len(echo)} came, beginning with {echo[:40]!r}"
            )
        self.echoed += count


def main() -> None:
    port, connections, messages, seed = map(int, sys.argv[1:])
    clients = Clients(port, connections, messages, random.Random(seed))
    try:
        trio.run(clients.run)
    except* KeyboardInterrupt:
        pass  # the server's process, which was interrupted along with this one, says so


if __name__ == "__main__":
    main()
