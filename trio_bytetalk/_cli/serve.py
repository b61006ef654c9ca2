"""``bytetalk serve``: a server in one command."""

from __future__ import annotations

import logging
import math
import shlex
import ssl
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, NoReturn, cast

import attrs
import click
import trio
from click.core import ParameterSource

from .._codec import Codec
from .._limits import LimitOptions, Limits
from .._server import Server
from .._signals import stop_on_signals
from . import failures
from .addresses import HOST, for_clients, name_of
from .codecs import DEFAULT, NAMED_CODEC, parse_codec
from .descriptors import allow_all_descriptors
from .figures import size
from .gauges import Gauges
from .live import show
from .logs import LatestRecords, logging_to, on_stderr
from .peers import NO_TRAFFIC, Peers
from .printer import writing_to
from .quantities import Quantity
from .screen import Screen, Stderr, keyboard
from .services import LAST_LINES, Chat, Log, echo
from .tls import server_context, server_tls_options

_logger = logging.getLogger("trio_bytetalk.serve")

# Which codec a service has if none is given: what people can type with any program, for the one
# that is for people.
_CODECS: Final = {"echo": DEFAULT, "chat": "lines", "log": DEFAULT}

# So often, in seconds, a line says how much is going on.
_REPORTING: Final = 10


def _limit_option(name: str, words: str) -> Callable[[Any], Any]:
    default = getattr(Limits(), name)
    return click.option(
        f"--{name.replace('_', '-')}",
        type=Quantity(endless=True),
        metavar="SECONDS",
        default="none" if default == math.inf else f"{default:g}",
        show_default=True,
        help=words,
    )


@attrs.frozen(kw_only=True)
class Settings:
    """What is to be served, where, and how."""

    service: str
    codec: Codec[Any, Any]
    codec_name: str
    host: str = "127.0.0.1"
    port: int = 5555
    unix: str | None = None
    """A path, which is listened on instead of host and port."""
    ssl_context: ssl.SSLContext | None = None
    max_connections: int | None = None
    limits: LimitOptions = attrs.field(factory=LimitOptions)


@click.command(short_help="Run a server: echo, chat or log.")
@click.argument("service", type=click.Choice(list(_CODECS)))
@click.option(
    "--host",
    type=HOST,
    default="127.0.0.1",
    show_default=True,
    help="The name or address to listen on; 0.0.0.0 or :: for all of the machine's.",
)
@click.option(
    "--port",
    "-p",
    type=click.IntRange(0, 65535),
    default=5555,
    show_default=True,
    help="The TCP port; 0 has the system choose one.",
)
@click.option(
    "--unix",
    metavar="PATH",
    type=click.Path(),
    help="Listen on a Unix socket with this path, and on no port.",
)
@server_tls_options
@click.option(
    "--codec",
    "-c",
    type=NAMED_CODEC,
    metavar="CODEC",
    help="How messages are framed: length:2,little, lines, json+lines, ... See 'bytetalk codecs'.  "
    f"[default: {_CODECS['chat']} for chat, {_CODECS['echo']} for echo and log]",
)
@click.option(
    "--max-connections",
    type=click.IntRange(1),
    metavar="N",
    help="How many are served at once; further ones wait.  [default: no limit]",
)
@_limit_option("idle_timeout", "How long a connection may be silent.")
@_limit_option("message_timeout", "How long a message may take once it has begun.")
@_limit_option("send_timeout", "How long a peer may take nothing of what is sent.")
@_limit_option("handshake_timeout", "How long a TLS handshake may take.")
@click.option("--plain", is_flag=True, help="Log lines, also in a terminal, and no live view.")
@click.option("--quiet", "-q", is_flag=True, help="Log warnings and errors only.")
@click.pass_context
def command(
    ctx: click.Context,
    /,
    service: str,
    host: str,
    port: int,
    unix: str | None,
    tls_cert: str | None,
    tls_key: str | None,
    codec: tuple[str, Codec[Any, Any]] | None,
    max_connections: int | None,
    plain: bool,
    quiet: bool,
    **limits: Any,
) -> None:
    """A server, until Ctrl-C or SIGTERM; a second one ends it at once.

    \b
    echo  sends back what it receives
    chat  passes on what each says to all others, with the name in front
    log   prints what it receives, a line each: time, connection, message

    In a terminal there is a live view of connections, rates, queues and events, but
    for a log that is printed there; elsewhere all that happens is logged on stderr.

    \b
    bytetalk serve chat --host 0.0.0.0
    bytetalk serve echo --codec json+lines --port 7000
    bytetalk serve log --unix /tmp/log.sock > messages.txt
    """
    if unix is not None:
        if not unix:
            raise click.UsageError("--unix needs the path of a socket, and it is empty")
        for name in ("host", "port"):
            if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT:
                raise click.UsageError(f"--{name} is for TCP: give it or --unix, not both")
    codec_name, parsed = codec or (_CODECS[service], parse_codec(_CODECS[service]))
    settings = Settings(
        service=service,
        codec=parsed,
        codec_name=codec_name,
        host=host,
        port=port,
        unix=unix,
        ssl_context=server_context(tls_cert, tls_key),
        max_connections=max_connections,
        limits=cast(LimitOptions, limits),
    )
    allow_all_descriptors()
    write = writing_to(sys.stdout)
    level = logging.WARNING if quiet else logging.INFO
    screen = Screen(Stderr(), keyboard())
    is_full_of_messages = service == "log" and sys.stdout.isatty()
    if plain or is_full_of_messages or not screen.is_usable:
        with logging_to(on_stderr(), level):
            _logger.info("%s", failures.run(serve, settings, report, write))
        return
    records = LatestRecords()
    try:
        with logging_to(records, level):
            view = partial(show, records=records, screen=screen)
            summary = failures.run(serve, settings, view, write)
    finally:
        for error in records.errors:
            failures.say(error)
    if not quiet:
        failures.say(summary)


async def serve(
    settings: Settings,
    look: Callable[[str, Gauges], Awaitable[object]],
    write: Callable[[str], object],
    task_status: trio.TaskStatus[list[trio.SocketListener]] = trio.TASK_STATUS_IGNORED,
) -> str:
    """Serve until a signal stops it; say in a line what was done.

    Args:
      settings: What, where, how.
      look: Is run meanwhile, with a title and what is to be seen; cancelled when that is over.
      write: What the messages of the log go to, in another thread.
      task_status: As for `Server.serve_tcp`.

    Raises:
      click.ClickException: for what cannot be listened on.
    """
    server: Server[Any, Any] = Server(
        codec=settings.codec, max_connections=settings.max_connections, **settings.limits
    )
    peers = Peers(server)
    gauges = Gauges(server, peers)
    log = Log(peers, write)
    if settings.service == "chat":
        server.handler = Chat(server, peers).handle
    else:
        server.handler = echo if settings.service == "echo" else log.handle
    with stop_on_signals(server):
        async with trio.open_nursery() as looking:
            async with trio.open_nursery() as printing:
                printing.start_soon(log.run)
                async with trio.open_nursery() as serving:
                    listeners = await serving.start(_listen, server, settings)
                    where = ", ".join(name_of(one.socket.getsockname()) for one in listeners)
                    title = f"{settings.service} on {where}, codec {settings.codec_name}"
                    if settings.ssl_context is not None:
                        title += ", TLS"
                    _logger.info("%s", title)
                    _logger.info("to talk to it: %s", _client(settings, listeners[0]))
                    looking.start_soon(look, title, gauges)
                    task_status.started(listeners)
                log.finish()
                printing.cancel_scope.deadline = trio.current_time() + LAST_LINES
            if printing.cancel_scope.cancelled_caught:
                _logger.error("the output takes no more: what was not printed yet is lost")
            looking.cancel_scope.cancel()
    return gauges.summary()


async def _listen(
    server: Server[Any, Any],
    settings: Settings,
    task_status: trio.TaskStatus[list[trio.SocketListener]],
) -> None:
    try:
        if settings.unix is not None:
            await server.serve_unix(
                settings.unix, ssl_context=settings.ssl_context, task_status=task_status
            )
        else:
            await server.serve_tcp(
                settings.port,
                host=settings.host,
                ssl_context=settings.ssl_context,
                task_status=task_status,
            )
    except OSError as error:
        raise failures.cannot_listen(error, settings.unix) from error


def _client(settings: Settings, listener: trio.SocketListener) -> str:
    """The command that connects to this server from this machine."""
    address = for_clients(listener.socket.getsockname())
    words = ["bytetalk", "connect", name_of(address)]
    if settings.codec_name != DEFAULT:
        words += ["--codec", settings.codec_name]
    if settings.ssl_context is not None:
        words.append("--tls")
    return shlex.join(words)


async def report(_title: str, gauges: Gauges) -> NoReturn:
    """Log how much is going on, from time to time if anything is."""
    before = NO_TRAFFIC
    while True:
        await trio.sleep(_REPORTING)
        sample = await gauges.sample(0)
        if sample.total != before or sample.backlog.connections:
            before = sample.total
            rate, backlog = sample.rate, sample.backlog
            unsent = ""
            if backlog.connections:
                unsent = f"; unsent {size(backlog.bytes)} for {backlog.connections:,}"
            _logger.info(
                "%s open; in %.0f messages/s, %s/s; out %.0f messages/s, %s/s%s",
                f"{sample.server.connections:,}",
                rate.messages_in,
                size(rate.bytes_in),
                rate.messages_out,
                size(rate.bytes_out),
                unsent,
            )
