"""KFAC on convolutions: where it is the linear layer it looks like, where it is exact, and that it trains."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import curvlab
from curvlab.model.readers.conv import ConvReader
from curvlab.parts.eigenbasis import Eigenbasis
from curvlab.protocols.needs import Labels
from curvlab.structures.dense import Dense
from curvlab.testing.asserts import assert_close
from curvlab.testing.problems import Problem, labels, normal
from curvlab.testing.reference import block_of, ggn, per_example_gradients, reference_context
from curvlab_kfac.layer_covariance import LayerCovariance
from plugins.kfac.tests.conftest import observed

SHARINGS = ("expand", "reduce", "auto")


class MeanOverSpace(nn.Module):
    """``[n, c, *space]`` → ``[n, c]``."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).mean(2)


class PositionsLast(nn.Module):
    """``[n, s, c]`` → ``[n, c, s]``, and back."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


def problem(build: Any, criterion: nn.Module, x: Tensor, classes: int = 3) -> Problem:
    """The network's outputs are answered by numbers or, under cross-entropy, by classes."""
    probe = Problem("probe", build, criterion, x, x)
    with torch.no_grad():
        shape = probe.model()(x).shape
    is_classes = isinstance(criterion, nn.CrossEntropyLoss)
    y = labels(shape[0], *shape[2:], classes=shape[1], seed=2) if is_classes else normal(*shape, seed=2)
    return Problem("convolutions", build, criterion, x, y)


def distances(kfac: Any, of: Problem, **settings: Any) -> dict[str, float]:
    """By block: the relative distance of KFAC's from the GGN's."""
    found, model, blocks = kfac(of, labels=Labels.EXACT, **settings)
    whole = ggn(model, of.criterion, of.inputs, of.targets, blocks)
    truth = {name: block_of(whole, blocks.layout, name) for name in blocks.layout.names}
    return {name: float((found[name] - block).norm() / block.norm()) for name, block in truth.items()}


# the linear layer that it is


def whole_kernel() -> tuple[Problem, Problem]:
    """A convolution that sees its input at once, and the linear layer that does."""
    x = normal(6, 2, 3, 4, seed=1)

    def convolution() -> nn.Module:
        return nn.Sequential(nn.Conv2d(2, 5, (3, 4)), nn.Flatten(), nn.Tanh(), nn.Linear(5, 3))

    def linear() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(24, 5), nn.Tanh(), nn.Linear(5, 3))

    return problem(convolution, nn.CrossEntropyLoss(), x), problem(linear, nn.CrossEntropyLoss(), x)


def convolutions() -> tuple[nn.Module, ...]:
    return nn.Conv1d(4, 5, 1), nn.Tanh(), nn.Conv1d(5, 3, 1)


def pointwise() -> tuple[Problem, Problem]:
    """Convolutions of kernel 1, and linear layers on positions; a loss term for each example."""
    x = normal(6, 7, 4, seed=1)  # [n, s, c]

    def convolution() -> nn.Module:
        return nn.Sequential(PositionsLast(), *convolutions(), MeanOverSpace())

    def linear() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3), PositionsLast(), MeanOverSpace())

    return problem(convolution, nn.CrossEntropyLoss(), x), problem(linear, nn.CrossEntropyLoss(), x)


def pointwise_dense() -> tuple[Problem, Problem]:
    """The same with a loss term at each position."""
    x = normal(6, 7, 4, seed=1)

    def convolution() -> nn.Module:
        return nn.Sequential(PositionsLast(), *convolutions())

    def linear() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3), PositionsLast())

    return problem(convolution, nn.CrossEntropyLoss(), x), problem(linear, nn.CrossEntropyLoss(), x)


twins = pytest.mark.parametrize("pair", [whole_kernel, pointwise, pointwise_dense])


@twins
@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize("kind", [Labels.DATA, Labels.MODEL, Labels.EXACT])
def test_a_convolution_that_is_a_linear_layer_has_its_factors(pair: Any, sharing: Any, kind: Labels) -> None:
    estimator = LayerCovariance(Dense(), Dense(), labels=kind, sharing=sharing)
    states = [observed(estimator, each)[0] for each in pair()]
    for factors in ("A", "B"):
        mine, theirs = (list(getattr(state, factors).values()) for state in states)
        assert len(mine) == len(theirs) == 2
        for A, B in zip(mine, theirs, strict=True):
            assert_close(A.dense(), B.dense(), dimension=42)


@twins
@pytest.mark.parametrize("method", ["kfac", "ekfac", "foof", "cg-fac"])
def test_a_convolution_that_is_a_linear_layer_takes_its_steps(pair: Any, method: str) -> None:
    thetas = []
    for each in pair():
        model = each.model()
        optimizer = curvlab.optimizer(method, model, precision="float64", seed=0)
        for _ in range(3):
            optimizer.step(each.objective(model))
        thetas.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    start = torch.cat([p.detach().flatten() for p in pair()[0].model().parameters()])
    assert float((thetas[0] - start).norm()) > 1e-3
    assert_close(thetas[0], thetas[1], dimension=1000, condition=1e3)


# exact


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_reduce_is_exact_on_linear_nets_of_circular_convolutions_and_a_mean(
    kfac: Any, axes: int, bias: bool
) -> None:
    """Every position then has the same part in the loss."""
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
    options = {"padding": "same", "padding_mode": "circular", "bias": bias}

    def build() -> nn.Module:
        return nn.Sequential(conv(2, 3, 3, **options), conv(3, 2, 3, dilation=1, **options), MeanOverSpace())

    for examples in (1, 4):
        of = problem(build, nn.MSELoss(), normal(examples, 2, *(4, 3, 3)[:axes], seed=1))
        for sharing in ("reduce", "auto"):
            assert max(distances(kfac, of, sharing=sharing).values()) < 1e-12
        assert min(distances(kfac, of, sharing="expand").values()) > 0.05


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize(
    "options", [{}, {"padding": 1}, {"stride": 2}, {"dilation": 2, "padding": 1}], ids=str
)
def test_expand_is_exact_on_one_convolution_under_squared_error_at_every_position(
    kfac: Any, options: dict[str, Any], bias: bool
) -> None:
    x = normal(2, 2, 5, 4, seed=1)
    of = problem(lambda: nn.Conv2d(2, 2, (3, 2), bias=bias, **options), nn.MSELoss(), x)
    for sharing in ("expand", "auto"):
        assert max(distances(kfac, of, sharing=sharing).values()) < 1e-12
    assert min(distances(kfac, of, sharing="reduce").values()) > 0.05


@pytest.mark.parametrize("examples", [1, 4])
def test_expand_is_exact_on_linear_nets_of_pointwise_convolutions(kfac: Any, examples: int) -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Conv2d(2, 4, 1), nn.Conv2d(4, 3, 1), nn.Conv2d(3, 2, 1))

    of = problem(build, nn.MSELoss(), normal(examples, 2, 3, 2, seed=1))
    assert max(distances(kfac, of, sharing="auto").values()) < 1e-12


@pytest.mark.parametrize("criterion", [nn.CrossEntropyLoss, nn.MSELoss])
def test_one_example_and_one_position_are_exact_in_any_net(kfac: Any, criterion: Any) -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Conv2d(2, 4, (3, 4)), nn.Tanh(), nn.Conv2d(4, 3, 1), nn.Flatten())

    of = problem(build, criterion(), normal(1, 2, 3, 4, seed=1))
    for sharing in SHARINGS:
        assert max(distances(kfac, of, sharing=sharing).values()) < 1e-12


@pytest.mark.parametrize("groups", [2, 4])
def test_groups_are_exact_where_all_of_them_read_the_same(kfac: Any, groups: int) -> None:
    """One A for several inputs is then no approximation; correlations between groups are in B."""

    def build() -> nn.Module:
        return nn.Sequential(nn.Conv1d(2 * groups, 4, 3, groups=groups), nn.Flatten())

    same = problem(build, nn.CrossEntropyLoss(), normal(1, 2, 3, seed=1).repeat(1, groups, 1))
    other = problem(build, nn.CrossEntropyLoss(), normal(1, 2 * groups, 3, seed=1))
    for sharing in ("expand", "reduce"):
        assert max(distances(kfac, same, sharing=sharing).values()) < 1e-12
        assert min(distances(kfac, other, sharing=sharing).values()) > 0.05


# groups, by the definition


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_groups_average_in_a_and_keep_their_correlations_in_b(sharing: Any) -> None:
    """The slow twin: sums over examples, positions and groups written out."""
    n, k, s = 3, 2, 5
    of = problem(
        lambda: nn.Sequential(nn.Conv1d(4, 6, 3, groups=k), nn.Tanh(), MeanOverSpace()),
        nn.MSELoss(reduction="sum"),
        normal(n, 4, 7, seed=1),
    )
    estimator = LayerCovariance(Dense(), Dense(), labels=Labels.DATA, sharing=sharing)
    state, _, _, model = observed(estimator, of)
    outputs = model[0](of.inputs)
    loss = of.criterion(model[2](model[1](outputs)), of.targets)
    (g,) = torch.autograd.grad(loss, outputs)  # [n, o, s], of ℓ_n
    A, B = torch.zeros(7, 7).double(), torch.zeros(6, 6).double()
    for e in range(n):
        patches = [
            torch.cat([of.inputs[e, 2 * j : 2 * j + 2, t : t + 3].flatten(), torch.ones(1).double()])
            for t in range(s)
            for j in range(k)
        ]
        if sharing == "expand":
            for a in patches:
                A += torch.outer(a, a) / (n * s * k)
            for t in range(s):
                B += torch.outer(g[e, :, t], g[e, :, t]) / n
        else:
            mean = torch.stack(patches).mean(0)
            A += torch.outer(mean, mean) / n
            B += torch.outer(g[e].sum(1), g[e].sum(1)) / n
    assert_close(state.A["0"].dense(), A, dimension=n * s * k)
    assert_close(state.B["0"].dense(), B, dimension=n * s)


@pytest.mark.parametrize("space", [3, 5, 16], ids=lambda s: f"space {s}")
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_ekfacs_moments_are_of_single_examples_gradients(groups: int, space: int) -> None:
    """For few positions and for many."""
    of = problem(
        lambda: nn.Sequential(nn.Conv1d(4, 4, 3, groups=groups), nn.Tanh(), MeanOverSpace()),
        nn.MSELoss(reduction="sum"),
        normal(5, 4, space, seed=1),
    )
    model, ctx = of.model(), reference_context()
    blocks = of.blocks(model)
    part = Eigenbasis(LayerCovariance(Dense(), Dense(), labels=Labels.DATA))
    state = part.init(blocks.layout.zeros(like=blocks.like.detach()), ctx)
    part.observe(state, of.objective(model).evaluate(part.needs(0), blocks, ctx), ctx)
    G = per_example_gradients(model, of.criterion, of.inputs, of.targets, blocks).view(5, *blocks["0"].shape)
    basis = state.basis["0"]
    assert basis.Q_A is not None
    assert basis.Q_B is not None
    expected = (basis.Q_B.mT @ G @ basis.Q_A).square().mean(0)
    assert_close(state.moments["0"], expected, dimension=100)


# it trains


def convnet() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, groups=4, padding="same", padding_mode="replicate"),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 12, 1, stride=2, bias=False),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(48, 4),
    )


def stripes(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Noisy stripes in four directions."""
    y = labels(64, classes=4, seed=0)
    down, right = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    waves = torch.stack([torch.sin(1.5 * t) for t in (down, right, down + right, down - right)])
    return (waves[y].double() + 0.5 * normal(64, 8, 8, seed=1)).unsqueeze(1).to(dtype), y


@pytest.mark.parametrize("method", ["kfac", "ekfac", "foof", "cg-fac"])
def test_a_convnet_learns_with_an_objective(method: str) -> None:
    x, y = stripes(torch.float32)
    model = convnet()
    optimizer = curvlab.optimizer(method, model, lr=3e-2, seed=0)  # 30 steps are few
    assert all(row.treatment == method for row in optimizer.coverage())
    start = F.cross_entropy(model(x), y).item()
    for _ in range(30):
        optimizer.step(curvlab.objective(model, nn.CrossEntropyLoss(), x, y))
    assert F.cross_entropy(model(x), y).item() < 0.5 * start


def test_a_convnet_learns_alike_in_a_plain_loop_and_with_an_objective() -> None:
    x, y = stripes(torch.float64)
    models, losses = [convnet().double() for _ in range(2)], []
    plain, asked = (
        curvlab.optimizer("kfac", m, lr=2e-2, labels="data", precision="float64", refresh=3, seed=0)
        for m in models
    )
    for _ in range(12):
        plain.zero_grad()
        loss = F.cross_entropy(models[0](x), y)
        loss.backward()
        plain.step()
        losses.append(loss.item())
        asked.step(curvlab.objective(models[1], nn.CrossEntropyLoss(), x, y))
    for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(p, q)
    assert losses[-1] < 0.8 * losses[0]


def test_between_observations_no_patch_is_formed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A convolution with more positions than its block has rows costs autograd's own gradient, no more."""
    formed: list[int] = []
    real = ConvReader.inputs

    def counted(self: ConvReader, module: nn.Module, x: Tensor) -> Tensor:
        formed.append(x.shape[0])
        return real(self, module, x)

    x, y = stripes(torch.float32)
    model = convnet()
    optimizer = curvlab.optimizer("kfac", model, refresh=4, seed=0)
    monkeypatch.setattr(ConvReader, "inputs", counted)
    counts = []
    for _ in range(9):
        formed.clear()
        optimizer.step(curvlab.objective(model, nn.CrossEntropyLoss(), x, y))
        counts.append(len(formed))
    assert counts == [6, 0, 0, 0, 3, 0, 0, 0, 3]  # on the first step once more, for the check of layers
