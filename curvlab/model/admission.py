"""What cannot be trained, refused by name before the first step."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from curvlab.errors import ConfigError, Fault

#: dtypes of trainable parameters, and the real dtype in which each is trained
FAMILIES = {
    torch.float32: torch.float32,
    torch.float64: torch.float64,
    torch.complex64: torch.float32,
    torch.complex128: torch.float64,
    torch.bfloat16: torch.bfloat16,
    torch.float16: torch.float16,
}


def require_trainable(model: nn.Module) -> None:
    """Refuse what no method can train; the message names the parameter and the remedy.

    Every parameter that requires a gradient must be of one dtype, float32, float64, bfloat16 or float16;
    complex64 goes with float32, complex128 with float64.  All must be on one device, ``meta`` included, and
    their gradients dense.  Raises ``ConfigError`` with every fault found.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    faults = [*_dtypes(trained), *_devices(trained), *_sparse(model)]
    if faults:
        raise ConfigError(*faults)


def require_dense(name: str, grad: Tensor | None) -> None:
    """Refuse a gradient in a sparse layout; ``name`` is its parameter's.  Raises ``ConfigError``."""
    if grad is not None and grad.layout is not torch.strided:
        what = f'the gradient of parameter "{name}" is sparse ({_short(grad.layout)}); expected a dense one'
        raise ConfigError(
            Fault(what, hint="make its layer with sparse=False, or replace the gradient by grad.to_dense()")
        )


def real_dtype(model: nn.Module) -> torch.dtype:
    """The real dtype of the parameters that ``require_trainable`` admitted; float32 where there is none."""
    found = (FAMILIES[p.dtype] for p in model.parameters() if p.requires_grad and p.dtype in FAMILIES)
    return next(found, torch.float32)


def _dtypes(trained: dict[str, nn.Parameter]) -> Iterator[Fault]:
    """Dtypes that are not trained, one fault a dtype; then two families in one model."""
    first: dict[torch.dtype, str] = {}
    for name, p in trained.items():
        first.setdefault(p.dtype, name)
    for dtype, name in first.items():
        if dtype not in FAMILIES:
            what = f'parameter "{name}" is {_short(dtype)}; expected a floating-point dtype'
            yield Fault(what, hint="convert it to float32, or freeze it with requires_grad_(False)")
    families: dict[torch.dtype, str] = {}
    for dtype, name in first.items():
        if dtype in FAMILIES:
            families.setdefault(FAMILIES[dtype], name)
    if len(families) > 1:
        (a, one), (b, other) = [(trained[name].dtype, name) for name in families.values()]
        yield Fault(
            f'parameter "{one}" is {_short(a)} and parameter "{other}" is {_short(b)}; expected one dtype',
            hint="convert the model with model.float() or model.double(), or freeze one of the two",
        )


def _devices(trained: dict[str, nn.Parameter]) -> Iterator[Fault]:
    first: dict[torch.device, str] = {}
    for name, p in trained.items():
        first.setdefault(p.device, name)
    if len(first) > 1:
        (a, one), (b, other) = list(first.items())[:2]
        what = f'parameter "{one}" is on {a} and parameter "{other}" is on {b}; expected one device'
        yield Fault(what, hint="move the model with model.to(device), or freeze one of the two")


def _sparse(model: nn.Module) -> Iterator[Fault]:
    for name, module in model.named_modules():
        if not isinstance(module, (nn.Embedding, nn.EmbeddingBag)) or not module.sparse:
            continue
        if module.weight.requires_grad:
            weight = f"{name}.weight" if name else "weight"
            kind = type(module).__name__
            what = f'parameter "{weight}" would get sparse gradients, because its {kind} has sparse=True'
            yield Fault(what, hint="make the layer with sparse=False, or set its attribute sparse to False")


def _short(what: object) -> str:
    """A dtype's or layout's name without the module."""
    return str(what).removeprefix("torch.")
