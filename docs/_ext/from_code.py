"""Lines of a page that stand for what is read from the code: ``<!-- from code: WHAT ARGUMENT -->``.

They are replaced before the page is parsed, so that headings, links and tables in them are the page's own.
``listings`` says what there is.
"""

from __future__ import annotations

import re
from typing import Any

import listings
from sphinx.errors import ExtensionError

LINE = re.compile(r"^<!-- from code: (\S+) ?(.*?) -->$", re.MULTILINE)


def expanded(text: str) -> str:
    """A page's text with every such line replaced; raises ``KeyError`` for an unknown one."""
    return LINE.sub(lambda found: listings.KNOWN[found.group(1)](*found.group(2).split()), text)


def _read(app: Any, page: str, source: list[str]) -> None:
    try:
        source[0] = expanded(source[0])
    except Exception as error:  # whatever is wrong, the page is to be named
        raise ExtensionError(f"{page}: {type(error).__name__}: {error}", error) from error


def setup(app: Any) -> dict[str, bool]:
    """Listen to pages being read."""
    app.connect("source-read", _read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
