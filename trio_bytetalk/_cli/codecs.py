r"""Codecs by name: ``length:2,little``, ``lines``, ``json+netstring``, ``mymodule:codec``.

The grammar::

    codec   = *(layer "+") framing         ; the leftmost is what messages are
    framing = name [":" item *("," item)]  ; or module ":" object
    layer   = name [":" item *("," item)]
    item    = argument                     ; the one that needs no key; it comes first
            | key "=" value
            | flag                         ; a key that is true or false; "little", "big"

Known names win: ``lines:latin-1`` is never the object ``latin-1`` of a module ``lines``.
"""

from __future__ import annotations

import difflib
import importlib
import os
import re
import sys
from collections.abc import Callable
from typing import Any, Final

import attrs
import click
from click.shell_completion import CompletionItem

from .._chunks import Chunks
from .._codec import Codec
from .._compression import Compressed
from .._content_length import ContentLength
from .._decimal_prefixed import Netstring, OctetCounted
from .._delimited import Delimited, Lines
from .._errors import in_words
from .._fixed_size import FixedSize, Structs
from .._length_prefixed import LengthPrefixed
from .._messages import Text
from .._stuffed import COBS, SLIP
from .._varint_prefixed import VarintPrefixed
from .escapes import unescaped

DEFAULT: Final = "length:4"

# Sizes may be written with these; a K is 1024.
_UNITS: Final = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30}
_NUMBER: Final = re.compile(r"([+-]?[0-9]+)([kmg]?)(?:ib?|b)?", re.IGNORECASE | re.ASCII)

# What may have an equals sign in it: "=IH" is a format, too.
_WITH_EQUALS: Final = ("delimiter", "format")

_MODULE: Final = re.compile(r"\w+(\.\w+)*")

_WHERE: Final = "'bytetalk codecs' lists them"


@attrs.frozen
class Framing:
    """How bytes are cut into messages."""

    codec: type[Any]
    summary: str
    argument: str | None = None  # the setting that needs no key
    needs_argument: bool = False
    example: str | None = None  # of one that is needed


@attrs.frozen
class Layer:
    """What frames are made into."""

    codec: type[Any] | None  # whose settings are the layer's
    summary: str
    argument: str | None = None


FRAMINGS: Final = {
    "length": Framing(LengthPrefixed, "a length of 4 bytes, or 1 to 8, in front", "size"),
    "lines": Framing(Lines, "lines of text", "encoding"),
    "delimiter": Framing(Delimited, "bytes up to a delimiter", "delimiter", True, r"\0"),
    "netstring": Framing(Netstring, "as in 5:hello,", "max_size"),
    "varint": Framing(VarintPrefixed, "a protobuf varint in front", "max_size"),
    "octet-counted": Framing(OctetCounted, "a decimal length and a space in front", "max_size"),
    "fixed": Framing(FixedSize, "so many bytes each", "size", True, "16"),
    "struct": Framing(Structs, "records, as Python's struct packs them", "format", True, "!IH"),
    "content-length": Framing(ContentLength, "headers in front, as language servers", "max_size"),
    "cobs": Framing(COBS, "no zero bytes but at the ends, for serial links", "max_size"),
    "slip": Framing(SLIP, "RFC 1055, for serial links", "max_size"),
    "chunks": Framing(Chunks, "no frames: bytes as they come"),
}

LAYERS: Final = {
    "json": Layer(None, "JSON, as one value each"),
    "msgpack": Layer(None, "MessagePack, as one value each"),
    "text": Layer(Text, "text in UTF-8, or in another encoding", "encoding"),
    "compressed": Layer(Compressed, "compressed by zlib, gzip or deflate", "method"),
}


def parse_codec(spec: str) -> Codec[Any, Any]:
    """The codec that ``spec`` names, by the grammar above.

    Raises:
      ValueError: for what names none; on one line, with what was expected.
    """
    *layers, framing = spec.split("+")
    codec = _framing(framing)
    for layer in reversed(layers):
        codec = _layered(layer, codec)
    return codec


def _framing(part: str) -> Codec[Any, Any]:
    name, colon, rest = part.partition(":")
    if name in FRAMINGS:
        framing = FRAMINGS[name]
        settings = _settings(part, framing.codec, framing.argument)
        if framing.needs_argument and framing.argument not in settings:
            example = f"{name}:{framing.example}"
            raise ValueError(f"{name} needs its {framing.argument}, as in {example}")
        return _made(part, lambda: framing.codec(**settings))
    if name in LAYERS:
        raise ValueError(f"{name} says what is in the frames, not how they are cut: {name}+length")
    if colon and rest and _MODULE.fullmatch(name):
        return _own_codec(name, rest)
    raise ValueError(f"there is no codec {name!r}{_nearest(name, FRAMINGS)}; {_WHERE}")


def _layered(part: str, inner: Codec[Any, Any]) -> Codec[Any, Any]:
    name = part.partition(":")[0]
    if name in FRAMINGS:
        raise ValueError(f"{name} cuts bytes into messages, so it comes last: json+{name}")
    if name not in LAYERS:
        raise ValueError(f"there is no layer {name!r}{_nearest(name, LAYERS)}; {_WHERE}")
    layer = LAYERS[name]
    settings = _settings(part, layer.codec, layer.argument)
    return _made(part, lambda: _layer(inner, name, settings))


def _layer(inner: Codec[Any, Any], name: str, settings: dict[str, Any]) -> Codec[Any, Any]:
    layered: Codec[Any, Any] = getattr(inner, name)(**settings)
    return layered


def _made(part: str, make: Callable[[], Codec[Any, Any]]) -> Codec[Any, Any]:
    try:
        return make()
    except (TypeError, ValueError, ModuleNotFoundError) as error:
        raise ValueError(f"{part}: {in_words(error, 300)}") from error


def _settings(part: str, codec: type[Any] | None, argument: str | None) -> dict[str, Any]:
    """The settings behind the colon, of ``codec``."""
    name, colon, rest = part.partition(":")
    fields = {} if codec is None else _fields(codec)
    settings: dict[str, Any] = {}
    for item in rest.split(",") if colon else ():
        key, equals, value = item.partition("=")
        key = key.replace("-", "_")
        if equals and key in fields:
            pass
        elif item in ("big", "little") and "byteorder" in fields:
            key, value = "byteorder", item
        elif key in fields and fields[key] == "bool":
            value = "yes"
        elif not settings and argument is not None and (not equals or argument in _WITH_EQUALS):
            key, value = argument, item
        else:
            known = ", ".join(fields) if fields else "none"
            raise ValueError(
                f"{name} has no setting {item!r}{_nearest(key, fields)}; it has {known}"
            )
        if key in settings:
            raise ValueError(f"{part}: {key} is given twice")
        settings[key] = _value(name, key, fields[key], value)
    return settings


def _fields(codec: type[Any]) -> dict[str, str]:
    """The settings of a codec, and of what type they are."""
    # An inner codec, and what an instance has for itself, cannot be given.
    return {
        field.name: str(field.type)
        for field in attrs.fields(codec)
        if field.init and field.name != "inner"
    }


def _value(name: str, key: str, kind: str, value: str) -> Any:
    if kind in ("int", "int | None"):
        match = _NUMBER.fullmatch(value)
        if match is None:
            raise ValueError(f"{name}: {key} is a whole number, such as 4 or 16M, not {value!r}")
        return int(match[1]) * _UNITS[match[2].lower()]
    if kind == "bool":
        if value not in ("yes", "no"):
            raise ValueError(f"{name}: {key} is yes or no, not {value!r}")
        return value == "yes"
    if kind == "bytes":
        return _escaped(name, key, value)
    if kind == "Delimiter":
        return [_escaped(name, key, each) for each in value.split("|")]
    return value


def _escaped(name: str, key: str, value: str) -> bytes:
    try:
        return unescaped(value)
    except ValueError as error:
        raise ValueError(f"{name}: {key}: {error}") from None


def _own_codec(module: str, path: str) -> Codec[Any, Any]:
    """An object of a module, or what it gives when it is called."""
    here = os.getcwd()
    if here not in sys.path:  # as "python -m" has it
        sys.path.insert(0, here)
    try:
        thing: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise ValueError(f"{module} cannot be imported: {error}") from error
        raise ValueError(
            f"there is neither a codec nor a module {module!r}"
            f"{_nearest(module, FRAMINGS)}; {_WHERE}"
        ) from None
    except Exception as error:
        raise ValueError(f"{module} cannot be imported: {in_words(error, 300)}") from error
    try:
        for name in path.split("."):
            thing = getattr(thing, name)
    except AttributeError:
        raise ValueError(f"{module} has no {path}{_nearest(path, dir(thing))}") from None
    if not isinstance(thing, Codec) and callable(thing):
        try:
            thing = thing()
        except Exception as error:
            raise ValueError(f"{module}:{path}() fails: {in_words(error, 300)}") from error
    if not isinstance(thing, Codec):
        raise ValueError(
            f"{module}:{path} must be a trio_bytetalk.Codec, or give one when it is called "
            f"without arguments; it is a {type(thing).__name__}"
        )
    return thing


def _nearest(name: str, names: Any) -> str:
    near = difflib.get_close_matches(name, names, 1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def overview() -> str:
    """The grammar, and a table of all codecs with their settings."""
    lines = [
        "A codec says how messages are framed: NAME, or NAME:SETTING,SETTING",
        "What is in the frames comes in front: json+lines, text+compressed+length:2,little",
        "",
        "Framings:",
    ]
    for name, framing in FRAMINGS.items():
        lines += _entry(name, framing.summary, framing.codec, framing.argument)
    lines += ["", "Layers:"]
    for name, layer in LAYERS.items():
        lines += _entry(f"{name}+", layer.summary, layer.codec, layer.argument)
    lines += [
        "",
        "MODULE:OBJECT is a codec of your own, also from the current directory: a",
        "trio_bytetalk.Codec, or what gives one when it is called. The names above come first.",
        r"Sizes may end with K, M or G. Bytes are text with \n, \r, \t, \0, \\ and \xNN;",
        r"write \x2b for a plus sign and \x2c for a comma. Several delimiters: \r\n|\n",
    ]
    return "\n".join(lines)


def _entry(name: str, summary: str, codec: type[Any] | None, argument: str | None) -> list[str]:
    fields = [] if codec is None else list(_fields(codec))
    lines = [f"  {name:<15} {summary}"]
    if fields:
        first = [f"[{argument}=]"] if argument in fields else []
        rest = [f"{field}=" for field in fields if field != argument]
        lines.append(f"  {'':<15}   {' '.join(first + rest)}")
    return lines


class CodecType(click.ParamType[Codec[Any, Any]]):
    """A codec as a parameter of a command."""

    name = "codec"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Codec[Any, Any]:
        if isinstance(value, Codec):
            return value
        try:
            return parse_codec(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        before, plus, part = incomplete.rpartition("+")
        front = before + plus
        return [
            *(
                CompletionItem(front + name, help=framing.summary)
                for name, framing in FRAMINGS.items()
                if name.startswith(part)
            ),
            *(
                CompletionItem(f"{front}{name}+", help=layer.summary)
                for name, layer in LAYERS.items()
                if name.startswith(part)
            ),
        ]


CODEC = CodecType()

codec_option = click.option(
    "--codec",
    "-c",
    type=CODEC,
    default=DEFAULT,
    show_default=True,
    metavar="CODEC",
    help="How messages are framed: length:2,little, lines, json+lines, ... See 'bytetalk codecs'.",
)
