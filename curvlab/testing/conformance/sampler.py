"""The suite of samplers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from curvlab.errors import CurvlabError
from curvlab.protocols.evidence import StepOutcome, Variance
from curvlab.protocols.needs import Needs
from curvlab.protocols.sampler import Draw, Sampler
from curvlab.testing.conformance.bench import Bench, direct, outcome
from curvlab.testing.conformance.check import Skipped, check
from curvlab.testing.conformance.exercised import Found, Stateful

SIZE, BATCH, SEED = 60, 8, 3
PURPOSES = ("gradient", "curvature", "acceptance")


@dataclass
class Run:
    """A state, and what is learned from."""

    state: Any


class SamplerConformance(Stateful):
    """Draws from data of several sizes.

    ``disjoint`` names pairs of samples that share no example, if the sampler says so of any, such as
    ``(("gradient", "acceptance"),)``.
    """

    kind = "sampler"
    part: Sampler[Any]
    disjoint: ClassVar[tuple[tuple[str, str], ...]] = ()

    @property
    def name(self) -> str:
        """The class, for messages."""
        return type(self.part).__name__

    def begin(self) -> Run:
        return Run(self.part.init(SIZE, BATCH, SEED))

    def state_of(self, run: Run) -> Any:
        return run.state

    def advance(self, run: Run, step: int) -> Found:
        draw = self.part.draw(run.state)
        self.part.learn(run.state, came(draw, self.part.needs(run.state)))
        return {name: getattr(draw, name) for name in (*PURPOSES, "micro_batch")}

    @check()
    def check_obligations(self) -> None:
        """A Draw has three samples of whole numbers, none of them empty; ``needs`` are Needs."""
        run = self.begin()
        needs, draw = self.part.needs(run.state), self.part.draw(run.state)
        assert isinstance(needs, Needs), f"{self.name}.needs must return Needs, not {needs!r}"
        assert isinstance(draw, Draw), f"{self.name}.draw must return a Draw, not a {type(draw).__name__}"
        for purpose in PURPOSES:
            sample = getattr(draw, purpose)
            assert isinstance(sample, Tensor), f"{self.name}: the {purpose} sample is not a tensor"
            whole = sample.dim() == 1 and not sample.is_floating_point() and sample.dtype is not torch.bool
            assert whole, f"{self.name}: the {purpose} sample is {sample.dtype} of {sample.dim()} axes"
            assert len(sample) > 0, f"{self.name}: the {purpose} sample is empty"
        micro = draw.micro_batch
        assert micro is None or micro >= 1, f"{self.name}: micro_batch is {micro!r}"

    @check()
    def check_range(self) -> None:
        """Indices are of examples that there are, for data of any size and batches larger than them."""
        for size, batch in ((SIZE, BATCH), (SIZE, SIZE), (BATCH, SIZE), (2, 1), (1, 1)):
            try:
                run = Run(self.part.init(size, batch, SEED))
            except CurvlabError:
                assert size < BATCH, f"{self.name}.init refuses {size} examples, batches of {batch}"
                continue  # data too small for a rule may be refused
            for k in range(12):
                found = self.advance(run, k)
                for purpose in PURPOSES:
                    low, high = int(found[purpose].min()), int(found[purpose].max())
                    inside = 0 <= low and high < size  # noqa: SIM300
                    assert inside, f"{self.name}: {purpose} indices {low} to {high} of {size} examples"

    @check()
    def check_seed(self) -> None:
        """Two states of one seed draw alike, side by side."""
        runs = [self.begin(), self.begin()]
        for k in range(8):
            first, second = (self.advance(run, k) for run in runs)
            for purpose in PURPOSES:
                same = torch.equal(first[purpose], second[purpose])
                assert same, f"{self.name}: two states of one seed draw different {purpose} samples"

    @check()
    def check_disjoint(self) -> None:
        """Samples that are said to be disjoint share no example."""
        if not self.disjoint:
            raise Skipped("the sampler declares no disjoint samples")
        run = self.begin()
        for k in range(12):
            found = self.advance(run, k)
            for a, b in self.disjoint:
                shared = set(found[a].tolist()) & set(found[b].tolist())
                assert not shared, f"{self.name}: {a} and {b} samples share {sorted(shared)[:3]}"

    @check()
    def check_needs(self) -> None:
        """Asking what it needs, and drawing, does not change what it needs; ``learn`` alone may."""
        run = self.begin()
        for _ in range(4):
            before = self.part.needs(run.state)
            draw = self.part.draw(run.state)
            after = self.part.needs(run.state)
            assert before == after, f"{self.name}: drawing changes its needs from {before} to {after}"
            self.part.learn(run.state, came(draw, after))

    @check()
    def check_draws_are_kept(self) -> None:
        """A draw stays what it is: the next one writes nothing into it."""
        run = self.begin()
        draws = [self.part.draw(run.state) for _ in range(2)]
        kept = [getattr(draws[0], p).clone() for p in PURPOSES]
        for k in range(6):
            self.advance(run, k)
        for purpose, sample in zip(PURPOSES, kept, strict=True):
            same = torch.equal(getattr(draws[0], purpose), sample)
            assert same, f"{self.name}: a later draw changes the {purpose} sample of an earlier one"


def came(draw: Draw, needs: Needs) -> StepOutcome:
    """What came of a step on a draw: with the variance of single gradients if that was asked for."""
    if not _known:
        bench = Bench.of(lambda layer: False, lambda block: None)
        _known.append((bench.evaluate(Needs(), 0), direct(bench.vector(0))))
    seen, solve = _known[0]
    one = seen.loss.new_ones(())
    variance = Variance(100.0 * one, 10.0 * one) if needs.variance else None
    return outcome(replace(seen, examples=len(draw.gradient), variance=variance), solve)


_known: list[Any] = []
