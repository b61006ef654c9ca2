"""Results as tables: in the terminal, and in Markdown for the documentation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import attrs
from rich.console import Console
from rich.table import Table

from benchmarks.contenders import CONTENDERS
from benchmarks.loads import GOALS, GROUPS, Goal, Group, Sample
from benchmarks.results import DISTURBED, LoadResults, Results, Spread

BEFORE: Final = "@before"
"""What the name of a contender ends with that is imported from another checkout."""

_ENOUGH: Final = "✓"
_SHORT: Final = "✗"
_UNKNOWN: Final = "·"


@attrs.frozen
class Grid:
    """A table before it is drawn. The first column is text, the others are figures."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def contender_title(name: str) -> str:
    """What tables call a contender."""
    base = name.removesuffix(BEFORE)
    return CONTENDERS[base].title + (", before" if base != name else "")


def figure(value: float) -> str:
    """A number with as many digits as its reader can use."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 100 else f"{value:.3g}"


def _factor(load: LoadResults, name: str, field: str = "value") -> str:
    spread = load.ratio(name, load.baseline, field) if load.baseline else None
    return "" if spread is None else f"{spread.median:.2f}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def goals_grid(results: Results) -> Grid:
    """The figures to reach, and what was reached."""
    rows = []
    for goal in GOALS:
        spread = results.reached(goal)
        if spread is None:
            continue
        # Of a rate only: less time for each round trip is not more work for each second.
        by_cpu = None if goal.at_most else results.reached(goal, "per_cpu_second")
        bound = f"{'≤' if goal.at_most else '≥'} {goal.limit:g}{goal.unit and ' ' + goal.unit}"
        rows.append(
            (
                goal.title,
                goal.against,
                bound,
                figure(spread.median),
                f"{figure(spread.low)} to {figure(spread.high)}",
                figure(by_cpu.median) if by_cpu else "",
                _mark(goal, spread),
            )
        )
    return Grid(
        "Figures to reach",
        ("load", "against", "goal", "reached", "range", "by CPU time", ""),
        tuple(rows),
    )


def _mark(goal: Goal, spread: Spread) -> str:
    met = spread.median <= goal.limit if goal.at_most else spread.median >= goal.limit
    return _ENOUGH if met else _SHORT


def goals_met(results: Results) -> bool:
    """Whether every goal that was measured was reached."""
    return all(
        _mark(goal, spread) == _ENOUGH for goal in GOALS if (spread := results.reached(goal))
    )


def load_grid(load: LoadResults) -> Grid:
    """One load: a row for each contender."""
    rows = []
    for name in load.contenders():
        value = load.value(name)
        if value is None:
            continue
        rows.append(
            (
                contender_title(name),
                figure(value.median),
                f"{figure(value.low)} to {figure(value.high)}",
                _factor(load, name),
                _factor(load, name, "per_cpu_second"),
                _share(load.mean_of(name, "server_busy")),
                _share(load.mean_of(name, "generator_busy")),
            )
        )
    baseline = contender_title(load.baseline) if load.baseline else ""
    header = (
        "",
        load.unit,
        "range",
        f"÷ {baseline}",
        "÷, by CPU time",
        "server busy",
        "generator busy",
    )
    return _without_empty_columns(Grid(load.title, header, tuple(rows), _notes(load)))


def series_grid(group: Group, results: Results) -> Grid:
    """Several loads that differ in one number: a row for each, a column for each contender."""
    loads = [results.loads[load.name] for load in group.loads if load.name in results.loads]
    names = list(dict.fromkeys(name for load in loads for name in load.contenders()))
    rows = []
    for load in loads:
        values = [load.value(name) for name in names]
        rows.append((load.title, *("" if v is None else figure(v.median) for v in values)))
    header = (loads[0].unit, *map(contender_title, names))
    notes = tuple(dict.fromkeys(note for load in loads for note in _notes(load)))
    return Grid(group.title, header, tuple(rows), notes)


def before_grid(results: Results) -> Grid:
    """This checkout over the other one, for every load that ran both."""
    rows = []
    for load in results.loads.values():
        for name in load.contenders():
            if not name.endswith(BEFORE):
                continue
            now = name.removesuffix(BEFORE)
            value, by_cpu = load.ratio(now, name), load.ratio(now, name, "per_cpu_second")
            if value is None:
                continue
            kind = "lower is better" if load.lower_is_better else "higher is better"
            rows.append(
                (
                    f"{load.title}: {contender_title(now)}",
                    f"{value.median:.2f}",
                    f"{value.low:.2f} to {value.high:.2f}",
                    f"{by_cpu.median:.2f}" if by_cpu else "",
                    kind,
                )
            )
    return Grid(
        "This checkout over the other",
        ("load", "ratio", "range", "work by processor time", ""),
        tuple(rows),
    )


def load_grids(results: Results) -> Iterator[Grid]:
    """A table for each load, or for each series of loads."""
    for group in GROUPS.values():
        measured = [load for load in group.loads if load.name in results.loads]
        if not measured:
            continue
        if group.is_series():
            yield series_grid(group, results)
        else:
            yield load_grid(results.loads[measured[0].name])


def final_grids(results: Results) -> Iterator[Grid]:
    """What follows from all loads together."""
    for last in (before_grid(results), goals_grid(results)):
        if last.rows:
            yield last


def print_grid(console: Console, grid: Grid) -> None:
    """Draw one table in the terminal."""
    if grid.rows:
        table = Table(title=grid.title, title_justify="left", title_style="bold")
        texts = 2 if grid.header[0] == "load" else 1
        for index, column in enumerate(grid.header):
            table.add_column(column, justify="left" if index < texts else "right")
        for row in grid.rows:
            style = "bold" if row[0].startswith("trio_bytetalk") else None
            style = "dim" if row[0].startswith("(") else style
            style = "red" if row[-1] == _SHORT else style
            table.add_row(*row, style=style)
        console.print(table)
    for note in grid.notes:
        console.print(f"  {note}", style="yellow", highlight=False)
    console.print()


def markdown(results: Results) -> str:
    """All tables, with the machine and the command, for the documentation."""
    parts = []
    environments = [load.environment for load in results.loads.values()]
    if environments:
        parts.append(f"```console\n$ {environments[-1]['command']}\n```\n")
        parts.append(_describe(environments[-1]) + "\n")
    # The goals are what most readers come for.
    for grid in [*final_grids(results), *load_grids(results)]:
        parts.append(f"## {grid.title}\n")
        if grid.rows:
            parts.append("\n".join(_markdown_rows(grid)) + "\n")
        parts.extend(f"{note}\n" for note in grid.notes)
    return "\n".join(parts)


def _markdown_rows(grid: Grid) -> Iterator[str]:
    texts = 2 if grid.header[0] == "load" else 1
    yield _markdown_row(grid.header)
    yield _markdown_row(["---" if i < texts else "---:" for i in range(len(grid.header))])
    for row in grid.rows:
        emphasised = row[0].startswith("trio_bytetalk")
        yield _markdown_row([f"**{cell}**" if emphasised and cell else cell for cell in row])


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _describe(environment: dict[str, object]) -> str:
    versions = environment["versions"]
    assert isinstance(versions, dict)
    packages = ", ".join(f"{name} {number}" for name, number in versions.items())
    return (
        f"{environment['processor']}, {environment['processors']} processors, "
        f"{environment['system']} (TCP {environment['congestion_control']}), "
        f"{environment['python']}; {packages}. "
        f"Medians of {environment['rounds']} rounds of {environment['seconds']:g} s; "
        f"{str(environment['date'])[:10]}."
    )


def _notes(load: LoadResults) -> tuple[str, ...]:
    problems = {**load.skipped, **load.failures}
    notes = [f"{contender_title(name)}: {reason}" for name, reason in problems.items()]
    disturbed, count = load.disturbed()
    if disturbed:
        notes.append(
            f"{disturbed} of {count} measurements of “{load.title}” were disturbed by other "
            f"programs for more than {DISTURBED:.0%} of their time"
        )
    return tuple(notes)


def _without_empty_columns(grid: Grid) -> Grid:
    keep = [i for i in range(len(grid.header)) if i == 0 or any(row[i] for row in grid.rows)]
    return attrs.evolve(
        grid,
        header=tuple(grid.header[i] for i in keep),
        rows=tuple(tuple(row[i] for i in keep) for row in grid.rows),
    )


def sample_line(sample: Sample, unit: str) -> str:
    """One sample, for the progress line."""
    return f"{figure(sample.value)} {unit}"
