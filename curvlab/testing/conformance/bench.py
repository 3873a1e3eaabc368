"""A small problem for parts that learn from evaluations: a network, its blocks, its loss on batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from curvlab.linalg.cg import Stop
from curvlab.linalg.lookups import Lookups, rearranged
from curvlab.linalg.vectors import BlockVector
from curvlab.model.partition import partition
from curvlab.objectives.supervised import SupervisedObjective, objective
from curvlab.protocols.blocks import Block, Blocks
from curvlab.protocols.context import Context
from curvlab.protocols.dtypes import Dtypes
from curvlab.protocols.evidence import Evaluation, LayerStats, Solve, Step, StepOutcome
from curvlab.protocols.needs import Needs
from curvlab.testing.problems import labels, normal
from curvlab.testing.reference import Lapack
from curvlab.testing.unread import UnreadNorm

EXAMPLES, INPUTS, HIDDEN, CLASSES = 6, 4, 5, 3

#: λ of the contexts, unless a check says otherwise
DAMPING = 0.1


def network() -> nn.Module:
    """Two linear layers, and a norm between them that no reader reads; always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.Linear(INPUTS, HIDDEN), nn.Tanh(), UnreadNorm(HIDDEN), nn.Linear(HIDDEN, CLASSES)
        return nn.Sequential(*layers).to(torch.float64)


#: dtypes that differ by role: vectors in float32, and nothing that is stored is
MIXED = Dtypes(
    parameters=torch.float32,
    compute=None,
    rows=torch.bfloat16,
    factors=torch.float64,
    inverse_factors=torch.bfloat16,
    moments=torch.bfloat16,
)
#: relative change by rounding rows and states to bfloat16
NEAR = 0.1


@dataclass(frozen=True)
class Bench:
    """A live model, the blocks of it that a part treats, and what refused the others."""

    model: nn.Module
    blocks: Blocks
    refused: dict[str, str]
    roles: Dtypes

    @classmethod
    def of(
        cls,
        joins: Callable[[str], bool],
        refuses: Callable[[Block], str | None],
        roles: Dtypes | torch.dtype = torch.float64,
    ) -> Bench:
        """The network as a part wants it partitioned."""
        roles = roles if isinstance(roles, Dtypes) else Dtypes.uniform(roles)
        model = network().to(roles.parameters)
        whole = partition(model, joins)
        reasons = {b.name: refuses(b) for b in whole.members}
        treated = [name for name, reason in reasons.items() if reason is None]
        return cls(model, whole.select(treated), {n: r for n, r in reasons.items() if r is not None}, roles)

    def context(self, step: int) -> Context:
        """A step's context, in the dtypes of the bench."""
        return context(step, roles=self.roles)

    @property
    def like(self) -> BlockVector:
        """A zero vector of the blocks, as parts are given one to begin with."""
        vector = self.blocks.layout.zeros(like=self.blocks.like.detach())
        return self.context(0).zeros(vector, "moments")

    def vector(self, seed: int) -> BlockVector:
        """A vector of normal numbers."""
        flat = normal(self.blocks.layout.size, seed=seed).to(self.blocks.like.dtype)
        return BlockVector(self.blocks.layout, flat)

    def objective(self, batch: int, *, micro_batch: int | None = None) -> SupervisedObjective:
        """The cross-entropy of a batch."""
        x = normal(EXAMPLES, INPUTS, seed=100 + batch).to(self.blocks.like.dtype)
        y = labels(EXAMPLES, classes=CLASSES, seed=200 + batch)
        return objective(self.model, nn.CrossEntropyLoss(), x, y, micro_batch=micro_batch)

    def evaluate(
        self, needs: Needs, step: int, *, micro_batch: int | None = None, theta: bool = False
    ) -> Evaluation:
        """What is seen at θ on the step's batch; sampled labels are the step's own.

        With θ itself where ``needs.after`` is asked for, as from the engine, or ``theta``.
        """
        seen = self.objective(step, micro_batch=micro_batch).evaluate(needs, self.blocks, self.context(step))
        return replace(seen, theta=self.blocks.read) if needs.after or theta else seen


def context(step: int, damping: float = DAMPING, roles: Dtypes | None = None) -> Context:
    """A step's context, with randomness of its own; in float64 unless ``roles`` say otherwise."""
    backend = Lapack() if roles is None else Lapack(roles)
    return Context(step, damping, backend, torch.Generator().manual_seed(1000 + step))


def doubled(seen: Evaluation) -> Evaluation:
    """What a batch would show that has every example twice: the same loss, and so the same curvature."""

    def twice(t: LayerStats) -> LayerStats:
        grads = None if t.grads is None else torch.cat([t.grads, t.grads], dim=1)
        return LayerStats(rearranged(lambda x: torch.cat([*x]), [t.inputs, t.inputs]), grads)

    layers = {
        kind: {name: tuple(twice(t) for t in terms) for name, terms in found.items()}
        for kind, found in seen.layers.items()
    }
    return replace(
        seen, examples=2 * seen.examples, curvature_examples=2 * seen.curvature_examples, layers=layers
    )


def outcome(
    seen: Evaluation, solve: Solve, *, alpha: float = 0.1, accepted: bool = True, ratio: float | None = None
) -> StepOutcome:
    """What came of a step along a solution."""
    return StepOutcome(seen, solve, Step(solve.x, alpha if accepted else 0.0, accepted), ratio)


def direct(x: BlockVector) -> Solve:
    """A solution that took no iterations."""
    return Solve(x, 0, Stop.DIRECT)


def copies(seen: Evaluation) -> dict[str, Tensor]:
    """Every tensor that a pass holds, copied, by name."""
    return {name: t.clone() for name, t in held(seen).items()}


def held(seen: Evaluation) -> dict[str, Tensor]:
    """Every tensor that a pass holds, by name."""
    found = {"loss": seen.loss, **{f"gradient of {n}": g for n, g in seen.gradient.items()}}
    for kind, layers in seen.layers.items():
        for name, terms in layers.items():
            for k, t in enumerate(terms):
                found[f"inputs of {name} for {kind}, {k}"] = (
                    t.inputs.index if isinstance(t.inputs, Lookups) else t.inputs
                )
                if t.grads is not None:
                    found[f"output gradients of {name} for {kind}, {k}"] = t.grads
    for kind, residuals in seen.residuals.items():
        found.update({f"residuals for {kind}, {k}": r for k, r in enumerate(residuals)})
    return found


def require_near(expected: BlockVector, found: BlockVector, *, what: str) -> None:
    """Raise ``AssertionError`` unless ``found`` differs from ``expected`` by rounding alone, in its dtype."""
    dtype = found.dtype
    assert dtype is expected.dtype, f"{what} is {dtype} where states have other dtypes than vectors"
    assert found.is_finite(), f"{what} is not finite where states have other dtypes than vectors"
    error, size = float((found - expected).norm()), float(expected.norm())
    assert error <= NEAR * size, f"{what} changes by {error / size:.0%} where states are rounded to bfloat16"
