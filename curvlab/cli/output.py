"""What commands print: one JSON document or a table on stdout, everything else on stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from curvlab.errors import printable
from curvlab.files import writing


def print_json(document: Any) -> None:
    """One JSON document."""
    print_text(json.dumps(document, indent=2, ensure_ascii=False))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Aligned columns: wrapped to a terminal's width, ``NO_COLOR`` honoured; elsewhere whole lines."""
    if not sys.stdout.isatty():
        lines = [columns, *rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
        padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
        print_text("\n".join("  ".join(cells).rstrip() for cells in padded))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold cyan")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)


def print_text(text: str) -> None:
    """Text for stdout as it is; raises ``RunFolderError`` if that is a file on a full disk."""
    with _to_stdout():
        print(text, flush=True)


@contextmanager
def _to_stdout() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:  # whoever reads has seen enough; typer ends the process without a word
        raise
    except OSError as error:
        with writing(Path("standard output")):
            # Python would try once more to write the text when it ends, and complain in its own way
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise error


def complain(text: str) -> None:
    """A message for stderr, without characters that a terminal would obey; dropped if stderr is closed."""
    try:
        print(printable(text), file=sys.stderr, flush=True)
    except OSError:
        return


def paths_as_they_are() -> None:
    """Let stdout take paths that are not UTF-8, byte for byte; other encodings get escapes."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        utf8 = str(sys.stdout.encoding).lower().replace("-", "") == "utf8"
        reconfigure(errors="surrogateescape" if utf8 else "backslashreplace")
