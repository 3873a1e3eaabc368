"""Every check of the suites of preconditioners and inverses finds a part that breaks its law."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from curvlab.errors import NotPositiveDefinite
from curvlab.linalg.compose import BlockDiagonal
from curvlab.linalg.kronecker import Kronecker
from curvlab.linalg.operator import LinearOperator
from curvlab.linalg.vectors import BlockVector
from curvlab.parts.inverses import Cholesky
from curvlab.protocols.context import Context
from curvlab.protocols.evidence import Evaluation, Solve
from curvlab.protocols.needs import Needs
from curvlab.protocols.preconditioner import Preconditioner
from curvlab.testing.conformance import PreconditionerConformance
from curvlab.testing.paths import DensePath
from tests.testing.caught import (
    CALLS,
    Broken,
    breaking,
    broken,
    frame,
)
from tests.testing.squares import Counting, Late, Squares

# preconditioners


@dataclass(frozen=True)
class SoundPreconditioner(Preconditioner[Squares]):
    """Divides by the root of the mean of squared gradients."""

    def init(self, like: BlockVector, ctx: Context) -> Any:
        return Squares(like.zeros_like())

    def observe(self, state: Any, seen: Evaluation, ctx: Context) -> None:
        state.observed += 1
        square, weight = seen.gradient.flat.square(), 1 / state.observed
        ctx.storage.updated_(state.mean.flat, lambda mean: mean.lerp_(square, weight), square.dtype)

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


def observe_restlessly(self: Any, state: Any, seen: Evaluation, ctx: Context) -> None:
    SoundPreconditioner.observe(self, state, seen, ctx)
    state.mean.flat.mul_(1 + 1e-15 * (next(CALLS) % 7))


def late_squares(self: Any, like: BlockVector, ctx: Context) -> Any:
    return Late()


def unrounded(self: Any, state: Any, seen: Evaluation, ctx: Context) -> None:
    """Writes as if states had the dtype of vectors."""
    state.observed += 1
    state.mean.flat.lerp_(seen.gradient.flat.square(), 1 / state.observed)


def observe_later(self: Any, state: Any, seen: Evaluation, ctx: Context) -> None:
    if state.mean is None:
        state.mean = seen.gradient.zeros_like()
    SoundPreconditioner.observe(self, state, seen, ctx)


@dataclass(frozen=True)
class WithPath(SoundPreconditioner):
    """``(C + λI)⁻¹ v`` for the diagonal C of mean squared gradients, with the solutions for all λ."""

    of: type[DensePath] = DensePath

    @property
    def path(self) -> bool:
        return True

    def apply(self, state: Any, v: BlockVector, ctx: Context) -> Solve:
        C = state.mean.flat.diag().to(v.dtype)
        return Solve(DensePath(C, v).at(ctx.damping), path=self.of(C, v))


class Bent(DensePath):
    """Predicts as if the model had no curvature."""

    def predicted(self, damping: float) -> float:
        return -float(self.gradient.dot(self.at(damping)))


class Rounded(DensePath):
    """Lengths that are those of another norm."""

    @property
    def longest(self) -> float:
        return float(self.at(0.0).flat.abs().sum())

    def damping(self, radius: float) -> float:
        return super().damping(radius * float(self.at(0.0).norm()) / self.longest)


class Repeating(DensePath):
    """Solves for all of the gradient beside a move along v."""

    def beside(self, v: BlockVector, share: float, damping: float) -> BlockVector:
        return self.at(damping).add_(v, share)


def by_all_blocks(state: Any, v: BlockVector, solve: Solve) -> Solve:
    return Solve(solve.x * (1.0 / (1.0 + state.mean.flat.sum())))


def twice_as_far(self: Any, state: Any, v: BlockVector, ctx: Context) -> Solve:
    solve = WithPath.apply(self, state, v, ctx)
    return Solve(solve.x * 2.0, path=solve.path)


P = SoundPreconditioner
PRECONDITIONERS = [
    breaking("roles", P, observe=unrounded),
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
    breaking("separable", P, separable=True, apply=applying(by_all_blocks)),
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
    breaking("ready", P, ready=lambda self, state: state.observed == 4),
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
    Broken("path", WithPath(Bent)),
    Broken("path", WithPath(Rounded)),
    Broken("path", WithPath(Repeating)),
    breaking("path", WithPath, apply=twice_as_far),
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

EVERY = {
    "preconditioner": PRECONDITIONERS,
    "inverse": INVERSES,
}

SOUND = [
    ("preconditioner", SoundPreconditioner()),
    ("preconditioner", WithPath()),
    ("inverse", Cholesky()),
]

caught, shown, passes = frame(EVERY, SOUND)
test_a_part_that_breaks_a_law_is_caught_by_that_check_alone = caught
test_every_check_is_shown_to_catch_something = shown
test_a_part_in_order_passes = passes


def test_what_is_not_linear_is_told_how_to_say_so() -> None:
    @dataclass(frozen=True)
    class Bounded(SoundPreconditioner):
        def apply(self, state: Any, v: BlockVector, ctx: Context) -> Solve:
            return Solve(BlockVector(v.layout, v.flat.clamp(-1e-3, 1e-3)))

    report = PreconditionerConformance.of(Bounded()).run()
    assert "linear" in report.failed
    for check in {"linear", "positive"} & set(report.failed):
        assert "set varying = True in Bounded" in report[check].message
    Bounded.varying = True
    assert not {"linear", "positive"} & set(PreconditionerConformance.of(Bounded()).run().failed)
