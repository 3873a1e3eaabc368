"""Every method on a GPU: its numbers against the CPU's, what a step costs beside fused AdamW, and bfloat16.

    python examples/studies/gpu.py                                             # at most eight minutes
    python examples/studies/gpu.py --precisions float32 --minutes 4
    python examples/studies/gpu.py --device cpu --tiny --precisions float32    # its logic, in under a minute

Writes ``docs/studies/gpu.md``, unless it is ``--tiny``.  What does not fit into the time is left out, and the
page says so.  Exits 1 where there is no such device, 3 for a precision that is not installed.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gpu_networks import LARGE, SMALL, TINY, Network
from gpu_page import Agreement, Cost, Study, Training, written
from torch import Tensor, nn

import curvlab
from curvlab.config import build_part
from curvlab.errors import CurvlabError
from curvlab.protocols.backend import Backend
from curvlab.registry.loader import installed
from curvlab.tasks.digits import Digits

PAGE = Path(__file__).resolve().parents[2] / "docs" / "studies" / "gpu.md"
#: steps of each method that are held against the CPU's
STEPS = 10
#: methods whose steps are timed, with their knobs, the quick ones first
TIMED: dict[str, tuple[str, dict[str, Any]]] = {
    "adamw": ("adamw", {}),
    "muon": ("muon", {}),
    "kfac": ("kfac", {}),
    "singd": ("singd", {}),
    "singd, diagonal": ("singd", {"structure": "diagonal"}),
    "ekfac": ("ekfac", {}),
    "shampoo": ("shampoo", {}),
    "soap": ("soap", {}),
}
#: steps of a timing, a whole cycle of the refreshes of these methods; how many timings, and for how long
CYCLE, ROUNDS, MOST = 10, 5, 10.0
#: shares of the time after which a stage begins nothing new: what was begun ends
AGREE, COSTS = 0.35, 0.75

Step = Callable[[], Tensor]


@dataclass(frozen=True)
class Bench:
    """Where it is measured, how large, and until when."""

    device: torch.device
    tiny: bool
    begun: float
    seconds: float

    def has_time(self, share: float) -> bool:
        """Whether less than this share of the time is gone."""
        return time.perf_counter() - self.begun < share * self.seconds

    def wait(self) -> None:
        """Until the device has done what was asked of it."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def peak(self, work: Callable[[], object]) -> float:
        """The most bytes that are allocated on the device during ``work``; not known of a CPU."""
        if self.device.type != "cuda":
            work()
            return float("nan")
        torch.cuda.reset_peak_memory_stats(self.device)
        work()
        self.wait()
        return float(torch.cuda.max_memory_allocated(self.device))


def backend_of(precision: str) -> Backend:
    """The part, on the CPU: which dtypes it has does not depend on the device."""
    made: Backend = build_part(installed(), Backend, precision)
    return made


def dtype_of(precision: str) -> torch.dtype:
    """The dtype of the parameters."""
    return backend_of(precision).dtypes.parameters


def stepper(method: str, net: Network, precision: str, device: torch.device, **knobs: Any) -> Step:
    """A function that takes a step on the next batch and returns the loss before it."""
    dtype = dtype_of(precision)
    model, data = net.model(dtype, device), net.batches(4, dtype, device)
    optimizer = curvlab.optimizer(method, model, precision=precision, **knobs)

    def step() -> Tensor:
        loss: Tensor = optimizer.step(curvlab.objective(model, nn.CrossEntropyLoss(), *next(data)))
        return loss

    return step


def fused(net: Network, precision: str, device: torch.device) -> Step:
    """The same of torch's fused AdamW, under autocast where the precision is mixed."""
    dtype, compute = dtype_of(precision), backend_of(precision).dtypes.compute
    model, data = net.model(dtype, device), net.batches(4, dtype, device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> Tensor:
        x, y = next(data)
        optimizer.zero_grad()
        with torch.autocast(device.type, dtype=compute, enabled=compute is not None):
            loss: Tensor = nn.functional.cross_entropy(model(x), y)
        torch.autograd.backward(loss)
        optimizer.step()
        return loss.detach()

    return step


def losses(step: Step) -> list[float]:
    """The losses of a few steps."""
    return [float(step()) for _ in range(STEPS)]


def agreement(bench: Bench, precision: str, method: str, cpu: Sequence[float]) -> Agreement:
    """A method on the device against its losses on the CPU in float32."""
    try:
        there = losses(stepper(method, SMALL, precision, bench.device))
    except (CurvlabError, RuntimeError) as error:
        return Agreement(method, precision, cpu[-1], failure=reason(error))
    off = max(abs(a - b) / max(abs(b), 1e-12) for a, b in zip(there, cpu, strict=True))
    return Agreement(method, precision, cpu[-1], there[-1], off)


def measured(bench: Bench, step: Step) -> tuple[float, float]:
    """Seconds of a step and peak bytes; nothing else of the study is in memory."""
    step()
    peak = bench.peak(lambda: [step() for _ in range(CYCLE)])
    begun, rounds = time.perf_counter(), []
    while len(rounds) < ROUNDS and (not rounds or time.perf_counter() - begun < MOST):
        rounds.append(seconds(bench, step))
    return statistics.median(rounds), peak


def cost(
    bench: Bench, name: str, precision: str, label: str, net: Network, adamw: tuple[float, float]
) -> Cost:
    """A step of a method, and of fused AdamW."""
    method, knobs = TIMED[label]
    gc.collect()  # of the method before: hooks and modules hold one another
    try:
        took, peak = measured(bench, stepper(method, net, precision, bench.device, **knobs))
    except (CurvlabError, RuntimeError) as error:
        return Cost(name, label, precision, failure=reason(error))
    return Cost(name, label, precision, 1e3 * took, took / adamw[0], peak, peak / adamw[1])


def seconds(bench: Bench, step: Step) -> float:
    """Seconds of a step: wall time of a cycle of them."""
    bench.wait()
    begun = time.perf_counter()
    for _ in range(CYCLE):
        step()
    bench.wait()
    return (time.perf_counter() - begun) / CYCLE


def training(bench: Bench, precision: str, method: str) -> Training:
    """A run on digits."""
    task = Digits(hidden=(64,), batch_size=128)
    torch.manual_seed(0)
    workload = task.workload(task.model(), dtype=dtype_of(precision), device=bench.device)
    data, model = workload.training, workload.model
    draw, found = torch.Generator("cpu").manual_seed(0), []
    try:
        optimizer = curvlab.optimizer(method, model, precision=precision)
        for _ in range(20 if bench.tiny else 200):
            rows = torch.randint(0, len(data), (task.batch_size,), generator=draw)
            loss = optimizer.step(curvlab.objective(model, nn.CrossEntropyLoss(), *data.rows(rows)))
            found.append(float(loss))
    except (CurvlabError, RuntimeError) as error:
        first = statistics.fmean(found[:10]) if found else float("nan")
        return Training(method, precision, first, failure=reason(error))
    return Training(method, precision, statistics.fmean(found[:10]), statistics.fmean(found[-10:]))


def reason(error: Exception) -> str:
    """The first line of an error, for a cell of a table."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return text[:80].replace("|", "/")


def study(bench: Bench, machine: str, precisions: Sequence[str], methods: Sequence[str]) -> Study:
    """All stages; what there is no time for is listed."""
    found, nets = Study(machine), TINY if bench.tiny else LARGE
    found.titles = {name: net.title for name, net in nets.items()}
    for method in methods:
        if bench.has_time(AGREE):
            cpu = losses(stepper(method, SMALL, "float32", torch.device("cpu")))
            for precision in precisions:
                say(found.agreements, agreement(bench, precision, method, cpu))
        else:
            found.left_out.append(f"`{method}` against the CPU")
    cases = list(itertools.product(nets, precisions))
    adamw = {(n, p): measured(bench, fused(nets[n], p, bench.device)) for n, p in cases}
    for label, (name, precision) in itertools.product(TIMED, cases):
        if bench.has_time(COSTS):
            say(found.costs, cost(bench, name, precision, label, nets[name], adamw[name, precision]))
        else:
            found.left_out.append(f"`{label}` in {precision} on {name}")
    for precision, method in itertools.product(precisions, ("singd", "kfac")):
        if bench.has_time(1.0):
            say(found.trainings, training(bench, precision, method))
        else:
            found.left_out.append(f"`{method}` in {precision} on digits")
    found.seconds = time.perf_counter() - bench.begun
    return found


def say(into: list[Any], what: object) -> None:
    """Keep it, and print it."""
    into.append(what)
    print(what, flush=True)


def missing(device: str) -> str:
    """Why nothing can be measured on the device, if so."""
    kind = torch.device(device).type
    if kind == "cuda" and not torch.cuda.is_available():
        return (
            "this study needs a CUDA device, and torch finds none here; to try its logic, give"
            " --device cpu --tiny --precisions float32"
        )
    if kind not in ("cuda", "cpu"):
        return f"this study measures on a CUDA device, and {device} is none"
    return ""


def unknown(precisions: Sequence[str]) -> str:
    """What is wrong with the first precision that cannot be used, and which are known."""
    known = ", ".join(installed().use(entry) for entry in installed().parts("precision"))
    for precision in precisions:
        try:
            dtype_of(precision)
        except CurvlabError as error:
            why = str(error).splitlines()[0].removeprefix("use: ")
            return f"{why}; choose by --precisions from {known}"
    return ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--methods", nargs="+", help="those held against the CPU; all, if not given")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--tiny", action="store_true", help="small networks, and no page")
    given = parser.parse_args(arguments)
    refusal = missing(given.device)
    if not refusal and given.device == "cpu" and not given.tiny:
        refusal = "--device cpu measures nothing that a page should say; add --tiny to try the logic"
    if refusal:
        print(refusal, file=sys.stderr)
        return 1
    if wrong := unknown(given.precisions):
        print(wrong, file=sys.stderr)
        return 3
    warnings.simplefilter("ignore")
    device = torch.device(given.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "a CPU"
    methods = given.methods or [installed().use(entry) for entry in installed().method_entries()]
    bench = Bench(device, given.tiny, time.perf_counter(), 60 * given.minutes)
    found = study(bench, f"{name}, torch {torch.__version__}", given.precisions, methods)
    if not given.tiny:
        PAGE.write_text(written(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
