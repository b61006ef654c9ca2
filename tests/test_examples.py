"""Every example, started as a user would start it, in a process of its own."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO

import attrs
import pytest
import trio
import trustme

import trio_bytetalk
from trio_bytetalk import Connection, Lines, open_connection, open_tcp_connection

EXAMPLES = Path(__file__).parents[1] / "examples"
HOST = "127.0.0.1"
SERVERS = [
    *("chat_server.py", "echo_server.py", "embedded.py", "event_log.py", "hand_over.py"),
    "tls_echo.py",
]
ALL_SERVERS = [*SERVERS, "mqtt_broker.py"]

# What a server logs at the first signal, and at the second.
STOPPING = {
    number: f"{number.name}: stopping; once more to stop at once\n"
    for number in (signal.SIGINT, signal.SIGTERM)
}
AT_ONCE = {number: f"{number.name}: stopping at once\n" for number in STOPPING}

# Each example takes about a second; this is for a machine that has other things to do.
PATIENCE = 30

ENVIRONMENT = os.environ | {
    # The package that is tested here, wherever it is.
    "PYTHONPATH": str(Path(trio_bytetalk.__file__).parents[1]),
    # A terminal gets its lines at once; these pipes shall, too.
    "PYTHONUNBUFFERED": "1",
}


def command(name: str, *arguments: object) -> list[str]:
    return [sys.executable, "-W", "error", str(EXAMPLES / name), *map(str, arguments)]


@attrs.frozen
class Outcome:
    code: int
    lines: list[str]
    errors: str


async def run(name: str, *arguments: object) -> Outcome:
    """Run an example that ends by itself."""
    return await run_command(command(name, *arguments))


async def run_command(words: list[str]) -> Outcome:
    with trio.fail_after(PATIENCE):
        done = await trio.run_process(
            words, env=ENVIRONMENT, capture_stdout=True, capture_stderr=True, check=False
        )
    return Outcome(done.returncode, done.stdout.decode().splitlines(), done.stderr.decode())


@attrs.define
class Example:
    """A running example."""

    process: trio.Process
    output: Connection[str, str]
    errors: IO[bytes]
    port: int = 0

    async def line(self) -> str:
        return await self.output.receive()

    async def stop(self, number: signal.Signals) -> Outcome:
        """Send a signal and wait for the end."""
        self.process.send_signal(number)
        return await self.end()

    async def stop_twice(self) -> Outcome:
        """Send both signals and wait for the end, for which nobody else has to do anything."""
        # Stopped, the process is given both signals at the same time when it goes on.
        for number in (signal.SIGSTOP, signal.SIGTERM, signal.SIGINT, signal.SIGCONT):
            self.process.send_signal(number)
        return await self.end()

    async def end(self) -> Outcome:
        lines = [line async for line in self.output]
        code = await self.process.wait()
        self.errors.seek(0)
        return Outcome(code, lines, self.errors.read().decode())


@asynccontextmanager
async def running(name: str, *arguments: object) -> AsyncIterator[Example]:
    """Run one of the servers on a port that the system chooses."""
    with tempfile.TemporaryFile() as errors, trio.fail_after(PATIENCE):
        process = await trio.lowlevel.open_process(
            command(name, "--port", 0, *arguments),
            env=ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
        assert process.stdio is not None
        try:
            async with open_connection(process.stdio, codec=Lines()) as output:
                example = Example(process, output, errors)
                address, port = (await example.line()).partition(",")[0].split(" port ")
                assert address.split()[-1] == HOST
                example.port = int(port)
                yield example
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()


@asynccontextmanager
async def taken_port() -> AsyncIterator[int]:
    [listener] = await trio.open_tcp_listeners(0, host=HOST)
    async with listener:
        yield listener.socket.getsockname()[1]


def untrusting() -> ssl.SSLContext:
    """A client's context for a certificate that is made for one run and known to nobody."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


# -- what all servers have in common


@pytest.mark.parametrize("name", [*SERVERS, "demo.py", "mqtt_broker.py"])
async def test_a_port_in_use_gives_one_clear_line(name: str) -> None:
    async with taken_port() as port:
        outcome = await run(name, "--port", port)
    assert outcome.code == 1
    assert outcome.lines == []
    assert outcome.errors.count("\n") == 1
    assert f"cannot listen on '{HOST}' port {port}: Address already in use" in outcome.errors


@pytest.mark.parametrize("name", ["echo_server.py", "echo_client.py", "demo.py"])
async def test_a_port_that_does_not_exist_gives_one_clear_line(name: str) -> None:
    outcome = await run(name, "--port", 70000)
    assert outcome == Outcome(1, [], "port must be 0 to 65535, not 70000\n")


@pytest.mark.parametrize("name", ALL_SERVERS)
async def test_a_second_signal_is_obeyed_while_the_first_still_is(name: str) -> None:
    async with running(name) as server:
        outcome = await server.stop_twice()
    assert outcome.code == 0
    # Python runs the handlers of signals that came together in the order of their numbers.
    assert outcome.errors == STOPPING[signal.SIGINT] + AT_ONCE[signal.SIGTERM]


# -- echo_server.py and echo_client.py


async def test_echo_client_gets_its_messages_back_from_echo_server() -> None:
    async with running("echo_server.py") as server:
        client = await run("echo_client.py", "--port", server.port, "hello", "wörld")
        outcome = await server.stop(signal.SIGTERM)
    assert client.code == 0
    assert client.errors == ""
    hello, world = client.lines
    assert hello.startswith("hello   (5 bytes, ")
    assert world.startswith("wörld   (6 bytes, ")
    assert outcome == Outcome(0, ["clients: 1, messages: 2"], STOPPING[signal.SIGTERM])


async def test_echo_server_lets_a_client_go_in_order_at_sigint() -> None:
    async with running("echo_server.py") as server:
        async with open_tcp_connection(HOST, server.port) as connection:
            await connection.send(b"hello")
            assert await connection.receive() == b"hello"
            server.process.send_signal(signal.SIGINT)
            with pytest.raises(trio.EndOfChannel):
                await connection.receive()
        outcome = await server.end()
    assert outcome == Outcome(0, ["clients: 1, messages: 1"], STOPPING[signal.SIGINT])


async def test_echo_client_without_a_server_says_where_there_is_none() -> None:
    async with taken_port() as port:
        pass
    outcome = await run("echo_client.py", "--port", port)
    assert outcome.code == 1
    assert outcome.lines == []
    assert outcome.errors.endswith(f"cannot connect to '{HOST}' port {port}: Connection refused\n")
    assert outcome.errors.count("\n") == 1


async def test_echo_client_says_so_when_the_server_goes_away() -> None:
    async def hang_up(stream: trio.SocketStream) -> None:
        await stream.receive_some()

    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, hang_up, 0, host=HOST))
        outcome = await run("echo_client.py", "--port", listener.socket.getsockname()[1])
        nursery.cancel_scope.cancel()
    assert outcome == Outcome(1, [], "the server has gone: the peer finished\n")


# -- metrics.py


async def test_metrics_are_there_for_prometheus_while_the_server_is_at_work() -> None:
    async with running("metrics.py", "--metrics-port", 0) as server:
        address = (await server.line()).removeprefix("metrics on ")
        async with open_tcp_connection(HOST, server.port) as connection:
            await connection.send(b"hello")
            assert await connection.receive() == b"hello"

            def scrape() -> list[str]:
                with urllib.request.urlopen(address) as page:
                    return str(page.read(), "utf-8").splitlines()

            lines = await trio.to_thread.run_sync(scrape)
        outcome = await server.stop(signal.SIGTERM)
    assert 'bytetalk_server_connections{server="echo"} 1.0' in lines
    assert 'bytetalk_server_messages_total{direction="receive",server="echo"} 1.0' in lines
    assert outcome == Outcome(0, [], STOPPING[signal.SIGTERM])


async def test_a_port_for_metrics_that_is_in_use_gives_one_clear_line() -> None:
    async with taken_port() as port:
        outcome = await run("metrics.py", "--port", 0, "--metrics-port", port)
    assert outcome == Outcome(1, [], "[Errno 98] Address already in use\n")


# -- chat_server.py


@asynccontextmanager
async def person(server: Example, name: str) -> AsyncIterator[Connection[str, str]]:
    """Someone who has entered the chat, and read what it says about that."""
    async with open_tcp_connection(HOST, server.port, codec=Lines()) as connection:
        assert await connection.receive() == "What is your name?"
        await connection.send(name)
        assert (await connection.receive()).startswith(f"Welcome, {name}. Here: ")
        assert await server.line() == f"{name} joined"
        yield connection


async def test_chat_between_people_who_come_talk_and_leave() -> None:
    async with (
        running("chat_server.py") as server,
        person(server, "ann") as ann,
        person(server, "bob") as bob,
    ):
        assert await ann.receive() == "* bob joined"
        await ann.send("good morning")
        assert await bob.receive() == "ann: good morning"
        # Cut here, the line would end as no line can that is sent.
        await bob.send("x" * 999 + "\ry")
        assert await ann.receive() == "bob: " + "x" * 999

        async with person(server, "cid") as cid:
            assert await ann.receive() == await bob.receive() == "* cid joined"
            await cid.send("/to ann not for bob")
            assert await ann.receive() == "[cid] not for bob"
            await cid.send("/who")
            assert await cid.receive() == "ann, bob, cid"
            await cid.send("/to dan are you there?")
            assert await cid.receive() == "dan is not here"
            await cid.send("/to ann")
            assert await cid.receive() == "There are: /who, /to NAME TEXT, /quit"
            await cid.send("/quit")
            with pytest.raises(trio.EndOfChannel):
                await cid.receive()
        assert await ann.receive() == await bob.receive() == "* cid left"
        assert await server.line() == "cid left: closed on this side (lines: 0)"

        await ann.aclose()
        assert await bob.receive() == "* ann left"
        assert await server.line() == "ann left: the peer finished (lines: 1)"
        outcome = await server.stop(signal.SIGTERM)
        with pytest.raises(trio.EndOfChannel):
            await bob.receive()
    assert outcome == Outcome(
        0,
        ["bob left: the server stopped (lines: 1)"],
        STOPPING[signal.SIGTERM],
    )


async def test_chat_asks_again_for_a_name_that_will_not_do() -> None:
    async with running("chat_server.py") as server, person(server, "ann") as ann:
        async with open_tcp_connection(HOST, server.port, codec=Lines()) as guest:
            assert await guest.receive() == "What is your name?"
            for name in ("", "two words", "x" * 21):
                await guest.send(name)
                assert await guest.receive() == (
                    "A name is one word of at most 20 letters. What is yours?"
                )
            await guest.send("ann")
            assert await guest.receive() == "ann is here already. What is your name?"
            await ann.send("they do not hear this yet")
            await ann.send("/who")
            assert await ann.receive() == "ann"
            await guest.send("bob")
            assert await guest.receive() == "Welcome, bob. Here: ann, bob"
            assert await ann.receive() == "* bob joined"
        assert await ann.receive() == "* bob left"


async def test_chat_lets_go_of_someone_who_does_not_read() -> None:
    async with running("chat_server.py") as server:
        async with person(server, "ann") as ann, person(server, "slow"):
            assert await ann.receive() == "* slow joined"

            async def chatter() -> None:
                while True:
                    await ann.send("x" * 1000)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(chatter)
                assert await ann.receive() == "* slow left"
                nursery.cancel_scope.cancel()
            line = await server.line()
        outcome = await server.stop(signal.SIGTERM)
    assert line.startswith("slow left: the connection had no room for a broadcast")
    assert outcome.code == 0
    slow, stopping = outcome.errors.splitlines(keepends=True)
    assert "no room for a broadcast" in slow
    assert stopping == STOPPING[signal.SIGTERM]


# -- two_protocols.py and custom_protocol.py


async def test_two_protocols_in_one_piece_are_told_apart() -> None:
    outcome = await run("two_protocols.py")
    assert outcome.code == 0
    assert outcome.errors == ""
    assert [line for line in outcome.lines if line.startswith("client")] == [
        "client: sent 2 lines and 3 blobs at once, 2668 bytes",
        *["client: the server has the right blob"] * 3,
        "client: line 'stored 3 blobs'",
    ]
    assert [line for line in outcome.lines if line.startswith("server")] == [
        "server: line 'store 3', with 2660 bytes of what follows",
        "server: blob of 10 bytes",
        "server: blob of 80 bytes",
        "server: blob of 2560 bytes",
        "server: line 'bye', with 0 bytes of what follows",
    ]


async def test_custom_protocol_by_hand_and_over_tcp_and_damaged() -> None:
    outcome = await run("custom_protocol.py")
    assert outcome.code == 0
    assert outcome.lines == [
        "the frame    07 00 05 68 65 6c 6c 6f cf 18 16 58",
        "without end  NEED_DATA",
        "and with it  Item(type=7, value=b'hello')",
        "check_codec  finds nothing wrong",
        "over TCP     Item(type=7, value=b'OVER TCP')",
        "too long     EncodeError, and the connection is as good as before",
        "over TCP     Item(type=8, value=b'STILL HERE')",
        "damaged      the server answers b''",
    ]
    assert outcome.errors.count("\n") == 1
    assert "type 7 came with CRC cf18163f, not cf181658" in outcome.errors


# -- event_log.py


async def test_event_log_tells_of_everything_in_order() -> None:
    async with running("event_log.py") as server:
        async with open_tcp_connection(HOST, server.port) as connection:
            address = connection.local_address
            for message in (b"hello", b"x" * 1000):
                await connection.send(message)
                assert await connection.receive() == message
        lines = [await server.line() for _ in range(6)]
        outcome = await server.stop(signal.SIGINT)
    # A reply may be with the client, and its next message here, before it is told as sent.
    told = [[line for line in lines if word in line] for word in (" received ", " was sent ")]
    assert told == [
        [f"{address} {what} b'hello'", f"{address} {what} b'{'x' * 58}"]
        for what in ("received", "was sent")
    ]
    assert lines[0] == f"{address} connected"
    assert lines[-1] == f"{address} left: the peer finished (1013 bytes in, 1013 out)"
    assert outcome == Outcome(0, ["end of the log; 0 events were dropped"], STOPPING[signal.SIGINT])


# -- embedded.py


async def test_embedded_server_publishes_answers_and_is_stopped_with_the_rest() -> None:
    async with running("embedded.py", "--interval", 0.001) as station:
        async with open_tcp_connection(HOST, station.port, codec=Lines()) as connection:
            await connection.send("?")
            lines = [await connection.receive()]
            while "mean" not in lines[-1]:
                lines.append(await connection.receive())
            assert (await connection.receive()).endswith(" degrees")
            assert " degrees, the mean of " in lines[-1]
            station.process.send_signal(signal.SIGTERM)
            async for line in connection:
                assert line.endswith(" degrees")
        outcome = await station.end()
    assert outcome.code == 0
    assert outcome.errors == STOPPING[signal.SIGTERM]
    assert outcome.lines[0] == "clients served: 1"
    assert outcome.lines[1].endswith(" degrees on average")


# -- tls_echo.py


async def test_tls_echo_with_a_certificate_made_for_the_run() -> None:
    async with running("tls_echo.py") as server:
        async with open_tcp_connection(
            HOST, server.port, codec=Lines(), ssl_context=untrusting()
        ) as connection:
            await connection.send("hello")
            assert await connection.receive() == "hello"
        outcome = await server.stop(signal.SIGINT)
    assert outcome == Outcome(0, [], STOPPING[signal.SIGINT])


async def test_tls_echo_with_a_certificate_that_clients_trust(tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    certificate.private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    context = ssl.create_default_context()
    authority.configure_trust(context)

    async with running("tls_echo.py", "--cert", tmp_path / "server.pem") as server:
        # One who does not speak TLS is refused, and nobody else is the worse for it.
        plain = await trio.open_tcp_stream(HOST, server.port)
        async with plain:
            await plain.send_all(b"hello\n")
            while await plain.receive_some():
                pass
        async with open_tcp_connection(
            "localhost", server.port, codec=Lines(), ssl_context=context
        ) as connection:
            await connection.send("hello")
            assert await connection.receive() == "hello"
        outcome = await server.stop(signal.SIGTERM)
    assert outcome.code == 0
    failed, stopping = outcome.errors.splitlines(keepends=True)
    assert "the TLS handshake failed" in failed
    assert stopping == STOPPING[signal.SIGTERM]


async def test_tls_echo_names_the_file_that_is_missing(tmp_path: Path) -> None:
    missing = tmp_path / "missing.pem"
    there = tmp_path / "there.pem"
    there.write_text("anything")
    expected = Outcome(1, [], f"cannot read {missing}: No such file or directory\n")
    assert await run("tls_echo.py", "--cert", missing) == expected
    assert await run("tls_echo.py", "--cert", there, "--key", missing) == expected


async def test_tls_echo_names_the_file_that_is_no_certificate(tmp_path: Path) -> None:
    file = tmp_path / "file.pem"
    file.write_text("anything")
    outcome = await run("tls_echo.py", "--cert", file)
    assert outcome.code == 1
    assert outcome.errors.startswith(f"{file} and its key are no certificate and key: ")
    assert outcome.errors.count("\n") == 1


async def test_tls_echo_refuses_a_key_without_a_certificate() -> None:
    outcome = await run("tls_echo.py", "--key", "some.pem")
    assert outcome.code == 2
    assert outcome.errors.endswith("error: --key needs --cert\n")


async def test_tls_echo_ends_in_the_middle_of_a_handshake_at_the_second_signal() -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = untrusting().wrap_bio(incoming, outgoing)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    async with running("tls_echo.py") as server:
        stream = await trio.open_tcp_stream(HOST, server.port)
        async with stream:
            await stream.send_all(outgoing.read())
            assert await stream.receive_some()  # the server's part; it waits for ours now
            outcome = await server.stop_twice()
    assert outcome == Outcome(0, [], STOPPING[signal.SIGINT] + AT_ONCE[signal.SIGTERM])


# -- demo.py


@pytest.mark.parametrize("number", STOPPING)
async def test_demo_answers_what_it_has_received_at_a_signal(number: signal.Signals) -> None:
    async with running("demo.py", "--clients", 1, "--messages", 1_000_000) as demo:
        while "message" not in await demo.line():
            pass
        outcome = await demo.stop(number)
    assert outcome.code == 0
    assert outcome.errors == STOPPING[number]
    *_, numbers, _ = outcome.lines
    words = numbers.split()
    assert words[:3] == ["1", "clients", "sent"]
    assert f"{words[3]}," == words[7]  # the messages received, and the replies
    assert any("was told that the server stops" in line for line in outcome.lines)


async def test_demo_shows_each_event_and_a_summary() -> None:
    outcome = await run("demo.py")
    assert outcome.code == 0
    assert outcome.errors == ""
    first, empty, *events, empty_too, messages, numbers = outcome.lines
    assert first.endswith(", 5 clients, 4 messages each")
    assert empty == empty_too == ""
    for kind, count in (("connected", 5), ("message", 20), ("disconnected", 5)):
        assert sum(kind in line.split() for line in events) == count
    assert len(events) == 30
    assert messages == "5 clients sent 20 messages and received 20, each one as it was sent:"
    assert numbers.startswith("500 bytes in, 500 bytes out, ")


async def test_demo_of_any_size_fits_a_screen_or_two() -> None:
    outcome = await run("demo.py", "--clients", 30, "--messages", 20)
    assert outcome.code == 0
    assert outcome.errors == ""
    assert len(outcome.lines) == 2 + 3 * (20 + 1) + 3
    assert "... and 580 more of: message" in outcome.lines[-5]
    assert outcome.lines[-2].startswith("30 clients sent 600 messages and received 600, ")


async def test_demo_with_more_clients_than_files_may_be_open_says_so() -> None:
    shell = ["sh", "-c", 'ulimit -n 40; exec "$@"', "sh"]
    outcome = await run_command([*shell, *command("demo.py", "--clients", 60)])
    assert outcome.code == 1
    assert "Traceback" not in outcome.errors
    assert outcome.errors.splitlines()[-1].endswith(": Too many open files")


async def test_demo_refuses_a_number_that_is_none() -> None:
    outcome = await run("demo.py", "--clients", "many")
    assert outcome.code == 2
    assert outcome.errors.endswith("error: argument --clients: 'many' is not a number from 0 on\n")


# -- typed_messages.py


async def test_typed_messages_are_checked_and_wrong_ones_answered() -> None:
    outcome = await run("typed_messages.py")
    assert outcome.code == 0
    assert outcome.errors == ""
    sent, answers = outcome.lines[::2], [line.strip() for line in outcome.lines[1::2]]
    assert sent[:4] == [
        "Order(number=1, item='cup', count=6)",
        "Order(number=2, item='saucer', count=1)",
        "Cancellation(number=1)",
        "Cancellation(number=1)",
    ]
    assert answers[:4] == [
        "Receipt(number=1, total=36.0)",
        "Refusal(reason='there is no saucer')",
        "Receipt(number=1, total=-36.0)",
        "Refusal(reason='there is no order 1')",
    ]
    good, wrong_type, wrong_tag, no_json, good_again = answers[4:]
    assert good == '{"type":"receipt","number":1,"total":24.5}'
    for refusal, where in ((wrong_type, "`$.count`"), (wrong_tag, "`$.type`"), (no_json, "byte 0")):
        assert refusal.startswith('{"type":"refusal","reason":"')
        assert where in refusal
    assert good_again == '{"type":"receipt","number":3,"total":49.0}'


# -- socket_activation.py


AS_SYSTEMD = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
os.execv(sys.argv[2], sys.argv[2:])
"""


@asynccontextmanager
async def activated(listening: socket.socket) -> AsyncIterator[Example]:
    """Run socket_activation.py as systemd would, with ``listening`` as its descriptor 3."""
    with tempfile.TemporaryFile() as errors, trio.fail_after(PATIENCE):
        process = await trio.lowlevel.open_process(
            [
                *(sys.executable, "-c", AS_SYSTEMD, str(listening.fileno())),
                *command("socket_activation.py"),
            ],
            env=ENVIRONMENT,
            pass_fds=[listening.fileno()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
        assert process.stdio is not None
        try:
            async with open_connection(process.stdio, codec=Lines()) as output:
                example = Example(process, output, errors)
                assert await example.line() == "echo server on 1 inherited sockets"
                yield example
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()


async def test_a_restart_on_an_inherited_socket_refuses_no_one() -> None:
    with socket.create_server((HOST, 0)) as listening:
        port = listening.getsockname()[1]
        async with activated(listening) as old:
            async with open_tcp_connection(HOST, port) as connection:
                await connection.send(b"to the old one")
                assert await connection.receive() == b"to the old one"
            outcome = await old.stop(signal.SIGTERM)
        assert outcome == Outcome(0, [], STOPPING[signal.SIGTERM])
        async with open_tcp_connection(HOST, port) as connection:  # nobody serves it yet
            await connection.send(b"to whoever comes")
            async with activated(listening) as new:
                assert await connection.receive() == b"to whoever comes"
                outcome = await new.stop(signal.SIGTERM)
        assert outcome == Outcome(0, [], STOPPING[signal.SIGTERM])


async def test_without_inherited_sockets_it_says_so() -> None:
    outcome = await run("socket_activation.py")
    line = "no listening sockets were handed over (LISTEN_PID and LISTEN_FDS)\n"
    assert outcome == Outcome(1, [], line)


# -- hand_over.py


async def test_a_server_hands_over_to_its_successor_and_refuses_no_one() -> None:
    async with running("hand_over.py") as old:
        gone = trio.Event()

        async def keep_connecting() -> None:
            while not gone.is_set():
                async with open_tcp_connection(HOST, old.port) as visitor:  # what must not fail
                    try:
                        await visitor.send(b"anyone?")
                        await visitor.receive()
                    except (trio.EndOfChannel, trio.BrokenResourceError):
                        pass  # the old one has stopped meanwhile

        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_connecting)
            async with open_tcp_connection(HOST, old.port) as connection:
                await connection.send(b"to the old one")
                assert await connection.receive() == b"to the old one"
                old.process.send_signal(signal.SIGHUP)
                address, successor = (await old.line()).split(", process ")
                with killed_if_this_fails(int(successor)):
                    assert address == f"echo server on {HOST} port {old.port}"
                    with pytest.raises(trio.EndOfChannel):
                        await connection.receive()
                    assert await old.process.wait() == 0
                    gone.set()
                    async with open_tcp_connection(HOST, old.port) as another:
                        await another.send(b"to the new one")
                        assert await another.receive() == b"to the new one"
                    os.kill(int(successor), signal.SIGTERM)
                    outcome = await old.end()  # of both, for they have the same output
    assert outcome == Outcome(0, [], 2 * STOPPING[signal.SIGTERM])


@contextmanager
def killed_if_this_fails(process: int) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
        raise


async def test_a_server_whose_successor_fails_goes_on(tmp_path: Path) -> None:
    program = tmp_path / "hand_over.py"
    program.write_bytes((EXAMPLES / "hand_over.py").read_bytes())
    async with running(str(program)) as server:
        program.write_text("raise SystemExit('a mistake in the new version')")
        server.process.send_signal(signal.SIGHUP)
        assert (await server.line()).endswith(" has failed; going on")
        async with open_tcp_connection(HOST, server.port) as connection:
            await connection.send(b"hello")
            assert await connection.receive() == b"hello"
        outcome = await server.stop(signal.SIGTERM)
    assert outcome == Outcome(0, [], "a mistake in the new version\n" + STOPPING[signal.SIGTERM])
