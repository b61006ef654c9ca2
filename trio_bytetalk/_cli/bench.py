"""``bytetalk bench``: how fast a server answers, and how evenly."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any, Final, NoReturn

import click
import trio
from rich.console import Console
from rich.text import Text

from .._codec import Codec
from .addresses import SERVER, Address, open_connection
from .bench_report import About, as_html, as_json
from .bench_view import Picture, error_words, plan_words, print_text, results, second_line
from .codecs import named_codec_option
from .descriptors import allow_descriptors
from .failures import INTERRUPTED, explained, run, say
from .load import Load, Opener, Plan, Result
from .messages import parse_message
from .payload import DEFAULT_SIZE, Payload, checked, generated
from .quantities import Quantity, Size
from .screen import Screen, Stderr, keyboard
from .tls import client_tls, client_tls_options

# In seconds.
_DRAWING: Final = 0.5

# How long, in seconds, the thread that draws may hold the interpreter when a reply has come. By
# default it is ten times as long: that would be seen in the latencies.
_SWITCHING: Final = 0.0005

# Descriptors beside those of the connections: the standard ones, Trio's, and those of whatever
# is being looked up or imported.
_OTHER_DESCRIPTORS: Final = 32


class _OutputFile(click.Path):
    """A file that can be written: to find out after the run that it cannot would be too late."""

    def __init__(self) -> None:
        super().__init__(dir_okay=False, readable=False, writable=True, allow_dash=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        path = str(super().convert(value, param, ctx))
        if path == "-" or os.path.exists(path):  # click has seen whether it can be written
            return path
        if ctx is not None and ctx.resilient_parsing:  # a line is being completed
            return path
        # Behind a link, which may lead to nothing yet; and never one that was made meanwhile.
        file = os.path.realpath(path) if os.path.islink(path) else path
        try:
            os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
            os.remove(file)
        except OSError as error:
            self.fail(f"{path!r} cannot be written: {error.strerror}", param, ctx)
        return path


_FILE: Final = _OutputFile()


@click.command(short_help="Measure how fast a server answers.")
@click.argument("address", type=SERVER)
@click.option(
    "--connections",
    "-n",
    metavar="N",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="How many connections to open.",
)
@click.option(
    "--window",
    "-w",
    metavar="N",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="How many messages each may have in flight, that is, without a reply.",
)
@click.option(
    "--size",
    "-s",
    metavar="BYTES",
    type=Size(),
    help="Bytes of a message; characters, for a codec of text or of values, which are strings "
    f"then.  [default: {DEFAULT_SIZE}, or what the codec asks for]",
)
@click.option(
    "--message", "-m", metavar="TEXT", help="Send this message, written as for 'bytetalk connect'."
)
@click.option(
    "--duration",
    "-d",
    metavar="SECONDS",
    type=Quantity(least=0.01),
    default=10,
    show_default=True,
    help="Seconds to measure for.",
)
@click.option(
    "--warmup",
    metavar="SECONDS",
    type=Quantity(least=0),
    default=1,
    show_default=True,
    help="Seconds of the same before that, which do not count.",
)
@click.option(
    "--rate",
    "-r",
    metavar="N",
    type=Quantity("messages a second"),
    help="Messages a second, of all connections together, sent when they are due: an open loop.",
)
@click.option(
    "--timeout",
    metavar="SECONDS",
    type=Quantity(endless=True),
    default=10,
    show_default=True,
    help="Seconds to wait for a connection, and at the end for the last replies.",
)
@click.option("--no-check", is_flag=True, help="Take any reply, not only what was sent.")
@click.option("--json", metavar="FILE", type=_FILE, help="Write the results as JSON; - is stdout.")
@click.option("--html", metavar="FILE", type=_FILE, help="Write them as a page with charts.")
@named_codec_option
@client_tls_options
def command(
    address: Address,
    connections: int,
    window: int,
    size: int | None,
    message: str | None,
    duration: float,
    warmup: float,
    rate: float | None,
    timeout: float,
    no_check: bool,
    json: str | None,
    html: str | None,
    codec: tuple[str, Codec[Any, Any]],
    **tls: Any,
) -> None:
    """Measure how fast the server at ADDRESS answers.

    For any server that sends back what it gets, or (with --no-check) one message for each. Each
    connection sends as soon as --window allows; each reply is compared with what was sent.

    This is a closed loop: while the server stalls, nothing is sent, so few messages show it, and
    high percentiles look better than they would to clients that send whenever they want to
    (coordinated omission). With --rate, each message has its time, and its latency counts from
    then, even if it had to wait before it could be sent.

    Percentiles are up to 0.8 % too high. Ctrl-C ends it early and prints the results.

    \b
    A server to try it with, and 50 connections for 5 seconds:
      bytetalk serve echo
      bytetalk bench :5555 -n 50 -d 5
    """
    if json is not None and html is not None and _is_one_file(json, html):
        where = "the standard output" if json == "-" else json
        raise click.UsageError(f"--json and --html cannot both go to {where}")
    codec_name, parsed = codec
    plan = Plan(
        payload=_payload(parsed, size, message, check=not no_check),
        connections=connections,
        window=window,
        duration=duration,
        warmup=warmup,
        rate=rate,
        timeout=timeout,
        check=not no_check,
    )
    allow_descriptors(connections + _OTHER_DESCRIPTORS)
    security = client_tls(**tls)
    opener = partial(
        open_connection,
        address,
        parsed,
        security.ssl_context,
        security.server_hostname,
        handshake_timeout=None,  # for --timeout is over all of it
        close_timeout=1,
    )
    about = About.now(address, codec_name)
    screen = Screen(Stderr(), keyboard())
    result = run(measure, plan, opener, about.title, screen)
    if not result.seconds:
        _end_without_results(result)
    outputs: list[Callable[[], None]] = []
    if "-" not in (json, html):
        outputs.append(lambda: print_text(Console(highlight=False), results(result, about.title)))
    if json is not None:
        outputs.append(lambda: _write(json, as_json(result, about)))
    if html is not None:
        outputs.append(lambda: _write(html, as_html(result, about)))
    _put_out(outputs)
    if result.interrupted:
        sys.exit(INTERRUPTED)
    if result.exhausted:
        raise click.ClickException(f"all connections ended: {error_words(result.errors, 1)}")
    if result.errors or result.lost:
        sys.exit(1)


def _is_one_file(one: str, other: str) -> bool:
    """Whether what is written to one would overwrite what is written to the other, or mix."""
    same = os.path.realpath(one)
    # A device, such as /dev/null, takes both.
    return same == os.path.realpath(other) and not Path(same).is_char_device()


def _end_without_results(result: Result) -> NoReturn:
    if result.exhausted:
        reasons = error_words(result.errors, 1)
        raise click.ClickException(f"all connections ended before anything was measured: {reasons}")
    say("Interrupted before anything was measured.")
    sys.exit(INTERRUPTED)


def _put_out(outputs: list[Callable[[], None]]) -> None:
    """Have the results everywhere that they can be had, and then tell of what could not be."""
    failure: OSError | None = None
    for output in outputs:
        try:
            output()
        except OSError as error:
            failure = failure or error
    if isinstance(failure, BrokenPipeError):
        raise failure  # nobody wants them any more: click ends the program quietly
    if failure is not None:
        raise click.ClickException(f"cannot write the results: {explained(failure)}") from failure


def _write(file: str, text: str) -> None:
    if file == "-":
        click.echo(text)
        return
    Path(file).write_text(text + "\n", encoding="utf-8")
    say(f"written: {file}")  # whether it is told or not, it is written


async def measure(plan: Plan, opener: Opener, title: str, screen: Screen) -> Result:
    """Carry out a plan, and show how it goes on.

    Args:
      screen: Where that is shown: on the whole of it, if it is a terminal and this program in its
          foreground, or else in lines.

    Raises:
      OSError, trio.BrokenResourceError, BytetalkError: there is not even one connection.

    Ctrl-C is `Load.interrupt`, and so is SIGTERM, which would leave a terminal as it is drawn.
    What is shown cannot make the run fail.
    """
    load = Load(plan, opener)
    before = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCHING)
    try:
        return await _measure(load, title, screen)
    finally:
        sys.setswitchinterval(before)


async def _measure(load: Load, title: str, screen: Screen) -> Result:
    console = screen.console

    async def look() -> Picture:
        return Picture(title, load.snapshot())

    async with trio.open_nursery() as nursery:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGCONT) as signals:
            nursery.start_soon(_obey, load, signals)
            if screen.is_usable:
                # In another thread, for which replies would have to wait: drawing takes a few
                # milliseconds, and much more where the terminal is slow.
                nursery.start_soon(screen.show, look, _DRAWING)
            else:
                words = plan_words(load.plan, load.plan.connections)
                _say(console, f"{title}: {words}")
                load.on_second = lambda second: _say(console, second_line(second))
            result = await load.run()
            nursery.cancel_scope.cancel()
    return result


async def _obey(load: Load, signals: AsyncIterator[int]) -> None:
    async for number in signals:
        if number == signal.SIGCONT:
            load.resumed()
        else:
            load.interrupt()


def _say(console: Console, line: str) -> None:
    with contextlib.suppress(OSError):
        print_text(console, Text(line))


def _payload(
    codec: Codec[Any, Any], size: int | None, message: str | None, *, check: bool
) -> Payload:
    if size is not None and message is not None:
        raise click.UsageError("--message has its own size: give it or --size, not both")
    try:
        if message is None:
            return generated(codec, size, check=check)
        return checked(codec, [parse_message(message, codec)], check=check)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
