"""Adam's preconditioner, apart from what stands around it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from curvlab.errors import ConfigError
from curvlab.linalg.vectors import BlockLayout, BlockVector
from curvlab.precision.full import Full
from curvlab.protocols.context import Context
from curvlab.protocols.evidence import Evaluation
from curvlab_firstorder.adam import Adam

LAYOUT = BlockLayout({"w": (3, 2), "b": (4,)})
CTX = Context(0, 0.0, Full("float64"), torch.Generator())


def vector(seed: int) -> BlockVector:
    return BlockVector(
        LAYOUT, torch.randn(10, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    )


@settings(deadline=None, max_examples=25)
@given(beta=st.floats(0.0, 0.9999), steps=st.integers(1, 12))
def test_the_second_moment_is_the_bias_corrected_average(beta: float, steps: int) -> None:
    """Slow twin: the textbook's zero-started average, divided by 1 − βᵗ."""
    part = Adam(beta=beta)
    state = part.init(vector(0), CTX)
    textbook = torch.zeros(10, dtype=torch.float64)
    for t in range(steps):
        g = vector(t)
        part.observe(state, Evaluation(1, torch.zeros(()), g), CTX)
        textbook = beta * textbook + (1 - beta) * g.flat.square()
    torch.testing.assert_close(state.second.flat, textbook / (1 - beta**steps), rtol=1e-9, atol=0)


def test_one_gradient_leads_to_a_step_of_signs() -> None:
    part, g = Adam(eps=0.0), vector(3)
    state = part.init(g, CTX)
    part.observe(state, Evaluation(1, torch.zeros(()), g), CTX)
    torch.testing.assert_close(part.apply(state, g, CTX).x.flat, g.flat.sign())


def test_apply_changes_neither_vector_nor_state() -> None:
    part, g = Adam(), vector(5)
    state = part.init(g, CTX)
    part.observe(state, Evaluation(1, torch.zeros(()), g), CTX)
    before, second = g.flat.clone(), state.second.flat.clone()
    part.apply(state, g, CTX)
    assert torch.equal(g.flat, before)
    assert torch.equal(state.second.flat, second)


@pytest.mark.parametrize(
    ("setting", "says"),
    [({"beta": 1.0}, "beta = 1.0"), ({"beta": -0.1}, "beta = -0.1"), ({"eps": -1e-8}, "eps = -1e-08")],
)
def test_bad_settings_are_refused_by_name_and_value(setting: dict[str, float], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Adam(**setting)
