"""A plugin for tests of the configuration: parts of awkward shapes, and methods with knobs."""

from __future__ import annotations

from typing import Any

from curvlab import hookimpl

api_version = "1.0"


@hookimpl
def curvlab_register(registry: Any) -> None:
    """Everything in parts.py, and methods/."""
    parts = "curvlab_fake.parts"
    registry.add("structure", "shear", f"{parts}:Shear", summary="a group that is no Gram")
    registry.add("estimator", "layered", f"{parts}:Layered", summary="two structures that must be Grams")
    registry.add("estimator", "typed", f"{parts}:Typed", summary="a Gram by its field's type")
    registry.add("step", "picky", f"{parts}:Picky", summary="a setting of every type")
    registry.add("step", "gentle", f"{parts}:Picky", summary="picky, with its mood fixed", mood="calm")
    registry.methods("curvlab_fake")
