"""Lookup tables: ``Embedding`` and ``EmbeddingBag``, whose inputs are one-hot rows that are never built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from curvlab.linalg.lookups import Lookups
from curvlab.model.readers.affine import of_kind
from curvlab.protocols.reader import LayerReader, Specimens


@dataclass(frozen=True)
class EmbeddingReader(LayerReader):
    """Reads ``nn.Embedding`` ``[V, d]`` as a block ``[d, V]`` on one-hot inputs.

    The factor A of one-hot rows is diagonal: how often each entry is looked up.  An entry that no example
    looks up has no curvature.  Positions of ``padding_idx`` have rows of zeros.
    """

    one_hot: ClassVar[bool] = True

    def refuses(self, module: nn.Module) -> str | None:
        refusal = of_kind(module, (nn.Embedding,), "forward")
        return _option(module) if refusal is None else refusal

    def parameters(self, module: nn.Module) -> tuple[str, ...]:
        return ("weight",)

    def shape(self, module: nn.Module) -> torch.Size:
        return torch.Size(reversed(_weight(module).shape))

    def axes(self, module: nn.Module, x: Any, shape: torch.Size) -> tuple[int, ...]:
        return shape[:-1] or (1,)

    def inputs(self, module: nn.Module, x: Tensor) -> Lookups:
        index = x.reshape(x.shape[0], -1) if x.dim() else x.view(1, 1)
        return Lookups(index.long(), *_table(module))

    def grads(self, module: nn.Module, g: Tensor, x: Tensor) -> Float[Tensor, "n s d"]:
        rows = g.reshape(g.shape[0], -1, g.shape[-1]) if x.dim() else g.view(1, 1, -1)
        return _without_padding(module, rows, x)

    def matrix(self, module: nn.Module, name: str, t: Tensor) -> Float[Tensor, "d V"]:
        return t.mT

    def unpacked(self, module: nn.Module, name: str, columns: Float[Tensor, "d V"]) -> Tensor:
        return columns.mT

    def specimens(self) -> Specimens:
        return [(nn.Embedding(7, 3, padding_idx=2), (torch.randint(7, s),)) for s in ((5,), (5, 4))]


@dataclass(frozen=True)
class EmbeddingBagReader(EmbeddingReader):
    """Reads ``nn.EmbeddingBag``: a row for each entry of a bag, with the weight that it has in it.

    Bags of equal length are examples of so many positions; bags given by offsets are rows on their own.
    """

    def refuses(self, module: nn.Module) -> str | None:
        refusal = of_kind(module, (nn.EmbeddingBag,), "forward")
        if refusal is None and getattr(module, "mode", "") == "max":
            return 'an EmbeddingBag of mode="max" is no linear map'
        return _option(module) if refusal is None else refusal

    def given(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        named = dict(zip(("input", "offsets", "per_sample_weights"), args, strict=False)) | kwargs
        found = (named.get(n) for n in ("input", "offsets", "per_sample_weights"))
        return tuple(None if t is None else t.detach() for t in found)

    def axes(self, module: nn.Module, x: Any, shape: torch.Size) -> tuple[int, ...]:
        return (len(x[0]),)

    def rows(self, module: nn.Module, x: Any, shape: torch.Size) -> int:
        return int(x[0].numel())

    def inputs(self, module: nn.Module, x: Any) -> Lookups:
        return super().inputs(module, x[0])

    def grads(self, module: nn.Module, g: Tensor, x: Any) -> Float[Tensor, "n s d"]:
        index, offsets, weights = x
        assert isinstance(module, nn.EmbeddingBag)
        bags = _bags(index, offsets, len(g))
        rows = _without_padding(module, g[bags].reshape(len(index), -1, g.shape[-1]), index)
        if weights is not None:
            rows = rows * weights.reshape(*rows.shape[:2], 1)
        if module.mode == "mean":
            kept = index.reshape(-1) != (-1 if module.padding_idx is None else module.padding_idx)
            sizes = torch.zeros(len(g), device=g.device, dtype=g.dtype).index_add_(0, bags, kept.to(g.dtype))
            rows = rows / sizes.clamp(min=1.0)[bags].reshape(*rows.shape[:2], 1)
        return rows

    def specimens(self) -> Specimens:
        return [(nn.EmbeddingBag(7, 3, mode=mode), (torch.randint(7, (5, 4)),)) for mode in ("mean", "sum")]


def _option(module: nn.Module) -> str | None:
    """Options under which the gradient is not that of a lookup."""
    if getattr(module, "max_norm", None) is not None:
        return f"{type(module).__name__} with max_norm changes its weight when it is called"
    if getattr(module, "scale_grad_by_freq", False):
        return f"{type(module).__name__} with scale_grad_by_freq scales its gradient"
    return None


def _weight(module: nn.Module) -> Tensor:
    assert isinstance(module, (nn.Embedding, nn.EmbeddingBag))
    return module.weight


def _table(module: nn.Module) -> tuple[int, torch.dtype]:
    """How many entries there are, and of which dtype."""
    weight = _weight(module)
    return weight.shape[0], weight.dtype


def _without_padding(module: nn.Module, rows: Float[Tensor, "n s d"], index: Tensor) -> Tensor:
    assert isinstance(module, (nn.Embedding, nn.EmbeddingBag))
    if module.padding_idx is None:
        return rows
    kept = index.reshape(rows.shape[0], -1, 1) != module.padding_idx
    return rows * kept


def _bags(index: Tensor, offsets: Tensor | None, bags: int) -> Tensor:
    """The bag of each entry, in order."""
    if offsets is None:
        return torch.arange(len(index), device=index.device).repeat_interleave(index.shape[1])
    starts = offsets[:bags].long()
    entries = torch.arange(len(index), device=index.device)
    return torch.searchsorted(starts, entries, right=True) - 1
