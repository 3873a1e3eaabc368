"""Models that ``torch.distributed.fsdp.fully_shard`` has sharded: what of them can be trained."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from curvlab.errors import ConfigError, Fault
from curvlab.protocols.shards import Shards

DDP = "train with DistributedDataParallel"


def shards_of(model: nn.Module) -> Shards | None:
    """The shards of a model, or ``None`` for a model that every process holds whole.

    Gathers the model once, module by module, to find the tensors that its passes compute with.  Raises
    ``ConfigError`` with every parameter that is sharded in another way than by rows over one axis of
    processes, for a policy of mixed precision or offloading, and for FSDP1.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return None
    from torch.distributed.fsdp import FSDPModule  # takes half a second

    _refuse_flattened(model)
    wrapped = [m for m in model.modules() if isinstance(m, FSDPModule)]
    for module in wrapped:
        module.reshard()
    named = dict(model.named_parameters())
    if not any(_is_sharded(p) for p in named.values()):
        return None
    faults = [*(_layouts(named) if isinstance(model, FSDPModule) else _unwrapped(named))]
    if faults:
        raise ConfigError(*faults)
    mesh = _mesh(named.values())
    leaves = _leaves(model, wrapped, named)
    return Shards(leaves, wrapped, mesh.size(), mesh.get_local_rank())


def group_of(model: nn.Module) -> Any:
    """The processes that hold the shards of a model, as a group of ``torch.distributed``."""
    return _mesh(model.parameters()).get_group()


def _mesh(parameters: Iterable[Any]) -> Any:
    """The processes that the first sharded parameter is on."""
    return next(p for p in parameters if _is_sharded(p)).device_mesh


def _leaves(model: nn.Module, wrapped: list[Any], named: Mapping[str, Any]) -> dict[str, nn.Parameter]:
    for module in wrapped:
        module.unshard()
    found = dict(model.named_parameters())
    for module in wrapped:
        module.reshard()
    for name, p in named.items():
        leaf = found[name]
        if leaf.dtype != p.dtype:
            raise ConfigError(
                Fault(
                    f"fully_shard computes with {name} in {_short(leaf.dtype)} and keeps it in"
                    f" {_short(p.dtype)} (mp_policy); layer statistics are read in one dtype",
                    hint="call fully_shard without MixedPrecisionPolicy(param_dtype=…); use torch.autocast",
                )
            )
        if leaf.device != p.device:
            raise ConfigError(
                Fault(
                    f"fully_shard keeps {name} on {p.device} and computes with it on {leaf.device}"
                    " (offload_policy); expected one device",
                    hint="call fully_shard without CPUOffloadPolicy",
                )
            )
    return found


def _layouts(named: Mapping[str, Any]) -> Iterator[Fault]:
    """Parameters that are not by rows over the one axis of processes that the first is on."""
    mesh = _mesh(named.values())
    for name, p in named.items():
        if not _is_sharded(p):
            if p.requires_grad:
                what = f"parameter {name} is whole in every process, so fully_shard does not average its"
                yield Fault(f"{what} gradients", hint="leave it out of ignored_params, or freeze it")
        elif p.device_mesh != mesh or p.device_mesh.ndim != 1:
            what = f"parameter {name} is a DTensor over {p.device_mesh}; expected all parameters on one mesh"
            yield Fault(f"{what} of one axis", hint=f"pass fully_shard a mesh of one axis, or {DDP}")
        elif not p.placements[0].is_shard(0):
            what = f"parameter {name} is a DTensor with placement {p.placements[0]}; expected Shard(0)"
            yield Fault(what, hint="call fully_shard without shard_placement_fn and tensor parallelism")
        elif p.is_complex():
            what = f"parameter {name} is a complex DTensor; expected a real one"
            yield Fault(what, hint=DDP)


def _unwrapped(named: Mapping[str, Any]) -> Iterator[Fault]:
    name = next(name for name, p in named.items() if _is_sharded(p))
    what = f"parameter {name} is a DTensor, of which each rank holds a part, but the model itself is not"
    yield Fault(f"{what} wrapped by fully_shard", hint=f"call fully_shard(model) last, or {DDP}")


def _refuse_flattened(model: nn.Module) -> None:
    if any(type(m).__name__ == "FullyShardedDataParallel" for m in model.modules()):
        what = "the model is wrapped in FullyShardedDataParallel, which flattens parameters; curvature needs"
        hint = f"use torch.distributed.fsdp.fully_shard, or {DDP}"
        raise ConfigError(Fault(f"{what} matrices", hint=hint))


def _is_sharded(p: Tensor) -> bool:
    from torch.distributed.tensor import DTensor

    return isinstance(p, DTensor)


def _short(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")
