"""Escapes: any bytes can be written with them, and nothing that is printed moves a cursor."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trio_bytetalk._cli.escapes import escaped, printable, unescaped, with_arrows

# What Python makes of bytes on the command line that are no UTF-8.
OUTSIDE = st.binary().map(lambda data: data.decode("utf-8", "surrogateescape"))

# Half a surrogate pair that stands for no byte can come from JSON only.
ANY_TEXT = st.text(st.characters(codec=None, categories=None))


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("", b""),
        ("hello", b"hello"),
        ("grüß dich", "grüß dich".encode()),
        (r"a\r\n\t\0\\b", b"a\r\n\t\0\\b"),
        (r"\x00\xff\xFf\x41", b"\x00\xff\xffA"),
        (r"\\n", rb"\n"),
        (r"\\\n", b"\\\n"),
        (r"\x411", b"A1"),
        (r"\00", b"\x000"),
        ("a\udcffb", b"a\xffb"),
        ("\udcff\\n", b"\xff\n"),
    ],
)
def test_text_stands_for_bytes(text: str, data: bytes) -> None:
    assert unescaped(text) == data


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\\", "\\"),
        ("ab\\q", r"\q"),
        (r"\x", r"\x"),
        (r"\x1", r"\x"),
        (r"\x1g", r"\x"),
        (r"\u0041", r"\u"),
        ("\\\n", r"\\n"),
        ("\\\x1b[2J", r"\\x1b"),
    ],
)
def test_what_is_no_escape_is_named_with_those_that_are(text: str, shown: str) -> None:
    with pytest.raises(ValueError, match="is no escape") as caught:
        unescaped(text)
    assert str(caught.value) == (
        shown + r" is no escape; these are: \\, \n, \r, \t, \0 and \xNN (two hex digits)"
    )
    assert str(caught.value).isprintable()


@given(st.binary())
@example(b"\\x41")
@example("\x85 \u2028\u202e".encode())
@example(b"\xed\xa0\x80")
@example(b"\xc3")
def test_any_bytes_can_be_written_with_escapes(data: bytes) -> None:
    assert unescaped(escaped(data)) == data
    assert escaped(data).isprintable()
    assert escaped(bytearray(data)) == escaped(memoryview(data)) == escaped(data)


def test_escapes_are_for_what_needs_them_only() -> None:
    assert escaped("tschüß, 世界 🙂".encode()) == "tschüß, 世界 🙂"
    assert escaped(b"\x1b[1m\r\n\t\0\\") == r"\x1b[1m\r\n\t\x00\\"
    assert escaped("\u200b".encode()) == r"\xe2\x80\x8b"


@given(OUTSIDE)
def test_what_comes_from_outside_stands_for_itself_or_is_refused(text: str) -> None:
    if "\\" not in text:
        assert unescaped(text) == text.encode("utf-8", "surrogateescape")
    with contextlib.suppress(ValueError):
        unescaped(text)


@given(ANY_TEXT)
@example("\x1b]0;title\x07")
@example("\ud800")
@example("\x9b31m")
@example("abc\u202edef\u2066")
@example("\u2028\x85\x7f\xad\xa0")
def test_nothing_printed_controls_a_terminal(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    shown.encode()  # so a terminal, or a file, takes it
    if text.isprintable():
        assert shown == text


def test_what_is_printable_stays_beside_what_is_not() -> None:
    assert printable("grün\n\x1b[31m") == r"grün\n\x1b[31m"


# -- arrows


@pytest.mark.parametrize(
    ("encoding", "written"),
    [
        ("utf-8", "→ 1; ← 2 é"),
        ("gb2312", "→ 1; ← 2 é"),
        ("ascii", "> 1; < 2 é"),
        ("latin-1", "> 1; < 2 é"),
        (None, "→ 1; ← 2 é"),
    ],
)
def test_arrows_where_there_are_none(encoding: str | None, written: str) -> None:
    assert with_arrows("→ 1; ← 2 é", encoding) == written
