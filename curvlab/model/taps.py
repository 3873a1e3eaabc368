"""Taps: what a model's layers saw during a forward pass, and the gradients that came back.

A tap is a forward hook.  It keeps the layer's input and the *gradient edge* of its output, taken
before anything can change the output in place; gradients are then asked of the edges, so that autograd
need not form weight gradients.  Calls are kept by block, in call order: a layer that is used twice is
a layer with twice the positions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.func import debug_unwrap

from curvlab.errors import ConfigError, Fault
from curvlab.model.arrangement import Arrangement, Called, arranged
from curvlab.protocols.blocks import Block, Blocks


@dataclass(frozen=True)
class Call:
    """One use of one layer: its input, and where the gradient of its output will arrive."""

    block: Block
    module: nn.Module
    x: Tensor
    edge: GradientEdge
    output_shape: torch.Size
    dtype: torch.dtype  #: of the parameters, and of rows; autocast computes in another

    @property
    def shape(self) -> Called:
        """What its arrangement by example follows from."""
        assert self.block.reader is not None
        return Called(self.block.reader.axes(self.module, self.output_shape), self.rows)

    @property
    def rows(self) -> int:
        """Examples times positions, known from shapes alone."""
        return self.output_shape.numel() // self.block.shape[0]

    @property
    def groups(self) -> int:
        """Rows of inputs per row of gradients."""
        assert self.block.reader is not None
        return self.block.reader.groups(self.module)

    def inputs(self) -> Float[Tensor, "n r i"]:
        """The input as rows, bias column included."""
        assert self.block.reader is not None
        return self.block.reader.inputs(self.module, self.x.to(self.dtype))

    def grads(self, g: Tensor | None) -> Float[Tensor, "n s o"]:
        """An output gradient as rows; ``None`` (the output was not used) as zeros."""
        assert self.block.reader is not None
        if g is None:
            g = self.x.new_zeros(self.output_shape)
        elif g.shape != self.output_shape:
            g = g.reshape(self.output_shape)
        return self.block.reader.grads(self.module, g.to(self.dtype))


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

    def arranged(self, examples: int) -> dict[str, Arrangement]:
        """How each block's rows become rows of the loss's examples; raises ``ConfigError`` if unclear."""
        return {
            name: arranged(name, [self.calls[k].shape for k in calls], examples)
            for name, calls in self.by_block().items()
        }


@contextmanager
def recording(blocks: Blocks) -> Iterator[Tape]:
    """Record every call of the tapped layers of ``blocks`` until the context ends."""
    tape = Tape()
    handles = []
    for block in blocks.tapped:
        for layer in block.layers:
            hook = blocks.modules[layer].register_forward_hook(_recorder(tape, block), with_kwargs=True)
            handles.append(hook)
    try:
        yield tape
    finally:
        for handle in handles:
            handle.remove()


def _recorder(tape: Tape, block: Block):  # type: ignore[no-untyped-def]  # torch's hook type is private
    dtype_of = block.reader.parameters  # type: ignore[union-attr]

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        if not torch.is_grad_enabled():
            return
        _require_plain(block, output)
        if output.requires_grad and output.numel():  # a call on no inputs has no rows
            x, edge = given(args, kwargs), get_gradient_edge(arrival(output))
            dtype = getattr(module, dtype_of(module)[0]).dtype
            tape.calls.append(Call(block, module, x, edge, output.shape, dtype))

    return record


def _require_plain(block: Block, output: Tensor) -> None:
    """Raise ``ConfigError`` for a call inside a transform of ``torch.func``: its tensors hide rows."""
    if torch.compiler.is_compiling():  # torch.compile takes vmap apart and cannot trace the question
        return
    if debug_unwrap(output) is not output:
        raise ConfigError(
            Fault(
                f'layer "{block.name}" was called inside torch.func.vmap or another transform of torch.func.'
                " Its inputs and gradients cannot be recorded there",
                hint="call the model on the whole batch without vmap, or use a method without layer"
                " statistics, such as soap",
            )
        )


def given(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """What a layer was called on, by position or by name."""
    x: Tensor = args[0] if args else kwargs["input"]
    return x.detach()


def arrival(output: Tensor) -> Tensor:
    """The tensor that a layer's output gradient reaches even if the output is changed in place.

    On more than two axes ``nn.Linear`` returns its product in another shape, as a view, and so does a
    convolution of one example without a batch axis.  A change in place cuts a view off from its own
    edge, but not the product from its.
    """
    base = output._base
    if base is None or base.grad_fn is None or base.numel() != output.numel():
        return output
    reshaped = base.is_contiguous() and output.is_contiguous()
    return base if reshaped or _axes(base) == _axes(output) else output


def _axes(t: Tensor) -> list[tuple[int, int]]:
    """Lengths and strides of the axes longer than one."""
    return [(d, step) for d, step in zip(t.shape, t.stride(), strict=True) if d > 1]


def joined(parts: Sequence[Float[Tensor, "... n s d"]]) -> Float[Tensor, "... n S d"]:
    """Several uses of one layer as one: their positions side by side."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=-2)


def by_example(rows: Float[Tensor, "*v m t d"], positions: int, examples: int) -> Float[Tensor, "*v n r d"]:
    """Rows of a layer that was called on m inputs, as rows of the n ``examples`` of the loss.

    A model that joins positions with the examples (frames of a video, tokens before the loss) calls a
    layer on more inputs, or fewer, than there are examples, in order.  Left alone if ``m · positions``
    is no multiple of n.
    """
    m = rows.shape[-3]
    if m == examples or m * positions % examples:
        return rows
    *v, _, _, d = rows.shape
    return rows.flatten(-3, -2).reshape(*v, examples, -1, d)
