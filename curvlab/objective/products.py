"""Products with the Gauss–Newton matrix of the mean loss, matrix-free and exact.

``G v = (1/n) Σ_n J_nᵀ ∇²ℓ_n J_n v``: one forward-mode product, the loss's own Hessian in the outputs,
one reverse-mode product.  The reverse graph of a sample that fits in one micro-batch is built once
and kept for the life of the operator (one step); larger samples are linearised chunk by chunk.
Attention is computed by matrix products in here, whatever kernel it uses elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.backends import mha
from torch.func import functional_call, jvp, vjp
from torch.nn.attention import SDPBackend, sdpa_kernel

from curvlab.linalg.operator import LinearOperator
from curvlab.linalg.vectors import BlockVector
from curvlab.objective.losses import Loss, Opaque
from curvlab.objective.randomness import Randomness
from curvlab.protocols.blocks import Blocks


@contextmanager
def unfused_attention() -> Iterator[None]:
    """Inside, torch computes attention by matrix products, which every kind of differentiation knows.

    Its fused kernels have no forward mode.  Reverse mode goes without them too, so that both linearise
    one function: kernels that draw their own random numbers drop other weights.
    """
    before = mha.get_fastpath_enabled()
    mha.set_fastpath_enabled(False)  # of whole modules in evaluation mode
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        mha.set_fastpath_enabled(before)


@dataclass(frozen=True)
class Chunk:
    """Inputs, targets and row weights of one micro-batch."""

    inputs: Any
    targets: Tensor
    weights: float | Tensor


@dataclass
class GaussNewton(LinearOperator[BlockVector]):
    """The GGN of the mean loss over ``examples`` examples, restricted to ``blocks``.

    ``count`` is the number of products made.  Random layers repeat themselves and buffers stay as
    they are.
    """

    model: nn.Module
    blocks: Blocks
    loss: Loss
    chunks: Sequence[Chunk]
    examples: int
    randomness: Randomness
    count: int = 0
    _reverse: Callable[[Tensor], tuple[dict[str, Tensor]]] | None = field(default=None, repr=False)

    self_adjoint = True
    psd = True

    def __matmul__(self, v: BlockVector) -> BlockVector:
        self.count += 1
        tangents = {k: t.contiguous() for k, t in self.blocks.slots(v).items()}
        total: BlockVector | None = None
        with self.randomness.repeated(), unfused_attention():
            for chunk in self.chunks:
                part = self.blocks.pack(self._chunk_product(chunk, tangents))
                total = part if total is None else total.add_(part)
        assert total is not None
        return total.scale_(1.0 / self.examples)

    def _chunk_product(self, chunk: Chunk, tangents: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        primals = {name: p.detach() for name, p in self.blocks.parameters.items()}

        def forward(at: dict[str, Tensor]) -> Tensor:
            # cloned in here: a transformed function may not change what it captured
            buffers = {name: b.clone() for name, b in self.model.named_buffers()}
            return functional_call(self.model, {**buffers, **at}, (chunk.inputs,))  # type: ignore[no-any-return]

        start = self.randomness.now()
        outputs, pushed = jvp(forward, (primals,), (dict(tangents),))  # type: ignore[misc]
        curved = self._curved(chunk, outputs, pushed)
        reverse = self._reverse
        if reverse is None:
            self.randomness.rewind(start)  # the same numbers once more, and on to the next chunk's
            _, reverse = vjp(forward, primals)  # type: ignore[misc]
            if len(self.chunks) == 1:
                self._reverse = reverse
        return reverse(curved)[0]

    def _curved(self, chunk: Chunk, outputs: Tensor, v: Tensor) -> Tensor:
        """Weighted output Hessian times ``v``, in the shape of the outputs."""
        loss = self.loss
        if isinstance(loss, Opaque):
            n = outputs.shape[0]

            def total(f: Tensor) -> Tensor:
                return loss.mean(f, chunk.targets) * n

            # a Hessian is symmetric, and reverse mode is defined for every criterion that forward mode is not
            return vjp(torch.func.grad(total), outputs)[1](v)[0]  # type: ignore[no-any-return]
        rows = loss.rows(outputs)
        curved = loss.curved(rows, loss.target_rows(chunk.targets), loss.rows(v))
        w = chunk.weights
        return loss.unrow(curved * (w if isinstance(w, float) else w.unsqueeze(-1)), outputs)
