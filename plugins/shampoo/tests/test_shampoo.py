"""Shampoo against its formula, written on dense matrices, and against what that implies."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from curvlab.errors import CapabilityError, ConfigError
from curvlab.linalg.outer import Outer
from curvlab.protocols.structure import Family, Gram
from curvlab.structures.dense import Dense
from curvlab.structures.diagonal import Diagonal
from curvlab.testing.asserts import assert_close
from curvlab.testing.problems import DTYPE, normal
from curvlab.testing.reference import nearest_member
from curvlab_shampoo.shampoo import Shampoo
from curvlab_structures.low_rank import LowRank
from curvlab_structures.toeplitz import LowerToeplitz
from plugins.shampoo.tests.hand_fed import (
    BLOCK,
    SHAPES,
    Fed,
    averages,
    gradients,
    on_every_axis,
    rotation,
)
from tests.limits.registered import families, optimizer

LAMBDA = 0.1

shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


def part(K: Family | None = None, **settings: Any) -> Shampoo:
    plain = {"decay": 0.8, "refresh_every": 1}
    return Shampoo(Dense() if K is None else K, **{**plain, **settings})


def root(L: Tensor, p: float, damping: float = LAMBDA) -> Tensor:
    """``(L + λ avg(L) I)^p``."""
    values, Q = torch.linalg.eigh(L)
    return (Q * (values + damping * L.trace() / len(L)) ** p) @ Q.mT


def written(seen: list[Tensor], p: float | None = None, K: Family | None = None) -> Tensor:
    """The last gradient, preconditioned by all."""
    L = averages(seen, 0.8)
    if K is not None:
        L = [nearest_member(K.at(len(M)), M) for M in L]
    exponent = -0.5 / len(L) if p is None else p
    return on_every_axis(seen[-1], [root(M, exponent) for M in L])


@shapes
@pytest.mark.parametrize("exponent", [None, -0.5, -1.0])
def test_it_is_as_it_is_written(shape: tuple[int, ...], exponent: float | None) -> None:
    fed, seen = Fed(part(exponent=exponent), shape, LAMBDA), []
    for g in gradients(shape):
        seen.append(g)
        assert_close(fed.step(g), written(seen, exponent), dimension=100, condition=1e3)


@pytest.mark.parametrize(
    "family", [f for f in families() if isinstance(f, Gram) and not isinstance(f, LowRank)], ids=str
)
def test_every_gram_family_is_projected_and_then_rooted(family: Family) -> None:
    """Low rank is no linear projection: an average of projections is not the projection of an average."""
    fed, seen = Fed(part(family), (4, 6), LAMBDA), []
    for g in gradients((4, 6)):
        seen.append(g)
        assert_close(fed.step(g), written(seen, K=family), dimension=100, condition=1e3)


@shapes
def test_low_rank_of_full_rank_is_dense(shape: tuple[int, ...]) -> None:
    full, dense = Fed(part(LowRank(8)), shape, LAMBDA), Fed(part(), shape, LAMBDA)
    for g in gradients(shape):
        assert_close(full.step(g), dense.step(g), dimension=100, condition=1e3)


def test_a_matrix_alone_becomes_orthogonal() -> None:
    """Undamped, ``L^{-1/4} G R^{-1/4}`` of one gradient G = U S Vᵀ is ``U Vᵀ``."""
    G = normal(5, 5, seed=1)
    U, _, V = torch.linalg.svd(G)
    assert_close(Fed(part(), (5, 5)).step(G), U @ V, dimension=25, condition=1e4)


@shapes
def test_the_scale_of_the_loss_says_nothing(shape: tuple[int, ...]) -> None:
    small, large = Fed(part(), shape, LAMBDA), Fed(part(), shape, LAMBDA)
    for g in gradients(shape):
        assert_close(large.step(1e6 * g), small.step(g), dimension=100, condition=1e3)


@pytest.mark.parametrize("shape", [s for s in SHAPES if s], ids=str)
def test_turning_the_axes_turns_the_update(shape: tuple[int, ...]) -> None:
    Q = [rotation(d, seed=d) for d in shape]
    straight, turned = Fed(part(), shape, LAMBDA), Fed(part(), shape, LAMBDA)
    for g in gradients(shape):
        expected = on_every_axis(straight.step(g), Q)
        assert_close(turned.step(on_every_axis(g, Q)), expected, dimension=100, condition=1e3)


def test_a_diagonal_structure_scales_rows_and_columns() -> None:
    fed, G = Fed(part(Diagonal()), (3, 4), LAMBDA), normal(3, 4, seed=2)
    rows, columns = G.square().sum(1), G.square().sum(0)
    rows, columns = rows + LAMBDA * rows.mean(), columns + LAMBDA * columns.mean()
    assert_close(fed.step(G), G / (rows[:, None] * columns) ** 0.25, dimension=12)


def test_a_gradient_in_factors_is_that_gradient() -> None:
    """Where fewer rows make it, and where more do."""
    for r in (2, 40):
        held = Fed(part(observe_every=2), (4, 6), LAMBDA)
        plain = Fed(part(observe_every=2), (4, 6), LAMBDA)
        for k in range(5):
            outer = Outer(normal(r, 4, seed=k), normal(r, 6, seed=k + 50))
            assert_close(held.step(outer), plain.step(outer.dense()), dimension=100, condition=1e3)


def test_what_was_never_seen_is_left_alone() -> None:
    """A block of zeros moves nowhere, a vector only with ``vectors``."""
    fed = Fed(part(), (3, 4), 0.0)
    assert torch.equal(fed.step(torch.zeros(3, 4, dtype=DTYPE)), torch.zeros(3, 4, dtype=DTYPE))
    g = normal(5, seed=3)
    assert torch.equal(Fed(part(vectors=False), (5,), LAMBDA).step(g), g)
    assert not Fed(part(vectors=False), (5,)).state.grams[BLOCK]


def test_moments_and_roots_on_their_cadences() -> None:
    """Observed on steps 0, 2, 4; new roots on 0 and 3, of what was observed by then."""
    fed, seen, roots = Fed(part(observe_every=2, refresh_every=3), (4, 6), LAMBDA), [], []
    for k, g in enumerate(gradients((4, 6), 6)):
        if k % 2 == 0:
            seen.append(g)
        if k % 3 == 0:
            roots = [root(L, -0.25) for L in averages(seen, 0.8)]
        assert_close(fed.step(g), on_every_axis(g, roots), dimension=100, condition=1e3)
    assert part(observe_every=2).needs(0).factored


def test_it_holds_a_moment_and_a_root_per_axis() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.LayerNorm(7), torch.nn.Linear(7, 3)).double()
    ours = optimizer("shampoo", model)
    per_axis = (6**2 + 7**2) + 2 * 7**2 + (8**2 + 3**2)  # a layer's bias is a column
    parameters = sum(p.numel() for p in model.parameters())
    assert ours.state_bytes() == 8 * (2 * per_axis + 2 * parameters)  # beside Adam's two vectors


def test_lengths_are_adams() -> None:
    """The method's first update, block by block: Adam's in length, Shampoo's in direction."""
    torch.manual_seed(0)
    models = [torch.nn.Linear(5, 4).double() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    x, y = normal(8, 5, seed=1), normal(8, 4, seed=2)
    before = torch.cat([p.detach().flatten() for p in models[0].parameters()])
    moves = []
    for name, model in zip(("shampoo", "adamw"), models, strict=True):
        ours = optimizer(name, model, weight_decay=0.0)
        ours.zero_grad()
        torch.nn.functional.mse_loss(model(x), y).backward()
        ours.step()
        moves.append(torch.cat([p.detach().flatten() for p in model.parameters()]) - before)
    assert_close(moves[0].norm(), moves[1].norm(), dimension=24)
    assert float(torch.cosine_similarity(*moves, dim=0)) < 0.99


def test_what_it_refuses() -> None:
    with pytest.raises(CapabilityError, match="shampoo needs a structure that is a Gram"):
        Shampoo(LowerToeplitz())
    for name, value in (("decay", 1.0), ("exponent", 0.5), ("observe_every", 0), ("refresh_every", 0)):
        with pytest.raises(ConfigError, match=f"{name} = {value}"):
            part(**{name: value})


def test_the_first_gradient_has_roots_in_whichever_step_it_comes() -> None:
    """A parameter that thaws between two refreshes is not left without a preconditioner until the next."""
    fed = Fed(part(refresh_every=10, observe_every=5), (4, 6), LAMBDA, steps=13)
    g = gradients((4, 6))[0]
    assert_close(fed.step(g), written([g]), dimension=100)
    assert_close(fed.step(2 * g), 2 * written([g]), dimension=100)
