"""What commands print: one JSON document or a table on stdout, everything else on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

#: wider than any table: into a pipe or file, lines are never cut
_UNBOUNDED = 100_000


def print_json(document: Any) -> None:
    """One JSON document."""
    print(json.dumps(document, indent=2, ensure_ascii=False))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Aligned columns: wrapped to a terminal's width, whole lines elsewhere; ``NO_COLOR`` is honoured."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    terminal = sys.stdout.isatty()
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=not terminal, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console(width=None if terminal else _UNBOUNDED).print(table)


def print_text(text: str) -> None:
    """Text for stdout as it is."""
    print(text)


def complain(text: str) -> None:
    """A message for stderr."""
    print(text, file=sys.stderr)
