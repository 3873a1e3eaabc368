"""The prepared folder: what is written is what is read, and nothing else is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from curvlab.errors import DataError
from curvlab_speech import folder
from curvlab_speech.folder import DATA, MANIFEST, NAME
from plugins.speech.tests.samples import PHONEMES, corpus, manifest


def change(prepared: Path, **keys: object) -> None:
    path = prepared / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def test_what_was_written_is_read(prepared: Path) -> None:
    found, given = folder.read(prepared), corpus()
    for name in ("frames", "labels", "bounds"):
        assert torch.equal(getattr(found, name), getattr(given, name)), name
    assert found.classes == given.classes
    assert found.labels.dtype == torch.int64


def test_a_folder_says_what_it_holds_and_that_it_is_synthetic(prepared: Path) -> None:
    document = json.loads((prepared / MANIFEST).read_text())
    assert document["kind"] == "synthetic speech"
    assert document["asked"] == {"minutes": 1.0}
    assert (document["frames"], document["utterances"]) == (279, 10)
    assert sorted(file.name for file in prepared.iterdir()) == [MANIFEST, DATA]


def test_classes_are_phonemes_by_thirds() -> None:
    classes = manifest().classes
    assert len(classes) == 3 * len(PHONEMES)
    assert classes[3 * 1 + 2] == "a 3/3"


def test_equal_corpora_give_equal_bytes(prepared: Path, tmp_path: Path) -> None:
    folder.write(tmp_path / "again", corpus(), manifest())
    for name in (DATA, MANIFEST):
        assert (tmp_path / "again" / name).read_bytes() == (prepared / name).read_bytes()


def test_an_empty_folder_says_the_command_that_fills_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no synthetic speech in") as caught:
        folder.read(tmp_path)
    assert f"curvlab tasks prepare speech-frames --minutes 10 --to {tmp_path}" in str(caught.value)


def test_data_of_another_making_are_refused(prepared: Path) -> None:
    data = bytearray((prepared / DATA).read_bytes())
    data[-1] ^= 1
    (prepared / DATA).write_bytes(data)
    with pytest.raises(DataError, match=f"{MANIFEST} expects"):
        folder.read(prepared)


def test_data_that_are_gone_are_missed(prepared: Path) -> None:
    (prepared / DATA).unlink()
    with pytest.raises(DataError, match=r"speech\.safetensors: cannot be read.*prepare the data again"):
        folder.read(prepared)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"version": 2}, "version 2, expected 1"),
        ({"color": "red"}, "not a manifest of speech-frames"),
    ],
)
def test_manifests_of_others_are_refused(keys: dict[str, object], says: str, prepared: Path) -> None:
    change(prepared, **keys)
    with pytest.raises(DataError, match=says):
        folder.read_manifest(prepared)


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_manifests_that_are_none_are_refused(text: str, prepared: Path) -> None:
    (prepared / MANIFEST).write_text(text)
    with pytest.raises(DataError, match=MANIFEST):
        folder.read_manifest(prepared)


def test_root_comes_before_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="curvlab tasks prepare speech-frames"):
        folder.find(None)
    monkeypatch.setenv("CURVLAB_DATA", str(tmp_path))
    assert folder.find(None) == tmp_path / NAME
    assert folder.find(str(tmp_path / "other")) == tmp_path / "other"


def test_a_place_that_cannot_be_written_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        folder.write(tmp_path / "file" / "below", corpus(), manifest())
