"""One self-contained HTML page from a template, its style, its script and its data."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping
from importlib.resources import files
from typing import Any

#: what a page may do: run its own script and style.  A browser refuses every request to anywhere else.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def asset(package: str, name: str) -> str:
    """The text of a file in the folder ``assets`` of ``package``."""
    return (files(package) / "assets" / name).read_text(encoding="utf-8")


def uplot() -> tuple[str, str]:
    """The script and the style of uPlot, a library of interactive curves, each below its license."""
    own = "curvlab.pages"
    terms = f"/*!\n{asset(own, 'uplot-LICENSE.txt').strip()}\n*/\n"
    return terms + asset(own, "uplot.min.js"), terms + asset(own, "uplot.min.css")


def as_page(template: str, title: str, *, style: str, script: str, data: Mapping[str, Any]) -> str:
    """The page's text.

    ``template`` holds the places ``{{title}}``, ``{{policy}}``, ``{{style}}``, ``{{script}}`` and
    ``{{data}}``, each once except the title.  The title is escaped.  The data stand as JSON in an element
    that no string of theirs can end.
    """
    compact = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    text = template.replace("{{title}}", html.escape(title)).replace("{{policy}}", html.escape(POLICY))
    # the data last: a name in them may look like a place
    return _filled(
        text,
        [
            ("{{style}}", style),
            ("{{script}}", script),
            ("{{data}}", compact.replace("<", "\\u003c")),
        ],
    )


def _filled(text: str, parts: Iterable[tuple[str, str]]) -> str:
    for place, part in parts:
        before, found, after = text.partition(place)
        assert found, f"the template has no {place}"
        text = before + part + after
    return text
