"""The command line: which loads, which contenders, how often; then measure, and report."""

from __future__ import annotations

import argparse
import gc
import os
import resource
import shlex
import signal
import ssl
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import attrs
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks import chart, report
from benchmarks.contenders import CONTENDERS, Contender
from benchmarks.generator.connections import ServerFailedError
from benchmarks.generator.traffic import WrongEchoError
from benchmarks.loads import GOALS, GROUPS, Group, Load, Sample, Setting
from benchmarks.processes import ROOT, ProgramFailedError
from benchmarks.results import DISTURBED, LoadResults, Results, environment

_DEFAULT_OUTPUT: Final = Path(__file__).parent / "results"
_ATTEMPTS: Final = 3
_SMOKE_SECONDS: Final = 0.2
_FILE_WIDTH: Final = 140  # where the output goes to a file, which has no width of its own


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "groups",
        nargs="*",
        metavar="GROUP",
        help=f"what to measure; everything, if none is named: {', '.join(GROUPS)}",
    )
    parser.add_argument(
        "--contenders",
        metavar="NAMES",
        help="only these, separated by commas; 'goals' stands for those that a goal speaks of",
    )
    parser.add_argument("--rounds", type=int, help="default: 5")
    parser.add_argument("--seconds", type=float, help="for each measurement; default: 1")
    parser.add_argument("--warmup", type=float, help="seconds before it; default: 0.3")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="one short round, with the contenders that goals speak of: to see that it works",
    )
    parser.add_argument("--server-core", type=int, help="default: the last that may be used")
    parser.add_argument("--generator-core", type=int, help="default: the first")
    parser.add_argument(
        "--before",
        type=Path,
        metavar="CHECKOUT",
        help="measure the library of another checkout too, and compare with it",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=_DEFAULT_OUTPUT,
        metavar="FOLDER",
        help="where results.json, results.md and chart.svg go; default: benchmarks/results",
    )
    parser.add_argument(
        "--update",
        action="store_true",
        help="keep what results.json has of the loads that are not measured now",
    )
    parser.add_argument(
        "--report", action="store_true", help="measure nothing: draw what results.json has"
    )
    parser.add_argument(
        "--check", action="store_true", help="fail if a goal that was measured is not reached"
    )
    parser.add_argument("--list", action="store_true", help="list loads and contenders, and stop")
    options = parser.parse_args(argv)
    options.command = shlex.join(
        ["python", "-m", "benchmarks", *(sys.argv[1:] if argv is None else argv)]
    )
    unknown = [name for name in options.groups if name not in GROUPS]
    if unknown:
        parser.error(f"no such group: {', '.join(unknown)}")
    if options.quick:
        options.contenders = options.contenders or "goals"
    for name, usual, quick in (
        ("rounds", 5, 1),
        ("seconds", 1.0, _SMOKE_SECONDS),
        ("warmup", 0.3, 0.1),
    ):
        if getattr(options, name) is None:
            setattr(options, name, quick if options.quick else usual)
    if options.contenders and options.contenders != "goals":
        unknown = [name for name in options.contenders.split(",") if name not in CONTENDERS]
        if unknown:
            parser.error(f"no such contender: {', '.join(unknown)}")
    return options


@attrs.frozen
class Cores:
    """Which processor does what."""

    server: int | None
    generator: int | None

    @classmethod
    def choose(cls, server: int | None, generator: int | None) -> Cores:
        """Fill in what was not asked for. With one processor, nothing is pinned."""
        allowed = sorted(os.sched_getaffinity(0))
        if len(allowed) < 2 and server is None and generator is None:
            return cls(None, None)
        return cls(
            allowed[-1] if server is None else server,
            allowed[0] if generator is None else generator,
        )


def choose_contenders(load: Load, wanted: str | None) -> list[Contender]:
    """The contenders of a load that the command line asks for."""
    names: Iterable[str] = load.contenders
    if wanted == "goals":
        named = {
            point.contender
            for goal in GOALS
            for fraction in goal.fractions
            for point in (*fraction.over, *fraction.under)
            if point.load == load.name
        }
        names = [name for name in names if name in named or CONTENDERS[name].is_reference]
    elif wanted:
        names = [name for name in names if name in wanted.split(",")]
    return [CONTENDERS[name] for name in names]


@attrs.frozen
class Step:
    """One contender to be measured under one load, once in each round."""

    load: Load
    contender: Contender
    results: LoadResults


def plan(group: Group, results: Results, options: argparse.Namespace, cores: Cores) -> list[Step]:
    """What one round of a group consists of, in its order; what cannot run is noted as such."""
    steps = []
    facts = environment(options.command, options.rounds, options.seconds, attrs.asdict(cores))
    for load in group.loads:
        chosen = choose_contenders(load, options.contenders)
        if not chosen:
            continue
        load_results = results.loads[load.name] = LoadResults.begin(load, facts)
        for contender in chosen:
            if missing := contender.missing():
                load_results.skipped[contender.name] = f"skipped, no {', '.join(missing)} here"
                continue
            steps.append(Step(load, contender, load_results))
            if contender.ours and options.before is not None:
                before = attrs.evolve(contender, name=contender.name + report.BEFORE)
                steps.append(Step(load, before, load_results))
    return steps


def measure(step: Step, setting: Setting, attempts: int) -> Sample | None:
    """Measure; a failure is noted, and ends this contender's part in the load.

    What other programs disturbed is measured again, and the least disturbed attempt counts.
    """
    name = step.contender.name
    if name in step.results.failures:
        return None
    gc.collect()
    gc.disable()  # the generator makes no cycles, and a collection would cost the server time
    try:
        samples: list[Sample] = []
        while len(samples) < attempts:
            samples.append(step.load.measure(step.contender, setting))
            if samples[-1].disturbed <= DISTURBED:
                break
        return min(samples, key=lambda sample: sample.disturbed)
    except (ProgramFailedError, ServerFailedError, WrongEchoError, OSError) as error:
        step.results.failures[name] = f"failed: {error}"
        return None
    finally:
        gc.enable()


def rounds(steps: list[Step], count: int) -> Iterator[Step]:
    """A B C, A B C, and so on: what disturbs the machine for a while disturbs all alike."""
    for _ in range(count):
        yield from steps


@attrs.frozen
class Certificate:
    """A certificate for this run, and the client's context that trusts it."""

    path: Path
    context: ssl.SSLContext

    @classmethod
    def make(cls, folder: Path) -> Certificate:
        context = ssl.create_default_context()
        path = folder / "server.pem"
        try:
            import trustme
        except ImportError:
            return cls(path, context)  # only the TLS load needs it, and it will say so
        authority = trustme.CA()
        authority.configure_trust(context)
        authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(path))
        return cls(path, context)


def run_groups(
    groups: Sequence[Group], results: Results, options: argparse.Namespace, console: Console
) -> None:
    """Measure, with progress on the terminal, and print each group's table when it is done."""
    cores = Cores.choose(options.server_core, options.generator_core)
    if cores.generator is None:
        console.print("only one processor: nothing is pinned, and ratios mean little", style="red")
    else:
        os.sched_setaffinity(0, {cores.generator})
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    plans = [(group, plan(group, results, options, cores)) for group in groups]
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[latest]}"),
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        # Drawn between measurements only: a thread that draws would take the generator's time.
        Progress(*columns, console=console, auto_refresh=False) as progress,
    ):
        certificate = Certificate.make(Path(folder))
        roots = {}
        if options.before is not None:
            roots = {name + report.BEFORE: options.before.resolve() for name in CONTENDERS}
        setting = Setting(
            cores.server,
            options.warmup,
            options.seconds,
            certificate.path,
            certificate.context,
            roots,
        )
        for group, steps in plans:
            task = progress.add_task(group.title, total=len(steps) * options.rounds, latest="")
            for step in rounds(steps, options.rounds):
                name = report.contender_title(step.contender.name)
                doing = f"{step.load.name}: {name}"
                progress.update(task, latest=doing, refresh=True)
                sample = measure(step, setting, 1 if options.quick else _ATTEMPTS)
                step.results.samples.setdefault(step.contender.name, []).append(sample)
                if sample is not None:
                    doing += f": {report.sample_line(sample, step.load.unit)}"
                progress.update(task, advance=1, latest=doing, refresh=True)
            progress.remove_task(task)
            measured = {
                load.name: results.loads[load.name]
                for load in group.loads
                if load.name in results.loads
            }
            for grid in report.load_grids(Results(measured)):
                report.print_grid(console, grid)


def list_everything(console: Console) -> None:
    """Print the names that the command line takes."""
    for group in GROUPS.values():
        console.print(f"[bold]{group.name}[/]  {group.title}")
        for load in group.loads:
            console.print(f"  {load.name}: {load.title}", highlight=False)
            console.print(f"    [dim]{', '.join(load.contenders)}", highlight=False)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
      The exit status: 1 if a contender failed, or, with ``--check``, if a goal was missed.
    """
    options = parse_arguments(argv)
    console = Console()
    if not console.is_terminal:
        console = Console(width=_FILE_WIDTH)
    # So that whoever ends this program ends its servers with it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if options.list:
        list_everything(console)
        return 0
    stored = options.output / "results.json"
    results = Results()
    if options.report or (options.update and stored.exists()):
        results = Results.from_json(stored.read_text())
    if options.report:
        for grid in report.load_grids(results):
            report.print_grid(console, grid)
    else:
        groups = [GROUPS[name] for name in options.groups or GROUPS]
        try:
            run_groups(groups, results, options, console)
        except KeyboardInterrupt:
            console.print("interrupted: this is what there is so far", style="yellow")
    for grid in report.final_grids(results):
        report.print_grid(console, grid)
    options.output.mkdir(parents=True, exist_ok=True)
    stored.write_text(results.to_json())
    (options.output / "results.md").write_text(report.markdown(results))
    (options.output / "chart.svg").write_text(chart.draw(results))
    try:
        where = options.output.resolve().relative_to(ROOT)
    except ValueError:
        where = options.output
    console.print(f"written to {where}: results.json, results.md, chart.svg", highlight=False)
    missed = options.check and not report.goals_met(results)
    return 1 if missed or results.has_failures() else 0
