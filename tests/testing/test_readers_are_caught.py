"""Every check of the suite of layer readers finds a reader that breaks its law."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from curvlab.linalg.lookups import Lookups
from curvlab.model.readers.embedding import EmbeddingReader
from curvlab.model.readers.linear import LinearReader
from curvlab.testing.conformance import LayerConformance
from curvlab.testing.problems import labels, normal
from tests.testing.caught import Broken, broken, draw, frame, seeded, switch, unequal


def specimens(self: Any) -> Iterator[Any]:
    """Linear layers, over positions too."""
    yield nn.Linear(3, 2), (normal(4, 3, seed=1),)
    yield nn.Linear(3, 2), (normal(4, 2, 3, seed=1),)


def linear(
    check: str, also: tuple[str, ...] = (), why: str = "", *, rows: Any = None, **methods: Any
) -> Broken:
    """A reader of linear layers that goes otherwise; ``rows`` changes rows of gradients."""
    if rows is not None:
        methods["grads"] = lambda self, module, g, x: rows(LinearReader.grads(self, module, g, x), x)
    methods = {"specimens": specimens, **methods}
    return Broken(check, broken(LinearReader, **methods)(), also, why)


def inputs(change: Any) -> Any:
    """Inputs that are made into others."""
    return lambda self, module, x: change(LinearReader.inputs(self, module, x), x)


def drawing(rows: Tensor, x: Tensor) -> Tensor:
    draw()
    return rows


def switching(rows: Tensor, x: Tensor) -> Tensor:
    switch()
    return rows


def refuses_nothing(self: Any, module: nn.Module) -> str | None:
    """Also what a subclass computes otherwise."""
    return self.refuses_part(module) if isinstance(module, nn.Linear) else ""


def speaks_of_others(self: Any, module: nn.Module) -> str | None:
    """A reason where another reader may know the layer."""
    return "no linear layer" if not isinstance(module, nn.Linear) else LinearReader.refuses(self, module)


def another_axis(self: Any, module: nn.Module, x: Tensor, shape: torch.Size) -> tuple[int, ...]:
    return (shape[:-1].numel(),)


def copied(self: Any, module: nn.Module, name: str, columns: Tensor) -> Tensor:
    return LinearReader.unpacked(self, module, name, columns).clone()


def squared(rows: Tensor, x: Tensor) -> Tensor:
    """Right where an entry is 0 or 1."""
    return rows * rows.abs()


def rolled(rows: Tensor, x: Tensor) -> Tensor:
    """Rows of the example before."""
    return rows.roll(1, 0)


def by_batch(self: Any, module: nn.Module, x: Tensor) -> Tensor:
    """Inputs in units that rows of gradients take back."""
    return LinearReader.inputs(self, module, x) * len(x)


SEEN: weakref.WeakKeyDictionary[nn.Module, Tensor] = weakref.WeakKeyDictionary()


def first_call(self: Any, module: nn.Module, args: Any, kwargs: Any) -> Any:
    """The input of a module's first call, for all of its calls."""
    return SEEN.setdefault(module, args[0].detach())


OWNERS: weakref.WeakValueDictionary[int, nn.Module] = weakref.WeakValueDictionary()


def first_owner(self: Any, module: nn.Module) -> str | None:
    """Reads a weight from the first module that has it."""
    found = LinearReader.refuses(self, module)
    if found is None and OWNERS.setdefault(id(module.weight), module) is not module:
        return "seen before"
    return found


def hooking(self: Any, module: nn.Module, args: Any, kwargs: Any) -> Any:
    module.register_forward_pre_hook(lambda *_: None)
    return LinearReader.given(self, module, args, kwargs)


def shifting(self: Any, module: nn.Module, args: Any, kwargs: Any) -> Any:
    """The bias, after the call."""
    found = LinearReader.given(self, module, args, kwargs)
    module.bias.data += 1e-3
    return found


def row(change: Any) -> Any:
    """A row and its bound that are made into others."""
    return lambda self, module, x, g, k: change(*LinearReader.row(self, module, x, g, k))


def half(rows: Tensor, x: Tensor) -> Tensor:
    """What float32 has is rounded further."""
    return rows.half().float() if rows.dtype == torch.float32 else rows


def exact_labels(self: Any, module: nn.Module, g: Tensor, x: Tensor) -> Tensor:
    """Of gradients that are large alone: columns of exact labels are small."""
    rows = LinearReader.grads(self, module, g, x)
    return torch.where(rows.norm() > 0.3, rows, 0.0 * rows)


def bagged(self: Any) -> Iterator[Any]:
    yield nn.Embedding(5, 2), (labels(4, 3, classes=5, seed=1),)


def built(self: Any, module: nn.Module, x: Tensor) -> Tensor:
    """One-hot rows as a matrix, though ``one_hot`` says that they are not."""
    found: Lookups = EmbeddingReader.inputs(self, module, x)
    return found.dense()


READERS = [
    unequal(LinearReader),
    linear("random_state", rows=drawing),
    linear("determinism", rows=lambda rows, x: rows * seeded()),
    linear("autograd", rows=switching),
    linear("refusals", refuses=refuses_nothing),
    linear("refusals", refuses=speaks_of_others),
    linear("obligations", axes=another_axis),
    Broken("obligations", broken(EmbeddingReader, inputs=built, specimens=bagged)()),
    linear(
        "packing", ("jacobian", "ggn"), "what they are compared with is packed through views", unpacked=copied
    ),
    linear("gradient", ("ggn", "calls", "ties", "row"), "the error is in all but unit vectors", rows=squared),
    linear(
        "jacobian",
        ("micro_batches",),
        "an example that is alone is its own predecessor",
        rows=rolled,
        inputs=inputs(rolled),
    ),
    linear("ggn", grads=exact_labels),
    linear("micro_batches", inputs=by_batch, rows=lambda rows, x: rows / len(x)),
    linear("calls", given=first_call),
    linear("ties", refuses=first_owner),
    linear("untouched", given=hooking),
    linear("untouched", given=shifting),
    linear("row", row=row(lambda found, bound: (2.0 * found, 2.0 * bound))),
    linear("row", row=row(lambda found, bound: (found, 0.01 * bound))),
    linear("row", row=row(lambda found, bound: (found, 1e6 * bound))),
    linear("float32", rows=half),
]

SOUND = [("layer", LinearReader()), ("layer", EmbeddingReader())]

caught, shown, passes = frame({"layer": READERS}, SOUND)
test_a_part_that_breaks_a_law_is_caught_by_that_check_alone = caught
test_every_check_is_shown_to_catch_something = shown
test_a_part_in_order_passes = passes


def test_a_reader_without_specimens_skips_what_needs_one_and_says_how_to_give_some() -> None:
    report = LayerConformance.of(broken(LinearReader, specimens=lambda self: ())()).run()
    assert not report.failed
    assert report["gradient"].result == "skip"
    assert "define specimens(self)" in report["gradient"].message
