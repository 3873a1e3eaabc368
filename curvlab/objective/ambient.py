"""The pass that a plain ``loss.backward()`` loop leaves behind.

Hooks stay on the model for the optimizer's life.  They keep layer inputs and output gradients only
on the steps whose needs ask for them, and count the examples of passes that went backward.  Several
backward passes before a step (gradient accumulation) are one pass over all their examples; the
caller's losses must add up to the loss of them all.

Of several processes every one has the rows of all, beside the gradient that DistributedDataParallel has
averaged over ranks, whatever their numbers of examples.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from curvlab.errors import ConfigError, Fault, UnsupportedEvidence
from curvlab.linalg.vectors import BlockVector
from curvlab.model.taps import arrival, by_example, given, joined
from curvlab.objective.ranks import Ranks
from curvlab.protocols.blocks import Block, Blocks
from curvlab.protocols.evidence import LayerStats, Pass
from curvlab.protocols.needs import Labels, Needs

Reduction = Literal["mean", "sum", "mean-tokens"]


@dataclass
class _Forward:
    """One forward pass of the whole model: its size, and the calls whose gradients came back.

    ``used``: a gradient came back at all; a forward without a backward counts for nothing.
    """

    examples: int
    used: bool = False
    calls: list[tuple[str, Tensor, Tensor]] = field(default_factory=list)  # block, inputs, grads


class Ambient:
    """Listens to a model that is trained by its caller's own loop."""

    def __init__(self, blocks: Blocks, reduction: Reduction, ranks: Ranks | None = None) -> None:
        if reduction not in ("mean", "sum", "mean-tokens"):
            raise ConfigError(Fault(f"reduction = {reduction!r}", hint='use "mean", "sum" or "mean-tokens"'))
        self.blocks, self.reduction, self.ranks = blocks, reduction, ranks
        self.alike = ranks is None  #: whether gradients were seen to be the same on all ranks
        self.layers: frozenset[Labels] = frozenset()
        self.forwards: list[_Forward] = []
        self.hearing = True
        blocks.model.register_forward_pre_hook(_Hook(self._begin), with_kwargs=True)
        blocks.model.register_forward_hook(_Hook(self._end))
        for block in blocks.members:
            for layer in block.layers:
                blocks.modules[layer].register_forward_hook(_Hook(self._tap, block), with_kwargs=True)

    def listen(self, needs: Needs) -> None:
        """What to keep of the passes before the next step."""
        self.layers = needs.layers

    def clear(self) -> None:
        """Forget everything seen."""
        self.forwards.clear()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Hears nothing of what is evaluated inside: the passes of an objective are its own."""
        self.hearing = False
        try:
            yield
        finally:
            self.hearing = True

    def collect(self, loss: Tensor | None, loss_scale: float = 1.0) -> Pass:
        """The pass of everything seen since the last one, from ``.grad`` and what was kept.

        ``loss_scale`` is what the caller's loss was multiplied by before ``backward()``.  Raises
        ``ConfigError`` if, of several processes, nobody has averaged the gradients (looked at once).
        """
        gradient = self.blocks.pack({n: p.grad for n, p in self.blocks.parameters.items()})
        if loss_scale != 1.0:
            gradient.scale_(1.0 / loss_scale)
        seen = [f for f in self.forwards if f.used]
        of_ranks = [sum(f.examples for f in seen)]
        if self.ranks is not None:
            of_ranks = self.ranks.each(of_ranks[0])
        if self.reduction == "sum":
            if not all(of_ranks):
                raise ConfigError(
                    Fault(
                        'reduction = "sum" but the model was not called before step()',
                        hint="call the model itself, so that its examples can be counted",
                    )
                )
            gradient.scale_(len(of_ranks) / sum(of_ranks))
        self._require_alike(gradient)
        value = torch.full((), float("nan")) if loss is None else loss.detach()
        result = self._pass(gradient, value, seen, loss_scale)
        self.clear()
        return result if self.ranks is None else self._together(result, self.ranks, sum(of_ranks))

    def _together(self, mine: Pass, ranks: Ranks, examples: int) -> Pass:
        loss = ranks.sum_(mine.loss.clone()) / ranks.size
        layers = ranks.joined(mine.layers) if self.layers else mine.layers
        return replace(mine, examples=max(examples, 1), loss=loss, layers=layers)

    def _require_alike(self, gradient: BlockVector) -> None:
        if self.ranks is not None and not self.alike:
            hint = "wrap the model in DistributedDataParallel, which averages them"
            self.ranks.require_same("the gradients", [gradient.flat], hint)
            self.alike = True

    def _pass(self, gradient: BlockVector, loss: Tensor, seen: list[_Forward], loss_scale: float) -> Pass:
        n = sum(f.examples for f in seen)
        if not self.layers:
            return Pass(max(n, 1), loss, gradient)
        seen = [f for f in seen if f.calls]
        if not seen:
            raise ConfigError(
                Fault(
                    "no layer statistics were captured before step()",
                    hint="make the optimizer first, then call the model and loss.backward()",
                )
            )
        pieces: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for forward in seen:
            calls: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for name, x, g in forward.calls:
                calls[name].append((x, g))
            for name, found in calls.items():
                x, g = joined([x for x, _ in found]), joined([g for _, g in found])
                s = g.shape[1]
                pieces[name].append((by_example(x, s, forward.examples), by_example(g, s, forward.examples)))
        positions = pieces[seen[-1].calls[0][0]][0][1].shape[1] if self.reduction == "mean-tokens" else 1
        scale = (1.0 if self.reduction == "sum" else float(n)) * positions**0.5 / loss_scale
        stats = {}
        for name, parts in pieces.items():
            x, g = _stacked(name, [x for x, _ in parts]), _stacked(name, [g for _, g in parts])
            stats[name] = (x, g.unsqueeze(0) * scale)
        layers = {
            kind: {n_: (LayerStats(x, g if kind is Labels.DATA else None),) for n_, (x, g) in stats.items()}
            for kind in self.layers
        }
        return Pass(n, loss, gradient, layers, positions=positions, terms=positions)

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A pass of the model begins."""
        if self._hears(module):
            first = next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None)
            self.forwards.append(_Forward(int(first.shape[0]) if first is not None and first.dim() else 1))

    def _end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """A pass of the model has ended; from its output it will be known whether it went backward."""
        if not self._hears(module) or not self.forwards:
            return
        forward, outputs = self.forwards[-1], [t for t in _tensors(output) if t.requires_grad]

        def mark(g: Tensor) -> None:
            forward.used = True

        for tensor in outputs:
            arrival(tensor).register_hook(mark)  # type: ignore[no-untyped-call]
        forward.used = not outputs  # an output that we cannot look into is taken on trust

    def _tap(
        self, block: Block, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> None:
        """A layer was called."""
        if not self.hearing or not self.layers or not self.forwards:
            return
        if not (torch.is_grad_enabled() and output.requires_grad):
            return
        forward, x, shape, adapter = self.forwards[-1], given(args, kwargs), output.shape, block.adapter
        dtype = self.blocks.parameters[block.parameters[0]].dtype  # autocast computes in another
        assert adapter is not None

        def arrive(g: Tensor) -> None:
            rows = adapter.grads(module, g.detach().reshape(shape)).to(dtype)
            forward.calls.append((block.name, adapter.inputs(module, x).to(dtype), rows))

        # before any in-place activation, so of this very output
        arrival(output).register_hook(arrive)  # type: ignore[no-untyped-call]

    def _hears(self, module: nn.Module) -> bool:
        """Whether a call of ``module`` is a training pass of the model."""
        return self.hearing and module is self.blocks.model and torch.is_grad_enabled()


class _Hook:
    """Calls a method of an ``Ambient`` that it does not keep alive.

    A copy of the model, or one from a file, has a deaf hook in its place.
    """

    def __init__(self, method: Callable[..., None] | None, *first: Any) -> None:
        self.method = None if method is None else weakref.WeakMethod(method)
        self.first = first

    def __call__(self, *given: Any) -> None:
        method = None if self.method is None else self.method()
        if method is not None:
            method(*self.first, *given)

    def __reduce__(self) -> tuple[type[_Hook], tuple[None]]:
        return _Hook, (None,)


def _stacked(name: str, parts: Sequence[Tensor]) -> Tensor:
    """Rows of several passes as one tensor; raises ``UnsupportedEvidence`` if their positions differ."""
    lengths = sorted({int(t.shape[1]) for t in parts})
    if len(lengths) > 1:
        raise UnsupportedEvidence(
            "layer statistics",
            name,
            expected="as many positions in every backward pass of a step",
            got=" and ".join(map(str, lengths)),
            hint="pad the batches of one step to one length, or step after each backward pass",
        )
    return torch.cat(list(parts))


def _tensors(output: Any) -> Iterator[Tensor]:
    """The tensors in a model's output: one, or several in mappings and sequences."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, (Mapping, list, tuple)):
        for inner in output.values() if isinstance(output, Mapping) else output:
            yield from _tensors(inner)
