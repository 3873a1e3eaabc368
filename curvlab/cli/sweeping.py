"""``curvlab sweep``: a search over ranges of settings.  Nothing here imports torch before a command runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from curvlab.cli.options import AsJson, Jobs, Quiet, Settings
from curvlab.cli.output import complain, print_json, print_table, print_text
from curvlab.cli.warned import warned_once
from curvlab.errors import CurvlabError, Diverged

if TYPE_CHECKING:
    from curvlab.sweeps.result import Result
    from curvlab.sweeps.sweep import Sweep

#: the best configuration's file in the sweep's folder
BEST = "best.toml"


def sweep(
    config: Annotated[
        list[Path],
        typer.Argument(
            metavar="CONFIG…",
            help="TOML files, with a table [sweep]; later files override earlier ones.",
            show_default=False,
        ),
    ],
    settings: Settings = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="The folder of the runs. [default: sweeps/NAME]"),
    ] = None,
    jobs: Jobs = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check every trial and list them, without training.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train with every setting of a range, and print a table and the best configuration.

    The ranges stand in [sweep.over]. Run the same command again to continue a sweep that was stopped.
    """
    from curvlab.config import load
    from curvlab.sweeps.search import carry_out
    from curvlab.sweeps.sweep import Sweep

    with warned_once(quiet=quiet):
        found = Sweep.of(load(config, settings or ()), config[-1].stem, jobs)
        folder = found.folder(out)
        if dry_run:
            _show_plan(found, folder, as_json)
            return
        results = carry_out(found, folder, lambda one: None if quiet else complain(_progress(found, one)))
    _conclude(found, folder, results, as_json, quiet)


def _show_plan(found: Sweep, folder: Path, as_json: bool) -> None:
    from curvlab.config.toml_text import inline
    from curvlab.config.tree import plain
    from curvlab.sweeps.result import shown
    from curvlab.trials.space import values_of

    if found.settings.search == "optuna":  # its points depend on results
        ranges = {key: plain(one.node) for key, one in found.space.ranges.items() if hasattr(one, "node")}
        lists = {
            k: [plain(v) for v in one.samples] for k, one in found.space.ranges.items() if k not in ranges
        }
        both = {key: {**ranges, **lists}[key] for key in found.space.ranges}
        if as_json:
            print_json({"sweep": str(folder), "trials": found.count, "over": both})
            return
        print_table(("key", "range"), [(key, inline(value)) for key, value in both.items()])
        print_text(f"\n{found.count} trials in {folder}")
        return
    points = [values_of(point) for point in found.points()]
    if as_json:
        print_json({"sweep": str(folder), "trials": points})
        return
    keys = list(found.space.ranges)
    print_table(
        ("trial", *keys), [(f"{k:04}", *(shown(p[key]) for key in keys)) for k, p in enumerate(points)]
    )
    print_text(f"\n{len(points)} trials in {folder}")


def _progress(found: Sweep, one: Result) -> str:
    from curvlab.sweeps.result import shown

    value = "" if one.value is None else f", best {found.metric} {one.value:.4g} at step {one.step}"
    said = " ".join(f"{key}={shown(setting)}" for key, setting in one.settings.items())
    number = int(one.name.rpartition("-")[2])
    why = f": {one.message}" if one.message and one.state != "finished" else ""
    return f"{number + 1}/{found.count}  {said}  {one.state}{value}{why}"


def _conclude(found: Sweep, folder: Path, results: list[Result], as_json: bool, quiet: bool) -> None:
    from curvlab.files import write_atomically
    from curvlab.sweeps.result import INVALID, document, ranked, table

    ordered = ranked(results, found.more_is_better)
    best = ordered[0] if ordered and ordered[0].state == "finished" and ordered[0].value is not None else None
    if best is not None:
        write_atomically(folder / BEST, best.configuration)
    if as_json:
        chosen = None if best is None else document([best])[0] | {"file": str(folder / BEST)}
        about = {"sweep": str(folder), "metric": found.metric, "more_is_better": found.more_is_better}
        print_json({**about, "trials": document(ordered), "best": chosen})
    elif not quiet:
        print_table(*table(ordered, found.metric))
    for one in results:
        if one.state == INVALID:
            complain(f"{one.name} was not trained: {one.message}")
    if best is None:
        kind = Diverged if all(one.state == "diverged" for one in results) else CurvlabError
        raise kind(
            f"no trial of {folder} finished with a value of {found.metric}; the table says how they ended"
        )
    if not as_json and not quiet:
        print_text(
            f"\n# {folder / BEST}: {found.metric} {best.value:.4g} at step {best.step}\n{best.configuration}"
        )
