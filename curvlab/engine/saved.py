"""An optimizer as data: for checkpoints, for torch's ``state_dict``, and for copies.

``optimizer`` is a ``CurvatureOptimizer``, whose module imports this one.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from curvlab.engine.averaging import PREFIX
from curvlab.engine.health import require_finite_tensors
from curvlab.engine.state import export
from curvlab.engine.state import restore as refill
from curvlab.errors import CheckpointError, ConfigError, Fault
from curvlab.objectives.ranks import ranks_of
from curvlab.protocols.backend import Backend
from curvlab.protocols.pieces import whole

#: version of the layout of ``state_dict`` and ``snapshot``
STATE_VERSION = 2
#: where torch's ``state_dict`` carries the plain values
PLAIN = "curvlab"
#: what is ``None`` in the state of an arm whose blocks are all with other processes
UNHELD = "preconditioner"


def snapshot(optimizer: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Every state as named tensors (live) and plain values."""
    tensors: dict[str, Tensor] = {"generator": optimizer.generator.get_state()}
    plain: dict[str, Any] = {
        "version": STATE_VERSION,
        "steps": optimizer.steps,
        "groups": [_settings(g) for g in optimizer.param_groups],
        "untapped": sorted(optimizer.blocks.untapped),
        "arms": optimizer.assignment.layout(),
    }
    if optimizer.scale is not None:
        plain["loss_scale"] = [optimizer.scale.value, optimizer.scale.good]
    if optimizer.averaging is not None:
        held, values = optimizer.averaging.snapshot()
        tensors.update(held)
        plain.update(values)
    for arm in optimizer.arms:
        t, p = export(arm.state)
        if arm.idle:  # the processes that hold its blocks have a state here
            del p[UNHELD]
        tensors.update({f"{arm.name}/{path}": value for path, value in t.items()})
        plain.update({f"{arm.name}/{path}": value for path, value in p.items()})
    return tensors, plain


class PartialState(UserWarning):
    """A ``state_dict`` holds the state of the blocks of one process alone."""


def warn_of_part(optimizer: Any) -> None:
    """Warn, once for an optimizer, that the other processes hold the rest of its state."""
    if optimizer.owners is None or optimizer.told_of_part:
        return
    optimizer.told_of_part = True
    rank, size = optimizer.ranks.rank, optimizer.ranks.size
    warnings.warn(
        f"state_dict() of rank {rank} holds the state of its own blocks, one of {size} parts. Save it by"
        " curvlab.engine.distributed_checkpoint.save, or save what whole_snapshot() gives rank 0; or make"
        ' the optimizer with placement="replicate"',
        PartialState,
        stacklevel=4,
    )


def whole_snapshot(optimizer: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """``snapshot`` of what all processes hold, on the first; what the others get is of no use."""
    tensors, plain = snapshot(optimizer)
    if optimizer.owners is None:
        return tensors, plain
    ranks = optimizer.ranks
    together: dict[str, Any] = {}
    for theirs in reversed(ranks.each(plain)):
        together.update(theirs)
    return ranks.collected(tensors), together


def restore(optimizer: Any, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
    """Put ``optimizer`` where ``snapshot`` found it; raises ``CheckpointError`` if kinds differ."""
    if plain.get("version") != STATE_VERSION:
        raise CheckpointError(
            f"the optimizer's state has version {plain.get('version')}, expected {STATE_VERSION}; "
            "load it with the curvlab version that saved it"
        )
    _require_whole(plain, tensors)
    _require_average(optimizer, tensors)
    theirs, mine = len(plain["groups"]), len(optimizer.param_groups)
    if theirs != mine:
        raise CheckpointError(
            f"the state has {theirs} parameter groups, and this optimizer has {mine}; "
            "make the optimizer with the groups that it had when the state was saved"
        )
    arms = optimizer.assignment
    kept = set(optimizer.blocks.untapped), arms.members, arms.unread
    optimizer.blocks.untapped.clear()
    optimizer.blocks.untapped.update(plain["untapped"])
    try:
        arms.lay_out(optimizer.blocks, [list(row) for row in plain["arms"]])
        for arm in optimizer.arms:
            start = f"{arm.name}/"
            found = {k[len(start) :]: v for k, v in tensors.items() if k.startswith(start)}
            values = {k[len(start) :]: v for k, v in plain.items() if k.startswith(start)}
            if optimizer.owners is not None:  # the state may be that of all processes
                held, own = export(arm.state)
                found = {k: v for k, v in found.items() if k in held}
                values = {k: v for k, v in values.items() if k in own}
                if arm.idle:
                    values[UNHELD] = None
            refill(arm.state, found, values)
        if optimizer.averaging is not None:
            optimizer.averaging.restore(tensors, plain)
    except CheckpointError:
        optimizer.blocks.untapped.clear()
        optimizer.blocks.untapped.update(kept[0])
        arms.members, arms.unread = kept[1:]
        raise
    for group, values in zip(optimizer.param_groups, plain["groups"], strict=True):
        group.update({k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
    if optimizer.scale is not None and "loss_scale" in plain:
        optimizer.scale.value, optimizer.scale.good = plain["loss_scale"]
    optimizer.settings.forget()
    optimizer.generator.set_state(tensors["generator"].cpu())
    optimizer.steps = plain["steps"]
    optimizer.ambient.listen(optimizer.needs(optimizer.steps))


def _require_whole(plain: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Raise ``CheckpointError`` for missing, unknown and malformed entries; arms look at their own."""
    arms = plain.get("arms")
    rows = isinstance(arms, (list, tuple)) and all(
        isinstance(row, (list, tuple)) and len(row) == 3 and isinstance(row[2], (list, tuple)) for row in arms
    )
    own = (PREFIX, *(f"{row[0]}/" for row in arms)) if rows and arms is not None else ()
    checks = {
        "steps": isinstance(plain.get("steps"), int),
        "groups": _are_tables(plain.get("groups")),
        "untapped": isinstance(plain.get("untapped"), (list, tuple)),
        "arms": rows,
        "generator": "generator" in tensors,
        "loss_scale": _is_scale(plain.get("loss_scale", (1.0, 0))),
    }
    unknown = {k for k in plain if k not in {*checks, "version"} and not k.startswith(own)}
    wrong = [*(key for key, good in checks.items() if not good), *sorted(unknown)]
    if wrong:
        raise CheckpointError(
            f"the optimizer's state has missing, unknown or malformed entries: {', '.join(wrong[:5])}"
        )


def _require_average(optimizer: Any, tensors: Mapping[str, Tensor]) -> None:
    """Raise ``CheckpointError`` where only one of the two keeps an average of the weights."""
    theirs, mine = any(n.startswith(PREFIX) for n in tensors), optimizer.averaging is not None
    if theirs != mine:
        keeps = {True: "holds an average of the weights", False: "holds none"}
        raise CheckpointError(
            f"the state {keeps[theirs]}, and this optimizer {keeps[mine]}; make the optimizer with the"
            " average that it had when the state was saved"
        )


def _is_scale(pair: Any) -> bool:
    """A loss scale and the number of steps since it last changed."""
    if not isinstance(pair, (list, tuple)) or len(pair) != 2:
        return False
    return isinstance(pair[0], (int, float)) and pair[0] > 0 and isinstance(pair[1], int)


def _are_tables(groups: Any) -> bool:
    return isinstance(groups, (list, tuple)) and all(isinstance(group, Mapping) for group in groups)


def with_plain(state_dict: dict[str, Any], plain: Mapping[str, Any]) -> dict[str, Any]:
    """torch's own ``state_dict`` with the plain values in its first group.

    Raises ``Diverged`` if a tensor is not finite: what cannot be trained from would replace what can.
    """
    held = {path: t for entry in state_dict["state"].values() for path, t in entry.items()}
    require_finite_tensors(
        held,
        "state_dict() returns no state that is not finite; load an earlier one. Non-finite tensors",
    )
    state_dict["param_groups"][0][PLAIN] = {k: v for k, v in plain.items() if k != "groups"}
    return state_dict


def taken_apart(
    state_dict: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What ``snapshot`` gave, out of a ``state_dict``; raises ``CheckpointError`` if it holds none."""
    theirs = state_dict.get("param_groups") if isinstance(state_dict, Mapping) else None
    if not theirs or PLAIN not in theirs[0] or "state" not in state_dict:
        raise CheckpointError(
            "the state_dict does not come from a curvlab optimizer; pass what its state_dict() returned"
        )
    sizes, mine = ([len(g["params"]) for g in listed] for listed in (theirs, groups))
    if sizes != mine:
        raise CheckpointError(
            f"the state_dict has groups of {_listed(sizes)} parameters, and this optimizer has groups of "
            f"{_listed(mine)}; make the optimizer with the same groups"
        )
    tensors: dict[str, Tensor] = {}
    for entry in state_dict["state"].values():
        tensors.update(entry)
    require_finite_tensors(
        tensors,
        "the state_dict is not finite; load an earlier one. Non-finite tensors",
    )
    return tensors, {**theirs[0][PLAIN], "groups": [_settings(g) for g in theirs]}


def shown(optimizer: Any) -> defaultdict[Tensor, Any]:
    """The live tensors under the first parameter of their block, as torch's tools look for them."""
    tensors, _ = snapshot(optimizer)
    blocks = optimizer.blocks
    first = {b.name: blocks.parameters[whole(b.parameters[0])] for b in blocks.members}
    anywhere = next(iter(first.values()))
    found: defaultdict[Tensor, Any] = defaultdict(dict)
    found.update({p: {} for group in optimizer.param_groups for p in group["params"]})
    for path, tensor in tensors.items():
        found[first.get(block_of(path, first), anywhere)][path] = tensor
    return found


@dataclass(frozen=True)
class Recipe:
    """What makes an optimizer anew, as it was before its first step."""

    given: tuple[Any, ...]
    model: nn.Module
    backend: Backend
    name: str
    distributed: bool
    groups: list[list[str]]

    def arguments(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        method, seed, reduction, examples, strict, readers, placement, average = self.given
        named = dict(self.model.named_parameters())
        groups = [{"params": [named[n] for n in names]} for names in self.groups]
        return {
            "method": method,
            "model": self.model,
            "backend": self.backend,
            "seed": seed,
            "reduction": reduction,
            "name": self.name,
            "ranks": ranks_of("world") if self.distributed else None,
            "groups": groups if len(groups) > 1 else (),
            "examples": examples,
            "strict": strict,
            "readers": readers,
            "placement": placement,
            "average": average,
        }


def recipe(optimizer: Any) -> Recipe:
    """Raises ``ConfigError`` for an optimizer over a part of the processes."""
    ranks = optimizer.ranks
    if ranks is not None and not ranks.is_world:
        raise ConfigError(
            Fault(
                "an optimizer over a group of processes cannot be copied or pickled",
                hint="save its state_dict(), make a new optimizer, and load the state_dict into it",
            )
        )
    names = {id(p): n for n, p in optimizer.model.named_parameters()}
    groups = [[names[id(p)] for p in g["params"]] for g in optimizer.param_groups]
    return Recipe(
        optimizer.given, optimizer.model, optimizer.backend, optimizer.name, ranks is not None, groups
    )


def _settings(group: Mapping[str, Any]) -> dict[str, Any]:
    """A group without its parameters and the plain values."""
    return {k: v for k, v in group.items() if k not in ("params", PLAIN)}


def _listed(sizes: Sequence[int]) -> str:
    return " and ".join(map(str, sizes))


def block_of(path: str, names: Mapping[str, Any]) -> str:
    """The block that a state path names: behind ``@``, or the longest name among its dotted parts."""
    if "@" in path:
        return path.rpartition("@")[2]
    found = [n for n in names if f".{n}." in path or path.endswith(f".{n}")]
    return max(found, key=len, default="")
