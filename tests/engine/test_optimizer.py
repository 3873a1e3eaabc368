"""A method as a torch optimizer: coverage, bytes, states that come back, and what it refuses."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from curvlab.engine.method import Method
from curvlab.engine.optimizer import CurvatureOptimizer
from curvlab.errors import ConfigError, CoverageError, NeedsObjective
from curvlab.objectives.supervised import objective
from curvlab.parts.damping import Constant, LevenbergMarquardt
from curvlab.parts.gauss_newton import GaussNewton
from curvlab.parts.identity import Identity
from curvlab.parts.iterative import Iterative
from curvlab.parts.krylov import ConjugateGradients
from curvlab.parts.steps import Armijo, Rate
from curvlab.precision.full import Full
from curvlab.protocols.pieces import whole
from curvlab.testing.memory import alive
from curvlab.testing.unread import UnreadNorm
from tests.engine.composed import METHODS, batch, composed, knobs, network, optimizer, same, train
from tests.model.zoo import ZOO, Specimen

# what it is


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_a_torch_optimizer_over_the_models_own_parameters(name: str) -> None:
    model = network()
    held = list(model.parameters())
    opt = optimizer(name, model, **knobs(name))
    assert isinstance(opt, torch.optim.Optimizer)
    assert {id(p) for p in opt.param_groups[0]["params"]} == {id(p) for p in held}
    before = copy.deepcopy(model)
    train(model, opt, range(3))
    assert all(p is q for p, q in zip(model.parameters(), held, strict=True))
    assert not any(torch.equal(p, q) for p, q in zip(model.parameters(), before.parameters(), strict=True))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_brings_the_loss_of_a_batch_down(name: str) -> None:
    model, (x, y) = network(), batch(0)
    opt = optimizer(name, model, lr=1e-2)
    losses = [float(opt.step(objective(model, nn.CrossEntropyLoss(), x, y))) for _ in range(15)]
    assert losses[-1] < 0.98 * losses[0]


def test_torchs_step_hooks_are_called() -> None:
    model = network()
    opt, seen = optimizer("sgd", model), []
    opt.register_step_pre_hook(lambda o, args, kwargs: seen.append("before"))
    opt.register_step_post_hook(lambda o, args, kwargs: seen.append("after"))
    train(model, opt, range(1))
    assert seen == ["before", "after"]


def test_the_facts_of_a_step_are_those_of_the_method_itself() -> None:
    model = network()
    opt = optimizer("kfac", model, lr=0.02, damping=0.5)
    (loss,) = train(model, opt, range(1))
    assert opt.last is not None
    assert (float(opt.last.loss), opt.last.lr, opt.last.damping) == (loss, 0.02, 0.5)
    assert (opt.last.gradient_size, opt.last.cg_iterations, opt.last.products) == (8, None, None)
    opt.param_groups[0]["lr"] = 0.01
    train(model, opt, range(1, 2))
    assert opt.last.lr == pytest.approx(0.01)
    assert opt.steps == 2


def test_solvers_and_searches_are_accounted_for() -> None:
    model = network()
    method = Method(
        Iterative(GaussNewton(), ConjugateGradients(5)), LevenbergMarquardt(initial=10.0), Armijo(lr=1.0)
    )
    opt = CurvatureOptimizer(method, model, backend=Full("float64"))
    train(model, opt, range(1))
    facts = opt.last
    assert facts is not None
    assert 1 <= facts.cg_iterations <= 5
    assert facts.products == facts.cg_iterations + 1  # one for the reduction ratio
    assert facts.product_examples == facts.products * facts.curvature_size == facts.products * 8
    assert facts.accepted is True
    assert facts.reduction_ratio is not None
    assert facts.lr in [0.5**k for k in range(20)]


# coverage


@pytest.mark.parametrize("specimen", ZOO.values(), ids=ZOO.keys())
def test_coverage_lists_every_parameter_once_with_its_treatment_and_the_reason_for_a_fallback(
    specimen: Specimen,
) -> None:
    model = specimen.build()
    opt = optimizer("kfac", model, labels="data")
    rows = {row.parameter: row for row in opt.coverage()}
    assert list(rows) == [n for n, _ in model.named_parameters()]
    layers = [b for b in opt.blocks.members if b.is_layer and not b.transposed]
    layered = {whole(p) for b in layers for p in b.parameters}
    for name, p in model.named_parameters():
        row = rows[name]
        assert row.shape == tuple(p.shape)
        if not p.requires_grad:
            assert (row.treatment, row.reason) == ("frozen", "requires_grad is False")
        elif name in layered:
            assert (row.treatment, row.reason) == ("kfac", "")
        else:
            assert row.treatment == "fallback"
            assert row.reason
    for name, words in specimen.reasons.items():
        assert words in rows[name].reason


def test_a_row_of_coverage_is_plain_data() -> None:
    row = optimizer("kfac", network()).coverage()[2].as_row()
    assert row == {
        "parameter": "1.weight",
        "shape": [1, 1, 6],
        "block": "1.weight",
        "treatment": "fallback",
        "reason": "UnreadNorm has no layer reader",
    }


def test_parameters_that_nobody_treats_are_an_error_that_names_them_and_the_remedy() -> None:
    alone = Method(composed("kfac").preconditioner, Constant(1e-3), Rate(0.1))
    with pytest.raises(CoverageError) as caught:
        CurvatureOptimizer(alone, network(), backend=Full("float64"), name="kfac")
    message = str(caught.value)
    assert 'method "kfac" does not treat 1.weight: UnreadNorm has no layer reader' in message
    assert "1.bias" in message
    assert "[method.fallback]" in message
    assert len(caught.value.faults) == 2


def test_parameters_that_the_fallback_refuses_too_are_an_error() -> None:
    kfac = composed("kfac").preconditioner
    twice = Method(kfac, Constant(1e-3), Rate(0.1), fallback=Method(kfac, Constant(1e-3), Rate(0.1)))
    with pytest.raises(CoverageError, match=r"neither the method nor its fallback treats 1\.weight, 1\.bias"):
        CurvatureOptimizer(twice, network(), backend=Full("float64"))


def test_a_model_with_nothing_to_train_is_refused_in_words() -> None:
    model = network().requires_grad_(False)
    with pytest.raises(ConfigError, match="no parameter of the model requires a gradient"):
        optimizer("sgd", model)


class Tokens(nn.Module):
    """An embedding and a norm before a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.norm, self.out = (
            nn.Embedding(5, 4, scale_grad_by_freq=True),
            UnreadNorm(4),
            nn.Linear(4, 3),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.norm(self.embedding(tokens).mean(1)))


@pytest.mark.filterwarnings("ignore::curvlab.engine.coverage.CoverageWarning")
def test_what_kfac_refuses_is_trained_as_adamw_alone_would_train_it() -> None:
    torch.manual_seed(0)
    model = Tokens().double()
    opt = optimizer("kfac", model, settings={"step.lr": 1e-30})
    twin = copy.deepcopy(model)
    settings = composed("kfac").fallback
    assert settings is not None
    rest = [*twin.embedding.parameters(), *twin.norm.parameters()]
    adamw = torch.optim.AdamW(rest, lr=settings.step.rate(0), weight_decay=settings.on_update[0].rate)
    g = torch.Generator().manual_seed(1)
    for _ in range(6):
        x, y = torch.randint(0, 5, (8, 3), generator=g), torch.randint(0, 3, (8,), generator=g)
        opt.step(objective(model, nn.CrossEntropyLoss(), x, y))
        adamw.zero_grad()
        F.cross_entropy(twin(x), y).backward()
        adamw.step()
    treatment = {row.parameter: row.treatment for row in opt.coverage()}
    assert {n for n, t in treatment.items() if t == "kfac"} == {"out.weight", "out.bias"}
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")
    assert not torch.equal(model.norm.weight, torch.ones(4, dtype=torch.float64))


def test_the_layers_of_a_mixed_model_are_trained_by_the_method() -> None:
    """A model of layers alone, and the same layers beside a norm that is the identity and stays it."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()

    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.spare = copy.deepcopy(plain), nn.LayerNorm(3).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    mixed = Beside()
    train(plain, optimizer("kfac", plain, refresh=2), range(5))
    train(mixed, optimizer("kfac", mixed, refresh=2), range(5))
    for p, q in zip(plain.parameters(), mixed.inner.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)


# what a plain loop cannot give


def test_a_part_that_asks_for_more_than_a_backward_leaves_is_named_with_what_it_asked_for() -> None:
    model, (x, y) = network(), batch(0)
    cases: list[tuple[CurvatureOptimizer, tuple[str, ...]]] = [
        (optimizer("kfac", model), ('method "kfac"', "preconditioner", "labels = 'model'")),
        (optimizer("kfac", model, labels="exact"), ("preconditioner", "labels = 'exact'")),
    ]
    for damping, step, words in [
        (
            LevenbergMarquardt(),
            Rate(0.1),
            ("damping", "LevenbergMarquardt", "Gauss-Newton products, trial losses"),
        ),
        (Constant(), Armijo(), ("step", "Armijo", "trial losses")),
    ]:
        method = Method(Identity(), damping, step)
        cases.append((CurvatureOptimizer(method, model, backend=Full("float64"), name="mine"), words))
    for opt, words in cases:
        before = copy.deepcopy(model)
        F.cross_entropy(model(x), y).backward()
        with pytest.raises(NeedsObjective) as caught:
            opt.step()
        for word in (*words, "curvlab.objective(model, criterion, inputs, targets)"):
            assert word in str(caught.value), caught.value
        assert same(model, before)


def test_between_refreshes_a_plain_backward_is_enough() -> None:
    model, (x, y) = network(), batch(0)
    opt = optimizer("kfac", model, refresh=2)
    train(model, opt, range(1))
    opt.zero_grad()
    F.cross_entropy(model(x), y).backward()
    opt.step()
    with pytest.raises(NeedsObjective):
        opt.step()
    assert opt.steps == 2


# bytes


@pytest.mark.parametrize(
    ("name", "steps"), [("sgd", 2), ("adamw", 2), ("kfac", 3), ("kfac", 5), ("ekfac", 4)]
)
def test_state_bytes_are_those_of_the_tensors_really_held(name: str, steps: int) -> None:
    model = network()
    before = alive()
    opt = optimizer(name, model, **knobs(name))
    promised = opt.state_bytes()
    train(model, opt, range(steps))
    mine = {at: size for at, size in alive().items() if at not in before}
    assert opt.state_bytes() == promised
    assert sum(mine.values()) == promised


@pytest.mark.parametrize(
    ("name", "scalars"),
    [("sgd", 1.0), ("adamw", 2.0)],
)
def test_state_bytes_are_known_for_methods_that_hold_vectors(name: str, scalars: float) -> None:
    model = network()
    assert optimizer(name, model).state_bytes() == scalars * 8 * sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("grafting", "scalars"), [("adafactor", 3 + 5), ("adam", 15), ("rows", 3), ("block", 1), ("none", 0)]
)
def test_state_bytes_of_kfac_are_factors_inverses_an_average_moments_and_a_bound(
    grafting: str, scalars: int
) -> None:
    model, factors, average = nn.Linear(4, 3).double(), 2 * (5 * 5 + 3 * 3), 3 * 5
    held = optimizer("kfac", model, grafting=grafting).state_bytes()
    assert held == 8 * (factors + average + scalars + 1)


def test_a_group_of_another_models_parameters_is_refused_in_words() -> None:
    model = network()
    opt = optimizer("sgd", model)
    with pytest.raises(ConfigError, match="not a parameter of the model"):
        opt.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
