"""The suite of curvature estimators."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from curvlab.linalg.operator import LinearOperator
from curvlab.linalg.vectors import BlockVector
from curvlab.protocols.dtypes import Dtypes
from curvlab.protocols.estimator import CurvatureEstimator
from curvlab.protocols.evidence import Evaluation
from curvlab.protocols.needs import Labels, Needs
from curvlab.protocols.reader import products
from curvlab.testing.asserts import assert_same, assert_self_adjoint
from curvlab.testing.conformance.bench import MIXED, Bench, copies, doubled, held, require_near
from curvlab.testing.conformance.check import Skipped, check
from curvlab.testing.conformance.exercised import Found, Stateful


@dataclass
class Run:
    """A network and a state."""

    bench: Bench
    state: Any


class EstimatorConformance(Stateful):
    """An estimate of C against the evidence that it is made of."""

    kind = "estimator"
    part: CurvatureEstimator[Any]

    @property
    def name(self) -> str:
        """The class, for messages."""
        return type(self.part).__name__

    def bench(self, roles: Dtypes | torch.dtype = torch.float64) -> Bench:
        """The network, partitioned for this estimator."""
        return Bench.of(lambda layer: self.part.by_layer, self.part.refuses, roles)

    def begin(self) -> Run:
        bench = self.bench()
        return Run(bench, self.part.init(bench.like, bench.context(0)))

    def state_of(self, run: Run) -> Any:
        return run.state

    def advance(self, run: Run, step: int) -> Found:
        self.observed(run, run.bench.evaluate(self.part.needs(), step), step)
        return {"C v": self.part.curvature(run.state) @ run.bench.vector(step)}

    def observed(self, run: Run, seen: Evaluation, step: int = 0) -> LinearOperator[BlockVector]:
        """The estimate after one more evaluation."""
        self.part.observe(run.state, seen, run.bench.context(step))
        return self.part.curvature(run.state)

    @check()
    def check_obligations(self) -> None:
        """``needs`` are Needs, ``curvature`` an operator on the blocks that promises to be PSD."""
        needs, run = self.part.needs(), self.begin()
        assert isinstance(needs, Needs), f"{self.name}.needs() must return Needs, not {needs!r}"
        assert run.bench.blocks.members, f"{self.name} refuses every block: {run.bench.refused}"
        C = self.observed(run, run.bench.evaluate(needs, 0))
        assert isinstance(C, LinearOperator), (
            f"{self.name}.curvature must return a LinearOperator, not a {type(C)}"
        )
        assert C.self_adjoint, (
            f"{self.name}.curvature: {type(C).__name__}.self_adjoint is False, expected True"
        )
        assert C.psd, f"{self.name}.curvature: {type(C).__name__}.psd is False, and solvers need True"
        image = C @ run.bench.vector(0)
        assert isinstance(image, BlockVector), (
            f"{self.name}: C @ v must return a BlockVector, not a {type(image)}"
        )
        assert image.layout == run.bench.blocks.layout, (
            f"{self.name}: the blocks of C @ v differ from those of v"
        )

    @check()
    def check_refusals(self) -> None:
        """A block that is not treated is refused with a reason, in words."""
        bench = self.bench()
        for name, reason in bench.refused.items():
            wordy = isinstance(reason, str) and reason.strip()
            assert wordy, (
                f"{self.name}.refuses must return a reason in words for block {name}, not {reason!r}"
            )

    @check()
    def check_self_adjoint(self) -> None:
        """⟨u, C v⟩ = ⟨C u, v⟩ and ⟨v, C v⟩ ≥ 0, after each of several evaluations."""
        run = self.begin()
        for k in range(3):
            C = self.observed(run, run.bench.evaluate(self.part.needs(), k), k)
            assert_self_adjoint(C, run.bench.like, psd=True, seed=k)

    @check()
    def check_linear(self) -> None:
        """Products are linear, and leave their argument as it was."""
        run = self.begin()
        C = self.observed(run, run.bench.evaluate(self.part.needs(), 0))
        u, v = (run.bench.vector(seed) for seed in (1, 2))
        kept = v.clone()
        both, apart = C @ (u * 2.0 - v), (C @ u) * 2.0 - C @ v
        assert_same(both, apart, condition=10.0, what=f"{self.name}: C (2u − v) against 2 C u − C v")
        assert torch.equal(kept.flat, v.flat), f"{self.name}: C @ v changes v"

    @check()
    def check_scale(self) -> None:
        """A batch with every example twice has the same loss, and so the same curvature."""
        once, twice = self.begin(), self.begin()
        seen = once.bench.evaluate(self.part.needs(), 0)
        v, double = once.bench.vector(0), doubled(seen)
        first, second = self.observed(once, seen) @ v, self.observed(twice, double) @ v
        what = f"{self.name}: C v of a batch twice over; is everything divided by Evaluation.examples, once?"
        assert_same(second, first, condition=10.0, what=what)

    @check()
    def check_micro_batches(self) -> None:
        """A batch in two parts is the batch."""
        whole, parts = self.begin(), self.begin()
        v, needs = whole.bench.vector(0), self.part.needs()
        expected = self.observed(whole, whole.bench.evaluate(needs, 0)) @ v
        found = self.observed(parts, parts.bench.evaluate(needs, 0, micro_batch=4)) @ v
        assert_same(found, expected, condition=100.0, what=f"{self.name}: C v of micro-batches")

    @check()
    def check_magnitude(self) -> None:
        """The first estimate's trace is that of the evidence's own Fisher or GGN matrix, within tenfold."""
        needs, run = self.part.needs(), self.begin()
        labels = [kind for kind in needs.layers if kind is not Labels.NONE]
        if not labels:
            raise Skipped("the estimator reads no output gradients to compare with")
        seen = run.bench.evaluate(needs, 0)
        C = self.observed(run, seen)
        true = sum(_trace(seen, name, labels[0]) for name in run.bench.blocks.layout.names)
        found = sum(float(e.dot(C @ e)) for e in _units(run.bench))
        assert 0.1 * true <= found <= 10 * true, (
            f"{self.name}: tr C is {found:.4g}, expected that of (1/n) Σ (Σ_s g aᵀ)², {true:.4g}"
        )

    @check()
    def check_evidence(self) -> None:
        """``observe`` changes nothing of the evaluation."""
        run = self.begin()
        seen = run.bench.evaluate(self.part.needs(), 0)
        kept = copies(seen)
        self.observed(run, seen)
        wrong = [name for name, t in held(seen).items() if not torch.equal(t, kept[name])]
        assert not wrong, f"{self.name}.observe changes {', '.join(wrong)}"

    @check()
    def check_float32(self) -> None:
        """In float32 the estimate's products are float32, and finite."""
        bench = self.bench(torch.float32)
        run = Run(bench, self.part.init(bench.like, bench.context(0)))
        image = self.observed(run, bench.evaluate(self.part.needs(), 0)) @ bench.vector(0)
        assert image.dtype is torch.float32, f"{self.name}: C v of float32 is {image.dtype}"
        assert image.is_finite(), f"{self.name}: C v in float32 is not finite"

    @check()
    def check_roles(self) -> None:
        """States and rows in other dtypes than vectors' give nearly the same estimate."""
        images = []
        for roles in (Dtypes.uniform(torch.float32), MIXED):
            bench = self.bench(roles)
            run = Run(bench, self.part.init(bench.like, bench.context(0)))
            C = self.observed(run, bench.evaluate(self.part.needs(), 0))
            images.append(bench.context(0).product(C, bench.vector(0), "factors"))
        require_near(*images, what=f"{self.name}: C v")


def _trace(seen: Evaluation, block: str, labels: Labels) -> float:
    """``(1/n) Σ_{v,n} ‖Σ_s g aᵀ‖²``."""
    found = 0.0
    for t in seen.layers[labels].get(block, ()):
        assert t.grads is not None
        found += float(products(t.inputs, t.grads).square().sum()) / seen.examples
    return found


def _units(bench: Bench) -> list[BlockVector]:
    units = []
    for k in range(bench.blocks.layout.size):
        e = bench.like
        e.flat[k] = 1.0
        units.append(e)
    return units
