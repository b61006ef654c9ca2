"""Codecs by name: every setting of every codec, and for every wrong spelling what to do."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import attrs
import click
import pytest
from click.testing import CliRunner
from hypothesis import example, given
from hypothesis import strategies as st

from trio_bytetalk import (
    COBS,
    SLIP,
    Chunks,
    Codec,
    ContentLength,
    Delimited,
    FixedSize,
    LengthPrefixed,
    Lines,
    Netstring,
    OctetCounted,
    Structs,
    VarintPrefixed,
)
from trio_bytetalk._cli.codecs import (
    CODEC,
    DEFAULT,
    FRAMINGS,
    LAYERS,
    Framing,
    Layer,
    codec_option,
    named_codec_option,
    overview,
    parse_codec,
)

LIST = "'bytetalk codecs' lists them"


def error_of(spec: str) -> str:
    """What is said of a wrong codec."""
    with pytest.raises(ValueError, match=r".") as caught:
        parse_codec(spec)
    message = str(caught.value)
    assert message.isprintable()
    return message


# -- what there is


@pytest.mark.parametrize(
    ("spec", "codec"),
    [
        ("length", LengthPrefixed()),
        ("length:2", LengthPrefixed(2)),
        ("length:2,little", LengthPrefixed(2, byteorder="little")),
        ("length:little,2", LengthPrefixed(2, byteorder="little")),
        ("length:byteorder=little,size=8", LengthPrefixed(8, byteorder="little")),
        ("length:big,signed", LengthPrefixed(signed=True)),
        ("length:signed=no", LengthPrefixed()),
        ("length:max_size=16M", LengthPrefixed(max_size=16 * 1024 * 1024)),
        ("length:max-size=4KiB", LengthPrefixed(max_size=4096)),
        ("length:4,offset=1,adjustment=-4", LengthPrefixed(offset=1, adjustment=-4)),
        (
            r"length:2,offset=1,strip=3,header=\xca",
            LengthPrefixed(2, offset=1, strip=3, header=b"\xca"),
        ),
        ("lines", Lines()),
        ("lines:latin-1", Lines(encoding="latin-1")),
        (r"lines:newline=\r\n,max_size=510", Lines(newline=b"\r\n", max_size=510)),
        (r"delimiter:\0", Delimited(b"\0")),
        (r"delimiter:\r\n|\n,keep", Delimited([b"\r\n", b"\n"], keep=True)),
        (r"delimiter:\x2c\x2b\x7c", Delimited(b",+|")),
        ("delimiter:a=b", Delimited(b"a=b")),
        ("delimiter:delimiter=keep", Delimited(b"keep")),
        ("delimiter:,", None),
        ("delimiter:keep,a", Delimited(b"a", keep=True)),
        ("delimiter:grün\udcff", Delimited("grün".encode() + b"\xff")),
        ("netstring", Netstring()),
        ("netstring:1k", Netstring(max_size=1024)),
        ("varint:2GB", VarintPrefixed(max_size=2 * 1024**3)),
        ("octet-counted:8192", OctetCounted(max_size=8192)),
        ("fixed:188", FixedSize(188)),
        ("struct:!IH", Structs("!IH")),
        ("struct:=IH", Structs("=IH")),
        ("struct:format=<IhBB", Structs("<IhBB")),
        (
            "content-length:1M,max-header-size=1K",
            ContentLength(max_size=2**20, max_header_size=1024),
        ),
        ("cobs:250", COBS(max_size=250)),
        ("slip", SLIP()),
        ("chunks", Chunks()),
        ("json+lines", Lines().json()),
        ("json+length:2", LengthPrefixed(2).json()),
        ("json+text+length", LengthPrefixed().text().json()),
        ("msgpack+varint", VarintPrefixed().msgpack()),
        ("text+length", LengthPrefixed().text()),
        ("text:utf-16+length", LengthPrefixed().text("utf-16")),
        ("compressed+length", LengthPrefixed().compressed()),
        (
            "compressed:gzip,level=9,max_size=1k+length",
            LengthPrefixed().compressed("gzip", level=9, max_size=1024),
        ),
        (
            "json+compressed+compressed:deflate+cobs",
            COBS().compressed("deflate").compressed().json(),
        ),
    ],
)
def test_codecs_by_name(spec: str, codec: Codec[Any, Any] | None) -> None:
    if codec is None:
        error_of(spec)
    else:
        assert parse_codec(spec) == codec


def test_the_default_is_that_of_the_package() -> None:
    assert parse_codec(DEFAULT) == LengthPrefixed()


# How a value of each setting is written, and what it is then.
WRITTEN: dict[str, tuple[str, Any]] = {
    "adjustment": ("-4", -4),
    "byteorder": ("little", "little"),
    "delimiter": ("a|b", (b"a", b"b")),
    "encoding": ("latin-1", "latin-1"),
    "format": ("!I", "!I"),
    "header": (r"\xca", b"\xca"),
    "keep": ("yes", True),
    "level": ("9", 9),
    "max_header_size": ("8K", 8192),
    "max_size": ("16M", 16 * 1024 * 1024),
    "method": ("gzip", "gzip"),
    "newline": (r"\r\n", b"\r\n"),
    "offset": ("4", 4),
    "signed": ("yes", True),
    "size": ("2", 2),
    "strip": ("3", 3),
}
# What some go with.
BESIDE = {
    ("delimiter", "keep"): "x,",
    ("delimiter", "max_size"): "x,",
    ("length", "header"): "2,offset=1,strip=3,",
    ("length", "strip"): r"2,offset=1,header=\0,",
}


KINDS: dict[str, Framing | Layer] = {**FRAMINGS, **LAYERS}


def settings_of(kind: Framing | Layer) -> list[str]:
    fields = () if kind.codec is None else attrs.fields(kind.codec)
    return [field.name for field in fields if field.init and field.name != "inner"]


@pytest.mark.parametrize(
    ("name", "setting"),
    [(name, setting) for name, kind in KINDS.items() for setting in settings_of(kind)],
)
def test_every_setting_of_every_codec_can_be_given(name: str, setting: str) -> None:
    text, value = WRITTEN[setting]
    framing = "+length" if name in LAYERS else ""
    for key in (setting, setting.replace("_", "-")):
        codec = parse_codec(f"{name}:{BESIDE.get((name, setting), '')}{key}={text}{framing}")
        assert getattr(codec, setting) == value


@pytest.mark.parametrize("name", FRAMINGS)
def test_layers_stand_on_every_framing_or_say_why_not(name: str) -> None:
    framing = f"{name}:{FRAMINGS[name].example}" if FRAMINGS[name].needs_argument else name
    for layer in LAYERS:
        if name == "struct" or (name == "lines" and layer != "json"):
            assert error_of(f"{layer}+{framing}").startswith(f"{layer} is put into frames of bytes")
        else:
            codec = parse_codec(f"{layer}+{framing}")
            if name not in {"fixed", "delimiter"}:  # which do not take any bytes
                codec.writer().encode(b"a" if layer == "compressed" else "a")


# -- mistakes


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", f"the name of a framing is missing in ''; {LIST}"),
        ("json+", f"the name of a framing is missing in 'json+'; {LIST}"),
        ("+lines", f"there is no layer ''; {LIST}"),
        ("line", f"there is no codec 'line' (did you mean 'lines'?); {LIST}"),
        ("LengthPrefixed", f"there is no codec 'LengthPrefixed' (did you mean 'length'?); {LIST}"),
        ("Delimited", f"there is no codec 'Delimited' (did you mean 'delimiter'?); {LIST}"),
        ("websocket", f"there is no codec 'websocket'; {LIST}"),
        ("jsn+lines", f"there is no layer 'jsn' (did you mean 'json'?); {LIST}"),
        ("gzip+lines", f"there is no layer 'gzip'; {LIST}"),
        ("json", "json says what is in the frames, not how they are cut: json+lines"),
        ("lines+json", "json says what is in the frames, not how they are cut: json+lines"),
        (
            "compressed:9",
            ("compressed says what is in the frames, not how they are cut: compressed+length"),
        ),
        ("lines+fixed:2", "lines and fixed:2 both cut bytes into messages: one of them is enough"),
        ("text+lines", "text is put into frames of bytes, and lines has text"),
        (
            "json+json+length",
            (
                "json is put into frames of bytes or text, and json has neither, "
                "as far as its class declares"
            ),
        ),
        ("delimiter", r"delimiter needs its delimiter, as in delimiter:\0"),
        ("delimiter:keep", r"delimiter needs its delimiter, as in delimiter:\0"),
        ("fixed", "fixed needs its size, as in fixed:16"),
        ("struct", "struct needs its format, as in struct:!IH"),
        ("length:x", "length: size is a whole number, such as 4 or 16M, not 'x'"),
        ("length:", "length: size is a whole number, such as 4 or 16M, not ''"),
        ("length:4.5", "length: size is a whole number, such as 4 or 16M, not '4.5'"),
        ("length:\u0664", "length: size is a whole number, such as 4 or 16M, not '\u0664'"),
        ("length:4ib", "length: size is a whole number, such as 4 or 16M, not '4ib'"),
        ("length:signed=true", "length: signed is yes or no, not 'true'"),
        (
            "length:2,sgned",
            (
                "length has no setting 'sgned' (did you mean 'signed'?); it has size, byteorder, "
                "max_size, signed, offset, adjustment, strip, header"
            ),
        ),
        (
            "lines:max-sise=3",
            (
                "lines has no setting 'max-sise=3' (did you mean 'max_size'?); "
                "it has encoding, newline, max_size"
            ),
        ),
        ("lines:inner=x", "lines has no setting 'inner=x'; it has encoding, newline, max_size"),
        ("netstring:1,2", "netstring has no setting '2'; it has max_size"),
        ("slip:little", "slip: max_size is a whole number, such as 4 or 16M, not 'little'"),
        ("chunks:4", "chunks has no setting '4'; it has none"),
        ("json:4+lines", "json has no setting '4'; it has none"),
        ("length:2,size=4", "length:2,size=4: size is given twice"),
        ("length:little,big", "length:little,big: byteorder is given twice"),
        ("length:9", "length:9: size must be 1 to 8 bytes, not 9"),
        ("fixed:-1", "fixed:-1: size must be 1 or more bytes, not -1"),
        (
            r"delimiter:\q",
            (
                "delimiter: delimiter: \\q is no escape; these are: "
                r"\\, \n, \r, \t, \0 and \xNN (two hex digits)"
            ),
        ),
        (
            r"lines:newline=\q",
            (
                "lines: newline: \\q is no escape; these are: "
                r"\\, \n, \r, \t, \0 and \xNN (two hex digits)"
            ),
        ),
        ("absent:codec", f"there is neither a codec nor a module 'absent'; {LIST}"),
        ("absent.too:codec", f"there is neither a codec nor a module 'absent.too'; {LIST}"),
        (
            "lenght:4",
            f"there is neither a codec nor a module 'lenght' (did you mean 'length'?); {LIST}",
        ),
        ("a-b:c", f"there is no codec 'a-b'; {LIST}"),
        ("/x:c", f"there is no codec '/x'; {LIST}"),
    ],
)
def test_mistakes(spec: str, message: str) -> None:
    assert error_of(spec) == message


@pytest.mark.parametrize(
    "spec",
    [
        "lines:nope",
        "lines:utf-16",
        "lines:\0",
        "lines:newline=a",
        "text:hex+length",
        "struct:zz",
        "struct:" + "9" * 30 + "s",
        "delimiter:|",
        "delimiter:\n\x1b[2J|",
        "length:" + "9" * 5000,
        "length:header=a",
        "varint:-1",
        "compressed:zip+length",
        "compressed:level=99+length",
    ],
    ids=lambda spec: ascii(spec)[:20],
)
def test_what_a_codec_itself_refuses_is_told_on_one_line(spec: str) -> None:
    assert error_of(spec).startswith(spec.partition(":")[0])


def test_a_layer_whose_extra_is_missing_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "msgspec", None)
    assert re.fullmatch("json: .*the extra msgspec.*", error_of("json+lines"))


NAMES = st.sampled_from(["", *FRAMINGS, *LAYERS, "Lines", "nothing"])
ITEMS = st.one_of(
    st.sampled_from(["", "big", "keep", "4", "-1", "16M", "latin-1", r"\n", "|", "!I", "gzip"]),
    st.builds(
        "{}={}".format,
        st.sampled_from(
            ["size", "max_size", "encoding", "newline", "keep", "byteorder", "header", "strip"]
        ),
        st.sampled_from(["", "4", "yes", "9" * 30, r"\x00", "little"]) | st.text(max_size=3),
    ),
    st.text(max_size=4),
)
PARTS = st.builds(
    lambda name, items: name + ":" * bool(items) + ",".join(items),
    NAMES,
    st.lists(ITEMS, max_size=3),
)


@given(st.lists(PARTS, min_size=1, max_size=3).map("+".join) | st.text())
@example("struct:Q" * 3)
@example("\x1b[2J:x")
def test_any_text_is_a_codec_or_refused_on_one_line(spec: str) -> None:
    try:
        codec = parse_codec(spec)
    except ValueError as error:
        message = str(error)
    else:
        codec.reader()
        codec.writer()
        message = "it is one"
    assert message
    assert message.isprintable()


# -- codecs of one's own


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory, which Python does not look for modules in yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(sys, "modules", sys.modules.copy())
    monkeypatch.setattr(sys, "path_importer_cache", {})
    return tmp_path


OWN = """\
from trio_bytetalk import Delimited, LengthPrefixed

codec = LengthPrefixed(3)
number = 7

class Semicolons(Delimited):
    def __init__(self):
        super().__init__(b";")

def make():
    return codec

def fail():
    raise KeyError("key")

def leave():
    raise SystemExit("good\\nbye")
"""


def test_an_object_of_a_module_in_the_current_directory(here: Path) -> None:
    (here / "ours.py").write_text(OWN)
    for path in ("codec", "make"):
        assert parse_codec(f"ours:{path}") == LengthPrefixed(3)
    assert parse_codec("ours:Semicolons").writer().encode(b"a") in (b"a;", [b"a", b";"])
    assert parse_codec("json+ours:codec") == LengthPrefixed(3).json()
    assert sys.path.count(os.getcwd()) == 1
    assert sys.path[0] == os.getcwd()


def test_a_module_of_a_package_and_an_object_within_another(here: Path) -> None:
    (here / "package").mkdir()
    (here / "package" / "__init__.py").write_text("")
    (here / "package" / "inner.py").write_text(
        "from trio_bytetalk import Lines\nclass Codecs:\n    lines = Lines()\n"
    )
    assert parse_codec("package.inner:Codecs.lines") == Lines()
    assert error_of("package.other:x") == (
        f"there is neither a codec nor a module 'package.other'; {LIST}"
    )


def test_a_known_name_wins(here: Path) -> None:
    (here / "lines.py").write_text("raise AssertionError")
    assert parse_codec("lines:latin-1") == Lines(encoding="latin-1")


def test_what_is_installed_is_found_where_the_current_directory_is_gone(here: Path) -> None:
    before = sys.path.copy()
    here.rmdir()
    assert parse_codec("trio_bytetalk:Lines") == Lines()
    assert sys.path == before


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("ours:", "ours: needs the name of a codec in the module, as in ours:codec"),
        ("ours:cdec", "ours has no 'cdec' (did you mean 'codec'?)"),
        ("ours:codec.nothing", "ours has no 'codec.nothing'"),
        ("ours:.", "ours has no '.'"),
        (
            "ours:number",
            (
                "ours:number must be a trio_bytetalk.Codec, or return one when it is called "
                "without arguments; it is of the type int"
            ),
        ),
        ("ours:fail", "ours:fail() fails: KeyError: 'key' (ours.py, line 14)"),
        ("ours:leave", r"ours:leave() fails: SystemExit: good\nbye (ours.py, line 17)"),
        (
            "ours:Delimited",
            (
                "ours:Delimited() fails: TypeError: Delimited.__init__() missing 1 required "
                "positional argument: 'delimiter'"
            ),
        ),
        (
            "json+ours:Untold",
            (
                "json is put into frames of bytes or text, and ours:Untold has neither, as far as "
                "its class declares"
            ),
        ),
    ],
)
def test_an_object_that_is_no_codec(here: Path, spec: str, message: str) -> None:
    (here / "ours.py").write_text(
        OWN
        + "from trio_bytetalk import Codec\n"
        + "class Untold(Codec):\n    reader = codec.reader\n    writer = codec.writer\n"
    )
    assert error_of(spec) == message


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("x = 1\ny = 1 / 0\n", "ZeroDivisionError: division by zero (broken.py, line 2)"),
        (
            "import nothing_like_it\n",
            ("ModuleNotFoundError: No module named 'nothing_like_it' (broken.py, line 1)"),
        ),
        (
            "from trio_bytetalk import Nope\n",
            "ImportError: cannot import name 'Nope' from "
            "'trio_bytetalk' ("
            + str(Path(__file__).parents[1] / "trio_bytetalk" / "__init__.py")
            + ") (broken.py, line 1)",
        ),
        ("raise SystemExit\n", "SystemExit: SystemExit() (broken.py, line 1)"),
        (
            (
                "class Strange(Exception):\n    def __str__(self):\n        raise TypeError\n"
                "raise Strange\n"
            ),
            "Strange: Strange, whose words could not be had (broken.py, line 4)",
        ),
    ],
)
def test_a_module_that_cannot_be_imported(here: Path, source: str, what: str) -> None:
    (here / "broken.py").write_text(source)
    assert error_of("broken:codec") == f"broken cannot be imported: {what}"


def test_a_module_that_cannot_be_read(here: Path) -> None:
    (here / "broken.py").write_text("x =\n")
    assert re.fullmatch(
        r"broken cannot be imported: SyntaxError: invalid syntax \(broken.py, line 1\)",
        error_of("broken:codec"),
    )
    (here / "binary.py").write_bytes(b"\0")
    assert error_of("binary:codec").startswith("binary cannot be imported: ")


# -- the list of them, and as a parameter


def test_the_overview_has_every_codec_with_its_settings() -> None:
    text = overview()
    assert all(len(line) < 80 for line in text.splitlines())
    for name, kind in KINDS.items():
        plus = "+" if name in LAYERS else ""
        row = re.search(
            rf"^  {re.escape(name + plus)} +{re.escape(kind.summary)}.*\n((?: {{20}}.*\n)*)",
            text,
            re.MULTILINE,
        )
        assert row is not None, name
        settings = re.findall(r"\w+", row[1])
        assert set(settings) == set(settings_of(kind))
        assert settings[:1] == ([] if kind.argument is None else [kind.argument])


def test_the_overviews_examples_are_codecs() -> None:
    examples = re.findall(r"as in ([a-z]+:\S+)$", overview(), re.MULTILINE)
    assert len(examples) == 3
    examples += re.findall(r"(\S+), (\S+)$", overview().splitlines()[1])[0]
    for each in examples:
        parse_codec(each)


@click.command()
@codec_option
def show(codec: Codec[Any, Any]) -> None:
    print(repr(codec))


def test_a_codec_as_an_option() -> None:
    runner = CliRunner()
    assert runner.invoke(show, []).output == f"{LengthPrefixed()!r}\n"
    assert runner.invoke(show, ["-c", "lines"]).output == f"{Lines()!r}\n"
    assert runner.invoke(show, ["--codec", "lines"]).output == f"{Lines()!r}\n"
    result = runner.invoke(show, ["--codec", "line"])
    assert result.exit_code == 2
    assert "Invalid value for '--codec' / '-c': there is no codec 'line'" in result.output
    assert CODEC.convert(Lines(), None, None) == Lines()


def test_an_option_may_keep_the_name() -> None:
    given: list[object] = []

    @click.command()
    @named_codec_option
    def keep(codec: object) -> None:
        given.append(codec)

    for arguments in (["-c", "json+lines"], []):
        assert CliRunner().invoke(keep, arguments).exit_code == 0
    assert given == [("json+lines", Lines().json()), ("length:4", LengthPrefixed())]


@pytest.mark.parametrize(
    ("incomplete", "completions"),
    [
        ("le", ["length"]),
        ("c", ["content-length", "cobs", "chunks", "compressed+"]),
        ("json+l", ["json+length", "json+lines"]),
        ("json+t", ["json+text+"]),
        ("json+text+v", ["json+text+varint"]),
        ("x", []),
        ("", [*FRAMINGS, *(f"{layer}+" for layer in LAYERS)]),
    ],
)
def test_completion_of_codecs(incomplete: str, completions: list[str]) -> None:
    ctx = click.Context(show)
    items = CODEC.shell_complete(ctx, show.params[0], incomplete)
    assert [item.value for item in items] == completions
    assert all(item.help for item in items)
