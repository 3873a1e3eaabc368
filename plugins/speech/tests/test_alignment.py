"""Phonemes in time: their order, their thirds, and what pauses become."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from curvlab_speech.alignment import SILENCE, aligned

#: sizes of phonemes in samples, none among them
SIZES = st.lists(st.integers(0, 50), min_size=1, max_size=12).filter(any)


def test_moments_are_in_the_phoneme_and_the_third_that_lasts_then() -> None:
    alignment = aligned(["a", "s"], [0, 30], 90)
    which, part = alignment.at(torch.tensor([0, 9, 10, 19, 20, 29, 30, 49, 50, 69, 70, 89]))
    assert which.tolist() == [0] * 6 + [1] * 6
    assert part.tolist() == [0, 0, 1, 1, 2, 2] * 2


@given(SIZES)
def test_time_goes_forward_through_phonemes_and_their_thirds(sizes: list[int]) -> None:
    starts = [sum(sizes[:k]) for k in range(len(sizes))]
    alignment = aligned([f"p{k}" for k in range(len(sizes))], starts, sum(sizes))
    which, part = alignment.at(torch.arange(sum(sizes)))
    assert bool(((3 * which + part).diff() >= 0).all())
    names = [alignment.phonemes[k] for k in which.tolist()]
    assert names == [f"p{k}" for k, size in enumerate(sizes) for _ in range(size)]


@given(st.integers(1, 200))
def test_thirds_share_a_phoneme_evenly(size: int) -> None:
    _, part = aligned(["a"], [0], size).at(torch.arange(size))
    counts = torch.bincount(part, minlength=3)
    assert int(counts.sum()) == size
    assert int(counts.max() - counts.min()) <= 1


def test_pauses_that_follow_one_another_are_one() -> None:
    alignment = aligned(["a", "_:", "_", "_!", "s"], [0, 10, 40, 50, 70], 80)
    assert alignment.phonemes == ("a", SILENCE, "s")
    assert alignment.starts.tolist() == [0, 10, 70, 80]


def test_what_comes_before_the_first_phoneme_is_a_pause_and_joins_the_next_one() -> None:
    assert aligned(["a"], [20], 30).phonemes == (SILENCE, "a")
    joined = aligned(["_:", "a"], [20, 40], 50)
    assert joined.phonemes == (SILENCE, "a")
    assert joined.starts.tolist() == [0, 40, 50]


def test_phonemes_without_a_sample_are_left_out() -> None:
    assert aligned(["a", "b", "c"], [0, 10, 10], 20).phonemes == ("a", "c")


def test_nothing_said_is_a_pause() -> None:
    which, _ = aligned([], [], 5).at(torch.arange(5))
    assert which.tolist() == [0] * 5
