"""Utterances: picked whole, told apart, and normalized by those that are trained on."""

from __future__ import annotations

import pytest
import torch

from curvlab_speech.corpus import Corpus, held_out
from plugins.speech.tests.samples import SIZES, corpus


def test_utterances_are_picked_whole_and_in_order() -> None:
    given = corpus()
    picked = given.of(torch.tensor([3, 1]))
    assert picked.utterances == 2
    assert picked.bounds.tolist() == [0, SIZES[3], SIZES[3] + SIZES[1]]
    frames, labels = given.frames.split(SIZES), given.labels.split(SIZES)
    assert torch.equal(picked.frames, torch.cat([frames[3], frames[1]]))
    assert torch.equal(picked.labels, torch.cat([labels[3], labels[1]]))


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("utterances", [2, 10, 83])
def test_every_utterance_is_on_one_side_and_both_sides_have_some(utterances: int, share: float) -> None:
    kept, apart = held_out(utterances, share, seed=0)
    assert sorted([*kept.tolist(), *apart.tolist()]) == list(range(utterances))
    assert len(kept) >= 1
    assert len(apart) == min(max(1, round(share * utterances)), utterances - 1)


def test_a_seed_chooses_what_is_held_out() -> None:
    first, again, other = (held_out(50, 0.1, seed)[1].tolist() for seed in (0, 0, 1))
    assert first == again != other


def test_normalized_features_have_mean_zero_and_variance_one_over_the_training_part() -> None:
    given = corpus()
    kept, apart = given.of(torch.arange(7)), given.of(torch.arange(7, 10))
    own = kept.normalized(kept).frames
    torch.testing.assert_close(own.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(own.std(0, correction=0), torch.ones(4))
    # validation frames go through the same map
    mean, deviation = kept.frames.mean(0), kept.frames.std(0, correction=0)
    torch.testing.assert_close(apart.normalized(kept).frames, (apart.frames - mean) / deviation)


def test_a_feature_that_never_varies_becomes_zero() -> None:
    given = corpus()
    frames = given.frames.clone()
    frames[:, 1] = 3.0
    still = Corpus(frames, given.labels, given.bounds, given.classes)
    assert still.normalized(still).frames[:, 1].tolist() == [0.0] * len(frames)
