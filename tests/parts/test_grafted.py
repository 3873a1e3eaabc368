"""Grafting: the direction of one preconditioner, block by block in the length of another's."""

from __future__ import annotations

import pytest
import torch

from curvlab.linalg.vectors import BlockLayout
from curvlab.parts.eigenbasis import Eigenbasis
from curvlab.parts.gauss_newton import GaussNewton
from curvlab.parts.grafted import Grafted
from curvlab.parts.identity import Identity
from curvlab.parts.iterative import Iterative
from curvlab.parts.krylov import ConjugateGradients
from curvlab.parts.routed import Routed
from curvlab.protocols.blocks import Block
from curvlab_firstorder.adam import Adam
from curvlab_firstorder.newton_schulz import NewtonSchulz
from tests.parts.layers import LastFactors, evidence
from tests.parts.vectors import context, outcome, vector

LAYOUT = BlockLayout({"enc": (3, 4), "head": (2, 2)})
LAMBDA = 0.4


def test_each_block_has_the_direction_of_one_and_the_length_of_the_other() -> None:
    direction, magnitude = Eigenbasis(LastFactors(), refresh_every=2), Adam()
    grafted, v = Grafted(direction, magnitude), vector(layout=LAYOUT)
    state = grafted.init(v, context())
    alone = direction.init(v, context()), magnitude.init(v, context())
    for step in range(4):
        ctx, seen = context(step, LAMBDA), evidence(step, layout=LAYOUT)
        grafted.observe(state, seen, ctx)
        grafted.refresh(state, ctx)
        for part, own in zip((direction, magnitude), alone, strict=True):
            part.observe(own, seen, ctx)  # type: ignore[arg-type]
            part.refresh(own, ctx)  # type: ignore[arg-type]
        before = v.clone()
        x = grafted.apply(state, v, ctx).x
        assert torch.equal(v.flat, before.flat)
        d, y = direction.apply(alone[0], v, ctx).x, magnitude.apply(alone[1], v, ctx).x
        for name in LAYOUT.names:
            expected = d[name] * (y[name].norm() / d[name].norm())
            torch.testing.assert_close(x[name], expected, rtol=1e-12, atol=0)
        assert grafted.needs(step) == direction.needs(step) | magnitude.needs(step)


def test_a_borrowed_direction_is_not_scaled_in_place() -> None:
    v = vector(layout=LAYOUT)
    grafted = Grafted(Identity(), NewtonSchulz())
    state, before = grafted.init(v, context()), v.clone()
    x = grafted.apply(state, v.borrow(), context()).x
    assert torch.equal(v.flat, before.flat)
    assert float(x.norm()) != pytest.approx(float(v.norm()))


def test_a_block_without_direction_does_not_move() -> None:
    v = vector(layout=LAYOUT)
    v["head"].zero_()
    grafted = Grafted(Identity(), Adam())
    state = grafted.init(v, context())
    grafted.observe(state, evidence(0, layout=LAYOUT), context())
    x = grafted.apply(state, v, context()).x
    assert torch.equal(x["head"], torch.zeros(2, 2, dtype=x.dtype))
    assert bool(x["enc"].abs().sum() > 0)


def test_a_block_that_either_refuses_is_refused() -> None:
    vector_block = Block("b", ("b",), torch.Size((3,)), reason="no layer")
    for pair in ((NewtonSchulz(), Adam()), (Adam(), NewtonSchulz())):
        assert "not a matrix" in (Grafted(*pair).refuses(vector_block) or "")
    assert Grafted(Adam(), Identity()).refuses(vector_block) is None


def test_both_are_settled_and_both_learn() -> None:
    """Warm starts of both solves are remembered, as without grafting."""
    parts = [Iterative(LastFactors(), ConjugateGradients(3, 1e-12), warm_start=w) for w in (0.5, 0.9)]
    grafted, v = Grafted(*parts), vector(layout=LAYOUT)
    assert grafted.settled(()) == grafted
    state = grafted.init(v, context())
    seen, ctx = evidence(0, layout=LAYOUT), context(0, LAMBDA)
    grafted.observe(state, seen, ctx)
    solve = grafted.apply(state, v, ctx)
    assert solve.iterations > 0
    grafted.learn(state, outcome(solve.x), ctx)
    for part, own in zip(parts, (state.direction, state.magnitude), strict=True):
        alone = part.init(v, context())
        part.observe(alone, seen, ctx)
        part.learn(alone, outcome(solve.x), ctx)
        assert repr(vars(own).keys()) == repr(vars(alone).keys())
        torch.testing.assert_close(part.apply(own, v, ctx).x.flat, part.apply(alone, v, ctx).x.flat)


def test_layers_are_joined_if_either_asks() -> None:
    joining = Iterative(GaussNewton(), ConjugateGradients(3, 1e-12))
    layered = Eigenbasis(LastFactors())
    assert Grafted(layered, Adam()).joins("x") == layered.joins("x")
    assert Grafted(Adam(), layered).joins("x") == layered.joins("x")
    assert not Grafted(Adam(), Routed({"y": layered})).joins("x")
    assert Grafted(joining, Adam()).joins("x") == joining.joins("x")
