"""SIRF-Shampoo against its formulas, written on dense matrices, and against what they imply."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from curvlab.config import build_method
from curvlab.errors import CapabilityError, ConfigError
from curvlab.linalg.outer import Outer
from curvlab.linalg.vectors import BlockLayout, BlockVector
from curvlab.protocols.evidence import Evaluation
from curvlab.protocols.structure import Family, Group
from curvlab.structures.dense import Dense
from curvlab.structures.diagonal import Diagonal
from curvlab.testing.asserts import assert_close
from curvlab.testing.problems import DTYPE, normal
from curvlab.testing.reference import nearest_member, reference_context
from curvlab_singd.sirf_shampoo import Modes, SirfShampoo
from curvlab_structures.block_diagonal import BlockDiagonal
from plugins.singd.tests.hand_fed import iterated
from plugins.singd.tests.test_settings import NoGroup
from tests.limits.registered import families, registry

BLOCK, EXAMPLES, LAMBDA = "p", 8, 0.05

#: a block with each number of axes; a number has one of dimension 1
SHAPES = [(), (5,), (4, 6), (3, 2, 4), (2, 3, 2, 4)]

GROUPS = [f for f in families() if isinstance(f, Group)]

#: the published rule, and the one that is bounded as singd's is
RULES: dict[str, dict[str, Any]] = {
    "published": {"normalized": True, "limit": math.inf},
    "free": {"normalized": False, "limit": math.inf},
    "without momentum": {"momentum": 0.0},
    "short": {"limit": 0.02},
}
rules = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


def part(family: Family | None = None, **settings: Any) -> SirfShampoo:
    """Every setting spelt out."""
    plain = {"lr": 0.1, "momentum": 0.5, "every": 1, "normalized": True, "limit": 0.5}
    return SirfShampoo(Dense() if family is None else family, **{**plain, **settings})


@dataclass
class Fed:
    """``part`` at work on one block, fed gradients by hand."""

    part: SirfShampoo
    shape: tuple[int, ...]
    damping: float = LAMBDA
    steps: int = 0

    def __post_init__(self) -> None:
        layout = BlockLayout({BLOCK: torch.Size(self.shape)})
        self.zero = layout.zeros(like=torch.zeros((), dtype=DTYPE))
        self.state = self.part.init(self.zero, reference_context(self.damping))

    @property
    def modes(self) -> Modes:
        return self.state[BLOCK]

    @property
    def K(self) -> list[Tensor]:
        return [K.dense().clone() for K in self.modes.K]

    def vector(self, g: Tensor) -> BlockVector:
        return BlockVector(self.zero.layout, g.reshape(-1).clone())

    def see(self, g: Tensor) -> None:
        seen = Evaluation(EXAMPLES, torch.zeros(()), self.vector(g))
        self.part.observe(self.state, seen, reference_context(self.damping, step=self.steps))
        self.steps += 1

    def direction(self, g: Tensor) -> Tensor:
        ctx = reference_context(self.damping, step=self.steps)
        return self.part.apply(self.state, self.vector(g), ctx).x[BLOCK].clone()


@dataclass
class Written:
    """Specs 10 as it is written: the gradient's axes by einsum, projections by least squares.

    Where it is not normalized, m is shortened as singd's is.
    """

    part: SirfShampoo
    shape: tuple[int, ...]
    damping: float = LAMBDA

    def __post_init__(self) -> None:
        self.dims = self.shape or (1,)
        self.K = [torch.eye(d, dtype=DTYPE) for d in self.dims]
        self.m = [torch.zeros(d, d, dtype=DTYPE) for d in self.dims]

    def on_every_axis(self, g: Tensor, matrices: list[Tensor]) -> Tensor:
        """``Σ M_1[a, α] M_2[b, β] … g[α, β, …]``."""
        old, new = "abcd"[: len(self.dims)], "wxyz"[: len(self.dims)]
        sides = ",".join(f"{n}{o}" for n, o in zip(new, old, strict=True))
        return torch.einsum(f"{sides},{old}->{new}", *matrices, g.reshape(self.dims))

    def see(self, g: Tensor) -> None:
        p = self.part
        assert isinstance(p.lr, float)
        Gw = self.on_every_axis(g * math.sqrt(EXAMPLES), [K.mT for K in self.K])
        squares = [K.mT @ K for K in self.K]
        for n, d in enumerate(self.dims):
            others = math.prod(self.dims) // d
            axes, rest = "abcd"[: len(self.dims)], "abcd"[n]
            gram = torch.einsum(f"{axes},{axes.replace(rest, 'z')}->{rest}z", Gw, Gw)
            scale = math.prod(float(S.trace()) / len(S) for j, S in enumerate(squares) if j != n)
            step = 0.5 * (self.damping * scale * squares[n] + gram / others - torch.eye(d, dtype=DTYPE))
            step = nearest_member(p.K.at(d), step)
            self.m[n] = p.momentum * self.m[n] + (1 - p.momentum) * step
            if not p.normalized:
                norm = p.lr * float(iterated(self.m[n].mT @ self.m[n]).sqrt())
                self.m[n] = self.m[n] * min(1.0, p.limit / norm)
        for n, m in enumerate(self.m):
            beta = min(p.lr, p.limit) / max(1.0, float(m.norm())) if p.normalized else p.lr
            self.K[n] = self.K[n] - beta * self.K[n] @ m

    def direction(self, g: Tensor) -> Tensor:
        return self.on_every_axis(g, [K @ K.mT for K in self.K]).reshape(self.shape)


def gradients(shape: tuple[int, ...], count: int = 8) -> list[Tensor]:
    """No white noise: entries of unlike size, and a mean."""
    weight = torch.linspace(0.3, 1.5, math.prod(shape), dtype=DTYPE).reshape(shape)
    return [normal(weight.numel(), seed=k).reshape(shape) * weight + 0.2 for k in range(count)]


# as it is written


#: not among the rules, as the bound's norm is found from fixed vectors, so that it knows a basis
BOUNDED: dict[str, Any] = {"normalized": False, "limit": 0.02}


@shapes
@pytest.mark.parametrize("rule", [*RULES.values(), BOUNDED], ids=[*RULES, "bounded"])
def test_eight_updates_are_those_of_the_formulas(rule: dict[str, Any], shape: tuple[int, ...]) -> None:
    fed, written = Fed(part(**rule), shape), Written(part(**rule), shape)
    for g in gradients(shape):
        fed.see(g)
        written.see(g)
        assert_close(fed.direction(g), written.direction(g), dimension=48, condition=10.0)
    for found, expected in zip(fed.K, written.K, strict=True):
        assert_close(found, expected, dimension=48, condition=10.0)


def test_the_published_norm_does_bind_in_these_tests_and_so_does_the_limit() -> None:
    ends = {}
    for name, rule in {**RULES, "bounded": BOUNDED}.items():
        fed = Fed(part(**rule), (4, 6))
        for g in gradients((4, 6)):
            fed.see(g)
        ends[name] = fed.K[0]
    assert not torch.allclose(ends["published"], ends["free"], rtol=1e-3)
    assert not torch.allclose(ends["published"], ends["short"], rtol=1e-3)
    assert not torch.allclose(ends["free"], ends["bounded"], rtol=1e-3)


@pytest.mark.filterwarnings("error::curvlab.protocols.structure.NaiveFallback")
@pytest.mark.parametrize("family", GROUPS, ids=str)
def test_every_family_follows_the_formulas_without_a_dense_matrix(family: Family) -> None:
    for shape in ((4, 6), (3, 1, 5)):
        fed, written = Fed(part(family), shape), Written(part(family), shape)
        for g in gradients(shape, count=4):
            fed.see(g)
            written.see(g)
            assert_close(fed.direction(g), written.direction(g), dimension=48, condition=10.0)


@shapes
def test_one_block_that_covers_the_dimension_is_dense(shape: tuple[int, ...]) -> None:
    dense, block = Fed(part(), shape), Fed(part(BlockDiagonal(size=6)), shape)
    for g in gradients(shape):
        dense.see(g)
        block.see(g)
        assert_close(block.direction(g), dense.direction(g), dimension=48)


def test_factors_of_a_matrix_do_lose_their_symmetry() -> None:
    """So that a transpose forgotten anywhere is found above."""
    fed = Fed(part(), (4, 6))
    for g in gradients((4, 6)):
        fed.see(g)
    assert all(float((K - K.mT).abs().max()) > 1e-4 for K in fed.K)


def test_a_gradient_held_as_factors_is_the_same_gradient() -> None:
    fed, (a, b) = Fed(part(), (4, 6)), (normal(2, 4, seed=1), normal(2, 6, seed=2))
    for g in gradients((4, 6)):
        fed.see(g)
    vector = fed.zero.zeros_like()
    vector.outers[BLOCK] = Outer(a, b)
    held = fed.part.apply(fed.state, vector, reference_context(LAMBDA)).x[BLOCK]
    assert_close(held, fed.direction(a.mT @ b), dimension=48)


# what the formulas imply


@pytest.mark.parametrize("axes", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize(("g", "damping"), [(0.7, 0.1), (2.0, 0.0), (0.0, 0.3)])
def test_of_a_number_the_fixed_point_is_the_damped_inverse(
    axes: int, normalized: bool, g: float, damping: float
) -> None:
    """Π K_j² = 1/(examples · g² + λ): of the product, however many axes the number has."""
    fed = Fed(part(normalized=normalized, lr=0.2), (1,) * axes, damping)
    for _ in range(300):
        fed.see(torch.full((1,) * axes, g, dtype=DTYPE))
    found = math.prod(float(K) ** 2 for K in fed.K)
    assert found == pytest.approx(1 / (EXAMPLES * g * g + damping), rel=1e-9)


@pytest.mark.parametrize("shape", [(5,), (4, 6), (3, 2, 4)], ids=str)
@rules
def test_turning_the_axes_of_all_gradients_turns_the_directions(
    rule: dict[str, Any], shape: tuple[int, ...]
) -> None:
    """Dense factors know no basis: G ↦ G with an orthogonal Q_j on every axis j."""
    plain, turned = Fed(part(**rule), shape), Fed(part(**rule), shape)
    rotate = Written(part(), shape)
    Q = [torch.linalg.qr(normal(d, d, seed=10 + d)).Q for d in shape]
    for g in gradients(shape):
        plain.see(g)
        turned.see(rotate.on_every_axis(g, Q))
        expected = rotate.on_every_axis(plain.direction(g), Q)
        found = turned.direction(rotate.on_every_axis(g, Q))
        assert_close(found, expected, dimension=48, condition=10.0)


def test_diagonal_factors_do_know_their_basis() -> None:
    plain, turned = Fed(part(Diagonal()), (4, 6)), Fed(part(Diagonal()), (4, 6))
    Q = torch.linalg.qr(normal(4, 4, seed=1)).Q
    for g in gradients((4, 6)):
        plain.see(g)
        turned.see(Q @ g)
    assert not torch.allclose(turned.direction(Q @ g), Q @ plain.direction(g), rtol=1e-3)


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_no_step_is_longer_than_the_limit(normalized: bool, scale: float) -> None:
    """Whatever is observed, with any rate; the spectral norm is an estimate from below."""
    fed, longest = Fed(part(lr=10.0, limit=0.4, normalized=normalized), (4, 6)), 0.0
    for g in gradients((4, 6)):
        old = fed.K
        fed.see(scale * g)
        for before, after in zip(old, fed.K, strict=True):
            change = torch.linalg.solve(before, after) - torch.eye(len(before), dtype=DTYPE)
            longest = max(longest, float(torch.linalg.matrix_norm(change, 2)))
    assert 0.35 < longest < (0.4 if normalized else 0.5)


@shapes
def test_an_observation_that_overflows_leaves_every_bit(shape: tuple[int, ...]) -> None:
    fed = Fed(part(), shape)
    for g in gradients(shape):
        fed.see(g)
    before = [t.clone() for s in (*fed.modes.K, *fed.modes.m) for t in s.tensors().values()]
    for bad in (torch.nan, torch.inf, 1e200):
        fed.see(torch.full(shape, bad, dtype=DTYPE))
    after = [t for s in (*fed.modes.K, *fed.modes.m) for t in s.tensors().values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    fed.see(g)
    assert not torch.equal(fed.K[0], before[0])


# settings


@pytest.mark.parametrize(
    ("name", "value"),
    [("lr", -0.1), ("momentum", 1.0), ("momentum", -0.1), ("every", 0), ("limit", 0.0), ("limit", -1.0)],
)
def test_a_number_out_of_range_is_refused_by_its_name(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"{name} = {value}"):
        part(**{name: value})


def test_a_family_that_is_no_group_is_refused() -> None:
    with pytest.raises(CapabilityError, match="sirf-shampoo needs a structure that is a Group"):
        part(NoGroup())


def test_the_method_comes_with_the_papers_settings() -> None:
    method = build_method(registry(), "sirf-shampoo", {})
    expected = SirfShampoo(Dense(), lr=0.01, momentum=0.5, every=1, normalized=True, limit=0.5)
    assert method.preconditioner == expected
    free = replace(expected, limit=math.inf)
    one, other = Fed(expected, (4, 6)), Fed(free, (4, 6))
    for g in gradients((4, 6)):
        one.see(g)
        other.see(g)
    assert all(torch.equal(a, b) for a, b in zip(one.K, other.K, strict=True))
    assert not method.preconditioner.needs(0).layers
