"""The JSON Schema accepts what can be built and refuses what cannot."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import tomli

from curvlab.config.json_schema import json_schema
from curvlab.registry import Registry, discover
from curvlab.registry.loader import Candidate
from tests.config.schema_validator import accepts

FAULTS = Path(__file__).parent / "faults"

#: faults that are about more than one value: cross-checks, files, TOML, NaN, what only an import tells
BEYOND = re.compile(
    r"toml-|extends-missing|extends-itself|extends-a-folder|-nan|use-missing|use-wrong|use-not|twice|replaced"
    r"|emptied|group-|value-error|cross-check|precision-device|array-entry|part-setting-missing"
)


@pytest.fixture(scope="module")
def schema(registry: Registry) -> dict[str, Any]:
    return json_schema(registry)


GOOD: list[dict[str, Any]] = [
    {"run": {"steps": 3}, "task": "quadratic", "method": "plain"},
    {"run": {"epochs": 0.5}, "task": {"use": "digits", "hidden": [8]}, "method": {"use": "plain", "lr": 1}},
    {
        "method": {
            "use": "fake",
            "lr": {"use": "cosine", "peak": 1, "steps": 3},
            "structure": {"use": "shear", "size": 2},
        }
    },
    {"method": {"use": "fake", "damping": "levenberg-marquardt", "preconditioner": {"refresh_every": 3}}},
    {"method": {"use": "fake", "fallback": "none", "sampler": {"use": "full-batch"}}},
    {
        "method": {
            "preconditioner": "identity",
            "damping": "constant",
            "step": {"use": "picky", "count": 1, "pair": [1, "a"]},
        }
    },
    {"task": "digits", "method": "plain", "run": {"steps": 1}, "report": ["quiet", {"use": "console"}]},
    {"sampler": {"batch_size": 3}, "precision": {"device": "cuda"}, "report": "quiet", "extends": ["a.toml"]},
    {"task": {"use": "my.module:Task", "anything": 1}},
]


#: what a file must say that does not extend another
WHOLE: dict[str, Any] = {"run": {"steps": 3}, "task": "quadratic", "method": "plain"}


@pytest.mark.parametrize("data", GOOD, ids=str)
def test_what_can_be_built_is_accepted(schema: dict[str, Any], data: dict[str, Any]) -> None:
    assert accepts(schema, {**WHOLE, **data}, schema)


@pytest.mark.parametrize("lacking", WHOLE)
def test_a_table_may_be_missing_only_if_another_file_is_extended(
    schema: dict[str, Any], lacking: str
) -> None:
    data = {key: value for key, value in WHOLE.items() if key != lacking}
    assert not accepts(schema, data, schema)
    assert accepts(schema, {**data, "extends": "base.toml"}, schema)


@pytest.mark.parametrize(
    "file", [f for f in sorted(FAULTS.glob("*.toml")) if not BEYOND.search(f.stem)], ids=lambda f: f.stem
)
def test_what_has_a_wrong_shape_is_refused(schema: dict[str, Any], file: Path) -> None:
    assert not accepts(schema, tomli.loads(file.read_text(encoding="utf-8")), schema)


def test_a_part_that_cannot_be_imported_is_left_out_and_named() -> None:
    class Module:
        api_version = "1.0"

    def register(registry: Any) -> None:
        registry.add("step", "ghost", "no.such.module:Step", summary="x")

    from curvlab.registry import hookimpl

    Module.curvlab_register = staticmethod(hookimpl(register, specname="curvlab_register"))  # type: ignore[attr-defined]
    found = json_schema(discover(plugins=[Candidate("g", "curvlab-g", "1", lambda: Module)], strict=True))
    assert "ghost" in found["$comment"]
    assert not accepts(
        found, {"method": {"preconditioner": "identity", "damping": "constant", "step": "ghost"}}, found
    )
