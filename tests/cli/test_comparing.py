"""``curvlab runs`` and ``curvlab compare``: tables, documents, mistakes in words."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from curvlab.cli.app import app
from tests.comparing.made import made


def curvlab(*arguments: object) -> Result:
    """A command in this process; any exception but an exit is raised."""
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CURVLAB_PLUGINS", "")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs"
    made(folder / "a0", [3.0, 1.0], seed=0)
    made(folder / "a1", [3.0, 2.0], seed=1)
    made(folder / "deep" / "b", [4.0, 0.5], method={"use": "adamw"}, summary=None)
    (folder / "notes").mkdir()
    return folder


def test_runs_lists_every_run_with_its_best_value_and_state(runs: Path) -> None:
    done = curvlab("runs")
    assert done.exit_code == 0
    header, *lines = done.stdout.splitlines()
    assert header.split() == ["run", "method", "task", "seed", "best", "state", "what", "differs"]
    assert [line.split() for line in lines] == [
        ["a0", "sgd", "toy", "0", "val_loss", "1", "finished"],
        ["a1", "sgd", "toy", "1", "val_loss", "2", "finished"],
        ["deep/b", "adamw", "toy", "0", "val_loss", "0.5", "unfinished"],
    ]
    assert done.stderr == (
        "deep/b: unfinished: it ended without summary.json; continue it with `curvlab resume runs/deep/b`\n"
    )
    document = json.loads(curvlab("runs", runs, "--json").stdout)
    assert [run["best"]["value"] for run in document] == [1.0, 2.0, 0.5]
    assert [run["differs"] for run in document] == ["", "", ""]


def test_compare_prints_table_and_curves_or_one_document_and_writes_a_page(runs: Path) -> None:
    done = curvlab("compare", "runs", "--target", "val_loss<=2")
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert lines[0] == "toy: to val_loss<=2"
    assert lines[2].split() == ["a", "1/1", "20", "640", "10", "0.5", "adamw"]
    assert " ".join(lines[3].split()) == "b 2/2 20 (20–20) 640 (640–640) 10 (10–10) 1.5 (1–2) sgd"
    assert "val_loss over steps" in done.stdout
    done = curvlab(
        "compare", runs / "a0", runs / "deep" / "b", "--html", "pages/a.html", "--json", "--x", "seconds"
    )
    document = json.loads(done.stdout)
    assert document["html"] == "pages/a.html"
    assert Path("pages/a.html").stat().st_size > 50_000
    (task,) = document["tasks"]
    assert (task["target"], task["target_given"]) == ("val_loss<=1", False)
    assert [row["steps"]["median"] for row in task["configurations"]] == [20, 20]
    assert [one["state"] for one in document["troubled"]] == ["unfinished"]


def test_a_run_that_is_in_progress_is_said_to_be_running(runs: Path) -> None:
    code = (
        "import fcntl, sys; file = open(sys.argv[1]); fcntl.flock(file, fcntl.LOCK_EX);"
        "print(flush=True); sys.stdin.read()"
    )
    path = runs / "deep" / "b" / "config.toml"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as training:
        assert training.stdout is not None
        training.stdout.readline()
        done = curvlab("runs")
    assert "deep/b: running: it is still training" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["compare", "nowhere"], 2, "nowhere does not exist"),
        (
            ["compare", "runs", "--target", "val_los<=1"],
            2,
            "none of these runs has the metric val_los; they have loss, val_loss",
        ),
        (["compare", "runs", "--target", "val_loss=1"], 2, "expected metric<=value"),
        (["compare", "runs/notes"], 1, "it has no resolved.toml"),
        (["compare", "runs", "--html", "runs"], 1, "a folder is in the place of a file"),
        (["runs", "nowhere"], 2, "nowhere is not a folder"),
    ],
)
def test_a_mistake_is_said_in_words(arguments: list[str], code: int, words: str, runs: Path) -> None:
    done = curvlab(*arguments)
    assert (done.exit_code, done.stdout) == (code, "")
    assert words in done.stderr
