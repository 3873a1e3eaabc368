"""Layers read from their rows, beside the dense truth: for the suite of readers, and for tables of layers."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from curvlab.linalg.lookups import dense_rows
from curvlab.model.partition import partition
from curvlab.model.taps import Call, Tape, recording
from curvlab.objectives.nested import Unpacked, each_tensor, tensors_of
from curvlab.objectives.supervised import SupervisedObjective, objective
from curvlab.protocols.blocks import Blocks, as_real
from curvlab.protocols.evidence import LayerStats
from curvlab.protocols.needs import Labels, Needs
from curvlab.protocols.reader import LayerReader, products
from curvlab.testing import reference
from curvlab.testing.asserts import assert_close
from curvlab.testing.problems import labels, normal

#: classes of the loss behind a layer
CLASSES = 3

#: what an entry may have been summed from, for tolerances: positions times channels of a small layer
TERMS = 256


@dataclass(frozen=True)
class Specimen:
    """A layer in float64, and arguments to call it on."""

    module: nn.Module
    args: tuple[Any, ...]

    @classmethod
    def of(cls, module: nn.Module, args: Sequence[Any]) -> Specimen:
        """In float64, its parameters moved off ones and zeros by normal numbers of their own."""
        module = _doubled(module)
        with torch.no_grad():
            for k, p in enumerate(module.parameters()):
                as_real(p).add_(normal(*as_real(p).shape, seed=500 + k), alpha=0.1)
        return cls(module, each_tensor(_double, tuple(args)))

    def __str__(self) -> str:
        shapes = ", ".join(str(list(t.shape)) for t in tensors_of(self.args))
        return f"{type(self.module).__name__} on {shapes}"

    def fresh(self) -> nn.Module:
        """A copy of the layer."""
        return copy.deepcopy(self.module)

    def pieces(self) -> list[tuple[Any, ...]]:
        """The arguments of each example alone; empty if outputs of examples depend on one another."""
        first = next(tensors_of(self.args))
        n = len(first) if first.dim() else 0
        found = [each_tensor(partial(_example, n, k), self.args) for k in range(n)]
        if not found:
            return []
        try:
            whole = _first(self.fresh()(*self.args))
            parts = torch.cat([_first(self.fresh()(*args)) for args in found])
        except (RuntimeError, ValueError, IndexError, TypeError):  # no batch: the axis is one of the layer's
            return []
        same = parts.shape == whole.shape and torch.allclose(parts, whole, rtol=1e-10, atol=1e-12)
        return found if same else []


def read(model: nn.Module, args: Sequence[Any], readers: Sequence[LayerReader]) -> tuple[Blocks, Tape, Any]:
    """A call of the model with its layers recorded: blocks, calls, output."""
    blocks = partition(model, lambda name: True, readers=readers)
    with recording(blocks) as tape:
        output = model(*args)
    return blocks, tape, output


def some_loss(output: Any) -> Float[Tensor, ""]:
    """A number that every entry of an output weighs in, each with another weight and not linearly."""
    found = [t for t in tensors_of(output) if t.is_floating_point()]
    weights = [normal(*t.shape, seed=300 + k).to(t.dtype) for k, t in enumerate(found)]
    return sum(((t + 0.5 * t.square()) * w).sum() for t, w in zip(found, weights, strict=True)) + torch.zeros(
        ()
    )


def examples_of(calls: Sequence[Call], output: Any) -> int:
    """How many examples the first output leads with; 0 if its first axis is none of independent examples."""
    y = next(tensors_of(output))
    n = len(y) if y.dim() > 1 else 0
    if not n or any(len(c.inputs()) != n for c in calls):
        return 0
    for k in (0, n - 1):
        found = torch.autograd.grad(
            some_loss(y[k]), [c.edge for c in calls], retain_graph=True, allow_unused=True
        )
        for call, g in zip(calls, found, strict=True):
            rows = call.grads(g)
            if bool(rows[:k].any()) or bool(rows[k + 1 :].any()):
                return 0
    return n


def assert_explained(blocks: Blocks, tape: Tape, value: Tensor, what: str) -> None:
    """The rows of the recorded calls add up to the gradient of every parameter that is read."""
    wanted: Any = [*tape.edges, *blocks.parameters.values()]
    found = torch.autograd.grad(value, wanted, retain_graph=True, allow_unused=True)
    vector = blocks.layout.zeros(like=blocks.like.detach())
    for call, g in zip(tape.calls, found, strict=False):
        vector[call.block.name].add_(call.gradient(g)[0])
    truth = dict(zip(blocks.parameters, found[len(tape.calls) :], strict=True))
    mine = blocks.select([b.name for b in blocks.tapped]).assembled(vector)
    for name, gradient in mine.items():
        true = truth[name]
        true = torch.zeros_like(gradient) if true is None else true
        words = f"{what}: the gradient of {name} from rows"
        assert_close(as_real(gradient), as_real(true), dimension=TERMS, what=words)


@dataclass(frozen=True)
class Behind:
    """A layer in a small classifier, which makes a loss of it: cross-entropy of a mix of its outputs."""

    model: nn.Module
    inputs: Any
    targets: Tensor

    @classmethod
    def of(cls, module: nn.Module, args: Sequence[Any], examples: int) -> Behind:
        """The classifier of a layer whose first output leads with the examples."""
        return cls(_Mixed(module, args), Unpacked(tuple(args)), labels(examples, classes=CLASSES, seed=7))

    def objective(self, micro_batch: int | None = None) -> SupervisedObjective:
        """The objective of all examples."""
        return objective(
            self.model, nn.CrossEntropyLoss(), self.inputs, self.targets, micro_batch=micro_batch
        )

    def statistics(self, blocks: Blocks, micro_batch: int | None = None) -> dict[str, tuple[LayerStats, ...]]:
        """What an evaluation with exact labels tells of the layers."""
        needs = Needs(layers=frozenset({Labels.EXACT}))
        seen = self.objective().evaluate(needs, blocks, reference.reference_context())
        return dict(seen.layers[Labels.EXACT])

    def truth(self, blocks: Blocks) -> Float[Tensor, "D D"]:
        """The dense Gauss–Newton matrix."""
        model = _Called(self.model)
        return reference.ggn(model, nn.CrossEntropyLoss(), self.inputs, self.targets, blocks)

    def assert_blocks(self, blocks: Blocks, what: str, truth: Tensor | None = None) -> None:
        """The rows of every layer give the diagonal block of the dense Gauss–Newton matrix, ``truth``."""
        truth = self.truth(blocks) if truth is None else truth
        found, size = self.statistics(blocks), float(truth.abs().max())
        for block in (b for b in blocks.members if b.is_layer):
            assert block.name in found, f"{what}: block {block.name} has no rows"
            mine = block_of_rows(found[block.name], len(self.targets))
            true = reference.block_of(truth, blocks.layout, block.name)
            words = f"{what}: GGN block {block.name} from rows"
            # relative to the largest of all blocks: that of an attention's key bias is zero but for rounding
            assert_close(mine, true, dimension=TERMS, scale=size, what=words)


def block_of_rows(terms: Iterable[LayerStats], examples: int) -> Float[Tensor, "d d"]:
    """``(1/n) Σ_{v,n} vec(Σ_s g aᵀ) vec(Σ_s g aᵀ)ᵀ``: the curvature of a block that its rows tell."""
    found: Any = 0.0
    for term in terms:
        assert term.grads is not None, "rows of gradients are missing"
        G = products(term.inputs, term.grads).flatten(0, 1).flatten(1)
        found = found + G.mT @ G / examples
    return torch.as_tensor(found)


def factors_of_rows(terms: Sequence[LayerStats]) -> tuple[Tensor, Tensor] | None:
    """Kronecker factors B and A of one example at one position, where ``B ⊗ A`` is exact; else ``None``."""
    (term,) = terms
    a = dense_rows(term.inputs)
    if term.grads is None or a.shape[:2] != (1, 1) or term.grads.shape[1:3] != (1, 1):
        return None
    g = term.grads[:, 0, 0]
    return g.mT @ g, a[0].mT @ a[0]


class _Mixed(nn.Module):
    """Logits that mix the first output of a layer, which leads with the examples."""

    def __init__(self, module: nn.Module, args: Sequence[Any]) -> None:
        super().__init__()
        self.layer = module
        with torch.no_grad():
            width = _first(copy.deepcopy(module)(*args))[0].numel()
        self.mix: Tensor
        self.register_buffer("mix", normal(width, CLASSES, seed=11) / width**0.5)

    def forward(self, *args: Any) -> Float[Tensor, "n c"]:
        """``[n, CLASSES]``."""
        return _first(self.layer(*args)).flatten(1).tanh() @ self.mix


class _Called(nn.Module):
    """A model that takes its arguments as one."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Unpacked) -> Tensor:
        """What the model gives."""
        args, more = inputs.arguments()
        found: Tensor = self.model(*args, **more)
        return found


def _example(n: int, k: int, t: Tensor) -> Tensor:
    """Example k of a tensor that leads with n of them."""
    return t[k : k + 1] if t.dim() and len(t) == n else t


def _doubled(module: nn.Module) -> nn.Module:
    """In float64, complex parameters in complex128, which torch's own conversion leaves."""
    module = module.double()
    for inner in module.modules():
        for p in inner.parameters(recurse=False):
            if p.is_complex():
                p.data = p.data.to(torch.complex128)
    return module


def _double(t: Tensor) -> Tensor:
    return t.to(torch.float64) if t.is_floating_point() else t


def _first(output: Any) -> Tensor:
    return next(t for t in tensors_of(output) if t.is_floating_point())
