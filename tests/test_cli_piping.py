"""Messages from an input and to an output, over streams in memory."""

from __future__ import annotations

import contextlib
import itertools
import math
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import attrs
import click
import pytest
import trio
import trio.testing
from pairs import Stream, frame, lockstep, memory, read_exactly, read_to_end, reset, tcp, tight_unix

from trio_bytetalk import (
    Chunks,
    Codec,
    Connection,
    EncodeError,
    LengthPrefixed,
    Lines,
    MessageTooLargeError,
    Netstring,
    Server,
    open_connection,
)
from trio_bytetalk._cli import piping
from trio_bytetalk._cli.piping import Input, InputError, Output, Piping
from trio_bytetalk._limits import LimitOptions


async def echo(connection: Connection[Any, Any]) -> None:
    async for message in connection:
        await connection.send(message)


@attrs.define
class Program:
    """What is at the other end of a pipe, and gives input when the test says so."""

    chunks: queue.SimpleQueue[bytes] = attrs.field(factory=queue.SimpleQueue)

    def give(self, data: bytes) -> None:
        self.chunks.put(data)

    def read(self) -> bytes:
        return self.chunks.get()


@pytest.fixture
def program() -> Iterator[Program]:
    program = Program()
    yield program
    program.give(b"")  # for a thread that still reads


@attrs.define
class Slow:
    """An output that takes nothing until it is told to go on."""

    began: threading.Event = attrs.field(factory=threading.Event)
    go_on: threading.Event = attrs.field(factory=threading.Event)
    written: list[bytes] = attrs.field(factory=list)

    def write(self, data: bytes) -> None:
        self.began.set()
        self.go_on.wait()
        self.written.append(data)


@pytest.fixture
def slow() -> Iterator[Slow]:
    slow = Slow()
    yield slow
    slow.go_on.set()


async def pipe(
    stream: Stream,
    given: Iterable[bytes] = (),
    codec: Codec[Any, Any] | None = None,
    *,
    read: Callable[[], bytes] | None = None,
    write: Callable[[bytes], object] | None = None,
    **options: Any,
) -> bytes:
    """Run a `Piping`, and return the output."""
    codec = codec or LengthPrefixed()
    read = read or partial(next, iter(given), b"")
    output: list[bytes] = []
    limits = LimitOptions(send_timeout=None, message_timeout=None)  # as the command has it
    async with open_connection(stream, codec=codec, **limits) as connection:
        await Piping(connection, codec, read, write or output.append, **options).run()
    return b"".join(output)


async def sent(given: Iterable[bytes], codec: Codec[Any, Any], **options: Any) -> bytes:
    """What a peer that says nothing gets."""
    ours, theirs = memory()
    received = b""

    async def peer() -> None:
        nonlocal received
        received = await read_to_end(theirs)
        await theirs.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer)
        await pipe(ours, given, codec, **options)
    return received


async def written(data: bytes, codec: Codec[Any, Any], **options: Any) -> bytes:
    """What is written of what a peer sends."""
    ours, theirs = memory()
    await theirs.send_all(data)
    await theirs.send_eof()
    return await pipe(ours, (), codec, **options)


# -- messages in, messages out


@pytest.mark.parametrize("pair", [memory, lockstep, tcp], ids=lambda pair: pair.__name__)
async def test_a_line_is_a_message_and_a_reply_is_a_line(
    pair: Callable[[], tuple[Stream, Stream]], nursery: trio.Nursery
) -> None:
    ours, theirs = pair()
    nursery.start_soon(Server(echo).serve_stream, theirs)
    assert await pipe(ours, [b"hello\nworld\n"]) == b"hello\nworld\n"


@pytest.mark.parametrize(
    ("codec", "given", "expected"),
    [
        (Netstring(), b"a\n\nb", b"1:a,0:,1:b,"),
        (Netstring(), rb"\x00\\" + b"\xff\n", b"3:\0\\\xff,"),
        (Netstring(), b"\xff\r\n", b"2:\xff\r,"),
        (Netstring(), "é".encode(), "2:é,".encode()),
        (Netstring(), b"", b""),
        (Lines(), b"a\\x\r\nb\n\n", b"a\\x\nb\n\n"),
        (LengthPrefixed(1).json(), b'{"a": [1]}\r\nnull', b'\x09{"a":[1]}\x04null'),
        (LengthPrefixed(), b"x" * 10_000, frame(b"x" * 10_000)),
        (Chunks(), b"ab\ncd", b"abcd"),
    ],
)
async def test_what_is_sent_for_lines(
    codec: Codec[Any, Any], given: bytes, expected: bytes
) -> None:
    assert await sent([given], codec) == expected
    for size in (1, 2, 1000):
        pieces = [given[i : i + size] for i in range(0, len(given), size)]
        if len(pieces) < 20:
            assert await sent(pieces, codec) == expected


@pytest.mark.parametrize(
    ("codec", "given", "expected"),
    [
        (Netstring(), [b"a\n", b"\\x00\n"], b"7:a\n\\x00\n,"),
        (Netstring(), [], b"0:,"),
        (Netstring().text(), ["é\n".encode()], "3:é\n,".encode()),
        (Netstring().json(), [b"[1,\n", b"2]\n"], b"5:[1,2],"),
        (LengthPrefixed(), [b"x" * 100_000], frame(b"x" * 100_000)),
    ],
)
async def test_the_whole_input_is_a_message(
    codec: Codec[Any, Any], given: list[bytes], expected: bytes
) -> None:
    assert await sent(given, codec, input=Input.WHOLE) == expected


async def test_raw_input_is_sent_as_it_is() -> None:
    data = [b"\x00\n\\", b"\xff" * 1000]
    assert await sent(data, LengthPrefixed(), input=Input.RAW) == b"".join(data)


@pytest.mark.parametrize(
    ("codec", "data", "lines", "raw"),
    [
        (Netstring(), b"1:a,0:,", b"a\n\n", b"a"),
        (Netstring(), b"4:\x1b\n\\\xff,", rb"\x1b\n\\\xff" + b"\n", b"\x1b\n\\\xff"),
        (Netstring().text(), "3:é\a,".encode(), "é\\x07\n".encode(), "é\a".encode()),
        (Netstring().json(), b'10:{"a":"\\t"},', b'{"a": "\\t"}\n', b'{"a": "\\t"}\n'),
    ],
)
async def test_what_is_written(
    codec: Codec[Any, Any], data: bytes, lines: bytes, raw: bytes
) -> None:
    assert await written(data, codec) == lines
    assert await written(data, codec, output=Output.RAW) == raw


async def test_what_is_written_can_be_sent_again() -> None:
    data = b"".join(map(frame, [bytes(range(256)), b"\\x00", b"", "\u2028é".encode()]))
    lines = await written(data, LengthPrefixed())
    assert await sent([lines], LengthPrefixed()) == data


async def test_many_messages_in_flight_on_a_narrow_way(nursery: trio.Nursery) -> None:
    ours, theirs = tight_unix()
    nursery.start_soon(Server(echo).serve_stream, theirs)
    lines = b"".join(b"message %d\n" % number for number in range(20_000))
    assert await pipe(ours, [lines[:100_000], lines[100_000:]]) == lines


# -- what cannot be sent


def fails(error: type[Exception], match: str) -> contextlib.AbstractContextManager[object]:
    return pytest.RaisesGroup(pytest.RaisesExc(error, match=match), flatten_subgroups=True)


@pytest.mark.parametrize(
    ("codec", "line", "reason"),
    [
        (LengthPrefixed(1), b"x" * 256, "256 bytes"),
        (Lines(), b"\xff", "'utf-8' codec can't decode byte 0xff in position 0"),
        (LengthPrefixed().json(), b"{", "typed as JSON: Expecting property name"),
    ],
)
async def test_input_that_cannot_be_sent(codec: Codec[Any, Any], line: bytes, reason: str) -> None:
    ours, _theirs = memory()
    with fails(InputError, f"^line 3 of the input: .*{reason}"):
        await pipe(ours, [b"1\n" * 2, line + b"\n1\n"], codec)
    ours, _theirs = memory()
    with fails(InputError, f"^the input: .*{reason}"):
        await pipe(ours, [line], codec, input=Input.WHOLE)


async def test_an_escape_that_is_none() -> None:
    ours, _theirs = memory()
    with fails(InputError, r"^line 1 of the input: \\q is no escape"):
        await pipe(ours, [rb"\q"])


def test_input_that_cannot_be_sent_has_an_exit_code_of_its_own() -> None:
    assert InputError("").exit_code == 2


async def test_what_is_no_line_is_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(piping, "LONGEST", 1000)
    ours, _theirs = memory()
    endless = itertools.chain([b"1\n2\n"], itertools.repeat(b"x" * 300))
    with fails(InputError, r"^line 3 of the input has more than 1000 bytes; --input whole"):
        await pipe(ours, endless)


# -- the end


async def test_so_many_replies_are_enough(program: Program, nursery: trio.Nursery) -> None:
    ours, theirs = memory()
    nursery.start_soon(Server(echo).serve_stream, theirs)
    program.give(b"1\n2\n3\n")
    assert await pipe(ours, read=program.read, replies=2) == b"1\n2\n"


@pytest.mark.parametrize("wait", [None, 3.0])
async def test_fewer_replies_are_a_failure(
    wait: float | None, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    ours, theirs = memory()
    nursery.start_soon(Server(echo).serve_stream, theirs)
    output: list[bytes] = []
    with fails(click.ClickException, r"^only 2 of 3 replies came$"):
        await pipe(ours, [b"1\n2\n"], write=output.append, replies=3, wait=wait)
    assert b"".join(output) == b"1\n2\n"


async def test_with_wait_it_is_over_when_nothing_came_for_so_long(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    ours, theirs = memory()
    received = b""

    async def peer() -> None:
        nonlocal received
        received = await read_exactly(theirs, 5)
        for _ in range(3):
            await trio.sleep(2)
            await theirs.send_all(frame(b"a"))
        received += await read_to_end(theirs)

    nursery.start_soon(peer)
    began = trio.current_time()
    assert await pipe(ours, [b"1\n"], wait=3.0) == b"a\na\na\n"
    assert trio.current_time() - began == 3 * 2 + 3
    await trio.testing.wait_all_tasks_blocked()
    assert received == frame(b"1")


async def test_an_end_by_silence_within_a_message_is_a_failure(
    autojump_clock: trio.testing.MockClock,
) -> None:
    ours, theirs = memory()
    await theirs.send_all(frame(b"a") + b"\0\0\0\4abc")
    words = (
        r"^no more came for 3 seconds, and what came last, 7 bytes, is no whole message "
        r"\(--wait gives more time; is --codec the one that the server uses\?\)$"
    )
    with fails(click.ClickException, words):
        await pipe(ours, [b"1\n"], wait=3.0)


async def test_with_all_replies_the_rest_does_not_matter(
    autojump_clock: trio.testing.MockClock,
) -> None:
    ours, theirs = memory()
    await theirs.send_all(frame(b"a") + b"\0\0\0\4abc")
    assert await pipe(ours, [b"1\n"], wait=3.0, replies=1) == b"a\n"


async def test_waiting_for_ever(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    ours, theirs = memory()

    async def peer() -> None:
        await trio.sleep(10_000)
        await theirs.send_all(frame(b"a"))
        await theirs.aclose()

    nursery.start_soon(peer)
    assert await pipe(ours, [], wait=math.inf) == b"a\n"


async def test_a_slow_output_is_no_silence(
    slow: Slow, mock_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    ours, theirs = memory()
    messages = [bytes([i % 10 + 48]) * 100_000 for i in range(20)]
    await theirs.send_all(b"".join(map(frame, messages)))
    async with trio.open_nursery() as running:
        running.start_soon(partial(pipe, ours, [b"1\n"], write=slow.write, wait=3.0))
        await trio.to_thread.run_sync(slow.began.wait)
        await read_exactly(theirs, 5)
        await trio.testing.wait_all_tasks_blocked(0.01)
        mock_clock.jump(100)
        await trio.testing.wait_all_tasks_blocked(0.01)
        slow.go_on.set()
        mock_clock.autojump_threshold = 0
    assert b"".join(slow.written) == b"".join(message + b"\n" for message in messages)


@pytest.mark.parametrize("ending", ["half-closed", "closed"])
async def test_the_peer_finishes_while_the_input_says_nothing(
    ending: str, program: Program, autojump_clock: trio.testing.MockClock
) -> None:
    ours, theirs = memory()
    await theirs.send_all(frame(b"bye"))
    await (theirs.send_eof() if ending == "half-closed" else theirs.aclose())
    assert await pipe(ours, read=program.read) == b"bye\n"


@pytest.mark.parametrize("more", [b"", b"2\n"])
async def test_the_peer_finishes_before_the_input_does(
    more: bytes, program: Program, mock_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    ours, theirs = memory()
    output: list[bytes] = []
    program.give(b"1\n")

    async def peer() -> None:
        await read_exactly(theirs, 5)
        await theirs.send_all(frame(b"bye"))
        await theirs.send_eof()
        await trio.testing.wait_all_tasks_blocked(0.01)
        program.give(more)

    nursery.start_soon(peer)
    if more:  # the clock stands, so there is all the time in the world to see it
        with fails(click.ClickException, "^the peer finished before it had all of the input$"):
            await pipe(ours, read=program.read, write=output.append)
    else:
        await pipe(ours, read=program.read, write=output.append)
    assert b"".join(output) == b"bye\n"


async def refusal(connection: Connection[Any, Any]) -> None:
    """Wait until the connection takes no more: the input has ended, or it broke."""
    connection.writer = Chunks().writer()
    while True:
        try:
            connection.send_nowait(b"")
        except EncodeError:  # it would take more, but not nothing
            await trio.lowlevel.checkpoint()
        except (trio.ClosedResourceError, trio.BrokenResourceError):
            return


async def test_the_peer_finishes_and_takes_no_more(
    autojump_clock: trio.testing.MockClock,
) -> None:
    ours, theirs = lockstep()
    connection = open_connection(ours)

    async def peer() -> None:
        await refusal(connection)
        await theirs.send_eof()

    read = partial(next, iter([b"1\n"]), b"")
    async with connection, trio.open_nursery() as nursery:
        nursery.start_soon(peer)
        with fails(click.ClickException, "^the peer finished before it had all of the input$"):
            await Piping(connection, LengthPrefixed(), read, print).run()


async def test_a_peer_that_takes_nothing_is_heard_to_the_end() -> None:
    (our_send, their_receive), (their_send, our_receive) = (
        trio.testing.memory_stream_one_way_pair(),
        trio.testing.memory_stream_one_way_pair(),
    )
    connection = open_connection(trio.StapledStream(our_send, our_receive))
    await their_receive.aclose()
    output: list[bytes] = []

    async def peer() -> None:
        await refusal(connection)
        await their_send.send_all(frame(b"no, thank you"))
        await their_send.aclose()

    async with connection, trio.open_nursery() as nursery:
        nursery.start_soon(peer)
        with fails(trio.BrokenResourceError, "^the connection broke"):
            read = partial(next, iter([b"1\n"]), b"")
            await Piping(connection, LengthPrefixed(), read, output.append).run()
    assert b"".join(output) == b"no, thank you\n"


async def test_a_peer_that_resets_the_connection() -> None:
    ours, theirs = tcp()
    reset(theirs)
    with fails(trio.BrokenResourceError, "^the connection broke: .*reset by peer"):
        await pipe(ours, [b"1\n"])


async def test_garbage_comes_after_a_message() -> None:
    output: list[bytes] = []
    with fails(MessageTooLargeError, "max_size allows"):
        await written(frame(b"good") + b"HTTP/1.0 400", LengthPrefixed(), write=output.append)
    assert b"".join(output) == b"good\n"


# -- a slow input or output


async def test_nothing_is_kept_for_an_output_that_takes_nothing(
    slow: Slow, nursery: trio.Nursery
) -> None:
    ours, theirs = tight_unix()
    taken = 0
    line = b"x" * 999 + b"\n"

    async def peer() -> None:
        nonlocal taken
        for _ in range(3000):
            await theirs.send_all(frame(line[:-1]))
            taken += len(line)
        await theirs.aclose()

    async with trio.open_nursery() as running:
        running.start_soon(peer)
        running.start_soon(partial(pipe, ours, write=slow.write))
        await trio.to_thread.run_sync(slow.began.wait)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert taken < 1_000_000
        slow.go_on.set()
    assert b"".join(slow.written) == 3000 * line


async def test_what_came_before_the_end_is_written_however_slowly(slow: Slow) -> None:
    ours, theirs = memory()
    await theirs.send_all(frame(b"1"))
    async with trio.open_nursery() as running:
        running.start_soon(partial(pipe, ours, write=slow.write))
        await trio.to_thread.run_sync(slow.began.wait)
        await theirs.send_all(frame(b"2"))
        await theirs.aclose()
        await trio.testing.wait_all_tasks_blocked(0.01)
        slow.go_on.set()
    assert b"".join(slow.written) == b"1\n2\n"


@pytest.mark.parametrize("error", [BrokenPipeError, OSError])
async def test_an_output_that_is_broken(error: type[OSError], nursery: trio.Nursery) -> None:
    ours, theirs = memory()

    def write(_data: bytes) -> None:
        raise error("no more")

    nursery.start_soon(Server(echo).serve_stream, theirs)
    with fails(error, "^no more$"):
        await pipe(ours, itertools.repeat(b"1\n"), write=write)


async def test_an_input_that_is_broken() -> None:
    ours, _theirs = memory()

    def read() -> bytes:
        raise OSError(5, "Input/output error")

    with fails(OSError, "Input/output error"):
        await pipe(ours, read=read)


async def test_it_can_be_cancelled_while_threads_read_and_write(
    slow: Slow, program: Program
) -> None:
    ours, theirs = memory()
    await theirs.send_all(frame(b"1"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(pipe, ours, read=program.read, write=slow.write))
        await trio.to_thread.run_sync(slow.began.wait)
        nursery.cancel_scope.cancel()
    assert not slow.written
