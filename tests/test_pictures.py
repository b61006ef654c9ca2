"""What records the documentation's pictures of terminals; and that each picture is on a page."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "docs" / "record_sessions.py"
PICTURES = ROOT / "docs" / "source" / "reference" / "pictures"


@pytest.fixture
def recorder() -> ModuleType:
    spec = importlib.util.spec_from_file_location("record_sessions", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def words_in(picture: str) -> str:
    """The text of an SVG picture, whose spaces are such that no line is broken at one."""
    text = "\n".join(ElementTree.fromstring(picture).itertext())
    return text.replace("\N{NO-BREAK SPACE}", " ")


async def test_a_program_in_its_terminal_is_drawn(recorder: ModuleType) -> None:
    async with recorder.terminal("codecs", "--help", columns=60, lines=20) as shown:
        await shown.shows("Show this message and exit.")
        picture = shown.draw()
    words = words_in(picture)
    assert "bytetalk codecs --help" in words
    assert "List the codecs and their settings." in words
    assert "http" not in picture.replace("http://www.w3.org/2000/svg", "").replace(
        "https://www.textualize.io", ""
    ), "it fetches something from elsewhere"


async def test_a_picture_may_begin_where_a_line_does(recorder: ModuleType) -> None:
    async with recorder.terminal("codecs", "--help", columns=60, lines=4, room=40) as shown:
        await shown.shows("Show this message and exit.")
        words = words_in(shown.draw(since="Options:"))
    assert "List the codecs" not in words
    assert "Options:" in words
    assert "Show this message and exit." in words


async def test_what_does_not_come_is_named_with_what_is_there_instead(
    recorder: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with recorder.terminal("codecs", "--help") as shown:
        await shown.shows("Show this message and exit.")
        monkeypatch.setattr(recorder, "PATIENCE", 0)
        with pytest.raises(RuntimeError, match=r"(?s)'sesame' is not 1 times.*List the codecs"):
            await shown.shows("sesame")


def test_each_picture_is_made_by_the_script_and_shown_on_a_page() -> None:
    made = set(re.findall(r'keep\("([\w-]+)"', SCRIPT.read_text(encoding="utf-8")))
    pages = "".join(page.read_text(encoding="utf-8") for page in PICTURES.parent.glob("*.rst"))
    shown = set(re.findall(r"image:: pictures/([\w-]+)\.svg", pages))
    assert made == shown == {picture.stem for picture in PICTURES.iterdir()}
