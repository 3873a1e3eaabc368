"""SVD training: layers in factors, their penalty, pruning by energy, and export as plain layers."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import curvlab
from curvlab.config import build_method, build_part
from curvlab.engine.companions import Companions
from curvlab.engine.optimizer import CurvatureOptimizer
from curvlab.engine.state import export as exported_state
from curvlab.errors import ConfigError
from curvlab.objectives.supervised import objective
from curvlab.precision.full import Full
from curvlab.protocols.task import Task
from curvlab.testing.asserts import assert_close
from curvlab.testing.conformance import CallbackConformance
from curvlab.testing.problems import DTYPE, labels, normal
from curvlab_compress.export import exported, kept, weights_of
from curvlab_compress.svd_layer import Split, decomposable, decomposed, svd_layers
from curvlab_compress.svd_training import SvdTraining, within_energy
from plugins.compress.tests.networks import LAYERS, factorized, plain
from tests.limits.registered import registry


class TestSvdTraining(CallbackConformance):
    def make(self) -> SvdTraining:
        return SvdTraining(sparsity=0.1, prune_after=2, energy=0.2)

    def model(self) -> nn.Module:
        return factorized()


@pytest.mark.parametrize("split", ["channel", "spatial"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_in_factors_and_both_of_its_exports_compute_what_it_does(name: str, split: Split) -> None:
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    layer, x = make().to(DTYPE), normal(*shape, seed=1)
    if not decomposable(layer, split):
        assert split == "spatial"
        assert name in ("conv1d", "conv3d", "same")
        return
    made = decomposed(layer, split)
    assert_close(made(x), layer(x), condition=100.0)
    f = made.factors()
    for Q in (f.U, f.V):
        assert_close(Q.mT @ Q, torch.eye(len(f.s), dtype=DTYPE), condition=10.0)
    made.scale.weight.data[::2] *= -1.0  # as training may
    made.scale.weight.data[-1] = 0.0
    for form in ("dense", "low-rank"):
        plain_layer = exported(made, form)
        assert_close(plain_layer(x), made(x), condition=100.0)
        kinds = {type(m) for m in plain_layer.modules()}
        assert kinds <= {type(layer), nn.Sequential}
    assert exported(made)(x).shape == layer(x).shape
    assert [tuple(p.shape) for p in exported(made).parameters()] == [
        tuple(p.shape) for p in layer.parameters()
    ]


def test_layers_in_groups_and_heirs_of_torchs_layers_stay_as_they_are() -> None:
    heir = type("Heir", (nn.Linear,), {})(2, 2)
    assert not any(decomposable(m, "channel") for m in (nn.Conv2d(4, 4, 3, groups=2), heir, nn.Tanh()))


@pytest.mark.parametrize("seed", range(5))
def test_pruning_takes_as_many_of_the_smallest_values_as_the_energy_allows(seed: int) -> None:
    s, energy = normal(6, seed=seed), 0.1
    mask = within_energy(s, energy)
    squares = s.square()
    allowed = [
        len(cut)
        for k in range(6)
        for cut in itertools.combinations(range(6), k)
        if float(squares[list(cut)].sum()) <= energy * float(squares.sum())
    ]
    assert int((mask == 0).sum()) == max(allowed)
    assert float(squares[mask == 0].sum()) <= energy * float(squares.sum())
    assert within_energy(torch.zeros(3), 0.5).sum() == 1


@pytest.mark.parametrize("keep", [0.5, 0.3, 0.01])
def test_pruning_leaves_at_most_the_share_of_the_rank_that_is_kept(keep: float) -> None:
    model = factorized()
    part = SvdTraining(prune_after=1, energy=1e-6, keep=keep)
    before = {name: layer.scale.weight.detach().clone() for name, layer in svd_layers(model)}
    with torch.no_grad():
        part.epoch_ended(part.init(model), model, 1)
    for name, layer in svd_layers(model):
        s, old = layer.scale.weight.detach(), before[name]
        count = max(math.floor(keep * len(old)), 1)
        assert kept(layer) == count
        assert torch.equal(s[s != 0].abs().sort().values, old.abs().sort().values[-count:])


@pytest.mark.parametrize("method", ["adamw", "kfac"])
def test_singular_values_move_at_their_own_rate_and_all_else_as_before(method: str) -> None:
    x, y, moved = normal(12, 1, 6, 6, seed=1), labels(12, classes=3, seed=1), []
    for rate in (1.0, 7.0):
        model = factorized()
        made_of = build_method(registry(), method, {}, {})
        companions = Companions.of({"svd": SvdTraining(scale_rate=rate)}, model, made_of)
        made = CurvatureOptimizer(made_of, model, backend=Full("float64"), companions=companions)
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        made.step(objective(model, nn.CrossEntropyLoss(), x, y))
        moved.append({n: p.detach() - before[n] for n, p in model.named_parameters()})
    for name, step in moved[0].items():
        assert_close(moved[1][name], (7.0 if ".scale." in name else 1.0) * step, condition=100.0)


def test_the_penalty_is_the_papers_written_out() -> None:
    model = factorized()
    for k, p in enumerate(model.parameters()):
        p.data.add_(normal(*p.shape, seed=k), alpha=0.1)
    at = dict(model.named_parameters())
    measures = {
        "hoyer": lambda s: s.abs().sum() / s.norm(),
        "hoyer-square": lambda s: (s.abs().sum() / s.norm()) ** 2,
        "l1": lambda s: s.abs().sum(),
    }
    for measure, R in measures.items():
        part = SvdTraining(orthogonality=0.7, sparsity=0.3, measure=measure)  # type: ignore[arg-type]
        expected = torch.zeros((), dtype=DTYPE)
        for _, layer in svd_layers(model):
            f = layer.factors()
            eye = torch.eye(len(f.s), dtype=DTYPE)
            off = (f.U.mT @ f.U - eye).square().sum() + (f.V.mT @ f.V - eye).square().sum()
            expected = expected + 0.7 * off / len(f.s) ** 2 + 0.3 * R(f.s)
        assert_close(part.penalty(part.init(model), model, at), expected, condition=100.0)


def test_ordinary_readers_read_every_factor_and_none_holds_the_penaltys_gradient() -> None:
    x, y, states = normal(12, 1, 6, 6, seed=1), labels(12, classes=3, seed=1), []
    for strength in (0.0, 50.0):
        model = factorized()
        method = build_method(registry(), "kfac", {}, {})
        part = SvdTraining(orthogonality=strength, sparsity=strength)
        companions = Companions.of({"svd": part}, model, method)
        made = CurvatureOptimizer(method, model, backend=Full("float64"), companions=companions)
        before = [p.detach().clone() for p in model.parameters()]
        made.step(objective(model, nn.CrossEntropyLoss(), x, y))
        moved = [b - p.detach() for b, p in zip(before, model.parameters(), strict=True)]
        states.append((exported_state(made.arms[0].state.preconditioner)[0], moved))
        treated = {row.parameter for row in made.coverage() if row.treatment == "method"}
        factors = {n for n, _ in model.named_parameters() if ".right." in n or ".left." in n}
        assert factors <= treated
    (without, moved), (with_it, pulled) = states
    assert without.keys() == with_it.keys()
    assert all(torch.equal(t, with_it[n]) for n, t in without.items())
    assert not all(torch.allclose(a, b) for a, b in zip(moved, pulled, strict=True))


def configured(**more: Any) -> dict[str, Any]:
    callback = {"use": "svd-training", "sparsity": 0.05, "sparse_from": 1, "prune_after": 2, "energy": 0.05}
    return {
        "run": {"epochs": 4, "seed": 0, "threads": 1, **more},
        "task": {"use": "svd", "of": {"use": "digits", "hidden": [24], "batch_size": 256}},
        "method": {"use": "kfac"},
        "callbacks": {"svd": callback},
        "report": "quiet",
    }


def test_a_run_prunes_keeps_pruned_values_at_zero_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    whole = curvlab.train(configured(), out=tmp_path / "whole")
    ranks = {name: kept(layer) for name, layer in svd_layers(whole.model)}
    said = [json.loads(line) for line in (whole.folder / "events.jsonl").read_text().splitlines()]
    told = [e["detail"] for e in said if e["name"] == "svd-ranks"]
    assert [t["epoch"] for t in told] == [1, 2, 3, 4]
    assert told[-1]["ranks"] == ranks
    assert sum(ranks.values()) < sum(told[0]["ranks"].values())
    assert (told[-1]["dense"], told[-1]["weights"]) == weights_of(whole.model)
    x = whole.workload.validation.inputs
    assert_close(exported(whole.model)(x), whole.model(x), condition=100.0)

    short = curvlab.train(configured(epochs=2), out=tmp_path / "short")
    on = resumed(short.folder, tmp_path)
    for name, p in whole.model.named_parameters():
        assert torch.equal(p, dict(on.model.named_parameters())[name]), name


def resumed(folder: Path, out: Path) -> Any:
    """The run of two epochs, gone on with to four."""
    from curvlab.config import build, load
    from curvlab.engine.run import train_plan
    from curvlab.reporting.runlog import RunLog

    plan = build(load(data=configured()))
    return train_plan(plan, out=out, log=RunLog, resume_from=folder)


def test_the_task_names_what_cannot_be_factorized_and_the_callback_what_it_needs() -> None:
    settings = {"of": {"use": "digits"}, "only": ["nothing*"]}
    task = build_part(registry(), Task, "svd", settings)
    with pytest.raises(ConfigError, match="nothing"):
        task.model()
    with pytest.raises(ConfigError, match=r"task\.of"):
        SvdTraining().init(plain())
    with pytest.raises(ConfigError, match="prune_after"):
        SvdTraining(sparse_from=3, prune_after=2)
