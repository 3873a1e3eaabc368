"""Preconditioners: what is done with the gradient; inverses: how a curvature estimate is inverted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from curvlab.linalg.operator import BlockOperator, LinearOperator
from curvlab.linalg.secants import Pairs
from curvlab.linalg.vectors import BlockVector
from curvlab.protocols.blocks import Block
from curvlab.protocols.context import Context
from curvlab.protocols.evidence import Evaluation, Solve, StepOutcome
from curvlab.protocols.needs import GRADIENT_ONLY, Needs
from curvlab.protocols.report import Event

S = TypeVar("S", bound=Any)


@dataclass(frozen=True)
class HeldCurvature:
    """An estimate of C, the curvature of the mean loss, without damping: an operator for each block.

    ``observed`` says how often each block was observed; it lacks blocks that are not counted.
    """

    blocks: Mapping[str, BlockOperator]
    observed: Mapping[str, int]


class Inverse(ABC):
    """A stateless rule: from C to an operator close to ``(C + λI)⁻¹``.

    The first paragraph of an implementation says how it reads λ.  ``separable``: whether the inverse of a
    block depends on no other block.  ``ridged``: whether it adds the curvature of penalties too
    (``Context.damping_of``).
    """

    separable: ClassVar[bool] = False
    ridged: ClassVar[bool] = False

    @abstractmethod
    def init(self, C: LinearOperator[BlockVector]) -> LinearOperator[BlockVector]:
        """What stands for the inverse before the first refresh.

        It has the same records that ``__call__`` returns, with every tensor, so that it can be counted and
        checkpointed.
        """

    @abstractmethod
    def __call__(self, C: LinearOperator[BlockVector], ctx: Context) -> LinearOperator[BlockVector]:
        """The damped inverse, λ being ``ctx.damping``; raises ``NotPositiveDefinite``."""


class Preconditioner(ABC, Generic[S]):
    """Maps a gradient to an update, and learns on the way.

    Four speeds: ``observe`` is cheap and often, ``refresh`` expensive and infrequent, ``apply`` pure,
    ``learn`` after the fact.  The engine calls each of them once a step; a part that works on a cadence
    returns at once on the other steps, and ``needs`` asks for nothing then.
    """

    @property
    def varying(self) -> bool:
        """Whether ``apply`` is not one linear map of its vector during a step, as a nested solve is not."""
        return False

    @property
    def separable(self) -> bool:
        """Whether what it learns and does of a block depends on no other block.

        Several processes may then share the blocks out among them.  Say no unless it holds for every
        setting; who holds other parts asks them.
        """
        return False

    def work(self, block: Block) -> float:
        """About how many flops an average step spends on a block: what processes share blocks out by.

        From names, shapes and settings alone, so that every process finds the same.  By default a flop per
        entry.
        """
        return float(block.shape.numel())

    def needs(self, step: int) -> Needs:
        """What this step's ``observe`` and ``apply`` want to be evaluated."""
        return GRADIENT_ONLY

    def joins(self, layer: str) -> bool:
        """Whether weight and bias of the layer of this name should be one block."""
        return False

    def reads(self, layer: str) -> bool:
        """Whether it reads statistics of the layer of this name; if not, a vector is no matrix ``[d, 1]``."""
        return bool(self.needs(0).layers)

    def refuses(self, block: Block) -> str | None:
        """Why this block cannot be treated, or ``None``; untreated blocks go to the fallback."""
        return None

    def settled(self, blocks: Sequence[Block]) -> Preconditioner[S]:
        """This part as it treats just these blocks, none of which it refuses; called before ``init``.

        Itself, unless what it does depends on more than their names and shapes, or it holds parts that
        may be of that kind: then a copy that knows.
        """
        return self

    @abstractmethod
    def init(self, like: BlockVector, ctx: Context) -> S:
        """A fresh state for blocks of ``like``'s layout; every tensor it will ever hold, eagerly."""

    def observe(self, state: S, seen: Evaluation, ctx: Context) -> None:
        """Take in one evaluation."""
        return None

    def ready(self, state: S) -> bool:
        """Whether ``apply`` can be called after this step's ``observe``.

        If not, the step ends there for the blocks of this part: no parameter moves or decays, no transform
        runs, nothing learns.  A part that holds other preconditioners is ready when all of them are.
        """
        return True

    def refresh(self, state: S, ctx: Context) -> None:
        """Do the expensive work that later ``apply`` calls reuse."""
        return None

    @abstractmethod
    def apply(self, state: S, v: BlockVector, ctx: Context) -> Solve:
        """The update for gradient ``v``; changes neither.  The solution is a fresh vector, or borrowed."""

    def curvature(self, state: S) -> HeldCurvature | None:
        """The estimate of C that the state holds, sharing its memory; ``None`` if it holds none."""
        return None

    def fallible(self, state: S, step: int) -> bool:
        """Whether this step's ``observe``, ``refresh`` or ``apply`` may fail on good numbers.

        On such a step the engine copies the state first and checks it afterwards, so that a failure leaves
        it as it was.  Say no where a finite state, gradient and statistics, whose squares do not overflow,
        always give finite ones: averages and products do; factorizations, inverses and solves do not.
        """
        return True

    def pairs(self) -> Pairs | None:
        """Which secant pairs of a solve this part wants to learn from, where it preconditions one."""
        return None

    def remark(self, parameters: int, examples: int | None) -> str | None:
        """What a dry run says of a step on so many parameters and examples (``None``: not known)."""
        return None

    @property
    def path(self) -> bool:
        """Whether its ``Solve`` carries the solutions for other dampings, for a step rule to follow."""
        return False

    @property
    def iterates(self) -> bool:
        """Whether its ``Solve`` carries earlier iterates, for a step rule to choose from."""
        return False

    @property
    def ridged(self) -> bool:
        """Whether it adds the curvature ρI of penalties to its damping (``Context.damping_of``)."""
        return False

    def learn(self, state: S, what: StepOutcome, ctx: Context) -> tuple[Event, ...]:
        """Take in what came of the step; returns what a user should hear of it."""
        return ()
