"""``train``, ``resume``, ``eval`` and ``env`` as a user types them, on core's own parts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tomli
from typer.testing import CliRunner

from curvlab.cli.app import app
from curvlab.cli.resuming import FREE, continued
from curvlab.errors import ConfigError
from curvlab.reporting.rundir import RunDir

CONFIG = """
[run]
name = "small"
epochs = 3
log_every = 2

[task]
use = "digits"
hidden = [8]

[method]
preconditioner = { use = "identity" }
damping = { use = "constant" }
step = { use = "rate", lr = 0.1 }
on_update = [{ use = "momentum", beta = 0.9 }]
"""

#: 1437 examples in batches of 128: epochs end within these steps
EPOCHS = (12, 23, 34)


class Said(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def _core_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CURVLAB_PLUGINS", "")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.toml").write_text(CONFIG)


def curvlab(*arguments: object) -> Said:
    """A command in this process."""
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return Said(done.exit_code, done.stdout, done.stderr)


def trained(*arguments: object) -> Path:
    """The folder of a run that ended well."""
    said = curvlab("train", "small.toml", *arguments)
    assert said.code == 0, said.err
    return Path(said.out.splitlines()[-1])


def tensors(folder: Path) -> bytes:
    name = (folder / "checkpoints" / "latest").read_text().strip()
    return (folder / "checkpoints" / name / "tensors.safetensors").read_bytes()


# train


def test_train_prints_metrics_and_folder_and_one_line_per_evaluation_on_stderr() -> None:
    said = curvlab("train", "small.toml")
    assert said.code == 0
    folder = Path(said.out.splitlines()[-1])
    assert folder.parent == Path("runs")
    assert folder.name.startswith("small-")
    assert "34 steps" in said.out
    assert "val_accuracy" in said.out
    assert [line.split()[1] for line in said.err.splitlines()] == [str(step) for step in EPOCHS]
    assert (folder / "config.toml").read_text() == CONFIG


def test_json_is_one_document_on_stdout_and_all_else_on_stderr() -> None:
    said = curvlab("train", "small.toml", "--json")
    summary = json.loads(said.out)
    assert summary == RunDir(Path(summary["folder"])).summary
    assert summary["exit_reason"] == "finished"
    assert len(said.err.splitlines()) == len(EPOCHS)


def test_quiet_prints_nothing_and_keeps_the_folder() -> None:
    said = curvlab("train", "small.toml", "--quiet")
    assert (said.out, said.err) == ("", "")
    (folder,) = Path("runs").iterdir()
    assert RunDir(folder).finished


def test_quiet_and_json_print_the_document_alone() -> None:
    said = curvlab("train", "small.toml", "--quiet", "--json")
    assert said.err == ""
    assert json.loads(said.out)["steps"] == 34


def test_out_name_and_set_say_where_and_what() -> None:
    folder = trained("--out", "elsewhere/deep", "--name", "3", "--set", "run.epochs=1", "--set", "run.seed=5")
    assert folder.parent == Path("elsewhere/deep")
    assert folder.name.startswith("3-")
    resolved = tomli.loads((folder / "resolved.toml").read_text())
    assert resolved["run"]["name"] == "3"
    assert resolved["run"]["seed"] == 5
    assert RunDir(folder).manifest["seed"] == 5


def test_the_resolved_configuration_gives_the_same_run_again() -> None:
    first = trained()
    said = curvlab("train", first / "resolved.toml")
    assert tensors(first) == tensors(Path(said.out.splitlines()[-1]))


def test_a_fault_in_the_configuration_is_told_and_leaves_no_folder() -> None:
    said = curvlab("train", "small.toml", "--set", "run.epochs=-1", "--set", "task.hidden=x")
    assert said.code == 3
    assert "Traceback" not in said.err
    assert not Path("runs").exists()


def test_divergence_is_exit_5_and_names_the_last_good_checkpoint() -> None:
    said = curvlab(
        "train", "small.toml", "--set", "method.step.lr=1e30", "--set", "run.checkpoint_every=1", "--json"
    )
    assert said.code == 5
    summary = json.loads(said.out)
    assert (summary["exit_reason"], summary["exit_code"]) == ("diverged", 5)
    assert summary["message"] in said.err
    assert "checkpoint" in said.err
    assert "Traceback" not in said.err


# dry run


def test_a_dry_run_shows_coverage_bytes_and_cost_and_makes_nothing() -> None:
    said = curvlab("train", "small.toml", "--dry-run")
    assert said.code == 0
    for words in (
        "fc1.weight",
        "8×64",
        "610 parameters, 2,440 bytes",
        "2,440 bytes",
        "100 of 100 steps: 1 forward",
    ):
        assert words in said.out, words
    assert not Path("runs").exists()


def test_a_dry_run_as_json_is_one_document() -> None:
    document = json.loads(curvlab("train", "small.toml", "--dry-run", "--json").out)
    assert [row["parameter"] for row in document["coverage"]] == [
        "fc1.weight",
        "fc1.bias",
        "fc2.weight",
        "fc2.bias",
    ]
    assert document["state_bytes"] == 4 * 610
    assert document["costs"][0]["forwards"] == 1


# resume


def test_resume_of_a_stopped_run_ends_like_one_that_was_not() -> None:
    whole, folder = trained(), trained("--set", "run.epochs=1")
    said = curvlab("resume", folder, "--set", "run.epochs=3")
    assert said.code == 0
    assert tensors(whole) == tensors(folder)
    assert Path(said.out.splitlines()[-1]) == folder


def test_resume_of_a_finished_run_says_so_and_changes_nothing() -> None:
    folder = trained()
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    said = curvlab("resume", folder)
    assert said.code == 0
    assert "is finished" in said.err
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    assert json.loads(curvlab("resume", folder, "--json").out) == RunDir(folder).summary


def test_a_new_kind_of_budget_takes_the_place_of_the_old() -> None:
    folder = trained("--set", "run.epochs=1")
    assert curvlab("resume", folder, "--set", "run.steps=20").code == 0
    assert RunDir(folder).summary["steps"] == 20
    run = tomli.loads((folder / "resolved.toml").read_text())["run"]
    assert run["steps"] == 20
    assert "epochs" not in run
    assert curvlab("resume", folder).code == 0


def test_what_is_told_and_kept_may_change() -> None:
    folder = trained("--set", "run.epochs=1")
    changes = ("run.epochs=2", "run.log_every=5", "run.eval_every=3", "run.checkpoint_every=4", "run.keep=1")
    said = curvlab(
        "resume", folder, *(word for change in changes for word in ("--set", change)), "--set", "report=quiet"
    )
    assert (said.code, said.err) == (0, "")
    assert [p.name for p in (folder / "checkpoints").glob("step-*")] == ["step-00000023"]
    assert [e["step"] for e in RunDir(folder).evaluations()] == [12, 15, 18, 21, 23]


@pytest.mark.parametrize(
    "change",
    [
        "run.seed=1",
        "run.threads=2",
        "run.name=x",
        "method.step.lr=0.2",
        "task.hidden=[9]",
        "precision=float64",
        "sampler=full-batch",
    ],
)
def test_any_other_change_would_falsify_the_run_and_is_refused_by_name(change: str) -> None:
    folder = trained("--set", "run.epochs=1")
    before = (folder / "metrics.jsonl").read_bytes()
    said = curvlab("resume", folder, "--set", "run.epochs=2", "--set", change)
    assert said.code == 3
    assert change.split("=")[0] in said.err
    assert "this setting cannot change in a resumed run" in said.err
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_setting_what_is_set_already_is_no_change(tmp_path: Path) -> None:
    folder = trained("--set", "run.epochs=1")
    assert continued(folder, ["run.seed=0", "method.step.lr=0.1"]).data["run"]["seed"] == 0
    with pytest.raises(ConfigError) as refused:
        continued(folder, ["run.seed=1", "task.batch_size=3"])
    assert [fault.path for fault in refused.value.faults] == ["run.seed", "task.batch_size"]
    assert all(free in refused.value.faults[0].hint for free in FREE)


@pytest.mark.parametrize("command", ["resume", "eval"])
def test_what_is_no_run_is_a_usage_error(command: str) -> None:
    Path("empty").mkdir()
    for place in ("empty", "nowhere", "small.toml"):
        said = curvlab(command, place)
        assert said.code == 2, place
        assert "Traceback" not in said.err


# train --resume


def test_train_resume_goes_on_where_it_can_and_begins_anew_where_it_cannot() -> None:
    said = curvlab("train", "small.toml", "--resume")
    assert "a new run" in said.err
    first = Path(said.out.splitlines()[-1])
    said = curvlab("train", "small.toml", "--resume")
    assert "a new run" in said.err, "a finished run need not go on"
    (first / "summary.json").unlink()
    second = Path(said.out.splitlines()[-1])
    (second / "summary.json").unlink()
    said = curvlab("train", "small.toml", "--resume")
    assert f"going on in {max(first, second)}" in said.err
    assert RunDir(max(first, second)).finished
    assert len(list(Path("runs").iterdir())) == 2


# eval


def test_eval_gives_the_runs_last_evaluation_bit_for_bit() -> None:
    folder = trained()
    said = curvlab("eval", folder, "--json")
    found, line = json.loads(said.out), RunDir(folder).evaluations()[-1]
    assert found["step"] == line["step"] == 34
    assert found["metrics"] == {name: line[name] for name in ("val_loss", "val_accuracy")}
    assert f"val_accuracy {line['val_accuracy']:.4g}" in curvlab("eval", folder).out


def test_eval_of_a_run_without_a_checkpoint_says_so() -> None:
    folder = trained()
    for path in (folder / "checkpoints").glob("step-*"):
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    said = curvlab("eval", folder)
    assert said.code == 1
    assert "no checkpoint" in said.err


# env


def test_env_tells_what_a_bug_report_needs() -> None:
    said = curvlab("env", "--json")
    found = json.loads(said.out)
    asked = {"python", "curvlab", "torch", "dependencies", "plugins", "devices", "threads", "platform"}
    assert asked <= set(found)
    assert found["plugins"]["curvlab:core"]["status"] == "ok"
    text = curvlab("env").out
    for words in (found["torch"], found["platform"], "curvlab:core"):
        assert words in text


# processes


def process(*arguments: object, path: Sequence[str] = ()) -> subprocess.Popen[str]:
    root = Path(__file__).parents[2]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([*path, str(root), *sys.path])}
    words = [sys.executable, "-m", "curvlab", *map(str, arguments)]
    return subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition: Any, running: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 90
    while not condition():
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 75), ("SIGINT", 130)])
def test_a_signal_ends_the_command_with_its_code_and_a_checkpoint_to_go_on_from(name: str, code: int) -> None:
    running = process("train", "small.toml", "--set", "run.epochs=100000", "--set", "run.keep=3", "--json")
    try:
        wait_for(lambda: any(Path("runs").glob("*/checkpoints/step-*")), running)
        running.send_signal(getattr(signal, name))
        out, err = running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode == code, err
    assert "Traceback" not in err
    summary = json.loads(out)
    folder = Path(summary["folder"])
    assert f"curvlab resume {folder}" in err
    assert (summary["exit_reason"], summary["exit_code"]) == (name.lower(), code)
    assert summary["checkpoint"] == f"checkpoints/step-{summary['steps']:08d}"
    steps = summary["steps"] + 5
    assert curvlab("resume", folder, "--set", f"run.steps={steps}").code == 0
    Path("small.toml").write_text(CONFIG.replace("epochs = 3", f"steps = {steps}"))
    whole = trained()
    assert tensors(folder) == tensors(whole)


def test_a_killed_command_goes_on_as_if_nothing_had_happened() -> None:
    whole = trained("--set", "run.epochs=30")
    running = process("train", "small.toml", "--set", "run.epochs=30", "--out", "killed")
    try:
        wait_for(lambda: any(Path("killed").glob("*/checkpoints/step-*")), running)
    finally:
        running.kill()
    running.communicate()
    (folder,) = Path("killed").iterdir()
    assert not (folder / "summary.json").exists()
    assert curvlab("train", "small.toml", "--set", "run.epochs=30", "--out", "killed", "--resume").code == 0
    assert tensors(folder) == tensors(whole)
    assert [line["step"] for line in RunDir(folder).steps()] == [
        line["step"] for line in RunDir(whole).steps()
    ]


def test_help_answers_without_torch() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from curvlab.cli.app import app\n"
        "for c in ('train', 'resume', 'eval', 'env'):\n"
        "    done = CliRunner().invoke(app, [c, '--help'])\n"
        "    assert done.exit_code == 0, done.output\n"
        "assert 'torch' not in sys.modules"
    )
    root = str(Path(__file__).parents[2])
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([root, *sys.path])}
    subprocess.run([sys.executable, "-c", code], env=env, check=True)
