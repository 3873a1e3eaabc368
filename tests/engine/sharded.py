"""What processes train of one model in shards (``fully_shard``), and one process of the same model whole.

``python sharded.py RANK SIZE STORE OUT WHAT`` is one of the processes; WHAT are the arguments of ``main``
behind these, as JSON.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.nn.functional import cross_entropy

import curvlab
from curvlab.engine.distributed_checkpoint import load, save
from curvlab.errors import CurvlabError
from curvlab.objectives.shard_traffic import ShardTraffic
from tests.engine.small_gpt import LENGTH, WORDS, Attending, Gpt, Layer

#: batches, and those that a case is trained on
STEPS, TRAINED = 4, 3
#: examples of a step, all processes together: shares are equal for 1, 2 and 3 of them
EXAMPLES = 6
SCALE = 1024.0


@dataclass(frozen=True)
class Case:
    """A method, and how its loop steps."""

    method: str
    knobs: Mapping[str, Any] = field(default_factory=dict)
    objective: bool = False
    accumulated: bool = False  #: two backward passes a step, the first without synchronization
    clipped: bool = False
    cleared: str = ""  #: what the loop does with the gradients of a pass that is not of the step
    dtype: torch.dtype = torch.float64
    reshard: bool = True
    scaled: bool = False  #: by a GradScaler, with a loss of one process that overflows in one step
    net: Callable[[], nn.Module] = Gpt
    changing: bool = False  #: a module is not used in one step, a parameter unfrozen after it
    checkpointed: bool = False
    reduction: str = "mean-tokens"


CASES: dict[str, Case] = {
    "kfac": Case("kfac", {"labels": "data", "refresh": 1, "weight_decay": 0.1, "momentum": 0.9}),
    "singd": Case("singd", {"structure": "dense", "refresh": 2}),
    "soap": Case("soap"),
    "adamw": Case("adamw"),
    "kfac, not resharded": Case("kfac", {"labels": "data", "refresh": 1}, reshard=False),
    "kfac, accumulated": Case("kfac", {"labels": "data", "refresh": 1}, accumulated=True),
    "singd, accumulated": Case("singd", {"refresh": 1}, accumulated=True),
    "kfac, clipped": Case("kfac", {"labels": "data", "refresh": 1}, clipped=True),
    "kfac, zeroed": Case("kfac", {"labels": "data", "refresh": 1}, cleared="zero_"),
    "kfac, set to none": Case("kfac", {"labels": "data", "refresh": 1}, cleared="none"),
    "kfac, zero_grad": Case("kfac", {"labels": "data", "refresh": 1}, cleared="zero_grad"),
    "kfac, zero_grad between": Case("kfac", {"labels": "data", "refresh": 1}, cleared="between"),
    # fully_shard keeps a gradient that is not averaged yet, whatever zero_grad() does
    "kfac, held": Case("kfac", {"labels": "data", "refresh": 1}, accumulated=True, cleared="held"),
    "kfac, scaled": Case("kfac", {"labels": "data", "refresh": 1}, scaled=True),
    "kfac, scaled, clipped": Case("kfac", {"labels": "data", "refresh": 1}, scaled=True, clipped=True),
    "kfac, attention": Case("kfac", {"labels": "data", "refresh": 1}, net=Attending),
    "singd, attention, objective": Case("singd", {"refresh": 1}, net=Attending, objective=True),
    "kfac, float32": Case("kfac", {"labels": "data", "refresh": 1}, dtype=torch.float32),
    "kfac, changing": Case("kfac", {"labels": "data", "refresh": 1, "momentum": 0.9}, changing=True),
    "singd, checkpointed": Case("singd", {"refresh": 1}, checkpointed=True),
    "soap, changing, objective": Case("soap", changing=True, objective=True),
    "kfac, objective": Case("kfac", {"labels": "exact", "refresh": 1}, objective=True),
    "singd, objective": Case("singd", {"refresh": 2}, objective=True),
    "soap, objective": Case("soap", objective=True),
}


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    """The examples of all processes, step by step."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        words = torch.randint(WORDS, (EXAMPLES, LENGTH + 1), generator=generator)
        yield words[:, :-1], words[:, 1:]


def share(t: Tensor) -> Tensor:
    """This process's part of some examples."""
    return t.chunk(dist.get_world_size())[dist.get_rank()] if dist.is_initialized() else t


def model_of(case: Case) -> nn.Module:
    """In shards where there are processes."""
    model = case.net().to(case.dtype)
    model.checkpointed = case.checkpointed  # type: ignore[assignment]
    if dist.is_initialized():
        for layer in model.modules():
            if isinstance(layer, (Layer, nn.MultiheadAttention, nn.LSTM)):
                fully_shard(layer, reshard_after_forward=case.reshard)
        if isinstance(model, Gpt):
            fully_shard(model.narrow)
        fully_shard(model)
    return model


def loss_of(model: nn.Module, words: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(model(words), targets)


def disturb(case: Case, model: nn.Module, optimizer: torch.optim.Optimizer, words: Tensor) -> None:
    """A pass for another purpose, whose gradients are cleared."""
    if case.cleared == "between":  # between forward and backward
        found = model(words)
        optimizer.zero_grad()
        found.square().mean().backward()
        optimizer.zero_grad()
        return
    model(words).square().mean().backward()
    if case.cleared == "zero_grad":
        optimizer.zero_grad(set_to_none=False)
    for p in model.parameters():
        if case.cleared == "zero_" and p.grad is not None:
            p.grad.zero_()
        elif case.cleared == "none":
            p.grad = None


def first() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def synchronize(model: nn.Module, on: bool) -> None:
    if dist.is_initialized():
        model.set_requires_gradient_sync(on)  # type: ignore[operator]


def step(
    case: Case, model: nn.Module, optimizer: Any, words: Tensor, targets: Tensor, scaler: GradScaler
) -> None:
    """One step on the examples of all processes."""
    words, targets = share(words), share(targets)
    if case.objective:
        optimizer.step(curvlab.objective(model, nn.CrossEntropyLoss(), words, targets))
        return
    if not case.cleared:
        optimizer.zero_grad()
    halves = [(words, targets)]
    if case.accumulated:
        halves = [(words[:1], targets[:1]), (words[1:], targets[1:])]
    for k, (some, theirs) in enumerate(halves):
        synchronize(model, k == len(halves) - 1)
        if case.cleared == "held" and (k == 0 or dist.is_initialized()):
            optimizer.zero_grad()
        loss = loss_of(model, some, theirs) * (len(some) / len(words))
        if case.scaled and scaler.get_scale() > SCALE / 2 and optimizer.steps == 1 and first():
            loss = loss * torch.inf
        scaler.scale(loss).backward()
    if case.clipped:
        if case.scaled:
            scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    scaler.step(optimizer)
    scaler.update()
    if case.cleared not in ("", "held"):
        disturb(case, model, optimizer, words)


def whole(t: Tensor) -> Tensor:
    t = t.detach()
    return t.full_tensor() if isinstance(t, DTensor) else t.clone()


def trained(case: Case) -> dict[str, Any]:
    """Parameters after some steps, and what the optimizer holds."""
    model = model_of(case)
    optimizer = curvlab.optimizer(case.method, model, reduction=case.reduction, **case.knobs)
    scaler = GradScaler("cpu", init_scale=SCALE, enabled=case.scaled)
    for k, (words, targets) in enumerate([*batches()][:TRAINED]):
        if case.changing:
            model.gained = k != 1  # type: ignore[assignment]
            model.frozen.requires_grad_(k > 1)  # type: ignore[union-attr, operator]
        step(case, model, optimizer, words, targets, scaler)
    return {
        "theta": {name: whole(p) for name, p in model.named_parameters()},
        "bytes": optimizer.state_bytes(),
        "untapped": sorted(optimizer.blocks.untapped),
    }


def gone_on(case: Case, source: str, target: str, start: int, stop: int) -> dict[str, Tensor]:
    """Steps ``start`` to ``stop``, from a checkpoint (from the beginning if ``""``) to another."""
    model = model_of(case)
    optimizer = curvlab.optimizer(case.method, model, reduction=case.reduction, **case.knobs)
    if source:
        load(source, model, optimizer)
    for words, targets in [*batches(), *batches()][start:stop]:
        step(case, model, optimizer, words, targets, GradScaler("cpu", enabled=False))
    if target:
        save(target, model, optimizer)
    return {name: whole(p) for name, p in model.named_parameters()}


def counted() -> dict[str, int]:
    """Bytes that this process sends the others in a step of kfac, after the first; and what formulas say."""
    case = CASES["kfac"]
    model = model_of(case)
    optimizer = curvlab.optimizer("kfac", model, labels="data", reduction="mean-tokens")
    sent, kind = Counter[str](), "rows"
    exchange, collect, spread = dist.all_to_all_single, ShardTraffic.to_owners, ShardTraffic.to_shards

    def counting(output: Tensor, given: Tensor, *, input_split_sizes: list[int], **rest: Any) -> None:
        sent[kind] += (given.numel() - input_split_sizes[dist.get_rank()]) * given.element_size()
        exchange(output, given, input_split_sizes=input_split_sizes, **rest)

    def labeled(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def called(*given: Any) -> Any:
            nonlocal kind
            kind = name
            try:
                return call(*given)
            finally:
                kind = "rows"

        return called

    for k, (words, targets) in enumerate(list(batches())[:2]):
        if k == 1:
            dist.all_to_all_single = counting
            ShardTraffic.to_owners = labeled("to owners", collect)  # type: ignore[method-assign]
            ShardTraffic.to_shards = labeled("to shards", spread)  # type: ignore[method-assign]
        try:
            step(case, model, optimizer, words, targets, GradScaler("cpu", enabled=False))
        finally:
            dist.all_to_all_single = exchange
            ShardTraffic.to_owners, ShardTraffic.to_shards = collect, spread  # type: ignore[method-assign]
    me, size = dist.get_rank(), dist.get_world_size()
    of, rows = optimizer.owners.of, optimizer.trained.shards.rows  # type: ignore[union-attr]
    held = [
        {
            b.name: sum(
                8 * len(rows(t.shape[0], rank)) * t.shape[1:].numel()
                for t in (optimizer.blocks.parameters[p] for p in b.parameters)
            )
            for b in optimizer.blocks.members
        }
        for rank in range(size)
    ]
    return {
        **sent,
        "to owners by formula": 2 * sum(n for b, n in held[me].items() if of[b] != me),
        "to shards by formula": sum(
            n for rank in range(size) if rank != me for b, n in held[rank].items() if of[b] == me
        ),
    }


def refusals() -> dict[str, str]:
    """What is said to who asks for what cannot be."""
    said = {}

    def asked(what: str, call: Callable[[], Any]) -> None:
        try:
            call()
        except CurvlabError as error:
            said[what] = str(error)

    def sharded(**given: Any) -> nn.Module:
        model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)).double()
        ignored = given.pop("ignored", None)
        return fully_shard(model, **given, **({} if ignored is None else {"ignored_params": {model[0].bias}}))

    rank = dist.get_rank()
    asked("joint", lambda: curvlab.optimizer("hf-gn", sharded()))
    asked("replicate", lambda: curvlab.optimizer("kfac", sharded(), placement="replicate"))
    asked("average", lambda: curvlab.optimizer("kfac", sharded(), average="ema"))
    asked("alone", lambda: curvlab.optimizer("kfac", sharded(), group=None))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    asked("precision", lambda: curvlab.optimizer("kfac", sharded(mp_policy=policy)))
    columns = sharded(shard_placement_fn=lambda p: Shard(p.dim() - 1))
    asked("columns", lambda: curvlab.optimizer("kfac", columns))
    asked("ignored", lambda: curvlab.optimizer("kfac", sharded(ignored=True)))
    mesh = init_device_mesh("cpu", (1, dist.get_world_size()), mesh_dim_names=("replicate", "shard"))
    asked("axes", lambda: curvlab.optimizer("kfac", sharded(mesh=mesh)))
    inner = nn.Sequential(nn.Linear(4, 4))
    fully_shard(inner[0])
    asked("root", lambda: curvlab.optimizer("kfac", inner))

    model = sharded()
    optimizer = curvlab.optimizer("singd", model, refresh=2)
    x = torch.randn(3, 4, dtype=torch.float64)

    def passes(*synchronized: bool) -> None:
        for on in synchronized:
            synchronize(model, on)
            model(x).square().mean().backward()

    passes(True)
    optimizer.step()
    optimizer.zero_grad()
    passes(True, False)
    optimizer.step()
    optimizer.zero_grad()
    asked("late", lambda: passes(True))

    model = sharded()
    optimizer = curvlab.optimizer("kfac", model, labels="data")
    passes(True)
    if rank == 1:
        model[0].weight.grad = None
    asked("one rank", optimizer.step)
    before = [whole(p) for p in model.parameters()]
    optimizer.zero_grad()
    x[0, 0] = torch.inf if rank == 1 else 0.0
    passes(True)
    asked("infinity", optimizer.step)
    same = all(torch.equal(a, whole(p)) for a, p in zip(before, model.parameters(), strict=True))
    said["infinity"] += f"; parameters {'kept' if same else 'changed'}"
    return said


def main(rank: int, size: int, store: str, out: str, cases: list[str], chain: list[Any], more: bool) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=timedelta(seconds=60)
    )
    found: dict[str, Any] = {"cases": {name: trained(CASES[name]) for name in cases}}
    if more:
        found.update(sent=counted(), refusals=refusals())
    if chain:
        gone_on(CASES[chain[0]], *chain[1:])
    torch.save(found, out)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4], *json.loads(sys.argv[5]))
