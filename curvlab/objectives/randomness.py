"""Random layers that repeat themselves: an objective is one function, however often it is evaluated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

#: states of torch's own generators: the CPU's and, for a model elsewhere, that device's
State = tuple[Tensor, ...]


@dataclass
class Randomness:
    """What torch's generators stood at when an objective was first evaluated."""

    device: torch.device
    start: State | None = None
    drew: bool = False  #: whether any evaluation drew a number

    @contextmanager
    def repeated(self, *, moving: bool = False) -> Iterator[None]:
        """Inside, random layers draw what they drew the first time; afterwards, generators are as before.

        Only the first pass that is ``moving`` leaves them moved on, as an ordinary forward pass does.
        """
        before = self.now()
        if self.start is None:
            self.start = before
        first = self.start
        fresh = first is before or _alike(before, first)
        if not fresh:
            self.rewind(first)
        try:
            yield
        finally:
            self.drew = self.drew or not _alike(self.now(), first)
            if not (moving and fresh):
                self.rewind(before)

    def now(self) -> State:
        """Where the generators stand."""
        if self.device.type == "cuda":
            return torch.get_rng_state(), torch.cuda.get_rng_state(self.device)
        return (torch.get_rng_state(),)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Afterwards, generators are as before."""
        before = self.now()
        try:
            yield
        finally:
            self.rewind(before)

    def rewind(self, state: State) -> None:
        """Put the generators back."""
        torch.set_rng_state(state[0])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state[1], self.device)


def _alike(one: State, other: State) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
