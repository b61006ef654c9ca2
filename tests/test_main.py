"""The script ``bytetalk`` and ``python -m trio_bytetalk``, with the extra and without it."""

from __future__ import annotations

import importlib.metadata
import os
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import trio_bytetalk
import trio_bytetalk.__main__
from trio_bytetalk._cli import main

ROOT = Path(trio_bytetalk.__file__).parents[1]


def project() -> dict[str, object]:
    with (Path(__file__).parents[1] / "pyproject.toml").open("rb") as file:
        table: dict[str, object] = tomllib.load(file)["project"]
    return table


def test_the_packages_script_is_the_program() -> None:
    scripts = project()["scripts"]
    assert isinstance(scripts, dict)
    assert list(scripts) == ["bytetalk"]
    entry = importlib.metadata.EntryPoint("bytetalk", scripts["bytetalk"], "console_scripts")
    assert entry.load() is trio_bytetalk.__main__.main


def test_the_tests_have_what_the_extra_has() -> None:
    extras = project()["optional-dependencies"]
    assert isinstance(extras, dict)
    assert set(extras["cli"]) <= set(extras["test"])


def test_run_as_a_module_it_is_bytetalk(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/lib/trio_bytetalk/__main__.py", "--version"])
    monkeypatch.delitem(sys.modules, "trio_bytetalk.__main__")
    with pytest.raises(SystemExit) as caught:
        runpy.run_module("trio_bytetalk", run_name="__main__", alter_sys=True)
    assert caught.value.code == 0
    assert capsys.readouterr() == (f"bytetalk {trio_bytetalk.__version__}\n", "")


def test_streams_that_were_closed_before_take_what_nobody_reads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["bytetalk", "--version"])
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    with pytest.raises(SystemExit) as caught:
        trio_bytetalk.__main__.main()
    assert caught.value.code == 0
    for stream in (sys.stdout, sys.stderr):
        assert stream.name == os.devnull
        stream.close()


SAYING = (
    "bytetalk needs {}, which comes with the extra cli: "
    "pip install '.[cli]' in a checkout of trio_bytetalk\n"
)


def test_without_the_extra_one_line_says_how_to_have_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in list(sys.modules):
        if name.startswith("trio_bytetalk._cli"):
            monkeypatch.delitem(sys.modules, name)
    # An import also puts the new module here, where the next tests would find it.
    monkeypatch.setattr(trio_bytetalk, "_cli", trio_bytetalk._cli)
    monkeypatch.setitem(sys.modules, "click", None)
    with pytest.raises(SystemExit) as caught:
        trio_bytetalk.__main__.main()
    assert caught.value.code == 2
    assert capsys.readouterr() == ("", SAYING.format("click"))


@pytest.mark.parametrize("missing", ["rich", "prompt_toolkit"])
def test_a_command_that_needs_a_part_of_the_extra_says_so_too(
    missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**_options: object) -> None:
        raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)

    monkeypatch.setattr(main.program, "main", fail)
    with pytest.raises(SystemExit) as caught:
        trio_bytetalk.__main__.main()
    assert caught.value.code == 2
    assert capsys.readouterr() == ("", SAYING.format(missing))


def test_any_other_module_that_is_missing_is_an_error_of_the_programs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(**_options: object) -> None:
        raise ModuleNotFoundError("No module named 'other'", name="other")

    monkeypatch.setattr(main.program, "main", fail)
    with pytest.raises(ModuleNotFoundError, match="other"):
        trio_bytetalk.__main__.main()


def test_without_any_of_the_extra_in_a_process_of_its_own() -> None:
    program = (
        "import runpy, sys\n"
        "for name in ('click', 'prompt_toolkit', 'rich'):\n"
        "    sys.modules[name] = None\n"
        "runpy.run_module('trio_bytetalk', run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (2, "", SAYING.format("click"))
