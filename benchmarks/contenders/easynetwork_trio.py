"""EasyNetwork on its Trio backend.

It has no length-prefixed serializer of its own; this one uses the helper that its documentation
gives for writing one. Its other kind, with a buffer that the serializer owns, makes a new buffer
for each packet and was slower.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator

import trio
from easynetwork.exceptions import IncrementalDeserializeError
from easynetwork.protocol import StreamProtocol
from easynetwork.serializers.abc import AbstractIncrementalPacketSerializer
from easynetwork.serializers.tools import GeneratorStreamReader
from easynetwork.servers import AsyncTCPNetworkServer
from easynetwork.servers.handlers import AsyncStreamClient, AsyncStreamRequestHandler

from benchmarks.contenders._serving import LOOPBACK, announce, parse_options


class LengthPrefixedSerializer(AbstractIncrementalPacketSerializer[bytes, bytes]):
    def __init__(self, max_size: int) -> None:
        self.max_size = max_size

    def serialize(self, packet: bytes) -> bytes:
        return packet

    def deserialize(self, data: bytes) -> bytes:
        return data

    def incremental_serialize(self, packet: bytes) -> Generator[bytes, None, None]:
        yield len(packet).to_bytes(4, "big") + packet

    def incremental_deserialize(self) -> Generator[None, bytes, tuple[bytes, bytes]]:
        reader = GeneratorStreamReader()
        size = int.from_bytes((yield from reader.read_exactly(4)), "big")
        if size > self.max_size:
            raise IncrementalDeserializeError("message too large", reader.read_all())
        message = yield from reader.read_exactly(size)
        return message, reader.read_all()


class Echo(AsyncStreamRequestHandler[bytes, bytes]):
    async def handle(self, client: AsyncStreamClient[bytes]) -> AsyncGenerator[None, bytes]:
        while True:
            message = yield
            await client.send_packet(message)


async def main() -> None:
    options = parse_options("max-size")
    protocol = StreamProtocol(LengthPrefixedSerializer(options.max_size))
    async with AsyncTCPNetworkServer(LOOPBACK, 0, protocol, Echo(), backend="trio") as server:
        is_up = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: server.serve_forever(is_up_event=is_up))
            await is_up.wait()
            announce(server.get_addresses()[0].port)


if __name__ == "__main__":
    trio.run(main)
