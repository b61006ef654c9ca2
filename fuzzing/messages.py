"""Any messages, to the writer of any codec with any settings.

Each is an `EncodeError`, or its frame is read as that message and no other; and a refused one
leaves no trace in what is sent after it.
"""

from __future__ import annotations

from typing import Any

import msgspec

from trio_bytetalk import Chunks, Codec, EncodeError, Structs
from trio_bytetalk._messages import Mapped, Typed

from .choices import Choices
from .codecs import any_codec, layers
from .driving import Refused, joined, read, same


def check(data: bytes) -> None:
    """Raise for what must not be. The bytes are codec and settings, then messages."""
    choices = Choices(data)
    check_writer(any_codec(choices), choices)


def check_writer(codec: Codec[Any, Any], choices: Choices) -> None:
    writer = codec.writer()
    sent, frames = [], []
    while choices.more:
        message = _message(choices)
        try:
            frame = writer.encode(message)
        except EncodeError:
            continue
        sent.append(message)
        frames.append(joined(frame))
    came = read(codec.reader(), frames)
    together = read(codec.reader(), [b"".join(frames)], ahead=100)
    if any(isinstance(layer, Chunks) for layer in layers(codec)):
        assert b"".join(together) == b"".join(frames)
    else:
        assert same(came, together)
        assert len(came) == len(sent), f"{came!r} came of {sent!r}"
        for received, message in zip(came, sent, strict=True):
            assert _as_sent(codec, received, message), f"{received!r} came of {message!r}"


def _message(choices: Choices) -> Any:
    """Bytes mostly; text, and whatever MessagePack can say, for those that send these."""
    kind = choices.below(8)
    data = choices.take(choices.below(256))
    if kind == 1:
        return data * 5
    if kind in (2, 3):
        return data.decode("utf-8", "surrogateescape" if kind == 2 else "replace")
    if kind == 4:
        return data.decode("utf-16-le", "surrogatepass") if len(data) % 2 == 0 else ""
    if kind in (5, 6):
        try:
            message = msgspec.msgpack.decode(data)
        except (msgspec.DecodeError, ValueError):
            return None
        return tuple(message) if kind == 6 and isinstance(message, list) else message
    return bytearray(data) if kind == 7 else data


def _as_sent(codec: Codec[Any, Any], received: Any, message: Any) -> bool:
    """Whether that is what should be received, as far as anything is promised of it."""
    if isinstance(codec, Typed | Mapped):  # it need not be of the type that is received
        return True
    if isinstance(codec, Structs):  # shorter bytes are filled up, floats rounded
        return type(received) is tuple and len(received) == len(message)
    return type(received) is not Refused and same(received, message)
