"""Utterances, and what espeak-ng makes of them: sound with the phonemes' times.  Synthetic speech."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.errors import DataError
from curvlab_speech import speaker


@dataclass(frozen=True)
class Utterance:
    """A text and how to speak it: an espeak-ng voice, words per minute, pitch from 0 to 99."""

    text: str
    voice: str
    rate: int
    pitch: int


@dataclass(frozen=True)
class Spoken:
    """Sound in [−1, 1], and where its phonemes begin; the last one ends where the sound does."""

    sound: Float[Tensor, " s"]
    phonemes: tuple[str, ...]
    starts: tuple[int, ...]


@dataclass(frozen=True)
class Portion:
    """What one process spoke: by which version of espeak-ng, at how many samples per second."""

    version: str
    sample_rate: int
    spoken: tuple[Spoken, ...]


def speak(utterances: Sequence[Utterance]) -> Portion:
    """Speak in a fresh process: equal lists give equal samples.

    About a thousandth of the time that the sound lasts.  Raises ``DataError`` if espeak-ng is not
    there or has no such voice.
    """
    given = json.dumps([asdict(utterance) for utterance in utterances]).encode()
    command = [sys.executable, "-I", str(Path(speaker.__file__))]
    done = subprocess.run(command, input=given, capture_output=True, check=False)
    if done.returncode:
        why = done.stderr.decode(errors="replace").strip().splitlines()
        raise DataError(f"espeak-ng's process ended with {done.returncode}: {why[-1] if why else 'no word'}")
    head, _, rest = done.stdout.partition(b"\n")
    about = json.loads(head)
    if "error" in about:
        raise DataError(about["error"])
    return Portion(about["version"], about["sample_rate"], tuple(_spoken(rest)))


def _spoken(data: bytes) -> Iterator[Spoken]:
    at = 0
    while at < len(data):
        line = data.index(b"\n", at)
        about: dict[str, Any] = json.loads(data[at:line])
        at = line + 1 + 2 * about["samples"]
        # what comes after the last phoneme is a voice's echo, which is no phoneme's
        samples = np.frombuffer(data[line + 1 : at], "<i2")[: about["end"]]
        names, starts = zip(*about["phonemes"], strict=True) if about["phonemes"] else ((), ())
        sound = torch.from_numpy(samples.astype(np.float64) / 2**15)
        yield Spoken(sound, tuple(names), tuple(starts))
