"""``curvlab plot``: curves and pictures as files, and mistakes in words."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from typer.testing import CliRunner

from curvlab.cli.app import app
from curvlab.plotting.curves import is_logarithmic, medians
from curvlab.plotting.pictures import draw_picture, file_names
from curvlab.plotting.recorded import Series, recorded
from curvlab.protocols.picture import Curve, Field, Images, Picture
from curvlab.reporting.rundir import RunDir

#: twelve images of 28 × 28 pixels, and an autoencoder of them, for three steps
CONFIG = """
[run]
name = "small"
steps = 3
log_every = 1
eval_every = 2

[task]
use = "curves"
hidden = [16]
code = 2
size = 64
validation_size = 12
batch_size = 32

[method]
preconditioner = { use = "identity" }
damping = { use = "constant" }
step = { use = "rate", lr = 1e-4 }
"""


class Said(NamedTuple):
    code: int
    out: str
    err: str


def curvlab(*arguments: object) -> Said:
    """A command in this process; any exception but an exit is raised."""
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return Said(done.exit_code, done.stdout, done.stderr)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Path]:
    """``run("--set", …)`` trains in the present folder and returns the run's."""
    monkeypatch.setenv("CURVLAB_PLUGINS", "")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.toml").write_text(CONFIG)

    def train(*arguments: object) -> Path:
        said = curvlab("train", "small.toml", *arguments)
        assert said.code == 0, said.err
        return Path(said.out.splitlines()[-1])

    return train


def pixels(path: Path) -> tuple[int, ...]:
    """The shape of a PNG that can be decoded and is no blank page."""
    image = imread(path)
    assert np.ptp(image) > 0.5
    return image.shape


def svg(path: Path) -> str:
    """The name of the root element."""
    return ElementTree.parse(path).getroot().tag.rpartition("}")[2]


def test_one_run_gets_curves_and_its_tasks_pictures_in_its_folder(run: Callable[..., Path]) -> None:
    folder = run()
    before = {path.name for path in folder.iterdir()}
    said = curvlab("plot", folder)
    assert (said.code, said.err) == (0, "")
    curves, pictures = folder / "plot.png", folder / "pictures" / "reconstructions.png"
    assert said.out.splitlines() == [str(curves), str(pictures)]
    assert {path.name for path in folder.iterdir()} == before | {"plot.png", "pictures"}
    assert pixels(curves)[1] > 1000
    assert pixels(pictures)[1] > 2 * pixels(pictures)[0]  # two rows of twelve
    assert curvlab("eval", folder).code == curvlab("resume", folder).code == 0  # it is a run's folder as ever


def test_json_lists_the_files_and_out_says_where_all_of_them_are(run: Callable[..., Path]) -> None:
    folder = run()
    said = curvlab("plot", folder, "--out", "figures/a.svg", "--x", "examples", "--json")
    document = json.loads(said.out)
    assert document == {
        "runs": [str(folder)],
        "x": "examples",
        "metrics": ["loss", "val_loss"],
        "curves": "figures/a.svg",
        "pictures": [{"title": "reconstructions", "step": 3, "file": "figures/a-reconstructions.svg"}],
        "files": ["figures/a.svg", "figures/a-reconstructions.svg"],
        "warnings": [],
    }
    assert [svg(Path(name)) for name in document["files"]] == ["svg", "svg"]
    assert not (folder / "plot.png").exists()
    assert sorted(path.name for path in Path("figures").iterdir()) == ["a-reconstructions.svg", "a.svg"]


def test_several_runs_are_told_apart_on_one_figure_without_pictures(run: Callable[..., Path]) -> None:
    first, second = run(), run("--set", "run.seed=1")
    for folder in (first, second):  # no formula of TeX, and no curve that a legend leaves out
        manifest = folder / "manifest.json"
        manifest.write_text(manifest.read_text().replace('"name": "small"', '"name": "_$x_{"'))
    assert [r.label for r in recorded(map(RunDir, (first, second, first)))] == [
        "_$x_{, seed 0",
        "_$x_{, seed 1",
    ]
    said = curvlab("plot", first, second, "--out", "both.png", "--metric", "val_error", "--x", "seconds")
    assert (said.code, said.out, said.err) == (0, "both.png\n", "")
    pixels(Path("both.png"))
    said = curvlab("plot", first, second)
    assert said.code == 2
    assert "--out FILE is missing" in said.err


def test_a_run_that_cannot_be_rebuilt_keeps_its_curves(run: Callable[..., Path]) -> None:
    folder = run()
    (folder / "resolved.toml").write_text("[task]\nuse = 'gone'\n")
    said = curvlab("plot", folder, "--json")
    assert said.code == 0
    assert json.loads(said.out)["files"] == [str(folder / "plot.png")]
    assert said.err.startswith("warning: no pictures of the task are drawn: ")


MISTAKES: Mapping[str, tuple[list[str], int, str]] = {
    "no such folder": (["nowhere"], 2, "is not a folder"),
    "no run": (["."], 2, "it is not a run's folder"),
    "suffix": (["RUN", "--out", "a.jpeg"], 2, "ends in .png or .svg"),
    "folder": (["RUN", "--out", "RUN"], 2, "ends in .png or .svg"),
    "metric": (["RUN", "--metric", "val_los"], 2, 'Did you mean "val_loss"?'),
    "axis": (["RUN", "--x", "epochs"], 2, "'steps', 'seconds', 'examples'"),
    "file in a file": (["RUN", "--out", "small.toml/a.png"], 1, "a file is in the place of a folder"),
    "folder in its place": (["RUN", "--out", "there.svg"], 1, "there.svg cannot be written"),
}


@pytest.mark.parametrize(("arguments", "code", "words"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_said_in_words(
    arguments: list[str], code: int, words: str, run: Callable[..., Path]
) -> None:
    folder = str(run()) if "RUN" in arguments else ""
    Path("there.svg").mkdir()
    said = curvlab("plot", *(folder if word == "RUN" else word for word in arguments))
    assert (said.code, said.out) == (code, "")
    assert words in " ".join(said.err.replace("│", " ").split())


def test_a_run_without_metrics_is_refused_and_beside_others_left_out(run: Callable[..., Path]) -> None:
    empty, full = run("--set", "run.seed=1"), run()
    (empty / "metrics.jsonl").write_text("")
    said = curvlab("plot", empty)
    assert said.code == 1
    assert "metrics.jsonl holds no metrics" in said.err
    said = curvlab("plot", empty, full, "--out", "a.png", "--json")
    document = json.loads(said.out)
    assert (document["runs"], document["files"]) == ([str(full)], ["a.png"])
    assert f"{empty} is left out" in said.err


def test_without_matplotlib_the_extra_is_named(
    run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    said = curvlab("plot", folder)
    assert (said.code, said.out) == (1, "")
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert 'pip install "curvlab[plot]"' in said.err
    assert not (folder / "plot.png").exists()


def test_series_go_over_examples_of_the_steps_around_and_keep_gaps(tmp_path: Path) -> None:
    lines = [
        {"kind": "step", "step": 10, "examples": 320, "seconds": 1.0, "loss": None},
        {"kind": "step", "step": 20, "examples": 640, "seconds": 2.0, "loss": 0.5},
        {"kind": "eval", "step": 15, "seconds": 1.5, "val_loss": 3},
        {"kind": "eval", "step": 25, "seconds": 2.5, "val_loss": 2, "accepted": True},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run,) = recorded([RunDir(tmp_path)])
    assert run.metrics() == {"loss", "val_loss"}
    loss, val = run.series("loss", "steps"), run.series("val_loss", "examples")
    assert loss is not None
    assert val is not None
    assert list(loss.x) == [10, 20]
    assert math.isnan(loss.y[0])
    assert list(val.x) == [480, 800]
    assert run.series("lr", "steps") is None
    (tmp_path / "metrics.jsonl").write_text('{"kind": "step", "step": 1, "loss": 1.0}\n')
    (run,) = recorded([RunDir(tmp_path)])
    assert run.series("loss", "seconds") is None  # nothing says when


def test_axes_are_logarithmic_for_positive_values_that_differ() -> None:
    assert is_logarithmic(np.array([1e-3, 1.0]))
    assert not any(map(is_logarithmic, (np.array([0.9, 1.0]), np.array([0.0, 1.0]), np.array([-1.0, 9.0]))))


def test_medians_stand_for_long_curves() -> None:
    x = np.arange(1005.0)
    y = np.where(x % 7 == 0, np.nan, 3.0)
    found, size = medians(Series("a", x, y))
    assert size == 11
    assert len(found.x) == 100
    assert set(found.y) == {3.0}


X, Y = torch.linspace(0, 1, 4), torch.linspace(-1, 1, 3)
VALUES = torch.outer(X, Y).bfloat16()
PICTURES = {
    "field": Picture("Exact & network", Field(X, Y, {"$": VALUES, "b": VALUES / 0}), ("x", "y")),
    "curve": Picture("exact network", Curve(X, {"_a": X.sin(), "b": X * math.nan}), ("x", "u")),
    "images": Picture("…", Images({"a": torch.rand(3, 4, 5), "b": torch.full((3, 4, 5), math.nan)})),
}


@pytest.mark.parametrize("suffix", ["png", "svg"])
@pytest.mark.parametrize("picture", PICTURES.values(), ids=PICTURES)
def test_every_kind_of_picture_is_drawn(picture: Picture, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    draw_picture(picture, "of a run", path)
    assert svg(path) == "svg" if suffix == "svg" else pixels(path)
    assert [path.name for path in tmp_path.iterdir()] == [path.name]


def test_files_are_named_after_titles() -> None:
    assert file_names([*PICTURES.values(), PICTURES["curve"]]) == [
        "exact-network",
        "exact-network-2",
        "picture",
        "exact-network-3",
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Field(X, Y, {"u": VALUES.T}),
        lambda: Field(X, Y, {}),
        lambda: Curve(X, {"u": Y}),
        lambda: Images({"a": torch.zeros(2, 4, 4), "b": torch.zeros(3, 4, 4)}),
    ],
)
def test_shapes_that_disagree_are_refused(wrong: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match="expected"):
        wrong()
