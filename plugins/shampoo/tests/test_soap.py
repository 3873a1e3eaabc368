"""SOAP against its formulas, written on dense matrices, and against Adam."""

from __future__ import annotations

import copy
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
from curvlab_shampoo.soap import Soap
from curvlab_structures.block_diagonal import BlockDiagonal
from curvlab_structures.toeplitz import LowerToeplitz
from plugins.shampoo.tests.hand_fed import BLOCK, SHAPES, Fed, averages, gradients, on_every_axis
from plugins.shampoo.tests.whitened import Whitened
from tests.limits.registered import optimizer

BETA, DECAY, EPS = 0.9, 0.8, 1e-3

shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


def part(K: Family | None = None, **settings: Any) -> Soap:
    plain = {"beta": BETA, "decay": DECAY, "eps": EPS, "vectors": True, "refresh_every": 1}
    return Soap(Dense() if K is None else K, **{**plain, **settings})


def tilted(L: Tensor, first: bool) -> Tensor:
    """With a ramp on its diagonal, from 1e-3 of the mean down; 1e-2 for the first bases."""
    d, tilt = len(L), 1e-2 if first else 1e-3
    return L + torch.arange(d, 0, -1, dtype=DTYPE).diag() * tilt * L.trace() / d**2


class Written:
    """As it is written: entries, turned by einsum; v̂ from a list of all gradients' squares.

    Bases are looked at, not made: their signs are free.
    """

    def __init__(self, shape: tuple[int, ...], refresh: int) -> None:
        self.dims, self.refresh = shape or (1,), refresh
        self.Q = [torch.eye(d, dtype=DTYPE) for d in self.dims]
        self.seen: list[Tensor] = []
        self.squares: list[Tensor] = []  # of every gradient, carried along into the present bases

    def moments(self) -> list[Tensor]:
        """L_n before the gradient at hand."""
        return averages(self.seen, DECAY)

    def step(self, g: Tensor, found: list[Tensor]) -> Tensor:
        if not self.seen:  # the first gradient starts L alone
            self.seen.append(g)
            return torch.zeros_like(g)
        L = [tilted(M, len(self.seen) == 1) for M in self.moments()]
        if len(self.seen) == 1:
            for Q, M in zip(found, L, strict=True):
                inside = Q.mT @ M @ Q
                assert_close(inside, inside.diagonal().sort(descending=True).values.diag(), dimension=100)
        elif len(self.seen) % self.refresh == 0:
            for n, (Q, M) in enumerate(zip(found, L, strict=True)):
                size = (self.Q[n].mT @ M @ self.Q[n]).diagonal()
                order = sorted(range(len(size)), key=lambda k: -float(size[k]))
                R = Q.mT @ M @ self.Q[n][:, order]
                assert_close(R, R.triu(), dimension=100, what="Qᵀ L Q of before")
                moved = [s.index_select(n, torch.tensor(order)) for s in self.squares]
                self.squares = moved
        else:
            for Q, old in zip(found, self.Q, strict=True):
                assert torch.equal(Q, old)
        for Q in found:
            assert_close(Q.mT @ Q, torch.eye(len(Q), dtype=DTYPE))
        self.Q = [Q.clone() for Q in found]
        turned = on_every_axis(g, [Q.mT for Q in self.Q])
        self.squares.append(turned.reshape(self.dims) ** 2)
        self.seen.append(g)
        weights = [BETA**age for age in reversed(range(len(self.squares)))]
        second = sum(w * s for w, s in zip(weights, self.squares, strict=True)) / sum(weights)
        return on_every_axis(turned / (second.sqrt() + EPS).reshape(g.shape), self.Q)


@shapes
@pytest.mark.parametrize("refresh", [1, 3])
def test_it_is_as_it_is_written(shape: tuple[int, ...], refresh: int) -> None:
    fed, slow = Fed(part(refresh_every=refresh), shape), Written(shape, refresh)
    for g in gradients(shape, 10):
        x = fed.step(g)
        assert_close(x, slow.step(g, fed.state.bases[BLOCK]), dimension=100, condition=1e4)


@shapes
@pytest.mark.parametrize("refresh", [1, 3])
def test_kl_soap_is_soap_with_moments_of_whitened_gradients(shape: tuple[int, ...], refresh: int) -> None:
    fed, slow = Fed(part(moments="whitened", refresh_every=refresh), shape, 0.05), Written(shape, refresh)
    whitened = Whitened(shape, 0.05)
    slow.moments = whitened.S  # type: ignore[method-assign]
    for g in gradients(shape, 10):
        x, found = fed.step(g), fed.state.bases[BLOCK]
        assert_close(x, slow.step(g, found), dimension=100, condition=1e4)
        whitened.see(g, found)


@pytest.mark.parametrize("moments", ["plain", "whitened"])
def test_one_sided_it_is_adam_in_the_basis_of_the_shortest_axis(moments: str) -> None:
    fed = Fed(part(moments=moments, one_sided=True, refresh_every=100), (6, 4, 5), 0.05)
    some, squares = gradients((6, 4, 5), 5), []
    fed.step(some[0])
    for g in some[1:]:
        x = fed.step(g)
        first, Q, last = fed.state.bases[BLOCK]
        assert first is None
        assert last is None
        assert_close(Q.mT @ Q, torch.eye(4, dtype=DTYPE), dimension=4)
        turned = torch.einsum("ij,aib->ajb", Q, g)
        squares.append(turned.square())
        weights = [BETA**age for age in reversed(range(len(squares)))]
        second = sum((w * s for w, s in zip(weights, squares, strict=True)), torch.zeros(())) / sum(weights)
        expected = torch.einsum("ij,ajb->aib", Q, turned / (second.sqrt() + EPS))
        assert_close(x, expected, dimension=100, condition=1e3)
    sides = fed.state.grams[BLOCK]
    assert [L.d**2 == sum(t.numel() for t in L.tensors().values()) for L in sides] == [False, True, False]


#: SOAP on Muon's momentum, as the page of `soap` shows it
ON_MUONS_MOMENTUM = {
    "on_gradient": [{"use": "momentum", "beta": 0.8, "nesterov": True}],
    "preconditioner.refresh_every": 3,
}


def test_soap_takes_muons_momentum_by_composition() -> None:
    """Its bases and v̂ see gradients, and it turns ``g + β m``, ``m = β m + g``."""
    torch.manual_seed(0)
    model = nn.Linear(5, 4, bias=False).double()
    ours = optimizer("soap", model, settings=ON_MUONS_MOMENTUM, lr=1e-2, eps=EPS, weight_decay=0.0)
    by_hand = Fed(part(beta=0.95, decay=0.95, refresh_every=3), (4, 5))
    m = torch.zeros(4, 5, dtype=DTYPE)
    for k in range(8):
        x, y = normal(16, 5, seed=k), torch.arange(16) % 4
        before = model.weight.detach().clone()
        ours.step(objective(model, nn.CrossEntropyLoss(), x, y))
        moved = before - model.weight.detach()
        (g,) = torch.autograd.grad(
            nn.CrossEntropyLoss()(nn.functional.linear(x, w := before.requires_grad_()), y), w
        )
        if k == 0:
            by_hand.step(g)
            assert not moved.any()
            continue
        m = 0.8 * m + g
        assert_close(moved, 1e-2 * by_hand.step(g, g + 0.8 * m), dimension=100, condition=1e3)


def test_without_an_axis_that_turns_the_first_update_is_adams() -> None:
    g = normal(4, 6, seed=1)
    assert_close(Fed(part(Diagonal()), (4, 6)).step(g), g / (g.abs() + EPS))


def network(seed: int = 0) -> nn.Sequential:
    """Two layers and a norm: a block with two axes, and vectors."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3)).double()


def run_of(seed: int = 0, **knobs: Any) -> tuple[nn.Module, Any, Any]:
    """A model, SOAP on it, and one step on the batch of a number."""
    model = network(seed)
    ours = optimizer("soap", model, lr=1e-2, weight_decay=0.1, **knobs)

    def step(k: int) -> None:
        x, y = normal(8, 5, seed=k), torch.arange(8) % 3
        ours.step(objective(model, nn.CrossEntropyLoss(), x, y))

    return model, ours, step


def values(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def test_the_first_step_starts_the_moments_and_nothing_else() -> None:
    """No parameter moves or decays; v̂ and the momentum begin with the second gradient; the step counts."""
    model, ours, step = run_of()
    events: list[Any] = []
    ours.on_event = events.append
    at_start = values(model)
    step(0)
    assert all(map(torch.equal, at_start, values(model)))
    assert [(e.name, e.step) for e in events] == [("preconditioner-initialized", 0)]
    assert ours.steps == 1
    (arm,) = ours.arms
    assert arm.state.preconditioner.observed == 1
    assert not arm.state.preconditioner.second.flat.any()
    step(1)
    gradient = arm.state.on_gradient[0]
    assert not any(map(torch.equal, at_start, values(model)))
    # of the second gradient alone, the momentum is that gradient, and a vector's update is its sign
    vector = "1.weight"
    before = dict(zip(dict(model.named_parameters()), at_start, strict=True))[vector]
    moved = dict(model.named_parameters())[vector].detach() - before * (1 - 1e-2 * 0.1)
    g = next(t for t in vars(gradient).values() if hasattr(t, "flat"))[vector]
    assert_close(moved, -1e-2 * g / (g.abs() + 1e-8), dimension=10)


def test_a_run_that_stops_after_the_first_step_goes_on_as_if_it_had_not() -> None:
    model, ours, step = run_of()
    other, theirs, their_step = run_of(seed=1)
    step(0)
    other.load_state_dict(model.state_dict())
    theirs.load_state_dict(ours.state_dict())
    for k in range(1, 5):
        step(k)
        their_step(k)
    assert all(map(torch.equal, values(model), values(other)))


def test_a_torch_scheduler_counts_the_first_step() -> None:
    _, ours, step = run_of()
    schedule = torch.optim.lr_scheduler.LambdaLR(ours, lambda k: 1.0 / (k + 1))
    rates = []
    for k in range(3):
        step(k)
        rates.append(ours.last.lr)
        schedule.step()
    assert rates == pytest.approx([1e-2, 5e-3, 1e-2 / 3])


def test_a_parameter_that_thaws_waits_alone() -> None:
    """Its first gradient, in step 2, starts its own moments; the others move on."""
    model = network()
    late = model[2]
    late.requires_grad_(False)
    ours = optimizer("soap", model, lr=1e-2)
    moved = []
    for k in range(4):
        late.requires_grad_(k >= 2)
        x, y = normal(8, 5, seed=k), torch.arange(8) % 3
        before = values(model)
        ours.step(objective(model, nn.CrossEntropyLoss(), x, y))
        moved.append([not torch.equal(a, b) for a, b in zip(before, values(model), strict=True)])
    assert moved == [[False] * 6, [True] * 4 + [False] * 2, [True] * 4 + [False] * 2, [True] * 6]


def test_bases_stay_orthogonal_and_come_to_the_eigenvectors() -> None:
    """Of gradients that repeat, after a hundred power iterations."""
    fed, some = Fed(part(decay=0.99), (5, 7)), gradients((5, 7), 3)
    for k in range(400):
        fed.step(some[k % 3])
    for n, Q in enumerate(fed.state.bases[BLOCK]):
        assert_close(Q.mT @ Q, torch.eye(len(Q), dtype=DTYPE), dimension=len(Q))
        L = tilted(fed.state.grams[BLOCK][n].dense(), first=False)
        inside = Q.mT @ L @ Q
        off = inside - inside.diagonal().diag()
        assert float(off.norm()) < 0.02 * float(L.norm())
        assert torch.equal(inside.diagonal()[:3], inside.diagonal()[:3].sort(descending=True).values)


def test_bases_turn_on_their_cadence() -> None:
    fed, known = Fed(part(refresh_every=3), (4, 6)), []
    for g in gradients((4, 6), 8):
        fed.step(g)
        known.append([Q.clone() for Q in fed.state.bases[BLOCK]])
    turned = [k for k in range(1, 8) if not torch.equal(known[k][0], known[k - 1][0])]
    assert turned == [1, 3, 6]


def test_a_gradient_in_factors_is_that_gradient() -> None:
    for r in (2, 40):
        held, plain = Fed(part(), (4, 6)), Fed(part(), (4, 6))
        for k in range(5):
            outer = Outer(normal(r, 4, seed=k), normal(r, 6, seed=k + 50))
            assert_close(held.step(outer), plain.step(outer.dense()), dimension=100, condition=1e6)


def test_bases_keep_the_structures_pattern() -> None:
    """Of a block-diagonal structure, only within its blocks."""
    fed = Fed(part(BlockDiagonal(2)), (4, 6))
    for g in gradients((4, 6), 5):
        fed.step(g)
    for Q in fed.state.bases[BLOCK]:
        touched = (Q.abs() > 1e-12).view(len(Q) // 2, 2, len(Q)).any(1)  # blocks, by column
        assert bool((touched.sum(0) == 1).all())
        assert bool((Q.abs() > 0.01).sum() > len(Q))


@pytest.mark.parametrize("name", ["soap", "kl-soap"])
@pytest.mark.parametrize("structure", ["diagonal", "vectors"])
def test_without_bases_it_is_adam(structure: str, name: str) -> None:
    """A diagonal structure, or a model of blocks with one axis, against torch's own."""
    torch.manual_seed(0)
    matrices = [nn.Linear(5, 7), nn.Tanh(), nn.LayerNorm(7), nn.Linear(7, 3)]
    layers = matrices if structure == "diagonal" else [nn.LayerNorm(5)]
    mine = nn.Sequential(*layers).double()
    theirs = copy.deepcopy(mine)
    knobs = {"structure": {"use": "diagonal"}} if structure == "diagonal" else {}
    ours = optimizer(name, mine, lr=1e-2, beta1=0.8, beta2=0.97, eps=1e-6, weight_decay=0.1, **knobs)
    adamw = torch.optim.AdamW(theirs.parameters(), lr=1e-2, betas=(0.8, 0.97), eps=1e-6, weight_decay=0.1)
    criterion = nn.CrossEntropyLoss()
    for k in range(25):
        x, y = normal(8, 5, seed=k), torch.arange(8) % 3
        ours.step(objective(mine, criterion, x, y))
        adamw.zero_grad()
        criterion(theirs(x), y).backward()
        adamw.step()
    for p, q in zip(mine.parameters(), theirs.parameters(), strict=True):
        assert_close(p.detach(), q.detach(), dimension=100)


def test_it_holds_a_moment_and_a_basis_per_axis() -> None:
    model = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3)).double()
    per_axis = (6**2 + 7**2) + (8**2 + 3**2)  # a layer's bias is a column; vectors have none
    parameters = sum(p.numel() for p in model.parameters())
    assert optimizer("soap", model).state_bytes() == 8 * (2 * per_axis + 2 * parameters)


def test_a_wide_axis_takes_neither_time_nor_memory() -> None:
    model = nn.Linear(3000, 2, bias=False).double()
    assert optimizer("soap", model).state_bytes() == 8 * (3000 + 2 * 2**2 + 2 * 6000)


def test_what_it_refuses() -> None:
    with pytest.raises(CapabilityError, match="soap needs a structure that is a Gram"):
        Soap(LowerToeplitz())
    for name, value in (("beta", 1.0), ("decay", -0.1), ("eps", -1.0), ("refresh_every", 0)):
        with pytest.raises(ConfigError, match=f"{name} = {value}"):
            part(**{name: value})
