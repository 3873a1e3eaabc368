"""Dense truths: what the fast paths must equal, by the shortest way that can be seen to be right.

Everything here is slow on purpose and shares no code with what it judges: derivatives come from
plain autograd, one output at a time, and matrices are formed.  Vectors are flat, in the order of a
``Blocks`` layout: block after block, each row-major.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from curvlab.errors import NotPositiveDefinite
from curvlab.linalg.vectors import BlockLayout
from curvlab.protocols.backend import Backend
from curvlab.protocols.blocks import Blocks
from curvlab.protocols.context import Context
from curvlab.protocols.dtypes import Dtypes
from curvlab.protocols.structure import Family, Structure

Criterion = Callable[[Tensor, Tensor], Tensor]

#: distributions whose negative logarithm is a loss, up to a factor κ and a constant
Likelihood = Literal["cross-entropy", "squared-error", "binary-cross-entropy"]


def mean_loss(criterion: Criterion, outputs: Tensor, targets: Tensor) -> Float[Tensor, ""]:
    """``L = mean_n ℓ_n``: torch's own value, divided by n if the criterion's ``reduction`` is ``"sum"``."""
    value = criterion(outputs, targets)
    return value / outputs.shape[0] if getattr(criterion, "reduction", "mean") == "sum" else value


def gradient(value: Tensor, blocks: Blocks) -> Float[Tensor, " D"]:
    """∇ of a scalar in the parameters of ``blocks``."""
    names = list(blocks.parameters)
    grads = torch.autograd.grad(
        value, [blocks.parameters[n] for n in names], retain_graph=True, allow_unused=True
    )
    return blocks.pack(dict(zip(names, grads, strict=True))).flat.clone()


def jacobian(model: nn.Module, inputs: Any, blocks: Blocks) -> Float[Tensor, "f D"]:
    """Every output of the batch, flattened, differentiated in θ; one backward pass per output."""
    outputs = model(inputs).flatten()
    return torch.stack([gradient(f, blocks) for f in outputs])


def output_hessian(criterion: Criterion, outputs: Tensor, targets: Tensor) -> Float[Tensor, "f f"]:
    """∇²L in all outputs of the batch, by differentiating torch's criterion twice."""
    f = outputs.detach().flatten().requires_grad_()
    value = mean_loss(criterion, f.view(outputs.shape), targets)
    (first,) = torch.autograd.grad(value, f, create_graph=True)
    rows = [torch.autograd.grad(g, f, retain_graph=True, allow_unused=True)[0] for g in first]
    return torch.stack([torch.zeros_like(f) if row is None else row for row in rows]).detach()


def ggn(
    model: nn.Module, criterion: Criterion, inputs: Any, targets: Tensor, blocks: Blocks
) -> Float[Tensor, "D D"]:
    """The Gauss–Newton matrix ``Jᵀ ∇²L J`` of the mean loss."""
    J = jacobian(model, inputs, blocks)
    return J.mT @ output_hessian(criterion, model(inputs), targets) @ J


def per_example_gradients(
    model: nn.Module, criterion: Criterion, inputs: Tensor, targets: Tensor, blocks: Blocks
) -> Float[Tensor, "n D"]:
    """∇ℓ_n, un-averaged, of a criterion that treats examples alike (no class weights, nothing ignored)."""
    alone = [slice(k, k + 1) for k in range(len(inputs))]
    return torch.stack([gradient(mean_loss(criterion, model(inputs[k]), targets[k]), blocks) for k in alone])


def empirical_fisher(
    model: nn.Module, criterion: Criterion, inputs: Tensor, targets: Tensor, blocks: Blocks
) -> Float[Tensor, "D D"]:
    """``(1/n) Σ_n ∇ℓ_n ∇ℓ_nᵀ`` for the data's own labels."""
    G = per_example_gradients(model, criterion, inputs, targets, blocks)
    return G.mT @ G / len(G)


def fisher(
    model: nn.Module, likelihood: Likelihood, inputs: Tensor, blocks: Blocks, kappa: float = 1.0
) -> Float[Tensor, "D D"]:
    """``(κ/n) Σ_n Σ_y p(y|x_n) ∇log p ∇log pᵀ``: every label enumerated, nothing sampled.

    For outputs ``[n, c]``.  Equals the GGN of ``mean_n κ · (−log p)``.  A Gaussian of variance ½ (so
    that −log p is the squared error) is enumerated by the 2ᶜ points that have its first two moments.
    """
    total = torch.zeros(blocks.layout.size, blocks.layout.size, dtype=inputs.dtype)
    for x in inputs:
        f = model(x.unsqueeze(0))[0]
        for probability, surprise in _labels(likelihood, f):
            g = gradient(surprise, blocks)
            total += kappa * float(probability) * torch.outer(g, g)
    return total / len(inputs)


def _labels(likelihood: Likelihood, f: Float[Tensor, " c"]) -> Iterator[tuple[Tensor, Tensor]]:
    """Each label's probability and −log p, the latter differentiable in f."""
    if likelihood == "cross-entropy":
        log_p = f.log_softmax(-1)
        yield from ((log_p[k].detach().exp(), -log_p[k]) for k in range(len(f)))
        return
    for signs in itertools.product((0.0, 1.0), repeat=len(f)):
        y = f.new_tensor(signs)
        if likelihood == "binary-cross-entropy":
            surprise = -(y * f.sigmoid().log() + (1 - y) * (-f).sigmoid().log()).sum()
            yield (-surprise).detach().exp(), surprise
        else:
            label = f.detach() + (2 * y - 1) * 0.5**0.5
            yield torch.tensor(0.5 ** len(f)), (f - label).square().sum()


def block_of(matrix: Float[Tensor, "D D"], layout: BlockLayout, name: str) -> Float[Tensor, "d d"]:
    """The diagonal block of one block's parameters."""
    start, stop = layout.offsets[name]
    return matrix[start:stop, start:stop]


def block_diagonal(matrix: Float[Tensor, "D D"], layout: BlockLayout) -> Float[Tensor, "D D"]:
    """The matrix with everything between different blocks set to zero."""
    out = torch.zeros_like(matrix)
    for start, stop in layout.offsets.values():
        out[start:stop, start:stop] = matrix[start:stop, start:stop]
    return out


def kronecker(B: Float[Tensor, "o o"], A: Float[Tensor, "i i"]) -> Float[Tensor, "d d"]:
    """``B ⊗ A``, entry by entry: what acts on row-major ``vec(V)`` as ``V ↦ B V Aᵀ``."""
    o, i = B.shape[0], A.shape[0]
    return (B[:, None, :, None] * A[None, :, None, :]).reshape(o * i, o * i)


def damped_solve(C: Float[Tensor, "D D"], damping: float, g: Float[Tensor, " D"]) -> Float[Tensor, " D"]:
    """``(C + λI)⁻¹ g`` by Gaussian elimination."""
    x: Tensor = torch.linalg.solve(C + damping * torch.eye(len(C), dtype=C.dtype), g)
    return x


def entries(member: Structure) -> Float[Tensor, "dd p"]:
    """The matrix of a family's parametrisation at dimension d: one column per stored scalar.

    The tensors of ``member`` are used as scratch, one scalar set to 1 at a time.
    """
    stored = [t.view(-1) for t in member.tensors().values()]
    for t in stored:
        t.zero_()
    columns = []
    for t in stored:
        for k in range(len(t)):
            t[k] = 1.0
            columns.append(member.dense().reshape(-1).clone())
            t[k] = 0.0
    return torch.stack(columns, dim=1)


def nearest_member(family: Family, S: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    """``argmin_Z ‖½ (Z + Zᵀ) − S‖_F`` over the members of a family, by dense least squares.

    Where several are nearest (the antisymmetric part of a full block is free), the smallest of them.
    """
    d = S.shape[-1]
    U, size, _ = torch.linalg.svd(entries(family.zeros(d, like=S)), full_matrices=False)
    basis: Tensor = U[:, size > 1e-10 * size.max()]  # orthonormal: the smallest Z, not the smallest scalars
    mirrored = basis.view(d, d, -1).transpose(0, 1).reshape(d * d, -1)
    fit: Tensor = torch.linalg.lstsq(0.5 * (basis + mirrored), S.reshape(-1), driver="gelsd").solution
    return (basis @ fit).view(d, d)


@dataclass(frozen=True)
class Lapack(Backend):
    """The CPU through LAPACK alone, in float64 unless ``roles`` say otherwise: the slow twin of others."""

    roles: Dtypes = Dtypes.uniform(torch.float64)

    @property
    def dtypes(self) -> Dtypes:
        return self.roles

    @property
    def torch_device(self) -> torch.device:
        return torch.device("cpu")

    def gram_(
        self, M: Float[Tensor, "d d"], keep: float, X: Float[Tensor, "n d"], weight: float
    ) -> Float[Tensor, "d d"]:
        return M.copy_(keep * M + weight * sum((torch.outer(x, x) for x in X), torch.zeros_like(M)))

    def cholesky(self, A: Float[Tensor, "*b d d"]) -> Float[Tensor, "*b d d"]:
        L: Tensor
        L, info = torch.linalg.cholesky_ex(A)
        if bool((info != 0).any()):
            raise NotPositiveDefinite(f"the matrix of shape {tuple(A.shape)} is indefinite")
        return L

    def inverse(self, A: Float[Tensor, "*b d d"], shift: Tensor | float = 0.0) -> Float[Tensor, "*b d d"]:
        damped = A + shift * torch.eye(A.shape[-1], dtype=A.dtype)
        self.cholesky(damped)
        inverse: Tensor = torch.linalg.inv(damped).contiguous()
        return inverse

    def eigh(self, A: Float[Tensor, "*b d d"]) -> tuple[Float[Tensor, "*b d"], Float[Tensor, "*b d d"]]:
        if not bool(torch.isfinite(A).all()):
            raise NotPositiveDefinite(f"the matrix of shape {tuple(A.shape)} is non-finite")
        values, vectors = torch.linalg.eigh(A)
        return values, vectors.contiguous()  # as it is when it comes back from a file


def reference_context(damping: float = 0.0, *, step: int = 0, seed: int = 0) -> Context:
    """A context in float64 through LAPACK, for calling a part by hand."""
    return Context(step, damping, Lapack(), torch.Generator().manual_seed(seed))
