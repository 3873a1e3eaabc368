"""Small corpora that need nothing installed, and marks for tests that need a Debian package."""

from __future__ import annotations

import ctypes
import shutil

import pytest
import torch

from curvlab_speech import festvox, speaker
from curvlab_speech.corpus import Corpus
from curvlab_speech.folder import Manifest

#: frames of the utterances of ``corpus()``; one is shorter than a context
SIZES = (30, 3, 25, 40, 30, 28, 33, 31, 29, 30)
PHONEMES = ("_", "a", "s")


def has_espeak() -> bool:
    try:
        ctypes.CDLL(speaker.LIBRARY)
    except OSError:
        return False
    return True


needs_espeak = pytest.mark.skipif(
    not has_espeak(), reason="needs Debian's espeak-ng: apt-get install espeak-ng"
)
needs_bible = pytest.mark.skipif(
    shutil.which("bible") is None, reason="needs Debian's bible-kjv: apt-get install bible-kjv"
)
needs_festvox = pytest.mark.skipif(
    not (festvox.DEBIAN / festvox.FILE).is_file(),
    reason="needs Debian's festvox-kallpc16k: apt-get install festvox-kallpc16k",
)


def corpus(features: int = 4) -> Corpus:
    """Noise whose mean says the class; classes follow one another within an utterance."""
    generator = torch.Generator().manual_seed(0)
    bounds = torch.tensor([0, *SIZES]).cumsum(0)
    labels = torch.cat([torch.arange(n) * 9 // n for n in SIZES])
    means = 2 * torch.randn(9, features, generator=generator)
    frames = means[labels] + 0.3 * torch.randn(len(labels), features, generator=generator) + 5
    return Corpus(frames, labels, bounds, manifest().classes)


def manifest() -> Manifest:
    return Manifest({"minutes": 1.0}, "nobody 1.0", "0" * 64, PHONEMES, 4, sum(SIZES), len(SIZES))
