"""Transform: the direction of the update, block by block in the length of another rule's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from curvlab.linalg.vectors import BlockVector
from curvlab.parts.settings import fraction
from curvlab.protocols.step import At, Transform

Rule = Literal["none", "gradient", "unit", "block", "rows", "rows-and-columns", "adam"]

#: moments that each rule holds of a block ``[o, *]``, as names of ``Moments``' fields
HELD = {"block": ("all",), "rows": ("rows",), "rows-and-columns": ("rows", "columns")}


@dataclass
class Moments:
    """Means of squared gradients so far: by block, of all its entries, of each row, of each column; of each entry."""

    all: dict[str, Tensor] = field(default_factory=dict)
    rows: dict[str, Tensor] = field(default_factory=dict)
    columns: dict[str, Tensor] = field(default_factory=dict)
    entries: BlockVector | None = None
    count: int = 0  #: gradients seen


@dataclass(frozen=True)
class Graft(Transform[Moments]):
    """Each block keeps its direction and gets the Euclidean norm of another rule's update of that block.

    ``u_b = ℓ_b · v_b / ‖v_b‖``: grafting (Agarwal et al. 2020, arXiv 2002.11803).  m is the vector that was
    preconditioned, the gradient after ``on_gradient``.  A block whose update is zero, or whose m is, stays zero.

    | rule | ℓ of a block ``[o, i]`` with n entries | state, scalars |
    |---|---|--:|
    | none | ‖v‖: nothing changes | 0 |
    | gradient | ‖m‖: gradient descent's | 0 |
    | unit | √n: a root mean square of 1 | 0 |
    | block | ‖m‖ / √s, s the mean of g² over time and entries | 1 |
    | rows | ‖m_r / √s_r‖, s_r the mean over time and row r | o |
    | rows-and-columns | ‖m / √ŝ‖, ŝ = s_r s_c / mean(s): Adafactor's | o + i |
    | adam | ‖m / √ŝ‖, ŝ the mean over time of each entry: Adam's | o i |

    Means over time are Adam's, with decay ``beta`` and bias correction.  All but "gradient" and "none" are the
    same whatever the scale of the loss.
    """

    fallible = False

    rule: Rule = "gradient"
    beta: float = 0.999  #: β₂, decay of the means of squared gradients

    def __post_init__(self) -> None:
        fraction("beta", self.beta)

    def init(self, like: BlockVector) -> Moments:
        state = Moments()
        for name in HELD.get(self.rule, ()):
            getattr(state, name).update({b: _means(like[b], name).zero_() for b in like.layout.names})
        if self.rule == "adam":
            state.entries = like.zeros_like()
        return state

    def __call__(self, state: Moments, v: BlockVector, at: At) -> BlockVector:
        if self.rule == "none":
            return v
        self._observe(state, at.gradient)
        m, out = at.gradient if at.given is None else at.given, v.owned()
        for name, block in out.items():
            ratio = self._length(state, name, m[name]) / torch.linalg.vector_norm(block)
            block.mul_(torch.nan_to_num(ratio, nan=0.0, posinf=0.0))
        return out

    def _observe(self, state: Moments, g: BlockVector) -> None:
        if self.rule not in HELD and state.entries is None:
            return
        state.count += 1
        share = (1 - self.beta) / (1 - self.beta**state.count)
        if state.entries is not None:
            state.entries.flat.mul_(1 - share).addcmul_(g.flat, g.flat, value=share)
        for kind in HELD.get(self.rule, ()):
            for name, mean in getattr(state, kind).items():
                mean.lerp_(_means(g[name], kind), share)

    def _length(self, state: Moments, name: str, m: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm
        if self.rule == "gradient":
            return norm(m)
        if self.rule == "unit":
            return (m.new_full((), m.numel()) * (norm(m) > 0)).sqrt()
        if self.rule == "block":
            return norm(m) * _inverse_root(state.all[name])
        if state.entries is not None:
            return norm(m * _inverse_root(state.entries[name]))
        rows = state.rows[name]
        if self.rule == "rows-and-columns" and m.dim() > 1:
            columns = state.columns[name]
            scaled = norm(m.flatten(1) * _inverse_root(columns / _positive(columns.mean())), dim=1)
        else:
            scaled = norm(m.flatten(1) if m.dim() > 1 else m.reshape(-1, 1), dim=1)
        return norm(scaled * _inverse_root(rows))


def _means(g: Tensor, kind: str) -> Tensor:
    """Means of squares: of all entries, of each row, of each column."""
    matrix = g.flatten(1) if g.dim() > 1 else g.reshape(-1, 1)
    dim = {"all": (0, 1), "rows": 1, "columns": 0}[kind]
    size = matrix.numel() // max(1, g.shape[0] if kind == "rows" and g.dim() else 1)
    if kind == "columns":
        size = matrix.shape[0]
    elif kind == "rows":
        size = matrix.shape[1]
    return torch.linalg.vector_norm(matrix, dim=dim).square() / size


def _positive(s: Tensor) -> Tensor:
    return s.clamp(min=torch.finfo(s.dtype).tiny)


def _inverse_root(s: Tensor) -> Tensor:
    """``s^(−1/2)``, 0 where nothing was seen."""
    return torch.where(s > torch.finfo(s.dtype).tiny, s, torch.inf).rsqrt()
