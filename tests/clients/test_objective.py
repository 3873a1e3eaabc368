"""``curvlab.objective`` on batches of Hugging Face's models: no wrapper, curvature of the shifted loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import curvlab
from curvlab.objectives.losses import CrossEntropy, LanguageModel
from tests.clients.language import llama, sentences, stacked

BATCH = stacked(sentences(6, ignored=True))


def shifted(output: Any, batch: Any) -> Tensor:
    """A criterion of the output and the batch."""
    return F.cross_entropy(output.logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())


def by_target(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Labels under a name that the model does not take: it then computes no loss of its own."""
    return {"input_ids": batch["input_ids"], "target": batch["labels"]}


@pytest.mark.parametrize("micro_batch", [None, 4])
def test_a_language_models_loss_is_its_own(micro_batch: int | None) -> None:
    """Of one batch: a criterion known by its value is not split, since it does not say its weights."""
    model = llama()
    own = model(**BATCH).loss.detach()
    for criterion, batch in ((LanguageModel(), BATCH), (LanguageModel(), by_target(BATCH))):
        asked = curvlab.objective(model, criterion, batch, micro_batch=micro_batch)
        torch.testing.assert_close(asked.loss(), own)
    for criterion in (None, shifted):
        torch.testing.assert_close(curvlab.objective(model, criterion, BATCH).loss(), own)


@pytest.mark.parametrize("method", ["kfac", "hf-gn"])
def test_the_registered_loss_and_a_criterion_of_the_batch_train_alike(method: str) -> None:
    """Products and exact labels of both are the same; positions are known of the registered loss alone."""
    trained = []
    for criterion in (LanguageModel(), shifted):
        model = llama()
        knobs = {} if method == "hf-gn" else {"labels": "exact", "sharing": "expand"}
        optimizer = curvlab.optimizer(method, model, **knobs)
        first = optimizer.step(curvlab.objective(model, criterion, BATCH))
        last = curvlab.objective(model, None, BATCH).loss()
        assert float(last) < float(first)
        trained.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(*trained, rtol=1e-2, atol=1e-4)


def test_a_token_classifiers_logits_have_their_classes_last() -> None:
    model, batch = llama(), {"input_ids": BATCH["input_ids"], "target": BATCH["input_ids"]}
    asked = curvlab.objective(model, CrossEntropy(classes="last"), batch)
    expected = F.cross_entropy(model(batch["input_ids"]).logits.movedim(-1, 1), batch["target"])
    torch.testing.assert_close(asked.loss(), expected.detach())
