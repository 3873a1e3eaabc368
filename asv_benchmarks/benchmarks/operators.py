"""Products with curvature: Gauss-Newton products of networks, and Kronecker products against dense ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import nn

from .meters import cost, quiet
from .networks import NETWORKS
from .structures import backend, normal

#: B ⊗ A of two factors; of the rows whose Gram matrices they would be; the same as one matrix
FORMS = ["factors", "rows", "matrix"]


def gauss_newton(network: str) -> Callable[[], object]:
    """A product with the Gauss-Newton matrix of a batch; skipped where a commit makes it differently."""
    import curvlab

    try:
        from curvlab.model.partition import partition
        from curvlab.protocols.context import Context
        from curvlab.protocols.needs import Needs

        needs = Needs(products=1, implicit=True)
    except (ImportError, TypeError) as error:
        raise NotImplementedError(f"this commit asks for products in other words: {error}") from error
    net = NETWORKS[network]
    model = net.model()
    ((x, y),) = net.batches(1)
    blocks = partition(model, lambda name: True)
    ctx = Context(0, 0.0, backend("float32"), torch.Generator().manual_seed(0))
    C = curvlab.objective(model, nn.CrossEntropyLoss(), x, y).evaluate(needs, blocks, ctx).ggn
    v = blocks.layout.zeros(like=blocks.like.detach())
    v.flat.copy_(normal(blocks.layout.size, seed=6, dtype=torch.float32))
    return lambda: C @ v


def kronecker(form: str, width: int) -> Callable[[], object]:
    """``B V A`` for V of ``width`` squared, B and A of rank at most 32."""
    from curvlab.linalg.kronecker import GramKronecker, Kronecker
    from curvlab.protocols.structure import Family

    G, A = (normal(32, width, seed=k, dtype=torch.float32) for k in (7, 8))
    V = normal(width, width, seed=9, dtype=torch.float32)
    if form == "rows":
        by_rows = GramKronecker(G, A)
        return lambda: by_rows @ V
    dense = _dense(Family)
    B_factor, A_factor = dense.project(G.mT @ G), dense.project(A.mT @ A)
    if form == "factors":
        by_factors = Kronecker(B_factor, A_factor)
        return lambda: by_factors @ V
    whole = torch.kron(B_factor.dense(), A_factor.dense())
    return lambda: whole @ V.flatten()


def _dense(protocol: type) -> Any:
    from curvlab.config import build_part
    from curvlab.registry.loader import installed

    return build_part(installed(), protocol, "dense")


class GaussNewtonCosts:
    """Deterministic costs of one product, what is made once for several left out."""

    version = "1"
    param_names: ClassVar = ["network"]
    params: ClassVar = [list(NETWORKS)]

    def setup(self, network: str) -> None:
        quiet()
        self.product = gauss_newton(network)
        self.product()

    def track_flops(self, network: str) -> float:
        return float(cost(self.product).flops)

    def track_peak_bytes(self, network: str) -> float:
        return float(cost(self.product).peak_bytes)

    def track_allocations(self, network: str) -> float:
        return float(cost(self.product).allocations)

    track_flops.unit = "flops"  # type: ignore[attr-defined]
    track_peak_bytes.unit = "bytes"  # type: ignore[attr-defined]
    track_allocations.unit = "storages"  # type: ignore[attr-defined]


class GaussNewtonTime:
    """Seconds of one product."""

    version = "1"
    warmup_time = 0.02
    sample_time = 0.02
    rounds = 2
    repeat = (3, 10, 0.3)
    param_names: ClassVar = ["network"]
    params: ClassVar = [list(NETWORKS)]

    def setup(self, network: str) -> None:
        quiet(timed=True)
        self.product = gauss_newton(network)
        self.product()

    def time_product(self, network: str) -> None:
        self.product()


class KroneckerCosts:
    """Deterministic costs of one product; ``matrix`` is what the other forms save."""

    version = "1"
    param_names: ClassVar = ["form", "width"]
    params: ClassVar = [FORMS, [16, 48]]

    def setup(self, form: str, width: int) -> None:
        quiet()
        self.product = kronecker(form, width)

    def track_flops(self, form: str, width: int) -> float:
        return float(cost(self.product).flops)

    def track_peak_bytes(self, form: str, width: int) -> float:
        return float(cost(self.product).peak_bytes)

    track_flops.unit = "flops"  # type: ignore[attr-defined]
    track_peak_bytes.unit = "bytes"  # type: ignore[attr-defined]


class KroneckerTime:
    """Seconds of one product."""

    version = "1"
    warmup_time = 0.02
    sample_time = 0.02
    rounds = 2
    repeat = (3, 10, 0.3)
    param_names: ClassVar = ["form", "width"]
    params: ClassVar = [FORMS, [16, 48]]

    def setup(self, form: str, width: int) -> None:
        quiet(timed=True)
        self.product = kronecker(form, width)

    def time_product(self, form: str, width: int) -> None:
        self.product()
