"""``curvlab export``: what a run has learned about curvature, as a file for other programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from curvlab.cli.output import complain, print_json, print_table, print_text
from curvlab.cli.resuming import continued
from curvlab.cli.warned import warned_once

if TYPE_CHECKING:
    from curvlab.engine.factors import Exported

#: of the layout of the file
FORMAT = "curvlab-factors-1"


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.", show_default=False)],
    factors: Annotated[
        Path,
        typer.Option(
            "--factors",
            metavar="FILE",
            help="The file to write the curvature factors to, in the format safetensors.",
            show_default=False,
        ),
    ],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document on standard output.")
    ] = False,
) -> None:
    """Write the Kronecker factors of a run's newest checkpoint, without damping.

    The file's metadata describe each block and the convention of scale.
    """
    from curvlab.config import build
    from curvlab.engine.factors import exported
    from curvlab.reporting.rundir import RunDir

    RunDir.open(run)
    with warned_once():
        found = exported(build(continued(run, ())), run)
    for fault in found.faults:
        complain(f"warning: a damaged checkpoint was passed over: {fault}")
    _write(found, run, factors)
    about = found.factors
    if as_json:
        print_json(
            {
                "run": str(run),
                "file": str(factors),
                "step": found.step,
                "blocks": about.blocks,
                "untreated": list(about.untreated),
            }
        )
        return
    rows = [
        (name, str(block["form"]), "×".join(map(str, block["shape"])), str(block["observed"] or "–"))
        for name, block in about.blocks.items()
    ]
    print_table(("block", "form", "shape", "observed"), rows)
    if about.untreated:
        complain(f"without factors: {', '.join(about.untreated)}")
    print_text(f"step {found.step}  {factors}")


def _write(found: Exported, run: Path, path: Path) -> None:
    from safetensors.torch import save

    from curvlab.engine.factors import CONVENTION
    from curvlab.files import write_atomically, writing

    about = found.factors
    metadata = {
        "format": FORMAT,
        "convention": CONVENTION,
        "run": run.resolve().name,
        "step": str(found.step),
        "blocks": json.dumps(about.blocks),
        "untreated": json.dumps(list(about.untreated)),
    }
    tensors = {name: tensor.contiguous() for name, tensor in about.tensors.items()}
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, save(tensors, metadata))
