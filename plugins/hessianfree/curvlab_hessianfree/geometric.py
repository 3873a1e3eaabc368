"""The geometric rule: samples that grow by factors, whatever happens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from curvlab.protocols.bounds import Bounds
from curvlab.protocols.cadence import is_due
from curvlab_hessianfree.growing import Growing, GrowingState
from curvlab_hessianfree.portion import Portion, check_portion, count, whole


@dataclass(frozen=True, kw_only=True)
class Geometric(Growing):
    """``|S_{k+1}| = min(cap, ⌈factor · |S_k|⌉)``, for the gradient and the curvature sample each by its own.

    Applied every ``interval`` steps.  ``curvature`` is the first size of the curvature sample, of the
    examples that are not held out; a factor of 1 keeps a size.

    Source: Sainath et al. 2013, arXiv 1309.1508 (growth is geometric, for both samples; the constants
    here are ours).  For strongly convex problems geometric growth keeps the linear rate of the full
    gradient: Friedlander and Schmidt 2012, arXiv 1104.2373.
    """

    gradient: Portion | None = 0.25
    gradient_growth: Annotated[float, Bounds(least=1)] = 1.2
    curvature: Portion = 0.01
    curvature_growth: Annotated[float, Bounds(least=1)] = 1.2

    def __post_init__(self) -> None:
        check_portion("curvature", self.curvature)
        super().__post_init__()

    def curvature_for(self, gradient: int, pool: int) -> int:
        return count(self.curvature, pool)

    def grow(self, state: GrowingState) -> None:
        if is_due(state.draws, self.interval):
            larger = whole(self.gradient_growth * state.gradient)
            self.resize(state, larger, whole(self.curvature_growth * state.curvature))
