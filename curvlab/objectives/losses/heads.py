"""Several outputs, each with a loss of its own, weighted and summed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.errors import ConfigError, Fault
from curvlab.objectives.nested import each_tensor
from curvlab.objectives.shapes import described
from curvlab.protocols.bounds import Positive, check_bounds
from curvlab.protocols.loss import Loss, Over, Weights


@dataclass(frozen=True)
class Heads(Loss):
    """``Σ_h α_h L_h``: a loss L_h for each output of the model, with a weight α_h > 0.

    Outputs and targets are tuples or lists in the order of ``losses``, or mappings (outputs also: objects)
    with the keys ``names``.  The curvature in the outputs has a block for each head and none between two.
    """

    losses: tuple[Loss, ...]  #: one for each output
    weights: tuple[Positive, ...] = ()  #: α_h, one for each loss; none: 1
    names: tuple[str, ...] = ()  #: keys of outputs and targets; none: both come in order

    over: Over = field(default="mean", init=False, repr=False)

    def __post_init__(self) -> None:
        check_bounds(self)
        if not self.losses:
            raise ConfigError(Fault("losses is empty", path="losses", hint="give a loss for each output"))
        for what, given in (("weights", self.weights), ("names", self.names)):
            if given and len(given) != len(self.losses):
                said = f"{len(given)} {what} for {len(self.losses)} losses"
                raise ConfigError(Fault(said, path=what, hint="give one for each loss, or none"))
        if any(isinstance(loss, Heads) for loss in self.losses):
            said = "a head has heads of its own"
            raise ConfigError(Fault(said, path="losses", hint="list the losses of all heads here"))

    @property
    def curvature(self) -> Any:  # type: ignore[override]
        """``"fisher"`` if a head's is that."""
        return "fisher" if any(loss.curvature == "fisher" for loss in self.losses) else "hessian"

    def prediction(self, outputs: Any) -> Any:
        parts = self._apart(outputs, "outputs")
        return tuple(loss.prediction(part) for loss, part in zip(self.losses, parts, strict=True))

    def targets_in(self, batch: Mapping[str, Any]) -> Any:
        if self.names and all(name in batch for name in self.names):
            return tuple(batch[name] for name in self.names)
        return super().targets_in(batch)

    def example(self, examples: int, generator: torch.Generator) -> tuple[Any, Any]:
        pairs = [loss.example(examples, generator) for loss in self.losses]
        return tuple(f for f, _ in pairs), tuple(y for _, y in pairs)

    def require(self, outputs: Any, targets: Any) -> None:
        for head, loss, f, y in self._heads(outputs, targets):
            with _naming(head):
                loss.require(f, y)

    def require_products(self) -> None:
        for loss in self.losses:
            loss.require_products()

    def terms_per_example(self, targets: Any, examples: int) -> int:
        """That of the heads, if they all have the same and are means over them; else 1."""
        parts = zip(self.losses, self._apart(targets, "targets"), strict=True)
        found = {loss.terms_per_example(y, examples) if loss.over == "mean" else 1 for loss, y in parts}
        return found.pop() if len(found) == 1 else 1

    def total_weight(self, targets: Any, like: Tensor) -> Tensor | None:
        """One entry for each head; ``None`` if the terms of every head count the same."""
        parts = zip(self.losses, self._apart(targets, "targets"), strict=True)
        found = [loss.total_weight(y, like) for loss, y in parts]
        if all(w is None for w in found):
            return None
        return torch.stack([like.new_ones(()) if w is None else w.to(like) for w in found])

    def term_weights(
        self, targets: Any, examples: int, like: Tensor, per_weight: Callable[[], Tensor]
    ) -> Weights:
        found = []
        for k, (loss, y) in enumerate(zip(self.losses, self._apart(targets, "targets"), strict=True)):
            w = loss.term_weights(y, examples, like, lambda k=k: per_weight()[k])  # type: ignore[misc]
            found.append(scaled(w, self.weights[k] if self.weights else 1.0))
        return tuple(found)

    def total(self, outputs: Any, targets: Any, weights: Weights) -> Float[Tensor, ""]:
        parts = zip(self._heads(outputs, targets), weights, strict=True)
        values = [loss.total(f, y, w) for (_, loss, f, y), w in parts]
        return torch.stack(values).sum()

    def mean(self, outputs: Any, targets: Any) -> Float[Tensor, ""]:
        alphas = self.weights or (1.0,) * len(self.losses)
        parts = zip(self._heads(outputs, targets), alphas, strict=True)
        values = [loss.mean(f, y) * alpha for (_, loss, f, y), alpha in parts]
        return torch.stack(values).sum()

    def require_curvature(self, outputs: Any, targets: Any, weights: Weights) -> None:
        for (head, loss, f, y), w in zip(self._heads(outputs, targets), weights, strict=True):
            with _naming(head):
                loss.require_curvature(f, y, w)

    def hessian_product(self, outputs: Any, targets: Any, weights: Weights, v: Any) -> Any:
        found = []
        for (head, loss, f, y), w, along in zip(self._heads(outputs, targets), weights, v, strict=True):
            with _naming(head):
                found.append(loss.hessian_product(f, y, w, along))
        return tuple(found)

    def hessian_columns(self, outputs: Any, targets: Any, weights: Weights) -> Iterator[Any]:
        nothing = each_tensor(torch.zeros_like, outputs)
        for k, ((head, loss, f, y), w) in enumerate(zip(self._heads(outputs, targets), weights, strict=True)):
            with _naming(head):
                for column in loss.hessian_columns(f, y, w):
                    yield (*nothing[:k], column, *nothing[k + 1 :])

    def draw(self, outputs: Any, examples: int, generator: torch.Generator) -> Any:
        parts = zip(self.losses, outputs, strict=True)
        return tuple(loss.draw(f, examples, generator) for loss, f in parts)

    def sampled_column(self, outputs: Any, targets: Any, weights: Weights, noise: Any) -> Any:
        found = []
        for (head, loss, f, y), w, drawn in zip(self._heads(outputs, targets), weights, noise, strict=True):
            with _naming(head):
                found.append(loss.sampled_column(f, y, w, drawn))
        return tuple(found)

    def _heads(self, outputs: Any, targets: Any) -> list[tuple[str, Loss, Any, Any]]:
        """Name, loss, outputs and targets of each head."""
        names = self.names or tuple(map(str, range(len(self.losses))))
        return list(zip(names, self.losses, outputs, self._apart(targets, "targets"), strict=True))

    def _apart(self, what: Any, called: str) -> tuple[Any, ...]:
        """Outputs or targets of the heads, in order; raises ``ConfigError`` if they are not there."""
        if isinstance(what, (tuple, list)) and len(what) == len(self.losses):
            return tuple(what)
        if self.names and isinstance(what, Mapping) and all(name in what for name in self.names):
            return tuple(what[name] for name in self.names)
        if self.names and not isinstance(what, Tensor) and all(hasattr(what, name) for name in self.names):
            return tuple(getattr(what, name) for name in self.names)
        keys = f" with the keys {', '.join(self.names)}" if self.names else ""
        raise ConfigError(
            Fault(
                f"Heads: expected {len(self.losses)} {called}{keys}, got {described(what)}",
                hint=f"give a tuple of {len(self.losses)}, or a mapping and its keys as names",
            )
        )


def scaled(weights: Weights, by: float) -> Weights:
    """Weights of terms, times a number."""
    if isinstance(weights, tuple):
        return tuple(scaled(w, by) for w in weights)
    return weights * by


@contextmanager
def _naming(head: str) -> Iterator[None]:
    """Say of which head an error is."""
    try:
        yield
    except ConfigError as error:
        raise type(error)(
            *(replace(fault, message=f'head "{head}": {fault.message}') for fault in error.faults)
        ) from error
