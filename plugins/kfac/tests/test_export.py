"""Exported factors, against another library's KFAC and against per-example gradients."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn
from typer.testing import CliRunner

import curvlab
from curvlab.cli.app import app
from curvlab.engine.factors import Factors, factors_of

N, CLASSES = 20, 4


def network() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, CLASSES, bias=False))
    return model.double()


def data() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(N, 5, dtype=torch.float64), torch.randint(CLASSES, (N,))


def after_one_step(method: str, **knobs: Any) -> tuple[nn.Sequential, Factors]:
    """The network before the step, and the factors that were observed there."""
    model = network()
    before = deepcopy(model)
    optimizer = curvlab.optimizer(method, model, **knobs)
    x, y = data()
    optimizer.step(curvlab.objective(model, nn.CrossEntropyLoss(), x, y))
    return before, factors_of(optimizer)


def test_kfac_factors_have_the_scale_and_the_columns_that_the_file_promises() -> None:
    """A = E[a aᵀ] with a one for the bias last, B = E[Jᵀ H J] of the output's Hessian, by autograd."""
    before, found = after_one_step("kfac", labels="exact", structure="dense", lr=0.1)
    x, _ = data()
    inputs = {"0": torch.cat([x, x.new_ones(N, 1)], dim=1), "2": before[:2](x)}
    for name, a in inputs.items():
        torch.testing.assert_close(found.tensors[f"{name}/A"], a.T @ a / N)
        k = int(name) + 1
        B = torch.zeros_like(found.tensors[f"{name}/B"])
        for s in before[:k](x):
            J = torch.autograd.functional.jacobian(before[k:], s)
            p = before[k:](s).softmax(0)
            B += J.T @ (torch.diag(p) - torch.outer(p, p)) @ J / N
        torch.testing.assert_close(found.tensors[f"{name}/B"], B)
    assert {name: about["observed"] for name, about in found.blocks.items()} == {"0": 1, "2": 1}
    assert {name: about["bias_column"] for name, about in found.blocks.items()} == {"0": "last", "2": None}
    assert found.untreated == ()


def test_kfac_factors_are_those_of_curvlinops_with_its_scale_and_columns() -> None:
    """Exact columns of the Hessian's root on one batch; the product with the same random matrices."""
    curvlinops = pytest.importorskip("curvlinops", reason="it brings torchvision, which no other test needs")
    before, found = after_one_step("kfac", labels="exact", structure="dense", lr=0.1)
    theirs = curvlinops.KFACLinearOperator(
        before,
        nn.CrossEntropyLoss(),
        list(before.parameters()),
        [data()],
        fisher_type="type-2",
        separate_weight_and_bias=False,
    )
    torch.manual_seed(2)
    vectors = {name: torch.randn_like(p) for name, p in before.named_parameters()}
    image = theirs @ torch.cat([v.flatten() for v in vectors.values()])
    products = dict(zip(vectors, image.split([v.numel() for v in vectors.values()]), strict=True))
    for name, about in found.blocks.items():
        pieces = [vectors[p].reshape(about["shape"][0], -1) for p in about["parameters"]]
        V = torch.cat(pieces, dim=1)
        assert list(V.shape) == about["shape"]
        ours = found.tensors[f"{name}/B"] @ V @ found.tensors[f"{name}/A"]
        expected = [products[p].reshape(about["shape"][0], -1) for p in about["parameters"]]
        torch.testing.assert_close(ours, torch.cat(expected, dim=1))


def test_ekfac_eigenvalues_are_mean_squares_of_gradients_in_the_exported_basis() -> None:
    before, found = after_one_step("ekfac", labels="data", lr=0.1)
    x, y = data()
    for name, about in found.blocks.items():
        assert about["form"] == "eigen"
        Q_A, Q_B = found.tensors[f"{name}/Q_A"], found.tensors[f"{name}/Q_B"]
        squares = torch.zeros(about["shape"], dtype=torch.float64)
        for k in range(N):
            before.zero_grad()
            nn.functional.cross_entropy(before(x[k : k + 1]), y[k : k + 1]).backward()
            grads = [before.get_parameter(p).grad for p in about["parameters"]]
            G = torch.cat([g.reshape(len(g), -1) for g in grads if g is not None], dim=1)
            squares += (Q_B.T @ G @ Q_A).square() / N
        torch.testing.assert_close(found.tensors[f"{name}/eigenvalues"], squares)


def test_a_diagonal_is_one_axis_and_an_identity_is_absent() -> None:
    _, found = after_one_step("foof", lr=0.1)
    assert set(found.tensors) == {"0/A", "2/A"}
    _, found = after_one_step("kfac", settings={"preconditioner.estimator.A": "diagonal"}, lr=0.1)
    assert found.tensors["0/A"].shape == (6,)
    assert found.tensors["0/B"].shape == (6, 6)


def test_the_command_writes_the_factors_of_the_newest_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = {"run": {"name": "small", "steps": 4}, "method": {"use": "kfac"}, "report": "quiet"}
    task = {"use": "teacher-student", "hidden": [3], "size": 60, "batch_size": 16}
    run = curvlab.train({**config, "task": task})
    done = CliRunner().invoke(app, ["export", str(run.folder), "--factors", "deep/f.safetensors", "--json"])
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    live = factors_of(run.optimizer)
    with safe_open("deep/f.safetensors", framework="pt") as file:
        about = file.metadata()
        assert set(file.keys()) == set(live.tensors)
        for name, tensor in live.tensors.items():
            assert torch.equal(file.get_tensor(name), tensor)
    assert (about["format"], about["step"], document["step"]) == ("curvlab-factors-1", "4", 4)
    assert json.loads(about["blocks"]) == document["blocks"] == live.blocks
    first = curvlab.train({**config, "task": task, "method": {"use": "sgd"}})
    done = CliRunner().invoke(app, ["export", str(first.folder), "--factors", "g.safetensors"])
    assert done.exit_code == 2
    assert 'the method "sgd" holds no Kronecker factors' in done.stderr
    assert not Path("g.safetensors").exists()
