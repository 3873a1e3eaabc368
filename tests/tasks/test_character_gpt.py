"""The language model: its text, its windows, and that no character sees a later one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from curvlab.errors import DataError
from curvlab.protocols.sampler import Draw
from curvlab.protocols.task import Workload
from curvlab.tasks.character_gpt import FILE, CharacterGpt, Windows, correct, read
from tests.engine.composed import optimizer
from tests.tasks.conftest import TEXT


@pytest.fixture
def task(fashion: str) -> CharacterGpt:
    return CharacterGpt(context=8, dim=16, depth=2, heads=2, text=f"{fashion}/{FILE}")


def made(task: CharacterGpt) -> Workload:
    torch.manual_seed(0)
    return task.workload(task.model(), dtype=torch.float64, device=torch.device("cpu"))


def test_windows_cut_the_text_and_targets_are_one_character_on(task: CharacterGpt) -> None:
    characters, text = read(task.text)
    assert "".join(characters[k] for k in text.tolist()) == TEXT
    windows = Windows(text, 8)
    assert len(windows) == (len(TEXT) - 1) // 8
    x, y = windows.rows(torch.tensor([3, 0]))
    assert "".join(characters[k] for k in x[0].tolist()) == TEXT[24:32]
    assert "".join(characters[k] for k in y[0].tolist()) == TEXT[25:33]
    assert torch.equal(y[:, :-1], x[:, 1:])


def test_the_last_windows_are_held_out_and_no_window_is_in_both(task: CharacterGpt) -> None:
    work, whole = made(task), len(Windows(read(task.text)[1], 8))
    assert len(work.training) + len(work.validation) == whole
    assert len(work.validation) == -(-whole // 50)
    x, _ = work.validation.rows(torch.arange(1))
    characters = read(task.text)[0]
    start = len(work.training) * 8
    assert "".join(characters[k] for k in x[0].tolist()) == TEXT[start : start + 8]


def test_no_character_sees_a_later_one(task: CharacterGpt) -> None:
    model = made(task).model
    x = torch.randint(0, 9, (2, 8))
    changed = x.clone()
    changed[:, 5] = (x[:, 5] + 1) % 9
    before, after = model(x), model(changed)
    assert torch.equal(before[..., :5], after[..., :5])
    assert bool((before[..., 5:] != after[..., 5:]).any(1).all())


def test_every_layer_is_read_and_positions_go_to_the_fallback(task: CharacterGpt) -> None:
    work = made(task)
    ours = optimizer("kfac", work.model, refresh=2)
    batch = torch.arange(16)
    first, *_, last = (float(ours.step(work.objective(Draw(batch, batch, batch)))) for _ in range(10))
    assert last < first
    rows = {row.parameter: row.treatment for row in ours.coverage()}
    left = {n for n, treatment in rows.items() if treatment == "fallback"}
    assert left == {"position"}, "added to all tokens: no linear map"


def test_accuracy_is_the_share_of_characters(task: CharacterGpt) -> None:
    outputs = torch.eye(3)[torch.tensor([[0, 1, 2], [2, 2, 2]])].mT
    assert correct(outputs, torch.tensor([[0, 1, 1], [2, 0, 2]])).tolist() == pytest.approx([2 / 3, 2 / 3])


def test_texts_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: cannot be read"):
        read(str(tmp_path / "nowhere"))
    (tmp_path / "latin").write_bytes("Müßig.".encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8 at byte 1"):
        read(str(tmp_path / "latin"))
    (tmp_path / "empty").write_text("")
    with pytest.raises(DataError, match="the text is empty"):
        read(str(tmp_path / "empty"))
    (tmp_path / "short").write_text("abc")
    task = CharacterGpt(text=str(tmp_path / "short"))
    with pytest.raises(DataError, match="has 3 characters, less than two windows"):
        task.workload(task.model(), dtype=torch.float32, device=torch.device("cpu"))


def test_a_text_in_the_data_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / FILE).write_text("xyzzy")
    monkeypatch.setenv("CURVLAB_DATA", str(tmp_path))
    assert read(None)[0] == "xyz"
