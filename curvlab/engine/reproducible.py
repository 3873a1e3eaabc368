"""The same plan gives the same bits: seeds, threads and kernels, and the caller's own put back afterwards.

The only place that seeds torch's global generator.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from curvlab.engine.plan import Plan


@contextmanager
def reproducible(plan: Plan) -> Iterator[None]:
    """Inside, the same plan gives the same bits: seeded, with the plan's threads, deterministic kernels.

    Afterwards everything is as the caller had it.
    """
    device = plan.backend.torch_device
    cuda = device.type == "cuda"
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[device] if cuda else []), _deterministic_kernels(cuda):
        try:
            if plan.run.threads is not None:
                torch.set_num_threads(plan.run.threads)
            torch.manual_seed(plan.run.seed)
            yield
        finally:
            torch.set_num_threads(threads)


@contextmanager
def _deterministic_kernels(cuda: bool) -> Iterator[None]:
    """On a CUDA device some sums depend on the order in which threads arrive, unless told not to."""
    if not cuda:
        yield
        return
    strict = torch.are_deterministic_algorithms_enabled()
    lenient = torch.is_deterministic_algorithms_warn_only_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by cuBLAS when it starts
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(strict, warn_only=lenient)
