"""Seconds, rates and sizes on the command line."""

from __future__ import annotations

import math

import click
import pytest

from trio_bytetalk._cli.quantities import Quantity, Size, whole_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", 0),
        ("-3", -3),
        ("64", 64),
        ("4K", 4096),
        ("4k", 4096),
        ("64KiB", 65536),
        ("16M", 2**24),
        ("1GB", 2**30),
        ("9" * 30, int("9" * 30)),
    ],
)
def test_a_whole_number_may_have_a_unit(text: str, number: int) -> None:
    assert whole_number(text) == number


@pytest.mark.parametrize(
    "text", ["", "x", "4.5", "4T", "4ib", "K", "+4", "4 K", "\u0664", "9" * 31, "4\n"]
)
def test_what_is_no_whole_number(text: str) -> None:
    with pytest.raises(ValueError, match=r"^a whole number, such as 4 or 16M, not '"):
        whole_number(text)


def test_an_error_is_one_short_line() -> None:
    with pytest.raises(ValueError, match="not 'a") as caught:
        whole_number("a\nb" * 10_000)
    assert len(str(caught.value)) < 1000
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("value", "size"), [("4K", 4096), ("1", 1), (16 * 2**20, 2**24)])
def test_a_size(value: object, size: int) -> None:
    assert Size(least=1).convert(value, None, None) == size


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("4T", "a size is a whole number, such as 4 or 16M, not '4T'"),
        ("0", "a size of at least 1 was expected, not 0"),
        ("-4K", "a size of at least 1 was expected, not -4K"),
    ],
)
def test_what_is_no_size(value: str, problem: str) -> None:
    with pytest.raises(click.BadParameter) as caught:
        Size(least=1).convert(value, None, None)
    assert caught.value.message == problem


@pytest.mark.parametrize(
    ("quantity", "value", "number"),
    [
        (Quantity(), "0.25", 0.25),
        (Quantity(), 10, 10),
        (Quantity(least=0), "0", 0),
        (Quantity(least=0.01), "0.01", 0.01),
        (Quantity(endless=True), "none", math.inf),
        (Quantity(endless=True), "inf", math.inf),
    ],
)
def test_seconds(quantity: Quantity, value: object, number: float) -> None:
    assert quantity.convert(value, None, None) == number


@pytest.mark.parametrize(
    ("quantity", "expected"),
    [
        (Quantity(), "more than 0 seconds"),
        (Quantity("messages a second"), "more than 0 messages a second"),
        (Quantity(least=0.01), "at least 0.01 seconds"),
        (Quantity(endless=True), "more than 0 seconds, or 'none',"),
        (Quantity(least=0, endless=True), "at least 0 seconds, or 'none',"),
    ],
)
@pytest.mark.parametrize("value", ["nan", "-1", "-inf", "10s", ""])
def test_what_are_no_seconds(quantity: Quantity, expected: str, value: str) -> None:
    with pytest.raises(click.BadParameter) as caught:
        quantity.convert(value, None, None)
    assert caught.value.message == f"{expected} were expected, not {value!r}"


@pytest.mark.parametrize(
    ("quantity", "value"),
    [(Quantity(), "0"), (Quantity(least=1), "0.5")],
)
def test_seconds_out_of_range(quantity: Quantity, value: str) -> None:
    with pytest.raises(click.BadParameter, match=f"were expected, not '{value}'"):
        quantity.convert(value, None, None)


@pytest.mark.parametrize(
    ("quantity", "least"), [(Quantity(), "more than 0"), (Quantity(least=0.01), "at least 0.01")]
)
@pytest.mark.parametrize("value", ["inf", "none"])
def test_where_there_must_be_an_end(quantity: Quantity, least: str, value: str) -> None:
    with pytest.raises(click.BadParameter) as caught:
        quantity.convert(value, None, None)
    assert caught.value.message == (
        f"a finite number of seconds, {least}, was expected, not {value!r}"
    )
