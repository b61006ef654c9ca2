"""Validators for settings: a wrong one fails in the constructor, by its name."""

from __future__ import annotations

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


def seconds(_instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    """A number of seconds over 0."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{attribute.name} must be a number of seconds, not {value!r}")
    if not value > 0:  # also refuses NaN
        raise ValueError(f"{attribute.name} must be more than 0 seconds, not {value!r}")
