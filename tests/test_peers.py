"""Codecs against software that others wrote, over real sockets, in both directions."""

from __future__ import annotations

import importlib
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.wrappers_pb2 import BytesValue
from peering import (
    TABLE,
    Peer,
    answer,
    blobs,
    blobs_without,
    connected_to,
    converse,
    filled_blobs,
    node_package,
    python_package,
    served_to,
    speaks,
    texts,
)

from trio_bytetalk import (
    Chunks,
    Codec,
    Connection,
    Delimited,
    FixedSize,
    OctetCounted,
    Structs,
    VarintPrefixed,
)

TESTS = Path(__file__).parent
TWISTED = python_package("Twisted")

PEERS = [
    Peer(
        "``LengthPrefixed(size=1)``",
        f"{TWISTED}, ``Int8StringReceiver``",
        *("twisted_peer.py", "Int8StringReceiver"),
        largest=0xFF - 8,
    ),
    Peer(
        "``LengthPrefixed(size=2)``",
        f"{TWISTED}, ``Int16StringReceiver``",
        *("twisted_peer.py", "Int16StringReceiver"),
        largest=0xFFFF - 8,
    ),
    Peer(
        "``LengthPrefixed()``",
        f"{TWISTED}, ``Int32StringReceiver``",
        *("twisted_peer.py", "Int32StringReceiver"),
    ),
    Peer(
        '``LengthPrefixed(byteorder="little")``',
        node_package("frame-stream"),
        *("node_peer.cjs", "frame-stream"),
        messages=filled_blobs,
    ),
    Peer(
        "``VarintPrefixed()``",
        node_package("length-prefixed-stream"),
        *("node_peer.cjs", "length-prefixed-stream"),
    ),
    Peer(
        "``VarintPrefixed()``",
        node_package("it-length-prefixed"),
        *("node_peer.cjs", "it-length-prefixed"),
    ),
    Peer(
        "``Netstring()``",
        f"{TWISTED}, ``NetstringReceiver``",
        *("twisted_peer.py", "NetstringReceiver"),
    ),
    Peer(
        "``Netstring()``",
        node_package("@endo/netstring"),
        *("node_peer.cjs", "netstring"),
    ),
    Peer(
        r'``Lines(newline=b"\r\n")``',
        f"{TWISTED}, ``LineReceiver``",
        *("twisted_peer.py", "LineReceiver"),
        messages=texts,
    ),
    Peer(
        r'``Lines(newline=b"\r\n")``',
        f"{TWISTED}, ``LineOnlyReceiver``",
        *("twisted_peer.py", "LineOnlyReceiver"),
        messages=texts,
    ),
    Peer(
        r'``Delimited(b"\0")``',
        f"{TWISTED}, ``LineOnlyReceiver``",
        *("twisted_peer.py", "LineOnlyReceiver-nul"),
        messages=blobs_without(b"\0"),
    ),
    Peer(
        "``COBS()``",
        python_package("cobs"),
        *("cobs_peer.py", "cobs"),
    ),
    Peer(
        "``SLIP()``",
        node_package("slip"),
        *("node_peer.cjs", "slip"),
        messages=filled_blobs,
    ),
]


@pytest.mark.parametrize("peer", PEERS, ids=str)
async def test_our_client_with_the_peers_server(peer: Peer) -> None:
    messages = peer.messages(peer.largest)
    async with connected_to(peer.program, peer.protocol, codec=peer.codec) as connection:
        await converse(messages, connection)


@pytest.mark.parametrize("peer", PEERS, ids=str)
async def test_our_server_with_the_peers_client(peer: Peer) -> None:
    handler = partial(converse, peer.messages(peer.largest))
    lines = await served_to(peer.program, peer.protocol, codec=peer.codec, handler=handler)
    assert lines == []


# -- records, as ctypes lays them out

RECORD = Structs(">IdH8s")
CTYPES = ('``Structs(">IdH8s")``', "``ctypes.BigEndianStructure``")


def records() -> list[tuple[Any, ...]]:
    return [(n, n / 7, n % 0x10000, b"%08d" % n) for n in range(0, 300_000, 100)]


def answered(record: tuple[Any, ...]) -> tuple[Any, ...]:
    number, value, flags, name = record
    return number + 1, -value, flags ^ 0xFFFF, name[::-1]


@speaks(*CTYPES, part="server")
async def test_our_client_with_a_server_of_records() -> None:
    async with connected_to("ctypes_peer.py", "record", codec=RECORD) as connection:
        await converse(records(), connection, answer=answered)


@speaks(*CTYPES, part="client")
async def test_our_server_with_a_client_of_records() -> None:
    handler = partial(converse, records(), answer=answered)
    assert await served_to("ctypes_peer.py", "record", codec=RECORD, handler=handler) == []


# -- RFC 864: the same characters again and again

NOISE = rb'@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\]^_`abcdefghijklmnopqrstuvwxyz{|}~ !"#$%&?'
CHARGEN = ("``FixedSize(71)``", f"{TWISTED}, ``Chargen``")


async def hear(chargen: Connection[bytes, bytes]) -> None:
    for _ in range(3000):
        assert await chargen.receive() == NOISE


@speaks(*CHARGEN, part="server")
async def test_our_client_with_a_server_of_noise() -> None:
    async with connected_to("twisted_peer.py", "Chargen", codec=FixedSize(71)) as chargen:
        await hear(chargen)


@speaks(*CHARGEN, part="client")
async def test_our_server_with_a_client_of_noise() -> None:
    lines = await served_to("twisted_peer.py", "Chargen", codec=FixedSize(71), handler=hear)
    assert lines == []


# -- RFC 862: all bytes back, in whatever pieces

ECHO = ("``Chunks()``", f"{TWISTED}, ``Echo``")


async def shout(echo: Connection[bytes, bytes]) -> None:
    whole = b"".join(blobs())
    heard = bytearray()
    sent = 0
    while len(heard) < len(whole):
        if sent < len(whole):
            await echo.send(whole[sent : sent + 100_000])
            sent += 100_000
        heard += await echo.receive()
    assert heard == whole


@speaks(*ECHO, part="server")
async def test_our_client_with_an_echo_server() -> None:
    async with connected_to("twisted_peer.py", "Echo", codec=Chunks()) as echo:
        await shout(echo)


@speaks(*ECHO, part="client")
async def test_our_server_with_an_echo_client() -> None:
    assert await served_to("twisted_peer.py", "Echo", codec=Chunks(), handler=shout) == []


# -- messages of protobuf, delimited as its own functions do it

PROTOBUF = ("``VarintPrefixed().map(…)``", python_package("protobuf"))


def values() -> list[BytesValue]:
    return [BytesValue(value=blob) for blob in blobs()]


def answer_value(message: BytesValue) -> BytesValue:
    return BytesValue(value=answer(message.value))


def protobuf(kind: Any) -> Codec[Any, Any]:
    return VarintPrefixed().map(decode=kind.FromString, encode=kind.SerializeToString)


@speaks(*PROTOBUF, part="server")
async def test_our_client_with_a_server_of_protobuf() -> None:
    codec = protobuf(BytesValue)
    async with connected_to("protobuf_peer.py", "BytesValue", codec=codec) as connection:
        await converse(values(), connection, answer=answer_value)


@speaks(*PROTOBUF, part="client")
async def test_our_server_with_a_client_of_protobuf() -> None:
    codec = protobuf(BytesValue)
    handler = partial(converse, values(), answer=answer_value)
    assert await served_to("protobuf_peer.py", "BytesValue", codec=codec, handler=handler) == []


# -- syslog over TCP


async def check_records(framing: str, codec: Codec[Any, bytes]) -> None:
    records: list[bytes] = []

    async def collect(connection: Connection[Any, bytes]) -> None:
        records.extend([record async for record in connection])

    sizes = await served_to("syslog_peer.py", framing, codec=codec, handler=collect)
    assert len(records) == len(sizes)
    for number, (record, size) in enumerate(zip(records, sizes, strict=True)):
        assert record.startswith(b"<14>")
        assert record.endswith(b"%d %s" % (number, b"x" * int(size)))


@speaks("``OctetCounted()``", python_package("rfc5424-logging-handler"), part="client")
async def test_our_server_with_a_syslog_handler_that_counts_octets() -> None:
    await check_records("octet-counting", OctetCounted())


@speaks(r'``Delimited(b"\0")``', "``logging.handlers.SysLogHandler``", part="client")
async def test_our_server_with_the_syslog_handler_of_python() -> None:
    await check_records("NUL", Delimited(b"\0"))


# -- docs/source/peers.rst


def test_the_page_of_peers_has_what_is_tested_and_nothing_else() -> None:
    for module in TESTS.glob("test_peers_*.py"):
        importlib.import_module(module.stem)
    page = (TESTS.parent / "docs" / "source" / "peers.rst").read_text(encoding="utf-8")
    rows = re.findall(r"^   \* - (.+)\n     - (.+)\n     - (.+)\n     - .", page, re.MULTILINE)
    assert {(codec, peer): part for codec, peer, part in rows[1:]} == {
        row: " and ".join(sorted(parts)) for row, parts in TABLE.items()
    }
    assert len(rows) == 1 + len(TABLE)
