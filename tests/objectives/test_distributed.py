"""Statistics of several processes where layers see other numbers of rows on each; ranks are threads here."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from threading import Barrier, Thread
from typing import Any

import torch
from torch import Tensor, nn

from curvlab.objectives.distributed import DistributedObjective
from curvlab.objectives.ranks import Ranks
from curvlab.objectives.supervised import objective
from curvlab.protocols.evidence import Evaluation
from curvlab.protocols.needs import Labels, Needs
from tests.objectives.asking import ask, layers_of, normal, wanting
from tests.objectives.test_experts import MSE, Experts, factors


class Threads(Ranks):
    """One of several threads that exchange values."""

    def __init__(self, rank: int, values: list[Any], barrier: Barrier) -> None:
        super().__init__(None)
        object.__setattr__(self, "mine", rank)
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "barrier", barrier)

    @property
    def size(self) -> int:
        return len(self.values)

    @property
    def rank(self) -> int:
        return self.mine

    def each(self, value: Any) -> list[Any]:
        self.values[self.mine] = value
        self.barrier.wait()
        found = list(self.values)
        self.barrier.wait()
        return found

    def sum_(self, t: Tensor) -> Tensor:
        return t.copy_(torch.stack(self.each(t.clone())).sum(0))

    def _exchanged(self, tensors: Sequence[Tensor], of_ranks: Any) -> list[list[Tensor]]:
        return self.each(list(tensors))


def together(model: nn.Module, shares: Sequence[tuple[Tensor, Tensor]], needs: Needs) -> list[Evaluation]:
    """What ranks with these examples find."""
    n = len(shares)
    values, barrier, found = [None] * n, Barrier(n, timeout=30), [None] * n

    def run(rank: int) -> None:
        own = copy.deepcopy(model)
        mine = objective(own, MSE, *shares[rank])
        found[rank] = ask(
            DistributedObjective(mine, Threads(rank, values, barrier)), needs, layers_of(own), step=0
        )

    threads = [Thread(target=run, args=(rank,)) for rank in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert None not in found
    return found  # type: ignore[return-value]


def test_experts_have_the_factors_of_one_process_whoever_has_their_tokens() -> None:
    torch.manual_seed(0)
    model, x, y = Experts().double(), normal(9, 4), normal(9, 3, seed=1)
    order = x[:, 0].argsort()  # the second rank has most of the second expert's tokens
    x, y = x[order], y[order]
    assert bool((x[:4, 0] <= 0.3).all())
    needs = wanting(Labels.DATA, Labels.EXACT)
    blocks = layers_of(model)
    one = ask(objective(model, MSE, x, y), needs, blocks, step=0)
    for seen in together(model, [(x[:4], y[:4]), (x[4:], y[4:])], needs):
        torch.testing.assert_close(seen.gradient.flat, one.gradient.flat)
        for kind, layers in one.layers.items():
            assert set(seen.layers[kind]) == set(layers)
            for name in layers:
                for mine, expected in zip(factors(seen, kind, name), factors(one, kind, name), strict=True):
                    torch.testing.assert_close(mine, expected)


class Either(nn.Module):
    """Uses the one branch or the other, by the data; a third never."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) if x[0, 0] > 0 else self.b(x)


def test_a_parameter_is_absent_if_it_is_on_all_ranks() -> None:
    model, x, y = Either().double(), normal(4, 4).abs(), normal(4, 3)
    seen, _ = together(model, [(x, y), (-x, y)], Needs())
    assert seen.absent == {"c.weight", "c.bias"}
