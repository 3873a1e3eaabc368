"""Hessian-free methods as wholes: oracles 8 and 10 of the specification, memory, resumption, changes."""

from __future__ import annotations

import importlib
import itertools
import statistics
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import curvlab
from curvlab.config import build_method
from curvlab.engine.optimizer import CurvatureOptimizer
from curvlab.errors import ConfigError
from curvlab.linalg.buffer import KEEP
from curvlab.objectives.evaluation import LayerMismatch
from curvlab.objectives.losses import BinaryCrossEntropy
from curvlab.objectives.supervised import objective
from curvlab.precision.full import Full
from curvlab.protocols.report import Event
from curvlab.protocols.sampler import Draw
from curvlab.registry import Registry, discover
from curvlab.registry.loader import Candidate
from curvlab.tasks.supervised import Examples, SupervisedWorkload
from curvlab.testing.unread import UnreadNorm
from tests.objectives.memory import Live

PLUGINS = ("firstorder", "structures", "kfac", "lbfgs", "hessianfree")
METHODS = ("hf-gn", "hf-martens", "hf-stochastic", "ksd")

#: torch compiles some of its own derivatives when forward mode is first used, and deprecates how it does
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")


@pytest.fixture(scope="module")
def registry() -> Registry:
    found = []
    for name in PLUGINS:
        load = lambda name=name: importlib.import_module(f"curvlab_{name}")  # noqa: E731
        found.append(Candidate(name, f"curvlab-{name}", "0", load))
    return discover(plugins=found, strict=True)


def optimizer(
    registry: Registry,
    name: str,
    model: nn.Module,
    *,
    settings: dict[str, Any] | None = None,
    dtype: str = "float64",
    events: list[Event] | None = None,
    **knobs: Any,
) -> CurvatureOptimizer:
    method = build_method(registry, name, knobs, settings)
    said = None if events is None else events.append
    return CurvatureOptimizer(method, model, backend=Full(dtype), name=name, on_event=said)


def normal(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).double()


def theta(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def classes(n: int, seed: int) -> tuple[Tensor, Tensor]:
    return normal(n, 6, seed=seed), normal(n, 4, seed=seed + 50).argmax(1)


EXACT = {
    "damping": {"use": "levenberg-marquardt", "initial": 1e-8},
    "preconditioner": {
        "krylov": {"use": "flexible-cg", "max_iterations": 60, "progress": 0.0, "tolerance": 1e-13}
    },
}


def test_with_a_linear_model_one_step_lands_on_the_least_squares_solution(registry: Registry) -> None:
    """λ → 0 and a full solve: the model *is* the loss, the ratio is 1, and λ shrinks (oracle 8)."""
    x, y = normal(40, 5, seed=1), normal(40, 3, seed=2)
    model = nn.Linear(5, 3).double()
    opt = optimizer(
        registry,
        "hf-gn",
        model,
        settings={
            **EXACT,
            "damping": {"use": "levenberg-marquardt", "initial": 1e-7, "minimum": 1e-9, "factor": 3.0},
        },
    )
    opt.step(objective(model, nn.MSELoss(), x, y))
    ones = torch.cat([x, torch.ones(40, 1, dtype=x.dtype)], dim=1)
    best = torch.linalg.lstsq(ones, y).solution
    torch.testing.assert_close(model.weight.detach(), best[:-1].mT, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model.bias.detach(), best[-1], rtol=1e-5, atol=1e-6)
    assert opt.last is not None
    assert opt.last.reduction_ratio == pytest.approx(1.0, abs=1e-6)
    assert opt.last.accepted
    assert opt.arms[0].state.damping.damping == pytest.approx(1e-7 / 3)


@pytest.mark.parametrize("name", METHODS)
def test_the_loss_of_a_fixed_batch_falls(registry: Registry, name: str) -> None:
    model, (x, y) = network(), classes(64, 3)
    opt = optimizer(registry, name, model)
    losses = [float(opt.step(objective(model, nn.CrossEntropyLoss(), x, y)) or 0.0) for _ in range(15)]
    assert losses[-1] < 0.95 * losses[0]
    if name != "ksd":  # every accepted step was one down
        assert losses == sorted(losses, reverse=True)


class Refused(nn.Module):
    """A loss that is worse wherever a step leads: the model's own loss at the first θ, then a wall."""

    def __init__(self, home: Tensor) -> None:
        super().__init__()
        self.home = home

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        away = (outputs - self.home).square().sum()
        return outputs.mean() + torch.where(away > 0, 10.0 + away, away)


@pytest.mark.parametrize("name", ["hf-gn", "hf-martens", "hf-stochastic"])
def test_a_rejected_step_leaves_every_bit_and_raises_the_damping(registry: Registry, name: str) -> None:
    """Oracle 10: θ as it was, λ times its factor, the warm start gone; and again after a save and load."""
    model, (x, _) = network(), classes(16, 3)
    knobs = {"labels": "data"} if name == "hf-gn" else {}  # of such a loss no labels can be drawn
    with torch.no_grad():
        home = model(x)
    before, events = theta(model).clone(), []
    opt = optimizer(registry, name, model, events=events, **knobs)
    loss = Refused(home)
    start = opt.arms[0].state.damping.damping
    opt.step(objective(model, loss, x, torch.zeros(16)))
    assert torch.equal(theta(model), before)
    assert [e.name for e in events] == ["rejected"]
    assert opt.arms[0].state.damping.damping == pytest.approx(start * opt.method.damping.factor)  # type: ignore[attr-defined]
    warm = opt.arms[0].state.preconditioner.start
    assert float(warm.norm()) == 0
    other = network()
    again = optimizer(registry, name, other, **knobs)
    again.load_state_dict(opt.state_dict())
    assert again.arms[0].state.damping.damping == opt.arms[0].state.damping.damping
    again.step(objective(other, loss, x, torch.zeros(16)))
    opt.step(objective(model, loss, x, torch.zeros(16)))
    assert torch.equal(theta(other), theta(model))


@pytest.mark.parametrize("name", METHODS)
def test_what_is_saved_in_the_middle_goes_on_bit_for_bit(registry: Registry, name: str) -> None:
    def objectives(model: nn.Module) -> list[Any]:
        return [objective(model, nn.CrossEntropyLoss(), *classes(24, k)) for k in range(8)]

    whole = network()
    opt = optimizer(registry, name, whole)
    for task in objectives(whole)[:4]:
        opt.step(task)
    halted = network()
    halted.load_state_dict(whole.state_dict())
    other = optimizer(registry, name, halted)
    other.load_state_dict(opt.state_dict())
    for a, b in zip(objectives(whole)[4:], objectives(halted)[4:], strict=True):
        opt.step(a)
        other.step(b)
    assert torch.equal(theta(whole), theta(halted))
    assert opt.state_dict()["param_groups"] == other.state_dict()["param_groups"]


def test_kfac_is_the_inner_preconditioner_by_one_line(registry: Registry) -> None:
    """On inputs of very different scales as many products go further with it than without."""
    x, y = classes(64, 3)
    x = x * torch.logspace(-1, 1, 6, dtype=x.dtype)
    ends = []
    for inner in ("kfac", "identity"):
        model = network()
        opt = optimizer(registry, "hf-gn", model, inner={"use": inner}, max_iterations=3, damping=0.1)
        for _ in range(10):
            loss = opt.step(objective(model, nn.CrossEntropyLoss(), x, y))
        ends.append(float(loss or 0.0))
    assert ends[0] < 0.95 * ends[1]


def test_a_nested_solve_asks_for_the_flexible_form(registry: Registry) -> None:
    nested = {
        "use": "iterative",
        "estimator": {"use": "gauss-newton"},
        "krylov": {"use": "cg", "max_iterations": 3},
    }
    settings = {"preconditioner": {"krylov": {"use": "cg", "grid": 1.3}}}
    with pytest.raises(ConfigError, match="flexible-cg"):
        optimizer(registry, "hf-gn", network(), inner=nested, settings=settings)
    model = network()
    opt = optimizer(registry, "hf-gn", model, inner=nested, max_iterations=5)
    first = opt.step(objective(model, nn.CrossEntropyLoss(), *classes(64, 3)))
    second = opt.step(objective(model, nn.CrossEntropyLoss(), *classes(64, 3)))
    assert first is not None
    assert second is not None
    assert float(second) < float(first)


def test_a_step_rule_that_chooses_asks_for_iterates_and_for_their_own_update(registry: Registry) -> None:
    with pytest.raises(ConfigError, match="iterates"):
        optimizer(
            registry,
            "hf-gn",
            network(),
            settings={"preconditioner": {"krylov": {"use": "flexible-cg", "grid": 0.0}}},
        )
    with pytest.raises(ConfigError, match="on_update"):
        optimizer(registry, "hf-gn", network(), settings={"on_update": [{"use": "momentum"}]})


class Attention(nn.Module):
    """Self-attention by torch's fused kernel, which has no forward mode and no second derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.head = nn.Linear(6, 18), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x.view(-1, 3, 6)).chunk(3, dim=-1)
        mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return self.head(mixed.mean(1))


def test_networks_with_fused_attention_train(registry: Registry) -> None:
    torch.manual_seed(0)
    model = Attention().double()
    x, y = normal(32, 18, seed=1), normal(32, 4, seed=2).argmax(1)
    opt = optimizer(registry, "hf-gn", model)
    losses = [float(opt.step(objective(model, nn.CrossEntropyLoss(), x, y)) or 0) for _ in range(6)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.9 * losses[0]


def test_dropout_is_frozen_within_a_step(registry: Registry) -> None:
    """Steps so short that the model is exact: the ratio is 1 only if losses and products share masks."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 30), nn.Tanh(), nn.Dropout(0.5), nn.Linear(30, 4)).double()
    opt = optimizer(registry, "hf-gn", model, damping=1e5)
    for k in range(4):
        opt.step(objective(model, nn.CrossEntropyLoss(), *classes(64, k)))
        assert opt.last is not None
        assert opt.last.reduction_ratio == pytest.approx(1.0, abs=1e-3)


def test_state_is_two_vectors_a_pair_and_a_few(registry: Registry) -> None:
    model = network()
    opt = optimizer(registry, "hf-gn", model, memory=16)
    for k in range(4):
        opt.step(objective(model, nn.CrossEntropyLoss(), *classes(64, k)))
    one = theta(model).numel() * 8
    factors = 2 * (7**2 + 8**2 + 9**2 + 4**2) * 8  # KFAC's of both layers, and their inverses
    assert opt.state_bytes() <= (2 * 16 + 1) * one + factors + 8 * (2 * 16**2 + 2 * 16) + 64


def autoencoder() -> nn.Module:
    """1.3 million parameters."""
    torch.manual_seed(0)
    widths = (784, 600, 300, 30, 300, 600, 784)
    layers = [m for i, o in itertools.pairwise(widths) for m in (nn.Linear(i, o), nn.Sigmoid())]
    return nn.Sequential(*layers[:-1])


def test_an_autoencoder_needs_forty_vectors_beside_the_model_whatever_the_samples(registry: Registry) -> None:
    """m = 16: two vectors a pair, KFAC's factors and few others; in a step no more for four times the data.

    Forty are the state and the vectors that layouts keep for reuse between steps.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(1024, 784, generator=generator)
    peaks = []
    for size in (256, 1024):
        model = autoencoder()
        workload = SupervisedWorkload(
            model, BinaryCrossEntropy(over="sum"), Examples(images, images), Examples(images[:1], images[:1])
        )
        opt = optimizer(registry, "hf-gn", model, dtype="float32", memory=16, max_iterations=4)
        everything = torch.arange(size)
        with Live() as live:
            for _ in range(2):
                opt.step(workload.objective(Draw(everything, everything, everything, micro_batch=128)))
        peaks.append(live.peak)
        one = 4 * sum(p.numel() for p in model.parameters())
        kept = KEEP * len(opt.arms)
        assert opt.state_bytes() / one + kept <= 2 * 16 + 8
    assert peaks[1] <= 1.02 * peaks[0]


class Mixed(nn.Module):
    """Two layers, a norm that is none, and a layer whose weight is also used without it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.loose, self.last = (
            nn.Linear(6, 8),
            UnreadNorm(8),
            nn.Linear(8, 8),
            nn.Linear(8, 4),
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.first(x)).tanh()
        h = self.loose(h).tanh() + (h @ self.loose.weight).tanh()
        return self.last(h)  # type: ignore[no-any-return]


def test_what_its_kfac_cannot_treat_is_solved_for_all_the_same(registry: Registry) -> None:
    """No parameter goes to the fallback: not a norm's, not those of a layer found out to be used twice."""
    model = Mixed().double()
    opt = optimizer(registry, "hf-gn", model, damping=1.0)
    task = objective(model, nn.CrossEntropyLoss(), *classes(64, 3))
    with pytest.warns(LayerMismatch, match="loose"):
        losses = [float(opt.step(task) or 0.0)]
    losses += [float(opt.step(task) or 0.0) for _ in range(9)]
    assert losses[-1] < 0.5 * losses[0]
    assert {row.treatment for row in opt.coverage()} == {"hf-gn"}
    initial = opt.arms[0].method.preconditioner.inner.initial  # type: ignore[attr-defined]
    assert initial.others == {"norm.weight", "norm.bias", "loose"}
    other = Mixed().double()
    again = optimizer(registry, "hf-gn", other, damping=1.0)
    again.load_state_dict(opt.state_dict())
    other.load_state_dict(model.state_dict())
    opt.step(task)
    again.step(objective(other, nn.CrossEntropyLoss(), *classes(64, 3)))
    assert torch.equal(theta(model), theta(other))


def moved(registry: Registry, seed: int, way: str, examples: int, classes: int) -> Tensor:
    """A step of ksd in float32 on cross-entropy, written one way or another."""
    torch.manual_seed(seed)
    model: nn.Module = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, classes))
    x, y = torch.randn(examples, 6), torch.randint(classes, (examples,))
    criterion: nn.Module = nn.CrossEntropyLoss()
    before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    if way == "examples in another order":
        x, y = x.flip(0), y.flip(0)
    if way == "log-softmax in the model":
        model, criterion = nn.Sequential(model, nn.LogSoftmax(-1)), nn.NLLLoss()
    optimizer(registry, "ksd", model, dtype="float32").step(curvlab.objective(model, criterion, x, y))
    return nn.utils.parameters_to_vector(model.parameters()).detach() - before


@pytest.mark.parametrize("way", ["examples in another order", "log-softmax in the model"])
@pytest.mark.parametrize(("examples", "classes"), [(16, 3), (64, 5)])
def test_a_problem_written_in_two_ways_has_one_step_of_ksd(
    registry: Registry, way: str, examples: int, classes: int
) -> None:
    """To rounding, times what the space and BFGS on a loss that is no quadratic may add."""
    off = []
    for seed in range(9):
        one = moved(registry, seed, "as cross-entropy", examples, classes)
        other = moved(registry, seed, way, examples, classes)
        off.append(float((one - other).norm() / one.norm()))
    eps = torch.finfo(torch.float32).eps
    assert statistics.median(off) <= 300 * eps
    assert max(off) <= 30 * eps**0.5
