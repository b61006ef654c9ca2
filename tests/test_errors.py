"""The exceptions: what catches what, and what remains usable."""

from __future__ import annotations

import copy
import pickle

import pytest
import trio
import trio.testing

import trio_bytetalk
from trio_bytetalk import (
    BytetalkError,
    EncodeError,
    IncompleteMessageError,
    InvalidMessageError,
    LengthPrefixed,
    Lines,
    MessageTooLargeError,
    ProtocolError,
    open_connection,
)
from trio_bytetalk.testing import connection_pair

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
