"""Rows of a layer's calls as rows of the examples of the loss, and what they are multiplied by.

A layer may be called several times in one forward pass, and on other batch sizes than the loss has
examples.  ``arranged`` decides from shapes alone, for all calls of one block, in this order:

| calls | rows |
|---|---|
| lead with the n examples | ``[n, s, d]`` |
| together have n inputs, or a multiple of n, one size below n each | in order of the calls, as examples |
| have n along one other axis (time first) | that axis first |
| have a multiple of n rows (examples merged with positions, in order) | ``[n, rows / n, d]`` |
| have another number of rows (tokens sent to an expert) | ``[rows, 1, d]``, each on its own |

Several calls that can each be arranged lie side by side along positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from curvlab.errors import ConfigError, Fault
from curvlab.linalg.lookups import AnyRows, rearranged


@dataclass(frozen=True)
class Called:
    """The shape of one call: axes that may be that of the examples, the first leading; rows of gradients."""

    axes: tuple[int, ...]
    rows: int


@dataclass(frozen=True)
class Arrangement:
    """How rows ``[*v, m, t, d]`` of each call become ``[*v, n, r, d]``, or ``[*v, rows, k, d]`` if flat.

    ``t`` is k rows at each position: 1 for gradients, ``reader.groups`` for inputs.
    """

    examples: int
    calls: tuple[Called, ...]
    how: Literal["side by side", "in order", "flat"]

    @property
    def by_example(self) -> bool:
        """Whether the first axis is that of the examples."""
        return self.how != "flat"

    @property
    def certain(self) -> bool:
        """Whether no other axis of a call has as many entries as there are examples."""
        n = self.examples
        return self.by_example and (n == 1 or all(c.axes.count(n) <= 1 for c in self.calls))

    def inputs(self, parts: Sequence[AnyRows]) -> AnyRows:
        """One set of rows ``[n, r, i]`` of what the calls have, in order."""
        return rearranged(self, parts)

    def __call__(self, parts: Sequence[Shaped[Tensor, "*v m t d"]]) -> Shaped[Tensor, "*v n r d"]:
        """One tensor of what the calls have, in order: rows, or the integers of lookups."""
        if self.how == "side by side":
            found = [self._leading(call, p) for call, p in zip(self.calls, parts, strict=True)]
            return found[0] if len(found) == 1 else torch.cat(found, dim=-2)
        if self.how == "in order":
            return _split(torch.cat(list(parts), dim=-3), self.examples)
        return torch.cat([_split(p, call.rows) for call, p in zip(self.calls, parts, strict=True)], dim=-3)

    def _leading(self, call: Called, part: Tensor) -> Tensor:
        n, axes = self.examples, call.axes
        if axes[0] == n:
            return part
        if n > 1 and n in axes[1:]:
            *v, _, _, d = part.shape
            part = part.reshape(*v, *axes, -1, d).movedim(len(v) + axes.index(n), len(v))
            return part.reshape(*v, n, -1, d)
        return _split(part, n)


def arranged(block: str, calls: Sequence[Called], examples: int) -> Arrangement:
    """The arrangement of a block's calls, none of which is empty, by ``examples``.

    Raises ``ConfigError`` if an input can be read in two ways: its first axis is a multiple of the number of
    examples and another axis has that length, or several other axes have it.
    """
    n, calls = examples, tuple(calls)
    firsts = {c.axes[0] for c in calls}
    for call in calls:
        _require_clear(block, call, n)
    pieces = len(calls) > 1 and max(firsts) < n and not any(n in c.axes for c in calls)
    if pieces and sum(c.axes[0] for c in calls) % n == 0 and len({c.rows // c.axes[0] for c in calls}) == 1:
        return Arrangement(n, calls, "in order")
    if all(n in c.axes or c.rows % n == 0 for c in calls):
        return Arrangement(n, calls, "side by side")
    return Arrangement(n, calls, "flat")


def merged(
    inputs: Sequence[AnyRows],
    grads: Sequence[Sequence[Float[Tensor, "v n s o"]]],
    groups: int = 1,
) -> tuple[AnyRows, list[Float[Tensor, "v n s o"]]]:
    """Rows of several passes as one: of inputs ``[n, r, i]``, and of each kind of gradients.

    Where passes differ in positions, each position is a row on its own, ``[rows, 1, d]``.
    """
    if len({x.shape[1] for x in inputs}) > 1:
        inputs = [rearranged(lambda p: p[0].reshape(-1, groups, p[0].shape[-1]), [x]) for x in inputs]
        grads = [[g.reshape(g.shape[0], -1, 1, g.shape[-1]) for g in some] for some in grads]
    return rearranged(lambda parts: _cat(parts, 0), inputs), [_cat(some, 1) for some in grads]


def _cat(parts: Sequence[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim)


def _split(part: Shaped[Tensor, "*v m t d"], into: int) -> Shaped[Tensor, "*v n r d"]:
    """Rows in order, cut into so many equal pieces."""
    *v, _, _, d = part.shape
    return part.reshape(*v, into, -1, d)


def _require_clear(block: str, call: Called, n: int) -> None:
    first, *others = call.axes
    if first == n or n == 1 or n not in others:
        return
    if first % n == 0 or others.count(n) > 1:
        raise ConfigError(
            Fault(
                f'layer "{block}" was called on leading axes {list(call.axes)} in a batch of {n} examples;'
                " expected the examples on the first axis, and it is unclear which axis counts them",
                hint="call the layer with the examples as the first axis, or choose another batch size",
            )
        )
