"""The snippets of the design, character for character, do what the design says."""

from __future__ import annotations

import ast
import functools
import inspect
from typing import Any

import pytest
import trio
import trio.testing

import trio_bytetalk
from trio_bytetalk import (
    ClientConnected,
    CloseReason,
    MessageReceived,
    Server,
    open_tcp_connection,
)
from trio_bytetalk.testing import open_memory_connection

ECHO = """\
import trio
from trio_bytetalk import Server

async def echo(connection):
    async for message in connection:
        await connection.send(message)

trio.run(Server(echo).serve_tcp, 5555)
"""

HOOKS = """\
server = Server()

@server.on_connect
async def choose_protocol(connection):
    connection.use(LengthPrefixed())        # or connection.reader = …; connection.writer = …
    connection.context = {"name": None}

@server.on_message
async def echo(connection, message):
    await connection.send(message)

@server.on_disconnect
async def goodbye(connection):
    print(connection.remote_address, connection.close_reason)
"""

EVENTS = """\
async with server.message_received.subscribe() as events:
    async for event in events:              # MessageReceived(connection, message)
        ...
"""

CLIENT = """\
async with open_tcp_connection("localhost", 5555) as connection:
    await connection.send(b"hello")
    print(await connection.receive())
"""

TEST = """\
async def test_echo():
    async with open_memory_connection(Server(echo)) as connection:   # trio_bytetalk.testing
        await connection.send(b"hello")
        assert await connection.receive() == b"hello"
"""


async def run(snippet: str, **names: Any) -> dict[str, Any]:
    """Run a snippet as if it stood in a function where ``names`` are known; what is known then."""
    code = compile(
        snippet, "<design>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True
    )
    result = eval(code, names)
    if inspect.iscoroutine(result):
        await result
    return names


async def run_echo_server(
    monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery
) -> tuple[int, dict[str, Any]]:
    """Run the server's snippet, on a port that is free; the port and what is known then."""
    calls: list[tuple[Any, ...]] = []
    with monkeypatch.context() as patched:
        patched.setattr(trio, "run", lambda *arguments: calls.append(arguments))
        names = await run(ECHO)
    ((serve, port),) = calls
    assert port == 5555
    listeners: list[trio.SocketListener] = await nursery.start(serve, 0)
    for listener in listeners:
        if listener.socket.getsockname()[0] == "0.0.0.0":
            return listener.socket.getsockname()[1], names
    raise AssertionError(listeners)


async def test_the_echo_server_and_the_client(
    monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery, capsys: pytest.CaptureFixture[str]
) -> None:
    port, _ = await run_echo_server(monkeypatch, nursery)

    def open_at_that_port(host: str, designed_port: int) -> Any:
        assert (host, designed_port) == ("localhost", 5555)
        return open_tcp_connection("127.0.0.1", port)

    await run(CLIENT, open_tcp_connection=open_at_that_port)
    assert capsys.readouterr().out == "b'hello'\n"


async def test_the_server_in_hooks(
    nursery: trio.Nursery, capsys: pytest.CaptureFixture[str]
) -> None:
    names = await run(HOOKS, **vars(trio_bytetalk))
    server = names["server"]
    (listener,) = await nursery.start(functools.partial(server.serve_tcp, 0, host="127.0.0.1"))
    port = listener.socket.getsockname()[1]
    async with server.events() as events:
        async with open_tcp_connection("127.0.0.1", port) as connection:
            await connection.send(b"hello")
            assert await connection.receive() == b"hello"
            (theirs,) = server.connections
            assert theirs.context == {"name": None}
            address = connection.local_address
        server.stop()
        kinds = [type(event) async for event in events]
    assert kinds[0] is ClientConnected
    assert capsys.readouterr().out == f"{address} {CloseReason.END_OF_STREAM}\n"


async def test_the_events_as_a_channel() -> None:
    async def echo(connection: trio_bytetalk.Connection[Any, Any]) -> None:
        async for message in connection:
            await connection.send(message)

    server = Server(echo)
    heard: list[object] = []

    async def follow() -> None:
        await run(EVENTS, server=server)

    # The snippet looks at what it hears in `...`; this one does it in words.
    async def record() -> None:
        async with server.message_received.subscribe() as events:
            heard.extend([event async for event in events])

    async with trio.open_nursery() as followers:
        followers.start_soon(follow)
        followers.start_soon(record)
        await trio.testing.wait_all_tasks_blocked()
        async with open_memory_connection(server) as connection:
            await connection.send(b"hello")
            assert await connection.receive() == b"hello"
            (theirs,) = server.connections
            server.stop()
    assert heard == [MessageReceived(theirs, b"hello")]


async def test_the_test(monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery) -> None:
    _, known = await run_echo_server(monkeypatch, nursery)
    names = await run(TEST, **known, open_memory_connection=open_memory_connection)
    await names["test_echo"]()
