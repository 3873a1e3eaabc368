"""The study of models: its data, its page, and every network for a few steps."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.studies.conftest import ROOT, Script

PAGE = ROOT / "docs" / "models.md"
NAMES = ("gpt2", "bert", "llama", "t5", "transformer", "lstm", "vit", "resnet18", "gcn")
TEXT = (
    "In the beginning God created the heaven and the earth.\nAnd the earth was without form, and void; " * 20
)


@pytest.fixture
def study(script: Script, fashion: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The script, whose text and images are few; what it read is forgotten afterwards."""
    text = tmp_path / "data"
    text.mkdir()
    for file in Path(fashion).iterdir():
        (text / file.name).symlink_to(file)
    (text / "character-gpt.txt").unlink()
    (text / "character-gpt.txt").write_text(TEXT)
    monkeypatch.setenv("CURVLAB_DATA", str(text))
    data = script("model_data")
    read = [f for f in vars(data).values() if hasattr(f, "cache_clear") and f.__module__ == "model_data"]
    for function in read:
        function.cache_clear()
    yield script("models")
    for function in read:
        function.cache_clear()


def test_the_page_holds_the_committed_numbers(study: Any, script: Script) -> None:
    page = script("models_page")
    found = page.Study.read(PAGE.with_suffix(".json"))
    assert page.written(found) == PAGE.read_text()
    assert found.networks() == list(NAMES)
    for name in NAMES:
        made = {(r["method"], r["rate"]) for r in found.runs[name] if r["seed"] == study.SEEDS[0]}
        assert made == {(m, rate) for m in study.METHODS for rate in study.NETWORKS[name].rates}
        assert {r["steps"] for r in found.runs[name]} == {study.STEPS}


@pytest.mark.parametrize("name", NAMES)
def test_every_network_is_trained_by_every_method(study: Any, name: str) -> None:
    for method in study.METHODS:
        run, coverage = study.train(study.NETWORKS[name], method, rate=3e-3, seed=0, steps=2)
        assert not run["failure"]
        assert all(math.isfinite(run[key]) for key in ("first", "last", "loss", "held_out"))
        if method != study.ADAMW:
            assert coverage["elements"] == coverage["treated"] + sum(coverage["others"].values())


def test_runs_are_replaced_one_by_one_and_shortfalls_end_in_1(
    study: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "models.md"
    where = ["--page", str(page), "--networks", "gcn", "--steps", "1", "--seeds", "0"]
    study.main([*where, "--rates", "1e-3", "1e-2", "--methods", study.ADAMW, "kfac"])
    first = json.loads(page.with_suffix(".json").read_text())["runs"]["gcn"]
    assert study.main([*where, "--rates", "1e-3", "--methods", "singd"]) == 1
    second = json.loads(page.with_suffix(".json").read_text())["runs"]["gcn"]
    assert second[:4] == first
    assert [(r["method"], r["rate"]) for r in second[4:]] == [("singd", 1e-3)]
    study.main([*where, "--rates", "1e-3", "--methods", "kfac"])
    third = json.loads(page.with_suffix(".json").read_text())["runs"]["gcn"]
    assert sorted(map(str, map(study_key, third))) == sorted(map(str, map(study_key, second)))
    capsys.readouterr()
    text = page.read_text()
    assert study.main(["--draw", "--page", str(page)]) == 1
    assert page.read_text() == text
    assert "gcn: singd" in capsys.readouterr().out


def study_key(run: dict[str, Any]) -> tuple[Any, ...]:
    return run["method"], run["rate"], run["seed"]


def run_of(method: str, rate: float, seed: int, loss: float) -> dict[str, Any]:
    ends = {"loss": loss, "held_out": loss, "seconds": 1.0}
    return {"method": method, "rate": rate, "seed": seed, **ends}


def test_the_first_seed_chooses_the_rate(script: Script) -> None:
    page = script("models_page")
    runs = [run_of("kfac", rate, 0, loss) for rate, loss in ((1e-3, 2.0), (1e-2, 1.9), (3e-3, math.inf))]
    runs += [run_of("kfac", 1e-2, 1, 2.5), run_of("kfac", 1e-2, 2, 2.4)]
    study = page.Study({"gpt2": runs}, {})
    assert [(r["rate"], r["seed"]) for r in study.best("gpt2", "kfac")] == [(1e-2, 0), (1e-2, 1), (1e-2, 2)]
    assert page.median(study.best("gpt2", "kfac"), "loss") == 2.4


def test_further_seeds_are_run_at_the_best_rate(study: Any, tmp_path: Path) -> None:
    page = tmp_path / "models.md"
    where = ["--page", str(page), "--networks", "gcn", "--steps", "1", "--seeds", "0", "1"]
    study.main([*where, "--rates", "1e-3", "1e-2", "--methods", study.ADAMW])
    runs = json.loads(page.with_suffix(".json").read_text())["runs"]["gcn"]
    best = min(runs[:2], key=lambda r: r["loss"])["rate"]
    assert [(r["rate"], r["seed"]) for r in runs] == [(1e-3, 0), (1e-2, 0), (best, 1)]


@pytest.mark.parametrize(
    ("loss", "treated", "said"),
    [(1.0, 95, []), (1.1, 95, ["gpt2: kfac ends at 1.1"]), (1.0, 94, ["gpt2: kfac treats 94.0 %"])],
)
def test_what_falls_short_is_said(script: Script, loss: float, treated: int, said: list[str]) -> None:
    page = script("models_page")
    coverage = {
        m: {"elements": 100, "treated": t, "others": {}} for m, t in (("kfac", treated), ("singd", 100))
    }
    runs = [run_of(page.ADAMW, 1e-3, 0, 1.0), run_of("kfac", 1e-3, 0, loss), run_of("singd", 1e-3, 0, 1.0)]
    found = page.lapses(page.Study({"gpt2": runs}, {"gpt2": coverage}))
    assert [line.partition(",")[0] for line in found] == said


def test_a_network_that_was_not_trained_is_no_success(script: Script) -> None:
    page = script("models_page")
    found = page.lapses(page.Study({"gpt2": [run_of(page.ADAMW, 1e-3, 0, 1.0)]}, {}))
    assert found == ["gpt2: kfac was not run", "gpt2: singd was not run"]


def test_the_text_is_what_is_stripped_and_its_tags(study: Any, script: Script) -> None:
    data = script("model_data")
    plain, tags = data.stripped(data.text())
    restored = [
        ("\n" if character == " " else character.upper()) + follows if changed else character + follows
        for character, (changed, follows) in zip(plain, tags, strict=True)
    ]
    assert "".join(restored) == data.text()
    assert set(plain) <= set("abcdefghijklmnopqrstuvwxyz ")
    tensors = data.tagged().tensors
    assert tensors["input_ids"].shape == tensors["labels"].shape
    assert int(tensors["labels"].max()) < data.tags()


def test_hidden_pixels_are_the_labels_and_no_others(study: Any, script: Script) -> None:
    data = script("model_data")
    tensors = data.hidden_pixels().tensors
    hidden = tensors["labels"] != data.IGNORED
    assert torch.equal(hidden, tensors["input_ids"] == data.MASK)
    assert hidden.any(1).all()
    whole = torch.where(hidden, tensors["labels"], tensors["input_ids"]) - data.SPECIAL
    assert tensors["labels"].shape == (len(data.clothes().tensors["labels"]), data.PIXELS**2)
    assert int(whole.min()) >= 0
    assert int(whole.max()) < data.GRAYS


def test_a_source_is_padded_where_its_window_had_more(study: Any, script: Script) -> None:
    data = script("model_data")
    tensors = data.restored().tensors
    written = data.text()[: data.WINDOW]
    length = int(tensors["attention_mask"][0].sum())
    assert tensors["input_ids"][0, :length].tolist() == data.encoded(data.stripped(written)[0])
    assert (tensors["input_ids"][0, length:] == data.PAD).all()
    assert tensors["labels"][0].tolist() == data.encoded(written)


def test_held_out_rows_are_never_trained_on(study: Any, script: Script) -> None:
    data = script("model_data")
    found = data.Rows({"k": torch.arange(10)}, apart=3)
    seen = {int(k) for _, batch in zip(range(7), found.batches(4, seed=0), strict=False) for k in batch["k"]}
    assert seen == set(range(7))
    assert [int(k) for batch in found.measured(held_out=True) for k in batch["k"]] == [7, 8, 9]


def test_the_graph_is_undirected_and_hides_what_it_holds_out(study: Any, script: Script) -> None:
    data = script("model_data")
    graph = data.neighbors()
    pairs = {tuple(edge) for edge in graph.edge_index.T.tolist()}
    assert all((b, a) in pairs and a != b for a, b in pairs)
    degree = torch.bincount(graph.edge_index[0])
    assert int(degree.min()) >= data.NEIGHBORS
    shown = next(graph.batches(1, seed=0))["labels"]
    assert torch.equal(shown == data.IGNORED, graph.held_out)
    (apart,) = graph.measured(held_out=True)
    assert torch.equal(apart["labels"] != data.IGNORED, graph.held_out)
