"""`WatchedBuffer`: a receive buffer as any other, which counts what is done with it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from trio_bytetalk import ReceiveBuffer
from trio_bytetalk._watched_buffer import EndlessError, WatchedBuffer


def filled(*chunks: bytes) -> WatchedBuffer:
    buffer = WatchedBuffer()
    for chunk in chunks:
        buffer.feed(chunk)
    return buffer


def touched(buffer: WatchedBuffer, action: Callable[[WatchedBuffer], Any]) -> int:
    before = buffer.touched
    action(buffer)
    return buffer.touched - before


def test_it_is_a_buffer_as_any_other() -> None:
    buffer = filled(b"abc", b"def\n", b"rest")
    assert isinstance(buffer, ReceiveBuffer)
    assert buffer.rest() == b"abcdef\nrest"
    assert buffer.peek(4) == b"abcd"
    assert buffer.find(b"\n") == 6
    assert buffer.take(7) == b"abcdef\n"
    assert len(buffer) == 4
    assert buffer.take(5) is None
    assert buffer.wanted == 5
    buffer.compact()
    assert buffer.rest() == b"rest"
    assert type(buffer.data[:2]) is bytes


@pytest.mark.parametrize(
    ("look", "least"),
    [
        (lambda data: data[100:200], 100),
        (lambda data: data[3], 1),
        (lambda data: data.find(b"x", 900), 101),
        (lambda data: data.find(b"c", 1), 2),
        (lambda data: data.count(b"c"), 1000),
        (lambda data: data.split(b"c"), 1000),
        (list, 1000),
        (lambda data: data + b"", 1000),
    ],
)
def test_looks_at_the_front_count(look: Callable[[bytes], Any], least: int) -> None:
    buffer = filled(b"abc" + bytes(997))
    assert touched(buffer, lambda buffer: look(buffer.data)) == least


def test_looks_that_fail_count() -> None:
    buffer = filled(bytes(1000))
    with pytest.raises(ValueError, match="not found"):
        buffer.data.index(b"x")
    assert buffer.touched >= 2000  # with those that were fed


def test_a_search_counts_what_it_has_not_seen_before() -> None:
    pattern = re.compile(b"[\n]")
    for find in (lambda buffer: buffer.find(b"\n"), lambda buffer: buffer._find_any(pattern, 1)):
        buffer = filled(bytes(1000), bytes(5000))
        assert touched(buffer, find) >= 6000
        assert touched(buffer, find) < 10
        buffer.feed(b"123\n")
        assert touched(buffer, find) < 10
        assert touched(buffer, find) < 10
        buffer.find(b"\r\n")  # which is another one
        assert touched(buffer, find) >= 6000


def test_copies_and_joining_count() -> None:
    buffer = filled(bytes(1000), bytes(5000))
    assert touched(buffer, lambda buffer: buffer.peek(1500)) == 1500
    assert touched(buffer, lambda buffer: buffer.peek(9999)) == 0
    assert touched(buffer, lambda buffer: buffer._reach(1500)) >= 6000
    assert touched(buffer, lambda buffer: buffer.take(10)) == 10


def test_what_does_not_end_is_ended() -> None:
    def decode(buffer: ReceiveBuffer) -> Any:
        while len(buffer) < 5:
            pass

    buffer = filled(b"abc")
    buffer.wanted = 7
    with pytest.raises(EndlessError):
        buffer.call(decode)
    assert not buffer.wanted
    for _ in range(10_000):  # outside of a call there is no end
        assert len(buffer) == 3
    assert buffer.call(lambda buffer: buffer.take(3)) == b"abc"
