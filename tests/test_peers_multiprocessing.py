"""`multiprocessing.connection`, with its authentication and both forms of its length."""

from __future__ import annotations

import hmac
import secrets
from multiprocessing import connection as theirs
from struct import Struct
from types import SimpleNamespace
from typing import Any, Literal

import attrs
import pytest
from peering import blobs, connected_to, converse, served_to, speaks

from trio_bytetalk import (
    NEED_DATA,
    Codec,
    Connection,
    LengthPrefixed,
    MessageTooLargeError,
    NeedData,
    ProtocolError,
    Reader,
    ReceiveBuffer,
    Writer,
)

SHORTER = "``LengthPrefixed(signed=True)``"
EITHER = "One of 30 lines, with both forms of the length"
PEER = "``multiprocessing.connection``"

SHORT, LONG = Struct("!i"), Struct("!iQ")
KEY = b"not for everyone"


@attrs.define(eq=False)
class PipeReader(Reader[bytes]):
    max_size: int

    def decode(self, buffer: ReceiveBuffer) -> bytes | Literal[NeedData.NEED_DATA]:
        header = buffer.peek(SHORT.size)
        if header is None:
            return NEED_DATA
        (size,) = SHORT.unpack(header)
        if size == -1:
            header = buffer.peek(LONG.size)
            if header is None:
                return NEED_DATA
            _, size = LONG.unpack(header)
        if not 0 <= size <= self.max_size:
            raise MessageTooLargeError(f"{size} bytes; max_size is {self.max_size}")
        message = buffer.take(size, skip=len(header))
        return NEED_DATA if message is None else message


@attrs.define(eq=False)
class PipeWriter(Writer[bytes]):
    longest_short: int

    def encode(self, message: bytes) -> tuple[bytes, bytes]:
        size = len(message)
        return (LONG.pack(-1, size) if size > self.longest_short else SHORT.pack(size)), message


@attrs.frozen
class Pipe(Codec[bytes, bytes]):
    """What a ``multiprocessing.Pipe`` has inside. Python begins long lengths at 2 GiB."""

    max_size: int = 2**20
    longest_short: int = 0x7FFFFFFF

    def reader(self) -> PipeReader:
        return PipeReader(self.max_size)

    def writer(self) -> PipeWriter:
        return PipeWriter(self.longest_short)


CODECS = [LengthPrefixed(signed=True), Pipe(), Pipe(longest_short=1000)]


async def answer_challenge(connection: Connection[bytes, bytes], key: bytes) -> None:
    challenge = (await connection.receive()).removeprefix(b"#CHALLENGE#")
    prefix, digest = b"", "md5"
    if len(challenge) > 20:  # since Python 3.12
        prefix = challenge[: challenge.index(b"}") + 1]
        digest = prefix[1:-1].decode()
    await connection.send(prefix + hmac.digest(key, challenge, digest))
    if await connection.receive() != b"#WELCOME#":
        raise ProtocolError("not welcome")


async def deliver_challenge(connection: Connection[bytes, bytes], key: bytes) -> None:
    challenge = b"{sha256}" + secrets.token_bytes(40)
    await connection.send(b"#CHALLENGE#" + challenge)
    answer = await connection.receive()
    prefix, digest = b"", "md5"  # as Python answered any challenge before 3.12
    if len(answer) > 16:
        prefix, digest = b"{sha256}", "sha256"
    if answer != prefix + hmac.digest(key, challenge, digest):
        await connection.send(b"#FAILURE#")
        raise ProtocolError("the wrong key")
    await connection.send(b"#WELCOME#")


async def welcome_and_converse(connection: Connection[bytes, bytes]) -> None:
    await deliver_challenge(connection, KEY)
    await answer_challenge(connection, KEY)
    await converse(blobs(), connection)


@speaks(SHORTER, PEER, part="server")
@speaks(EITHER, PEER, part="server")
@pytest.mark.parametrize("codec", CODECS)
async def test_our_client_with_a_listener(codec: Codec[bytes, bytes]) -> None:
    async with connected_to("multiprocessing_peer.py", KEY.decode(), codec=codec) as connection:
        await answer_challenge(connection, KEY)
        await deliver_challenge(connection, KEY)
        await converse(blobs(), connection)


@speaks(SHORTER, PEER, part="client")
@speaks(EITHER, PEER, part="client")
@pytest.mark.parametrize("codec", CODECS)
async def test_our_server_with_a_client(codec: Codec[bytes, bytes]) -> None:
    lines = await served_to(
        "multiprocessing_peer.py", KEY.decode(), codec=codec, handler=welcome_and_converse
    )
    assert lines == []


async def test_a_listener_with_another_key_refuses_our_client() -> None:
    async with connected_to("multiprocessing_peer.py", "another key", codec=Pipe()) as connection:
        with pytest.raises(ProtocolError, match="not welcome"):
            await answer_challenge(connection, KEY)


async def test_our_server_refuses_a_client_with_another_key() -> None:
    async def refuse(connection: Connection[bytes, bytes]) -> None:
        with pytest.raises(ProtocolError, match="the wrong key"):
            await deliver_challenge(connection, KEY)

    lines = await served_to("multiprocessing_peer.py", "another", codec=Pipe(), handler=refuse)
    assert lines == ["digest sent was rejected"]


def test_the_length_of_a_huge_message_is_read_as_python_writes_it() -> None:
    class Huge:
        def __len__(self) -> int:
            return 2**31

    sent: list[Any] = []
    connection_class: Any = theirs.Connection
    connection_class._send_bytes(SimpleNamespace(_send=sent.append), Huge())
    header = b"".join(sent[:-1])

    buffer = ReceiveBuffer()
    buffer.feed(header)
    assert Pipe(max_size=2**31).reader().decode(buffer) is NEED_DATA
    assert buffer.wanted == len(header) + 2**31
    with pytest.raises(MessageTooLargeError, match="2147483648 bytes"):
        Pipe(max_size=2**31 - 1).reader().decode(buffer)
