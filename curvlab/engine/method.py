"""A method: the composition of parts, as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from curvlab.engine.health import Watch
from curvlab.errors import ConfigError, Fault
from curvlab.linalg.vectors import BlockVector
from curvlab.protocols.blocks import Block
from curvlab.protocols.context import Context
from curvlab.protocols.needs import Needs
from curvlab.protocols.preconditioner import Preconditioner
from curvlab.protocols.sampler import Sampler
from curvlab.protocols.step import Damping, StepRule, Transform

#: the way from a method to one of its settings: names of fields, indices of arrays, keys of mappings
Place = tuple[str | int, ...]


@dataclass(frozen=True)
class Method:
    """Parts and their places.

    ``on_gradient`` acts on the gradient before it is preconditioned, ``on_update`` on the result,
    first to last.  Blocks that the preconditioner refuses go to ``fallback``, a method of its own.
    ``sampler`` is what the method was designed for; a configuration's ``[sampler]`` overrides it.
    ``knobs`` maps each knob of a named method to the places that it sets; a method composed in place
    has none.  They are no part of what the method is: equality and ``repr`` leave them out.
    """

    preconditioner: Preconditioner[Any]
    damping: Damping[Any]
    step: StepRule[Any]
    on_gradient: tuple[Transform[Any], ...] = ()
    on_update: tuple[Transform[Any], ...] = ()
    sampler: Sampler[Any] | None = None
    fallback: Method | None = None
    knobs: Mapping[str, tuple[Place, ...]] = field(
        default_factory=dict, compare=False, repr=False, metadata={"setting": False}
    )

    def __post_init__(self) -> None:
        if self.preconditioner.pairs() is not None:
            what = f"{type(self.preconditioner).__name__} works only inside a solve, from which it learns"
            hint = 'set it as inner of [method.preconditioner] use = "iterative"'
            raise ConfigError(Fault(what, path="preconditioner", hint=hint))
        self._require_landings()
        if not (self.step.chooses or self.step.follows):
            return
        rule, preconditioner = type(self.step).__name__, type(self.preconditioner).__name__
        if self.step.follows and not self.preconditioner.path:
            raise ConfigError(
                Fault(
                    f"{rule} chooses the damping of a solve, but {preconditioner} solves for one alone",
                    path="step",
                    hint='use preconditioner = { use = "sample-space", solver = "spectrum" }',
                )
            )
        if self.step.follows and self.on_gradient:
            raise ConfigError(
                Fault(
                    f"on_gradient does not work with {rule}, whose steps solve for the gradient itself",
                    path="on_gradient",
                    hint="remove on_gradient, or use another step rule",
                )
            )
        if self.step.chooses and not self.preconditioner.iterates:
            raise ConfigError(
                Fault(
                    f"{rule} chooses among the iterates of a solve, but {preconditioner} keeps none",
                    path="step",
                    hint='use a solver that keeps its iterates, such as krylov = { use = "flexible-cg" }',
                )
            )
        if self.on_update:
            raise ConfigError(
                Fault(
                    f"on_update does not work with {rule}, which chooses among the solutions of a solve",
                    path="on_update",
                    hint="remove on_update, or use another step rule",
                )
            )

    def _require_landings(self) -> None:
        """Raise ``ConfigError`` where something would move the step that a transform has placed."""
        places = {"on_gradient": self.on_gradient, "on_update": self.on_update[:-1]}
        for place, transforms in places.items():
            for k, transform in enumerate(transforms):
                if transform.lands:
                    what = f"{type(transform).__name__} chooses where the step ends, so nothing may follow it"
                    hint = "make it the last part of on_update"
                    raise ConfigError(Fault(what, path=f"{place}.{k}", hint=hint))
        if self.on_update and self.on_update[-1].lands and not self.step.prescribed:
            part, rule = type(self.on_update[-1]).__name__, type(self.step).__name__
            what = f"{part} must know the rate of a step in advance, and {rule} searches for it"
            hint = 'use step = { use = "rate", lr = 1e-2 }'
            raise ConfigError(Fault(what, path=f"on_update.{len(self.on_update) - 1}", hint=hint))

    def needs(self, step: int) -> Needs:
        """What this step costs, over all parts but the fallback."""
        return self.preconditioner.needs(step) | self.damping.needs(step) | self.step.needs(step)

    def settled(self, blocks: Sequence[Block]) -> Method:
        """The method as it treats just these blocks."""
        return replace(self, preconditioner=self.preconditioner.settled(blocks))

    def value(self, knob: str) -> Any:
        """What stands at the knob's first place; ``None`` if the method has no such knob."""
        places = self.knobs.get(knob)
        return found_at(self, places[0]) if places else None

    def turned(self, knob: str, value: Any) -> Method:
        """The method with ``value`` at every place of the knob; what no place leads through is shared.

        States stay valid as long as only numbers change.  Raises ``ConfigError`` for a knob that the
        method does not have, and for a value that a part refuses.  Costs microseconds.
        """
        places = self.knobs.get(knob)
        if not places:
            known = ", ".join(self.knobs) or "none, because its parts were written out in the configuration"
            raise ConfigError(Fault(f"the method has no knob {knob}", path=knob, hint=f"Knobs: {known}."))
        method = self
        for place in places:
            method = put_at(method, place, value)
        return method

    def init(self, like: BlockVector, ctx: Context) -> MethodState:
        """Fresh states of every part, for blocks of the layout of ``like``, a vector of a step.

        Where other processes hold all blocks there is nothing to precondition, and no state of it.
        """
        stored = ctx.zeros(like, "moments")
        return MethodState(
            preconditioner=self.preconditioner.init(stored, ctx) if like.layout.names else None,
            damping=self.damping.init(),
            step=self.step.init(like),
            on_gradient=[t.init(stored) for t in self.on_gradient],
            on_update=[t.init(stored) for t in self.on_update],
            master=ctx.zeros(like, "work") if ctx.backend.master else None,
        )


def found_at(part: Any, place: Place) -> Any:
    """What stands at ``place`` below ``part``."""
    for key in place:
        if isinstance(part, tuple):
            part = part[int(key)]
        else:
            part = part[key] if isinstance(part, Mapping) else getattr(part, str(key))
    return part


def put_at(part: Any, place: Place, value: Any) -> Any:
    """``part`` with ``value`` at ``place``: the parts on the way are made anew, and check it again."""
    if not place:
        return value
    key, rest = place[0], place[1:]
    if isinstance(part, tuple):
        index = int(key)
        return (*part[:index], put_at(part[index], rest, value), *part[index + 1 :])
    if isinstance(part, Mapping):
        return {**part, key: put_at(part[key], rest, value)}
    name = str(key)
    return replace(part, **{name: put_at(getattr(part, name), rest, value)})


@dataclass
class MethodState:
    """The states of a method's parts, by place.

    ``master`` holds the parameters in the working dtype, where the precision asks for it.  ``watch``
    remembers which tensors are known to be finite.
    """

    preconditioner: Any
    damping: Any
    step: Any
    on_gradient: list[Any]
    on_update: list[Any]
    master: BlockVector | None = None
    watch: Watch = field(default_factory=Watch, metadata={"transient": True})
