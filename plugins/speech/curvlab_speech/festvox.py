"""Recorded speech, little of it: the diphones of Debian's package festvox-kallpc16k.

What the file ``kallpc16k.group`` holds, as found in it: a header and an index in text, then the
parts that the index points into.  The index has 1,619 diphones, each with the place of its LPC track,
the place of its residual, and the number of the track's frame at which its first phone gives way to
its second.  A track is again a header in text, then per frame nineteen little-endian floats: the
time in seconds, a flag that is always 1, an energy, and 16 predictor coefficients.  The energy is that of
the prediction's error: its logarithm goes with that of the residual's power (correlation 0.99), so it is
high in fricatives and low in pauses.  There
are 20,534 frames, one per pitch period (6 to 20 ms apart, 10.8 in the middle), 41 phones, every diphone once.
The residuals (16 kHz, 8-bit µ-law) are not used.  Diphones were cut from one man's reading of nonsense words.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from curvlab.errors import DataError
from curvlab_speech.corpus import Corpus

FILE = "kallpc16k.group"

#: where Debian's package puts it
DEBIAN = Path("/usr/share/festival/voices/english/kal_diphone/group")

HOW_TO_GET = (
    f"{FILE} was not found: run `apt-get install festvox-kallpc16k` on Debian or Ubuntu, or put the file "
    "into a folder and name it in the task's `root` setting or in CURVLAB_DATA"
)

_MAGIC, _HEADER_END = b"EST_File", b"EST_Header_End\n"

#: what precedes a frame's channels: time and flag; then energy and coefficients
_BEFORE, _CHANNELS = 2, 17


@dataclass(frozen=True)
class Diphone:
    """Frames of the first phone up to ``middle``, then of the second: log-energy, coefficients."""

    phones: tuple[str, str]
    middle: int
    frames: NDArray[np.float32]


def find(root: str | None) -> Path:
    """The file: in ``root`` if that is given, else in ``CURVLAB_DATA``, else where Debian has it."""
    places = [DEBIAN]
    if root is not None:
        places = [Path(root).expanduser()]
    elif os.environ.get("CURVLAB_DATA"):
        places = [Path(os.environ["CURVLAB_DATA"]).expanduser(), DEBIAN]
    for place in places:
        if (place / FILE).is_file():
            return place / FILE
    raise DataError(f"{HOW_TO_GET} (looked in {', '.join(map(str, places))})")


def read(path: Path) -> Corpus:
    """A corpus of 17 features, a class per phone; a diphone is an utterance.

    Raises ``DataError`` for a file that is cut short or not of this format.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        found = list(diphones(data))
    except (ValueError, KeyError, IndexError) as error:
        raise DataError(f"{path}: damaged, or no group of diphones: {error}") from error
    classes = tuple(sorted({phone for diphone in found for phone in diphone.phones}))
    number_of = {phone: k for k, phone in enumerate(classes)}
    labels = [number_of[d.phones[k >= d.middle]] for d in found for k in range(len(d.frames))]
    bounds = torch.tensor([0, *(len(d.frames) for d in found)], device="cpu").cumsum(0)
    frames = torch.from_numpy(np.concatenate([d.frames for d in found]))
    return Corpus(frames, torch.tensor(labels, device="cpu"), bounds, classes)


def diphones(data: bytes) -> Iterator[Diphone]:
    """Every diphone of a group file; raises ``ValueError`` or ``KeyError`` for what is not one."""
    about, at = _header(data, 0)
    if about["DataFormat"] != "grouped" or about["track_file_format"] != "est_binary":
        raise ValueError("not grouped, or tracks that are not binary")
    entries = []
    for _ in range(int(about["NumEntries"])):
        after = data.index(b"\n", at) + 1
        name, *numbers = data[at:after].decode("ascii").split()
        track, sound, middle = map(int, numbers)
        entries.append((name, track, sound, middle))
        at = after
    for name, track, sound, middle in entries:
        left, right = name.split("-")
        # an underscore marks a consonant inside a cluster; it is the same phone
        phones = left.strip("_"), right.strip("_")
        yield Diphone(phones, middle, _track(data[at + track : at + sound]))


def _track(data: bytes) -> NDArray[np.float32]:
    about, at = _header(data, 0)
    if (
        about["ByteOrder"] != "01"
        or int(about["NumChannels"]) != _CHANNELS
        or about["BreaksPresent"] != "true"
    ):
        raise ValueError("a track of another layout")
    values = np.frombuffer(data[at:], "<f4").reshape(int(about["NumFrames"]), _BEFORE + _CHANNELS)
    features = values[:, _BEFORE:].astype(np.float32)
    features[:, 0] = np.log(features[:, 0])
    return features


def _header(data: bytes, at: int) -> tuple[dict[str, str], int]:
    """The keys of a header in text, and where it ends."""
    if not data.startswith(_MAGIC, at):
        raise ValueError(f"no header at byte {at}")
    end = data.index(_HEADER_END, at)
    lines = (line.split(maxsplit=1) for line in data[at:end].decode("ascii").splitlines())
    return {line[0]: line[1].strip() for line in lines if len(line) == 2}, end + len(_HEADER_END)
