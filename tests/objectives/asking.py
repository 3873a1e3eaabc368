"""Models to be asked about, and how a test asks an objective."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from curvlab.model.partition import partition
from curvlab.precision.full import Full
from curvlab.protocols.blocks import Blocks
from curvlab.protocols.context import Context
from curvlab.protocols.evidence import Evaluation
from curvlab.protocols.needs import Labels, Needs
from curvlab.protocols.objective import Objective

DTYPE = torch.float64
EVERY = (Labels.DATA, Labels.MODEL, Labels.EXACT, Labels.NONE)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=DTYPE, generator=torch.Generator().manual_seed(seed))


def layers_of(model: nn.Module) -> Blocks:
    return partition(model, lambda layer: True)


def wanting(*kinds: Labels, samples: int = 1, factored: bool = False) -> Needs:
    return Needs(frozenset(kinds), samples if Labels.MODEL in kinds else 0, factored)


def ask(objective: Objective, needs: Needs, blocks: Blocks, *, step: int = 1, seed: int = 0) -> Evaluation:
    """One evaluation, by default after the first step, whose check costs another backward."""
    generator = torch.Generator().manual_seed(seed)
    return objective.evaluate(needs, blocks, Context(step, 0.0, Full("float64"), generator))


class Twice(nn.Module):
    """One layer called twice, on inputs of different kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.out = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layer(torch.tanh(self.layer(x))))


class Spare(nn.Module):
    """A layer that nobody calls, and one whose output nobody uses."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle, self.vain = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.vain(x)
        return self.used(x)


class Functional(nn.Module):
    """A weight that is used beside its layer, too."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.out = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layer(x) + F.linear(x, self.layer.weight))


class Summed(nn.Module):
    """Reads a sequence, answers once per example."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.out = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.layer(x)).mean(1))


class Attentive(nn.Module):
    """Attention, an embedding and a norm around a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(4), nn.MultiheadAttention(4, 2, batch_first=True)
        self.out = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return self.out(self.attention(x, x, x, need_weights=False)[0].mean(1))


class Rescaled(nn.Module):
    """Changes a layer's output in place, by a parameter and by an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.gain, self.out = nn.Linear(4, 5), nn.Parameter(torch.ones(5)), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layer(x).mul_(self.gain).relu_())


class Convolved(nn.Module):
    """Convolutions of one and of several groups, one of them called twice; outputs changed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding="same", padding_mode="circular")
        self.twice = nn.Conv2d(4, 4, (2, 1), stride=(1, 2), groups=2)
        self.depthwise = nn.Conv2d(4, 4, 2, dilation=(1, 2), padding=(0, 2), groups=4, bias=False)
        self.out = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(self.first(x).relu_()).tanh_()
        return self.out(self.depthwise(self.twice(x)).relu_().mean((2, 3)))


class Filmed(nn.Module):
    """Frames are examples to the convolution, not to the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.frame, self.out = nn.Conv1d(2, 4, 3, groups=2), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        n, frames = x.shape[:2]
        hidden = torch.tanh(self.frame(x.flatten(0, 1))).mean(-1)
        return self.out(hidden.view(n, frames, -1)).mean(1)


class OneByOne(nn.Module):
    """Calls its convolution on one example at a time, without a batch axis."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.out = nn.Conv2d(1, 2, 2), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.stack([self.layer(each).relu_().mean((1, 2)) for each in x]))


class Named(nn.Module):
    """Calls a layer with its input by name."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(input=x)


class Recurrent(nn.Module):
    """Torch's recurrent layers, which have kernels of their own."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.layer, self.out = kind(4, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layer(x)[0][:, -1])


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 3))


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 3))
    model[2].weight, model[2].bias = model[0].weight, model[0].bias
    return model


def half_frozen() -> nn.Module:
    model = mlp()
    model[0].bias.requires_grad_(False)
    return model


def half_frozen_convolution() -> nn.Module:
    model = nn.Sequential(nn.Conv1d(2, 3, 2), nn.Conv1d(3, 2, 2), nn.Flatten(), nn.Linear(4, 3))
    model[0].weight.requires_grad_(False)
    return model


def classifier(seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(seed)
    y = torch.randint(0, 3, (7,), generator=torch.Generator().manual_seed(2))
    return mlp().double(), normal(7, 4), y


#: model, inputs; all answer with 3 numbers per example, the sequential one with 3 per position
MODELS: Mapping[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "in-place activation": (mlp, normal(7, 4)),
    "output changed in place": (Rescaled, normal(7, 4)),
    "layer called twice": (Twice, normal(7, 4)),
    "tied layers": (tied, normal(7, 4)),
    "unused layers": (Spare, normal(7, 4)),
    "weight used functionally too": (Functional, normal(7, 4)),
    "shared positions": (Summed, normal(7, 2, 4)),
    "output per position": (mlp, normal(7, 2, 4)),
    "extra axes": (mlp, normal(7, 2, 3, 4)),
    "layers without reader": (Attentive, normal(7, 2, 4)),
    "half-frozen layer": (half_frozen, normal(7, 4)),
    "half-frozen convolution": (half_frozen_convolution, normal(7, 2, 4)),
    "convolutions": (Convolved, normal(7, 1, 6, 5)),
    "frames as examples": (Filmed, normal(7, 3, 2, 5)),
    "one example at a time": (OneByOne, normal(7, 1, 4, 3)),
    "input by name": (Named, normal(7, 4)),
    "no bias": (lambda: nn.Sequential(nn.Linear(4, 3, bias=False)), normal(7, 4)),
}


def made(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    """The model of this name, its inputs and targets for a squared error."""
    torch.manual_seed(5)
    make, x = MODELS[name]
    model = make().to(DTYPE)
    with torch.no_grad():
        return model, x, normal(*model(x).shape, seed=1)


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Any]:
    """What autograd says, by name; zeros for what the loss does not depend on."""
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {
        n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(named.items(), found, strict=True)
    }
