"""What all of the readers' suite shares: specimens of layers, called and recorded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from curvlab.linalg.lookups import dense_rows
from curvlab.model.taps import Call
from curvlab.protocols.blocks import Blocks
from curvlab.protocols.reader import LayerReader, Specimens
from curvlab.testing.conformance.check import Skipped
from curvlab.testing.conformance.exercised import Exercised, Found
from curvlab.testing.layers import Specimen, read, some_loss


class ReadingChecks(Exercised):
    """A reader under check, on specimens of its layers in float64."""

    part: LayerReader

    def specimens(self) -> Specimens:
        """Layers, each with arguments to call it on; anew at each call."""
        return self.part.specimens()

    @property
    def name(self) -> str:
        """The class, for messages."""
        return type(self.part).__name__

    def layers(self) -> list[Specimen]:
        """The specimens, always the same; skips the check if there are none."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            found = [Specimen.of(*given) for given in self.specimens()]
        if not found:
            raise Skipped(
                f"{self.name} has no specimens; define specimens(self), which yields (layer, arguments)"
            )
        return found

    def recorded(self, specimen: Specimen) -> tuple[Blocks, list[Call], Any]:
        """A call of a copy of a specimen: blocks, calls and output."""
        blocks, tape, output = read(specimen.fresh(), specimen.args, [self.part])
        return blocks, tape.calls, output

    def calls(self) -> Iterator[tuple[Specimen, Blocks, Call, Tensor]]:
        """Every call of every specimen, with a gradient that arrived at its output."""
        for specimen in self.layers():
            blocks, calls, output = self.recorded(specimen)
            for call, g in zip(calls, arrived(calls, output), strict=True):
                yield specimen, blocks, call, g

    def exercise(self) -> Found:
        found: dict[str, Any] = {}
        for k, (_, _, call, g) in enumerate(self.calls()):
            found[f"inputs of call {k}"] = dense_rows(call.inputs())
            found[f"gradients of call {k}"] = call.grads(g)
            found[f"row of call {k}"] = call.reader.row(call.module, call.x, g, 0)[0]
        return found


def arrived(calls: list[Call], output: Any) -> list[Tensor]:
    """The gradient of some loss at the output of every call."""
    found = torch.autograd.grad(some_loss(output), [c.edge for c in calls], retain_graph=True)
    return [g.reshape(c.output_shape) for c, g in zip(calls, found, strict=True)]
