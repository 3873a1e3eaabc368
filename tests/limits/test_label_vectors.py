"""Vectors that are back-propagated from the outputs: their second moment is the loss's Hessian there.

Seen at the last layer, whose output gradients are the vectors themselves.
"""

from __future__ import annotations

import pytest
import torch
from jaxtyping import Float
from torch import Tensor, nn

from curvlab.protocols.needs import Labels, Needs
from curvlab.testing.asserts import assert_close, assert_mean
from curvlab.testing.problems import Problem, classifier, supervised_losses
from curvlab.testing.reference import output_hessian, per_example_gradients, reference_context

#: of the statistical claims of this file, each; with fixed seeds they hold or they do not
FALSE_ALARM = 1e-6
SAMPLES = 1_000

LOSSES = supervised_losses(4)
#: targets do not matter where all examples weigh the same: one case of each loss, and those with weights
SAMPLED = [
    p for p in LOSSES if "mean" in p.name and "smoothed" not in p.name and "probabilities" not in p.name
]


def vectors(problem: Problem, kind: Labels, samples: int = 0, seed: int = 0) -> Float[Tensor, "v n s c"]:
    """The vectors at the outputs, as the last layer's statistics hold them."""
    model = problem.model()
    blocks = problem.blocks(model)
    needs = Needs(layers=frozenset({kind}), samples=samples)
    seen = problem.objective(model).evaluate(needs, blocks, reference_context(seed=seed))
    (stats,) = seen.layers[kind][blocks.layout.names[-1]]
    assert stats.grads is not None
    return stats.grads


def hessians(problem: Problem) -> Float[Tensor, "n s c s c"]:
    """∇²ℓ_n of each example, all its positions together: blocks of the dense Hessian."""
    outputs = problem.model()(problem.inputs).detach()
    n = problem.examples
    H = output_hessian(problem.criterion, outputs, problem.targets) * n
    classes_second = outputs.dim() == 3 and isinstance(problem.criterion, nn.CrossEntropyLoss)
    index = torch.arange(outputs.numel()).view(outputs.shape)
    index = index.movedim(1, -1) if classes_second else index
    s, c = (1, outputs.shape[1]) if outputs.dim() == 2 else index.shape[1:]
    return torch.stack([H[k][:, k].view(s, c, s, c) for k in index.reshape(n, s * c)])


@pytest.mark.parametrize("problem", LOSSES, ids=str)
def test_exact_vectors_are_a_root_of_the_hessian(problem: Problem) -> None:
    """Of a whole example's: between positions, each with a loss term of its own, there is nothing."""
    v = vectors(problem, Labels.EXACT)
    assert_close(torch.einsum("vnsc,vntd->nsctd", v, v), hessians(problem))


@pytest.mark.parametrize("problem", SAMPLED, ids=str)
def test_sampled_vectors_have_mean_zero_and_the_hessian_as_covariance(problem: Problem) -> None:
    """A thousand samples an example; false alarm 1e-6 for each claim and loss.

    Labels at different positions are independent: the covariance between them is zero, as the Hessian is.
    """
    v = vectors(problem, Labels.MODEL, SAMPLES) * SAMPLES**0.5  # they carry 1/√samples
    assert_mean(v, torch.zeros_like(v[0]), false_alarm=FALSE_ALARM, what="sampled vectors")
    covariance = torch.einsum("vnsc,vntd->vnsctd", v, v)
    assert_mean(covariance, hessians(problem), false_alarm=FALSE_ALARM, what="their covariance")


def test_several_samples_share_the_weight_of_one() -> None:
    problem = classifier("squared-error", 3)
    one, many = vectors(problem, Labels.MODEL, 1), vectors(problem, Labels.MODEL, 500)
    assert one.shape[0] == 1
    assert many.shape[0] == 500
    # squared error: 2κ per coordinate, whatever the outputs; 500 samples of 9 numbers are within a third
    assert 2 / 3 < float(many.square().sum() / (9 * 2 / 3)) < 4 / 3


def test_labels_are_drawn_from_the_contexts_generator_alone() -> None:
    problem = classifier("cross-entropy", 4)
    torch.manual_seed(1)
    first = vectors(problem, Labels.MODEL, 3, seed=5)
    torch.manual_seed(2)
    assert torch.equal(vectors(problem, Labels.MODEL, 3, seed=5), first)
    assert not torch.equal(vectors(problem, Labels.MODEL, 3, seed=6), first)


@pytest.mark.parametrize("criterion", ["cross-entropy", "squared-error", "binary-cross-entropy"])
def test_data_vectors_are_the_gradients_of_each_examples_loss(criterion: str) -> None:
    problem = classifier(criterion, 4)
    v, model = vectors(problem, Labels.DATA), problem.model()
    blocks = problem.blocks(model)
    each = per_example_gradients(model, problem.criterion, problem.inputs, problem.targets, blocks)
    start, stop = blocks.layout.offsets[blocks.layout.names[-1]]
    bias = each[:, start:stop].view(4, 3, -1)[:, :, -1]  # the gradient of a bias is that of its output
    assert_close(v[0, :, 0], bias)


def test_inputs_alone_come_with_no_vectors() -> None:
    problem = classifier("cross-entropy", 4)
    model = problem.model()
    blocks = problem.blocks(model)
    needs = Needs(layers=frozenset({Labels.NONE}))
    seen = problem.objective(model).evaluate(needs, blocks, reference_context())
    (first, second) = (seen.layers[Labels.NONE][name][0] for name in blocks.layout.names)
    assert first.grads is None
    assert second.grads is None
    ones = torch.ones(4, 1).double()
    assert torch.equal(first.inputs[:, 0], torch.cat([problem.inputs, ones], dim=1))
