"""`WatchedBuffer`: a receive buffer that counts what a reader does with it, for `check_codec`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import attrs

from ._buffer import ReceiveBuffer


class EndlessError(BaseException):
    """Ends a reader that does not end; not an Exception, which the reader might catch."""


@attrs.define(eq=False)
class _Count:
    touched: int = 0  # bytes
    steps_left: float = math.inf

    def add(self, size: int) -> None:
        self.touched += size
        self.steps_left -= 1
        if self.steps_left < 0:
            raise EndlessError


def _counted(name: str) -> Callable[..., Any]:
    original = getattr(bytes, name)

    def method(self: Any, *arguments: Any) -> Any:
        touched = len(self)
        try:
            result = original(self, *arguments)
            if name == "__getitem__":
                touched = len(result) if isinstance(result, bytes) else 1
            elif len(arguments) > 1 and isinstance(arguments[1], int):
                # A search from somewhere on, which ends where it finds something.
                end = result if name in ("find", "index") and result >= 0 else touched
                touched = max(end - arguments[1], 0) + 1
            return result
        finally:
            self.counts.add(touched)

    return method


# `bytes` that count what is looked at. (A memoryview of them does not.)
_SEEN = (
    *("__add__", "__contains__", "__getitem__", "__iter__", "count", "decode", "find", "hex"),
    *("index", "lstrip", "partition", "replace", "rfind", "rindex", "rpartition", "rsplit"),
    *("rstrip", "split", "splitlines", "strip", "translate"),
)
_CountedBytes: Any = type("_CountedBytes", (bytes,), {name: _counted(name) for name in _SEEN})


class WatchedBuffer(ReceiveBuffer):
    """Counts how many bytes are looked at or copied, and ends what does not end.

    The front counts for itself, whoever looks at it: ``data`` is of a kind of bytes that do, and
    to make bytes the front counts as a copy. Peeks and searches count for the chunks behind it as
    well. What `take` joins does not count, for it does that once.
    """

    def __init__(self) -> None:
        self._count = _Count()
        super().__init__()

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "data":
            self._count.add(len(value))
            value = _CountedBytes(value)
            value.counts = self._count
        super().__setattr__(name, value)

    @property
    def touched(self) -> int:
        """How many bytes were looked at or copied."""
        return self._count.touched

    def call(self, decode: Callable[[ReceiveBuffer], Any]) -> Any:
        """What a reader's method makes of this buffer.

        Raises:
          EndlessError: if it takes far more steps than there are bytes.
          Exception: as the method does.
        """
        self.wanted = 0
        self._count.steps_left = 1000 + 50 * len(self)
        try:
            return decode(self)
        finally:
            self._count.steps_left = math.inf

    def rest(self) -> bytes:
        """What is not decoded yet, left in the chunks that it is in."""
        return self.data[self.start :] + b"".join(self._later)

    def __len__(self) -> int:
        self._count.add(0)
        return super().__len__()

    def peek(self, size: int, offset: int = 0) -> bytes | None:
        result = super().peek(size, offset)
        self._count.add(len(result or b""))
        return result

    def find(self, delimiter: bytes) -> int:
        known = self._known(delimiter)
        result = super().find(delimiter)
        self._count.add(max((result if result >= 0 else super().__len__()) - known, 0))
        return result

    def _find_any(self, pattern: re.Pattern[bytes], longest: int) -> tuple[int, int] | None:
        known = self._known(pattern)
        result = super()._find_any(pattern, longest)
        self._count.add(max((result[0] if result else super().__len__()) - known, 0))
        return result

    def _known(self, sought: object) -> int:
        """How many bytes need not be looked at again in a search for this."""
        search = self._search
        if search is None or (search.delimiter, search.start) != (sought, self.start):
            return 0
        return search.searched
