"""Roots of the Hessians of single examples, of a criterion that is known by its value alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from curvlab.errors import ConfigError, Fault
from curvlab.objectives.nested import as_one, tensors_of
from curvlab.objectives.semidefinite import ROUNDING, eigen, require_room
from curvlab.objectives.twice import ALTERNATIVES, differentiating_twice, require_twice

#: makes outputs of one vector that holds them
Apart = Callable[[Tensor], Any]


@dataclass
class Differentiated:
    """A criterion differentiated once at some outputs, with the graph of its gradient."""

    what: str
    outputs: Tensor
    gradient: Tensor | None

    @classmethod
    def at(cls, outputs: Tensor, total: Callable[[Tensor], Tensor], what: str) -> Differentiated:
        """``total`` at outputs as one vector; raises ``ConfigError`` if it cannot be differentiated twice."""
        with torch.enable_grad():
            f = outputs.detach().requires_grad_()
            value = total(f)
            if not value.requires_grad:
                return cls(what, f, None)
            with differentiating_twice(what):
                (g,) = torch.autograd.grad(value, f, create_graph=True, materialize_grads=True)
        if not g.requires_grad:
            return cls(what, f, None)
        require_twice(what, [g])
        return cls(what, f, g)

    def product(self, v: Tensor) -> Tensor:
        """The Hessian times v."""
        if self.gradient is None:
            return torch.zeros_like(v)
        with differentiating_twice(self.what):
            (found,) = torch.autograd.grad(
                self.gradient, self.outputs, v, retain_graph=True, materialize_grads=True
            )
        return found

    def used(self) -> Tensor:
        """In which outputs it is curved: where a product with random numbers is not zero."""
        f, draw = self.outputs, torch.Generator(device="cpu").manual_seed(1)
        v = torch.randn(f.shape, dtype=f.dtype, generator=draw, device="cpu")
        return self.product(v.to(f.device)) != 0


@dataclass
class ExampleRoots:
    """Eigenvectors and roots of eigenvalues of the examples' Hessians, at places in one vector of outputs."""

    vectors: Float[Tensor, "n c c"]
    roots: Float[Tensor, "n c"]
    places: Int[Tensor, "n c"]
    like: Tensor

    @classmethod
    def of(cls, graph: Differentiated, places: Int[Tensor, "n c"]) -> ExampleRoots:
        """By c products with the Hessian; raises ``ConfigError`` if it is too large or has no such root."""
        n, c = places.shape
        require_room(n, c, graph.what)
        hessians = graph.outputs.new_zeros(n, c, c)
        for k in range(c):
            along = torch.zeros_like(graph.outputs)
            along[places[:, k]] = 1.0
            hessians[:, k] = graph.product(along)[places]
        _require_apart(graph, hessians, places)
        vectors, roots = eigen(hessians, graph.what, "example")
        return cls(vectors, roots, places, graph.outputs.detach())

    def columns(self) -> Iterator[Tensor]:
        """Each column of every example's root as one vector of outputs, largest first, without zeros."""
        used = [k for k in range(self.places.shape[1]) if bool((self.roots[:, k] != 0).any())]
        for k in reversed(used or [0]):
            yield self._put(self.vectors[:, :, k] * self.roots[:, k : k + 1])

    def times(self, noise: Float[Tensor, "n m"]) -> Tensor:
        """The symmetric root, which is unique, times the first c numbers of each example."""
        c = self.places.shape[1]
        along = (self.vectors.mT @ noise[:, :c].unsqueeze(-1)) * self.roots.unsqueeze(-1)
        return self._put((self.vectors @ along).squeeze(-1))

    def _put(self, rows: Float[Tensor, "n c"]) -> Tensor:
        """Numbers by example as one vector of outputs; the others are zero."""
        whole = torch.zeros_like(self.like)
        whole[self.places] = rows
        return whole


def _require_apart(graph: Differentiated, hessians: Tensor, places: Tensor) -> None:
    """Raise ``ConfigError`` if the Hessian has entries between examples."""
    draw = torch.Generator(device="cpu").manual_seed(0)
    along = torch.randn(places.shape, dtype=hessians.dtype, generator=draw, device="cpu")
    along = along.to(hessians.device)
    whole = torch.zeros_like(graph.outputs)
    whole[places] = along
    found, expected = graph.product(whole)[places], (hessians @ along.unsqueeze(-1)).squeeze(-1)
    off, size = float((found - expected).abs().max()), float(expected.abs().max())
    if off > ROUNDING * torch.finfo(hessians.dtype).eps * max(1.0, size):
        raise ConfigError(
            Fault(
                f"{graph.what} couples examples: its Hessian has entries between the outputs of two,"
                f" of size {off:.3g}; exact and sampled labels need a mean over examples",
                hint=f"use a criterion that is a mean (or sum) over examples; or {ALTERNATIVES}",
            )
        )


def places_of(outputs: Any, used: Tensor, what: str) -> Int[Tensor, "n c"]:
    """Where the numbers of each example are in the outputs as one vector; without tensors of no use.

    Raises ``ConfigError`` for used tensors whose first axes differ.
    """
    found, start = [], 0
    for t in tensors_of(outputs):
        if not t.is_floating_point():
            continue
        stop = start + t.numel()
        if bool(used.reshape(-1)[start:stop].any()) and t.dim():
            found.append(torch.arange(start, stop, device=t.device).view(t.shape[0], -1))
        start = stop
    if not found:
        return torch.zeros(leading(outputs), 1, dtype=torch.long, device=used.device)
    if len({len(t) for t in found}) > 1:
        sizes = " and ".join(str(len(t)) for t in found)
        raise ConfigError(
            Fault(
                f"{what} reads outputs whose first axes have {sizes} entries",
                hint=f"exact and sampled labels need outputs that lead with the examples; {ALTERNATIVES}",
            )
        )
    return torch.cat(found, 1)


def flattened(outputs: Any) -> tuple[Tensor, Apart]:
    """All floating-point outputs as one vector, and what makes outputs of a vector."""
    f, apart = as_one(outputs)
    return f.reshape(-1), lambda v: apart(v.view(f.shape))


def rows_of(*outputs: Any) -> list[Float[Tensor, "n c"]]:
    """Outputs as one row for each example, or as a single row if they do not all lead with the examples."""
    found = []
    for each in outputs:
        tensors = [t for t in tensors_of(each) if t.is_floating_point()]
        n = leading(each) if len({t.shape[:1] for t in tensors}) == 1 else 1
        found.append(torch.cat([t.reshape(n, -1) for t in tensors], 1))
    return found


def leading(outputs: Any) -> int:
    """The length of the first axis of outputs that have one."""
    return next((int(t.shape[0]) for t in tensors_of(outputs) if t.dim()), 1)
