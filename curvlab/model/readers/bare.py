"""Parameters that a module of the user's own uses by torch functions: weights, scales and shifts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from curvlab.protocols.reader import CompositeReader, LayerReader, Projection

#: the only class of torch whose heirs may compute what they like with its parameters
LINEAR = nn.Linear


@dataclass(frozen=True)
class BareReader(CompositeReader):
    """Reads matrices ``[o, i]`` used by ``F.linear(x, W)``, and vectors ``[d]`` that scale or shift.

    Uses are seen as the module's own call makes them; nothing is computed again.  A use in any other way, or
    outside of the module's call, contradicts the gradient, and the fallback takes the parameter over.  Heirs
    of torch's layers that compute something else are not read, except those of ``nn.Linear``.
    """

    reruns: ClassVar[bool] = False

    def refuses(self, module: nn.Module) -> str | None:
        kind = type(module)
        if kind.forward in (nn.Module.forward, LINEAR.forward) or isinstance(module, ParametrizationList):
            return ""
        layers = [c for c in kind.__mro__ if c.__module__.startswith("torch.nn.") and c is not nn.Module]
        if layers and layers[0] is not LINEAR:
            return ""
        return None if self.projections(module) else ""

    def projections(self, module: nn.Module) -> tuple[Projection, ...]:
        found = []
        for name, p in module._parameters.items():
            if p is not None and p.dim() == 2:
                found.append(Projection(name))
            elif p is not None and p.dim() == 1:
                found.append(Projection(None, name))
        return tuple(found)

    def rerun(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        raise NotImplementedError("the uses are seen in the module's own call")


@dataclass(frozen=True)
class ScaleUse(LayerReader):
    """How a block ``[d, 1]`` is read where it scales an activation: rows are ``g ∘ x``, inputs are 1."""

    of: CompositeReader

    def refuses(self, module: nn.Module) -> str | None:
        return self.of.refuses(module)

    def parameters(self, module: nn.Module) -> tuple[str, ...]:
        return self.of.parameters(module)

    def shape(self, module: nn.Module) -> Any:
        return self.of.shape(module)

    def axes(self, module: nn.Module, x: Any, shape: Any) -> tuple[int, ...]:
        return self.of.axes(module, x, shape)

    def inputs(self, module: nn.Module, x: Tensor) -> Any:
        return self.of.inputs(module, x)

    def grads(self, module: nn.Module, g: Tensor, x: Tensor) -> Float[Tensor, "n s d"]:
        return self.of.grads(module, g * x, x)
