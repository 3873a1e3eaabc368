"""What a part asks to be evaluated.  Needs are declared, united, and *are* the cost of a step."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Labels(str, Enum):
    """Which vectors are back-propagated from the outputs to make layer statistics."""

    DATA = "data"  #: gradients of the true loss: the empirical Fisher
    MODEL = "model"  #: gradients for labels sampled from the model: the Fisher, sampled
    EXACT = "exact"  #: columns of S with S Sᵀ = ∇²ℓ: the GGN's blocks, exact
    NONE = "none"  #: layer inputs only, no backward pass

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Needs:
    """What is wanted from one evaluation; ``|`` unites what several parts want.

    ``layers``: label kinds for which layer statistics are captured, of at least the first ``layer_examples``
    of the gradient sample (whole micro-batches; 0: all of it), all of which are held until the parts have
    seen them.  ``samples``: labels sampled per example under ``Labels.MODEL``.  ``factored``: layer gradients
    may stay as outer products.  ``implicit``: an estimator wants the GGN as an operator; who multiplies with
    it counts the products.  ``variance``: how much the gradients of single examples differ. ``products``,
    ``losses`` and ``gradients`` bound how many GGN products, trial losses and trial gradients the parts will
    ask for in this step; they add up.  ``examples``: the number of examples enters what a part does, so that
    a plain loop must know it.  ``every_block``: statistics are also wanted of the blocks that no layer
    explains, as gradients of single examples.  ``bend``: second derivatives along a direction are asked for
    (``Evaluation.bend``).  ``after``: layer statistics for the data's labels are evaluated once more where
    the step ends, on the same batch with the same random numbers (``StepOutcome.after``).
    """

    layers: frozenset[Labels] = frozenset()
    samples: int = 0
    factored: bool = False
    implicit: bool = False
    products: int = 0
    losses: int = 0
    gradients: int = 0
    variance: bool = False
    layer_examples: int = 0
    examples: bool = False
    every_block: bool = False
    bend: bool = False
    after: bool = False

    @classmethod
    def statistics(
        cls, labels: Labels, samples: int = 1, *, layer_examples: int = 0, factored: bool = False
    ) -> Needs:
        """Layer statistics for one kind of labels; ``samples`` counts only where labels are sampled."""
        drawn = samples if labels is Labels.MODEL else 0
        return cls(
            layers=frozenset({labels}), samples=drawn, layer_examples=layer_examples, factored=factored
        )

    def __or__(self, other: Needs) -> Needs:
        if other is GRADIENT_ONLY:  # what most parts answer, every step
            return self
        if self is GRADIENT_ONLY:
            return other
        return Needs(
            layers=self.layers | other.layers,
            samples=max(self.samples, other.samples),
            factored=self.factored or other.factored,
            implicit=self.implicit or other.implicit,
            variance=self.variance or other.variance,
            examples=self.examples or other.examples,
            every_block=self.every_block or other.every_block,
            bend=self.bend or other.bend,
            after=self.after or other.after,
            products=self.products + other.products,
            losses=self.losses + other.losses,
            gradients=self.gradients + other.gradients,
            layer_examples=self._most_layer_examples(other),
        )

    def _most_layer_examples(self, other: Needs) -> int:
        """What both have enough of; who asks for no statistics has no say."""
        asked = [needs.layer_examples for needs in (self, other) if needs.layers]
        return 0 if 0 in asked else max(asked, default=0)

    @property
    def ggn(self) -> bool:
        """Whether the pass must carry the GGN operator."""
        return self.implicit or self.products > 0

    @property
    def objective(self) -> tuple[str, ...]:
        """What of this a plain ``loss.backward()`` cannot leave behind, in words."""
        vectors = (Labels.MODEL, Labels.EXACT)
        asked = [f"layer statistics for labels = {x.value!r}" for x in vectors if x in self.layers]
        if self.ggn:
            asked.append("Gauss-Newton products")
        if self.losses:
            asked.append("trial losses")
        if self.gradients:
            asked.append("trial gradients")
        if self.variance or self.every_block:
            asked.append("gradients of single examples")
        if self.bend:
            asked.append("second derivatives along a direction")
        if self.after:
            asked.append("a second evaluation of the batch, after the step")
        return tuple(asked)


#: a step that asks for the loss and its gradient alone
GRADIENT_ONLY = Needs()
