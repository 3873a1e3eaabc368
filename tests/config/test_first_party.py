"""The methods of the plugins in this repository, and its examples: every one of them is in order."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import tomli
import tomli_w

from curvlab.config import build, build_method, build_part, load
from curvlab.config.json_schema import json_schema
from curvlab.config.knobs import read_method
from curvlab.protocols.preconditioner import Preconditioner
from curvlab.protocols.sampler import Sampler
from curvlab.races.race import Race
from curvlab.registry import MethodEntry, Registry, discover
from curvlab.registry.loader import Candidate
from curvlab.sweeps.sweep import Sweep

ROOT = Path(__file__).parents[2]

SEARCHES = sorted((ROOT / "examples" / "searches").glob("*.toml"))
EXAMPLES = sorted({*(ROOT / "examples").rglob("*.toml")} - {*SEARCHES})

#: the knobs that users were promised
PROMISED = {
    **{name: {"lr", "weight_decay"} for name in ("sgd", "adamw", "muon", "sophia")},
    "lbfgs": {"lr", "memory", "damping"},
    **{
        name: {"lr", "momentum", "weight_decay", "damping", "refresh", "decay", "labels", "sharing"}
        for name in ("kfac", "ekfac", "foof")
    },
}


def first_party() -> Registry:
    """Core and the plugins of this repository, installed or not."""
    candidates = []
    for file in sorted(ROOT.glob("plugins/*/pyproject.toml")):
        project = tomli.loads(file.read_text(encoding="utf-8"))["project"]
        ((name, module),) = project["entry-points"]["curvlab"].items()
        version = project.get("version", "0")
        candidates.append(
            Candidate(name, project["name"], version, lambda module=module: importlib.import_module(module))  # type: ignore[misc]
        )
    return discover(plugins=candidates, strict=True)


REGISTRY = first_party()
METHODS = list(REGISTRY.method_entries())


def plan_of(method: dict[str, Any]) -> Any:
    return build(load(data={"run": {"steps": 1}, "task": "digits", "method": method}), REGISTRY)


def test_a_named_part_replaces_the_methods_own_part_of_that_name() -> None:
    """hf-gn has L-BFGS from KFAC in its solves and a geometric sampler of its own settings."""
    inner = {"use": "lbfgs", "source": "solve"}
    plan = build(
        load(
            data={
                "run": {"steps": 1},
                "task": "digits",
                "method": {"use": "hf-gn", "inner": inner},
                "sampler": {"use": "geometric"},
            }
        ),
        REGISTRY,
    )
    assert plan.method.preconditioner.inner == build_part(
        REGISTRY, Preconditioner, "lbfgs", {"source": "solve"}
    )
    assert plan.sampler == build_part(REGISTRY, Sampler, "geometric")


def test_the_promised_methods_are_there() -> None:
    assert PROMISED.keys() <= {entry.name for entry in METHODS}


@pytest.mark.parametrize("entry", METHODS, ids=lambda entry: entry.name)
def test_a_method_builds_and_its_resolved_form_builds_the_same(entry: MethodEntry) -> None:
    plan = plan_of({"use": entry.name})
    again = build(load(data=tomli.loads(tomli_w.dumps(dict(plan.resolved)))), REGISTRY)
    assert again.method == plan.method
    assert again.resolved == plan.resolved


@pytest.mark.parametrize("entry", METHODS, ids=lambda entry: entry.name)
def test_a_knob_turned_to_its_default_changes_nothing(entry: MethodEntry) -> None:
    file = read_method(entry)
    defaults = {name: file.default(knob) for name, knob in file.knobs.items() if len(knob.paths) == 1}
    assert build_method(REGISTRY, entry.name, defaults) == build_method(REGISTRY, entry.name, {})


@pytest.mark.parametrize("entry", METHODS, ids=lambda entry: entry.name)
def test_a_method_says_what_it_is_needs_and_comes_from_and_has_the_promised_knobs(entry: MethodEntry) -> None:
    assert entry.summary
    assert entry.needs
    assert entry.reference
    assert PROMISED.get(entry.name, set()) <= read_method(entry).knobs.keys()


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: str(file.relative_to(ROOT)))
def test_an_example_builds(file: Path) -> None:
    assert build(load(file), REGISTRY).method_name in {entry.name for entry in METHODS}


@pytest.mark.parametrize("file", SEARCHES, ids=lambda file: file.name)
def test_an_example_of_a_search_is_checked_whole(file: Path) -> None:
    kind = Race if file.stem == "race" else Sweep
    assert kind.of(load(file), file.stem).name == file.stem


def test_the_quickstart_trains_kfac_on_digits() -> None:
    resolved = build(load(ROOT / "examples" / "quickstart.toml"), REGISTRY).resolved
    assert (resolved["method"]["use"], resolved["task"]["use"]) == ("kfac", "digits")


def test_the_schema_leaves_no_part_out() -> None:
    schema = json_schema(REGISTRY)
    assert "$comment" not in schema
    text = str(schema)
    assert all(f"'{entry.distribution}:{entry.name}'" in text for entry in REGISTRY.parts())
