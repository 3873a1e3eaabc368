"""Every reader of the core keeps the laws of the suite, with every option of its layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from curvlab.model.readers.shipped import SHIPPED
from curvlab.protocols.reader import LayerReader
from curvlab.testing.conformance import LayerConformance
from tests.model.readers.shipped import SPECIMENS, Given

#: torch has no fast path for it in float32
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

CASES = [pytest.param(reader, make, id=name) for reader, some in SPECIMENS for name, make in some.items()]


def suite(reader: LayerReader, layer: Callable[[], Given]) -> LayerConformance:
    """That of a reader on one layer."""

    class OnOne(LayerConformance):
        def make(self) -> LayerReader:
            return reader

        def specimens(self) -> Iterator[Given]:
            yield layer()

    return OnOne()


@pytest.mark.parametrize(("reader", "layer"), CASES)
def test_a_reader_keeps_every_law_whatever_the_options(
    reader: LayerReader, layer: Callable[[], Given]
) -> None:
    suite(reader, layer).run().require()


def test_every_reader_of_the_core_has_layers_here() -> None:
    assert {reader for reader, _ in SPECIMENS} >= set(SHIPPED)


@pytest.mark.parametrize("check", ["ggn", "micro_batches"])
def test_checks_that_may_be_skipped_are_run_for_every_reader(check: str) -> None:
    for reader, some in SPECIMENS:
        found = [suite(reader, layer) for layer in some.values()]
        assert "pass" in {s.outcome(s.named(check)).result for s in found}, reader
