"""Trains the small run once in peace, then ten times under fire; prints what came of it as JSON.

    python kill_ten_times.py OUT SEED

Children are forked from this process, which has imported torch already, so that a run takes a
fraction of a second and a SIGKILL lands anywhere in it: in a step, in a checkpoint, before the first.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from curvlab.reporting.rundir import RunDir
from tests.engine.small_run import run_small, small_plan

PLAN = small_plan(checkpoint_every=2)


def forked(work: Callable[[], object]) -> int:
    """Start ``work`` in a child; its process id."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    return child


def finish(out: Path) -> int:
    """Go on in the run under ``out``, or start it if the kill came before its folder; the exit status."""
    child = forked(lambda: run_small(out, PLAN, resume=folder_in(out)))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_after(out: Path, seconds: float) -> None:
    """Go on in the run under ``out`` and kill it."""
    child = forked(lambda: run_small(out, PLAN, resume=folder_in(out)))
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def folder_in(out: Path) -> Path | None:
    found = [f for f in out.glob("run-*") if (f / "resolved.toml").exists()]
    return max(found, default=None)


def last_tensors(out: Path) -> bytes:
    """Every byte of the last checkpoint: parameters, buffers, the method's states, random numbers."""
    folder = folder_in(out)
    assert folder is not None
    return (folder / "checkpoints" / "step-00000030" / "tensors.safetensors").read_bytes()


def lines_of(out: Path) -> list[tuple[str, int, float | None]]:
    """Kind, step and number of every metrics line: all but the clock."""
    folder = folder_in(out)
    assert folder is not None
    run = RunDir(folder)
    return [(m["kind"], m["step"], m.get("loss", m.get("val_loss"))) for m in run.lines("metrics.jsonl")]


def main(base: Path, seed: int) -> None:
    """Ten runs, each killed twice at random moments."""
    torch.set_num_threads(1)
    chance = random.Random(seed)
    run_small(base / "warm-up", small_plan(steps=1))  # torch imports much of itself when first used
    begun = time.monotonic()
    peaceful = base / "peaceful"
    assert finish(peaceful) == 0
    whole = time.monotonic() - begun
    outcomes = []
    for k in range(10):
        out = base / f"killed-{k}"
        moments = [chance.uniform(0.0, whole), chance.uniform(0.0, whole)]
        for moment in moments:
            kill_after(out, moment)
        status = finish(out)
        events = RunDir(folder_in(out) or out).events()
        outcomes.append(
            {
                "moments": moments,
                "status": status,
                "same_tensors": last_tensors(out) == last_tensors(peaceful),
                "same_lines": lines_of(out) == lines_of(peaceful),
                "resumed_at": [e["step"] for e in events if e["name"] == "resumed"],
            }
        )
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
