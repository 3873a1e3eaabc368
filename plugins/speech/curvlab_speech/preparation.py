"""Making synthetic speech: sentences are chosen, spoken, disturbed, and turned into frames with classes."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from curvlab.errors import DataError
from curvlab.protocols.preparation import Preparation
from curvlab.tasks.settings import at_least, check
from curvlab_speech import folder
from curvlab_speech.alignment import PARTS, aligned
from curvlab_speech.corpus import Corpus
from curvlab_speech.espeak import Portion, Spoken, Utterance, speak
from curvlab_speech.mel import LogMel
from curvlab_speech.noise import Noise
from curvlab_speech.sentences import sentences, verses

#: of one accent, American, so that all of them have the same phonemes
VOICES = ("en-us", *(f"en-us+{variant}" for variant in ("m1", "m3", "m4", "m7", "f1", "f2", "f4", "f5")))

#: words per minute, and pitch (50 is a voice's own), from and up to
RATES, PITCHES = (130, 210), (35, 65)

#: utterances that one process speaks: about five minutes of sound
PORTION = 32

SECONDS = 60


@dataclass(frozen=True)
class SyntheticSpeech(Preparation):
    """Synthetic speech for the task speech-frames: sentences spoken by espeak-ng, as frames with classes.

    Sentences are chosen at random, none twice, until they last for the minutes asked for: verses of the
    King James Bible (Debian's package bible-kjv), or sentences of a text file.  Each is spoken in
    one of the voices, at a rate and pitch of its own, with noise added.  Features are 40 log-mel energies
    every 10 ms; the class is the phoneme and the third of it that the middle of the frame is in.
    Equal options and an equal version of espeak-ng make equal files; a smaller number of minutes
    makes a beginning of what a larger one does.
    """

    minutes: float = 10.0  #: of speech, > 0
    seed: int = 0  #: of sentences, voices, rates, pitches and noise
    text: str | None = None  #: a UTF-8 file to take sentences from; the Bible if not given
    voices: tuple[str, ...] = VOICES  #: of espeak-ng

    def __post_init__(self) -> None:
        check(
            at_least(0.01, minutes=self.minutes),
            at_least(0, seed=self.seed),
            at_least(1, voices=len(self.voices)),
        )

    def run(self, to: Path, tell: Callable[[str], None]) -> None:
        chosen = verses() if self.text is None else sentences(Path(self.text).expanduser())
        text = hashlib.sha256("\n".join(chosen).encode()).hexdigest()
        if self._is_there(to, text):
            tell(f"{to} holds these data already")
            return
        before = time.monotonic()
        corpus, made_by, phonemes = self._made(chosen, tell)
        frames, features = corpus.frames.shape
        asked = asdict(self) | {"voices": list(self.voices)}
        manifest = folder.Manifest(asked, made_by, text, phonemes, features, frames, corpus.utterances)
        folder.write(to, corpus, manifest)
        tell(
            f"{to}: {frames:,} frames of synthetic speech, {corpus.utterances} utterances, "
            f"{len(corpus.classes)} classes, in {time.monotonic() - before:.0f} s"
        )

    def _is_there(self, to: Path, text: str) -> bool:
        """Whether the folder holds just these data; raises ``DataError`` if it holds anything else."""
        if not to.exists() or (to.is_dir() and not any(to.iterdir())):
            return False
        if not (to / folder.MANIFEST).is_file():
            raise DataError(f"{to} is not empty and holds no synthetic speech; name another folder with --to")
        found = folder.read_manifest(to)
        mine = asdict(self) | {"voices": list(self.voices)}
        if found.asked != mine or found.text != text:
            differ = [
                f"{key} = {found.asked.get(key)!r}" for key in mine if found.asked.get(key) != mine[key]
            ]
            raise DataError(
                f"{to} holds other synthetic speech ({', '.join(differ) or 'of another text'}): "
                "name another folder with --to, or delete this one"
            )
        folder.read(to)  # raises if it is damaged
        return True

    def _made(
        self, chosen: Sequence[str], tell: Callable[[str], None]
    ) -> tuple[Corpus, str, tuple[str, ...]]:
        frames, labels, names, made_by = [], [], [], ""
        seconds, told = 0.0, 0.0
        for portion, spoken, noise_seed in self._spoken(chosen):
            made_by = f"espeak-ng {portion.version}"
            features, states = _framed(spoken, portion.sample_rate, noise_seed)
            frames.append(features)
            names.append([name for name, _ in states])
            labels.append(torch.tensor([part for _, part in states], dtype=torch.long, device="cpu"))
            seconds += len(spoken.sound) / portion.sample_rate
            if seconds >= told + 5 * SECONDS:
                told = seconds
                tell(f"{seconds / SECONDS:.0f} of {self.minutes:g} minutes")
            if seconds >= SECONDS * self.minutes:
                break
        else:
            raise DataError(
                f"the {len(chosen)} sentences of the text last {seconds / SECONDS:.1f} minutes; "
                f"expected {self.minutes:g}. Use a longer text or fewer minutes"
            )
        phonemes = tuple(sorted({name for utterance in names for name in utterance}))
        number_of = {name: k for k, name in enumerate(phonemes)}
        numbers = torch.tensor([number_of[name] for utterance in names for name in utterance], device="cpu")
        bounds = torch.tensor([0, *(len(f) for f in frames)], device="cpu").cumsum(0)
        classes = tuple(f"{p} {k + 1}/{PARTS}" for p in phonemes for k in range(PARTS))
        corpus = Corpus(torch.cat(frames), PARTS * numbers + torch.cat(labels), bounds, classes)
        return corpus, made_by, phonemes

    def _spoken(self, chosen: Sequence[str]) -> Iterator[tuple[Portion, Spoken, int]]:
        """Utterances in their order, spoken a portion at a time, with seeds for their noise."""
        planned = self._planned(chosen)
        for start in range(0, len(planned), PORTION):
            utterances, seeds = zip(*planned[start : start + PORTION], strict=True)
            portion = speak(utterances)
            yield from ((portion, *pair) for pair in zip(portion.spoken, seeds, strict=True))

    def _planned(self, chosen: Sequence[str]) -> list[tuple[Utterance, int]]:
        """How every sentence would be spoken, in random order, and a seed for its noise."""
        n, generator = len(chosen), torch.Generator("cpu").manual_seed(self.seed)
        order = torch.randperm(n, generator=generator, device="cpu").tolist()
        drawn = [
            torch.randint(low, high, (n,), generator=generator, device="cpu").tolist()
            for low, high in ((0, len(self.voices)), RATES, PITCHES, (0, 2**62))
        ]
        return [
            (Utterance(chosen[i], self.voices[voice], rate, pitch), seed)
            for i, voice, rate, pitch, seed in zip(order, *drawn, strict=True)
        ]


def _framed(spoken: Spoken, sample_rate: int, seed: int) -> tuple[Tensor, list[tuple[str, int]]]:
    """Features of an utterance's frames, and the phoneme and third of each."""
    mel, end = LogMel(sample_rate), len(spoken.sound)
    if not len(mel.starts(end)):
        return mel(spoken.sound), []
    # a stream of its own for every utterance, so that none depends on those before it
    generator = torch.Generator("cpu").manual_seed(seed)
    sound = Noise.drawn(generator).added(spoken.sound, generator)
    alignment = aligned(spoken.phonemes, spoken.starts, end)
    which, part = alignment.at(mel.centers(end))
    return mel(sound), [
        (alignment.phonemes[k], third) for k, third in zip(which.tolist(), part.tolist(), strict=True)
    ]
