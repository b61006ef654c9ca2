"""The tap: what a codec's reader makes of a copy of the bytes, driven by hand."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

import attrs
import pytest
from driving import cut, cuts, read_all
from hypothesis import given
from hypothesis import strategies as st
from pairs import frame

from trio_bytetalk import (
    NEED_DATA,
    Codec,
    LengthPrefixed,
    Lines,
    ProtocolError,
    Reader,
    ReceiveBuffer,
    Writer,
)
from trio_bytetalk._cli.tap import Message, Problem, ProblemKind, Seen, Tap

PLENTY = 2**20


def see_all(tap: Tap, pieces: Iterable[bytes]) -> list[Seen]:
    """What the tap makes of these bytes and their end."""
    seen = [each for piece in pieces for each in tap.feed(piece)]
    return [*seen, *tap.end()]


@attrs.frozen
class Own(Codec[bytes, Any]):
    """A codec whose reader is this function."""

    decode: Callable[[ReceiveBuffer], Any]

    def reader(self) -> Reader[Any]:
        decode = self.decode

        class OwnReader(Reader[Any]):
            def decode(self, buffer: ReceiveBuffer) -> Any:
                return decode(buffer)

        return OwnReader()

    def writer(self) -> Writer[bytes]:
        raise AssertionError("nothing is sent")


class Unmade(Own):
    """A codec whose reader cannot be made."""

    def reader(self) -> Reader[Any]:
        raise RuntimeError("no reader today")


def test_a_codec_that_has_no_reader_is_told_once() -> None:
    seen = see_all(Tap(Unmade(len), PLENTY), [b"some", b"more"])
    reason = "the codec failed: RuntimeError: no reader today"
    assert seen == [Problem(0, b"some", reason, ProblemKind.UNDECODABLE)]


@given(st.lists(st.binary(max_size=30)), cuts())
def test_messages_with_their_frames_and_offsets_however_they_are_cut(
    messages: list[bytes], sizes: list[int]
) -> None:
    frames = [frame(message) for message in messages]
    tap = Tap(LengthPrefixed(), PLENTY)
    seen = see_all(tap, cut(b"".join(frames), sizes))
    offset = 0
    for each, message, one_frame in zip(seen, messages, frames, strict=True):
        assert each == Message(offset, one_frame, message, False)
        offset += len(one_frame)
    assert tap.size == offset


@given(
    st.sampled_from([Lines(), LengthPrefixed(1, max_size=20), LengthPrefixed(1).json()]),
    st.binary(max_size=60),
    cuts(),
)
def test_whatever_bytes_it_sees_what_a_connection_would_and_goes_on_where_that_can(
    codec: Codec[Any, Any], data: bytes, sizes: list[int]
) -> None:
    pieces = cut(data, sizes)
    tap = Tap(codec, PLENTY)
    seen = see_all(tap, pieces)
    messages = [each.message for each in seen if isinstance(each, Message)]
    problems = [each for each in seen if isinstance(each, Problem)]
    outcome = read_all(codec.reader(), pieces, patient=True)
    assert messages[: len(outcome.messages)] == outcome.messages
    assert bool(problems) is (outcome.error is not None)
    assert all(each.kind is ProblemKind.INVALID for each in problems[:-1])
    assert tap.size == len(data)
    end = 0
    for each in seen:
        assert each.offset == end
        assert data[each.offset :].startswith(each.frame)
        end += len(each.frame)
    if not problems or problems[-1].kind is ProblemKind.INVALID:
        assert end == len(data)


def test_bytes_of_another_protocol_end_the_decoding_and_a_specimen_is_kept() -> None:
    tap = Tap(LengthPrefixed(), PLENTY)
    message, problem = tap.feed(frame(b"hi") + b"GET / HTTP/1.1\r\n\r\n")
    assert message == Message(0, frame(b"hi"), b"hi", False)
    assert isinstance(problem, Problem)
    assert (problem.offset, problem.kind) == (6, ProblemKind.UNDECODABLE)
    assert problem.frame == b"GET / HTTP/1.1\r\n"
    assert "max_size allows 1048576" in problem.reason
    assert list(tap.feed(frame(b"hi"))) == []
    assert list(tap.end()) == []
    assert tap.size == 6 + 18 + 6


def test_an_invalid_message_does_not_end_the_decoding() -> None:
    frames = [frame(b"[1]"), frame(b"[1"), frame(b"[2]")]
    one, problem, two = Tap(LengthPrefixed().json(), PLENTY).feed(b"".join(frames))
    assert one == Message(0, frames[0], [1], True)
    assert isinstance(problem, Problem)
    assert (problem.offset, problem.frame, problem.kind) == (7, frames[1], ProblemKind.INVALID)
    assert two == Message(13, frames[2], [2], True)


def test_an_end_within_a_message() -> None:
    tap = Tap(LengthPrefixed(), PLENTY)
    message, problem = see_all(tap, [frame(b"hi"), b"\0\0\0\x02h"])
    assert isinstance(message, Message)
    assert isinstance(problem, Problem)
    assert (problem.offset, problem.kind) == (6, ProblemKind.UNFINISHED)
    assert problem.frame == b"\0\0\0\x02h"
    assert "5 bytes" in problem.reason


def test_a_last_message_that_only_the_end_completes() -> None:
    class UntilTheEnd(Reader[bytes]):
        has_ended = False

        def decode(self, buffer: ReceiveBuffer) -> Any:
            return NEED_DATA

        def decode_eof(self, buffer: ReceiveBuffer) -> Any:
            if len(buffer):
                return buffer.take(len(buffer))
            if not self.has_ended:
                self.has_ended = True
                return "the end"
            return NEED_DATA

    class AllInOne(Own):
        def reader(self) -> Reader[Any]:
            return UntilTheEnd()

    seen = see_all(Tap(AllInOne(len), PLENTY), [b"ab", b"c"])
    assert seen == [Message(0, b"abc", b"abc", False), Message(3, b"", "the end", False)]


@pytest.mark.parametrize(
    ("consumed", "kind"),
    [(0, ProblemKind.UNDECODABLE), (1, ProblemKind.INVALID)],
    ids=["in place", "behind"],
)
@pytest.mark.parametrize("error", [KeyError("x"), RecursionError("deep"), ProtocolError("no")])
def test_a_codec_that_fails_is_a_problem_and_nothing_more(
    error: Exception, consumed: int, kind: ProblemKind
) -> None:
    def decode(buffer: ReceiveBuffer) -> Any:
        buffer.skip(consumed)
        raise error

    (problem,) = Tap(Own(decode), PLENTY).feed(b"?")
    assert isinstance(problem, Problem)
    assert (problem.offset, problem.frame, problem.kind) == (0, b"?", kind)
    assert str(error) in problem.reason
    ours = not isinstance(error, ProtocolError)
    assert problem.reason.startswith(f"the codec failed: {type(error).__name__}") is ours


def test_no_more_of_an_unfinished_message_is_kept_than_is_allowed() -> None:
    tap = Tap(LengthPrefixed(), 100)
    start = frame(b"x" * 1000)[:100]
    assert list(tap.feed(start)) == []
    (problem,) = tap.feed(b"x")
    assert isinstance(problem, Problem)
    assert (problem.offset, problem.kind) == (0, ProblemKind.UNDECODABLE)
    assert "100 bytes" in problem.reason
    assert "--max-undecoded" in problem.reason
    assert list(tap.feed(b"x" * 903 + frame(b"hi"))) == []
    (problem,) = Tap(LengthPrefixed(), 1).feed(b"xx")
    assert isinstance(problem, Problem)
    assert "within 1 byte;" in problem.reason


def test_many_messages_in_one_read_are_no_unfinished_one() -> None:
    tap = Tap(LengthPrefixed(), 100)
    assert len(list(tap.feed(frame(b"hi") * 1000))) == 1000


def test_a_reader_is_not_asked_before_there_is_what_it_wants() -> None:
    asked = 0

    def decode(buffer: ReceiveBuffer) -> Any:
        nonlocal asked
        asked += 1
        message = buffer.take(100)
        return NEED_DATA if message is None else message

    tap = Tap(Own(decode), PLENTY)
    for _ in range(99):
        assert list(tap.feed(b"x")) == []
    assert asked == 1
    assert len(list(tap.feed(b"x"))) == 1


def test_a_reader_that_does_not_say_what_it_wants_is_asked_each_time() -> None:
    sizes = [100, 1]

    def decode(buffer: ReceiveBuffer) -> Any:
        if sizes[0] == 100 or len(buffer) > 1:
            message = buffer.take(sizes[0])
            if message is not None:
                sizes.reverse()
                return message
        return NEED_DATA

    tap = Tap(Own(decode), PLENTY)
    pieces = [b"x", b"x" * 99, b"x", b"x"]
    assert [len(list(tap.feed(piece))) for piece in pieces] == [0, 1, 0, 1]


def test_what_is_decoded_is_let_go_of() -> None:
    tap = Tap(LengthPrefixed(), PLENTY)
    message, start = frame(bytes(5000)), frame(b"hi")[:5]
    for piece in (message + start, b"i" + message, b"\xff" * 5000):
        references = sys.getrefcount(piece)
        list(tap.feed(piece))
        assert sys.getrefcount(piece) == references
