"""What a protocol is to this package: `Codec`, and its per-connection halves `Reader`, `Writer`.

Pure and synchronous: no I/O, no clock, no Trio. Every case of a protocol is a plain call in a
test.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Final, Generic, Literal, TypeAlias, TypeVar

import attrs

from ._buffer import ReceiveBuffer
from ._errors import EncodeError, IncompleteMessageError

SendT = TypeVar("SendT")
ReceiveT = TypeVar("ReceiveT")

Buffer: TypeAlias = bytes | bytearray | memoryview
"""What a frame's bytes may be."""


class NeedData(enum.Enum):
    """The type of `NEED_DATA`, for annotations."""

    NEED_DATA = "NEED_DATA"

    def __repr__(self) -> str:
        return self.value

    __str__ = __repr__


NEED_DATA: Final[Literal[NeedData.NEED_DATA]] = NeedData.NEED_DATA
"""What `Reader.decode` returns while no whole message is there, as None may be a message."""


@attrs.define(eq=False)
class Reader(ABC, Generic[ReceiveT]):
    """Takes messages off a stream of bytes: one connection's state of a protocol's receiving half.

    Subclass it with attrs, or as a plain class, and implement `decode`.
    """

    @abstractmethod
    def decode(self, buffer: ReceiveBuffer) -> ReceiveT | Literal[NeedData.NEED_DATA]:
        """Take one whole message off the front of ``buffer``, and only that one.

        The buffer begins with the first byte behind the message before. If the message is not
        whole yet, return `NEED_DATA` and leave the buffer as it is: what is not consumed is there
        again next time, and belongs to another reader if the connection is given one.

        Raises:
          ProtocolError: if the bytes cannot be a message. Raised with nothing consumed, it is
              raised again by the next call: the connection is at its end. A reader that
              consumed the faulty message first lets the connection go on.
        """

    def decode_eof(self, buffer: ReceiveBuffer) -> ReceiveT | Literal[NeedData.NEED_DATA]:
        """Called when the peer has finished and `decode` wants more than there is.

        Return a last message (it is called again then), or `NEED_DATA` for a clean end. By
        default an empty buffer is a clean end.

        Raises:
          IncompleteMessageError: by default, if bytes are left.
        """
        if len(buffer):
            raise IncompleteMessageError(
                f"the peer finished in the middle of a message: {type(self).__name__} has "
                f"{len(buffer)} bytes of it and needs more"
            )
        return NEED_DATA


@attrs.define(eq=False)
class Writer(ABC, Generic[SendT]):
    """Turns messages into frames: one connection's state of a protocol's sending half.

    Subclass it with attrs, or as a plain class, and implement `encode`.
    """

    stateful: ClassVar[bool] = False
    """True if a frame depends on what was sent before it, as with compression or sequence numbers.

    `Server.broadcast` then has every connection's writer encode the message for itself.
    """

    @abstractmethod
    def encode(self, message: SendT) -> Buffer | Sequence[Buffer]:
        """The frame of ``message``: one bytes-like object, or a sequence of them.

        A sequence spares joining a large payload to its header. What is returned must not be
        changed afterwards, for it may be sent later; so copy what the caller may change.

        Raises:
          EncodeError: if the protocol cannot represent the message: wrong type, too long, its
              own delimiter inside. Never return a frame that the peer would misread.
        """


class Codec(ABC, Generic[SendT, ReceiveT]):
    """How a protocol frames its messages, shared by any number of connections.

    ``SendT`` is what its writers encode, ``ReceiveT`` what its readers decode.

    Subclass it with ``attrs.frozen``: equal codecs must frame alike, for `Server.broadcast` encodes
    once for all that are equal. A plain class will do too; its instances equal only themselves.
    """

    __slots__ = ()

    @abstractmethod
    def reader(self) -> Reader[ReceiveT]:
        """A new reader, for one connection."""

    @abstractmethod
    def writer(self) -> Writer[SendT]:
        """A new writer, for one connection."""


def to_bytes(message: object, codec: str) -> bytes:
    """What a bytes-like message consists of, copied if it may change while its frame is queued.

    Raises:
      EncodeError: if it is of another type.
    """
    if isinstance(message, bytes | bytearray | memoryview):
        return bytes(message)
    raise EncodeError(f"{codec} sends bytes, bytearray or memoryview, not {type(message).__name__}")
