"""Kills one process of a run of two, again and again; prints what came of it, and ends with 1 if a law fails.

    python -m tests.engine.soak_ranks [--kills 20] [--seed 0] [--steps 150] [--out DIR]

A run goes on from its last checkpoint after every SIGKILL, and is compared with one that was never stopped
when it is done.  Kills go to a random process: one in four at a random moment while the processes start, the
others up to 0.3 s after a random step, within or between steps and checkpoints.  The laws: the command ends
within ``PATIENCE`` seconds, with status 1 and words that name the killed process; no process is left; every
checkpoint is whole; the run ends with the same checkpoint, bit for bit, and the same losses.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from curvlab.engine.checkpoint import load
from tests.engine.test_ranks import environment

#: seconds that a process waits for a message, and that the command may take to end after a kill
TIMEOUT, PATIENCE = 30, 60
#: seconds without which nothing is decided: starting takes longer on a loaded machine
LONG = 300
CONFIG = """
[task]
use = "digits"
[method]
use = "kfac"
labels = "exact"
[precision]
use = "float64"
[run]
name = "soak"
steps = {steps}
eval_every = 50
checkpoint_every = 5
log_every = 1
keep = 3
threads = 1
"""


@dataclass(frozen=True)
class Kill:
    """What came of one life of the command that was killed, or that ended first."""

    moment: float  #: seconds after the start
    after: int | None  #: the step after which it was planned; ``None`` while the processes start
    rank: int | None  #: that was killed; ``None`` if the command ended before
    seconds: float  #: until the command had ended
    status: int
    named: bool  #: whether its words name the process
    left: int  #: processes of the run that are still there
    step: int | None  #: of the newest checkpoint
    whole: bool  #: whether every checkpoint could be read and is undamaged

    @property
    def lawful(self) -> bool:
        ended = (
            self.status == 0
            if self.rank is None
            else self.status == 1 and self.named and self.seconds < PATIENCE
        )
        return ended and self.whole and not self.left


def started(config: Path, out: Path) -> subprocess.Popen[str]:
    """The command, in a run that is there or a new one."""
    folder = folder_in(out)
    given = ["resume", str(folder)] if folder else ["train", str(config), "--out", str(out)]
    return subprocess.Popen(
        [sys.executable, "-m", "curvlab", *given, "--processes", "2", "--quiet"],
        env={**environment(), "CURVLAB_TIMEOUT": str(TIMEOUT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def folder_in(out: Path) -> Path | None:
    """The run's folder, if it got as far as having its configuration in it."""
    return next((f for f in out.glob("soak-*") if (f / "resolved.toml").exists()), None)


def ranks_of(launcher: int) -> dict[int, int]:
    """Rank and process of those that a launcher has started."""
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(launcher)], capture_output=True, text=True)
    found = {}
    for word in listed.stdout.split():
        try:
            said = Path(f"/proc/{word}/environ").read_bytes()
        except OSError:  # it ended meanwhile
            continue
        rank = re.search(rb"\0RANK=(\d+)\0", b"\0" + said)
        if rank:
            found[int(rank[1])] = int(word)
    return found


def steps_in(out: Path) -> int:
    """How many lines of steps a run has written, those of lives before included."""
    folder = folder_in(out)
    lines = folder / "metrics.jsonl" if folder else None
    return lines.read_bytes().count(b'"kind": "step"') if lines and lines.exists() else 0


def life(config: Path, out: Path, after: int | None, moment: float, chance: random.Random) -> Kill:
    """Start or continue the run, and kill one of its processes.

    ``moment`` is in seconds after the start or, with ``after``, after that many more steps.
    """
    process, begun, before = started(config, out), time.monotonic(), steps_in(out)
    ranks: dict[int, int] = {}
    while process.poll() is None:
        ranks = ranks_of(process.pid) or ranks
        if len(ranks) == 2 and after is None and time.monotonic() >= begun + moment:
            break
        if len(ranks) == 2 and after is not None and steps_in(out) >= before + after:
            time.sleep(moment)
            break
        time.sleep(0.02)
    rank = None
    if process.poll() is None:
        rank = chance.choice(sorted(ranks))
        with suppress(ProcessLookupError):
            os.kill(ranks[rank], signal.SIGKILL)
    killed = time.monotonic()
    _, said = process.communicate(timeout=LONG)
    if process.returncode == 0:  # it had ended when the signal came
        rank = None
    step, whole = checkpoints(out)
    if process.returncode not in (0, 1) or (rank is None and process.returncode):
        print(said, file=sys.stderr)
    return Kill(
        moment=round(killed - begun, 2),
        after=after,
        rank=rank,
        seconds=round(time.monotonic() - killed, 2),
        status=process.returncode,
        named=f"rank {rank} was ended by SIGKILL" in said,
        left=sum(Path(f"/proc/{pid}").exists() for pid in ranks.values()),
        step=step,
        whole=whole,
    )


def checkpoints(out: Path) -> tuple[int | None, bool]:
    """The newest one's step, and whether all are whole."""
    folder = folder_in(out)
    found = sorted((folder / "checkpoints").glob("step-*")) if folder else []
    try:
        steps = [load(path).step for path in found]
    except Exception as error:  # of a damaged one: the law is broken, whatever it is
        print(f"{error!r}", file=sys.stderr)
        return None, False
    return max(steps, default=None), True


def end_of(out: Path) -> tuple[bytes, list[tuple[int, float]]]:
    """Every byte of the last checkpoint's tensors, and the loss of every step."""
    folder = folder_in(out)
    assert folder is not None
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last = sorted((folder / "checkpoints").glob("step-*"))[-1]
    losses = [(line["step"], line["loss"]) for line in lines if line["kind"] == "step"]
    return (last / "tensors.safetensors").read_bytes(), losses


def main(kills: int, seed: int, steps: int, base: Path) -> int:
    """The exit status."""
    base.mkdir(parents=True, exist_ok=True)
    config = base / "config.toml"
    config.write_text(CONFIG.format(steps=steps))
    chance, begun = random.Random(seed), time.monotonic()
    peaceful = life(config, base / "peaceful", steps + 1, 0.0, chance)
    assert peaceful.status == 0, "the run that nobody kills failed"
    whole, wanted = peaceful.moment, end_of(base / "peaceful")
    print(json.dumps({"uninterrupted, seconds": whole}), flush=True)
    lives: list[Kill] = []
    same: list[bool] = []
    while sum(each.rank is not None for each in lives) < kills or lives[-1].rank is not None:
        out = base / f"killed-{len(same)}"
        over = sum(each.rank is not None for each in lives) >= kills
        if over:
            plan: tuple[int | None, float] = steps + 1, 0.0
        elif chance.random() < 0.25:
            plan = None, chance.uniform(0.0, whole / 2)
        else:
            plan = chance.randint(1, steps // 2), chance.uniform(0.0, 0.3)
        lives.append(life(config, out, *plan, chance))
        print(json.dumps(asdict(lives[-1])), flush=True)
        if lives[-1].rank is None:
            same.append(end_of(out) == wanted)
    dead = [each for each in lives if each.rank is not None]
    summary = {
        "kills": len(dead),
        "killed ranks": dict(Counter(each.rank for each in dead)),
        "before the first checkpoint": sum(each.step is None for each in dead),
        "seconds to end, median and largest": [
            round(statistics.median(each.seconds for each in dead), 1),
            round(max(each.seconds for each in dead), 1),
        ],
        "runs finished": len(same),
        "equal to the uninterrupted run": sum(same),
        "unlawful": sum(not each.lawful for each in lives),
        "seconds": round(time.monotonic() - begun),
    }
    print(json.dumps(summary))
    return int(summary["unlawful"] != 0 or not all(same))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    folder = given.out or Path(tempfile.mkdtemp(prefix="curvlab-soak-"))
    sys.exit(main(given.kills, given.seed, given.steps, folder))
