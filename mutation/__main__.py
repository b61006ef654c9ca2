"""The run: every mutant of the modules named, each against its module's own tests.

Pytest collects the tests of a module once. Each mutant then gets a fork of that process, in which
the changed functions are given their changed code, and only the tests are run that went through the
changed statement, the quickest first, until one fails. What a changed function cannot show, such as
a change in a class body, gets a fork of a process that has not imported the package yet. So does
each survivor, for a second chance with all tests and all of hypothesis's examples. Both take long,
and are spared where the mutant is explained.
"""

from __future__ import annotations

import argparse
import collections
import faulthandler
import gc
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import pickle
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any, NoReturn

import attrs
import coverage
import hypothesis
import pytest

from .mutants import Mutant, mutants_of

ROOT = Path(__file__).parent.parent
FLOORS = {
    "codecs": [
        *("_buffer", "_chunks", "_codec", "_compression", "_content_length", "_decimal_prefixed"),
        *("_delimited", "_errors", "_fixed_size", "_length_prefixed", "_messages", "_stuffed"),
        *("_validators", "_varint_prefixed"),
    ],
    "events": ["_events"],
    "transport": ["_epoll", "_flusher", "_timer", "_transport"],
    "connection": ["_connection", "_limits"],
}

# How a test process ends: only a test that fails, or a module that cannot be imported, has noticed
# the mutant. A process that breaks in any other way says nothing of the tests.
KILLED, SURVIVED, NEEDS_IMPORT, BROKEN = 10, 11, 12, 13
TIMED_OUT = 1  # faulthandler's

# For how many seconds the package may be imported, and tests collected.
IMPORT_PATIENCE = 60

# What is imported before the first fork, for the tests import it. Nothing of the package.
WARM = ["trio.testing", "hypothesis.stateful", "trustme", "msgspec", "unittest.mock"]


@attrs.frozen
class Test:
    """What is known of a test that passes."""

    seconds: float
    lines: frozenset[int]
    """Of the module under test, that the test went through."""


class Run:
    """A pytest plugin, in a fork: run the tests that are wanted, and exit at the first failure."""

    def __init__(self, known: dict[str, Test], wanted: Sequence[str], profile: str) -> None:
        self.known = known
        self.wanted = wanted
        self.profile = profile

    def pytest_collection(self) -> None:
        hypothesis.settings.load_profile(self.profile)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            os._exit(KILLED)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            os._exit(KILLED)

    def pytest_runtestloop(self, session: pytest.Session) -> NoReturn:
        items = {item.nodeid: item for item in session.items}
        chosen = [items[name] for name in self.wanted]
        for item, following in zip(chosen, [*chosen[1:], None], strict=True):
            # A thread of its own, which ends endless loops, too.
            patience = 2 + 20 * self.known[item.nodeid].seconds
            faulthandler.dump_traceback_later(patience, exit=True, file=2)
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        os._exit(SURVIVED)


class Mutating:
    """A pytest plugin: after the collection, a fork for each mutant."""

    def __init__(self, path: Path, mutants: list[Mutant], jobs: int) -> None:
        self.path = path
        self.mutants = mutants
        self.jobs = jobs
        self.known: dict[str, Test] = {}
        self.outcomes: list[int] = []

    def pytest_collection(self) -> None:
        hypothesis.settings.load_profile("mutation")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self.known = in_fork(lambda: measure(session, self.path))
        source = self.path.read_text(encoding="utf-8")
        original = compile(source, self.path, "exec", dont_inherit=True)
        live = collections.defaultdict(list)
        for thing in gc.get_objects():
            if isinstance(thing, FunctionType) and thing.__code__.co_filename == str(self.path):
                live[_place(thing.__code__)].append(thing)

        def work(mutant: Mutant) -> NoReturn:
            changed = compile(mutant.source, self.path, "exec", dont_inherit=True)
            if not exchange(original, changed, live):
                os._exit(NEEDS_IMPORT)
            run = Run(self.known, wanted(self.known, mutant), "mutation")
            session.config.pluginmanager.register(run)
            run.pytest_runtestloop(session)

        jobs = [lambda mutant=mutant: work(mutant) for mutant in self.mutants]
        self.outcomes = in_forks(jobs, self.jobs)
        return True


def measure(session: pytest.Session, path: Path) -> dict[str, Test]:
    """Run all tests with the module as it is."""
    failed = []

    class Watch:
        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            if report.failed:
                failed.append(f"{report.nodeid}\n{report.longreprtext}")

    session.config.pluginmanager.register(Watch())
    measured = coverage.Coverage(data_file=None, config_file=False, include=[str(path)])
    seconds = {}
    measured.start()
    for item, following in zip(session.items, [*session.items[1:], None], strict=True):
        measured.switch_context(item.nodeid)
        before = time.perf_counter()
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        seconds[item.nodeid] = time.perf_counter() - before
    measured.stop()
    if failed:
        raise RuntimeError("without any mutation, there is a test that fails: " + failed[0])
    lines = collections.defaultdict(set)
    for line, contexts in measured.get_data().contexts_by_lineno(str(path)).items():
        for context in contexts:
            lines[context].add(line)
    return {name: Test(seconds[name], frozenset(lines[name])) for name in seconds}


def wanted(known: dict[str, Test], mutant: Mutant) -> list[str]:
    """The tests that went through the statement; or all, where it ran before them."""
    names = [name for name, test in known.items() if not test.lines.isdisjoint(mutant.lines)]
    return sorted(names or known, key=lambda name: known[name].seconds)


def _place(code: CodeType) -> tuple[str, int]:
    return code.co_qualname, code.co_firstlineno


def exchange(old: CodeType, new: CodeType, live: dict[tuple[str, int], list[FunctionType]]) -> bool:
    """Give the functions that differ their new code. False if that is not all that differs."""
    complete = True

    def visit(old: CodeType, new: CodeType, reached: bool) -> bool:
        nonlocal complete
        is_function = bool(old.co_flags & 1)  # CO_OPTIMIZED, which module and class bodies lack
        functions = live.get(_place(old), []) if is_function else []
        reached = reached or bool(functions)
        ours = [part for part in old.co_consts if isinstance(part, CodeType)]
        theirs = [part for part in new.co_consts if isinstance(part, CodeType)]
        differs = _own(old) != _own(new) or len(ours) != len(theirs)
        if differs and not reached:
            complete = False
        for before, after in zip(ours, theirs, strict=False):
            differs |= visit(before, after, reached)
        if differs:
            for function in functions:
                try:
                    function.__code__ = new
                except ValueError:  # it closes over other variables than before
                    complete = False
        return differs

    visit(old, new, False)
    return complete


def _own(code: CodeType) -> tuple[Any, ...]:
    constants = [repr(part) for part in code.co_consts if not isinstance(part, CodeType)]
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    return code.co_code, code.co_exceptiontable, constants, names


class Importer(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports the mutant instead of the module."""

    def __init__(self, path: Path, source: str) -> None:
        self.path = path
        self.source = source

    def find_spec(
        self, name: str, path: object, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != f"trio_bytetalk.{self.path.stem}":
            return None
        return importlib.util.spec_from_file_location(name, self.path, loader=self)

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(self.source, self.path, "exec", dont_inherit=True), module.__dict__)


def in_forks(jobs: Sequence[Callable[[], object]], at_once: int) -> list[int]:
    """Run each in a process of its own, and return how they ended."""
    outcomes = [BROKEN] * len(jobs)
    running: dict[int, int] = {}
    waiting = iter(enumerate(jobs))
    with tempfile.TemporaryDirectory() as scratch:
        while True:
            while len(running) < at_once and (following := next(waiting, None)):
                number, job = following
                pid = os.fork()
                if not pid:
                    _child(job, Path(scratch))
                running[pid] = number
            if not running:
                return outcomes
            pid, status = os.wait()
            number = running.pop(pid)
            outcomes[number] = os.waitstatus_to_exitcode(status)
            try:
                os.killpg(pid, signal.SIGKILL)  # what the tests may have left behind
            except ProcessLookupError:
                pass
            shutil.rmtree(Path(scratch, str(pid)), ignore_errors=True)


def _child(job: Callable[[], object], scratch: Path) -> NoReturn:
    os.setpgid(0, 0)
    own = scratch / str(os.getpid())
    own.mkdir()
    os.environ["PYTEST_DEBUG_TEMPROOT"] = tempfile.tempdir = str(own)
    try:
        job()
    finally:
        os._exit(BROKEN)  # whatever was raised, the fork must not return into its parent's loop


def in_fork(job: Callable[[], Any]) -> Any:
    """What the job returns or raises, done in a process of its own."""
    with tempfile.NamedTemporaryFile() as file:

        def work() -> NoReturn:
            result: tuple[Any, RuntimeError | None]
            try:
                result = job(), None
            except BaseException as error:  # noqa: BLE001 # it is raised in the parent
                result = None, RuntimeError(str(error))
            Path(file.name).write_bytes(pickle.dumps(result))
            os._exit(0)

        in_forks([work], 1)
        result, error = pickle.loads(Path(file.name).read_bytes())
        if error is not None:
            raise error
        return result


def run_pytest(path: Path, plugin: object) -> None:
    """In a fork: nothing is printed but what the plugin lets out."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    tests = ROOT / "tests" / f"test_{path.stem.strip('_')}.py"
    options = ["-q", "-s", "-p", "no:cacheprovider"]
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # for what is imported already
    pytest.main([str(tests), *options], plugins=[plugin])


def try_all(
    path: Path, mutants: list[Mutant], jobs: int, is_explained: Callable[[Mutant], bool]
) -> list[int]:
    """How the tests ended with each mutant."""

    def quick() -> tuple[dict[str, Test], list[int]]:
        plugin = Mutating(path, mutants, jobs)
        run_pytest(path, plugin)
        return plugin.known, plugin.outcomes

    known: dict[str, Test]
    outcomes: list[int]
    known, outcomes = in_fork(quick)
    if not known:
        raise RuntimeError(f"the tests of {path.stem} could not be collected")

    everything = sorted(known, key=lambda name: known[name].seconds)

    def thorough(mutant: Mutant, profile: str) -> None:
        sys.meta_path.insert(0, Importer(path, mutant.source))
        faulthandler.dump_traceback_later(IMPORT_PATIENCE, exit=True, file=2)  # until a test begins
        try:
            importlib.import_module("trio_bytetalk.testing")
        except Exception:  # noqa: BLE001 # whatever it is, every test would notice
            os._exit(KILLED)
        run_pytest(path, Run(known, everything, profile))

    source = path.read_text(encoding="utf-8")
    original = Mutant(path.stem, "", "", "", "none", range(0), source)
    if in_forks([lambda: thorough(original, "mutation")], 1) != [SURVIVED]:
        raise RuntimeError(f"the tests of {path.stem} notice a mutant that is none")

    for ending, profile in ((NEEDS_IMPORT, "mutation"), (SURVIVED, "thorough")):
        again = [
            number
            for number, outcome in enumerate(outcomes)
            if outcome == ending and not is_explained(mutants[number])
        ]
        tries = [lambda n=n, p=profile: thorough(mutants[n], p) for n in again]
        for number, outcome in zip(again, in_forks(tries, jobs), strict=True):
            outcomes[number] = outcome
    return outcomes


@attrs.frozen
class Explanations:
    """What explained.toml says."""

    of_one: frozenset[tuple[str, ...]]
    """By the mutant's key."""
    of_all: frozenset[tuple[str, str]]
    """By a part of the line and what it becomes, wherever that is."""

    @classmethod
    def read(cls) -> Explanations:
        with (ROOT / "mutation" / "explained.toml").open("rb") as file:
            tables = tomllib.load(file)
        one, everywhere = tables["explained"], tables["everywhere"]
        assert all(entry["why"] for entry in (*one, *everywhere))
        return cls(
            frozenset(
                tuple(entry[name] for name in ("module", "function", "was", "becomes"))
                for entry in one
            ),
            frozenset((entry["was"], entry["becomes"]) for entry in everywhere),
        )

    def have(self, mutant: Mutant) -> bool:
        return mutant.key in self.of_one or any(
            was in mutant.was and mutant.was.replace(was, becomes, 1) == mutant.becomes
            for was, becomes in self.of_all
        )


def entry(mutant: Mutant) -> Iterator[str]:
    """As it would stand in explained.toml."""
    yield f"# {mutant.operator}, line {mutant.lines.start}"
    yield "[[explained]]"
    for name, value in zip(("module", "function", "was", "becomes"), mutant.key, strict=True):
        yield f"{name} = {json.dumps(value, ensure_ascii=False)}"
    yield 'why = ""'
    yield ""


def main() -> int:
    parser = argparse.ArgumentParser(prog="mutation", description=__doc__)
    parser.add_argument("modules", nargs="*", help="such as _buffer; or a floor; all without")
    # Many a mutant hangs: then its process waits for the timeout, and does nothing.
    jobs = 2 * (os.cpu_count() or 1)
    parser.add_argument("--jobs", type=int, default=jobs, help="processes at once")
    options = parser.parse_args()
    modules = [module for name in options.modules or FLOORS for module in FLOORS.get(name, [name])]

    os.environ.pop("PYTEST_ADDOPTS", None)
    os.chdir(ROOT)
    # That a test fails is enough: what its smallest example is takes long to find.
    phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
    thorough = hypothesis.settings(
        deadline=None, derandomize=True, database=None, phases=phases, max_examples=100
    )
    hypothesis.settings.register_profile("thorough", thorough)
    hypothesis.settings.register_profile("mutation", thorough, max_examples=15)
    for name in WARM:
        importlib.import_module(name)
    explained = Explanations.read()
    stale = {key for key in explained.of_one if key[0] in modules}
    total: collections.Counter[str] = collections.Counter()
    for module in modules:
        started = time.monotonic()
        path = ROOT / "trio_bytetalk" / f"{module}.py"
        mutants = mutants_of(path)
        counts: collections.Counter[str] = collections.Counter(mutants=len(mutants))
        outcomes = try_all(path, mutants, options.jobs, explained.have)
        for mutant, outcome in zip(mutants, outcomes, strict=True):
            stale.discard(mutant.key)
            if outcome in (SURVIVED, NEEDS_IMPORT):
                kind = "explained" if explained.have(mutant) else "open"
            else:
                # A mutant that ends the whole process, by a signal, is noticed by that.
                noticed = {KILLED: "killed", TIMED_OUT: "timed out"}
                kind = noticed.get(outcome, "killed" if outcome < 0 else "broken")
            counts[kind] += 1
            if kind in ("open", "broken"):
                print(f"# {kind}")
                print(*entry(mutant), sep="\n")
        report(module, counts, time.monotonic() - started)
        total += counts
    report("all", total)
    for key in sorted(stale):
        print(f"explained.toml explains what is no mutant any more: {key}")
    return 1 if total["open"] or total["broken"] or stale else 0


def report(name: str, counts: collections.Counter[str], seconds: float | None = None) -> None:
    kinds = ("mutants", "killed", "timed out", "explained", "open", "broken")
    numbers = ", ".join(f"{counts[kind]} {kind}" for kind in kinds)
    print(f"# {name}: {numbers}" + (f" ({seconds:.0f} s)" if seconds else ""), flush=True)


if __name__ == "__main__":
    sys.exit(main())
