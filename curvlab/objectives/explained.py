"""Do a layer's calls explain its gradient?  Every evaluation that keeps rows checks it.

The graph of the loss shows how it reaches a layer's parameters (``uses``).  A block whose parameters are
reached by its calls alone, in a way that was seen before, costs no more than that walk.  In any other case
its gradient is compared with that of its rows, by another backward pass.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from curvlab.linalg.work import tf32_rounding, work_dtype
from curvlab.model.captured import sums_coarsely
from curvlab.model.taps import Tape
from curvlab.model.uses import Graph
from curvlab.objectives.gradients import gradients
from curvlab.objectives.mismatch import LayerMismatch, mismatch
from curvlab.protocols.blocks import Block, Blocks
from curvlab.protocols.pieces import cut, whole


def drop_unexplained(
    blocks: Blocks, members: Sequence[Block], graph: Graph, share: Tensor, tape: Tape
) -> None:
    """Take the calls of blocks that do not explain their gradient off the tape, for good, with a warning.

    ``share`` is the loss, whose graph is ``graph``; ``members`` are the tapped blocks that are trained.
    """
    arrivals: dict[str, list[Any]] = {whole(p): [] for b in members for p in b.parameters}
    for call in tape.calls:
        for p in dict.fromkeys(map(whole, call.block.parameters)):
            if p in arrivals and call.edge.node not in arrivals[p]:
                arrivals[p].append(call.edge.node)
    unknown = []
    for block in members:
        names = list(dict.fromkeys(map(whole, block.parameters)))
        # the calls of all blocks that hold pieces of the same parameters
        nodes = list(dict.fromkeys(node for p in names for node in arrivals[p]))
        use = graph.use([blocks.leaf(p) for p in names], nodes)
        key = block.name, use.ways
        if not use.only or (use.ways and key not in blocks.explained):
            unknown.append(block)
            blocks.explained.add(key)
    wrong = blocks.together(_unexplained(blocks, unknown, share, tape))
    tape.calls[:] = [c for c in tape.calls if c.block.name not in wrong]
    blocks.untapped.update(wrong)
    for name in wrong:
        warnings.warn(mismatch(name), LayerMismatch, stacklevel=2)


def _unexplained(blocks: Blocks, members: Sequence[Block], share: Tensor, tape: Tape) -> list[str]:
    """Names of those of these blocks whose rows do not add up to their gradient; costs a backward pass."""
    names = list(dict.fromkeys(whole(p) for b in members for p in b.parameters))
    calls = [c for c in tape.calls if c.block in members]
    wanted: Any = (*(c.edge for c in calls), *(blocks.leaf(p) for p in names))
    if not names or not share.requires_grad:
        return []
    got = gradients(share, wanted, retain_graph=True, allow_unused=True)
    truth = dict(zip(names, got[len(calls) :], strict=True))
    like = blocks.like.detach()
    explained = {b.name: like.new_zeros(b.shape) for b in members}
    summed = {b.name: like.new_zeros(b.shape) for b in members}  # absolute values: rounding acts on these
    rounding = max(torch.finfo(blocks.leaf(p).dtype).eps for p in names)
    coarse: set[str] = set()
    for call, g in zip(calls, got, strict=False):
        value, size = call.gradient(g)
        explained[call.block.name] += value
        summed[call.block.name] += size
        rounding = max(rounding, torch.finfo(call.output_dtype).eps)  # under a loss scale g is wider
        if sums_coarsely(call.reader, call.output_dtype):
            coarse.add(call.block.name)
    wrong = []
    for block in members:
        scale = float(summed[block.name].max())
        for p, mine in blocks.split(block, explained[block.name]).items():
            true = truth[whole(p)]
            of_all = torch.zeros_like(mine) if true is None else cut(p, true)
            if not _close(mine, of_all, scale, 1.0 if block.name in coarse else rounding):
                wrong.append(block.name)
                break
    return sorted(wrong)


def _close(mine: Tensor, true: Tensor, scale: float, rounding: float) -> bool:
    """Equal up to the rounding of a sum in another order, whose terms' absolute values add up to ``scale``.

    A gradient that is not finite is no evidence either way.
    """
    if not bool(torch.isfinite(true).all()):
        return True
    fine = torch.finfo(work_dtype(true.dtype)).eps
    # convolutions on a GPU are in TF32
    tolerance = max(tf32_rounding(true), min(1.0, 1e3 * rounding, max(4.0 * rounding, 1e3 * fine)))
    return torch.allclose(
        mine, true.to(mine.dtype), rtol=tolerance, atol=tolerance * max(scale, float(true.abs().max()))
    )
