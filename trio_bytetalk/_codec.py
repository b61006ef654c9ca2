"""What a protocol is to this package: `Codec`, and its per-connection halves `Reader`, `Writer`.

Pure and synchronous: no I/O, no clock, no Trio. Every case of a protocol is a plain call in a
test.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Final,
    Generic,
    Literal,
    TypeAlias,
    TypeVar,
    overload,
)

import attrs

from ._buffer import ReceiveBuffer
from ._errors import EncodeError, IncompleteMessageError

if TYPE_CHECKING:
    from typing_extensions import TypeForm  # PEP 747: also of unions, which are no type[T]

SendT = TypeVar("SendT")
ReceiveT = TypeVar("ReceiveT")
NewSendT = TypeVar("NewSendT")
NewReceiveT = TypeVar("NewReceiveT")

Buffer: TypeAlias = bytes | bytearray | memoryview
"""What a frame's bytes may be."""

Compression = Literal["zlib", "gzip", "deflate"]
Errors: TypeAlias = type[Exception] | tuple[type[Exception], ...]


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
            count = len(buffer)
            raise IncompleteMessageError(
                f"the peer finished in the middle of a message: {type(self).__name__} has "
                f"{count} {'byte' if count == 1 else 'bytes'} of it and needs more"
            )
        return NEED_DATA


def settle_first(reader: Any, _attribute: attrs.Attribute[Any], value: Any) -> Any:
    """For the fields of an `AheadReader` that may be changed: ``attrs.field(on_setattr=…)``."""
    if reader._settle is not None:
        reader._settle()
    return value


@attrs.define(eq=False)
class AheadReader(Reader[ReceiveT]):
    """A reader that can decode many messages in one call, for speed.

    They must be the ones that `decode` would give, one after the other, and depend on nothing but
    the bytes and the reader's settings: for the connection puts back what it has decoded and not
    delivered when another reader takes over, or when a setting of this one changes.
    """

    _decodes_ahead: ClassVar[bool]

    _settle: Callable[[], object] | None = attrs.field(default=None, init=False, repr=False)
    """Set while messages are decoded and not delivered: what puts them back."""

    def __init_subclass__(cls) -> None:
        # A subclass that overrides nothing but decode() wants just that to be called.
        decoding = next(each for each in cls.__mro__ if "decode" in vars(each))
        cls._decodes_ahead = "decode_ahead" in vars(decoding)

    @abstractmethod
    def decode_ahead(self, buffer: ReceiveBuffer, most: int) -> list[ReceiveT]:
        """Take up to ``most`` messages that lie within the front, as far as nothing is unusual.

        What follows is left to `decode`, errors above all.
        """


def ahead_reader(reader: Reader[ReceiveT]) -> AheadReader[ReceiveT] | None:
    """The reader, if it can decode many messages in one call."""
    if not isinstance(reader, AheadReader) or not reader._decodes_ahead:
        return None
    # Some state machines of users' set decode() in the instance.
    return None if "decode" in getattr(reader, "__dict__", ()) else reader


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

    # -- messages on top of frames; these modules subclass Codec, so they cannot be imported above

    @overload
    def map(
        self,
        *,
        decode: Callable[[ReceiveT], NewReceiveT],
        encode: Callable[[NewSendT], SendT],
        errors: Errors = (),
    ) -> Codec[NewSendT, NewReceiveT]: ...

    @overload
    def map(
        self, *, decode: Callable[[ReceiveT], NewReceiveT], errors: Errors = ()
    ) -> Codec[SendT, NewReceiveT]: ...

    @overload
    def map(
        self, *, encode: Callable[[NewSendT], SendT], errors: Errors = ()
    ) -> Codec[NewSendT, ReceiveT]: ...

    def map(
        self,
        *,
        decode: Callable[[Any], Any] | None = None,
        encode: Callable[[Any], Any] | None = None,
        errors: Errors = (),
    ) -> Codec[Any, Any]:
        """This protocol, with a function between its messages and the user's::

            words = Lines().map(decode=str.split, encode=" ".join)

        Args:
          decode: What is received is what this function makes of each message of this codec. It
              raises ValueError for one that makes no sense: an `InvalidMessageError` to the
              receiver.
          encode: What this function makes of a message that is sent is what this codec gets. It
              raises ValueError or TypeError for one that cannot be sent: an `EncodeError` to the
              sender.
          errors: One exception class, or a tuple of them, that also mean so, of either function:
              for example `struct.error`, KeyError, or an error that a library has of its own.

        Any other exception is a mistake in the program, and is raised as it is; so is a ``decode``
        that returns `NEED_DATA`, a TypeError, for its frame is whole.

        A direction without a function stays as it is. The functions are shared by all connections,
        so they keep no state.

        Codecs that are mapped by equal functions are equal. No lambda equals another one: if the
        codec is made more than once, use functions that have a name.
        """
        from ._messages import Mapped

        return Mapped(self, decode, encode, errors)

    def text(self: Codec[bytes, bytes], encoding: str = "utf-8") -> Codec[str, str]:
        """Text (`str`), of which this codec's frames are the bytes in ``encoding``.

        A frame that is not in it is an `InvalidMessageError`. An encoding in which text that looks
        like an escape sequence arrives as other text, such as ISO-2022-JP, is refused by a
        ValueError.
        """
        from ._messages import Text

        return Text(self, encoding)

    @overload
    def json(
        self: Codec[Any, bytes] | Codec[Any, str], /, *, text: bool | None = None
    ) -> Codec[Any, Any]: ...

    @overload
    def json(
        self: Codec[Any, bytes] | Codec[Any, str],
        receive: TypeForm[NewReceiveT],
        /,
        *,
        text: bool | None = None,
    ) -> Codec[NewReceiveT, NewReceiveT]: ...

    @overload
    def json(
        self: Codec[Any, bytes] | Codec[Any, str],
        receive: TypeForm[NewReceiveT],
        /,
        *,
        send: TypeForm[NewSendT],
        text: bool | None = None,
    ) -> Codec[NewSendT, NewReceiveT]: ...

    def json(
        self: Codec[Any, Any],
        receive: Any = Any,
        /,
        *,
        send: Any = None,
        text: bool | None = None,
    ) -> Codec[Any, Any]:
        """JSON (RFC 8259) in each of this codec's frames, which are bytes or, as of `Lines`, text::

            orders = LengthPrefixed().json(Order)
            orders_in = LengthPrefixed().json(Order, send=Receipt)

        Args:
          receive: The type of the messages: a ``msgspec.Struct``, a dataclass, an attrs class, a
              TypedDict, a union or a list of such; whatever msgspec supports. A message that is
              not of it is an `InvalidMessageError`. By default any JSON is received, as dicts,
              lists, str, int, float, bool and None; so what was sent as something else is changed:
              int keys to str, tuples and sets to lists, bytes to str in Base64, structs to dicts.
          send: The type of the messages sent, if it is another one. This is for the type checker:
              what is sent is not compared with it.
          text: Whether this codec sends `str` rather than `bytes`. By default its class says so:
              it is one of ``Codec[str, ...]`` or ``Codec[bytes, ...]``. Where it is of neither,
              and for what `map` returns if it was given ``encode``, say it here.

        A message with a float that is NaN or infinite, which JSON has not, is an `EncodeError`.

        Raises:
          ModuleNotFoundError: without msgspec, which comes with the extra of that name.
          TypeError: if msgspec does not support the type, or ``text`` is needed.
        """
        from ._messages import Typed, sends_text

        text = sends_text(self) if text is None else text
        return Typed(self, "json", receive, receive if send is None else send, text)

    @overload
    def msgpack(self: Codec[Any, bytes], /) -> Codec[Any, Any]: ...

    @overload
    def msgpack(
        self: Codec[Any, bytes], receive: TypeForm[NewReceiveT], /
    ) -> Codec[NewReceiveT, NewReceiveT]: ...

    @overload
    def msgpack(
        self: Codec[Any, bytes], receive: TypeForm[NewReceiveT], /, *, send: TypeForm[NewSendT]
    ) -> Codec[NewSendT, NewReceiveT]: ...

    def msgpack(
        self: Codec[Any, Any], receive: Any = Any, /, *, send: Any = None
    ) -> Codec[Any, Any]:
        """MessagePack in each of this codec's frames, which are bytes; else as `Codec.json`."""
        from ._messages import Typed

        return Typed(self, "msgpack", receive, receive if send is None else send, False)

    def compressed(
        self: Codec[bytes, bytes],
        method: Compression = "zlib",
        *,
        level: int = 6,
        max_size: int = 2**20,
    ) -> Codec[bytes, bytes]:
        """Bytes that are compressed in this codec's frames, each message for itself.

        Args:
          method: ``"zlib"`` (RFC 1950), ``"gzip"`` (RFC 1952, one member) or ``"deflate"`` (RFC
              1951, without a checksum).
          level: How hard to try: from 1, the fastest, to 9, the smallest; 0 is not to compress.
          max_size: The largest message accepted and sent, in bytes, before it is compressed. The
              inner codec has its own, for the frame. No more than this is ever decompressed: a
              message of more is a `MessageTooLargeError`.

        A frame that is not compressed so, is cut short, or has more behind the compressed data is
        an `InvalidMessageError`. After either error, receiving can go on.
        """
        from ._compression import Compressed

        return Compressed(self, method, level, max_size)


def to_bytes(message: object, codec: str) -> bytes:
    """What a bytes-like message consists of, copied if it may change while its frame is queued.

    Raises:
      EncodeError: if it is of another type.
    """
    if isinstance(message, bytes | bytearray | memoryview):
        return bytes(message)
    raise EncodeError(f"{codec} sends bytes, bytearray or memoryview, not {type(message).__name__}")
