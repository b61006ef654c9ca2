"""``examples/mqtt_broker.py``, a codec of its own, and Eclipse Paho's MQTT clients."""

from __future__ import annotations

import signal

import trio
from peering import PATIENCE, python_package, speaks
from peering import running as running_peer
from test_examples import Outcome, running


@speaks("MQTT 3.1.1, as in ``examples/mqtt_broker.py``", python_package("paho-mqtt"), part="client")
async def test_paho_clients_at_the_example_broker() -> None:
    with trio.fail_after(PATIENCE):
        async with running("mqtt_broker.py") as broker:
            async with running_peer("paho_peer.py", broker.port) as peer:
                assert [line async for line in peer] == []
            outcome = await broker.stop(signal.SIGTERM)
    assert outcome == Outcome(0, [], "")
