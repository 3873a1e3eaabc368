"""The precision ``spectral``: it reaches the layers, and phases make a schedule of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import curvlab
from curvlab_operators.mode_mixing import ModeMixing

TASK = {
    "use": "darcy-flow", "grid": 11, "width": 4, "modes": 3, "layers": 2, "size": 12, "validation_size": 4,
    "batch_size": 6, "stabilizer": "tanh",
}  # fmt: skip


def recorded(monkeypatch: Any) -> list[Any]:
    """The dtype of coefficients in every pass with gradients from now on."""
    seen: list[Any] = []
    forward = ModeMixing.forward

    def recording(self: ModeMixing, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            seen.append(x.dtype)
        return forward(self, x)

    monkeypatch.setattr(ModeMixing, "forward", recording)
    return seen


def trained(precision: dict[str, Any], monkeypatch: Any, out: Path, steps: int = 8) -> tuple[Any, list[Any]]:
    """A run, and the dtype of coefficients in every training pass."""
    seen = recorded(monkeypatch)
    config = {"task": TASK, "method": {"use": "adamw"}, "precision": precision}
    run = curvlab.train({**config, "run": {"steps": steps, "seed": 0, "eval_every": steps}}, out=out)
    return run, seen


def test_phases_schedule_spectral_precision(monkeypatch: Any, tmp_path: Path) -> None:
    """A quarter mixed, then autocast alone, then float32."""
    precision = {
        "use": "phases",
        "phases": [
            {"use": "spectral", "spectral": "mixed", "of": "mixed-bfloat16"},
            "mixed-bfloat16",
            "float32",
        ],
        "until": [0.25, 0.75],
    }
    run, seen = trained(precision, monkeypatch, tmp_path)
    layers = 2
    assert seen == [torch.float16] * 2 * layers + [torch.float32] * 6 * layers
    events = [json.loads(line) for line in (run.folder / "events.jsonl").read_text().splitlines()]
    changes = [(e["step"], e["detail"]["from"], e["detail"]["to"]) for e in events if "changed" in e["name"]]
    assert changes == [
        (2, "float32, passes in bfloat16, spectral mixed", "float32, passes in bfloat16"),
        (6, "float32, passes in bfloat16", "float32"),
    ]


def test_inside_of_it_a_schedule_goes_on(monkeypatch: Any, tmp_path: Path) -> None:
    phases = {"use": "phases", "phases": ["mixed-bfloat16", "float32"], "until": [0.5]}
    _, seen = trained({"use": "spectral", "spectral": "half", "of": phases}, monkeypatch, tmp_path, 4)
    assert seen == [torch.float16] * 8


def test_methods_of_layers_read_rows_in_float16_and_find_no_mismatch(monkeypatch: Any) -> None:
    """Rows of the coefficients explain the gradient to rounding: nothing goes to the fallback."""
    seen = recorded(monkeypatch)
    torch.manual_seed(0)
    model: nn.Module = curvlab.config.build(
        curvlab.config.load(data={"task": TASK, "method": {"use": "kfac"}, "run": {"steps": 1}})
    ).task.model()
    optimizer = curvlab.optimizer(
        "kfac", model, labels="data", precision={"use": "spectral", "of": "float32", "spectral": "mixed"}
    )
    x, y = torch.randn(6, 1, 11, 11), torch.randn(6, 1, 11, 11)
    losses = [float(optimizer.step(curvlab.objective(model, nn.MSELoss(), x, y))) for _ in range(6)]
    assert losses[-1] < losses[0]
    assert set(seen) == {torch.float16}
    assert {row.treatment for row in optimizer.coverage()} == {"kfac"}
