"""Reporters that pass a run on to a tracker: CSV files, TensorBoard, MLflow, Weights & Biases.

This module is imported on every listing, so it imports neither torch nor a tracker.
"""

from __future__ import annotations

from typing import Any

from curvlab import hookimpl

api_version = "1.0"


@hookimpl
def curvlab_register(registry: Any) -> None:
    """The reporters."""
    registry.add(
        "reporter",
        "csv",
        "curvlab_trackers.comma:CommaSeparated",
        summary="steps.csv and evaluations.csv in the run's folder",
    )
    registry.add(
        "reporter",
        "tensorboard",
        "curvlab_trackers.tensorboard:TensorBoard",
        summary="event files for TensorBoard in the run's folder",
    )
    registry.add(
        "reporter",
        "mlflow",
        "curvlab_trackers.mlflow:MLflow",
        summary="an MLflow run, by default in an SQLite file beside the run folders",
    )
    registry.add(
        "reporter",
        "wandb",
        "curvlab_trackers.wandb:WeightsAndBiases",
        summary="a run of Weights & Biases, offline by default",
    )
