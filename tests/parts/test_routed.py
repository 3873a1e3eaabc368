"""Routes: several preconditioners on one model are as many models with one each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from curvlab.linalg.cg import Stop
from curvlab.linalg.vectors import BlockLayout, BlockVector
from curvlab.parts.eigenbasis import Eigenbasis
from curvlab.parts.gauss_newton import GaussNewton
from curvlab.parts.identity import Identity
from curvlab.parts.inverses import Eigen
from curvlab.parts.inverted import Inverted
from curvlab.parts.iterative import Iterative
from curvlab.parts.krylov import ConjugateGradients
from curvlab.parts.routed import Routed
from curvlab.protocols.blocks import Block
from curvlab.protocols.context import Context
from curvlab.protocols.evidence import Evaluation, Solve, Step, StepOutcome
from curvlab.protocols.preconditioner import Preconditioner
from curvlab_firstorder.adam import Adam
from tests.parts.layers import LastFactors, evidence
from tests.parts.vectors import Matrix, context, outcome, spd, vector

LAYOUT = BlockLayout({"enc.0": (3, 4), "enc.1": (2, 3), "dec.0": (4, 2), "head": (2, 2)})
CG = ConjugateGradients(200, 1e-12)
ROUTES: dict[str, Preconditioner[Any]] = {
    "enc.1": Adam(),
    "enc.*": Inverted(LastFactors(), Eigen(), refresh_every=2),
    "dec.*": Eigenbasis(LastFactors()),
    "*": Iterative(LastFactors(), CG, warm_start=0.9),
}
PARTS = {"enc.1": ("enc.1",), "enc.*": ("enc.0",), "dec.*": ("dec.0",), "*": ("head",)}
LAMBDA = 0.4


def block(name: str) -> Block:
    return Block(name, (name,), torch.Size((2, 2)), reason="no layer")


def restricted(seen: Evaluation, layout: BlockLayout) -> Evaluation:
    """By hand: what one route may see of a pass."""
    layers = {k: {n: t for n, t in found.items() if n in layout.shapes} for k, found in seen.layers.items()}
    gradient = BlockVector(layout, torch.cat([seen.gradient[n].flatten() for n in layout.names]))
    return Evaluation(seen.examples, seen.loss, gradient, layers)


def test_routed_is_doing_each_separately() -> None:
    routed, v = Routed(ROUTES), vector(layout=LAYOUT)
    state = routed.init(v, context())
    layouts = {p: LAYOUT.restrict(names) for p, names in PARTS.items()}
    alone = {p: ROUTES[p].init(vector(layout=at), context()) for p, at in layouts.items()}
    for step in range(4):
        ctx, seen = context(step, LAMBDA), evidence(step, layout=LAYOUT)
        routed.observe(state, seen, ctx)
        routed.refresh(state, ctx)
        solve = routed.apply(state, seen.gradient, ctx)
        iterations = 0
        for pattern, layout in layouts.items():
            part, own, mine = ROUTES[pattern], alone[pattern], restricted(seen, layout)
            part.observe(own, mine, ctx)
            part.refresh(own, ctx)
            expected = part.apply(own, mine.gradient, ctx)
            iterations += expected.iterations
            for name in layout.names:
                torch.testing.assert_close(solve.x[name], expected.x[name])
            part.learn(own, StepOutcome(mine, expected, Step(expected.x, 1.0)), ctx)
        assert solve.iterations == iterations
        routed.learn(state, StepOutcome(seen, solve, Step(solve.x, 1.0)), ctx)


def test_a_route_multiplies_with_its_own_part_of_an_implicit_curvature() -> None:
    parts = {"enc.*": Iterative(GaussNewton(), CG), "*": Identity()}
    routed, v = Routed(parts), vector(1, LAYOUT)
    state = routed.init(v, context())
    G, seen = Matrix(spd(0, LAYOUT.size)), evidence(0, layout=LAYOUT)
    routed.observe(state, Evaluation(6, seen.loss, seen.gradient, ggn=G), context())
    x = routed.apply(state, v, context(damping=LAMBDA)).x
    k = 3 * 4 + 2 * 3  # enc.0 and enc.1 come first
    corner = G.matrix[:k, :k] + LAMBDA * torch.eye(k, dtype=v.dtype)
    torch.testing.assert_close(x.flat[:k], torch.linalg.solve(corner, v.flat[:k]))
    assert torch.equal(x.flat[k:], v.flat[k:])


def test_the_first_pattern_that_matches_wins() -> None:
    class No(Identity):
        def refuses(self, block: Block) -> str | None:
            return "never"

    assert Routed({"enc.*": Identity(), "*": No()}).refuses(block("enc.0")) is None
    assert Routed({"*": No(), "enc.*": Identity()}).refuses(block("enc.0")) == "never"


def test_what_matches_no_route_is_refused_with_the_reason() -> None:
    routed = Routed({"enc.*": Inverted(LastFactors(), Eigen())})
    assert routed.refuses(block("dec.0")) == "matches no route"
    assert routed.refuses(block("enc.0")) == "no layer"


def test_layers_are_joined_where_their_route_wants_them() -> None:
    routed = Routed({"enc.*": Inverted(LastFactors(), Eigen()), "*": Identity()})
    assert routed.joins("enc.0")
    assert not routed.joins("dec.0")
    assert not Routed({"dec.*": Identity()}).joins("enc.0")


def test_needs_are_those_of_all_routes() -> None:
    routed = Routed(
        {"a": Inverted(LastFactors(), Eigen(), observe_every=2), "b": Iterative(GaussNewton(), CG)}
    )
    for step in range(3):
        parts = list(routed.routes.values())
        assert routed.needs(step) == parts[0].needs(step) | parts[1].needs(step)


def test_a_route_without_blocks_has_no_state() -> None:
    routed = Routed({"nothing.*": Adam(), "*": Identity()})
    assert set(routed.init(vector(layout=LAYOUT), context()).routes) == {"*"}


def test_what_came_of_a_step_is_told_to_each_route_in_its_own_blocks() -> None:
    routed = Routed({"enc.*": Iterative(LastFactors(), CG, warm_start=1.0), "*": Identity()})
    v = vector(1, LAYOUT)
    state = routed.init(v, context())
    routed.learn(state, outcome(v), context())
    start = state.routes["enc.*"].start
    assert torch.equal(start["enc.0"], v["enc.0"])
    routed.learn(state, StepOutcome(outcome(v).before, Solve(v), Step(v, 0.0, accepted=False)), context())
    assert torch.equal(start.flat, torch.zeros(18, dtype=v.dtype))


@dataclass(frozen=True)
class Ending(Preconditioner[None]):
    """Hands the gradient back and says that it ended for a given reason."""

    reason: Stop

    def init(self, like: BlockVector, ctx: Context) -> None:
        return None

    def apply(self, state: None, v: BlockVector, ctx: Context) -> Solve:
        return Solve(v.borrow(), 1, self.reason)


@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        (Stop.NONFINITE, Stop.CONVERGED, Stop.NONFINITE),
        (Stop.DIRECT, Stop.LIMIT, Stop.LIMIT),
        (Stop.CURVATURE, Stop.LIMIT, Stop.CURVATURE),
        (Stop.DIRECT, Stop.DIRECT, Stop.DIRECT),
    ],
)
def test_the_gravest_reason_of_any_route_is_told(first: Stop, second: Stop, told: Stop) -> None:
    routed = Routed({"a": Ending(first), "b": Ending(second)})
    v = BlockVector(BlockLayout({"a": (2,), "b": (3,)}), torch.arange(5.0))
    solve = routed.apply(routed.init(v, context()), v, context())
    assert (solve.reason, solve.iterations) == (told, 2)
    assert torch.equal(solve.x.flat, v.flat)


def test_parts_that_ask_which_blocks_they_treat_are_told_through_what_holds_them() -> None:
    @dataclass(frozen=True)
    class Asking(Identity):
        names: tuple[str, ...] = ()

        def settled(self, blocks: Sequence[Block]) -> Asking:
            return Asking(tuple(b.name for b in blocks))

    inside = Iterative(GaussNewton(), CG, inner=Asking())
    settled = Routed({"enc.*": Asking(), "*": inside}).settled([block(n) for n in LAYOUT.names])
    assert settled.routes["enc.*"] == Asking(("enc.0", "enc.1"))
    assert settled.routes["*"] == Iterative(GaussNewton(), CG, inner=Asking(("dec.0", "head")))
