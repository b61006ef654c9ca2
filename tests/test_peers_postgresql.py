"""A server that speaks PostgreSQL's protocol 3.0 as far as libpq asks, which psql and psycopg are.

https://www.postgresql.org/docs/current/protocol-message-formats.html
"""

from __future__ import annotations

import hashlib
import secrets
import ssl
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from struct import pack, unpack_from

import pytest
import trustme
from peering import python_package, served_to, speaks

from trio_bytetalk import Connection, FixedSize, LengthPrefixed

Client = Connection[bytes, bytes]

# The length counts itself. Before it stands a byte that says what a message is, save at first.
STARTUP = LengthPrefixed(adjustment=-4)
MESSAGES = LengthPrefixed(offset=1, adjustment=-4)

VERSION_3, SSL_REQUEST, GSS_REQUEST = 3 << 16, 80877103, 80877104
USER, PASSWORD = b"alice", b"open sesame"

# One column of the type 17, which is bytea, in binary.
ROW_DESCRIPTION = b"T" + pack("!h", 1) + b"word\0" + pack("!ihihih", 0, 0, 17, -1, -1, 1)


async def shake_hands(client: Client, ssl_context: ssl.SSLContext | None) -> dict[bytes, bytes]:
    """What comes before all messages; returns the client's parameters."""
    while True:
        packet = await client.receive()
        (code,) = unpack_from("!I", packet)
        if code not in (SSL_REQUEST, GSS_REQUEST):
            break
        secure = code == SSL_REQUEST and ssl_context is not None
        client.use(FixedSize(1))
        await client.send(b"S" if secure else b"N")
        client.use(STARTUP)
        if secure and ssl_context is not None:
            await client.start_tls(ssl_context)
    assert code == VERSION_3
    words = packet[4:].split(b"\0")
    client.use(MESSAGES)
    return dict(zip(words[::2], words[1::2], strict=False))


async def ask_nothing(client: Client) -> bool:
    return True


async def ask_password(client: Client) -> bool:
    await client.send(b"R" + pack("!I", 3))
    return await client.receive() == b"p" + PASSWORD + b"\0"


async def ask_md5(client: Client) -> bool:
    salt = secrets.token_bytes(4)
    await client.send(b"R" + pack("!I", 5) + salt)
    inner = hashlib.md5(PASSWORD + USER).hexdigest().encode()
    outer = hashlib.md5(inner + salt).hexdigest().encode()
    return await client.receive() == b"pmd5" + outer + b"\0"


async def fail(client: Client, state: bytes, text: bytes) -> None:
    await client.send(b"ESERROR\0C" + state + b"\0M" + text + b"\0\0")


async def serve(
    ask: Callable[[Client], Awaitable[bool]], ssl_context: ssl.SSLContext | None, client: Client
) -> None:
    parameters = await shake_hands(client, ssl_context)
    assert (parameters[b"user"], parameters[b"database"]) == (USER, b"words")
    if not await ask(client):
        await fail(client, b"28P01", b"another password, please")
        return
    await client.send(b"R" + pack("!I", 0))
    await client.send(b"Sserver_version\0" + b"17.0 of sorts\0")
    await client.send(b"Sclient_encoding\0UTF8\0")
    await client.send(b"K" + pack("!II", 1, 2))
    await client.send(b"ZI")

    words: list[bytes] = []
    parameter = b""
    while (message := await client.receive())[:1] != b"X":
        match message[:1], message[1:]:
            case b"Q", query:
                await answer_simply(client, query, words)
                await client.send(b"ZI")
            case b"P", _:
                await client.send(b"1")
            case b"B", body:
                parameter = parameter_of(body)
                await client.send(b"2")
            case b"D", _:
                await client.send(ROW_DESCRIPTION)
            case b"E", _:
                await client.send(row(parameter[::-1]))
                await client.send(b"CSELECT 1\0")
            case b"H", b"":
                await client.flush()
            case b"S", b"":
                await client.send(b"ZI")
            case _:
                raise AssertionError(f"what is {message!r:.80}?")


async def answer_simply(client: Client, query: bytes, words: list[bytes]) -> None:
    match query:
        case b"COPY words FROM STDIN\0":
            await client.send(b"G" + pack("!bhh", 0, 1, 0))
            while (message := await client.receive())[:1] == b"d":
                words.append(message[1:])
            assert message == b"c"
            await client.send(b"CCOPY %d\0" % len(words))
        case b"COPY words TO STDOUT\0":
            await client.send(b"H" + pack("!bhh", 0, 1, 0))
            for word in words:
                await client.send(b"d" + word[::-1])
            await client.send(b"c")
            await client.send(b"CCOPY %d\0" % len(words))
        case b"SELECT word FROM words\0":
            await client.send(ROW_DESCRIPTION)
            for word in words:
                await client.send(row(word[::-1]))
            await client.send(b"CSELECT %d\0" % len(words))
        case _:
            await fail(client, b"42601", b"no such query here")


def parameter_of(body: bytes) -> bytes:
    """The one parameter of a Bind message: behind two names, and the formats of parameters."""
    _portal, _statement, rest = body.split(b"\0", 2)
    (formats,) = unpack_from("!h", rest)
    rest = rest[2 + 2 * formats :]
    count, size = unpack_from("!hi", rest)
    assert count == 1
    return rest[6 : 6 + size]


def row(word: bytes) -> bytes:
    return b"D" + pack("!hi", 1, len(word)) + word


@speaks(
    "``LengthPrefixed(offset=1, adjustment=-4)``",
    f"{python_package('psycopg')}, which is libpq",
    part="client",
)
@pytest.mark.parametrize("ask", [ask_nothing, ask_password, ask_md5])
async def test_libpq_signs_on_and_exchanges_thousands_of_rows(
    ask: Callable[[Client], Awaitable[bool]],
) -> None:
    settings = "sslmode=prefer password='open sesame'"  # it asks for TLS first, and goes on without
    handler = partial(serve, ask, None)
    lines = await served_to("psycopg_peer.py", settings, codec=STARTUP, handler=handler)
    assert lines == ["without TLS", "server 17.0 of sorts", "no such query here"]


async def test_libpq_with_tls(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "root.pem")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)

    settings = f"sslmode=verify-full sslrootcert={tmp_path}/root.pem password='open sesame'"
    handler = partial(serve, ask_password, context)
    lines = await served_to("psycopg_peer.py", settings, codec=STARTUP, handler=handler)
    assert lines == ["with TLS", "server 17.0 of sorts", "no such query here"]


async def test_libpq_with_the_wrong_password() -> None:
    handler = partial(serve, ask_md5, None)
    lines = await served_to(
        "psycopg_peer.py", "sslmode=disable password=guess", codec=STARTUP, handler=handler
    )
    [line] = lines
    assert line.endswith("ERROR:  another password, please")
