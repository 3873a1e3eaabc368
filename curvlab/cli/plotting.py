"""``curvlab plot``: curves of runs, and the pictures of a run's task.

Nothing here imports torch or matplotlib before the command runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from curvlab.cli.options import AsJson
from curvlab.cli.output import complain, print_json, print_text
from curvlab.cli.resuming import continued
from curvlab.cli.warned import warned_once
from curvlab.errors import CurvlabError, RunFolderError, UsageError
from curvlab.registry.suggest import advice

if TYPE_CHECKING:
    from curvlab.engine.pictures import Shown
    from curvlab.plotting.curves import Panel
    from curvlab.plotting.recorded import Over, Recorded

#: files in a run's folder, unless ``--out`` says otherwise
CURVES, PICTURES = "plot.png", "pictures"


def plot(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN…", help="Run folders, one or several.", show_default=False)
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            help="The file of the curves, .png or .svg; pictures of the task go beside it, as FILE-NAME."
            " [default: plot.png in the run's folder, and pictures/NAME.png]",
            show_default=False,
        ),
    ] = None,
    over: Annotated[
        Literal["steps", "seconds", "examples"], typer.Option("--x", help="What the curves go over.")
    ] = "steps",
    metric: Annotated[
        str | None,
        typer.Option(
            "--metric",
            metavar="NAME",
            help="Draw this metric alone. [default: the training loss, and the metric of the task]",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Draw the curves of runs and, for one run, the pictures of its task at the newest checkpoint.

    Axes of values are logarithmic where all values are positive and differ by more than a factor of two.
    """
    from curvlab.plotting.canvas import require_matplotlib
    from curvlab.plotting.recorded import recorded
    from curvlab.reporting.rundir import RunDir

    target = _target(out, runs)
    report = _Report(as_json)
    given = recorded([RunDir.open(run) for run in runs])
    found = _with_metrics(given, report)
    panels = _panels(found, metric, over, report)
    require_matplotlib()
    _draw_curves(panels, found, over, target, report)
    if len(given) == 1:
        _draw_pictures(found[0], out, report)
    if as_json:
        print_json(
            {
                "runs": [str(run.path) for run in found],
                "x": over,
                "metrics": [panel.metric for panel in panels],
                "curves": str(target),
                "pictures": report.pictures,
                "files": report.files,
                "warnings": report.warnings,
            }
        )


class _Report:
    """Files, printed as they are written, and warnings, printed on standard error; kept for ``--json``."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.files: list[str] = []
        self.pictures: list[dict[str, Any]] = []
        self.warnings: list[str] = []

    def wrote(self, path: Path) -> None:
        self.files.append(str(path))
        if not self.as_json:
            print_text(str(path))

    def warn(self, text: str) -> None:
        self.warnings.append(text)
        complain(f"warning: {text}")


def _target(out: Path | None, runs: Sequence[Path]) -> Path:
    """The file of the curves; raises ``UsageError`` if its name cannot be one."""
    from curvlab.plotting.canvas import SUFFIXES

    if out is None:
        if len({run.resolve() for run in runs}) > 1:
            raise UsageError("--out FILE is missing: several runs have no folder in common for their curves")
        return runs[0] / CURVES
    if out.suffix.lower() not in SUFFIXES:
        raise UsageError(f"--out {out}: expected the name of a file that ends in {' or '.join(SUFFIXES)}")
    return out


def _with_metrics(runs: Sequence[Recorded], report: _Report) -> list[Recorded]:
    """The runs with something to draw; raises ``RunFolderError`` if there are none."""
    empty = [run for run in runs if not run.metrics()]
    if len(empty) == len(runs):
        names = ", ".join(str(run.path) for run in runs)
        raise RunFolderError(
            f"{names}: metrics.jsonl holds no metrics, so there is nothing to draw; "
            f"train with `curvlab resume {runs[0].path}`"
        )
    for run in empty:
        report.warn(f"{run.path} is left out: its metrics.jsonl holds no metrics")
    return [run for run in runs if run not in empty]


def _panels(
    runs: Sequence[Recorded],
    metric: str | None,
    over: Over,
    report: _Report,
) -> list[Panel]:
    """The metric that is asked for, else the training loss and what the tasks are judged by."""
    from curvlab.plotting.curves import Panel

    known = set().union(*(run.metrics() for run in runs))
    if metric is not None and metric not in known:
        where = "this run has" if len(runs) == 1 else "none of these runs has"
        no = "no such metric" if len(runs) == 1 else "such a metric"
        raise UsageError(f"--metric {metric}: {where} {no}\n  {advice(metric, known, 'Metrics')}")
    judged = dict(run.judged_by for run in runs)
    names = ["loss", *judged] if metric is None else [metric]
    panels = []
    for name in (name for name in names if name in known):
        series = {run: run.series(name, over) for run in runs}
        for run in (run for run in series if series[run] is None):
            report.warn(f"{run.path} has no metric {name}")
        drawn = [one for one in series.values() if one is not None]
        if drawn:
            panels.append(Panel(name, drawn, linear=judged.get(name, False)))
    if not panels:
        wanted = " and ".join(names)
        raise UsageError(
            f"no run has {wanted}; choose a metric by --metric NAME\n  {advice('', known, 'Metrics')}"
        )
    return panels


def _draw_curves(
    panels: Sequence[Panel],
    runs: Sequence[Recorded],
    over: Over,
    target: Path,
    report: _Report,
) -> None:
    from curvlab.files import writing
    from curvlab.plotting.curves import draw_curves

    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    title = _heading(runs[0]) if len(runs) == 1 else ""
    draw_curves(panels, over, title, [run.label for run in runs], target)
    report.wrote(target)


def _draw_pictures(run: Recorded, out: Path | None, report: _Report) -> None:
    """Draw the pictures of a run's task; what keeps the run from being rebuilt is a warning."""
    from curvlab.files import writing
    from curvlab.plotting.pictures import draw_picture, file_names

    try:
        with warned_once():
            found = _shown(run.path)
    except CurvlabError as error:
        report.warn(f"no pictures of the task are drawn: {error}")
        return
    for fault in found.faults:
        report.warn(f"a damaged checkpoint was passed over: {fault}")
    for picture, name in zip(found.pictures, file_names(found.pictures), strict=True):
        if out is None:
            path = run.path / PICTURES / f"{name}.png"
            with writing(path.parent):
                path.parent.mkdir(exist_ok=True)
        else:
            path = out.with_name(f"{out.stem}-{name}{out.suffix}")
        draw_picture(picture, f"{_heading(run)}, step {found.step}", path)
        report.wrote(path)
        report.pictures.append({"title": picture.title, "step": found.step, "file": str(path)})


def _shown(folder: Path) -> Shown:
    from curvlab.config import build
    from curvlab.engine.pictures import pictures_of

    return pictures_of(build(continued(folder, ())), folder)


def _heading(run: Recorded) -> str:
    """``quickstart: task digits, method kfac``."""
    about = [f"{key} {run.manifest[key]}" for key in ("task", "method") if run.manifest.get(key)]
    return f"{run.label}: {', '.join(about)}" if about else run.label
