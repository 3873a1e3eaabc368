"""Run folders as training leaves them, with numbers that are chosen."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w

FINISHED = {"exit_reason": "finished", "message": ""}


def made(
    folder: Path,
    values: Sequence[float | None],
    *,
    seed: int = 0,
    method: Mapping[str, Any] = {"use": "sgd", "lr": 0.1},
    every: int = 10,
    products: int | None = None,
    summary: Mapping[str, Any] | None = FINISHED,
    manifest: Mapping[str, Any] = {},
    metric: str = "val_loss",
) -> Path:
    """A run that was evaluated every ``every`` steps: after each of them ``metric`` had these ``values``.

    A step takes 0.5 s and 32 examples, and is logged; ``products`` are its product-examples.  Without
    ``summary`` the run was killed.
    """
    folder.mkdir(parents=True)
    configuration = {
        "run": {"seed": seed, "name": folder.name},
        "task": {"use": "toy"},
        "method": dict(method),
    }
    lines: list[dict[str, Any]] = []
    for step in range(1, every * len(values) + 1):
        line = {"kind": "step", "step": step, "examples": 32 * step, "seconds": step / 2, "loss": 1 / step}
        lines.append(line if products is None else {**line, "product_examples": products})
        if step % every == 0:
            lines.append(
                {"kind": "eval", "step": step, "seconds": step / 2, metric: values[step // every - 1]}
            )
    about = {
        "method": method.get("use"),
        "task": "toy",
        "seed": seed,
        "judged_by": {"metric": metric, "more_is_better": metric == "val_accuracy"},
        "threads": 1,
        **manifest,
    }
    for name in ("config.toml", "resolved.toml"):
        (folder / name).write_text(tomli_w.dumps(configuration))
    (folder / "manifest.json").write_text(json.dumps(about))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if summary is not None:
        finite = [v for v in values if v is not None]
        best = {"metric": metric, "value": min(finite), "step": 0} if finite else None
        (folder / "summary.json").write_text(json.dumps({"best": best, **summary}))
    return folder
