"""Every check of the suites of estimators, preconditioners and inverses finds a part that breaks its law."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from curvlab.errors import NotPositiveDefinite
from curvlab.linalg.compose import BlockDiagonal
from curvlab.linalg.kronecker import Kronecker
from curvlab.linalg.operator import LinearOperator
from curvlab.linalg.vectors import BlockVector
from curvlab.parts.inverses import Cholesky
from curvlab.protocols.context import Context
from curvlab.protocols.estimator import CurvatureEstimator
from curvlab.protocols.evidence import Pass, Solve
from curvlab.protocols.needs import Labels, Needs
from curvlab.protocols.preconditioner import Preconditioner
from curvlab.testing.conformance import EstimatorConformance, InverseConformance, PreconditionerConformance
from tests.testing.caught import Broken, assert_caught, assert_every_check_is_shown, breaking, broken

CALLS = itertools.count()


@dataclass
class Diagonal(LinearOperator[BlockVector]):
    """``Diag(entries)`` on all blocks together."""

    entries: BlockVector

    self_adjoint = True
    psd = True

    def __matmul__(self, v: BlockVector) -> BlockVector:
        return BlockVector(v.layout, v.flat * self.entries.flat)


# estimators


@dataclass
class Squares:
    """Mean squares of single gradients, and how often they were observed."""

    mean: BlockVector
    observed: int = 0


@dataclass(frozen=True)
class SoundEstimator(CurvatureEstimator[Squares]):
    """The diagonal of the empirical Fisher matrix of layers, as a moving average."""

    operator = Diagonal

    def needs(self) -> Needs:
        return Needs(layers=frozenset({Labels.DATA}))

    @property
    def by_layer(self) -> bool:
        return True

    def refuses(self, block: Any) -> str | None:
        return None if block.is_layer else "not a layer"

    def init(self, like: BlockVector, ctx: Context) -> Any:
        return Squares(like.zeros_like())

    def fresh(self, seen: Pass, name: str) -> Tensor:
        (t,) = seen.layers[Labels.DATA][name]
        assert t.grads is not None
        return (t.grads[0, :, 0].square().mT @ t.inputs[:, 0].square()) / seen.examples

    def observe(self, state: Any, seen: Pass, ctx: Context) -> None:
        state.observed += 1
        for name in state.mean:
            state.mean[name].lerp_(self.fresh(seen, name), 0.5 / (1 - 0.5**state.observed))

    def curvature(self, state: Any) -> Any:
        return self.operator(state.mean)


@dataclass
class Silent(Diagonal):
    psd = False


@dataclass
class Shearing(Diagonal):
    """Not symmetric."""

    def __matmul__(self, v: BlockVector) -> BlockVector:
        return BlockVector(
            v.layout, v.flat * self.entries.flat + 0.1 * v.flat.roll(1) * self.entries.flat.abs()
        )


@dataclass
class Rectified(Diagonal):
    """Not linear, and not seen to be so by inner products that are positive."""

    def __matmul__(self, v: BlockVector) -> BlockVector:
        return BlockVector(v.layout, v.flat * self.entries.flat).scale_(1.0 + 1e-3 * (v.flat[0] > 0))


@dataclass
class Consuming(Diagonal):
    def __matmul__(self, v: BlockVector) -> BlockVector:
        found = BlockVector(v.layout, v.flat * self.entries.flat)
        v.flat.mul_(0.5).mul_(2.0).nan_to_num_()
        v.flat[0].add_(1e-9)
        return found


def without_examples(self: Any, seen: Pass, name: str) -> Tensor:
    return SoundEstimator.fresh(self, seen, name) * seen.examples / 6


def a_thousandfold(self: Any, seen: Pass, name: str) -> Tensor:
    return SoundEstimator.fresh(self, seen, name) * 1000


def scaling_the_evidence(self: Any, seen: Pass, name: str) -> Tensor:
    (t,) = seen.layers[Labels.DATA][name]
    found = SoundEstimator.fresh(self, seen, name)
    t.inputs.mul_(1.5)
    return found


def in_double(self: Any, state: Any) -> Any:
    C = SoundEstimator.curvature(self, state)
    return Diagonal(C.entries.to(torch.float64))


@dataclass
class Late:
    """A state whose average comes with the first evidence."""

    mean: BlockVector | None = None
    observed: int = 0


def late(self: Any, like: BlockVector, ctx: Context) -> Any:
    return Late()


def observe_late(self: Any, state: Any, seen: Pass, ctx: Context) -> None:
    if state.mean is None:
        state.mean = seen.gradient.zeros_like()
    SoundEstimator.observe(self, state, seen, ctx)


@dataclass
class Counting(Squares):
    observed: int = field(default=0, metadata={"transient": True})


def drawing(self: Any, state: Any) -> Any:
    torch.rand(())
    return SoundEstimator.curvature(self, state)


def restless(self: Any, seen: Pass, name: str) -> Tensor:
    return SoundEstimator.fresh(self, seen, name) * (1 + 1e-15 * (next(CALLS) % 7))


def switching(self: Any, state: Any) -> Any:
    torch.use_deterministic_algorithms(True)
    return SoundEstimator.curvature(self, state)


def asking_for_products(self: Any) -> Needs:
    return Needs(layers=frozenset({Labels.DATA}), implicit=True)


def by_first_part(self: Any, seen: Pass, name: str) -> Tensor:
    """As if the first micro-batch of the curvature sample were all of it."""
    batches: Any = seen.ggn.batches  # type: ignore[union-attr]
    return SoundEstimator.fresh(self, seen, name) * next(iter(batches)).examples / batches.examples


E = SoundEstimator
ESTIMATORS = [
    Broken("settings", broken(E, __eq__=lambda self, other: self is other, __hash__=object.__hash__)()),
    breaking("random_state", E, curvature=drawing),
    breaking(
        "determinism",
        E,
        fresh=restless,
        also=("resume",),
        why="what does not repeat itself does not go on alike",
    ),
    breaking("autograd", E, curvature=switching),
    breaking(
        "eager",
        E,
        init=late,
        observe=observe_late,
        also=("resume",),
        why="a fresh state cannot take what it has no tensor for",
    ),
    breaking("resume", E, init=lambda self, like, ctx: Counting(like.zeros_like())),
    breaking("obligations", E, operator=Silent),
    breaking("refusals", E, refuses=lambda self, block: None if block.is_layer else "  "),
    breaking("self_adjoint", E, operator=Shearing),
    breaking(
        "linear",
        E,
        operator=Rectified,
        also=("self_adjoint",),
        why="of a map that is not linear neither side is",
    ),
    breaking("scale", E, fresh=without_examples),
    breaking("micro_batches", E, needs=asking_for_products, fresh=by_first_part),
    breaking("magnitude", E, fresh=a_thousandfold),
    breaking("evidence", E, fresh=scaling_the_evidence),
    breaking("float32", E, curvature=in_double),
]


# preconditioners


@dataclass(frozen=True)
class SoundPreconditioner(Preconditioner[Squares]):
    """Divides by the root of the mean of squared gradients."""

    def init(self, like: BlockVector, ctx: Context) -> Any:
        return Squares(like.zeros_like())

    def observe(self, state: Any, seen: Pass, ctx: Context) -> None:
        state.observed += 1
        state.mean.flat.lerp_(seen.gradient.flat.square(), 1 / state.observed)

    def scale(self, state: Any) -> Tensor:
        return 1 / (state.mean.flat.sqrt() + 0.1)

    def apply(self, state: Any, v: BlockVector, ctx: Context) -> Solve:
        return Solve(BlockVector(v.layout, v.flat * self.scale(state)))


def applying(then: Any) -> Any:
    """``apply``, and then something with the state, the vector and the solution."""

    def apply(self: Any, state: Any, v: BlockVector, ctx: Context) -> Solve:
        solve = SoundPreconditioner.apply(self, state, v, ctx)
        found = then(state, v, solve)
        return solve if found is None else found

    return apply


def draw(state: Any, v: BlockVector, solve: Solve) -> None:
    torch.rand(())


def off(state: Any, v: BlockVector, solve: Solve) -> None:
    torch.use_deterministic_algorithms(True)


def forgetful(state: Any, v: BlockVector, solve: Solve) -> None:
    state.mean.flat.mul_(0.999)


def lent(state: Any, v: BlockVector, solve: Solve) -> Solve:
    return Solve(v)


def clipped(state: Any, v: BlockVector, solve: Solve) -> Solve:
    return Solve(BlockVector(v.layout, solve.x.flat.clamp(-1.0, 1.0)))


def uphill(state: Any, v: BlockVector, solve: Solve) -> Solve:
    return Solve(solve.x * -1.0)


def in_double_precision(state: Any, v: BlockVector, solve: Solve) -> Solve:
    return Solve(solve.x.to(torch.float64))


def forget_on_rejection(self: Any, state: Any, what: Any, ctx: Context) -> Any:
    if not what.step.accepted:
        state.mean.flat.fill_(torch.nan)
    return ()


def overwritten(self: Any, state: Any, what: Any, ctx: Context) -> Any:
    what.before.gradient.flat.zero_()
    return ()


@dataclass
class Holding(Squares):
    """Remembers the last gradient: itself, not a copy."""

    last: Any = field(default=None, metadata={"transient": True})


def hold(self: Any, state: Any, what: Any, ctx: Context) -> Any:
    state.last = what.before.gradient
    return ()


def scaled_by_the_last(self: Any, state: Any) -> Tensor:
    found = SoundPreconditioner.scale(self, state)
    return found if state.last is None else found / (1 + state.last.flat.square())


def observe_restlessly(self: Any, state: Any, seen: Pass, ctx: Context) -> None:
    SoundPreconditioner.observe(self, state, seen, ctx)
    state.mean.flat.mul_(1 + 1e-15 * (next(CALLS) % 7))


def late_squares(self: Any, like: BlockVector, ctx: Context) -> Any:
    return Late()


def observe_later(self: Any, state: Any, seen: Pass, ctx: Context) -> None:
    if state.mean is None:
        state.mean = seen.gradient.zeros_like()
    SoundPreconditioner.observe(self, state, seen, ctx)


P = SoundPreconditioner
PRECONDITIONERS = [
    Broken("settings", broken(P, __eq__=lambda self, other: self is other, __hash__=object.__hash__)()),
    breaking("random_state", P, apply=applying(draw)),
    breaking(
        "determinism",
        P,
        ("resume", "remembers"),
        "what does not repeat itself does not go on alike, nor beside another",
        observe=observe_restlessly,
    ),
    breaking("autograd", P, apply=applying(off)),
    breaking(
        "eager",
        P,
        ("resume",),
        "a fresh state cannot take what it has no tensor for",
        init=late_squares,
        observe=observe_later,
    ),
    breaking("resume", P, init=lambda self, like, ctx: Counting(like.zeros_like())),
    breaking("obligations", P, needs=lambda self, step: Needs(losses=next(CALLS))),
    breaking("refusals", P, refuses=lambda self, block: "" if block.name == "2.bias" else None),
    breaking("finite", P, learn=forget_on_rejection),
    breaking(
        "pure",
        P,
        apply=applying(forgetful),
        also=("borrowed", "linear", "positive"),
        why="of a map that moves, no law about a map holds",
    ),
    breaking("borrowed", P, apply=applying(lent)),
    breaking(
        "linear",
        P,
        apply=applying(clipped),
        also=("positive",),
        why="a map that is not linear has no transpose",
    ),
    breaking("positive", P, apply=applying(uphill)),
    breaking("evidence", P, learn=overwritten),
    breaking(
        "remembers",
        P,
        ("resume",),
        "what is not the state's own is not saved with it",
        init=lambda self, like, ctx: Holding(like.zeros_like()),
        learn=hold,
        scale=scaled_by_the_last,
    ),
    breaking("float32", P, apply=applying(in_double_precision)),
]


# inverses


def changed(then: Any) -> Any:
    """The inverse by Cholesky factors, and what becomes of it."""

    def call(self: Any, C: Any, ctx: Context) -> Any:
        return then(C, ctx, Cholesky()(C, ctx))

    return call


def undamped(C: Any, ctx: Context, found: Any) -> Any:
    return Cholesky()(C, replace(ctx, damping=min(ctx.damping, 1e-3)))


def flattened(C: Any, ctx: Context, found: Any) -> Any:
    return KroneckerBlocks(found)


@dataclass(frozen=True)
class KroneckerBlocks(LinearOperator[BlockVector]):
    """Of other records than the first."""

    other: BlockDiagonal

    self_adjoint = True
    psd = True

    def __matmul__(self, v: BlockVector) -> BlockVector:
        return self.other @ v


def unnamed(self: Any, C: Any, ctx: Context) -> Any:
    try:
        return Cholesky()(C, ctx)
    except NotPositiveDefinite:
        raise NotPositiveDefinite("no") from None


def spoiling(C: Any, ctx: Context, found: Any) -> Any:
    for block in C.blocks.values():
        block.A.matrix.mul_(1.0 + 1e-12)
    return found


def doubly(C: Any, ctx: Context, found: Any) -> Any:
    return BlockDiagonal({n: Kronecker(_double(k.B), _double(k.A)) for n, k in found.blocks.items()})


def _double(M: Any) -> Any:
    return M if M is None else replace(M, matrix=M.matrix.double())


def drawn(C: Any, ctx: Context, found: Any) -> Any:
    torch.rand(())
    return found


def shaken(C: Any, ctx: Context, found: Any) -> Any:
    return _each(found, 1 + 1e-15 * (next(CALLS) % 7))


def turned_off(C: Any, ctx: Context, found: Any) -> Any:
    torch.use_deterministic_algorithms(True)
    return found


def _each(found: Any, factor: float) -> Any:
    for block in found.blocks.values():
        block.A.matrix.mul_(factor)
    return found


def times_two(C: Any, ctx: Context, found: Any) -> Any:
    return _each(found, 2.0) if ctx.damping < 1e-9 else found


def negative_in_the_middle(C: Any, ctx: Context, found: Any) -> Any:
    return _each(found, -1.0) if 0.5 < ctx.damping < 5 else found


V = Cholesky
INVERSES = [
    Broken("settings", broken(V, __eq__=lambda self, other: self is other, __hash__=object.__hash__)()),
    breaking("random_state", V, __call__=changed(drawn)),
    breaking("determinism", V, __call__=changed(shaken)),
    breaking("autograd", V, __call__=changed(turned_off)),
    breaking("obligations", V, __call__=changed(flattened)),
    breaking("undamped", V, __call__=changed(times_two)),
    breaking("one_sided", V, __call__=changed(undamped)),
    breaking("positive", V, __call__=changed(negative_in_the_middle)),
    breaking("not_positive_definite", V, __call__=unnamed),
    breaking("arguments", V, __call__=changed(spoiling)),
    breaking("float32", V, __call__=changed(doubly)),
]


def cases(kind: str, found: list[Broken]) -> list[Any]:
    return [pytest.param(kind, case, id=f"{kind} {case}") for case in found]


@pytest.mark.parametrize(
    ("kind", "case"),
    [*cases("estimator", ESTIMATORS), *cases("preconditioner", PRECONDITIONERS), *cases("inverse", INVERSES)],
)
def test_a_part_that_breaks_a_law_is_caught_by_that_check_alone(kind: str, case: Broken) -> None:
    assert_caught(kind, case)


def test_every_check_is_shown_to_catch_something() -> None:
    assert_every_check_is_shown("estimator", ESTIMATORS)
    assert_every_check_is_shown("preconditioner", PRECONDITIONERS)
    assert_every_check_is_shown("inverse", INVERSES)


def test_parts_in_order_pass() -> None:
    for suite, part in (
        (EstimatorConformance, SoundEstimator()),
        (PreconditionerConformance, SoundPreconditioner()),
        (InverseConformance, Cholesky()),
    ):
        assert not suite.of(part).run().failed
