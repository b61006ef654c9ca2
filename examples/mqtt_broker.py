"""A small broker for MQTT 3.1.1: a protocol that exists, spoken through a codec of one's own.

    python examples/mqtt_broker.py
    mosquitto_sub -t 'home/#'               # or any other client, in another terminal

QoS 0 and 1, wildcards, retained messages, wills. A session ends with its connection, and a slow
subscriber slows down those who publish for it.
"""

import argparse
import itertools
import logging
import math
import struct
import sys
from contextlib import suppress
from functools import partial

import attrs
import trio

import trio_bytetalk as bt

Packet = tuple[int, bytes]  # the byte of type and flags; the body, without the length before it
Message = tuple[str, bytes, int, bool]  # topic, payload, QoS, whether to retain it


@attrs.define(eq=False)
class PacketReader(bt.Reader[Packet]):
    max_size: int

    def decode(self, buffer: bt.ReceiveBuffer) -> Packet | bt.NeedData:
        length = 0
        for place in range(1, 5):  # seven bits of the length in each byte, the lowest first
            byte = buffer.peek(1, place)
            if byte is None:
                return bt.NEED_DATA
            length |= (byte[0] & 0x7F) << 7 * (place - 1)
            if byte[0] < 0x80:
                break
        else:
            raise bt.ProtocolError("a length of more than four bytes")
        if length > self.max_size:  # before waiting for it
            raise bt.MessageTooLargeError(f"{length} bytes; max_size is {self.max_size}")
        frame = buffer.take(1 + place + length)
        return bt.NEED_DATA if frame is None else (frame[0], frame[1 + place :])


class PacketWriter(bt.Writer[Packet]):
    def encode(self, packet: Packet) -> bytes:
        kind, body = packet
        if len(body) >> 28:
            raise bt.EncodeError(f"{len(body)} bytes; MQTT has room for {(1 << 28) - 1}")
        places = (place for place in (0, 7, 14, 21) if len(body) >> place or not place)
        groups = [len(body) >> place & 0x7F | 0x80 for place in places]
        return bytes([kind, *groups[:-1], groups[-1] & 0x7F]) + body


class Mqtt(bt.Codec[Packet, Packet]):
    def reader(self) -> PacketReader:
        return PacketReader(max_size=2**20)

    def writer(self) -> PacketWriter:
        return PacketWriter()


@attrs.define(eq=False)
class Client:
    connection: bt.Connection[Packet, Packet]
    name: str
    will: Message | None = None
    filters: dict[str, int] = attrs.field(factory=dict)  # and the QoS granted for each


clients: dict[str, Client] = {}
retained: dict[str, Message] = {}
numbers = itertools.cycle(range(1, 1 << 16))


def split(body: bytes) -> tuple[bytes, bytes]:  # a field behind its length, and what follows
    (length,) = struct.unpack_from("!H", body)
    return struct.unpack_from(f"{length}s", body, 2)[0], body[2 + length :]


def matches(pattern: str, topic: str) -> bool:
    if topic.startswith("$") and pattern.startswith(("+", "#")):
        return False
    for wanted, level in itertools.zip_longest(pattern.split("/"), topic.split("/")):
        if wanted == "#" or level is None or wanted not in ("+", level):
            return bool(wanted == "#")
    return True


async def give(client: Client, message: Message, granted: int, retain: bool = False) -> None:
    topic, payload, qos, _ = message
    number = next(numbers).to_bytes(2) if min(qos, granted) else b""
    body = struct.pack("!H", len(topic.encode())) + topic.encode() + number + payload
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):  # its own task will notice
        await client.connection.send((0x30 | min(qos, granted) << 1 | retain, body))


async def publish(message: Message) -> None:
    topic, payload, qos, retain = message
    if not topic or {"+", "#"} & set(topic) or qos > 1:
        raise bt.ProtocolError(f"not a topic to publish to, or not QoS 0 or 1: {message!r:.80}")
    if retain:
        retained[topic] = message
        if not payload:
            del retained[topic]
    for client in list(clients.values()):
        granted = [qos for pattern, qos in client.filters.items() if matches(pattern, topic)]
        if granted:
            await give(client, message, max(granted))


async def serve(connection: bt.Connection[Packet, Packet]) -> None:
    try:
        await talk(connection)
    except (struct.error, IndexError, UnicodeError, trio.TooSlowError) as error:
        raise bt.ProtocolError(f"a packet is malformed or overdue: {error!r}") from None
    finally:
        client = connection.context
        if client and clients.get(client.name) == client:
            del clients[client.name]
        if client and client.will:
            await publish(client.will)


async def talk(connection: bt.Connection[Packet, Packet]) -> None:
    kind, body = await connection.receive()
    protocol, version, flags, keep_alive = struct.unpack_from("!6sBBH", body)
    if (kind, protocol, version) != (0x10, b"\0\4MQTT", 4):
        await connection.send((0x20, b"\0\1"))
        return
    name, body = split(body[10:])
    client = connection.context = Client(connection, name.decode() or repr(connection))
    if flags & 4:
        topic, body = split(body)
        client.will = (topic.decode(), split(body)[0], flags >> 3 & 3, bool(flags & 0x20))
    if client.name in clients:
        await clients[client.name].connection.aclose()
    clients[client.name] = client
    await connection.send((0x20, b"\0\0"))
    while kind != 0xE0:  # DISCONNECT
        with trio.fail_after(keep_alive * 1.5 or math.inf):
            kind, body = await connection.receive()
        await obey(client, kind, body)
    client.will = None


async def obey(client: Client, kind: int, body: bytes) -> None:
    send, number, rest = client.connection.send, body[:2], body[2:]
    if kind >> 4 == 3:  # PUBLISH
        topic, body = split(body)
        number = body[: 2 if kind & 6 else 0]
        await publish((topic.decode(), body[len(number) :], kind >> 1 & 3, bool(kind & 1)))
        if number:
            await send((0x40, number))
    elif kind == 0x82:  # SUBSCRIBE
        asked = []
        while rest:
            name, rest = split(rest)
            asked.append((name.decode(), min(rest[0], 1)))
            rest = rest[1:]
        client.filters |= asked
        await send((0x90, number + bytes(qos for _, qos in asked)))
        for message, (pattern, qos) in itertools.product(list(retained.values()), asked):
            if matches(pattern, message[0]):
                await give(client, message, qos, retain=True)
    elif kind == 0xA2:  # UNSUBSCRIBE
        while rest:
            name, rest = split(rest)
            client.filters.pop(name.decode(), None)
        await send((0xB0, number))
    elif kind == 0xC0:  # PINGREQ
        await send((0xD0, b""))
    elif kind not in (0x40, 0xE0):  # PUBACK, DISCONNECT
        raise bt.ProtocolError(f"a packet of type {kind >> 4} with the flags {kind & 0xF:04b}")


async def main(host: str, port: int) -> str | None:
    server = bt.Server(serve, codec=Mqtt())
    with bt.stop_on_signals(server):
        async with trio.open_nursery() as nursery:
            try:
                listeners = await nursery.start(partial(server.serve_tcp, port, host=host))
            except (OSError, ValueError) as error:
                return str(error)
            print("MQTT broker on {} port {}".format(*listeners[0].socket.getsockname()))
    return None


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A small broker for MQTT 3.1.1")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=1883, help="0 has the system choose one")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.exit(trio.run(main, options.host, options.port))
