"""``curvlab init``: a configuration to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from curvlab.cli.output import complain, print_text
from curvlab.errors import UsageError


def init(
    task: Annotated[
        str, typer.Argument(help="The task, as `curvlab tasks` lists it.", show_default=False)
    ] = "digits",
    method: Annotated[
        str, typer.Argument(help="The method, as `curvlab methods` lists it.", show_default=False)
    ] = "kfac",
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="The file to write. [default: TASK-METHOD.toml]"),
    ] = None,
) -> None:
    """Write a configuration for a task and a method, with every setting as a comment beside its default."""
    from curvlab.config.starting import MISSING, starting
    from curvlab.files import write_atomically, writing
    from curvlab.registry import installed

    registry = installed()
    entry, chosen = registry.part("task", task), registry.method(method)
    text = starting(registry, entry, chosen)
    path = Path(f"{entry.name}-{chosen.name}.toml") if out is None else out
    if path.exists():
        raise UsageError(f"{path} exists, and nothing was written; choose another file with --out FILE")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text)
    if MISSING in text:
        complain(f"replace {MISSING} in {path}: the task has settings without a default")
    print_text(f"{path}\n  curvlab train {path}")
