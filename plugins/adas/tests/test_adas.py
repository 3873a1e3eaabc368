"""AdaS: the ranks of unfolded weights, the rates that follow from them, and runs with any method."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import curvlab
from curvlab.config import build, load
from curvlab.engine.run import train_plan
from curvlab.errors import ConfigError
from curvlab.reporting.runlog import RunLog
from curvlab.testing.asserts import assert_close
from curvlab.testing.conformance import CallbackConformance
from curvlab.testing.problems import DTYPE, normal
from curvlab_adas.adas import Adas, owners, unfoldings
from curvlab_adas.evbmf import shrunk
from plugins.adas.tests.reference import difference, matrix
from tests.limits.registered import registry
from tests.tasks.small_fashion import write_fashion


class TestAdas(CallbackConformance):
    def make(self) -> Adas:
        return Adas()


@pytest.mark.parametrize("seed", range(25))
def test_ranks_and_values_are_those_of_a_slow_reference(seed: int) -> None:
    mine, theirs, off = difference(seed)
    assert mine == theirs
    assert off < 1e-5


def test_the_rank_of_a_matrix_under_small_noise_is_found_and_no_noise_is_taken_for_rank() -> None:
    for seed in range(10):
        rng = np.random.default_rng(seed)
        clean = rng.normal(size=(30, 4)) @ rng.normal(size=(4, 60))
        found = shrunk(torch.from_numpy(clean + 0.05 * rng.normal(size=(30, 60))))
        assert found.rank == 4
        assert abs(found.variance / 0.05**2 - 1) < 0.2
        exact = shrunk(torch.from_numpy(clean))
        values = torch.linalg.svdvals(torch.from_numpy(clean))[:4]
        assert exact.rank == 4
        assert torch.allclose(exact.values, values, rtol=1e-8)
        assert shrunk(torch.from_numpy(rng.normal(size=(30, 60)))).rank <= 1


def test_a_transpose_and_a_multiple_have_the_same_rank_and_gain() -> None:
    for seed in range(5):
        Y = torch.from_numpy(matrix(seed))
        plain = shrunk(Y)
        for other in (Y.mT, 1e-3 * Y, 1e6 * Y):
            found = shrunk(other)
            assert found.rank == plain.rank
            # the free energy is flat at its minimum, so a variance is known to half of the digits
            assert abs(found.gain - plain.gain) < 1e-7
            assert 0.0 <= found.gain <= 1.0
    nothing = shrunk(torch.zeros(3, 4))
    assert (nothing.rank, nothing.gain, nothing.condition) == (0, 0.0, 0.0)
    with pytest.raises(ValueError, match="not finite"):
        shrunk(torch.full((2, 2), torch.nan))


def test_a_convolution_is_unfolded_by_its_outputs_and_by_its_inputs() -> None:
    W = normal(3, 2, 4, 5, seed=0)
    by_output, by_input = unfoldings(W)
    assert_close(by_output, torch.stack([W[k].flatten() for k in range(3)]))
    assert_close(by_input, torch.stack([W[:, k].flatten() for k in range(2)]))
    assert len(list(unfoldings(W[:, :, 0, 0]))) == 1


def test_parameters_have_the_rate_of_their_convolution_or_of_the_last_one_before_them() -> None:
    model = nn.Sequential(
        nn.BatchNorm2d(1),
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 4, 3),
        nn.Flatten(),
        nn.Linear(4, 2),
    )
    found = owners(model, {"1", "3"})
    assert {n: found[n] for n in ("0.weight", "1.bias", "2.weight", "3.weight", "5.weight", "5.bias")} == {
        "0.weight": "1", "1.bias": "1", "2.weight": "1", "3.weight": "3", "5.weight": "3", "5.bias": "3",
    }  # fmt: skip
    assert set(found) == {n for n, _ in model.named_parameters()}


def test_a_rate_decays_and_grows_with_the_gain_and_an_estimate_that_fails_repeats_the_last() -> None:
    model = nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 4)).to(DTYPE)  # without convolutions
    part = Adas(beta=0.5, zeta=2.0, initial=0.1)
    state = part.init(model)
    assert set(state.gains) == {"0", "2"}
    assert set(part.rates(state).values()) == {1.0}
    before = dict(state.gains)
    model[0].weight.data.copy_(normal(8, 1, seed=1) @ normal(1, 12, seed=2) + 1e-3 * normal(8, 12, seed=3))
    after = shrunk(model[0].weight.detach()).gain
    part.epoch_ended(state, model, 1)
    assert state.etas["0"] == max(0.5 * 0.1 + 2.0 * (after - before["0"]), 1e-20)
    assert state.etas["2"] == 0.05
    assert part.rates(state)["2.bias"] == 0.5
    model[2].weight.data.fill_(torch.inf)
    held = state.gains["2"]
    part.epoch_ended(state, model, 2)
    assert state.gains["2"] == held
    assert state.etas["2"] == 0.025
    with pytest.raises(ConfigError, match="rank"):
        part.init(nn.Sequential(nn.LayerNorm(3)))


def configured(task: Mapping[str, Any], method: str, epochs: int) -> dict[str, Any]:
    return {
        "run": {"epochs": epochs, "seed": 0, "threads": 1},
        "task": task,
        "method": {"use": method},
        "callbacks": {"adas": {"use": "adas", "zeta": 3.0}},
        "report": "quiet",
    }


@pytest.mark.parametrize("method", ["kfac", "singd"])
def test_one_table_puts_adas_around_a_method_and_the_run_resumes_bit_for_bit(
    method: str, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    write_fashion(tmp_path / "data")
    small = {"channels": [4, 5, 6], "hidden": 8, "batch_size": 32, "root": str(tmp_path / "data")}
    task = {"use": "fashion-convnet", **small}
    whole = curvlab.train(configured(task, method, 2), out=tmp_path / "whole")
    lines = (whole.folder / "events.jsonl").read_text().splitlines()
    told = [e["detail"]["layers"] for e in map(json.loads, lines) if e["name"] == "adas"]
    assert [set(t) for t in told] == [{"conv1", "conv2", "conv3"}] * 2
    assert told[0]["conv3"]["rate"] != 0.03
    short = curvlab.train(configured(task, method, 1), out=tmp_path / "short")
    plan = build(load(data=configured(task, method, 2)), registry())
    on = train_plan(plan, out=tmp_path, log=RunLog, resume_from=short.folder)
    for name, p in whole.model.named_parameters():
        assert torch.equal(p, dict(on.model.named_parameters())[name]), name
