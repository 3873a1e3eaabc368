"""Brand updates beside a dense average: overwritten by it, and corrected by it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import curvlab
from curvlab.errors import ConfigError
from curvlab.linalg.vectors import BlockLayout
from curvlab.protocols.needs import Labels
from curvlab.structures.dense import Dense
from curvlab.testing.asserts import assert_close
from curvlab.testing.problems import DTYPE, labels, normal
from curvlab.testing.reference import Lapack, reference_context
from curvlab_kfac.layer_covariance import LayerCovariance
from curvlab_lowrank.corrected import CorrectedCovariance
from curvlab_lowrank.correction import correct_, overwrite_
from curvlab_lowrank.eigenvalues import Search
from curvlab_structures.low_rank import LowRank, LowRankMatrix

METHODS = ("b-r-kfac", "b-r-c-kfac")
D, RANK = 30, 8


@dataclass
class Trained:
    """A convolution and a linear layer, after a few steps."""

    theta: Tensor
    optimizer: Any

    @property
    def estimate(self) -> Any:
        (arm,) = (arm for arm in self.optimizer.arms if arm.treatment != "fallback")
        return arm.state.preconditioner.estimate


def trained(name: str, steps: int = 6, **given: Any) -> Trained:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 3)).to(DTYPE)
    ours: Any = curvlab.optimizer(name, model, precision="float64", refresh=1, labels="data", **given)
    for k in range(steps):
        x, y = normal(16, 1, 6, 6, seed=k), labels(16, classes=3, seed=k)
        ours.step(curvlab.objective(model, nn.CrossEntropyLoss(), x, y))
    return Trained(torch.cat([p.detach().flatten() for p in model.parameters()]), ours)


@pytest.mark.parametrize("name", METHODS)
def test_with_a_rank_as_large_as_the_dimensions_it_is_kfac(name: str) -> None:
    assert_close(trained(name).theta, trained("kfac", structure="dense").theta, condition=1e6)


@pytest.mark.parametrize("name", METHODS)
def test_overwritten_in_every_update_it_is_rs_kfac(name: str) -> None:
    """With ranges of every direction, so that neither draws."""
    whole = {"preconditioner.estimator.oversampling": 60}
    found = trained(name, rank=4, overwrite=1, settings=whole)
    expected = trained("rs-kfac", rank=4, settings={"preconditioner.inverse.oversampling": 60})
    assert_close(found.theta, expected.theta, condition=1e6)
    assert float((found.theta - trained("b-kfac", rank=4).theta).abs().max()) > 1e-5


def member(seed: int = 0) -> tuple[LowRankMatrix, Tensor]:
    """A low-rank member after Brand updates, and the dense average of the same rows."""
    low, dense = LowRank(RANK), Dense()
    L, M = low.zeros(D, like=torch.zeros((), dtype=DTYPE)), dense.zeros(D, like=torch.zeros((), dtype=DTYPE))
    scale = torch.logspace(0, -2, D, dtype=DTYPE)
    for k in range(12):
        X = normal(5, D, seed=100 * seed + k) * scale
        for family, held in ((low, L), (dense, M)):
            family.average_(held, 0.8, X, 0.2, Lapack())
    return L, M.dense()


def distance(L: LowRankMatrix, M: Tensor, Q: Tensor) -> float:
    return float((Q.mT @ (L.dense() - M) @ Q).norm())


@pytest.mark.parametrize("seed", range(5))
def test_a_correction_lessens_the_error_among_its_columns_and_the_whole(seed: int) -> None:
    L, M = member(seed)
    columns = torch.randperm(RANK, generator=torch.Generator().manual_seed(seed))[:3]
    Q, eye = L.vectors[:, columns].clone(), torch.eye(D, dtype=DTYPE)
    among, whole = distance(L, M, Q), distance(L, M, eye)
    others = [k for k in range(RANK) if k not in columns]
    kept = L.vectors[:, others].clone()
    correct_(L, M, columns, Lapack())
    assert distance(L, M, Q) < 0.5 * among
    assert distance(L, M, eye) < whole
    assert torch.equal(L.vectors[:, others], kept)
    assert_close(L.vectors.mT @ L.vectors, torch.eye(RANK, dtype=DTYPE), dimension=D)
    spanned = L.vectors[:, columns]
    assert_close(Q @ (Q.mT @ spanned), spanned, dimension=D)


def test_an_error_among_directions_that_are_no_eigenvectors_does_not_grow() -> None:
    """Of a random basis, whose quotients may lie below the number that stands for the others."""
    for seed in range(20):
        M = member(seed)[1]
        U = torch.linalg.qr(normal(D, RANK, seed=seed)).Q
        c = torch.tensor(0.05, dtype=DTYPE)
        L = LowRankMatrix(c, U, normal(RANK, seed=seed).abs(), LowRank(RANK))
        columns = torch.arange(seed % RANK + 1)
        Q = L.vectors[:, columns].clone()
        among, whole = distance(L, M, Q), distance(L, M, torch.eye(D, dtype=DTYPE))
        correct_(L, M, columns, Lapack())
        assert distance(L, M, Q) <= among * (1 + 1e-12)
        assert distance(L, M, torch.eye(D, dtype=DTYPE)) <= whole * (1 + 1e-12)


def test_overwritten_it_is_the_nearest_of_its_rank() -> None:
    L, M = member()
    overwrite_(L, M, Search(RANK, 4, 40, 0.0), Lapack(), torch.Generator().manual_seed(0))
    assert_close(L.dense(), LowRank(RANK).project(M).dense(), condition=1e4)


def followed(seed: int, *, overwrite: int = 0, dtype: torch.dtype = DTYPE) -> tuple[LowRankMatrix, float]:
    """A member after 40 updates with corrections, and its error over the least of its rank."""
    low, dense, draws = LowRank(RANK), Dense(), torch.Generator().manual_seed(seed)
    like = torch.zeros((), dtype=dtype)
    L, M = low.zeros(D, like=like), dense.zeros(D, like=like)
    for k in range(40):
        X = (normal(5, D, seed=100 * seed + k) * torch.logspace(0, -1, D, dtype=DTYPE)).to(dtype)
        dense.average_(M, 0.95, X, 0.05, Lapack())
        if overwrite and k % overwrite == 0:
            overwrite_(L, M.matrix, Search(RANK, 10, 1, 0.0), Lapack(), draws)
        else:
            low.average_(L, 0.95, X, 0.05, Lapack())
            correct_(L, M.matrix, torch.randperm(RANK, generator=draws)[:3], Lapack())
    least = (low.project(M.matrix).dense() - M.matrix).norm()
    return L, float((L.dense() - M.matrix).norm() / least)


def test_an_overwrite_brings_the_error_back_to_nearly_the_least() -> None:
    with_it = [followed(seed, overwrite=4)[1] for seed in range(4)]
    without = [followed(seed)[1] for seed in range(4)]
    assert all(1 - 1e-9 < some < 1.02 for some in with_it)
    assert sum(without) - 4 > 2 * (sum(with_it) - 4)


def test_eigenvectors_stay_orthonormal_in_float32() -> None:
    U = followed(0, overwrite=20, dtype=torch.float32)[0].vectors
    assert_close(U.mT @ U, torch.eye(RANK), dimension=D)


def test_corrections_come_between_overwrites() -> None:
    """Without them, and with an overwrite in the first update alone, it is a Brand update of that."""
    plain = trained("b-r-kfac", 3, rank=4, overwrite=100)
    corrected = trained("b-r-c-kfac", 3, rank=4, overwrite=100)
    both = trained("b-r-c-kfac", 3, rank=4, overwrite=100, correct=0.0)
    assert torch.equal(plain.theta, both.theta)
    assert not torch.allclose(plain.theta, corrected.theta, rtol=1e-6)


def test_it_holds_a_dense_average_of_every_factor() -> None:
    layer = nn.Linear(19, 5, bias=False)
    states = {
        name: curvlab.optimizer(name, layer, rank=6, grafting="none").state_bytes() / 4
        for name in ("b-kfac", "b-r-kfac")
    }
    assert states["b-r-kfac"] - states["b-kfac"] == 19**2 + 5**2


def test_what_it_refuses() -> None:
    low, dense = LayerCovariance(LowRank(4), LowRank(4)), LayerCovariance(Dense(), Dense())
    with pytest.raises(ConfigError, match="read different evidence"):
        CorrectedCovariance(low, LayerCovariance(Dense(), Dense(), labels=Labels.DATA))
    for name, value in (("overwrite_every", 0), ("correct", 1.5), ("rounds", -1)):
        with pytest.raises(ConfigError, match=f"{name} = {value}"):
            CorrectedCovariance(low, dense, **{name: value})
    layout = BlockLayout({"a": torch.Size((3, 4))})
    like = layout.zeros(like=torch.zeros((), dtype=DTYPE))
    with pytest.raises(ConfigError, match="holds none to overwrite"):
        CorrectedCovariance(dense, dense).init(like, reference_context(0.1))
