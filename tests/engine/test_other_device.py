"""Training steps on a second device are those on the CPU, and nothing mixes the two.

The device is simulated (``tests.elsewhere``): numbers and branches are real.  What is not seen is what CUDA
rounds otherwise, and branches of the code for the kind of device ``"cuda"``.  Layers that torch fuses on the
CPU alone, attention and recurrent ones, round otherwise on the other device; so steps are in float64.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from layer_kinds import LAYERS, OTHERS, Case
from torch import Tensor, nn

import curvlab
from curvlab.config import build, build_method, load
from curvlab.engine.method import Method
from curvlab.engine.optimizer import CurvatureOptimizer
from curvlab.engine.rebuilt import evaluate
from curvlab.engine.run import Run, train_plan
from curvlab.linalg.vectors import BlockVector
from curvlab.parts.steps import Rate
from curvlab.precision.full import Full
from curvlab.protocols.step import At, Transform
from curvlab.registry.imports import part_class
from curvlab.reporting.runlog import RunLog
from curvlab.testing.dispatch import host_syncs
from tests.elsewhere import CPU, DEVICE, MixedDevices, counted_waits, second_device
from tests.grids import thinned
from tests.limits.registered import knobs_of, methods, registry

pytestmark = pytest.mark.filterwarnings("ignore")

#: steps of a case: a refresh, a step without one, and a refresh
STEPS = 3
#: a relative change of parameters as rounding makes it in float64, and how far steps may be off: absolutely,
#: and as a multiple of what that change makes of them
ROUNDING, CLOSE, AMPLIFIED = 1e-14, 1e-9, 100.0


@pytest.fixture(autouse=True)
def wide() -> Iterator[None]:
    """Networks and inputs in float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@dataclass(frozen=True)
class Away(Full):
    """Full precision on the second device."""

    @property
    def torch_device(self) -> torch.device:
        return DEVICE


class Tokens(nn.Module):
    """Embedded tokens through attention and a recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.mix = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True, dropout=0.1)
        self.recur = nn.LSTM(4, 5, batch_first=True)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        """``[n, t]`` to ``[n, c]``."""
        found: Tensor = self.head(self.recur(self.mix(self.embed(x)))[0].mean(1))
        return found


def images() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 5),
        nn.Dropout(0.2), nn.ReLU(), nn.Linear(5, 3),
    )  # fmt: skip


NETWORKS = {"images": Case(images, (1, 4, 4)), "tokens": Case(Tokens, (5,), tokens=True)}


def trained(
    case: Case, method: Method, device: torch.device, *, plain: bool = False, nudge: float = 0.0
) -> tuple[float, dict[str, Tensor]]:
    """The last loss and the parameters, on the CPU, after a few steps on the device.

    ``nudge`` is a relative change of the initial parameters.
    """
    torch.manual_seed(0)
    with torch.device(device):
        model = case.model()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.0 + nudge)
    batches = [(case.inputs(), torch.randint(0, 3, (6,))) for _ in range(STEPS)]
    backend = Full("float64") if device == CPU else Away("float64")
    optimizer = CurvatureOptimizer(method, model, backend=backend)
    torch.manual_seed(1)  # of dropout
    for x, y in batches:
        x, y = x.to(device), y.to(device)
        if plain:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            torch.autograd.backward(loss)
            optimizer.step()
        else:
            loss = optimizer.step(curvlab.objective(model, nn.CrossEntropyLoss(), x, y))
    return float(loss), {n: p.detach().cpu() for n, p in model.named_parameters()}


def assert_alike(case: Case, method: Method, *, plain: bool = False) -> None:
    """The same numbers on both devices, but for rounding, and parameters that have moved.

    Some steps amplify rounding beyond every bound, of blocks whose gradient is zero but for rounding: a
    third run, on the CPU from parameters that differ by rounding, shows how far.
    """
    loss, here = trained(case, method, CPU, plain=plain)
    near, nudged = trained(case, method, CPU, plain=plain, nudge=ROUNDING)
    with second_device() as device:
        other, there = trained(case, method, device, plain=plain)
    assert abs(other - loss) <= CLOSE + AMPLIFIED * abs(near - loss)
    for name, p in here.items():
        off, own = (float((q[name] - p).abs().max()) for q in (there, nudged))
        assert off <= CLOSE + AMPLIFIED * own, f"{name} differs by {off}; by {own} after a nudge"
    torch.manual_seed(0)
    start = dict(case.model().named_parameters())
    assert any(not torch.equal(p, start[n]) for n, p in here.items())


def method(name: str, settings: Mapping[str, Any] | None = None, **knobs: Any) -> Method:
    """At its defaults, but refreshed every other step."""
    cadence = {"refresh": 2} if "refresh" in knobs_of(name) else {}
    return build_method(registry(), name, {**cadence, **knobs}, settings)


@pytest.mark.parametrize(
    ("name", "network"),
    thinned(
        sorted({*methods()} - {"kfac-pinn"}),  # which has no use for either
        ("tokens", "images"),
        few={
            *((m, "tokens") for m in ("kfac", "singd", "soap", "hf-gn", "kbfgs-l", "lm", "muon")),
            *((m, "images") for m in ("ekfac", "shampoo", "lbfgs", "cg-fac", "smw-ngd", "adamw", "rs-kfac")),
        },
    ),
)
def test_every_method_steps_on_another_device_as_on_the_cpu(name: str, network: str) -> None:
    assert_alike(NETWORKS[network], method(name))


@pytest.mark.parametrize("case", {**LAYERS, **OTHERS}.values(), ids=[*LAYERS, *OTHERS])
def test_every_kind_of_layer_is_read_there(case: Case) -> None:
    assert_alike(case, method("kfac"))


@pytest.mark.parametrize(
    ("name", "labels"),
    [*itertools.product(["kfac", "ekfac", "singd"], ["data", "model", "exact"]), ("foof", "none")],
)
def test_labels_are_drawn_there(name: str, labels: str) -> None:
    assert_alike(NETWORKS["images"], method(name, labels=labels))


@pytest.mark.parametrize("structure", [e.name for e in registry().parts("structure")])
def test_factors_of_every_structure_live_there(structure: str) -> None:
    used = {"use": structure}
    for name, places in (
        ("singd", ("preconditioner.K", "preconditioner.C")),
        ("kfac", ("preconditioner.estimator.A", "preconditioner.estimator.B")),
    ):
        try:
            made = method(name, dict.fromkeys(places, used))
            trained(NETWORKS["images"], made, CPU)
        except curvlab.errors.ConfigError:  # a Group where a Gram is needed, or the reverse
            continue
        assert_alike(NETWORKS["images"], made)


@pytest.mark.parametrize("name", ["kfac", "singd", "shampoo", "adamw"])
def test_a_plain_loop_trains_there(name: str) -> None:
    knobs = {"labels": "data"} if name == "kfac" else {}
    assert_alike(NETWORKS["tokens"], method(name, **knobs), plain=True)


@pytest.mark.parametrize("name", ["sgd", "adamw", "kfac", "singd", "soap", "lbfgs"])
@pytest.mark.parametrize("write", ["stochastic", "master"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_parameters_of_16_bits_are_written_there(dtype: str, write: str, name: str) -> None:
    """To the bit: in 16 bits all kernels of the network are those of the CPU."""
    if (dtype, write) == ("float16", "stochastic"):
        write = "nearest"
    part: Any = part_class(registry().part("precision", dtype))

    class There(part):  # type: ignore[misc]
        @property
        def torch_device(self) -> torch.device:
            return DEVICE

    def steps(device: torch.device) -> dict[str, Tensor]:
        torch.manual_seed(0)
        backend = (part if device == CPU else There)(parameter_write=write)
        model = images().to(backend.dtypes.parameters).to(device)
        x = NETWORKS["images"].inputs().to(device, backend.dtypes.parameters)
        y = torch.zeros(6, dtype=torch.long, device=device)
        optimizer = CurvatureOptimizer(method(name), model, backend=backend)
        torch.manual_seed(1)
        for _ in range(STEPS):
            optimizer.step(curvlab.objective(model, nn.CrossEntropyLoss(), x, y))
        return {n: p.detach().cpu() for n, p in model.named_parameters()}

    here = steps(CPU)
    with second_device() as device:
        there = steps(device)
    assert all(torch.equal(p, there[n]) for n, p in here.items())


SMALL = {"use": "digits", "hidden": [16], "batch_size": 32}
RUNS: Mapping[str, dict[str, Any]] = {
    "digits": {"task": SMALL, "method": {"use": "kfac"}},
    "quadratic": {"task": {"use": "quadratic"}, "method": {"use": "hf-gn"}},
    "poisson": {"task": {"use": "poisson"}, "method": {"use": "kfac-pinn"}},
    "heat": {"task": {"use": "heat"}, "method": {"use": "kfac-pinn"}},
    "teacher-student": {"task": {"use": "teacher-student"}, "method": {"use": "hf-martens"}},
    "geometric": {"task": SMALL, "method": {"use": "hf-stochastic"}, "sampler": {"use": "geometric"}},
    "norm-test": {"task": SMALL, "method": {"use": "lbfgs"}, "sampler": {"use": "norm-test"}},
    "inner-product": {"task": SMALL, "method": {"use": "sgd"}, "sampler": {"use": "inner-product"}},
    "full-batch": {"task": SMALL, "method": {"use": "lbfgs"}, "sampler": {"use": "full-batch"}},
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_written_resumed_and_evaluated_there(name: str, tmp_path: Path) -> None:
    often = {"checkpoint_every": 2, "eval_every": 2, "log_every": 1}
    quiet = {"report": {"use": "quiet"}}

    def run(backend: Full, steps: int, resumed: Run | None = None) -> Run:
        plan = build(load(data={**RUNS[name], **quiet, "run": {"steps": steps, **often}}))
        plan, folder = replace(plan, backend=backend), None if resumed is None else resumed.folder
        found = train_plan(
            plan, out=tmp_path / str(backend.torch_device.type), log=RunLog, resume_from=folder
        )
        assert evaluate(plan, found.folder)["metrics"] == found.summary["metrics"]
        return found

    here = run(Full(), 5)
    with second_device():
        there = run(Away(), 5, run(Away(), 3))
    assert there.summary["metrics"] == here.summary["metrics"]
    mine, theirs = (dict(r.model.named_parameters()) for r in (here, there))
    assert all(torch.equal(p, theirs[n].cpu()) for n, p in mine.items())


class Careless(Transform[None]):
    """Multiplies by ones that lie on the CPU, wherever the gradient is."""

    def init(self, like: BlockVector) -> None:
        return None

    def __call__(self, state: None, v: BlockVector, at: At) -> BlockVector:
        v.flat.mul_(torch.ones(len(v.flat)))
        return v


def test_a_part_that_makes_a_tensor_on_the_cpu_and_mixes_it_in_is_caught() -> None:
    careless = replace(method("sgd"), step=Rate(0.1), on_update=(Careless(),))
    assert trained(NETWORKS["images"], careless, CPU)
    with second_device() as device, pytest.raises(MixedDevices, match=r"aten.mul_.*CPU, of shape"):
        trained(NETWORKS["images"], careless, device)


#: waits of a step that refreshes nothing and searches nothing: the loss and the sizes of gradient, update and
#: states, each read once to find numbers that are not finite
FEWEST = 4


def waits(name: str, device: torch.device) -> Counter[str]:
    """Of the second step of a method, by operation."""
    torch.manual_seed(0)
    with torch.device(device):
        model = images()
    x, y = NETWORKS["images"].inputs().to(device), torch.zeros(6, dtype=torch.long, device=device)
    backend = Full("float64") if device == CPU else Away("float64")
    optimizer = CurvatureOptimizer(build_method(registry(), name, {}), model, backend=backend)

    def step() -> None:
        optimizer.step(curvlab.objective(model, nn.CrossEntropyLoss(), x, y))

    step()
    if device == CPU:
        return host_syncs(step)
    with counted_waits() as counted:
        step()
    return counted


@pytest.mark.parametrize("name", ["sgd", "adamw", "kfac", "singd", "shampoo", "lbfgs", "hf-martens"])
def test_the_host_waits_for_the_device_no_more_often_than_is_counted_on_the_cpu(name: str) -> None:
    """The benchmarks count on the CPU, tensors of the host included: torch's random state, once a step."""
    with second_device() as device:
        there = waits(name, device).total()
    here = waits(name, CPU).total() - 1
    assert there < here if name in ("lbfgs", "hf-martens") else there == here
    if name in ("sgd", "adamw"):
        assert there == FEWEST
