"""Any bytes, to the reader of any codec with any settings, cut in any way.

The same messages and the same errors must come of them however they are cut and decoded, nothing
but `ProtocolError` may be raised, and work and memory must be in proportion to the bytes.
"""

from __future__ import annotations

import tracemalloc
from typing import Any

from trio_bytetalk import (
    Chunks,
    Codec,
    Delimited,
    EncodeError,
    Lines,
)
from trio_bytetalk._compression import Compressed
from trio_bytetalk._watched_buffer import WatchedBuffer

from .choices import Choices
from .codecs import any_codec, frames, layers
from .driving import Refused, joined, pieces, read, same

# As in check_codec: a look for the end, a check, a copy or two; and with each call a header anew.
_TOUCHES_PER_BYTE = 8
_TOUCHES_PER_CALL = 128

# A message or an error of one byte is an object, and in a list; zlib's window, and what else does
# not depend on how much comes.
_MEMORY_PER_BYTE = 200
_MEMORY_AT_ONCE = 128 * 1024


def check(data: bytes) -> None:
    """Raise for what must not be.

    The bytes are, in this order: codec and settings, how to cut, what to put into right frames, and
    the rest as it is.
    """
    choices = Choices(data)
    check_reader(any_codec(choices), choices)


def check_reader(codec: Codec[Any, Any], choices: Choices) -> None:
    cutting = Choices(choices.take(1 + choices.below(16)))
    ahead = choices.one_of((1, 2, 3, 100))
    contents = [choices.take(choices.below(256)) for _ in range(choices.below(8))]
    stream = frames(codec, contents) + choices.rest()

    whole = read(codec.reader(), [stream])
    cut = pieces(stream, cutting)
    for options in ({}, {"patient": True}, {"ahead": ahead}, {"ahead": ahead, "compact": True}):
        came = read(codec.reader(), cut, **options)
        if isinstance(codec, Chunks):
            assert b"".join(came) == b"".join(whole) == stream
        else:
            assert same(came, whole), f"{came!r} came of {cut!r}, and {whole!r} of it as a whole"
    came = read(codec.reader(), [stream], ahead=ahead)
    assert same(came, whole), f"{came!r} came of {stream!r} decoded ahead, and {whole!r} before"

    _check_work(codec, stream, cut)
    _check_memory(codec, stream, cut)
    for message in whole:
        if type(message) is not Refused:
            _check_round_trip(codec, message)


def _check_work(codec: Codec[Any, Any], stream: bytes, cut: list[bytes]) -> None:
    """That each byte is looked at a few times, however many pieces bring it."""
    buffer = WatchedBuffer()
    came = read(codec.reader(), cut, buffer=buffer)
    allowed = _TOUCHES_PER_BYTE * len(stream) + _TOUCHES_PER_CALL * (len(cut) + len(came) + 2)
    assert buffer.touched <= allowed, (
        f"{buffer.touched} bytes were looked at or copied for {len(stream)} in {len(cut)} pieces"
    )


def _check_memory(codec: Codec[Any, Any], stream: bytes, cut: list[bytes]) -> None:
    """That memory is in proportion to the bytes, whatever length they announce."""
    tracemalloc.start()
    try:
        came = read(codec.reader(), cut)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    allowed = _MEMORY_PER_BYTE * len(stream) + _MEMORY_AT_ONCE
    for layer in layers(codec):
        if isinstance(layer, Compressed):  # what is decompressed, and found too large
            allowed += 2 * (sum(map(len, _bytes_in(came))) + layer.max_size)
    assert peak <= allowed, f"{peak} bytes of memory for {len(stream)} received"


def _bytes_in(came: list[Any]) -> list[bytes]:
    contents = [each.frame if isinstance(each, Refused) else each for each in came]
    return [frame for frame in contents if isinstance(frame, bytes)]


def _may_refuse(codec: Codec[Any, Any], message: Any) -> bool:
    """Whether a codec need not be able to send what it has received."""
    if isinstance(codec, Lines):
        # It may end with a carriage return of its own, and another encoding may make it longer.
        return message.endswith("\r") or codec.encoding != "utf-8"
    if isinstance(codec, Delimited):
        # Sent with the first delimiter, which may go along with what stood before another.
        return isinstance(codec.delimiter, tuple)
    return len(layers(codec)) > 1  # it may be longer, or have what the frames cannot


def _check_round_trip(codec: Codec[Any, Any], message: Any) -> None:
    """That what was received can be sent, and arrives as what it was."""
    try:
        frame = codec.writer().encode(message)
    except EncodeError:
        assert _may_refuse(codec, message), f"{message!r} was received and cannot be sent"
        return
    sent = joined(frame)
    came = read(codec.reader(), [sent])
    assert same(came, [message]), f"{came!r} came of the frame {sent!r} of {message!r}"
