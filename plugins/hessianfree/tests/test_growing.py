"""Growing samples: which examples are drawn, whatever the rule of their size."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from curvlab.engine.state import export, restore
from curvlab.errors import ConfigError
from curvlab.protocols.sampler import Draw
from curvlab_hessianfree.geometric import Geometric
from curvlab_hessianfree.growing import Growing, GrowingState
from curvlab_hessianfree.variance_tests import InnerProductTest, NormTest

MODES = ("gradient", "curvature", "held-out", "disjoint")


def draws(part: Growing, state: GrowingState, times: int) -> list[Draw]:
    return [part.draw(state) for _ in range(times)]


def started(part: Growing, size: int = 60, seed: int = 0) -> GrowingState:
    return part.init(size, 8, seed)


def plain(draw: Draw) -> tuple[list[int], list[int], list[int]]:
    return draw.gradient.tolist(), draw.curvature.tolist(), draw.acceptance.tolist()


@dataclass(frozen=True, kw_only=True)
class Scripted(Growing):
    """Asks for the sizes it was given, one pair after another."""

    sizes: tuple[tuple[int, int], ...] = ()

    def curvature_for(self, gradient: int, pool: int) -> int:
        return 2

    def grow(self, state: GrowingState) -> None:
        self.resize(state, *self.sizes[min(state.draws, len(self.sizes)) - 1])


SIZES = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=8)


@st.composite
def scripted(draw: Any) -> tuple[Scripted, int, int]:
    """A sampler of every mode with sizes that jump up and down, a size of the data, and a seed."""
    size = draw(st.integers(12, 50))
    mode = draw(st.sampled_from(MODES))
    part = Scripted(
        gradient=draw(st.integers(2, 5)),
        gradient_cap=draw(st.sampled_from([1.0, 0.7])),
        curvature_cap=draw(st.sampled_from([1.0, 0.4])),
        nested=draw(st.booleans()),
        redraw_curvature=draw(st.booleans()),
        acceptance=mode,
        acceptance_size=draw(st.integers(2, 4)) if mode in ("held-out", "disjoint") else None,
        sizes=tuple(draw(SIZES)),
    )
    return part, size, draw(st.integers(-3, 3))


@settings(deadline=None, max_examples=200)
@given(scripted())
def test_samples_have_their_sizes_and_no_example_twice_and_never_shrink(
    case: tuple[Scripted, int, int],
) -> None:
    part, size, seed = case
    state = started(part, size, seed)
    before = (0, 0)
    for _ in range(12):
        draw = part.draw(state)
        assert (len(draw.gradient), len(draw.curvature)) == (state.gradient, state.curvature)
        for sample in plain(draw):
            assert len(set(sample)) == len(sample)
            assert set(sample) <= set(range(size))
        assert state.gradient >= before[0]
        assert state.curvature >= before[1]
        before = state.gradient, state.curvature


@settings(deadline=None, max_examples=200)
@given(scripted())
def test_each_mode_relates_the_three_samples_as_it_says(case: tuple[Scripted, int, int]) -> None:
    part, size, seed = case
    state = started(part, size, seed)
    for draw in draws(part, state, 12):
        gradient, curvature, acceptance = (set(sample) for sample in plain(draw))
        if part.acceptance == "disjoint":
            assert not gradient & curvature
            assert not (gradient | curvature) & acceptance
            assert len(acceptance) == part.acceptance_size
            continue
        assert curvature <= gradient
        if part.acceptance == "held-out":
            assert not gradient & acceptance
            assert len(acceptance) == part.acceptance_size
        else:
            assert draw.acceptance is getattr(draw, part.acceptance)


@settings(deadline=None, max_examples=100)
@given(scripted())
def test_caps_and_the_size_of_the_data_bound_every_sample(case: tuple[Scripted, int, int]) -> None:
    part, size, seed = case
    state = started(part, size, seed)
    pool = part.pool(state)
    draws(part, state, 12)
    assert state.gradient <= max(round(part.gradient_cap * pool), 1)
    assert state.curvature <= max(round(part.curvature_cap * pool), 1)
    if part.acceptance == "disjoint":
        assert state.gradient + state.curvature + state.acceptance <= size


@pytest.mark.parametrize("mode", MODES)
def test_a_nested_gradient_sample_contains_every_one_before(mode: str) -> None:
    part = Geometric(gradient=4, curvature=2, acceptance=mode, nested=True)  # type: ignore[arg-type]
    samples = [d.gradient.tolist() for d in draws(part, started(part), 20)]
    assert len(samples[-1]) > 30
    for one, next_one in pairwise(samples):
        assert next_one[: len(one)] == one


@pytest.mark.parametrize("mode", MODES)
def test_a_curvature_sample_that_is_not_redrawn_is_nested_too(mode: str) -> None:
    part = Geometric(gradient=8, curvature=2, acceptance=mode, redraw_curvature=False)  # type: ignore[arg-type]
    samples = [d.curvature.tolist() for d in draws(part, started(part), 12)]
    assert len(samples[-1]) > 8
    for one, next_one in pairwise(samples):
        assert next_one[: len(one)] == one


@pytest.mark.parametrize("mode", MODES)
def test_a_redrawn_curvature_sample_is_another_one_in_each_step(mode: str) -> None:
    part = Geometric(
        gradient=30,
        curvature=5,
        gradient_growth=1.0,
        curvature_growth=1.0,
        acceptance=mode,  # type: ignore[arg-type]
    )
    state = started(part)
    found = draws(part, state, 40)
    assert len({tuple(sorted(d.curvature.tolist())) for d in found}) > 30
    times = Counter(k for d in found for k in d.curvature.tolist())
    allowed = (
        set(range(60)) - set(found[0].gradient.tolist())
        if mode == "disjoint"
        else set(found[0].gradient.tolist())
    )
    assert set(times) == allowed  # 40 samples of 5 out of 30: none is left out


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("redraw", [True, False])
def test_held_out_examples_are_the_same_throughout_and_train_nothing_ever(nested: bool, redraw: bool) -> None:
    part = Geometric(
        gradient=5,
        curvature=2,
        acceptance="held-out",
        acceptance_size=7,
        nested=nested,
        redraw_curvature=redraw,
    )
    state = started(part)
    found = draws(part, state, 60)
    held = set(found[0].acceptance.tolist())
    assert all(set(d.acceptance.tolist()) == held for d in found)
    drawn = {k for d in found for sample in (d.gradient, d.curvature) for k in sample.tolist()}
    assert drawn == set(range(60)) - held
    assert len(found[-1].gradient) == 53  # everything else


def test_a_disjoint_acceptance_sample_is_another_one_in_each_step() -> None:
    part = Geometric(gradient=10, curvature=5, acceptance="disjoint", acceptance_size=6, gradient_growth=1.0)
    found = draws(part, started(part), 30)
    assert len({tuple(sorted(d.acceptance.tolist())) for d in found}) > 25


def test_samples_that_are_not_nested_use_every_example_once_an_epoch() -> None:
    part = Geometric(gradient=15, gradient_growth=1.0, nested=False)
    found = [d.gradient.tolist() for d in draws(part, started(part), 12)]
    epochs = [list(chain(*found[k : k + 4])) for k in (0, 4, 8)]
    assert all(sorted(epoch) == list(range(60)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_an_epoch_whose_rest_is_too_small_ends_there() -> None:
    part = Geometric(gradient=25, gradient_growth=1.0, nested=False)
    state = started(part)
    draws(part, state, 2)
    assert (state.epoch, state.position) == (0, 50)
    part.draw(state)
    assert (state.epoch, state.position) == (1, 25)


def test_all_examples_of_a_full_sample_are_in_it_exactly_once() -> None:
    for nested in (True, False):
        part = Geometric(gradient=1.0, curvature=1.0, nested=nested)
        for draw in draws(part, started(part), 3):
            assert sorted(draw.gradient.tolist()) == list(range(60))
            assert draw.curvature is draw.gradient is draw.acceptance


PARTS: list[Growing] = [
    Geometric(gradient=4, curvature=2, interval=2),
    Geometric(gradient=4, nested=False),
    Geometric(gradient=7, redraw_curvature=False, acceptance="held-out", nested=False),
    Geometric(gradient=5, acceptance="disjoint", acceptance_size=4),
    Geometric(gradient=5, acceptance="disjoint", acceptance_size=4, nested=False),
    NormTest(gradient=6, interval=2),
    InnerProductTest(acceptance="held-out", nested=True),
]


@pytest.mark.parametrize("when", [0, 1, 5, 11])
@pytest.mark.parametrize("part", PARTS, ids=str)
def test_a_sampler_goes_on_where_it_was(part: Growing, when: int) -> None:
    state = started(part, 61, 3)
    draws(part, state, when)
    tensors, plain_values = export(state)
    assert not tensors  # orders are made again, not kept
    other = started(part, 61, 4)  # of another seed: the state says which
    restore(other, {}, copy.deepcopy(plain_values))
    left, right = draws(part, state, 12), draws(part, other, 12)
    assert [plain(a) for a in left] == [plain(b) for b in right]


@pytest.mark.parametrize("part", PARTS, ids=str)
def test_a_seed_says_everything_and_touches_no_other_generator(part: Growing) -> None:
    torch.manual_seed(1)
    first = [plain(d) for d in draws(part, started(part, seed=5), 9)]
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert [plain(d) for d in draws(part, started(part, seed=5), 9)] == first
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("part", PARTS, ids=str)
def test_seeds_differ(part: Growing) -> None:
    seeds = [-1, 0, 1, 2, 12345, 2**64 - 3]
    assert len({tuple(part.draw(started(part, seed=s)).gradient.tolist()) for s in seeds}) == len(seeds)


def test_the_micro_batch_is_handed_on() -> None:
    for given_size in (None, 3):
        part = Geometric(micro_batch=given_size)
        assert part.draw(started(part)).micro_batch == given_size


def test_portions_are_fractions_or_counts_of_what_is_not_held_out() -> None:
    def first(**settings: Any) -> tuple[int, int, int]:
        state = Geometric(**settings).init(1000, 32, 0)
        return state.gradient, state.curvature, state.acceptance

    assert first(gradient=0.2, curvature=0.05) == (200, 50, 0)
    assert first(gradient=300, curvature=7) == (300, 7, 0)
    assert first(gradient=None, curvature=7) == (32, 7, 0)
    assert first(gradient=1.0, curvature=1.0, acceptance="held-out", acceptance_size=0.2) == (800, 800, 200)
    assert first(gradient=5000, curvature=5000, acceptance="held-out") == (900, 900, 100)
    assert first(gradient=100, curvature=0.5) == (100, 100, 0)  # never larger than the gradient sample
    assert first(gradient=100, curvature=0.5, acceptance="disjoint", acceptance_size=50) == (100, 500, 50)


@pytest.mark.parametrize(
    ("given_settings", "words"),
    [
        ({"gradient": 1}, "write 1.0 for all of them"),
        ({"gradient": 0}, "gradient = 0 is neither"),
        ({"gradient": 1.5}, "gradient = 1.5 is neither"),
        ({"curvature": 0.0}, "curvature = 0.0 is neither"),
        ({"curvature_cap": -3}, "curvature_cap = -3 is neither"),
        ({"gradient_growth": 0.9}, "gradient_growth = 0.9 must be at least 1"),
        ({"curvature_growth": float("inf")}, "curvature_growth"),
        ({"interval": 0}, "interval = 0"),
        ({"micro_batch": 0}, "micro_batch = 0"),
        ({"acceptance_size": 10}, 'acceptance = "gradient"'),
    ],
)
def test_a_setting_out_of_range_is_named(given_settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Geometric(**given_settings)


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (Geometric(acceptance="held-out", acceptance_size=10), "10 of 10 are held out"),
        (NormTest(acceptance="held-out", acceptance_size=9), "9 of 10 are held out"),
        (Geometric(gradient=5, curvature=4, acceptance="disjoint", acceptance_size=3), "5, 4 and 3 examples"),
    ],
)
def test_data_that_do_not_suffice_are_counted(part: Growing, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        part.init(10, 4, 0)
