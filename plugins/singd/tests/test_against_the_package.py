"""Where the public package ``singd`` (0.0.5) is right, it and we train the same parameters.

Each case trains one network four times for 50 steps: by the package and by us, in float64 and in float32.
In float64 the two agree to 1e-12 of the way travelled, which settles that the laws are equal.  In float32
they may be no further apart than twice what float32 costs the package itself (its distance from its own
float64), which is what rounding explains; and that must be little, or the comparison says nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
import torch
from singd.optim.optimizer import SINGD
from torch import Tensor, nn

from curvlab.config import build_part
from curvlab.protocols.structure import Family
from plugins.singd.tests.bare import optimizer, singd, theta
from tests.grids import thinned
from tests.limits.registered import registry

#: the package warns of every operation that it has only densely, and of "kfac_like" beside a momentum
pytestmark = pytest.mark.filterwarnings("ignore:Calling naive implementation:UserWarning")

STEPS, BATCH, CLASSES = 50, 16, 3
LR, BETA1, DAMPING = 0.02, 0.02, 1e-2

#: float64: of the way travelled.  Rounding alone comes to 2e-16 to 3e-15 after these 50 steps
SAME_LAW = 1e-12
#: float32: how many times the package's own rounding the distance to us may be.  Independent roundings of
#: one size would give √2; the data's rounding is common to both, so that less than 1 is seen
ROUNDINGS = 2.0
#: and how long that measuring stick may be, of the way travelled (float32 has 6e-8)
STICK = 1e-5
#: the least that another law costs, of the way travelled
OTHER_LAW = 1e-4

#: the package's name of a structure, ours, and its settings
STRUCTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "dense": ("dense", {}),
    "diagonal": ("diagonal", {}),
    "hierarchical15_15": ("hierarchical", {"top": 15, "bottom": 15}),
    "triltoeplitz": ("lower-toeplitz", {}),
    "triutoeplitz": ("upper-toeplitz", {}),
}
#: every structure, interval and rule once
FEW_STRUCTURES = {
    ("dense", 10, "INGD"),
    ("diagonal", 10, "IKFAC"),
    ("hierarchical15_15", 1, "INGD"),
    ("triltoeplitz", 10, "IKFAC"),
    ("triutoeplitz", 10, "INGD"),
}


def mlp(widths: tuple[int, ...] = (9, 9, 9, CLASSES), bias: bool = True) -> nn.Module:
    """By default two layers have one shape."""
    layers = [m for i, o in pairwise(widths) for m in (nn.Linear(i, o, bias=bias), nn.Tanh())]
    return nn.Sequential(*layers[:-1])


class Tokens(nn.Module):
    """Linear layers at four positions; pooled before the loss, or a loss term for each."""

    def __init__(self, pooled: bool, bias: bool = True) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 7, bias=bias), nn.Linear(7, CLASSES, bias=bias)
        self.pooled = pooled

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(torch.tanh(self.first(x)))
        return y.mean(1) if self.pooled else y.flatten(0, 1)


def convnet(bias: bool = True, groups: int = 1) -> nn.Module:
    """Stride, padding and dilation, different along the two axes."""
    return nn.Sequential(
        nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(1, 0), bias=bias),
        nn.Tanh(),
        nn.Conv2d(4, 4, 2, dilation=(1, 2), padding=1, groups=groups, bias=bias),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(4 * 5 * 5, CLASSES, bias=bias),
    )


@dataclass(frozen=True)
class Case:
    """A network, its data's shape, and the settings that differ from case to case."""

    net: Callable[..., nn.Module] = mlp
    shape: tuple[int, ...] = (9,)
    structures: tuple[str, str] = ("dense", "dense")
    every: int = 1
    adaptive: bool = True
    alpha1: float = 0.5
    momentum: float = 0.9
    weight_decay: float = 1e-2
    sharing: str = "expand"
    per_token: bool = False
    parameters: dict[str, Any] = field(default_factory=dict)

    def model(self, dtype: torch.dtype) -> nn.Module:
        torch.manual_seed(0)
        return self.net(**self.parameters).to(dtype)

    def batches(self, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
        g = torch.Generator().manual_seed(1)
        teacher = torch.randn(self.shape[-1], CLASSES, generator=g, dtype=torch.float64)
        for _ in range(STEPS):
            x = torch.randn(BATCH, *self.shape, generator=g, dtype=torch.float64)
            y = (x @ teacher).argmax(-1)
            y = y.flatten() if self.per_token else y.view(BATCH, -1)[:, 0]
            yield x.to(dtype), y


def loop(case: Case, model: nn.Module, optimizer: torch.optim.Optimizer, dtype: torch.dtype) -> Tensor:
    """θ after the plain loop, in float64."""
    for x, y in case.batches(dtype):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return theta(model).double()


def by_package(case: Case, dtype: torch.dtype) -> Tensor:
    model = case.model(dtype)
    theirs = SINGD(
        model,
        lr=LR,
        momentum=case.momentum,
        damping=DAMPING,
        alpha1=case.alpha1,
        weight_decay=case.weight_decay,
        T=case.every,
        loss_average="batch+sequence" if case.per_token else "batch",
        lr_cov=BETA1,
        structures=case.structures,
        kfac_approx=case.sharing,
        kfac_like=not case.adaptive,
        normalize_lr_cov=False,
    )
    return loop(case, model, theirs, dtype)


def by_us(case: Case, dtype: torch.dtype, **others: Any) -> Tensor:
    model = case.model(dtype)
    K, C = (family(name) for name in case.structures)
    settings = {
        "lr": BETA1,
        "momentum": case.alpha1,
        "every": case.every,
        "coupling": "mean" if case.adaptive else "none",
        "sharing": case.sharing,
        **others,
    }
    ours = optimizer(
        model,
        singd(K, C, **settings),
        lr=LR,
        damping=DAMPING,
        weight_decay=case.weight_decay,
        momentum=case.momentum,
        reduction="mean-tokens" if case.per_token else "mean",
    )
    return loop(case, model, ours, dtype)


def family(package_name: str) -> Family:
    """Our family for the package's name."""
    name, settings = STRUCTURES[package_name]
    found: Family = build_part(registry(), Family, name, settings)
    return found


def travelled(case: Case, end: Tensor) -> float:
    return float((end - theta(case.model(torch.float64))).norm())


@pytest.fixture(autouse=True)
def the_package_takes_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three of its structures name the dtypes that they mix, and float64 is not among them.

    Here everything has one dtype, so that the lower of two is either.
    """
    from singd.structures import blockdiagonal, hierarchical, triltoeplitz, triutoeplitz

    for module in (blockdiagonal, hierarchical, triltoeplitz, triutoeplitz):
        monkeypatch.setattr(module, "lowest_precision", lambda *dtypes: dtypes[0])


def assert_same_training(case: Case) -> None:
    theirs, ours = by_package(case, torch.float64), by_us(case, torch.float64)
    way = travelled(case, theirs)
    assert way > 0.1, "nothing was trained"
    apart = float((ours - theirs).norm()) / way
    assert apart <= SAME_LAW, f"another law: in float64 {apart:.3g} of the way apart"
    theirs32, ours32 = by_package(case, torch.float32), by_us(case, torch.float32)
    stick, apart = float((theirs32 - theirs).norm()), float((ours32 - theirs32).norm())
    assert stick <= STICK * way, f"float32 itself costs {stick / way:.3g} of the way"
    assert apart <= ROUNDINGS * stick, f"{apart / stick:.3g} times float32's own rounding apart"


@pytest.mark.parametrize(
    ("structure", "every", "rule"), thinned(STRUCTURES, (1, 10), ("INGD", "IKFAC"), few=FEW_STRUCTURES)
)
def test_every_structure_that_is_right_there(structure: str, every: int, rule: str) -> None:
    """Hierarchical factors have a diagonal part from dimension 31 on."""
    widths = (33, 32, CLASSES) if structure.startswith("hierarchical") else (7, 6, CLASSES)
    case = Case(
        shape=widths[:1],
        structures=(structure, structure),
        every=every,
        adaptive=rule == "INGD",
        alpha1=0.5 if rule == "INGD" else 0.0,
        parameters={"widths": widths},
    )
    assert_same_training(case)


@pytest.mark.parametrize("pair", [("dense", "diagonal"), ("diagonal", "dense")], ids=" and ".join)
def test_a_structure_for_each_side(pair: tuple[str, str]) -> None:
    assert_same_training(Case(structures=pair))


@pytest.mark.parametrize(
    ("momentum", "weight_decay", "alpha1"),
    [(0.0, 0.0, 0.0), (0.9, 0.1, 0.0), (0.0, 0.1, 0.5), (0.5, 0.0, 0.9)],
)
def test_momenta_and_weight_decay(momentum: float, weight_decay: float, alpha1: float) -> None:
    """Decay before momentum; heavy balls, without the factor 1 − α."""
    assert_same_training(Case(momentum=momentum, weight_decay=weight_decay, alpha1=alpha1))


sharings = pytest.mark.parametrize("sharing", ["expand", "reduce"])
#: either rule, with a bias or none
variants = pytest.mark.parametrize(
    ("bias", "adaptive"), [(True, True), (False, False)], ids=["bias, INGD", "no bias, IKFAC"]
)


def test_linear_layers_without_a_bias() -> None:
    assert_same_training(Case(parameters={"bias": False}))


@variants
@sharings
@pytest.mark.parametrize("pooled", [True, False], ids=["pooled", "a loss per token"])
def test_linear_layers_at_several_positions(sharing: str, pooled: bool, bias: bool, adaptive: bool) -> None:
    case = Case(
        Tokens,
        (4, 5),
        sharing=sharing,
        adaptive=adaptive,
        alpha1=0.5 if adaptive else 0.0,
        per_token=not pooled,
        parameters={"pooled": pooled, "bias": bias},
    )
    assert_same_training(case)


@variants
@sharings
def test_convolutions(sharing: str, bias: bool, adaptive: bool) -> None:
    case = Case(
        convnet,
        (2, 8, 6),
        sharing=sharing,
        adaptive=adaptive,
        alpha1=0.5 if adaptive else 0.0,
        parameters={"bias": bias},
    )
    assert_same_training(case)


def grouped(sharing: str) -> Case:
    return Case(convnet, (2, 8, 6), sharing=sharing, parameters={"groups": 2})


def test_groups_of_channels_in_reduce() -> None:
    """Inputs are averaged over positions and groups, there and here."""
    assert_same_training(grouped("reduce"))


def test_groups_of_channels_in_expand_differ() -> None:
    """The package averages the groups' inputs before their outer product; we average the outer products."""
    theirs, ours = (by(grouped("expand"), torch.float64) for by in (by_package, by_us))
    assert float((theirs - ours).norm()) > OTHER_LAW * travelled(grouped("expand"), ours)


@pytest.mark.parametrize(
    "change",
    [
        {"lr": 1.1 * BETA1},
        {"momentum": 0.4},
        {"every": 2},
        {"coupling": "none", "momentum": 0.0},
        {"coupling": "peak"},
        {"sharing": "reduce"},
        {"limit": 0.01},
        {"fit": 3},
        {"order": 2},
    ],
    ids=str,
)
def test_another_law_is_told_apart(change: dict[str, Any]) -> None:
    """So that the closeness above means something."""
    case = Case(Tokens, (4, 5), parameters={"pooled": True})
    ours, other = by_us(case, torch.float64), by_us(case, torch.float64, **change)
    assert float((ours - other).norm()) > OTHER_LAW * travelled(case, ours)
