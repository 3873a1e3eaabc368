"""Checkpoints: whole or absent, bit for bit, and damage is said in words."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from curvlab.engine import checkpoint
from curvlab.errors import CheckpointError, RunFolderError

DTYPES = (
    torch.float64,
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.uint8,
    torch.bool,
    torch.complex64,
    torch.complex128,
)


def saved(root: Path, *steps: int, keep: int = 10) -> list[Path]:
    def save(step: int) -> Path:
        return checkpoint.save(root, step, {"w": torch.full((3,), float(step))}, {"step": step}, keep=keep)

    return [save(step) for step in steps]


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_loaded_has_the_bits_the_dtype_and_the_shape_that_were_saved(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    numbers = torch.randint(0, 256, (2, 5, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    raw = numbers % 2 == 0 if dtype is torch.bool else numbers.view(dtype)  # NaNs with payloads among them
    tensors = {"many": raw, "one": raw.flatten()[0], "none": raw[:0], "a/b.c@d": raw.mT}
    found = checkpoint.load(checkpoint.save(tmp_path, 7, tensors, {}, keep=1)).tensors
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert found[name].dtype == dtype
        assert found[name].shape == tensor.shape
        assert bits(found[name]) == bits(tensor), name


def test_plain_values_come_back_as_they_were(tmp_path: Path) -> None:
    plain = {"a": 0.1 + 0.2, "b": None, "c": [1, True, "x"], "d": {"e": -0.0}, "inf": float("inf")}
    assert checkpoint.load(checkpoint.save(tmp_path, 1, {}, plain, keep=1)).plain == plain


def test_tensors_that_share_memory_are_saved_each_on_its_own(tmp_path: Path) -> None:
    flat = torch.arange(6.0)
    tensors = {"whole": flat, "again": flat, "front": flat[:2], "back": flat[2:].view(2, 2), "odd": flat[::2]}
    found = checkpoint.load(checkpoint.save(tmp_path, 1, tensors, {}, keep=1)).tensors
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor), name


def test_the_newest_are_kept_and_latest_names_the_last(tmp_path: Path) -> None:
    saved(tmp_path, 2, 10, 100, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "step-00000010", "step-00000100"]
    assert (tmp_path / "latest").read_text() == "step-00000100\n"


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    saved(tmp_path, 3)
    path = checkpoint.save(tmp_path, 3, {"w": torch.ones(2)}, {}, keep=1)
    assert torch.equal(checkpoint.load(path).tensors["w"], torch.ones(2))


def test_nothing_is_deleted_before_the_new_one_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path, 1, 2, keep=2)

    def full_disk(*_: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", full_disk)
    with pytest.raises(RunFolderError, match="step-00000003 cannot be written: the disk is full"):
        saved(tmp_path, 3, keep=1)
    assert not list(tmp_path.glob(".step-*")), "half a checkpoint holds on to room"
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert found[0].step == 2
    assert (tmp_path / "step-00000001").is_dir()


@pytest.mark.parametrize("text", [None, "", "step-000", "step-00000001\n", "step-00009999\n"])
def test_the_newest_is_found_whatever_latest_says(tmp_path: Path, text: str | None) -> None:
    saved(tmp_path, 1, 2)
    (tmp_path / "latest").unlink()
    if text is not None:
        (tmp_path / "latest").write_text(text)
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert found[0].path.name == "step-00000002"


def test_leftovers_of_a_killed_process_are_not_taken_for_checkpoints_and_are_swept_up(tmp_path: Path) -> None:
    saved(tmp_path, 5)
    for name in (".step-00000006.partial", ".step-00000004.doomed"):
        shutil.copytree(tmp_path / "step-00000005", tmp_path / name)
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert found[0].path.name == "step-00000005"
    saved(tmp_path, 6)
    assert not list(tmp_path.glob(".*"))


def test_no_checkpoint_is_no_error(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path / "nothing") is None
    assert checkpoint.newest(tmp_path) is None


def tear_tensors(folder: Path) -> None:
    data = (folder / "tensors.safetensors").read_bytes()
    (folder / "tensors.safetensors").write_bytes(data[:-1])


def tear_state(folder: Path) -> None:
    text = (folder / "state.json").read_text()
    (folder / "state.json").write_text(text[: len(text) // 2])


def lose_tensors(folder: Path) -> None:
    (folder / "tensors.safetensors").unlink()


def lose_state(folder: Path) -> None:
    (folder / "state.json").unlink()


def foreign_state(folder: Path) -> None:
    (folder / "state.json").write_text("{}")


def edit_state(folder: Path) -> None:
    text = (folder / "state.json").read_text()
    assert '"step": 2' in text
    (folder / "state.json").write_text(text.replace('"step": 2', '"step": 3'))


def add_key(folder: Path) -> None:
    seal(folder, lambda state: {**state, "more": 1})


def drop_key(folder: Path) -> None:
    seal(folder, lambda state: {k: v for k, v in state.items() if k != "tensors_crc32"})


def rename(folder: Path) -> None:
    seal(folder, lambda state: {**state, "step": 7})


def as_format_1(folder: Path) -> None:
    """Format 1 with a key that it never had: an edited head does not get past the checksum so."""
    text = (folder / "state.json").read_text()
    (folder / "state.json").write_text(json.dumps({**json.loads(text), "format": 1, "crc": 3}))


def seal(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Change ``state.json`` and give it the checksum that belongs to it."""
    state = json.loads((folder / "state.json").read_text())
    del state["crc32"]
    body = json.dumps(change(state), indent=1).removeprefix("{\n").encode()
    (folder / "state.json").write_bytes(b'{"crc32": %d,\n' % zlib.crc32(body) + body)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (tear_tensors, "bytes"),
        (tear_state, "the checksum of state.json is wrong"),
        (edit_state, "the checksum of state.json is wrong"),
        (add_key, "has unknown more"),
        (drop_key, "lacks tensors_crc32"),
        (rename, "says step 7, and the folder's name says 2"),
        (as_format_1, "has unknown crc"),
        (lose_tensors, "tensors.safetensors is missing"),
        (lose_state, "state.json is missing"),
        (foreign_state, "has no checksum on its first line"),
    ],
)
def test_a_damaged_checkpoint_is_named_passed_over_and_not_loaded(
    tmp_path: Path, damage: object, words: str
) -> None:
    _, bad = saved(tmp_path, 1, 2)
    damage(bad)  # type: ignore[operator]
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert found[0].path.name == "step-00000001"
    (fault,) = found[1]
    assert "step-00000002" in fault
    assert words in fault
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.load(bad)


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
def test_a_changed_bit_is_noticed_in_whatever_byte(tmp_path: Path, name: str) -> None:
    (path,) = saved(tmp_path, 1)
    whole = (path / name).read_bytes()
    for place in range(len(whole)):
        data = bytearray(whole)
        data[place] ^= 1 << 5 * place % 8
        (path / name).write_bytes(data)
        with pytest.raises(CheckpointError, match="damaged"):
            checkpoint.load(path)
    (path / name).write_bytes(whole)
    assert checkpoint.load(path).step == 1


def test_format_1_had_no_checksum_of_its_state_and_is_read(tmp_path: Path) -> None:
    (path,) = saved(tmp_path, 1)
    state = json.loads((path / "state.json").read_text())
    del state["crc32"]
    (path / "state.json").write_text(json.dumps({**state, "format": 1}))
    found = checkpoint.load(path)
    assert (found.step, found.format) == (1, 1)


def test_when_all_are_damaged_each_is_named(tmp_path: Path) -> None:
    for path in saved(tmp_path, 1, 2):
        tear_tensors(path)
    with pytest.raises(CheckpointError, match=r"step-00000002.*step-00000001"):
        checkpoint.newest(tmp_path)


def test_another_format_is_refused_and_not_passed_over(tmp_path: Path) -> None:
    _, path = saved(tmp_path, 1, 2)
    seal(path, lambda state: {**state, "format": 99})
    for read in (lambda: checkpoint.newest(tmp_path), lambda: checkpoint.load(path)):
        with pytest.raises(CheckpointError, match=r"format 99.*reads formats 1 and 2"):
            read()


def test_damaged_newer_checkpoints_make_way_and_are_not_lost(tmp_path: Path) -> None:
    _, bad = saved(tmp_path, 1, 2)
    tear_tensors(bad)
    checkpoint.set_aside_newer(tmp_path, 1)
    assert (tmp_path / "damaged-step-00000002").is_dir()
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert (found[0].path, found[1]) == (tmp_path / "step-00000001", ())
