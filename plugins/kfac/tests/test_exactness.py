"""Where KFAC is exact, where it converges, and where it must differ."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curvlab.protocols.needs import Labels
from curvlab.structures.dense import Dense
from curvlab.testing.asserts import assert_close, assert_mean
from curvlab.testing.problems import Problem, bowl, classifier, deep_linear
from curvlab.testing.reference import block_of, empirical_fisher, ggn, reference_context
from curvlab_kfac.layer_covariance import LayerCovariance

CRITERIA = ["cross-entropy", "squared-error", "binary-cross-entropy"]


def ggn_blocks(problem: Problem, model: nn.Module) -> dict[str, Tensor]:
    blocks = problem.blocks(model)
    whole = ggn(model, problem.criterion, problem.inputs, problem.targets, blocks)
    return {name: block_of(whole, blocks.layout, name) for name in blocks.layout.names}


def fisher_blocks(problem: Problem, model: nn.Module) -> dict[str, Tensor]:
    blocks = problem.blocks(model)
    whole = empirical_fisher(model, problem.criterion, problem.inputs, problem.targets, blocks)
    return {name: block_of(whole, blocks.layout, name) for name in blocks.layout.names}


def assert_blocks(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, block in expected.items():
        assert_close(actual[name], block, what=name)


def apart(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest relative distance of a block from its truth."""
    return max(float((actual[n] - t).norm() / t.norm()) for n, t in expected.items())


# equal


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("examples", [1, 2, 5, 9])
def test_exact_labels_give_the_ggns_blocks_on_deep_linear_nets(
    kfac: Any, examples: int, bias: bool, reduction: str
) -> None:
    problem = deep_linear(examples, bias=bias, reduction=reduction)
    found, model, _ = kfac(problem, labels=Labels.EXACT)
    assert_blocks(found, ggn_blocks(problem, model))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_exact_labels_give_the_ggns_blocks_of_one_example_for_any_net(
    kfac: Any, criterion: str, reduction: str
) -> None:
    problem = classifier(criterion, 1, reduction=reduction)
    found, model, _ = kfac(problem, labels=Labels.EXACT)
    assert_blocks(found, ggn_blocks(problem, model))


@pytest.mark.parametrize("criterion", CRITERIA)
def test_the_datas_labels_give_the_empirical_fishers_blocks_of_one_example(kfac: Any, criterion: str) -> None:
    problem = classifier(criterion, 1)
    found, model, _ = kfac(problem, labels=Labels.DATA)
    assert_blocks(found, fisher_blocks(problem, model))


def test_forward_only_gives_the_ggns_blocks_where_the_output_curvature_is_the_identity(kfac: Any) -> None:
    """One layer under squared error of two outputs: 2κ = 1, so that B = I is the truth."""
    problem = bowl()
    found, model, _ = kfac(problem, labels=Labels.NONE)
    assert_blocks(found, ggn_blocks(problem, model))


# in the limit


@pytest.mark.parametrize("criterion", CRITERIA)
def test_sampled_labels_converge_to_the_exact_ones(kfac: Any, criterion: str) -> None:
    """Mean over 40 seeds of 50 samples each; false alarm 1e-6 per criterion and block."""
    problem = classifier(criterion, 3)
    exact, _, _ = kfac(problem, labels=Labels.EXACT)
    runs = [kfac(problem, labels=Labels.MODEL, samples=50, seed=seed)[0] for seed in range(40)]
    for name, block in exact.items():
        samples = torch.stack([run[name] for run in runs])
        assert_mean(samples, block, false_alarm=1e-6, what=name)
        assert float((samples.mean(0) - block).norm() / block.norm()) < 0.1


def test_sampled_labels_of_one_example_converge_to_the_ggn(kfac: Any) -> None:
    """False alarm 1e-6 per block."""
    problem = deep_linear(1)
    runs = [kfac(problem, labels=Labels.MODEL, samples=50, seed=seed) for seed in range(40)]
    for name, block in ggn_blocks(problem, runs[0][1]).items():
        assert_mean(torch.stack([run[0][name] for run in runs]), block, false_alarm=1e-6, what=name)


def test_more_samples_vary_less(kfac: Any) -> None:
    """The variance falls as 1/samples: to a hundredth, give or take a factor of two (20 seeds each)."""
    problem = classifier("cross-entropy", 4)
    spread = []
    for samples in (1, 100):
        runs = [kfac(problem, labels=Labels.MODEL, samples=samples, seed=s)[0] for s in range(20)]
        spread.append(sum(float(torch.stack([r[n] for r in runs]).var(0).sum()) for n in runs[0]))
    assert 50 < spread[0] / spread[1] < 200


# different


@pytest.mark.parametrize("examples", [2, 5])
def test_the_datas_labels_are_not_the_ggn_even_where_exact_ones_are(kfac: Any, examples: int) -> None:
    problem = deep_linear(examples)
    found, model, _ = kfac(problem, labels=Labels.DATA)
    assert apart(found, ggn_blocks(problem, model)) > 0.1
    assert apart(found, fisher_blocks(problem, model)) > 0.1


@pytest.mark.parametrize("criterion", CRITERIA)
def test_several_examples_of_a_nonlinear_net_are_approximated_only(kfac: Any, criterion: str) -> None:
    problem = classifier(criterion, 6)
    found, model, _ = kfac(problem, labels=Labels.EXACT)
    assert 1e-3 < apart(found, ggn_blocks(problem, model)) < 1.0


def test_weight_and_bias_in_one_block_differ_from_two_by_the_cross_term(kfac: Any) -> None:
    """B ⊗ E[a] between them: two blocks would lose it, the joint one has it right."""
    problem = deep_linear(5)
    found, model, blocks = kfac(problem, labels=Labels.EXACT)
    truth = ggn_blocks(problem, model)
    for name in blocks.layout.names:
        o, i = blocks.layout.shapes[name]
        joint = found[name].view(o, i, o, i)
        apart_ = joint.clone()
        apart_[:, :-1, :, -1] = apart_[:, -1, :, :-1] = 0.0
        cross = joint[:, :-1, :, -1]
        assert_close(cross, truth[name].view(o, i, o, i)[:, :-1, :, -1], scale=float(truth[name].abs().max()))
        assert float(cross.norm() / joint.norm()) > 0.05
        assert float((apart_ - truth[name].view(o, i, o, i)).norm() / joint.norm()) > 0.05


# over time


def test_the_first_observation_counts_in_full_and_later_ones_as_they_should() -> None:
    """``decay`` weights the past, normalized by the sum of weights: after two looks, (0.5, 1)/1.5 at 0.5."""
    problems = [deep_linear(3), deep_linear(5)]
    estimator = LayerCovariance(Dense(), Dense(), labels=Labels.EXACT, decay=0.5)
    model, ctx = problems[0].model(), reference_context()
    blocks = problems[0].blocks(model)
    state = estimator.init(blocks.layout.zeros(like=blocks.like.detach()), ctx)
    factors: list[dict[str, Tensor]] = []
    for problem in problems:
        estimator.observe(state, problem.objective(model).evaluate(estimator.needs(), blocks, ctx), ctx)
        alone = estimator.init(blocks.layout.zeros(like=blocks.like.detach()), ctx)
        estimator.observe(alone, problem.objective(model).evaluate(estimator.needs(), blocks, ctx), ctx)
        factors.append({name: A.dense().clone() for name, A in alone.A.items()})
    for name in blocks.layout.names:
        expected = (0.5 * factors[0][name] + 1.0 * factors[1][name]) / 1.5
        assert_close(state.A[name].dense(), expected)
