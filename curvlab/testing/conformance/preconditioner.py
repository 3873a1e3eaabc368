"""The suite of preconditioners."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from curvlab.engine.state import export, forget
from curvlab.linalg.secants import Secant
from curvlab.linalg.vectors import BlockVector
from curvlab.protocols.dtypes import Dtypes
from curvlab.protocols.evidence import Evaluation, Solve, Step, StepOutcome
from curvlab.protocols.needs import Labels, Needs
from curvlab.protocols.preconditioner import Preconditioner
from curvlab.protocols.report import Event
from curvlab.testing.asserts import assert_close, assert_same
from curvlab.testing.conformance.bench import MIXED, Bench, copies, held, require_near
from curvlab.testing.conformance.check import Skipped, check
from curvlab.testing.conformance.exercised import Found, Stateful
from curvlab.testing.conformance.path import require_path

#: the rate of the steps that are taken
ALPHA = 0.05
#: gradients that a part may observe before it is ready
PREPARATIONS = 3


@dataclass
class Run:
    """A network that is trained, and a state."""

    bench: Bench
    state: Any


class PreconditionerConformance(Stateful):
    """What is done with a gradient, over a few steps of training a small network."""

    kind = "preconditioner"
    part: Preconditioner[Any]

    @property
    def name(self) -> str:
        """The class, for messages."""
        return type(self.part).__name__

    def bench(self, roles: Dtypes | torch.dtype = torch.float64) -> Bench:
        """The network, partitioned for this preconditioner."""
        return Bench.of(self.part.joins, self.part.refuses, roles)

    def begin(self, roles: Dtypes | torch.dtype = torch.float64) -> Run:
        bench = self.bench(roles)
        run = Run(bench, self.part.init(bench.like, bench.context(0)))
        for k in range(PREPARATIONS):
            if not self.part.ready(run.state):
                self.part.observe(run.state, bench.evaluate(self.part.needs(0), 100 + k), bench.context(0))
        return run

    def state_of(self, run: Run) -> Any:
        return run.state

    def follow(self, run: Run, other: Run) -> None:
        run.bench.blocks.assign_(other.bench.blocks.read())

    def advance(self, run: Run, step: int) -> Found:
        seen, solve = self.solved(run, step)
        x = solve.x.clone()
        said = self._learned(run, seen, solve, step)
        assert all(isinstance(e, Event) for e in said), f"{self.name}.learn must return Events, not {said!r}"
        forget(run.state)  # as the engine does when a step is over
        return {"the update": x}

    def solved(self, run: Run, step: int) -> tuple[Evaluation, Solve]:
        """Observe, refresh, apply."""
        seen = run.bench.evaluate(self.part.needs(step), step)
        ctx = run.bench.context(step)
        self.part.observe(run.state, seen, ctx)
        self.part.refresh(run.state, ctx)
        return seen, self.part.apply(run.state, seen.gradient.borrow(), ctx)

    def _learned(self, run: Run, seen: Evaluation, solve: Solve, step: int) -> tuple[Event, ...]:
        """Take the step, evaluate its batch again where the part needs that, and learn."""
        run.bench.blocks.subtract_(solve.x, ALPHA)
        what = StepOutcome(seen, solve, Step(solve.x, ALPHA), after=self._evaluated_after(run, step))
        return self.part.learn(run.state, self._with_pairs(what, run), run.bench.context(step))

    def _evaluated_after(self, run: Run, step: int) -> Evaluation | None:
        """The step's batch at the present θ, for a part that asks for it."""
        if not self.part.needs(step).after:
            return None
        return run.bench.evaluate(Needs.statistics(Labels.DATA), step, theta=True)

    def _with_pairs(self, what: StepOutcome, run: Run) -> StepOutcome:
        """For a part that learns from the pairs of a solve: some of a known operator, ``Diag(1, 2, …)``."""
        wanted = self.part.pairs()
        if wanted is None:
            return what
        pairs = []
        for k in range(max(wanted.count, 1)):
            s = run.bench.vector(30 + k)
            y = BlockVector(s.layout, s.flat * torch.arange(1, s.layout.size + 1, dtype=s.dtype))
            pairs.append(Secant(s, y, 0.0))
        return replace(what, solve=Solve(what.solve.x, 1, secants=tuple(pairs)))

    def trained(self, steps: int = 2) -> Run:
        """After a few steps, with the curvature of the next one taken in."""
        run = self.begin()
        for k in range(steps):
            self.advance(run, k)
        self.solved(run, steps)
        return run

    @check()
    def check_obligations(self) -> None:
        """``needs`` are Needs, the same when asked again; ``apply`` gives a Solve on its blocks."""
        run = self.begin()
        assert run.bench.blocks.members, f"{self.name} refuses every block of the test: {run.bench.refused}"
        for step in (0, 1, 7, 1000):
            needs = self.part.needs(step)
            assert isinstance(needs, Needs), f"{self.name}.needs({step}) must return Needs, not {needs!r}"
            assert self.part.needs(step) == needs, f"{self.name}.needs({step}) differs between two calls"
        assert isinstance(self.part.joins("0"), bool), f"{self.name}.joins(layer) must return a bool"
        seen, solve = self.solved(run, 0)
        assert isinstance(solve, Solve), (
            f"{self.name}.apply must return a Solve, not a {type(solve).__name__}"
        )
        assert solve.x.layout == seen.gradient.layout, (
            f"{self.name}.apply: the blocks of x differ from those of v"
        )
        if solve.iterates:
            assert self.part.iterates, f"{self.name}.iterates is False, and the Solve has iterates"
        if solve.path is not None:
            assert self.part.path, f"{self.name}.path is False, and the Solve has a path"

    @check()
    def check_ready(self) -> None:
        """It is ready to precondition after a few gradients, and from then on."""
        run = self.begin()
        for k in range(3):
            ready = self.part.ready(run.state)
            assert isinstance(ready, bool), f"{self.name}.ready must return a bool, not {ready!r}"
            assert ready, f"{self.name}.ready is False after {PREPARATIONS + k} gradients"
            self.advance(run, k)

    @check()
    def check_separable(self) -> None:
        """If it says so, what it does with some of the blocks alone is what it does with them among all."""
        if not self.part.separable:
            raise Skipped("not separable")
        bench = self.bench()
        part, names = self.part.settled(bench.blocks.members), bench.blocks.layout.names
        layouts = [bench.blocks.layout.restrict(some) for some in (names, names[::2], names[1::2]) if some]
        states = [part.init(bench.like.restrict(layout), bench.context(0)) for layout in layouts]
        for step in range(PREPARATIONS + 3):
            seen, found = bench.evaluate(part.needs(step), step), []
            for layout, state in zip(layouts, states, strict=True):
                mine, ctx = seen.restrict(layout), bench.context(step)
                part.observe(state, mine, ctx)
                if not part.ready(state):
                    continue
                part.refresh(state, ctx)
                found.append(part.apply(state, mine.gradient.borrow(), ctx).x)
                forget(state)
            assert len(found) in (0, len(layouts)), (
                f"{self.name}: ready at step {step} for some blocks alone and not for all, or the reverse"
            )
            for x in found[1:]:
                for name, update in x.items():
                    what = f"{self.name} is separable, but the update of {name} beside other blocks"
                    assert_close(update, found[0][name], condition=1e4, what=what)

    @check()
    def check_refusals(self) -> None:
        """A block that is not treated is refused with a reason, in words."""
        for name, reason in self.bench().refused.items():
            wordy = isinstance(reason, str) and reason.strip()
            assert wordy, (
                f"{self.name}.refuses must return a reason in words for block {name}, not {reason!r}"
            )

    @check()
    def check_finite(self) -> None:
        """Updates are finite over several steps, after a rejected one too."""
        run = self.begin()
        for k in range(6):
            if k == 3:
                seen, solve = self.solved(run, k)
                what = StepOutcome(seen, solve, Step(solve.x, 0.0, accepted=False))
                self.part.learn(run.state, self._with_pairs(what, run), run.bench.context(k))
                continue
            found = self.advance(run, k)["the update"]
            assert found.is_finite(), f"{self.name}.apply: the update of step {k} is not finite"

    @check()
    def check_pure(self) -> None:
        """``apply`` changes neither its vector nor the state, and gives the same again."""
        run = self.trained()
        v, (tensors, plain) = run.bench.vector(1), export(run.state)
        kept, before = v.clone(), {n: t.clone() for n, t in tensors.items()}
        first = self.part.apply(run.state, v, run.bench.context(2)).x.clone()
        again = self.part.apply(run.state, v, run.bench.context(2)).x
        after, plain_after = export(run.state)
        assert torch.equal(v.flat, kept.flat), f"{self.name}.apply changes its argument v"
        wrong = [n for n in before if not torch.equal(before[n], after[n])]
        wrong += [n for n in plain if repr(plain[n]) != repr(plain_after[n])]
        assert not wrong, f"{self.name}.apply changes its state: {', '.join(wrong)}"
        assert torch.equal(first.flat, again.flat), (
            f"{self.name}.two calls of apply with the same arguments return different x"
        )

    @check()
    def check_borrowed(self) -> None:
        """``apply`` returns a fresh vector, or a borrowed one: changing a fresh one spoils no other."""
        run = self.trained()
        v, ctx = run.bench.vector(1), run.bench.context(2)
        kept = v.clone()
        x = self.part.apply(run.state, v, ctx).x
        expected = x.clone()
        if x.borrowed:
            return
        x.flat.fill_(torch.nan)
        assert torch.equal(v.flat, kept.flat), f"{self.name}.apply returns v's memory; return v.borrow()"
        again = self.part.apply(run.state, v, ctx).x
        assert torch.equal(again.flat, expected.flat), (
            f"{self.name}.apply returns memory of its state that is not marked as borrowed; return x.borrow()"
        )

    @check(capability="linear")
    def check_linear(self) -> None:
        """``apply`` is one linear map during a step; where it is not, say ``varying = True``."""
        run = self.trained()
        ctx = run.bench.context(2)
        u, v = (run.bench.vector(seed) for seed in (1, 2))
        X, Y = (self.part.apply(run.state, w, ctx).x.clone() for w in (u, v))
        both = self.part.apply(run.state, u * 2.0 - v, ctx).x
        with self._unless_varying():
            assert_same(both, X * 2.0 - Y, condition=1e3, what=f"{self.name}.apply of 2u − v")

    @check(capability="linear")
    def check_positive(self) -> None:
        """It is symmetric and positive definite, as solvers need it; where it is not, ``varying = True``."""
        run = self.trained()
        ctx = run.bench.context(2)
        for seed in range(3):
            u, v = run.bench.vector(10 + seed), run.bench.vector(20 + seed)
            x, y = (self.part.apply(run.state, w, ctx).x.clone() for w in (u, v))
            size = float(u.norm() * y.norm())
            what, along = f"{self.name}: ⟨u, P v⟩ against ⟨P u, v⟩", float(v.dot(y))
            with self._unless_varying():
                assert_close(
                    u.dot(y), x.dot(v), dimension=u.layout.size, condition=100.0, scale=size, what=what
                )
                assert along > 0, f"{self.name}: ⟨v, P v⟩ = {along:.4g} is not positive"

    @check()
    def check_evidence(self) -> None:
        """``observe`` and ``learn`` change nothing of the evaluation, nor of the solution."""
        run = self.begin()
        for k in range(2):
            seen = run.bench.evaluate(self.part.needs(k), k)
            kept, ctx = copies(seen), run.bench.context(k)
            self.part.observe(run.state, seen, ctx)
            self.part.refresh(run.state, ctx)
            solve = self.part.apply(run.state, seen.gradient.borrow(), ctx)
            x = solve.x.clone()
            after = self._evaluated_after(run, k)
            seen_after = {} if after is None else copies(after)
            what = StepOutcome(seen, solve, Step(solve.x.borrow(), ALPHA), after=after)
            self.part.learn(run.state, self._with_pairs(what, run), ctx)
            wrong = [name for name, t in held(seen).items() if not torch.equal(t, kept[name])]
            if after is not None:
                wrong += [f"{n} after" for n, t in held(after).items() if not torch.equal(t, seen_after[n])]
            assert not wrong, f"{self.name}.observe or learn changes {', '.join(wrong)}"
            assert torch.equal(solve.x.flat, x.flat), f"{self.name}.learn changes the solution"

    @check()
    def check_remembers(self) -> None:
        """What it wants to remember of a step it copies: a step's vectors are used again by the next."""
        run, twin = self.begin(), self.begin()
        for k in range(3):
            x = self.advance(run, k)["the update"]
            seen, solve = self.solved(twin, k)
            y = solve.x.clone()
            self._learned(twin, seen, solve, k)
            assert torch.equal(x.flat, y.flat), (
                f"{self.name}: the update of step {k} changes if the memory of step {k - 1} is reused;"
                " copy vectors to keep"
            )
            seen.gradient.flat.fill_(7.0)  # the engine hands these buffers out again
            if not solve.x.borrowed:
                solve.x.flat.fill_(7.0)

    @check()
    def check_float32(self) -> None:
        """In float32 the update and the state's matrices are float32, and finite."""
        run = self.begin(torch.float32)
        x = self.advance(run, 0)["the update"]
        assert x.dtype is torch.float32, f"{self.name}.apply of float32 gives {x.dtype}"
        assert x.is_finite(), f"{self.name}.apply in float32 is not finite"

    @check()
    def check_roles(self) -> None:
        """States and rows in other dtypes than vectors' give nearly the same updates."""
        updates = []
        for roles in (Dtypes.uniform(torch.float32), MIXED):
            run = self.begin(roles)
            updates.append([self.advance(run, k)["the update"] for k in range(2)])
        for k, pair in enumerate(zip(*updates, strict=True)):
            require_near(*pair, what=f"{self.name}.apply in step {k}")

    @check(capability="path")
    def check_path(self) -> None:
        """The solution and its path are ``x(λ) = (C + λM)⁻¹ g`` of one C and M, in all that is said of it."""
        run = self.begin()
        for k in range(2):
            self.advance(run, k)
        seen, solve = self.solved(run, 2)
        assert solve.path is not None, f"{self.name}.path is True, and the Solve has none"
        require_path(solve.path, seen.gradient, solve.x, f"{self.name}: the path")

    @contextmanager
    def _unless_varying(self) -> Iterator[None]:
        """Add to a failure inside what an author writes whose preconditioner is meant not to be linear."""
        try:
            yield
        except AssertionError as error:
            hint = f"if apply is not meant to be one linear map, set varying = True in {self.name}"
            raise AssertionError(f"{error}\n  {hint}") from error

    def capabilities(self) -> frozenset[str]:
        can = {"linear": not self.part.varying, "path": self.part.path}
        return frozenset(name for name, able in can.items() if able)
