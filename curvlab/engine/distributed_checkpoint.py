"""A model and its optimizer in a folder, for another number of processes: ``torch.distributed.checkpoint``.

Every process writes the shards that it has and the states of the blocks that it owns.  Every process reads
those that it has and owns then, in whatever number they are.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load as load_parts
from torch.distributed.checkpoint.state_dict_saver import save as save_parts

from curvlab.engine.optimizer import CurvatureOptimizer
from curvlab.engine.saved import block_of
from curvlab.errors import CheckpointError

#: where the folder has what
MODEL, TENSORS, PLAIN = "model", "curvlab.tensors", "curvlab.plain"


def save(folder: str | PathLike[str], model: nn.Module, optimizer: CurvatureOptimizer) -> None:
    """Write the state of a model and its optimizer; every process calls it.

    The folder is one of ``torch.distributed.checkpoint``, with the model's ``state_dict`` under ``"model"``.
    """
    tensors, plain = optimizer.snapshot()
    rank = dist.get_rank() if _together() else 0
    words = torch.frombuffer(bytearray(json.dumps(plain).encode()), dtype=torch.uint8)
    state = {MODEL: model.state_dict(), TENSORS: tensors, f"{PLAIN}.{rank}": words}
    with _alone_or_together() as alone:
        save_parts(state, checkpoint_id=folder, no_dist=alone)


def load(folder: str | PathLike[str], model: nn.Module, optimizer: CurvatureOptimizer) -> None:
    """Take on what ``save`` wrote, in any number of processes; every process calls it.

    Raises ``CheckpointError`` for a folder that ``save`` did not write, and for the state of another method
    or model; the model's parameters are then those of the folder, if it has them.
    """
    written = FileSystemReader(folder).read_metadata().state_dict_metadata
    plain = _plain(folder, written)
    names = [n.removeprefix(f"{TENSORS}.") for n in written if n.startswith(f"{TENSORS}.")]
    blocks, owners = optimizer.blocks.layout.shapes, optimizer.owners
    wanted = {}
    for name in names:
        owner = None if owners is None else owners.of.get(block_of(name, blocks))
        if owner is None or owners is None or owner == owners.ranks.rank:
            wanted[name] = _empty(written[f"{TENSORS}.{name}"], optimizer)
    parameters = model.state_dict()
    state: dict[str, Any] = {MODEL: parameters, **{f"{TENSORS}.{n}": t for n, t in wanted.items()}}
    with _alone_or_together() as alone:
        load_parts(state, checkpoint_id=folder, no_dist=alone)
    model.load_state_dict(parameters)
    optimizer.restore(wanted, plain)


def _plain(folder: str | PathLike[str], written: Any) -> dict[str, Any]:
    """The plain values of all processes."""
    words = {
        n: torch.empty(m.size, dtype=torch.uint8, device="cpu")
        for n, m in written.items()
        if n.startswith(PLAIN)
    }
    if not words:
        raise CheckpointError(f"{folder} holds no optimizer of curvlab; pass a folder that save() wrote")
    with _alone_or_together() as alone:
        load_parts(words, checkpoint_id=folder, no_dist=alone)
    found: dict[str, Any] = {}
    for name in sorted(words, reverse=True):  # the first process speaks for what all have
        found.update(json.loads(bytes(words[name].tolist())))
    return found


def _empty(written: Any, optimizer: CurvatureOptimizer) -> Tensor:
    return torch.empty(written.size, dtype=written.properties.dtype, device=optimizer.blocks.like.device)


@contextmanager
def _alone_or_together() -> Iterator[bool]:
    """Whether this is the only process, which torch then need not warn of."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield not _together()


def _together() -> bool:
    return dist.is_available() and dist.is_initialized()
