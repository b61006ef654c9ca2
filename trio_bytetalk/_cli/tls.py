"""TLS on the command line: the options of servers and of clients, and what they amount to."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn, TypeVar

import attrs
import click

from .._errors import reason_of
from .failures import say

_F = TypeVar("_F", bound=Callable[..., Any])

_FILE = click.Path(exists=True, dir_okay=False)


def server_tls_options(function: _F) -> _F:
    """Decorator: ``--tls-cert`` and ``--tls-key``, for `server_context`."""
    for option in (
        click.option("--tls-key", type=_FILE, help="Its private key, if not in the same file."),
        click.option("--tls-cert", type=_FILE, help="Serve TLS with this certificate (PEM)."),
    ):
        function = option(function)
    return function


def server_context(tls_cert: str | None, tls_key: str | None) -> ssl.SSLContext | None:
    """The context for these options; None for no TLS.

    Raises:
      click.UsageError: if they make no sense, together or at all.
    """
    if tls_cert is None:
        if tls_key is not None:
            raise click.UsageError("--tls-key is of use with --tls-cert FILE only")
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(tls_cert, tls_key, partial(_refuse, tls_key or tls_cert))
    except (OSError, ValueError) as error:
        where = tls_cert if tls_key is None else f"{tls_cert} with {tls_key}"
        hint = " (a key in another file is given by --tls-key FILE)" if tls_key is None else ""
        reason = f"{reason_of(error)}{hint}"
        raise click.UsageError(f"no certificate and its key in {where}: {reason}") from error
    return context


def _refuse(path: str) -> NoReturn:
    """Is asked for the password of an encrypted key."""
    raise click.UsageError(
        f"the key in {path} is encrypted: have one that is not, by openssl pkey -in {path} -out KEY"
    )


def client_tls_options(function: _F) -> _F:
    """Decorator: ``--tls`` and its kin, for `client_tls`."""
    for option in (
        click.option("--tls-name", metavar="NAME", help="The name that the certificate must have."),
        click.option("--tls-insecure", is_flag=True, help="TLS with whatever certificate comes."),
        click.option("--tls-ca", type=_FILE, help="TLS, trusting this authority only (PEM)."),
        click.option("--tls", is_flag=True, help="Use TLS, with the system's authorities."),
    ):
        function = option(function)
    return function


@attrs.frozen
class ClientTls:
    """What `open_connection` needs to know of TLS."""

    ssl_context: ssl.SSLContext | None
    server_hostname: str | None


def client_tls(
    *, tls: bool, tls_ca: str | None, tls_insecure: bool, tls_name: str | None
) -> ClientTls:
    """What these options amount to; any of them is TLS. Warns of ``--tls-insecure`` on stderr.

    Raises:
      click.UsageError: if they contradict each other, the file is of no use, or the name is none.
    """
    if not (tls or tls_ca is not None or tls_insecure or tls_name is not None):
        return ClientTls(None, None)
    if tls_ca is not None and tls_insecure:
        raise click.UsageError("--tls-insecure checks nothing: give it or --tls-ca, not both")
    try:
        context = ssl.create_default_context(cafile=tls_ca)
    except (OSError, ValueError) as error:
        raise click.UsageError(f"no certificate in {tls_ca}: {reason_of(error)}") from error
    if tls_name is not None:
        try:
            context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname=tls_name)
        except (ValueError, ssl.SSLError) as error:
            raise click.UsageError(
                f"--tls-name is the name or the address of a host, which {tls_name!r} cannot be"
            ) from error
    if tls_insecure:
        say("warning: --tls-insecure: the server may be anyone")
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return ClientTls(context, tls_name)
