"""Checkpoints on disk: a folder per step that is whole or not there at all.

    checkpoints/step-00001234/tensors.safetensors     every tensor, by name, in its own dtype
    checkpoints/step-00001234/state.json              everything else, and how to tell damage
    checkpoints/latest                                the name of the newest, for people and scripts

A checkpoint is written beside its place, flushed to the disk and renamed; only then are older ones
deleted.  What is *in* it is ``engine/training.py``'s business.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from curvlab.errors import CheckpointError

#: of the files' layout; raised when an older curvlab could no longer read what is written
FORMAT = 1
TENSORS, STATE, LATEST = "tensors.safetensors", "state.json", "latest"
_KEYS = frozenset({"format", "step", "tensors_bytes", "tensors_crc32", "state"})
_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds: tensors by name, and plain values that JSON can say."""

    path: Path
    step: int
    tensors: Mapping[str, Tensor]
    plain: Mapping[str, Any]


def save(
    root: Path, step: int, tensors: Mapping[str, Tensor], plain: Mapping[str, Any], *, keep: int
) -> Path:
    """Write ``root/step-…`` whole, name it in ``latest``, then delete all but the newest ``keep``.

    Tensors may share memory and live anywhere; dtype and bits are kept.  A crash at any moment leaves
    every earlier checkpoint as it was.
    """
    root.mkdir(parents=True, exist_ok=True)
    target = root / f"step-{step:08d}"
    partial = root / f".{target.name}.partial"
    for leftover in root.glob(".step-*"):  # of a process that was killed while writing or deleting
        shutil.rmtree(leftover)
    partial.mkdir()
    save_file(_apart(tensors), partial / TENSORS)
    _flush(partial / TENSORS)
    head = {
        "format": FORMAT,
        "step": step,
        "tensors_bytes": (partial / TENSORS).stat().st_size,
        "tensors_crc32": _crc32(partial / TENSORS),
    }
    text = json.dumps({**head, "state": plain}, indent=1, allow_nan=True)
    (partial / STATE).write_text(text + "\n", encoding="utf-8")
    _flush(partial / STATE)
    _flush(partial)
    _swap_in(partial, target)
    _point(root / LATEST, target.name)
    for old in _folders(root)[: -max(keep, 1)]:
        _discard(old)
    return target


def newest(root: Path) -> tuple[Path, tuple[str, ...]] | None:
    """The newest whole checkpoint under ``root``, and what is wrong with newer ones; ``None`` if none.

    ``latest`` is not believed, so that a crash between two writes does no harm.  Raises ``CheckpointError``
    if there are checkpoints but each is damaged.
    """
    faults: list[str] = []
    for folder in reversed(_folders(root)):
        fault = _fault(folder)
        if fault is None:
            return folder, tuple(faults)
        faults.append(f"{folder.name}: {fault}")
    if faults:
        raise CheckpointError(f"no whole checkpoint in {root}: " + "; ".join(faults))
    return None


def set_aside_newer(root: Path, step: int) -> None:
    """Rename checkpoints of steps after ``step`` to ``damaged-step-…``: the run will write its own."""
    for folder in _folders(root):
        if _step_of(folder) > step:
            aside = folder.with_name(f"damaged-{folder.name}")
            shutil.rmtree(aside, ignore_errors=True)  # of an earlier accident at the same step
            folder.rename(aside)


def load(path: Path) -> Checkpoint:
    """Read one checkpoint, checking every byte; raises ``CheckpointError`` in words."""
    fault = _fault(path)
    if fault is not None:
        raise CheckpointError(f"checkpoint {path} is damaged: {fault}")
    state = json.loads((path / STATE).read_text(encoding="utf-8"))
    if state["format"] != FORMAT:
        raise CheckpointError(
            f"checkpoint {path} has format {state['format']}, this curvlab reads format {FORMAT}; "
            "go on with the curvlab version that the run's manifest.json names"
        )
    if _crc32(path / TENSORS) != state["tensors_crc32"]:
        raise CheckpointError(f"checkpoint {path} is damaged: {TENSORS} does not hold what was written")
    try:
        tensors = load_file(path / TENSORS)
    except SafetensorError as error:
        raise CheckpointError(f"checkpoint {path} is damaged: {TENSORS} cannot be read: {error}") from error
    return Checkpoint(path, int(state["step"]), tensors, state["state"])


def write_atomically(path: Path, text: str) -> None:
    """Replace a small text file in one move: readers see the old text or the new."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    _flush(partial)
    os.replace(partial, path)
    _flush(path.parent)


def _point(latest: Path, name: str) -> None:
    """Replace ``latest``; not flushed, because nothing depends on what it says after a power cut."""
    partial = latest.with_name(f".{latest.name}.partial")
    partial.write_text(name + "\n", encoding="utf-8")
    os.replace(partial, latest)


def _fault(folder: Path) -> str | None:
    """What is wrong with a checkpoint, as far as sizes and JSON tell; ``None`` if nothing is."""
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        size = (folder / TENSORS).stat().st_size
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except ValueError:
        return f"{STATE} is torn"
    if not isinstance(state, dict) or not set(state) >= _KEYS:
        return f"{STATE} is not a checkpoint's"
    if size != state["tensors_bytes"]:
        return f"{TENSORS} has {size} bytes, {state['tensors_bytes']} were written"
    return None


def _folders(root: Path) -> list[Path]:
    """The checkpoint folders, oldest first; leftovers of other names are not looked at."""
    if not root.is_dir():
        return []
    return sorted((f for f in root.iterdir() if _NAME.fullmatch(f.name) and f.is_dir()), key=_step_of)


def _step_of(folder: Path) -> int:
    match = _NAME.fullmatch(folder.name)
    assert match is not None
    return int(match.group(1))


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors in host memory, none sharing memory with another, as safetensors wants them."""
    apart: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        host = tensor.detach().cpu().contiguous()
        storage = host.untyped_storage()
        if storage.nbytes() != host.nbytes or (host.nbytes and storage.data_ptr() in taken):
            host = host.clone()  # a view of a larger buffer, or of one that another name stands for
        taken.add(host.untyped_storage().data_ptr())
        apart[name] = host
    return apart


def _swap_in(partial: Path, target: Path) -> None:
    """Rename ``partial`` to ``target``, which may exist from before a resume."""
    if target.exists():
        _discard(target)
    partial.rename(target)
    _flush(target.parent)


def _discard(folder: Path) -> None:
    """Delete a checkpoint; renamed first, because half a one must not stand under a good name."""
    doomed = folder.with_name(f".{folder.name}.doomed")
    folder.rename(doomed)
    shutil.rmtree(doomed)


def _flush(path: Path) -> None:
    """Make sure that a file's bytes, or a folder's entries, are on the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open folders; its renames are journalled
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _crc32(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            value = zlib.crc32(chunk, value)
    return value
