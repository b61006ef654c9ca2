"""The exceptions: what catches what, and what remains usable."""

from __future__ import annotations

import copy
import pickle
import ssl
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from pairs import frame

import trio_bytetalk
from trio_bytetalk import (
    NEED_DATA,
    BytetalkError,
    Connection,
    EncodeError,
    IncompleteMessageError,
    InvalidMessageError,
    LengthPrefixed,
    Lines,
    MessageTooLargeError,
    ProtocolError,
    Reader,
    ReceiveBuffer,
    Server,
    open_connection,
)
from trio_bytetalk._errors import leaves, one_line, reason_of
from trio_bytetalk.testing import connection_pair, open_memory_connection

EXCEPTIONS: list[type[Exception]] = [
    public
    for public in map(trio_bytetalk.__dict__.get, trio_bytetalk.__all__)
    if isinstance(public, type) and issubclass(public, Exception)
]


@pytest.mark.parametrize("kind", EXCEPTIONS)
def test_one_except_clause_catches_every_exception_of_the_package(kind: type[Exception]) -> None:
    assert issubclass(kind, BytetalkError)
    assert kind.__name__.endswith("Error")
    assert kind.__doc__


@pytest.mark.parametrize("kind", EXCEPTIONS)
def test_exception_that_goes_to_another_process_comes_out_as_it_was(kind: type[Exception]) -> None:
    error = kind("expected 1, came 2")
    for same in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(same) is kind
        assert str(same) == "expected 1, came 2"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(5, b"a stream's own idea"), 'b"a stream\'s own idea"'),
        (ConnectionResetError(104, "Connection reset by peer"), "Connection reset by peer"),
        (OSError(2, "No such file", "x"), "[Errno 2] No such file: 'x'"),
        (OSError("no number"), "no number"),
        (
            ssl.SSLError(1, "[SSL: HTTP_REQUEST] http request (_ssl.c:1006)"),
            "[SSL: HTTP_REQUEST] http request",
        ),
        (ValueError("no"), "no"),
        (ValueError(), "ValueError()"),
    ],
)
def test_what_only_programmers_look_up_is_no_part_of_a_reason(error: Exception, words: str) -> None:
    assert reason_of(error) == words


def test_reason_of_an_error_without_words_is_its_kind() -> None:
    class SpeechlessError(Exception):
        def __str__(self) -> str:
            raise ValueError

    assert reason_of(SpeechlessError()) == "SpeechlessError, whose words could not be had"


def test_text_for_an_error_is_cut_in_its_middle_where_it_is_longer_than_allowed() -> None:
    assert one_line("0123456789", 10) == "0123456789"
    assert one_line("0123456789a", 10) == "01234 ... 6789a"


def test_peers_fault_and_ones_own_mistake_are_told_apart() -> None:
    assert issubclass(MessageTooLargeError, ProtocolError)
    assert issubclass(IncompleteMessageError, ProtocolError)
    assert issubclass(InvalidMessageError, ProtocolError)
    assert not issubclass(EncodeError, ProtocolError)
    assert not issubclass(ProtocolError, EncodeError)
    # Nor do they pass for what Trio's channels raise when all is well.
    assert not issubclass(ProtocolError, trio.EndOfChannel | trio.BrokenResourceError)


async def test_message_that_the_peer_announced_too_large() -> None:
    left, right = connection_pair(LengthPrefixed())
    async with left, right:
        right.use(LengthPrefixed(max_size=3))
        await left.send(b"four")
        for _ in range(2):
            with pytest.raises(MessageTooLargeError, match="4 bytes; max_size allows 3 bytes"):
                await right.receive()


async def test_message_that_makes_no_sense_is_kept_and_the_next_one_comes() -> None:
    stream, other_end = trio.testing.memory_stream_pair()
    async with open_connection(stream, codec=Lines().map(decode=int)) as connection:
        await other_end.send_all(b"1\ntwo\n3\n")
        assert await connection.receive() == 1
        with pytest.raises(
            InvalidMessageError, match=r"invalid literal .*; it is 'two'$"
        ) as caught:
            await connection.receive()
        assert await connection.receive() == 3
    error = caught.value
    for same in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert same.frame == "two"
        assert same.reason == "invalid literal for int() with base 10: 'two'"
        assert str(same) == str(error)


async def test_what_a_peer_has_put_into_an_error_is_shown_on_one_line_of_reasonable_length() -> (
    None
):
    stream, other_end = trio.testing.memory_stream_pair()
    async with open_connection(stream, codec=LengthPrefixed().map(decode=refuse)) as connection:
        await other_end.send_all(frame(b"a\nb") + frame(b"\xe2\x80\xae" * 1000) + frame(b""))
        with pytest.raises(InvalidMessageError) as caught:
            await connection.receive()
        assert caught.value.reason == r"a\nb"
        with pytest.raises(InvalidMessageError) as caught:
            await connection.receive()
        half = 150 * r"\u202e"
        assert caught.value.reason == f"{half} ... {half}"
        with pytest.raises(InvalidMessageError) as caught:
            await connection.receive()
    assert caught.value.reason == "ValueError('')"


def refuse(payload: bytes) -> None:
    raise ValueError(payload.decode())


@attrs.frozen
class TooOldError(ProtocolError):
    version: int


class Versions(Reader[int]):
    """Takes no version but the first."""

    def decode(self, buffer: ReceiveBuffer) -> Any:
        version = buffer.take(1)
        if version is None:
            return NEED_DATA
        raise TooOldError(version[0])


async def test_an_error_of_ones_own_may_be_frozen_and_the_connection_says_it_in_its_words() -> None:
    stream, other_end = trio.testing.memory_stream_pair()
    connection: Connection[Any, Any] = open_connection(stream)
    async with connection:
        connection.reader = Versions()
        await other_end.send_all(b"\2")
        with pytest.raises(TooOldError) as caught:
            await connection.receive()
    assert connection.close_reason is caught.value
    assert repr(connection) == f"<Connection {connection.number} with None, ended: 2>"


async def test_peer_that_finishes_in_the_middle_of_a_message() -> None:
    stream, other_end = trio.testing.memory_stream_pair()
    async with open_connection(stream, codec=Lines()) as connection:
        await other_end.send_all(b"whole\nhalf")
        await other_end.aclose()
        assert await connection.receive() == "whole"
        with pytest.raises(IncompleteMessageError, match="in the middle of a message"):
            await connection.receive()


async def test_connection_lives_on_after_a_message_that_cannot_be_encoded() -> None:
    left, right = connection_pair(Lines())
    async with left, right:
        with pytest.raises(EncodeError):
            await left.send("two\nlines")
        with pytest.raises(EncodeError):
            left.send_nowait("two\nlines")
        await left.send("one line")
        assert await right.receive() == "one line"
        assert left.statistics().messages_sent == 1


async def test_an_error_that_fails_to_say_what_it_is_ends_its_connection_only(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class SpeechlessError(ProtocolError):
        def __str__(self) -> str:
            raise ValueError("no words")

    async def handler(connection: Connection[bytes, bytes]) -> None:
        if await connection.receive() == b"bad":
            raise SpeechlessError
        await connection.send(b"good")

    server = Server(handler)
    async with open_memory_connection(server) as good:
        async with open_memory_connection(server) as bad:
            await bad.send(b"bad")
            with pytest.raises(trio.EndOfChannel):
                await bad.receive()
        await good.send(b"hello")
        assert await good.receive() == b"good"
    assert "SpeechlessError, whose words could not be had" in caplog.text


def test_the_leaves_of_an_error_are_what_is_in_its_groups() -> None:
    one, two, three = ValueError(1), KeyError(2), trio.EndOfChannel()
    assert list(leaves(one)) == [one]
    group = BaseExceptionGroup("outer", [one, ExceptionGroup("inner", [two, three])])
    assert list(leaves(group)) == [one, two, three]
