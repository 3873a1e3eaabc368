"""Where sentences come from."""

from __future__ import annotations

from pathlib import Path

import pytest

from curvlab.errors import DataError
from curvlab.tasks import verses as module
from curvlab_speech.sentences import sentences, verses
from plugins.speech.tests.samples import needs_bible


def test_a_text_is_cut_after_full_stops_and_spaces_become_one(tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_text("One two\nthree.  Is it 4.5?\n\n Yes! 17. * * *.\tThe end", encoding="utf-8")
    assert sentences(file) == ["One two three.", "Is it 4.5?", "Yes!", "The end"]


def test_texts_that_cannot_be_spoken_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        sentences(tmp_path / "nowhere")
    (tmp_path / "empty").write_text("1. 2. 3.")
    with pytest.raises(DataError, match="no sentence in it"):
        sentences(tmp_path / "empty")
    (tmp_path / "latin").write_bytes("Müßig.".encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8 at byte 1"):
        sentences(tmp_path / "latin")


def test_without_the_program_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    with pytest.raises(DataError, match="apt-get install bible-kjv.*--text FILE"):
        verses()


def test_a_program_that_has_no_verses_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.shutil, "which", lambda name: "/bin/true")
    with pytest.raises(DataError, match="is bible-kjv-text installed"):
        verses()


@needs_bible
def test_the_bible_has_its_verses_from_the_first_to_the_last() -> None:
    found = verses()
    assert len(found) == 31_102
    assert found[0] == "In the beginning God created the heaven and the earth."
    assert found[-1].endswith("Amen.")
    assert not any(verse[:1].isdigit() for verse in found)
