"""A method: the composition of parts, as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from curvlab.engine.health import Watch
from curvlab.errors import ConfigError, Fault
from curvlab.linalg.vectors import BlockVector
from curvlab.protocols.blocks import Block, Blocks
from curvlab.protocols.context import Context
from curvlab.protocols.needs import Needs
from curvlab.protocols.preconditioner import Preconditioner
from curvlab.protocols.sampler import Sampler
from curvlab.protocols.step import Damping, StepRule, Transform


@dataclass(frozen=True)
class Method:
    """Parts and their places.

    ``on_gradient`` acts on the gradient before it is preconditioned, ``on_update`` on the result,
    first to last.  Blocks that the preconditioner refuses go to ``fallback``, a method of its own.
    ``sampler`` is what the method was designed for; a configuration's ``[sampler]`` overrides it.
    """

    preconditioner: Preconditioner[Any]
    damping: Damping[Any]
    step: StepRule[Any]
    on_gradient: tuple[Transform[Any], ...] = ()
    on_update: tuple[Transform[Any], ...] = ()
    sampler: Sampler[Any] | None = None
    fallback: Method | None = None

    def __post_init__(self) -> None:
        if self.preconditioner.pairs() is not None:
            what = (
                f"{type(self.preconditioner).__name__} learns from the pairs of a solve that it preconditions"
            )
            hint = 'make it the inner of [method.preconditioner] use = "iterative"'
            raise ConfigError(Fault(what, path="preconditioner", hint=hint))
        if not self.step.chooses:
            return
        rule, preconditioner = type(self.step).__name__, type(self.preconditioner).__name__
        if not self.preconditioner.iterates:
            raise ConfigError(
                Fault(
                    f"{rule} chooses among the iterates of a solve, and {preconditioner} keeps none",
                    path="step",
                    hint='give the solver that keeps them, such as krylov = { use = "flexible-cg" }',
                )
            )
        if self.on_update:
            raise ConfigError(
                Fault(
                    f"{rule} chooses among the iterates of a solve, which on_update would not transform",
                    path="on_update",
                    hint="leave on_update empty, or use another step rule",
                )
            )

    def needs(self, step: int) -> Needs:
        """What this step costs, over all parts but the fallback."""
        return self.preconditioner.needs(step) | self.damping.needs(step) | self.step.needs(step)

    def settled(self, blocks: Sequence[Block]) -> Method:
        """The method as it treats just these blocks."""
        return replace(self, preconditioner=self.preconditioner.settled(blocks))

    def init(self, like: BlockVector, ctx: Context) -> MethodState:
        """Fresh states of every part, for blocks of ``like``'s layout."""
        return MethodState(
            preconditioner=self.preconditioner.init(like, ctx),
            damping=self.damping.init(),
            step=self.step.init(like),
            on_gradient=[t.init(like) for t in self.on_gradient],
            on_update=[t.init(like) for t in self.on_update],
        )


@dataclass
class MethodState:
    """The states of a method's parts, by place.

    ``watch`` remembers which of their tensors are known to be finite.
    """

    preconditioner: Any
    damping: Any
    step: Any
    on_gradient: list[Any]
    on_update: list[Any]
    watch: Watch = field(default_factory=Watch, metadata={"transient": True})


@dataclass(frozen=True)
class Arm:
    """A method at work on some of the blocks: the method proper, or its fallback."""

    name: str
    method: Method
    blocks: Blocks
    state: MethodState


@dataclass(frozen=True)
class Coverage:
    """How one parameter is treated, and if not by the method itself, why not."""

    parameter: str
    shape: tuple[int, ...]
    block: str
    treatment: str
    reason: str = ""

    def as_row(self) -> Mapping[str, Any]:
        """A plain dictionary for JSON."""
        return {
            "parameter": self.parameter,
            "shape": list(self.shape),
            "block": self.block,
            "treatment": self.treatment,
            "reason": self.reason,
        }
