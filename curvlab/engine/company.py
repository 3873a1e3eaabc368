"""The processes of one run: who is first among them, and what they must know alike.

``torchrun`` (``python -m torch.distributed.run``) starts them and says in the environment how many they are.
Each makes the same plan, model and optimizer, draws the same examples and takes its share of them.  The first
one keeps the folder and tells the others; what it finds alone, they take from it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from curvlab.engine.agreement import Agreement
from curvlab.engine.interrupts import EXIT_CODES, Interrupts
from curvlab.errors import ConfigError, CurvlabError, Fault
from curvlab.objectives.ranks import Ranks
from curvlab.protocols.sampler import Draw

T = TypeVar("T")

#: how long a process waits for the others before it gives up, unless the environment says otherwise, seconds
PATIENCE = 600.0
PATIENCE_KEY = "CURVLAB_TIMEOUT"


@dataclass(frozen=True)
class Company:
    """The processes that train one run; ``ranks`` is ``None`` where there is one."""

    ranks: Ranks | None = None

    @property
    def size(self) -> int:
        """How many there are."""
        return 1 if self.ranks is None else self.ranks.size

    @property
    def is_first(self) -> bool:
        """Whether this one keeps the folder and reports."""
        return self.ranks is None or self.ranks.rank == 0

    def told(self, find: Callable[[], T]) -> T:
        """What the first process finds, for all; a small plain value.

        An error of the first is raised by all: by itself as it is, by the others as a ``CurvlabError``.
        """
        if self.ranks is None:
            return find()
        found = Agreement(self.ranks).attempt(lambda: find() if self.is_first else None)
        result: T = self.ranks.each(found)[0]
        return result

    def all_do(self, do: Callable[[], T]) -> T:
        """What ``do`` returns here; raises everywhere if it fails somewhere."""
        return do() if self.ranks is None else Agreement(self.ranks).attempt(do)

    def any(self, flag: bool) -> bool:
        """Whether any process raises the flag."""
        return flag if self.ranks is None else Agreement(self.ranks).any(flag)[0]

    def share(self, draw: Draw) -> Draw:
        """This process's part of a step's examples: as many as the others have, or one less.

        Raises ``ConfigError`` for a draw of fewer examples than processes.
        """
        if self.ranks is None:
            return draw
        parts: dict[int, Tensor] = {}
        for indices in (draw.gradient, draw.curvature, draw.acceptance):
            if len(indices) < self.size:
                raise ConfigError(
                    Fault(
                        f"a step draws {len(indices)} examples, and {self.size} processes share them",
                        path="sampler",
                        hint="start fewer processes, or draw more examples",
                    )
                )
            parts[id(indices)] = indices.tensor_split(self.size)[self.ranks.rank]
        return replace(
            draw,
            gradient=parts[id(draw.gradient)],
            curvature=parts[id(draw.curvature)],
            acceptance=parts[id(draw.acceptance)],
        )

    def seconds(self, mine: float) -> float:
        """The first one's clock."""
        if self.ranks is None:
            return mine
        clock = torch.tensor(mine, dtype=torch.float64, device=self.ranks.device)
        return float(self.ranks.from_(0, clock))

    def heed(self, interrupts: Interrupts) -> None:
        """A signal that one process caught is caught by all."""
        if self.ranks is None:
            return
        names = list(EXIT_CODES)
        code = names.index(interrupts.caught) + 1 if interrupts.caught else 0
        agreed = int(self.ranks.largest_(torch.tensor(code, device=self.ranks.device)))
        if agreed and not interrupts.caught:
            interrupts.caught = names[agreed - 1]

    def require_same(self, facts: Mapping[str, Any]) -> None:
        """Raise ``ConfigError`` on all if a process runs other versions or another configuration."""
        if self.ranks is None:
            return
        first, *others = self.ranks.each(dict(facts))
        for rank, theirs in enumerate(others, start=1):
            unlike = [k for k in first if first[k] != theirs[k]]
            if unlike:
                listed = "; ".join(f"{k}: {theirs[k]!r} instead of {first[k]!r}" for k in unlike)
                raise ConfigError(
                    Fault(
                        f"rank {rank} differs from rank 0: {listed}",
                        hint="install the same versions and give the same configuration on every machine",
                    )
                )

    def random_states(self, mine: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The random states of all: the first one's by their names, the others' as ``name@rank``."""
        found = dict(mine)
        if self.ranks is not None:
            for rank, theirs in enumerate(self.ranks.each({n: t.cpu() for n, t in mine.items()})):
                found.update({n if rank == 0 else f"{n}@{rank}": t for n, t in theirs.items()})
        return found

    def own_random_states(self, saved: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This process's of what ``random_states`` gave; empty for a process that was not there."""
        if self.is_first or self.ranks is None:
            return {n: t for n, t in saved.items() if "@" not in n}
        mark = f"@{self.ranks.rank}"
        return {n.removesuffix(mark): t for n, t in saved.items() if n.endswith(mark)}

    def draw_apart(self, seed: int) -> None:
        """Random layers of every process draw their own numbers; the first process keeps its generator."""
        if self.ranks is not None and not self.is_first:
            torch.manual_seed((seed * 0x9E3779B97F4A7C15 + self.ranks.rank) % 2**63)


#: one process
ALONE = Company()


def are_several() -> bool:
    """Whether a launcher started this process with others, or the caller connected it with them."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size() > 1
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


@contextmanager
def company(device: torch.device) -> Iterator[Company]:
    """Inside, this process is connected with those that were started with it, if there are any.

    Raises ``CurvlabError`` where a message to the others failed: one of them has ended.
    """
    if not are_several():
        yield ALONE
        return
    if dist.is_initialized():
        yield Company(Ranks(dist.group.WORLD))
        return
    if device.type == "cuda":  # a device for each process of a machine
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    backend, timeout = "nccl" if device.type == "cuda" else "gloo", timedelta(seconds=_patience())
    dist.init_process_group(backend, timeout=timeout)
    ranks = Ranks(dist.group.WORLD)
    try:
        yield Company(ranks)
    except RuntimeError as error:
        if not _is_of_a_message(error):
            raise
        raise CurvlabError(
            f"rank {ranks.rank} lost the others: a message among {ranks.size} processes failed"
            f" ({_shortened(error)}). Another process has ended or is stuck, and its own message says why."
            " Continue from the last checkpoint with `curvlab resume`"
        ) from error
    dist.destroy_process_group()


def _shortened(error: RuntimeError) -> str:
    """What torch says of it, up to the end of the first sentence."""
    return str(error).strip().splitlines()[-1].split(". ")[0].rstrip(".")


def _patience() -> float:
    given = os.environ.get(PATIENCE_KEY, str(PATIENCE))
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise ConfigError(Fault(f"{PATIENCE_KEY} is {given!r}, expected a number of seconds above 0"))
    return seconds


def _is_of_a_message(error: RuntimeError) -> bool:
    """Whether it comes out of a call of ``torch.distributed``."""
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_globals.get("__name__", "").startswith("torch.distributed"):
            return True
        trace = trace.tb_next
    return False
