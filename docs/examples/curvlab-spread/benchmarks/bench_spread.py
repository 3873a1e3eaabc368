"""A short run of ``example.toml`` for asv: how long it takes, and how far it gets.

``asv run --quick --python=same`` in a git repository of this plugin, with the plugin installed.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import curvlab

EXAMPLE = Path(__file__).resolve().parents[1] / "example.toml"


class Training:
    timeout = 300.0

    def setup(self) -> None:
        self.out = tempfile.TemporaryDirectory()

    def teardown(self) -> None:
        self.out.cleanup()

    def time_run(self) -> None:
        curvlab.train(EXAMPLE, out=self.out.name)

    def track_val_loss(self) -> float:
        summary = curvlab.train(EXAMPLE, out=self.out.name).summary
        return float(summary["metrics"]["val_loss"])
