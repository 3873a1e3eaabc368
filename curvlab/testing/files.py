"""Tensors through files: what they are when they come back."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save


def through_torch_save(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Saved by ``torch.save`` and loaded with ``weights_only``."""
    file = io.BytesIO()
    torch.save(dict(tensors), file)
    file.seek(0)
    loaded: dict[str, Tensor] = torch.load(file, weights_only=True)
    return loaded


def through_distributed_checkpoint(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Saved by ``torch.distributed.checkpoint``, and loaded into tensors of the same shape and dtype."""
    loaded = {name: torch.empty_like(t) for name, t in tensors.items()}
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no process group, and no others to wait for
        save({"state": dict(tensors)}, checkpoint_id=folder)
        load({"state": loaded}, checkpoint_id=folder)
    return loaded
