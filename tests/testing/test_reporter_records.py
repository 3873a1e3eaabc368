"""What the reporters' suite tells is what a run tells."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import curvlab
from curvlab.testing.conformance.reporter import FAILED, MANIFEST, SUMMARY

CONFIG = {
    "run": {"steps": 2},
    "task": {"use": "quadratic"},
    "method": {"preconditioner": "identity", "damping": "constant", "step": {"use": "rate", "lr": 0.1}},
}


def types(values: Mapping[str, Any]) -> dict[str, type]:
    """By key, but for those that may be missing."""
    return {key: type(value) for key, value in values.items() if value is not None}


def test_manifest_and_summary_have_every_key_of_a_runs(tmp_path: Path) -> None:
    folder = curvlab.train(CONFIG, out=tmp_path).folder
    for name, told in (("manifest", MANIFEST), ("summary", SUMMARY), ("summary", FAILED)):
        real = json.loads((folder / f"{name}.json").read_text())
        assert real.keys() == told.keys()
        mine, theirs = types(told), types(real)
        assert {k: (mine[k], theirs[k]) for k in mine.keys() & theirs.keys() if mine[k] != theirs[k]} == {}
