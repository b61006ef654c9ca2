"""A conversation of a person, who types through a pipe, with a peer in memory."""

from __future__ import annotations

import contextlib
import datetime
import io
import os
import re
import sys
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import attrs
import click
import pytest
import trio
import trio.testing
from pairs import Stream, frame, memory, read_exactly, read_to_end
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from trio_bytetalk import (
    COBS,
    Chunks,
    Codec,
    EncodeError,
    IncompleteMessageError,
    LengthPrefixed,
    Lines,
    MessageTooLargeError,
    Netstring,
    Reader,
    Writer,
    open_connection,
)
from trio_bytetalk._cli.conversation import Conversation, Help, Quit, Send, SendFile, Use

CTRL_C, CTRL_D = "\x03", "\x04"

# The time of day, which stands still.
NOW = datetime.datetime(2026, 11, 25, 12, 34, 56, 789_012)


@attrs.define
class Screen(DummyOutput):
    """An output that remembers the lines that are printed; a prompt is written by characters."""

    text: str = ""

    def write(self, data: str) -> None:
        if len(data) > 1 or data in "→←!":
            self.text += data

    @property
    def lines(self) -> list[str]:
        lines = [line.rpartition("\r")[2].strip() for line in self.text.split("\r\n")]
        return [line for line in lines if line]


@attrs.define
class Talk:
    """A conversation under way, and the peer's end of it."""

    conversation: Conversation
    peer: Stream
    screen: Screen
    type: Callable[[str], None]

    async def shows(self, *lines: str) -> None:
        """Wait until these are the last lines printed."""
        while self.screen.lines[-len(lines) :] != list(lines):
            await trio.lowlevel.checkpoint()


@contextlib.asynccontextmanager
async def talking(
    codec: Codec[Any, Any] | None = None, stream: Stream | None = None, **options: Any
) -> AsyncIterator[Talk]:
    """At the end of the block, wait for the conversation to end."""
    codec = codec or LengthPrefixed()
    ours, theirs = memory()
    screen = Screen()
    with create_pipe_input() as keys, create_app_session(keys, screen):
        async with open_connection(stream or ours, codec=codec) as connection:
            conversation = Conversation(connection, codec, now=lambda: NOW, **options)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(conversation.run)
                yield Talk(conversation, theirs, screen, keys.send_text)


# -- what is typed, and what is shown


async def test_a_message_each_way(mock_clock: trio.testing.MockClock) -> None:
    async with talking() as talk:
        await talk.peer.send_all(frame(b"welcome"))
        await talk.shows("12:34:56.789 ←           welcome")
        talk.type("hello\n")
        assert await read_exactly(talk.peer, 9) == frame(b"hello")
        await talk.shows("12:34:56.789 →           hello")
        mock_clock.jump(1.5)
        await talk.peer.send_all(frame(b"hi"))
        await talk.shows("12:34:56.789 ←   1.50 s  hi")
        mock_clock.jump(1)
        await talk.peer.send_all(frame(b"again"))
        await talk.shows("12:34:56.789 ←   2.50 s  again")
        talk.type(CTRL_D)


async def test_arrows_where_the_terminal_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    async with talking() as talk:
        await talk.peer.send_all(frame(b"welcome"))
        while "welcome" not in talk.screen.text:
            await trio.lowlevel.checkpoint()
        assert "←" not in talk.screen.text
        talk.type(CTRL_D)


@pytest.mark.parametrize(
    ("message", "lines"),
    [
        (b"caf\xc3\xa9 \\ \x1b", ["63 61 66 c3 a9 20 5c 20 1b"]),
        (b"caf\xc3\xa9 \\\n", ["café \\\\\\n"]),
        (bytes(16), ["00" + 15 * " 00"]),
        (
            bytes(17),
            [
                "17 bytes:",
                f"00000000  {16 * '00 '} |................|",
                f"00000010  00 {45 * ' '} |.|",
            ],
        ),
        (b"x" * 2001, ["x" * 2000 + " ... and 1 character more"]),
    ],
)
async def test_how_a_message_is_shown(message: bytes, lines: list[str]) -> None:
    async with talking() as talk:
        await talk.peer.send_all(frame(message))
        await talk.shows(f"12:34:56.789 ←           {lines[0]}", *lines[1:])
        talk.type(CTRL_D)


async def test_of_many_bytes_some_are_shown() -> None:
    async with talking() as talk:
        await talk.peer.send_all(frame(bytes(402)))
        await talk.shows("... and 2 bytes more")
        assert len(talk.screen.lines) == 1 + 400 // 16 + 1
        talk.type(CTRL_D)


async def test_values_are_typed_and_shown_as_json(mock_clock: trio.testing.MockClock) -> None:
    async with talking(Netstring().json()) as talk:
        talk.type("{}x\n\b\n")
        assert await read_exactly(talk.peer, 5) == b"2:{},"
        await talk.peer.send_all(b'7:{"a":1},')
        await talk.shows('12:34:56.789 ←     0 ns  {"a": 1}')
        talk.type(CTRL_D)


async def test_an_invalid_message_is_shown_and_the_next_one_received(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with talking(Netstring().json()) as talk:
        await talk.peer.send_all(b"1:{,1:2,")
        await talk.shows("12:34:56.789 ←           2")
        (invalid, _) = talk.screen.lines
        assert "the peer sent a message that is not valid" in invalid
        talk.type(CTRL_D)


async def test_a_message_that_cannot_be_sent_after_all() -> None:
    @attrs.define
    class Once(Writer[bytes]):
        """Sends one message."""

        done: bool = False

        def encode(self, message: bytes) -> bytes:
            if self.done:
                raise EncodeError("once only")
            self.done = True
            return message

    class OnceCodec(Codec[bytes, bytes]):
        def reader(self) -> Reader[bytes]:
            return Chunks().reader()

        def writer(self) -> Writer[bytes]:
            return Once()

    async with talking(OnceCodec()) as talk:
        talk.type("1\n2\n")
        await talk.shows("12:34:56.789 !           once only")
        talk.type("/quit\n")


# -- commands


async def test_commands(tmp_path: Path) -> None:
    file = tmp_path / "a file"
    file.write_bytes(b"\\x00\n")
    async with talking() as talk:
        talk.type(f"/hex 00 01 ff\n//slash\n/file {file}\n")
        expected = frame(b"\x00\x01\xff") + frame(b"/slash") + frame(b"\\x00\n")
        assert await read_exactly(talk.peer, len(expected)) == expected
        talk.type("/codec lines\n")
        await talk.shows("12:34:56.789 !           a line is now text, as it is typed")
        talk.type("hello\n")
        assert await read_exactly(talk.peer, 6) == b"hello\n"
        await talk.peer.send_all(b"hi\n")
        while not talk.screen.lines[-1].endswith("hi"):
            await trio.lowlevel.checkpoint()
        talk.type("/help\n")
        await talk.shows("//...          send a message that begins with a slash")
        assert "A line is a message: text, as it is typed." in talk.screen.lines
        talk.type("/quit\n")
    assert await read_to_end(talk.peer) == b""


def silent(codec: Codec[Any, Any]) -> Conversation:
    """A conversation that nobody has."""
    with create_app_session(output=DummyOutput()):
        return Conversation(open_connection(memory()[0], codec=codec), codec)


@pytest.mark.parametrize(
    ("line", "action"),
    [
        ("", Send(b"")),
        (r"\x00/", Send(b"\0/")),
        ("//", Send(b"/")),
        ("/hex 00:ff", Send(b"\x00\xff")),
        ("/hex", Send(b"")),
        ("/file  a file ", SendFile("a file")),
        ("/codec netstring", Use(Netstring())),
        ("/codec  cobs ", Use(COBS())),
        ("/help", Help()),
        ("/quit", Quit()),
    ],
)
async def test_what_a_line_stands_for(line: str, action: object) -> None:
    assert silent(LengthPrefixed()).parse(line) == action


@pytest.mark.parametrize(
    ("codec", "line", "why"),
    [
        (None, r"\q", r"\\q is no escape"),
        (None, "/hex 0", "two hex digits for each byte were expected, not '0'"),
        (None, "/codec line", "there is no codec 'line'"),
        (None, "/file", "the path of a file stands behind /file"),
        (None, "/nope", "there is no command /nope; see /help"),
        (None, "/a\n/b\x1b\r", r"there is no command /a\\n/b\\x1b\\r; see /help"),
        (None, "/" + "x" * 1000, r"there is no command /x{30} \.\.\. x{30}; see /help"),
        (LengthPrefixed(1), "x" * 256, "256 bytes"),
        (Lines(), "/hex 00", "/hex is for codecs whose messages are bytes"),
        (Lines().json(), "x", "typed as JSON"),
    ],
)
async def test_lines_that_make_no_sense(codec: Codec[Any, Any] | None, line: str, why: str) -> None:
    conversation = silent(codec or LengthPrefixed())
    with pytest.raises(ValueError, match=why) as caught:
        conversation.parse(line)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/no/such/file", "cannot read '/no/such/file': No such file or directory"),
        ("~nobody-of-this-name/x", "cannot read '~nobody-of-this-name/x': .*home dir.*"),
        ("/dev/null", "'/dev/null' is no regular file"),
        ("{folder}/fifo", ".*fifo' is no regular file"),  # whose writer would be waited for
        ("{folder}/large", ".*large' has more than 3 bytes; --input whole <FILE sends it"),
        ("{folder}/text", ".*typed as JSON.*"),
    ],
)
async def test_a_file_that_cannot_be_sent_is_told_above_the_prompt(
    path: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trio_bytetalk._cli.conversation.LONGEST", 3)
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "large").write_bytes(b"1234")
    (tmp_path / "text").write_bytes(b"abc")
    (tmp_path / "good").write_bytes(b"123")
    async with talking(Lines().json()) as talk:
        talk.type(f"/file {path.format(folder=tmp_path)}\n/file {tmp_path / 'good'}\n")
        assert await read_exactly(talk.peer, 4) == b"123\n"
        talk.type(CTRL_D)
    failed, good = talk.screen.lines
    assert re.fullmatch(f"12:34:56.789 ! {{11}}{why}", failed)
    assert good == "12:34:56.789 →           123"


@pytest.mark.parametrize("end", ["Ctrl-C", "the peer's"])
async def test_a_file_that_takes_for_ever_is_not_waited_for(
    end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, going_on = threading.Event(), threading.Event()

    def never(_path: str) -> bytes:
        reading.set()
        going_on.wait()
        return b""

    monkeypatch.setattr("trio_bytetalk._cli.conversation._contents", never)
    ends = pytest.RaisesGroup(KeyboardInterrupt, flatten_subgroups=True)
    try:
        with ends if end == "Ctrl-C" else contextlib.nullcontext():
            async with talking() as talk:
                talk.type("/file x\n")
                await trio.to_thread.run_sync(reading.wait)
                if end == "Ctrl-C":
                    talk.type(CTRL_C)
                else:
                    await talk.peer.aclose()
    finally:
        going_on.set()


# -- the end


async def test_what_was_typed_before_the_end_is_sent() -> None:
    async with talking() as talk:
        talk.type(f"1\n2\n{CTRL_D}")
    assert await read_to_end(talk.peer) == frame(b"1") + frame(b"2")


async def test_ctrl_c_interrupts() -> None:
    with pytest.RaisesGroup(KeyboardInterrupt, flatten_subgroups=True):
        async with talking() as talk:
            talk.type(f"1{CTRL_C}")


async def test_the_peer_finishes() -> None:
    async with talking() as talk:
        await talk.peer.send_all(frame(b"bye"))
        await talk.peer.aclose()
    assert talk.screen.lines == ["12:34:56.789 ←           bye"]


@pytest.mark.parametrize(
    ("data", "error"),
    [(b"\0\0\0\x05hi", IncompleteMessageError), (b"HTTP/1.0", MessageTooLargeError)],
)
async def test_the_peer_does_what_is_not_allowed(data: bytes, error: type[Exception]) -> None:
    with pytest.RaisesGroup(error, flatten_subgroups=True):
        async with talking() as talk:
            await talk.peer.send_all(data)
            await talk.peer.aclose()


async def test_so_many_replies_are_enough() -> None:
    async with talking(replies=2) as talk:
        await talk.peer.send_all(3 * frame(b"reply"))
    assert talk.screen.lines == 2 * ["12:34:56.789 ←           reply"]


@pytest.mark.parametrize("end", [CTRL_D, "/quit\n"])
async def test_fewer_replies_are_a_failure(end: str) -> None:
    with pytest.RaisesGroup(
        pytest.RaisesExc(click.ClickException, match="^only 1 of 2 replies came$")
    ):
        async with talking(replies=2) as talk:
            await talk.peer.send_all(frame(b"reply"))
            await talk.shows("12:34:56.789 ←           reply")
            talk.type(end)


async def test_a_peer_that_finishes_after_fewer_replies_is_a_failure() -> None:
    with pytest.RaisesGroup(
        pytest.RaisesExc(click.ClickException, match="^only 1 of 2 replies came$")
    ):
        async with talking(replies=2) as talk:
            await talk.peer.send_all(frame(b"reply"))
            await talk.peer.aclose()


async def test_a_peer_that_takes_nothing_is_heard_to_the_end() -> None:
    our_send, their_receive = trio.testing.memory_stream_one_way_pair()
    their_send, our_receive = trio.testing.memory_stream_one_way_pair()
    await their_receive.aclose()
    async with talking(stream=trio.StapledStream(our_send, our_receive)) as talk:
        # The first is what finds out.
        talk.type("1\n")
        await talk.shows("12:34:56.789 →           1")
        with contextlib.suppress(trio.BrokenResourceError):
            while True:
                await talk.conversation.connection.send(b"")
                await trio.lowlevel.checkpoint()
        talk.type("2\n")
        await talk.shows("12:34:56.789 →           2")
        await their_send.send_all(frame(b"no, thank you"))
        await their_send.aclose()
    assert talk.screen.lines[-1].endswith("no, thank you")
