"""A conversation that a person at a terminal has with a peer."""

from __future__ import annotations

import datetime
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import attrs
import trio

from .._codec import Codec
from .._connection import Connection
from .._errors import EncodeError, InvalidMessageError, one_line
from .codecs import parse_codec
from .escapes import with_arrows
from .failures import too_few_replies
from .figures import latency, plural
from .messages import Kind, hex_dump, kind_of, message_of, parse_hex, parse_message, show, text_of
from .piping import LONGEST
from .terminal import Terminal

_HELP: Final = (
    ("/hex 00 01 ff", "send a message of these bytes"),
    ("/file PATH", "send what a file has, as one message"),
    ("/codec CODEC", "go on with another codec, in both directions"),
    ("/quit", "as Ctrl-D"),
    ("//...", "send a message that begins with a slash"),
)

# How much of a message is shown: some 25 lines at 80 columns.
_MOST_CHARACTERS: Final = 2000
_MOST_BYTES: Final = 400

# So few bytes need no line of their own.
_FEW_BYTES: Final = 16

# How much is shown of what is no command's name.
_NAME_SHOWN: Final = 60


@attrs.frozen
class Send:
    """A message was typed."""

    message: Any


@attrs.frozen
class SendFile:
    """``/file`` was typed."""

    path: str


@attrs.frozen
class Use:
    """``/codec`` was typed."""

    codec: Codec[Any, Any]


@attrs.frozen
class Help:
    """``/help`` was typed."""


@attrs.frozen
class Quit:
    """``/quit`` was typed."""


Action = Send | SendFile | Use | Help | Quit


@attrs.define(eq=False)
class Conversation:
    """What is typed is sent, and both that and what comes is shown, with its times.

    Args:
      connection: It is not closed.
      codec: The connection's.
      replies: After so many messages it ends, and fewer are a failure; None is never.
      now: The clock that gives the time of day.
    """

    connection: Connection[Any, Any]
    codec: Codec[Any, Any]
    replies: int | None = None
    now: Callable[[], datetime.datetime] = datetime.datetime.now

    _terminal: Terminal[Action] = attrs.field(init=False)
    _sent_at: float | None = attrs.field(default=None, init=False)
    _received: int = attrs.field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        self._terminal = Terminal("> ", self.parse)

    async def run(self) -> None:
        """Talk until Ctrl-D, ``/quit`` or the peer's end.

        Raises:
          KeyboardInterrupt: Ctrl-C was typed.
          click.ClickException: there were fewer replies than demanded.
          ProtocolError, trio.BrokenResourceError: as `Connection.receive` does; but a message that
              is invalid is shown as such, and does not end it.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._show_received, nursery.cancel_scope)
            nursery.start_soon(self._terminal.run)
            await self._do_what_is_typed()
            nursery.cancel_scope.cancel()
        if self.replies is not None and self._received < self.replies:
            raise too_few_replies(self._received, self.replies)

    def parse(self, line: str) -> Action:
        """What a typed line stands for.

        Raises:
          ValueError: if it stands for nothing; on one line.
        """
        if not line.startswith("/") or line.startswith("//"):
            return self._send(parse_message(line[line.startswith("/") :], self.codec))
        name, _, argument = line[1:].partition(" ")
        argument = argument.strip()
        match name:
            case "hex":
                if kind_of(self.codec) is not Kind.BYTES:
                    raise ValueError("/hex is for codecs whose messages are bytes")
                return self._send(parse_hex(argument))
            case "file":
                if not argument:
                    raise ValueError("the path of a file stands behind /file")
                return SendFile(argument)
            case "codec":
                return Use(parse_codec(argument))
            case "help":
                return Help()
            case "quit":
                return Quit()
        raise ValueError(
            f"there is no command /{one_line(name, _NAME_SHOWN)}; see /help. "
            "(A message with a slash in front: //...)"
        )

    def _send(self, message: Any) -> Send:
        try:
            self.codec.writer().encode(message)
        except EncodeError as error:
            raise ValueError(str(error)) from error
        return Send(message)

    async def _do_what_is_typed(self) -> None:
        async for action in self._terminal.typed:
            match action:
                case Send(message):
                    await self._do_send(message)
                case SendFile(path):
                    try:
                        # A file may have whoever reads it wait for ever, on a dead network share
                        # for example. Ctrl-C and the peer's end must not wait with them.
                        data = await trio.to_thread.run_sync(
                            _contents, path, abandon_on_cancel=True
                        )
                        action = self._send(message_of(data, self.codec))
                    except ValueError as error:
                        await self._line("!", "ansired", str(error))
                    else:
                        await self._do_send(action.message)
                case Use(codec):
                    self.codec = codec
                    self.connection.use(codec)
                    await self._line("!", "", f"a line is now {kind_of(codec).value}")
                case Help():
                    await self._terminal.write(
                        ("", f"A line is a message: {kind_of(self.codec).value}.")
                    )
                    for command, meaning in _HELP:
                        await self._terminal.write(("", f"  {command:<14} {meaning}"))
                case _:  # Quit
                    return

    async def _do_send(self, message: Any) -> None:
        await self._show("→", "ansigreen", message)
        self._sent_at = trio.current_time()
        try:
            await self.connection.send(message)
        except EncodeError as error:  # of a codec that was changed just now
            await self._line("!", "ansired", str(error))
        except trio.BrokenResourceError:
            await trio.sleep_forever()  # until the reason has been received, too

    async def _show_received(self, scope: trio.CancelScope) -> None:
        while self._received != self.replies:
            try:
                message = await self.connection.receive()
            except InvalidMessageError as error:
                await self._line("←", "ansired", str(error))
            except trio.EndOfChannel:
                break
            else:
                self._received += 1
                await self._show("←", "ansicyan", message)
        scope.cancel()

    # -- what is shown

    async def _show(self, sign: str, style: str, message: Any) -> None:
        is_binary = isinstance(message, bytes | bytearray | memoryview) and text_of(message) is None
        if is_binary and len(message) > _FEW_BYTES:
            await self._line(sign, style, f"{plural(len(message), 'byte')}:")
            for row in hex_dump(message[:_MOST_BYTES]):
                await self._terminal.write(("", row))
            if len(message) > _MOST_BYTES:
                rest = plural(len(message) - _MOST_BYTES, "byte")
                await self._terminal.write(("", f"... and {rest} more"))
            return
        text = show(message)
        if len(text) > _MOST_CHARACTERS:
            rest = plural(len(text) - _MOST_CHARACTERS, "character")
            text = f"{text[:_MOST_CHARACTERS]} ... and {rest} more"
        await self._line(sign, style, text)

    async def _line(self, sign: str, style: str, text: str) -> None:
        """Write a line with its time, and with how long after the last sent one it was received."""
        time = self.now().strftime("%H:%M:%S.%f")[:-3]
        since = ""
        if sign == "←" and self._sent_at is not None:
            since = latency((trio.current_time() - self._sent_at) * 1e9)
        sign = with_arrows(sign, sys.stdout.encoding)
        await self._terminal.write(("", f"{time} "), (style, sign), ("", f" {since:>8}  {text}"))


def _contents(path: str) -> bytes:
    """All of a regular file: others may have whoever reads them wait for ever.

    Raises:
      ValueError: it cannot be read, or has too much; on one line.
    """
    try:
        where = Path(path).expanduser()
        if not stat.S_ISREG(where.stat().st_mode):
            raise ValueError(f"{path!r} is no regular file")
        with where.open("rb") as file:
            data = file.read(LONGEST + 1)
    except OSError as error:
        raise ValueError(f"cannot read {path!r}: {error.strerror}") from error
    except RuntimeError as error:  # there is no such user
        raise ValueError(f"cannot read {path!r}: {error}") from error
    if len(data) > LONGEST:
        raise ValueError(f"{path!r} has more than {LONGEST} bytes; --input whole <FILE sends it")
    return data
