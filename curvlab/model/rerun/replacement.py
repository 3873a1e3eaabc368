"""A fused call's outputs with the graph of the re-run under them.

A forward pre-hook takes ``Generators.of(module)``, and a forward hook returns ``replaced(…)``.  Values stay
bit for bit those of the fused call; gradients pass through the re-run alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from curvlab.errors import ConfigError, Fault
from curvlab.linalg.work import autocast_rounding
from curvlab.model.rerun.modules import draws


@dataclass(frozen=True)
class Generators:
    """States of torch's generators before a call: the CPU's and that of the module's device."""

    cpu: Tensor
    cuda: Tensor | None
    device: torch.device

    @classmethod
    def of(cls, module: nn.Module) -> Generators | None:
        """The present states, or ``None`` for a module that draws no random numbers as it stands."""
        if not draws(module):
            return None
        return cls.now(next(module.parameters()).device)

    @classmethod
    def now(cls, device: torch.device) -> Generators:
        """The present states."""
        cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return cls(torch.get_rng_state(), cuda, device)

    def restore(self) -> None:
        """Put the generators into these states."""
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda, self.device)

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Inside, the same numbers are drawn again; afterwards, generators are as before the context."""
        after = self.now(self.device)
        self.restore()
        try:
            yield
        finally:
            after.restore()


def replaced(
    name: str,
    module: nn.Module,
    outputs: Any,
    rerun: Callable[[], Any],
    before: Generators | None = None,
) -> Any:
    """The fused ``outputs`` of a module's call, with gradients through ``rerun``.

    ``before``: the generators before the fused call, needed if it draws numbers.  Raises ``ConfigError``
    naming the layer if the re-run's outputs differ by more than rounding.
    """
    if before is None:
        again = rerun()
    else:
        with before.replayed():
            again = rerun()
    return _replaced(name, module, outputs, again)


def _replaced(name: str, module: nn.Module, fused: Any, again: Any) -> Any:
    if fused is None:
        return None
    if isinstance(fused, PackedSequence):
        return fused._replace(data=_replaced(name, module, fused.data, again.data))
    if isinstance(fused, tuple):
        return tuple(_replaced(name, module, f, a) for f, a in zip(fused, again, strict=True))
    if not alike(fused.detach(), again.detach()):
        raise ConfigError(_fault(name, module))
    replacement: Tensor = _Replacement.apply(fused.detach(), again)  # type: ignore[no-untyped-call]
    return replacement


def _fault(name: str, module: nn.Module) -> Fault:
    kind = type(module).__name__
    if draws(module):
        return Fault(
            f'layer "{name}": {kind} with dropout {module.dropout} drew other random numbers on'
            f" {next(module.parameters()).device} than F.dropout, so its linear maps cannot be read",
            hint=f"set dropout=0 in this {kind} and put nn.Dropout outside it, or freeze the layer",
        )
    return Fault(
        f'layer "{name}": {kind} returned other outputs than its linear maps, computed again, by more than'
        " rounding",
        hint="check that neither hooks nor parametrizations change its weights between two reads of them",
    )


def alike(fused: Tensor, again: Tensor) -> bool:
    """Whether two outputs agree to rounding: √ε of the largest entry, ε of the coarsest dtype at work.

    Long recurrences magnify rounding, other dropout masks differ by the size of the entries; √ε lies
    between.  Entries that are not finite agree with entries that are not finite.
    """
    if fused.shape != again.shape:
        return False
    if not fused.numel():
        return True
    eps = max(_eps(fused), _eps(again))
    y, r = fused.float() if eps > 1e-10 else fused, again.float() if eps > 1e-10 else again
    known = y.isfinite()
    scale = y.abs().where(known, 0.0).max()
    near = (y - r).abs() <= eps**0.5 * scale + 100 * eps
    return bool(torch.where(known, near, ~r.isfinite()).all())


def _eps(t: Tensor) -> float:
    tf32 = t.is_cuda and t.dtype == torch.float32 and torch.backends.cudnn.allow_tf32
    own = 2.0**-10 if tf32 else torch.finfo(t.dtype).eps
    return max(own, autocast_rounding(t.device))


class _Replacement(torch.autograd.Function):
    """The first tensor's values with the second's gradient.

    ``y + (r − r.detach())`` would be the same but for −0 and for entries that are not finite.
    """

    @staticmethod
    def forward(y: Tensor, r: Tensor) -> Tensor:
        return y.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.dtype = output.dtype

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[None, Tensor]:
        return None, g

    @staticmethod
    def jvp(ctx: Any, y: Tensor | None, r: Tensor) -> Tensor:
        return r.to(ctx.dtype)
