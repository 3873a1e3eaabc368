"""One self-contained HTML page from its markup, its style, its script and its data."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping
from importlib.resources import files
from typing import Any

#: what a page may do: run its own script and style.  A browser refuses every request to anywhere else.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


#: the package of the frame and of what every page shares
_OWN = "curvlab.pages"


def asset(package: str, name: str) -> str:
    """The text of a file in the folder ``assets`` of ``package``."""
    return (files(package) / "assets" / name).read_text(encoding="utf-8")


def as_page(main: str, title: str, *, style: str, script: str, data: Mapping[str, Any]) -> str:
    """The page's text: ``main`` in a frame with a title and a button of themes.

    The frame holds uPlot, a library of interactive charts, below its license, and what every page shares: the
    style of elements, and the functions ``make``, ``choose``, ``follow`` and ``side``.  ``style`` and
    ``script`` come after them.  The title is escaped.  The data stand as JSON in an element that no string of
    theirs can end.
    """
    compact = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    frame = asset(_OWN, "frame.html")
    text = frame.replace("{{title}}", html.escape(title)).replace("{{policy}}", html.escape(POLICY))
    # the data last: a name in them may look like a place
    return _filled(
        text,
        [
            ("{{style}}", _with_library("uplot.min.css", "page.css", style)),
            ("{{main}}", main.strip()),
            ("{{script}}", _with_library("uplot.min.js", "page.js", script)),
            ("{{data}}", compact.replace("<", "\\u003c")),
        ],
    )


def _with_library(library: str, shared: str, own: str) -> str:
    terms = f"/*!\n{asset(_OWN, 'uplot-LICENSE.txt').strip()}\n*/"
    return "\n".join((terms, asset(_OWN, library), asset(_OWN, shared), own))


def _filled(text: str, parts: Iterable[tuple[str, str]]) -> str:
    for place, part in parts:
        before, found, after = text.partition(place)
        assert found, f"the frame has no {place}"
        text = before + part + after
    return text
