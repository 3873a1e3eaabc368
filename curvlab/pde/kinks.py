"""Functions without the derivatives that a residual needs, found while a network is evaluated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from curvlab.errors import ConfigError, Fault

#: functions with a kink or a jump in their value
KINKED = frozenset(
    {
        "abs", "clamp", "hardshrink", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "maximum",
        "minimum", "prelu", "relu", "relu6", "relu_", "round", "rrelu", "sign", "softshrink", "threshold",
    }
)  # fmt: skip

#: functions with a continuous first derivative that has a kink or a jump
KINKED_ONCE = frozenset({"celu", "elu", "elu_", "selu", "softsign"})


def lacks(name: str, order: int) -> bool:
    """Whether a function has no continuous derivative of this order."""
    return (order > 0 and name in KINKED) or (order > 1 and name in KINKED_ONCE)


def refusal(name: str, order: int) -> ConfigError:
    """The error for a function that ``lacks`` a derivative."""
    what = "second" if order > 1 else "continuous first"
    times = {1: "once", 2: "twice"}.get(order, f"{order} times")
    return ConfigError(
        Fault(
            f"{name} has no {what} derivative everywhere,"
            f" and the residual differentiates the network {times}",
            hint="use a smooth activation: nn.Tanh, nn.SiLU, nn.GELU, nn.Softplus, nn.Sigmoid or sin",
        )
    )


def require_smooth(
    net: nn.Module, transform: Callable[[Any, Any], Any] | None, x: Tensor, order: int
) -> None:
    """Raise ``ConfigError`` if a function that ``lacks`` a derivative is applied to the coordinates."""
    constants = {name: p.detach() for name, p in net.named_parameters()}
    with torch.enable_grad():
        try:
            x = x.detach().requires_grad_()
        except RuntimeError:  # inside torch.func, where nothing can be marked
            return
        with _Watch(order):
            N = functional_call(net, constants, (x,))
            if transform is not None:
                transform(x, N)


class _Watch(TorchFunctionMode):
    """Refuses functions of what depends on the coordinates: alone these require a gradient."""

    def __init__(self, order: int) -> None:
        super().__init__()
        self.order = order

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = str(getattr(func, "__name__", ""))
        if lacks(name, self.order) and any(map(_depends, args)):
            raise refusal(name, self.order)
        return func(*args, **(kwargs or {}))


def _depends(t: Any) -> bool:
    return isinstance(t, Tensor) and t.requires_grad
