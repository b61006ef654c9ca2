"""Eclipse Paho's clients at a broker, which has to do as MQTT 3.1.1 says.

python paho_peer.py PORT
"""

import queue
import random
import sys
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

HOST = "127.0.0.1"
PATIENCE = 60
Heard = tuple[str, bytes, int, bool]  # topic, payload, QoS, whether it was retained


class Client:
    """A client in a thread of its own; what it hears waits in queues."""

    def __init__(self, port: int, name: str, *, will: str | None = None) -> None:
        self.heard: queue.Queue[Heard] = queue.Queue()
        self.replies: queue.Queue[Any] = queue.Queue()
        self.client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id=name, protocol=paho.MQTTv311
        )
        self.client.on_message = lambda _client, _userdata, message: self.heard.put(
            (message.topic, bytes(message.payload), message.qos, message.retain)
        )
        self.client.on_connect = lambda _client, _userdata, _flags, code, _: self.replies.put(code)
        self.client.on_subscribe = lambda _client, _userdata, _id, codes, _: self.replies.put(codes)
        self.client.on_unsubscribe = lambda _client, _userdata, _id, _codes, _: self.replies.put(
            "unsubscribed"
        )
        self.client.on_log = self.note_pong
        if will is not None:
            self.client.will_set(will, f"{name} is gone", qos=1)
        self.client.connect(HOST, port)
        self.client.loop_start()
        assert self.reply() == "Success"

    def note_pong(self, _client: object, _userdata: object, _level: int, text: str) -> None:
        if text == "Received PINGRESP":
            self.replies.put(text)

    def reply(self) -> Any:
        return self.replies.get(timeout=PATIENCE)

    def hear(self) -> Heard:
        return self.heard.get(timeout=PATIENCE)

    def subscribe(self, *filters: tuple[str, int]) -> list[int]:
        self.client.subscribe(list(filters))
        return [code.value for code in self.reply()]

    def unsubscribe(self, *filters: str) -> None:
        self.client.unsubscribe(list(filters))
        assert self.reply() == "unsubscribed"

    def publish(self, topic: str, payload: bytes, qos: int, *, retain: bool = False) -> None:
        self.client.publish(topic, payload, qos, retain).wait_for_publish(PATIENCE)

    def ping(self) -> None:
        self.client._send_pingreq()  # what its keep-alive does, after a second at the least
        assert self.reply() == "Received PINGRESP"

    def disconnect(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()

    def vanish(self) -> None:
        """Break the connection, as a crash does."""
        self.client.loop_stop()
        sock: Any = self.client.socket()
        sock.close()


def main(port: int) -> None:
    dice = random.Random(3)
    sizes = [*range(260), 16_383, 16_384, 400_000]
    sizes += [int(4096 ** dice.random()) for _ in range(1000 - len(sizes))]
    payloads = [dice.randbytes(size) for size in sizes]

    # Thousands of messages of each QoS, in order.
    reader, writer = Client(port, "reader"), Client(port, "writer")
    assert reader.subscribe(("many/+/here", 1), ("other/#", 2), ("once", 0)) == [1, 1, 0]
    for number, payload in enumerate(payloads):
        for qos in (0, 1):
            writer.client.publish(f"many/{qos}/here", payload, qos)
            writer.client.publish(f"many/{qos}/there", payload, qos)
        writer.client.publish(f"other/{number}/below", payload, 1)
    heard: dict[tuple[str, int], list[bytes]] = {}
    for _ in range(3 * len(payloads)):
        topic, payload, qos, retained = reader.hear()
        assert not retained
        heard.setdefault((topic[:6], qos), []).append(payload)
    assert heard == {("many/0", 0): payloads, ("many/1", 1): payloads, ("other/", 1): payloads}

    # The lower QoS of the two; both wildcards; what begins with $ is hidden from them.
    writer.publish("once", b"for 1", 1)
    assert reader.hear() == ("once", b"for 1", 0, False)
    writer.publish("other", b"the level above, too", 0)
    assert reader.hear() == ("other", b"the level above, too", 0, False)
    reader.unsubscribe("many/+/here", "other/#")
    reader.subscribe(("#", 0), ("+/x", 1))
    for topic in ("$hidden", "$hidden/x", "other/x"):
        writer.publish(topic, topic.encode(), 1)
    assert reader.hear() == ("other/x", b"other/x", 1, False)
    reader.unsubscribe("#", "+/x", "once")
    writer.publish("other/x", b"nobody hears it", 1)
    reader.ping()
    assert reader.heard.empty()

    # Retained messages: for those who come later, until an empty one takes its place.
    writer.publish("door/front", b"open", 0, retain=True)
    writer.publish("door/front", b"closed", 1, retain=True)
    late = Client(port, "late")
    late.subscribe(("door/#", 1))
    assert late.hear() == ("door/front", b"closed", 1, True)
    writer.publish("door/front", b"", 1, retain=True)
    assert late.hear() == ("door/front", b"", 1, False)
    later = Client(port, "later")
    later.subscribe(("door/#", 1))
    later.ping()
    assert later.heard.empty()

    # Wills: not of those who say goodbye; of those who vanish, or are replaced.
    later.subscribe(("wills/#", 1))
    Client(port, "polite", will="wills/polite").disconnect()
    Client(port, "vanishing", will="wills/vanishing").vanish()
    assert later.hear() == ("wills/vanishing", b"vanishing is gone", 1, False)
    replaced = Client(port, "twin", will="wills/twin")
    twin = Client(port, "twin")
    assert later.hear() == ("wills/twin", b"twin is gone", 1, False)
    twin.subscribe(("twins", 0))
    writer.publish("twins", b"the second one stays", 0)
    assert twin.hear() == ("twins", b"the second one stays", 0, False)
    replaced.client.loop_stop()

    for client in (reader, writer, late, later, twin):
        client.disconnect()


main(int(sys.argv[1]))
