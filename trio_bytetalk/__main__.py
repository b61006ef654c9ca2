"""The command-line program ``bytetalk``, and ``python -m trio_bytetalk``."""

from __future__ import annotations

import os
import signal
import sys

_EXTRA = frozenset({"click", "prompt_toolkit", "rich"})


# 128 + SIGINT, as shells have it. (What has this number, too, is not imported yet.)
_INTERRUPTED = 130


def main() -> None:
    """Run the program; without the extra that it needs, say how to have it."""
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # and not ignored, as by nohup
        signal.signal(signal.SIGHUP, _hang_up)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # it was closed before the program began
            nowhere = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - the program's end closes it
            setattr(sys, name, nowhere)
    try:
        from ._cli.main import program

        program.main(prog_name="bytetalk")  # which imports its commands when they are needed
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    except ModuleNotFoundError as error:
        if error.name not in _EXTRA:
            raise
        print(
            f"bytetalk needs {error.name}, which comes with the extra cli: "
            "pip install '.[cli]' in a checkout of trio_bytetalk",
            file=sys.stderr,
        )
        sys.exit(2)


def _hang_up(number: int, _frame: object) -> None:
    """End as at SIGTERM, which each command obeys in order; SIGHUP would leave a terminal as drawn.

    Only the first counts, for a terminal that goes may have several sent.
    """
    signal.signal(number, signal.SIG_IGN)
    signal.raise_signal(signal.SIGTERM)


if __name__ == "__main__":
    main()
