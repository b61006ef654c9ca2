"""DNS over TCP (RFC 1035 and 7766): dnspython asks us, and we ask Twisted."""

from __future__ import annotations

import random

from peering import connected_to, converse, python_package, served_to, speaks

from trio_bytetalk import Connection, LengthPrefixed

CODEC = LengthPrefixed(size=2, max_size=0xFFFF)
WRITTEN = "``LengthPrefixed(size=2)``, DNS over TCP"
LARGEST = 65_000
NAME_AT = 12  # in a message, behind the header


def text_of(size: int) -> bytes:
    """The data of a TXT record: strings of at most 255 bytes, each behind its length."""
    text = (b"%d " % size * size)[:size]
    strings = [text[begin : begin + 255] for begin in range(0, size, 255)] or [b""]
    return b"".join(bytes([len(string)]) + string for string in strings)


def answer(question: bytes) -> bytes:
    """The answer as we write it: the question once more, and one TXT record."""
    end = question.index(b"\0\0\x10\0\x01", NAME_AT) + 5  # the name's end, TXT, IN
    size = int(question[NAME_AT + 1 : NAME_AT + 1 + question[NAME_AT]])
    data = text_of(size)
    header = question[:2] + bytes.fromhex("8080 0001 0001 0000 0000")
    pointer = bytes.fromhex("c00c 0010 0001 00000000")  # to the name; TXT, IN, not to be kept
    return header + question[NAME_AT:end] + pointer + len(data).to_bytes(2) + data


@speaks(WRITTEN, python_package("dnspython"), part="client")
async def test_dnspython_asks_our_server() -> None:
    async def serve(connection: Connection[bytes, bytes]) -> None:
        async for question in connection:
            await connection.send(answer(question))

    lines = await served_to("dnspython_peer.py", codec=CODEC, handler=serve)
    assert lines == ["4002 answers"]


@speaks(WRITTEN, f"{python_package('Twisted')}, ``DNSServerFactory``", part="server")
async def test_our_client_asks_the_server_of_twisted() -> None:
    dice = random.Random(4)
    sizes = [*range(300), LARGEST, *(int(LARGEST ** dice.random()) for _ in range(1700))]
    questions = []
    for number, size in enumerate(sizes):
        label = b"%d" % size
        name = bytes([len(label)]) + label + b"\7example\0"
        header = number.to_bytes(2) + bytes.fromhex("0000 0001 0000 0000 0000")
        questions.append(header + name + bytes.fromhex("0010 0001"))

    async with connected_to("twisted_names_peer.py", "dns", codec=CODEC) as connection:
        await converse(questions, connection, answer=answer)
