"""Processes over gloo that train a model in shards (``fully_shard``), as one process does with all of it."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.sharded import CASES, STEPS, gone_on, trained
from tests.engine.small_gpt import Gpt
from tests.engine.test_ranks import environment

PROGRAM = Path(__file__).parent / "sharded.py"
#: run always, in two processes; all of them in two and three under the marker "grid"
QUICK = (
    "kfac",
    "singd, accumulated",
    "soap",
    "kfac, zeroed",
    "kfac, scaled, clipped",
    "kfac, held",
    "kfac, attention",
    "kfac, changing",
    "singd, checkpointed",
    "singd, objective",
)

Found = list[dict[str, Any]]


def processes(
    folder: Path, size: int, cases: tuple[str, ...], chain: tuple[Any, ...] = (), more: bool = False
) -> Found:
    """What each of some processes found."""
    outs = [folder / f"{size}-{rank}.pt" for rank in range(size)]
    started = [
        subprocess.Popen(
            [
                sys.executable,
                str(PROGRAM),
                *(str(rank), str(size), str(folder / f"store-{size}"), str(out)),
                json.dumps([cases, chain, more]),
            ],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank, out in enumerate(outs)
    ]
    said = [process.communicate(timeout=240)[0] for process in started]
    assert [process.returncode for process in started] == [0] * size, "\n".join(said)
    return [torch.load(out, weights_only=True) for out in outs]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Found, Path]:
    """Two processes, which go on in a run of one; what they found, and their folder."""
    folder = tmp_path_factory.mktemp("shards")
    gone_on(CASES["kfac"], "", str(folder / "one"), 0, 2)
    chain = ("kfac", str(folder / "one"), str(folder / "two"), 2, 4)
    return processes(folder, 2, QUICK, chain, more=True), folder


def check(found: Found, name: str) -> None:
    """All processes hold the parameters of one process, and each a part of its state."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        alone = trained(CASES[name])
    tolerance = 2e-6 if CASES[name].dtype == torch.float32 else 1e-10
    for each in (rank["cases"][name] for rank in found):
        for key, tensor in alone["theta"].items():
            torch.testing.assert_close(
                each["theta"][key], tensor, rtol=tolerance, atol=tolerance, msg=lambda m, k=key: f"{k}: {m}"
            )
        assert each["untapped"] == alone["untapped"]
        assert each["bytes"] < 0.6 * alone["bytes"]
    start = dict(CASES[name].net().to(CASES[name].dtype).named_parameters())
    still = {key for key, tensor in start.items() if torch.equal(tensor, alone["theta"][key])}
    frozen = CASES[name].net is Gpt and not CASES[name].changing
    assert still == ({"frozen"} if frozen else set())


@pytest.mark.parametrize("name", QUICK)
def test_shards_are_one_process_with_the_whole_model(two: tuple[Found, Path], name: str) -> None:
    check(two[0], name)


@pytest.mark.grid
@pytest.mark.parametrize("size", [1, 2, 3])
def test_every_case_in_one_two_and_three_processes(tmp_path: Path, size: int) -> None:
    found = processes(tmp_path, size, tuple(CASES))
    for name in CASES:
        if size > 1:
            check(found, name)
        else:
            assert found[0]["cases"][name]["bytes"] == trained(CASES[name])["bytes"]


def test_what_is_sent_is_what_the_formulas_say(two: tuple[Found, Path]) -> None:
    for found in two[0]:
        for what in ("to owners", "to shards"):
            assert found["sent"][what] == found["sent"][f"{what} by formula"] > 0


def test_a_run_goes_on_in_another_number_of_processes(two: tuple[Found, Path]) -> None:
    """From one process to two, with the model in shards, and back to one."""
    goes_on_alone("kfac", two[1] / "two", 4)


@pytest.mark.grid
@pytest.mark.parametrize("name", ["kfac", "singd, accumulated", "soap"])
def test_a_run_goes_on_in_one_then_two_then_three_then_one_process(tmp_path: Path, name: str) -> None:
    one, second, third = (str(tmp_path / part) for part in ("one", "two", "three"))
    gone_on(CASES[name], "", one, 0, 2)
    processes(tmp_path, 2, (), (name, one, second, 2, 4))
    processes(tmp_path, 3, (), (name, second, third, 4, 6))
    goes_on_alone(name, Path(third), 6)


def goes_on_alone(name: str, folder: Path, steps: int) -> None:
    """The run in a folder and one that was never stopped end alike."""
    assert steps + 2 <= 2 * STEPS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cut = gone_on(CASES[name], str(folder), "", steps, steps + 2)
        uncut = gone_on(CASES[name], "", "", 0, steps + 2)
    for key, tensor in uncut.items():
        torch.testing.assert_close(cut[key], tensor, rtol=1e-10, atol=1e-10, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("joint", "use a method that treats every block by itself"),
        ("replicate", 'placement = "replicate" keeps whole parameters'),
        ("average", "Ema averages whole weights, and fully_shard keeps them in shards"),
        ("alone", "this process alone (group=None)"),
        ("precision", "MixedPrecisionPolicy"),
        ("columns", "expected Shard(0)"),
        ("ignored", "parameter 0.bias is whole in every process"),
        ("axes", "a mesh of one axis"),
        ("root", "call fully_shard(model) last"),
        ("late", "holds a backward pass from before the last step"),
        ("one rank", "parameter 0.weight has a gradient on rank 0 and not on every other rank"),
        ("infinity", "step 0: the gradient is not finite"),
        ("infinity", "parameters kept"),
    ],
)
def test_what_cannot_be_is_refused_in_words(two: tuple[Found, Path], what: str, words: str) -> None:
    for found in two[0]:
        assert words in found["refusals"][what]
