"""What the clients train: a small network and its data; and the plain loop they are compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import curvlab

#: method and knobs: curvature is updated in every second step, so that both kinds of step occur
METHODS: dict[str, dict[str, Any]] = {
    "kfac": {"labels": "data", "lr": 0.05, "refresh": 2},
    "singd": {"lr": 0.02, "refresh": 2},
}
#: a bound on the gradient's norm that every test's gradients exceed
CLIP = 0.05

Batch = tuple[Tensor, Tensor]
Optimizer = torch.optim.Optimizer


def made(method: str, model: nn.Module, **knobs: Any) -> Optimizer:
    """The optimizer of a method of ``METHODS``."""
    return curvlab.optimizer(method, model, **{**METHODS[method], **knobs})


def decaying(optimizer: Optimizer) -> torch.optim.lr_scheduler.LambdaLR:
    """A schedule without an end: rate over 1, 2, 3, ..."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: 1.0 / (1 + k))


def network(seed: int = 0) -> nn.Sequential:
    """Linear layers, which both methods treat, and a normalization, which is the fallback's."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 12), nn.LayerNorm(12), nn.Tanh(), nn.Linear(12, 3))


def batches(count: int, n: int = 8) -> list[Batch]:
    """Labeled batches of ``n`` examples; batch k is the same in every call."""
    found = []
    for k in range(count):
        g = torch.Generator().manual_seed(100 + k)
        found.append((torch.randn(n, 6, generator=g), torch.randint(0, 3, (n,), generator=g)))
    return found


def classification(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross-entropy of a batch."""
    return F.cross_entropy(model(batch[0]), batch[1])


def grouped(data: Sequence[Any], size: int) -> Iterable[Sequence[Any]]:
    """``size`` batches at a time: those of one step."""
    return (data[k : k + size] for k in range(0, len(data), size))


def plain_loop(
    model: nn.Module,
    optimizer: Optimizer,
    data: Sequence[Batch],
    *,
    accumulate: int = 1,
    clip: float | None = None,
    scheduler: Any = None,
    loss_of: Callable[[nn.Module, Batch], Tensor] = classification,
) -> None:
    """The loop of torch's tutorials; a step's loss is the mean over ``accumulate`` batches."""
    for group in grouped(data, accumulate):
        optimizer.zero_grad()
        for batch in group:
            (loss_of(model, batch) / len(group)).backward()
        if clip is not None:
            norm = nn.utils.clip_grad_norm_(model.parameters(), clip)
            assert norm > clip, "a bound that binds nothing tests nothing"
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


def trained(method: str, data: Sequence[Batch], *, schedule: bool = False, **options: Any) -> nn.Module:
    """``network()`` after the plain loop."""
    model = network()
    optimizer = made(method, model)
    plain_loop(model, optimizer, data, scheduler=decaying(optimizer) if schedule else None, **options)
    return model


def require_equal(found: nn.Module, expected: nn.Module, start: nn.Module) -> None:
    """Parameter for parameter, to rounding; and every one that is trained has moved from ``start``."""
    mine, theirs, before = (dict(m.named_parameters()) for m in (found, expected, start))
    assert mine.keys() == theirs.keys() == before.keys()
    for name, p in theirs.items():
        if p.requires_grad:
            assert not torch.equal(p, before[name]), f"{name} was not trained"
        torch.testing.assert_close(mine[name], p, rtol=1e-5, atol=1e-6, msg=f"{name}: {{}}".format)


def require_treated(optimizer: Any, layers: type[nn.Module] = nn.Linear) -> None:
    """The method itself, not its fallback, trains every weight of these layers that requires a gradient."""
    model = optimizer.model
    weights = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, layers) and module.weight.requires_grad
    }
    treated: Mapping[str, str] = {row.parameter: row.treatment for row in optimizer.coverage()}
    assert weights
    assert {treated[w] for w in weights} == {optimizer.name}
