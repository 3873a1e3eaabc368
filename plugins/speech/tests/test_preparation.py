"""Synthetic speech: made once, the same for the same seed, and never over anything else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from curvlab.errors import ConfigError, DataError
from curvlab_speech import folder, preparation
from curvlab_speech.alignment import SILENCE
from curvlab_speech.espeak import Portion, Spoken, Utterance
from curvlab_speech.folder import DATA, MANIFEST
from curvlab_speech.preparation import PITCHES, RATES, SyntheticSpeech
from plugins.speech.tests.samples import needs_bible, needs_espeak

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


@pytest.fixture
def text(tmp_path: Path) -> str:
    """A file of a hundred sentences."""
    file = tmp_path / "text.txt"
    file.write_text(" ".join(f"{a} and {b}." for a in WORDS for b in WORDS), encoding="utf-8")
    return str(file)


@pytest.fixture
def tones(monkeypatch: pytest.MonkeyPatch) -> list[Utterance]:
    """No espeak-ng: a second of sound for every sentence; returns what was asked of it."""
    asked: list[Utterance] = []

    def speak(utterances: list[Utterance]) -> Portion:
        asked.extend(utterances)
        time = torch.arange(22050, dtype=torch.float64) / 22050
        sounds = [torch.sin(40 * u.pitch * time * (1 + len(u.text))) for u in utterances]
        spoken = [Spoken(s, ("a", "_:", "t"), (0, 9000, 12000)) for s in sounds]
        return Portion("0.0", 22050, tuple(spoken))

    monkeypatch.setattr(preparation, "speak", speak)
    return asked


def made(to: Path, **options: object) -> Path:
    SyntheticSpeech(**options).run(to, lambda line: None)  # type: ignore[arg-type]
    return to


@needs_espeak
def test_a_seed_gives_the_same_files_to_the_last_bit(text: str, tmp_path: Path) -> None:
    first, again = (made(tmp_path / name, minutes=0.1, text=text) for name in "ab")
    for name in (DATA, MANIFEST):
        assert (first / name).read_bytes() == (again / name).read_bytes()
    other = made(tmp_path / "c", minutes=0.1, text=text, seed=1)
    assert (other / DATA).read_bytes() != (first / DATA).read_bytes()


@needs_espeak
def test_what_is_made_is_speech_of_the_length_asked_for(text: str, tmp_path: Path) -> None:
    corpus = folder.read(made(tmp_path / "a", minutes=0.2, text=text))
    assert 0.2 * 6000 * 0.95 < len(corpus.frames) < 0.2 * 6000 + 500
    assert corpus.frames.shape[1] == 40
    assert bool(corpus.frames.isfinite().all())
    spoken = {name.split()[0] for name in corpus.classes}
    assert {SILENCE, "n", "t", "s"} <= spoken
    seen = set(corpus.labels.tolist())
    assert seen <= set(range(len(corpus.classes)))
    assert {label // 3 for label in seen} == set(range(len(spoken)))  # no phoneme that never sounds


@needs_espeak
def test_classes_go_through_a_phonemes_thirds_in_order(text: str, tmp_path: Path) -> None:
    corpus = folder.read(made(tmp_path / "a", minutes=0.1, text=text))
    for labels in corpus.labels.tensor_split(corpus.bounds[1:-1]):
        for before, after in zip(labels.tolist(), labels.tolist()[1:], strict=False):
            within = before // 3 == after // 3 and after % 3 >= before % 3
            assert within or before // 3 != after // 3 or after % 3 == 0 or before == after


@needs_espeak
@needs_bible
def test_without_a_text_the_bible_is_spoken(tmp_path: Path) -> None:
    corpus = folder.read(made(tmp_path / "a", minutes=0.05))
    assert len(corpus.frames) > 250


def test_fewer_minutes_are_a_beginning_of_more(text: str, tones: list[Utterance], tmp_path: Path) -> None:
    short, long = (folder.read(made(tmp_path / str(m), minutes=m, text=text)) for m in (0.2, 0.9))
    assert torch.equal(long.frames[: len(short.frames)], short.frames)
    assert long.utterances == 54


def test_no_sentence_is_spoken_twice_and_ways_of_speaking_vary(
    text: str, tones: list[Utterance], tmp_path: Path
) -> None:
    made(tmp_path / "a", minutes=1.6, text=text, voices=("x", "y"))
    assert len({u.text for u in tones}) == len(tones)
    assert {u.voice for u in tones} == {"x", "y"}
    for values, (low, high) in (([u.rate for u in tones], RATES), ([u.pitch for u in tones], PITCHES)):
        assert low <= min(values) < max(values) < high
        assert len(set(values)) > 15


def test_every_utterance_has_its_own_noise(text: str, tones: list[Utterance], tmp_path: Path) -> None:
    corpus = folder.read(made(tmp_path / "a", minutes=0.5, text=text))
    pauses = [
        frames[labels == 0].mean()
        for frames, labels in zip(*(t.split(98) for t in (corpus.frames, corpus.labels)), strict=True)
    ]
    assert len({round(float(p), 3) for p in pauses}) == len(pauses)


def test_a_text_that_is_too_short_is_refused_with_its_length(
    text: str, tones: list[Utterance], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"100 sentences of the text last 1\.7 minutes; expected 2"):
        made(tmp_path / "a", minutes=2, text=text)
    assert not (tmp_path / "a").exists()


def test_the_same_once_more_makes_nothing(text: str, tones: list[Utterance], tmp_path: Path) -> None:
    folder_ = made(tmp_path / "a", minutes=0.1, text=text)
    tones.clear()
    before, told = (folder_ / DATA).stat().st_mtime_ns, []
    SyntheticSpeech(minutes=0.1, text=text).run(folder_, told.append)
    assert told == [f"{folder_} holds these data already"]
    assert tones == []
    assert (folder_ / DATA).stat().st_mtime_ns == before


def test_other_data_are_not_overwritten(text: str, tones: list[Utterance], tmp_path: Path) -> None:
    folder_ = made(tmp_path / "a", minutes=0.1, text=text)
    before = (folder_ / DATA).read_bytes()
    with pytest.raises(DataError, match=r"holds other synthetic speech \(seed = 0\)"):
        made(folder_, minutes=0.1, text=text, seed=1)
    Path(text).write_text(Path(text).read_text() + " And more.")
    with pytest.raises(DataError, match="of another text"):
        made(folder_, minutes=0.1, text=text)
    assert (folder_ / DATA).read_bytes() == before


def test_a_folder_of_something_else_is_left_alone(text: str, tones: list[Utterance], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not empty and holds no synthetic speech"):
        made(tmp_path, minutes=0.1, text=text)
    assert [file.name for file in tmp_path.iterdir()] == ["text.txt"]


def test_damaged_data_are_not_taken_for_these(text: str, tones: list[Utterance], tmp_path: Path) -> None:
    folder_ = made(tmp_path / "a", minutes=0.1, text=text)
    (folder_ / DATA).write_bytes(b"")
    with pytest.raises(DataError, match="damaged"):
        made(folder_, minutes=0.1, text=text)


def test_the_manifest_says_what_was_asked_and_found(
    text: str, tones: list[Utterance], tmp_path: Path
) -> None:
    folder_ = made(tmp_path / "a", minutes=0.1, text=text, voices=("x",))
    document = json.loads((folder_ / MANIFEST).read_text())
    assert document["asked"] == {"minutes": 0.1, "seed": 0, "text": text, "voices": ["x"]}
    assert document["made_by"] == "espeak-ng 0.0"
    assert document["phonemes"] == ["_", "a", "t"]
    assert (document["frames"], document["features"], document["utterances"]) == (588, 40, 6)


def test_labels_are_of_the_middle_of_the_frame(text: str, tones: list[Utterance], tmp_path: Path) -> None:
    """A second: a from 0 to 9000 of 22,050 samples, a pause to 12,000, then t."""
    labels = folder.read(made(tmp_path / "a", minutes=0.01, text=text)).labels
    middles = torch.arange(98) * 22050 // 100 + 275
    bounds = torch.tensor([3000, 6000, 9000, 10000, 11000, 12000, 15350, 18700])
    number = torch.bucketize(middles, bounds, right=True)
    expected = torch.tensor([3, 4, 5, 0, 1, 2, 6, 7, 8])[number]  # phonemes in order: _, a, t
    assert labels.tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"minutes": 0.0}, "minutes = 0.0 must be"),
        ({"minutes": float("nan")}, "minutes = nan must be"),
        ({"seed": -1}, "seed = -1 must be at least 0"),
        ({"voices": ()}, "voices"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        SyntheticSpeech(**options)  # type: ignore[arg-type]
