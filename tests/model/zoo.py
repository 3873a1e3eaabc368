"""Models of every kind whose parameters a partition must find, and what is known of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Specimen:
    """A model, the blocks that are read as layers, and the reason given for other parameters.

    ``layers`` maps a layer block's name to the modules that read it, ``transposed`` to those that read its
    transpose; ``reasons`` maps a parameter to
    words that its block's reason must hold.
    """

    build: Callable[[], nn.Module]
    layers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)
    transposed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


class Doubled(nn.Linear):
    """A Linear that computes something else."""

    def forward(self, x: Tensor) -> Tensor:
        return 2.0 * super().forward(x)


class Named(nn.Linear):
    """A Linear in all but name."""


class Gained(nn.Linear):
    """A Linear with one parameter more."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__(i, o)
        self.gain = nn.Parameter(torch.ones(o))


class Standardized(nn.Conv2d):
    """A convolution by a standardized kernel."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x, weight - weight.mean(), bias)


class Rooted(nn.Module):
    """A parameter of its own beside a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.layer(x)


class Scale(nn.Module):
    """Multiplies by a parameter that somebody else may hold as well."""

    def __init__(self, by: nn.Parameter) -> None:
        super().__init__()
        self.by = by

    def forward(self, x: Tensor) -> Tensor:
        return x * self.by


def frozen(model: nn.Module, *names: str) -> nn.Module:
    """``model`` with these parameters frozen."""
    for name in names:
        model.get_parameter(name).requires_grad_(False)
    return model


def tied(*, weight: bool, bias: bool, has_bias: bool = True) -> nn.Module:
    """Two layers that share what is asked."""
    model = nn.Sequential(nn.Linear(4, 4, bias=has_bias), nn.Tanh(), nn.Linear(4, 4, bias=has_bias))
    if weight:
        model[2].weight = model[0].weight
    if bias:
        model[2].bias = model[0].bias
    return model


def embedded(*, bias: bool) -> nn.Module:
    """Tokens in, logits out, through one matrix."""
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 5, bias=bias))
    model[2].weight = model[0].weight
    return model


def output_first() -> nn.Module:
    """As ``embedded``, but the layer comes before the embedding in the model's order."""
    model = nn.ModuleDict({"out": nn.Linear(4, 5), "in": nn.Embedding(5, 4)})
    model["in"].weight = model["out"].weight
    return model


def strided(*, groups: int) -> nn.Module:
    """Two convolutions with one kernel, at other strides; the second in groups."""
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=False),
        nn.Conv2d(4, 2 * groups, 1),
        nn.Conv2d(2 * groups, 4, 3, stride=2, groups=groups, bias=False),
    )
    model[2].weight = model[0].weight
    return frozen(model, "1.weight", "1.bias")


def nested() -> nn.Module:
    return nn.Sequential(nn.Sequential(nn.Linear(4, 3), nn.Sequential(nn.Linear(3, 3))), nn.Linear(3, 2))


def repeated() -> nn.Module:
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.Tanh(), layer)


def shared_scale() -> nn.Module:
    by = nn.Parameter(torch.ones(4))
    return nn.Sequential(Scale(by), nn.Linear(4, 4), Scale(by))


def weight_normed() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), nn.Linear(3, 2))


def norms(*names: str) -> Mapping[str, tuple[str, ...]]:
    """The blocks of norms of these names: scale and shift."""
    return {f"{name}.{part}": (name,) for name in names for part in ("weight", "bias")}


def attention(name: str) -> Mapping[str, tuple[str, ...]]:
    """The blocks of a MultiheadAttention of width 4: query, key, value and output."""
    own = f"{name}." if name else ""
    rows = ("in_proj_weight[0:4]", "in_proj_weight[4:8]", "in_proj_weight[8:12]", "out_proj.weight")
    return {own + block: (name,) for block in rows}


ALONE = {"0": ("0",)}
BOTH = {"0": ("0", "2")}

ZOO: Mapping[str, Specimen] = {
    "linear": Specimen(lambda: nn.Linear(4, 3), {"model": ("",)}),
    "linear without bias": Specimen(lambda: nn.Linear(4, 3, bias=False), {"model": ("",)}),
    "mlp": Specimen(
        lambda: nn.Sequential(nn.Linear(4, 3), nn.ReLU(inplace=True), nn.Linear(3, 2)),
        {"0": ("0",), "2": ("2",)},
    ),
    "nested": Specimen(nested, {"0.0": ("0.0",), "0.1.0": ("0.1.0",), "1": ("1",)}),
    "frozen layer": Specimen(
        lambda: frozen(nested(), "1.weight", "1.bias"), {"0.0": ("0.0",), "0.1.0": ("0.1.0",)}
    ),
    "frozen bias": Specimen(
        lambda: frozen(nested(), "1.bias"),
        {"0.0": ("0.0",), "0.1.0": ("0.1.0",), "1.weight": ("1",)},
    ),
    "frozen weight": Specimen(lambda: frozen(nn.Linear(4, 3), "weight"), {"bias": ("",)}),
    "tied layers": Specimen(lambda: tied(weight=True, bias=True), BOTH),
    "tied layers without bias": Specimen(lambda: tied(weight=True, bias=False, has_bias=False), BOTH),
    "tied weights, own biases": Specimen(
        lambda: tied(weight=True, bias=False),
        {"0.weight": ("0", "2"), "0.bias": ("0",), "2.bias": ("2",)},
    ),
    "tied biases, own weights": Specimen(
        lambda: tied(weight=False, bias=True),
        {"0.weight": ("0",), "0.bias": ("0", "2"), "2.weight": ("2",)},
    ),
    "one layer used twice": Specimen(repeated, ALONE),
    "embedding tied to a layer": Specimen(
        lambda: embedded(bias=False), {"2": ("2",), "1": ("1",)}, transposed={"2": ("0",)}
    ),
    "embedding tied to a layer with bias": Specimen(
        lambda: embedded(bias=True),
        {"0.weight": ("2",), "1": ("1",), "2.bias": ("2",)},
        transposed={"0.weight": ("0",)},
    ),
    "layer tied to an embedding": Specimen(
        output_first, {"out.weight": ("out",), "out.bias": ("out",)}, transposed={"out.weight": ("in",)}
    ),
    "attention": Specimen(
        lambda: nn.MultiheadAttention(4, 2, add_bias_kv=True),
        attention(""),
        {"bias_k": "MultiheadAttention has no layer reader"},
    ),
    "transformer layer": Specimen(
        lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True),
        {
            **attention("self_attn"),
            "linear1": ("linear1",),
            "linear2": ("linear2",),
            **norms("norm1", "norm2"),
        },
    ),
    "norms": Specimen(
        lambda: nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.BatchNorm1d(4)),
        {"0": ("0",), **norms("1", "2")},
    ),
    "convolution": Specimen(
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2)),
        {"0": ("0",), "2": ("2",)},
    ),
    "convolutions of every dimension": Specimen(
        lambda: nn.ModuleList(
            [nn.Conv1d(4, 2, 3, groups=2), nn.Conv2d(1, 2, 3), nn.Conv3d(1, 2, 2, bias=False)]
        ),
        {"0": ("0",), "1": ("1",), "2": ("2",)},
    ),
    "half-frozen convolution": Specimen(
        lambda: frozen(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3)), "0.bias", "1.weight"),
        {"0.weight": ("0",), "1.bias": ("1",)},
    ),
    "transposed convolution": Specimen(
        lambda: nn.Sequential(nn.ConvTranspose2d(1, 2, 3), nn.Conv2d(2, 2, 3)),
        {"0": ("0",), "1": ("1",)},
    ),
    "convolution that computes": Specimen(
        lambda: nn.Sequential(Standardized(1, 2, 3)),
        {},
        dict.fromkeys(("0.weight", "0.bias"), "Standardized overrides Conv2d._conv_forward"),
    ),
    "convolution used with two strides": Specimen(lambda: strided(groups=1), BOTH),
    "convolutions tied across groups": Specimen(
        lambda: strided(groups=2), {}, {"0.weight": 'tied to "2", which has another number of groups'}
    ),
    "subclass that computes": Specimen(
        lambda: nn.Sequential(Doubled(4, 3)), {"0.weight": ("0",), "0.bias": ("0",)}
    ),
    "subclass in name only": Specimen(lambda: nn.Sequential(Named(4, 3)), ALONE),
    "subclass with another parameter": Specimen(
        lambda: nn.Sequential(Gained(4, 3)),
        {"0.weight": ("0",)},
        {"0.gain": "Gained has no layer reader"},
    ),
    "weight norm": Specimen(
        weight_normed,
        {"0": ("0",), "1": ("1",)},
        {"0.parametrizations.weight.original0": "ParametrizationList has no"},
    ),
    "parameter on the root": Specimen(Rooted, {"scale": ("",), "layer": ("layer",)}),
    "parameter in two modules": Specimen(shared_scale, {"1": ("1",)}, {"0.by": 'tied to "2" (Scale)'}),
    "parameter list": Specimen(
        lambda: nn.ParameterList([torch.ones(2), torch.ones(3)]), {}, {"0": "ParameterList has no"}
    ),
}
