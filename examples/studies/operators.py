"""Neural operators: float16 inside of spectral convolutions, and second-order methods, on Darcy's equation.

    python examples/studies/operators.py

Loss and saved bytes after equal steps, rounding beside discretization on three grids, and methods after equal
seconds of one thread's CPU time.  Writes docs/studies/operators.md; ``--page`` says where else, ``--steps``,
``--tuning`` and ``--seconds`` how long runs last, ``--size`` how many examples there are.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import curvlab
from curvlab.config import build_part
from curvlab.protocols.backend import Backend
from curvlab.protocols.sampler import Draw
from curvlab.registry.loader import installed
from curvlab.tasks.draws import Normal
from curvlab.tasks.supervised import SupervisedWorkload
from curvlab_operators.cosine_fields import at_centers, coefficients
from curvlab_operators.darcy_flow import DarcyFlow
from curvlab_operators.spectral_precision import spectral_precision

PAGE = Path(__file__).resolve().parents[2] / "docs" / "studies" / "operators.md"

#: odd parts of the finest grid, so that centers of its cells are centers of theirs
GRIDS, FINEST = (20, 36, 60), 180

#: what a run's precision is, by its name in the table
PRECISIONS: Mapping[str, Any] = {
    "float32": "float32",
    "mixed, bfloat16 between layers": {"use": "spectral", "spectral": "mixed", "of": "mixed-bfloat16"},
    "mixed, float16 between layers": {"use": "spectral", "spectral": "mixed", "of": "mixed-float16"},
}

#: rates that each method is tuned over, a factor of about 3 apart
RATES = (3e-3, 1e-2, 3e-2)

METHODS = ("adamw", "kfac", "singd", "soap")


@dataclass(frozen=True)
class Budget:
    """How long a run lasts: so many steps, or so many seconds of CPU time."""

    steps: int | None = None
    seconds: float | None = None

    def used(self, steps: int, seconds: float) -> float:
        """The fraction that is used up."""
        return steps / self.steps if self.steps is not None else seconds / (self.seconds or 1.0)


@dataclass(frozen=True)
class Trained:
    """The end of a run: metrics, steps, CPU seconds, the model, and bytes that a step saves."""

    metrics: Mapping[str, float]
    steps: int
    seconds: float
    model: nn.Module
    saved: int


def trained(
    task: DarcyFlow, method: str, lr: float, budget: Budget, precision: Any, seed: int = 0
) -> Trained:
    """A run by our own loop: mini-batches in random order, the rate falling to zero along a cosine."""
    torch.manual_seed(seed)
    model = task.model()
    work = task.workload(model, dtype=torch.float32, device=torch.device("cpu"))
    saved = saved_bytes(work, task.batch_size, precision)
    optimizer = curvlab.optimizer(method, model, lr=lr, seed=seed, precision=precision)
    order = torch.Generator().manual_seed(seed)
    steps, seconds, batches = 0, 0.0, list[Tensor]()
    while (used := budget.used(steps, seconds)) < 1:
        if not batches:
            batches = list(torch.randperm(work.size, generator=order).split(task.batch_size))
        n = batches.pop()
        for group in optimizer.param_groups:
            group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * used))
        before = time.process_time()
        optimizer.step(work.objective(Draw(n, n, n)))
        seconds += time.process_time() - before
        steps += 1
    with backend(precision).forward():
        metrics = dict(work.metrics())
    return Trained(metrics, steps, seconds, model, saved)


def backend(precision: Any) -> Backend:
    """The precision of a table or name."""
    table = {"use": precision} if isinstance(precision, str) else precision
    settings = {name: value for name, value in table.items() if name != "use"}
    return build_part(installed(), Backend, table["use"], settings)  # type: ignore[type-abstract]


def saved_bytes(work: SupervisedWorkload, examples: int, precision: Any) -> int:
    """Bytes of all storages that a forward pass saves for the way back, but those of parameters."""
    own = {p.untyped_storage().data_ptr() for p in work.model.parameters()}
    x, y = work.training.rows(torch.arange(examples))
    kept: dict[int, Tensor] = {}

    def pack(t: Tensor) -> Tensor:
        kept.setdefault(t.untyped_storage().data_ptr(), t)
        return t

    with backend(precision).forward(), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        value = work.loss.mean(work.model(x), y)
    found = sum(t.untyped_storage().nbytes() for pointer, t in kept.items() if pointer not in own)
    del value  # until here no storage was freed, so none has the address of another
    return found


def rounding(task: DarcyFlow, model: nn.Module) -> str:
    """Errors of a trained operator on three grids: of the grid, and of float16."""
    held_out = coefficients(Normal(1), 8, 32, tau=3.0, alpha=2.0)
    inputs = task.data().pairs().inputs[: task.size]

    def sampled(grid: int) -> Tensor:
        a = (5.0 * at_centers(held_out, grid)).exp().unsqueeze(1)
        return ((a - inputs.mean()) / inputs.std()).float()

    rows = []
    with torch.no_grad():
        true = model(sampled(FINEST))
        for grid in GRIDS:
            every = FINEST // grid
            exact = model(sampled(grid))
            of_grid = relative(exact, true[..., every // 2 :: every, every // 2 :: every])
            of_half = []
            for precision in ("mixed", "half"):
                with spectral_precision(precision):  # type: ignore[arg-type]
                    of_half.append(relative(model(sampled(grid)), exact))
            rows.append((f"{grid} × {grid}", f"{of_grid:.1e}", *(f"{e:.1e}" for e in of_half)))
    head = ("grid", "discretization", "rounding, `mixed`", "rounding, `half`")
    return table(head, rows)


def relative(found: Tensor, true: Tensor) -> float:
    """The norm of the difference over the norm, mean over examples."""
    error = (found - true).flatten(1).norm(dim=1) / true.flatten(1).norm(dim=1)
    return float(error.mean())


def memory(task: DarcyFlow, steps: int) -> tuple[str, nn.Module]:
    """AdamW in three precisions after equal steps; the table, and the model of float32."""
    found = {n: trained(task, "adamw", 3e-3, Budget(steps=steps), p) for n, p in PRECISIONS.items()}
    full = found["float32"]
    rows = [
        (
            name,
            f"{run.metrics['val_l2']:.4f}",
            f"{run.metrics['val_l2'] / full.metrics['val_l2'] - 1:+.1%}",
            f"{run.saved / 2**20:.1f} MiB",
            f"{run.saved / full.saved:.2f}",
            f"{run.seconds:.0f}",
        )
        for name, run in found.items()
    ]
    head = ("precision", "`val_l2`", "beside float32", "saved for the way back", "share", "CPU seconds")
    return table(head, rows), full.model


def methods(task: DarcyFlow, tuning: float, seconds: float, seeds: int) -> str:
    """Methods after equal CPU seconds, each at the best of three rates after a shorter run."""
    rows, mean, chosen = [], dict[str, float](), dict[str, float]()
    for method in METHODS:
        tried = {lr: _error(trained(task, method, lr, Budget(seconds=tuning), "float32")) for lr in RATES}
        best = min(tried, key=lambda lr: tried[lr])
        runs = [
            trained(task, method, best, Budget(seconds=seconds), "float32", seed)
            for seed in range(1, 1 + seeds)
        ]
        errors = [_error(run) for run in runs]
        mean[method], chosen[method] = sum(errors) / len(errors), best
        rows.append(
            (
                f"`{method}`",
                f"{best:g}",
                " / ".join(f"{e:.4f}" for e in errors),
                " / ".join(str(run.steps) for run in runs),
                " / ".join(f"{tried[lr]:.4f}" for lr in RATES),
            )
        )
    head = ("method", "`lr`", "`val_l2`, each seed", "steps", "while tuned, by rate")
    below = [f"`{method}`" for method in METHODS if mean[method] < mean["adamw"]]
    ends = [f"`{method}`" for method, lr in chosen.items() if lr == max(RATES)]
    said = (
        f"Below `adamw`: {', '.join(below) or 'none'}."
        f" At the largest rate that was tried: {', '.join(ends) or 'none'}."
    )
    return f"{table(head, rows)}\n\n{said}"


def _error(run: Trained) -> float:
    value = run.metrics["val_l2"]
    return value if math.isfinite(value) else math.inf


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [" | ".join(row) for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(f"| {line} |" for line in lines)


def page(task: DarcyFlow, steps: int, tuning: float, seconds: float, seeds: int) -> str:
    """All of it."""
    smooth = replace(task, coefficient="smooth", stabilizer="tanh")
    kept, model = memory(smooth, steps)
    about = (
        f"A Fourier neural operator of width {task.width}, {task.modes} modes an axis, {task.layers} layers"
        f" on [`darcy-flow`](../neural-operators.md): {task.grid} × {task.grid} cells, {task.size} training"
        f" examples, batches of {task.batch_size}. One thread of a shared CPU; the rate falls to zero along a"
        " cosine."
    )
    grids = (
        "The operator of the first row above, on 8 permeabilities it was not trained on. *Discretization* is"
        f" the relative L² difference from the same operator on {FINEST} × {FINEST} cells, at their points."
        " *Rounding* is the difference from float32 on the same grid. The permeability is smooth."
    )
    saving = (
        f"`adamw`, {steps} steps, `lr` 3e-3, one seed, smooth permeability, tanh before each transform."
        " *Saved* are the bytes of distinct storages that one forward pass keeps for the way back, parameters"
        " left out (`torch.autograd.graph.saved_tensors_hooks`)."
    )
    racing = (
        f"Two-phase permeability, float32, {seconds:g} CPU seconds of training for each run. Each method has"
        f" its defaults, and the best of three rates after {tuning:g} seconds with another seed."
    )
    command = (
        "python examples/studies/operators.py"
        f" --size {task.size} --batch {task.batch_size} --steps {steps}"
        f" --tuning {tuning:g} --seconds {seconds:g} --seeds {seeds}"
    )
    parts = [
        "# Neural operators",
        about,
        "## Float16 inside: loss and memory",
        saving,
        kept,
        "## Rounding beside discretization",
        grids,
        rounding(smooth, model),
        "## Methods at equal seconds",
        racing,
        methods(task, tuning, seconds, seeds),
        f"```\n{command}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--tuning", type=float, default=15.0)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--size", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--grid", type=int, default=32)
    parser.add_argument("--page", type=Path, default=PAGE)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    task = DarcyFlow(grid=given.grid, modes=4, size=given.size, validation_size=100, batch_size=given.batch)
    given.page.write_text(page(task, given.steps, given.tuning, given.seconds, given.seeds), encoding="utf-8")


if __name__ == "__main__":
    main()
