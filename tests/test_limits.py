"""`Limits`: which there are, what they are by default, and how to have none."""

from __future__ import annotations

import math
from typing import Any

import attrs
import pytest

from trio_bytetalk import LimitOptions, Limits, Server

TIMES = ["message_timeout", "send_timeout", "idle_timeout", "handshake_timeout", "close_timeout"]


def test_limits_are_on_where_silence_would_be_dangerous() -> None:
    limits = Limits()
    assert limits.message_timeout == 60
    assert limits.send_timeout == 60
    assert limits.handshake_timeout == 10
    assert limits.close_timeout == 5
    assert limits.idle_timeout == math.inf
    assert limits.write_buffer_size == 256 * 1024


@pytest.mark.parametrize("name", TIMES)
def test_none_is_no_limit(name: str) -> None:
    options: dict[str, Any] = {name: None}
    assert getattr(Limits(**options), name) == math.inf


@pytest.mark.parametrize("name", TIMES)
def test_time_that_can_never_be_kept_is_refused_by_its_name(name: str) -> None:
    options: dict[str, Any] = {name: 0}
    with pytest.raises(ValueError, match=f"^{name} must be more than 0 seconds, not 0$"):
        Limits(**options)
    with pytest.raises(ValueError, match=f"^{name} must be more than 0 seconds, not 0$"):
        Server(**options)


@pytest.mark.parametrize("value", [0, -1])
def test_write_buffer_that_takes_nothing_is_refused(value: int) -> None:
    with pytest.raises(
        ValueError, match=f"^write_buffer_size must be 1 or more bytes, not {value}"
    ):
        Limits(write_buffer_size=value)


def test_write_buffer_cannot_be_without_limit() -> None:
    with pytest.raises(TypeError, match=r"^write_buffer_size must be a whole number of bytes"):
        Limits(write_buffer_size=None)  # type: ignore[arg-type]  # which is the mistake


def test_misspelt_limit_is_refused() -> None:
    options: Any = {"mesage_timeout": 1}
    for make in (Limits, Server):
        with pytest.raises(TypeError, match="mesage_timeout"):
            make(**options)


def test_limits_cannot_be_changed_behind_a_connection_and_have_to_be_named() -> None:
    limits: Any = Limits()
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        limits.send_timeout = 1
    with pytest.raises(TypeError, match="positional"):
        Limits(60)  # type: ignore[call-arg]  # which is the mistake


def test_every_limit_can_be_given_to_a_server_and_to_a_connection() -> None:
    assert list(LimitOptions.__annotations__) == [field.name for field in attrs.fields(Limits)]
    options: LimitOptions = {
        "message_timeout": 1,
        "send_timeout": 2.5,
        "idle_timeout": 3,
        "handshake_timeout": None,
        "close_timeout": 5,
        "write_buffer_size": 6,
    }
    limits = Server(**options).limits
    assert limits == Limits(**options)
    assert limits.send_timeout == 2.5
