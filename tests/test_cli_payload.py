"""What a load generator sends: something for each codec, or one line about why not."""

from __future__ import annotations

import re
from typing import Any

import attrs
import pytest

from trio_bytetalk import Codec, LengthPrefixed, Lines, ReceiveBuffer
from trio_bytetalk._cli.codecs import FRAMINGS, parse_codec
from trio_bytetalk._cli.payload import Payload, checked, generated


@pytest.mark.parametrize("name", sorted(set(FRAMINGS) - {"chunks"}))
def test_each_framing_has_messages_that_come_back(name: str) -> None:
    framing = FRAMINGS[name]
    codec = parse_codec(f"{name}:{framing.example}" if framing.needs_argument else name)
    payload = generated(codec, None)
    assert len(set(payload.messages)) == len(payload.messages) > 1
    buffer = ReceiveBuffer()
    reader, writer = codec.reader(), codec.writer()
    for message in payload.messages:
        frame: Any = writer.encode(message)
        frame = frame if isinstance(frame, bytes) else b"".join(frame)
        assert len(frame) == payload.frame_size
        buffer.feed(frame)
        assert reader.decode(buffer) == message


@pytest.mark.parametrize("spec", ["json+lines", "msgpack+varint", "text+compressed+length:2"])
def test_each_layer_has_strings(spec: str) -> None:
    payload = generated(parse_codec(spec), 10)
    assert all(isinstance(message, str) and len(message) == 10 for message in payload.messages)


def test_the_size_is_that_of_the_messages() -> None:
    payload = generated(LengthPrefixed(), 100)
    assert {len(message) for message in payload.messages} == {100}
    assert payload.frame_size == 104
    assert generated(LengthPrefixed(), 0) == Payload((b"",) * 16, 4)


def test_the_default_size_is_that_of_the_codec_or_64() -> None:
    assert len(generated(LengthPrefixed(), None).messages[0]) == 64
    assert len(generated(parse_codec("fixed:16"), None).messages[0]) == 16
    assert generated(parse_codec("struct:!IH"), None).frame_size == 6
    assert generated(parse_codec("struct:!IH"), 6).frame_size == 6


def test_large_messages_are_few() -> None:
    payload = generated(LengthPrefixed(max_size=2**24), 2**23)
    assert len(set(payload.messages)) == 2


def test_letters_that_are_delimiters_are_avoided() -> None:
    assert generated(parse_codec("delimiter:c"), 4).messages[0] == b"ABCD"


@pytest.mark.parametrize(
    ("spec", "size", "problem"),
    [
        ("length:1", 300, "the message has 300 bytes; a length field of size=1 holds at most 255"),
        ("lines:max_size=10", 11, "the line has 11 bytes; max_size allows 10"),
        ("fixed:16", 17, "the message has 17 bytes; size says that each has 16"),
        ("delimiter:c|C", 4, "the message contains its own delimiter b'c' or b'C'"),
        ("struct:!IH", 7, "a record of '!IH' has a size of 6, not 7"),
        ("length:8,max_size=9G", 2**28 + 1, "the most is 268,435,456"),
        ("chunks", 8, "this codec does not receive such messages as it sends them"),
    ],
)
def test_what_cannot_be_sent_is_told(spec: str, size: int, problem: str) -> None:
    with pytest.raises(ValueError, match=re.escape(problem)) as caught:
        generated(parse_codec(spec), size)
    assert "\n" not in str(caught.value)


def test_the_first_problem_is_told_and_not_that_of_the_capitals() -> None:
    with pytest.raises(ValueError, match=r"delimiter b'B'"):
        generated(parse_codec("delimiter:B|b"), 4)


@attrs.frozen
class Shouting(Codec[str, str]):
    """Receives other messages than it sends, or none at all."""

    refuses: bool = False

    def reader(self) -> Any:
        def refuse(line: str) -> str:
            raise ValueError("not a word")

        return Lines().map(decode=refuse if self.refuses else str.upper).reader()

    def writer(self) -> Any:
        return Lines().writer()


def test_a_codec_must_know_its_messages_again_if_replies_are_checked() -> None:
    with pytest.raises(ValueError, match=r"replies cannot be compared; .* --no-check"):
        checked(Shouting(), ["hello"])
    with pytest.raises(ValueError, match=r"does not take such messages: .*not a word"):
        checked(Shouting(refuses=True), ["hello"])
    assert checked(Shouting(), ["hello"], check=False) == Payload(("hello",), 6)


def test_a_message_of_ones_own() -> None:
    assert checked(LengthPrefixed(size=2), [b"hello"]) == Payload((b"hello",), 7)
