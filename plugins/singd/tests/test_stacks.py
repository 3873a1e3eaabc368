"""Blocks of one shape are updated together; that this is only faster is told by doing it one by one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import curvlab
from curvlab.engine.optimizer import CurvatureOptimizer
from curvlab.protocols.structure import Family, Group
from curvlab.structures.dense import Dense
from curvlab.structures.diagonal import Diagonal
from curvlab.testing.asserts import assert_close
from curvlab.testing.problems import DTYPE, normal
from plugins.singd.tests.bare import INGD, PEAK, factors, matrices, optimizer, singd, theta, two_rules
from tests.limits.registered import families

D, STEPS = 5, 9


class Ways(nn.Module):
    """Five layers of one shape, and the way through them: which of them to call, in order."""

    def __init__(self, pool: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(D, D) for _ in range(5)).to(DTYPE)
        self.last = nn.Linear(D, 2).to(DTYPE)
        self.pool = pool
        self.way: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        """Positions, if there are any, are pooled behind call number ``pool``, or behind all."""
        for k, layer in enumerate(self.way):
            x = torch.tanh(self.layers[layer](x))
            if k == self.pool and x.dim() == 3:
                x = x.mean(1)
        y: Tensor = self.last(x.mean(1) if x.dim() == 3 else x)
        return y


EVERY = [0, 1, 2, 3, 4]
#: for each step: all layers; some; a layer twice; none but the last; the ones that were missing
WAYS: dict[str, list[list[int]]] = {
    "all": [EVERY] * STEPS,
    "some are missing": [[0, 1, 3], EVERY, [4, 1], [2], EVERY, [], [0, 0, 1], EVERY, EVERY],
    "one is late": [[0, 1, 2, 3]] * 3 + [EVERY] * 6,
    "one is called twice": [[0, 1, 1, 2, 3, 4]] * STEPS,
}


@dataclass(frozen=True)
class Shared:
    """Positions of the inputs, behind which call they are pooled, and what is made of them."""

    positions: tuple[int, ...] = ()
    pool: int = 0
    sharing: str = "auto"


SHARED = {
    "one position": Shared(),
    "four positions at first": Shared((4,), 2, "expand"),
    "four positions, expanded": Shared((4,), 9, "expand"),
    "four positions, reduced": Shared((4,), 9, "reduce"),
}


def trained(
    way: list[list[int]],
    shared: Shared,
    family: Family,
    settings: dict[str, Any],
    *,
    plain: bool = True,
    count: int = STEPS,
) -> CurvatureOptimizer:
    model = Ways(shared.pool)
    part = singd(family, lr=0.1, limit=0.5, sharing=shared.sharing, **settings)
    ours = optimizer(model, part, momentum=0.5)
    for k, layers in enumerate(way[:count]):
        x, y = normal(8, *shared.positions, D, seed=k), normal(8, 2, seed=100 + k)
        model.way = layers
        if plain:
            ours.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()
            ours.step()
        else:
            ours.step(curvlab.objective(model, nn.MSELoss(), x, y))
    return ours


def assert_same(together: CurvatureOptimizer, single: CurvatureOptimizer) -> None:
    """θ, K, C and the counts."""
    assert_close(theta(together.model), theta(single.model), dimension=32, condition=10.0)
    slow = matrices(single)
    for name, M in matrices(together).items():
        assert_close(M, slow[name], dimension=32, condition=10.0, what=name)
    ages = {name: f.updates for name, f in factors(single).items()}
    assert {name: f.updates for name, f in factors(together).items()} == ages


@two_rules
@pytest.mark.parametrize("shared", SHARED.values(), ids=SHARED)
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_together_is_one_by_one(way: list[list[int]], shared: Shared, rule: dict[str, Any]) -> None:
    settings = {**rule, "fit": 3}
    together, single = (trained(way, shared, Dense(), {**settings, "stacked": s}) for s in (True, False))
    assert_same(together, single)
    assert factors(single)["layers.1"].updates == sum(1 in layers for layers in way)


@pytest.mark.parametrize("family", [f for f in families() if isinstance(f, Group)], ids=str)
def test_every_family_stacks(family: Family) -> None:
    """With momentum, fit, peak, bound and second order: every operation of a member."""
    settings = {**PEAK, "fit": 3, "order": 2}
    pair = (
        trained(WAYS["all"], SHARED["one position"], family, {**settings, "stacked": s}, count=2)
        for s in (True, False)
    )
    assert_same(*pair)


def test_layers_that_saw_other_numbers_of_examples_are_not_weighed_alike() -> None:
    """Sixteen rows each, but of 8 examples at two positions and of 16 at one."""
    ends = []
    for stacked in (True, False):
        model = Ways(0)
        ours = optimizer(model, singd(stacked=stacked, sharing="expand", lr=0.1, **INGD))
        for way in ([0, 0, 1, 2, 3, 4], [1, 2, 3, 4]):
            model.way = way
            nn.functional.mse_loss(model(normal(8, D, seed=len(way))), normal(8, 2, seed=3)).backward()
        ours.step()
        ends.append(ours)
    assert_same(*ends)


@two_rules
def test_objectives_and_plain_loops_miss_the_same_layers(rule: dict[str, Any]) -> None:
    way = WAYS["some are missing"]
    plain, asked = (trained(way, Shared(), Dense(), rule, plain=p) for p in (True, False))
    assert_close(theta(asked.model), theta(plain.model), dimension=32, condition=10.0)


@two_rules
@pytest.mark.parametrize("stacked", [True, False], ids=["together", "one by one"])
@pytest.mark.parametrize("plain", [True, False], ids=["plain", "objective"])
def test_a_layer_that_is_not_called_keeps_its_factors_bit_for_bit(
    rule: dict[str, Any], stacked: bool, plain: bool
) -> None:
    way = [EVERY, EVERY, [0, 1, 3]]
    before, after = (
        {
            name.partition("/")[2]: t  # whatever arm a layer is in
            for name, t in trained(way, Shared(), Dense(), {**rule, "stacked": stacked}, plain=plain, count=c)
            .snapshot()[0]
            .items()
        }
        for c in (2, 3)
    )
    # the excess, which is not measured anew in every update, says nothing of that
    factors_of = {
        n: [k for k in before if f".layers.{n}." in k and "blocks" in k and not k.endswith(".excess")]
        for n in EVERY
    }
    for n, names in factors_of.items():
        assert len(names) == (4 if rule["momentum"] else 2)
        for name in names:
            assert torch.equal(before[name], after[name]) is (n in (2, 4)), name


def test_blocks_of_one_shape_lie_side_by_side() -> None:
    """One buffer for all of them, whose parts the state names."""
    ours = trained(WAYS["all"], Shared(), Dense(), INGD)
    tensors = [f.K.tensors()["matrix"] for n, f in factors(ours).items() if n != "last"]
    assert len({t.untyped_storage().data_ptr() for t in tensors}) == 1
    single = trained(WAYS["all"], Shared(), Dense(), {**INGD, "stacked": False})
    apart = [f.K.tensors()["matrix"] for f in factors(single).values()]
    assert len({t.untyped_storage().data_ptr() for t in apart}) == len(apart)
    assert ours.state_bytes() == single.state_bytes()
    assert ours.snapshot()[0].keys() == single.snapshot()[0].keys()


def test_state_is_four_factors_for_each_block_and_the_momentum_of_updates() -> None:
    """Exactly what the families say they store; without a momentum of the factors, half of that."""
    sides = [(D + 1, D)] * 5 + [(D + 1, 2)]
    for family in (Dense(), Diagonal()):
        stored = sum(family.scalars(i) + family.scalars(o) for i, o in sides)
        outer = sum(i * o for i, o in sides)
        for alpha, times in ((0.5, 2), (0.0, 1)):
            ours = trained(WAYS["all"], Shared(), family, {**INGD, "momentum": alpha})
            assert ours.state_bytes() == 8 * (times * stored + outer)
