"""Charts: what of them stands where, and that they are SVG whatever the figures are."""

from __future__ import annotations

import re
from collections.abc import Callable
from xml.etree import ElementTree

import pytest

from trio_bytetalk._cli.charts import Bar, Line, bars, lines

Words = Callable[[float], str]


def plain(value: float) -> str:
    return f"{value:g}"


def parsed(svg: str) -> ElementTree.Element:
    root = ElementTree.fromstring(svg)
    assert root.tag == "svg"
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for element in root.iter():
        for name, most in (("x", width), ("cx", width), ("y", height), ("cy", height)):
            assert 0 <= float(element.get(name, 0)) <= most
    return root


def texts(root: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in root.iter("text")]


def heights(root: ElementTree.Element) -> list[float]:
    return [float(rect.attrib["height"]) for rect in root.iter("rect")]


def test_bars_are_as_high_as_their_values() -> None:
    each = [Bar(50, "1 ms", "50 of them"), Bar(100, "2 ms", "<100>"), Bar(0, "3 ms", "none")]
    root = parsed(bars("Latency & more", each, plain, "4 ms"))
    assert root.attrib["aria-label"] == "Latency & more"
    half, whole, nothing = heights(root)
    assert half == pytest.approx(whole / 2, abs=0.1)
    assert nothing == 0
    assert [title.text for title in root.iter("title")] == ["50 of them", "<100>", "none"]
    assert texts(root) == [
        "Latency & more",
        *("0", "20", "40", "60", "80", "100"),  # beside the axis
        *("1 ms", "2 ms", "3 ms", "4 ms"),  # below it
    ]


def test_a_bar_of_little_is_seen() -> None:
    assert heights(parsed(bars("", [Bar(1, "", ""), Bar(10**6, "", "")], plain, "")))[0] == 1


def test_many_bars_have_few_edges_named() -> None:
    root = parsed(bars("", [Bar(1, f"{n} ms", "") for n in range(40)], plain, "40 ms"))
    named = [text for text in texts(root) if text.endswith(" ms")]
    # "36 ms" would touch the last one.
    assert named == ["0 ms", "4 ms", "8 ms", "12 ms", "16 ms", "20 ms", "24 ms", "28 ms", "32 ms",
                     "40 ms"]  # fmt: skip


def test_no_bars() -> None:
    assert heights(parsed(bars("", [], plain, ""))) == []


def points(root: ElementTree.Element, index: int) -> list[tuple[float, float]]:
    return [
        (float(dot.attrib["cx"]), float(dot.attrib["cy"]))
        for dot in root.iter("circle")
        if dot.attrib["class"] == f"dot-{index}"
    ]


def test_lines_go_through_their_points() -> None:
    each = [Line("median", [10, 20, 40]), Line("maximum", [20, 40, 80])]
    root = parsed(lines("Latency", [1, 2, 3], each, plain, logarithmic=False))
    ((x1, y1), (x2, y2), (x3, y3)), upper = points(root, 0), points(root, 1)
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.2)
    assert y2 - y3 == pytest.approx(2 * (y1 - y2), abs=0.2)
    assert upper[:2] == [(x1, y2), (x2, y3)]
    path = next(element for element in root.iter("path") if "line-0" in element.attrib["class"])
    assert path.attrib["d"] == f"M{x1} {y1}L{x2} {y2}L{x3} {y3}"
    assert {"0 s", "1 s", "2 s", "3 s", "median", "maximum", "0", "20", "80"} <= set(texts(root))
    assert next(root.iter("title")).text == "1 s, median: 10"


def test_on_a_logarithmic_scale_equal_factors_are_equal_distances() -> None:
    root = parsed(lines("", [1, 2, 3], [Line("", [1, 10, 100])], plain, logarithmic=True))
    (_, y1), (_, y2), (_, y3) = points(root, 0)
    assert y1 - y2 == pytest.approx(y2 - y3, abs=0.2)
    assert texts(root) == ["", "1", "2", "5", "10", "20", "50", "100", "0 s", "0.5 s", "1 s",
                           "1.5 s", "2 s", "2.5 s", "3 s"]  # fmt: skip


def test_a_wide_range_has_powers_of_ten_only() -> None:
    root = parsed(lines("", [1, 2], [Line("", [1, 10**6])], plain, logarithmic=True))
    assert {"1", "10", "100", "1e+06"} <= set(texts(root))
    assert "2" not in texts(root)


def test_a_second_without_a_value_is_a_gap() -> None:
    each = [Line("", [None, 1, 2, None, 3])]
    root = parsed(lines("", [1, 2, 3, 4, 5], each, plain, logarithmic=True))
    assert len(points(root, 0)) == 3
    path = next(root.iter("path")).attrib["d"]
    assert re.sub(r"[\d. ]", "", path) == "MLM"


def test_many_points_are_not_marked() -> None:
    ends = list(range(1, 502))
    root = parsed(lines("", ends, [Line("", ends)], plain, logarithmic=False))
    assert points(root, 0) == []
    assert {"0 s", "50 s", "500 s"} <= set(texts(root))


@pytest.mark.parametrize("logarithmic", [False, True])
@pytest.mark.parametrize("values", [[], [None], [0], [0, 0], [5, 5], [0.001, 10.0**12]])
def test_whatever_the_figures_are(values: list[float | None], logarithmic: bool) -> None:
    ends = [0.25 * (index + 1) for index in range(len(values))]
    parsed(lines("", ends, [Line("", values)], plain, logarithmic=logarithmic))
