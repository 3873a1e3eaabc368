"""Frames of speech with their classes, utterance after utterance, whatever they were made from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Corpus:
    """``n`` frames of ``d`` features; utterance u is those from ``bounds[u]`` up to ``bounds[u + 1]``.

    Class c of a frame is what ``classes[c]`` says.
    """

    frames: Float[Tensor, "n d"]
    labels: Int[Tensor, " n"]
    bounds: Int[Tensor, " u"]
    classes: tuple[str, ...]

    @property
    def utterances(self) -> int:
        """How many there are."""
        return len(self.bounds) - 1

    def of(self, utterances: Tensor) -> Corpus:
        """These utterances alone, in this order."""
        sizes = self.bounds.diff()[utterances]
        bounds = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
        shift = self.bounds[utterances] - bounds[:-1]
        index = torch.arange(int(bounds[-1]), device=sizes.device) + shift.repeat_interleave(sizes)
        return Corpus(self.frames[index], self.labels[index], bounds, self.classes)

    def normalized(self, like: Corpus) -> Corpus:
        """Features less the mean of ``like``'s, over their standard deviation; what never varies is 0."""
        wide = like.frames.double()
        mean, deviation = wide.mean(0), wide.std(0, correction=0)
        scale = torch.where(deviation > 0, deviation, 1.0)
        frames = ((self.frames.double() - mean) / scale).to(self.frames.dtype)
        return Corpus(frames, self.labels, self.bounds, self.classes)


def held_out(utterances: int, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Utterances to train on and to validate on, chosen by ``seed``: at least one of each, in order.

    Whole utterances: neighboring frames are so alike that one of them gives the other away.
    """
    assert utterances >= 2
    count = min(max(1, round(share * utterances)), utterances - 1)
    order = torch.randperm(utterances, generator=torch.Generator("cpu").manual_seed(seed), device="cpu")
    return order[count:].sort().values, order[:count].sort().values
