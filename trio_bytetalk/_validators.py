"""Validators for settings: a wrong one fails in the constructor, by its name."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import attrs

Validator = Callable[[Any, "attrs.Attribute[Any]", Any], None]


def whole_number(least: int, most: int | None = None, *, unit: str) -> Validator:
    """An `int` from ``least`` to ``most``, both included."""
    span = f"{least} or more" if most is None else f"{least} to {most}"

    def validate(_instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        # bool is an int to Python; as a size it is a mistake.
        if type(value) is not int:
            raise TypeError(
                f"{attribute.name} must be a whole number of {unit} ({span}), not {value!r}"
            )
        if value < least or (most is not None and value > most):
            raise ValueError(f"{attribute.name} must be {span} {unit}, not {value!r}")

    return validate


def one_of(*choices: str) -> Validator:
    """One of a few words."""

    def validate(_instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if value not in choices:
            words = " or ".join(map(repr, choices))
            raise ValueError(f"{attribute.name} must be {words}, not {value!r}")

    return validate


def true_or_false(_instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    """A `bool`."""
    if type(value) is not bool:
        raise TypeError(f"{attribute.name} must be True or False, not {value!r}")


# Each ASCII character in front of each, itself included: what an encoding makes of an escape
# character depends on what follows.
_ASCII_PAIRS = "".join(map("".join, itertools.product(map(chr, range(128)), repeat=2)))


def text_encoding(*, like_ascii: bool) -> Validator:
    """The name of an encoding that gives text back as it was, which one with escapes may not.

    That is: ASCII text, whatever is in it. In some encodings of the Far East a few other characters
    come back as their likes, and nothing finds these as fast.

    Args:
      like_ascii: Whether ASCII characters must be the bytes that they are in ASCII, so that bytes
          can be looked for in what is encoded.
    """

    def validate(_instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        name = attribute.name
        if not isinstance(value, str):
            raise TypeError(f"{name} must be the name of a text encoding, not {value!r}")
        try:
            "".encode(value)
        except (LookupError, ValueError) as error:  # the latter for what can encode nothing
            raise ValueError(f"{name} must name a text encoding: {error}") from None
        try:
            encoded = _ASCII_PAIRS.encode(value)
            faithful = encoded.decode(value) == _ASCII_PAIRS
        except UnicodeError:
            faithful = False
        if not faithful:
            raise ValueError(
                f"{name} must be one in which all ASCII text arrives as it was sent; in {value!r} "
                f"some arrives as other text, or not at all"
            )
        if like_ascii and encoded != _ASCII_PAIRS.encode():
            raise ValueError(
                f"{name} must write ASCII characters, newlines among them, as ASCII does; "
                f"{value!r} does not"
            )

    return validate


def seconds(_instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    """A number of seconds over 0."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{attribute.name} must be a number of seconds, not {value!r}")
    if not value > 0:  # also refuses NaN
        raise ValueError(f"{attribute.name} must be more than 0 seconds, not {value!r}")
