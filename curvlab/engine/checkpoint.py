"""Checkpoints on disk: a folder per step that is whole or not there at all.

    checkpoints/step-00001234/tensors.safetensors     every tensor, by name, in its own dtype
    checkpoints/step-00001234/state.json              everything else, and how to tell damage
    checkpoints/latest                                the name of the newest, for people and scripts

The first line of ``state.json`` is the CRC-32 of all that follows it; what follows holds size and CRC-32
of the tensors' file.  So every changed bit is found, and a damaged checkpoint is passed over.
Format 1, written before there was that line, is read as well; its ``state.json`` cannot be verified.

A checkpoint is written beside its place, flushed to the disk and renamed; only then are older ones
deleted.  What is *in* it is ``engine/training.py``'s business.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_bytes
from safetensors.torch import load_file, save_file
from torch import Tensor

from curvlab.errors import CheckpointError
from curvlab.files import flush, parsed_object, reading, writing

#: of the files' layout; raised when what is written changes
FORMAT = 2
TENSORS, STATE, LATEST = "tensors.safetensors", "state.json", "latest"
_KEYS = frozenset({"format", "step", "tensors_bytes", "tensors_crc32", "state"})
_FIRST_LINE = re.compile(rb'\{"crc32": (\d+),\n')
_NAME = re.compile(r"step-(\d{8,})")

#: of the name of a complex tensor, which is kept as pairs of reals: safetensors has no complex128
_PAIRS = ":complex"


class _Damaged(Exception):
    """What is wrong with one checkpoint."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds: tensors by name, and plain values that JSON can say.

    The plain values of ``format`` 1 could not be verified.
    """

    path: Path
    step: int
    tensors: Mapping[str, Tensor]
    plain: Mapping[str, Any]
    format: int = FORMAT


def save(
    root: Path, step: int, tensors: Mapping[str, Tensor], plain: Mapping[str, Any], *, keep: int
) -> Path:
    """Write ``root/step-…`` whole, name it in ``latest``, then delete all but the newest ``keep``.

    Tensors may share memory and live anywhere; dtype and bits are kept.  ``root`` is made if its parent is
    there.  A crash at any moment leaves every earlier checkpoint as it was, and so does a failure to write,
    which raises ``RunFolderError`` and leaves nothing behind.
    """
    target = root / f"step-{step:08d}"
    partial = root / f".{target.name}.partial"
    with writing(target):
        root.mkdir(exist_ok=True)
        for leftover in root.glob(".step-*"):  # of a process that was killed while writing or deleting
            shutil.rmtree(leftover)
        try:
            _write(partial, step, tensors, plain)
        except OSError:
            shutil.rmtree(partial, ignore_errors=True)  # it holds on to the room that is lacking
            raise
        _swap_in(partial, target)
        _point(root / LATEST, target.name)
        for old in _folders(root)[: -max(keep, 1)]:
            _discard(old)
    return target


def _write(partial: Path, step: int, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
    partial.mkdir()
    with _as_os_error():
        save_file(_apart(tensors), partial / TENSORS)
    flush(partial / TENSORS)
    document = {
        "format": FORMAT,
        "step": step,
        "tensors_bytes": (partial / TENSORS).stat().st_size,
        "tensors_crc32": _crc32(partial / TENSORS),
        "state": plain,
    }
    body = json.dumps(document, indent=1, allow_nan=True).removeprefix("{\n").encode() + b"\n"
    (partial / STATE).write_bytes(b'{"crc32": %d,\n' % zlib.crc32(body) + body)
    flush(partial / STATE)
    flush(partial)


def newest(root: Path) -> tuple[Checkpoint, tuple[str, ...]] | None:
    """The newest whole checkpoint under ``root``, and what is wrong with newer ones; ``None`` if none.

    ``latest`` is not believed, so that a crash between two writes does no harm.  Reads every byte.  Raises
    ``CheckpointError`` if there are checkpoints but each is damaged, and for one of an unknown format.
    """
    faults: list[str] = []
    for folder in reversed(_folders(root)):
        try:
            return _read(folder), tuple(faults)
        except _Damaged as fault:
            faults.append(f"{folder.name}: {fault}")
    if faults:
        raise CheckpointError(
            f"no whole checkpoint in {root}: "
            + "; ".join(faults)
            + "; restore one from a backup, or start a new run with `curvlab train`"
        )
    return None


def exist(root: Path) -> bool:
    """Whether there is any checkpoint under ``root``, damaged ones included."""
    return bool(_folders(root))


def set_aside_newer(root: Path, step: int) -> None:
    """Rename checkpoints of steps after ``step`` to ``damaged-step-…``: the run will write its own."""
    for folder in _folders(root):
        if _step_of(folder) > step:
            aside = folder.with_name(f"damaged-{folder.name}")
            with writing(aside):
                shutil.rmtree(aside, ignore_errors=True)  # of an earlier accident at the same step
                folder.rename(aside)


def load(path: Path) -> Checkpoint:
    """Read one checkpoint, checking every byte; raises ``CheckpointError`` in words."""
    try:
        return _read(path)
    except _Damaged as fault:
        raise CheckpointError(f"checkpoint {path} is damaged: {fault}") from fault


def _point(latest: Path, name: str) -> None:
    """Replace ``latest``; not flushed, because nothing depends on what it says after a power cut."""
    partial = latest.with_name(f".{latest.name}.partial")
    partial.write_text(name + "\n", encoding="utf-8")
    os.replace(partial, latest)


def _read(folder: Path) -> Checkpoint:
    """One checkpoint; raises ``_Damaged``, or ``CheckpointError`` for a whole one of an unknown format."""
    state = _state(folder)
    with _damage_found(folder / TENSORS):
        size = (folder / TENSORS).stat().st_size
        if size != state["tensors_bytes"]:
            raise _Damaged(f"{TENSORS} has {size} bytes, expected {state['tensors_bytes']}")
        if _crc32(folder / TENSORS) != state["tensors_crc32"]:
            raise _Damaged(f"the checksum of {TENSORS} is wrong")
        try:
            tensors = _tensors(folder / TENSORS)
        except SafetensorError as error:
            raise _Damaged(f"{TENSORS} cannot be read: {error}") from error
    return Checkpoint(folder, state["step"], tensors, state["state"], state["format"])


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        str(path).encode()
    except UnicodeEncodeError:  # safetensors opens no such path; from bytes takes the memory twice
        return _joined(load_bytes(path.read_bytes()))
    return _joined(load_file(path))


def _joined(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by their own names, with pairs of reals as the complex numbers that they were."""
    return {
        name.removesuffix(_PAIRS): torch.view_as_complex(t) if name.endswith(_PAIRS) else t
        for name, t in tensors.items()
    }


def _state(folder: Path) -> dict[str, Any]:
    """The content of ``state.json``, verified as far as its format allows."""
    with _damage_found(folder / STATE):
        data = (folder / STATE).read_bytes()
    line = _FIRST_LINE.match(data)
    if line and int(line.group(1)) != zlib.crc32(data[line.end() :]):
        raise _Damaged(f"the checksum of {STATE} is wrong")
    try:
        state = parsed_object(data)
    except ValueError as error:
        raise _Damaged(f"{STATE} is not a complete JSON object: {error}") from error
    state.pop("crc32", None)
    form = state.get("format")
    if line and form != FORMAT:
        raise CheckpointError(
            f"checkpoint {folder} has format {form}, and this curvlab reads formats 1 and {FORMAT}; "
            "continue with the curvlab version in the run's manifest.json"
        )
    if not line and form != 1:
        raise _Damaged(f"{STATE} has no checksum on its first line")
    if set(state) != _KEYS:
        raise _Damaged(f"{STATE} {_unlike(set(state))}")
    if not isinstance(state["state"], dict) or state["step"] != _step_of(folder):
        raise _Damaged(f"{STATE} says step {state['step']}, and the folder's name says {_step_of(folder)}")
    return state


def _unlike(keys: set[str]) -> str:
    missing, foreign = sorted(_KEYS - keys), sorted(keys - _KEYS)
    listed = (("lacks", missing), ("has unknown", foreign))
    words = [f"{what} {', '.join(found)}" for what, found in listed if found]
    return " and ".join(words)


@contextmanager
def _damage_found(path: Path) -> Iterator[None]:
    """Inside, a missing file and one that the disk cannot read are damage; other errors become messages."""
    with reading(path):
        try:
            yield
        except FileNotFoundError as error:
            raise _Damaged(f"{path.name} is missing") from error
        except OSError as error:
            if error.errno not in (errno.EIO, errno.ENOTDIR, errno.EISDIR):
                raise
            raise _Damaged(f"{path.name} cannot be read: {error.strerror}") from error


@contextmanager
def _as_os_error() -> Iterator[None]:
    """safetensors hides the number of the operating system's error in its message."""
    try:
        yield
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number.group(1)), os.strerror(int(number.group(1)))) from error


def _folders(root: Path) -> list[Path]:
    """The checkpoint folders, oldest first; leftovers of other names are not looked at."""
    with reading(root):
        if not root.exists():
            return []
        return sorted((f for f in root.iterdir() if _NAME.fullmatch(f.name) and f.is_dir()), key=_step_of)


def _step_of(folder: Path) -> int:
    match = _NAME.fullmatch(folder.name)
    assert match is not None
    return int(match.group(1))


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous real tensors in host memory, none sharing memory with another, as safetensors wants them."""
    apart: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        host = tensor.detach().cpu().contiguous()
        storage = host.untyped_storage()
        if storage.nbytes() != host.nbytes or (host.nbytes and storage.data_ptr() in taken):
            host = host.clone()  # a view of a larger buffer, or of one that another name stands for
        taken.add(host.untyped_storage().data_ptr())
        if host.is_complex():
            apart[name + _PAIRS] = torch.view_as_real(host.resolve_conj())
        else:
            apart[name] = host
    return apart


def _swap_in(partial: Path, target: Path) -> None:
    """Rename ``partial`` to ``target``, which may exist from before a resume."""
    if target.exists():
        _discard(target)
    partial.rename(target)
    flush(target.parent)


def _discard(folder: Path) -> None:
    """Delete a checkpoint; renamed first, because half a one must not stand under a good name."""
    doomed = folder.with_name(f".{folder.name}.doomed")
    folder.rename(doomed)
    shutil.rmtree(doomed)


def _crc32(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            value = zlib.crc32(chunk, value)
    return value
