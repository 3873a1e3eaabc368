"""What each tracker was given, read back by its own library, and that of a resumed run.

The truth is ``metrics.jsonl``, which every run has.
"""

from __future__ import annotations

import csv
import json
import math
import shutil
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import curvlab
from curvlab.config import build, build_part, load
from curvlab.engine.run import train_plan
from curvlab.errors import ConfigError
from curvlab.protocols.report import EvalRecord, Reporter
from curvlab.registry.loader import installed
from curvlab.reporting.rundir import RunDir
from curvlab.reporting.runlog import RunLog
from curvlab.testing.conformance import SUITES
from curvlab_trackers.comma import CommaSeparated

#: what the libraries warn of at import and in use, which pytest would raise
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:wandb"),
]

CONFIG: dict[str, Any] = {
    "run": {"name": "tracked", "steps": 8, "log_every": 1, "eval_every": 4, "checkpoint_every": 3, "keep": 5},
    "task": {"use": "teacher-student", "hidden": [3], "size": 60, "batch_size": 16},
    "method": {"use": "sgd", "lr": 0.1},
    "report": ["quiet", "csv", "tensorboard", "mlflow", "wandb"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of eight steps that lost its last checkpoint and was resumed from step 6 to step 10."""
    out = tmp_path_factory.mktemp("runs")
    folder = curvlab.train(CONFIG, out=out).folder
    shutil.rmtree(folder / "checkpoints" / "step-00000008")
    longer = {**CONFIG, "run": {**CONFIG["run"], "steps": 10}}
    (folder / "summary.json").unlink()
    run = train_plan(build(load(data=longer)), out=out, log=RunLog, resume_from=folder)
    assert run.summary["events"] == {}  # no reporter failed
    return folder


def recorded(folder: Path, kind: str, name: str) -> dict[int, float]:
    """A metric by step, as the run's own log has it."""
    lines = RunDir(folder).steps() if kind == "step" else RunDir(folder).evaluations()
    return {line["step"]: line[name] for line in lines}


def test_the_run_took_steps_7_and_8_twice(folder: Path) -> None:
    assert list(recorded(folder, "step", "loss")) == list(range(1, 11))
    assert list(recorded(folder, "eval", "val_loss")) == [4, 8, 10]


def test_csv_has_every_step_once_with_all_columns(folder: Path) -> None:
    with (folder / "steps.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:6] == ["step", "epoch", "examples", "seconds", "loss", "lr"]
    assert {int(row["step"]): float(row["loss"]) for row in rows} == recorded(folder, "step", "loss")
    assert len(rows) == 10
    assert {row["cg_iterations"] for row in rows} == {""}
    with (folder / "evaluations.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {int(row["step"]): float(row["val_loss"]) for row in rows} == recorded(folder, "eval", "val_loss")


def test_tensorboard_reads_every_step_once(folder: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    for kind, name in (("step", "loss"), ("step", "lr"), ("eval", "val_loss")):
        expected = recorded(folder, kind, name)
        assert [one.step for one in events.Scalars(name)] == list(expected)
        assert [one.value for one in events.Scalars(name)] == pytest.approx(list(expected.values()), rel=1e-6)


def test_mlflow_has_metrics_parameters_and_the_end(folder: Path) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{folder.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("teacher-student")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == folder.name
    assert run.info.status == "FINISHED"
    assert run.data.tags["curvlab.exit_reason"] == "finished"
    assert (run.data.params["method.use"], run.data.params["task.hidden"]) == ("sgd", "[3]")
    for kind, name in (("step", "loss"), ("eval", "val_loss")):
        history = client.get_metric_history(run.info.run_id, name)
        assert {one.step: one.value for one in history} == recorded(folder, kind, name)


def test_wandb_wrote_the_same_run_in_two_parts(folder: Path) -> None:
    from wandb.proto import wandb_internal_pb2

    seen: dict[str, dict[int, float]] = {"loss": {}, "val_loss": {}}
    names, configured = set(), {}
    parts = sorted((folder / "wandb").glob("offline-run-*/*.wandb"), key=lambda p: p.stat().st_mtime)
    assert len(parts) == 2
    for part in parts:
        for data in leveldb_records(part.read_bytes()):
            record = wandb_internal_pb2.Record.FromString(data)
            kind = record.WhichOneof("record_type")
            if kind == "run":
                names.add((record.run.run_id, record.run.project))
                configured.update({i.key: json.loads(i.value_json) for i in record.run.config.update})
            if kind == "history":
                values = {(i.key or i.nested_key[0]): json.loads(i.value_json) for i in record.history.item}
                for name, by_step in seen.items():
                    if name in values:
                        by_step[values["step"]] = values[name]
    assert names == {(folder.name, "curvlab")}
    assert configured["method.use"] == "sgd"
    assert seen == {
        "loss": recorded(folder, "step", "loss"),
        "val_loss": recorded(folder, "eval", "val_loss"),
    }


def leveldb_records(data: bytes) -> Iterator[bytes]:
    """The records of a log file of LevelDB, which a ``.wandb`` file is behind a header of seven bytes.

    Blocks of 32 KiB hold pieces: a checksum, a length, a type (whole, first, middle, last) and the bytes.
    """
    assert data[:4] == b":W&B"
    place, block, parts = 7, 32768, b""
    while place + 7 <= len(data):
        if block - place % block < 7:
            place += block - place % block
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield parts
            parts = b""


def test_mlflow_keeps_the_laws_of_reporters(folder: Path) -> None:
    uri = f"sqlite:///{folder.parent / 'mlflow.db'}"  # a second one would take seconds to make
    SUITES["reporter"].of(build_part(installed(), Reporter, "mlflow", {"uri": uri})).run().require()


def test_a_value_that_is_not_finite_is_one_in_csv(tmp_path: Path) -> None:
    reporter = CommaSeparated(folder="tables")
    reporter.started({"folder": str(tmp_path)})
    reporter.evaluated(EvalRecord(1, 0.5, {"val_loss": math.nan, "val_error": math.inf}))
    reporter.finished({})
    text = (tmp_path / "tables" / "evaluations.csv").read_text()
    assert text == "step,seconds,val_loss,val_error\n1,0.5,nan,inf\n"


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("tensorboard", "tensorboard.summary.writer.event_file_writer"),
        ("mlflow", "alembic"),
        ("wandb", "wandb"),
    ],
)
def test_without_its_library_a_reporter_is_refused_with_the_command_that_installs_it(
    name: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=rf'needs {module}.*\n.*pip install "curvlab-trackers\[{name}\]"'):
        build_part(installed(), Reporter, name)
