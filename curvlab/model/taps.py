"""Taps: what a model's layers saw during a forward pass, and the gradients that came back.

A tap is a forward hook.  It keeps the layer's input and the *gradient edge* of its output, taken
before anything can change the output in place; gradients are then asked of the edges, so the weight
gradients that autograd would form are never formed.  Calls are kept by block, in call order: a
layer that is used twice is a layer with twice the positions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from curvlab.protocols.blocks import Block, Blocks


@dataclass(frozen=True)
class Call:
    """One use of one layer: its input, and where the gradient of its output will arrive."""

    block: Block
    module: nn.Module
    x: Tensor
    edge: GradientEdge
    output_shape: torch.Size

    def inputs(self) -> Float[Tensor, "n s i"]:
        """The input as rows, bias column included."""
        assert self.block.adapter is not None
        return self.block.adapter.inputs(self.module, self.x)

    def grads(self, g: Tensor | None) -> Float[Tensor, "n s o"]:
        """An output gradient as rows; ``None`` (the output was not used) as zeros."""
        assert self.block.adapter is not None
        g = self.x.new_zeros(self.output_shape) if g is None else g.reshape(self.output_shape)
        return self.block.adapter.grads(self.module, g)


@dataclass
class Tape:
    """The calls of one forward pass, in order."""

    calls: list[Call] = field(default_factory=list)

    @property
    def edges(self) -> tuple[GradientEdge, ...]:
        """Where to ask for gradients, one per call."""
        return tuple(c.edge for c in self.calls)

    def by_block(self) -> dict[str, list[int]]:
        """Positions in ``calls`` of each block's uses."""
        positions: dict[str, list[int]] = defaultdict(list)
        for k, call in enumerate(self.calls):
            positions[call.block.name].append(k)
        return positions


@contextmanager
def recording(blocks: Blocks) -> Iterator[Tape]:
    """Record every call of the tapped layers of ``blocks`` until the context ends."""
    tape = Tape()
    handles = []
    for block in blocks.tapped:
        for layer in block.layers:
            handles.append(blocks.modules[layer].register_forward_hook(_recorder(tape, block)))
    try:
        yield tape
    finally:
        for handle in handles:
            handle.remove()


def _recorder(tape: Tape, block: Block):  # type: ignore[no-untyped-def]  # torch's hook type is private
    def record(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        if torch.is_grad_enabled() and output.requires_grad:
            tape.calls.append(
                Call(block, module, args[0].detach(), get_gradient_edge(arrival(output)), output.shape)
            )

    return record


def arrival(output: Tensor) -> Tensor:
    """The tensor that a layer's output gradient reaches even if the output is changed in place.

    On more than two axes ``nn.Linear`` returns its product in another shape, as a view, and a change
    in place cuts a view off from its own edge, but not the product from its.
    """
    base = output._base
    if base is None or base.grad_fn is None or base.numel() != output.numel():
        return output
    return base if base.is_contiguous() and output.is_contiguous() else output


def joined(parts: Sequence[Float[Tensor, "... n s d"]]) -> Float[Tensor, "... n S d"]:
    """Several uses of one layer as one: their positions side by side."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=-2)
