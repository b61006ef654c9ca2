"""Every codec of the package, with settings as a fuzzer chooses them."""

from __future__ import annotations

import enum
import struct
import zlib
from collections.abc import Callable, Iterable
from typing import Any, Final

import attrs
import msgspec

from trio_bytetalk import (
    COBS,
    SLIP,
    Chunks,
    Codec,
    ContentLength,
    Delimited,
    EncodeError,
    FixedSize,
    LengthPrefixed,
    Lines,
    LinesWriter,
    Netstring,
    OctetCounted,
    Structs,
    VarintPrefixed,
)
from trio_bytetalk._compression import Compressed
from trio_bytetalk._messages import Mapped, Text, Typed

from .choices import Choices
from .driving import joined

AnyCodec = Codec[Any, Any]

# Around the sizes that a fuzzer's messages have, where it takes a few bytes to be too large; and
# the default, which they never are.
_SIZES: Final = (2**20, 0, 1, 2, 3, 5, 8, 20, 60, 127, 128, 300)


def _max_size(choices: Choices, least: int = 0) -> int:
    return max(choices.one_of(_SIZES), least)


def _length_prefixed(choices: Choices) -> AnyCodec:
    size = 1 + choices.below(8)
    signed = choices.flag()
    offset = choices.one_of((0, 1, 2, 5))
    kept = choices.below(3)  # the header only, everything, nothing
    strip = (None, 0, offset + size)[kept]
    adjustment = choices.one_of((0, 0, 0, -4, -2, -1, 1, 2, 4))  # 0 has a reader of its own
    return LengthPrefixed(
        size,
        choices.one_of(("big", "little")),
        _max_size(choices, (offset, offset + size, 0)[kept]),
        signed=signed,
        offset=offset,
        adjustment=adjustment,
        strip=strip,
        header=b"\xffMAGI"[:offset] if kept == 2 else b"",
    )


_DELIMITERS: Final = (
    (b"\0",),
    (b"\n",),
    (b"--",),
    (b"\r\n",),
    (b"aab",),
    (b"\r\n", b"\n"),
    (b";", b"\r\n", b"--"),
    (b"aa", b"c"),
    (b"abab", b"bac"),
)


def _delimited(choices: Choices) -> AnyCodec:
    return Delimited(choices.one_of(_DELIMITERS), keep=choices.flag(), max_size=_max_size(choices))


def _lines(choices: Choices) -> AnyCodec:
    return Lines(
        encoding=choices.one_of(("utf-8", "latin-1", "ascii", "gb18030", "cp1252")),
        newline=choices.one_of((b"\n", b"\r\n")),
        max_size=_max_size(choices),
    )


def _content_length(choices: Choices) -> AnyCodec:
    return ContentLength(
        _max_size(choices), max_header_size=choices.one_of((4096, 40, 41, 60, 100))
    )


_FORMATS: Final = ("<IhhB", ">Hd4s?", "B", "<x3sx", ">q", "<5p2s", "<fe", "3x", "@bi", "<12s0sH")


# What byte stands for a codec is its place in this table. An addition belongs at the end, or the
# corpus means other codecs.
FAMILIES: Final[dict[type[AnyCodec], Callable[[Choices], AnyCodec]]] = {
    LengthPrefixed: _length_prefixed,
    Delimited: _delimited,
    Lines: _lines,
    ContentLength: _content_length,
    Netstring: lambda choices: Netstring(_max_size(choices)),
    OctetCounted: lambda choices: OctetCounted(_max_size(choices, 1)),
    VarintPrefixed: lambda choices: VarintPrefixed(_max_size(choices)),
    FixedSize: lambda choices: FixedSize(1 + choices.below(20)),
    Structs: lambda choices: Structs(choices.one_of(_FORMATS)),
    COBS: lambda choices: COBS(_max_size(choices)),
    SLIP: lambda choices: SLIP(_max_size(choices, 1)),
    Chunks: lambda choices: Chunks(),
    Text: lambda choices: framed(choices).text(
        choices.one_of(("utf-8", "latin-1", "utf-16", "utf-16-be", "utf-32", "utf-8-sig", "cp1252"))
    ),
    Typed: lambda choices: _typed(choices),
    Mapped: lambda choices: _mapped(choices),
    Compressed: lambda choices: FAMILIES[choices.one_of(_PLAIN)](choices).compressed(
        choices.one_of(("zlib", "gzip", "deflate")),
        level=choices.below(10),
        max_size=_max_size(choices),
    ),
}

# Those with frames of bytes, on top of which the others are.
_PLAIN: Final[tuple[type[AnyCodec], ...]] = (
    LengthPrefixed,
    Delimited,
    Netstring,
    VarintPrefixed,
    COBS,
    FixedSize,
)
_FRAMED: Final[tuple[type[AnyCodec], ...]] = (*_PLAIN, Compressed)


def any_codec(choices: Choices) -> AnyCodec:
    return choices.one_of([*FAMILIES.values()])(choices)


def framed(choices: Choices) -> Codec[bytes, bytes]:
    """A codec whose messages are bytes."""
    return FAMILIES[choices.one_of(_FRAMED)](choices)


class Colour(enum.Enum):
    RED = "red"
    GREEN = "green"


class Order(msgspec.Struct, tag=True):
    item: str
    count: int = 1
    colour: Colour = Colour.RED
    notes: list[str | None] = []


class Greeting(msgspec.Struct, tag=True):
    name: str
    at: float


@attrs.frozen
class Point:
    x: int
    y: float | None = None


_TYPES: Final[tuple[Any, ...]] = (
    Any,
    Order | Greeting,
    dict[str, int],
    list[Point],
    tuple[int, bytes, float],
    set[str] | None,
)


def _typed(choices: Choices) -> AnyCodec:
    type_ = choices.one_of(_TYPES)
    if choices.flag():
        return framed(choices).msgpack(type_)
    if choices.flag():
        return _lines(choices).json(type_)
    return framed(choices).json(type_)


def _reversed(message: bytes) -> bytes:
    return message[::-1]


def _number(message: bytes) -> int:
    return int(message)


def _digits(number: int) -> bytes:
    return b"%d" % number


def _to_struct(message: bytes) -> tuple[Any, ...]:
    return struct.unpack(">HB", message)


def _from_struct(message: tuple[Any, ...]) -> bytes:
    return struct.pack(">HB", *message)


def _mapped(choices: Choices) -> AnyCodec:
    way = choices.below(4)
    if way == 0:
        return _lines(choices).map(decode=str.split, encode=" ".join)
    if way == 1:
        return framed(choices).map(decode=_reversed, encode=_reversed)
    if way == 2:
        return framed(choices).map(decode=_number, encode=_digits)
    return framed(choices).map(decode=_to_struct, encode=_from_struct, errors=struct.error)


def layers(codec: AnyCodec) -> list[AnyCodec]:
    """The codec, the one that it is on top of, and so on."""
    found = [codec]
    while isinstance(found[-1], Compressed | Mapped | Text | Typed):
        found.append(found[-1].inner)
    return found


_WINDOW_BITS: Final = {"zlib": 15, "gzip": 31, "deflate": -15}


def frames(codec: AnyCodec, contents: Iterable[bytes]) -> bytes:
    """What a peer sends whose frames are right and whose contents are anything."""
    *outer, innermost = layers(codec)
    writer = innermost.writer()
    stream = b""
    for content in contents:
        for layer in outer:
            if isinstance(layer, Compressed):
                packer = zlib.compressobj(1, zlib.DEFLATED, _WINDOW_BITS[layer.method])
                content = packer.compress(content) + packer.flush()
        stream += _frame(writer, content)
    return stream


def _frame(writer: Any, content: bytes) -> bytes:
    if isinstance(writer, LinesWriter):
        return content + writer.newline
    try:
        return joined(writer.encode(content))
    except EncodeError:  # it cannot be sent so, but may be all the same
        return content
