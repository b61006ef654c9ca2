"""The fuzzer itself, for one target, in a process of its own: ``python fuzz.py TARGET OPTIONS``.

The options are libFuzzer's.
"""

from __future__ import annotations

import importlib
import pathlib
import shlex
import sys

import atheris

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

# What is followed, for new ways through it to be found. Not the harness: its ways are not new.
with atheris.instrument_imports(include=["trio_bytetalk"]):
    import trio_bytetalk

    for name in trio_bytetalk.__all__:
        getattr(trio_bytetalk, name)  # some are imported when they are asked for

if __name__ == "__main__":
    target = sys.argv[1]
    # libFuzzer takes the first of these, by way of the shell, for how to start itself once more.
    command = shlex.join([sys.executable, __file__, target])
    atheris.Setup([command, *sys.argv[2:]], importlib.import_module(f"fuzzing.{target}").check)
    atheris.Fuzz()
