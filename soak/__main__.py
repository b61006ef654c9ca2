"""``python -m soak [--connections N] [--messages N] [--seed N]``."""

from __future__ import annotations

import argparse
import sys
import time

import trio

from .run import check_limit, soak


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python3 noxfile.py soak --",
        description="Hold connections to an echo server, and exchange numbered messages over them.",
    )
    parser.add_argument("--connections", type=int, default=9_000, help="held at once (9000)")
    parser.add_argument("--messages", type=int, default=1_000_000, help="in all (1000000)")
    parser.add_argument("--seed", type=int, default=0, help="of what the clients do (0)")
    arguments = parser.parse_args()
    if arguments.connections < 1 or arguments.messages < arguments.connections:
        parser.error("--connections must be 1 or more, and --messages as many at least")
    check_limit(arguments.connections)
    began = time.monotonic()
    last = "nothing yet"

    def progress(line: str) -> None:
        nonlocal last
        last = line
        print(f"{time.monotonic() - began:6.0f} s  {line}", flush=True)

    faults: list[str] | None = None
    try:
        faults = trio.run(
            lambda: soak(
                arguments.connections, arguments.messages, seed=arguments.seed, progress=progress
            )
        )
    except* KeyboardInterrupt:
        print(f"\nsoak: interrupted after {time.monotonic() - began:.0f} s; the last: {last}")
    if faults is None:
        return 130
    for fault in faults:
        print(f"soak: FAULT: {fault}")
    print(f"soak: {'FAILED' if faults else 'passed'} after {time.monotonic() - began:.0f} s")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
