"""What espeak-ng says: sound, and phonemes where the sound has them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from curvlab.errors import DataError
from curvlab_speech import espeak, speaker
from curvlab_speech.espeak import Utterance, speak
from plugins.speech.tests.samples import needs_espeak

HELLO = Utterance("Good morning, everyone. So it is.", "en-us", 175, 50)


@needs_espeak
def test_phonemes_follow_one_another_from_the_first_sample_to_the_last() -> None:
    portion = speak([HELLO])
    (spoken,) = portion.spoken
    assert portion.sample_rate == 22050
    assert portion.version[0].isdigit()
    assert 1.0 < len(spoken.sound) / portion.sample_rate < 5.0
    starts = torch.tensor(spoken.starts)
    assert bool((starts.diff() >= 0).all())
    assert starts[0] >= 0
    assert starts[-1] <= len(spoken.sound)
    assert {"g", "U", "d", "m", "n"} <= set(spoken.phonemes)
    assert 0.05 < float(spoken.sound.abs().max()) <= 1.0


@needs_espeak
def test_sounds_are_loud_where_vowels_are_and_still_in_pauses() -> None:
    (spoken,) = speak([HELLO]).spoken
    ends = [*spoken.starts[1:], len(spoken.sound)]
    power: dict[bool, list[float]] = {True: [], False: []}
    for name, start, end in zip(spoken.phonemes, spoken.starts, ends, strict=True):
        if end - start > 400 and (name[0] == "_" or name[0] in "aeEIoOUu0"):
            middle = spoken.sound[start + (end - start) // 4 : end - (end - start) // 4]
            power[name[0] == "_"].append(float(middle.square().mean()))
    assert len(power[True]) >= 2
    assert len(power[False]) >= 4
    assert max(power[True]) < 0.01 * min(power[False])


@needs_espeak
def test_the_same_list_sounds_the_same_to_the_last_bit() -> None:
    """It would not in one process: the second utterance is another than the first."""
    first, again = speak([HELLO, HELLO]), speak([HELLO, HELLO])
    for a, b in zip(first.spoken, again.spoken, strict=True):
        assert torch.equal(a.sound, b.sound)
        assert (a.phonemes, a.starts) == (b.phonemes, b.starts)


@needs_espeak
def test_rate_and_pitch_and_voice_are_heard() -> None:
    slow, fast, other = speak(
        [Utterance(HELLO.text, v, r, 50) for v, r in (("en-us", 120), ("en-us", 240), ("en-us+f2", 120))]
    ).spoken
    assert len(slow.sound) > 1.5 * len(fast.sound)
    assert not torch.equal(slow.sound[:20_000], other.sound[:20_000])


@needs_espeak
def test_an_unknown_voice_is_named() -> None:
    with pytest.raises(DataError, match='no voice "nobody".*--voices=variant'):
        speak([Utterance("Hello.", "nobody", 175, 50)])


def test_without_the_library_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speaker, "LIBRARY", "libnot-there.so.1")
    with pytest.raises(speaker.Unable, match=r"libnot-there\.so\.1.*apt-get install espeak-ng"):
        speaker.Speaker()


def test_a_process_that_dies_is_an_error_with_its_last_word(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("raise RuntimeError('no sound')")
    monkeypatch.setattr(espeak.speaker, "__file__", str(broken))
    with pytest.raises(DataError, match="ended with 1: RuntimeError: no sound"):
        speak([HELLO])


def test_the_process_needs_nothing_but_the_standard_library() -> None:
    """It runs isolated, in a fraction of the time that importing torch takes."""
    text = Path(speaker.__file__).read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith(("import", "from"))]
    names = {line.split()[1].split(".")[0] for line in lines}
    assert names == {"__future__", "ctypes", "json", "sys", "typing"}
