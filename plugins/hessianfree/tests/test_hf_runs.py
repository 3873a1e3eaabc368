"""Hessian-free runs by the command line: stopped in the middle and gone on with."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from curvlab.cli.app import app

CONFIG = """
[task]
use = "digits"
[method]
use = "{method}"
gradient = 200
curvature = 60
[run]
steps = {steps}
log_every = 1
seed = 3
"""

#: torch compiles some of its own derivatives when forward mode is first used, and deprecates how it does
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")


def curvlab(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    assert done.exit_code == 0, done.stderr
    return done.stdout


def trained(method: str, steps: int) -> Path:
    Path("config.toml").write_text(CONFIG.format(method=method, steps=steps))
    return Path(curvlab("train", "config.toml").splitlines()[-1])


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("method", ["hf-gn", "hf-martens", "ksd"])
def test_a_run_that_was_stopped_has_every_byte_of_one_that_was_not(method: str) -> None:
    """λ, the pairs, the warm start and the sampler's state are all in the checkpoint."""
    whole, stopped = trained(method, 6), trained(method, 3)
    curvlab("resume", stopped, "--set", "run.steps=6")
    name = "checkpoints/step-00000006/tensors.safetensors"
    assert (whole / name).read_bytes() == (stopped / name).read_bytes()
