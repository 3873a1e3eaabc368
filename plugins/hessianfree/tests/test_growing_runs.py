"""Runs with samples that grow: real data, from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from curvlab.cli.app import app
from curvlab.reporting.rundir import RunDir

SAMPLERS = ("geometric", "norm-test", "inner-product")
SIZE = 1442  #: training examples of the task

CONFIG = """
[run]
epochs = 3
log_every = 1

[task]
use = "digits"
hidden = [16]

[sampler]
use = "geometric"
gradient = 40
acceptance = "held-out"
"""

#: each grows by about a half a step, so that a run of three epochs sees many sizes
GROWTH = {
    "geometric": ("sampler.gradient_growth=1.5",),
    "norm-test": ("sampler.theta=0.3", "sampler.max_growth=1.5"),
    "inner-product": ("sampler.theta=0.03", "sampler.max_growth=1.5"),
}


@pytest.fixture(autouse=True)
def _configured(project: Path) -> None:
    (project / "config.toml").write_text(CONFIG)


def curvlab(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    assert done.exit_code == 0, done.stderr
    return done.stdout


def trained(method: str, sampler: str, *settings: str) -> Path:
    rule = (f"sampler.use={sampler}", "sampler.gradient=40", "sampler.acceptance=held-out", *GROWTH[sampler])
    chosen = (f"method={method}", *rule, *settings)
    return Path(curvlab("train", "config.toml", *(x for s in chosen for x in ("--set", s))).splitlines()[-1])


def steps(folder: Path) -> list[dict[str, Any]]:
    return list(RunDir(folder).steps())


@pytest.mark.parametrize("method", ["adamw", "kfac"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samples_grow_and_never_take_what_is_held_out(method: str, sampler: str) -> None:
    folder = trained(method, sampler)
    sizes = [line["gradient_size"] for line in steps(folder)]
    assert sizes == sorted(sizes)
    assert sizes[0] == 40
    assert 160 < sizes[-1] <= SIZE - round(SIZE * 0.1)
    assert [line["examples"] for line in steps(folder)] == [sum(sizes[: k + 1]) for k in range(len(sizes))]
    evaluations = [line["step"] for line in RunDir(folder).evaluations()]
    assert len(evaluations) == len(set(evaluations)) <= 4
    first, last = steps(folder)[0]["loss"], steps(folder)[-1]["loss"]
    assert last < first


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_run_that_was_stopped_while_it_grew_has_every_byte_of_one_that_was_not(sampler: str) -> None:
    whole, stopped = trained("kfac", sampler), trained("kfac", sampler, "run.epochs=0.5")
    assert 40 < steps(stopped)[-1]["gradient_size"] < steps(whole)[-1]["gradient_size"]
    curvlab("resume", stopped, "--set", "run.epochs=3")
    name = f"checkpoints/step-{RunDir(whole).summary['steps']:08d}/tensors.safetensors"
    assert (whole / name).read_bytes() == (stopped / name).read_bytes()
    for fact in ("loss", "gradient_size", "examples"):
        assert [line[fact] for line in steps(whole)] == [line[fact] for line in steps(stopped)]


def test_a_mistake_in_a_sampler_is_told_with_its_line() -> None:
    text = CONFIG.replace("gradient = 40", "gradient = 1")
    Path("config.toml").write_text(text)
    done = CliRunner().invoke(app, ["train", "config.toml"])
    assert done.exit_code == 3
    assert f"config.toml:{text.splitlines().index('gradient = 1') + 1}:" in done.stderr
    assert "write 1.0 for all of them" in done.stderr


def test_the_samplers_and_what_they_do_are_listed() -> None:
    parts = json.loads(curvlab("parts", "--json"))
    found = {p["name"] for p in parts if p["kind"] == "sampler"}
    assert set(SAMPLERS) <= found
