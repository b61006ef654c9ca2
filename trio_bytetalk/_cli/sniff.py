"""``bytetalk sniff``: a proxy that shows the messages which pass through it."""

from __future__ import annotations

import signal
import ssl
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Final, TextIO

import attrs
import click
import trio
from rich.console import Console

from .._codec import Codec
from . import failures
from .addresses import ADDRESS, SERVER, Address, name_of
from .codecs import CODEC, codec_option
from .descriptors import allow_all_descriptors
from .escapes import with_arrows
from .figures import plural
from .printer import Printer, writing_to
from .proxy import Stream, accept_from, connect, forward, leads_to, listening, reset, secured
from .quantities import Size
from .tap import Message, ProblemKind, Tap
from .tls import client_tls, client_tls_options, server_context, server_tls_options
from .transcript import REPLIES, REQUESTS, JsonLines, Readable, Transcript, Way

# So many messages of one direction are shown before others have their turn.
_IN_A_ROW: Final = 100

# For how many seconds the output may take what is left at the end.
_LAST_LINES: Final = 1.0


@attrs.define
class Total:
    """What has come in one direction, of all connections."""

    messages: int = 0
    bytes: int = 0

    def __str__(self) -> str:
        return f"{plural(self.messages, 'message')}, {plural(self.bytes, 'byte')}"


@attrs.define(eq=False)
class _Watcher:
    """Sees what passes in one direction of one connection."""

    sniffer: Sniffer
    number: int
    way: Way
    tap: Tap
    total: Total  # of all connections
    seen: Total = attrs.field(factory=Total)

    async def see(self, data: bytes) -> None:
        """Show what is in the bytes, or that they have ended."""
        now = time.time()
        for total in (self.seen, self.total):
            total.bytes += len(data)
        printer, transcript = self.sniffer.printer, self.sniffer.transcript
        for count, seen in enumerate(self.tap.feed(data) if data else self.tap.end(), 1):
            if isinstance(seen, Message):
                self.seen.messages += 1
                self.total.messages += 1
                is_last = False
            else:
                is_last = seen.kind is not ProblemKind.INVALID
            if not (printer.has_room or is_last):
                printer.drop()
            elif isinstance(seen, Message):
                printer.put(transcript.message(now, self.number, self.way, seen))
            else:
                printer.put(transcript.problem(now, self.number, self.way, seen))
            if not count % _IN_A_ROW:
                await trio.lowlevel.checkpoint()


@attrs.define(eq=False)
class Sniffer:
    """The proxy.

    Args:
      connect: Connects to the target. It may raise OSError and `trio.BrokenResourceError`.
      codec: Of what clients send.
      reply_codec: Of what the target sends.
      most_undecoded: How many bytes of an unfinished message are kept, in each direction.
      ssl_context: For TLS with clients.
    """

    connect: Callable[[], Awaitable[Stream]]
    codec: Codec[Any, Any]
    reply_codec: Codec[Any, Any]
    transcript: Transcript
    printer: Printer
    most_undecoded: int
    ssl_context: ssl.SSLContext | None = None

    connections: int = attrs.field(default=0, init=False)
    requests: Total = attrs.field(factory=Total, init=False)
    replies: Total = attrs.field(factory=Total, init=False)

    async def accept(
        self,
        listeners: Sequence[trio.abc.Listener[trio.SocketStream]],
        connections: trio.Nursery,
    ) -> None:
        """Accept connections until it is cancelled; they are served in the nursery."""

        def take(stream: trio.SocketStream) -> None:
            connections.start_soon(self.converse, stream, _peer(stream))

        async with trio.open_nursery() as accepting:
            for listener in listeners:
                accepting.start_soon(accept_from, listener, take, self._complain)

    async def converse(self, client: Stream, name: str) -> None:
        """One connection, from its beginning to its end. The stream is closed in any case."""
        self.connections += 1
        number = self.connections
        self._note(number, "opened", f"{name} connected", peer=name)
        began = trio.current_time()
        try:
            requests, replies = (
                _Watcher(self, number, way, Tap(codec, self.most_undecoded), total)
                for way, codec, total in (
                    (REQUESTS, self.codec, self.requests),
                    (REPLIES, self.reply_codec, self.replies),
                )
            )
            if self.ssl_context is not None:
                client = await _secured(client, self.ssl_context)
            target = await self.connect()
        except (OSError, trio.BrokenResourceError, click.ClickException) as error:
            reason = failures.Failure(error).message
            self._note(number, "failed", reason, reason=reason)
            await reset(client)
            return
        except BaseException:
            await reset(client)
            raise
        broken = await forward(client, target, requests.see, replies.see)
        seconds = trio.current_time() - began
        self._note(
            number,
            "closed",
            f"{broken or 'closed'} after {seconds:.3f} s: → {requests.seen}; ← {replies.seen}",
            reason=broken,
            seconds=round(seconds, 6),
            to_target=attrs.asdict(requests.seen),
            to_client=attrs.asdict(replies.seen),
        )

    def summary(self) -> str:
        """What there was in all."""
        text = f"{plural(self.connections, 'connection')}: → {self.requests}; ← {self.replies}"
        if self.printer.dropped:
            text += f"; {plural(self.printer.dropped, 'line')} not shown"
        return text

    def _complain(self, error: OSError) -> None:
        reason = failures.Failure(error).message
        self._note(None, "full", f"accepting no connections for now: {reason}", reason=reason)

    def _note(self, number: int | None, event: str, text: str, **facts: Any) -> None:
        self.printer.put(self.transcript.note(time.time(), number, event, text, **facts))


async def _secured(client: Stream, ssl_context: ssl.SSLContext) -> Stream:
    try:
        return await secured(client, ssl_context)
    except trio.BrokenResourceError as error:
        words = f"no TLS with the client: {failures.explained(error)}"
        raise click.ClickException(words) from error


def _peer(stream: trio.SocketStream) -> str:
    try:
        return name_of(stream.socket.getpeername())
    except OSError:  # it is gone already
        return "a client"


async def run(
    sniffer: Sniffer, listen: Address, target: Address, say: Callable[[str], object]
) -> bool:
    """Listen and pass on until SIGINT or SIGTERM, which reset the connections; print what is left.

    When the output has failed, nobody is accepted any more, and it ends when the connections that
    are open then have ended.

    Returns:
      Whether the output has not failed.

    Raises:
      click.ClickException: if it cannot listen there, or listens at the target.
    """
    accepting = trio.CancelScope()

    async def print_all() -> None:
        try:
            await sniffer.printer.run()
        except OSError as error:
            what = f"the output has failed: {failures.explained(error)}"
            if isinstance(error, BrokenPipeError):
                what = "nobody reads the output any more"
            say(f"{what}; no more connections are accepted, and those that are open go on unseen")
            accepting.cancel()

    async with trio.open_nursery() as printing:
        printing.start_soon(print_all)
        try:
            with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                async with trio.open_nursery() as serving:
                    serving.start_soon(_cancel_at_signal, serving, signals)
                    async with (
                        trio.open_nursery() as connections,
                        listening(listen) as listeners,
                    ):
                        if await leads_to(target, listeners):
                            raise click.UsageError(
                                f"TARGET {target} is LISTEN {listen}: it would connect to itself"
                            )
                        where = (name_of(each.socket.getsockname()) for each in listeners)
                        say(
                            f"listening on {' and '.join(where)}, passing on to {target}; "
                            "Ctrl-C ends it"
                        )
                        with accepting:
                            await sniffer.accept(listeners, connections)
                    serving.cancel_scope.cancel()
        finally:
            sniffer.printer.close()
            printing.cancel_scope.deadline = trio.current_time() + _LAST_LINES
    return not accepting.cancel_called


async def _cancel_at_signal(serving: trio.Nursery, signals: AsyncIterator[int]) -> None:
    await anext(signals)
    serving.cancel_scope.cancel()


def transcript_for(stream: TextIO, *, json: bool, dump: bool, most: int) -> Transcript:
    """What lines look like on ``stream``; there are colours where rich would have some."""
    if json:
        return JsonLines()
    console = Console(file=stream)
    colours = console.color_system is not None and not console.no_color
    return Readable(most, dump, colours, stream.encoding)


@click.command()
@click.argument("listen", type=ADDRESS, metavar="LISTEN")
@click.argument("target", type=SERVER, metavar="TARGET")
@codec_option
@click.option(
    "--reply-codec",
    type=CODEC,
    metavar="CODEC",
    help="How the target's messages are framed, if not as the client's.",
)
@click.option("--hex", "dump", is_flag=True, help="Dump the bytes of each frame as well.")
@click.option(
    "--max-shown",
    type=Size(),
    default=1024,
    show_default=True,
    metavar="BYTES",
    help="How much of a message is shown.",
)
@click.option(
    "--max-undecoded",
    type=Size(least=1),
    default=16 * 2**20,
    show_default=True,
    metavar="BYTES",
    help="Give up decoding a direction at an unfinished message of more.",
)
@click.option("--json", is_flag=True, help="Print JSON, an object a line, with whole messages.")
@server_tls_options
@client_tls_options
@click.pass_context
def command(
    ctx: click.Context,
    /,
    listen: Address,
    target: Address,
    codec: Codec[Any, Any],
    reply_codec: Codec[Any, Any] | None,
    dump: bool,
    max_shown: int,
    max_undecoded: int,
    json: bool,
    tls_cert: str | None,
    tls_key: str | None,
    **tls_options: Any,
) -> None:
    """Show the messages between clients and a server, as a proxy.

    \b
    Clients connect to LISTEN, and are connected to TARGET:
      bytetalk sniff :6000 db.example:5432 --codec json+lines
      bytetalk sniff :6001 unix:/run/server.sock --json >messages

    Bytes pass as they are, whether or not they can be decoded, and however slow
    the output is. Arrows to the right are for what clients send; sizes are those
    of frames. :PORT is of this machine only; 0.0.0.0:PORT or [::]:PORT is for others,
    too. --tls and its kin are for the connection to TARGET, --tls-cert and
    --tls-key for clients.
    """
    context = server_context(tls_cert, tls_key)
    tls = client_tls(**tls_options)

    async def reach_target() -> Stream:
        return await connect(target, tls.ssl_context, tls.server_hostname)

    transcript = transcript_for(sys.stdout, json=json, dump=dump, most=max_shown)

    def not_shown(count: int) -> str:
        text = f"... {plural(count, 'line')} not shown: the output is too slow"
        return transcript.note(time.time(), None, "dropped", text, count=count)

    sniffer = Sniffer(
        reach_target,
        codec,
        codec if reply_codec is None else reply_codec,
        transcript,
        Printer(writing_to(sys.stdout), not_shown),
        max_undecoded,
        context,
    )

    def say(line: str) -> None:
        failures.say(with_arrows(line, sys.stderr.encoding))

    allow_all_descriptors()  # each connection needs two
    is_whole = failures.run(run, sniffer, listen, target, say)
    say(sniffer.summary())
    if not is_whole:
        ctx.exit(1)
