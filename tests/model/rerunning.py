"""The law of a re-run: outputs and gradients of every parameter and input are those of the fused call."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from curvlab.model.rerun.modules import rerun


def tensors(tree: Any) -> Iterator[Tensor]:
    """Every tensor of nested outputs or arguments, in order."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, PackedSequence):
        yield tree.data
    elif isinstance(tree, tuple | list):
        for part in tree:
            yield from tensors(part)
    elif isinstance(tree, Mapping):
        yield from tensors(tuple(tree.values()))


def structure(tree: Any) -> Any:
    """Types and shapes of nested outputs."""
    if isinstance(tree, PackedSequence):
        rest = tree.batch_sizes, tree.sorted_indices, tree.unsorted_indices
        return ("packed", tree.data.shape, *(None if t is None else t.tolist() for t in rest))
    if isinstance(tree, tuple):
        return tuple(map(structure, tree))
    return None if tree is None else tree.shape


def leaves_of(module: nn.Module, args: Any, kwargs: Any, leaves: Sequence[Tensor]) -> list[Tensor]:
    """Parameters and inputs that a gradient is asked of."""
    given = [t for t in (*tensors(args), *tensors(kwargs)) if t.is_leaf and t.requires_grad]
    return [*(p for p in module.parameters() if p.requires_grad), *leaves, *given]


def gradients(outputs: Any, leaves: Sequence[Tensor], seed: int = 1) -> tuple[Tensor | None, ...]:
    """Of one random linear function of all outputs."""
    generator = torch.Generator().manual_seed(seed)
    loss = sum(
        (y * torch.randn(y.shape, dtype=y.dtype, generator=generator)).sum()
        for y in tensors(outputs)
        if y.requires_grad
    )
    return torch.autograd.grad(loss, leaves, allow_unused=True, retain_graph=True)


def assert_equal_to_fused(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    leaves: Sequence[Tensor] = (),
) -> None:
    """``leaves``: tensors that the arguments were made of, beside those that are leaves themselves."""
    kwargs = kwargs or {}
    torch.manual_seed(7)
    fused = module(*args, **kwargs)
    drawn = torch.get_rng_state()
    torch.manual_seed(7)
    again = rerun(module, args, kwargs)
    assert torch.equal(torch.get_rng_state(), drawn)  # as many numbers, too
    assert structure(again) == structure(fused)
    asked = leaves_of(module, args, kwargs, leaves)
    for mine, true in zip(tensors(again), tensors(fused), strict=True):
        torch.testing.assert_close(mine, true, rtol=1e-10, atol=1e-12, equal_nan=True)
        assert mine.requires_grad == true.requires_grad
    mine, true = gradients(again, asked), gradients(fused, asked)
    assert any(g is not None and bool(g.abs().sum() > 0) for g in true)  # the law says something
    for m, t in zip(mine, true, strict=True):
        assert (m is None) == (t is None)
        if t is not None:
            torch.testing.assert_close(m, t, rtol=1e-9, atol=1e-11, equal_nan=True)
