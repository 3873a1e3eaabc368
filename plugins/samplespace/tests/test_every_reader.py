"""The Jacobian by layers is the dense one for every reader: the core's, and those of plugins."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curvlab.config import build_part
from curvlab.linalg.vectors import BlockVector
from curvlab.model.partition import partition
from curvlab.objectives.nested import Unpacked
from curvlab.objectives.supervised import objective
from curvlab.protocols.blocks import Blocks
from curvlab.protocols.needs import Labels, Needs
from curvlab.protocols.reader import LayerReader
from curvlab.registry.imports import protocol
from curvlab.testing.asserts import assert_close
from curvlab.testing.layers import CLASSES, TERMS, Behind, Specimen, examples_of, read
from curvlab.testing.problems import normal
from curvlab.testing.reference import gradient, reference_context
from curvlab_samplespace import jacobian as by_layers
from curvlab_samplespace.jacobian import Jacobian
from tests.limits.registered import registry
from tests.model.readers.shipped import SPECIMENS

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

NEEDS = Needs(layers=frozenset({Labels.EXACT}))


def cases() -> Iterator[Any]:
    """A reader and one of its layers."""
    for reader, some in SPECIMENS:
        for name, make in some.items():
            yield pytest.param(reader, make, id=name)
    core = {type(reader) for reader, _ in SPECIMENS}
    for entry in registry().parts("layer"):
        reader = build_part(registry(), protocol("layer"), registry().use(entry), {})
        if type(reader) not in core:
            for k, given in enumerate(reader.specimens()):
                yield pytest.param(reader, partial(_same, given), id=f"{entry.name}-{k}")


def _same(given: Any) -> Any:
    return given


@pytest.mark.parametrize(("reader", "make"), list(cases()))
def test_the_jacobian_by_layers_is_the_dense_one(
    reader: LayerReader, make: Callable[[], tuple[nn.Module, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """J, J v, Jᵀ c and J Jᵀ of each layer, by its rows and by inputs and gradients a few at a time."""
    specimen = Specimen.of(*make())
    _, tape, output = read(specimen.fresh(), specimen.args, [reader])
    n = examples_of(tape.calls, output)
    if not n:
        pytest.skip("its first axis is not one of independent examples")
    model = Behind.of(specimen.fresh(), specimen.args, n).model
    blocks = partition(model, lambda name: True, readers=[reader])
    asked = objective(model, nn.MSELoss(), Unpacked(specimen.args), normal(n, CLASSES, seed=3))
    dense = rows_of_squares(model(*specimen.args), blocks)
    J = Jacobian.of(asked.evaluate(NEEDS, blocks, reference_context()), Labels.EXACT, "test")
    size = float(dense.abs().max())
    assert size > 0
    assert_close(J.dense(), dense, dimension=TERMS, scale=size)
    v, c = normal(J.layout.size, seed=4), normal(J.rows, seed=5)
    for name in J.layout.names:
        start, end = J.layout.offsets[name]
        mine, own = J.block(name), dense[:, start:end]
        along = BlockVector(mine.layout, v[start:end])
        assert_close(mine.times(along), own @ along.flat, dimension=TERMS, scale=size)
        assert_close(mine.transposed(c).flat, own.mT @ c, dimension=TERMS, scale=size)
        for as_rows, group in ((True, by_layers.GROUP), (False, by_layers.GROUP), (False, 1)):
            monkeypatch.setattr(by_layers, "_cheaper_as_rows", lambda *given, chosen=as_rows: chosen)
            monkeypatch.setattr(by_layers, "GROUP", group)
            assert_close(mine.gram(), own @ own.mT, dimension=TERMS, scale=size * size)
            monkeypatch.undo()


def rows_of_squares(outputs: Tensor, blocks: Blocks) -> Tensor:
    """Rows of the residuals of the mean over n·c squares, output by output: ``√(2/(n c)) ∂f``."""
    n, c = outputs.shape
    return torch.stack([gradient(f, blocks) for f in outputs.mT.flatten()]) * (2 / (n * c)) ** 0.5
