"""Pairs of functions on a grid, and the file that keeps them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from curvlab.errors import DataError

#: of the file; another one is refused
VERSION = "1"

Settings = Mapping[str, float | str]


@dataclass(frozen=True, eq=False)
class Pairs:
    """Inputs and outputs of an operator, examples leading; the last ``held_out`` are for validation."""

    inputs: Float[Tensor, "n c *grid"]
    outputs: Float[Tensor, "n d *grid"]
    held_out: int

    def save(self, file: Path, equation: str, settings: Settings) -> None:
        """Write the file, whole or not at all; equal pairs make equal bytes."""
        facts = {
            "version": VERSION,
            "equation": equation,
            "settings": json.dumps(dict(settings), sort_keys=True),
            "held_out": str(self.held_out),
        }
        tensors = {"inputs": self.inputs.contiguous(), "outputs": self.outputs.contiguous()}
        part = file.with_name(f"{file.name}.part")
        try:
            part.write_bytes(save(tensors, metadata=facts))
            part.replace(file)
        except OSError as error:
            raise DataError(f"{file}: cannot be written: {error.strerror or error}") from error

    @classmethod
    def load(cls, file: Path, equation: str, settings: Settings) -> Pairs:
        """The pairs that ``save`` wrote; raises ``DataError`` if there are none, or others."""
        if not file.is_file():
            raise DataError(f"{file} does not exist; `curvlab tasks prepare {equation} --to DIR` makes it")
        try:
            with safe_open(file, framework="pt") as content:
                facts = content.metadata() or {}
                _require(file, facts, equation, settings)
                return cls(
                    content.get_tensor("inputs"), content.get_tensor("outputs"), int(facts["held_out"])
                )
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise DataError(f"{file}: cannot be read: {error}; prepare the data again") from error


def _require(file: Path, facts: Mapping[str, str], equation: str, settings: Settings) -> None:
    """Raise ``DataError`` unless the file holds this equation's pairs, with these settings."""
    version, found = facts.get("version"), facts.get("equation")
    if version != VERSION or found != equation:
        raise DataError(
            f"{file} holds version {version} of {found}; expected version {VERSION} of {equation}."
            " Prepare the data again"
        )
    theirs = json.loads(facts["settings"])
    differ = [
        f"{name} is {theirs.get(name)!r}, expected {wanted!r}"
        for name, wanted in settings.items()
        if theirs.get(name) != wanted
    ]
    if differ:
        raise DataError(
            f"{file} holds other data: {'; '.join(differ)}. Change the task's settings, or prepare the data"
            " again in another folder"
        )
