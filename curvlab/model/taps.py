"""Taps: what a model's layers saw during a forward pass, and the gradients that came back.

A tap is a forward hook.  It keeps the layer's input and the *gradient edge* of its output, taken
before anything can change the output in place; gradients are then asked of the edges, so that autograd
need not form weight gradients.  Calls are kept by block, in call order: a layer that is used twice is
a layer with twice the positions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.func import debug_unwrap
from torch.utils.hooks import RemovableHandle

from curvlab.errors import ConfigError, Fault
from curvlab.linalg.lookups import AnyRows, Lookups
from curvlab.linalg.untraced import untraced
from curvlab.linalg.work import work_dtype
from curvlab.model.arrangement import Arrangement, Called, arranged
from curvlab.model.captured import gradient_rows, input_rows
from curvlab.model.inside import Inside
from curvlab.model.use import Use
from curvlab.protocols.blocks import Block, Blocks, as_real
from curvlab.protocols.pieces import whole
from curvlab.protocols.reader import LayerReader, total


@dataclass(frozen=True)
class Call:
    """One use of one layer: its input, and where the gradient of its output will arrive.

    ``transposed``: it uses the transposed matrix of its block.
    """

    block: Block
    module: nn.Module
    reader: LayerReader
    x: Any
    edge: GradientEdge
    output_shape: torch.Size
    output_dtype: torch.dtype
    dtype: torch.dtype  #: of the parameters
    transposed: bool = False

    @property
    def shape(self) -> Called:
        """What its arrangement by example follows from."""
        return Called(self.reader.axes(self.module, self.x, self.output_shape), self.rows)

    @property
    def rows(self) -> int:
        """Examples times positions, known from shapes alone."""
        return self.reader.rows(self.module, self.x, self.output_shape)

    @property
    def groups(self) -> int:
        """Rows of inputs per row of gradients."""
        return self.reader.groups(self.module)

    def inputs(self) -> AnyRows:
        """The input as rows ``[n, r, i]``, bias column included."""
        return input_rows(self.reader, self.module, self.x, self.output_dtype)

    def grads(self, g: Tensor | None) -> Float[Tensor, "n s o"]:
        """An output gradient as rows; ``None`` (the output was not used) as zeros."""
        if g is None:
            like = next(self.module.parameters())
            g = torch.zeros(self.output_shape, dtype=self.output_dtype, device=like.device)
        elif g.shape != self.output_shape:
            g = g.reshape(self.output_shape)
        return gradient_rows(self.reader, self.module, g, self.x)

    def gradient(self, g: Tensor | None) -> tuple[Float[Tensor, "o i"], Float[Tensor, "o i"]]:
        """What this call adds to the gradient of its block, and the same of the rows' absolute values."""
        work = work_dtype(self.dtype)
        inputs, rows = self.inputs().to(work), self.grads(g).to(work)
        sizes = inputs if isinstance(inputs, Lookups) else inputs.abs()
        found, bound = total(inputs, rows), total(sizes, rows.abs())
        return (found.mT, bound.mT) if self.transposed else (found, bound)


@dataclass
class Tape:
    """The calls of one forward pass, in order."""

    calls: list[Call] = field(default_factory=list)

    @property
    def edges(self) -> tuple[GradientEdge, ...]:
        """Where to ask for gradients, one per call."""
        return tuple(c.edge for c in self.calls)

    def drop_transposed(self) -> None:
        """Forget the calls that use a transposed matrix: they are in the gradient, but give no statistics."""
        self.calls[:] = [c for c in self.calls if not c.transposed]

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

    def record(use: Use) -> None:
        _require_plain(use.block, use.output)
        if not use.output.requires_grad:
            return
        edge, y = get_gradient_edge(arrival(use.output)), use.output
        dtypes = y.dtype, _dtype(use)
        tape.calls.append(
            Call(use.block, use.module, use.reader, use.x, edge, y.shape, *dtypes, use.transposed)
        )

    handles = listen(blocks, blocks.tapped, record)
    try:
        yield tape
    finally:
        for handle in handles:
            handle.remove()


def listen(
    blocks: Blocks,
    members: Iterable[Block],
    record: Callable[[Use], None],
    wanted: Callable[[], bool | None] = lambda: True,
    leave: Callable[[str, str], None] | None = None,
) -> list[RemovableHandle]:
    """Tell ``record`` of every use of these blocks while gradients are on, if its output has numbers.

    ``wanted()`` says whether uses inside composite modules are recorded, which costs time.
    ``leave(block, reason)`` receives blocks with a use that no reader reads; ``Blocks.leave`` if not given.
    """
    handles: list[RemovableHandle] = []
    inside: dict[str, list[Block]] = defaultdict(list)
    for block in members:
        for layer, reader, transposed in block.readings():
            if reader.composite:
                inside[layer].append(block)
            else:
                hook = Listener(block, reader, transposed, record)
                handles.append(blocks.modules[layer].register_forward_hook(hook, with_kwargs=True))
    for layer, its in inside.items():
        hooks = Inside(layer or "model", its, record, wanted, leave or blocks.leave)
        handles += hooks.attach(blocks.modules[layer], first=blocks.shards is not None)
    return handles


class Listener:
    """A forward hook that tells of a use.

    ``record`` may be a ``Hook``, which outlives what it calls.
    """

    def __init__(
        self, block: Block, reader: LayerReader, transposed: bool, record: Callable[[Use], None]
    ) -> None:
        self.block, self.reader, self.transposed, self.record = block, reader, transposed, record

    @untraced
    def __call__(self, module: nn.Module, args: tuple[Any, ...], *rest: Any) -> None:
        if len(rest) != 2:  # it was removed while other hooks ran, and torch forgot that it takes kwargs
            return
        kwargs, output = rest
        if not isinstance(output, Tensor):  # a jet, whose objective reads products with the weight itself
            return
        if torch.is_grad_enabled() and output.numel():  # no inputs, no rows
            x = self.reader.given(module, args, kwargs)
            self.record(Use(self.block, module, self.reader, x, output, self.transposed))


def _dtype(use: Use) -> torch.dtype:
    """The dtype of its parameters; of complex ones, that of their parts."""
    return as_real(use.module.get_parameter(whole(use.reader.parameters(use.module)[0]))).dtype


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
