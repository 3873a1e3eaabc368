"""The ladder: float64, then more damping, then an end that names the step and the block."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from curvlab.engine.ladder import FIRST_DAMPING, RUNGS
from curvlab.engine.method import Method
from curvlab.engine.optimizer import CurvatureOptimizer
from curvlab.errors import Diverged
from curvlab.linalg.compose import BlockDiagonal
from curvlab.linalg.kronecker import Kronecker
from curvlab.linalg.vectors import BlockVector
from curvlab.objectives.supervised import objective
from curvlab.parts.damping import Constant, LevenbergMarquardt
from curvlab.parts.gauss_newton import GaussNewton
from curvlab.parts.identity import Identity
from curvlab.parts.inverses import Cholesky
from curvlab.parts.inverted import Inverted
from curvlab.parts.iterative import Iterative
from curvlab.parts.krylov import ConjugateGradients
from curvlab.parts.steps import QuadraticModel, Rate
from curvlab.precision.full import Full
from curvlab.protocols.blocks import Block
from curvlab.protocols.context import Context
from curvlab.protocols.estimator import CurvatureEstimator
from curvlab.protocols.evidence import Evaluation, Solve
from curvlab.protocols.needs import Needs
from curvlab.protocols.preconditioner import Preconditioner
from curvlab.protocols.report import Event
from curvlab.structures.dense import Dense
from tests.engine.composed import composed


class Overflowing(nn.Module):
    """Passes its input on by way of numbers near e¹⁰⁰, which float64 has and float32 has not."""

    def forward(self, x: Tensor) -> Tensor:
        return (x + 100.0).exp().log() - 100.0


def network(*, overflow: bool = True) -> nn.Module:
    torch.manual_seed(0)
    middle = [Overflowing()] if overflow else []
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), *middle, nn.Linear(5, 3))


def batch() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(8, 4, generator=g), torch.randint(0, 3, (8,), generator=g)


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def kept(model: nn.Module) -> dict[str, Tensor]:
    return {name: t.detach().clone() for name, t in tensors(model).items()}


def unchanged(model: nn.Module, before: dict[str, Tensor], *, but: tuple[str, ...] = ()) -> None:
    for name, t in tensors(model).items():
        assert torch.equal(t, before[name]) or name in but, name


class Watched(CurvatureOptimizer):
    """An optimizer that writes down its events."""

    def __init__(self, method: Method, model: nn.Module, **more: Any) -> None:
        self.events: list[Event] = []
        super().__init__(method, model, backend=Full(), on_event=self.events.append, **more)


SGD = Method(Identity(), Constant(), Rate(0.1))


# float64


def test_a_loss_that_float32_cannot_hold_is_evaluated_again_in_float64() -> None:
    model, (x, y) = network(), batch()
    assert not bool(F.cross_entropy(copy.deepcopy(model)(x), y).isfinite())
    exact = copy.deepcopy(model).double()
    loss = F.cross_entropy(exact(x.double()), y)
    loss.backward()
    before = kept(model)
    opt = Watched(SGD, model)
    found = opt.step(objective(model, nn.CrossEntropyLoss(), x, y))
    assert [(e.name, e.step) for e in opt.events] == [("retried-in-float64", 0)]
    assert opt.events[0].detail == {"loss": pytest.approx(loss.item(), rel=1e-12)}
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, loss.detach().float())
    for name, p in model.named_parameters():
        step = 0.1 * exact.get_parameter(name).grad.float()
        torch.testing.assert_close(p.detach(), before[name] - step, rtol=1e-6, atol=1e-7)


def test_afterwards_the_models_tensors_are_those_it_had_to_the_bit() -> None:
    model, (x, y) = network(), batch()
    twin = copy.deepcopy(model)
    twin(x)  # what one float32 forward does to buffers is done; the retry adds nothing to it
    before, held = kept(twin), {name: (id(t), t.data_ptr(), t.dtype) for name, t in tensors(model).items()}
    opt = Watched(Method(Identity(), Constant(), Rate(0.0)), model)
    opt.step(objective(model, nn.CrossEntropyLoss(), x, y))
    assert [e.name for e in opt.events] == ["retried-in-float64"]
    unchanged(model, before)
    assert {name: (id(t), t.data_ptr(), t.dtype) for name, t in tensors(model).items()} == held
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("labels", ["data", "model", "exact", "none"])
def test_statistics_of_the_retry_come_back_in_float32(labels: str) -> None:
    model, (x, y) = network(), batch()
    opt = Watched(composed("kfac", labels=labels, refresh=1), model, name="kfac")
    for _ in range(2):
        opt.step(objective(model, nn.CrossEntropyLoss(), x, y))
    assert [e.name for e in opt.events] == ["retried-in-float64"] * 2
    assert not opt.blocks.untapped  # the first step's check is not taken in by a NaN
    assert all(bool(p.isfinite().all()) and p.dtype == torch.float32 for p in model.parameters())
    assert all(t.dtype == torch.float32 for name, t in opt.snapshot()[0].items() if name != "generator")


@pytest.mark.parametrize("step", [Rate(0.1), QuadraticModel()], ids=["rate", "quadratic model"])
def test_products_of_the_retry_are_made_in_float64(step: Any) -> None:
    model, (x, y) = network(), batch()
    wide = copy.deepcopy(model).double()
    method = Method(Iterative(GaussNewton(), ConjugateGradients(3)), LevenbergMarquardt(initial=1.0), step)
    opt = Watched(method, model)
    opt.step(objective(model, nn.CrossEntropyLoss(), x, y))
    exact = CurvatureOptimizer(method, wide, backend=Full("float64"))
    exact.step(objective(wide, nn.CrossEntropyLoss(), x.double(), y))
    assert [e.name for e in opt.events] == ["retried-in-float64"]
    for p, q in zip(model.parameters(), wide.parameters(), strict=True):
        torch.testing.assert_close(p, q.float(), rtol=1e-4, atol=1e-5)
    assert opt.last is not None
    assert exact.last is not None
    assert opt.last.products == exact.last.products


def test_a_loss_that_float64_cannot_hold_either_ends_in_words_with_parameters_as_they_were() -> None:
    model, (x, y) = network(overflow=False), batch()
    x[0, 0] = torch.inf
    opt, before = Watched(SGD, model), kept(model)
    with pytest.raises(Diverged, match="step 0: the loss is nan, in float64 too"):
        opt.step(objective(model, nn.CrossEntropyLoss(), x, y))
    unchanged(model, before, but=("1.running_mean", "1.running_var", "1.num_batches_tracked"))
    assert opt.steps == 0


def test_parameters_that_are_not_finite_are_named() -> None:
    model, (x, y) = network(overflow=False), batch()
    opt = Watched(SGD, model)
    with torch.no_grad():
        model[2].weight[0, 0] = torch.nan
    with pytest.raises(Diverged, match=r"non-finite parameters: 2\.weight"):
        opt.step(objective(model, nn.CrossEntropyLoss(), x, y))


class Cornered(nn.Module):
    """Adds zero, with a gradient that is not a number."""

    def __init__(self) -> None:
        super().__init__()
        self.corner = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.corner.square().sqrt()


def cornered() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), Cornered())


@pytest.mark.parametrize("plain", [False, True], ids=["objective", "plain loop"])
def test_a_gradient_that_is_not_finite_ends_in_words_with_the_step_and_the_block(plain: bool) -> None:
    model, (x, y) = cornered(), batch()
    opt, before = Watched(SGD, model), kept(model)
    if plain:
        F.cross_entropy(model(x), y).backward()
    with pytest.raises(Diverged, match=r"step 0: the gradient is not finite; .*block 1\.corner"):
        opt.step(None if plain else objective(model, nn.CrossEntropyLoss(), x, y))
    unchanged(model, before)


def test_a_failure_in_the_fallback_leaves_the_methods_own_parameters_too() -> None:
    model, (x, y) = cornered(), batch()
    opt, before = Watched(composed("kfac", labels="data"), model), kept(model)
    with pytest.raises(Diverged, match=r"block 1\.corner"):
        opt.step(objective(model, nn.CrossEntropyLoss(), x, y))
    unchanged(model, before)


# damping


@dataclass(frozen=True)
class Indefinite(CurvatureEstimator[dict[str, Tensor]]):
    """Per layer A = diag(1, …, 1, lowest), B = I; sides of other layers than ``layer`` are definite."""

    lowest: float
    layer: str = "2"

    def needs(self) -> Needs:
        return Needs()

    @property
    def by_layer(self) -> bool:
        return True

    def refuses(self, block: Block) -> str | None:
        return None if block.is_layer else block.reason

    def init(self, like: BlockVector, ctx: Context) -> dict[str, Tensor]:
        diagonals = {name: torch.ones(shape[1]) for name, shape in like.layout.shapes.items()}
        diagonals[self.layer][-1] = self.lowest
        return diagonals

    def observe(self, state: dict[str, Tensor], seen: Evaluation, ctx: Context) -> None:
        return None

    def curvature(self, state: dict[str, Tensor]) -> BlockDiagonal:
        return BlockDiagonal({n: Kronecker(None, Dense().project(torch.diag(d))) for n, d in state.items()})


def layers() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def indefinite(lowest: float, damping: float) -> tuple[nn.Module, Watched]:
    model = layers()
    method = Method(Inverted(Indefinite(lowest), Cholesky()), Constant(damping), Rate(1.0))
    return model, Watched(method, model, name="mine")


@pytest.mark.parametrize(
    ("lowest", "damping", "raised"),
    [(-5e-3, 1e-4, [1e-3, 1e-2]), (-5e-7, 0.0, [FIRST_DAMPING, 10 * FIRST_DAMPING]), (-0.5, 0.1, [1.0])],
)
def test_an_indefinite_factor_is_met_by_tenfold_damping_until_it_is_definite(
    lowest: float, damping: float, raised: list[float]
) -> None:
    (model, opt), (x, y) = indefinite(lowest, damping), batch()
    gradients = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
    before = kept(model)
    opt.step(objective(model, nn.CrossEntropyLoss(), x, y))
    assert [(e.name, e.step) for e in opt.events] == [("more-damping", 0)] * len(raised)
    assert [e.detail["damping"] for e in opt.events] == pytest.approx(raised)
    assert all('block "2"' in e.detail["reason"] for e in opt.events)
    assert opt.last is not None
    assert opt.last.damping == pytest.approx(raised[-1])
    # the step is that of the damping that succeeded, in every block
    for (name, p), g in zip(model.named_parameters(), gradients, strict=True):
        entry = lowest if name == "2.bias" else 1.0
        torch.testing.assert_close(before[name] - p.detach(), g / (entry + raised[-1]), rtol=1e-3, atol=1e-5)


def test_the_next_step_begins_with_the_methods_own_damping() -> None:
    (model, opt), (x, y) = indefinite(-5e-3, 1e-4), batch()
    for _ in range(2):
        opt.step(objective(model, nn.CrossEntropyLoss(), x, y))
    assert [(e.step, e.detail["damping"]) for e in opt.events] == [
        (k, pytest.approx(d)) for k in (0, 1) for d in (1e-3, 1e-2)
    ]


def test_what_no_damping_helps_ends_in_words_with_the_step_and_the_block() -> None:
    (model, opt), (x, y) = indefinite(-1e6, 1e-4), batch()
    before = kept(model)
    with pytest.raises(Diverged, match=r'step 0: block "2": .* not positive definite.*up to 1 did not help'):
        opt.step(objective(model, nn.CrossEntropyLoss(), x, y))
    unchanged(model, before)
    assert len(opt.events) == RUNGS
    assert opt.steps == 0


@dataclass(frozen=True)
class Bursting(Preconditioner[None]):
    """Divides by zero in one block unless it is damped enough."""

    enough: float

    def init(self, like: BlockVector, ctx: Context) -> None:
        return None

    def apply(self, state: None, v: BlockVector, ctx: Context) -> Solve:
        x = v.clone()
        if ctx.damping < self.enough:
            x["2.bias"].div_(0.0)
        return Solve(x)


@pytest.mark.parametrize(("enough", "rungs"), [(0.0, 0), (0.5, 3), (2.0, 4)])
def test_an_update_that_is_not_finite_is_met_by_more_damping(enough: float, rungs: int) -> None:
    model, (x, y) = layers(), batch()
    opt = Watched(Method(Bursting(enough), Constant(1e-3), Rate(0.1)), model)
    opt.step(objective(model, nn.CrossEntropyLoss(), x, y))
    assert [e.name for e in opt.events] == ["more-damping"] * rungs
    assert all("non-finite entries in block 2.bias" in e.detail["reason"] for e in opt.events)


def test_an_update_that_stays_without_bound_ends_in_words() -> None:
    model, (x, y) = layers(), batch()
    opt, before = Watched(Method(Bursting(1e9), Constant(1e-3), Rate(0.1)), model), kept(model)
    with pytest.raises(
        Diverged, match=r"step 0: the update is not finite; .*block 2\.bias; damping up to 10 did"
    ):
        opt.step(objective(model, nn.CrossEntropyLoss(), x, y))
    unchanged(model, before)


@pytest.mark.parametrize("name", ["kfac", "ekfac", "foof"])
def test_factors_that_overflow_end_in_words_with_the_step_and_the_block(name: str) -> None:
    """Inputs of 10²⁰ have squares that float32 cannot hold, and a loss that it can."""
    model, (x, y) = layers(), batch()
    opt, before = Watched(composed(name, refresh=1), model, name=name), kept(model)
    with pytest.raises(Diverged, match=r'step 0: block "0": a 5×5 factor holds non-finite values'):
        opt.step(objective(model, nn.CrossEntropyLoss(), x * 1e20, y))
    unchanged(model, before)


def test_after_a_failed_step_training_can_go_on() -> None:
    model, (x, y) = layers(), batch()
    opt = Watched(SGD, model)

    def losses() -> Iterator[float]:
        for k in range(4):
            inputs = x * torch.nan if k == 1 else x
            try:
                yield float(opt.step(objective(model, nn.CrossEntropyLoss(), inputs, y)))
            except Diverged:
                yield -1.0

    found = list(losses())
    assert found[1] == -1.0
    assert found[0] > found[2] > found[3] > 0
    assert opt.steps == 3
