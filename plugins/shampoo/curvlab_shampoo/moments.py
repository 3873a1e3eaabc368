"""What SOAP, KL-SOAP and KL-Shampoo share: moments along every axis, and bases that follow them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeVar

from torch import Tensor

from curvlab.errors import naming_block
from curvlab.linalg.averages import newest_weight
from curvlab.linalg.vectors import BlockVector
from curvlab.protocols.blocks import Block
from curvlab.protocols.bounds import Fraction, check_bounds
from curvlab.protocols.cadence import Interval, is_due
from curvlab.protocols.context import Context
from curvlab.protocols.needs import Needs
from curvlab.protocols.preconditioner import Preconditioner
from curvlab.protocols.structure import Family, as_gram
from curvlab_shampoo.bases import Bases, eigenvectors, identity, power_step
from curvlab_shampoo.grams import families, fresh, work
from curvlab_shampoo.whitening import eigenvalues


@dataclass(kw_only=True)
class Moments:
    """Moments along each axis and their eigenbases, by block.

    ``values`` are ``diag(Q_nᵀ L_n Q_n)`` where a part averages them; otherwise there are none.
    """

    grams: dict[str, list[Any]]
    bases: dict[str, Bases]
    values: dict[str, list[Tensor]]
    observed: int = 0  #: gradients that the moments have seen


S = TypeVar("S", bound=Moments)


@dataclass(frozen=True)
class InEigenbases(Preconditioner[S]):
    """Works on a gradient in eigenbases of its moments; a base class.

    A gradient is turned by bases of the gradients before it, so the first gradient only starts the moments.
    """

    separable = True
    #: what errors call the part
    part: ClassVar[str]

    K: Family
    decay: Fraction = 0.95  #: of the moments along the axes
    vectors: bool = False
    one_sided: bool = False
    observe_every: Interval = 1
    refresh_every: Interval = 10
    #: whether an axis of any block turns, blocks of other processes included; ``settled`` finds out
    turns: bool | None = field(
        default=None, compare=False, repr=False, kw_only=True, metadata={"setting": False}
    )

    def __post_init__(self) -> None:
        as_gram(self.K, self.part)
        check_bounds(self)

    def needs(self, step: int) -> Needs:
        return Needs(factored=True)

    def joins(self, layer: str) -> bool:
        return True

    def work(self, block: Block) -> float:
        return work(self._families(block.shape), block)

    def settled(self, blocks: Sequence[Block]) -> InEigenbases[S]:
        return replace(self, turns=any(self._turns(b) for b in blocks))

    def _turns(self, block: Block) -> bool:
        return any(F is not None and as_gram(F, self.part).rotates for F in self._families(block.shape))

    def _families(self, shape: tuple[int, ...]) -> list[Family | None]:
        """Those of the moments along each axis; ``None`` for an axis without any."""
        return families(self.K, shape, vectors=self.vectors, one_sided=self.one_sided)

    def _moments(self, like: BlockVector, ctx: Context, *, valued: bool) -> dict[str, Any]:
        """The fields of ``Moments`` for a fresh state."""
        empty = ctx.like(like, "factors")
        shapes = like.layout.shapes
        grams = {name: fresh(self._families(shape), shape, empty) for name, shape in shapes.items()}
        return {
            "grams": grams,
            "bases": {name: [identity(L) for L in found] for name, found in grams.items()},
            "values": {
                name: [empty.new_zeros(L.d) for L in found if valued] for name, found in grams.items()
            },
        }

    def _waits(self, state: S) -> bool:
        """Whether the gradient at hand is the first, and there are bases to wait for."""
        turning = any(Q is not None for bases in state.bases.values() for Q in bases)
        return state.observed == 0 and (turning if self.turns is None else self.turns)

    def _turn_bases(self, state: S, ctx: Context, *, begun: bool) -> Iterator[tuple[str, int, Tensor]]:
        """The first bases from eigenvectors, all later ones by a power iteration; yields new orders.

        An order is that of the columns of one axis of one block, which was just sorted.
        """
        if begun and not is_due(ctx.step, self.refresh_every):
            return
        for name, bases in state.bases.items():
            for n, (L, Q) in enumerate(zip(state.grams[name], bases, strict=True)):
                if Q is None:
                    continue
                order: Tensor | None = None
                if begun:
                    Q, order = power_step(L, Q, ctx.backend)
                else:
                    with naming_block(name):
                        Q = eigenvectors(L, ctx.backend)
                bases[n] = Q
                if state.values[name]:
                    ctx.storage.write_(state.values[name][n], eigenvalues(L, Q))
                if order is not None:
                    yield name, n, order

    def _damping(self, state: S, ctx: Context) -> float:
        """λ of whitening, and 1/k after k gradients: most directions are unknown after few of them."""
        return ctx.damping + 1 / max(state.observed, 1)

    def _weight(self, state: S) -> float:
        """The weight of a gradient that is about to be averaged, which this counts."""
        state.observed += 1
        return newest_weight(self.decay, state.observed)
