"""Every Python block of the README and the documentation is run, in order, page by page.

The blocks of a page share their names, as they do for someone who types them in. To make that
possible:

- ``trio.run(…)`` goes on in the background, until the page ends, once its server is listening;
- port 5555 is whatever port the last server was given;
- there are the files that ``python -m trustme`` writes: ``server.pem`` and ``server.key``,
  localhost's certificate and its key, and ``client.pem``, the authority's certificate;
- a block whose caption is ``chat.py`` is a part of that file: it knows no names but the file's own,
  and other blocks may import them from ``chat``;
- ``await`` may stand outside of functions, and test functions are called, those that ask for the
  fixture ``autojump_clock`` in a Trio run of their own, with such a clock;
- a block of ``text`` must be what has been printed since the one before, in so many lines; ``...``
  stands for anything, as in doctest.
"""

from __future__ import annotations

import ast
import doctest
import functools
import importlib.util
import inspect
import math
import re
import runpy
import shlex
import sys
import textwrap
import tomllib
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import click
import pytest
import trio
import trio.testing

import trio_bytetalk
import trio_bytetalk.testing
from trio_bytetalk import (
    Codec,
    Connection,
    ContentLength,
    LengthPrefixed,
    Server,
    stop_on_signals,
)
from trio_bytetalk._cli import codecs, failures, main
from trio_bytetalk._metrics import METRICS
from trio_bytetalk.opentelemetry import observe_servers
from trio_bytetalk.prometheus import ServerCollector

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "source").rglob("*.rst"))]

PORT = 5555
BOUND = 50  # seconds for a page; a fraction of one, where the machine has nothing else to do


@attrs.frozen
class Block:
    page: Path
    line: int
    language: str
    text: str
    caption: str = ""


def blocks_of(page: Path) -> Iterator[Block]:
    """The blocks marked ``python`` or ``text`` of a Markdown or reStructuredText page."""
    lines = page.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        if fence := re.fullmatch("```(python|text)", line):
            end = lines.index("```", number)
            yield Block(page, number, fence[1], "\n".join(lines[number + 1 : end]))
        elif directive := re.fullmatch(r"(.*)\.\. code-block:: (python|text)", line):
            end = number + 1
            margin = " " * (len(directive[1]) + 1)
            while end < len(lines) and (not lines[end] or lines[end].startswith(margin)):
                end += 1
            start = number + 1
            if caption := re.fullmatch(r" +:caption: (.+)", lines[start]):
                start += 1
            text = textwrap.dedent("\n".join(lines[start:end])).strip("\n")
            yield Block(page, start, directive[2], text, caption[1] if caption else "")


@attrs.define(eq=False)
class Reader:
    """Someone who goes through a page and tries everything."""

    patches: pytest.MonkeyPatch
    run: Callable[..., object] = attrs.field(default=trio.run, init=False)  # before it is patched
    names: dict[str, Any] = attrs.field(factory=dict)
    files: dict[str, ModuleType] = attrs.field(factory=dict)
    port: int = 0
    listening: trio.Event = attrs.field(factory=trio.Event)
    programs: list[tuple[Callable[..., Awaitable[object]], tuple[Any, ...]]] = attrs.field(
        factory=list
    )
    printed: list[str] = attrs.field(factory=list)
    printed_more: trio.Event = attrs.field(factory=trio.Event)

    def __attrs_post_init__(self) -> None:
        serve_tcp = Server.serve_tcp
        open_tcp_connection = trio_bytetalk.open_tcp_connection
        reader = self

        class Started:
            def __init__(self, status: trio.TaskStatus[Any]) -> None:
                self.status = status

            def started(self, listeners: Any = None) -> None:
                reader.port = listeners[0].socket.getsockname()[1]
                reader.listening.set()
                self.status.started(listeners)

        async def serve_anywhere(
            server: Server[Any, Any],
            port: int,
            *,
            task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED,
            **options: Any,
        ) -> None:
            assert port == PORT
            options["host"] = "127.0.0.1"  # with port 0, every address would have another port
            await serve_tcp(server, 0, **options, task_status=Started(task_status))

        def open_connection_there(
            host: str, port: int, **options: Any
        ) -> AbstractAsyncContextManager[Connection[Any, Any]]:
            assert port == PORT
            return open_tcp_connection(host, self.port, **options)

        self.patches.setattr(Server, "serve_tcp", serve_anywhere)
        self.patches.setattr(trio_bytetalk, "open_tcp_connection", open_connection_there)
        self.patches.setattr(trio, "run", lambda program, *args: self.run_later(program, args))
        self.names["print"] = self.print

    def run_later(self, program: Callable[..., Awaitable[object]], args: tuple[Any, ...]) -> None:
        self.programs.append((program, args))

    def print(self, *values: object) -> None:
        self.printed += " ".join(map(str, values)).splitlines()
        self.printed_more.set()

    async def read(self, page: Path) -> None:
        with trio.fail_after(BOUND):
            async with trio.open_nursery() as background:
                for block in blocks_of(page):
                    if block.language == "python":
                        await self.execute(block, background)
                    else:
                        await self.expect(block)
                background.cancel_scope.cancel()

    def names_of(self, block: Block) -> dict[str, Any]:
        """Where what ``block`` defines is to be found: on the page, or in a file of its own."""
        if not block.caption:
            return self.names
        if block.caption not in self.files:
            module = self.files[block.caption] = ModuleType("__main__")
            vars(module)["print"] = self.print
            self.patches.setitem(sys.modules, block.caption.removesuffix(".py"), module)
        return vars(self.files[block.caption])

    async def execute(self, block: Block, background: trio.Nursery) -> None:
        names = self.names_of(block)
        known = set(names)
        # Empty lines in front make the line numbers of a traceback those of the page.
        code = compile(
            "\n" * block.line + block.text,
            str(block.page),
            "exec",
            flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
            dont_inherit=True,
        )
        result = eval(code, names)
        if result is not None:
            await result
        for name in set(names) - known:
            if name.startswith("test_"):
                await self.run_test(names[name])
        while self.programs:
            self.listening = trio.Event()
            background.start_soon(self.run_program, *self.programs.pop(0))
            await self.listening.wait()

    async def run_test(self, test: Callable[..., Awaitable[object]]) -> None:
        if "autojump_clock" in inspect.signature(test).parameters:
            clock = trio.testing.MockClock(autojump_threshold=0)
            await trio.to_thread.run_sync(functools.partial(self.run, test, clock, clock=clock))
        else:
            await test()

    async def run_program(
        self, program: Callable[..., Awaitable[object]], args: tuple[Any, ...]
    ) -> None:
        listening = self.listening
        await program(*args)
        listening.set()  # there may have been no server in it

    async def expect(self, block: Block) -> None:
        count = len(block.text.splitlines())
        while len(self.printed) < count:
            self.printed_more = trio.Event()
            await self.printed_more.wait()
        got = "\n".join(self.printed)
        self.printed.clear()
        same = doctest.OutputChecker().check_output(block.text, got, doctest.ELLIPSIS)
        assert same, f"{block.page}, line {block.line}: printed was\n{got}"


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if any(block.language == "python" for block in blocks_of(page))],
    ids=lambda page: page.relative_to(ROOT).as_posix(),
)
def test_every_python_block_of_a_page_does_what_the_page_says(
    page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["trustme", "--quiet"])
    runpy.run_module("trustme", run_name="__main__")
    reader = Reader(monkeypatch)
    reader.run(reader.read, page)


def test_the_reference_has_every_public_name() -> None:
    documented = set()
    for page in (ROOT / "docs" / "source" / "reference").glob("*.rst"):
        text = page.read_text(encoding="utf-8")
        documented |= set(
            re.findall(
                r"^\.\. (?:autoclass|autodata|autoexception|autofunction|data):: (\w+)",
                text,
                re.MULTILINE,
            )
        )
    modules = trio_bytetalk, trio_bytetalk.opentelemetry, trio_bytetalk.prometheus
    assert documented == {
        *trio_bytetalk.testing.__all__,
        *(name for module in modules for name in module.__all__),
    }


def test_the_table_of_log_records_has_every_event() -> None:
    page = (ROOT / "docs" / "source" / "howto" / "looking_inside.rst").read_text(encoding="utf-8")
    package = ROOT / "trio_bytetalk"
    sources = "".join(path.read_text(encoding="utf-8") for path in package.rglob("*.py"))
    events = set(re.findall(r"\b_?(?:log_)?fields\(\s*\"(\w+)\"", sources))
    assert events
    rows = re.findall(r"^   \* - ``(\w+)``\n     - ``\w+``$", page, re.MULTILINE)
    assert events == set(rows)


async def test_the_table_of_metrics_has_every_metric_with_all_that_exporters_say_of_it() -> None:
    page = (ROOT / "docs" / "source" / "reference" / "metrics.rst").read_text(encoding="utf-8")
    rows = re.findall(
        r"^   \* - \| ``(.+)``\n       \| ``(.+)``\n     - (.+)\n"
        r"     - \| (.+)\n       \| ``(.+)``\n     -(?: ``(.+)``)?$",
        page,
        re.MULTILINE,
    )
    kinds = {"counter": "counter", "updown": "up-down counter", "gauge": "gauge"}
    families = ServerCollector({"it": Server()}).collect()
    total = {"counter": "_total", "gauge": ""}  # what the text format puts behind a name
    assert rows == [
        (
            metric.name,
            family.name.removeprefix("bytetalk_server_") + total[family.type],
            metric.help,
            kinds[metric.kind],
            metric.unit,
            metric.attribute or "",
        )
        for metric, family in zip(METRICS, families, strict=True)
    ]


def test_the_architecture_page_has_every_module() -> None:
    page = (ROOT / "docs" / "source" / "explanation" / "architecture.rst").read_text(
        encoding="utf-8"
    )
    package = ROOT / "trio_bytetalk"
    modules = {path.name for path in package.glob("*.py")} - {"__init__.py"}
    packages = {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    assert modules | packages == set(re.findall(r"``(\w+\.py|\w+/)``", page))


def test_the_tables_of_limits_have_every_setting_with_its_default() -> None:
    page = (ROOT / "docs" / "source" / "reference" / "limits.rst").read_text(encoding="utf-8")
    rows = re.findall(r"^   \* - ``(\w+)``(?:, of .*)?\n     - (\w+)$", page, re.MULTILINE)
    server = Server()
    defaults = [
        *attrs.asdict(server.limits).items(),
        ("max_size", LengthPrefixed().max_size),
        ("max_size", default_of(Codec.compressed, "max_size")),
        ("max_header_size", ContentLength().max_header_size),
        ("max_connections", server.max_connections),
        ("backlog", default_of(Server.serve_tcp, "backlog")),
        ("timeout", default_of(Server.stop, "timeout")),
        ("timeout", default_of(stop_on_signals, "timeout")),
        ("buffer_size", server.events().buffer_size),
        ("timeout", default_of(ServerCollector, "timeout")),
    ]
    assert rows == [
        (setting, "None" if default in (None, math.inf) else str(default))
        for setting, default in defaults
    ]
    assert default_of(Server.serve_unix, "backlog") is None
    assert default_of(observe_servers, "timeout") == default_of(ServerCollector, "timeout")


def default_of(function: Callable[..., object], setting: str) -> object:
    return inspect.signature(function).parameters[setting].default


def commands_of_the_program() -> dict[str, click.Command]:
    ctx = main.program.make_context("bytetalk", [], resilient_parsing=True)
    commands = {
        name: main.program.get_command(ctx, name) for name in main.program.list_commands(ctx)
    }
    return {name: command for name, command in commands.items() if command is not None}


def command_line() -> str:
    return (ROOT / "docs" / "source" / "reference" / "command_line.rst").read_text(encoding="utf-8")


def test_the_command_lines_tables_have_every_codec_with_its_settings() -> None:
    rows = re.findall(
        r"^   \* - ``([\w-]+)``\n     - `(.+)`\n     - (.+(?:\n       .+)*)$",
        command_line(),
        re.MULTILINE,
    )
    documented = {name: (made, re.findall(r"``(\w+)``", settings)) for name, made, settings in rows}
    expected = {}
    kinds: dict[str, codecs.Framing | codecs.Layer] = {**codecs.FRAMINGS, **codecs.LAYERS}
    for name, kind in kinds.items():
        fields = () if kind.codec is None else attrs.fields(kind.codec)
        settings = [field.name for field in fields if field.init and field.name != "inner"]
        settings.sort(key=lambda setting: setting != kind.argument)  # the one without a key first
        layer = name in codecs.LAYERS
        made = f"Codec.{name}" if layer else getattr(kind.codec, "__name__", "")
        expected[name] = (made, settings)
    assert documented == expected


def test_the_command_lines_examples_of_codecs_are_codecs() -> None:
    examples = re.search(r"in front of it:\n\n.+\n\n((?:   \S+\n)+)", command_line())
    assert examples is not None
    *known, own = examples[1].split()
    assert own == "mymodule:codec"
    assert len(known) > 4
    for each in known:
        codecs.parse_codec(each)


def test_the_command_lines_commands_and_options_exist() -> None:
    page = command_line()
    commands = commands_of_the_program()
    assert set(re.findall(r"``bytetalk (\w+)\b", page)) <= {*commands, "COMMAND"}
    rows = re.findall(r"^   \* - ``bytetalk (\w+)\b", page, re.MULTILINE)
    assert rows == list(commands)
    options = {
        option
        for command in [main.program, *commands.values()]
        for parameter in command.params
        for option in [*parameter.opts, *parameter.secondary_opts]
    }
    assert set(re.findall(r"``(--[\w-]+)", page)) <= {*options, "--help"}
    assert f"``{failures.DEBUG_VARIABLE}``" in page


def shell_lines() -> Iterator[tuple[str, str, list[str]]]:
    """Each ``bytetalk`` that a page would have one type, as page, command and arguments."""
    for page in PAGES:
        for line in page.read_text(encoding="utf-8").splitlines():
            typed = re.search(
                r"(?:^ *\$ (?:.* )?|`(?:[^`]* )?)bytetalk (\w+)((?: [^`]*)?)(?:`|$)", line
            )
            if typed is not None and typed[1] != "COMMAND":
                words = shlex.split(re.split(r" [|<>&]", typed[2])[0])
                if not any(re.fullmatch("[A-Z]+", word) for word in words):  # what stands for more
                    yield page.relative_to(ROOT).as_posix(), typed[1], words


@pytest.mark.parametrize(
    ("page", "name", "arguments"), list(shell_lines()), ids=lambda part: str(part).replace("/", ".")
)
def test_the_shell_lines_of_a_page_can_be_typed(
    page: str, name: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for file in ("server.pem", "server.key", "client.pem"):
        (tmp_path / file).touch()
    command = commands_of_the_program()[name]
    if arguments or name == "codecs":  # the name alone speaks of the command as such
        command.make_context(name, arguments.copy())


def test_the_readme_connects_to_where_it_has_served() -> None:
    lines = {name: arguments for page, name, arguments in shell_lines() if page == "README.md"}
    commands = commands_of_the_program()
    served = commands["serve"].make_context("serve", lines["serve"]).params
    address = commands["connect"].make_context("connect", lines["connect"]).params["address"]
    assert (served["host"], served["port"]) == ("127.0.0.1", address.port)
    assert address.host is None  # localhost


def architecture() -> ModuleType:
    """The script that draws the architecture page's picture."""
    path = ROOT / "docs" / "draw_architecture.py"
    spec = importlib.util.spec_from_file_location("draw_architecture", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_picture_of_the_architecture_is_of_today() -> None:
    drawing = architecture()
    assert drawing.PICTURE.read_text(encoding="utf-8") == drawing.picture(), (
        "draw it again: python docs/draw_architecture.py"
    )


def test_no_floor_imports_from_one_above_it() -> None:
    drawing = architecture()
    arrows = drawing.arrows(drawing.floors())
    assert arrows
    assert {(floor, other) for floor, other in arrows if floor < other} == set()


def test_the_promises_name_test_modules_that_exist() -> None:
    page = (ROOT / "docs" / "source" / "promises.rst").read_text(encoding="utf-8")
    named = set(re.findall(r"``(test_\w+\.py)``", page))
    assert named
    assert {name for name in named if not (ROOT / "tests" / name).exists()} == set()


def test_what_is_to_be_installed_is_in_the_checkout_with_extras_that_exist() -> None:
    """There is no release: whoever asks an index for the package gets somebody else's."""
    folders = ROOT / "trio_bytetalk", ROOT / "examples"
    sources = [path for folder in folders for path in folder.rglob("*.py")]
    text = "\n".join(path.read_text(encoding="utf-8") for path in [*PAGES, *sources])
    assert re.findall(r"pip install .?trio.bytetalk.*", text) == []
    extras = set(re.findall(r"pip install '\.\[(\w+)\]'", text))
    with (ROOT / "pyproject.toml").open("rb") as file:
        known = set(tomllib.load(file)["project"]["optional-dependencies"])
    assert extras == {"cli", "msgspec", "prometheus", "opentelemetry"}
    assert extras <= known
