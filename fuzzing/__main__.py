"""``python -m fuzzing [SECONDS] [TARGET ...]``: fuzz each target for so many seconds.

What is worth keeping goes to corpus/TARGET, what fails to findings/TARGET.
"""

from __future__ import annotations

import argparse
import pathlib
import subprocess
import sys
import tempfile
from typing import Final

HERE: Final = pathlib.Path(__file__).resolve().parent

TARGETS: Final = ("readers", "messages", "buffer", "connections")

_OPTIONS: Final = (
    "-max_len=1024",  # of the cases here, a longer one is two of them
    "-timeout=20",  # seconds for one case, which takes some milliseconds
    "-rss_limit_mb=1024",
    "-print_final_stats=1",
)


def fuzz(target: str, seconds: int) -> bool:
    """Whether nothing was found."""
    corpus = HERE / "corpus" / target
    findings = HERE / "findings" / target
    for folder in (corpus, findings):
        folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(HERE / "fuzz.py"), target]
    with tempfile.TemporaryDirectory() as scratch:
        made = pathlib.Path(scratch, "made")  # by the fuzzer, far more than is worth keeping
        kept = pathlib.Path(scratch, "kept")
        made.mkdir()
        kept.mkdir()
        print(f"-- {target}: {seconds} seconds", flush=True)
        run = subprocess.run(
            [
                *(*command, *_OPTIONS, f"-max_total_time={seconds}"),
                *(f"-artifact_prefix={findings}/", str(made), str(corpus)),
            ],
            check=False,
        )
        if run.returncode == 0:
            # One input, the smallest, for each place in the code, without regard to how often it
            # is passed: some hundred files, from which a fuzzer is soon where it was before.
            merge = ("-merge=1", "-use_counters=0", str(kept), str(corpus), str(made))
            subprocess.run([*command, *merge], check=True, stderr=subprocess.DEVNULL)
            for old in corpus.iterdir():
                old.unlink()
            for new in kept.iterdir():
                (corpus / new.name).write_bytes(new.read_bytes())
            print(f"-- {target}: nothing found; {len(list(corpus.iterdir()))} inputs in {corpus}")
            return True
    print(f"-- {target}: FAILED, for the reason above; the input is in {findings}")
    return False


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python3 noxfile.py fuzz --", description="Fuzz the package, each target in turn."
    )
    parser.add_argument(
        "seconds",
        metavar="SECONDS",
        nargs="?",
        type=int,
        default=60,
        help="for each target; 60 by default",
    )
    parser.add_argument(
        "targets",
        metavar="TARGET",
        nargs="*",
        help=f"what to fuzz; by default all of {', '.join(TARGETS)}",
    )
    arguments = parser.parse_args()
    for target in arguments.targets:
        if target not in TARGETS:
            parser.error(f"TARGET must be one of {', '.join(TARGETS)}, not {target}")
    if arguments.seconds < 1:
        parser.error(f"SECONDS must be 1 or more, not {arguments.seconds}")
    failed = [each for each in arguments.targets or TARGETS if not fuzz(each, arguments.seconds)]
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
