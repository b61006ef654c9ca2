"""``bytetalk connect``: talk to a server, at a terminal or through pipes."""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TextIO

import attrs
import click
import trio
from prompt_toolkit.utils import is_dumb_terminal

from .._codec import Codec
from .._connection import CloseReason, Connection
from . import failures
from .addresses import SERVER, Address, name_of, open_connection
from .codecs import codec_option
from .conversation import Conversation
from .figures import plural
from .logs import Unsent
from .piping import READ_SIZE, Input, Output, Piping
from .printer import write_all
from .quantities import Quantity
from .tls import ClientTls, client_tls, client_tls_options

# TLS cannot be half-closed, so the end of the replies must be guessed.
_TLS_WAIT = 2.0


@attrs.frozen
class Options:
    """What the command line says, but for where to."""

    codec: Codec[Any, Any]
    timeout: float
    input: Input
    output: Output
    replies: int | None
    wait: float | None
    typed: bool
    """Whether someone is there to type messages and to read them."""


@click.command(short_help="Talk to a server, or pipe messages through it.")
@click.argument("address", type=SERVER)
@codec_option
@click.option(
    "--input",
    "-i",
    "input_",
    type=click.Choice(Input, case_sensitive=False),
    default=Input.LINES,
    show_default="lines",
    help="A message is a line, or the WHOLE input; or it is sent RAW, without framing.",
)
@click.option(
    "--output",
    "-o",
    type=click.Choice(Output, case_sensitive=False),
    default=Output.LINES,
    show_default="lines",
    help="A message becomes a line, with escapes; or its RAW bytes, and nothing else.",
)
@click.option(
    "--replies",
    "-n",
    type=click.IntRange(min=1),
    metavar="N",
    help="End after N messages; if fewer come, fail.",
)
@click.option(
    "--wait",
    "-w",
    type=Quantity(least=0, endless=True),
    metavar="SECONDS",
    help="Do not half-close after the input's end, but end after so long a silence; "
    "none, when the peer does.  [default with TLS: 2; with --replies, too: none]",
)
@click.option(
    "--timeout",
    type=Quantity(endless=True),
    default=10,
    show_default=True,
    metavar="SECONDS",
    help="How long connecting may take.",
)
@client_tls_options
def command(
    address: Address,
    codec: Codec[Any, Any],
    input_: Input,
    output: Output,
    replies: int | None,
    wait: float | None,
    timeout: float,
    **tls: Any,
) -> None:
    """Talk to a server, at a terminal or through pipes.

    ADDRESS is HOST:PORT, :PORT or unix:PATH. At a terminal, what is typed is sent, and what comes
    is shown with its times; /help there says more. Otherwise the lines of the input are sent, and
    each message that comes is printed as a line:

    \b
      echo hello | bytetalk connect :5555
      bytetalk connect :5555 < messages.txt > replies.txt

    When the input has ended, the connection is half-closed, and the rest of the replies received.
    """
    typed = _is_typed(input_, output)
    if wait is not None and typed:
        raise click.UsageError(
            "--wait is for input that ends, from a pipe or a file; at a terminal, Ctrl-D ends"
        )
    security = client_tls(**tls)
    if wait is None and security.ssl_context is not None:
        wait = _TLS_WAIT if replies is None else math.inf
    if output is Output.RAW and _is_terminal(sys.stdout):
        raise click.UsageError("--output raw is not for a terminal, but for a file or a pipe")
    options = Options(codec, timeout, input_, output, replies, wait, typed)
    with _sigterm_as_ctrl_c(is_typed=typed):
        failures.run(_main, address, security, options)


async def _main(address: Address, security: ClientTls, options: Options) -> None:
    async with contextlib.AsyncExitStack() as stack:
        unsent = stack.enter_context(Unsent.counted())
        with trio.move_on_after(options.timeout) as scope:
            connection = await stack.enter_async_context(
                open_connection(
                    address,
                    options.codec,
                    security.ssl_context,
                    security.server_hostname,
                    handshake_timeout=None,  # --timeout is for both
                    # Whether the peer is too slow, someone at a terminal decides; and whoever
                    # reads our output may be slow for good reasons.
                    message_timeout=None,
                    send_timeout=None,
                    close_timeout=1,
                )
            )
        if scope.cancelled_caught:
            raise TimeoutError(
                f"no connection to {address} in {options.timeout:g} seconds (--timeout)"
            )
        talk = _converse if options.typed else _pipe
        await talk(connection, options, unsent)


async def _pipe(connection: Connection[Any, Any], options: Options, unsent: Unsent) -> None:
    await Piping(
        connection,
        options.codec,
        _reader(sys.stdin),
        _writer(sys.stdout),
        options.input,
        options.output,
        options.replies,
        options.wait,
    ).run()
    # After an error, nobody thinks that all has arrived.
    await connection.aclose()
    if unsent.bytes:
        failures.say(_not_taken(unsent))
    numbers = connection.statistics()
    is_finished = connection.close_reason is CloseReason.END_OF_STREAM
    if is_finished and numbers.bytes_sent and not numbers.bytes_received:
        failures.say(
            "the peer finished and sent nothing (if that is not its way: does it use TLS, or "
            "another codec?)"
        )


def _is_typed(input_: Input, output: Output) -> bool:
    """Whether both ends are a terminal, and one that can have a prompt."""
    return (
        input_ is Input.LINES
        and output is Output.LINES
        and _is_terminal(sys.stdin)
        and _is_terminal(sys.stdout)
        and not is_dumb_terminal()
    )


async def _converse(connection: Connection[Any, Any], options: Options, unsent: Unsent) -> None:
    peer = name_of(connection.remote_address)
    failures.say(f"Connected to {peer}; /help says what can be typed, Ctrl-D ends.")
    try:
        await Conversation(connection, options.codec, options.replies).run()
    finally:
        await connection.aclose()
        failures.say(_summary(connection, unsent))


@contextlib.contextmanager
def _sigterm_as_ctrl_c(*, is_typed: bool) -> Iterator[None]:
    """Within this block, SIGTERM ends the program as Ctrl-C does; a second one, at once.

    So the terminal is left as it was before. Who types there may interrupt, whatever a shell
    ignores.
    """

    def interrupt(number: int, _frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        # Ctrl-C is ignored in the background of a script, for example.
        is_ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        signal.raise_signal(number if is_ignored else signal.SIGINT)

    before = signal.signal(signal.SIGTERM, interrupt)
    on_ctrl_c = signal.getsignal(signal.SIGINT)
    if is_typed:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, on_ctrl_c)
        signal.signal(signal.SIGTERM, before)


def _summary(connection: Connection[Any, Any], unsent: Unsent) -> str:
    numbers = connection.statistics()
    summary = f"{numbers.messages_sent} sent, {numbers.messages_received} received"
    # If messages have come, there may be whole ones among these bytes.
    undecoded = numbers.bytes_undecoded and not numbers.messages_received
    if connection.close_reason is CloseReason.END_OF_STREAM:
        summary += "; the peer finished"
    elif connection.close_reason is CloseReason.CLOSED and undecoded:
        summary += (
            f"; {plural(numbers.bytes_undecoded, 'byte')} came, which is no whole message "
            "(is --codec the one that the server uses?)"
        )
    return f"{summary}; {_not_taken(unsent)}" if unsent.bytes else summary


def _not_taken(unsent: Unsent) -> str:
    return f"the peer has not taken {plural(unsent.bytes, 'byte')}"


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()


def _reader(stream: TextIO | None) -> Callable[[], bytes]:
    """What reads from the descriptor under a stream.

    Directly, for a thread that is left alone in the middle of it must hold no lock.
    """
    if stream is None:  # it was closed before the program began
        return bytes
    descriptor = stream.fileno()

    def read() -> bytes:
        while True:
            try:
                return os.read(descriptor, READ_SIZE)
            except BlockingIOError:  # someone who shares it wants it so
                select.select([descriptor], [], [])

    return read


def _writer(stream: TextIO | None) -> Callable[[bytes], None]:
    """What writes to the descriptor under a stream, all of what it is given."""
    if stream is None:
        return lambda data: None
    return partial(write_all, stream.fileno())
