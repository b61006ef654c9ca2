"""What the generator sends, encoded before the clock starts."""

from __future__ import annotations

import random
from typing import Final, Literal

import attrs

Framing = Literal["length", "lines"]

BLOCK: Final = 256 * 1024
"""The most that one system call reads or sends. Larger blocks leave the processor's second-level
cache between the copy out of the kernel and the comparison, and gained nothing."""

_LEAST_CYCLE: Final = 1 << 20


class WrongEchoError(Exception):
    """A server sent back something else than what it was sent."""


@attrs.frozen
class Traffic:
    """An endless stream of messages that all differ, of which any part is one slice away.

    The stream repeats after ``cycle`` bytes, more than a connection ever has in flight, so that a
    message which is lost, doubled, changed or out of order cannot pass for another.
    """

    data: bytes = attrs.field(repr=False)
    """One cycle, followed by its own beginning: ``BLOCK`` bytes from any offset need no joining."""

    cycle: int
    frame: int
    """Bytes of one message as it is sent."""

    def starting_offset(self, connection: int) -> int:
        """Where a connection's stream begins: elsewhere for each, to tell connections apart."""
        # A prime stride spreads neighbours over the whole cycle.
        return connection * 7919 * self.frame % self.cycle

    def messages(self) -> list[bytes]:
        """Every message of one cycle, by itself."""
        return [self.data[start : start + self.frame] for start in range(0, self.cycle, self.frame)]

    def check(self, received: memoryview, offset: int) -> None:
        """Raise unless ``received`` is the stream from ``offset`` on."""
        # The one comparison with part of a bytes object that neither copies nor goes by element.
        if not self.data.startswith(received, offset):
            expected = self.data[offset : offset + len(received)]
            at = next(i for i, byte in enumerate(received) if byte != expected[i])
            raise WrongEchoError(
                f"the echo of byte {at} of a block of {len(received)} is wrong: "
                f"expected {expected[at : at + 16].hex()}, got {received[at : at + 16].hex()}"
            )


def make_traffic(size: int, window: int, framing: Framing = "length") -> Traffic:
    """Encode a stream of messages.

    Args:
      size: bytes of one message, without its frame.
      window: how many messages a connection will have in flight.
      framing: ``"length"``: four bytes, big-endian, before each message; ``"lines"``: one newline
        after it.
    """
    overhead = 4 if framing == "length" else 1
    frame = size + overhead
    # One more than twice the window, so that two windows in a row are never the same.
    count = max(2 if size > _LEAST_CYCLE else 2 * window + 1, -(-_LEAST_CYCLE // frame))
    source = random.Random(size)  # the same bytes in every run
    if framing == "length":
        header = size.to_bytes(4, "big")
        frames = [header + source.randbytes(size) for _ in range(count)]
    else:
        frames = [
            source.randbytes(-(-size // 2)).hex()[:size].encode() + b"\n" for _ in range(count)
        ]
    cycle = b"".join(frames)
    return Traffic(cycle + (cycle * (-(-BLOCK // len(cycle))))[:BLOCK], len(cycle), frame)
