"""How commands end: exit codes, one line for each error, and what to do about it."""

from __future__ import annotations

import errno
import io
import os
import socket
import ssl
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import click
import pytest
import trio
import trustme
from click.testing import CliRunner, Result

from trio_bytetalk import (
    Chunks,
    Connection,
    EncodeError,
    HandshakeTimeoutError,
    IncompleteMessageError,
    Lines,
    ProtocolError,
    Server,
)
from trio_bytetalk._cli.addresses import Address, open_connection
from trio_bytetalk._cli.failures import (
    EXIT_CODES,
    INTERRUPTED,
    Failure,
    briefly,
    cannot_listen,
    run,
    say,
    too_few_replies,
)
from trio_bytetalk._cli.main import Program


async def fail(error: BaseException) -> NoReturn:
    raise error


async def fail_in_company(*errors: BaseException) -> None:
    """Raise them together, and in groups within a group."""
    async with trio.open_nursery() as nursery:
        for error in errors:
            nursery.start_soon(fail, error)


def caused(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


def unverified(code: int) -> ssl.SSLCertVerificationError:
    """A certificate was refused for the reason that has this number in OpenSSL."""
    error = ssl.SSLCertVerificationError()
    error.verify_code = code
    return error


def in_context(error: BaseException, context: BaseException) -> BaseException:
    error.__context__ = context
    return error


# -- running


def test_what_a_command_returns() -> None:
    async def add(a: int, b: int) -> int:
        return a + b

    assert run(add, 2, 3) == 5


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EPERM, "not permitted"),
        ProtocolError("no"),
        EncodeError("no"),
        trio.BrokenResourceError("no"),
        HandshakeTimeoutError("no"),
        trio.EndOfChannel("no"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("raising", [fail, fail_in_company])
def test_what_is_not_the_programs_mistake_is_a_failure(
    error: Exception, raising: Callable[..., Any]
) -> None:
    with pytest.raises(Failure) as caught:
        run(raising, error)
    assert caught.value.exit_code == 1
    assert caught.value.message == Failure(error).message
    assert caught.value.__cause__ is not None  # for --debug


@pytest.mark.parametrize("raising", [fail, fail_in_company])
def test_the_programs_own_mistake_is_raised_as_it_is(raising: Callable[..., Any]) -> None:
    expected: Any = pytest.raises(ZeroDivisionError)
    if raising is fail_in_company:
        expected = pytest.RaisesGroup(ZeroDivisionError)
    with expected:
        run(raising, ZeroDivisionError())


def test_a_mistake_of_the_programs_is_not_hidden_by_an_error_of_a_peers() -> None:
    with pytest.RaisesGroup(ZeroDivisionError, OSError):
        run(fail_in_company, ZeroDivisionError(), OSError("no"))
    with pytest.RaisesGroup(ZeroDivisionError, KeyboardInterrupt):
        run(fail_in_company, ZeroDivisionError(), KeyboardInterrupt())


@pytest.mark.parametrize(
    "errors",
    [
        [KeyboardInterrupt()],
        [KeyboardInterrupt(), trio.BrokenResourceError()],
        [OSError("no"), KeyboardInterrupt()],
    ],
    ids=len,
)
def test_an_interrupt_is_quiet_and_has_its_own_code(
    errors: list[BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run(fail_in_company, *errors)
    assert caught.value.code == INTERRUPTED == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("error", [click.UsageError("no"), Failure(OSError("no"))])
def test_what_a_command_says_itself_is_said(error: click.ClickException) -> None:
    cause = ValueError("why")
    error.__cause__ = cause
    with pytest.raises(click.ClickException) as caught:
        run(fail_in_company, OSError("other"), error)
    assert caught.value is error
    assert caught.value.__cause__ is cause  # for --debug


def test_output_that_nobody_reads_is_left_to_click() -> None:
    with pytest.raises(BrokenPipeError):
        run(fail_in_company, BrokenPipeError(errno.EPIPE, "Broken pipe"))


def test_of_several_errors_the_first_is_told() -> None:
    with pytest.raises(Failure, match=r"^first$"):
        run(fail, ExceptionGroup("both", [OSError("first"), OSError("second")]))


def test_fewer_replies_than_wanted_are_a_failure() -> None:
    error = too_few_replies(1, 2)
    assert (error.exit_code, error.message) == (1, "only 1 of 2 replies came")


@pytest.mark.parametrize(
    ("error", "path", "advice"),
    [
        (errno.EADDRINUSE, None, " (give another port; 0 has the system choose)"),
        (errno.EACCES, None, " (ports below 1024 are the administrator's: give another one)"),
        (
            errno.EADDRNOTAVAIL,
            None,
            " (the host is an address of this machine, or 0.0.0.0 for all of them)",
        ),
        (errno.EMFILE, None, ""),
        (errno.EADDRINUSE, "/x", " (another server, or another file, is there: give another path)"),
        (errno.ENOENT, "/x/y", " (the directory must be there already)"),
        (errno.EACCES, "/x", ""),
    ],
)
def test_what_cannot_be_listened_on_is_said_with_what_to_do(
    error: int, path: str | None, advice: str
) -> None:
    ended = cannot_listen(OSError(error, "cannot listen on it: no"), path)
    assert ended.message == f"cannot listen on it: no{advice}"
    assert ended.exit_code == 1


def test_a_name_that_cannot_be_listened_on() -> None:
    error = socket.gaierror(socket.EAI_NONAME, "cannot listen on 'x': Name or service not known")
    assert cannot_listen(error, None).message == (
        "cannot listen on 'x': Name or service not known "
        "(the host is a name or an address of this machine)"
    )


# -- words


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.EADDRINUSE, "cannot listen"), "cannot listen"),
        (OSError("cannot listen"), "cannot listen"),
        (OSError(errno.ENOENT, "No such file", "x.bin"), "x.bin: No such file"),
        (OSError(errno.ENOENT, "No\nsuch file"), r"No\nsuch file"),
        (OSError(), "OSError()"),
        (trio.EndOfChannel(), "the peer closed the connection"),
        (trio.BrokenResourceError(), "the connection broke"),
        (trio.BrokenResourceError("\x1b[2J"), r"\x1b[2J"),
        (HandshakeTimeoutError(), "HandshakeTimeoutError()"),
        (EncodeError("line\nline"), r"line\nline"),
        (ProtocolError("no frame"), "no frame (is --codec the one that the server uses?)"),
        (
            in_context(trio.BrokenResourceError("it ended"), IncompleteMessageError("half")),
            "it ended (is --codec the one that the server uses?)",
        ),
        (
            ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
            "Connection refused (is the server running?)",
        ),
        (
            caused(OSError("no"), caused(OSError(), ConnectionRefusedError())),
            "no (is the server running?)",
        ),
        (
            caused(trio.BrokenResourceError("handshake failed"), ssl.SSLCertVerificationError()),
            (
                "handshake failed (give its authority with --tls-ca FILE, or do not check with "
                "--tls-insecure)"
            ),
        ),
        (
            caused(trio.BrokenResourceError("failed"), unverified(10)),
            (
                "failed (the server needs a new one, or this machine's clock is wrong; "
                "--tls-insecure takes any)"
            ),
        ),
        (
            caused(trio.BrokenResourceError("failed"), unverified(26)),
            "failed (the server needs another certificate; --tls-insecure takes any)",
        ),
        (
            caused(
                trio.BrokenResourceError("the TLS handshake failed: EOF"), ssl.SSLEOFError(8, "EOF")
            ),
            "the TLS handshake failed: EOF (does the server use TLS?)",
        ),
        (
            caused(trio.BrokenResourceError("the connection broke: EOF"), ssl.SSLEOFError(8, "")),
            "the connection broke: EOF",
        ),
    ],
)
def test_errors_in_words(error: BaseException, message: str) -> None:
    assert Failure(error).message == message


def test_what_a_peer_sent_is_shown_in_part() -> None:
    message = Failure(ProtocolError("it sent " + "x\x1b" * 10_000)).message
    assert message.isprintable()
    assert len(message) < 2500


def test_a_server_that_is_not_there() -> None:
    async def connect(address: Address) -> None:
        async with open_connection(address, Lines()):
            raise AssertionError

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        address = Address("127.0.0.1", taken.getsockname()[1])
        with pytest.raises(Failure) as caught:
            run(connect, address)
    assert caught.value.message == (
        f"cannot connect to '127.0.0.1' port {address.port}: Connection refused "
        "(is the server running?)"
    )
    with pytest.raises(Failure) as caught:
        run(connect, Address(path="/nowhere/socket"))
    assert caught.value.message == "cannot connect to '/nowhere/socket': No such file or directory"


@pytest.mark.parametrize(
    ("issued_for", "is_trusted", "advice"),
    [
        (
            "localhost",
            False,
            "(give its authority with --tls-ca FILE, or do not check with --tls-insecure)",
        ),
        (
            "example.org",
            True,
            (
                "(the name that it must have is given with --tls-name NAME; --tls-insecure does "
                "without)"
            ),
        ),
        (None, True, "(does the server use TLS?)"),
    ],
    ids=["unknown", "of another name", "without TLS"],
)
def test_a_server_that_is_not_trusted(
    issued_for: str | None, is_trusted: bool, advice: str, tmp_path: Path
) -> None:
    authority = trustme.CA()
    context = None
    if issued_for is not None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert(issued_for).configure_cert(context)
    ours = ssl.create_default_context()
    if is_trusted:
        authority.configure_trust(ours)
    path = tmp_path / "socket"

    async def connect() -> None:
        async with trio.open_nursery() as nursery:
            serve = Server(codec=Lines(max_size=10)).serve_unix
            await nursery.start(lambda **kwargs: serve(path, ssl_context=context, **kwargs))
            async with open_connection(Address(path=str(path)), Lines(), ours):
                raise AssertionError

    with pytest.raises(Failure) as caught:
        run(connect)
    assert caught.value.message.endswith(f" {advice}")


def test_a_server_that_speaks_another_protocol(tmp_path: Path) -> None:
    path = tmp_path / "socket"

    async def leave(connection: Connection[str, str]) -> None:
        pass

    async def leave_in_a_message(connection: Connection[Any, Any]) -> None:
        await connection.send(b"hello")

    async def receive(handler: Any) -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(Server(handler, codec=Chunks()).serve_unix, path)
            async with open_connection(Address(path=str(path)), Lines()) as connection:
                await connection.receive()

    with pytest.raises(Failure) as caught:
        run(receive, leave_in_a_message)
    assert caught.value.message.endswith(" (is --codec the one that the server uses?)")
    with pytest.raises(Failure, match="the peer finished"):
        run(receive, leave)


# -- on the command line


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True)
@click.pass_context
def program(ctx: click.Context, debug: bool) -> None:
    ctx.obj = debug


@program.command()
@click.argument("what", type=click.Choice(["one", "two", "codec", "disk", "pipe", "ctrl-c"]))
@click.option("--number", type=int)
def choose(what: str, number: int) -> None:
    match what:
        case "two":
            run(fail, OSError(errno.EPERM, "not permitted"))
        case "codec":
            run(fail, ExceptionGroup("", [RuntimeError("a peer's\n\x1b[2J")]))
        case "disk":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        case "pipe":
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        case "ctrl-c":
            raise KeyboardInterrupt
    raise click.UsageError("a strange\n\n  number \x1b[2J.")


@program.group()
def group() -> None:
    pass


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(program, arguments, prog_name="bytetalk")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ([], None),
        (["choos"], "No such command 'choos'. Did you mean 'choose'? (see 'bytetalk --help')"),
        (["--debgu"], "No such option '--debgu'. Did you mean '--debug'? (see 'bytetalk --help')"),
        (
            ["choose"],
            (
                "Missing argument '{one|two|codec|disk|pipe|ctrl-c}'. Choose from: one, two, "
                "codec, disk, pipe, ctrl-c (see 'bytetalk choose --help')"
            ),
        ),
        (
            ["choose", "one", "--number", "x"],
            (
                "Invalid value for '--number': 'x' is not a valid integer "
                "(see 'bytetalk choose --help')"
            ),
        ),
        (["choose", "one"], r"a strange number \x1b[2J (see 'bytetalk choose --help')"),
        (
            ["choose", "one", "\x1b[2J"],
            r"Got unexpected extra argument (\x1b[2J) (see 'bytetalk choose --help')",
        ),
    ],
    ids=str,
)
def test_a_mistake_on_the_command_line_is_one_line(arguments: list[str], error: str | None) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    if error is None:
        assert result.stderr.startswith("Usage: bytetalk")
    else:
        assert result.stderr == f"Error: {error}\n"


def test_a_group_without_a_command_shows_its_help() -> None:
    result = invoke("group")
    assert result.exit_code == 2
    assert result.stderr.startswith("Usage: bytetalk group [OPTIONS] COMMAND")


def test_a_failure_is_one_line_and_after_debug_a_traceback_too() -> None:
    result = invoke("choose", "two")
    assert (result.exit_code, result.stderr) == (1, "Error: not permitted\n")
    result = invoke("--debug", "choose", "two")
    assert result.exit_code == 1
    assert result.stderr.startswith("Traceback ")
    assert "in fail\n" in result.stderr
    assert result.stderr.endswith("\nError: not permitted\n")


def test_a_traceback_that_cannot_be_printed_is_no_failure_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(sys, "stderr", Full())
    with (
        click.Context(click.Command("bytetalk"), obj=True),
        pytest.raises(Failure, match="not permitted"),
        briefly(),
    ):
        raise PermissionError("not permitted")


def test_a_mistake_with_debug_has_its_traceback() -> None:
    result = invoke("--debug", "choose", "one")
    assert result.exit_code == 2
    assert "in choose\n" in result.stderr
    assert "\nError: a strange number \\x1b[2J (see 'bytetalk" in result.stderr


def test_the_exit_codes_are_explained() -> None:
    for code in ("0", "1", "2", str(INTERRUPTED)):
        assert f"{code}, " in EXIT_CODES


@pytest.mark.parametrize("debug", [False, True])
def test_what_nobody_has_expected_is_one_line_too_and_no_peers_to_write(debug: bool) -> None:
    result = invoke(*["--debug"] * debug, "choose", "codec")
    assert result.exit_code == 1
    *traceback, line = result.stderr.splitlines()
    assert line == (
        r"Error: a mistake in bytetalk, or in a codec of your own: RuntimeError: a peer's\n\x1b[2J "
        "('bytetalk --debug ...' shows where)"
    )
    assert bool(traceback) == debug
    assert all(each.isprintable() for each in traceback)


def test_an_output_that_is_full_or_closed_is_no_mistake_of_the_programs() -> None:
    result = invoke("choose", "disk")
    assert (result.exit_code, result.stderr) == (1, "Error: No space left on device\n")
    result = invoke("choose", "pipe")
    assert (result.exit_code, result.stderr) == (1, "")


def test_ctrl_c_outside_of_trio() -> None:
    result = invoke("choose", "ctrl-c")
    assert (result.exit_code, result.stderr) == (130, "")


@pytest.mark.parametrize("number", [errno.EPIPE, errno.ENOSPC])
def test_what_cannot_be_said_is_no_failure(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    say("a word")
    assert capsys.readouterr().err == "a word\n"

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(click, "echo", refuse)
    say("another")
