"""Every registered part and method passes the suite of its kind: those of today, and those of tomorrow.

Structures are in ``tests/structures``, with every combination of their settings.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from curvlab.config import build_method, build_part
from curvlab.config.example import example_settings
from curvlab.registry import MethodEntry, PartEntry
from curvlab.registry.imports import protocol
from curvlab.testing.conformance import SUITES, Report
from curvlab_speech import folder
from plugins.speech.tests.samples import corpus, manifest
from tests.limits.registered import registry
from tests.tasks.small_fashion import write_fashion

#: torch compiles some of its own derivatives when forward mode is first used, and deprecates how it does
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")

LOW_RANK = {
    "held": {"use": "layer-covariance", "A": {"use": "low-rank", "rank": 2}, "B": "dense"},
    "average": {"use": "layer-covariance", "A": "dense", "B": "dense"},
}
FACTORS = {"estimator": {"use": "layer-covariance", "A": "dense", "B": "dense"}}

#: settings with which a part is checked, where defaults and stand-ins will not do
SETTINGS: dict[tuple[str, str], list[dict[str, Any]]] = {
    ("preconditioner", "inverted"): [FACTORS, {**FACTORS, "observe_every": 2, "refresh_every": 3}],
    ("preconditioner", "eigenbasis"): [FACTORS, {**FACTORS, "observe_every": 2, "refresh_every": 4}],
    ("preconditioner", "iterative"): [
        {},
        {"warm_start": 0.9},
        {"inner": {"use": "lbfgs", "source": "solve"}, "estimator": {"use": "layer-rows", "labels": "exact"}},
    ],
    ("preconditioner", "lbfgs"): [{}, {"source": "solve"}, {"memory": 2}],
    ("preconditioner", "singd"): [
        {},
        {"K": "diagonal", "C": "upper-toeplitz", "every": 2},
        {"momentum": 0.0},
    ],
    ("preconditioner", "soap"): [{}, {"moments": "whitened"}, {"one_sided": True}],
    ("preconditioner", "kl-shampoo"): [{}, {"one_sided": True, "vectors": True}],
    ("preconditioner", "sample-space"): [
        {},
        {"space": "parameter", "scaling": 1.0},
        {"momentum": 0.5, "labels": "data"},
        {"acceleration": 0.75, "solver": "cholesky"},
        {"solver": "nystrom", "rank": 5, "relative": True},
    ],
    ("preconditioner", "frozen-coefficients"): [{}, {"warmup": 2}, {"warmup": 2, "slots": "epoch"}],
    ("step", "target-ratio"): [{}, {"repeat": False}],
    ("estimator", "layer-covariance"): [
        {"labels": "data"},
        {"labels": "exact", "A": "diagonal", "B": "low-rank"},
        {"labels": "none", "decay": 0.0},
        {"labels": "model", "samples": 3},
    ],
    ("estimator", "corrected-covariance"): [LOW_RANK, {**LOW_RANK, "overwrite_every": 2, "correct": 0.5}],
    ("estimator", "layer-rows"): [{"labels": kind} for kind in ("data", "exact", "model", "none")],
    ("inverse", "randomized"): [{}, {"rank": 5, "rest": "mean", "ratio": 0.03}],
    ("krylov", "cg"): [{}, {"grid": 1.3, "progress": 5e-4}, {"max_iterations": 3}],
    ("krylov", "flexible-cg"): [{}, {"directions": 3}],
    ("step", "quadratic-model"): [{}, {"momentum": False}],
    ("precision", "phases"): [{"phases": ["float32", "float64"], "until": [0.5]}],
    ("precision", "spectral"): [{"of": "mixed-bfloat16", "spectral": "mixed"}],
    ("precision", "bfloat16"): [{}, {"factors": "bfloat16"}],
    ("transform", "graft"): [{}, {"rule": "adafactor"}, {"rule": "adam"}],
    ("transform", "momentum"): [{}, {"nesterov": True}],
    ("transform", "nesterov"): [{}, {"bias_correction": False}],
    ("transform", "cautious"): [{"rate": 0.1}, {"mask": True}],
    ("transform", "hyperball"): [{}, {"relative": False, "tangent": True}],
    ("transform", "ema"): [{}, {"bias_correction": False}],
    ("schedule", "product"): [{"factors": [2.0, {"use": "warmup", "steps": 3}]}],
    ("schedule", "sequence"): [
        {"parts": [1.0, {"use": "power", "start": 1, "end": 0, "steps": 9}], "steps": [3]}
    ],
    ("schedule", "warmup-stable-decay"): [{"peak": 0.1, "steps": 20, "decay": 5, "warmup": 3}],
    ("sampler", "geometric"): [{}, {"nested": False}, {"acceptance": "held-out"}, {"micro_batch": 5}],
    ("reporter", "wandb"): [{"mode": "disabled"}],  # its own tests write a run
    ("task", "svd"): [{"of": {"use": "digits"}}],
    ("task", "curves"): [{"size": 40, "validation_size": 20, "hidden": [30, 20]}],
    ("task", "fashion-vit"): [{"dim": 16, "depth": 2}],
    ("task", "darcy-flow"): [
        {"grid": 11, "modes": 3, "width": 4, "layers": 2, "size": 40, "validation_size": 8, "batch_size": 8}
    ],
    ("task", "burgers-flow"): [
        {"grid": 11, "modes": 3, "width": 4, "layers": 2, "size": 40, "batch_size": 8}
    ],
    ("loss", "relative-l2"): [{}, {"squared": True}],
    ("loss", "relative-h1"): [{}, {"squared": True, "periodic": True, "length": 2.0}],
    ("task", "pde"): [{"equation": "tests.pde.problems:uniform"}],
    ("task", "character-gpt"): [{"dim": 16, "depth": 1, "context": 16}],
}

#: parts whose suite runs in their own tests
APART = {("reporter", "mlflow")}

#: parts whose suite is of the grid, ``pytest -m grid``: references that take seconds, with tests of their own
SLOW = {("task", "kdv"), ("task", "allen-cahn")}

#: samples that are said to be disjoint, by sampler and setting
DISJOINT = [
    ("geometric", {"acceptance": "held-out"}, (("gradient", "acceptance"), ("curvature", "acceptance"))),
    (
        "geometric",
        {"acceptance": "disjoint"},
        (("gradient", "curvature"), ("gradient", "acceptance"), ("curvature", "acceptance")),
    ),
]


def cases() -> list[Any]:
    """Every part but structures, and every method, with each of its settings."""
    found = []
    for entry in (*registry().parts(), *registry().method_entries()):
        kind = entry.kind if isinstance(entry, PartEntry) else "method"
        if kind != "structure" and (kind, entry.name) not in APART:
            for k, settings in enumerate(SETTINGS.get((kind, entry.name), [{}])):
                name = f"{kind}-{entry.name}" + (f"-{k}" if k else "")
                marks = pytest.mark.grid if (kind, entry.name) in SLOW else []
                found.append(pytest.param(kind, entry, settings, id=name, marks=marks))
    return found


def made(entry: PartEntry | MethodEntry, settings: dict[str, Any]) -> Any:
    if isinstance(entry, MethodEntry):
        return build_method(registry(), registry().use(entry), settings)
    filled = {**example_settings(entry, settings), **settings}
    return build_part(registry(), protocol(entry.kind), registry().use(entry), filled)


def require(report: Report) -> None:
    report.require()
    assert not report.of("naive", "xfail")


@pytest.mark.usefixtures("data")
@pytest.mark.parametrize(("kind", "entry", "settings"), cases())
def test_a_first_party_part_keeps_every_law_of_its_kind(
    kind: str, entry: PartEntry, settings: dict[str, Any]
) -> None:
    require(SUITES[kind].of(made(entry, settings)).run())


@pytest.mark.parametrize(("name", "settings", "pairs"), DISJOINT)
def test_samples_that_are_said_to_be_disjoint_are(name: str, settings: dict[str, Any], pairs: Any) -> None:
    suite = type("Claiming", (SUITES["sampler"],), {"disjoint": pairs})
    report = suite.of(made(registry().part("sampler", name), settings)).run()
    report.require()
    assert report["disjoint"].result == "pass"


def test_a_task_without_its_data_skips_what_it_cannot_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the reason, and fails nothing."""
    monkeypatch.setenv("CURVLAB_DATA", str(tmp_path))
    report = SUITES["task"].of(made(registry().part("task", "speech-frames"), {})).run()
    assert not report.failed
    assert report["gradient"].result == "skip"
    assert "the data of the task are missing: no synthetic speech in" in report["gradient"].message


def test_every_kind_has_a_suite() -> None:
    assert set(SUITES) == {*(e.kind for e in registry().parts()), "method"}


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small data for every task that reads some."""
    root = tmp_path_factory.mktemp("data")
    (root / "fashion-mnist").mkdir()
    write_fashion(root / "fashion-mnist")
    folder.write(root / folder.NAME, corpus(), manifest())
    return root


@pytest.fixture
def data(small_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CURVLAB_DATA", str(small_data))
