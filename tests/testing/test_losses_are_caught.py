"""Every check of the suite of losses finds a part that breaks its law."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from curvlab.objectives.losses import (
    BinaryCrossEntropy,
    CrossEntropy,
    GaussianNegativeLogLikelihood,
    Heads,
    Huber,
    LanguageModel,
    MeanSquaredError,
)
from tests.testing.caught import Broken, broken, draw, frame, seeded, switch, unequal


def loss(
    check: str, base: Any = CrossEntropy, also: tuple[str, ...] = (), why: str = "", **methods: Any
) -> Broken:
    return Broken(check, broken(base, **methods)(), also, why)


def after(then: Any) -> Any:
    def terms(self: Any, rows: Tensor, targets: Any) -> Tensor:
        then()
        return CrossEntropy.terms(self, rows, targets)

    return terms


def narrow_example(self: Any, examples: int, generator: torch.Generator) -> Any:
    f, y = CrossEntropy.example(self, examples, generator)
    return f.float(), y


def own_weights(self: Any, targets: Any, examples: int, like: Tensor, per_weight: Any) -> Any:
    """Of a micro-batch as if it were the batch."""
    total = self.total_weight(targets, like)
    return LanguageModel.term_weights(self, targets, examples, like, lambda: examples / total)


def forgetful(self: Any, rows: Tensor, targets: Any) -> Any:
    """A root without its last column."""
    return list(CrossEntropy.factor(self, rows, targets))[:-1]


def by_the_number_of_rows(self: Any, rows: Tensor, targets: Any, noise: Tensor) -> Tensor:
    return CrossEntropy.sampled(self, rows, targets, noise) * (-1.0) ** rows.shape[0]


def wide(self: Any, rows: Tensor, targets: Any) -> Tensor:
    return CrossEntropy.terms(self, rows.double(), targets)


def forgets_targets(self: Any, rows: Tensor, targets: Any) -> Tensor:
    targets.clamp_(max=1)
    return CrossEntropy.terms(self, rows, targets)


LOSSES = [
    unequal(CrossEntropy),
    loss("random_state", terms=after(draw)),
    loss("determinism", terms=lambda self, rows, t: CrossEntropy.terms(self, rows, t) * seeded()),
    loss("autograd", terms=after(switch)),
    loss("example", example=narrow_example),
    loss("value", mean=lambda self, f, y: 2 * CrossEntropy.mean(self, f, y)),
    loss(
        "micro_batches",
        LanguageModel,
        ("noise",),
        "a sampled vector carries the root of its weight",
        term_weights=own_weights,
    ),
    loss("hessian", product=lambda self, rows, t, v: 2 * CrossEntropy.product(self, rows, t, v)),
    loss("columns", factor=forgetful),
    loss("sampled", sampled=lambda self, rows, t, noise: 2 * CrossEntropy.sampled(self, rows, t, noise)),
    loss("noise", sampled=by_the_number_of_rows),
    loss("float32", terms=wide),
    loss("arguments", terms=forgets_targets),
]

SOUND = [
    ("loss", CrossEntropy()),
    ("loss", CrossEntropy(class_weights=(1.0, 2.0, 0.5), label_smoothing=0.1, ignore_index=1)),
    ("loss", CrossEntropy("sum", classes="last")),
    ("loss", LanguageModel(shift=False)),
    ("loss", BinaryCrossEntropy("sum", (1.0, 2.0, 0.5), (2.0,))),
    ("loss", GaussianNegativeLogLikelihood(log_variance=True)),
    ("loss", Heads((LanguageModel(), Huber(), GaussianNegativeLogLikelihood()), (1.0, 2.0, 0.5))),
    ("loss", MeanSquaredError("sum")),
]

caught, shown, passes = frame({"loss": LOSSES}, SOUND)
test_a_part_that_breaks_a_law_is_caught_by_that_check_alone = caught
test_every_check_is_shown_to_catch_something = shown
test_a_part_in_order_passes = passes
