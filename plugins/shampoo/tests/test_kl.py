"""KL-Shampoo and KL-SOAP against their formulas on dense matrices, and against what those imply."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curvlab.errors import CapabilityError, ConfigError
from curvlab.linalg.outer import Outer
from curvlab.objectives.supervised import objective
from curvlab.protocols.structure import Family
from curvlab.structures.dense import Dense
from curvlab.structures.diagonal import Diagonal
from curvlab.testing.asserts import assert_close
from curvlab.testing.problems import DTYPE, normal
from curvlab_shampoo.kl_shampoo import KlShampoo
from curvlab_structures.block_diagonal import BlockDiagonal
from curvlab_structures.toeplitz import LowerToeplitz
from plugins.shampoo.tests.hand_fed import BLOCK, SHAPES, Fed, gradients, on_every_axis
from plugins.shampoo.tests.whitened import DECAY, Whitened
from tests.limits.registered import optimizer

LAMBDA = 0.05

shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


def part(K: Family | None = None, **settings: Any) -> KlShampoo:
    plain = {"decay": DECAY, "vectors": True, "refresh_every": 1}
    return KlShampoo(Dense() if K is None else K, **{**plain, **settings})


@shapes
@pytest.mark.parametrize("refresh", [1, 3])
def test_it_is_as_it_is_written(shape: tuple[int, ...], refresh: int) -> None:
    fed, slow = Fed(part(refresh_every=refresh), shape, LAMBDA), Whitened(shape, LAMBDA)
    for k, g in enumerate(gradients(shape, 9)):
        x = fed.step(g)
        bases = fed.state.bases[BLOCK]
        slow.see(g, bases)
        held = fed.state.grams[BLOCK], fed.state.values[BLOCK]
        for S, L, values, Q in zip(slow.S(), *held, bases, strict=True):
            assert_close(L.dense(), S, dimension=100, condition=1e3)
            assert_close(values, (Q.mT @ S @ Q).diagonal(), dimension=100, condition=1e3)
        expected = on_every_axis(g, slow.roots(bases)) if k else torch.zeros_like(g)
        assert_close(x, expected, dimension=100, condition=1e3)


@shapes
def test_the_scale_of_the_loss_says_nothing(shape: tuple[int, ...]) -> None:
    small, large = Fed(part(), shape, LAMBDA), Fed(part(), shape, LAMBDA)
    for g in gradients(shape):
        assert_close(large.step(1e6 * g), small.step(g), dimension=100, condition=1e3)


def covariance(d: int, seed: int) -> Tensor:
    """Eigenvalues from 1 to 4, in a random basis."""
    Q: Tensor = torch.linalg.qr(normal(d, d, seed=seed)).Q
    return (Q * torch.linspace(1, 4, d, dtype=DTYPE)) @ Q.mT


def settled(shape: tuple[int, ...], draws: list[Tensor], **settings: Any) -> tuple[Fed, list[Tensor]]:
    """After seeing all gradients: the moments of each axis."""
    fed = Fed(part(**{"decay": 0.999, "refresh_every": 5, **settings}), shape, 0.0)
    for g in draws:
        fed.step(g)
    return fed, [L.dense() for L in fed.state.grams[BLOCK]]


def relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


def test_row_and_column_covariances_are_recovered_up_to_one_scalar() -> None:
    """``S_a ⊗ S_b = A ⊗ B`` of independent gradients ``A^{1/2} Z B^{1/2}``; sampling error: about 2 %."""
    A, B = covariance(4, 1), covariance(3, 2)
    left, right = torch.linalg.cholesky(A), torch.linalg.cholesky(B)
    _, (S_a, S_b) = settled((4, 3), [left @ Z @ right.mT for Z in normal(2000, 4, 3, seed=3)])
    assert relative(torch.kron(S_a, S_b), torch.kron(A, B)) < 0.08
    scale = S_a.trace() / A.trace()
    assert relative(S_a, scale * A) < 0.08
    assert relative(S_b, B / scale) < 0.08


def divergence(S_a: Tensor, S_b: Tensor, draws: Tensor) -> float:
    """Twice the Kullback–Leibler divergence from the gradients to S_a ⊗ S_b, but for a constant."""
    inner = torch.linalg.inv(S_a) @ draws @ torch.linalg.inv(S_b)
    quadratic = (inner * draws).sum((-2, -1)).mean()
    return float(len(S_b) * S_a.logdet() + len(S_a) * S_b.logdet() + quadratic)


def test_no_other_pair_of_matrices_is_nearer_in_kullback_leibler_divergence() -> None:
    """The covariance is no Kronecker product.  Shampoo's pair with the best scalar is further away."""
    few = normal(30, 4, 3, seed=4) * (0.1 + normal(4, 3, seed=5).square())
    _, (S_a, S_b) = settled((4, 3), [few[k % 30] for k in range(1500)])
    least = divergence(S_a, S_b, few)
    for k in range(20):
        P, R = torch.eye(4, dtype=DTYPE), torch.eye(3, dtype=DTYPE)
        P, R = P + 0.1 * normal(4, 4, seed=k), R + 0.1 * normal(3, 3, seed=100 + k)
        assert divergence(P @ S_a @ P.mT, R @ S_b @ R.mT, few) > least
    L, R = (few @ few.mT).mean(0), (few.mT @ few).mean(0)
    inner = (torch.linalg.inv(L) @ few @ torch.linalg.inv(R) * few).sum((-2, -1)).mean() / 12
    assert divergence(L * inner, R, few) > least + 0.1


@pytest.mark.parametrize("shape", [(5,), (1, 5), (5, 1)], ids=str)
def test_an_axis_of_length_one_leaves_a_vector_that_is_whitened_as_a_whole(shape: tuple[int, ...]) -> None:
    """``x = C^{-1/2} g``, C the covariance of the gradient."""
    C = covariance(5, 6)
    root, draws = torch.linalg.cholesky(C), normal(1200, 5, seed=7)
    fed, S = settled(shape, [(root @ z).reshape(shape) for z in draws])
    assert relative(S[0] if len(S) == 1 else torch.kron(*S), C) < 0.1
    values, Q = torch.linalg.eigh(C)
    g = normal(5, seed=8)
    assert relative(fed.step(g.reshape(shape)).flatten(), (Q * values**-0.5) @ (Q.mT @ g)) < 0.1


def test_without_vectors_a_vector_is_divided_by_its_root_mean_square() -> None:
    fed, seen = Fed(part(vectors=False), (5,), LAMBDA), []
    for k, g in enumerate(gradients((5,)), start=1):
        seen.append(g.square())
        weights = [DECAY**age for age in reversed(range(len(seen)))]
        mean = sum((w * s for w, s in zip(weights, seen, strict=True)), torch.zeros(())) / sum(weights)
        assert_close(fed.step(g), g / (mean + (LAMBDA + 1 / k) * mean.mean()).sqrt(), dimension=10)
    assert fed.state.bases[BLOCK] == [None]


def test_a_gradient_in_factors_is_that_gradient() -> None:
    for r in (2, 40):
        held, plain = Fed(part(), (4, 6), LAMBDA), Fed(part(), (4, 6), LAMBDA)
        for k in range(5):
            outer = Outer(normal(r, 4, seed=k), normal(r, 6, seed=k + 50))
            assert_close(held.step(outer), plain.step(outer.dense()), dimension=100, condition=1e6)


def test_gradients_of_zero_are_left_out_and_do_no_harm() -> None:
    """A block may see nothing at first, as behind a layer that begins at zero."""
    late, early = Fed(part(), (3, 4), LAMBDA), Fed(part(), (3, 4), LAMBDA)
    zero = torch.zeros(3, 4, dtype=DTYPE)
    for _ in range(3):
        assert torch.equal(late.step(zero), zero)
    some = gradients((3, 4), 40)
    for g in some:
        x, y = late.step(g), early.step(g)
    assert_close(x, y, dimension=1, condition=1e-2 / torch.finfo(DTYPE).eps)


def test_structures_bound_the_moments_and_one_sided_the_axes() -> None:
    blocks = Fed(part(BlockDiagonal(2)), (4, 6), LAMBDA)
    one = Fed(part(one_sided=True), (4, 6), LAMBDA)
    for g in gradients((4, 6), 6):
        blocks.step(g)
        one.step(g)
    for L, Q in zip(blocks.state.grams[BLOCK], blocks.state.bases[BLOCK], strict=True):
        assert isinstance(L.family, BlockDiagonal)
        inside = (Q.mT @ L.dense() @ Q).diagonal()
        assert_close(inside.sum(), L.dense().trace(), dimension=10)
    short, long = one.state.grams[BLOCK]
    assert isinstance(short.family, Dense)
    assert isinstance(long.family, Diagonal)
    assert one.state.bases[BLOCK][1] is None


def test_moments_and_bases_on_their_cadences() -> None:
    fed = Fed(part(observe_every=2, refresh_every=3), (4, 6), LAMBDA)
    moments, bases = [], []
    for g in gradients((4, 6), 8):
        fed.step(g)
        moments.append(fed.state.grams[BLOCK][0].dense().clone())
        bases.append(fed.state.bases[BLOCK][0].clone())
    assert [k for k in range(1, 8) if not torch.equal(moments[k], moments[k - 1])] == [2, 4, 6]
    assert [k for k in range(1, 8) if not torch.equal(bases[k], bases[k - 1])] == [1, 3, 6]


def test_it_holds_two_matrices_and_a_vector_per_axis_and_nothing_per_entry() -> None:
    model = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3)).double()
    parameters = sum(p.numel() for p in model.parameters())
    per_axis = sum(2 * d * d + d for d in (6, 7, 8, 3)) + 2 * (2 * 7)  # a vector's moments are its values
    assert optimizer("kl-shampoo", model).state_bytes() == 8 * (per_axis + parameters)  # and the momentum


@pytest.mark.parametrize("name", ["kl-shampoo", "kl-soap"])
def test_one_sided_methods_train(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 3)).double()
    ours: Any = optimizer(name, model, lr=1e-2, one_sided=True)
    x, y = normal(30, 5, seed=1), torch.arange(30) % 3
    losses = [float(ours.step(objective(model, nn.CrossEntropyLoss(), x, y))) for _ in range(150)]
    assert losses[-1] < 0.3 * losses[0]
    assert math.isfinite(losses[-1])


def test_what_it_refuses() -> None:
    with pytest.raises(CapabilityError, match="kl-shampoo needs a structure that is a Gram"):
        KlShampoo(LowerToeplitz())
    for name, value in (("decay", 1.0), ("observe_every", 0), ("refresh_every", 0)):
        with pytest.raises(ConfigError, match=f"{name} = {value}"):
            part(**{name: value})
