"""Grafting: every rule's length against its formula, and what no rule may change."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor

from curvlab.engine.state import export, tensors_of
from curvlab.linalg.vectors import BlockLayout, BlockVector
from curvlab.parts.graft import Graft, Rule
from curvlab.protocols.step import At
from tests.parts.vectors import at, vector

LAYOUT = BlockLayout({"w": (3, 4), "t": (2, 3, 2), "b": (5,), "s": ()})
RULES: tuple[Rule, ...] = get_args(Rule)
#: those whose length does not depend on the scale of the loss
FREE = [r for r in RULES if r not in ("none", "gradient")]
BETA, STEPS = 0.9, 4

#: scalars of the state: o, i of each block, a vector being a column
SCALARS = {"block": 4, "rows": 3 + 2 + 5 + 1, "adafactor": (3 + 4) + (2 + 6) + 5 + 1, "adam": 12 + 12 + 5 + 1}

each_rule = pytest.mark.parametrize("rule", RULES)


def here(k: int, scale: float = 1.0) -> At:
    """A gradient, and another vector that was preconditioned."""
    told = at(vector(k, LAYOUT) * scale)
    return At(told.gradient, k, 1.0, told.add_theta, told.read, vector(k + 50, LAYOUT) * scale)


def run(rule: Rule, *, scale: float = 1.0) -> list[BlockVector]:
    part = Graft(rule, BETA)
    state = part.init(vector(0, LAYOUT))
    return [part(state, vector(k + 100, LAYOUT), here(k, scale)).clone() for k in range(STEPS)]


def mean_square(name: str, k: int, dims: str) -> Tensor:
    """Adam's bias-corrected mean over steps 0 … k of g², then over rows, columns or all of a block."""
    weights = [BETA ** (k - j) for j in range(k + 1)]
    s = sum(w * vector(j, LAYOUT)[name].square() for j, w in enumerate(weights)) / sum(weights)
    s = s.reshape(s.shape[0], -1) if s.dim() > 1 else s.reshape(-1, 1)
    if dims == "entries":
        return s
    if dims == "block":
        return s.mean().expand_as(s)
    rows, columns = s.mean(1, keepdim=True), s.mean(0, keepdim=True)
    return rows.expand_as(s) if dims == "rows" else rows * columns / rows.mean()


def expected(rule: Rule, name: str, k: int) -> float:
    m = vector(k + 50, LAYOUT)[name]
    n = m.numel()
    if rule == "none":
        return float(vector(k + 100, LAYOUT)[name].norm())
    if rule in ("gradient", "unit"):
        return float(m.norm()) if rule == "gradient" else n**0.5
    kinds = {"block": "block", "rows": "rows", "adafactor": "factored", "adam": "entries"}
    s = mean_square(name, k, kinds[rule])
    return float((m.reshape(s.shape) / s.sqrt()).norm())


@each_rule
def test_a_block_has_the_length_of_the_rules_update_and_the_direction_that_it_had(rule: Rule) -> None:
    for k, out in enumerate(run(rule)):
        for name, block in out.items():
            assert float(block.norm()) == pytest.approx(expected(rule, name, k), rel=1e-12)
            v = vector(k + 100, LAYOUT)[name]
            torch.testing.assert_close(block / block.norm(), v / v.norm(), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("scale", [100.0, 0.01, 2.0**40])
@pytest.mark.parametrize("rule", FREE)
def test_lengths_do_not_depend_on_the_scale_of_the_loss(rule: Rule, scale: float) -> None:
    for a, b in zip(run(rule, scale=scale), run(rule), strict=True):
        torch.testing.assert_close(a.flat, b.flat, rtol=1e-12, atol=0)


@each_rule
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_zero_stays_zero_and_nothing_is_not_finite(rule: Rule, dtype: torch.dtype) -> None:
    part, like = Graft(rule), vector(0, LAYOUT, dtype)
    state = part.init(like)
    v, g = vector(1, LAYOUT, dtype), vector(2, LAYOUT, dtype)
    v["w"].zero_()
    g["t"].zero_()
    v["b"].mul_(1e-30)
    g["s"].fill_(1e-30)
    out = part(state, v.borrow(), at(g))
    assert not bool(out["w"].any())
    assert bool(out["t"].any()) is (rule == "none")
    assert out.is_finite()


@each_rule
def test_the_state_is_what_the_table_says_and_training_goes_on_from_it(rule: Rule) -> None:
    part = Graft(rule, BETA)
    state, fresh = part.init(vector(0, LAYOUT)), part.init(vector(9, LAYOUT))
    assert sum(t.numel() for t in tensors_of(state)) == SCALARS.get(rule, 0)
    for k in range(2):
        part(state, vector(k + 100, LAYOUT), here(k))
    for path, tensor in export(state)[0].items():
        export(fresh)[0][path].copy_(tensor)
    fresh.count = state.count
    a, b = (part(s, vector(110, LAYOUT), here(2)) for s in (state, fresh))
    assert torch.equal(a.flat, b.flat)
