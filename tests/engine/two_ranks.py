"""What two processes and one train alike.  ``python two_ranks.py RANK STORE OUT`` is one of the two."""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

import curvlab
from curvlab.config import build_method, build_part
from curvlab.engine.optimizer import CurvatureOptimizer
from curvlab.errors import CurvlabError, Diverged
from curvlab.objectives.distributed import DistributedObjective
from curvlab.objectives.ranks import Ranks
from curvlab.parts.schedule_free import ScheduleFree
from curvlab.protocols.average import Average
from curvlab.protocols.backend import Backend
from curvlab.protocols.needs import Needs
from curvlab.protocols.objective import Objective
from curvlab.protocols.structure import Group, NaiveFallback
from curvlab.registry.imports import part_class
from curvlab.testing.unread import UnreadNorm
from tests.engine.listening import listening
from tests.limits.registered import DAMPED, knobs_of, methods, registry

STEPS = 4
#: examples of each rank in a step
SHARES = (7, 5)
WIDTH, CLASSES = 6, 4

Batch = tuple[Tensor, Tensor]


class Net(nn.Module):
    """Layers of one shape and of others, and a norm for the fallback."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.norm, self.last = (
            nn.Linear(WIDTH, WIDTH),
            nn.Linear(WIDTH, WIDTH),
            UnreadNorm(WIDTH),
            nn.Linear(WIDTH, CLASSES),
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.second(self.first(x).tanh()).tanh()
        return self.last(self.norm(h))  # type: ignore[no-any-return]


def spoilt(value: float, step: int, k: int, x: Tensor) -> Tensor:
    """One input of the last example, which is the second rank's, is ``value`` in one step."""
    if k == step:
        x[-1, 0] = value
    return x


@dataclass(frozen=True)
class Case:
    """A method, its loss, and how it is asked to step."""

    method: str
    knobs: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    average: Average[Any] | None = None
    criterion: Callable[[], nn.Module] = nn.CrossEntropyLoss
    plain: bool = False  #: ``loss.backward()``, by DistributedDataParallel
    dtype: torch.dtype = torch.float64
    inputs: Callable[[int, Tensor], Tensor] = lambda k, x: x
    drawn: bool = False  #: labels are sampled, so that one process draws others
    shares: tuple[int, int] = SHARES
    rtol: float = 1e-7
    targets: int | None = None  #: all of them
    placement: str = "auto"
    accumulated: bool = False  #: two backward passes a step, the first without synchronization
    clipped: bool = False


def singd(structure: str | None = "dense", method: str = "singd", **more: Any) -> Case:
    return Case(method, {"refresh": 2, **({"structure": structure} if structure else {})}, **more)


def exact(method: str) -> Case:
    """No labels are drawn, so that it matters to nobody who has which examples."""
    labels = {"labels": "exact"} if "labels" in knobs_of(method) else {}
    # conjugate gradients lose orthogonality after some iterations, and then magnify rounding too
    early = {"max_iterations": 5} if method == "cg-fac" else {}
    return Case(method, {**labels, **early, **DAMPED.get(method, {})})


def weighted() -> nn.Module:
    return nn.CrossEntropyLoss(weight=torch.tensor([1.0, 0.2, 3.0, 0.5]).double(), ignore_index=1)


def structures() -> list[str]:
    """Every registered structure that a factor of SINGD can have."""
    entries = registry().parts("structure")
    return [registry().use(e) for e in entries if issubclass(part_class(e), Group)]


#: every rule for updates
RULES: list[dict[str, Any]] = [
    {"use": "norm-constraint", "limit": 1e-2},
    {"use": "nesterov"},
    {"use": "radial-brake"},
    {"use": "row-floor", "ratio": 0.5},
    {"use": "cautious", "rate": 0.1},
    {"use": "hyperball"},
]

EVEN = (6, 6)  #: DistributedDataParallel counts ranks, not examples
#: methods that need the rows of every residual, which several processes do not exchange
ONE_PROCESS = ("lm", "engd", "dngd", "spring")
INFINITE = partial(spoilt, float("inf"), 2)
CASES: dict[str, Case] = {
    **{method: exact(method) for method in methods() if method not in ONE_PROCESS},
    **{f"singd, {structure}": singd(structure) for structure in structures()},
    "ingd, data": singd(None, "ingd"),
    "kfac, weights": replace(exact("kfac"), criterion=weighted),
    "hf-gn, weights": replace(exact("hf-gn"), criterion=weighted),
    "singd, weights": singd(criterion=weighted),
    "kfac, drawn labels": Case("kfac", {"labels": "model"}, drawn=True),
    "singd, plain loop": singd(plain=True, shares=EVEN),
    "singd, plain loop, sum": singd(plain=True, criterion=partial(nn.CrossEntropyLoss, reduction="sum")),
    "kfac, plain loop": Case("kfac", {"labels": "data"}, plain=True, shares=EVEN),
    "adamw, plain loop": Case("adamw", plain=True, shares=EVEN),
    "singd, accumulated": singd(plain=True, shares=EVEN, accumulated=True),
    "kfac, accumulated": Case("kfac", {"labels": "data"}, plain=True, shares=EVEN, accumulated=True),
    "kfac, clipped": Case("kfac", {"labels": "data"}, plain=True, shares=EVEN, clipped=True),
    "kfac, schedule-free": replace(exact("kfac"), average=ScheduleFree()),
    "kfac, update rules": replace(exact("kfac"), settings={"on_update": RULES}),
    "kfac, replicated": replace(exact("kfac"), placement="replicate"),
    "singd, replicated": singd(placement="replicate"),
    "singd, replicated, plain loop": singd(plain=True, shares=EVEN, placement="replicate"),
    "an infinity, replicated": singd(inputs=INFINITE, placement="replicate"),
    "nothing to learn from": Case("kfac", {"labels": "exact"}, criterion=weighted, targets=1),
    "an infinity": singd(inputs=INFINITE),
    "an infinity, plain loop": singd(inputs=INFINITE, plain=True, shares=EVEN),
    # rounded by chance: the ranks among themselves alike, and to others nearly
    "singd, bfloat16": singd(dtype=torch.bfloat16, drawn=True),
    "kfac, bfloat16": Case("kfac", {"labels": "exact"}, dtype=torch.bfloat16, drawn=True),
    "adamw, bfloat16, plain loop": Case("adamw", dtype=torch.bfloat16, plain=True, shares=EVEN, drawn=True),
    "beyond float32": singd(inputs=partial(spoilt, 1e25, 2), dtype=torch.float32, rtol=1e-3),
}


def batches(case: Case) -> Iterator[Batch]:
    """The examples of both ranks, step by step."""
    generator = torch.Generator().manual_seed(1)
    for k in range(STEPS):
        x = torch.randn(sum(case.shares), WIDTH, generator=generator, dtype=torch.float64)
        y = torch.randint(CLASSES, (len(x),), generator=generator)
        if case.targets is not None:
            y = torch.full_like(y, case.targets)
        yield case.inputs(k, x).to(case.dtype), y


def trained(case: Case, rank: int | None) -> dict[str, Any]:
    """Parameters, losses and the end, of one rank or (``None``) of one process with every example."""
    model = Net().to(case.dtype)
    ranks = None if rank is None else Ranks(dist.group.WORLD)
    criterion = case.criterion()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NaiveFallback)
        optimizer = CurvatureOptimizer(
            build_method(registry(), case.method, case.knobs, case.settings),
            model,
            backend=build_part(registry(), Backend, str(case.dtype).removeprefix("torch."), {}),
            reduction=getattr(criterion, "reduction", "mean"),
            ranks=ranks,
            placement=case.placement,
            average=case.average,
        )
        called = DistributedDataParallel(model) if case.plain and ranks is not None else model
        losses, end = [], ""
        for x, y in batches(case):
            if rank is not None:
                x, y = (t.split(list(case.shares))[rank] for t in (x, y))
            try:
                if case.plain:
                    optimizer.zero_grad()
                    halves = zip(x.chunk(2), y.chunk(2), strict=True) if case.accumulated else [(x, y)]
                    for k, (some, theirs) in enumerate(halves):
                        last = not case.accumulated or k == 1
                        with nullcontext() if last or called is model else called.no_sync():
                            loss = criterion(called(some), theirs) * (0.5 if case.accumulated else 1.0)
                            loss.backward()
                    if case.clipped:
                        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                    optimizer.step()
                else:
                    found = optimizer.step(curvlab.objective(model, criterion, x, y))
                    assert found is not None
                    losses.append(float(found))
            except Diverged as error:
                end = str(error)
                break
    theta = {name: p.detach().clone() for name, p in model.named_parameters()}
    tensors, _ = optimizer.snapshot()
    return {
        "theta": theta,
        "losses": losses,
        "end": end,
        "state": {k: t.clone() for k, t in tensors.items()},
        "owners": None if optimizer.owners is None else dict(optimizer.owners.of),
        "bytes": optimizer.state_bytes(),
    }


def refusals(rank: int) -> dict[str, str]:
    """What is said to who asks for what cannot be."""
    said = {}

    def asked(what: str, call: Callable[[], Any]) -> None:
        try:
            call()
        except CurvlabError as error:
            said[what] = str(error)

    other = Net()
    with torch.no_grad():
        other.last.bias.add_(rank)
    asked("parameters", lambda: curvlab.optimizer("sgd", other))
    model = Net()
    asked("wrapped", lambda: curvlab.optimizer("sgd", DistributedDataParallel(model)))
    optimizer = curvlab.optimizer("sgd", model)
    model(torch.full((2, WIDTH), float(rank))).sum().backward()
    asked("gradients", optimizer.step)
    optimizer.samples = listening(lambda what: None, Needs(variance=True))
    x, y = torch.randn(3, WIDTH), torch.zeros(3, dtype=torch.int64)
    asked("variance", lambda: optimizer.step(curvlab.objective(model, nn.CrossEntropyLoss(), x, y)))
    nameless = curvlab.objective(Net(), nn.CrossEntropyLoss(), x, y)
    nameless.total_weight = partial(Objective.total_weight, nameless)  # type: ignore[method-assign]
    asked("total_weight", lambda: curvlab.optimizer("sgd", nameless.model).step(nameless))
    mine = curvlab.objective(model, nn.CrossEntropyLoss(), x, y)
    asked("closure", DistributedObjective(mine, Ranks(dist.group.WORLD)))
    longer = torch.randn(4, 2 + rank, WIDTH)
    layer = nn.Linear(WIDTH, CLASSES)
    with torch.no_grad():
        layer.weight.fill_(0.1)
        layer.bias.zero_()
    positions = curvlab.objective(layer, nn.MSELoss(), longer, torch.zeros(4, 2 + rank, CLASSES))
    asked("positions", lambda: curvlab.optimizer("singd", layer).step(positions))
    shards = Net()
    mesh = init_device_mesh("cpu", (2,))
    shards.last.weight = nn.Parameter(distribute_tensor(shards.last.weight.detach(), mesh, [Shard(0)]))
    asked("shards", lambda: curvlab.optimizer("sgd", shards))
    return said


def counted() -> dict[str, int]:
    """Bytes that this rank sends in a step of singd in a plain loop, after the first; its own examples."""
    model = Net().double()
    optimizer = curvlab.optimizer("singd", model, refresh=1)
    called, found = DistributedDataParallel(model), Counter[str]()

    def step() -> None:
        x, y = next(batches(Case("singd", shares=EVEN)))
        optimizer.zero_grad()
        nn.functional.cross_entropy(called(x[: EVEN[0]]), y[: EVEN[0]]).backward()
        optimizer.step()

    step()
    rows, parameters = dist.all_to_all_single, dist.broadcast

    def delivered(output: Tensor, given: Tensor, *, input_split_sizes: list[int], **rest: Any) -> None:
        mine = input_split_sizes[dist.get_rank()]
        found["rows"] += (given.numel() - mine) * given.element_size()
        rows(output, given, input_split_sizes=input_split_sizes, **rest)

    def told(t: Tensor, *, group_src: int, **rest: Any) -> None:
        found["parameters"] += t.nbytes if group_src == dist.get_rank() else 0
        parameters(t, group_src=group_src, **rest)

    dist.all_to_all_single, dist.broadcast = delivered, told
    try:
        step()
    finally:
        dist.all_to_all_single, dist.broadcast = rows, parameters
    assert optimizer.owners is not None
    mine = {name for name, rank in optimizer.owners.of.items() if rank == dist.get_rank()}
    sizes = {b.name: sum(b.shape) for b in optimizer.blocks.members if b.is_layer}
    return {
        **found,
        "rows by formula": sum(EVEN[0] * 8 * size for name, size in sizes.items() if name not in mine),
        "parameters by formula": sum(
            optimizer.blocks.value(p).nbytes
            for b in optimizer.blocks.members
            if b.name in mine
            for p in b.parameters
        ),
    }


def saved_in_parts(folder: str) -> dict[str, Any]:
    """A run that goes on from a distributed checkpoint, and one that was not stopped."""
    import torch.distributed.checkpoint as dcp

    found, examples = {}, list(batches(Case("kfac")))
    for name in ("whole", "cut"):
        model = Net().double()
        optimizer = curvlab.optimizer("kfac", model, labels="exact", refresh=2)
        for k, (x, y) in enumerate(examples):
            if name == "cut" and k == 2:
                parts = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                dcp.save(parts, checkpoint_id=folder)
                with torch.no_grad():
                    for p in model.parameters():
                        p.zero_()
                optimizer = curvlab.optimizer("kfac", model, labels="exact", refresh=2)
                empty = {"model": model.state_dict(), "optimizer": parts["optimizer"]}
                for t in (t for entry in empty["optimizer"]["state"].values() for t in entry.values()):
                    t.zero_()
                dcp.load(empty, checkpoint_id=folder)
                model.load_state_dict(empty["model"])
                optimizer.load_state_dict(empty["optimizer"])
            x, y = (t.tensor_split(2)[dist.get_rank()] for t in (x, y))
            optimizer.step(curvlab.objective(model, nn.CrossEntropyLoss(), x, y))
        found[name] = {n: p.detach().clone() for n, p in model.named_parameters()}
    return found


def apart(rank: int) -> Tensor:
    """What a rank has trained that asked for nobody's company."""
    model = Net()
    with torch.no_grad():
        model.last.bias.add_(rank)
    optimizer = curvlab.optimizer("sgd", model, group=None)
    x, y = torch.ones(2, WIDTH), torch.tensor([0, 1])
    optimizer.step(curvlab.objective(model, nn.CrossEntropyLoss(), x, y))
    return model.last.bias.detach()


def main(rank: int, store: str, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    found: dict[str, Any] = {name: trained(case, rank) for name, case in CASES.items()}
    more = {"sent": counted(), "saved": saved_in_parts(f"{store}-parts")}
    torch.save({"cases": found, "refusals": refusals(rank), "apart": apart(rank), **more}, out)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
