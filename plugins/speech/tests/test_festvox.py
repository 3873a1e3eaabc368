"""Diphones of recorded speech: the format, on a file of our own and on Debian's."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from curvlab.errors import DataError
from curvlab_speech import festvox
from curvlab_speech.festvox import FILE, find, read
from plugins.speech.tests.samples import needs_festvox


def track(frames: int, energy: float, **keys: object) -> bytes:
    about = {"DataType": "binary", "NumFrames": frames, "ByteOrder": "01", "NumChannels": 17} | keys
    lines = [f"{key} {value}" for key, value in (about | {"BreaksPresent": "true"}).items()]
    values = np.zeros((frames, 19), "<f4")
    values[:, 0], values[:, 1], values[:, 2] = np.arange(frames) / 100, 1.0, energy
    values[:, 3:] = np.arange(16) + energy
    return "\n".join(["EST_File Track", *lines, "", "Channel_0 lpc_0", "EST_Header_End", ""]).encode() + (
        values.tobytes()
    )


def group(*entries: tuple[str, bytes, int]) -> bytes:
    """A group of diphones: name, track, middle."""
    index, data = "", b""
    for name, content, middle in entries:
        index += f"{name} {len(data)} {len(data) + len(content)} {middle}\n"
        data += content + b".snd residual"
    head = f"EST_File index\nNumEntries {len(entries)}\nDataFormat grouped\ntrack_file_format est_binary\n"
    return (head + "EST_Header_End\n" + index).encode() + data


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / FILE).write_bytes(group(("a-k_", track(3, 10.0), 1), ("_k-s", track(4, 20.0), 3)))
    return tmp_path / FILE


def test_frames_before_the_middle_are_the_first_phones_and_the_others_the_seconds(file: Path) -> None:
    corpus = read(file)
    assert corpus.classes == ("a", "k", "s")  # k_ and _k are both k
    assert corpus.labels.tolist() == [0, 1, 1, 1, 1, 1, 2]
    assert corpus.bounds.tolist() == [0, 3, 7]


def test_features_are_the_logarithm_of_the_energy_and_the_coefficients(file: Path) -> None:
    frames = read(file).frames
    assert frames.shape == (7, 17)
    assert frames[0].tolist() == pytest.approx([math.log(10), *(10.0 + k for k in range(16))])
    assert frames[-1, 0].item() == pytest.approx(math.log(20))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"RIFF",
        group(("a-b", track(3, 1.0), 1)).replace(b"grouped", b"single!"),
        group(("a-b", track(3, 1.0, ByteOrder="10"), 1)),
        group(("a-b", track(3, 1.0, NumChannels=16), 1)),
        group(("ab", track(3, 1.0), 1)),
        group(("a-b", track(3, 1.0), 1))[:-60],
    ],
    ids=["empty", "other", "ungrouped", "big-endian", "channels", "no-pair", "short"],
)
def test_other_files_and_damaged_ones_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(DataError, match="damaged, or no group of diphones"):
        read(tmp_path / FILE)


def test_root_comes_before_the_environment_before_debian(
    file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(festvox, "DEBIAN", tmp_path / "debian")
    assert find(str(file.parent)) == file
    with pytest.raises(DataError, match="apt-get install festvox-kallpc16k") as caught:
        find(None)
    assert str(tmp_path / "debian") in str(caught.value)
    monkeypatch.setenv("CURVLAB_DATA", str(file.parent))
    assert find(None) == file
    with pytest.raises(DataError, match="nowhere"):
        find(str(tmp_path / "nowhere"))


@needs_festvox
def test_debians_file_holds_what_the_documentation_says() -> None:
    corpus = read(find(None))
    assert corpus.frames.shape == (20_534, 17)
    assert corpus.utterances == 1619
    assert len(corpus.classes) == 41
    assert bool(corpus.frames.isfinite().all())
    counts = torch.bincount(corpus.labels, minlength=41)
    assert int(counts.min()) > 250
    assert corpus.classes[int(counts.argmax())] == "pau"


@needs_festvox
def test_labels_and_frames_belong_together() -> None:
    """Linear prediction fails least in pauses and most in hisses; vowels have the smoothest waves."""
    corpus = read(find(None))
    names = corpus.classes
    means = torch.stack([corpus.frames[corpus.labels == k].mean(0) for k in range(len(names))])
    by_error, by_smoothness = ([names[k] for k in means[:, i].argsort().tolist()] for i in (0, 1))
    assert by_error[0] == "pau"
    assert set(by_error[1:7]) == set("pbtdkg")
    assert set(by_error[-2:]) == {"s", "sh"}
    assert all(name[0] in "aeiou" for name in by_smoothness[-12:])
