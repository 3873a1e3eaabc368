"""GGN products are products with ``Jᵀ ∇²L J``, for every loss and however the batch is cut."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from curvlab.linalg.compose import Restricted
from curvlab.linalg.vectors import BlockVector
from curvlab.model.partition import partition
from curvlab.objectives.losses import CriterionLoss
from curvlab.objectives.supervised import objective
from curvlab.protocols.blocks import Blocks
from curvlab.protocols.evidence import Evaluation
from curvlab.protocols.needs import Needs
from curvlab.testing.asserts import assert_close, assert_same, assert_self_adjoint
from curvlab.testing.problems import DTYPE, Problem, classifier, normal, supervised_losses
from curvlab.testing.reference import block_of, ggn, gradient, mean_loss, reference_context

#: torch compiles some of its own derivatives when forward mode is first used, and deprecates how it does
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")

LOSSES = supervised_losses()
every_loss = pytest.mark.parametrize("problem", LOSSES, ids=str)


def evaluated(
    problem: Problem, model: nn.Module, blocks: Blocks, micro_batch: int | None = None
) -> Evaluation:
    return problem.objective(model, micro_batch=micro_batch).evaluate(
        Needs(products=1), blocks, reference_context()
    )


def random_vectors(blocks: Blocks, count: int = 2) -> list[BlockVector]:
    return [BlockVector(blocks.layout, normal(blocks.layout.size, seed=k)) for k in range(count)]


def product(seen: Evaluation, v: BlockVector) -> Tensor:
    assert seen.ggn is not None
    return (seen.ggn @ v).flat


@every_loss
@pytest.mark.parametrize("micro_batch", [None, 4], ids=["whole", "4 and 2"])
def test_products_are_those_of_the_dense_matrix(problem: Problem, micro_batch: int | None) -> None:
    model = problem.model()
    blocks = problem.blocks(model)
    truth = ggn(model, problem.criterion, problem.inputs, problem.targets, blocks)
    seen = evaluated(problem, model, blocks, micro_batch)
    for v in random_vectors(blocks):
        assert_close(product(seen, v), truth @ v.flat)


@every_loss
@pytest.mark.parametrize("micro_batch", [None, 4], ids=["whole", "4 and 2"])
def test_the_loss_is_torchs_and_the_gradient_autograds(problem: Problem, micro_batch: int | None) -> None:
    model = problem.model()
    blocks = problem.blocks(model)
    value = mean_loss(problem.criterion, model(problem.inputs), problem.targets)
    seen = evaluated(problem, model, blocks, micro_batch)
    assert_close(seen.loss, value.detach(), dimension=problem.examples)
    assert_close(seen.gradient.flat, gradient(value, blocks))
    ours = problem.objective(model, micro_batch=micro_batch)
    assert_close(ours.loss(), value.detach(), dimension=problem.examples)
    assert_close(ours(), value.detach(), dimension=problem.examples)  # as a closure, which leaves gradients
    grads = {n: p.grad for n, p in blocks.parameters.items()}
    assert_same(blocks.pack(grads), seen.gradient)


@every_loss
def test_the_gauss_newton_matrix_is_self_adjoint_and_positive(problem: Problem) -> None:
    model = problem.model()
    blocks = problem.blocks(model)
    seen = evaluated(problem, model, blocks)
    assert seen.ggn is not None
    assert_self_adjoint(seen.ggn, blocks.layout.zeros(like=blocks.like.detach()), psd=True)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("criterion", ["cross-entropy", "squared-error", "binary-cross-entropy"])
def test_a_criterion_that_is_not_known_gives_the_same_products(criterion: str, reduction: str) -> None:
    functions: dict[str, Callable[..., Tensor]] = {
        "cross-entropy": F.cross_entropy,
        "squared-error": F.mse_loss,
        "binary-cross-entropy": F.binary_cross_entropy_with_logits,
    }
    problem, model = classifier(criterion, 6, reduction=reduction), classifier(criterion, 6).model()
    blocks = problem.blocks(model)

    def unknown(outputs: Tensor, targets: Tensor) -> Tensor:
        return functions[criterion](outputs, targets, reduction=reduction)

    by_value = objective(model, unknown, problem.inputs, problem.targets, reduction=reduction)
    assert isinstance(by_value.loss_rule, CriterionLoss)
    known, other = (
        evaluated(problem, model, blocks),
        by_value.evaluate(Needs(products=1), blocks, reference_context()),
    )
    assert_close(other.loss, known.loss, dimension=6)
    assert_same(other.gradient, known.gradient)
    for v in random_vectors(blocks):
        assert_close(product(other, v), product(known, v))


def test_products_are_with_the_curvature_sample() -> None:
    whole, part = classifier("cross-entropy", 6), classifier("cross-entropy", 3)
    model = whole.model()
    blocks = whole.blocks(model)
    ours = whole.objective(model)
    ours.curvature_sample = (part.inputs, part.targets)
    seen = ours.evaluate(Needs(products=1), blocks, reference_context())
    assert (seen.examples, seen.curvature_examples) == (6, 3)
    truth = ggn(model, part.criterion, part.inputs, part.targets, blocks)
    (v,) = random_vectors(blocks, 1)
    assert_close(product(seen, v), truth @ v.flat)


def test_a_restriction_to_some_blocks_is_the_principal_submatrix() -> None:
    problem = classifier("cross-entropy", 6)
    model = problem.model()
    blocks = problem.blocks(model)
    truth = ggn(model, problem.criterion, problem.inputs, problem.targets, blocks)
    seen = evaluated(problem, model, blocks)
    name = blocks.layout.names[1]
    part = blocks.layout.restrict((name,))
    v = BlockVector(part, normal(part.size, seed=0))
    assert seen.ggn is not None
    assert_close(
        (Restricted(seen.ggn, blocks.layout, part) @ v).flat, block_of(truth, blocks.layout, name) @ v.flat
    )


def test_a_partition_by_parameter_gives_the_same_matrix_in_another_order() -> None:
    problem = classifier("cross-entropy", 6)
    model = problem.model()
    joined, apart = problem.blocks(model), partition(model, lambda layer: False)
    (v,) = random_vectors(joined, 1)
    w = apart.pack({name: slot.clone() for name, slot in joined.slots(v).items()})
    left, right = evaluated(problem, model, joined), evaluated(problem, model, apart)
    assert left.ggn is not None
    assert right.ggn is not None
    moved = apart.pack({name: slot.clone() for name, slot in joined.slots(left.ggn @ v).items()})
    assert_same(right.ggn @ w, moved)


def test_products_leave_parameters_gradients_and_buffers_alone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 3)).to(DTYPE)
    problem = classifier("cross-entropy", 6)
    blocks = problem.blocks(model)
    seen = evaluated(problem, model, blocks)
    before = {k: t.clone() for k, t in model.state_dict().items()}
    (v,) = random_vectors(blocks, 1)
    first = product(seen, v).clone()
    assert torch.equal(product(seen, v), first), "dropout draws other numbers in the second product"
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(p.grad is None for p in model.parameters())


def test_the_number_of_products_is_counted() -> None:
    problem = classifier("squared-error", 6)
    model = problem.model()
    blocks = problem.blocks(model)
    seen = evaluated(problem, model, blocks, micro_batch=2)
    assert getattr(seen.ggn, "count", None) == 0
    for v in random_vectors(blocks, 3):
        product(seen, v)
    assert getattr(seen.ggn, "count", None) == 3
