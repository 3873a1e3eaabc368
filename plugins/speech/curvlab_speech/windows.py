"""Frames in their context: an example is a frame and its neighbors, gathered when it is asked for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from curvlab_speech.corpus import Corpus


@dataclass(frozen=True)
class Windows:
    """Examples of ``(2 · context + 1) · d`` inputs, kept as frames of d: a ``Source``.

    Beyond the ends of its utterance a frame's context repeats the frame at the end.
    """

    frames: Float[Tensor, "n d"]
    labels: Int[Tensor, " n"]
    first: Int[Tensor, " n"]  #: first frame of each frame's utterance
    last: Int[Tensor, " n"]
    context: int  #: frames on each side

    @classmethod
    def of(cls, corpus: Corpus, context: int) -> Windows:
        """Every frame of a corpus."""
        sizes = corpus.bounds.diff()
        first, last = (ends.repeat_interleave(sizes) for ends in (corpus.bounds[:-1], corpus.bounds[1:] - 1))
        return cls(corpus.frames, corpus.labels, first, last, context)

    def to(self, *, dtype: torch.dtype, device: torch.device) -> Windows:
        """Moved there; indices keep their dtype."""
        labels, first, last = (t.to(device) for t in (self.labels, self.first, self.last))
        return Windows(self.frames.to(device=device, dtype=dtype), labels, first, last, self.context)

    def rows(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs ``[b, (2 · context + 1) · d]``, the earliest frame's features first, and classes."""
        indices = indices.to(self.frames.device)
        around = torch.arange(-self.context, self.context + 1, device=indices.device)
        at = indices[:, None] + around
        at = at.clamp(self.first[indices][:, None], self.last[indices][:, None])
        return self.frames[at].flatten(1), self.labels[indices]

    def __len__(self) -> int:
        return len(self.frames)
