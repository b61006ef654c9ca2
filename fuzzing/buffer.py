"""Any calls of a `ReceiveBuffer`, beside a model of it: all of its bytes in one piece."""

from __future__ import annotations

import re
from typing import Final

from trio_bytetalk import ReceiveBuffer

from .choices import Choices

# What is looked for: one at a time, or several of which none ends within another.
_SOUGHT: Final = (b"\0", b"\r\n", b"aab", b"abab")
_PATTERNS: Final = tuple(
    (re.compile(pattern), longest)
    for pattern, longest in ((rb"\r\n|\n", 2), (rb"[^\0]\0", 2), (rb"aab|c", 3))
)

_CHUNK: Final = b"ab\0aab\r\nc" * 600  # over what is kept as a chunk of its own


def check(data: bytes) -> None:
    """Raise for what must not be. Each byte is a call, and the next ones its arguments."""
    choices = Choices(data)
    buffer = ReceiveBuffer()
    model = b""
    while choices.more:
        call = choices.below(10)
        wanted = buffer.wanted = 0
        if call == 0:
            chunk = choices.take(choices.below(256))
            buffer.feed(chunk)
            model += chunk
        elif call == 1:  # as a connection may, from memory that it uses again
            chunk = _CHUNK[choices.below(8) :][: choices.below(256) * 22]
            reused = bytearray(chunk)
            buffer.feed(memoryview(reused) if choices.flag() else reused)
            reused[:] = bytes(len(reused))
            model += chunk
        elif call == 2:
            size, offset = choices.below(256), choices.below(256)
            there = offset + size <= len(model)
            expected = model[offset : offset + size] if there else None
            assert buffer.peek(size, offset) == expected
            wanted = 0 if there else offset + size
        elif call == 3:
            size, skip = choices.below(256), choices.below(256)
            there = skip + size <= len(model)
            taken = buffer.take(size, skip=skip)
            assert taken == (model[skip : skip + size] if there else None)
            if there:
                assert type(taken) is bytes
                model = model[skip + size :]
            else:
                wanted = skip + size
        elif call == 4:
            size = choices.below(256)
            buffer.skip(size)
            model = model[size:]
        elif call == 5:
            sought = choices.one_of(_SOUGHT)
            place = model.find(sought)
            assert buffer.find(sought) == place
            wanted = len(model) + 1 if place < 0 else 0
        elif call == 6:
            pattern, longest = choices.one_of(_PATTERNS)
            match = pattern.search(model)
            assert buffer._find_any(pattern, longest) == (match.span() if match else None)
            wanted = 0 if match else len(model) + 1
        elif call == 7:
            buffer.compact()
        elif call == 8:
            size = min(choices.below(256), len(model))
            buffer._reach(size)
            assert buffer.data[buffer.start :][:size] == model[:size]
        elif choices.below(8) == 0:
            buffer.clear()
            model = b""
        assert len(buffer) == len(model)
        assert buffer.wanted == wanted
        assert model.startswith(buffer.data[buffer.start :])
        assert type(buffer.data) is bytes
    assert buffer.take(len(model)) == model
