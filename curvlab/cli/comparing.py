"""``curvlab runs`` and ``curvlab compare``: what runs reached, and what tells them apart.

Nothing here imports torch.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from curvlab.cli.options import AsJson
from curvlab.cli.output import complain, print_json, print_table, print_text
from curvlab.errors import UsageError

if TYPE_CHECKING:
    from curvlab.comparing.comparison import Comparison
    from curvlab.comparing.record import Over


def runs(
    folder: Annotated[
        Path, typer.Argument(metavar="[DIR]", help="The folder that holds the runs, at any depth.")
    ] = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """List the runs of a folder: method, task, seed, best value, state, and what differs."""
    from curvlab.comparing.outline import outline, runs_below
    from curvlab.comparing.words import RUNS, listed, runs_row

    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder; give one that `curvlab train --out DIR` wrote to")
    found = listed([outline(path) for path in runs_below(folder)])
    if as_json:
        print_json(found)
        return
    if not found:
        complain(f"{folder} holds no runs")
        return
    names = [os.path.relpath(run["run"], folder) for run in found]
    print_table(RUNS, [runs_row(run, name) for run, name in zip(found, names, strict=True)])
    for run, name in zip(found, names, strict=True):
        if run["trouble"]:
            complain(f"{name}: {run['state']}: {run['trouble']}")


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN…", help="Run folders, or folders that hold runs at any depth.", show_default=False
        ),
    ],
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            metavar="METRIC<=VALUE",
            help="Count steps, examples, seconds and product-examples to this value; also METRIC>=VALUE."
            " [default: the worst of the configurations' median best values]",
            show_default=False,
        ),
    ] = None,
    over: Annotated[
        Literal["steps", "seconds", "examples"],
        typer.Option("--x", help="What the curves go over, and what rows are sorted by."),
    ] = "steps",
    html: Annotated[
        Path | None,
        typer.Option(
            "--html",
            metavar="FILE",
            help="Write an HTML page with interactive curves that works offline.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare runs: when each configuration reached a target, over its seeds, and its best value.

    Runs that differ only in seed, name and reporting are one configuration. Numbers are the median over
    its runs, with the range in parentheses; a run that did not reach the target counts as ∞.
    """
    from curvlab.comparing.comparison import compared
    from curvlab.comparing.outline import outline
    from curvlab.comparing.target import Target
    from curvlab.comparing.words import document

    wanted = None if target is None else Target.of(target)
    found = compared([outline(path) for path in _folders(runs)], wanted, over)
    if html is not None:
        _write_page(found, html, over)
    if as_json:
        print_json({**document(found), "html": None if html is None else str(html)})
    else:
        _show(found, over)
        if html is not None:
            print_text(f"\n{html}")
    for run in found.troubled:
        complain(f"{run.path}: {run.state}: {run.trouble}")
    for note in found.notes:
        complain(f"note: {note}")


def _folders(given: Sequence[Path]) -> list[Path]:
    """Each run once; a folder that is no run stands for the runs in it."""
    from curvlab.comparing.outline import runs_below

    found: dict[Path, Path] = {}
    for path in given:
        if not path.exists():
            raise UsageError(f"{path} does not exist; give run folders, as `curvlab runs` lists them")
        for run in list(runs_below(path)) or [path]:
            found.setdefault(run.resolve(), run)
    return list(found.values())


def _show(found: Comparison, over: Over) -> None:
    from curvlab.comparing.terminal import drawing, letters
    from curvlab.comparing.words import heading, table

    width = shutil.get_terminal_size().columns
    for k, task in enumerate(found.tasks):
        print_text(("\n" if k else "") + heading(task))
        print_table(*table(task, letters(len(task.rows))))
        lines = drawing(task, over, width)
        if lines:
            print_text("\n" + "\n".join(lines))


def _write_page(found: Comparison, path: Path, over: Over) -> None:
    from curvlab.comparing.page import page
    from curvlab.files import write_atomically, writing

    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, page(found, over))
