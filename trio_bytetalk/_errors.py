"""The exceptions of the package that know nothing of Trio.

Where Trio has an exception for a situation (`trio.EndOfChannel`, `trio.ClosedResourceError`,
`trio.BrokenResourceError`, `trio.BusyResourceError`, `trio.WouldBlock`), Trio's is raised.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def one_line(text: str, most: int) -> str:
    """``text``, which may be a peer's words, as one printable line for an error or a log.

    What is left out of a long one is its middle: both ends say more.
    """
    if len(text) > most:
        text = f"{text[: most // 2]} ... {text[-most // 2 :]}"
    return text if text.isprintable() else repr(text)[1:-1]


def in_words(error: object, most: int) -> str:
    """What an error says, or is if it says nothing, as one printable line."""
    try:
        text = str(error) or repr(error)
    except Exception:  # noqa: BLE001 - a user's own error may fail at this, too: the server lives on
        text = f"{type(error).__name__}, whose words could not be had"
    return one_line(text, most)


def reason_of(error: BaseException) -> str:
    """What an error says, as a part of a sentence.

    A system's has no number there, and one of the ssl module's no line of that module.
    """
    try:
        if isinstance(error, OSError) and error.strerror and error.filename is None:
            return str(error.strerror).partition(" (_ssl.c:")[0]
        return str(error) or repr(error)
    except Exception:  # noqa: BLE001 - it may be a user's own, and fail at this, too
        return f"{type(error).__name__}, whose words could not be had"


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The exceptions in a group, and in the groups in it; or the one that it is."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error


class BytetalkError(Exception):
    """The base of all exceptions that this package defines."""


class ProtocolError(BytetalkError):
    """The peer sent what the protocol does not allow.

    A `Reader` raises this, or a subclass of its own, and nothing else, for bytes that cannot be
    a message. A handler or a hook may raise it, too, for a rule that it checks itself: to a server
    this is the peer's fault, too, and no failure of the handler. So what is raised over other
    bytes than the peer's, by a reader of a file, for example, is to be caught in the handler.
    """

    # The number of the connection that raised it from receiving: that one's peer is to blame.
    _connection: int | None = None


class MessageTooLargeError(ProtocolError):
    """The peer announced, or went on sending, a message over the codec's ``max_size``."""


class IncompleteMessageError(ProtocolError):
    """The peer finished in the middle of a message."""


class InvalidMessageError(ProtocolError):
    """The peer sent a whole frame, and what is in it is no message: see `Codec.map`.

    The frame has been consumed, so whoever receives may answer it and go on: the next
    `Connection.receive` returns the next message.
    """

    reason: str
    """What is wrong, and where in the message, on one line of reasonable length."""

    frame: Any
    """All of what came, as the inner codec received it; mostly `bytes` or `str`."""

    def __init__(self, *args: object, reason: str = "", frame: Any = None) -> None:
        super().__init__(*args)
        self.reason = reason
        self.frame = frame


class EncodeError(BytetalkError):
    """A message that this protocol cannot represent was given to be sent.

    It is raised before anything is queued; the connection stays usable.
    """
