"""Who is connected: names, and what is logged at the beginning and the end."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
import trio
from pairs import lockstep, memory, tcp, unix
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_bytetalk import Connection, Netstring, Server, open_connection, open_unix_connection
from trio_bytetalk._cli.peers import NO_TRAFFIC, Peers, Traffic

BytesConnection = Connection[bytes, bytes]


async def echo(connection: BytesConnection) -> None:
    async for message in connection:
        await connection.send(message)


async def test_a_connection_is_logged_with_what_it_has_done(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "trio_bytetalk.serve")
    server = Server(echo)
    peers = Peers(server)
    client, end = tcp()
    address = f"127.0.0.1:{client.socket.getsockname()[1]}"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve_stream, end)
        async with open_connection(client) as connection:
            await connection.send(b"hello")
            assert await connection.receive() == b"hello"
            [served] = server.connections
            assert peers.of(served).address == peers.of(served).name == address
            began = peers.of(served).since
            assert began <= trio.current_time()
    connected, disconnected = caplog.messages
    assert connected == f"{address} connected"
    assert disconnected.startswith(
        f"{address} disconnected: the peer finished; in 1 message, 9 B; out 1 message, 9 B; "
    )


@pytest.mark.parametrize(
    ("is_reset", "reason", "level"),
    [
        (False, "closed on this side", logging.WARNING),
        # Everyday life.
        (True, "the connection broke: Connection reset by peer", logging.INFO),
    ],
)
async def test_what_a_peer_has_not_taken_is_told_at_its_end(
    is_reset: bool,
    reason: str,
    level: int,
    autojump_clock: MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def shout(connection: BytesConnection) -> None:
        await connection.send(bytes(1024 * 1024))
        if is_reset:
            await connection.receive()

    caplog.set_level(logging.INFO, "trio_bytetalk.serve")
    server = Server(shout, close_timeout=5)
    Peers(server)
    ours, theirs = unix()
    async with ours, trio.open_nursery() as nursery:
        nursery.start_soon(server.serve_stream, theirs)
        await wait_all_tasks_blocked()
        if is_reset:
            await ours.aclose()
    _, end = (record for record in caplog.records if record.name == "trio_bytetalk.serve")
    assert end.levelno == level
    assert re.fullmatch(
        rf"unix#1 disconnected: {reason}; in 0 messages, 0 B; out 1 message, .*B, and [0-9,]+ "
        "bytes that it has not taken; .*s",
        end.getMessage(),
    )


async def test_an_error_of_the_handlers_is_not_told_twice(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail(connection: BytesConnection) -> None:
        raise ValueError(f"\x1b[31m{await connection.receive()!r}")

    caplog.set_level(logging.INFO, "trio_bytetalk.serve")
    server = Server(fail)
    Peers(server)
    for message in (b"one", b"two"):
        ours, theirs = memory()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.serve_stream, theirs)
            async with open_connection(ours) as connection:
                await connection.send(message)
                await wait_all_tasks_blocked()
    ends = [message for message in caplog.messages if "disconnected" in message]
    # What it was, the server has logged, with the traceback.
    assert all("disconnected: its handler failed; in 1 message, 7 B" in end for end in ends)
    assert len(ends) == 2


async def test_what_a_peer_did_wrong_is_a_warning_and_obeyed_by_no_terminal(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "trio_bytetalk.serve")
    server = Server(echo, codec=Netstring())
    Peers(server)
    ours, theirs = memory()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve_stream, theirs)
        await ours.send_all(b"\x1b[31m")
        assert await ours.receive_some() == b""
    connected, disconnected = (
        record for record in caplog.records if record.name == "trio_bytetalk.serve"
    )
    assert connected.levelno == logging.INFO
    assert disconnected.levelno == logging.WARNING
    assert re.match(r"unix#1 disconnected: .*\\x1b", disconnected.getMessage())
    assert "\x1b" not in disconnected.getMessage()


async def test_who_is_too_slow_is_told_of_without_settings_that_the_command_has_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "trio_bytetalk.serve")
    server = Server(echo, write_buffer_size=1)
    Peers(server)
    ours, theirs = lockstep()
    async with ours, trio.open_nursery() as nursery:
        nursery.start_soon(server.serve_stream, theirs)
        await wait_all_tasks_blocked()
        for _ in range(3):
            server.broadcast(b"to all", when_full="close")
    end = caplog.messages[-1]
    assert "unix#1 disconnected: it was too slow to take what is sent to all; in 0 mess" in end


async def test_clients_of_a_unix_socket_are_numbered(tmp_path: Path, nursery: trio.Nursery) -> None:
    server = Server(echo)
    peers = Peers(server)
    path = tmp_path / "socket"
    await nursery.start(server.serve_unix, path)
    async with open_unix_connection(path), open_unix_connection(path):
        await wait_all_tasks_blocked()
        while len(server.connections) < 2:
            await trio.lowlevel.checkpoint()
        addresses = {peers.of(connection).address for connection in server.connections}
        assert addresses == {"unix#1", "unix#2"}
    nursery.cancel_scope.cancel()


async def test_a_connection_that_no_hook_was_told_of_is_a_peer_too(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Cancelled before its first event, it has its last one all the same."""
    caplog.set_level(logging.INFO, "trio_bytetalk.serve")
    server = Server(echo)
    stuck = trio.Event()

    @server.on_connect
    async def wait(_connection: BytesConnection) -> None:
        stuck.set()
        await trio.sleep_forever()

    Peers(server)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve_stream, memory()[0])
        await stuck.wait()
        nursery.cancel_scope.cancel()
    [message] = caplog.messages
    assert message.startswith(
        "unix#1 disconnected: cancelled; in 0 messages, 0 B; out 0 messages, 0 B; "
    )


def test_rates_are_differences_by_time() -> None:
    before, now = Traffic(10, 20, 300, 400), Traffic(20, 40, 600, 1000)
    assert now.since(before, 2) == Traffic(5, 10, 150, 300)
    assert now.since(before, 0) is NO_TRAFFIC
