"""What the servers of ``bytetalk serve`` do with messages."""

from __future__ import annotations

import re
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import click
import pytest
import trio
from pairs import memory
from trio.testing import wait_all_tasks_blocked

from trio_bytetalk import Codec, Connection, ProtocolError, Server, open_connection
from trio_bytetalk._cli.codecs import parse_codec
from trio_bytetalk._cli.peers import Peers
from trio_bytetalk._cli.services import Chat, Log, echo
from trio_bytetalk.testing import open_memory_connection

AnyConnection = Connection[Any, Any]


class Bytes(Codec[int, int]):
    """Of one's own, with messages that are neither text nor bytes."""

    def reader(self) -> Any:
        return parse_codec("struct:B").reader()

    def writer(self) -> Any:
        return parse_codec("struct:B").writer()


# -- echo


@pytest.mark.parametrize(
    ("codec", "message"),
    [
        ("length:4", b"\x00hello"),
        ("lines", "hällo"),
        ("json+lines", {"a": [1, None]}),
        ("struct:!IH", (1, 2)),
        ("chunks", b"as they come"),
    ],
)
async def test_echo_sends_back_what_comes(codec: str, message: Any) -> None:
    async with open_memory_connection(Server(echo, codec=parse_codec(codec))) as connection:
        for _ in range(3):
            await connection.send(message)
            assert await connection.receive() == message


async def test_what_cannot_be_sent_back_is_the_peers_fault() -> None:
    server = Server(echo, codec=parse_codec("lines"))
    reasons = []

    @server.on_disconnect
    async def note(connection: AnyConnection) -> None:
        reasons.append(connection.close_reason)

    ours, theirs = memory()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve_stream, theirs)
        await ours.send_all(b"this would end as no line can\r\r\n")
        assert await ours.receive_some() == b""
    [reason] = reasons
    assert isinstance(reason, ProtocolError)
    assert "what was received cannot be sent back: " in str(reason)


# -- chat


@asynccontextmanager
async def chatting(codec: Codec[Any, Any], people: int) -> AsyncIterator[list[AnyConnection]]:
    """A chat of so many, who came one after the other, and have read what it said about that."""
    server: Server[Any, Any] = Server(codec=codec)
    server.handler = Chat(server, Peers(server)).handle
    async with trio.open_nursery() as nursery:
        connections = []
        for _ in range(people):
            ours, theirs = memory()
            nursery.start_soon(server.serve_stream, theirs)
            connections.append(open_connection(ours, codec=codec))
            await wait_all_tasks_blocked()
        yield connections
        for connection in connections:
            await connection.aclose()


async def test_what_one_says_reaches_all_others_with_the_name() -> None:
    how = "/name NAME to be called that (bytetalk connect: with two slashes)"
    async with chatting(parse_codec("lines"), 3) as (ann, bob, cid):
        assert await ann.receive() == f"* you are unix#1, with 0 more; {how}"
        assert await bob.receive() == f"* you are unix#2, with 1 more; {how}"
        assert await cid.receive() == f"* you are unix#3, with 2 more; {how}"
        assert await ann.receive() == "* unix#2 joined"
        assert await ann.receive() == await bob.receive() == "* unix#3 joined"
        await ann.send("hello")
        assert await bob.receive() == await cid.receive() == "unix#1: hello"
        await cid.send("hello, too")
        assert await ann.receive() == await bob.receive() == "unix#3: hello, too"
        await cid.aclose()
        assert await ann.receive() == await bob.receive() == "* unix#3 left"


async def test_who_has_a_name_is_called_that() -> None:
    async with chatting(parse_codec("lines"), 2) as (ann, bob):
        for _ in range(2):
            await ann.receive()
        await bob.receive()
        for wrong in ("two words", "", "x" * 21):
            await ann.send(f"/name {wrong}")
            assert await ann.receive() == "* a name is one word of at most 20 letters"
        await ann.send("/name ann")
        assert await ann.receive() == "* you are ann now"
        assert await bob.receive() == "* unix#1 is ann now"
        await bob.send("/name ann")
        assert await bob.receive() == "* ann is taken"
        await ann.send("it is me")
        assert await bob.receive() == "ann: it is me"
        await ann.aclose()
        assert await bob.receive() == "* ann left"


async def test_bytes_have_the_name_in_front() -> None:
    async with chatting(parse_codec("length:2"), 2) as (ann, bob):
        assert (await ann.receive()).startswith(b"* you are unix#1, ")
        assert await ann.receive() == b"* unix#2 joined"
        assert (await bob.receive()).startswith(b"* you are unix#2, ")
        await bob.send(b"\xff\x00")
        assert await ann.receive() == b"unix#2: \xff\x00"
        await bob.send(b"/name bob")
        assert await ann.receive() == b"* unix#2 is bob now"


@pytest.mark.parametrize("codec", ["json+lines", "msgpack+length:2"])
async def test_values_are_put_into_one_with_the_name(codec: str) -> None:
    async with chatting(parse_codec(codec), 2) as (ann, bob):
        assert "you are unix#1" in (await ann.receive())["notice"]
        assert await ann.receive() == {"notice": "unix#2 joined"}
        await bob.receive()
        await bob.send([1, 2])
        assert await ann.receive() == {"from": "unix#2", "message": [1, 2]}
        await bob.send("/name bob")
        assert await ann.receive() == {"notice": "unix#2 is bob now"}


@pytest.mark.parametrize(
    ("codec", "message"),
    [
        ("fixed:4", b"1234"),
        ("text+fixed:4", "abcd"),
        ("json+fixed:4", 1234),
        ("struct:!H", (17,)),
        ("own", (17,)),
    ],
)
async def test_what_has_no_place_for_a_name_is_passed_on_as_it_is(codec: str, message: Any) -> None:
    parsed = Bytes() if codec == "own" else parse_codec(codec)
    async with chatting(parsed, 2) as (ann, bob):
        await ann.send(message)
        assert await bob.receive() == message
        await bob.send(message)
        assert await ann.receive() == message


async def test_what_cannot_be_passed_on_is_the_peers_fault() -> None:
    # There is no room for how the server greets either; nobody is to blame for that.
    codec = parse_codec("lines:max_size=30")
    async with chatting(codec, 2) as (ann, bob):
        await ann.send("x" * 30)
        assert [line async for line in ann] == ["* unix#2 joined"]
        assert await bob.receive() == "* unix#1 left"


async def test_that_all_leave_at_the_servers_end_is_no_news() -> None:
    codec = parse_codec("lines")
    server: Server[Any, Any] = Server(codec=codec)
    server.handler = Chat(server, Peers(server)).handle
    ends = []
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            ours, theirs = memory()
            nursery.start_soon(server.serve_stream, theirs)
            ends.append(open_connection(ours, codec=codec))
            await wait_all_tasks_blocked()
        server.stop()
    for end in ends:
        assert not any("left" in line for line in [line async for line in end])


# -- log


async def test_log_prints_a_line_for_each_message() -> None:
    printed: list[str] = []
    server: Server[Any, Any] = Server(codec=parse_codec("length"))
    log = Log(Peers(server), printed.append)
    server.handler = log.handle
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log.run)
        async with open_memory_connection(server) as connection:
            for message in (b"text\nof two lines", b"\xff\x00", b"\x1b[31m"):
                await connection.send(message)
        log.finish()
    time = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}"
    one, two, three = "".join(printed).splitlines()
    assert re.fullmatch(time + r" unix#1 text\\nof two lines", one)
    assert re.fullmatch(time + r" unix#1 ff 00", two)
    assert "\x1b" not in three


async def test_an_output_that_nobody_reads_any_more_is_told() -> None:
    def write(text: str) -> None:
        raise BrokenPipeError

    server: Server[Any, Any] = Server(codec=parse_codec("lines"))
    log = Log(Peers(server), write)
    server.handler = log.handle
    async with open_memory_connection(server) as connection:
        await connection.send("hello")
        await wait_all_tasks_blocked()
    with pytest.raises(click.ClickException, match="nobody reads the output any more"):
        await log.run()


async def test_lines_that_come_together_are_printed_together() -> None:
    printed: list[str] = []
    server: Server[Any, Any] = Server(codec=parse_codec("lines"))
    log = Log(Peers(server), printed.append)
    server.handler = log.handle
    async with open_memory_connection(server) as connection:
        for number in range(500):
            await connection.send(str(number))
        await wait_all_tasks_blocked()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log.run)
        await wait_all_tasks_blocked()
        log.finish()
    [text] = printed
    assert [int(line.split()[-1]) for line in text.splitlines()] == list(range(500))


async def test_an_output_that_takes_no_more_holds_up_the_peers_and_loses_nothing() -> None:
    may_go_on = threading.Event()
    printed: list[str] = []

    def write(text: str) -> None:
        may_go_on.wait()
        printed.append(text)

    server: Server[Any, Any] = Server(codec=parse_codec("lines"))
    log = Log(Peers(server), write)
    server.handler = log.handle
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log.run)
        async with open_memory_connection(server) as connection:
            for number in range(3000):
                await connection.send(str(number))
            await wait_all_tasks_blocked()
            # Those in print, those that wait, and the one that there is no room for.
            assert server.statistics().messages_received < 2100
            may_go_on.set()
        log.finish()
    numbers = [int(line.split()[-1]) for line in "".join(printed).splitlines()]
    assert numbers == list(range(3000))
