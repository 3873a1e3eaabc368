"""One layer whose rows are ill-conditioned, and parts that look at it in a precision: no model around them.

Rows are drawn in float64.  A precision sees them rounded to the dtype of its parameters, as a layer would.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from curvlab.errors import NotPositiveDefinite
from curvlab.linalg.vectors import BlockLayout, BlockVector
from curvlab.protocols.backend import Backend
from curvlab.protocols.context import Context
from curvlab.protocols.evidence import Evaluation, LayerStats
from curvlab.protocols.needs import Labels
from curvlab.protocols.preconditioner import Preconditioner
from curvlab.protocols.storage import Storage

BLOCK = "fc"
#: inputs, outputs and examples of a batch
IN, OUT, N = 64, 32, 256
REFERENCE = torch.float64


@dataclass
class Drawn:
    """Batches of rows a ``[N, IN]`` and g ``[N, OUT]`` whose covariances have this condition number.

    Eigenvalues are from 1 down to ``1 / condition`` at equal ratios, eigenvectors random.
    """

    condition: float
    seed: int = 0

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)
        self.roots = self._root(IN), self._root(OUT)

    def _root(self, d: int) -> Tensor:
        Q, _ = torch.linalg.qr(torch.randn(d, d, generator=self.generator, dtype=REFERENCE))
        exponents = torch.linspace(0, -0.5, d, dtype=REFERENCE)
        root: Tensor = (Q * self.condition**exponents) @ Q.mT
        return root

    def covariances(self) -> tuple[Tensor, Tensor]:
        """Those that batches are drawn from."""
        return self.roots[0] @ self.roots[0], self.roots[1] @ self.roots[1]

    def batches(self, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(count):
            a, g = (
                torch.randn(N, len(root), generator=self.generator, dtype=REFERENCE) @ root
                for root in self.roots
            )
            yield a, g


@dataclass
class Layer:
    """A preconditioner at work on one layer ``[OUT, IN]``, in a precision."""

    part: Preconditioner[Any]
    backend: Backend
    labels: Labels = Labels.DATA
    damping: float = 0.0
    steps: int = 0
    storage: Storage = field(init=False)

    def __post_init__(self) -> None:
        self.storage = Storage.of(self.backend, torch.Generator())
        layout = BlockLayout({BLOCK: torch.Size((OUT, IN))})
        self.zero = layout.zeros(like=torch.zeros((), dtype=self.backend.dtypes.work))
        self.state = self.part.init(self.zero, self.context())

    def context(self) -> Context:
        """That of the present step."""
        return Context(self.steps, self.damping, self.backend, torch.Generator(), self.storage)

    def see(self, a: Tensor, g: Tensor) -> None:
        """One step's observation of n examples, and the refresh that follows it."""
        assert self.storage.noise is not None
        self.storage.noise.manual_seed(self.steps)
        captured = self.backend.dtypes.rows or self.backend.dtypes.parameters
        stats = LayerStats(a.to(captured).unsqueeze(1), g.to(captured).view(1, len(a), 1, -1))
        seen = Evaluation(len(a), torch.zeros(()), self.zero, {self.labels: {BLOCK: (stats,)}})
        self.part.observe(self.state, seen, self.context())
        self.part.refresh(self.state, self.context())
        self.steps += 1

    def direction(self, gradient: Tensor) -> Tensor:
        """What a gradient ``[OUT, IN]`` becomes, in float64; the gradient is rounded as parameters are."""
        rounded = gradient.to(self.backend.dtypes.parameters).to(self.backend.dtypes.work)
        vector = BlockVector(self.zero.layout, rounded.reshape(-1).clone())
        return self.part.apply(self.state, vector, self.context()).x[BLOCK].to(REFERENCE)


@dataclass(frozen=True)
class Outcome:
    """Of many steps: the share that ascends, that without a direction, and the mean cosine to the truth."""

    ascending: float
    failed: float
    cosine: float


def steps(layer: Layer, truth: Layer, drawn: Drawn, count: int) -> Outcome:
    """After each batch both layers' directions for a gradient of white noise.

    A direction ascends if its inner product with the gradient is not positive.
    """
    ascending = failed = 0
    cosines = []
    for a, g in drawn.batches(count):
        V = torch.randn(OUT, IN, generator=drawn.generator, dtype=REFERENCE)
        truth.see(a, g)
        try:
            layer.see(a, g)
        except NotPositiveDefinite:
            failed, layer.steps = failed + 1, layer.steps + 1
            continue
        x, wanted = layer.direction(V), truth.direction(V)
        ascending += not float((x * V).sum()) > 0
        cosines.append(float((x * wanted).sum() / (x.norm() * wanted.norm())))
    return Outcome(ascending / count, failed / count, sum(cosines) / max(len(cosines), 1))


def damped(M: Tensor, shift: float) -> Tensor:
    """M + λI."""
    return M + shift * torch.eye(len(M), dtype=M.dtype)
