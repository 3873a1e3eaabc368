"""Costs that do not depend on the machine, and threads.

Formulas and counters are those of the working tree, loaded by their paths: all commits are measured alike,
those included that had none.
"""

from __future__ import annotations

import gc
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]


def _load(path: str) -> Any:
    """A module of the working tree, beside whichever of that name is installed."""
    name = f"measuring_{Path(path).stem}"
    spec = spec_from_file_location(name, ROOT / path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be loaded")
    module = module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look for their module by name
    spec.loader.exec_module(module)
    return module


_flops = _load("curvlab/linalg/flops.py")
_memory = _load("curvlab/testing/memory.py")
_dispatch = _load("curvlab/testing/dispatch.py")


@dataclass(frozen=True)
class Cost:
    """Flops, the most bytes alive at once beside what was there before, and storages made."""

    flops: float
    peak_bytes: float
    allocations: float


def cost(operation: Callable[[], object], times: int = 1) -> Cost:
    """What ``operation`` costs; if it is ``times`` steps, flops and allocations are those of one."""
    gc.disable()  # cycles of references would end whenever Python finds them
    try:
        with _flops.Flops() as spent, _memory.Storages() as held:
            operation()
    finally:
        gc.enable()
    return Cost(spent.total / times, float(held.peak), held.allocations / times)


def host_syncs(operation: Callable[[], object], times: int = 1) -> float:
    """How often the host would wait for an accelerator in ``operation``; in the mean of ``times`` steps."""
    return float(_dispatch.host_syncs(operation).total() / times)


def quiet(*, timed: bool = False) -> None:
    """One thread, and no warnings; where time is measured, denormal numbers are zero: they are slow."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(timed)
    warnings.simplefilter("ignore")
