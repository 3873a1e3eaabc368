"""``curvlab export``: what a run has learned, as files for other programs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from curvlab.cli.options import AsJson
from curvlab.cli.output import complain, print_json, print_table, print_text
from curvlab.cli.resuming import continued
from curvlab.cli.warned import warned_once
from curvlab.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from curvlab.engine.plan import Plan

#: of the layouts of the files
FACTORS, WEIGHTS = "curvlab-factors-1", "curvlab-weights-1"

Facts = dict[str, Any]


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.", show_default=False)],
    factors: Annotated[
        Path | None,
        typer.Option(
            "--factors",
            metavar="FILE",
            help="The file to write the curvature factors to, in the format safetensors.",
            show_default=False,
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            "--weights",
            metavar="FILE",
            help="The file to write the model's weights and buffers to, in the format safetensors.",
            show_default=False,
        ),
    ] = None,
    which: Annotated[
        Literal["averaged", "trained", "both"] | None,
        typer.Option(
            "--which",
            help="Which weights; averaged ones if the run keeps an average, else trained ones.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the Kronecker factors of a run's newest checkpoint, without damping, or its weights, or both.

    A file's metadata describe what it holds: of factors, each block and the convention of scale.
    """
    from curvlab.config import build
    from curvlab.reporting.rundir import RunDir

    if factors is None and weights is None:
        raise UsageError("nothing to export: give --factors FILE, --weights FILE, or both")
    if which is not None and weights is None:
        raise UsageError("--which chooses weights; give --weights FILE as well")
    RunDir.open(run)
    with warned_once():
        plan = build(continued(run, ()))
    found: Facts = {"run": str(run)}
    if factors is not None:
        found |= _factors(plan, run, factors, quiet=as_json)
    if weights is not None:
        found |= _weights(plan, run, weights, which, quiet=as_json)
    if as_json:
        print_json(found)


def _factors(plan: Plan, run: Path, path: Path, *, quiet: bool) -> Facts:
    """Write the factors; what there is to say of them."""
    from curvlab.engine.factors import CONVENTION, exported

    with warned_once():
        found = exported(plan, run)
    _complain(found.faults)
    about = found.factors
    metadata = {
        "format": FACTORS,
        "convention": CONVENTION,
        "run": run.resolve().name,
        "step": str(found.step),
        "blocks": json.dumps(about.blocks),
        "untreated": json.dumps(list(about.untreated)),
    }
    _write(about.tensors, metadata, path)
    if not quiet:
        rows = [
            (name, str(block["form"]), "×".join(map(str, block["shape"])), str(block["observed"] or "–"))
            for name, block in about.blocks.items()
        ]
        print_table(("block", "form", "shape", "observed"), rows)
        if about.untreated:
            complain(f"without factors: {', '.join(about.untreated)}")
        print_text(f"step {found.step}  {path}")
    facts: Facts = {"file": str(path), "step": found.step, "blocks": about.blocks}
    return {**facts, "untreated": list(about.untreated)}


def _weights(plan: Plan, run: Path, path: Path, which: Any, *, quiet: bool) -> Facts:
    """Write the weights; what there is to say of them."""
    from curvlab.engine.weights import exported_weights

    with warned_once():
        found = exported_weights(plan, run, which)
    _complain(found.faults)
    metadata = {
        "format": WEIGHTS,
        "run": run.resolve().name,
        "step": str(found.step),
        "weights": found.which,
        "tied": json.dumps(dict(found.tied)),
    }
    _write(found.tensors, metadata, path)
    if not quiet:
        print_text(f"step {found.step}  {found.which} weights, {len(found.tensors)} tensors  {path}")
    return {"weights_file": str(path), "step": found.step, "weights": found.which, "tied": dict(found.tied)}


def _complain(faults: tuple[str, ...]) -> None:
    for fault in faults:
        complain(f"warning: a damaged checkpoint was passed over: {fault}")


def _write(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], path: Path) -> None:
    from safetensors.torch import save

    from curvlab.files import write_atomically, writing

    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, save(whole, dict(metadata)))
