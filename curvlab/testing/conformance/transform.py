"""The suite of transforms of gradients and updates."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import torch

from curvlab.linalg.outer import Outer
from curvlab.linalg.vectors import BlockLayout, BlockVector
from curvlab.protocols.step import At, Transform
from curvlab.testing.asserts import assert_same
from curvlab.testing.conformance.check import Skipped, check
from curvlab.testing.conformance.exercised import Found, Stateful
from curvlab.testing.problems import normal

LAYOUT = BlockLayout({"a": (3, 4), "b": (5,)})


@dataclass
class Place:
    """Where a transform stands: θ and the gradient."""

    theta: BlockVector
    gradient: BlockVector

    @classmethod
    def at(cls, seed: int, dtype: torch.dtype = torch.float64) -> Place:
        """Drawn."""
        return cls(vector(seed + 40, dtype), vector(seed + 20, dtype))

    def told(self, step: int) -> At:
        """What the transform can read of it."""
        return At(self.gradient.borrow(), step, 0.1, self._add, self.theta.clone)

    def _add(self, v: BlockVector, factor: float) -> None:
        v.add_(self.theta, factor)


def vector(seed: int, dtype: torch.dtype = torch.float64) -> BlockVector:
    """A vector of normal numbers."""
    return BlockVector(LAYOUT, normal(LAYOUT.size, seed=seed).to(dtype))


class _Sums:
    """Sums over threads, each of which stands for a process and asks for the same ones."""

    def __init__(self, threads: int) -> None:
        self._barrier, self._given = threading.Barrier(threads, timeout=10), list[torch.Tensor]()

    def of(self, t: torch.Tensor) -> torch.Tensor:
        """The sum of what all give."""
        self._given.append(t.clone())
        self._barrier.wait()
        total = torch.stack(self._given).sum(0)
        if self._barrier.wait() == 0:
            self._given.clear()
        self._barrier.wait()
        return total


class TransformConformance(Stateful):
    """A map of vectors: what it changes, what it hands out, what it remembers."""

    kind = "transform"
    part: Transform[Any]

    @property
    def name(self) -> str:
        """The class, for messages."""
        return type(self.part).__name__

    def begin(self) -> Any:
        return self.part.init(BlockVector(LAYOUT, torch.zeros(LAYOUT.size, dtype=torch.float64)))

    def advance(self, run: Any, step: int) -> Found:
        return {"the vector": self.part(run, vector(step), Place.at(step).told(step)).clone()}

    @check()
    def check_obligations(self) -> None:
        """A transform returns a vector on the same blocks, of the same dtype."""
        for dtype in (torch.float64, torch.float32):
            state = self.part.init(BlockVector(LAYOUT, torch.zeros(LAYOUT.size, dtype=dtype)))
            found = self.part(state, vector(0, dtype), Place.at(0, dtype).told(0))
            assert isinstance(found, BlockVector), (
                f"{self.name} must return a BlockVector, not a {type(found)}"
            )
            assert found.layout == LAYOUT, (
                f"{self.name} returns a vector whose blocks differ from those of its argument"
            )
            assert found.dtype is dtype, f"{self.name} of {dtype} gives {found.dtype}"

    @check()
    def check_separable(self) -> None:
        """If it says so, its result for a block depends on others by ``At.sum`` and ``At.norm`` alone."""
        if not self.part.separable:
            raise Skipped("not separable")
        state, alone = self.begin(), [LAYOUT.restrict((name,)) for name in LAYOUT.names]
        states = [self.part.init(BlockVector(mine, torch.zeros(mine.size).double())) for mine in alone]
        for k in range(3):
            whole, place = self.part(state, vector(k), Place.at(k).told(k)).clone(), Place.at(k)
            sums = _Sums(len(alone))

            def one(rank: int, place: Place = place, k: int = k, sums: _Sums = sums) -> BlockVector:
                own = Place(place.theta.restrict(alone[rank]), place.gradient.restrict(alone[rank]))
                told = replace(own.told(k), total=sums.of)
                return self.part(states[rank], vector(k).restrict(alone[rank]), told).clone()

            with ThreadPoolExecutor(len(alone)) as pool:
                found = list(pool.map(one, range(len(alone))))
            for mine in found:
                for name, block in mine.items():
                    assert torch.allclose(block, whole[name], rtol=1e-9, atol=1e-12), (
                        f"{self.name} is separable, and its result for block {name} depends on other blocks"
                    )

    @check()
    def check_borrowed(self) -> None:
        """A vector that is borrowed is not changed: ask for ``v.owned()`` first."""
        state = self.begin()
        for k in range(3):
            v = vector(k)
            kept = v.clone()
            found = self.part(state, v.borrow(), Place.at(k).told(k))
            assert torch.equal(v.flat, kept.flat), f"{self.name} changes its argument, which is borrowed"
            if not found.borrowed:
                found.flat.fill_(7.0)
                assert torch.equal(v.flat, kept.flat), (
                    f"{self.name} returns its borrowed argument as its own; return v.borrow() instead of v"
                )

    @check()
    def check_state_is_lent(self) -> None:
        """A buffer of the state is returned borrowed: who may change the vector changes no state."""
        state, twin = self.begin(), self.begin()
        for k in range(3):
            first = self.part(state, vector(k), Place.at(k).told(k)).clone()
            second = self.part(twin, vector(k), Place.at(k).told(k))
            assert torch.equal(first.flat, second.flat), (
                f"{self.name}: step {k} changes if the vector returned at step {k - 1} is overwritten:"
                " return a buffer of the state by x.borrow(), and copy vectors to keep"
            )
            if not second.borrowed:
                second.flat.fill_(7.0)

    @check()
    def check_remembers(self) -> None:
        """What it wants to remember of a vector it copies: a step's vectors are used again by the next."""
        state, twin = self.begin(), self.begin()
        for k in range(3):
            first = self.part(state, vector(k).borrow(), Place.at(k).told(k)).clone()
            v, place = vector(k), Place.at(k)
            second = self.part(twin, v.borrow(), place.told(k)).clone()
            assert torch.equal(first.flat, second.flat), (
                f"{self.name}: step {k} changes if the memory of step {k - 1} is reused; copy vectors to keep"
            )
            v.flat.fill_(7.0)
            place.gradient.flat.fill_(7.0)

    @check()
    def check_surroundings(self) -> None:
        """Neither the gradient nor θ is changed."""
        state, place = self.begin(), Place.at(0)
        theta, gradient = place.theta.clone(), place.gradient.clone()
        self.part(state, vector(0), place.told(0))
        assert torch.equal(place.theta.flat, theta.flat), f"{self.name} changes θ"
        assert torch.equal(place.gradient.flat, gradient.flat), f"{self.name} changes the gradient"

    @check()
    def check_factored(self) -> None:
        """A block that is still factored is read as its product."""
        left, right = normal(2, 3, seed=1), normal(2, 4, seed=2)
        plain = vector(3)
        plain["a"].copy_(left.mT @ right)
        held = BlockVector(LAYOUT, plain.flat.clone(), {"a": Outer(left, right)})
        held._flat[: left.shape[1] * right.shape[1]] = torch.nan
        place = Place.at(0)
        expected = self.part(self.begin(), plain, place.told(0)).clone()
        found = self.part(self.begin(), held, place.told(0))
        assert_same(found, expected, condition=10.0, what=f"{self.name} of a vector with a factored block")

    @check()
    def check_zero(self) -> None:
        """A vector of zeros, and one beside a gradient of zeros, is mapped to a finite vector."""
        for k, (v, gradient) in enumerate(((0.0, 1.0), (1.0, 0.0), (0.0, 0.0))):
            place = Place.at(0)
            place.gradient.scale_(gradient)
            found = self.part(self.begin(), vector(k) * v, place.told(0))
            words = f"v · {v:g}, gradient · {gradient:g}"
            assert found.is_finite(), f"{self.name} of {words} is not finite"
