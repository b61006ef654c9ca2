"""Sphinx's configuration."""

from __future__ import annotations

import importlib
import os
import pkgutil
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer

import trio_bytetalk

project = "trio_bytetalk"
author = "The trio_bytetalk developers"
copyright = f"2026, {author}"  # noqa: A001 - Sphinx's name for it
version = release = trio_bytetalk.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinxcontrib_trio",
    "myst_parser",  # for the changelog, which is Markdown
]
default_role = "obj"
nitpicky = True
nitpick_ignore = [  # names that stand in signatures, and mean something to a type checker only
    ("py:class", "SendT"),
    ("py:class", "ReceiveT"),
    ("py:class", "NewSendT"),
    ("py:class", "NewReceiveT"),
    ("py:class", "TypeForm"),
    ("py:class", "Overflow"),
]
highlight_language = "python"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_inherit_docstrings = False
napoleon_numpy_docstring = False
python_maximum_signature_line_length = 80

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_title = f"trio_bytetalk {release}"

# The build needs no network. Where there is one, links into Trio's and Python's documentation can
# be had: TRIO_BYTETALK_DOCS_ONLINE=1.
if os.environ.get("TRIO_BYTETALK_DOCS_ONLINE"):
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "trio": ("https://trio.readthedocs.io/en/stable", None),
    }

# For nox -s linkcheck. The anchors of these are made by the browser.
linkcheck_anchors_ignore_for_url = [r"https://github\.com/"]


def exists(name: str) -> bool:
    """Whether ``name`` can be imported: ``trio.EndOfChannel``, ``ssl``, ``bytes``."""
    path = name.split(".")
    for length in range(len(path), -1, -1):
        try:
            thing: Any = importlib.import_module(".".join(path[:length]) or "builtins")
        except ImportError:
            continue
        try:
            for attribute in path[length:]:
                thing = getattr(thing, attribute)
        except AttributeError:
            continue
        return True
    return False


def accept_names_of_others(
    app: Sphinx, env: object, node: nodes.Element, contnode: nodes.Element
) -> nodes.Element | None:
    """A name that has no page here is left without a link if it exists, and is an error if not."""
    target = node["reftarget"] if node.get("refdomain") == "py" else "trio_bytetalk."
    ours = target.startswith("trio_bytetalk.") and "._" not in target
    return contnode if not ours and exists(target) else None


def setup(app: Sphinx) -> None:
    app.connect("missing-reference", accept_names_of_others, priority=900)  # after intersphinx

    # The package's names say that they are from trio_bytetalk itself, where autodoc then looks for
    # what stands beneath their attributes: show it what the private modules have.
    package = ModuleAnalyzer.for_module("trio_bytetalk")
    package.analyze()
    for module in pkgutil.iter_modules(trio_bytetalk.__path__, "trio_bytetalk."):
        private = ModuleAnalyzer.for_module(module.name)
        private.analyze()
        package.attr_docs.update(private.attr_docs)
        package.annotations.update(private.annotations)
        package.tagorder.update(private.tagorder)
