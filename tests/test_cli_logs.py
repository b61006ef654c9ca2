"""Log records for a terminal: as lines on stderr, and as what the live view shows."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator

import pytest

from trio_bytetalk._cli.logs import LatestRecords, Unsent, logging_to, on_stderr

LOGGER = logging.getLogger("trio_bytetalk.test_cli_logs")


class SilentError(Exception):
    def __str__(self) -> str:
        raise RuntimeError


@pytest.fixture
def records() -> Iterator[LatestRecords]:
    records = LatestRecords()
    with logging_to(records, logging.INFO):
        yield records


def test_lines_on_stderr_have_a_time_and_a_level(capsys: pytest.CaptureFixture[str]) -> None:
    with logging_to(on_stderr(), logging.INFO):
        LOGGER.info("%s connected", "127.0.0.1:1")
        LOGGER.debug("not this")
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d INFO    127\.0\.0\.1:1 connected\n", err)


def test_what_a_terminal_would_obey_is_escaped_in_tracebacks_too(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with logging_to(on_stderr(), logging.INFO):
        try:
            raise ValueError("\x1b[2J\rgone")
        except ValueError:
            LOGGER.exception("failed at \x1b[31mred")
    err = capsys.readouterr().err
    assert r"ERROR   failed at \x1b[31mred" + "\n" in err
    assert "Traceback (most recent call last):\n" in err
    assert r"ValueError: \x1b[2J\rgone" in err
    assert "\x1b" not in err
    assert "\r" not in err


def test_how_a_connection_ended_is_told_once_by_serve_itself(
    records: LatestRecords, capsys: pytest.CaptureFixture[str]
) -> None:
    handler = on_stderr()
    for _ in range(2):
        with logging_to(handler, logging.INFO):
            for event in ("connection_ended", "unsent"):
                LOGGER.warning("in other words", extra={"bytetalk_event": event})
            LOGGER.warning("another fault", extra={"bytetalk_event": "handshake_failed"})
    LOGGER.warning("in other words", extra={"bytetalk_event": "connection_ended"})
    assert [entry.text for entry in records.entries] == 2 * ["another fault"]
    assert "in other words" not in capsys.readouterr().err
    assert not handler.filters


def test_the_packages_records_are_counted_rather_than_shown(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("trio_bytetalk")
    before = logger.level, logger.propagate, list(logger.handlers)
    with Unsent.counted() as unsent:
        fields = {"bytetalk_event": "unsent", "bytetalk_unsent": 754_165}
        LOGGER.info("%r is closed", "<Connection 1>", extra=fields)
        LOGGER.warning("something else")
        logging.getLogger("mine").warning("my own")
    assert unsent.bytes == 754_165
    assert caplog.messages == ["my own"]
    assert capsys.readouterr().err == ""
    assert (logger.level, logger.propagate, list(logger.handlers)) == before


def test_after_the_block_logging_is_as_it_was() -> None:
    root = logging.getLogger()
    before = root.level, list(root.handlers)
    records = LatestRecords()
    with logging_to(records, logging.WARNING):
        LOGGER.info("quiet")
        LOGGER.warning("heard")
    LOGGER.warning("not any more")
    assert (root.level, list(root.handlers)) == before
    assert [entry.text for entry in records.entries] == ["heard"]


def test_the_latest_records_are_kept_a_line_each(records: LatestRecords) -> None:
    for number in range(1000):
        LOGGER.info("number %d", number)
    assert records.count == 1000
    assert len(records.entries) == 200
    last = records.entries[-1]
    assert last.text == "number 999"
    assert last.level == logging.INFO
    assert re.fullmatch(r"\d\d:\d\d:\d\d", last.time)
    assert not records.errors


def test_an_error_is_kept_whole_and_shown_in_a_line(records: LatestRecords) -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError:
        LOGGER.exception("it failed")
    [entry] = records.entries
    assert entry.text == r"it failed: ValueError: two\nlines"
    [error] = records.errors
    assert "ERROR   it failed\nTraceback (most recent call last):\n" in error
    assert "raise ValueError" in error


def test_an_error_without_words_is_no_problem(records: LatestRecords) -> None:
    try:
        raise SilentError
    except SilentError:
        LOGGER.warning("it failed", exc_info=True)
    LOGGER.warning("there is none", exc_info=sys.exc_info())
    assert [entry.text for entry in records.entries] == [
        "it failed: SilentError: SilentError, whose words could not be had",
        "there is none",
    ]
    assert not records.errors


def test_a_long_record_is_cut(records: LatestRecords) -> None:
    LOGGER.info("x" * 100_000)
    assert len(records.entries[0].text) < 1100
