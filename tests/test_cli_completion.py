"""Completion in bash, asked as the script asks, and in a real one."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import shlex
import shutil
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

import trio_bytetalk
from trio_bytetalk._cli.completion import Bash
from trio_bytetalk._cli.main import program

ROOT = Path(trio_bytetalk.__file__).parents[1]

# In seconds; only a failure takes so long.
PATIENCE = 60


def completed(line: str, word: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What bash is told, for this line up to the cursor and its own idea of the last word."""
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_WORD", word)
    return Bash(program, {}, "bytetalk", "_BYTETALK_COMPLETE").complete().split("\n")


@pytest.mark.parametrize(
    ("line", "word", "completions"),
    [
        ("bytetalk cod", "cod", ["plain,codecs"]),
        ("bytetalk completion ", "", ["plain,bash", "plain,zsh", "plain,fish"]),
        ("bytetalk bench --conn", "--conn", ["plain,--connections"]),
        ("bytetalk sniff --codec le", "le", ["plain,length"]),
        ("bytetalk sniff --codec js", "js", ["plain,json+"]),
        ("bytetalk sniff -c json+le", "json+le", ["plain,json+length"]),
        ("bytetalk sniff --codec=le", "le", ["plain,length"]),
        ("bytetalk sniff -c json+text:x+le", "x+le", ["plain,x+length"]),
        ("bytetalk sniff --codec=text:x+le", "x+le", ["plain,x+length"]),
        ("bytetalk sniff -c text:'x+le", "'x+le", ["plain,x+length"]),
        # In quotes, and where COMP_WORDBREAKS is another, nothing is cut.
        ("bytetalk sniff -c 'text:x+le", "'text:x+le", ["plain,text:x+length"]),
        ("bytetalk sniff --codec=le", "--codec=le", ["plain,--codec=length"]),
        # In the middle of a word, bash tells all of it.
        ("bytetalk sniff --codec le", "length", ["plain,length"]),
        ("bytetalk sniff ./s", "./s", ["file,./s"]),
        ("bytetalk sniff unix:./s", "./s", ["file,./s"]),
        ("bytetalk sniff s", "s", [""]),
    ],
)
def test_what_bash_is_told(
    line: str, word: str, completions: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert completed(line, word, monkeypatch) == completions


@pytest.mark.parametrize("word", ["=", "=:", ""])
def test_nothing_yet_behind_an_equals_sign(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    completions = completed("bytetalk sniff --codec=", word, monkeypatch)
    assert {"plain,length", "plain,json+", "plain,chunks"} < set(completions)


@pytest.fixture
def search_path(tmp_path: Path) -> str:
    """A PATH with the program ``bytetalk``, as it is when the package is installed."""
    script = tmp_path / "bytetalk"
    script.write_text(
        f"#!/bin/sh\nPYTHONPATH={shlex.quote(str(ROOT))} "
        f'exec {shlex.quote(sys.executable)} -m trio_bytetalk "$@"\n'
    )
    script.chmod(0o755)
    return f"{tmp_path}{os.pathsep}{os.environ['PATH']}"


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_a_real_bash(search_path: str, tmp_path: Path) -> None:
    (tmp_path / "socket").touch()
    terminal, theirs = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 200, 0, 0))
    process = subprocess.Popen(
        ["bash", "--norc", "--noprofile", "-i"],
        cwd=tmp_path,
        env={**os.environ, "PATH": search_path, "TERM": "dumb"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    try:
        os.write(terminal, b'eval "$(bytetalk completion bash)"; echo "--"ready\n')
        read_until(terminal, "--ready")
        for typed, end in [
            ("sniff --codec js", "on+"),
            ("sniff --codec=text:latin-1+li", "nes "),
            ("sniff unix:./so", "cket "),
        ]:
            os.write(terminal, f"bytetalk {typed}\t".encode())
            read_until(terminal, f"bytetalk {typed}{end}")
            os.write(terminal, b"?")
            assert read_until(terminal, "?") == "?"
            os.write(terminal, b"\x15")  # Ctrl-U: another line
    finally:
        process.kill()
        process.wait()
        os.close(terminal)


def read_until(terminal: int, mark: str) -> str:
    """What is seen in a terminal up to this mark."""
    text = ""
    while mark not in text:
        readable, _, _ = select.select([terminal], [], [], PATIENCE)
        assert readable, f"{mark!r} does not come, but {text!r}"
        text += os.read(terminal, 4096).decode()
    return text
