"""What SECURITY.md promises and no other test module shows; and that it names tests that exist."""

from __future__ import annotations

import ast
import math
import re
from pathlib import Path

import attrs
import pytest

import trio_bytetalk
from trio_bytetalk import Codec, Server

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "trio_bytetalk").rglob("*.py"))

# What would turn a peer's bytes, or a file's, into code.
DANGEROUS_MODULES = {"pickle", "cPickle", "marshal", "shelve", "dill", "yaml", "subprocess", "code"}
DANGEROUS_CALLS = {"eval", "exec", "compile", "__import__", "system", "popen"}


def dangers_in(source: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names):
                found |= {alias.name.partition(".")[0] for alias in names} & DANGEROUS_MODULES
            case ast.ImportFrom(module=str(module)):
                found |= {module.partition(".")[0]} & DANGEROUS_MODULES
            case ast.Call(func=ast.Name(id=name)) if name in DANGEROUS_CALLS:
                found.add(name)
            case ast.Call(func=ast.Attribute(value=ast.Name(id="os"), attr=name)):
                found |= {name} & DANGEROUS_CALLS
    return found


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_nothing_makes_code_of_bytes(source: Path) -> None:
    assert dangers_in(source.read_text(encoding="utf-8")) == set()


@pytest.mark.parametrize(
    ("source", "dangers"),
    [
        ("import pickle", {"pickle"}),
        ("def f():\n    from marshal import loads", {"marshal"}),
        ("import yaml.nodes", {"yaml"}),
        ("eval(data)", {"eval"}),
        ("import os\nos.system(data)", {"system"}),
        ("import re\nre.compile(pattern)", set()),
    ],
)
def test_what_would_make_code_of_bytes_is_seen(source: str, dangers: set[str]) -> None:
    assert dangers_in(source) == dangers


def test_limits_are_on_by_default() -> None:
    limits = attrs.asdict(Server().limits)
    assert limits.pop("idle_timeout") == math.inf  # which only the application can know
    assert limits == {
        "message_timeout": 60,
        "send_timeout": 60,
        "handshake_timeout": 10,
        "close_timeout": 5,
        "write_buffer_size": 256 * 1024,
    }


def test_every_codec_has_a_limit_of_size_by_default() -> None:
    limited = set()
    for name in trio_bytetalk.__all__:
        thing = getattr(trio_bytetalk, name)
        if isinstance(thing, type) and issubclass(thing, Codec) and attrs.has(thing):
            for field in attrs.fields(thing):
                if field.name == "max_size":
                    assert field.default == 1024 * 1024, name
                    limited.add(name)
    # These have sizes that are given, or no messages.
    unlimited = {"FixedSize", "Structs", "Chunks"}
    codecs = {
        name
        for name in trio_bytetalk.__all__
        if isinstance(thing := getattr(trio_bytetalk, name), type) and issubclass(thing, Codec)
    }
    assert codecs - limited - {"Codec"} == unlimited


def test_the_page_names_tests_that_exist() -> None:
    page = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:tests|fuzzing)/[\w.]*)`", page))
    assert named
    assert {name for name in named if not (ROOT / name).exists()} == set()
