"""A server under load, and whether all is accounted for and given back afterwards."""

from __future__ import annotations

import gc
import json
import os
import pathlib
import resource
import subprocess
import sys
from collections.abc import Callable
from typing import Any, Final

import attrs
import trio
import trio.testing

from trio_bytetalk import Connection, Server

HERE: Final = pathlib.Path(__file__).resolve().parent

# Far less than one block for each connection or message of the default load, and its memory.
_BLOCKS_TOLERANCE: Final = 5_000
_MEMORY_TOLERANCE: Final = 32 * 2**20
_SPARE_DESCRIPTORS: Final = 100


@attrs.frozen
class Held:
    """What this process holds."""

    connections: int
    descriptors: int
    tasks: int
    blocks: int  # of memory, that Python's objects have
    memory: int  # bytes that are resident

    @classmethod
    def now(cls) -> Held:
        gc.collect()
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
        return cls(
            sum(isinstance(each, Connection) for each in gc.get_objects()),
            len(os.listdir("/proc/self/fd")),
            trio.lowlevel.current_statistics().tasks_living,
            sys.getallocatedblocks(),
            pages * resource.getpagesize(),
        )


def check_limit(connections: int) -> None:
    """Raise SystemExit if there cannot be as many sockets."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = connections + _SPARE_DESCRIPTORS
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise SystemExit(
            f"soak: {connections} connections need a limit of {needed} open files, and it is "
            f"{hard}; raise it (ulimit -Hn {needed}, as root) or use fewer --connections"
        )
    if soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


@attrs.define(eq=False)
class Soak:
    """One server, what its clients have counted, and what was not as it should be."""

    connections: int
    messages: int
    seed: int
    progress: Callable[[str], None]
    server: Server[bytes, bytes] = attrs.field(init=False)
    live: int = 0
    most: int = 0
    connected: int = 0
    disconnected: int = 0
    counts: dict[str, int] = attrs.field(factory=dict)
    faults: list[str] = attrs.field(factory=list)

    def __attrs_post_init__(self) -> None:
        self.server = Server(self.echo)

    async def echo(self, connection: Connection[bytes, bytes]) -> None:
        self.live += 1
        self.most = max(self.most, self.live)
        try:
            async for message in connection:
                await connection.send(message)
        except trio.BrokenResourceError:
            pass  # a client has reset it
        finally:
            self.live -= 1

    async def run(self) -> None:
        """Serve until the clients are done, and compare what they and the server have counted."""
        server = self.server
        async with trio.open_nursery() as nursery:
            await nursery.start(self.count_connected)
            await nursery.start(self.count_disconnected)
            async with trio.open_nursery() as serving:
                listeners = await serving.start(self.serve)
                await self.clients(listeners[0].socket.getsockname()[1])
                server.stop()
            await trio.testing.wait_all_tasks_blocked()  # the subscriptions are read by then
            nursery.cancel_scope.cancel()
        self.compare()

    async def serve(self, task_status: trio.TaskStatus[Any]) -> None:
        await self.server.serve_tcp(0, host="127.0.0.1", task_status=task_status)

    async def count_connected(self, task_status: trio.TaskStatus[None]) -> None:
        async with self.server.client_connected.subscribe() as events:
            task_status.started()
            async for _ in events:
                self.connected += 1

    async def count_disconnected(self, task_status: trio.TaskStatus[None]) -> None:
        async with self.server.client_disconnected.subscribe() as events:
            task_status.started()
            async for _ in events:
                self.disconnected += 1

    async def run_clients(
        self, numbers: list[str], task_status: trio.TaskStatus[trio.Process]
    ) -> None:
        await trio.run_process(
            [sys.executable, "-m", "soak.clients", *numbers],
            stdout=subprocess.PIPE,
            check=False,
            cwd=HERE.parent,
            task_status=task_status,
        )

    async def clients(self, port: int) -> None:
        numbers = (port, self.connections, self.messages, self.seed)
        async with trio.open_nursery() as nursery:
            process = await nursery.start(self.run_clients, [*map(str, numbers)])
            assert process.stdout is not None
            line = b""
            async for chunk in process.stdout:
                *lines, line = (line + chunk).split(b"\n")
                for each in lines:
                    self.counts = json.loads(each)
                    self.progress(f"{self.live} connections, {self.counts}")
        if process.returncode != 0:
            self.faults.append(f"the clients failed, as told above: exit code {process.returncode}")

    def check(self, what: str, least: int, is_now: int, most: int | None = None) -> None:
        most = least if most is None else most
        if not least <= is_now <= most:
            expected = str(least) if least == most else f"{least} to {most}"
            self.faults.append(f"{what}: expected {expected}, and it is {is_now}")

    def compare(self) -> None:
        counts = self.counts
        if not counts:
            self.faults.append("the clients have counted nothing")
            return
        sent, given_up, opened = counts["sent"], counts["given_up"], counts["opened"]
        server = self.server.statistics()
        least = sent - given_up
        self.check("messages sent by the clients", self.messages, sent, sent)
        self.check("messages that came back once and in order", least, counts["echoed"])
        self.check("messages received by the server", least, server.messages_received, sent)
        self.check("messages sent by the server", least, server.messages_sent, sent)
        self.check("connections held at once", self.connections, self.most, opened)
        self.check("connections_total", opened, server.connections_total)
        self.check("client_connected", opened, self.connected)
        self.check("client_disconnected", opened, self.disconnected)
        self.check("connections left", 0, server.connections + self.live)
        for name in ("client_connected", "client_disconnected", "message_received"):
            self.check(f"listeners of {name}", 0, getattr(self.server, name).has_listeners)


async def soak(
    connections: int,
    messages: int,
    *,
    seed: int = 0,
    progress: Callable[[str], None] = lambda line: None,
) -> list[str]:
    """What was not as it should be, a line each; empty if all was.

    Cancelled, it ends the clients.
    """
    # As many connections come and go once before: what Python and the C library have once taken for
    # them they keep, in part, and what is grown after that is not theirs. With bursts, for which
    # the package has a task that stays.
    first = Soak(connections, 5 * connections, seed, progress)
    await first.run()
    faults = first.faults
    del first
    before = Held.now()
    progress(f"before: {before}")
    load = Soak(connections, messages, seed, progress)
    await load.run()
    faults += load.faults
    load.progress(f"most connections at once: {load.most}; {load.server.statistics()}")
    del load
    after = Held.now()
    progress(f"after: {after}")
    for name in ("connections", "descriptors", "tasks"):
        if getattr(after, name) > getattr(before, name):
            faults.append(
                f"{name} left: {getattr(before, name)} before, {getattr(after, name)} after"
            )
    blocks = after.blocks - before.blocks
    if blocks > _BLOCKS_TOLERANCE:
        faults.append(f"{blocks} blocks of memory more than before, over {_BLOCKS_TOLERANCE}")
    grown = after.memory - before.memory
    if grown > _MEMORY_TOLERANCE:
        faults.append(f"memory: {grown:,} bytes more than before, over {_MEMORY_TOLERANCE:,}")
    return faults
