"""What `check_codec` tells of a mistake, and how it finds a case that is small."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

import pytest

from trio_bytetalk import EncodeError
from trio_bytetalk._mistakes import (
    _CAUSES,
    Cuts,
    MistakeError,
    count,
    fail_smallest,
    shorter_bytes,
    shown,
    shown_all,
    telling,
)

TITLE = "malformed bytes are not refused"


def test_an_explanation() -> None:
    with pytest.raises(MistakeError) as caught, telling(["x"], b"abc", (1,), refused="no"):
        raise MistakeError(TITLE, "this", "that")
    assert str(caught.value) == TITLE
    assert caught.value.explanation("codec") == textwrap.dedent("""\
        'codec': malformed bytes are not refused

          sent      'x'
          arrived   b'a' | b'bc'
          refused   no
          came      this
          expected  that

        What usually causes this: a check is missing in the reader.
        This is the smallest case found: 1 message, 3 bytes, 1 cut.""")


def test_an_explanation_without_a_case() -> None:
    assert MistakeError(TITLE, "a", "b", arrived="c").explanation(0).endswith("reader.")


def test_what_is_told_within_comes_last_and_its_size_stays() -> None:
    with pytest.raises(MistakeError) as caught, telling(None, b"abc"), telling([1, 2]):
        raise MistakeError(TITLE, "this", "that")
    assert list(caught.value.facts) == ["arrived", "sent", "came", "expected"]
    assert caught.value.size == "2 messages"


@pytest.mark.parametrize("causes", _CAUSES.values())
def test_causes_are_sentences(causes: str) -> None:
    assert causes.endswith(".")
    assert "  " not in causes.replace("\n        ", "\n")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (b"abc", "b'abc'"),
        (memoryview(b"abc"), "b'abc'"),
        (b"x" * 49, f"b'{'x' * 24}'... (49 bytes)"),
        ("x" * 49, f"'{'x' * 24}'... (49 characters)"),
        (list(range(200)), f"{str(list(range(200)))[:300]}... (890 characters)"),
        (ValueError, "ValueError"),
    ],
)
def test_values_are_shown_by_their_beginning(value: object, text: str) -> None:
    assert shown(value) == text


def test_many_values() -> None:
    assert shown_all([]) == "nothing"
    assert shown_all([1, 2], " | ") == "1 | 2"
    assert shown_all(range(13)) == "0, 1, 2, 3, 4, 5, ... (13 in all)"
    assert [count(0, "cut"), count(1, "cut"), count(2, "cut")] == ["0 cuts", "1 cut", "2 cuts"]


def failing(data: bytes, cuts: Cuts) -> None:
    """Fails if an "x" comes before a cut; with "z" it fails in another way, "e" cannot be sent."""
    if b"e" in data:
        raise EncodeError("not this")
    if b"z" in data and len(data) < 20:
        raise MistakeError("the codec has no hash", repr(data), repr(cuts))
    if cuts and b"x" in data[: cuts[-1]]:
        raise MistakeError(TITLE, repr(data), repr(cuts))


@pytest.mark.parametrize(
    ("data", "cuts"),
    [(b"abxcd", (3,)), (b"x" * 50, (1, 2, 30)), (b"a" * 300 + b"x" + bytes(300), (2, 5, 400))],
)
def test_the_smallest_case_is_found(data: bytes, cuts: Cuts) -> None:
    with pytest.raises(MistakeError) as caught:
        fail_smallest(failing, data, cuts, shorter_bytes, len)
    assert caught.value.title == TITLE
    came = eval(caught.value.facts["came"])
    assert len(came) == 2
    assert came[:1] == b"x"
    assert caught.value.facts["expected"] == "(1,)"


def test_a_case_that_holds_is_no_mistake() -> None:
    fail_smallest(failing, b"abc", (1,), shorter_bytes, len)
    fail_smallest(failing, b"e", (), shorter_bytes, len)


def test_a_case_that_fails_in_another_way_is_another_mistake() -> None:
    data = b"z" + b"a" * 18 + b"x" + b"z"
    with pytest.raises(MistakeError) as caught:
        fail_smallest(failing, data, (20,), shorter_bytes, len)
    assert caught.value.title == TITLE
    assert len(eval(caught.value.facts["came"])) == 20


def test_the_way_to_the_smallest_case_has_an_end() -> None:
    tried = []

    def attempt(data: bytes, _cuts: Cuts) -> None:
        tried.append(data)
        raise MistakeError(TITLE, f"{len(data)}", "")

    def longer(data: bytes) -> Iterator[bytes]:
        yield data + b"x"

    with pytest.raises(MistakeError):
        fail_smallest(attempt, b"", (), longer, len, cut=False)
    assert 300 < len(tried) < 1500


def test_a_length_that_says_so_is_made_smaller_too() -> None:
    assert b"\1a" in [*shorter_bytes(b"\2ab")]
    assert b"\0" in [*shorter_bytes(b"\0\1")]
    assert [*shorter_bytes(b"")] == []
    assert all(len(data) == 100 for data in shorter_bytes(bytes(200)))
