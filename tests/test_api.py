"""The public face: ``curvlab.optimizer``, ``curvlab.objective``, ``curvlab.train``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import tomli
import torch
from torch import nn

import curvlab
from curvlab.errors import ConfigError, UsageError
from curvlab.parts.steps import Rate
from curvlab.protocols.report import EvalRecord, Reporter

ROOT = Path(__file__).parents[1]

SMALL: dict[str, Any] = {
    "run": {"steps": 4, "checkpoint_every": 2},
    "task": {"use": "quadratic", "dimension": 4, "size": 32, "batch_size": 8},
    "method": {"use": "plain", "lr": 0.01},
    "report": "quiet",
}


@pytest.fixture(autouse=True)
def _fake_plugin_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "config" / "site"))
    monkeypatch.setenv("CURVLAB_PLUGINS", "curvlab-fake")
    monkeypatch.setenv("CURVLAB_DISABLE_PLUGINS", "")
    monkeypatch.setenv("CURVLAB_STRICT", "1")


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def test_an_optimizer_is_torchs_and_trains_every_parameter(model: nn.Module) -> None:
    optimizer = curvlab.optimizer("plain", model, lr=0.5)
    assert isinstance(optimizer, torch.optim.Optimizer)
    before = [p.detach().clone() for p in model.parameters()]
    loss = model(torch.randn(8, 3)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    optimizer.step()
    after = list(model.parameters())
    assert len(gradients) == len(after)
    for b, a, g in zip(before, after, gradients, strict=True):
        torch.testing.assert_close(a.detach(), b - 0.5 * g)


def test_knobs_and_settings_reach_the_method(model: nn.Module) -> None:
    optimizer = curvlab.optimizer(
        "plain", model, lr=0.5, settings={"on_update": ["momentum"], "on_update.momentum.beta": 0.25}
    )
    assert optimizer.method.step == Rate(0.5)
    assert optimizer.method.on_update[0].beta == 0.25  # type: ignore[attr-defined]


def test_a_precision_is_named_and_takes_the_models_device(model: nn.Module) -> None:
    optimizer = curvlab.optimizer("plain", model.double(), precision="float64")
    assert optimizer.backend.dtypes.parameters == torch.float64
    assert optimizer.backend.torch_device == next(model.parameters()).device
    with pytest.raises(ConfigError, match='Did you mean "float64"'):
        curvlab.optimizer("plain", model, precision="flaot64")


def test_every_wrong_knob_is_told_at_once(model: nn.Module) -> None:
    with pytest.raises(ConfigError) as caught:
        curvlab.optimizer("plain", model, lrr=1, lr="fast")
    assert [fault.path for fault in caught.value.faults] == ["lrr", "lr"]


def test_a_model_without_parameters_is_refused() -> None:
    with pytest.raises(UsageError, match="no parameters"):
        curvlab.optimizer("plain", nn.ReLU())


def test_a_group_is_one_of_torchs_or_a_word() -> None:
    with pytest.raises(ConfigError, match="group = 'all'"):
        curvlab.optimizer("plain", nn.Linear(2, 2), group="all")


def test_an_objective_goes_where_a_plain_loop_cannot(model: nn.Module) -> None:
    optimizer = curvlab.optimizer("plain", model, settings={"step": "armijo"})
    x, y = torch.randn(8, 3), torch.randn(8, 2)
    criterion = nn.MSELoss()
    before = criterion(model(x), y).item()
    optimizer.step(curvlab.objective(model, criterion, x, y))
    assert criterion(model(x), y).item() < before


def test_the_room_and_the_function_of_one_name_are_both_there() -> None:
    import curvlab.objectives.losses
    import curvlab.objectives.supervised as supervised

    assert callable(curvlab.objective)
    assert supervised.objective is not None
    assert "losses" in dir(sys.modules["curvlab.objectives"])


def test_training_leaves_a_folder(tmp_path: Path) -> None:
    run = curvlab.train(SMALL, out=tmp_path)
    assert run.folder.parent == tmp_path
    assert run.summary["steps"] == 4
    assert tomli.loads((run.folder / "config.toml").read_text())["task"]["dimension"] == 4
    assert tomli.loads((run.folder / "resolved.toml").read_text())["method"]["step"]["lr"] == 0.01


class Noting(Reporter):
    def __init__(self) -> None:
        self.seen: list[int] = []

    def evaluated(self, record: EvalRecord) -> None:
        self.seen.append(record.step)


def test_training_calls_the_reporters_of_the_call_and_all_of_the_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {**SMALL, "run": {**SMALL["run"], "eval_every": 2}, "report": ["quiet", {"use": "console"}]}
    noting = Noting()
    run = curvlab.train(config, out=tmp_path, reporters=[noting])
    assert noting.seen == [2, 4]
    assert [line.split()[:2] for line in capsys.readouterr().err.splitlines()] == [
        ["step", "2"],
        ["step", "4"],
    ]
    resolved = tomli.loads((run.folder / "resolved.toml").read_text())
    assert [one["use"] for one in resolved["report"]] == ["quiet", "console"]
    assert [(line["step"], set(line)) for line in run.metrics()] == [
        (step, {"step", "seconds", *run.summary["metrics"]}) for step in (2, 4)
    ]
    curvlab.train(config, out=tmp_path, progress=False)
    assert capsys.readouterr().err == ""
    curvlab.train(SMALL, out=tmp_path, progress=True)  # whatever [report] says
    assert capsys.readouterr().err.startswith("step 4")
    with pytest.raises(UsageError, match="expected objects of classes derived from curvlab's Reporter"):
        curvlab.train(SMALL, out=tmp_path, reporters=[print])  # type: ignore[list-item]
    with pytest.raises(UsageError, match='expected kind "eval" or "step"'):
        run.metrics("loss")  # type: ignore[arg-type]


def test_a_run_in_a_notebook_is_a_table_in_which_names_are_escaped(tmp_path: Path) -> None:
    run = curvlab.train(SMALL, out=tmp_path / "<b>")
    text = run._repr_html_()
    root = ElementTree.fromstring(text)
    facts = {row[0].text: row[1].text for row in root}
    assert facts["folder"] == str(run.folder)
    assert facts["steps"] == "4"
    assert "<b>" not in text


def test_training_takes_files_that_override_each_other(tmp_path: Path) -> None:
    one, two = tmp_path / "one.toml", tmp_path / "two.toml"
    one.write_text('[run]\nsteps = 9\n[task]\nuse = "quadratic"\ndimension = 3\n[method]\nuse = "plain"\n')
    two.write_text('report = "quiet"\n[run]\nsteps = 2\n')
    assert curvlab.train([one, two], out=tmp_path / "runs").summary["steps"] == 2
    assert curvlab.train(str(one), out=tmp_path / "runs").summary["steps"] == 9


def test_a_finished_run_is_not_gone_on_with(tmp_path: Path) -> None:
    first = curvlab.train(SMALL, out=tmp_path)
    again = curvlab.train(SMALL, out=tmp_path, resume=True)
    assert again.folder != first.folder


def test_an_unfinished_run_of_the_same_configuration_goes_on(tmp_path: Path) -> None:
    whole = curvlab.train(SMALL, out=tmp_path / "whole")
    stopped = curvlab.train(SMALL, out=tmp_path / "stopped")
    (stopped.folder / "summary.json").unlink()  # as after a SIGKILL
    other = curvlab.train(
        SMALL | {"method": {"use": "plain", "lr": 0.02}}, out=tmp_path / "stopped", resume=True
    )
    assert other.folder != stopped.folder
    (other.folder / "summary.json").unlink()
    again = curvlab.train(SMALL, out=tmp_path / "stopped", resume=True)
    assert again.folder == stopped.folder
    for mine, theirs in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_public_names_are_listed_and_nothing_else_is_there() -> None:
    assert set(curvlab.__all__) <= set(dir(curvlab))
    assert all(getattr(curvlab, name) is not None for name in curvlab.__all__)
    with pytest.raises(AttributeError, match="no attribute 'optimiser'"):
        _ = curvlab.optimiser  # codespell:ignore optimiser


def test_the_face_is_lazy() -> None:
    code = "import curvlab, sys; curvlab.hookimpl; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


GIVEN: dict[str, Any] = {
    "parameters": lambda net: net.parameters(),
    "list": lambda net: list(net.parameters()),
    "filter": lambda net: filter(lambda p: p.requires_grad, net.parameters()),
    "named": lambda net: net.named_parameters(),
    "groups": lambda net: [{"params": net.parameters()}],
    "one group": lambda net: {"params": net.parameters()},
    "a parameter": lambda net: net[0].weight,
    "its class": lambda net: nn.Linear,
    "nothing": lambda net: None,
}


@pytest.mark.parametrize("way", GIVEN)
def test_parameters_in_place_of_the_model_are_refused_with_the_remedy(way: str, model: nn.Module) -> None:
    with pytest.raises(UsageError, match="pass .*model") as refused:
        curvlab.optimizer("plain", GIVEN[way](model))
    assert ("groups=[" in str(refused.value)) == ("group" in way)


def test_precision_is_that_of_the_parameters_and_no_other(model: nn.Module) -> None:
    assert curvlab.optimizer("plain", model).backend.dtypes.parameters is torch.float32
    assert curvlab.optimizer("plain", model, precision="float32").backend.dtypes.parameters is torch.float32
    with pytest.raises(
        ConfigError, match=r'"float64" .* float32(.|\n)*model.double\(\)(.|\n)*leave precision out'
    ):
        curvlab.optimizer("plain", model, precision="float64")
    assert curvlab.optimizer("plain", model.double()).backend.dtypes.parameters is torch.float64
    with pytest.raises(ConfigError, match=r"model.float\(\)"):
        curvlab.optimizer("plain", model, precision="float32")


def test_what_cannot_be_trained_is_refused_before_anything_else_is_made(model: nn.Module) -> None:
    with pytest.raises(ConfigError, match=r'"0.weight" is float8_e4m3fn'):
        curvlab.optimizer("plain", model.to(torch.float8_e4m3fn))
