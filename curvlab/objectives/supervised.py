"""The objective of supervised learning: a model, a loss, inputs and targets."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from curvlab.errors import ConfigError, Fault
from curvlab.linalg.vectors import BlockVector
from curvlab.linalg.work import work_dtype
from curvlab.objectives.evaluation import EvaluationBuilder, differentiated
from curvlab.objectives.example_rows import second_along
from curvlab.objectives.losses import ModelLoss, loss_of
from curvlab.objectives.mark import Unmarked, mark_of, mark_of_module
from curvlab.objectives.nested import Unpacked, accepted, arguments
from curvlab.objectives.prediction import predicted
from curvlab.objectives.products import GaussNewton, outputs_at, values_at
from curvlab.objectives.randomness import Randomness
from curvlab.objectives.repeatability import require_repeatable
from curvlab.objectives.samples import (
    Chunk,
    IndexedExamples,
    MicroBatches,
    Sample,
    cast,
    examples_of,
    require_cuttable,
)
from curvlab.objectives.variance import GradientVariance
from curvlab.protocols.blocks import Blocks, as_real
from curvlab.protocols.context import Context
from curvlab.protocols.evidence import Evaluation
from curvlab.protocols.loss import Loss
from curvlab.protocols.needs import Needs
from curvlab.protocols.objective import Objective, Purpose


class SupervisedObjective(Objective):
    """Mean loss of ``model`` on a gradient sample, a curvature sample and an acceptance sample.

    Inputs and targets are tensors, or tuples, lists and mappings of tensors, that lead with the examples
    (``samples.examples_of``); an ``IndexedExamples`` sample stands for both.  The model is called on the
    inputs as one argument, unless they are ``Unpacked``.  Raises ``ConfigError`` for an empty
    batch.

    ``curvature`` and ``acceptance`` default to the gradient sample.  ``micro_batch`` bounds how many examples
    are in memory at once (beside what tensors were given); the results are those of one batch (of an
    unknown criterion, if it is a plain mean over examples).  Random layers draw the same numbers in every
    evaluation of one objective.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        inputs: Any,
        targets: Any = None,
        *,
        curvature: Sample | None = None,
        acceptance: Sample | None = None,
        micro_batch: int | None = None,
    ) -> None:
        self.gradient_sample = _sample(loss, inputs, targets, micro_batch)
        for sample in (self.gradient_sample, curvature, acceptance):
            if sample is not None:
                _require_examples(sample)
        self.model = model
        self.loss_rule = loss
        self.curvature_sample = curvature or self.gradient_sample
        self.acceptance_sample = acceptance or self.gradient_sample
        self.micro_batch = micro_batch
        self.randomness = Randomness(next(model.parameters()).device)
        self._cut: list[MicroBatches] = []
        self._rows: Hashable = None  # mark of the gradient sample

    def __call__(self) -> Float[Tensor, ""]:
        for p in self.model.parameters():
            p.grad = None
        batches = self._batches(self.gradient_sample)
        value = torch.zeros((), device=self.randomness.device)
        with self.randomness.repeated(moving=True):
            for chunk in batches:
                part = chunk.total(batches.loss, self._outputs(chunk)) / batches.examples
                part.backward()  # type: ignore[no-untyped-call]
                value = value + part.detach()
        return value

    def loss(self, at: Mapping[str, Tensor] | None = None) -> Float[Tensor, ""]:
        batches = self._batches(self.acceptance_sample)
        with self.randomness.repeated():
            values = [
                chunk.total(batches.loss, values_at(self.model, at or {}, chunk.inputs)).detach()
                for chunk in batches
            ]
        return torch.stack(values).sum() / batches.examples

    def differentiate(
        self, at: Mapping[str, Tensor], *, acceptance: bool = False
    ) -> tuple[Float[Tensor, ""], Mapping[str, Tensor]]:
        batches = self._batches(self.acceptance_sample if acceptance else self.gradient_sample)
        frozen = {name for name, p in self.model.named_parameters() if not p.requires_grad}
        trial = {name: t.detach().requires_grad_(name not in frozen) for name, t in at.items()}
        wanted = {name: t for name, t in trial.items() if t.requires_grad}
        values: list[Tensor] = []
        sums: dict[str, Tensor] = {}
        with self.randomness.repeated(), torch.enable_grad():
            for chunk in batches:
                outputs = outputs_at(self.model, trial, chunk.inputs)
                share = chunk.share(batches.loss, outputs, batches.examples)  # as in evaluate, to the bit
                parts = differentiated(share, tuple(wanted.values()))
                values.append(share.detach())
                for name, g in zip(wanted, parts, strict=True):
                    if g is not None:
                        # a copy: autograd may hand out one tensor as the gradient of two parameters
                        sums[name] = sums[name].add_(g) if name in sums else _own(g, len(batches))
        gradient = {name: sums[name] if name in sums else torch.zeros_like(t) for name, t in at.items()}
        return torch.stack(values).sum(), gradient

    def start(self, seen: Evaluation) -> Float[Tensor, ""]:
        return seen.loss if self.acceptance_sample is self.gradient_sample else self.loss()

    def mark(self, *, again: bool = False) -> Hashable:
        if self.randomness.drew:
            return None
        try:
            if self._rows is None or not again:
                with self.randomness.aside():  # a source may draw when rows are fetched
                    chunks = self._batches(self.gradient_sample)
                    self._rows = tuple(mark_of((c.inputs, c.targets)) for c in chunks)
            return mark_of_module(self.model, trained=False), mark_of(self.loss_rule), self._rows
        except Unmarked:
            return None

    def total_weight(self, purpose: Purpose) -> float:
        samples = {
            "gradient": self.gradient_sample,
            "curvature": self.curvature_sample,
            "acceptance": self.acceptance_sample,
        }
        return self._batches(samples[purpose]).total_weight

    def cast(self, dtype: torch.dtype) -> SupervisedObjective | None:
        def converted(sample: Sample) -> Sample:
            return (
                replace(sample, dtype=dtype) if isinstance(sample, IndexedExamples) else cast(sample, dtype)
            )

        other = type(self)(
            self.model,
            self.loss_rule,
            *_given(converted(self.gradient_sample)),
            micro_batch=self.micro_batch,
        )
        if self.curvature_sample is not self.gradient_sample:
            other.curvature_sample = converted(self.curvature_sample)
        if self.acceptance_sample is not self.gradient_sample:
            other.acceptance_sample = converted(self.acceptance_sample)
        other.randomness = self.randomness
        return other

    def evaluate(self, needs: Needs, blocks: Blocks, ctx: Context) -> Evaluation:
        batches, curvature = self._batches(self.gradient_sample), self._batches(self.curvature_sample)
        if needs.ggn:
            self._require_products(curvature, ctx)
        spread = GradientVariance(self.model, batches, blocks, self.randomness) if needs.variance else None
        if spread is not None:
            spread.probe()
        evaluation = EvaluationBuilder(self.model, batches, needs, blocks, ctx, spread)
        with self.randomness.repeated(moving=True):
            for chunk in batches:
                evaluation.add(chunk)
        seen = evaluation.finish()
        return replace(
            seen,
            ggn=GaussNewton(self.model, blocks, curvature, self.randomness) if needs.ggn else None,
            curvature_examples=curvature.examples,
            variance=None if spread is None else spread.finish(seen.gradient),
            bend=partial(self._bend, blocks) if needs.bend else None,
        )

    def _bend(self, blocks: Blocks, v: BlockVector) -> tuple[Float[Tensor, "v n"], ...]:
        """Second derivatives of the residuals along v."""
        at, batches = dict(self.model.named_parameters()), self._batches(self.gradient_sample)
        along = {n: t.to(at[n].dtype) for n, t in blocks.assembled(v).items()}
        with self.randomness.repeated():
            found = [second_along(self.model, batches.loss, at, along, chunk) for chunk in batches]
        return (torch.cat(found, 1),)

    def _outputs(self, chunk: Chunk) -> Any:
        args, kwargs = arguments(chunk.inputs, self.model)
        return self.model(*args, **kwargs)

    def _require_products(self, curvature: MicroBatches, ctx: Context) -> None:
        """Raise ``ConfigError`` if products make no sense; most of it is looked at on the first step."""
        rule = self.loss_rule
        rule.require_products()
        if ctx.step == 0:
            chunk = next(iter(curvature))
            outputs = require_repeatable(self.model, rule, chunk, self.randomness)
            rule.require_curvature(predicted(rule, outputs), chunk.targets, chunk.weights)

    def _batches(self, sample: Sample) -> MicroBatches:
        """The sample in micro-batches; of one sample always the same, which knows its weights."""
        for known in self._cut:
            if known.sample is sample:
                return known
        p = next(self.model.parameters())
        like = torch.empty(0, dtype=work_dtype(as_real(p).dtype), device=p.device)
        found = MicroBatches(self.loss_rule, sample, like, self.micro_batch)
        self._cut.append(found)
        return found


def _sample(loss: Loss, inputs: Any, targets: Any, micro_batch: int | None) -> Sample:
    """What was given as a sample; raises ``ConfigError`` if it cannot be cut as asked."""
    if micro_batch is not None and micro_batch < 1:
        raise ConfigError(
            Fault(f"micro_batch = {micro_batch} must be positive", hint="pass a number ≥ 1, or None")
        )
    if isinstance(inputs, IndexedExamples):
        return inputs
    if targets is None and not isinstance(loss, ModelLoss):
        raise ConfigError(
            Fault(
                "inputs were given without targets",
                hint="pass both, or IndexedExamples; or pass criterion = None if the model returns its loss",
            )
        )
    if micro_batch is not None:
        require_cuttable(inputs, targets, micro_batch)
    return inputs, targets


def _require_examples(sample: Sample) -> None:
    """Raise ``ConfigError`` for a sample without examples."""
    if (len(sample) if isinstance(sample, IndexedExamples) else examples_of(*sample)) == 0:
        raise ConfigError(
            Fault(
                "the batch has no examples: the mean loss is not defined",
                hint="skip empty batches (a sampler or a filter may give them)",
            )
        )


def _given(sample: Sample) -> tuple[Any, ...]:
    """A sample as the constructor takes it."""
    return (sample,) if isinstance(sample, IndexedExamples) else sample


def _own(g: Tensor, chunks: int) -> Tensor:
    """A gradient that more may be added to, in float32 or wider."""
    return g if chunks == 1 else g.to(work_dtype(g.dtype), copy=True)


def objective(
    model: nn.Module,
    criterion: object,
    batch: Any,
    targets: Any = None,
    *,
    reduction: str = "mean",
    micro_batch: int | None = None,
) -> SupervisedObjective:
    """The objective of ``criterion`` on the outputs of ``model``, for ``optimizer.step``.

    ``criterion`` is a loss of torch or of curvlab (``curvlab.objectives.losses``), or any callable that
    returns a scalar.  A criterion that states its ``reduction`` has that one; ``reduction`` is that of the
    others.  The optimizer minimizes the mean over examples either way.  What is called depends on ``batch``:

    * a mapping: ``criterion(model(**inputs), batch)``, where the inputs are the entries that the model's
      ``forward`` takes by name.  A loss of torch or curvlab takes the entry "labels", "label", "targets" or
      "target", and of an output its ``logits``;
    * a tuple or list: ``criterion(model(*batch[:-1]), batch[-1])``;
    * anything else: ``criterion(model(batch), batch)``;
    * with ``targets``: ``criterion(model(batch), targets)``, and what the model takes may also be a container
      of tensors, as one argument or unpacked, whichever its ``forward`` takes.

    With ``criterion = None`` the model returns its loss, as a scalar, as ``.loss`` or under the key
    ``"loss"``, and all of the batch are its arguments.  Such losses have gradients and ``labels = "data"``,
    but no curvature in the outputs.

    Tensors lead with the examples.  Raises ``ConfigError`` for a batch without examples, or whose tensors do
    not agree on their number, and for a mapping without an entry that the model or the loss takes.
    """
    rule = loss_of(criterion, reduction)
    inputs, targets = _apart(model, rule, batch, targets)
    return SupervisedObjective(model, rule, inputs, targets, micro_batch=micro_batch)


def _apart(model: nn.Module, rule: Loss, batch: Any, targets: Any) -> tuple[Any, Any]:
    """Inputs of the model and targets of the loss."""
    if isinstance(batch, (IndexedExamples, Unpacked)):
        return batch, targets
    if isinstance(rule, ModelLoss):
        return Unpacked(batch), targets
    if targets is not None:
        return batch, targets
    if isinstance(batch, Mapping):
        return Unpacked(accepted(batch, model)), rule.targets_in(batch)
    if isinstance(batch, (tuple, list)):
        if len(batch) < 2:
            raise ConfigError(
                Fault(
                    f"the batch is a {type(batch).__name__} of {len(batch)}: there are no targets in it",
                    hint="give (inputs, targets); or pass criterion = None if the model returns its loss",
                )
            )
        *given, last = batch
        return (given[0] if len(given) == 1 else Unpacked(tuple(given))), last
    return batch, batch
