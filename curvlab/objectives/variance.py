"""How much the gradients of single examples differ, exactly, in micro-batches.

``‖∇ℓ_i‖²`` of a tapped layer comes from the rows of the pass that makes the gradient: for one row per
example ``‖a‖² ‖g‖²``, for several the cheaper of their Gram matrices and of each example's gradient, a few
at a time.  Blocks that no rows explain (parameters without a layer reader, weights used elsewhere too)
are differentiated example by example: ``torch.func.vmap`` over groups, about the cost of one more pass;
where layers are random, whose numbers are the whole micro-batch's, or torch cannot batch them, one backward
pass through the micro-batch for each example.  ``⟨∇ℓ_i, ∇L⟩`` comes from the same rows where they are all
at hand, else from a second pass over the sample in forward mode.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import grad, vmap

from curvlab.errors import UnsupportedEvidence
from curvlab.linalg.lookups import AnyRows, dense_rows
from curvlab.linalg.outer import Outer
from curvlab.linalg.vectors import BlockVector
from curvlab.linalg.work import without_autocast
from curvlab.model.taps import recording
from curvlab.objectives.gradients import gradients
from curvlab.objectives.nested import each_tensor
from curvlab.objectives.prediction import predicted
from curvlab.objectives.products import outputs_at, plain_kernels, trained, values_at
from curvlab.objectives.randomness import Randomness
from curvlab.objectives.repeatability import first_difference, same, watching
from curvlab.objectives.samples import Chunk, MicroBatches
from curvlab.objectives.shapes import described
from curvlab.protocols.blocks import Block, Blocks, as_real
from curvlab.protocols.evidence import Variance
from curvlab.protocols.loss import Loss
from curvlab.protocols.pieces import whole
from curvlab.protocols.reader import products

#: numbers that the gradients of a group of examples may take up beside a micro-batch
GROUP = 2**22
#: examples on which the model is looked at before
PROBED = 4

#: a block's rows for a chunk: inputs ``[n, r, i]``, gradients of ℓ_n ``[n, s, o]``
Rows = tuple[AnyRows, Tensor]


class SlowVariance(UserWarning):
    """Gradients of single examples are made one at a time, because torch cannot make them in groups."""


@dataclass
class GradientVariance:
    """Sums over examples under way."""

    model: nn.Module
    batches: MicroBatches
    blocks: Blocks
    randomness: Randomness
    squares: list[Tensor] = field(default_factory=list)  # per chunk: Σ_i ‖∇ℓ_i‖²
    #: of a sample of one chunk, all of whose blocks have rows: the rows
    rows: dict[str, Rows] | None = None
    #: layers whose rows are not those of the examples, in order
    misread: set[str] = field(default_factory=set)
    #: are examples differentiated one by one, rather than in groups?
    singly: bool = False

    def probe(self) -> None:
        """Look at a few examples: raises ``UnsupportedEvidence`` if one's loss depends on the others."""
        chunk = self.batches.first(PROBED)
        if chunk.examples < 2:
            return
        seen = []
        for inputs in (chunk.inputs, each_tensor(_first_repeated, chunk.inputs)):
            with self.randomness.repeated(), watching(self.model) as watch:
                seen.append((self._read(values_at(self.model, {}, inputs)), watch.seen))
        (outputs, a), (others_changed, b) = seen
        if not isinstance(outputs, Tensor):
            raise UnsupportedEvidence(
                "the variance of gradients",
                "",
                expected="a model whose output is one tensor with the examples on its first axis",
                got=described(outputs),
                hint='use a sampler that does not need the variance, such as "geometric"',
            )
        if not _same_first(outputs, others_changed):
            raise UnsupportedEvidence(
                "the variance of gradients",
                "",
                expected="a model that treats each example independently",
                got=f"{first_difference(self.model, a, b, _same_first)}, whose output for one example"
                " depends on the others",
                hint="call eval() on it (batch norm then uses its running statistics), or use a"
                ' sampler that does not need the variance, such as "geometric"',
            )
        with self.randomness.repeated():
            drawn = [self._read(values_at(self.model, {}, chunk.inputs)) for _ in range(2)]
        self.singly = not same(drawn[0], drawn[1])
        self.misread.update(b.name for b in self.blocks.members if b.transposed)
        self._probe_rows(chunk)

    def _probe_rows(self, chunk: Chunk) -> None:
        """Whose rows are not by example: the gradient of ℓ_0 reaches those of others."""
        with torch.enable_grad(), self.randomness.repeated(), recording(self.blocks) as tape:
            outputs = self._read(outputs_at(self.model, {}, chunk.inputs))
        tape.drop_transposed()
        if not tape.calls:
            return
        alone = output_gradients(self.batches.loss, chunk, outputs)
        alone[1:] = 0.0
        found = gradients(outputs, tape.edges, alone, allow_unused=True)
        arrangements = tape.arranged(chunk.examples)
        for name, calls in tape.by_block().items():
            rows = arrangements[name]([tape.calls[k].grads(found[k]) for k in calls])
            if not arrangements[name].certain or bool(rows[1:].any()):
                self.misread.add(name)

    def _read(self, outputs: Any) -> Any:
        """What the loss reads of a model's outputs."""
        return predicted(self.batches.loss, outputs)

    def add(self, chunk: Chunk, outputs: Any, rows: Mapping[str, Rows]) -> None:
        """A micro-batch whose graph is still there; ``rows`` of every tapped block that was called."""
        good = {name: r for name, r in rows.items() if self._by_example(name, r, chunk.examples)}
        outputs = self._read(outputs)
        squares = outputs.new_zeros(chunk.examples)
        with without_autocast(squares.device):
            for name, (a, g) in good.items():
                squares = squares + _squared_norms(dense_rows(a).detach(), g, self.blocks[name])
        others = [b for b in self.blocks.members if b.name not in good and b.name not in self._idle(rows)]
        if others:
            squares = squares + self._others(chunk, outputs, others)
        self.squares.append(squares.detach().double().sum())
        if len(self.batches) == 1 and not others:
            self.rows = good

    def finish(self, gradient: BlockVector) -> Variance:
        """What the chunks add up to, ∇L being known; NaN for a single example."""
        n = self.batches.examples
        squared = gradient.dot(gradient).double()
        if n < 2:
            return Variance(gradient.flat.new_tensor(torch.nan), gradient.flat.new_tensor(torch.nan))
        total = (torch.stack(self.squares).sum() - n * squared) / (n - 1)
        along = self._along_rows(gradient) if self.rows is not None else self._along_pushed(gradient)
        spread = along.double().var()
        return Variance(total.clamp(min=0.0).to(gradient.dtype), spread.to(gradient.dtype))

    def _by_example(self, name: str, rows: Rows, examples: int) -> bool:
        return name not in self.misread and rows[0].shape[0] == examples == rows[1].shape[0]

    def _idle(self, rows: Mapping[str, Rows]) -> set[str]:
        """Tapped layers that were not called: their gradient is zero."""
        live = trained(self.blocks)
        tapped = {b.name for b in self.blocks.tapped if all(whole(p) in live for p in b.parameters)}
        return tapped - set(rows)

    def _others(self, chunk: Chunk, outputs: Tensor, others: Sequence[Block]) -> Float[Tensor, " n"]:
        """Σ over the parameters of these blocks of squared gradients, example by example."""
        live = trained(self.blocks)
        parameters = {p: live[p] for b in others for p in map(whole, b.parameters) if p in live}
        if not parameters:
            return outputs.new_zeros(chunk.examples)
        bent = output_gradients(self.batches.loss, chunk, outputs)
        if not self.singly:
            try:
                return self._in_groups(chunk.inputs, bent, parameters)
            except RuntimeError as error:
                warnings.warn(
                    f"torch.func.vmap cannot batch this model ({error}). The variance of gradients is"
                    " computed with one backward pass per example, which is slow",
                    SlowVariance,
                    stacklevel=2,
                )
                self.singly = True
        return _one_by_one(outputs, bent, list(parameters.values()))

    def _in_groups(self, inputs: Any, bent: Tensor, parameters: Mapping[str, Tensor]) -> Float[Tensor, " n"]:
        """Squared gradients of each example's loss, of which ``bent`` are the gradients in the outputs."""
        at = {name: p.detach() for name, p in parameters.items()}
        each = max(1, GROUP // sum(p.numel() for p in at.values()))

        def of_one(at: dict[str, Tensor], inputs: Any, v: Tensor) -> Tensor:
            one = each_tensor(lambda t: t.unsqueeze(0), inputs)
            alone: Tensor = self._read(outputs_at(self.model, at, one))
            return (alone * v.unsqueeze(0)).sum()

        found = []
        with plain_kernels(self.model), torch.no_grad():  # outside: other parameters are constants
            for start in range(0, bent.shape[0], each):
                some = slice(start, start + each)
                part = each_tensor(itemgetter(some), inputs)
                grads = vmap(grad(of_one), in_dims=(None, 0, 0))(at, part, bent[some])
                squares = [as_real(g).flatten(1).square().sum(1) for g in grads.values()]
                found.append(torch.stack(squares).sum(0))
        return torch.cat(found)

    def _along_rows(self, gradient: BlockVector) -> Float[Tensor, " n"]:
        """⟨∇ℓ_i, ∇L⟩ from the rows of the one chunk there is."""
        assert self.rows is not None
        with without_autocast(gradient.device):
            parts = [
                _inner(dense_rows(a).detach(), g, gradient.factored(name))
                for name, (a, g) in self.rows.items()
            ]
        return torch.stack(parts).sum(0) if parts else gradient.flat.new_zeros(self.batches.examples)

    def _along_pushed(self, gradient: BlockVector) -> Float[Tensor, " n"]:
        """The same as the derivative of each ℓ_i along ∇L."""
        tangents, found = self.blocks.assembled(gradient), []
        with self.randomness.repeated(), plain_kernels(self.model), torch.no_grad():
            for chunk in self.batches:
                with forward_ad.dual_level():
                    at = {
                        name: forward_ad.make_dual(p.detach(), tangents[name])  # type: ignore[no-untyped-call]
                        for name, p in self.blocks.parameters.items()
                    }
                    outputs = self._read(outputs_at(self.model, at, chunk.inputs))
                    primal, pushed = forward_ad.unpack_dual(outputs)  # type: ignore[no-untyped-call]
                if pushed is None:  # the outputs are constant
                    found.append(primal.new_zeros(chunk.examples))
                    continue
                v = output_gradients(self.batches.loss, chunk, primal)
                found.append((v * pushed).reshape(chunk.examples, -1).sum(1))
        return torch.cat(found)


def output_gradients(loss: Loss, chunk: Chunk, outputs: Tensor) -> Tensor:
    """Gradients of the ℓ_n in the outputs of their examples."""
    with torch.enable_grad():
        f = outputs.detach().requires_grad_()
        (g,) = torch.autograd.grad(chunk.total(loss, f), f)
    return g


def _one_by_one(outputs: Tensor, bent: Tensor, parameters: Sequence[Tensor]) -> Float[Tensor, " n"]:
    """Squared gradients of each example's loss by a backward pass of its own."""
    found = []
    for i in range(bent.shape[0]):
        alone = torch.zeros_like(bent)
        alone[i] = bent[i]
        grads = gradients(outputs, parameters, alone, retain_graph=True, allow_unused=True)
        found.append(sum((as_real(g).square().sum() for g in grads if g is not None), bent.new_zeros(())))
    return torch.stack(found)


def _squared_norms(a: Tensor, g: Tensor, block: Block) -> Float[Tensor, " n"]:
    """‖Σ_s g aᵀ‖² of each example; ``[n, r, i]`` and ``[n, s, o]``."""
    n, s, o = g.shape
    r, i = a.shape[1:]
    if r == s == 1:
        return a.square().sum((1, 2)) * g.square().sum((1, 2))
    if r == s and s * (i + o) < i * o:
        return torch.sum((a @ a.mT).mul_(g @ g.mT), (1, 2))
    each = max(1, GROUP // block.shape.numel())
    parts = [products(a[k : k + each], g[k : k + each]).square().sum((1, 2)) for k in range(0, n, each)]
    return torch.cat(parts)


def _inner(a: Tensor, g: Tensor, v: Outer | Tensor) -> Float[Tensor, " n"]:
    """⟨Σ_s g aᵀ, v⟩ of each example."""
    n, s, o = g.shape
    k = a.shape[1] // s
    if isinstance(v, Outer):
        pushed = (a @ v.right.mT) @ v.left
    elif k == 1:
        pushed = a @ v.reshape(o, -1).mT
    else:
        groups = v.reshape(k, o // k, -1)
        pushed = torch.einsum("nski,kpi->nskp", a.reshape(n, s, k, -1), groups).flatten(2)
    return pushed.mul_(g).sum((1, 2))


def _first_repeated(t: Tensor) -> Tensor:
    """As many copies of the first example."""
    return t[:1].expand_as(t).clone() if t.dim() else t


def _same_first(a: Tensor, b: Tensor) -> bool:
    """The first examples of two batches agree."""
    return same(a[:1], b[:1]) if a.dim() and b.dim() else same(a, b)
