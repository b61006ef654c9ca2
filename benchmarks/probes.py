"""Costs that are measured inside one process, without a server: codecs, and the import.

Each probe is a program of its own that prints one number: ``python -m benchmarks.probes --help``.
All of them count processor time, which other programs on the machine hardly change.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial


def decode_by_hand(size: int, piece: int) -> float:
    """Seconds to take one length-prefixed message out of a bytearray that grows by pieces."""
    frame = size.to_bytes(4, "big") + bytes(size)
    pieces = [frame[start : start + piece] for start in range(0, len(frame), piece)]
    start = time.process_time()
    buffer = bytearray()
    message = b""
    for data in pieces:
        buffer += data
        if len(buffer) >= 4 and len(buffer) >= 4 + int.from_bytes(buffer[:4], "big"):
            message = bytes(buffer[4 : 4 + size])
            del buffer[: 4 + size]
    elapsed = time.process_time() - start
    assert len(message) == size
    return elapsed


def decode(size: int, piece: int) -> float:
    """Seconds that our codec takes for the same."""
    from trio_bytetalk import NEED_DATA, LengthPrefixed, ReceiveBuffer

    frame = size.to_bytes(4, "big") + bytes(size)
    pieces = [frame[start : start + piece] for start in range(0, len(frame), piece)]
    reader = LengthPrefixed(max_size=size).reader()
    start = time.process_time()
    buffer = ReceiveBuffer()
    for data in pieces:
        buffer.feed(data)
        message = reader.decode(buffer)
    elapsed = time.process_time() - start
    assert message is not NEED_DATA
    assert len(message) == size
    return elapsed


def search_by_hand(size: int, piece: int) -> float:
    """Seconds to look for a delimiter that comes after ``size`` bytes, looking at each once."""
    data = b"x" * piece
    start = time.process_time()
    buffer = bytearray()
    for _ in range(size // piece):
        searched = len(buffer)
        buffer += data
        assert buffer.find(b"\n", searched) < 0
    buffer += b"\n"
    line = bytes(buffer[: buffer.index(b"\n", size)])
    elapsed = time.process_time() - start
    assert len(line) == size
    return elapsed


def search(size: int, piece: int) -> float:
    """Seconds that our codec takes for the same."""
    from trio_bytetalk import NEED_DATA, Delimited, ReceiveBuffer

    data = b"x" * piece
    reader = Delimited(b"\n", max_size=size).reader()
    start = time.process_time()
    buffer = ReceiveBuffer()
    for _ in range(size // piece):
        buffer.feed(data)
        assert reader.decode(buffer) is NEED_DATA
    buffer.feed(b"\n")
    line = reader.decode(buffer)
    elapsed = time.process_time() - start
    assert line is not NEED_DATA
    assert len(line) == size
    return elapsed


def import_ours() -> float:
    """Seconds that ``import trio_bytetalk`` adds to ``import trio``."""
    import trio  # noqa: F401

    start = time.process_time()
    import trio_bytetalk  # noqa: F401

    return time.process_time() - start


def repeat(probe: Callable[[], float], seconds: float) -> float:
    """The median of as many runs as fit into the time, and of three at least."""
    end = time.monotonic() + seconds
    times: list[float] = []
    while len(times) < 3 or time.monotonic() < end:
        times.append(probe())
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--by-hand", action="store_true", help="without trio_bytetalk")
    parser.add_argument("probe", choices=["decode", "search", "import"])
    parser.add_argument("--size", type=int, default=64 << 20, help="bytes of the message")
    parser.add_argument("--piece", type=int, default=4096, help="bytes that arrive at once")
    parser.add_argument("--seconds", type=float, default=1.0)
    options = parser.parse_args()
    if options.probe == "import":
        print(import_ours())  # once for each process: the second import costs nothing
        return
    if options.probe == "decode":
        function = decode_by_hand if options.by_hand else decode
    else:
        function = search_by_hand if options.by_hand else search
    print(repeat(partial(function, options.size, options.piece), options.seconds))


if __name__ == "__main__":
    main()
