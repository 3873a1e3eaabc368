"""``nn.MultiheadAttention`` from linear maps: query, key, value and output are one ``F.linear`` each.

A packed ``in_proj_weight`` is used as three slices of its rows.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def attention(
    module: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Outputs and attention weights as the module returns them, for the arguments of its ``forward``."""
    batched = query.dim() == 3
    if not batched:
        query, key, value = (x.unsqueeze(1) for x in (query, key, value))
        key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
    elif module.batch_first:
        query, key, value = (x.transpose(0, 1) for x in (query, key, value))
    q, k, v = _projected(module, query, key, value)
    causal = is_causal and key_padding_mask is None  # a merged mask is causal no more
    mask = None if causal and not need_weights else _added(attn_mask, query.dtype)
    k, v, mask, padding = _extended(module, k, v, mask, _added(key_padding_mask, query.dtype))
    mask = _merged(mask, padding, module.num_heads)
    q, k, v = (_heads(x, module.num_heads) for x in (q, k, v))
    p = module.dropout if module.training else 0.0
    weights = None
    if need_weights:
        y, weights = _weighted(q, k, v, mask, p)
    else:
        y = F.scaled_dot_product_attention(q, k, v, mask, p, causal)
    y = F.linear(y.permute(0, 2, 1, 3).flatten(2), module.out_proj.weight, module.out_proj.bias)
    y = y.transpose(0, 1)
    if weights is not None and average_attn_weights:
        weights = weights.mean(dim=1)
    if not batched:
        return y.squeeze(1), None if weights is None else weights.squeeze(0)
    return (y.transpose(0, 1) if module.batch_first else y), weights


def _projected(module: nn.MultiheadAttention, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Query, key and value ``[t, n, e]``, from rows that lead with the examples."""
    apart = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    weights = apart if module.in_proj_weight is None else module.in_proj_weight.chunk(3)
    biases = (None,) * 3 if module.in_proj_bias is None else module.in_proj_bias.chunk(3)
    given = (x.transpose(0, 1) for x in inputs)
    return tuple(F.linear(*each).transpose(0, 1) for each in zip(given, weights, biases, strict=True))


def _added(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A mask as numbers that are added to scores: −∞ where a boolean one is true."""
    if mask is None or mask.is_floating_point():
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -math.inf)


def _extended(
    module: nn.MultiheadAttention, k: Tensor, v: Tensor, mask: Tensor | None, padding: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Keys and values with the learned position and the position of zeros, which no mask hides."""
    n, more = k.shape[1], 0
    if module.bias_k is not None and module.bias_v is not None:
        k = torch.cat((k, module.bias_k.repeat(1, n, 1)))
        v = torch.cat((v, module.bias_v.repeat(1, n, 1)))
        more += 1
    if module.add_zero_attn:
        k, v = (torch.cat((x, x.new_zeros(1, *x.shape[1:]))) for x in (k, v))
        more += 1
    if more:
        mask, padding = (None if m is None else F.pad(m, (0, more)) for m in (mask, padding))
    return k, v, mask, padding


def _merged(mask: Tensor | None, padding: Tensor | None, heads: int) -> Tensor | None:
    """Masks ``[t, s]`` or ``[n · heads, t, s]`` and ``[n, s]`` as one, broadcast to ``[n, heads, t, s]``."""
    if mask is not None:
        mask = mask[None, None] if mask.dim() == 2 else mask.reshape(-1, heads, *mask.shape[1:])
    if padding is None:
        return mask
    padding = padding[:, None, None, :]
    return padding if mask is None else mask + padding


def _heads(x: Tensor, heads: int) -> Tensor:
    """``[t, n, e]`` as ``[n, heads, t, e / heads]``."""
    return x.view(*x.shape[:-1], heads, x.shape[-1] // heads).permute(1, 2, 0, 3)


def _weighted(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, p: float) -> tuple[Tensor, Tensor]:
    """Attention ``[n, heads, t, d]`` and its weights after dropout ``[n, heads, t, s]``."""
    scores = (q * math.sqrt(1.0 / q.shape[-1])) @ k.transpose(-2, -1)
    if mask is not None:
        scores = scores + mask
    weights = F.dropout(scores.softmax(dim=-1), p)
    return weights @ v, weights
