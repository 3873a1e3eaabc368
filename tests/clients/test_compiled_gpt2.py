"""GPT-2 of transformers, compiled, in a plain loop: the numbers of the eager model, and no recompilation."""

from __future__ import annotations

import copy
import logging
import warnings

import pytest
import torch
import transformers

import curvlab

CONFIG = transformers.GPT2Config(
    vocab_size=60,
    n_positions=16,
    n_embd=16,
    n_layer=2,
    n_head=2,
    bos_token_id=0,
    eos_token_id=1,
    resid_pdrop=0.0,
    embd_pdrop=0.0,
    attn_pdrop=0.0,
)


def losses(method: str, model: torch.nn.Module, *, compiled: bool) -> list[float]:
    knobs = {"labels": "data"} if method == "kfac" else {}
    optimizer = curvlab.optimizer(method, model, reduction="mean-tokens", **knobs)
    left = [row.parameter for row in optimizer.coverage() if row.reason]
    assert left == ["transformer.wte.weight"], "the tied embedding"
    if compiled:
        model.compile(backend="aot_eager")
    ids = torch.randint(60, (4, 12), generator=torch.Generator().manual_seed(0))
    found = []
    for _ in range(4):
        optimizer.zero_grad()
        out = model(input_ids=ids, labels=ids)
        out.loss.backward()
        optimizer.step()
        found.append(float(out.loss.detach()))
    return found


@pytest.mark.parametrize("method", ["kfac", pytest.param("singd", marks=pytest.mark.grid)])
def test_a_compiled_gpt2_is_trained_as_an_eager_one(method: str, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(CONFIG)
    eager = losses(method, copy.deepcopy(model), compiled=False)
    torch._dynamo.reset()
    logging.getLogger("torch._dynamo").propagate = True
    with caplog.at_level(logging.WARNING), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        mine = losses(method, model, compiled=True)
    torch._dynamo.reset()
    assert mine == pytest.approx(eager, rel=1e-5)
    assert eager[-1] < eager[0]
    spoken = [r.getMessage() for r in caplog.records] + [str(w.message) for w in said]
    assert not [text for text in spoken if "recompile" in text or "Dynamo" in text]
