"""One step of every registered method, on an MLP, a convolutional network and a vision transformer.

Costs are of whole cycles of a method's refreshes, after a first step that makes its state; flops, allocations
and waits of the host for the device are the mean of a step, the peak that of the dearest.
"""

from __future__ import annotations

from itertools import cycle
from typing import Any, ClassVar

from torch import nn

import curvlab

from .catalogue import catalogue
from .meters import cost, host_syncs, quiet
from .networks import NETWORKS

METHODS = catalogue().methods


def skip_unknown(method: str) -> None:
    """Not every commit has every method."""
    from curvlab.registry.loader import installed

    if method not in {entry.name for entry in installed().method_entries()}:
        raise NotImplementedError(f"this commit has no method {method}")


def stepper(method: str, network: str) -> tuple[Any, Any]:
    """A function that takes a step on the next batch, and the optimizer."""
    net = NETWORKS[network]
    model, data = net.model(), cycle(net.batches(8))
    optimizer = curvlab.optimizer(method, model)

    def step() -> None:
        optimizer.step(curvlab.objective(model, nn.CrossEntropyLoss(), *next(data)))

    return step, optimizer


def measured(method: str, network: str) -> dict[str, float]:
    """The costs of a step after the first, and the bytes that the method then holds."""
    quiet()
    step, optimizer = stepper(method, network)
    step()
    steps = METHODS[method]

    def several() -> None:
        for _ in range(steps):
            step()

    spent = vars(cost(several, steps))
    waits = host_syncs(several, steps)  # in a cycle of its own
    return {**spent, "state_bytes": float(optimizer.state_bytes()), "host_syncs": waits}


class Costs:
    """Deterministic costs of a step."""

    version = "1"
    timeout = 120
    param_names: ClassVar = ["method", "network"]
    params: ClassVar = [list(METHODS), list(NETWORKS)]

    def setup_cache(self) -> dict[tuple[str, str], Any]:
        """Everything is measured in one go; an error is reported by the benchmark that it belongs to."""
        found: dict[tuple[str, str], Any] = {}
        for method in METHODS:
            for network in NETWORKS:
                try:
                    skip_unknown(method)
                    found[method, network] = measured(method, network)
                except Exception as error:  # any error of one method is that one's alone
                    found[method, network] = error
        return found

    setup_cache.timeout = 600  # type: ignore[attr-defined]

    def setup(self, found: dict[tuple[str, str], Any], method: str, network: str) -> None:
        if isinstance(found[method, network], NotImplementedError):
            raise found[method, network]

    def _of(self, found: Any, case: tuple[str, str], measure: str) -> float:
        if isinstance(found[case], Exception):
            raise found[case]
        return float(found[case][measure])

    def track_flops(self, found: Any, method: str, network: str) -> float:
        return self._of(found, (method, network), "flops")

    def track_peak_bytes(self, found: Any, method: str, network: str) -> float:
        return self._of(found, (method, network), "peak_bytes")

    def track_allocations(self, found: Any, method: str, network: str) -> float:
        return self._of(found, (method, network), "allocations")

    def track_state_bytes(self, found: Any, method: str, network: str) -> float:
        return self._of(found, (method, network), "state_bytes")

    def track_host_syncs(self, found: Any, method: str, network: str) -> float:
        return self._of(found, (method, network), "host_syncs")

    track_flops.unit = "flops"  # type: ignore[attr-defined]
    track_peak_bytes.unit = "bytes"  # type: ignore[attr-defined]
    track_allocations.unit = "storages"  # type: ignore[attr-defined]
    track_state_bytes.unit = "bytes"  # type: ignore[attr-defined]
    track_host_syncs.unit = "waits"  # type: ignore[attr-defined]


class Time:
    """Seconds of a cycle of steps."""

    version = "1"
    timeout = 120
    warmup_time = 0
    sample_time = 0.05
    rounds = 2
    repeat = (2, 10, 1.0)
    param_names: ClassVar = ["method", "network"]
    params: ClassVar = [list(METHODS), list(NETWORKS)]

    def setup(self, method: str, network: str) -> None:
        skip_unknown(method)
        quiet(timed=True)
        self.step, _ = stepper(method, network)
        self.step()

    def time_cycle(self, method: str, network: str) -> None:
        for _ in range(METHODS[method]):
            self.step()
