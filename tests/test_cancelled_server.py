"""A whole server and its clients, cancelled anywhere: every life is told whole, nothing is left.

As in ``test_cancellation.py``, each scenario runs again for each place where it can be cancelled.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from cancelling import (
    Canceller,
    Moment,
    cancelled_everywhere_leaving_nothing,
)
from conftest import Tls
from pairs import Pair, frame, lockstep, memory, read_to_end, tight_unix, unix

from trio_bytetalk import (
    ClientConnected,
    ClientDisconnected,
    Connection,
    Event,
    MessageReceived,
    MessageWritten,
    Server,
    Subscription,
    open_connection,
    open_tcp_connection,
)

BytesConnection = Connection[bytes, bytes]
BytesServer = Server[bytes, bytes]

# A burst, and then what fills the queue.
MESSAGES = [*(b"%d" % number for number in range(6)), *(b"%d " % size * 400 for size in range(3))]
SENT = b"".join(map(frame, MESSAGES))


def messages_of(data: bytes) -> list[bytes]:
    """The whole messages. At the end, the stream may have been cut."""
    found = []
    while len(data) >= 4 and len(data) >= (end := 4 + int.from_bytes(data[:4], "big")):
        found.append(data[4:end])
        data = data[end:]
    return found


@attrs.define(eq=False)
class Client:
    """Sends all of its messages, in pieces, and leaves when it has as many replies or is left."""

    replies: bytes = b""

    async def talk(self, stream: trio.abc.Stream) -> None:
        async def send() -> None:
            for at in range(0, len(SENT), 700):
                await stream.send_all(SENT[at : at + 700])

        # The server has gone, in one way or another.
        with contextlib.suppress(trio.BrokenResourceError):
            async with stream:
                try:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(send)
                        while len(self.replies) < len(SENT):
                            chunk = await stream.receive_some(1000)
                            if not chunk:
                                break
                            self.replies += chunk
                        nursery.cancel_scope.cancel()
                except* trio.BrokenResourceError:
                    pass


@attrs.define(eq=False)
class Watched:
    """A server, and what is heard of it."""

    server: BytesServer
    events: list[Event] = attrs.field(factory=list)
    goodbyes: list[BytesConnection] = attrs.field(factory=list)

    def __attrs_post_init__(self) -> None:
        @self.server.on_disconnect
        async def goodbye(connection: BytesConnection) -> None:
            self.goodbyes.append(connection)
            await trio.lowlevel.checkpoint()

    async def listen(self, task_status: trio.TaskStatus[None]) -> None:
        async with self.server.events(buffer_size=1) as events:
            task_status.started()
            async for event in events:
                self.events.append(event)

    def check(self, clients: Sequence[Client], *, orderly: bool) -> None:
        """Check what was told and what came. After an ``orderly`` end all that was sent came."""
        lives: dict[BytesConnection, list[Event]] = defaultdict(list)
        for event in self.events:
            lives[event.connection].append(event)
        assert len(lives) == len(self.goodbyes) == self.server.statistics().connections_total
        assert set(lives) == set(self.goodbyes)
        written: list[int] = []
        for connection, life in lives.items():
            assert isinstance(life[0], ClientConnected)
            assert isinstance(life[-1], ClientDisconnected)
            of_messages = life[1:-1]
            received = [e.message for e in of_messages if isinstance(e, MessageReceived)]
            assert received == MESSAGES[: len(received)]
            # The last one may have been cancelled on its way to the further listeners.
            assert len(received) - connection.statistics().messages_received in (0, 1)
            written.append(sum(isinstance(event, MessageWritten) for event in of_messages))
            assert len(received) + written[-1] == len(of_messages)
            assert connection.close_reason is not None

        came = []
        for client in clients:
            replies = messages_of(client.replies)
            came.append(len(replies))
            assert SENT.startswith(client.replies)
            assert not orderly or b"".join(map(frame, replies)) == client.replies
        sent = sorted(connection.statistics().messages_sent for connection in lives)
        came = sorted(came)[len(came) - len(sent) :]  # who was not served has got nothing
        if orderly:
            assert came == sent
        for arrived, of_sent, of_written in zip(came, sent, sorted(written), strict=True):
            assert of_written <= arrived <= of_sent

        assert not self.server.connections
        assert not self.server.is_running
        for emitter in self.server._emitters:
            assert not any(isinstance(each, Subscription) for each in emitter._listeners)


def make_server(kind: str, canceller: Canceller, victim: str) -> BytesServer:
    """An echo server, made in one of the two ways; its first conversation may be cancelled."""
    conversations = itertools.count()

    def may_cancel(number: int) -> contextlib.AbstractContextManager[None]:
        if victim == "conversation" and number == 0:
            return canceller.scope()
        return contextlib.nullcontext()

    server: BytesServer
    if kind == "handler":

        async def echo(connection: BytesConnection) -> None:
            with may_cancel(next(conversations)):
                async for message in connection:
                    await connection.send(message)

        return Server(echo, write_buffer_size=100)

    server = Server(write_buffer_size=100)

    @server.on_connect
    async def number(connection: BytesConnection) -> None:
        connection.context = next(conversations)
        await trio.lowlevel.checkpoint()

    @server.on_message
    async def send(connection: BytesConnection, message: bytes) -> None:
        with may_cancel(connection.context):
            await connection.send(message)
            return
        await connection.send(message)  # cancelled, it was not sent

    return server


@attrs.define
class _Started:
    """A task's status for who is not its parent."""

    event: trio.Event = attrs.field(factory=trio.Event)

    def started(self, _value: Any = None) -> None:
        self.event.set()

    set = started


@pytest.mark.parametrize("transport", ["lockstep", "unix", "tls"])
@pytest.mark.parametrize("kind", ["handler", "hooks"])
@pytest.mark.parametrize("victim", ["server", "stopping server", "conversation"])
async def test_a_server_cancelled_anywhere_tells_all_and_leaves_nothing(
    transport: str, kind: str, victim: str, moment: Moment, tls: Tls, tmp_path: Path
) -> None:
    path = tmp_path / "s"

    async def scenario(canceller: Canceller) -> None:
        watched = Watched(make_server(kind, canceller, victim))
        server = watched.server
        clients = [Client()] if transport == "lockstep" else [Client(), Client()]

        if victim == "stopping server":

            @server.on_message
            async def stop(_connection: BytesConnection, message: bytes) -> None:
                if message == MESSAGES[5]:
                    server.stop()

        async def serve() -> None:
            with contextlib.ExitStack() as stack:
                stack.callback(started.set)
                if victim != "conversation":
                    stack.enter_context(canceller.scope(children=True))
                if transport == "lockstep":
                    await server.serve_stream(theirs)
                else:
                    context = tls.server if transport == "tls" else None
                    await server.serve_unix(path, ssl_context=context, task_status=started)

        async def dial(client: Client) -> None:
            try:
                stream: trio.abc.Stream = await trio.open_unix_socket(path)
            except OSError:
                return  # the server has been cancelled before
            if transport == "tls":
                stream = tls.at_client(stream)
            await client.talk(stream)

        started = _Started()
        ours, theirs = lockstep()
        async with trio.open_nursery() as listening:
            await listening.start(watched.listen)
            async with trio.open_nursery() as serving:
                serving.start_soon(serve)
                async with trio.open_nursery() as talks:
                    if transport == "lockstep":
                        talks.start_soon(clients[0].talk, ours)
                    else:
                        await started.event.wait()
                        for client in clients:
                            talks.start_soon(dial, client)
                server.stop()
            await trio.testing.wait_all_tasks_blocked()
            listening.cancel_scope.cancel()
        watched.check(clients, orderly=victim == "conversation" or not canceller.fired)
        assert not path.exists()

    steps = await cancelled_everywhere_leaving_nothing(moment, scenario)
    # A conversation in hooks may find all of its messages there at once, and never wait.
    assert steps > 1 or (victim, kind) == ("conversation", "hooks")


@pytest.mark.parametrize("secure", [False, True])
async def test_a_client_cancelled_anywhere_leaves_nothing(
    nursery: trio.Nursery, secure: bool, moment: Moment, tls: Tls
) -> None:
    server = make_server("handler", Canceller(0, moment), "nobody")
    context = tls.server if secure else None
    [listener] = await nursery.start(
        functools.partial(server.serve_tcp, 0, host="127.0.0.1", ssl_context=context)
    )
    port = listener.socket.getsockname()[1]

    async def scenario(canceller: Canceller) -> None:
        received: list[bytes] = []
        with canceller.scope(children=True):
            async with open_tcp_connection(
                "127.0.0.1",
                port,
                ssl_context=tls.client if secure else None,
                server_hostname="example.org" if secure else None,
            ) as connection:
                for message in MESSAGES:
                    await connection.send(message)
                    received.append(await connection.receive())
                await connection.flush()
        assert received == MESSAGES[: len(received)]
        assert canceller.fired or received == MESSAGES
        # One that was given up in the backlog is still to be accepted.
        await trio.testing.wait_all_tasks_blocked()
        while server.connections:
            await trio.lowlevel.checkpoint()

    assert await cancelled_everywhere_leaving_nothing(moment, scenario) > 10


@pytest.mark.parametrize("make", [memory, lockstep, unix, tight_unix])
async def test_one_of_several_senders_cancelled_anywhere(
    make: Callable[[], Pair], moment: Moment
) -> None:
    # Longer than what a tight socket takes at once.
    messages = {name: [name + b"%d " % size * 300 for size in range(9)] for name in (b"a", b"b")}

    async def scenario(canceller: Canceller) -> None:
        ours, peer = make()
        arrived = b""

        async with open_connection(ours, write_buffer_size=100) as connection:

            async def send(name: bytes) -> None:
                for message in messages[name]:
                    with canceller.scope() if name == b"a" else contextlib.nullcontext():
                        await connection.send(message)
                        continue
                    await connection.send(message)  # cancelled, it was not sent

            async def end() -> None:
                async with trio.open_nursery() as senders:
                    for name in messages:
                        senders.start_soon(send, name)
                for finish in (connection.flush, connection.send_eof):
                    with canceller.scope():
                        await finish()
                    await finish()  # doing it again is harmless, and does what was left undone

            async with trio.open_nursery() as nursery:
                nursery.start_soon(end)
                await trio.testing.wait_all_tasks_blocked()  # until there is no more room
                arrived = await read_to_end(peer)
            assert connection.statistics().messages_sent == 18
            assert connection.statistics().bytes_queued == 0
        await peer.aclose()
        frames = messages_of(arrived)
        assert b"".join(map(frame, frames)) == arrived
        for name, of_name in messages.items():
            assert [message for message in frames if message.startswith(name)] == of_name

    assert await cancelled_everywhere_leaving_nothing(moment, scenario) > 2
