"""The limit of open files, as `bytetalk`'s commands have it raised."""

from __future__ import annotations

import resource

import click
import pytest

from trio_bytetalk._cli import descriptors


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The limits of open files, as this process has set them; at first 100, and at most 200."""
    current = [(100, 200)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: current[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: current.append(limits))
    return current


def test_the_limit_of_open_files_is_raised_if_it_has_to_be(limits: list[tuple[int, int]]) -> None:
    descriptors.allow_descriptors(100)
    assert len(limits) == 1
    descriptors.allow_descriptors(150)
    assert limits[1:] == [(150, 200)]


def test_a_limit_that_cannot_be_raised_is_told(
    limits: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(click.UsageError, match="have 200: give fewer"):
        descriptors.allow_descriptors(201)
    assert len(limits) == 1

    def refuse(_kind: int, _limits: tuple[int, int]) -> None:
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "setrlimit", refuse)
    limits.append((100, resource.RLIM_INFINITY))
    with pytest.raises(click.UsageError, match="have 100: give fewer"):
        descriptors.allow_descriptors(201)


def test_no_limit_is_no_problem(limits: list[tuple[int, int]]) -> None:
    limits.append((resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    descriptors.allow_descriptors(10**9)
    assert len(limits) == 2


@pytest.mark.parametrize(
    ("soft", "hard", "after"),
    [
        (100, 200, (200, 200)),
        (100, resource.RLIM_INFINITY, (2**20, resource.RLIM_INFINITY)),
        (2**30, resource.RLIM_INFINITY, (2**30, resource.RLIM_INFINITY)),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, None),
    ],
)
def test_a_server_takes_what_it_may_have(
    limits: list[tuple[int, int]], soft: int, hard: int, after: tuple[int, int] | None
) -> None:
    limits.append((soft, hard))
    descriptors.allow_all_descriptors()
    assert limits[2:] == ([] if after is None else [after])


def test_a_server_does_with_what_it_has_where_it_gets_no_more(
    limits: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_kind: int, _limits: tuple[int, int]) -> None:
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "setrlimit", refuse)
    descriptors.allow_all_descriptors()
    assert len(limits) == 1
