"""What every method owes, whatever it is: the result depends on the loss, not on how it is handed over.

Methods come from the registry, so that one registered tomorrow is tested tomorrow.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curvlab.engine.optimizer import CurvatureOptimizer
from curvlab.errors import Diverged, NeedsObjective
from curvlab.linalg.vectors import BlockLayout, BlockVector
from curvlab.objectives.supervised import objective
from curvlab.testing.asserts import assert_close
from curvlab.testing.problems import DTYPE, ClassesSecond, labels, normal
from curvlab.testing.unread import UnreadNorm
from tests.limits.registered import DAMPED, knobs_of, methods, optimizer

#: torch compiles some of its own derivatives when forward mode is first used, and deprecates how it does
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")

STEPS, BATCH = 5, 12

Batch = tuple[Tensor, Tensor]
Net = Callable[[], nn.Module]
Knobs = tuple[tuple[str, Any], ...]

#: curvature renewed every other step; and few iterations, because conjugate gradients that have lost their
#: orthogonality amplify rounding to its square root, whoever runs them
TAME = {"refresh": 2, "max_iterations": 5, "dimension": 3, "iterations": 2}


def images() -> nn.Module:
    """Linear layers, and a norm that is none."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), UnreadNorm(6), nn.Linear(6, 3)).to(DTYPE)


def tokens() -> nn.Module:
    """The same at each of two positions, classes second as torch's cross-entropy wants them."""
    return nn.Sequential(*images(), ClassesSecond())


def image_batches() -> list[Batch]:
    return [(normal(BATCH, 4, seed=k), labels(BATCH, classes=3, seed=k)) for k in range(STEPS)]


def token_batches() -> list[Batch]:
    return [(normal(BATCH, 2, 4, seed=k), labels(BATCH, 2, classes=3, seed=k)) for k in range(STEPS)]


def cases() -> list[Any]:
    """Every method with the labels that it comes with, then with each other kind."""
    found = []
    for name in methods():
        tame = {**TAME, **DAMPED.get(name, {})}
        knobs = tuple((k, v) for k, v in tame.items() if k in knobs_of(name))
        found.append(pytest.param(name, knobs, id=name))
        if "labels" in knobs_of(name):
            own = {str(kind) for kind in optimizer(name, images()).needs(0).layers}
            for kind in sorted({"data", "model", "exact"} - own):
                found.append(pytest.param(name, (*knobs, ("labels", kind)), id=f"{name}-{kind}"))
    return found


def plain_cases() -> list[Any]:
    """Every method that a plain ``loss.backward()`` loop can serve, with labels that it can see."""
    found = []
    for case in cases():
        name, knobs = case.values
        if not _asks(optimizer(name, images(), **dict(knobs))):
            found.append(case)
    return found


def needy_cases() -> list[Any]:
    """The others."""
    return [c for c in cases() if _asks(optimizer(c.values[0], images(), **dict(c.values[1])))]


def _asks(ours: CurvatureOptimizer) -> bool:
    return any(ours.needs(step).objective for step in range(STEPS))


@cache
def by_objective(
    name: str, knobs: Knobs, *, net: Net = images, reduction: str = "mean", micro: int | None = None
) -> Tensor:
    """θ after five steps on objectives."""
    model = net()
    ours, criterion = optimizer(name, model, **dict(knobs)), nn.CrossEntropyLoss(reduction=reduction)
    for x, y in image_batches() if net is images else token_batches():
        ours.step(objective(model, criterion, x, y, micro_batch=micro))
    return theta(model)


@cache
def by_backward(
    name: str, knobs: Knobs, *, net: Net = images, reduction: str = "mean", parts: tuple[int, ...] = (BATCH,)
) -> Tensor:
    """θ after five steps of a plain loop, each batch in ``parts`` that are accumulated."""
    model = net()
    ours = optimizer(name, model, reduction=reduction, **dict(knobs))
    criterion = nn.CrossEntropyLoss(reduction="sum" if reduction == "sum" else "mean")
    for x, y in image_batches() if net is images else token_batches():
        ours.zero_grad()
        for a, b in zip(x.split(parts), y.split(parts), strict=True):
            share = 1.0 if reduction == "sum" else len(a) / BATCH
            (criterion(model(a), b) * share).backward()
        ours.step()
    return theta(model)


def theta(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def assert_same_training(actual: Tensor, expected: Tensor) -> None:
    """Five steps apart by rounding alone: a relative 1e-10, far below any difference of method."""
    assert bool(torch.isfinite(expected).all())
    assert float((expected - theta(images())).abs().max()) > 1e-4, "nothing was trained"
    assert_close(actual, expected, dimension=1, condition=1e-10 / (16 * torch.finfo(DTYPE).eps))


@pytest.mark.parametrize(("name", "knobs"), cases())
@pytest.mark.parametrize("micro", [6, 3, 5], ids=["2 parts", "4 parts", "ragged"])
def test_micro_batches_are_one_batch(name: str, knobs: Knobs, micro: int) -> None:
    assert_same_training(by_objective(name, knobs, micro=micro), by_objective(name, knobs))


@pytest.mark.parametrize(("name", "knobs"), cases())
def test_micro_batches_of_tokens_are_one_batch(name: str, knobs: Knobs) -> None:
    assert_same_training(
        by_objective(name, knobs, net=tokens, micro=5), by_objective(name, knobs, net=tokens)
    )


@pytest.mark.parametrize(("name", "knobs"), cases())
def test_a_summed_loss_trains_as_its_mean(name: str, knobs: Knobs) -> None:
    assert_same_training(by_objective(name, knobs, reduction="sum"), by_objective(name, knobs))


@pytest.mark.parametrize(("name", "knobs"), cases())
def test_nobody_reads_a_vector_after_its_buffer_was_handed_back(
    name: str, knobs: Knobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Buffers are poisoned as they are handed back: training on is the same, to the bit."""
    recycle = BlockLayout.recycle

    def poisoned(layout: BlockLayout, vector: BlockVector) -> None:
        recycle(layout, vector)
        if not vector.borrowed:
            vector._flat.fill_(torch.nan)

    expected = by_objective(name, knobs)
    monkeypatch.setattr(BlockLayout, "recycle", poisoned)
    assert torch.equal(by_objective.__wrapped__(name, knobs), expected)


@pytest.mark.parametrize(("name", "knobs"), plain_cases())
def test_a_plain_loop_trains_as_objectives_do(name: str, knobs: Knobs) -> None:
    assert_same_training(by_backward(name, knobs), by_objective(name, knobs))


@pytest.mark.parametrize(("name", "knobs"), plain_cases())
def test_a_plain_loop_over_tokens_trains_as_objectives_do(name: str, knobs: Knobs) -> None:
    plain = by_backward(name, knobs, net=tokens, reduction="mean-tokens")
    assert_same_training(plain, by_objective(name, knobs, net=tokens))


@pytest.mark.parametrize(("name", "knobs"), plain_cases())
def test_a_summed_loss_in_a_plain_loop_trains_as_its_mean(name: str, knobs: Knobs) -> None:
    assert_same_training(by_backward(name, knobs, reduction="sum"), by_backward(name, knobs))


@pytest.mark.parametrize(("name", "knobs"), plain_cases())
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("parts", [(6, 6), (3, 3, 3, 3), (5, 5, 2)], ids=["2 parts", "4 parts", "ragged"])
def test_accumulated_gradients_are_one_batch(
    name: str, knobs: Knobs, reduction: str, parts: tuple[int, ...]
) -> None:
    accumulated = by_backward(name, knobs, reduction=reduction, parts=parts)
    assert_same_training(accumulated, by_backward(name, knobs, reduction=reduction))


@pytest.mark.parametrize(("name", "knobs"), needy_cases())
def test_a_method_that_needs_an_objective_says_so_in_a_plain_loop(name: str, knobs: Knobs) -> None:
    model = images()
    before, (x, y) = theta(model), image_batches()[0]
    ours = optimizer(name, model, **dict(knobs))
    nn.CrossEntropyLoss()(model(x), y).backward()
    with pytest.raises(NeedsObjective, match=rf'of method "{name}" needs'):
        ours.step()
    assert torch.equal(theta(model), before)


class Steep(nn.Module):
    """A root of zero, of the input or of a parameter of its own: a fine value, a slope that is not finite."""

    def __init__(self, alone: bool) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(1, dtype=DTYPE)) if alone else None

    def forward(self, x: Tensor) -> Tensor:
        """The input itself."""
        steep = x if self.offset is None else self.offset
        return x + (steep - steep.detach()).sqrt()


@pytest.mark.filterwarnings("ignore::curvlab.objectives.evaluation.LayerMismatch")
@pytest.mark.parametrize("alone", [False, True], ids=["every block", "one block"])
@pytest.mark.parametrize(("name", "knobs"), cases())
def test_a_gradient_that_is_not_finite_ends_the_run_and_moves_nothing(
    name: str, knobs: Knobs, alone: bool
) -> None:
    """Although the loss is finite, and whichever block it is in; an update of zero is no answer."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3).to(DTYPE), Steep(alone))
    before, (x, y) = theta(model), image_batches()[0]
    ours = optimizer(name, model, **dict(knobs))
    with pytest.raises(Diverged):
        ours.step(objective(model, nn.CrossEntropyLoss(), x, y))
    assert torch.equal(theta(model), before)


def test_every_method_is_served_one_way_or_the_other() -> None:
    plain, needy = plain_cases(), needy_cases()
    served = {case.values[0] for case in [*plain, *needy]}
    assert served == set(methods())
    assert {"sgd", "adamw", "kfac"} <= {case.values[0] for case in plain}
