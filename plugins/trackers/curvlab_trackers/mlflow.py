"""Runs of MLflow."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curvlab.files import read_document, write_atomically
from curvlab_trackers.tracker import Sink, Tracker, require, settings

#: the file of a run's folder that names its MLflow run
NAMED = "mlflow.json"

#: MLflow takes so many parameters at once, and so many characters of a value
_BATCH, _LONGEST = 100, 6000

#: what MLflow calls the ends of runs; every other one failed
_STATUS = {"finished": "FINISHED", "stopped": "FINISHED", "sigint": "KILLED", "sigterm": "KILLED"}


@dataclass(frozen=True)
class MLflow(Tracker):
    """Metrics over steps, the resolved configuration as parameters, and the end as status and tags.

    ``mlflow.json`` in the run's folder names the MLflow run, and a resumed run continues it.  Steps that are
    taken again are then twice in its history, the later ones last.
    """

    uri: str = ""  #: where MLflow stores runs; an SQLite file mlflow.db beside the run folders if empty
    experiment: str = ""  #: the experiment; the name of the task if empty

    def __post_init__(self) -> None:
        super().__post_init__()
        for module in ("mlflow.tracking", "sqlalchemy", "alembic"):
            require(module, "mlflow")

    def open(self, manifest: Mapping[str, Any]) -> Sink:
        from mlflow.tracking import MlflowClient

        folder = Path(manifest["folder"])
        uri = self.uri or f"sqlite:///{folder.resolve().parent / 'mlflow.db'}"
        for name in ("mlflow", "alembic"):  # which tell on standard error how they make their tables
            logging.getLogger(name).setLevel(logging.WARNING)
        client = MlflowClient(tracking_uri=uri)
        known = read_document(folder / NAMED, "delete it; the next resume makes a new MLflow run")
        if known.get("uri") == uri:
            client.update_run(known["run_id"], status="RUNNING")
            return _Run(client, known["run_id"])
        experiment = self.experiment or str(manifest["task"])
        found = client.get_experiment_by_name(experiment)
        where = (folder.resolve().parent / "mlflow-artifacts").as_uri()
        number = found.experiment_id if found else client.create_experiment(experiment, where)
        run_id = client.create_run(number, run_name=folder.name, tags=_tags(manifest)).info.run_id
        write_atomically(folder / NAMED, json.dumps({"uri": uri, "run_id": run_id}) + "\n")
        _log_parameters(client, run_id, settings(manifest))
        return _Run(client, run_id)


def _tags(manifest: Mapping[str, Any]) -> dict[str, str]:
    keys = ("name", "folder", "method", "task", "seed", "device", "dtype", "curvlab", "torch")
    return {f"curvlab.{key}": str(manifest[key]) for key in keys}


def _log_parameters(client: Any, run_id: str, values: Mapping[str, Any]) -> None:
    from mlflow.entities import Param

    parameters = [Param(key, str(value)[:_LONGEST]) for key, value in values.items()]
    for k in range(0, len(parameters), _BATCH):
        client.log_batch(run_id, params=parameters[k : k + _BATCH])


class _Run(Sink):
    def __init__(self, client: Any, run_id: str) -> None:
        self._client, self._run_id = client, run_id

    def log(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        seen = {name: value for name, value in values.items() if not (kind == "eval" and name == "seconds")}
        self._client.log_batch(
            self._run_id, metrics=[Metric(name, value, now, step) for name, value in seen.items()]
        )

    def close(self, summary: Mapping[str, Any]) -> None:
        reason = str(summary["exit_reason"])
        self._client.set_tag(self._run_id, "curvlab.exit_reason", reason)
        if summary.get("message"):
            self._client.set_tag(self._run_id, "curvlab.message", str(summary["message"])[:_LONGEST])
        self._client.set_terminated(self._run_id, status=_STATUS.get(reason, "FAILED"))
