"""AdaS: a rate for each layer, renewed at the end of each epoch from the ranks of its weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from curvlab.errors import ConfigError, Fault
from curvlab.protocols.bounds import Fraction, Positive, check_bounds
from curvlab.protocols.callback import Callback, Notice
from curvlab_adas.evbmf import Shrunk, shrunk

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

#: no rate falls below this
LEAST = 1e-20


@dataclass
class AdasState:
    """By name of the measured layer: its knowledge gain at the end of the last epoch, and its rate η."""

    gains: dict[str, float]
    etas: dict[str, float]
    owners: dict[str, str]  #: parameter -> the measured layer whose rate it has


@dataclass(frozen=True)
class Adas(Callback[AdasState]):
    """AdaS (Hosseini and Plataniotis 2020, arXiv 2006.06587): rates from the growth of knowledge gain.

    The weight of a convolution ``[o, c, …]`` is unfolded into matrices ``o × (c …)`` and ``c × (o …)``.  Each
    is freed of noise by EVBMF; its gain is ``G = Σ d / (L d₁)``, the layer's their mean Ḡ.  At the end of
    epoch t

        η ← max(beta · η + zeta · (Ḡ_t − Ḡ_{t−1}), 1e-20),

    from ``initial`` on.  The layer's parameters move with ``η / initial`` times the method's rate, so SGD
    with ``lr = initial`` is the paper's.  A parameter of any other layer has the rate of the last convolution
    before it, in the order in which the model names its modules; those before the first have the first's.

    A model without convolutions: every linear layer is measured by its own weight, as one matrix, in the
    place of the convolutions.  Raises ``ConfigError`` for a model without linear layers, too.

    A layer whose weight is not finite keeps its last gain.  Costs singular values of two matrices a layer and
    epoch.  Reports ``adas`` after each epoch: gain, share of the rank, condition and rate of each layer.
    """

    scales_rates = True

    beta: Fraction = 0.8
    zeta: Positive = 1.0
    initial: Positive = 0.03  #: η before the first epoch

    def __post_init__(self) -> None:
        check_bounds(self)

    def init(self, model: nn.Module) -> AdasState:
        layers = measured_weights(model)
        if not layers:
            raise ConfigError(
                Fault(
                    "adas: the model has no convolution and no linear layer whose rank could be measured",
                    hint="remove the callback",
                )
            )
        gains = {name: _mean_gain(measures(weight)) for name, weight in layers.items()}
        return AdasState(gains, dict.fromkeys(layers, self.initial), owners(model, set(layers)))

    def rates(self, state: AdasState) -> Mapping[str, float]:
        return {p: state.etas[layer] / self.initial for p, layer in state.owners.items()}

    def epoch_ended(self, state: AdasState, model: nn.Module, epoch: int) -> tuple[Notice, ...]:
        told: dict[str, dict[str, float]] = {}
        for name, weight in measured_weights(model).items():
            found = measures(weight) if bool(torch.isfinite(weight).all()) else []
            gain = _mean_gain(found) if found else state.gains[name]
            grown = gain - state.gains[name]
            state.gains[name] = gain
            state.etas[name] = max(self.beta * state.etas[name] + self.zeta * grown, LEAST)
            told[name] = {
                "gain": gain,
                "rank": sum(m.rank / m.sides[0] for m in found) / max(len(found), 1),
                "condition": sum(m.condition for m in found) / max(len(found), 1),
                "rate": state.etas[name],
            }
        return (Notice("adas", {"layers": told}),)


def measured_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights of a model's convolutions by layer, or of its linear layers if it has none."""
    kinds: tuple[tuple[type[nn.Module], ...], ...] = (CONVOLUTIONS, (nn.Linear,))
    for each in kinds:
        found: dict[str, Any] = {n: m for n, m in model.named_modules() if isinstance(m, each)}
        if found:
            return {name: layer.weight for name, layer in found.items()}
    return {}


def owners(model: nn.Module, measured: set[str]) -> dict[str, str]:
    """Each parameter's measured layer: its own, else the last before it, else the first."""
    first = next(n for n, _ in model.named_modules() if n in measured)
    found: dict[str, str] = {}
    last = first
    for name, module in model.named_modules():
        last = name if name in measured else last
        for own, _ in module.named_parameters(recurse=False):
            found.setdefault(f"{name}.{own}" if name else own, last)
    return {n: found[n] for n, _ in model.named_parameters()}


def unfoldings(weight: Float[Tensor, "o c ..."]) -> Iterator[Float[Tensor, "l m"]]:
    """A convolution's weight by its outputs and by its inputs; a matrix as it is."""
    yield weight.flatten(1)
    if weight.dim() > 2:
        yield weight.transpose(0, 1).flatten(1)


def measures(weight: Tensor) -> list[Shrunk]:
    """What is left of each unfolding of a weight without its noise."""
    return [shrunk(Y) for Y in unfoldings(weight.detach())]


def _mean_gain(found: list[Shrunk]) -> float:
    return sum(m.gain for m in found) / len(found)
