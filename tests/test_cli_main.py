"""The program as a whole: its commands, what it says of itself."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

import trio_bytetalk
from trio_bytetalk._cli import main
from trio_bytetalk._cli.failures import EXIT_CODES
from trio_bytetalk._cli.main import COMMANDS, program

ROOT = Path(trio_bytetalk.__file__).parents[1]


def invoke(*arguments: str, **options: str) -> Result:
    return CliRunner(env=options).invoke(program, arguments, prog_name="bytetalk")


@pytest.fixture
def debug_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is one command more, ``status``, that says whether there is ``--debug``."""

    @click.command()
    @click.pass_obj
    def command(debug: bool) -> None:
        """Say what there is."""
        print(debug)

    module = types.ModuleType("trio_bytetalk._cli.status")
    module.__dict__["command"] = command
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(main, "COMMANDS", (*COMMANDS, "status"))


# -- what it says of itself


def test_version() -> None:
    result = invoke("--version")
    assert (result.exit_code, result.output) == (0, f"bytetalk {trio_bytetalk.__version__}\n")


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help(option: str) -> None:
    result = invoke(option)
    assert (result.exit_code, result.stderr) == (0, "")
    listed = re.findall(r"^  (\w+)  +\w", result.output.partition("Commands:")[2], re.MULTILINE)
    assert listed == [*COMMANDS, "codecs", "completion"]
    assert EXIT_CODES.split() == result.output.split()[-len(EXIT_CODES.split()) :]


def test_without_a_command_it_helps() -> None:
    result = invoke()
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == invoke("--help").stdout


@pytest.mark.parametrize("command", [(), *([name] for name in [*COMMANDS, "codecs", "completion"])])
def test_help_fits_a_terminal_and_is_not_cut_off(command: list[str]) -> None:
    result = CliRunner().invoke(
        program, [*command, "--help"], prog_name="bytetalk", terminal_width=80
    )
    assert result.exit_code == 0
    usage, *others = result.output.splitlines()
    assert usage.startswith(" ".join(["Usage: bytetalk", *command]))
    assert len(usage) <= 80
    for line in others:
        assert len(line) <= 80
        assert not line.endswith("...")


def test_the_commands_that_the_help_shows_exist() -> None:
    shown = re.findall(r"^ +bytetalk (\w+)", invoke("--help").output, re.MULTILINE)
    assert shown
    assert set(shown) <= {*COMMANDS, "codecs"}


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("codex", " Did you mean 'codecs'?"),
        ("statsu", " Did you mean 'status'?"),
        ("Completion", " Did you mean 'completion'?"),
        ("xyzzy", ""),
    ],
)
@pytest.mark.usefixtures("debug_command")
def test_an_unknown_command_suggests_the_nearest(word: str, hint: str) -> None:
    result = invoke(word)
    assert (result.exit_code, result.stdout) == (2, "")
    end = f".{hint}" if hint else ""
    assert result.stderr == f"Error: No such command '{word}'{end} (see 'bytetalk --help')\n"


@pytest.mark.usefixtures("debug_command")
def test_debugging_is_asked_for_by_an_option_or_a_variable() -> None:
    assert invoke("status").output == "False\n"
    assert invoke("--debug", "status").output == "True\n"
    assert invoke("status", BYTETALK_DEBUG="1").output == "True\n"
    assert invoke("status", BYTETALK_DEBUG="0").output == "False\n"
    assert "Say what there is." in invoke("--help").output


def test_the_list_of_codecs() -> None:
    result = invoke("codecs")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "octet-counted" in result.stdout


# -- in a process of its own


def python(*arguments: str, **options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | options,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_command_is_imported_when_it_is_wanted() -> None:
    done = python(
        "-c",
        "import sys\n"
        "from trio_bytetalk._cli.main import COMMANDS, program\n"
        "program.main(['codecs'], standalone_mode=False)\n"
        "print([name for name in COMMANDS if f'trio_bytetalk._cli.{name}' in sys.modules])\n"
        "print({'rich', 'prompt_toolkit'} & {*sys.modules})\n",
    )
    assert done.stderr == ""
    assert done.stdout.splitlines()[-2:] == ["[]", "set()"]


def test_output_that_nobody_reads_ends_it_quietly() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        done = subprocess.run(
            [sys.executable, "-m", "trio_bytetalk", "codecs"],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=pipe,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, "")


# -- completion


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_for_a_shell(shell: str) -> None:
    result = invoke("completion", shell)
    assert result.exit_code == 0
    assert f"_BYTETALK_COMPLETE={shell}_complete" in result.output
    assert "bytetalk" in result.output


def test_a_shell_that_is_not_known() -> None:
    result = invoke("completion", "bsh")
    assert result.exit_code == 2
    assert result.stderr == (
        "Error: Invalid value for 'SHELL': 'bsh' is not one of 'bash', 'zsh', 'fish' "
        "(see 'bytetalk completion --help')\n"
    )


@pytest.mark.parametrize(("shell", "options"), [("zsh", ["-f", "-n"]), ("fish", ["--no-execute"])])
def test_other_shells_can_read_their_scripts(
    shell: str, options: list[str], tmp_path: Path
) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell}")
    script = tmp_path / "script"
    script.write_text(invoke("completion", shell).output)
    done = subprocess.run([shell, *options, str(script)], capture_output=True, check=True)
    assert done.stderr == b""
