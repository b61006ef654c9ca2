"""Check that every link within the built documentation leads somewhere.

    python docs/check_links.py docs/_build/html

That is: to a page or a file of the site, and to a place on that page if it names one. Links to
other sites are left to ``nox -s linkcheck``, which needs a network.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import attrs

# The attributes that have the address of something else.
_LINKS = {"action", "data", "href", "poster", "src"}


@attrs.define(eq=False)
class Page(HTMLParser):
    """What a page links to, and the places on it that others can link to."""

    links: list[tuple[int, str]] = attrs.field(factory=list, init=False)  # and in which line
    places: set[str] = attrs.field(factory=set, init=False)

    def __attrs_pre_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        line, _ = self.getpos()
        for name, value in attributes:
            if name == "id" or (name == "name" and tag == "a"):
                self.places.add(value or "")
            elif name in _LINKS:
                self.links.append((line, value or ""))


def read(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    page.close()
    return page


def broken_links(site: Path) -> Iterator[str]:
    """Where a link leads nowhere, and why, one line for each."""
    site = site.resolve()
    pages = {path: read(path) for path in sorted(site.rglob("*.html"))}
    for path, page in pages.items():
        for line, link in page.links:
            problem = problem_of(link, path, site, pages)
            if problem is not None:
                yield f"{path.relative_to(site)}, line {line}: {link!r} {problem}"


def problem_of(link: str, source: Path, site: Path, pages: dict[Path, Page]) -> str | None:
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return None
    if parts.path.startswith("/"):
        return "is right at the top of a domain only"
    target = source
    if parts.path:
        target = (source.parent / unquote(parts.path)).resolve()
        if not target.is_relative_to(site):
            return "leads out of the documentation"
        if target.is_dir():
            target /= "index.html"
        if not target.exists():
            return "leads to a file that is not there"
    place = unquote(parts.fragment)
    if place in ("", "top") or target not in pages:  # both are the page's beginning, to a browser
        return None
    return None if place in pages[target].places else "leads to a place that is not there"


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or not (Path(arguments[0]) / "index.html").exists():
        print("usage: check_links.py FOLDER, which has the built pages, index.html among them")
        return 2
    broken = list(broken_links(Path(arguments[0])))
    print(*broken, sep="\n", end="\n" if broken else "")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
