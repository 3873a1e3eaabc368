"""How far every registered method gets on a seeded task: steps and product-examples to a target.

Methods run at their defaults, as ``curvlab train`` would run them; no rate was chosen for this task, so the
numbers compare a method with itself at other commits, and not methods with each other.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import curvlab

from .meters import quiet
from .steps import METHODS, skip_unknown

#: steps of a run; by task, its settings and what it is to bring which metric below
LIMIT = 40
TASKS: dict[str, tuple[dict[str, Any], str, float]] = {
    "digits": ({"use": "digits", "hidden": [32], "batch_size": 128}, "val_loss", 1.0),
}


def run(method: str, task: str) -> dict[str, float]:
    """One run: when it was at the target, its products until then, and its loss at the end."""
    quiet()
    settings, metric, target = TASKS[task]
    config = {
        "task": settings,
        "method": {"use": method},
        "run": {"seed": 0, "steps": LIMIT, "eval_every": 1, "log_every": 1, "checkpoint_every": 10**6},
        "report": {"use": "quiet"},
    }
    with tempfile.TemporaryDirectory() as folder:
        curvlab.train(config, out=folder)
        (path,) = Path(folder).glob("*/metrics.jsonl")
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    values = {line["step"]: line[metric] for line in lines if line["kind"] == "eval"}
    reached = [step for step, value in sorted(values.items()) if value <= target]
    last = reached[0] if reached else LIMIT + 1
    products = [line.get("product_examples") or 0 for line in lines if line["kind"] == "step"]
    return {
        "steps": float(last),
        "product_examples": float(sum(products[: min(last, LIMIT)])),
        "loss": float(values[max(values)]),
    }


class Progress:
    """``LIMIT + 1`` steps say that the target was not reached."""

    version = "1"
    timeout = 120
    param_names: ClassVar = ["method", "task"]
    params: ClassVar = [list(METHODS), list(TASKS)]

    def setup_cache(self) -> dict[tuple[str, str], Any]:
        """All runs; an error is reported by the benchmark that it belongs to."""
        found: dict[tuple[str, str], Any] = {}
        for method in METHODS:
            for task in TASKS:
                try:
                    skip_unknown(method)
                    found[method, task] = run(method, task)
                except Exception as error:  # any error of one method is that one's alone
                    found[method, task] = error
        return found

    setup_cache.timeout = 600  # type: ignore[attr-defined]

    def setup(self, found: Any, method: str, task: str) -> None:
        if isinstance(found[method, task], NotImplementedError):
            raise found[method, task]

    def _of(self, found: Any, case: tuple[str, str], measure: str) -> float:
        if isinstance(found[case], Exception):
            raise found[case]
        return float(found[case][measure])

    def track_steps_to_target(self, found: Any, method: str, task: str) -> float:
        return self._of(found, (method, task), "steps")

    def track_product_examples_to_target(self, found: Any, method: str, task: str) -> float:
        return self._of(found, (method, task), "product_examples")

    def track_loss_at_end(self, found: Any, method: str, task: str) -> float:
        return self._of(found, (method, task), "loss")

    track_steps_to_target.unit = "steps"  # type: ignore[attr-defined]
    track_product_examples_to_target.unit = "products × examples"  # type: ignore[attr-defined]
    track_loss_at_end.unit = "loss"  # type: ignore[attr-defined]
