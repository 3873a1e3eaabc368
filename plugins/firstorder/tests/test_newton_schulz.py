"""Muon: what becomes of singular values, and who is treated."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from curvlab.errors import ConfigError
from curvlab.linalg.vectors import BlockLayout
from curvlab.objectives.supervised import objective
from curvlab.precision.full import Full
from curvlab.protocols.blocks import Block
from curvlab.protocols.context import Context
from curvlab_firstorder.newton_schulz import NewtonSchulz, orthogonalised

SHAPES = [(64, 64), (20, 120), (120, 20), (3, 5), (5, 3)]


def matrix(o: int, i: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(o, i, dtype=dtype, generator=torch.Generator().manual_seed(o * 1000 + i))


@pytest.mark.parametrize(("o", "i"), SHAPES)
def test_singular_values_come_near_one_and_vectors_stay(o: int, i: int) -> None:
    """A polynomial of odd powers maps U S Wᵀ to U p(S) Wᵀ; well-conditioned S lands near 1."""
    u, _, wt = torch.linalg.svd(matrix(o, i), full_matrices=False)
    s = torch.logspace(-1, 0, min(o, i), dtype=torch.float64)
    near = orthogonalised(u @ torch.diag(s) @ wt, iterations=5)
    values = torch.diagonal(u.mT @ near @ wt.mT)
    assert float(values.min()) > 0.65, values
    assert float(values.max()) < 1.25, values
    rest = near - u @ torch.diag(values) @ wt
    assert float(rest.abs().max()) < 1e-12


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_result_does_not_depend_on_the_scale(scale: float) -> None:
    v = matrix(6, 9)
    torch.testing.assert_close(orthogonalised(scale * v, 5), orthogonalised(v, 5), rtol=1e-10, atol=1e-12)


def test_zero_stays_zero() -> None:
    assert not orthogonalised(torch.zeros(4, 6), 5).any()


def test_a_transposed_matrix_gives_the_transposed_result() -> None:
    v = matrix(4, 9)
    torch.testing.assert_close(orthogonalised(v.mT, 5), orthogonalised(v, 5).mT)


def test_half_precision_is_computed_in_float32() -> None:
    assert orthogonalised(matrix(4, 9).bfloat16(), 5).dtype == torch.float32


def test_blocks_of_one_shape_together_equal_each_alone() -> None:
    """The batched product is the fast path; one block at a time is its slow twin."""
    part = NewtonSchulz()
    layout = BlockLayout({"a": (6, 4), "b": (4, 6), "c": (6, 4)})
    v = layout.zeros(like=torch.zeros((), dtype=torch.float64))
    for k, block in enumerate(v):
        v[block].copy_(matrix(*v[block].shape) * (k + 1))
    ctx = Context(0, 0.0, Full("float64"), torch.Generator())
    x = part.apply(None, v, ctx).x
    for block, (o, i) in {"a": (6, 4), "b": (4, 6), "c": (6, 4)}.items():
        alone = orthogonalised(v[block], 5) * max(1.0, o / i) ** 0.5
        torch.testing.assert_close(x[block], alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "shape", "says"),
    [
        ("norm", (8,), "not a matrix"),
        ("conv", (8, 4, 3, 3), "not a matrix"),
        ("row", (1, 8), "one row or column"),
        ("head.weight", (10, 8), 'pattern "head.*"'),
    ],
)
def test_what_is_refused_and_why(name: str, shape: tuple[int, ...], says: str) -> None:
    reason = NewtonSchulz(skip=("head.*",)).refuses(Block(name, (name,), torch.Size(shape)))
    assert reason is not None
    assert says in reason


def test_matrices_are_treated() -> None:
    assert NewtonSchulz().refuses(Block("fc", ("fc.weight",), torch.Size((8, 4)))) is None


@pytest.mark.filterwarnings("ignore::curvlab.CoverageWarning")
def test_muon_trains_matrices_and_leaves_the_rest_to_its_fallback(optimizer: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.LayerNorm(16), nn.Linear(16, 3)).double()
    ours = optimizer("muon", model, skip=["3.*"], lr=0.05, fallback_lr=1e-2)
    treated = {row.parameter: row.treatment for row in ours.coverage()}
    assert {p for p, by in treated.items() if by == "muon"} == {"0.weight"}
    assert {p for p, by in treated.items() if by == "fallback"} == set(treated) - {"0.weight"}

    x = torch.randn(32, 5, dtype=torch.float64)
    y = x[:, :3].argmax(dim=1)
    losses = [float(ours.step(objective(model, nn.CrossEntropyLoss(), x, y))) for _ in range(60)]
    assert losses[-1] < 0.5 * losses[0], losses[::10]


def test_fewer_than_one_iteration_is_refused() -> None:
    with pytest.raises(ConfigError, match="iterations = 0"):
        NewtonSchulz(iterations=0)
