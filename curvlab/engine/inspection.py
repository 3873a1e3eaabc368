"""What a plan would do, without doing it: coverage, bytes of state, cost of a step.

The model is built on torch's meta device, which has shapes and no memory, and no data are read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from curvlab.engine.arms import Arms
from curvlab.engine.coverage import Coverage
from curvlab.engine.optimizer import CurvatureOptimizer
from curvlab.engine.owners import owners_of
from curvlab.engine.plan import Plan
from curvlab.engine.state import nbytes
from curvlab.files import require_temporary_folder
from curvlab.objectives.ranks import PlannedRanks
from curvlab.protocols.needs import Labels, Needs
from curvlab.protocols.sampler import SampleStream

#: so many first steps are looked at, of a run that has as many: every cadence in use has come round by then
CYCLE = 100
#: examples that a sampler is shown to be asked what it needs; how many there are, only the data know
SOME = 10_000


@dataclass(frozen=True)
class StepCost:
    """What one kind of step evaluates; ``steps`` of ``of_steps`` are of this kind.

    ``backwards_per_output`` more backward passes are made for each output of the model (exact labels).
    A product with the GGN costs about a forward and a backward, a trial loss a forward, a trial gradient
    both; of all three, the numbers are upper bounds.  What an adaptive sampler asks for depends on its
    state and is that of the first step.
    """

    steps: int
    forwards: int
    backwards: int
    backwards_per_output: int
    products: int
    losses: int
    gradients: int
    variance: bool
    labels: tuple[str, ...]
    of_steps: int = CYCLE

    @classmethod
    def of(cls, needs: Needs, steps: int, of_steps: int = CYCLE) -> StepCost:
        """The cost that ``needs`` amounts to, in ``steps`` of ``of_steps``."""
        sampled = needs.samples if Labels.MODEL in needs.layers else 0
        return cls(
            steps=steps,
            of_steps=of_steps,
            forwards=1 + needs.after,
            backwards=1 + sampled + needs.after,
            backwards_per_output=int(Labels.EXACT in needs.layers),
            products=needs.products,
            losses=needs.losses,
            gradients=needs.gradients,
            variance=needs.variance,
            labels=tuple(sorted(str(kind) for kind in needs.layers)),
        )

    def __str__(self) -> str:
        """``1 forward, 2 backwards, at most 30 GGN products``."""
        words = [_count(self.forwards, "forward"), _count(self.backwards, "backward")]
        if self.backwards_per_output:
            words.append("1 more backward per output")
        if self.products:
            words.append(f"at most {_count(self.products, 'GGN product')}")
        if self.losses:
            words.append(f"at most {_count(self.losses, 'trial loss', 'es')}")
        if self.gradients:
            words.append(f"at most {_count(self.gradients, 'trial gradient')}")
        if self.variance:
            words.append("the gradients' variance over examples")
        return ", ".join(words)


@dataclass(frozen=True)
class Share:
    """What one of several processes has of the method's work.

    ``work`` is its part of the estimate that blocks are shared out by, ``sent_bytes`` are the parameters that
    it tells each of the others in a step.
    """

    rank: int
    blocks: tuple[str, ...]
    work: float
    state_bytes: int
    sent_bytes: int


@dataclass(frozen=True)
class Inspection:
    """What a plan would do.  ``costs`` are the kinds of steps, the most frequent first.

    ``shares`` are those of several processes, if they share the blocks out; empty where each holds all.
    """

    method: str
    coverage: tuple[Coverage, ...]
    parameters: int
    parameter_bytes: int
    state_bytes: int
    costs: tuple[StepCost, ...]
    remark: str | None = None
    shares: tuple[Share, ...] = ()

    def as_document(self) -> Mapping[str, Any]:
        """As plain data, for JSON."""
        return {
            **asdict(self),
            "coverage": [row.as_row() for row in self.coverage],
            "costs": [asdict(cost) for cost in self.costs],
        }


def inspect(plan: Plan, processes: int = 1) -> Inspection:
    """Inspect a plan for so many processes.

    Raises ``CoverageError``, and ``ConfigError`` for a placement that is not possible, as training would.
    Allocates nothing on any device.
    """
    require_temporary_folder()
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        model = plan.task.model().to(plan.backend.dtypes.parameters)
    seed = plan.run.seed
    samples = SampleStream.of(plan.sampler, SOME, min(plan.task.batch_size, SOME), seed)
    optimizer = CurvatureOptimizer(
        plan.method,
        model,
        backend=plan.backend,
        seed=seed,
        name=plan.method_name,
        readers=plan.readers,
        samples=samples,
        average=plan.average,
    )
    looked_at = CYCLE if plan.run.steps is None else min(CYCLE, plan.run.steps)
    kinds = Counter(optimizer.needs(step) for step in range(looked_at))
    parameters = list(model.parameters())
    return Inspection(
        method=plan.method_name,
        coverage=tuple(optimizer.coverage()),
        parameters=sum(p.numel() for p in parameters),
        parameter_bytes=sum(p.nbytes for p in parameters),
        state_bytes=optimizer.state_bytes(),
        remark=plan.method.preconditioner.remark(sum(p.numel() for p in parameters), _batch(plan)),
        costs=tuple(StepCost.of(needs, steps, looked_at) for needs, steps in kinds.most_common()),
        shares=_shares(plan, optimizer, processes),
    )


def _shares(plan: Plan, optimizer: CurvatureOptimizer, processes: int) -> tuple[Share, ...]:
    """What each of several processes would hold and do, if they share the blocks out."""
    blocks, arms = optimizer.blocks, optimizer.assignment
    averages = 0 if optimizer.averaging is None else nbytes(optimizer.averaging.state)  # whole, in each

    def of(rank: int) -> Share | None:
        ranks = PlannedRanks(None, processes, rank)
        owners = owners_of(
            plan.run.placement, ranks, optimizer.method, lambda b: bool(arms.refusal(blocks, b))
        )
        if owners is None:
            return None
        owners.extend(blocks.members)
        mine = owners.mine(blocks)
        held = Arms(arms.name, arms.method, arms.backend, arms.generator, arms.emit, owners.mine)
        held.assign(blocks, blocks.layout.names, lambda block: ())
        everything = sum(owners.loads.values())
        return Share(
            rank,
            mine.layout.names,
            owners.loads[rank] / everything if everything else 0.0,
            averages + sum(nbytes(arm.state) for arm in held.members),
            sum(blocks.value(name).nbytes for block in mine.members for name in block.parameters),
        )

    found = [of(rank) for rank in range(processes)] if processes > 1 else []
    return tuple(share for share in found if share is not None)


def _batch(plan: Plan) -> int | None:
    """Examples of a batch, where the task knows how many it has."""
    known = plan.task.examples()
    return None if known is None else min(plan.task.batch_size, known)


def _count(n: int, word: str, plural: str = "s") -> str:
    return f"{n} {word}{'' if n == 1 else plural}"
