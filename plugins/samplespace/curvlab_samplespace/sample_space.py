"""Exact damped Gauss–Newton on a batch, in sample space or in parameter space."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from torch import Tensor

from curvlab.errors import ConfigError, Fault
from curvlab.linalg.vectors import BlockVector
from curvlab.protocols.blocks import Block
from curvlab.protocols.bounds import Bounds, Count, Fraction, check_bounds
from curvlab.protocols.context import Context
from curvlab.protocols.evidence import Evaluation, Solve, StepOutcome
from curvlab.protocols.needs import Labels, Needs
from curvlab.protocols.preconditioner import Preconditioner
from curvlab.protocols.report import Event
from curvlab_samplespace.jacobian import Jacobian
from curvlab_samplespace.solvers import (
    Solver,
    Spectral,
    cholesky_in_samples,
    nystrom,
    spectral_in_parameters,
    spectral_in_samples,
)
from curvlab_samplespace.trust_path import SpectralPath

PART = "sample-space"

Space = Literal["auto", "sample", "parameter"]
SolverName = Literal["auto", "spectrum", "cholesky", "nystrom"]

#: residuals up to which "auto" takes a Cholesky factor: the kernel then holds 1.2 GB
MOST = 12_000


@dataclass
class SampleSpaceState:
    """``last``: the last update, with momentum; the rest belongs to one step."""

    last: BlockVector | None
    seen: Evaluation | None = field(default=None, metadata={"transient": "step"})
    jacobian: Jacobian | None = field(default=None, metadata={"transient": "step"})
    residual: Tensor | None = field(default=None, metadata={"transient": "step"})
    solver: Solver | None = field(default=None, metadata={"transient": "step"})


@dataclass(frozen=True)
class SampleSpace(Preconditioner[SampleSpaceState]):
    """``x = (JᵀJ + λI)⁻¹ g``, exactly, where J are the rows of all residuals of the batch and ``g = Jᵀ r``.

    In sample space ``x = Jᵀ (JJᵀ + λI)⁻¹ r`` by the kernel JJᵀ ``[m, m]``, which is made of layer statistics
    without J; in parameter space by singular values of J ``[m, P]``.  ``space = "auto"`` takes the smaller of
    m and P. With exact labels it is the Gauss–Newton step of any loss (ENGD, arXiv 2302.13163 and
    2505.12149), with those of the data the natural gradient of the empirical Fisher matrix.

    ``solver``: "spectrum" (eigen- or singular values; all dampings at once), "cholesky" (m³/3 flops), or
    "nystrom" (randomized, ``rank``; for thousands of residuals).  ``relative``: λ is in units of the mean
    squared norm of J's rows. ``scaling`` p > 0 measures steps in a metric: the norms of J's columns to the
    power p, by layer the product of a number for each input and each output; 1 is about Marquardt's.
    ``momentum`` μ is SPRING's (arXiv 2401.10190): ``x ← μ x' + Jᵀ(JJᵀ + λI)⁻¹(r − μ J x')`` with the last
    update x'.  ``acceleration`` > 0 adds the geodesic correction ``½ (…)⁻¹ r''[x, x]`` where twice its length
    is at most this fraction of the length of x (D-NGD, arXiv 2505.21404).

    Every block is treated: what no layer reader explains gets gradients of single examples.  State: one
    vector with momentum, else none; within a step the rows of all layers and ``m²`` or ``m P`` numbers.
    """

    labels: Labels = Labels.EXACT
    space: Space = "auto"
    solver: SolverName = "spectrum"
    rank: Count = 500
    relative: bool = False
    scaling: Annotated[float, Bounds(least=0, most=1)] = 0.0
    momentum: Fraction = 0.0
    acceleration: Annotated[float, Bounds(least=0)] = 0.0

    def __post_init__(self) -> None:
        check_bounds(self)
        faults = []
        if self.labels not in (Labels.EXACT, Labels.DATA):
            faults.append(
                Fault(
                    f'{PART}: labels = "{self.labels}" are drawn or none', path="labels", hint='use "exact"'
                )
            )
        if self.acceleration and self.labels is not Labels.EXACT:
            faults.append(Fault("acceleration needs the residuals of exact labels", path="acceleration"))
        if self.solver != "spectrum" and self.space == "parameter":
            faults.append(
                Fault(f'solver = "{self.solver}" works in sample space', path="space", hint='use "spectrum"')
            )
        if faults:
            raise ConfigError(*faults)

    @property
    def varying(self) -> bool:
        """With momentum or a Nyström approximation ``apply`` is affine; the correction is quadratic."""
        return bool(self.momentum or self.acceleration) or self.solver in ("auto", "nystrom")

    @property
    def path(self) -> bool:
        return self.solver == "spectrum" and not self.momentum and not self.acceleration

    def needs(self, step: int) -> Needs:
        return Needs(layers=frozenset({self.labels}), every_block=True, bend=self.acceleration > 0)

    def joins(self, layer: str) -> bool:
        return True

    def refuses(self, block: Block) -> str | None:
        if block.complex and not block.is_layer:
            return "complex parameter"
        if block.transposed:
            return "its matrix is used transposed elsewhere, and layer statistics are those of one use alone"
        return None

    def init(self, like: BlockVector, ctx: Context) -> SampleSpaceState:
        dtypes = ctx.backend.dtypes
        passes = dtypes.compute or dtypes.parameters
        if torch.finfo(passes).bits < 32:
            raise ConfigError(
                Fault(
                    f"{PART} does not work with passes in {str(passes).removeprefix('torch.')}: exact systems"
                    " need the digits that 16 bits lack",
                    path="precision",
                    hint='use precision = "float32" or "float64"',
                )
            )
        return SampleSpaceState(ctx.zeros(like, "moments") if self.momentum else None)

    def observe(self, state: SampleSpaceState, seen: Evaluation, ctx: Context) -> None:
        state.seen = seen
        state.jacobian = Jacobian.of(seen, self.labels, PART).scaled(self.scaling)
        state.residual = state.jacobian.residual(seen.residuals[self.labels])
        state.solver = None

    def refresh(self, state: SampleSpaceState, ctx: Context) -> None:
        if state.solver is None:  # a repeated attempt has more damping, and the same Jacobian
            assert state.jacobian is not None and state.residual is not None, "observe comes first"  # noqa: PT018
            state.solver = self._factorized(state.jacobian, state.residual, ctx)

    def chosen(self, rows: int, parameters: int) -> tuple[str, str]:
        """Space and solver for so many rows and parameters."""
        if self.solver == "spectrum":
            parameter = self.space == "parameter" or (self.space == "auto" and parameters <= rows)
            return ("parameter" if parameter else "sample"), "spectrum"
        small = self.solver == "cholesky" or (self.solver == "auto" and rows <= MOST)
        return "sample", "cholesky" if small else "nystrom"

    def remark(self, parameters: int, examples: int | None) -> str | None:
        if examples is None:
            return None
        space, solver = self.chosen(examples, parameters)
        size = parameters if space == "parameter" else examples
        held = 8 * (parameters * examples if space == "parameter" else examples * examples)
        return (
            f"{examples:,} examples and {parameters:,} parameters: solved in {space} space by {solver}, of"
            f" dimension {size:,} for one residual an example; about {held / 2**20:,.0f} MiB in a step"
        )

    def _factorized(self, J: Jacobian, r: Tensor, ctx: Context) -> Solver:
        space, solver = self.chosen(J.rows, J.layout.size)
        if solver == "cholesky":
            return cholesky_in_samples(J)
        if solver == "nystrom":
            return nystrom(J, self.rank, ctx.generator)
        return spectral_in_parameters(J, r) if space == "parameter" else spectral_in_samples(J, r)

    def apply(self, state: SampleSpaceState, v: BlockVector, ctx: Context) -> Solve:
        solver, J, r, seen = state.solver, state.jacobian, state.residual, state.seen
        assert solver is not None and J is not None and r is not None and seen is not None  # noqa: PT018
        damping = ctx.damping * J.mean_square() if self.relative else ctx.damping
        last = None if state.last is None else state.last.to(v.dtype)
        zeta = r if last is None else r.add(J.times(J.measured(last)), alpha=-self.momentum)
        x = solver.combined(zeta, damping)
        if last is not None:
            x.add_(last, self.momentum)
        other = seen.beside
        if v.flat.data_ptr() != seen.gradient.flat.data_ptr():
            changed = v - seen.gradient
            other = changed if other is None else changed.add_(other)
        if other is not None:
            x.add_(self._beside(solver, J, other, damping))
        if self.acceleration:
            self._accelerate_(x, solver, J, seen, damping)
        path = None
        if self.path and other is None and isinstance(solver, Spectral):
            path = SpectralPath(solver, solver.coefficients(r))
        return Solve(x, path=path)

    def _beside(self, solver: Solver, J: Jacobian, d: BlockVector, damping: float) -> BlockVector:
        """``(JᵀJ + λM)⁻¹ d`` for a vector that is no combination of rows, as weight decay adds.

        It is ``(M⁻¹ d − M⁻¹ Jᵀ (J M⁻¹ Jᵀ + λI)⁻¹ J M⁻¹ d) / λ``, M being I without a metric.
        """
        if float(d.norm()) == 0.0:
            return d
        if damping == 0.0:
            raise ConfigError(
                Fault(
                    f"{PART}: on_gradient or a callback's penalty adds to the gradient what no row of"
                    " residuals explains, which needs a damping above 0",
                    path="damping",
                    hint="set damping; or move the transform to on_update, or remove the callback",
                )
            )
        half = J.unscaled(d.clone())
        inside = solver.combined(J.times(half), damping)
        return (J.unscaled(half) - inside).scale_(1.0 / solver.shift(damping))

    def _accelerate_(
        self, x: BlockVector, solver: Solver, J: Jacobian, seen: Evaluation, damping: float
    ) -> None:
        assert seen.bend is not None
        second = solver.combined(J.residual(seen.bend(x)), damping).scale_(0.5)
        if 2.0 * float(second.norm()) <= self.acceleration * float(x.norm()):
            x.add_(second)

    def learn(self, state: SampleSpaceState, what: StepOutcome, ctx: Context) -> tuple[Event, ...]:
        if state.last is not None:
            if what.step.accepted:
                ctx.storage.write_(state.last.flat, what.solve.x.flat)
            else:
                state.last.zero_()
        return ()
