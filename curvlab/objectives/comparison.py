"""Compares what autograd adds to ``.grad`` with what the recorded calls of the layers say of it.

Two comparisons: of one weight matrix along a random direction ``uᵀ M v``, which every entry enters, or of the
weights of one output alone, which is cheaper.  Differences and their bounds for rounding stay tensors, so the
device is read once a step (``contradicted``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from random import Random

import torch
from torch import Tensor

from curvlab.linalg.work import tf32_rounding, work_dtype
from curvlab.model.captured import sums_coarsely
from curvlab.objectives.entry import Entry
from curvlab.objectives.graph_task import Arrived
from curvlab.protocols.blocks import Block, Blocks, as_real
from curvlab.protocols.pieces import whole

#: entries of a gradient that are looked at before all of it is, to find out whether it was zeroed
SAMPLE = 64
#: rounding of sums in another order, in units of ε, that two ways to one number may differ by
ROUNDING = 1e3
#: the same for products whose operands are rounded to the few bits of bfloat16, float16 or TF32
COARSE = 16.0
#: as ``ROUNDING``, relative to the bound of Cauchy and Schwarz
FINE = 64.0


class Comparison:
    """Compares the gradients of blocks with the rows of their calls.

    Directions and outputs are drawn from generators of its own, seeded, one per device.  ``coarse`` is the
    rounding unit of the autocast under which the present backward pass multiplies, or 0.
    """

    def __init__(self, blocks: Blocks) -> None:
        self.blocks = blocks
        self.coarse = 0.0
        self.chance = Random(0)
        self.generators: dict[torch.device, torch.Generator] = {}

    # along a direction

    @torch.no_grad()
    def begin(self, name: str, block: Block, g: Tensor, arrived: Arrived) -> None:
        """Draw u and v, and read ⟨.grad, u vᵀ⟩ before the gradient ``g`` of a parameter is added."""
        columns = [self.blocks.width(block, p) for p in block.parameters]
        place = _place(block, name)
        u, v = self._direction(block.shape[0], columns[place], g)
        before = self.blocks.leaf(name).grad
        along = None
        if before is not None:
            along = self._along(block, place, before, u, v)
        arrived.begun[name] = u, v, sum(columns[:place]), along

    @torch.no_grad()
    def finish(self, name: str, block: Block, p: Tensor, arrived: Arrived) -> None:
        """Compare what was added to ``p.grad``, along the direction, with its value by the rows."""
        u, v, start, before = arrived.begun.pop(name)
        assert p.grad is not None
        added = self._along(block, _place(block, name), p.grad, u, v)
        size = added.abs()
        if before is not None:
            added, size = added - before, torch.maximum(size, before.abs())
        rows = ((use, use.outputs(g), g) for use, g in arrived.pairs)
        explained, bound, tolerance = self._by_rows(rows, u, v, start, p)
        arrived.errors[name] = (added - explained).abs(), tolerance * (size + bound)

    @torch.no_grad()
    def is_zero_by_rows(self, block: Block, rows: Iterable[tuple[Entry, Tensor | None]]) -> bool:
        """Whether a block's rows add up to no gradient of its first parameter, along a random direction.

        A host sync.
        """
        p = block.parameters[0]
        value = self.blocks.leaf(whole(p))
        u, v = self._direction(block.shape[0], self.blocks.width(block, p), value)
        found = [(use, grads, grads) for use, grads in rows if grads is not None]
        explained, bound, tolerance = self._by_rows(found, u, v, 0, value)
        least = torch.finfo(value.dtype).smallest_normal * u.abs().sum() * v.abs().sum()  # underflow
        return bool(explained.abs() <= tolerance * bound + least)

    def _direction(self, rows: int, columns: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Two random vectors, in the dtype in which gradients like this one are compared."""
        generator, work = self._generator(like.device), _work(like)
        u = torch.randn(rows, generator=generator, dtype=work, device=like.device)
        v = torch.randn(columns, generator=generator, dtype=work, device=like.device)
        return u, v

    def _along(self, block: Block, place: int, grad: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """``uᵀ M v`` of the gradient of a block's parameter."""
        matrix = self.blocks.matrix(block, block.parameters[place], grad.detach())
        return u @ (matrix.to(u.dtype) @ v)

    def _by_rows(
        self, rows: Iterable[tuple[Entry, Tensor, Tensor]], u: Tensor, v: Tensor, start: int, p: Tensor
    ) -> tuple[Tensor, Tensor, float]:
        """``uᵀ M v`` by rows, a bound on it, and the rounding relative to it.

        ``rows`` are calls, their gradient rows ``[m, s, o]``, and the gradients whose dtype tells how coarse
        the products of the backward pass were.
        """
        explained, size, coarse = u.new_zeros(()), u.new_zeros(()), 0.0
        for use, grads, arriving in rows:
            value, bound = use.along(u, v, start, grads, u.dtype)
            explained, size = explained + value, size + bound
            coarse = max(coarse, self.coarse, _coarse(arriving, p, use))
        return explained, size, max(ROUNDING * torch.finfo(u.dtype).eps, COARSE * coarse)

    # of one output

    def choose(self, name: str, block: Block) -> tuple[int, Tensor | None]:
        """An output of a layer, and the gradient of its weights before any is added."""
        k, grad = self.chance.randrange(block.shape[0]), self.blocks.leaf(name).grad
        if grad is None:
            return k, None
        return k, self.blocks.matrix(block, block.parameters[0], grad.detach())[k].clone()

    @torch.no_grad()
    def look(self, name: str, block: Block, p: Tensor, arrived: Arrived) -> None:
        """Compare what was added to the weights of the chosen output with what the calls say of it."""
        assert p.grad is not None
        assert arrived.looked is not None
        k, before = arrived.looked
        work = _work(p)
        now = self.blocks.matrix(block, block.parameters[0], p.grad.detach())[k].to(work)
        before = None if before is None else before.to(work)
        added = now if before is None else now - before
        size, coarse, explained = torch.linalg.vector_norm(added), 0.0, torch.zeros_like(added)
        if before is not None:
            size = size + torch.linalg.vector_norm(before)
        for use, g in arrived.pairs:
            values, bound = use.row(k, g, work)
            explained, size = explained + values, size + bound
            coarse = max(coarse, self.coarse, _coarse(g, p, use))
        tolerance = max(FINE * torch.finfo(work).eps, COARSE * coarse)
        # of smaller gradients the norms above are 0: their squares underflow
        least = torch.finfo(work).tiny ** 0.5
        arrived.errors[name] = (added.flatten() - explained).abs().amax(), tolerance * size + least

    def _generator(self, device: torch.device) -> torch.Generator:
        if device not in self.generators:
            self.generators[device] = torch.Generator(device).manual_seed(0)
        return self.generators[device]


def contradicted(checked: Mapping[str, Sequence[Arrived]]) -> list[str]:
    """Names under which a comparison failed; one transfer from the device."""
    named = [(n, pair) for n, found in checked.items() for a in found for pair in a.errors.values()]
    if not named:
        return []
    errors = torch.stack([error for _, (error, _) in named])
    bounds = torch.stack([bound for _, (_, bound) in named])
    wrong = (errors > bounds).tolist()  # false for NaN: the step refuses it anyway
    return [name for (name, _), bad in zip(named, wrong, strict=True) if bad]


def is_zero(t: Tensor) -> bool:
    """Whether every entry is zero; of most others a few entries are looked at.  A host sync."""
    if bool(t.reshape(-1)[:SAMPLE].any()) if t.is_contiguous() else bool(t.any()):
        return False
    return not bool(t.any())


def _place(block: Block, parameter: str) -> int:
    """Which of a block's parameters is this one, or a piece of it."""
    return [whole(p) for p in block.parameters].index(parameter)


def _coarse(arriving: Tensor, g: Tensor, use: Entry) -> float:
    """Relative error of products where the model computes in halves, or TF32 rounds their operands."""
    if sums_coarsely(use.reader, use.output_dtype):
        return 1.0 / COARSE
    coarser = min((arriving.dtype, as_real(g).dtype), key=lambda dtype: -torch.finfo(dtype).eps)
    if coarser != _work(g):
        return float(torch.finfo(coarser).eps)
    return tf32_rounding(g)


def _work(t: Tensor) -> torch.dtype:
    """What gradients are compared in: their dtype, that of their parts if complex, float32 at least."""
    return work_dtype(as_real(t).dtype)
