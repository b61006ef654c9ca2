"""Messages on top of frames: what `Codec.map` and its kin return.

Each is a codec around another, and its reader and writer are around the other's. A reader has the
inner one take a frame off the buffer, and converts that; so the frame is consumed whatever comes of
the conversion, and what is wrong with one message does not concern the next.
"""

from __future__ import annotations

import math
import re
import types
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, Union, get_args, get_origin

import attrs

from ._buffer import ReceiveBuffer
from ._codec import NEED_DATA, Buffer, Codec, NeedData, Reader, ReceiveT, SendT, Writer
from ._errors import EncodeError, InvalidMessageError, one_line
from ._validators import text_encoding

# What a message may make a conversion raise: with numbers too large or nesting too deep, Python's
# own functions raise the latter two.
_INVALID: Final = (ValueError, OverflowError, RecursionError)
_CANNOT_BE_SENT: Final = (TypeError, *_INVALID)

# How much of a frame, and of the reason that a conversion gives, an error's text shows: a few lines
# of a log. Both may be the peer's words.
_FRAME_SHOWN: Final = 60
_REASON_SHOWN: Final = 300


def invalid_message(frame: Any, why: object) -> InvalidMessageError:
    """The error for a frame that a peer has sent: its text is short, and printable."""
    reason = one_line(str(why), _REASON_SHOWN)
    if isinstance(frame, bytes | bytearray | memoryview | str):
        some = frame[:_FRAME_SHOWN]
        shown = repr(some if isinstance(some, str) else bytes(some))
        if len(frame) > len(some):
            unit = "characters" if isinstance(frame, str) else "bytes"
            shown += f" and so on, {len(frame)} {unit} in all"
    else:
        shown = one_line(repr(frame), _FRAME_SHOWN)
    return InvalidMessageError(
        f"the peer sent a message that is not valid: {reason}; it is {shown}",
        reason=reason,
        frame=frame,
    )


def _why(error: Exception) -> str:
    """What an exception says; by its name, if it says nothing or no more than a key."""
    return repr(error) if isinstance(error, KeyError) else str(error) or repr(error)


@attrs.define(eq=False)
class MappedReader(Reader[ReceiveT]):
    """A reader that converts what another one receives; that of `Codec.map`, for example."""

    inner: Reader[Any]
    """The other one. Its settings, as ``max_size``, may be changed as ever."""

    convert: Callable[[Any], ReceiveT]
    """What makes a message of a frame."""

    errors: tuple[type[Exception], ...] = _INVALID
    """What ``convert`` raises for a frame that is no message."""

    def decode(self, buffer: ReceiveBuffer) -> ReceiveT | Literal[NeedData.NEED_DATA]:
        frame = self.inner.decode(buffer)
        if frame is NEED_DATA:
            return NEED_DATA
        try:
            message = self.convert(frame)
        except self.errors as error:
            raise invalid_message(frame, _why(error)) from error
        if message is NEED_DATA:
            raise self._no_message()
        return message

    def decode_eof(self, buffer: ReceiveBuffer) -> ReceiveT | Literal[NeedData.NEED_DATA]:
        frame = self.inner.decode_eof(buffer)
        if frame is NEED_DATA:
            return NEED_DATA
        try:
            message = self.convert(frame)
        except self.errors as error:
            raise invalid_message(frame, _why(error)) from error
        if message is NEED_DATA:
            raise self._no_message()
        return message

    def _no_message(self) -> TypeError:
        # The frame is consumed: to wait for more of it would be to wait for the next, or for ever.
        return TypeError(
            f"{self.convert!r} returned NEED_DATA for a whole frame; it must return a message, or "
            "raise ValueError"
        )


@attrs.define(eq=False)
class MappedWriter(Writer[SendT]):
    """A writer that converts what another one is to send; that of `Codec.map`, for example."""

    inner: Writer[Any]
    """The other one. Its settings, as ``max_size``, may be changed as ever."""

    convert: Callable[[SendT], Any]
    """What makes a frame of a message."""

    errors: tuple[type[Exception], ...] = _CANNOT_BE_SENT
    """What ``convert`` raises for a message that cannot be sent."""

    @property
    def stateful(self) -> bool:  # type: ignore[override]  # each instance has its inner one's
        """Whether the inner writer is."""
        return self.inner.stateful

    def encode(self, message: SendT) -> Buffer | Sequence[Buffer]:
        try:
            frame = self.convert(message)
        except self.errors as error:
            raise EncodeError(
                f"a message of type {type(message).__name__} cannot be sent: "
                f"{one_line(_why(error), _REASON_SHOWN)}"
            ) from error
        return self.inner.encode(frame)


def _function(_instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if value is not None and not callable(value):
        raise TypeError(f"{attribute.name} must be a function of one message, not {value!r}")


def _exception_classes(errors: Any) -> Any:
    return errors if isinstance(errors, tuple) else (errors,)


def _errors(_instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    for one in value:
        if not (isinstance(one, type) and issubclass(one, Exception)):
            raise TypeError(
                f"{attribute.name} must be an exception class or a tuple of these, not {one!r}"
            )


# In the classes below, what may be unhashable is left out of the hash: types (Annotated ones, for
# example) and callable objects. Equal codecs still have equal hashes, which is all that it takes.


@attrs.frozen
class Mapped(Codec[SendT, ReceiveT]):
    """What `Codec.map` returns."""

    inner: Codec[Any, Any]
    decode: Callable[[Any], ReceiveT] | None = attrs.field(validator=_function, hash=False)
    encode: Callable[[SendT], Any] | None = attrs.field(validator=_function, hash=False)
    errors: tuple[type[Exception], ...] = attrs.field(
        converter=_exception_classes, validator=_errors
    )

    def __attrs_post_init__(self) -> None:
        if self.decode is None and self.encode is None:
            raise TypeError("map() needs a function for decode, encode, or both")

    def reader(self) -> Reader[ReceiveT]:
        reader = self.inner.reader()
        if self.decode is None:
            return reader
        return MappedReader(reader, self.decode, (*_INVALID, *self.errors))

    def writer(self) -> Writer[SendT]:
        writer = self.inner.writer()
        if self.encode is None:
            return writer
        return MappedWriter(writer, self.encode, (*_CANNOT_BE_SENT, *self.errors))


@attrs.frozen
class Text(Codec[str, str]):
    """What `Codec.text` returns."""

    inner: Codec[bytes, bytes]
    encoding: str = attrs.field(validator=text_encoding(like_ascii=False))

    def reader(self) -> MappedReader[str]:
        encoding = self.encoding
        return MappedReader(self.inner.reader(), lambda frame: frame.decode(encoding))

    def writer(self) -> MappedWriter[str]:
        encoding = self.encoding
        return MappedWriter(self.inner.writer(), lambda message: str.encode(message, encoding))


def _true_or_false(_instance: Any, _attribute: attrs.Attribute[Any], value: Any) -> None:
    if type(value) is not bool:
        raise TypeError(f"text must be True or False, or None for what is known, not {value!r}")


def _decoder(codec: Typed[Any, Any]) -> Any:
    return getattr(_msgspec(codec.notation), codec.notation).Decoder(codec.receive).decode


def _encoder(codec: Typed[Any, Any]) -> Any:
    msgspec = _msgspec(codec.notation)
    if codec.notation == "msgpack":
        return msgspec.msgpack.Encoder().encode
    return _json_encoder(msgspec, text=codec.is_text)


@attrs.frozen
class Typed(Codec[SendT, ReceiveT]):
    """What `Codec.json` and `Codec.msgpack` return."""

    inner: Codec[Any, Any]
    notation: Literal["json", "msgpack"]
    receive: Any = attrs.field(hash=False)
    send: Any = attrs.field(hash=False)
    is_text: bool = attrs.field(validator=_true_or_false)
    # msgspec's, made once: they have no state, and what they are made of is above.
    _decode: Callable[[Any], ReceiveT] = attrs.field(
        init=False, eq=False, repr=False, default=attrs.Factory(_decoder, takes_self=True)
    )
    _encode: Callable[[SendT], Any] = attrs.field(
        init=False, eq=False, repr=False, default=attrs.Factory(_encoder, takes_self=True)
    )

    def __reduce__(self) -> Any:
        return Typed, (self.inner, self.notation, self.receive, self.send, self.is_text)

    @property
    def _errors(self) -> tuple[type[Exception], ...]:
        # Not all of msgspec's own are ValueErrors, and in old versions none is. A TypeError is what
        # it raises for a message that it cannot encode, and for a set of what cannot be in one.
        return (_msgspec(self.notation).MsgspecError, *_CANNOT_BE_SENT)

    def reader(self) -> MappedReader[ReceiveT]:
        return MappedReader(self.inner.reader(), self._decode, self._errors)

    def writer(self) -> MappedWriter[SendT]:
        return MappedWriter(self.inner.writer(), self._encode, self._errors)


def _msgspec(method: str) -> Any:
    try:
        import msgspec
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{method}() needs msgspec, which comes with the extra msgspec: "
            "pip install '.[msgspec]' in a checkout of trio_bytetalk",
            name="msgspec",
        ) from error
    return msgspec


# A float in MessagePack that is NaN or infinite, or other bytes that look like one. No text does:
# the first byte begins a pair in UTF-8 that the second one cannot end.
_MAY_BE_NON_FINITE: Final = re.compile(rb"\xcb[\x7f\xff][\xf0-\xff]")


def _json_encoder(msgspec: Any, *, text: bool) -> Callable[[Any], bytes | str]:
    """What makes JSON of a message, and refuses numbers that JSON has not.

    For these msgspec writes null, and has no setting for it. So where a null is, it may be one of
    them. MessagePack, made faster than anything could look through the message, tells in nearly all
    cases that it is none.
    """
    to_json = msgspec.json.Encoder().encode
    to_msgpack = msgspec.msgpack.Encoder().encode

    def check(message: Any) -> None:
        try:
            if not _MAY_BE_NON_FINITE.search(to_msgpack(message)):
                return
        except OverflowError:  # JSON takes larger whole numbers
            pass
        # Of all that can be in JSON, only msgspec.Raw is left to the hook: it is JSON already.
        left = [msgspec.to_builtins(message, enc_hook=lambda _: None)]
        while left:
            value = left.pop()
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"JSON has no number {value}")
            if isinstance(value, dict):
                left += value.values()  # a key is text: "nan" is as good as any
            elif isinstance(value, list | tuple):
                left += value

    def encode_bytes(message: Any) -> bytes:
        data: bytes = to_json(message)
        if data.find(b"null") >= 0:  # half the time of `in`
            check(message)
        return data

    def encode_text(message: Any) -> str:
        data: str = to_json(message).decode()
        if "null" in data:
            check(message)
        return data

    return encode_text if text else encode_bytes


def sends_text(codec: Codec[Any, Any]) -> bool:
    """Whether messages of ``codec`` are str rather than bytes, as its class declares.

    Raises:
      TypeError: if it does not. To try would not tell: a writer may refuse what it is tried with,
          or take anything and send something else.
    """
    if isinstance(codec, Mapped) and codec.encode is None:
        return sends_text(codec.inner)
    declared = (
        base
        for cls in type(codec).__mro__
        for base in vars(cls).get("__orig_bases__", ())
        if get_origin(base) is Codec
    )
    sent = get_args(next(declared, Codec[Any, Any]))[0]
    sent = get_args(sent) if get_origin(sent) in (Union, types.UnionType) else (sent,)
    if bytes in sent:
        return False
    if str in sent:
        return True
    name = "map(encode=...)" if isinstance(codec, Mapped) else type(codec).__name__
    raise TypeError(
        f"json() cannot see what {name} sends: give it text=True if that is str, text=False if it "
        "is bytes"
    )
