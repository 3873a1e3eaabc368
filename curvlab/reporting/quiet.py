"""The reporter of ``--quiet``."""

from __future__ import annotations

from dataclasses import dataclass

from curvlab.protocols.report import Reporter


@dataclass(frozen=True)
class Quiet(Reporter):
    """Says nothing; the run's folder is kept all the same."""
