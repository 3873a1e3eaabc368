"""RS-KFAC and B-KFAC: KFAC where the rank is no bound, and linear in the dimension where it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import curvlab
from curvlab.linalg.flops import flops
from curvlab.linalg.vectors import BlockLayout
from curvlab.precision.full import Full
from curvlab.protocols.context import Context
from curvlab.protocols.evidence import Evaluation, LayerStats
from curvlab.protocols.needs import Labels
from curvlab.testing.asserts import assert_close
from curvlab.testing.problems import DTYPE, labels, normal

RANK, ROWS = 220, 64


def trained(name: str, **given: Any) -> Tensor:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 3)).to(DTYPE)
    x, y = normal(16, 1, 6, 6, seed=1), labels(16, classes=3, seed=2)
    ours: Any = curvlab.optimizer(name, model, precision="float64", refresh=1, labels="data", **given)
    for _ in range(4):
        ours.step(curvlab.objective(model, nn.CrossEntropyLoss(), x, y))
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("name", ["rs-kfac", "b-kfac"])
def test_with_a_rank_as_large_as_the_dimensions_it_is_kfac(name: str) -> None:
    assert_close(trained(name), trained("kfac", structure="dense"), condition=1e6)


@pytest.mark.parametrize("name", ["rs-kfac", "b-kfac"])
def test_a_smaller_rank_trains_otherwise(name: str) -> None:
    difference = (trained(name, rank=4) - trained("kfac", structure="dense")).abs().max()
    assert 1e-4 < float(difference) < 1.0


def updates_of(d: int) -> int:
    """What b-kfac's observation and refresh of a layer of d inputs spend on one batch."""
    layer = nn.Linear(d, 4, bias=False)
    ours: Any = curvlab.optimizer("b-kfac", layer, refresh=1)
    part, arm = ours.method.preconditioner, ours.arms[0]
    layout = BlockLayout({n: torch.Size(s) for n, s in arm.blocks.layout.shapes.items()})
    (name,) = layout.names
    generator = torch.Generator().manual_seed(0)
    stats = LayerStats(
        torch.randn(ROWS, 1, d, generator=generator), torch.randn(1, ROWS, 1, 4, generator=generator)
    )
    seen = Evaluation(
        ROWS, torch.zeros(()), layout.zeros(like=torch.zeros(())), {Labels.MODEL: {name: (stats,)}}
    )
    ctx = Context(0, 0.1, Full("float32"), generator)

    def work() -> None:
        part.observe(arm.state.preconditioner, seen, ctx)
        part.refresh(arm.state.preconditioner, ctx)

    return flops(work)


def test_updates_of_b_kfac_are_linear_in_the_dimension_from_512_to_8192() -> None:
    """16 times the dimension spends at most 16 times the flops, and less: the eigenvalues' share is fixed."""
    few, middle, many = (updates_of(d) for d in (512, 2048, 8192))
    assert many - middle == pytest.approx(4 * (middle - few), rel=1e-3)
    assert many < 16 * few


def test_state_of_b_kfac_is_linear_in_the_dimension() -> None:
    def numbers(d: int) -> float:
        layer = nn.Linear(d, 1, bias=False)
        ours: Any = curvlab.optimizer("b-kfac", layer, grafting="none")
        return float(ours.state_bytes() / 4)

    assert numbers(8192) - numbers(4096) == 4096 * (2 * RANK + 1)
