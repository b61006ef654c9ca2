"""Draw docs/source/explanation/architecture.svg from what the modules really import.

    python docs/draw_architecture.py

Which module is on which floor is what the table of the page says; everything else is read from the
package's import statements. The tests draw it again, and see that it is the same, and that no floor
imports from one above it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from html import escape
from pathlib import Path

import attrs

DOCS = Path(__file__).parent
PACKAGE = DOCS.parent / "trio_bytetalk"
PAGE = DOCS / "source" / "explanation" / "architecture.rst"
PICTURE = PAGE.with_suffix(".svg")

WIDTH = 760
MARGIN = 16
FLOORS_WIDTH = 610  # what is right of it is for the arrows
LINE = 24  # the height of a line of modules
LETTER = 7.3  # the width of a letter, in pixels, at the modules' size
FONT = "ui-monospace, 'DejaVu Sans Mono', Menlo, monospace"


@attrs.frozen
class Floor:
    name: str
    modules: tuple[str, ...]


def floors() -> list[Floor]:
    """The floors of the page's table, which has them from the top down, from the lowest up."""
    text = PAGE.read_text(encoding="utf-8")
    rows = re.findall(
        r"^   \* - (.+)\n     - (?:.|\n)+?\n     - ((?:.|\n)+?)\n(?=   \* -|\n)", text, re.MULTILINE
    )
    return [
        Floor(name, tuple(re.findall(r"``([\w/]+(?:\.py)?)``", files)))
        for name, files in reversed(rows)
        if name != "floor"
    ]


def sources(module: str) -> list[Path]:
    path = PACKAGE / module
    return sorted(path.glob("**/*.py")) if path.is_dir() else [path]


def imports(module: str) -> set[str]:
    """The modules of the package that ``module`` imports when it runs."""
    found: set[str] = set()
    for path in sources(module):
        depth = len(path.relative_to(PACKAGE).parts)
        for node in running(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level == depth:
                names = [node.module] if node.module else [alias.name for alias in node.names]
                found |= {name.partition(".")[0] for name in names}
    return found


def running(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those that only a type checker looks at."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield node
        yield from running(node)


def arrows(house: list[Floor]) -> dict[tuple[int, int], int]:
    """From which floor to which other there are imports, and how many.

    A sub-package counts once for each floor: more of the same in it changes no picture.
    """
    where = {
        module.removesuffix(".py").rstrip("/"): n
        for n, floor in enumerate(house)
        for module in floor.modules
    }
    counts: dict[tuple[int, int], int] = {}
    for number, floor in enumerate(house):
        for module in floor.modules:
            below = [where[other] for other in imports(module) if other in where]
            for other in set(below) if module.endswith("/") else below:
                if other != number:
                    counts[number, other] = counts.get((number, other), 0) + 1
    return counts


def rows_of(modules: tuple[str, ...]) -> list[list[tuple[str, float, float]]]:
    """The modules in lines, each with its place and its width."""
    rows: list[list[tuple[str, float, float]]] = [[]]
    left = start = MARGIN + 150.0
    for module in modules:
        width = len(module) * LETTER + 12
        if left + width > FLOORS_WIDTH - 8 and rows[-1]:
            rows.append([])
            left = start
        rows[-1].append((module, left, width))
        left += width + 6
    return rows


def picture() -> str:
    house = floors()
    parts: list[str] = []
    top = MARGIN
    middles: dict[int, float] = {}
    for number in reversed(range(len(house))):
        floor = house[number]
        rows = rows_of(floor.modules)
        height = len(rows) * (LINE + 4) + 12
        middles[number] = top + height / 2
        parts.append(
            f'<rect x="{MARGIN}" y="{top}" width="{FLOORS_WIDTH - MARGIN}" height="{height}" '
            f'rx="6" fill="#eef2f7" stroke="#b6c2d1"/>'
        )
        parts.append(
            f'<text x="{MARGIN + 12}" y="{middles[number] + 5:g}" font-weight="600" '
            f'font-size="14">{escape(floor.name)}</text>'
        )
        for line, row in enumerate(rows):
            y = top + 8 + line * (LINE + 4)
            for module, left, width in row:
                parts.append(
                    f'<rect x="{left:g}" y="{y}" width="{width:.1f}" height="{LINE}" rx="4" '
                    f'fill="#ffffff" stroke="#d5dde6"/>'
                    f'<text x="{left + 6:g}" y="{y + 16}" font-family="{FONT}" '
                    f'font-size="12">{module}</text>'
                )
        top += height + 18
    counts = arrows(house)
    # The shorter arrows run nearer to the floors.
    for place, (upper, lower) in enumerate(
        sorted(counts, key=lambda pair: (pair[0] - pair[1], pair))
    ):
        x = FLOORS_WIDTH + 14 + place * (WIDTH - FLOORS_WIDTH - 24) / len(counts)
        start = middles[upper] + 4 * (place % 5 - 2)
        end = middles[lower] + 4 * (place % 5 - 2)
        parts.append(
            f'<path d="M{FLOORS_WIDTH} {start:.1f} H{x:.1f} V{end:.1f} H{FLOORS_WIDTH + 3}" '
            f'fill="none" stroke="#44607f" '
            f'stroke-width="{1 + min(counts[upper, lower], 10) / 8:g}" '
            f'marker-end="url(#tip)"><title>{escape(house[upper].name)} imports from '
            f"{escape(house[lower].name)}: {counts[upper, lower]}</title></path>"
        )
    head = f"""\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}"
 font-family="system-ui, sans-serif" fill="#1c2733">
<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7"
 markerUnits="userSpaceOnUse" orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="#44607f"/></marker>
<rect width="{WIDTH}" height="{top}" rx="8" fill="#ffffff"/>
"""
    return head + "\n".join(parts) + "\n</svg>\n"


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
