"""Weight sharing: expand is exact in its setting, reduce in its own, and ``auto`` knows which is which."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

import curvlab
from curvlab.protocols.evidence import LayerStats
from curvlab.protocols.needs import Labels, Needs
from curvlab.protocols.rows import rows_of
from curvlab.testing.asserts import assert_close, assert_mean
from curvlab.testing.problems import Problem, classifier, deep_linear, normal
from curvlab.testing.reference import block_of, ggn, reference_context
from plugins.kfac.tests.test_limits import mixed_net

Setting = Literal["expand", "reduce"]
OTHER: dict[Setting, Setting] = {"expand": "reduce", "reduce": "expand"}

settings = pytest.mark.parametrize("setting", ["expand", "reduce"])
reductions = pytest.mark.parametrize("reduction", ["mean", "sum"])


def distances(kfac: Any, problem: Problem, sharing: str) -> list[float]:
    found, model, blocks = kfac(problem, labels=Labels.EXACT, sharing=sharing)
    whole = ggn(model, problem.criterion, problem.inputs, problem.targets, blocks)
    truth = {name: block_of(whole, blocks.layout, name) for name in blocks.layout.names}
    return [float((found[name] - block).norm() / block.norm()) for name, block in truth.items()]


@settings
@reductions
@pytest.mark.parametrize("examples", [1, 4])
@pytest.mark.parametrize("positions", [2, 5])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_each_approximation_is_exact_on_deep_linear_nets_in_its_setting(
    kfac: Any, setting: Setting, examples: int, positions: int, bias: bool, reduction: str
) -> None:
    problem = deep_linear(examples, setting=setting, positions=positions, bias=bias, reduction=reduction)
    assert max(distances(kfac, problem, setting)) < 1e-13


@settings
def test_the_other_approximation_differs(kfac: Any, setting: Setting) -> None:
    problem = deep_linear(4, setting=setting, positions=5)
    assert min(distances(kfac, problem, OTHER[setting])) > 0.05


@settings
@reductions
def test_auto_is_the_one_that_is_exact(kfac: Any, setting: Setting, reduction: str) -> None:
    problem = deep_linear(4, setting=setting, positions=5, reduction=reduction)
    assert max(distances(kfac, problem, "auto")) < 1e-13


@pytest.mark.parametrize("criterion", ["cross-entropy", "squared-error", "binary-cross-entropy"])
def test_without_sharing_all_are_the_same(kfac: Any, criterion: str) -> None:
    problem = classifier(criterion, 5)
    expand, reduce, auto = (
        kfac(problem, labels=Labels.EXACT, sharing=s)[0] for s in ("expand", "reduce", "auto")
    )
    for name, block in expand.items():
        assert torch.equal(block, auto[name])
        assert_close(reduce[name], block)


def test_one_shared_position_is_no_sharing(kfac: Any) -> None:
    """The same numbers with an axis of one position: equal to the bit of a sum."""
    flat = deep_linear(4)
    shared = Problem(
        "one position", flat.build, flat.criterion, flat.inputs.unsqueeze(1), flat.targets.unsqueeze(1)
    )
    for sharing in ("expand", "reduce", "auto"):
        one, other = (kfac(p, labels=Labels.EXACT, sharing=sharing)[0] for p in (flat, shared))
        for name, block in one.items():
            assert_close(other[name], block)


def test_exact_labels_are_what_sampled_ones_converge_to_where_positions_see_each_other(kfac: Any) -> None:
    """The output side B of a layer before the mixing; false alarm 1e-6 per block."""
    problem = mixed_net()
    exact = kfac(problem, labels=Labels.EXACT)[0]
    runs = [kfac(problem, labels=Labels.MODEL, samples=50, seed=seed)[0] for seed in range(30)]
    for name, block in exact.items():
        assert_mean(torch.stack([run[name] for run in runs]), block, false_alarm=1e-6, what=name)


class _Seen:
    """As much of an ``Evaluation`` as rows are made of."""

    def __init__(self, examples: int, terms: int) -> None:
        self.examples, self.terms = examples, terms


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_rows_make_the_factors_that_loops_over_examples_and_positions_make(sharing: Any) -> None:
    """The slow twin: every sum of the definition written out."""
    v, n, s, i, o = 2, 3, 4, 5, 6
    a, g = normal(n, s, i, seed=0), normal(v, n, s, o, seed=1)
    A, B = torch.zeros(i, i).double(), torch.zeros(o, o).double()
    for k in range(n):
        if sharing == "expand":
            for t in range(s):
                A += torch.outer(a[k, t], a[k, t]) / (n * s)
                for c in range(v):
                    B += torch.outer(g[c, k, t], g[c, k, t]) / n
        else:
            mean: Tensor = sum(a[k]) / s  # type: ignore[arg-type, assignment]
            A += torch.outer(mean, mean) / n
            for c in range(v):
                total: Tensor = sum(g[c, k])  # type: ignore[arg-type, assignment]
                B += torch.outer(total, total) / n
    rows = rows_of("test", "fc", (LayerStats(a, g),), _Seen(n, 1), sharing, torch.float64)  # type: ignore[arg-type]
    assert rows.g is not None
    assert_close(rows.a.mT @ rows.a * rows.a_weight, A, dimension=n * s)
    assert_close(rows.g.mT @ rows.g * rows.g_weight, B, dimension=v * n * s)


@pytest.mark.parametrize(("terms", "s", "chosen"), [(1, 1, "expand"), (1, 4, "reduce"), (4, 4, "expand")])
def test_auto_goes_by_whether_the_loss_has_a_term_per_position(terms: int, s: int, chosen: Any) -> None:
    stats, seen = (LayerStats(normal(3, s, 2, seed=0), None),), _Seen(3, terms)
    auto = rows_of("test", "fc", stats, seen, "auto", torch.float64)  # type: ignore[arg-type]
    assert torch.equal(auto.a, rows_of("test", "fc", stats, seen, chosen, torch.float64).a)  # type: ignore[arg-type]


def test_the_bias_column_is_one_after_the_mean_over_positions() -> None:
    problem = deep_linear(4, setting="reduce", positions=5)
    (stats, *_) = _stats(problem)
    rows = rows_of("test", "fc", (stats,), _Seen(4, 1), "reduce", torch.float64)  # type: ignore[arg-type]
    assert torch.equal(rows.a[:, -1], torch.ones(4).double())


def _stats(problem: Problem) -> list[LayerStats]:
    model = problem.model()
    needs = Needs(layers=frozenset({Labels.DATA}))
    seen = problem.objective(model).evaluate(needs, problem.blocks(model), reference_context())
    return [terms[0] for terms in seen.layers[Labels.DATA].values()]


class Flattening(nn.Module):
    """One layer on ``[n, s, i]`` whose outputs reach the loss as ``[n·s, o]`` or as ``[n, o, s]``."""

    def __init__(self, flatten: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.flatten = nn.Linear(3, 4).double(), flatten

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        return y.flatten(0, 1) if self.flatten else y.movedim(-1, 1)


@pytest.mark.parametrize("labels", ["exact", "data"])
def test_positions_flattened_before_the_loss_are_positions_all_the_same(labels: str) -> None:
    x, y = normal(5, 6, 3, seed=0), torch.arange(30).remainder(4).view(5, 6)
    states = []
    for flatten in (True, False):
        model = Flattening(flatten)
        optimizer = curvlab.optimizer("kfac", model, labels=labels, precision="float64")
        targets = y.flatten() if flatten else y
        optimizer.step(curvlab.objective(model, nn.CrossEntropyLoss(), x, targets))
        states.append(optimizer.snapshot()[0])
    for path, tensor in states[0].items():
        if "estimate" in path:
            assert_close(tensor, states[1][path], dimension=30)
