"""What is logged of exceptions: whoever wrote their words, no line of them looks like a record."""

from __future__ import annotations

import ast
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from pairs import frame, memory

import trio_bytetalk
from trio_bytetalk import Connection, InvalidMessageError, LengthPrefixed, Server
from trio_bytetalk._log import address_in_words, fields, get_logger

FORGED = "INFO: all is well"


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What a program's log has in it."""
    result = io.StringIO()
    handler = logging.StreamHandler(result)
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logging.getLogger("trio_bytetalk").addHandler(handler)
    yield result
    logging.getLogger("trio_bytetalk").removeHandler(handler)


def plain() -> Exception:
    return ValueError(f"a word\n{FORGED}")


def with_return() -> Exception:
    return ValueError(f"a word\r{FORGED}")


def with_escape_sequence() -> Exception:
    return ValueError(f"\x1b[2K\x1b[1G{FORGED}")


def as_cause() -> Exception:
    error = RuntimeError("printable")
    error.__cause__ = plain()
    return error


def as_context() -> Exception:
    error = RuntimeError("printable")
    error.__context__ = plain()
    return error


def in_a_group() -> Exception:
    return ExceptionGroup("printable", [RuntimeError("printable"), ExceptionGroup("x", [plain()])])


def of_syntax() -> Exception:
    return SyntaxError("invalid syntax", ("printable", 1, 1, f"x\u2028{FORGED}\n"))


def as_a_note() -> Exception:
    error = RuntimeError("printable")
    error.add_note(f"a note\n{FORGED}")
    return error


@pytest.mark.parametrize(
    "make",
    [
        plain,
        with_return,
        with_escape_sequence,
        as_cause,
        as_context,
        in_a_group,
        as_a_note,
        of_syntax,
    ],
)
def test_no_line_of_a_traceback_looks_like_a_record(
    make: object, log: io.StringIO, caplog: pytest.LogCaptureFixture
) -> None:
    error = make()  # type: ignore[operator]  # each of the above
    get_logger("server").error("it failed", exc_info=error)
    first, *lines = log.getvalue().splitlines()
    assert first == "ERROR: it failed"
    assert any(FORGED in line for line in lines)
    assert all(line.startswith("  | ") and line.isprintable() for line in lines)
    [record] = caplog.records
    assert record.exc_info is not None
    assert record.exc_info[1] is error


class UnspeakableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("words fail me")


def ring() -> Exception:
    """What must not be gone round for ever."""
    error, other = RuntimeError("one"), RuntimeError("another")
    error.__context__, other.__context__ = other, error
    return error


@pytest.mark.parametrize("error", [RuntimeError("printable"), UnspeakableError(), ring()])
def test_another_traceback_is_as_ever(error: Exception, log: io.StringIO) -> None:
    def written_by(logger: logging.Logger) -> str:
        log.truncate(0)
        log.seek(0)
        logger.error("it failed", exc_info=error)
        return log.getvalue()

    ours = written_by(get_logger("server"))
    assert ours == written_by(logging.getLogger("trio_bytetalk.nobody_elses"))
    assert ours.splitlines()[0] == "ERROR: it failed"
    assert "Error" in ours.splitlines()[-1]


def test_a_record_without_a_traceback_has_none(log: io.StringIO) -> None:
    get_logger("server").error("it failed")
    get_logger("server").error("it failed", exc_info=True)  # and no exception is at hand
    assert log.getvalue() == "ERROR: it failed\nERROR: it failed\nNoneType: None\n"


class Strict(msgspec.Struct, forbid_unknown_fields=True):
    pass


async def test_a_peer_cannot_write_lines_through_a_handler_that_quotes_it(
    log: io.StringIO,
) -> None:
    async def handle(connection: Connection[Strict, Strict]) -> None:
        try:
            await connection.receive()
        except InvalidMessageError as error:
            raise LookupError("a bug in the answering of invalid messages") from error

    ours, theirs = memory()
    await ours.send_all(frame(json.dumps({f"x\n{FORGED}": 1}).encode()))
    await Server(handle, codec=LengthPrefixed().json(Strict)).serve_stream(theirs)
    first, *lines = log.getvalue().splitlines()
    assert first.startswith("ERROR: the handler or a hook of ")
    assert any(line.startswith(f"  | {FORGED}") for line in lines)
    assert all(line.startswith("  | ") for line in lines)


def test_the_notes_of_an_error_that_cannot_be_shown_are_looked_at_too(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class UnspeakableError(Exception):
        def __str__(self) -> str:
            raise ValueError

    class Unspeakable:
        def __str__(self) -> str:
            raise ValueError

    error = UnspeakableError()
    error.__notes__ = [Unspeakable(), "one\ntwo"]  # type: ignore[list-item]  # wrong on purpose
    get_logger("test").error("failed", exc_info=error)
    (record,) = caplog.records
    assert record.exc_text is not None
    assert "one" in record.exc_text
    assert all(line.startswith("  | ") for line in record.exc_text.splitlines())


@pytest.mark.parametrize("notes", ["one\ntwo", ["one", "two\nthree"]])
def test_notes_of_several_lines_have_a_margin(
    notes: object, caplog: pytest.LogCaptureFixture
) -> None:
    error = ValueError()
    error.__notes__ = notes  # type: ignore[assignment]  # a program may put anything there
    get_logger("test").error("failed", exc_info=error)
    (record,) = caplog.records
    assert record.exc_text is not None
    assert all(line.startswith("  | ") for line in record.exc_text.splitlines())


class NoNotesError(Exception):
    @property
    def __notes__(self) -> list[str]:  # type: ignore[override]  # wrong on purpose
        raise ValueError


def odd_notes() -> Exception:
    error = ValueError("odd")
    error.__notes__ = 5  # type: ignore[assignment]  # a program may put anything there
    return error


ODD_PLACE: Any = ("file", 1, 1, b"bytes")  # of a parser that is given bytes


@pytest.mark.parametrize(
    "error",
    [
        odd_notes(),
        NoNotesError("odd"),
        SyntaxError("odd", ODD_PLACE),
        SyntaxError("odd\nlines", ODD_PLACE),
    ],
    ids=["notes", "no notes", "syntax", "lines"],
)
def test_an_error_that_no_traceback_can_be_made_of_harms_nobody(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    get_logger("test").error("failed", exc_info=error)
    (record,) = caplog.records
    assert record.exc_text is not None
    assert record.exc_text.startswith("  | (no traceback could be made) ")
    assert record.exc_text.isprintable()


def test_a_long_chain_of_errors_is_looked_at_once(caplog: pytest.LogCaptureFixture) -> None:
    looked_at = 0

    class ChainedError(Exception):
        def __str__(self) -> str:
            nonlocal looked_at
            looked_at += 1
            return "a link"

    error: Exception | None = None
    for _ in range(200):
        link = ChainedError()
        link.__cause__ = error
        error = link
    get_logger("test").error("failed", exc_info=error)
    assert looked_at < 1000


def test_a_name_that_a_traceback_suggests_is_a_peers_word_too(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # As from Python 3.12 on, "Did you mean: ..." is in the traceback, and not in str(error).
    class SuggestingError(Exception):
        pass

    SuggestingError.__name__ = SuggestingError.__qualname__ = "SuggestingError: did you mean\nX"
    try:
        raise SuggestingError
    except SuggestingError:
        get_logger("test").exception("failed")
    (record,) = caplog.records
    assert record.exc_text is not None
    lines = record.exc_text.splitlines()
    assert all(line.startswith("  | ") for line in lines)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        (None, None),
        ("", None),
        (b"", None),
        (("127.0.0.1", 5555), "127.0.0.1:5555"),
        (("::1", 5555, 0, 0), "[::1]:5555"),
        (("fe80::1", 5555, 0, 2), "[fe80::1%2]:5555"),
        ("/run/chat.sock", "/run/chat.sock"),
        (b"\0chat", "@chat"),
        (b"\0\xffchat", r"@\xffchat"),
        (7, "7"),  # another family's
        ((2, 5000), "(2, 5000)"),  # a vsock's
        (f"/tmp/x\n{FORGED}", f"/tmp/x\\n{FORGED}"),  # a client chooses its own path
        ("/" + 200 * "x", "/" + 53 * "x" + " ... " + 54 * "x"),
    ],
)
def test_an_address_is_written_on_one_line_as_one_writes_it(address: object, words: object) -> None:
    assert address_in_words(address) == words


def test_every_record_has_fields() -> None:
    calls = []
    for path in Path(trio_bytetalk.__file__).parent.glob("*.py"):  # the program logs for people
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name(id="_logger"))):
                    calls.append((path.name, node))
    assert calls
    for name, call in calls:
        assert "extra" in [keyword.arg for keyword in call.keywords], f"{name}:{call.lineno}"


def test_fields_have_a_prefix_and_an_error_is_in_words() -> None:
    assert fields("one", listener="here") == {
        "bytetalk_event": "one",
        "bytetalk_listener": "here",
    }
    assert fields("another", ValueError(f"a word\n{FORGED}")) == {
        "bytetalk_event": "another",
        "bytetalk_error": "ValueError",
        "bytetalk_reason": f"a word\\n{FORGED}",
    }
