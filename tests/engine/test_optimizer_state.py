"""States of an optimizer that come back: bit for bit, in their own dtype, and never somebody else's."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

import curvlab
from curvlab.engine.method import Method
from curvlab.engine.optimizer import CurvatureOptimizer
from curvlab.errors import CheckpointError
from curvlab.linalg.vectors import BlockVector
from curvlab.objectives.evaluation import LayerMismatch
from curvlab.objectives.supervised import objective
from curvlab.parts.damping import Constant
from curvlab.parts.steps import Rate
from curvlab.precision.full import Full
from curvlab.protocols.context import Context
from curvlab.protocols.evidence import Evaluation, Solve
from curvlab.protocols.preconditioner import Preconditioner
from tests.engine.composed import METHODS, batch, knobs, network, optimizer, same, train


def clone(name: str, opt: CurvatureOptimizer, model: nn.Module) -> tuple[nn.Module, CurvatureOptimizer]:
    """A copy of the model with a new optimizer of another seed: nothing of ``opt`` but what is loaded."""
    twin = copy.deepcopy(model)
    return twin, optimizer(name, twin, seed=99, **knobs(name))


def by_torch_save(old: CurvatureOptimizer, new: CurvatureOptimizer) -> None:
    file = io.BytesIO()
    torch.save(old.state_dict(), file)
    file.seek(0)
    new.load_state_dict(torch.load(file, weights_only=True))


def by_snapshot(old: CurvatureOptimizer, new: CurvatureOptimizer) -> None:
    tensors, plain = old.snapshot()
    new.restore({k: v.clone() for k, v in tensors.items()}, dict(plain))


def by_distributed_checkpoint(old: CurvatureOptimizer, new: CurvatureOptimizer) -> None:
    state = get_optimizer_state_dict(old.model, old)
    set_optimizer_state_dict(new.model, new, copy.deepcopy(state))


def by_distributed_files(old: CurvatureOptimizer, new: CurvatureOptimizer) -> None:
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        checkpoint.save({"optim": get_optimizer_state_dict(old.model, old)}, checkpoint_id=folder)
        template = {"optim": get_optimizer_state_dict(new.model, new)}
        checkpoint.load(template, checkpoint_id=folder)
    set_optimizer_state_dict(new.model, new, template["optim"])


WAYS = [by_torch_save, by_snapshot, by_distributed_checkpoint, by_distributed_files]
ONE_WAY = [by_torch_save, by_snapshot]


@pytest.mark.parametrize(
    ("name", "way"),
    [
        *((n, w) for n in METHODS for w in ONE_WAY),
        *((n, w) for n in ("adamw", "kfac", "cg-fac") for w in WAYS[2:]),
    ],
)
def test_after_a_load_in_mid_cadence_training_goes_on_bit_for_bit(
    name: str, way: Callable[[CurvatureOptimizer, CurvatureOptimizer], None]
) -> None:
    model = network()
    opt = optimizer(name, model, **knobs(name))
    train(model, opt, range(4))
    opt.param_groups[0]["lr"] *= 0.5
    twin, other = clone(name, opt, model)
    held = list(twin.parameters())
    way(opt, other)
    for at in (range(4, 7), range(7, 11)):
        assert train(twin, other, at) == train(model, opt, at)
    assert same(model, twin)
    assert all(p is q for p, q in zip(twin.parameters(), held, strict=True))
    assert other.param_groups[0]["lr"] == opt.param_groups[0]["lr"]


@pytest.mark.parametrize("way", WAYS)
def test_what_is_loaded_is_copied_not_shared(
    way: Callable[[CurvatureOptimizer, CurvatureOptimizer], None],
) -> None:
    model = network()
    opt = optimizer("kfac", model, refresh=3)
    train(model, opt, range(2))
    twin, other = clone("kfac", opt, model)
    way(opt, other)
    before = {k: v.clone() for k, v in other.snapshot()[0].items()}
    train(model, opt, range(2, 5))
    assert all(torch.equal(v, before[k]) for k, v in other.snapshot()[0].items())


def test_a_scheduler_goes_on_after_a_load() -> None:
    model = network()
    opt = optimizer("sgd", model, lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(opt, 2, gamma=0.5)

    def go(m: nn.Module, o: CurvatureOptimizer, s: Any, steps: range) -> None:
        for k in steps:
            train(m, o, range(k, k + 1))
            s.step()

    go(model, opt, scheduler, range(3))
    twin, other = clone("sgd", opt, model)
    by_torch_save(opt, other)
    later = torch.optim.lr_scheduler.StepLR(other, 2, gamma=0.5)
    later.load_state_dict(scheduler.state_dict())
    by_torch_save(opt, other)
    go(model, opt, scheduler, range(3, 7))
    go(twin, other, later, range(3, 7))
    assert same(model, twin)


def test_a_snapshot_is_of_the_live_tensors_and_of_the_generator() -> None:
    model = network()
    opt = optimizer("kfac", model, refresh=1)
    train(model, opt, range(2))
    tensors, plain = opt.snapshot()
    assert torch.equal(tensors["generator"], opt.generator.get_state())
    assert plain["steps"] == 2
    before = {k: v.clone() for k, v in tensors.items()}
    train(model, opt, range(2, 4))
    assert not torch.equal(opt.generator.get_state(), before["generator"])  # labels were sampled
    opt.restore(before, plain)
    assert opt.steps == 2
    assert all(torch.equal(v, before[k]) for k, v in opt.snapshot()[0].items())


class Penalized(nn.Module):
    """A network whose first weight is used once more, outside its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x))) + (x @ self.first.weight.mT)[:, :3]


@pytest.mark.filterwarnings("ignore::curvlab.engine.coverage.CoverageWarning")
# not by_distributed_files: its template must have the state's shape before anything is loaded
@pytest.mark.parametrize("way", WAYS[:3])
def test_a_layer_that_its_calls_do_not_explain_is_the_fallbacks_and_stays_so(
    way: Callable[[CurvatureOptimizer, CurvatureOptimizer], None],
) -> None:
    model = Penalized().double()
    opt = curvlab.optimizer("kfac", model, precision="float64")
    x, y = torch.randn(16, 6).double(), torch.randint(0, 3, (16,))
    twin = copy.deepcopy(model)
    with pytest.warns(LayerMismatch, match="first"):
        opt.step(objective(model, nn.CrossEntropyLoss(), x, y))
    rows = {row.parameter: row for row in opt.coverage()}
    assert (rows["first.weight"].treatment, rows["last.weight"].treatment) == ("fallback", "kfac")
    assert "do not explain its gradient" in rows["first.weight"].reason
    twin.load_state_dict(model.state_dict())
    other = curvlab.optimizer("kfac", twin, precision="float64", seed=9)
    way(opt, other)
    assert [c.as_row() for c in other.coverage()] == [c.as_row() for c in opt.coverage()]
    for _ in range(3):
        opt.step(objective(model, nn.CrossEntropyLoss(), x, y))
        other.step(objective(twin, nn.CrossEntropyLoss(), x, y))
    assert same(model, twin)


@dataclass
class WideState:
    """A float32 accumulator of gradients in another dtype."""

    total: Tensor


@dataclass(frozen=True)
class Wide(Preconditioner[WideState]):
    """Sums gradients in float32, whatever the parameters are in."""

    def init(self, like: BlockVector, ctx: Context) -> WideState:
        return WideState(torch.zeros(like.layout.size, dtype=torch.float32))

    def observe(self, state: WideState, seen: Evaluation, ctx: Context) -> None:
        state.total.add_(seen.gradient.flat.float())

    def apply(self, state: WideState, v: BlockVector, ctx: Context) -> Solve:
        return Solve(v.borrow())


@pytest.mark.parametrize("way", WAYS)
def test_a_states_dtype_is_kept_whatever_its_parameters_is(
    way: Callable[[CurvatureOptimizer, CurvatureOptimizer], None],
) -> None:
    def wide() -> CurvatureOptimizer:
        method = Method(Wide(), Constant(), Rate(0.1))
        return CurvatureOptimizer(method, network(), backend=Full("float64"))

    old, new = wide(), wide()
    x, y = batch(0)
    old.step(objective(old.model, nn.CrossEntropyLoss(), x, y))
    total = old.arms[0].state.preconditioner.total
    way(old, new)
    found = new.arms[0].state.preconditioner.total
    assert found.dtype == torch.float32
    assert torch.equal(found, total)


def test_torchs_tools_see_every_state_under_a_parameter_of_its_block() -> None:
    model = network()
    opt = optimizer("kfac", model)
    train(model, opt, range(2))
    seen = opt.state_dict()["state"]
    names = [n for n, _ in model.named_parameters()]
    tensors = {key: (names[k], t) for k, entry in seen.items() for key, t in entry.items()}
    live, _ = opt.snapshot()
    assert tensors.keys() == live.keys()
    assert all(torch.equal(tensors[k][1], t) for k, t in live.items())
    assert tensors["kfac/on_gradient.0.average@3"][0] == "3.weight"
    assert {owner for key, (owner, _) in tensors.items() if ".A.3." in key} == {"3.weight"}
    assert {owner for key, (owner, _) in tensors.items() if key.endswith("@1.bias")} == {"1.bias"}


def foreign() -> Iterator[tuple[str, dict[str, Any], str]]:
    yield (
        "another method's",
        optimizer("adamw", network()).state_dict(),
        "to another method or model",
    )
    other = nn.Sequential(nn.Linear(4, 7), nn.LayerNorm(7), nn.Tanh(), nn.Linear(7, 3)).double()
    yield "another model's", optimizer("kfac", other).state_dict(), "expected shape"
    yield (
        "torch's",
        torch.optim.AdamW(network().parameters()).state_dict(),
        "does not come from a curvlab optimizer",
    )
    older = optimizer("kfac", network()).state_dict()
    older["param_groups"][0]["curvlab"]["version"] = 0
    yield "an older version's", older, "state has version 0, expected 2"


def test_states_of_others_are_refused_in_words_and_change_nothing() -> None:
    model = network()
    opt = optimizer("kfac", model)
    train(model, opt, range(1))
    before, lr = {k: v.clone() for k, v in opt.snapshot()[0].items()}, opt.param_groups[0]["lr"]
    for whose, state, says in foreign():
        with pytest.raises(CheckpointError, match=says):
            opt.load_state_dict(state)
        assert all(torch.equal(v, before[k]) for k, v in opt.snapshot()[0].items()), whose
        assert opt.param_groups[0]["lr"] == lr, whose
    train(model, opt, range(1, 2))
