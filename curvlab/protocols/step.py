"""How far: damping, step rules, and transforms of gradients and updates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

from jaxtyping import Float
from torch import Tensor

from curvlab.linalg.vectors import BlockVector
from curvlab.protocols.evidence import Step, StepOutcome
from curvlab.protocols.line import Line
from curvlab.protocols.needs import GRADIENT_ONLY, Needs
from curvlab.protocols.storage import Storage

S = TypeVar("S", bound=Any)


class Damping(ABC, Generic[S]):
    """λ of ``C + λI``: a policy.  λ is never reinterpreted silently by those who read it.

    ``separable``: whether λ depends on nothing that a step finds out, so that blocks can be in other
    processes.
    """

    separable: ClassVar[bool] = False

    def needs(self, step: int) -> Needs:
        """What learning from this step costs."""
        return GRADIENT_ONLY

    @abstractmethod
    def init(self) -> S:
        """A fresh state."""

    @abstractmethod
    def at(self, state: S, step: int) -> float:
        """λ for this step."""

    def learn(self, state: S, what: StepOutcome, step: int) -> None:
        """Take in what came of the step."""
        return None


class StepRule(ABC, Generic[S]):
    """Chooses how far to go along an update, and whether to go at all.

    ``chooses``: whether it chooses among the iterates of the solve; then the preconditioner must carry
    them, and nothing may transform the update in between.  ``follows``: the same of the solutions for other
    dampings (``Preconditioner.path``).
    """

    chooses: ClassVar[bool] = False
    follows: ClassVar[bool] = False
    #: whether its step is the same for some of the blocks alone, so that they can be in other processes
    separable: ClassVar[bool] = False
    #: whether every step is ``rate(step)`` times the update, whatever the loss does
    prescribed: ClassVar[bool] = False

    @property
    def carries_gradient(self) -> bool:
        """Whether its steps may carry loss and gradient of where they end, for the next step to begin with.

        The engine then holds one vector, and evaluates again only what is another function or another θ.
        """
        return False

    def needs(self, step: int) -> Needs:
        """What searching costs: trial losses and products."""
        return GRADIENT_ONLY

    @abstractmethod
    def rate(self, step: int) -> float:
        """The rate that a search starts from; torch's ``lr`` shows and multiplies it."""

    @abstractmethod
    def init(self, like: BlockVector) -> S:
        """A fresh state."""

    @abstractmethod
    def search(self, state: S, line: Line, step: int) -> Step:
        """The step to take along ``line``."""


@dataclass(frozen=True)
class At:
    """Where a transform stands: the gradient, the step and its rate, and access to θ.

    ``add_theta(v, c)`` adds c·θ to v in place; ``read()`` is θ, packed.
    ``given`` is what was preconditioned, the gradient after ``on_gradient``; before that there is none.
    ``storage`` writes states, whose dtype may be narrower than that of vectors.  ``total(t)`` is the sum over
    the processes that share the blocks out among them, every one of which asks for the same sums; ``None``
    where this process holds all blocks.  ``ratio(parameter)`` is the rate of a parameter over ``lr``: not 1
    where parameter groups or callbacks give it a rate of its own.
    """

    gradient: BlockVector
    step: int
    lr: float
    add_theta: Callable[[BlockVector, float], None]
    read: Callable[[], BlockVector]
    given: BlockVector | None = None
    storage: Storage = field(default_factory=Storage)
    total: Callable[[Tensor], Tensor] | None = None
    ratio: Callable[[str], float] = field(default=lambda parameter: 1.0)

    def sum(self, t: Tensor) -> Tensor:
        """The sum of t over the processes that hold blocks of this method; may be t itself, changed."""
        return t if self.total is None else self.total(t)

    def norm(self, v: BlockVector) -> Float[Tensor, ""]:
        """The Euclidean norm of v over the blocks of all processes, a tensor."""
        norm = v.norm()
        return norm if self.total is None else self.total(norm.double().square()).sqrt().to(norm.dtype)


class Transform(ABC, Generic[S]):
    """A map of vectors applied before or after preconditioning; its *place* is its meaning.

    Weight decay first on the gradient is L2 regularization, before momentum it is SINGD's, last on
    the update it is AdamW's.

    ``fallible``: whether it may give numbers that are not finite for finite ones whose squares do not
    overflow.  The engine then copies every state before such a step.

    ``separable``: whether the result for a block depends on other blocks through ``At.sum`` and ``At.norm``
    alone, so that they can be in other processes.

    ``lands``: whether it chooses where the step ends, by an update that is right for the rate ``At.lr``
    alone. It must then be the last of ``on_update``, and the step rule's rate must be ``prescribed``.
    """

    fallible: ClassVar[bool] = True
    separable: ClassVar[bool] = False
    lands: ClassVar[bool] = False

    @abstractmethod
    def init(self, like: BlockVector) -> S:
        """A fresh state, every tensor eagerly; ``like`` is in the dtype of what is stored."""

    @abstractmethod
    def __call__(self, state: S, v: BlockVector, at: At) -> BlockVector:
        """The transformed vector.

        ``v`` may be changed if it is not borrowed (``v.owned()``); a buffer of the state is returned
        borrowed.
        """
