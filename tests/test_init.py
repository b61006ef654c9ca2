"""The package itself: what it exports, how that is named, and what importing it costs."""

from __future__ import annotations

import importlib.resources
import inspect
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

import trio_bytetalk


def test_everything_public_is_exported_once() -> None:
    for name in trio_bytetalk.__all__:  # which imports the last of it
        getattr(trio_bytetalk, name)
    public = {
        name
        for name, value in vars(trio_bytetalk).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert set(trio_bytetalk.__all__) == public
    assert len(trio_bytetalk.__all__) == len(public)


def test_the_exports_are_sorted_constants_first_and_functions_last() -> None:
    def key(name: str) -> tuple[int, str]:
        return 0 if name.isupper() else 1 if name[0].isupper() else 2, name

    assert list(trio_bytetalk.__all__) == sorted(trio_bytetalk.__all__, key=key)


def test_every_exception_that_a_user_may_want_to_catch_is_exported() -> None:
    def family(exception: type[Exception]) -> Iterator[type[Exception]]:
        yield exception
        for child in exception.__subclasses__():
            yield from family(child)

    ours = {
        each
        for each in family(trio_bytetalk.BytetalkError)
        # The program's are its own.
        if "bytetalk" in each.__module__ and "bytetalk._cli" not in each.__module__
    }
    assert {each.__name__ for each in ours} <= set(trio_bytetalk.__all__)
    assert len(ours) > 10


def test_classes_and_functions_are_named_as_users_import_them() -> None:
    named = 0
    for name in trio_bytetalk.__all__:
        value = getattr(trio_bytetalk, name)
        if inspect.isclass(value) or inspect.isroutine(value):
            assert (value.__module__, value.__qualname__) == ("trio_bytetalk", name)
            named += 1
    # All but a constant and the names for combinations of types: Buffer, Event and Handler.
    assert named == len(trio_bytetalk.__all__) - 4


def test_what_is_named_so_can_be_pickled() -> None:
    for value in (
        trio_bytetalk.NEED_DATA,
        trio_bytetalk.LengthPrefixed(size=2),
        trio_bytetalk.Lines(newline=b"\r\n"),
        trio_bytetalk.CloseReason.CANCELLED,
    ):
        assert pickle.loads(pickle.dumps(value)) == value
    assert pickle.loads(pickle.dumps(trio_bytetalk.NEED_DATA)) is trio_bytetalk.NEED_DATA


def test_the_version_is_one() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.?(a|b|rc|dev)\d+)?", trio_bytetalk.__version__)


def test_the_package_says_that_it_is_typed() -> None:
    assert (importlib.resources.files("trio_bytetalk") / "py.typed").is_file()


def test_importing_takes_nothing_but_trio_and_attrs() -> None:
    program = """if True:
        import sys
        import attrs, trio
        before = set(sys.modules)
        import trio_bytetalk
        print(*sorted(set(sys.modules) - before))
    """
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    imported = result.stdout.split()
    others = {name.partition(".")[0] for name in imported} - set(sys.stdlib_module_names)
    assert others == {"trio_bytetalk"}
    assert "trio_bytetalk.testing" not in imported


def test_codecs_are_imported_when_they_are_asked_for() -> None:
    program = """if True:
        import sys
        import trio_bytetalk
        assert "COBS" in dir(trio_bytetalk)
        assert "trio_bytetalk._stuffed" not in sys.modules
        trio_bytetalk.COBS()
        assert "trio_bytetalk._stuffed" in sys.modules
        from trio_bytetalk import *
        assert Lines is trio_bytetalk.Lines
    """
    subprocess.run([sys.executable, "-c", program], check=True)
    assert "COBS" in dir(trio_bytetalk)


def test_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'trio_bytetalk' has no attribute 'Cobs'"):
        getattr(trio_bytetalk, "Cobs")  # noqa: B009 - a type checker would object
