"""The command-line program ``bytetalk``, and ``python -m trio_bytetalk``."""

from __future__ import annotations

import os
import sys

_EXTRA = frozenset({"click", "prompt_toolkit", "rich"})


def main() -> None:
    """Run the program; without the extra that it needs, say how to have it."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # it was closed before the program began
            nowhere = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - the program's end closes it
            setattr(sys, name, nowhere)
    try:
        from ._cli.main import program

        program.main(prog_name="bytetalk")  # which imports its commands when they are needed
    except ModuleNotFoundError as error:
        if error.name not in _EXTRA:
            raise
        print(
            f"bytetalk needs {error.name}, which comes with the extra cli: "
            "pip install '.[cli]' in a checkout of trio_bytetalk",
            file=sys.stderr,
        )
        sys.exit(2)


if __name__ == "__main__":
    main()
