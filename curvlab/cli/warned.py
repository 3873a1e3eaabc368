"""Warnings of curvlab and its plugins, as a command shows them: what they say, on one line, once."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from curvlab.cli.output import complain


@contextmanager
def warned_once(*, quiet: bool = False) -> Iterator[None]:
    """Inside, a warning of ours is a line ``warning: …`` on standard error, once for each text.

    Where in the code it came from is left out: a user of a command did not write that line.  What Python
    ignores or raises by ``-W`` and ``PYTHONWARNINGS`` stays so, and others' warnings are shown as
    ever.  If ``quiet``, ours are not shown.
    """
    said: set[str] = set()
    with warnings.catch_warnings():
        others = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if not category.__module__.startswith("curvlab"):
                others(message, category, filename, lineno, file, line)
            elif not quiet and (text := " ".join(str(message).split())) not in said:
                said.add(text)
                complain(f"warning: {text}")

        warnings.showwarning = show
        yield
