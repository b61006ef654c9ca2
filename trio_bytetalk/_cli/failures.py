"""How a command ends: its exit code, and the one line that says what went wrong."""

from __future__ import annotations

import contextlib
import errno
import socket
import ssl
import sys
import traceback
from collections.abc import Awaitable, Callable, Iterator
from typing import Final, TypeVar, TypeVarTuple

import click
import trio

from .._connection import HANDSHAKE_FAILED
from .._errors import BytetalkError, ProtocolError, in_words, leaves, one_line
from .escapes import printable

DEBUG_VARIABLE: Final = "BYTETALK_DEBUG"

INTERRUPTED: Final = 130  # 128 + SIGINT, as shells have it

EXIT_CODES: Final = (
    "Exit codes: 0, all went well; 1, the connection or the peer failed, or was refused; "
    "2, the command line or the input is wrong; 130, interrupted."
)

# How much of an error is shown; what a peer sent may be a part of it.
_SHOWN: Final = 500

# What is no mistake of the program's.
_EXPECTED: Final = (
    OSError,
    BytetalkError,
    trio.BrokenResourceError,
    trio.EndOfChannel,
    click.ClickException,
    KeyboardInterrupt,
)

# What Trio's say when they say nothing.
_SILENT: Final[dict[type[BaseException], str]] = {
    trio.EndOfChannel: "the peer closed the connection",
    trio.BrokenResourceError: "the connection broke",
}

_ADVICE_ON_PORTS: Final[dict[int | None, str]] = {
    errno.EADDRINUSE: " (give another port; 0 has the system choose)",
    errno.EACCES: " (ports below 1024 are the administrator's: give another one)",
    errno.EADDRNOTAVAIL: " (the host is an address of this machine, or 0.0.0.0 for all of them)",
}
_ADVICE_ON_PATHS: Final[dict[int | None, str]] = {
    errno.EADDRINUSE: " (another server, or another file, is there: give another path)",
    errno.ENOENT: " (the directory must be there already)",
}

_UNKNOWN_AUTHORITY: Final = (
    " (give its authority with --tls-ca FILE, or do not check with --tls-insecure)"
)
_WRONG_NAME: Final = (
    " (the name that it must have is given with --tls-name NAME; --tls-insecure does without)"
)

_WRONG_TIME: Final = (
    " (the server needs a new one, or this machine's clock is wrong; --tls-insecure takes any)"
)
_OTHERWISE_WRONG: Final = " (the server needs another certificate; --tls-insecure takes any)"

# By OpenSSL's numbers (X509_V_ERR_...): certificates that are not valid yet or any more, signed by
# themselves or by someone unknown, and those of another name or address.
_ADVICE_ON_CERTIFICATES: Final = {
    **dict.fromkeys((9, 10), _WRONG_TIME),
    **dict.fromkeys((0, 18, 19, 20, 21), _UNKNOWN_AUTHORITY),
    **dict.fromkeys((62, 64), _WRONG_NAME),
}

_ResultT = TypeVar("_ResultT")
_ArgsT = TypeVarTuple("_ArgsT")


# What is none of `briefly`'s business: click's own ways to end, and a part of the extra missing.
_PASSING: Final = (
    click.exceptions.NoArgsIsHelpError,
    click.exceptions.Exit,
    BrokenPipeError,
    ModuleNotFoundError,
)


def say(line: str) -> None:
    """Print a line on stderr, if that can be: what is said there is nothing to fail for."""
    with contextlib.suppress(OSError):
        click.echo(line, err=True)


class Failure(click.ClickException):
    """Ends the program with exit code 1 and one line on stderr."""

    def __init__(self, error: BaseException) -> None:
        leaf = next(leaves(error))
        if isinstance(leaf, _EXPECTED):
            super().__init__(explained(leaf) + _advice(leaf))
        else:
            super().__init__(
                f"a mistake in bytetalk, or in a codec of your own: {type(leaf).__name__}: "
                f"{explained(leaf)} ('bytetalk --debug ...' shows where)"
            )


def run(function: Callable[[*_ArgsT], Awaitable[_ResultT]], *args: *_ArgsT) -> _ResultT:
    """`trio.run`, whose errors become one line and an exit code.

    Raises:
      click.ClickException: for what is not the program's mistake.
      SystemExit: with 130, if it was interrupted.
      BrokenPipeError: if nobody reads the output any more; click ends the program quietly.
    """
    try:
        return trio.run(function, *args)
    except BaseException as error:
        found = list(leaves(error))
        if not all(isinstance(leaf, _EXPECTED) for leaf in found):
            raise
        if any(isinstance(leaf, KeyboardInterrupt) for leaf in found):
            sys.exit(INTERRUPTED)
        for leaf in found:
            if isinstance(leaf, click.ClickException | BrokenPipeError):
                raise leaf from leaf.__cause__
        raise Failure(found[0]) from error


@contextlib.contextmanager
def briefly() -> Iterator[None]:
    """Have what is raised within told in one line; with ``--debug``, after its traceback.

    Of a mistake on the command line, click would show the usage, too, which is long.
    """
    try:
        yield
    except _PASSING:
        raise
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except (Exception, BaseExceptionGroup) as error:
        ctx = click.get_current_context(silent=True)
        if ctx is not None and ctx.find_root().obj is True:
            for line in "".join(traceback.format_exception(error)).rstrip("\n").split("\n"):
                say(printable(line))  # with what a peer may have had a hand in
        if not isinstance(error, click.ClickException):
            raise Failure(error) from None
        if not isinstance(error, click.UsageError):
            raise
        text = printable(" ".join(error.format_message().split())).rstrip(".")
        hint = "" if error.ctx is None else f" (see '{error.ctx.command_path} --help')"
        raise click.UsageError(text + hint) from None


def too_few_replies(received: int, wanted: int) -> click.ClickException:
    """What ends a client that was told how many replies there would be."""
    return click.ClickException(f"only {received} of {wanted} replies came")


def cannot_listen(error: OSError, path: str | None) -> click.ClickException:
    """What ends a command that cannot listen where it was told to, with what to do about it.

    Args:
      error: Says where, and why.
      path: That of a Unix socket; None for TCP.
    """
    advice = ""
    if path is not None:
        advice = _ADVICE_ON_PATHS.get(error.errno, "")
    elif isinstance(error, socket.gaierror):
        advice = " (the host is a name or an address of this machine)"
    else:
        advice = _ADVICE_ON_PORTS.get(error.errno, "")
    return click.ClickException(explained(error) + advice)


def explained(error: BaseException) -> str:
    """What an error says to someone who does not know Python, on one line."""
    if isinstance(error, OSError) and error.strerror:  # without the number that str() begins with
        about = "" if error.filename is None else f"{error.filename}: "
        return one_line(f"{about}{error.strerror}", _SHOWN)
    if not str(error) and type(error) in _SILENT:
        return _SILENT[type(error)]
    return in_words(error, _SHOWN)


def _advice(error: BaseException) -> str:
    """What to do about an error, where that is known."""
    causes: BaseException | None = error
    while causes is not None:
        if isinstance(causes, ssl.SSLCertVerificationError):
            code: int = getattr(causes, "verify_code", 0)
            return _ADVICE_ON_CERTIFICATES.get(code, _OTHERWISE_WRONG)
        if isinstance(causes, ConnectionRefusedError):
            return " (is the server running?)"
        if isinstance(causes, ProtocolError):
            return " (is --codec the one that the server uses?)"
        causes = causes.__cause__ or causes.__context__
    if str(error).startswith(HANDSHAKE_FAILED):
        return " (does the server use TLS?)"
    return ""
