"""Wrong settings fail in the constructor, and the message names the setting and what it may be."""

from __future__ import annotations

import decimal
import math
from typing import Any

import attrs
import pytest
import trio.testing

from trio_bytetalk import (
    Delimited,
    EventEmitter,
    LengthPrefixed,
    Limits,
    Lines,
    Server,
    open_connection,
)
from trio_bytetalk._validators import text_encoding


@pytest.mark.parametrize("size", [1, 2, 7, 8])
def test_whole_number_from_the_least_to_the_most(size: int) -> None:
    assert LengthPrefixed(size).size == size


@pytest.mark.parametrize("size", [0, -1, 9, 10**30])
def test_whole_number_out_of_its_range(size: int) -> None:
    with pytest.raises(ValueError, match=rf"^size must be 1 to 8 bytes, not {size}$"):
        LengthPrefixed(size)


def test_whole_number_without_a_most() -> None:
    assert LengthPrefixed(max_size=0).max_size == 0
    assert LengthPrefixed(max_size=10**30).max_size == 10**30
    with pytest.raises(ValueError, match=r"^max_size must be 0 or more bytes, not -1$"):
        LengthPrefixed(max_size=-1)


@pytest.mark.parametrize("value", [4.0, "4", b"4", None, True, False, [4], decimal.Decimal(4)])
def test_what_is_no_whole_number(value: Any) -> None:
    # Neither is a boolean, though Python takes it for an int: as a size it is a mistake.
    with pytest.raises(TypeError) as caught:
        LengthPrefixed(value)
    assert str(caught.value) == f"size must be a whole number of bytes (1 to 8), not {value!r}"
    with pytest.raises(TypeError) as caught:
        LengthPrefixed(max_size=value)
    assert str(caught.value) == (
        f"max_size must be a whole number of bytes (0 or more), not {value!r}"
    )


@pytest.mark.parametrize("value", ["network", "BIG", "", None, 1, ["big"], {}])
def test_word_that_is_no_choice(value: Any) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole message follows
        LengthPrefixed(byteorder=value)
    assert str(caught.value) == f"byteorder must be 'big' or 'little', not {value!r}"
    with pytest.raises(ValueError, match=r"^overflow must be 'wait' or 'drop_oldest' or 'drop_n"):
        EventEmitter[int]().subscribe(overflow=value)


@pytest.mark.parametrize("value", [1, 0.001, 60.0, 10**9, math.inf])
def test_time_over_nothing(value: float) -> None:
    assert Limits(message_timeout=value).message_timeout == value


@pytest.mark.parametrize("value", [0, 0.0, -1, -0.5, -math.inf, math.nan])
def test_time_that_is_none(value: float) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole message follows
        Limits(message_timeout=value)
    assert str(caught.value) == f"message_timeout must be more than 0 seconds, not {value!r}"


@pytest.mark.parametrize("value", ["60", True, False, [60], 1j, decimal.Decimal(60)])
def test_what_is_no_number_of_seconds(value: Any) -> None:
    with pytest.raises(TypeError) as caught:
        Limits(message_timeout=value)
    assert str(caught.value) == f"message_timeout must be a number of seconds, not {value!r}"


@pytest.mark.parametrize("value", [0, 1, None, "yes", []])
def test_what_is_neither_true_nor_false(value: Any) -> None:
    with pytest.raises(TypeError) as caught:
        LengthPrefixed(signed=value)
    assert str(caught.value) == f"signed must be True or False, not {value!r}"
    with pytest.raises(TypeError, match=r"^keep must be True or False, not "):
        Delimited(b"-", keep=value)
    assert LengthPrefixed(signed=True).signed is Delimited(b"-", keep=True).keep is True


@attrs.frozen
class OfWholeMessages:
    encoding: str = attrs.field(validator=text_encoding(like_ascii=False))


@pytest.mark.parametrize("name", ["utf-8", "ascii", "latin-1", "cp1252", "gb18030", "shift_jis"])
def test_encoding_that_is_like_ascii(name: str) -> None:
    assert Lines(encoding=name).encoding == name
    assert OfWholeMessages(name).encoding == name


@pytest.mark.parametrize(
    "name", ["utf-16", "utf-32-le", "utf-8-sig", "utf-7", "hz", "cp037", "unicode_escape"]
)
def test_encoding_that_gives_back_what_it_got_but_is_not_like_ascii(name: str) -> None:
    assert OfWholeMessages(name).encoding == name
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole message follows
        Lines(encoding=name)
    assert str(caught.value) == (
        f"encoding must write ASCII characters, newlines among them, as ASCII does; {name!r} "
        f"does not"
    )


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("raw_unicode_escape", r"\u000a"),
        ("iso2022_jp", "\x1b$B"),
        ("iso2022_kr", "\x0e"),
        ("idna", "a..b"),
    ],
)
def test_encoding_in_which_text_arrives_as_other_text_or_not_at_all(name: str, text: str) -> None:
    try:
        arrives = text.encode(name).decode(name)
    except UnicodeError:
        arrives = None
    assert arrives != text
    for make in (OfWholeMessages, lambda name: Lines(encoding=name)):
        with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole message follows
            make(name)
        assert str(caught.value) == (
            f"encoding must be one in which all ASCII text arrives as it was sent; in {name!r} "
            f"some arrives as other text, or not at all"
        )


@pytest.mark.parametrize("name", ["klingon", "hex", "undefined", "\0"])
def test_name_of_no_text_encoding(name: str) -> None:
    with pytest.raises(ValueError, match=r"^encoding must name a text encoding: "):
        OfWholeMessages(name)


@pytest.mark.parametrize("value", [None, b"utf-8", 8])
def test_what_is_no_name(value: Any) -> None:
    with pytest.raises(TypeError) as caught:
        Lines(encoding=value)
    assert str(caught.value) == f"encoding must be the name of a text encoding, not {value!r}"


def test_wrong_setting_of_a_server_or_a_client_is_named_as_well() -> None:
    settings: dict[str, Any] = {"send_timeout": -1}
    stream, _ = trio.testing.memory_stream_pair()
    with pytest.raises(ValueError, match=r"^send_timeout must be more than 0 seconds, not -1$"):
        Server(**settings)
    with pytest.raises(ValueError, match=r"^send_timeout must be more than 0 seconds, not -1$"):
        open_connection(stream, **settings)
