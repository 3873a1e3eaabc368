"""Losses whose value is a sum of terms, each of one row of outputs; autograd computes what is not given."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.objectives.nested import each_tensor, tensors_of
from curvlab.objectives.semidefinite import eigen, require_not_descending, require_room
from curvlab.objectives.twice import differentiating_twice, require_twice
from curvlab.protocols.loss import Loss, Over, Weights

#: what error messages call a row
ROW = "row"


class RowLoss(Loss):
    """A loss that is a sum of terms, one for each row: an example, or a token of one.

    An author writes ``terms``.  Autograd then computes the curvature of a term in its row, exactly: its
    Hessian ``[c, c]`` in float64, and the root of that by eigen-decomposition.  ``factor``, ``product`` and
    ``sampled`` may be given where a formula is cheaper, or where another positive semi-definite matrix, the
    Fisher information, is to take the Hessian's place; ``product`` and ``sampled`` follow ``factor``.
    Everything is per row and un-weighted: ``over`` says how the terms of one example are reduced,
    ``"mean"`` (torch's ``reduction="mean"``) or ``"sum"``.
    """

    over: Over = "mean"

    # what an author writes

    @abstractmethod
    def terms(self, rows: Float[Tensor, "r c"], targets: Any) -> Float[Tensor, " r"]:
        """ℓ_r for each row, by torch operations; each depends on its own row alone."""

    # what an author may write

    def rows(self, outputs: Any) -> Float[Tensor, "r c"]:
        """Outputs as one row per loss term, coordinates last: as is ``[n, c]``, ``[n, *, c]`` flattened."""
        f: Tensor = outputs
        if f.dim() == 1:
            return f.unsqueeze(-1)
        return f if f.dim() == 2 else f.flatten(0, -2)

    def unrow(self, rows: Float[Tensor, "r c"], outputs: Any) -> Any:
        """Rows back in the form of ``outputs``."""
        return rows.view(outputs.shape)

    def target_rows(self, targets: Any) -> Any:
        """Targets with one leading entry per loss term; of three axes and more, all but the last are rows."""
        return targets.flatten(0, -2) if isinstance(targets, Tensor) and targets.dim() > 2 else targets

    def relative_weights(self, targets: Any, like: Tensor) -> Float[Tensor, " r"] | None:
        """Relative weights of rows in ``like``'s dtype, or ``None`` if all count the same."""
        return None

    def divisor(self, targets: Any, relative: Float[Tensor, " r"]) -> Float[Tensor, ""]:
        """What the mean over rows of these relative weights is divided by."""
        return relative.sum()

    def factor(self, rows: Float[Tensor, "r c"], targets: Any) -> Iterable[Tensor]:
        """Columns ``[r, c]`` of S, one after another, at most c: ``S Sᵀ = ∇²ℓ_r``.

        By autograd: c products with the Hessian and an eigen-decomposition ``[c, c]`` of each row.  Raises
        ``ConfigError`` if a Hessian has a negative eigenvalue.
        """
        vectors, roots = self._eigen(rows, targets)
        used = [k for k in range(rows.shape[1]) if bool((roots[:, k] != 0).any())]
        for k in reversed(used or [0]):
            yield vectors[:, :, k] * roots[:, k : k + 1]

    def product(
        self, rows: Float[Tensor, "r c"], targets: Any, v: Float[Tensor, "r c"]
    ) -> Float[Tensor, "r c"]:
        """∇²ℓ_r v, row by row: by ``factor`` where that is given, else by autograd.

        Raises ``ConfigError`` if autograd shows a Hessian to be indefinite along v.
        """
        if type(self).factor is not RowLoss.factor:
            found = torch.zeros_like(v)
            for column in self.factor(rows, targets):
                found.addcmul_(column, (column * v).sum(-1, keepdim=True))
            return found
        with torch.enable_grad():
            f = rows.detach().requires_grad_()
            g = self._gradient(f, targets)
            if g is None:
                return torch.zeros_like(v)
            with differentiating_twice(self.name):
                (found,) = torch.autograd.grad(g, f, v, materialize_grads=True)
        require_not_descending(v, found, self.name, ROW)
        return found

    def noise(
        self, rows: int, like: Float[Tensor, "_ c"], generator: torch.Generator
    ) -> Float[Tensor, "r _"]:
        """Random numbers that ``sampled`` turns into a vector, one line for each row: signs ``[r, c]``."""
        shape = (rows, like.shape[1])
        bits = torch.randint(0, 2, shape, generator=generator, device=like.device)
        return bits.to(like.dtype).mul_(2.0).sub_(1.0)

    def sampled(
        self, rows: Float[Tensor, "r c"], targets: Any, noise: Float[Tensor, "r _"]
    ) -> Float[Tensor, "r c"]:
        """A random v of mean zero, ``E v vᵀ = ∇²ℓ_r``.

        A likelihood's: the gradient of ℓ_r at labels drawn from the model, ``gradient(rows, drawn)``.  By
        default the root of the Hessian times the noise.
        """
        if type(self).factor is not RowLoss.factor:
            columns = self.factor(rows, targets)
            v = torch.zeros_like(rows)
            for k, column in enumerate(columns):
                v.addcmul_(column, noise[:, k : k + 1])
            return v
        vectors, roots = self._eigen(rows, targets)  # the symmetric root, which micro-batches agree on
        along = (vectors.mT @ noise.unsqueeze(-1)) * roots.unsqueeze(-1)
        return (vectors @ along).squeeze(-1)

    # what follows

    def gradient(self, rows: Float[Tensor, "r c"], targets: Any) -> Float[Tensor, "r c"]:
        """∇ℓ_r, by autograd."""
        with torch.enable_grad():
            f = rows.detach().requires_grad_()
            (g,) = torch.autograd.grad(self.terms(f, targets).sum(), f)
        return g

    def terms_per_example(self, targets: Any, examples: int) -> int:
        return max(1, _leading(self.target_rows(targets)) // max(1, examples))

    def total_weight(self, targets: Any, like: Tensor) -> Tensor | None:
        t = self.target_rows(targets)
        relative = None if self.over == "sum" else self.relative_weights(t, like)
        return None if relative is None else self.divisor(t, relative)

    def term_weights(
        self, targets: Any, examples: int, like: Tensor, per_weight: Callable[[], Tensor]
    ) -> float | Tensor:
        t = self.target_rows(targets)
        relative = self.relative_weights(t, like)
        if relative is None:
            return examples / _leading(t) if self.over == "mean" else 1.0
        return relative if self.over == "sum" else relative * per_weight()

    def total(self, outputs: Any, targets: Any, weights: Weights) -> Float[Tensor, ""]:
        terms = self.terms(self.rows(outputs), self.target_rows(targets))
        if isinstance(weights, float):
            return terms.sum() * weights
        return torch.dot(terms, weights)

    def mean(self, outputs: Any, targets: Any) -> Float[Tensor, ""]:
        n = _leading(outputs)
        like = next(tensors_of(outputs))

        def per_weight() -> Tensor:
            total = self.total_weight(targets, like)
            return torch.ones((), device=like.device) if total is None else n / total

        return self.total(outputs, targets, self.term_weights(targets, n, like, per_weight)) / n

    def hessian_product(self, outputs: Any, targets: Any, weights: Weights, v: Any) -> Any:
        bent = self.product(self.rows(outputs), self.target_rows(targets), self.rows(v))
        return self.unrow(bent * _by_row(weights), outputs)

    def hessian_columns(self, outputs: Any, targets: Any, weights: Weights) -> Iterator[Any]:
        root, n = _by_row(weights) ** 0.5, _leading(outputs)
        for column in self.factor(self.rows(outputs), self.target_rows(targets)):
            for v in _one_position_each(column, n):
                yield self.unrow(v * root, outputs)

    def draw(self, outputs: Any, examples: int, generator: torch.Generator) -> Tensor:
        rows = self.rows(outputs)
        each = rows.shape[0] // max(1, _leading(outputs))
        found = self.noise(each * examples, rows, generator)
        return found.view(examples, each, *found.shape[1:])

    def sampled_column(self, outputs: Any, targets: Any, weights: Weights, noise: Any) -> Any:
        v = self.sampled(self.rows(outputs), self.target_rows(targets), noise.flatten(0, 1))
        return self.unrow(v * _by_row(weights) ** 0.5, outputs)

    def _gradient(self, f: Tensor, targets: Any) -> Tensor | None:
        """∇ℓ_r with its graph; ``None`` if it does not depend on f."""
        value = self.terms(f, targets).sum()
        if not value.requires_grad:
            return None
        with differentiating_twice(self.name):
            (g,) = torch.autograd.grad(value, f, create_graph=True, materialize_grads=True)
        if not g.requires_grad:
            return None
        require_twice(self.name, [g])
        return g

    def _eigen(self, rows: Tensor, targets: Any) -> tuple[Float[Tensor, "r c c"], Float[Tensor, "r c"]]:
        """Eigenvectors and roots of eigenvalues of every row's Hessian, made in float64."""
        vectors, roots = eigen(self._hessians(rows, targets), self.name, ROW)
        return vectors.to(rows.dtype), roots.to(rows.dtype)

    def _hessians(self, rows: Float[Tensor, "r c"], targets: Any) -> Float[Tensor, "r c c"]:
        require_room(rows.shape[0], rows.shape[1], self.name)
        found = rows.new_zeros(*rows.shape, rows.shape[1], dtype=torch.float64)
        with torch.enable_grad():
            f = rows.detach().double().requires_grad_()
            g = self._gradient(f, each_tensor(_double, targets))
            if g is None:
                return found
            for k in range(rows.shape[1]):
                with differentiating_twice(self.name):
                    (h,) = torch.autograd.grad(g[:, k].sum(), f, retain_graph=True, materialize_grads=True)
                found[:, k] = h
        return found


def _double(t: Tensor) -> Tensor:
    return t.double() if t.is_floating_point() else t


def _leading(what: Any) -> int:
    """The length of the first axis of a tensor, or of the first of several."""
    return int(next(tensors_of(what)).shape[0])


def _by_row(weights: Weights) -> Any:
    """Weights that multiply rows ``[r, c]``."""
    return weights if isinstance(weights, float) else weights.unsqueeze(-1)


def _one_position_each(rows: Float[Tensor, "r c"], examples: int) -> list[Float[Tensor, "r c"]]:
    """The rows, position by position: an example with a loss term at each of P positions has P columns
    where one with a single term has one, and back-propagated together they would interfere.
    """
    positions = rows.shape[0] // max(1, examples)
    if positions == 1:
        return [rows]
    each = rows.view(examples, positions, -1)
    found = []
    for p in range(positions):
        alone = torch.zeros_like(each)
        alone[:, p] = each[:, p]
        found.append(alone.view(rows.shape))
    return found
