"""Transform: the direction of the update, block by block in the length of another rule's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.linalg.averages import newest_weight
from curvlab.linalg.vectors import BlockVector
from curvlab.protocols.bounds import Fraction, check_bounds
from curvlab.protocols.step import At, Transform
from curvlab.protocols.storage import Storage

Rule = Literal["none", "gradient", "unit", "block", "rows", "adafactor", "adam"]


@dataclass
class Moments:
    """Means over time of squared gradients, by block, as far as the rule reads them.

    ``whole`` is that of all entries of a block, ``rows`` and ``columns`` those of each row and column, and
    ``entries`` that of each entry.  ``count`` is the number of gradients seen.
    """

    whole: dict[str, Float[Tensor, ""]] = field(default_factory=dict)
    rows: dict[str, Float[Tensor, " o"]] = field(default_factory=dict)
    columns: dict[str, Float[Tensor, " i"]] = field(default_factory=dict)
    entries: BlockVector | None = None
    count: int = 0


@dataclass(frozen=True)
class Graft(Transform[Moments]):
    """Each block keeps its direction and takes the Euclidean norm of another rule's update.

    ``u_b = ℓ_b · v_b / ‖v_b‖``: grafting (Agarwal et al. 2020, arXiv 2002.11803).  m is the vector that was
    preconditioned, the gradient after ``on_gradient``; g the gradient; ŝ a mean of g² over time, with decay
    ``beta`` and bias correction as in Adam.  A block is read as a matrix ``[o, i]``, a vector as one column.

    | rule | ℓ | state, scalars a block |
    |---|---|--:|
    | none | ‖v‖: nothing changes | 0 |
    | gradient | ‖m‖: of gradient descent (Anil et al. 2020, arXiv 2002.09018) | 0 |
    | unit | √(o i): a root mean square of 1 | 0 |
    | block | ‖m‖ / √ŝ, ŝ of all entries together (NovoGrad, arXiv 1905.11286) | 1 |
    | rows | ‖m / √ŝ‖, ŝ of each row | o |
    | adafactor | ‖m / √ŝ‖, ŝ = ŝ_row ŝ_column / mean(ŝ_row) (Adafactor, arXiv 1804.04235) | o + i |
    | adam | ‖m / √ŝ‖, ŝ of each entry (Adam, arXiv 1412.6980) | o i |

    All but "none" and "gradient" give the same length whatever the scale of the loss.  A block whose v or m
    is zero gets an update of zero.  Costs a few passes over the parameters.
    """

    fallible = False
    separable = True

    rule: Rule = "gradient"
    beta: Fraction = 0.999  #: β₂, decay of the means of squared gradients, in [0, 1)

    def __post_init__(self) -> None:
        check_bounds(self)

    def init(self, like: BlockVector) -> Moments:
        if self.rule == "adam":
            return Moments(entries=like.zeros_like())
        state, zeros = Moments(), like.flat.new_zeros
        for name, shape in like.layout.shapes.items():
            o, i = _matrix(like[name]).shape
            if self.rule == "block":
                state.whole[name] = zeros(())
            if self.rule in ("rows", "adafactor"):
                state.rows[name] = zeros(o)
            if self.rule == "adafactor" and len(shape) > 1:
                state.columns[name] = zeros(i)
        return state

    def __call__(self, state: Moments, v: BlockVector, at: At) -> BlockVector:
        if self.rule == "none":
            return v
        self._observe(state, at.gradient, at.storage)
        m, out = at.gradient if at.given is None else at.given, v.owned()
        for name, block in out.items():
            ratio = self._length(state, name, m[name]) / torch.linalg.vector_norm(block)
            block.mul_(torch.nan_to_num(ratio, nan=0.0, posinf=0.0))  # a direction of zero has none
        return out

    def _observe(self, state: Moments, g: BlockVector, storage: Storage) -> None:
        if self.rule in ("gradient", "unit"):
            return
        state.count += 1
        share = newest_weight(self.beta, state.count)
        if state.entries is not None:
            storage.updated_(
                state.entries.flat, lambda s: s.mul_(1 - share).addcmul_(g.flat, g.flat, value=share), g.dtype
            )
        for name in g.layout.names if state.entries is None else ():
            square = _matrix(g[name]).square()
            for means, dim in ((state.whole, (0, 1)), (state.rows, (1,)), (state.columns, (0,))):
                if name in means:
                    fresh = square.mean(dim)
                    storage.updated_(means[name], lambda s, fresh=fresh: s.lerp_(fresh, share), g.dtype)  # type: ignore[misc]

    def _length(self, state: Moments, name: str, m: Tensor) -> Float[Tensor, ""]:
        """ℓ of a block, 0 where m is 0."""
        if self.rule == "gradient":
            return _norm(m)
        if self.rule == "unit":
            found: Tensor = (_norm(m) > 0).to(m.dtype) * m.numel() ** 0.5
            return found
        if self.rule == "block":
            return _norm(m) * _reciprocal(state.whole[name].to(m.dtype)).sqrt()
        if state.entries is not None:
            return _norm(m * _reciprocal(state.entries[name].to(m.dtype)).sqrt())
        rows, square = state.rows[name].to(m.dtype), _matrix(m).square()
        if name not in state.columns:
            return (square.sum(1) * _reciprocal(rows)).sum().sqrt()
        columns = state.columns[name].to(m.dtype)
        by_row = torch.mv(square, _reciprocal(columns / columns.mean().clamp(min=torch.finfo(m.dtype).tiny)))
        length: Tensor = (by_row * _reciprocal(rows)).sum().sqrt()
        return length


def _matrix(t: Tensor) -> Float[Tensor, "o i"]:
    return t.flatten(1) if t.dim() > 1 else t.reshape(-1, 1)


def _norm(t: Tensor) -> Float[Tensor, ""]:
    found: Tensor = torch.linalg.vector_norm(t)
    return found


def _reciprocal(s: Tensor) -> Tensor:
    """``1 / s``; 0 where no gradient was seen, and where its square is below what the dtype can divide by."""
    return torch.where(s > torch.finfo(s.dtype).tiny, s, torch.inf).reciprocal()
