r"""Codecs by name: ``length:2,little``, ``lines``, ``json+netstring``, ``mymodule:codec``.

The grammar::

    codec   = *(layer "+") framing         ; the leftmost is what messages are
    framing = name [":" item *("," item)]  ; or module ":" object
    layer   = name [":" item *("," item)]
    item    = argument                     ; of the setting that needs no key
            | key "=" value
            | flag                         ; a key that is yes or no; "little", "big"

Known names win: ``lines:latin-1`` is never the object ``latin-1`` of a module ``lines``.
"""

from __future__ import annotations

import difflib
import importlib
import os
import re
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar

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
from .escapes import printable, unescaped
from .messages import Kind, kind_of
from .quantities import whole_number

DEFAULT: Final = "length:4"

_FunctionT = TypeVar("_FunctionT", bound=Callable[..., Any])

# The arguments that may have an equals sign in them: "=IH" is a format, too.
_WITH_EQUALS: Final = ("delimiter", "format")

_MODULE: Final = re.compile(r"\w+(\.\w+)*")

# How much of an error is shown.
_SHOWN: Final = 300

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
    of_text: bool = False  # frames of text will do as well as bytes
    example: str = "length"  # of what it stands on


FRAMINGS: Final[dict[str, Framing]] = {
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

LAYERS: Final[dict[str, Layer]] = {
    "json": Layer(None, "JSON, as one value each", of_text=True, example="lines"),
    "msgpack": Layer(None, "MessagePack, as one value each"),
    "text": Layer(Text, "text in UTF-8, or in another encoding", "encoding"),
    "compressed": Layer(Compressed, "compressed by zlib, gzip or deflate", "method"),
}


def parse_codec(spec: str) -> Codec[Any, Any]:
    """The codec that ``spec`` names, by the grammar above.

    A ``module:object`` is imported, and may do what it likes then.

    Raises:
      ValueError: for what names none; on one line, with what was expected.
    """
    try:
        return _parsed(spec)
    except ValueError as error:
        raise ValueError(printable(str(error))) from error


def _parsed(spec: str) -> Codec[Any, Any]:
    *layers, below = spec.split("+")
    codec = _framing(below, spec)
    for layer in reversed(layers):
        codec = _layered(layer, codec, below)
        below = layer
    return codec


def _framing(part: str, spec: str) -> Codec[Any, Any]:
    name, colon, rest = part.partition(":")
    if name in FRAMINGS:
        framing = FRAMINGS[name]
        settings = _settings(part, framing.codec, framing.argument)
        if framing.needs_argument and framing.argument not in settings:
            example = f"{name}:{framing.example}"
            raise ValueError(f"{name} needs its {framing.argument}, as in {example}")
        return _made(part, lambda: framing.codec(**settings))
    if name in LAYERS:
        example = f"{name}+{LAYERS[name].example}"
        raise ValueError(f"{name} says what is in the frames, not how they are cut: {example}")
    if colon and _MODULE.fullmatch(name):
        return _own_codec(name, rest)
    if not name:
        raise ValueError(f"the name of a framing is missing in {spec!r}; {_WHERE}")
    raise ValueError(f"there is no codec {name!r}{_nearest(name, FRAMINGS)}; {_WHERE}")


def _layered(part: str, inner: Codec[Any, Any], below: str) -> Codec[Any, Any]:
    name = part.partition(":")[0]
    if name in FRAMINGS:
        raise ValueError(f"{part} and {below} both cut bytes into messages: one of them is enough")
    if name not in LAYERS:
        raise ValueError(f"there is no layer {name!r}{_nearest(name, LAYERS)}; {_WHERE}")
    layer = LAYERS[name]
    settings = _settings(part, layer.codec, layer.argument)
    kind = kind_of(inner)
    if not (kind is Kind.BYTES or (kind is Kind.TEXT and layer.of_text)):
        needed = "bytes or text" if layer.of_text else "bytes"
        given = "text" if kind is Kind.TEXT else "neither, as far as its class declares"
        raise ValueError(f"{name} is put into frames of {needed}, and {below} has {given}")
    return _made(part, lambda: _layer(inner, name, settings))


def _layer(inner: Codec[Any, Any], name: str, settings: dict[str, Any]) -> Codec[Any, Any]:
    layered: Codec[Any, Any] = getattr(inner, name)(**settings)
    return layered


def _made(part: str, make: Callable[[], Codec[Any, Any]]) -> Codec[Any, Any]:
    try:
        return make()
    except (ValueError, ModuleNotFoundError) as error:  # the latter names an extra
        raise ValueError(f"{part}: {in_words(error, _SHOWN)}") from error


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
        elif argument not in {None, *settings} and (not equals or argument in _WITH_EQUALS):
            key, value = str(argument), item
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
        try:
            return whole_number(value)
        except ValueError as error:
            raise ValueError(f"{name}: {key} is {error}") from None
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
    _look_here_first()
    try:
        thing: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module}.".startswith(f"{error.name}."):
            raise ValueError(
                f"there is neither a codec nor a module {module!r}"
                f"{_nearest(module, FRAMINGS)}; {_WHERE}"
            ) from None
        raise ValueError(f"{module} cannot be imported: {_what_happened(error)}") from error
    except (Exception, SystemExit) as error:
        raise ValueError(f"{module} cannot be imported: {_what_happened(error)}") from error
    if not path:
        raise ValueError(f"{module}: needs the name of a codec in the module, as in {module}:codec")
    for name in path.split("."):
        try:
            thing = getattr(thing, name)
        except AttributeError:
            raise ValueError(f"{module} has no {path!r}{_nearest(name, dir(thing))}") from None
    if not isinstance(thing, Codec) and callable(thing):
        try:
            thing = thing()
        except (Exception, SystemExit) as error:
            raise ValueError(f"{module}:{path}() fails: {_what_happened(error)}") from error
    if not isinstance(thing, Codec):
        raise ValueError(
            f"{module}:{path} must be a trio_bytetalk.Codec, or return one when it is called "
            f"without arguments; it is of the type {type(thing).__name__}"
        )
    return thing


def _look_here_first() -> None:
    """Have the current directory in front of ``sys.path``, as ``python -m`` has it."""
    try:
        here = os.getcwd()
    except FileNotFoundError:  # it has been removed
        return
    if here not in sys.path:
        sys.path.insert(0, here)


def _what_happened(error: BaseException) -> str:
    """An error in code of the user's, and where it was."""
    text = f"{type(error).__name__}: {in_words(error, _SHOWN)}"
    frame = traceback.extract_tb(error.__traceback__)[-1]
    if frame.filename == __file__ or "importlib" in frame.filename:
        return text  # it came out of no code of the user's
    return f"{text} ({os.path.basename(frame.filename)}, line {frame.lineno})"


def _nearest(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name.lower(), names, 1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def overview() -> str:
    """The grammar, and a table of all codecs with their settings."""
    lines = [
        "A codec says how messages are framed: NAME, or NAME:SETTING,SETTING",
        "What is in the frames comes in front: json+lines, text+compressed+length:2",
        "",
        "Framings, and their settings:",
    ]
    for name, framing in FRAMINGS.items():
        needed = f"; as in {name}:{framing.example}" if framing.needs_argument else ""
        lines += _entry(name, framing.summary + needed, framing.codec, framing.argument)
    lines += ["", "Layers, and their settings:"]
    for name, layer in LAYERS.items():
        lines += _entry(f"{name}+", layer.summary, layer.codec, layer.argument)
    lines += [
        "",
        "A setting is KEY=VALUE. The first one of each needs no key: length:2 is",
        "length:size=2. What is yes or no needs no value: keep is keep=yes. Sizes may",
        'end with K, M or G, and "little" stands for byteorder=little.',
        r"Bytes are text with \n, \r, \t, \0, \\ and \xNN; write \x2b for a plus sign and",
        r"\x2c for a comma. Several delimiters: '\r\n|\n'",
        "",
        "MODULE:OBJECT is a codec of your own, also from the current directory: a",
        "trio_bytetalk.Codec, or what returns one when it is called.",
    ]
    return "\n".join(lines)


def _entry(name: str, summary: str, codec: type[Any] | None, argument: str | None) -> list[str]:
    lines = [f"  {name:<15} {summary}"]
    fields = [] if codec is None else sorted(_fields(codec), key=lambda field: field != argument)
    if fields:
        settings = ", ".join(fields)
        lines += textwrap.wrap(settings, 80, initial_indent=" " * 20, subsequent_indent=" " * 20)
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


class NamedCodecType(CodecType):
    """The same with its name in front: a pair."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value, super().convert(value, param, ctx)


CODEC = CodecType()
NAMED_CODEC = NamedCodecType()


def _codec_option(kind: CodecType) -> Callable[[_FunctionT], _FunctionT]:
    return click.option(
        "--codec",
        "-c",
        type=kind,
        default=DEFAULT,
        show_default=True,
        metavar="CODEC",
        help="How messages are framed: length:2,little, lines, json+lines, ... "
        "See 'bytetalk codecs'.",
    )


codec_option = _codec_option(CODEC)
named_codec_option = _codec_option(NAMED_CODEC)
