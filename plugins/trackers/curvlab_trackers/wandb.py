"""Runs of Weights & Biases."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from curvlab_trackers.tracker import Sink, Tracker, require, settings

#: the most characters of a run's identifier
_LONGEST = 64


@dataclass(frozen=True)
class WeightsAndBiases(Tracker):
    """Metrics over ``step``, the resolved configuration, and the summary; nothing of the machine or the code.

    ``offline`` writes to the disk alone, and ``wandb sync RUN/wandb/offline-run-*`` uploads it; ``online``
    uploads at once and needs an account.  The run's identifier is the folder's name, so a resumed run goes on
    as the same one, in a second offline folder.
    """

    project: str = "curvlab"  #: the project that the run belongs to
    entity: str = ""  #: the user or team that the project belongs to; that of the account if empty
    mode: Literal["offline", "online", "disabled"] = "offline"  #: where the run is written
    folder: str = "."  #: where the folder wandb goes; relative to the run's folder

    def __post_init__(self) -> None:
        super().__post_init__()
        require("wandb", "wandb")

    def open(self, manifest: Mapping[str, Any]) -> Sink:
        import wandb

        run = Path(manifest["folder"])
        place = run / self.folder
        place.mkdir(parents=True, exist_ok=True)
        name = run.resolve().name
        made = wandb.init(
            project=self.project,
            entity=self.entity or None,
            id=re.sub(r"[^A-Za-z0-9_-]", "-", name)[-_LONGEST:],
            name=name,
            dir=str(place),
            mode=self.mode,
            resume="allow" if self.mode == "online" else None,
            config=settings(manifest),
            reinit="create_new",
            settings=wandb.Settings(
                console="off",
                silent=True,
                disable_git=True,
                disable_code=True,
                x_disable_stats=True,
                x_disable_meta=True,
            ),
        )
        made.define_metric("*", step_metric="step")
        return _Run(made)


class _Run(Sink):
    def __init__(self, run: Any) -> None:
        self._run = run

    def log(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        seen = {name: value for name, value in values.items() if not (kind == "eval" and name == "seconds")}
        self._run.log({"step": step, **seen})

    def close(self, summary: Mapping[str, Any]) -> None:
        keys = ("exit_reason", "message", "steps", "examples", "seconds", "best")
        self._run.summary.update({f"curvlab/{key}": summary.get(key) for key in keys})
        self._run.finish(exit_code=int(summary.get("exit_code", 0)))
