"""Two processes over gloo that train one model: what one process does with the examples of both."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.two_ranks import CASES, STEPS, trained

#: methods that treat every block by itself: their directions are the same in one process and in two
SEPARABLE = (
    "kfac",
    "ekfac",
    "foof",
    "ikfac",
    "ingd",
    "singd",
    "shampoo",
    "soap",
    "kl-shampoo",
    "kl-soap",
    "sirf-shampoo",
    "rs-kfac",
    "adamw",
)
ROOT = Path(__file__).parent.parent.parent
PROGRAM = Path(__file__).parent / "two_ranks.py"


def environment() -> dict[str, str]:
    """Where the source tree is, for other processes."""
    path = [str(ROOT), *map(str, ROOT.glob("plugins/*/")), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found, all cases in one life."""
    folder = tmp_path_factory.mktemp("ranks")
    outs = [folder / f"{rank}.pt" for rank in range(2)]
    processes = [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), str(rank), str(folder / "store"), str(out)],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank, out in enumerate(outs)
    ]
    said = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)
    return [torch.load(out, weights_only=True) for out in outs]


@pytest.mark.parametrize("name", CASES)
def test_both_ranks_hold_the_same_bit_for_bit(ranks: list[dict[str, Any]], name: str) -> None:
    first, second = (found["cases"][name] for found in ranks)
    assert first["end"] == second["end"]
    assert first["losses"] == second["losses"]
    assert first["owners"] == second["owners"]
    assert first["theta"].keys() == second["theta"].keys()
    if first["owners"] is None:
        assert first["state"].keys() == second["state"].keys()
    for part in ("theta", "state"):
        for key in first[part].keys() & second[part].keys():
            assert torch.equal(first[part][key], second[part][key]), key


@pytest.mark.parametrize("name", CASES)
def test_owners_hold_together_what_one_process_holds(ranks: list[dict[str, Any]], name: str) -> None:
    """Each tensor of a block is with its owner alone."""
    case, found = CASES[name], [each["cases"][name] for each in ranks]
    if case.method in SEPARABLE:
        assert (found[0]["owners"] is None) == (case.placement == "replicate")
    if found[0]["owners"] is None or case.drawn or case.method == "sophia":  # whose labels are drawn, too
        return
    if case.average is not None:  # of every block, everywhere
        return
    alone = trained(case, None)
    assert {*found[0]["state"], *found[1]["state"]} == set(alone["state"])
    of_blocks = [{k for k in each["state"] if any(b in k for b in each["owners"])} for each in found]
    assert not of_blocks[0] & of_blocks[1]
    close = {"rtol": 100 * case.rtol, "atol": case.rtol}
    for each in found:
        for key in each["state"].keys() - {"generator"}:
            tensor = each["state"][key]
            torch.testing.assert_close(tensor, alone["state"][key], **close, msg=lambda m, k=key: f"{k}: {m}")
    if alone["bytes"] > 1000:
        assert all(each["bytes"] < alone["bytes"] for each in found)
        assert sum(each["bytes"] for each in found) <= alone["bytes"] + 100


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.drawn])
def test_two_ranks_are_one_process_with_the_examples_of_both(ranks: list[dict[str, Any]], name: str) -> None:
    case, found = CASES[name], ranks[0]["cases"][name]
    alone = trained(case, None)
    assert (found["end"] == "") == (alone["end"] == ""), (found["end"], alone["end"])
    close = {"rtol": case.rtol, "atol": case.rtol / 100}
    assert found["losses"] == pytest.approx(alone["losses"], rel=close["rtol"])
    assert case.plain or alone["end"] or len(found["losses"]) == STEPS
    for key, tensor in alone["theta"].items():
        torch.testing.assert_close(found["theta"][key], tensor, **close, msg=lambda m, k=key: f"{k}: {m}")
    moved = [k for k, t in trained_from(case).items() if not torch.equal(t, alone["theta"][k])]
    assert bool(moved) == ("step 0" not in alone["end"])


def test_what_is_sent_is_what_the_formulas_say(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        for what in ("rows", "parameters"):
            assert found["sent"][what] == pytest.approx(found["sent"][f"{what} by formula"], rel=0.01)


def test_a_distributed_checkpoint_of_parts_goes_on_bit_for_bit(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        for name, whole in found["saved"]["whole"].items():
            assert torch.equal(whole, found["saved"]["cut"][name]), name


def trained_from(case: Any) -> dict[str, torch.Tensor]:
    """Where everybody starts."""
    from tests.engine.two_ranks import Net

    return {name: p.detach() for name, p in Net().to(case.dtype).named_parameters()}


def test_drawn_labels_are_each_ranks_own(ranks: list[dict[str, Any]]) -> None:
    """Both ranks agree on what came of them, and it is not what one process draws."""
    found, alone = ranks[0]["cases"]["kfac, drawn labels"], trained(CASES["kfac, drawn labels"], None)
    assert not torch.allclose(found["theta"]["first.weight"], alone["theta"]["first.weight"], rtol=1e-9)
    assert found["losses"] == pytest.approx(alone["losses"], rel=0.2)


def test_an_infinity_of_one_rank_ends_both_with_one_word(ranks: list[dict[str, Any]]) -> None:
    for name in ("an infinity", "an infinity, plain loop"):
        words = {found["cases"][name]["end"] for found in ranks}
        assert len(words) == 1
        assert "step 2" in words.pop()


def test_processes_may_train_models_of_their_own(ranks: list[dict[str, Any]]) -> None:
    first, second = (found["apart"] for found in ranks)
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("parameters", "the model's parameters of rank 1 differ from those of rank 0"),
        ("wrapped", "model.module"),
        ("gradients", "wrap the model in DistributedDataParallel"),
        ("variance", "variance of gradients"),
        ("total_weight", "does not define total_weight"),
        ("closure", "cannot be called as a closure"),
        ("positions", "the same number of positions on every rank"),
        ("shards", "last.weight is a DTensor"),
    ],
)
def test_what_cannot_be_is_refused_in_words(ranks: list[dict[str, Any]], what: str, words: str) -> None:
    assert words in ranks[1]["refusals"][what]
