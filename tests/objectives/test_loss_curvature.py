"""Curvature of losses in the outputs, from the laws: Hessians by autograd, Fisher information by sums."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from curvlab.errors import ConfigError
from curvlab.objectives.losses import (
    BinaryCrossEntropy,
    CriterionLoss,
    CrossEntropy,
    GaussianNegativeLogLikelihood,
    Heads,
    Huber,
    LanguageModel,
    MeanSquaredError,
    PoissonNegativeLogLikelihood,
    SmoothL1,
)
from curvlab.objectives.losses.elementwise import ElementwiseLoss
from curvlab.objectives.nested import as_one
from curvlab.objectives.row_loss import RowLoss
from curvlab.objectives.supervised import objective
from curvlab.protocols.loss import Loss
from curvlab.protocols.needs import Labels, Needs
from curvlab.testing.reference import block_of, ggn
from tests.objectives.asking import ask, classifier, layers_of, normal, wanting

N = 3
BIT, COUNT = normal(N, 2, seed=1).gt(0).double(), normal(N, 2, seed=1).exp().round()
CLASS = torch.tensor([0, 3, 1])
TOKENS = torch.tensor([[0, 2, 1], [1, -100, 2], [2, 2, 0]])
PAIR = (normal(N, 2), normal(N, 2, seed=3).exp())


def moving(loss: RowLoss, targets: Any) -> tuple[RowLoss, Any, Any]:
    """A loss of outputs [n, 4], classes, or [n, 2]."""
    return loss, normal(N, 4 if targets is CLASS else 2), targets


CASES: dict[str, tuple[Loss, Any, Any]] = {
    "cross-entropy": moving(CrossEntropy(), CLASS),
    "cross-entropy, smoothed": moving(CrossEntropy(label_smoothing=0.2), CLASS),
    "cross-entropy, weights": moving(CrossEntropy(class_weights=(1.0, 2.0, 0.5, 3.0)), CLASS),
    "cross-entropy, soft": (CrossEntropy(), normal(N, 4), normal(N, 4, seed=1).softmax(1)),
    "cross-entropy, classes last": (
        CrossEntropy(classes="last"),
        normal(N, 2, 4),
        torch.arange(6).view(N, 2) % 4,
    ),
    "squared error": moving(MeanSquaredError(), normal(N, 2, seed=1)),
    "squared error, summed": moving(MeanSquaredError("sum"), normal(N, 2, seed=1)),
    "binary": moving(BinaryCrossEntropy(), BIT),
    "binary, weights": moving(BinaryCrossEntropy("sum", (2.0, 0.5), (3.0, 1.5)), BIT),
    "Huber": moving(Huber(delta=0.8), normal(N, 2, seed=1)),
    "smooth L1": moving(SmoothL1("sum", beta=0.8), normal(N, 2, seed=1)),
    "counts": moving(PoissonNegativeLogLikelihood(), COUNT),
    "counts, rates": (PoissonNegativeLogLikelihood(log_input=False), normal(N, 2).exp(), COUNT),
    "language model": (LanguageModel(), normal(N, 3, 4), TOKENS),
    "language model, no shift": (LanguageModel(shift=False), normal(N, 3, 4), TOKENS),
    "criterion": (CriterionLoss(lambda f, y: (f - y).pow(4).mean()), normal(N, 2), normal(N, 2, seed=1)),
    "criterion of several": (
        CriterionLoss(lambda f, y: F.cross_entropy(f["a"], y) + f["b"].exp().sum(1).mean()),
        {"a": normal(N, 4), "ids": torch.arange(N), "b": normal(N, 2, seed=2), "unused": normal(5, 2)},
        CLASS,
    ),
    "heads": (
        Heads((CrossEntropy(), Huber("sum"), LanguageModel()), weights=(0.5, 2.0, 1.0)),
        (normal(N, 4), normal(N, 2), normal(N, 3, 4)),
        (CLASS, normal(N, 2, seed=1), TOKENS),
    ),
}
cases = pytest.mark.parametrize(("loss", "f", "y"), CASES.values(), ids=CASES)


def terms_weights(loss: Loss, y: Any) -> Any:
    like = normal(1)

    def per_weight() -> Tensor:
        total = loss.total_weight(y, like)
        assert total is not None
        return N / total

    return loss.term_weights(y, N, like, per_weight)


def flat(outputs: Any) -> Tensor:
    return as_one(outputs)[0].reshape(-1)


def dense(loss: Loss, f: Any, y: Any) -> Float[Tensor, "f f"]:
    """The Hessian of n times the mean loss in all outputs, by autograd on its value alone."""
    one, apart = as_one(f)

    def value(at: Tensor) -> Tensor:
        return loss.mean(apart(at.view(one.shape)), y) * N

    found: Tensor = torch.autograd.functional.hessian(value, one.reshape(-1))
    return found


@cases
def test_columns_are_a_root_of_the_dense_hessian(loss: Loss, f: Any, y: Any) -> None:
    """Of each example's: columns of different examples are back-propagated together."""
    H = dense(loss, f, y)
    one, apart = as_one(f)
    owner = flat(apart(_owners(f, one)))
    S = torch.stack([flat(v) for v in loss.hessian_columns(f, y, terms_weights(loss, y))], 1)
    same = owner[:, None] == owner[None, :]
    torch.testing.assert_close((S @ S.mT) * same, H)
    assert not (H * ~same).any()


def _owners(f: Any, one: Tensor) -> Tensor:
    """The example of each output, as a vector like ``as_one``'s."""
    parts = [f] if isinstance(f, Tensor) else list(f.values() if isinstance(f, dict) else f)
    numbers = [torch.arange(len(t)).double().view(-1, *[1] * (t.dim() - 1)).expand(t.shape) for t in parts]
    found = [k.reshape(-1) for k, t in zip(numbers, parts, strict=True) if t.is_floating_point()]
    return torch.cat(found).view(one.shape)


@cases
def test_products_are_with_the_dense_hessian(loss: Loss, f: Any, y: Any) -> None:
    one, apart = as_one(f)
    v = normal(*one.shape, seed=5)
    found = loss.hessian_product(f, y, terms_weights(loss, y), apart(v))
    torch.testing.assert_close(flat(found), dense(loss, f, y) @ v.reshape(-1))


#: losses whose sampled vectors are linear in signs, whose 2^c values can be listed
SIGNS = [name for name in CASES if name in ("Huber", "smooth L1", "counts", "counts, rates")]


@pytest.mark.parametrize("name", SIGNS)
def test_signs_times_the_root_have_the_hessian_as_second_moment_exactly(name: str) -> None:
    loss, f, y = CASES[name]
    assert isinstance(loss, RowLoss)
    c = f.shape[1]
    every = [torch.tensor(s).double().expand(N, c) for s in itertools.product((-1.0, 1.0), repeat=c)]
    v = torch.stack([loss.sampled(f, y, signs) for signs in every])
    moment = torch.einsum("kri,krj->rij", v, v) / len(every)
    torch.testing.assert_close(moment, _by_row(loss, f, y))
    assert set(loss.noise(100, f, torch.Generator()).unique().tolist()) == {-1.0, 1.0}


def _by_row(loss: RowLoss, rows: Tensor, y: Any) -> Tensor:
    each = [
        torch.autograd.functional.hessian(lambda row, r=r: loss.terms(row[None], y[r : r + 1]).sum(), rows[r])
        for r in range(len(rows))
    ]
    return torch.stack(each)


SAMPLED = ["cross-entropy", "squared error", "squared error, summed", "binary", "binary, weights"]


@pytest.mark.parametrize("name", SAMPLED)
def test_sampled_gradients_have_the_output_hessian_as_second_moment(name: str) -> None:
    """40,000 samples; each entry within 5 of its standard errors: a false alarm in 1 of 10,000 seeds."""
    loss, f, y = CASES[name]
    assert isinstance(loss, RowLoss)
    m = 40_000
    many = f.repeat_interleave(m, 0)
    g = torch.Generator().manual_seed(0)
    v = loss.sampled(many, y.repeat_interleave(m, 0), loss.noise(N * m, many, g)).view(N, m, -1)
    products = v.unsqueeze(-1) * v.unsqueeze(-2)
    error = products.mean(1) - _by_row(loss, f, y)
    assert bool((error.abs() <= 5 * products.std(1) / m**0.5 + 1e-12).all())


@cases
def test_vectors_of_several_examples_have_the_hessian_as_second_moment(loss: Loss, f: Any, y: Any) -> None:
    """600 draws of the whole batch; 6 standard errors: a false alarm in 1 of a million entries."""
    g, w, draws = torch.Generator().manual_seed(1), terms_weights(loss, y), 600
    v = torch.stack([flat(loss.sampled_column(f, y, w, loss.draw(f, N, g))) for _ in range(draws)])
    products = v.unsqueeze(-1) * v.unsqueeze(-2)
    error = products.mean(0) - dense(loss, f, y)
    assert bool((error.abs() <= 6 * products.std(0) / draws**0.5 + 1e-9).all())
    assert bool((v.mean(0).abs() <= 6 * v.std(0) / draws**0.5 + 1e-9).all())


# likelihoods


def test_the_hessian_of_counts_is_their_fisher_information() -> None:
    """Σ_k p(k) ∇ℓ ∇ℓᵀ over every count that has a probability."""
    loss, f = PoissonNegativeLogLikelihood("sum"), normal(5, 1)
    k = torch.arange(200.0, dtype=torch.float64)
    p = torch.exp(k * f - f.exp() - torch.lgamma(k + 1))
    torch.testing.assert_close(p.sum(1), torch.ones(5, dtype=torch.float64))
    fisher = (p * (f.exp() - k).square()).sum(1, keepdim=True)
    second = loss.second(f, torch.zeros_like(f))
    assert isinstance(second, Tensor)
    torch.testing.assert_close(second, fisher)


def weighted_moment(loss: RowLoss, f: Tensor, y: Any, noises: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Σ of probability times v vᵀ over listed noise, by row; the probabilities of a row add up to 1."""
    total, found = torch.zeros(len(f), dtype=f.dtype), torch.zeros(len(f), f.shape[1], f.shape[1]).double()
    for p, noise in noises:
        v = loss.sampled(f, y, noise)
        found += p[:, None, None] * v.unsqueeze(-1) * v.unsqueeze(-2)
        total += p
    torch.testing.assert_close(total, torch.ones_like(total))
    return found


@pytest.mark.parametrize("name", ["cross-entropy", "cross-entropy, smoothed", "cross-entropy, soft"])
def test_every_class_by_its_probability_has_the_hessian_as_second_moment(name: str) -> None:
    loss, f, y = CASES[name]
    assert isinstance(loss, RowLoss)
    p = f.softmax(1)
    middles = p.cumsum(1) - p / 2  # of the numbers that draw each class
    noises = [(p[:, k], middles[:, k : k + 1]) for k in range(f.shape[1])]
    torch.testing.assert_close(weighted_moment(loss, f, y, noises), _by_row(loss, f, y))


@pytest.mark.parametrize("name", ["binary", "binary, weights"])
def test_every_bit_by_its_probability_has_the_hessian_as_second_moment(name: str) -> None:
    loss, f, y = CASES[name]
    assert isinstance(loss, RowLoss)
    p, noises = f.sigmoid(), []
    for bits in itertools.product((0.0, 1.0), repeat=f.shape[1]):
        ones = torch.tensor(bits, dtype=f.dtype).expand_as(f)
        noise = torch.where(ones > 0, p / 2, (1 + p) / 2)
        noises.append((torch.where(ones > 0, p, 1 - p).prod(1), noise))
    torch.testing.assert_close(weighted_moment(loss, f, y, noises), _by_row(loss, f, y))


@pytest.mark.parametrize("name", ["squared error", "squared error, summed"])
def test_normal_labels_have_the_hessian_as_second_moment(name: str) -> None:
    loss, f, y = CASES[name]
    assert isinstance(loss, RowLoss)
    noises = []
    for nodes in itertools.product(range(3), repeat=f.shape[1]):
        noise = torch.tensor([NODES[k] for k in nodes], dtype=f.dtype).expand_as(f)
        mass = torch.tensor([MASS[k] for k in nodes], dtype=f.dtype).prod()
        noises.append((mass.expand(len(f)), noise))
    torch.testing.assert_close(weighted_moment(loss, f, y, noises), _by_row(loss, f, y))


#: nodes and weights that integrate polynomials up to degree 5 against the normal density exactly
NODES, MASS = (-(3.0**0.5), 0.0, 3.0**0.5), (1 / 6, 2 / 3, 1 / 6)


@pytest.mark.parametrize("over", ["mean", "sum"])
@pytest.mark.parametrize("log_variance", [False, True])
def test_the_curvature_of_a_predicted_variance_is_the_mean_hessian_over_the_models_targets(
    log_variance: bool, over: Any
) -> None:
    """And the second moment of what is sampled: both integrals are exact."""
    loss = GaussianNegativeLogLikelihood(over, log_variance=log_variance)
    m, v = PAIR
    rows = loss.rows((m, v.log() if log_variance else v))
    fisher, moment = (torch.zeros(N, 4, 4, dtype=torch.float64) for _ in range(2))
    for nodes in itertools.product(range(3), repeat=2):
        mass = MASS[nodes[0]] * MASS[nodes[1]]
        noise = torch.tensor([NODES[k] for k in nodes], dtype=torch.float64).expand(N, 2)
        drawn = m + v.sqrt() * noise
        fisher += mass * _by_row(loss, rows, drawn)
        sampled = loss.sampled(rows, drawn, noise)
        moment += mass * torch.einsum("ri,rj->rij", sampled, sampled)
        kappa = 0.5 if over == "mean" else 1.0
        torch.testing.assert_close(sampled, loss.gradient(rows, drawn) / kappa**0.5)
    columns = torch.stack(list(loss.factor(rows, m)), -1)
    torch.testing.assert_close(columns @ columns.mT, fisher)
    torch.testing.assert_close(moment, fisher)
    along = normal(N, 4, seed=7)
    expected = (fisher @ along.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(loss.product(rows, m, along), expected)


def test_the_hessian_of_a_predicted_variance_is_indefinite_far_from_the_mean() -> None:
    """Which is why its curvature is the Fisher information."""
    loss = GaussianNegativeLogLikelihood()
    H = _by_row(loss, loss.rows(PAIR), PAIR[0] + 5 * PAIR[1].sqrt())
    assert float(torch.linalg.eigvalsh(H).min()) < 0
    assert loss.curvature == "fisher"
    assert Heads((MeanSquaredError(), loss)).curvature == "fisher"


# losses given by their values alone


@dataclass(frozen=True)
class ValueOnly(RowLoss):
    """log-sum-exp minus the label's logit, and a power: convex, and not diagonal."""

    over: Any = "mean"

    def terms(self, rows: Float[Tensor, "r c"], targets: Any) -> Float[Tensor, " r"]:
        return (
            rows.logsumexp(-1) - rows.gather(1, targets.unsqueeze(1)).squeeze(1) + 0.1 * rows.pow(4).sum(-1)
        )


@dataclass(frozen=True)
class Quartic(ElementwiseLoss):
    """Fourth powers, coordinate by coordinate."""

    over: Any = "mean"

    def each(self, rows: Float[Tensor, "r c"], targets: Tensor) -> Float[Tensor, "r c"]:
        return (rows - targets).pow(4)


def value_only(f: Tensor, y: Tensor) -> Tensor:
    """The same as ``ValueOnly``, as a criterion of the batch."""
    return F.cross_entropy(f, y) + 0.1 * f.pow(4).sum(-1).mean()


@pytest.mark.parametrize("micro_batch", [None, 3])
@pytest.mark.parametrize("criterion", [ValueOnly(), value_only], ids=["terms", "criterion"])
def test_a_loss_given_by_its_value_has_the_dense_ggn_from_exact_labels(
    criterion: Any, micro_batch: int | None
) -> None:
    """Every layer's block: Σ over vectors and examples of the outer products of its rows; products too."""
    model, x, y = classifier()
    blocks = layers_of(model)
    asked = objective(model, criterion, x, y, micro_batch=micro_batch)
    seen = ask(asked, wanting(Labels.EXACT) | Needs(products=1), blocks, step=0)
    truth = ggn(model, value_only, x, y, blocks)
    for name, (stats,) in seen.layers[Labels.EXACT].items():
        assert stats.grads is not None
        each = torch.einsum("vnso,nsi->vnoi", stats.grads, stats.inputs).flatten(2)
        found = torch.einsum("vni,vnj->ij", each, each) / len(x)
        torch.testing.assert_close(found, block_of(truth, blocks.layout, name))
    v = blocks.read()
    v.flat.copy_(normal(v.layout.size, seed=9))
    assert seen.ggn is not None
    torch.testing.assert_close((seen.ggn @ v).flat, truth @ v.flat)


@pytest.mark.parametrize("criterion", [ValueOnly(), value_only], ids=["terms", "criterion"])
def test_model_labels_of_such_a_loss_are_those_of_one_batch_in_micro_batches(criterion: Any) -> None:
    model, x, y = classifier()
    needs = wanting(Labels.MODEL, samples=2)
    whole, parts = (
        ask(objective(model, criterion, x, y, micro_batch=k), needs, layers_of(model)) for k in (None, 3)
    )
    for name, (stats,) in whole.layers[Labels.MODEL].items():
        (other,) = parts.layers[Labels.MODEL][name]
        torch.testing.assert_close(other.grads, stats.grads)


def test_a_coordinates_second_derivative_comes_by_autograd() -> None:
    loss, f, y = Quartic("sum"), normal(N, 2), normal(N, 2, seed=1)
    S = torch.stack(list(loss.factor(f, y)), -1)
    torch.testing.assert_close(S @ S.mT, torch.diag_embed(12 * (f - y).square()))


def test_a_loss_that_is_linear_has_one_column_of_zeros() -> None:
    for loss in (CriterionLoss(F.l1_loss), SmoothL1(beta=0.0)):
        columns = list(loss.hessian_columns(normal(N, 2), normal(N, 2, seed=1), 1.0))
        assert columns
        assert not any(bool(v.any()) for v in columns)


def test_float32_outputs_have_float32_columns_of_the_hessian() -> None:
    loss, f, y = ValueOnly(), normal(N, 4), CLASS
    for made in (loss, CriterionLoss(value_only)):
        w = terms_weights(made, y)
        expected = torch.stack(list(made.hessian_columns(f, y, w)), -1)
        found = torch.stack(list(made.hessian_columns(f.float(), y, w)), -1)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found @ found.mT, (expected @ expected.mT).float(), rtol=1e-4, atol=1e-4)


# what is refused


@dataclass(frozen=True)
class Wavy(RowLoss):
    """Not convex: Σ sin f."""

    def terms(self, rows: Float[Tensor, "r c"], targets: Any) -> Float[Tensor, " r"]:
        return rows.sin().sum(-1)


@dataclass(frozen=True)
class WavyElements(ElementwiseLoss):
    """The same, coordinate by coordinate."""

    over: Any = "sum"

    def each(self, rows: Float[Tensor, "r c"], targets: Tensor) -> Float[Tensor, "r c"]:
        return rows.sin()


AT = torch.tensor([[-1.0, -0.5], [-0.5, 1.5], [-0.1, -0.2]], dtype=torch.float64)  # row 1: −sin 1.5


@pytest.mark.parametrize(
    ("loss", "name", "row"),
    [
        (Wavy(), "Wavy", "row 1"),
        (WavyElements(), "WavyElements", "row 1"),
        (CriterionLoss(lambda f, y: f.sin().sum(1).mean()), "the criterion <function", "example 1"),
        (Heads((MeanSquaredError(), Wavy()), names=("size", "wave")), 'head "wave": Wavy', "row 1"),
    ],
    ids=["rows", "elements", "criterion", "heads"],
)
def test_an_indefinite_hessian_is_refused_by_name_with_the_row_and_its_smallest_eigenvalue(
    loss: Loss, name: str, row: str
) -> None:
    f, y = ((normal(N, 2), AT), (normal(N, 2), AT)) if isinstance(loss, Heads) else (AT, AT)
    w = terms_weights(loss, y)
    said = (
        rf"{name}.*not positive semi-definite \({row}: smallest eigenvalue -0\.997\).*\n.*labels = \"data\""
    )
    with pytest.raises(ConfigError, match=said):
        list(loss.hessian_columns(f, y, w))
    with pytest.raises(ConfigError, match="not positive semi-definite"):
        loss.sampled_column(f, y, w, loss.draw(f, N, torch.Generator()))
    along = torch.zeros_like(AT)
    along[1, 1] = 2.0
    with pytest.raises(ConfigError, match=rf"{name}.*not positive semi-definite \({row}"):
        loss.hessian_product(f, y, w, (normal(N, 2), along) if isinstance(loss, Heads) else along)


def test_an_indefinite_criterion_is_refused_in_a_step() -> None:
    model, x, y = classifier()
    asked = objective(model, lambda f, t: -f.square().sum(1).mean(), x, y)
    for needs in (wanting(Labels.EXACT), wanting(Labels.MODEL), Needs(products=1)):
        with pytest.raises(ConfigError, match="not positive semi-definite"):
            ask(asked, needs, layers_of(model), step=0)


def test_hessians_that_are_too_large_to_be_formed_are_refused_before_they_are() -> None:
    f, y = torch.zeros(2, 128, 65), torch.ones(2, 128, 65)
    criterion = CriterionLoss(lambda f, y: (f - y).pow(4).mean())
    with pytest.raises(ConfigError, match=r"2 matrices of 8,320 x 8,320; at most .*\n.*labels = \"data\""):
        list(criterion.hessian_columns(f, y, 1.0))
    with pytest.raises(ConfigError, match=r"Wavy.* 1 matrices of 20,000 x 20,000"):
        list(Wavy().factor(torch.zeros(1, 20_000), None))


def test_a_criterion_that_couples_examples_is_refused() -> None:
    loss = CriterionLoss(lambda f, y: f.mean().square() + f.square().mean())
    with pytest.raises(ConfigError, match="couples examples"):
        list(loss.hessian_columns(normal(N, 2), None, 1.0))


def test_numbers_that_are_not_finite_give_columns_that_are_not() -> None:
    """The step then fails as any step with such numbers."""
    f = torch.full((N, 4), torch.nan, dtype=torch.float64)
    for loss in (ValueOnly(), CriterionLoss(value_only)):
        assert torch.stack(list(loss.hessian_columns(f, CLASS, 1.0))).isnan().any()


def test_a_factor_that_an_author_gives_is_followed_by_products_and_samples() -> None:
    """In place of an indefinite Hessian."""

    @dataclass(frozen=True)
    class Tamed(Wavy):
        def factor(self, rows: Float[Tensor, "r c"], targets: Any) -> Any:
            return torch.diag_embed(rows.sin().abs().sqrt()).movedim(-1, 0)

    loss, v = Tamed(), normal(N, 2, seed=3)
    torch.testing.assert_close(loss.product(AT, AT, v), AT.sin().abs() * v)
    signs = loss.noise(N, AT, torch.Generator().manual_seed(0))
    torch.testing.assert_close(loss.sampled(AT, AT, signs), AT.sin().abs().sqrt() * signs)


# heads


def test_heads_are_read_in_order_by_key_and_by_attribute() -> None:
    loss = Heads((CrossEntropy(), MeanSquaredError()), names=("kind", "size"))
    f, g, y, z = normal(N, 4), normal(N, 2), CLASS, normal(N, 2, seed=1)
    outputs = ((f, g), {"size": g, "kind": f, "more": f}, type("Out", (), {"kind": f, "size": g})())
    expected = F.cross_entropy(f, y) + F.mse_loss(g, z)
    for given in outputs:
        read = loss.prediction(given)
        torch.testing.assert_close(loss.mean(read, (y, z)), expected)
        torch.testing.assert_close(loss.mean(read, {"size": z, "kind": y}), expected)
    assert loss.targets_in({"x": f, "kind": y, "size": z}) == (y, z)
    with pytest.raises(
        ConfigError, match="Heads: expected 2 outputs with the keys kind, size, got a tuple of 3"
    ):
        loss.prediction((f, g, g))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"losses": ()}, "losses is empty"),
        ({"weights": (1.0,)}, "1 weights for 2 losses"),
        ({"names": ("a",)}, "1 names for 2 losses"),
        ({"weights": (1.0, 0.0)}, "weights.1 = 0.0 must be positive"),
        ({"losses": (Heads((CrossEntropy(),)),) * 2}, "a head has heads of its own"),
    ],
    ids=str,
)
def test_heads_that_do_not_fit_are_refused_in_words(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        replace(Heads((CrossEntropy(), MeanSquaredError())), **given)


class TwoHeads(nn.Module):
    """A body with two heads."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.kind, self.size = nn.Linear(4, 5), nn.Linear(5, 4), nn.Linear(5, 2)
        self.double()

    def forward(self, x: Tensor) -> Any:
        h = torch.tanh(self.body(x))
        return {"kind": self.kind(h), "size": self.size(h)}


@pytest.mark.parametrize("micro_batch", [None, 3])
def test_heads_have_the_dense_ggn_of_their_sum(micro_batch: int | None) -> None:
    """One of them leaves examples out of its mean, over another number than the other's."""
    model, x = TwoHeads(), normal(7, 4)
    y, z = torch.tensor([0, 3, -100, 1, -100, 2, 2]), normal(7, 2, seed=1)
    rule = Heads(
        (CrossEntropy(ignore_index=-100), MeanSquaredError()), weights=(1.0, 3.0), names=("kind", "size")
    )
    asked = objective(model, rule, x, {"kind": y, "size": z}, micro_batch=micro_batch)
    blocks = layers_of(model)
    seen = ask(asked, wanting(Labels.EXACT, Labels.MODEL) | Needs(products=1), blocks, step=0)

    class Joined(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat(list(model(x).values()), 1)

    def both(f: Tensor, t: Any) -> Tensor:
        return F.cross_entropy(f[:, :4], y) + 3.0 * F.mse_loss(f[:, 4:], z)

    torch.testing.assert_close(seen.loss, both(Joined()(x), None).detach())
    truth = ggn(Joined(), both, x, y, blocks)
    for name, (stats,) in seen.layers[Labels.EXACT].items():
        assert stats.grads is not None
        each = torch.einsum("vnso,nsi->vnoi", stats.grads, stats.inputs).flatten(2)
        found = torch.einsum("vni,vnj->ij", each, each) / len(x)
        torch.testing.assert_close(found, block_of(truth, blocks.layout, name))
    v = blocks.read()
    v.flat.copy_(normal(v.layout.size, seed=9))
    assert seen.ggn is not None
    torch.testing.assert_close((seen.ggn @ v).flat, truth @ v.flat)
    with pytest.raises(ConfigError, match="no single weight"):
        asked.total_weight("gradient")


# language models


@pytest.mark.parametrize("over", ["mean", "sum"])
def test_a_language_models_loss_is_that_of_the_shifted_tokens(over: Any) -> None:
    f, n = normal(N, 3, 4), N
    shifted = F.cross_entropy(f[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten(), reduction=over)
    torch.testing.assert_close(LanguageModel(over).mean(f, TOKENS), shifted / (n if over == "sum" else 1))


def test_what_a_language_model_cannot_take_is_refused_in_words() -> None:
    loss = LanguageModel()
    with pytest.raises(ConfigError, match=r"expected logits \[n, tokens, vocabulary\]"):
        loss.require(normal(N, 4), CLASS)
    with pytest.raises(ConfigError, match="classes are axis 2 of the outputs"):
        loss.require(normal(N, 3, 4), TOKENS[:, :2])
    with pytest.raises(ConfigError, match="sequences of one token"):
        loss.require(normal(N, 1, 4), TOKENS[:, :1])


# predicted variances


@pytest.mark.parametrize("log_variance", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_predicted_variance_has_torchs_value(reduction: Any, log_variance: bool) -> None:
    m, v = PAIR
    y, criterion = normal(N, 2, seed=1), nn.GaussianNLLLoss(full=True, reduction=reduction)
    loss = GaussianNegativeLogLikelihood(reduction, log_variance=log_variance, full=True)
    expected = criterion(m, y, v) / (N if reduction == "sum" else 1)
    torch.testing.assert_close(loss.mean((m, v.log() if log_variance else v), y), expected)


def test_a_variance_that_cannot_be_one_is_refused_in_words() -> None:
    loss, (m, v) = GaussianNegativeLogLikelihood(), PAIR
    with pytest.raises(ConfigError, match="GaussianNLLLoss: a variance of -"):
        loss.require((m, -v), m)
    with pytest.raises(ConfigError, match="takes a mean and a variance; the model's output is a tensor"):
        loss.require(m, m)
    with pytest.raises(ConfigError, match="PoissonNLLLoss: a count of -1"):
        PoissonNegativeLogLikelihood(log_input=False).second(v, -torch.ones_like(v))
