"""What a part that computes leaves alone, global random numbers and autograd, and that it repeats itself.

A suite says how its part is exercised, and for a part with a state how that is begun and moved on.
"""

from __future__ import annotations

import math
import random
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from curvlab.engine.state import export, restore
from curvlab.linalg.vectors import BlockVector
from curvlab.testing.conformance.check import check
from curvlab.testing.conformance.suite import Conformance
from curvlab.testing.files import through_torch_save
from curvlab.testing.surroundings import Surroundings

#: what an exercise gave, by name
Found = Mapping[str, Any]

#: steps before a state is saved, and after it is loaded again
BEFORE, AFTER = 3, 3


class Exercised(Conformance):
    """Laws about whatever ``exercise`` does."""

    @abstractmethod
    def exercise(self) -> Found:
        """Have the part do all that it does, from the beginning: tensors, vectors and numbers by name."""

    @check()
    def check_random_state(self) -> None:
        """Nothing draws from a global generator of random numbers, nor seeds one."""
        before = Surroundings.now()
        self.exercise()
        changed = before.random_changes()
        assert not changed, f"{type(self.part).__name__} draws from {', '.join(changed)}, or seeds it"

    @check()
    def check_determinism(self) -> None:
        """The same arguments give the same bits, whatever the global seeds."""
        found = []
        for seed in (0, 1):
            torch.manual_seed(seed)
            random.seed(seed)
            found.append({name: frozen(value) for name, value in self.exercise().items()})
        for name, first in found[0].items():
            same = alike(first, found[1][name])
            assert same, (
                f"{type(self.part).__name__}: {name} differs between two calls with the same arguments"
            )

    @check()
    def check_autograd(self) -> None:
        """Nothing switches autograd or a default of torch, nor hands out what requires a gradient."""
        before = Surroundings.now()
        found = self.exercise()
        changed = before.mode_changes()
        assert not changed, f"{type(self.part).__name__} changes {', '.join(changed)}"
        wrong = [n for n, v in found.items() if isinstance(frozen(v), Tensor) and requires_grad(v)]
        assert not wrong, f"{type(self.part).__name__}: {', '.join(wrong)} requires a gradient"


class Stateful(Exercised):
    """Laws about a state: every tensor eagerly, and as good as new from a file."""

    @abstractmethod
    def begin(self) -> Any:
        """A world to work in and a fresh state; ``state_of`` finds the latter."""

    def state_of(self, run: Any) -> Any:
        """The part's state."""
        return run

    def follow(self, run: Any, other: Any) -> None:
        """Make the world of ``run`` that of ``other``; the state is not part of it."""
        return None

    @abstractmethod
    def advance(self, run: Any, step: int) -> Found:
        """Take one step; what came of it."""

    def exercise(self) -> Found:
        run = self.begin()
        return {f"step {k}, {n}": v for k in range(3) for n, v in self.advance(run, k).items()}

    @check()
    def check_eager(self) -> None:
        """A fresh state has every tensor it will ever hold, with its shape and dtype."""
        run = self.begin()
        first = _facts(self.state_of(run))
        for k in range(BEFORE):
            self.advance(run, k)
        later = _facts(self.state_of(run))
        new = [n for n in later if n not in first]
        gone = [n for n in first if n not in later]
        other = [n for n in first if n in later and first[n] != later[n]]
        words = [
            f"{what}: {', '.join(n)}" for what, n in (("new", new), ("gone", gone), ("other", other)) if n
        ]
        assert not words, (
            f"{type(self.part).__name__}.init must create every tensor that the state will hold;"
            f" after {BEFORE} steps {'; '.join(words)}"
        )

    @check()
    def check_resume(self) -> None:
        """A state that was saved and loaded goes on as the one that was not, to the last bit."""
        run = self.begin()
        for k in range(BEFORE):
            self.advance(run, k)
        tensors, plain = export(self.state_of(run))
        twin = self.begin()
        self.follow(twin, run)
        restore(self.state_of(twin), through_torch_save(tensors), dict(plain))
        for k in range(BEFORE, BEFORE + AFTER):
            mine = {n: frozen(v) for n, v in self.advance(run, k).items()}
            theirs = {n: frozen(v) for n, v in self.advance(twin, k).items()}
            wrong = [n for n in mine if not alike(mine[n], theirs[n])]
            assert not wrong, (
                f"{type(self.part).__name__}: after its state was saved and loaded at step {BEFORE},"
                f" {', '.join(wrong)} of step {k} differs"
            )


def frozen(value: Any) -> Any:
    """A value as it is now: a tensor's copy, a number; a vector as one tensor."""
    if isinstance(value, BlockVector):
        value = value.flat
    return value.detach().clone() if isinstance(value, Tensor) else value


def alike(a: Any, b: Any) -> bool:
    """Equal to the last bit, NaNs among them."""
    if isinstance(a, Tensor):
        if not isinstance(b, Tensor) or a.shape != b.shape or a.dtype != b.dtype:
            return False
        if not a.is_floating_point():
            return torch.equal(a, b)
        return bool(((a == b) | (a.isnan() & b.isnan())).all())
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a):
        return math.isnan(b)
    return bool(a == b)


def requires_grad(value: Any) -> bool:
    """Whether a tensor or a vector does."""
    tensor = value.flat if isinstance(value, BlockVector) else value
    return bool(tensor.requires_grad)


def _facts(state: Any) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    tensors, _ = export(state)
    return {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()}
