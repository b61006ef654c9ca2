"""Server processes: started on a core of their own, watched, and ended."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import attrs

from benchmarks.generator.clocks import ProcessClock
from benchmarks.generator.connections import ServerFailedError

ROOT: Final = Path(__file__).resolve().parent.parent
"""The folder that holds both ``benchmarks`` and the library."""

_STARTUP: Final = 30.0
"""Seconds in which a server must say that it listens; an import takes less than one."""


_PROGRAM: Final = 120.0
"""Seconds that a program may take which ends by itself."""


class ProgramFailedError(Exception):
    """A program could not be started, or ended too early."""


@attrs.frozen
class Server:
    """A server process that listens."""

    port: int
    clock: ProcessClock

    def resident_bytes(self) -> int:
        """The memory that it has resident, as the kernel sums it up from its pages."""
        # smaps_rollup is exact. The counters in statm are kept for each processor, and lag.
        with open(f"/proc/{self.clock.pid}/smaps_rollup") as rollup:
            for line in rollup:
                if line.startswith("Rss:"):
                    return int(line.split()[1]) * 1024
        raise ProgramFailedError("the kernel does not say how much memory the server has")


@contextmanager
def run_server(command: Sequence[str], core: int | None, root: Path = ROOT) -> Iterator[Server]:
    """Start a server, wait until it listens, and end it afterwards.

    Args:
      command: the arguments after the interpreter.
      core: the processor that it may use, or ``None`` for any.
      root: the checkout that it is imported from.

    Raises:
      ProgramFailedError: it ended, or did not say that it listens. The message has its last words.
    """
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd=root,
            env=_environment(root),
        )
        try:
            if core is not None:
                # Before it has any thread besides the first, so that all of them inherit it.
                os.sched_setaffinity(process.pid, {core})
            assert process.stdout is not None
            port = _read_port(process.stdout.fileno())
            if port is None:
                raise ProgramFailedError(_last_words(errors.fileno()) or "it did not listen")
            try:
                yield Server(port, ProcessClock(process.pid))
            except (OSError, ServerFailedError) as error:
                words = _last_words(errors.fileno())
                raise ProgramFailedError(f"{error}; its last words: {words or 'none'}") from error
        finally:
            process.kill()
            process.communicate()


def run_program(command: Sequence[str], core: int | None, root: Path = ROOT) -> str:
    """Run a program to its end, and return what it printed.

    Args:
      command: the arguments after the interpreter.
      core: the processor that it may use, or ``None`` for any.
      root: the checkout that it is imported from.

    Raises:
      ProgramFailedError: it failed, or took too long.
    """
    process = subprocess.Popen(
        [sys.executable, *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=root,
        env=_environment(root),
        text=True,
    )
    try:
        if core is not None:
            os.sched_setaffinity(process.pid, {core})
        output, errors = process.communicate(timeout=_PROGRAM)
    except subprocess.TimeoutExpired as error:
        raise ProgramFailedError(f"it took longer than {_PROGRAM:.0f} s") from error
    finally:
        process.kill()
        process.wait()
    if process.returncode:
        raise ProgramFailedError(errors.strip().rpartition("\n")[2])
    return output


def _environment(root: Path) -> dict[str, str]:
    # The root comes first, so that a server imports the library that stands beside it.
    environment = dict(os.environ, PYTHONPATH=str(root))
    # As after an installation, compiling is nothing that an import should be measured by.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return environment


def _read_port(fd: int) -> int | None:
    deadline = time.monotonic() + _STARTUP
    said = b""
    while b"\n" not in said:
        ready, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return None
        data = os.read(fd, 4096)
        if not data:
            return None
        said += data
    word, _, port = said.partition(b"\n")[0].partition(b" ")
    return int(port) if word == b"LISTENING" else None


def _last_words(fd: int) -> str:
    size = os.fstat(fd).st_size
    text = os.pread(fd, 4000, max(0, size - 4000)).decode(errors="replace").strip()
    return text.rpartition("\n")[2]
