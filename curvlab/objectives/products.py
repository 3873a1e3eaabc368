"""Products with the Gauss–Newton matrix of the mean loss, matrix-free and exact.

``G v = (1/n) Σ_n J_nᵀ ∇²ℓ_n J_n v``: a product with the Jacobian, the loss's own Hessian in the outputs,
a product with the Jacobian's transpose.

A sample of one micro-batch is linearized once and kept for the life of the operator (one step): its
outputs f, their graph, and the graph of ``Jᵀ u``.  That is linear in u, so that differentiating it in u
gives ``J v``.  A product is then two backward passes, no forward pass.  Nothing of several micro-batches
is kept: each is linearized anew in every product, in forward mode, which carries ``J v`` along in the
pass that makes the graph.  Attention is computed by matrix products in here, whatever kernel it uses
elsewhere.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.backends import mha
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from curvlab.linalg.operator import LinearOperator
from curvlab.linalg.vectors import BlockVector
from curvlab.linalg.work import without_autocast
from curvlab.objectives.gradients import gradients
from curvlab.objectives.nested import arguments, as_one, each_tensor
from curvlab.objectives.prediction import predicted
from curvlab.objectives.randomness import Randomness
from curvlab.objectives.samples import Chunk, MicroBatches
from curvlab.objectives.twice import differentiating_twice, require_twice
from curvlab.protocols.blocks import Blocks
from curvlab.protocols.loss import Loss
from curvlab.protocols.pieces import cut, whole


@contextmanager
def unfused_attention() -> Iterator[None]:
    """Inside, torch computes attention by matrix products, which every kind of differentiation knows.

    Its fused kernels have neither forward mode nor second derivatives.
    """
    before = mha.get_fastpath_enabled()
    mha.set_fastpath_enabled(False)  # of whole modules in evaluation mode
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        mha.set_fastpath_enabled(before)


@contextmanager
def uncompiled() -> Iterator[None]:
    """Inside, models that ``torch.compile`` has wrapped run uncompiled.

    What it makes has neither forward mode nor second derivatives.
    """
    if "torch._dynamo" not in sys.modules:  # nobody has compiled anything, and loading it takes seconds
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def plain_kernels(model: nn.Module) -> Iterator[None]:
    """Inside, torch takes kernels that every kind of differentiation knows, for this model's layers."""
    with uncompiled(), unfused_attention():
        if not any(isinstance(m, nn.LSTM) for m in model.modules()):
            yield
            return
        # oneDNN's LSTM has no forward mode; other layers would be slower without it
        onednn: Any = torch.backends.mkldnn
        before = onednn.enabled
        onednn.enabled = False
        try:
            yield
        finally:
            onednn.enabled = before


def outputs_at(model: nn.Module, at: Mapping[str, Tensor], inputs: Any) -> Any:
    """The model's outputs at these parameters; buffers stay as they are."""
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    return functional_call(model, {**buffers, **at}, *arguments(inputs, model))


def values_at(model: nn.Module, at: Mapping[str, Tensor], inputs: Any) -> Any:
    """``outputs_at`` without a graph in the parameters; a forward that itself differentiates still can."""
    constants = {name: p.detach() for name, p in model.named_parameters()}
    constants.update((name, t.detach()) for name, t in at.items())
    with torch.enable_grad():
        return each_tensor(lambda t: t.detach(), outputs_at(model, constants, inputs))


@dataclass
class GaussNewton(LinearOperator[BlockVector]):
    """The GGN of the mean loss over a sample, restricted to ``blocks``.

    ``count`` is the number of products made.  Random layers repeat themselves and buffers stay as
    they are.  Memory beside the product: the graphs of one micro-batch, whatever the sample's size.
    """

    model: nn.Module
    blocks: Blocks
    batches: MicroBatches
    randomness: Randomness
    count: int = 0
    _kept: _Linearized | None = field(default=None, repr=False)

    self_adjoint = True
    psd = True

    def __matmul__(self, v: BlockVector) -> BlockVector:
        self.count += 1
        parameters = self.blocks.parameters
        tangents = {n: t.to(parameters[n].dtype) for n, t in self.blocks.assembled(v).items()}
        if len(self.batches) > 1:
            return self._anew(tangents)
        if self._kept is None:
            self._kept = self._linearized()
        return self.blocks.pack(self._kept.product(tangents))

    def _linearized(self) -> _Linearized:
        with self.randomness.repeated(), plain_kernels(self.model):
            (chunk,) = self.batches
            return _Linearized.at(self.model, self.blocks, self.batches.loss, chunk)

    def _anew(self, tangents: Mapping[str, Tensor]) -> BlockVector:
        """The product over several micro-batches, one after the other."""
        n = self.batches.examples
        total: BlockVector | None = None
        slots: Mapping[str, Tensor] = {}
        with self.randomness.repeated(), plain_kernels(self.model), torch.enable_grad():
            for chunk in self.batches:
                part = self._part(chunk, tangents, n)
                if total is None:
                    total = self.blocks.pack(part)
                    slots = self.blocks.slots(total)
                    continue
                for name, slot in slots.items():
                    g = part.get(whole(name))
                    if g is not None:
                        slot.add_(cut(name, g))
        return self.blocks.pack({}) if total is None else total

    def _part(self, chunk: Chunk, tangents: Mapping[str, Tensor], n: int) -> Mapping[str, Tensor | None]:
        """A micro-batch's share of the product over n examples; twice backward where ``J v`` is unknown."""
        try:
            outputs, apart, leaves, pushed = self._both_ways(chunk, tangents)
        except NotImplementedError:  # an operation of the model without forward mode
            linearized = _Linearized.at(self.model, self.blocks, self.batches.loss, chunk)
            share = chunk.examples / n
            return {name: g * share for name, g in linearized.product(tangents).items()}
        if pushed is None or not outputs.requires_grad:  # constant in these parameters
            return {}
        u = curved(self.batches.loss, chunk, outputs.detach(), apart, pushed, n)
        found = gradients(outputs, tuple(leaves.values()), u, allow_unused=True)
        return dict(zip(leaves, found, strict=True))

    def _both_ways(
        self, chunk: Chunk, tangents: Mapping[str, Tensor]
    ) -> tuple[Tensor, Apart, Mapping[str, Tensor], Tensor | None]:
        """Outputs with their graph, its leaves by name, and ``J v`` (``None``: the outputs are constant)."""
        dual = forward_ad.make_dual
        with forward_ad.dual_level():
            at = {
                name: dual(p.detach().requires_grad_(), tangents[name])  # type: ignore[no-untyped-call]
                for name, p in trained(self.blocks).items()
            }
            prediction = predicted(self.batches.loss, outputs_at(self.model, at, chunk.inputs))
            flat, apart = as_one(prediction)
            outputs, pushed = forward_ad.unpack_dual(flat)  # type: ignore[no-untyped-call]
        return outputs, apart, at, None if pushed is None else pushed.detach()


MODEL = "the model"

#: makes outputs, as the loss reads them, of one tensor that holds them
Apart = Callable[[Tensor], Any]


def trained(blocks: Blocks) -> dict[str, Tensor]:
    """The parameters that still require a gradient; the others are constants."""
    return {name: p for name, p in blocks.parameters.items() if p.requires_grad}


@dataclass
class _Linearized:
    """One micro-batch at θ: outputs f, ``Jᵀ u`` as a graph in u, and what products with the loss take."""

    loss: Loss
    chunk: Chunk
    outputs: Tensor
    apart: Apart
    parameters: Mapping[str, Tensor]
    dual: Tensor  #: u
    pulled: Mapping[str, Tensor]  #: Jᵀ u, for the parameters on which the outputs depend

    @classmethod
    def at(cls, model: nn.Module, blocks: Blocks, loss: Loss, chunk: Chunk) -> _Linearized:
        """At the current parameters; costs a forward and a backward pass."""
        with torch.enable_grad():
            leaves = {name: p.detach().requires_grad_() for name, p in trained(blocks).items()}
            outputs, apart = as_one(predicted(loss, outputs_at(model, leaves, chunk.inputs)))
            dual = torch.zeros_like(outputs, requires_grad=True)
            found: tuple[Tensor | None, ...] = (None,) * len(leaves)
            if outputs.requires_grad and leaves:
                wanted = tuple(leaves.values())
                with differentiating_twice(MODEL):
                    found = torch.autograd.grad(outputs, wanted, dual, create_graph=True, allow_unused=True)
        pulled = {name: g for name, g in zip(leaves, found, strict=True) if g is not None and g.requires_grad}
        require_twice(MODEL, pulled.values())
        return cls(loss, chunk, outputs, apart, {name: leaves[name] for name in pulled}, dual, pulled)

    def product(self, tangents: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The chunk's share of G v by parameter, over its own number of examples."""
        if not self.pulled:
            return {}
        along = tuple(tangents[name] for name in self.pulled)
        pulled = tuple(self.pulled.values())
        with differentiating_twice(MODEL):
            (pushed,) = gradients(pulled, (self.dual,), along, retain_graph=True, materialize_grads=True)
        f, n = self.outputs.detach(), self.chunk.examples
        u = curved(self.loss, self.chunk, f, self.apart, pushed, n)
        wanted = tuple(self.parameters.values())
        found = gradients(self.outputs, wanted, u, retain_graph=True)
        return dict(zip(self.parameters, found, strict=True))


def curved(loss: Loss, chunk: Chunk, outputs: Tensor, apart: Apart, v: Tensor, examples: int) -> Tensor:
    """The curvature of ``(1/examples) Σ ℓ_n`` in the outputs, times ``v``, in the shape of ``outputs``.

    ``outputs`` are all that the loss reads as one tensor, of which ``apart`` makes what it reads.  Raises
    ``ConfigError`` for outputs that the loss does not take, and for a loss without such curvature.
    """
    f = apart(outputs)
    loss.require(f, chunk.targets)
    with without_autocast(outputs.device):
        bent, _ = as_one(loss.hessian_product(f, chunk.targets, chunk.weights, apart(v)))
        return bent / examples
