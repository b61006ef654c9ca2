"""Decisions that are read off a fuzzer's bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import attrs

T = TypeVar("T")


@attrs.define(eq=False)
class Choices:
    """Takes decisions off the front of ``data``: the first ones when there are no bytes left.

    One byte a decision, and what is left at the end, so that a fuzzer that changes a byte changes
    one thing.
    """

    data: bytes
    _used: int = attrs.field(default=0, init=False)

    def below(self, count: int) -> int:
        """A number from 0 on, and below ``count``, which is 256 at the most."""
        byte = self.data[self._used : self._used + 1]
        self._used += 1
        return byte[0] % count if byte else 0

    def flag(self) -> bool:
        return self.below(2) == 1

    def one_of(self, options: Sequence[T]) -> T:
        return options[self.below(len(options))]

    def take(self, size: int) -> bytes:
        """The next ``size`` bytes, or as many as there are."""
        some = self.data[self._used : self._used + size]
        self._used += size
        return some

    def rest(self) -> bytes:
        return self.take(len(self.data))

    @property
    def more(self) -> bool:
        return self._used < len(self.data)
