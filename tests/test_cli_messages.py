"""Messages as they are typed and shown: what is shown can be typed again."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trio_bytetalk import Codec, LengthPrefixed, Lines, Structs, VarintPrefixed
from trio_bytetalk._cli.messages import (
    Kind,
    bytes_of,
    hex_dump,
    kind_of,
    line_of,
    message_of,
    parse_hex,
    parse_message,
    parser,
    show,
    text_of,
)

VALUES = Lines().json()
RECORDS = Structs("!H4s")

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


class Untold(Codec):  # type: ignore[type-arg]  # that is what it is to show
    """A codec that does not declare what it sends."""

    reader = LengthPrefixed().reader
    writer = LengthPrefixed().writer


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


# -- what a codec's messages are


@pytest.mark.parametrize(
    ("codec", "kind"),
    [
        (LengthPrefixed(), Kind.BYTES),
        (LengthPrefixed().compressed(), Kind.BYTES),
        (Lines(), Kind.TEXT),
        (LengthPrefixed().text(), Kind.TEXT),
        (Lines().map(decode=str.upper), Kind.TEXT),
        (VALUES, Kind.VALUES),
        (LengthPrefixed().msgpack(), Kind.VALUES),
        (RECORDS, Kind.VALUES),
        (Untold(), Kind.VALUES),
    ],
)
def test_kind_of_messages(codec: Codec[Any, Any], kind: Kind) -> None:
    assert kind_of(codec) is kind


# -- typing


def test_text_is_taken_as_it_is_typed() -> None:
    assert parse_message(r"C:\new", Lines()) == r"C:\new"


def test_bytes_are_typed_with_escapes() -> None:
    assert parse_message(r"grün\x00\n", LengthPrefixed()) == "grün\0\n".encode()
    with pytest.raises(ValueError, match="is no escape"):
        parse_message(r"\q", LengthPrefixed())


def test_values_are_typed_as_json() -> None:
    assert parse_message('{"a": [1, null]}', VALUES) == {"a": [1, None]}


@pytest.mark.parametrize(
    "line", ["", "hello", "{'a': 1}", "[1,]", "1" * 5000, "[" * 100_000], ids=lambda line: line[:9]
)
@pytest.mark.parametrize("codec", [VALUES, RECORDS])
def test_what_is_no_json_is_refused(line: str, codec: Codec[Any, Any]) -> None:
    with pytest.raises(ValueError, match=r"^this codec's messages are typed as JSON: ") as caught:
        parse_message(line, codec)
    assert str(caught.value).isprintable()


def test_records_are_typed_as_lists_with_escapes_for_bytes() -> None:
    record = parse_message(r'[7, "ab\\x00\\xff"]', RECORDS)
    assert record == (7, b"ab\0\xff")
    assert RECORDS.writer().encode(record) == b"\0\7ab\0\xff"


@pytest.mark.parametrize("line", ["7", '"ab"', '{"a": 1}', "null"])
def test_a_record_that_is_no_list_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match=r"^a record is typed as a JSON list, such as \[1, 2\]$"):
        parse_message(line, RECORDS)


def test_many_lines_of_the_same_codec() -> None:
    parse = parser(LengthPrefixed())
    assert [parse(line) for line in ("a", r"\0")] == [b"a", b"\0"]


def test_a_whole_file_as_one_message() -> None:
    assert message_of(b"a\\n\xff\n", LengthPrefixed()) == b"a\\n\xff\n"
    assert message_of("grün".encode(), Lines()) == "grün"
    assert message_of(b"[1,\n 2]\n", VALUES) == [1, 2]
    with pytest.raises(ValueError, match="can't decode byte 0xff"):
        message_of(b"\xff", Lines())


# -- hex


@pytest.mark.parametrize("line", ["", "00ff10", "00 FF 10", "00:ff:10", " 00ff 10 ", "00:ff 10"])
def test_hex_digits(line: str) -> None:
    assert parse_hex(line) == (b"\x00\xff\x10" if line else b"")


@pytest.mark.parametrize("line", ["0", "0 0", "0x00", "zz", "00-ff", "\u0660\u0660", "\x1b[2J"])
def test_other_than_hex_digits_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match=r"^two hex digits for each byte were expected") as caught:
        parse_hex(line)
    assert str(caught.value).isprintable()


def test_a_long_line_that_is_no_hex_is_shown_in_part() -> None:
    with pytest.raises(ValueError, match=r"ff [.]{3} ff") as caught:
        parse_hex("ff" * 10_000 + "f")
    assert len(str(caught.value)) < 150


@given(st.binary())
def test_hex_is_read_as_it_is_shown(data: bytes) -> None:
    assert parse_hex(data.hex()) == parse_hex(data.hex(":")) == parse_hex(data.hex(" ")) == data


@given(st.text())
def test_any_line_is_hex_or_refused_on_one_line(line: str) -> None:
    try:
        message = parse_hex(line).hex()
    except ValueError as error:
        message = str(error)
    assert message.isprintable()


# -- showing


@given(st.binary())
@example(b"\x1b[2J")
@example("\u202e".encode())
def test_bytes_are_printed_as_they_could_be_typed(data: bytes) -> None:
    for message in (data, bytearray(data), memoryview(data)):
        line = line_of(message)
        assert line.isprintable()
        assert parse_message(line, LengthPrefixed()) == data


@given(st.text())
def test_printable_text_is_printed_as_it_could_be_typed(text: str) -> None:
    assert line_of(text).isprintable()
    if text.isprintable():
        assert parse_message(line_of(text), Lines()) == text


@given(JSON)
@example("\x7f\xa0\u200b\U000e0001\u2028")
@example({"\x1b[2J": "\x9b"})
@example("\ud800")
def test_values_are_printed_as_they_could_be_typed(value: Any) -> None:
    line = line_of(value)
    if isinstance(value, str):  # a message of text is shown without quotes
        line = line_of([value])
        value = [value]
    assert line.isprintable()
    assert parse_message(line, VALUES) == value


@given(st.integers(0, 2**16 - 1), st.binary(min_size=4, max_size=4))
def test_records_are_printed_as_they_could_be_typed(number: int, data: bytes) -> None:
    record = (number, data)
    assert parse_message(line_of(record), RECORDS) == record


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("grün", "grün"),
        ("a\n\x1b[31m", r"a\n\x1b[31m"),
        (b"grun\r\n", r"grun\r\n"),
        (b"back\\slash", r"back\\slash"),
        (b"\xff\x00", "ff 00"),
        (b"a\x1b[31m", "61 1b 5b 33 31 6d"),
        (b"", ""),
        ({"a": [1, None, "ü"]}, '{"a": [1, null, "ü"]}'),
        ((1, b"a\0"), r'[1, "a\\x00"]'),
        ([{1, 2}], '["{1, 2}"]'),
        ({b"a\x1b": 1}, r"{b'a\x1b': 1}"),
        (float("inf"), "Infinity"),
        (None, "null"),
    ],
)
def test_messages_on_one_line(message: Any, line: str) -> None:
    assert show(message) == line


def test_a_value_within_itself_is_shown() -> None:
    value: list[Any] = []
    value.append(value)
    assert show(value) == "[[...]]"


def test_a_value_nested_too_deeply_is_said_to_be() -> None:
    assert show(nested(100_000)) == "(a value nested too deeply to be shown)"


@pytest.mark.parametrize("frame", [b"abc", bytearray(b"abc"), memoryview(b"abc"), [b"a", b"bc"]])
def test_a_frame_in_one_piece(frame: Any) -> None:
    assert bytes_of(frame) == b"abc"


@given(st.binary())
@example("\x85".encode())
def test_only_what_a_terminal_can_show_is_text(data: bytes) -> None:
    text = text_of(data)
    if text is not None:
        assert text.encode() == data
        assert set(text) <= {"\t", "\n", "\r"} or any(map(str.isprintable, text))
        assert text.replace("\t", "").replace("\n", "").replace("\r", "").isprintable()
    assert show(data).isprintable()


def test_text_with_its_newlines() -> None:
    assert text_of(b"a\r\n\tb") == "a\r\n\tb"
    assert text_of(memoryview("grün".encode())) == "grün"
    assert text_of(b"\xff") is None
    assert text_of(b"a\0") is None


# -- hex dumps


def test_hex_dump() -> None:
    assert list(hex_dump(bytes(range(0x3E, 0x4E)) + b"\x1f !}~\x7f\xff")) == [
        "00000000  3e 3f 40 41 42 43 44 45 46 47 48 49 4a 4b 4c 4d  |>?@ABCDEFGHIJKLM|",
        "00000010  1f 20 21 7d 7e 7f ff                             |. !}~..|",
    ]
    assert list(hex_dump(memoryview(b""))) == []


@given(st.binary(max_size=100))
def test_a_hex_dump_has_every_byte_and_is_as_wide_as_a_terminal(data: bytes) -> None:
    lines = list(hex_dump(data))
    assert b"".join(parse_hex(line[10:58]) for line in lines) == data
    assert all(line.isprintable() and line.isascii() and len(line) <= 80 for line in lines)
    assert [int(line[:8], 16) for line in lines] == list(range(0, len(data), 16))


def test_values_of_the_codecs_are_json_of_others() -> None:
    message = {"n": 1, "t": "\x00é"}
    assert json.loads(show(message)) == message
    assert parse_message(show(message), VarintPrefixed().msgpack()) == message
