"""What commands print: one JSON document or a table on stdout, everything else on stderr."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

from curvlab.errors import printable


def print_json(document: Any) -> None:
    """One JSON document."""
    print(json.dumps(document, indent=2, ensure_ascii=False))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Aligned columns: fitted to a terminal's width, ``NO_COLOR`` honoured; elsewhere whole lines."""
    if not sys.stdout.isatty():
        print("\n".join(aligned([columns, *rows])))
        return
    from rich.console import Console
    from rich.text import Text

    console = Console()
    header, *lines = table_lines(columns, rows, console.width)
    for line in header:
        console.print(Text(line, style="bold cyan"), soft_wrap=True)
    for entry in lines:
        console.print(Text("\n".join(entry)), soft_wrap=True)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines whose columns are aligned, two spaces apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


#: a last column narrower than this is written below its row instead
_NARROW = 24


def table_lines(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[list[str]]:
    """Header and rows, each as lines of at most ``width`` characters, in which no name is broken.

    The last column is wrapped; where little room is left for it, it stands below the row, indented.
    """
    everything = [columns, *rows]
    lines = aligned(everything)
    if max(map(len, lines)) <= width:
        return [[line] for line in lines]
    first, last = aligned([row[:-1] for row in everything]), [row[-1] for row in everything]
    side = max(map(len, first), default=0) + 2
    if side + _NARROW <= width:
        pairs = zip(first, last, strict=True)
        return [_beside(row, textwrap.wrap(text, width - side), side) for row, text in pairs]
    found = []
    for row, text in zip(first, last, strict=True):
        below = textwrap.wrap(text, width, initial_indent="    ", subsequent_indent="    ")
        found.append([*textwrap.wrap(row, width, subsequent_indent="  ", drop_whitespace=False), *below])
    return found


def _beside(row: str, texts: list[str], side: int) -> list[str]:
    """A row with the lines of its last column beside it."""
    first, *more = texts or [""]
    return [f"{row.ljust(side)}{first}".rstrip(), *(" " * side + text for text in more)]


def fitted(text: str, indent: str = "") -> str:
    """A paragraph for stdout: wrapped to a terminal's width, later lines indented; elsewhere one line."""
    if not sys.stdout.isatty():
        return text
    width = shutil.get_terminal_size().columns
    return "\n".join(textwrap.wrap(text, width, subsequent_indent=indent, break_on_hyphens=False))


def print_text(text: str) -> None:
    """Text for stdout as it is."""
    print(text)


def complain(text: str) -> None:
    """A message for stderr, without characters that a terminal would obey."""
    print(printable(text), file=sys.stderr)
