"""Which part of which phoneme a moment of speech is in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

#: beginning, middle and end of a phoneme are classes of their own, as in acoustic models
PARTS = 3

#: every pause is this phoneme: espeak-ng writes pauses of several lengths, all with this first letter
SILENCE = "_"


@dataclass(frozen=True)
class Alignment:
    """Phonemes in time: the k-th from sample ``starts[k]`` to ``starts[k + 1]``, none of them empty."""

    phonemes: tuple[str, ...]
    starts: Tensor

    def at(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """For each sample the number of its phoneme, and which third of it, 0 to 2, the sample is in."""
        k = torch.searchsorted(self.starts, samples, right=True) - 1
        assert not len(k) or (int(k.min()) >= 0 and int(k.max()) < len(self.phonemes)), "outside"
        first, after = self.starts[k], self.starts[k + 1]
        return k, PARTS * (samples - first) // (after - first)


def aligned(phonemes: Sequence[str], starts: Sequence[int], end: int) -> Alignment:
    """The alignment of phonemes that begin at these samples, ``end`` being where the last one ends.

    Pauses that follow one another are one pause, as is what comes before the first phoneme;
    phonemes without any sample are left out.
    """
    kept: list[tuple[str, int]] = [] if starts and starts[0] == 0 else [(SILENCE, 0)]
    for name, start, after in zip(phonemes, starts, [*starts, end][1:], strict=True):
        name = SILENCE if name.startswith(SILENCE) or not name else name
        if start < after and not (name == SILENCE and kept and kept[-1][0] == SILENCE):
            kept.append((name, start))
    names = tuple(name for name, _ in kept)
    return Alignment(names, torch.tensor([*(start for _, start in kept), end], device="cpu"))
