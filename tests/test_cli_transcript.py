"""What a proxy's lines look like, for people and for scripts."""

from __future__ import annotations

import json
import math
import time
from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_bytetalk import Codec, LengthPrefixed, Lines, Structs
from trio_bytetalk._cli.figures import plural
from trio_bytetalk._cli.tap import Message, Problem, ProblemKind, Tap
from trio_bytetalk._cli.transcript import REPLIES, REQUESTS, JsonLines, Readable, Transcript

# 1970-01-01, at a time of day that only the zone decides; 250 ms after it.
NOW = 5.25


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "localtime", time.gmtime)


def seen(message: Any, frame: bytes = b"????", *, is_value: bool = False) -> Message:
    return Message(100, frame, message, is_value)


def shown(message: Any, *, is_value: bool = False, most: int = 1000) -> list[str]:
    """The content of a message's lines, without what comes before it."""
    front = "00:00:05.250    #7 →       4"
    line = Readable(most).message(NOW, 7, REQUESTS, seen(message, is_value=is_value))
    assert line.startswith(front)
    return line.removeprefix(front).removeprefix("  ").split("\n")


# -- for people


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (b"hello", "hello"),
        ("grüße →".encode(), "grüße →"),
        (b"a\r\nb\\c\t", r"a\r\nb\\c\t"),
        (bytearray(b"hello"), "hello"),
        (memoryview(b"hello"), "hello"),
        (b"", ""),
        ("hello", "hello"),
        ("\x1b[31mred\n", r"\x1b[31mred\n"),
        ({"a": [1, None]}, '{"a": [1, null]}'),
        (7, "7"),
    ],
)
def test_messages_on_one_line(message: Any, text: str) -> None:
    assert shown(message) == [text]


@pytest.mark.parametrize(
    ("message", "text"),
    [("1", '"1"'), ("grüße", '"grüße"'), ("\x9b31m", r'"\u009b31m"'), (1, "1"), (None, "null")],
)
def test_a_value_that_is_text_is_quoted(message: Any, text: str) -> None:
    assert shown(message, is_value=True) == [text]


def test_bytes_that_are_no_text_are_dumped() -> None:
    assert shown(bytes(range(250, 256)) + b"0123456789ab") == [
        "",
        "  00000000  fa fb fc fd fe ff 30 31 32 33 34 35 36 37 38 39  |......0123456789|",
        "  00000010  61 62                                            |ab|",
    ]


def test_a_dump_fits_a_terminal_of_80_columns() -> None:
    assert all(len(row) < 80 for row in shown(bytes(100)))


@pytest.mark.parametrize("message", ["x" * 15, ["x" * 11], b"x" * 15])
def test_long_messages_are_cut(message: Any) -> None:
    (line,) = shown(message, most=10)
    kind = "bytes" if isinstance(message, bytes) else "characters"
    assert line.endswith(f" ... 5 {kind} more")
    assert len(line) == 10 + len(f" ... 5 {kind} more")


@pytest.mark.parametrize("message", ["x" * 10, ["x" * 6], b"x" * 10])
def test_messages_that_just_fit_are_not_cut(message: Any) -> None:
    (line,) = shown(message, most=10)
    assert len(line) == 10


def test_one_is_singular() -> None:
    assert shown("x" * 11, most=10)[0].endswith(" ... 1 character more")
    assert shown(["x" * 7], most=10)[0].endswith(" ... 1 character more")
    assert shown(b"x" * 11, most=10)[0].endswith(" ... 1 byte more")
    assert shown(b"\xff" * 11, most=10)[2] == "  ... 1 byte more"


def test_a_long_dump_is_cut() -> None:
    assert shown(b"\xff" * 40, most=10)[1:] == [
        "  00000000  ff ff ff ff ff ff ff ff ff ff                    |..........|",
        "  ... 30 bytes more",
    ]


@given(st.text(min_size=1, max_size=20), st.integers(0, 30))
def test_text_is_cut_between_its_characters(text: str, most: int) -> None:
    text = "".join(each if each.isprintable() and each != "\\" else "→" for each in text)
    data = text.encode()
    (line,) = Readable(most).message(NOW, 7, REQUESTS, seen(data)).split("\n")
    shown = line[len("00:00:05.250    #7 →       4") :].removeprefix("  ")
    kept, _, rest = shown.partition(" ... ")
    if not rest:
        assert shown.rstrip() == text.rstrip()
    else:
        assert text.startswith(kept)
        assert most - 3 <= len(kept.encode()) <= most
        assert rest == f"{plural(len(data) - len(kept.encode()), 'byte')} more"


def test_what_only_looks_like_the_middle_of_characters_is_dumped() -> None:
    assert len(shown(b"\x80" * 50, most=10)) == 3


def test_nothing_of_a_message_need_be_shown() -> None:
    assert shown(b"hello", most=0) == [" ... 5 bytes more"]
    assert shown(b"\xff" * 5, most=0) == [" ... 5 bytes more"]


def test_frames_are_dumped_when_that_is_wanted() -> None:
    message = seen(b"hi", b"\0\0\0\2hi")
    assert Readable(1000, hex=True).message(NOW, 12345, REPLIES, message).split("\n") == [
        "00:00:05.250 #12345 ←       6  hi",
        "  00000000  00 00 00 02 68 69                                |....hi|",
    ]
    assert Readable(1000, hex=True).message(NOW, 7, REPLIES, seen(b"\xff", b"\1\xff")) == (
        "00:00:05.250    #7 ←       2\n"
        "  00000000  01 ff                                            |..|"
    )


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        (ProblemKind.INVALID, "00:00:05.250    #7 →       3  not decodable: no number"),
        (
            ProblemKind.UNDECODABLE,
            "00:00:05.250    #7 → not decodable from byte 1,234 on: no number; still passing bytes",
        ),
        (ProblemKind.UNFINISHED, "00:00:05.250    #7 → unfinished from byte 1,234 on: no number"),
    ],
)
def test_what_cannot_be_decoded(kind: ProblemKind, line: str) -> None:
    problem = Problem(1234, b"\1ab", "no number", kind)
    assert Readable(1000).problem(NOW, 7, REQUESTS, problem).split("\n") == [
        line,
        "  00000000  01 61 62                                         |.ab|",
    ]


def test_notes() -> None:
    transcript = Readable(1000)
    assert transcript.note(NOW, 7, "opened", "x connected", peer="x") == (
        "00:00:05.250    #7   x connected"
    )
    assert transcript.note(NOW + 1, None, "full", "no more") == "00:00:06.250         no more"


def test_arrows_where_the_output_has_none() -> None:
    transcript = Readable(1000, encoding="ascii")
    assert transcript.message(NOW, 7, REQUESTS, seen("→")) == (
        "00:00:05.250    #7 >       4  →"  # which is the peer's
    )
    assert transcript.note(NOW, 7, "closed", "closed: → 1; ← 2") == (
        "00:00:05.250    #7   closed: > 1; < 2"
    )


def test_colours() -> None:
    coloured, plain = Readable(1000, colours=True), Readable(1000)
    lines = [
        (
            each.message(NOW, 7, REQUESTS, seen(b"hi")),
            each.problem(NOW, 7, REPLIES, Problem(0, b"", "no", ProblemKind.INVALID)),
            each.note(NOW, None, "full", "no more"),
        )
        for each in (coloured, plain)
    ]
    for with_colours, without in zip(*lines, strict=True):
        assert "\x1b[" in with_colours
        assert "\x1b" not in without
        assert click.unstyle(with_colours) == without
    assert lines[0][0].startswith("\x1b[36m00:00:05.250    #7 →\x1b[0m")


CODECS: list[Codec[Any, Any]] = [
    LengthPrefixed(1),
    Lines(),
    Lines().json(),
    LengthPrefixed(1).json(),
    LengthPrefixed(1).msgpack(),
    Structs("<fdB2s"),
]


@given(st.sampled_from(CODECS), st.binary(max_size=100), st.integers(0, 20))
def test_nothing_that_a_peer_sends_reaches_the_terminal_as_it_is(
    codec: Codec[Any, Any], data: bytes, most: int
) -> None:
    tap = Tap(codec, 50)
    for each in [*tap.feed(data), *tap.end()]:
        for transcript in (Readable(most), Readable(most, hex=True), JsonLines()):
            if isinstance(each, Message):
                lines = transcript.message(NOW, 7, REQUESTS, each)
            else:
                lines = transcript.problem(NOW, 7, REQUESTS, each)
            assert all(line.isprintable() for line in lines.split("\n"))
            if isinstance(transcript, JsonLines):
                parsed(lines)


@pytest.mark.parametrize(
    "text", ["1" * 5000, "1e999", "-0.0", "[" * 900 + "]" * 900, r'"\ud800"'], ids=len
)
@pytest.mark.parametrize("transcript", [Readable(10**6), JsonLines()])
def test_numbers_and_depths_at_the_edge(transcript: Transcript, text: str) -> None:
    for each in Tap(Lines().json(), 10**6).feed(f"{text}\n".encode()):
        if isinstance(each, Message):
            line = transcript.message(NOW, 7, REQUESTS, each)
        else:
            line = transcript.problem(NOW, 7, REQUESTS, each)
        assert all(line.isprintable() for line in line.split("\n"))


# -- for scripts


def parsed(line: str) -> Any:
    assert line.isascii()
    assert "\n" not in line

    def no_constant(name: str) -> Any:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(line, parse_constant=no_constant)


@pytest.mark.parametrize(
    ("message", "as_json"),
    [
        (b"a\nb", "a\nb"),
        (b"\xff", None),
        ("\x1b→", "\x1b→"),
        ({"a": [1, None]}, {"a": [1, None]}),
        ((1, b"x"), [1, "b'x'"]),
        (math.nan, "NaN"),
        ({(1, 2): 3}, "{(1, 2): 3}"),
    ],
)
def test_messages_as_json(message: Any, as_json: Any) -> None:
    line = JsonLines().message(NOW, 7, REQUESTS, seen(message, b"\0\1"))
    assert parsed(line) == {
        "time": 5.25,
        "event": "message",
        "connection": 7,
        "direction": "to_target",
        "offset": 100,
        "size": 2,
        "message": as_json,
        "bytes": "0001",
    }


def test_a_value_too_deep_for_json() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    line = parsed(JsonLines().message(NOW, 7, REPLIES, seen(deep)))
    assert "too deeply" in line["message"]
    while deep:  # or the interpreter would recurse to let go of it
        deep = deep[0]


@pytest.mark.parametrize("kind", ProblemKind)
def test_problems_as_json(kind: ProblemKind) -> None:
    line = JsonLines().problem(NOW, 7, REPLIES, Problem(1234, b"\1", "no number", kind))
    assert parsed(line) == {
        "time": 5.25,
        "event": kind.value,
        "connection": 7,
        "direction": "to_client",
        "offset": 1234,
        "reason": "no number",
        "bytes": "01",
    }


def test_notes_as_json() -> None:
    transcript = JsonLines()
    assert parsed(transcript.note(NOW, 7, "opened", "x connected", peer="x")) == {
        "time": 5.25,
        "event": "opened",
        "connection": 7,
        "peer": "x",
    }
    assert parsed(transcript.note(NOW, None, "dropped", "some")) == {
        "time": 5.25,
        "event": "dropped",
    }
