"""Averages of weights in loops of one's own and in runs: what is evaluated, saved, resumed and refused."""

from __future__ import annotations

import copy
import pickle
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

import curvlab
from curvlab.config import build, load
from curvlab.engine.inspection import inspect
from curvlab.engine.optimizer import CurvatureOptimizer
from curvlab.engine.plan import Plan
from curvlab.engine.rebuilt import evaluate
from curvlab.engine.training import prepare
from curvlab.errors import CheckpointError, ConfigError, CurvlabError, UsageError
from curvlab.parts.schedule_free import ScheduleFree
from curvlab.parts.weight_means import TailEma, WeightEma
from curvlab.protocols.average import Average
from curvlab.testing.problems import labels, normal
from tests.engine.normalized import Normalized
from tests.engine.small_run import PLAIN, parameters, run_small, same, small_plan, stopped_at

EACH: dict[str, dict[str, Any]] = {
    "ema": {"use": "ema", "decay": 0.8},
    "tail-ema": {"use": "tail-ema", "start_step": 2, "decay": 0.7, "share": 0.5},
    "schedule-free": {"use": "schedule-free"},
}
METHODS = ("kfac", "adamw")


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)]
    return nn.Sequential(*layers).double()


def batch(k: int) -> tuple[Tensor, Tensor]:
    return normal(16, 4, seed=k), labels(16, classes=3, seed=k)


def step(optimizer: CurvatureOptimizer, model: nn.Module, k: int) -> None:
    optimizer.zero_grad()
    x, y = batch(k)
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()


def made(method: str, model: nn.Module, average: Any) -> CurvatureOptimizer:
    knobs = {"labels": "data", "refresh": 2} if method == "kfac" else {}
    return curvlab.optimizer(method, model, average=average, lr=0.05, **knobs)


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return {n: t.detach().clone() for n, t in model.state_dict().items()}


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [n for n in a if not torch.equal(a[n], b[n])] == []


# a loop of one's own


@pytest.mark.parametrize("method", METHODS)
def test_averaged_holds_torchs_average_inside_and_the_trained_model_afterwards(method: str) -> None:
    model = network()
    optimizer = made(method, model, EACH["ema"])
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.8))
    for k in range(5):
        step(optimizer, model, k)
        theirs.update_parameters(model)
    before = tensors(model)
    batches = [batch(k) for k in range(3)]
    with optimizer.averaged():
        for p, q in zip(model.parameters(), theirs.module.parameters(), strict=True):
            assert torch.equal(p, q)
        update_bn(batches, model)
        assert not torch.equal(model[1].running_mean, before["1.running_mean"])
    assert_same(tensors(model), before)
    optimizer.eval()
    inside = tensors(model)
    assert torch.equal(inside["0.weight"], next(theirs.module.parameters()))
    with pytest.raises(UsageError, match="while the averaged weights are in the model"):
        step(optimizer, model, 9)
    optimizer.train()
    assert_same({**tensors(model), "1.num_batches_tracked": before["1.num_batches_tracked"]}, before)


@pytest.mark.parametrize("method", METHODS)
def test_a_mean_changes_nothing_of_the_training(method: str) -> None:
    found = []
    for average in (None, EACH["ema"], EACH["tail-ema"]):
        model = network()
        optimizer = made(method, model, average)
        for k in range(4):
            step(optimizer, model, k)
            if average is not None:
                with optimizer.averaged():
                    model(batch(k)[0])
        found.append(tensors(model))
    assert_same(found[0], found[1])
    assert_same(found[0], found[2])


def by_state_dict(optimizer: CurvatureOptimizer, average: Any) -> tuple[CurvatureOptimizer, nn.Module]:
    saved = copy.deepcopy((optimizer.model.state_dict(), optimizer.state_dict()))
    model = network()
    model.load_state_dict(saved[0])
    other = made(optimizer.name, model, average)
    other.load_state_dict(saved[1])
    return other, model


def by_pickle(optimizer: CurvatureOptimizer, average: Any) -> tuple[CurvatureOptimizer, nn.Module]:
    other = pickle.loads(pickle.dumps(optimizer))
    return other, other.model


def by_copy(optimizer: CurvatureOptimizer, average: Any) -> tuple[CurvatureOptimizer, nn.Module]:
    other = copy.deepcopy(optimizer)
    return other, other.model


@pytest.mark.parametrize(
    ("name", "way"),
    [*((name, by_state_dict) for name in EACH), ("schedule-free", by_pickle), ("tail-ema", by_copy)],
)
def test_a_state_that_was_saved_goes_on_bit_for_bit(name: str, way: Callable[..., Any]) -> None:
    model = network()
    optimizer = made("adamw", model, EACH[name])
    for k in range(3):
        step(optimizer, model, k)
    other, twin = way(optimizer, EACH[name])
    for k in range(3, 6):
        step(optimizer, model, k)
        step(other, twin, k)
    assert_same(tensors(model), tensors(twin))
    with optimizer.averaged(), other.averaged():
        assert_same(tensors(model), tensors(twin))
    assert optimizer.state_bytes() == other.state_bytes()


@pytest.mark.parametrize("way", [by_state_dict, by_copy])
def test_a_model_that_was_saved_with_averaged_weights_goes_on_from_the_trained_ones(
    way: Callable[..., Any],
) -> None:
    """As trainers do that save after an evaluation."""
    model = network()
    optimizer = made("adamw", model, EACH["ema"])
    for k in range(3):
        step(optimizer, model, k)
    optimizer.eval()
    other, twin = way(optimizer, EACH["ema"])
    assert_same(tensors(model), tensors(twin))
    for each in (optimizer, other):
        each.train()
        step(each, each.model, 3)
    assert_same(tensors(model), tensors(twin))
    without = made("adamw", network(), None)
    without.eval()
    without.train()


def test_state_bytes_count_the_average() -> None:
    weights = sum(p.nbytes for p in network().parameters())
    without = made("adamw", network(), None).state_bytes()
    assert made("adamw", network(), "ema").state_bytes() == without + weights
    assert made("adamw", network(), "schedule-free").state_bytes() == without + 2 * weights


def refused_master() -> None:
    model = network().to(torch.bfloat16)
    precision = {"use": "bfloat16", "parameter_write": "master"}
    curvlab.optimizer("adamw", model, average="schedule-free", precision=precision)


def refused_fraction() -> None:
    step(made("adamw", model := network(), "tail-ema"), model, 0)


def refused_thaw() -> None:
    model = network()
    model[0].bias.requires_grad_(False)
    optimizer = made("adamw", model, "ema")
    model[0].bias.requires_grad_()
    step(optimizer, model, 0)


def refused_state() -> None:
    made("adamw", network(), None).load_state_dict(made("adamw", network(), "ema").state_dict())


REFUSALS: list[tuple[Callable[[], object], type[CurvlabError], str]] = [
    (refused_master, ConfigError, "average: ScheduleFree reads steps from the parameters"),
    (refused_fraction, ConfigError, "set start_step, the number of the step with which it begins"),
    (refused_thaw, ConfigError, r"0\.bias were frozen when the optimizer was made"),
    (refused_state, CheckpointError, "holds an average of the weights, and this optimizer holds none"),
    (lambda: made("adamw", network(), None).averaged(), UsageError, "keeps no average of the weights"),
    (lambda: made("adamw", network(), {"decay": 0.9}), ConfigError, "average: the average has no name"),
    (lambda: made("adamw", network(), "emma"), ConfigError, "ema"),
]


@pytest.mark.parametrize(("call", "error", "words"), REFUSALS)
def test_what_cannot_be_is_refused_in_words(
    call: Callable[[], object], error: type[CurvlabError], words: str
) -> None:
    with pytest.raises(error, match=words):
        call()


# runs


def averaging(part: Average[Any], **run: Any) -> Plan:
    return replace(small_plan(log_every=1, **run), method=PLAIN, average=part)


PARTS: list[Average[Any]] = [WeightEma(0.8), TailEma(0.8, start=0.5), ScheduleFree()]


@pytest.mark.parametrize("part", PARTS, ids=lambda part: type(part).__name__)
def test_a_dry_run_counts_the_average_in_every_process(part: Average[Any]) -> None:
    plan, without = averaging(part), replace(averaging(part), average=None)
    live = prepare(plan, lambda event: None).optimizer
    assert live.averaging is not None
    held = sum(t.nbytes for t in tensors_of_state(live))
    assert inspect(plan).state_bytes == live.state_bytes() == inspect(without).state_bytes + held
    shares = [inspect(each, processes=2).shares for each in (plan, without)]
    assert [s.state_bytes for s in shares[0]] == [s.state_bytes + held for s in shares[1]]


@pytest.mark.parametrize("part", PARTS[1:], ids=lambda part: type(part).__name__)
def test_a_run_evaluates_both_and_resumes_bit_for_bit(part: Average[Any], tmp_path: Path) -> None:
    whole = run_small(tmp_path / "a", averaging(part))
    folder, _ = stopped_at(tmp_path / "b", 21, signal.SIGTERM, plan=averaging(part))
    resumed = run_small(tmp_path / "b", averaging(part), resume=folder)
    same(whole, resumed)
    with whole.optimizer.averaged(), resumed.optimizer.averaged():
        assert_same(parameters(whole), parameters(resumed))
    metrics = whole.summary["metrics"]
    assert {"val_loss", "trained_val_loss"} <= set(metrics)
    assert metrics["val_loss"] != metrics["trained_val_loss"]
    assert evaluate(averaging(part), whole.folder)["metrics"] == metrics
    with whole.optimizer.averaged():
        assert whole.workload.metrics()["val_loss"] == metrics["val_loss"]
    assert whole.workload.metrics()["val_loss"] == metrics["trained_val_loss"]


def test_the_tail_begins_where_that_part_of_the_budget_is_used_up(tmp_path: Path) -> None:
    run = run_small(tmp_path, averaging(TailEma(0.8, start=0.5)))
    assert run.summary["steps"] == 30
    assert run.optimizer.averaging is not None
    assert run.optimizer.averaging.state.count == 15


CONFIGURED: dict[str, Any] = {
    "task": {"use": "digits"},
    "method": {"use": "adamw"},
    "run": {"steps": 2},
    "report": {"use": "quiet"},
}


def test_statistics_of_batch_normalization_are_those_of_the_averaged_weights(tmp_path: Path) -> None:
    plan = replace(averaging(WeightEma(0.5)), task=Normalized())
    run = run_small(tmp_path, plan)
    model, before = run.model, {n: t.clone() for n, t in run.model.named_buffers()}
    norm = next(m for m in model.modules() if isinstance(m, nn.BatchNorm1d))
    inputs = run.workload.training.inputs
    with run.optimizer.averaged():
        seen: list[Tensor] = []
        handle = norm.register_forward_pre_hook(lambda m, given: seen.append(given[0].detach().clone()))
        model.train()
        count = min(10 * plan.task.batch_size, len(inputs))
        chosen = torch.arange(count) * len(inputs) // count
        for k in range(10):
            model(inputs[chosen[k::10]])
        handle.remove()
        means = torch.stack([x.mean(0) for x in seen]).mean(0)
        variances = torch.stack([x.var(0) for x in seen]).mean(0)
        norm.running_mean.copy_(means)
        norm.running_var.copy_(variances)
        found = run.workload.metrics()["val_loss"]
    assert found == pytest.approx(run.summary["metrics"]["val_loss"], rel=1e-6)
    assert all(torch.equal(t, before[n]) for n, t in model.named_buffers())
    assert evaluate(plan, run.folder)["metrics"] == run.summary["metrics"]


def test_the_table_average_is_part_of_the_resolved_configuration() -> None:
    given = CONFIGURED
    plan = build(load(data={**given, "average": {"use": "ema"}}, overrides=["average.decay=0.9"]))
    assert plan.average == WeightEma(0.9)
    assert plan.resolved["average"] == {"use": "ema", "decay": 0.9}
    assert "average" not in build(load(data=given)).resolved
    with pytest.raises(ConfigError, match="average.decay: decay = 1.0 must be ≥ 0 and < 1"):
        build(load(data={**given, "average": {"use": "ema", "decay": 1.0}}))


@pytest.mark.parametrize("name", ["ema", "schedule-free"])
def test_phases_of_precision_carry_the_average_over(name: str, tmp_path: Path) -> None:
    config = {
        "task": {"use": "digits", "batch_size": 64},
        "method": {"use": "adamw"},
        "run": {"steps": 12, "log_every": 1},
        "precision": {"use": "phases", "phases": ["bfloat16", "float64"], "until": [0.5]},
        "average": EACH[name],
        "report": {"use": "quiet"},
    }
    run = curvlab.train(config, out=tmp_path)
    metrics = run.summary["metrics"]
    assert metrics["val_loss"] < 2.31
    assert abs(metrics["val_loss"] - metrics["trained_val_loss"]) < 0.7
    assert run.optimizer.averaging is not None
    assert {t.dtype for t in tensors_of_state(run.optimizer)} == {torch.float64}


def tensors_of_state(optimizer: CurvatureOptimizer) -> list[Tensor]:
    assert optimizer.averaging is not None
    return list(optimizer.averaging.snapshot()[0].values())
