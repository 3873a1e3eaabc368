"""Between steps a method holds parameters and ``state_bytes()``, nothing else, measured from outside."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
from torch import nn

from curvlab.engine.optimizer import CurvatureOptimizer
from curvlab.testing.memory import alive
from tests.limits.registered import optimizer
from tests.limits.test_all_or_nothing import Batch, of_objective, plain
from tests.limits.test_every_method import Knobs, cases, image_batches, images, plain_cases

#: torch compiles some of its own derivatives when forward mode is first used, and deprecates how it does
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")

Way = Callable[[CurvatureOptimizer, Batch], None]


def trained(name: str, knobs: Knobs, step: Way, model: nn.Module, batches: list[Batch]) -> CurvatureOptimizer:
    ours = optimizer(name, model, **dict(knobs))
    for batch in batches:
        step(ours, batch)
    ours.zero_grad()
    return ours


#: the others are of the grid, ``pytest -m grid``
FEW = {
    "objective": {"adamw", "ekfac", "singd", "kl-shampoo", "hf-gn", "lbfgs", "kbfgs-l", "lm", "b-kfac"},
    "plain": {"adamw", "kfac", "singd", "soap", "smw-ngd"},
}


@pytest.mark.parametrize(
    ("name", "knobs", "step"),
    [
        pytest.param(
            *case.values,
            way,
            id=f"{case.id}-{words}",
            marks=[] if case.id in FEW[words] else pytest.mark.grid,
        )
        for words, way, found in (("objective", of_objective, cases()), ("plain", plain, plain_cases()))
        for case in found
        if case.id == case.values[0]
    ],
)
def test_between_steps_a_method_holds_its_state_and_nothing_else(name: str, knobs: Knobs, step: Way) -> None:
    model, batches = images(), image_batches()[:3]
    train = partial(trained, name, knobs, step)
    train(images(), batches)  # constants that all optimizers of a process share are made here
    before = alive()
    ours = train(model, batches)
    held = {at: size for at, size in alive().items() if at not in before}
    assert sum(held.values()) == ours.state_bytes()
