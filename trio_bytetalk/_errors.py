"""The exceptions of the package that know nothing of Trio.

Where Trio has an exception for a situation (`trio.EndOfChannel`, `trio.ClosedResourceError`,
`trio.BrokenResourceError`, `trio.BusyResourceError`, `trio.WouldBlock`), Trio's is raised.
"""

from __future__ import annotations

from typing import Any


class BytetalkError(Exception):
    """The base of all exceptions that this package defines."""


class ProtocolError(BytetalkError):
    """The peer sent what the protocol does not allow.

    A `Reader` raises this, or a subclass of its own, and nothing else, for bytes that cannot be
    a message.
    """


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
