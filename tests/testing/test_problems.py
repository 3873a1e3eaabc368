"""The exact cases are what they say they are."""

from __future__ import annotations

import pytest
import torch

from curvlab.testing.asserts import assert_close
from curvlab.testing.problems import bowl, classifier, deep_linear, supervised_losses
from curvlab.testing.reference import gradient, jacobian, mean_loss, output_hessian


def test_a_problem_builds_the_same_model_each_time_and_leaves_torchs_generator_alone() -> None:
    problem = classifier("cross-entropy", 3)
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    first, second = problem.model(), problem.model()
    assert torch.equal(torch.rand(2), expected)
    for p, q in zip(first.parameters(), second.parameters(), strict=True):
        assert p is not q
        assert torch.equal(p, q)
        assert p.dtype == torch.float64


def test_every_loss_has_a_name_of_its_own_and_a_finite_value() -> None:
    problems = supervised_losses()
    assert len({p.name for p in problems}) == len(problems)
    for problem in problems:
        value = mean_loss(problem.criterion, problem.model()(problem.inputs), problem.targets)
        assert bool(torch.isfinite(value)), problem.name


def test_a_deep_linear_net_propagates_the_same_vectors_for_every_example() -> None:
    """Which is what makes a Kronecker product of two averages exact."""
    problem = deep_linear(5, bias=False)
    model = problem.model()
    outputs = model(problem.inputs)
    hidden = model[0](problem.inputs).detach().requires_grad_()
    (g,) = torch.autograd.grad(model[2](model[1](hidden)).sum(), hidden)
    assert_close(g, g[:1].expand_as(g))
    assert_close(output_hessian(problem.criterion, outputs, problem.targets), torch.eye(10).double() / 5)


@pytest.mark.parametrize(("setting", "shape"), [("expand", (3, 4, 2)), ("reduce", (3, 2))])
def test_a_setting_says_how_many_loss_terms_an_example_has(setting: str, shape: tuple[int, ...]) -> None:
    problem = deep_linear(3, setting=setting, positions=4)  # type: ignore[arg-type]
    assert problem.model()(problem.inputs).shape == shape == problem.targets.shape


def test_positions_without_a_setting_are_refused() -> None:
    with pytest.raises(ValueError, match="4 positions in the setting 'none'"):
        deep_linear(3, positions=4)


def test_the_solution_of_a_bowl_is_its_minimum() -> None:
    problem = bowl()
    model = problem.model()
    blocks = problem.blocks(model)
    theta = blocks.read()
    theta["model"].copy_(problem.solution)
    blocks.assign_(theta)
    g = gradient(mean_loss(problem.criterion, model(problem.inputs), problem.targets), blocks)
    assert_close(g, torch.zeros_like(g), scale=1.0)
    assert torch.linalg.matrix_rank(jacobian(model, problem.inputs, blocks)) == blocks.layout.size
