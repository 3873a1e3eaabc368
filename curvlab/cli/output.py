"""What commands print: one JSON document or a table on stdout, everything else on stderr."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from curvlab.errors import printable
from curvlab.files import writing
from curvlab.reporting.document import as_json

#: the standard output that the process was started with, while file descriptor 1 leads elsewhere
_kept: TextIO | None = None
#: copies of both descriptors as they were
_saved: dict[int, int] = {}


def reserve() -> None:
    """From here on standard output is for documents alone: all else goes to standard error.

    File descriptor 1 itself leads to standard error, so that ``os.write(1, …)``, child processes, libraries
    in C and what is printed at exit cannot spoil a document that another program reads.  ``release`` ends it.
    """
    global _kept
    _flush()
    for number in (1, 2):
        with contextlib.suppress(OSError):  # the parent closed it
            _saved[number] = os.dup(number)
    if 1 in _saved:
        _kept = os.fdopen(os.dup(_saved[1]), "w", encoding="utf-8", errors="backslashreplace")
        _lead(2, 1)


def release() -> None:
    """Put both descriptors back as they were, even if they have been closed since."""
    global _kept
    _flush()  # what still waits in a buffer was printed before
    for number, copy in _saved.items():
        os.dup2(copy, number)
        os.close(copy)
    _saved.clear()
    if _kept is not None:
        _kept.close()
    _kept = None


def documents() -> TextIO:
    """Where documents are written."""
    return sys.stdout if _kept is None else _kept


def print_json(document: Any) -> None:
    """One JSON document."""
    with _to(documents()) as stream:
        print(as_json(document, indent=2), file=stream, flush=True)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Aligned columns: fitted to a terminal's width, ``NO_COLOR`` honored; elsewhere whole lines."""
    if not sys.stdout.isatty():
        print_text("\n".join(aligned([columns, *rows])))
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
    """Text for stdout as it is; raises ``RunFolderError`` if that is a file on a full disk."""
    with _to(sys.stdout) as stream:
        print(text, file=stream, flush=True)


@contextlib.contextmanager
def _to(stream: TextIO) -> Iterator[TextIO]:
    try:
        yield stream
    except BrokenPipeError:  # the reader closed the pipe; typer ends the process
        raise
    except OSError as error:
        with writing(Path("standard output")):
            # Python would try once more to write the text when it ends, and complain in its own way
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
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


def _flush() -> None:
    for stream in (sys.stdout, sys.__stdout__):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, detached or None
            stream.flush()  # type: ignore[union-attr]


def _lead(source: int, target: int) -> None:
    """Make ``target`` what ``source`` is; nowhere, if that is closed."""
    try:
        os.dup2(source, target)
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, target)
        os.close(nowhere)
