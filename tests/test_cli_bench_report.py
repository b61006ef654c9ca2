"""The results in files: JSON that has all of it, and a page that needs nothing else."""

from __future__ import annotations

import datetime
import json
import math
import re
from html.parser import HTMLParser
from typing import Any

import attrs
import pytest

from trio_bytetalk import LengthPrefixed, __version__
from trio_bytetalk._cli.addresses import Address
from trio_bytetalk._cli.bench_report import About, as_html, as_json
from trio_bytetalk._cli.histogram import Histogram
from trio_bytetalk._cli.load import Plan, Result, Second
from trio_bytetalk._cli.payload import generated

ABOUT = About("<host>:5555", "Lines()", datetime.datetime(2026, 5, 4, 3, 2, 1, tzinfo=datetime.UTC))


def second(end: float, latencies: tuple[int, int, int] | None) -> Second:
    return Second(
        end=end,
        elapsed=1,
        messages=3,
        bytes_sent=204,
        bytes_received=203,
        latencies=latencies,
        in_flight=10,
        errors=2,
        cpu=0.25,
    )


def result(**changes: Any) -> Result:
    latencies = Histogram()
    for value in (100, 200, 200, 200, 1_000_000_000):
        latencies.add(value)
    usual = Result(
        plan=Plan(payload=generated(LengthPrefixed(), 64), rate=2.5),
        opened=8,
        elapsed=2,
        messages=4,
        bytes_sent=408,
        bytes_received=406,
        late=1,
        lost=7,
        unsent=6,
        errors={"refused & <b>closed</b>": 2},
        latencies=latencies,
        seconds=(second(1, (200, 300, 400)), second(2, None)),
        rate=2,
        cpu=0.25,
        interrupted=True,
        exhausted=False,
        stopped=False,
    )
    return attrs.evolve(usual, **changes)


def test_no_limit_is_null() -> None:
    plan = Plan(payload=generated(LengthPrefixed(), 64), timeout=math.inf)
    text = as_json(result(plan=plan), ABOUT)
    assert "Infinity" not in text
    assert json.loads(text)["plan"]["timeout"] is None


NOTHING = {
    "elapsed": 0,
    "latencies": Histogram(),
    "seconds": (),
    "rate": 0,
    "errors": {},
    "lost": 0,
}


def test_a_report_knows_when_and_of_what_it_is() -> None:
    before = datetime.datetime.now(datetime.UTC)
    about = About.now(Address("localhost", 5555), "length:2")
    assert before <= about.began <= datetime.datetime.now(datetime.UTC)
    assert about.title == "bytetalk bench localhost:5555"
    assert about.codec == "length:2"


def test_json_has_all_of_it() -> None:
    found = json.loads(as_json(result(), ABOUT))
    assert found["program"] == f"bytetalk {__version__}"
    assert found["address"] == "<host>:5555"
    assert found["codec"] == "Lines()"
    assert found["began"] == "2026-05-04T03:02:01+00:00"
    assert found["plan"] == {
        "connections": 10,
        "window": 1,
        "frame_size": 68,
        "duration": 10,
        "warmup": 1,
        "rate": 2.5,
        "timeout": 10,
        "check": True,
    }
    expected = {
        "connections_opened": 8,
        "elapsed": 2,
        "messages": 4,
        "messages_late": 1,
        "messages_lost": 7,
        "messages_unsent": 6,
        "messages_per_second": 2,
        "bytes_sent": 408,
        "bytes_received": 406,
        "errors": {"refused & <b>closed</b>": 2},
        "interrupted": True,
        "no_connection_left": False,
        "stopped": False,
        "processor_share": 0.25,
    }
    assert {key: found[key] for key in expected} == expected
    assert found["notes"][0].startswith("Interrupted")
    latency = found["latency"]
    assert latency["percentiles"] == pytest.approx(
        {"50": 2e-7, "90": 1, "99": 1, "99.9": 1, "100": 1}, rel=0.01
    )
    assert latency["mean"] == pytest.approx(0.2, rel=0.01)
    assert latency["histogram"] == [
        pytest.approx([1e-7, 1]),
        pytest.approx([2e-7, 3]),
        pytest.approx([1, 1], rel=0.01),
    ]
    first, last = found["seconds"]
    assert first == pytest.approx(
        {
            "end": 1,
            "elapsed": 1,
            "messages": 3,
            "bytes_sent": 204,
            "bytes_received": 203,
            "latency_50": 2e-7,
            "latency_99": 3e-7,
            "latency_max": 4e-7,
            "in_flight": 10,
            "errors": 2,
            "processor_share": 0.25,
        }
    )
    assert last["latency_50"] is last["latency_99"] is last["latency_max"] is None


def test_json_of_nothing() -> None:
    latency = json.loads(as_json(result(**NOTHING), ABOUT))["latency"]
    assert latency == {"percentiles": {}, "mean": None, "histogram": []}


class Page(HTMLParser):
    """What is on a page, checked for tags that do not fit together, and for other resources."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag != "meta":
            self.open.append(tag)
        assert tag not in ("script", "link", "img", "iframe")
        assert not {"src", "href", "style"} & {name for name, _ in attributes}

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip() and "style" not in self.open:
            self.texts.append(data.strip())


def test_the_page_has_figures_charts_and_each_second() -> None:
    html = as_html(result(), ABOUT)
    page = Page(html)
    assert page.tags.count("svg") == 3
    assert page.texts.count("bytetalk bench <host>:5555") == 2  # in the title, too
    assert "2026-05-04 03:02 UTC" in " ".join(page.texts)
    cards = page.texts[page.texts.index("2") :]
    assert cards[:4] == ["2", "messages a second, for 2 s", "200 ns", "latency, 50 %"]
    for text in ("refused & <b>closed</b>", "160 ns to 250 ns: 3 (60.00 %)", "Each second", "25%"):
        assert text in page.texts
    assert any(text.startswith("7 messages got no reply") for text in page.texts)
    assert "prefers-color-scheme: dark" in html
    assert not re.search(r"https?:|url\(|@import", html)


def test_the_page_of_nothing() -> None:
    page = Page(as_html(result(**NOTHING), ABOUT))
    assert page.tags.count("svg") == 2
    assert page.tags.count("table") == 1
