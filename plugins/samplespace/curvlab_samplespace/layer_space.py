"""Exact natural gradient of each block on a batch, in sample space."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from curvlab.errors import ConfigError, Fault, naming_block
from curvlab.linalg import factorizations
from curvlab.linalg.vectors import BlockVector
from curvlab.protocols.blocks import Block
from curvlab.protocols.bounds import check_bounds
from curvlab.protocols.context import Context
from curvlab.protocols.evidence import Evaluation, Solve
from curvlab.protocols.needs import Labels, Needs
from curvlab.protocols.preconditioner import Preconditioner
from curvlab_samplespace.jacobian import Jacobian

PART = "layer-space"


@dataclass
class LayerSpaceState:
    """The Jacobian of one step."""

    jacobian: Jacobian | None = field(default=None, metadata={"transient": "step"})


@dataclass(frozen=True)
class LayerSpace(Preconditioner[LayerSpaceState]):
    """``x_l = (J_lᵀ J_l + λI)⁻¹ g_l`` for each layer l by its own kernel ``K_l = J_l J_lᵀ`` of the batch.

    By the identity of Sherman, Morrison and Woodbury ``x_l = J_lᵀ (K_l + λI)⁻¹ r``: an ``[m, m]`` Cholesky
    factor a layer in place of a matrix of the layer's parameters (SMW-NGD, SENG; TENGraD, arXiv 2106.03947,
    for how K_l is made of inputs and gradients).  ``relative``: λ is in units of the mean of K_l's diagonal,
    so that it does not depend on the scale of the loss.  No state; a step costs ``m³/3`` flops a layer and
    the kernels.
    """

    labels: Labels = Labels.DATA
    relative: bool = True

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.labels not in (Labels.EXACT, Labels.DATA):
            raise ConfigError(
                Fault(f'{PART}: labels = "{self.labels}" are drawn or none', path="labels", hint='use "data"')
            )

    def needs(self, step: int) -> Needs:
        return Needs(layers=frozenset({self.labels}), examples=True)

    @property
    def ridged(self) -> bool:
        return True

    def joins(self, layer: str) -> bool:
        return True

    def refuses(self, block: Block) -> str | None:
        return block.refusal(tied=False)

    def init(self, like: BlockVector, ctx: Context) -> LayerSpaceState:
        return LayerSpaceState()

    def observe(self, state: LayerSpaceState, seen: Evaluation, ctx: Context) -> None:
        state.jacobian = Jacobian.of(seen, self.labels, PART)

    def apply(self, state: LayerSpaceState, v: BlockVector, ctx: Context) -> Solve:
        J = state.jacobian
        assert J is not None, "apply comes after observe"
        x = v.zeros_like()
        for name in v:
            mine = J.block(name)
            if not mine.rows:
                continue
            with naming_block(name):
                x[name].copy_(solved(mine, v[name], ctx.damping, self.relative, ctx.ridge.get(name, 0.0)))
        return Solve(x)


def solved(J: Jacobian, g: Tensor, damping: float, relative: bool, ridge: float = 0.0) -> Tensor:
    """``(JᵀJ + λI)⁻¹ g = (g − Jᵀ (K + λI)⁻¹ J g) / λ`` for the Jacobian of one block; ``ridge`` adds to λ."""
    (name,) = J.layout.names
    v = J.layout.zeros(like=J.like)
    v[name].copy_(g)
    c, shift = kernel_solve(J, J.times(v), damping, relative, PART, ridge)
    return (g - J.transposed(c.to(J.like.dtype))[name]) / shift


def kernel_solve(
    J: Jacobian, r: Tensor, damping: float, relative: bool, part: str, ridge: float = 0.0
) -> tuple[Tensor, float]:
    """``(K + λI)⁻¹ r`` in float64, and λ, to which ``ridge`` adds; raises ``ConfigError`` without damping."""
    K = J.gram()
    shift = (damping * float(K.diagonal().mean()) if relative else damping) + ridge
    if damping <= 0.0:
        raise ConfigError(Fault(f"{part} needs a damping above 0", path="damping", hint="set damping = 0.1"))
    shift = shift or 1.0  # of a layer without gradients K is zero
    return factorizations.solve_shifted(K, shift, r), shift
