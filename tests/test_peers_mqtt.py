"""``examples/mqtt_broker.py``, a codec of its own, and Eclipse Paho's MQTT clients."""

from __future__ import annotations

import importlib.util
import signal
from pathlib import Path
from typing import Any

import pytest
import trio
from peering import HOST, PATIENCE, python_package, speaks
from peering import running as running_peer
from test_examples import EXAMPLES, STOPPING, Outcome, running

from trio_bytetalk import Codec, EncodeError
from trio_bytetalk.testing import check_codec

CONNECT = bytes.fromhex("10 0d 0004 4d515454 04 02 0000 0001 61")  # as the client "a"
CONNACK = bytes.fromhex("20 02 0000")


@speaks("MQTT 3.1.1, as in ``examples/mqtt_broker.py``", python_package("paho-mqtt"), part="client")
async def test_paho_clients_at_the_example_broker() -> None:
    with trio.fail_after(PATIENCE):
        async with running("mqtt_broker.py") as broker:
            async with running_peer("paho_peer.py", broker.port) as peer:
                assert [line async for line in peer] == []
            outcome = await broker.stop(signal.SIGTERM)
    assert outcome == Outcome(0, [], STOPPING[signal.SIGTERM])


@pytest.mark.parametrize(
    ("sent", "complaint"),
    [
        ("c0 8080808000", "a length of more than four bytes"),
        ("30 81 80 40", "1048577 bytes; max_size is 1048576"),
        ("30 01 00", "malformed"),  # a topic without its length
        ("30 03 0002 61", "malformed"),  # a topic of one byte that should have two
        ("30 03 0001 ff", "malformed"),  # no UTF-8
        ("30 02 0000", "not a topic to publish to"),
        ("30 03 0001 23", "not a topic to publish to"),  # '#'
        ("34 05 0001 61 0001", "not QoS 0 or 1"),  # 2
        ("82 05 0001 0001 61", "malformed"),  # no QoS
        ("80 06 0001 0001 61 00", "type 8 with the flags 0000"),
        ("f0 00", "type 15"),
    ],
)
async def test_the_example_broker_sends_away_who_breaks_the_rules(
    sent: str, complaint: str
) -> None:
    async with running("mqtt_broker.py") as broker:
        stream = await trio.open_tcp_stream(HOST, broker.port)
        async with stream:
            await stream.send_all(CONNECT + bytes.fromhex(sent))
            received = b""
            while chunk := await stream.receive_some():
                received += chunk
        outcome = await broker.stop(signal.SIGTERM)
    assert received == CONNACK
    assert outcome.code == 0
    assert outcome.errors.endswith("\n" + STOPPING[signal.SIGTERM])
    assert complaint in outcome.errors.splitlines()[-2]


async def test_the_example_broker_refuses_another_version() -> None:
    async with running("mqtt_broker.py") as broker:
        stream = await trio.open_tcp_stream(HOST, broker.port)
        async with stream:
            await stream.send_all(CONNECT.replace(b"MQTT\4", b"MQTT\5"))
            assert await stream.receive_some() == bytes.fromhex("20 02 0001")
            assert await stream.receive_some() == b""
        outcome = await broker.stop(signal.SIGTERM)
    assert outcome == Outcome(0, [], STOPPING[signal.SIGTERM])


def mqtt() -> Codec[Any, Any]:
    """The codec of the example, which is no module of a package."""
    path = Path(EXAMPLES, "mqtt_broker.py")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    codec: Codec[Any, Any] = module.Mqtt()
    return codec


def test_the_example_codec_stands_the_check() -> None:
    sizes = [0, 1, 127, 128, 16_383, 16_384]
    check_codec(mqtt(), [(0x30, bytes(size)) for size in sizes])


def test_the_example_codec_sends_no_length_that_mqtt_has_no_room_for() -> None:
    with pytest.raises(EncodeError, match="268435456 bytes"):
        mqtt().writer().encode((0x30, range(1 << 28)))  # so long, and no memory
