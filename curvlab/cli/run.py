"""``curvlab train``, ``resume``, ``eval`` and ``env``; ``app.py`` registers them.

Nothing here imports torch before a command runs.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from curvlab.cli.launching import launch, rank
from curvlab.cli.naming import name_override
from curvlab.cli.options import MOST_PROCESSES, AsJson, Quiet, Settings
from curvlab.cli.output import complain, documents, print_json, print_table, print_text
from curvlab.cli.resuming import continued
from curvlab.cli.warned import warned_once

if TYPE_CHECKING:
    from curvlab.engine.inspection import Inspection
    from curvlab.engine.plan import Plan

Processes = Annotated[
    int,
    typer.Option(
        "--processes",
        metavar="N",
        min=1,
        max=MOST_PROCESSES,
        help="Train in N processes of this machine, which share each step's examples.",
        show_default=False,
    ),
]
Folder = Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.", show_default=False)]


def train(
    config: Annotated[
        list[Path],
        typer.Argument(
            metavar="CONFIG…", help="TOML files; later files override earlier ones.", show_default=False
        ),
    ],
    settings: Settings = None,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="The folder in which to create the run's folder.")
    ] = Path("runs"),
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="N", help="The first part of the run folder's name, as run.name."),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Continue the newest unfinished run of this configuration, if there is one."
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show coverage, bytes of state and cost of a step, without training."),
    ] = False,
    processes: Processes = 1,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train one run, in a new folder."""
    from curvlab.config import build, load

    given = settings or []
    plan = build(load(config, [*given, *name_override(config, given, name)]))
    if dry_run:
        from curvlab.engine.inspection import inspect

        with warned_once(quiet=quiet):
            found = inspect(plan, processes)
        _show_inspection(found, as_json)
        return
    if processes > 1:
        launch(processes, sys.argv[1:])
        return
    folder = None
    if resume:
        from curvlab.engine.folder import unfinished

        folder = unfinished(out, plan)
    if resume and not quiet and rank() == 0:
        complain(f"going on in {folder}" if folder else "no unfinished run to continue: this is a new run")
    _train_and_print(plan, out, folder, as_json, quiet)


def resume(
    run: Folder,
    settings: Settings = None,
    processes: Processes = 1,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Continue a run from its newest complete checkpoint."""
    from curvlab.config import build
    from curvlab.reporting.rundir import RunDir

    RunDir.open(run)
    plan = build(continued(run, settings or ()))
    if processes > 1:
        launch(processes, sys.argv[1:])
        return
    _train_and_print(plan, run.parent, run, as_json, quiet)


def evaluate(run: Folder, as_json: AsJson = False) -> None:
    """Compute the metrics of a run's newest checkpoint again."""
    from curvlab.config import build
    from curvlab.engine.rebuilt import evaluate as computed
    from curvlab.reporting.console import metrics_in_words
    from curvlab.reporting.rundir import RunDir

    RunDir.open(run)
    found = computed(build(continued(run, ())), run)
    for fault in found["damaged"]:
        complain(f"warning: a damaged checkpoint was passed over: {fault}")
    if as_json:
        print_json(found)
    else:
        print_text(f"step {found['step']}  {metrics_in_words(found['metrics'])}")


def env(as_json: AsJson = False) -> None:
    """Show versions, devices, threads and plugins: what a bug report needs."""
    from curvlab.engine.manifest import environment
    from curvlab.registry import installed

    found = environment()
    found["plugins"] = {
        f"{record.distribution}:{record.name}": {"version": record.version, "status": record.status}
        for record in installed().plugins
    }
    if as_json:
        print_json(found)
        return
    for key, value in found.items():
        if isinstance(value, Mapping):
            print_text(key)
            for inner, detail in value.items():
                words = " ".join(map(str, detail.values())) if isinstance(detail, Mapping) else detail
                print_text(f"  {inner}  {words}")
        else:
            print_text(f"{key}  {', '.join(value) if isinstance(value, list) else value}")


def _train_and_print(plan: Plan, out: Path, folder: Path | None, as_json: bool, quiet: bool) -> None:
    from curvlab.engine.run import train_plan
    from curvlab.reporting.console import Console
    from curvlab.reporting.document import Document
    from curvlab.reporting.runlog import RunLog

    first = rank() == 0
    quiet, as_json = quiet or not first, as_json and first  # one of several processes speaks
    if quiet:
        others = tuple(r for r in plan.reporters if not isinstance(r, Console))
        plan = dataclasses.replace(plan, reporters=others)
    listeners = (Document(documents()),) if as_json else ()
    with warned_once(quiet=quiet):
        run = train_plan(plan, out=out, log=RunLog, resume_from=folder, listeners=listeners)
    if run.was_over and first:
        hint = "to continue, set a larger budget: --set run.steps=N"
        complain(f"{run.folder} is finished, after {run.summary['steps']} steps; {hint}")
        if as_json:
            print_json(run.summary)
    elif not (as_json or quiet):
        print_text(_in_words(run.summary))


def _in_words(summary: Mapping[str, Any]) -> str:
    from curvlab.reporting.console import metrics_in_words

    best = summary["best"]
    lines = [
        f"{summary['steps']} steps, {summary['epochs']:.4g} epochs, {summary['seconds']:.1f} s of training",
        metrics_in_words(summary["metrics"]),
        f"best {best['metric']} {best['value']:.4g} at step {best['step']}" if best else "",
        str(summary["message"]),
        ", ".join(f"{count} × {name}" for name, count in summary["events"].items()),
        summary["folder"],
    ]
    return "\n".join(line for line in lines if line)


def _show_inspection(found: Inspection, as_json: bool) -> None:
    if as_json:
        print_json(found.as_document())
        return
    print_table(
        ("parameter", "shape", "block", "treatment", "why not by the method itself"),
        [(c.parameter, "×".join(map(str, c.shape)), c.block, c.treatment, c.reason) for c in found.coverage],
    )
    print_text(f"\n{found.parameters:,} parameters, {found.parameter_bytes:,} bytes")
    print_text(f"state of the method, beside parameters and gradients: {found.state_bytes:,} bytes")
    if found.remark is not None:
        print_text(found.remark)
    for share in found.shares:
        print_text(
            f"rank {share.rank}: {len(share.blocks)} blocks, {share.work:.0%} of the method's work,"
            f" {share.state_bytes:,} bytes of state, sends {share.sent_bytes:,} bytes of parameters a step"
        )
    for cost in found.costs:
        print_text(f"{cost.steps} of {cost.of_steps} steps: {cost}")
