"""The links of the documentation: of the README and its kin, and what checks those of the site."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "docs" / "check_links.py"
MARKDOWN = sorted({*ROOT.glob("*.md"), *ROOT.glob("[a-z]*/README.md")})


def check_links() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_links", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def broken_in(site: Path) -> list[str]:
    return list(check_links().broken_links(site))


# -- Markdown


def headings_of(page: Path) -> set[str]:
    """The anchors that GitHub and others give to a page's headings."""
    text = re.sub(
        "^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
    )
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", MARKDOWN, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_of_markdown_lead_to_files_that_are_there(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, heading = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        if heading:
            assert heading in headings_of(target), link


def test_the_readme_is_looked_at() -> None:
    assert ROOT / "README.md" in MARKDOWN
    assert "install" in headings_of(ROOT / "README.md")


# -- the site


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Two pages whose links are good, of every kind."""
    (tmp_path / "deep").mkdir()
    (tmp_path / "style.css").write_text("")
    (tmp_path / "a b.svg").write_text("")
    (tmp_path / "index.html").write_text(
        '<!doctype html><link href="style.css?v=1"><p id="here">&lt;a href="nowhere"&gt;</p>\n'
        '<a name="old">x</a><a href="#here">a</a><a href="#">a</a><a href="#top">a</a>\n'
        '<a href="deep/page.html#gr%C3%BCn">a</a><a href="deep/">a</a><img src="a%20b.svg">\n'
        '<a href="https://example.org/nowhere#x">a</a><a href="mailto:a@example.org">a</a>\n'
        '<a href="//example.org/">a</a><img src="data:,"><a href="index.html#old">a</a>\n'
        '<a href="a%20b.svg#view">a</a><form action="deep/page.html"></form><a>a</a>\n'
    )
    (tmp_path / "deep" / "page.html").write_text(
        '<h1 id="grün">x</h1>\n<a href="../index.html#here">a</a><br id="x"/>\n'
    )
    (tmp_path / "deep" / "index.html").write_text('<a href="page.html#x">a</a>')
    return tmp_path


def test_good_links(site: Path) -> None:
    assert broken_in(site) == []


@pytest.mark.parametrize(
    ("element", "problem"),
    [
        ('<a href="nowhere.html">', "'nowhere.html' leads to a file that is not there"),
        ('<img src="no.png">', "'no.png' leads to a file that is not there"),
        ('<a href="..">', "'..' leads to a file that is not there"),
        ('<a href="#nowhere">', "'#nowhere' leads to a place that is not there"),
        ('<a href="page.html#no">', "'page.html#no' leads to a place that is not there"),
        (
            '<a href="../index.html#x">',
            "'../index.html#x' leads to a place that is not there",
        ),
        ('<a href="page.html#Grün">', "'page.html#Grün' leads to a place that is not there"),
        ('<a href="../../other.html">', "'../../other.html' leads out of the documentation"),
        ('<a href="/index.html">', "'/index.html' is right at the top of a domain only"),
    ],
)
def test_broken_links(site: Path, element: str, problem: str) -> None:
    (site / "deep" / "new.html").write_text(f"<p>\n\n{element}x")
    if "'..'" in problem:
        (site / "index.html").rename(site / "other.html")
        assert f"deep/new.html, line 3: {problem}" in broken_in(site)
    else:
        assert broken_in(site) == [f"deep/new.html, line 3: {problem}"]


def test_all_broken_links_are_told_and_the_script_fails(site: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-W", "error", str(SCRIPT), *arguments],
            capture_output=True,
            text=True,
            check=False,
        )

    done = run(str(site))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    (site / "deep" / "page.html").unlink()
    done = run(str(site))
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "deep/index.html, line 1: 'page.html#x' leads to a file that is not there",
        "index.html, line 3: 'deep/page.html#gr%C3%BCn' leads to a file that is not there",
        "index.html, line 6: 'deep/page.html' leads to a file that is not there",
    ]
    for arguments in ((), (str(site / "deep" / "none"),), (str(site), str(site))):
        done = run(*arguments)
        assert done.returncode == 2
        assert done.stdout.startswith("usage: ")
