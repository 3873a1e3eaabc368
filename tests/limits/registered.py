"""What the source tree registers: core and every plugin under ``plugins/``, installed or not."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Iterator, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import tomli
from torch import nn

from curvlab.config import build_method, build_part
from curvlab.config.schema import settings_of
from curvlab.engine.method import Method
from curvlab.engine.optimizer import CurvatureOptimizer
from curvlab.precision.full import Full
from curvlab.protocols.structure import Family
from curvlab.registry import Registry, discover
from curvlab.registry.imports import part_class
from curvlab.registry.loader import Candidate

ROOT = Path(__file__).parent.parent.parent

#: values for the whole-number settings of a structure: smaller than, as large as and above small dimensions
SIZES = (1, 2, 5)

#: KFAC for PINNs comes with a damping of 1e-8, by whose inverse singular factors amplify rounding
DAMPED: Mapping[str, Mapping[str, Any]] = {"kfac-pinn": {"damping": 0.1}}


@lru_cache(maxsize=1)
def registry() -> Registry:
    """Core and the plugins of the source tree, all of which must load."""
    plugins = []
    for file in sorted(ROOT.glob("plugins/*/pyproject.toml")):
        project = tomli.loads(file.read_text(encoding="utf-8"))["project"]
        for name, module in project["entry-points"]["curvlab"].items():
            load = partial(importlib.import_module, module)
            plugins.append(Candidate(name, project["name"], str(project.get("version", "0")), load))
    return discover(plugins=plugins, strict=True)


def methods() -> list[str]:
    """Every method's name."""
    return [registry().use(entry) for entry in registry().method_entries()]


def knobs_of(name: str) -> Mapping[str, Any]:
    """The knobs that a method declares."""
    knobs: Mapping[str, Any] = registry().method(name).document.get("knobs", {})
    return knobs


#: methods are immutable, and building one takes as long as a few steps of a small network
_BUILT: dict[tuple[str, str], Method] = {}


def optimizer(
    name: str,
    model: nn.Module,
    *,
    reduction: str = "mean",
    settings: Mapping[str, Any] | None = None,
    **knobs: Any,
) -> CurvatureOptimizer:
    """A registered method at work on ``model``, in float64, seed 0."""
    key = (name, repr((sorted(knobs.items()), sorted((settings or {}).items()))))
    if key not in _BUILT:
        _BUILT[key] = build_method(registry(), name, knobs, settings)
    method = _BUILT[key]
    return CurvatureOptimizer(method, model, backend=Full("float64"), reduction=reduction, name=name)


def families() -> list[Family]:
    """Every registered structure, in every combination of small values of its settings."""
    found = []
    for entry in registry().parts("structure"):
        settings = settings_of(part_class(entry))
        choices = {name: list(_choices(s.annotation, s.default)) for name, s in settings.items()}
        for values in itertools.product(*choices.values()):
            given = dict(zip(choices, values, strict=True))
            found.append(build_part(registry(), Family, registry().use(entry), given))
    return found


def _choices(annotation: Any, default: Any) -> Iterator[Any]:
    if get_origin(annotation) is Annotated:  # a number and its bounds
        annotation = get_args(annotation)[0]
    if annotation is bool:
        yield from (False, True)
    elif annotation is int:
        yield from SIZES
    elif get_origin(annotation) is Literal:
        yield from get_args(annotation)
    else:
        yield default
