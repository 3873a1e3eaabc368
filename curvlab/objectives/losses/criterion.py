"""Criteria that are known by their values alone, and losses that a model returns itself."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from curvlab.errors import ConfigError, Fault, UnsupportedEvidence
from curvlab.objectives.nested import as_one, tensors_of
from curvlab.objectives.semidefinite import ROUNDING, eigen, require_not_descending, require_room
from curvlab.objectives.shapes import described
from curvlab.objectives.twice import ALTERNATIVES, differentiating_twice, require_twice
from curvlab.protocols.loss import Loss, Over, Weights

#: makes outputs of one tensor that holds them
Apart = Callable[[Tensor], Any]


class NoCurvature(UserWarning):
    """A criterion is linear in the outputs: Gauss-Newton products with it are zero."""


@dataclass(frozen=True)
class CriterionLoss(Loss):
    """A criterion known by its value: any callable of (outputs, targets) that returns a scalar.

    Outputs and targets are passed as they are, tensors or containers of tensors; the batch stands for the
    targets where no others are given.  Curvature comes by autograd: products with the Hessian, and columns of
    its root, example by example, from c such products and an eigen-decomposition ``[c, c]`` for the c output
    numbers of an example.  Sampled vectors are that root times random signs.  Raises ``ConfigError``, which
    names the criterion, if torch cannot differentiate it twice, if its Hessian is not positive
    semi-definite, or, for columns and samples, if it couples examples.
    """

    criterion: Callable[[Any, Any], Tensor]
    over: Over = "mean"

    @property
    def name(self) -> str:
        return f"the criterion {self.criterion!r}"

    def prediction(self, outputs: Any) -> Any:
        return outputs

    def targets_in(self, batch: Mapping[str, Any]) -> Any:
        return batch

    def value(self, outputs: Any, targets: Any) -> Float[Tensor, ""]:
        """What the criterion returns; raises ``ConfigError`` if that is no scalar tensor."""
        value = self.criterion(outputs, targets)
        if not isinstance(value, Tensor) or value.dim() != 0:
            what = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ConfigError(
                Fault(
                    f"the criterion returned {what}; expected a scalar tensor",
                    hint='return the mean over the examples, or their sum with reduction = "sum"',
                )
            )
        return value

    def mean(self, outputs: Any, targets: Any) -> Float[Tensor, ""]:
        value = self.value(outputs, targets)
        if self.over == "mean":
            return value
        return torch.div(value, _leading(outputs))

    def term_weights(
        self, targets: Any, examples: int, like: Tensor, per_weight: Callable[[], Tensor]
    ) -> float:
        return float(examples) if self.over == "mean" else 1.0

    def total(self, outputs: Any, targets: Any, weights: Weights) -> Float[Tensor, ""]:
        found: Tensor = self.value(outputs, targets) * weights
        return found

    # curvature

    def require_curvature(self, outputs: Any, targets: Any, weights: Weights) -> None:
        """Warn (``NoCurvature``) if the Hessian's product with a random vector is zero."""
        f, apart = as_one(outputs)
        v = torch.randn(f.shape, dtype=f.dtype, generator=torch.Generator().manual_seed(0)).to(f.device)
        bent, _ = as_one(self.hessian_product(outputs, targets, weights, apart(v)))
        if not bool(bent.any()):
            warnings.warn(
                f"{self.name} is linear in the outputs, so Gauss-Newton products"
                " are zero and only damping is left. If the outputs are log-probabilities, use"
                " nn.NLLLoss() or F.nll_loss; for logits, use nn.CrossEntropyLoss()",
                NoCurvature,
                stacklevel=3,
            )

    def hessian_product(self, outputs: Any, targets: Any, weights: Weights, v: Any) -> Any:
        flat, apart = _flattened(outputs)
        found = apart(_Graph.of(self, flat, apart, targets, weights).product(_flattened(v)[0]))
        along, product = _rows(v, found)
        require_not_descending(along, product, self.name, "example")
        return found

    def hessian_columns(self, outputs: Any, targets: Any, weights: Weights) -> Iterator[Any]:
        root = self._root(outputs, targets, weights)
        used = [k for k in range(root.size) if bool((root.roots[:, k] != 0).any())]
        for k in reversed(used or [0]):
            yield root.put(root.vectors[:, :, k] * root.roots[:, k : k + 1])

    def draw(self, outputs: Any, examples: int, generator: torch.Generator) -> Tensor:
        flat, _ = as_one(outputs)
        each = flat.numel() // max(1, _leading(outputs))
        bits = torch.randint(0, 2, (examples, each), generator=generator, device=flat.device)
        return bits.to(flat.dtype).mul_(2.0).sub_(1.0)

    def sampled_column(self, outputs: Any, targets: Any, weights: Weights, noise: Any) -> Any:
        root = self._root(outputs, targets, weights)
        along = (root.vectors.mT @ noise[:, : root.size].unsqueeze(-1)) * root.roots.unsqueeze(-1)
        return root.put((root.vectors @ along).squeeze(-1))  # by the symmetric root, which is unique

    def _root(self, outputs: Any, targets: Any, weights: Weights) -> _Root:
        """The root of every example's Hessian."""
        flat, apart = _flattened(outputs)
        graph = _Graph.of(self, flat, apart, targets, weights)
        at = _by_example(outputs, graph.used(), self.name)
        n, c = at.shape
        require_room(n, c, self.name)
        hessians = flat.new_zeros(n, c, c)
        for k in range(c):
            along = torch.zeros_like(flat)
            along[at[:, k]] = 1.0
            hessians[:, k] = graph.product(along)[at]
        self._require_apart(graph, hessians, at)
        vectors, roots = eigen(hessians, self.name, "example")
        return _Root(vectors, roots, at, flat, apart)

    def _require_apart(self, graph: _Graph, hessians: Tensor, at: Tensor) -> None:
        """Raise ``ConfigError`` if the Hessian has entries between examples."""
        along = torch.randn(at.shape, dtype=hessians.dtype, generator=torch.Generator().manual_seed(0))
        along = along.to(hessians.device)
        whole = torch.zeros_like(graph.outputs)
        whole[at] = along
        found, expected = graph.product(whole)[at], (hessians @ along.unsqueeze(-1)).squeeze(-1)
        off, size = float((found - expected).abs().max()), float(expected.abs().max())
        if off > ROUNDING * torch.finfo(hessians.dtype).eps * max(1.0, size):
            raise ConfigError(
                Fault(
                    f"{self.name} couples examples: its Hessian has entries between the outputs of two,"
                    f" of size {off:.3g}; exact and sampled labels need a mean over examples",
                    hint=f"use a criterion that is a mean (or sum) over examples; or {ALTERNATIVES}",
                )
            )


@dataclass
class _Graph:
    """A criterion differentiated once at some outputs, with the graph of its gradient."""

    what: str
    outputs: Tensor
    apart: Apart
    gradient: Tensor | None

    @classmethod
    def of(cls, loss: CriterionLoss, outputs: Tensor, apart: Apart, targets: Any, weights: Weights) -> _Graph:
        with torch.enable_grad():
            f = outputs.detach().requires_grad_()
            value = loss.total(apart(f), targets, weights)
            if not value.requires_grad:
                return cls(loss.name, f, apart, None)
            with differentiating_twice(loss.name):
                (g,) = torch.autograd.grad(value, f, create_graph=True, materialize_grads=True)
        if not g.requires_grad:
            return cls(loss.name, f, apart, None)
        require_twice(loss.name, [g])
        return cls(loss.name, f, apart, g)

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
        """Which outputs the criterion bends in: where a product with random numbers is not zero."""
        f, draw = self.outputs, torch.Generator().manual_seed(1)
        return self.product(torch.randn(f.shape, dtype=f.dtype, generator=draw).to(f.device)) != 0


@dataclass
class _Root:
    """Eigenvectors and roots of eigenvalues of the examples' Hessians, at places in one vector of outputs."""

    vectors: Float[Tensor, "n c c"]
    roots: Float[Tensor, "n c"]
    at: Int[Tensor, "n c"]
    flat: Tensor
    apart: Apart

    @property
    def size(self) -> int:
        """c."""
        return int(self.at.shape[1])

    def put(self, rows: Float[Tensor, "n c"]) -> Any:
        """Numbers by example as outputs; the others are zero."""
        whole = torch.zeros_like(self.flat)
        whole[self.at] = rows
        return self.apart(whole)


def _by_example(outputs: Any, used: Tensor, what: str) -> Int[Tensor, "n c"]:
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
        return torch.zeros(_leading(outputs), 1, dtype=torch.long, device=used.device)
    if len({len(t) for t in found}) > 1:
        sizes = " and ".join(str(len(t)) for t in found)
        raise ConfigError(
            Fault(
                f"{what} reads outputs whose first axes have {sizes} entries",
                hint=f"exact and sampled labels need outputs that lead with the examples; {ALTERNATIVES}",
            )
        )
    return torch.cat(found, 1)


def _flattened(outputs: Any) -> tuple[Tensor, Apart]:
    """All floating-point outputs as one vector, and what makes outputs of a vector."""
    f, apart = as_one(outputs)
    return f.reshape(-1), lambda v: apart(v.view(f.shape))


def _rows(*outputs: Any) -> list[Float[Tensor, "n c"]]:
    """Outputs as one row for each example, or as a single row if they do not all lead with the examples."""
    found = []
    for each in outputs:
        tensors = [t for t in tensors_of(each) if t.is_floating_point()]
        n = _leading(each) if len({t.shape[:1] for t in tensors}) == 1 else 1
        found.append(torch.cat([t.reshape(n, -1) for t in tensors], 1))
    return found


def _leading(outputs: Any) -> int:
    """The length of the first axis of outputs that have one."""
    return next((int(t.shape[0]) for t in tensors_of(outputs) if t.dim()), 1)


def own_loss(outputs: Any, targets: Any = None) -> Tensor:
    """The loss that a model returned: its output, the output's ``loss``, or the entry ``"loss"``.

    Raises ``ConfigError`` if there is none.
    """
    found = outputs
    if isinstance(outputs, Mapping):
        found = outputs.get("loss")
    elif not isinstance(outputs, Tensor):
        found = getattr(outputs, "loss", None)
    if isinstance(found, Tensor) and found.dim() == 0:
        return found
    raise ConfigError(
        Fault(
            f"there is no criterion, so the model must return its loss; it returned {described(outputs)}",
            hint='give a criterion and targets, or return a scalar or an output with a scalar "loss"'
            ' (for a Hugging Face model, put "labels" into the batch)',
        )
    )


@dataclass(frozen=True)
class ModelLoss(CriterionLoss):
    """The loss that the model returns itself (``own_loss``); there are no targets beside the batch."""

    criterion: Callable[[Any, Any], Tensor] = field(default_factory=lambda: own_loss, init=False)
    over: Over = "mean"

    def require_products(self) -> None:
        raise self._unknown("Gauss-Newton products", "a criterion of the model's outputs")

    def hessian_columns(self, outputs: Any, targets: Any, weights: Weights) -> Iterator[Any]:
        raise self._unknown('labels = "exact"', "a criterion of the model's outputs")

    def draw(self, outputs: Any, examples: int, generator: torch.Generator) -> Tensor:
        raise self._unknown('labels = "model"', "a criterion of the model's outputs")

    def _unknown(self, part: str, expected: str) -> UnsupportedEvidence:
        return UnsupportedEvidence(
            part=part,
            block="",
            expected=expected,
            got="a loss that the model returns itself",
            hint="give a criterion, such as LanguageModel() of curvlab.objectives.losses:"
            " curvlab.objective(model, criterion, batch); or " + ALTERNATIVES,
        )
