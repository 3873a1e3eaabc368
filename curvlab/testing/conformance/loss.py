"""The suite of losses."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from curvlab.objectives.nested import each_tensor, tensors_of
from curvlab.protocols.loss import Loss
from curvlab.testing.asserts import assert_close
from curvlab.testing.conformance.check import Skipped, check
from curvlab.testing.conformance.exercised import Exercised, Found
from curvlab.testing.conformance.loss_batch import Batch, N

#: examples of the first of two micro-batches
CUT = 2
#: draws of a batch's sampled vectors, and standard errors within which their moments must lie
DRAWS, ERRORS = 1500, 6.0


class LossConformance(Exercised):
    """A value and its curvature in the outputs, on the examples that the loss gives of itself."""

    kind = "loss"
    part: Loss

    @property
    def name(self) -> str:
        """The class, for messages."""
        return type(self.part).__name__

    def batch(self, dtype: torch.dtype = torch.float64) -> Batch:
        """The loss's own example, whole."""

        def cast(t: Tensor) -> Tensor:
            return t.to(dtype) if t.is_floating_point() else t

        outputs, targets = self.part.example(N, torch.Generator().manual_seed(0))
        f, y = self.part.prediction(each_tensor(cast, outputs)), each_tensor(cast, targets)
        return Batch(self.part, f, y, N, y)

    def halves(self) -> Iterator[tuple[Batch, slice]]:
        """The same in two micro-batches, and where their outputs are."""
        whole = self.batch()
        for some in (slice(0, CUT), slice(CUT, N)):
            f, y = (each_tensor(lambda t: t[some], what) for what in (whole.outputs, whole.targets))  # noqa: B023
            yield Batch(self.part, f, y, some.stop - some.start, whole.whole), some

    def exercise(self) -> Found:
        b, generator = self.batch(), torch.Generator().manual_seed(1)
        return {
            "the mean": self.part.mean(b.outputs, b.targets),
            "the total": b.total(b.flat),
            "a product": b.product(b.flat),
            "the columns": b.columns(),
            "a sampled vector": b.sample(self.part.draw(b.outputs, N, generator)),
        }

    @check()
    def check_example(self) -> None:
        """``example`` gives so many outputs and targets, in float64, that the loss takes."""
        outputs, targets = self.part.example(N, torch.Generator().manual_seed(0))
        f = self.part.prediction(outputs)
        self.part.require(f, targets)
        for what, found in (("outputs", f), ("targets", targets)):
            for t in tensors_of(found):
                assert t.dim(), f"{self.name}.example: {what} without an axis of examples"
                assert len(t) == N, f"{self.name}.example({N}, …): {what} of {len(t)} examples"
        dtypes = {t.dtype for t in tensors_of(f)}
        assert dtypes == {torch.float64}, f"{self.name}.example: outputs in {dtypes}, expected torch.float64"

    @check()
    def check_value(self) -> None:
        """The mean over examples is a finite scalar, the total of weighted terms over their number."""
        b = self.batch()
        mean = self.part.mean(b.outputs, b.targets)
        assert mean.shape == (), f"{self.name}.mean returns shape {tuple(mean.shape)}; expected a scalar"
        assert bool(mean.isfinite()), f"{self.name}: the mean of its example is {float(mean)}"
        assert_close(mean, b.total(b.flat) / N, dimension=len(b.flat), scale=1.0, what=f"{self.name}.mean")

    @check()
    def check_micro_batches(self) -> None:
        """Totals of two micro-batches, by the weights they have in the batch, add up to the batch's."""
        b, found = self.batch(), torch.zeros((), dtype=torch.float64)
        for half, _ in self.halves():
            found = found + half.total(half.flat)
        what = f"{self.name}: totals of two micro-batches"
        expected = b.total(b.flat)
        assert_close(found, expected, dimension=len(b.flat), scale=float(expected.abs()) + 1.0, what=what)

    @check()
    def check_hessian(self) -> None:
        """Products are with the Hessian of the total in the outputs, differentiated twice by autograd."""
        if self.part.curvature == "fisher":
            raise Skipped("its curvature is the Fisher information")
        b = self.batch()
        v = torch.randn(b.flat.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        H = b.curvature()
        scale = float(H.abs().max()) * float(v.norm()) + 1e-3
        assert_close(b.product(v), H @ v, dimension=len(v), scale=scale, what=f"{self.name}: a product")

    @check()
    def check_columns(self) -> None:
        """Columns ``v`` are a root of each example's curvature: ``Σ v vᵀ``; it is positive semi-definite."""
        b = self.batch()
        S, H, owner = b.columns(), b.curvature(), b.owners()
        own = owner[:, None] == owner[None, :]
        between = float((H * ~own).abs().max())
        assert between == 0.0, f"{self.name}: its curvature couples examples: an entry of {between:.3g}"
        what = f"{self.name}: Σ v vᵀ over its columns"
        assert_close((S.mT @ S) * own, H, condition=100.0, scale=float(H.abs().max()) + 1e-3, what=what)

    @check()
    def check_sampled(self) -> None:
        """Sampled vectors have mean zero, and the curvature as second moment (fixed seeds; 6 deviations)."""
        b, generator = self.batch(), torch.Generator().manual_seed(3)
        v = torch.stack([b.sample(self.part.draw(b.outputs, N, generator)) for _ in range(DRAWS)])
        squares = v.unsqueeze(-1) * v.unsqueeze(-2)
        for what, found, expected in (
            ("their mean", v, torch.zeros(())),
            ("their second moment", squares, b.curvature()),
        ):
            error = (found.mean(0) - expected).abs()
            allowed = ERRORS * found.std(0) / DRAWS**0.5 + 1e-9 * (1.0 + float(found.abs().max()))
            over = float((error - allowed).max())
            assert over <= 0, (
                f"{self.name}: sampled vectors: {what} is off by {over:.3g} more than chance allows"
            )

    @check()
    def check_noise(self) -> None:
        """Micro-batches draw the labels of one batch: a vector depends on its examples' noise alone."""
        b = self.batch()
        noise = self.part.draw(b.outputs, N, torch.Generator().manual_seed(4))
        whole, owner = b.sample(noise), b.owners()
        for half, some in self.halves():
            found = half.sample(each_tensor(lambda t: t[some], noise))  # noqa: B023
            expected = whole[(owner >= some.start) & (owner < some.stop)]
            what = f"{self.name}: a sampled vector of a micro-batch"
            assert_close(found, expected, condition=1e4, scale=float(whole.abs().max()) + 1e-3, what=what)

    @check()
    def check_float32(self) -> None:
        """In float32 value, products, columns and samples are float32, and near those in float64."""
        low, high = self.batch(torch.float32), self.batch()
        noise = self.part.draw(low.outputs, N, torch.Generator().manual_seed(5))
        wide = each_tensor(lambda t: t.double() if t.is_floating_point() else t, noise)
        pairs = {
            "the mean": (
                self.part.mean(low.outputs, low.targets),
                self.part.mean(high.outputs, high.targets),
            ),
            "a product": (low.product(low.flat), high.product(high.flat)),
            "Σ v vᵀ": tuple(b.columns().square().sum(0) for b in (low, high)),
            "a sampled vector": (low.sample(noise), high.sample(wide)),
        }
        for what, (found, expected) in pairs.items():
            assert found.dtype is torch.float32, f"{self.name}: {what} of float32 is {found.dtype}"
            off, size = float((found.double() - expected).abs().max()), 1.0 + float(expected.abs().max())
            assert off <= 1e-3 * size, f"{self.name}: {what} in float32 is off by {off:.3g}"

    @check()
    def check_arguments(self) -> None:
        """Outputs and targets are not changed."""
        b, generator = self.batch(), torch.Generator().manual_seed(6)
        kept = [t.clone() for t in tensors_of((b.outputs, b.targets))]
        self.part.mean(b.outputs, b.targets)
        b.columns()
        b.product(b.flat)
        b.sample(self.part.draw(b.outputs, N, generator))
        same = all(map(torch.equal, tensors_of((b.outputs, b.targets)), kept))
        assert same, f"{self.name} changes its outputs or targets"
