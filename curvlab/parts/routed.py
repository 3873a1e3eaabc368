"""Preconditioner = patterns of block names → preconditioners."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from curvlab.errors import ConfigError, Fault
from curvlab.linalg.cg import Stop
from curvlab.linalg.vectors import BlockLayout, BlockVector
from curvlab.protocols.blocks import Block
from curvlab.protocols.context import Context
from curvlab.protocols.evidence import Evaluation, Solve, StepOutcome
from curvlab.protocols.needs import GRADIENT_ONLY, Needs
from curvlab.protocols.preconditioner import Preconditioner
from curvlab.protocols.report import Event

#: why solves ended, from the most ordinary to what a method must know
GRAVITY = (Stop.DIRECT, Stop.CONVERGED, Stop.LIMIT, Stop.CURVATURE, Stop.NONFINITE)


@dataclass
class RoutedState:
    """One state per route that has blocks."""

    routes: dict[str, Any]


@dataclass(frozen=True)
class Routed(Preconditioner[RoutedState]):
    """Each block goes to the first pattern (shell wildcards) that matches its name.

    Blocks that match no pattern, or that their route refuses, go to the method's fallback.
    """

    routes: Mapping[str, Preconditioner[Any]]

    def __post_init__(self) -> None:
        if not self.routes:
            raise ConfigError(
                Fault("routes is empty", path="routes", hint='add at least one pattern, such as "*"')
            )
        for pattern, part in self.routes.items():
            if part.pairs() is not None:  # a slice of a pair (s, A s) is not a pair of A's block
                what = (
                    f"{type(part).__name__} cannot be a route: it learns from a solve of all blocks together"
                )
                raise ConfigError(Fault(what, path=f"routes.{pattern}", hint="use it outside of routed"))

    @property
    def varying(self) -> bool:
        return any(part.varying for part in self.routes.values())

    def needs(self, step: int) -> Needs:
        """What any of the parts needs."""
        united = GRADIENT_ONLY
        for part in self.routes.values():
            united = united | part.needs(step)
        return united

    @property
    def separable(self) -> bool:
        return all(part.separable for part in self.routes.values())

    def work(self, block: Block) -> float:
        pattern = self._route(block.name)
        return 0.0 if pattern is None else self.routes[pattern].work(block)

    @property
    def ridged(self) -> bool:
        return all(part.ridged for part in self.routes.values())

    def joins(self, layer: str) -> bool:
        pattern = self._route(layer)
        return pattern is not None and self.routes[pattern].joins(layer)

    def reads(self, layer: str) -> bool:
        pattern = self._route(layer)
        return pattern is not None and self.routes[pattern].reads(layer)

    def refuses(self, block: Block) -> str | None:
        """A block that no pattern matches, or that its part refuses."""
        pattern = self._route(block.name)
        return "matches no route" if pattern is None else self.routes[pattern].refuses(block)

    def settled(self, blocks: Sequence[Block]) -> Routed:
        own = {p: [b for b in blocks if self._route(b.name) == p] for p in self.routes}
        return Routed({p: part.settled(own[p]) for p, part in self.routes.items()})

    def fallible(self, state: RoutedState, step: int) -> bool:
        return any(self.routes[pattern].fallible(own, step) for pattern, own in state.routes.items())

    def init(self, like: BlockVector, ctx: Context) -> RoutedState:
        return RoutedState(
            {
                pattern: self.routes[pattern].init(like.restrict(layout), ctx)
                for pattern, layout in self._split(like.layout).items()
            }
        )

    def observe(self, state: RoutedState, seen: Evaluation, ctx: Context) -> None:
        for pattern, layout in self._split(seen.gradient.layout).items():
            self.routes[pattern].observe(state.routes[pattern], seen.restrict(layout), ctx)

    def ready(self, state: RoutedState) -> bool:
        return all(self.routes[pattern].ready(own) for pattern, own in state.routes.items())

    def refresh(self, state: RoutedState, ctx: Context) -> None:
        for pattern, own in state.routes.items():
            self.routes[pattern].refresh(own, ctx)

    def apply(self, state: RoutedState, v: BlockVector, ctx: Context) -> Solve:
        """Each part on its own blocks; iterations add up."""
        x, iterations, reasons = v.empty_like(), 0, []
        for pattern, layout in self._split(v.layout).items():
            solve = self.routes[pattern].apply(state.routes[pattern], v.restrict(layout), ctx)
            iterations += solve.iterations
            reasons.append(solve.reason)
            for name, part in solve.x.items():
                x[name].copy_(part)
        return Solve(x, iterations, max(reasons, key=GRAVITY.index, default=Stop.DIRECT))

    def learn(self, state: RoutedState, what: StepOutcome, ctx: Context) -> tuple[Event, ...]:
        said: list[Event] = []
        for pattern, layout in self._split(what.before.gradient.layout).items():
            said += self.routes[pattern].learn(state.routes[pattern], what.restrict(layout), ctx)
        return tuple(said)

    def _route(self, name: str) -> str | None:
        return next((p for p in self.routes if fnmatchcase(name, p)), None)

    def _split(self, layout: BlockLayout) -> dict[str, BlockLayout]:
        chosen = {name: self._route(name) for name in layout.names}
        return {
            p: layout.restrict(names)
            for p in self.routes
            if (names := tuple(n for n, route in chosen.items() if route == p))
        }
