"""What a run recorded, as series of numbers over steps, seconds or examples; needs no matplotlib."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from curvlab.reporting.rundir import RunDir, judged_by

Over = Literal["steps", "seconds", "examples"]

#: where a line is in its run; everything else in it is a metric
_POSITION = frozenset({"kind", "step", "epoch", "examples", "seconds"})
#: by what a curve goes: the key of a line
_KEYS: Mapping[Over, str] = {"steps": "step", "seconds": "seconds", "examples": "examples"}


@dataclass(frozen=True, eq=False)
class Series:
    """One curve: a run's values of a metric; NaN where a value was not finite."""

    label: str
    x: NDArray[np.float64]
    y: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Recorded:
    """The metrics of one run, under the label that tells it from the others."""

    label: str
    path: Path
    manifest: Mapping[str, Any]
    steps: Sequence[Mapping[str, Any]]
    evaluations: Sequence[Mapping[str, Any]]

    @property
    def judged_by(self) -> tuple[str, bool]:
        """The metric that the task is judged by, and whether more of it is better."""
        return judged_by(self.manifest)

    def metrics(self) -> set[str]:
        """The names of what can be drawn."""
        return {
            name
            for line in (*self.steps, *self.evaluations)
            for name, value in line.items()
            if name not in _POSITION and _is_number(value)
        }

    def series(self, metric: str, over: Over) -> Series | None:
        """A metric of evaluations, or else of steps; ``None`` if the run has none of that name."""
        for lines in (self.evaluations, self.steps):
            having = [line for line in lines if metric in line and _is_number(line.get("step"))]
            if not any(_is_number(line[metric]) for line in having):
                continue
            x = np.array([self._position(line, over) for line in having])
            y = np.array([_value(line[metric]) for line in having])
            if np.isfinite(x).any():
                return Series(self.label, x[np.isfinite(x)], y[np.isfinite(x)])
        return None

    def _position(self, line: Mapping[str, Any], over: Over) -> float:
        if _is_number(line.get(_KEYS[over])):
            return float(line[_KEYS[over]])
        return self._examples_at(line["step"]) if over == "examples" else math.nan

    def _examples_at(self, step: float) -> float:
        """An evaluation line does not say how many examples were seen; the step lines around it do."""
        known = {0.0: 0.0} | {
            float(line["step"]): float(line["examples"])
            for line in self.steps
            if _is_number(line.get("step")) and _is_number(line.get("examples"))
        }
        last = max(known)
        if step > last:
            return known[last] * step / last if last else math.nan
        return float(np.interp(step, sorted(known), [known[at] for at in sorted(known)]))


def recorded(runs: Iterable[RunDir]) -> list[Recorded]:
    """The records of these runs, each under a label of its own; raises ``RunFolderError`` for damage."""
    found = list({run.path.resolve(): run for run in runs}.values())
    manifests = [run.manifest for run in found]
    labels = _labels(manifests, [run.path for run in found])
    return [
        Recorded(label, run.path, manifest, run.steps(), run.evaluations())
        for label, run, manifest in zip(labels, found, manifests, strict=True)
    ]


def _labels(manifests: Sequence[Mapping[str, Any]], paths: Sequence[Path]) -> list[str]:
    """The shortest that tell the runs apart: their names, with method or seed, or their folders."""
    names = [str(manifest.get("name") or path.name) for manifest, path in zip(manifests, paths, strict=True)]
    methods = [str(manifest.get("method")) for manifest in manifests]
    seeds = [f"seed {manifest.get('seed')}" for manifest in manifests]
    choices = (
        names,
        [f"{name}, {method}" for name, method in zip(names, methods, strict=True)],
        [f"{name}, {seed}" for name, seed in zip(names, seeds, strict=True)],
        [", ".join(words) for words in zip(names, methods, seeds, strict=True)],
        [path.resolve().name for path in paths],
    )
    return next((labels for labels in choices if len(set(labels)) == len(labels)), [str(p) for p in paths])


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _value(value: Any) -> float:
    return float(value) if _is_number(value) and math.isfinite(value) else math.nan
