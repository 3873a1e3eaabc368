"""Samplers: what is drawn when, and that the state says everything."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from curvlab.engine.state import export, restore
from curvlab.parts.samplers import FullBatch, SubsampledCurvature, Uniform
from curvlab.protocols.needs import Needs
from curvlab.protocols.sampler import Draw, Sampler
from tests.parts.vectors import outcome, vector


def drawn(part: Sampler, state: Any, times: int) -> list[list[int]]:
    return [part.draw(state).gradient.tolist() for _ in range(times)]


@settings(deadline=None, max_examples=40)
@given(size=st.integers(1, 40), batch=st.integers(1, 50), seed=st.integers(0, 10))
def test_every_example_is_drawn_once_per_epoch_in_full_batches(size: int, batch: int, seed: int) -> None:
    part = Uniform()
    state = part.init(size, batch, seed)
    used = min(batch, size)
    batches = drawn(part, state, 3 * size)
    assert all(len(b) == used for b in batches)
    flat = [k for b in batches for k in b]
    for epoch in range(len(flat) // size):
        assert Counter(flat[epoch * size : (epoch + 1) * size]) == Counter(range(size))


def test_epochs_and_seeds_shuffle_differently() -> None:
    part = Uniform()
    orders = [tuple(b) for seed in range(3) for b in drawn(part, part.init(50, 50, seed), 3)]
    assert len(set(orders)) == 9


def test_a_seed_says_everything() -> None:
    part = Uniform()
    torch.manual_seed(1)
    first = drawn(part, part.init(20, 6, 5), 9)
    torch.manual_seed(2)
    assert drawn(part, part.init(20, 6, 5), 9) == first
    state = torch.get_rng_state()
    drawn(part, part.init(20, 6, 5), 9)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("seed", [-1, 2**63, 2**64 - 1])
def test_every_seed_that_torch_takes_is_one(seed: int) -> None:
    part = Uniform()
    batches = drawn(part, part.init(4, 4, seed), 3)
    assert all(sorted(b) == [0, 1, 2, 3] for b in batches)


PARTS: list[Sampler] = [Uniform(), Uniform(5), FullBatch(), SubsampledCurvature(Uniform(), 0.5)]


@pytest.mark.parametrize("when", [0, 1, 4, 7])
@pytest.mark.parametrize("part", PARTS, ids=str)
def test_a_sampler_goes_on_in_the_middle_of_an_epoch(part: Sampler, when: int) -> None:
    state = part.init(17, 6, 3)
    drawn(part, state, when)
    tensors, plain = export(state)
    assert not tensors  # a permutation is made again, not kept
    other = part.init(17, 6, 3)
    restore(other, {}, copy.deepcopy(plain))
    assert drawn(part, other, 8) == drawn(part, state, 8)


def test_a_batch_size_of_its_own_comes_before_the_tasks_and_neither_exceeds_the_data() -> None:
    assert Uniform().init(100, 8, 0).batch_size == 8
    assert Uniform(3).init(100, 8, 0).batch_size == 3
    assert Uniform(300).init(100, 8, 0).batch_size == 100
    assert sorted(drawn(Uniform(300), Uniform(300).init(7, 8, 0), 1)[0]) == list(range(7))


def test_three_purposes_share_one_draw() -> None:
    for part in (Uniform(), FullBatch()):
        draw = part.draw(part.init(10, 4, 0))
        assert draw.gradient is draw.curvature is draw.acceptance


def test_the_full_batch_is_everything_always() -> None:
    part = FullBatch()
    assert drawn(part, part.init(5, 2, 0), 2) == [[0, 1, 2, 3, 4]] * 2


@pytest.mark.parametrize(
    ("fraction", "minimum", "batch", "kept"),
    [
        (0.25, 1, 16, 4),
        (0.25, 6, 16, 6),
        (1.0, 1, 16, 16),
        (0.01, 1, 16, 1),
        (0.5, 99, 16, 16),
        (0.25, 1, 999, 5),
    ],
)
def test_curvature_gets_the_first_of_the_gradients_examples(
    fraction: float, minimum: int, batch: int, kept: int
) -> None:
    part = SubsampledCurvature(Uniform(), fraction, minimum)
    state, twin = part.init(20, batch, 3), Uniform().init(20, batch, 3)
    for _ in range(4):
        draw = part.draw(state)
        assert draw.gradient.tolist() == Uniform().draw(twin).gradient.tolist()
        assert draw.curvature.tolist() == draw.gradient.tolist()[:kept]
        assert draw.acceptance is draw.gradient


def test_what_a_sampler_learns_reaches_the_one_beneath() -> None:
    told: list[Any] = []

    class Listening(Uniform):
        def learn(self, state: Any, what: Any) -> None:
            told.append(what)

    part, what = SubsampledCurvature(Listening()), outcome(vector())
    part.learn(part.init(4, 2, 0), what)
    assert told == [what]


def test_what_a_sampler_wants_and_bounds_is_what_the_one_beneath_does() -> None:
    class Wanting(Uniform):
        def needs(self, state: Any) -> Needs:
            return Needs(variance=state.drawn == 0)

        def draw(self, state: Any) -> Draw:
            return replace(super().draw(state), micro_batch=3)

    part = SubsampledCurvature(Wanting())
    state = part.init(8, 4, 0)
    assert part.needs(state).variance
    assert part.draw(state).micro_batch == 3
    assert not part.needs(state).variance
