"""Frames in context: neighbors in order, and never those of another utterance."""

from __future__ import annotations

import pytest
import torch

from curvlab_speech.windows import Windows
from plugins.speech.tests.samples import SIZES, corpus


@pytest.mark.parametrize("context", [0, 1, 4])
def test_a_window_is_its_frame_between_its_neighbors_and_never_leaves_the_utterance(context: int) -> None:
    """Against a loop over utterances that repeats the frames at both ends."""
    given = corpus()
    examples = Windows.of(given, context)
    inputs, labels = examples.rows(torch.arange(len(examples)))
    expected = []
    for frames in given.frames.split(SIZES):
        padded = torch.cat([frames[:1].expand(context, -1), frames, frames[-1:].expand(context, -1)])
        expected += [padded[k : k + 2 * context + 1].flatten() for k in range(len(frames))]
    assert torch.equal(inputs, torch.stack(expected))
    assert torch.equal(labels, given.labels)


def test_rows_come_in_the_order_asked_for_and_as_often() -> None:
    examples = Windows.of(corpus(), 2)
    everything, labels = examples.rows(torch.arange(len(examples)))
    asked = torch.tensor([5, 0, 5, 31])
    inputs, of = examples.rows(asked)
    assert torch.equal(inputs, everything[asked])
    assert torch.equal(of, labels[asked])


def test_contexts_are_not_stored() -> None:
    given = corpus()
    assert Windows.of(given, 4).frames is given.frames


def test_moving_changes_the_dtype_of_frames_alone() -> None:
    moved = Windows.of(corpus(), 1).to(dtype=torch.float64, device=torch.device("cpu"))
    inputs, labels = moved.rows(torch.tensor([0]))
    assert (inputs.dtype, labels.dtype) == (torch.float64, torch.int64)
