"""The suite of layer readers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from curvlab.linalg.lookups import Lookups
from curvlab.model.partition import partition
from curvlab.objectives.nested import each_tensor, tensors_of
from curvlab.protocols.blocks import Block, Blocks, as_real
from curvlab.protocols.reader import CompositeReader
from curvlab.testing.conformance.check import check
from curvlab.testing.conformance.rows import RowChecks
from curvlab.testing.layers import Specimen, assert_explained, read, some_loss
from curvlab.testing.problems import normal


class LayerConformance(RowChecks):
    """A reader against autograd, on specimens of its layers.

    Specimens are those of the reader; a test class may give others.
    """

    kind = "layer"

    @property
    def captures(self) -> bool:
        """Whether it sees uses as they are made, so that no subclass computes otherwise than it sees."""
        return isinstance(self.part, CompositeReader) and not self.part.reruns

    @check()
    def check_refusals(self) -> None:
        """It reads its specimens, and refuses other layers with ``""``, subclasses that compute in words."""
        for other in (nn.Identity(), _Other()):
            refusal = self.part.refuses(other)
            assert refusal == "", (
                f'{self.name}.refuses must return "" for a layer of another kind, not {refusal!r}'
            )
        for specimen in self.layers():
            blocks = partition(specimen.module, lambda name: True, readers=[self.part])
            reasons = "; ".join(b.reason for b in blocks.members)
            assert any(b.is_layer for b in blocks.members), (
                f"{self.name} reads no part of {specimen}: {reasons}"
            )
            if self.captures:
                continue
            changed = _overridden(specimen.fresh())
            for part in self.part.parts(specimen.module):
                refusal = part.refuses(changed)
                assert isinstance(refusal, str), (
                    f"{self.name}.refuses must say why it cannot read a subclass of"
                    f" {type(specimen.module).__name__} that overrides forward; it returns {refusal!r}"
                )
            assert self.part.refuses(changed), (
                f"{self.name}.refuses must give a reason for a subclass of {type(specimen.module).__name__}"
                ' that overrides forward, not ""'
            )

    @check()
    def check_obligations(self) -> None:
        """Shape, groups, axes and numbers of rows are those of the rows that it makes."""
        for specimen, blocks, call, g in self.calls():
            reader, module, what = call.reader, call.module, f"{self.name}, {specimen}"
            names, shape, groups = reader.parameters(module), reader.shape(module), reader.groups(module)
            assert isinstance(names, tuple), f"{what}: parameters is {names!r}, expected a tuple of names"
            assert isinstance(shape, torch.Size), f"{what}: shape is {shape!r}, expected a torch.Size"
            count = sum(as_real(blocks.value(p)).numel() for p in call.block.parameters)
            assert shape.numel() == count, (
                f"{what}: shape {tuple(shape)}, but the parameters have {count} numbers"
            )
            assert shape[0] % groups == 0, f"{what}: {shape[0]} outputs in {groups} groups"
            inputs, grads, axes = call.inputs(), call.grads(g), reader.axes(module, call.x, call.output_shape)
            n, s = grads.shape[:2]
            assert isinstance(inputs, Lookups) == reader.one_hot, (
                f"{what}: one_hot is {reader.one_hot}, inputs are {type(inputs).__name__}"
            )
            assert tuple(grads.shape) == (n, s, shape[0]), f"{what}: grads of shape {tuple(grads.shape)}"
            expected = (n, s * groups, shape[1])
            assert tuple(inputs.shape) == expected, (
                f"{what}: inputs of shape {tuple(inputs.shape)}, expected {expected} beside grads"
            )
            assert call.rows == n * s, f"{what}: rows is {call.rows}, grads has {n * s}"
            assert axes[0] == n, f"{what}: axes is {axes}, the first axis of rows is {n}"
            whole_number = len(axes) == 1 or torch.Size(axes).numel() == n * s
            assert whole_number, f"{what}: axes {axes} must be all {n * s} positions, or the first axis alone"

    @check()
    def check_packing(self) -> None:
        """``unpacked`` is a view, and the inverse of ``matrix``."""
        for specimen in self.layers():
            blocks, _, _ = self.recorded(specimen)
            for block in blocks.tapped:
                self._require_inverse(specimen, blocks, block)

    def _require_inverse(self, specimen: Specimen, blocks: Blocks, block: Block) -> None:
        reader, module = block.reader, blocks.modules[block.layers[0]]
        assert reader is not None
        packed, start = normal(*block.shape, seed=1), 0
        for name, mine in zip(block.parameters, reader.parameters(module), strict=True):
            what = f"{self.name}, {specimen}, {name}"
            like = blocks.value(name).detach()
            value = normal(*as_real(like).shape, seed=2)
            value = torch.view_as_complex(value) if like.is_complex() else value
            columns = reader.matrix(module, mine, value)
            o, c = block.shape[0], as_real(value).numel() // block.shape[0]
            assert tuple(columns.shape) == (o, c), (
                f"{what}: matrix has shape {tuple(columns.shape)}, not {(o, c)}"
            )
            view = reader.unpacked(module, mine, packed[:, start : start + c])
            assert view.shape == value.shape, f"{what}: unpacked has shape {tuple(view.shape)}"
            again = reader.unpacked(module, mine, columns)
            assert torch.equal(again, value), f"{what}: unpacked(matrix(t)) is not t"
            view.copy_(value)
            assert torch.equal(packed[:, start : start + c], columns), (
                f"{what}: what is written to unpacked(columns) does not arrive in the columns; return a view"
            )
            start += c

    @check()
    def check_calls(self) -> None:
        """A layer that is called twice in one forward has rows of both calls."""
        for specimen in self.layers():
            module = specimen.fresh()
            self._require_both(specimen, _Twice(module, module), "called twice")

    @check()
    def check_ties(self) -> None:
        """Two layers that share their parameters are one block with rows of both, or are not read."""
        for specimen in self.layers():
            model = _Twice(specimen.fresh(), specimen.fresh())
            _tie(model)
            if self.part.composite:
                blocks = partition(model, lambda name: True, readers=[self.part])
                silent = [b.name for b in blocks.members if not b.is_layer and not b.reason]
                assert not silent, f"{self.name}, {specimen}, tied: {silent} are not read, without a reason"
                assert not blocks.tapped, (
                    f"{self.name}, {specimen}: a tied composite is read in one of its modules"
                )
                continue
            self._require_both(specimen, model, "tied to another of its kind")

    def _require_both(self, specimen: Specimen, model: nn.Module, how: str) -> None:
        blocks, tape, output = read(model, specimen.args, [self.part])
        what = f"{self.name}, {specimen}, {how}"
        single = len(self.recorded(specimen)[1])
        reasons = "; ".join(b.reason for b in blocks.members if not b.is_layer)
        assert len(tape.calls) == 2 * single, (
            f"{what}: {len(tape.calls)} calls instead of {2 * single}: {reasons}"
        )
        assert_explained(blocks, tape, some_loss(output), what)

    @check()
    def check_untouched(self) -> None:
        """Recording changes no bit of outputs, arguments and parameters, and leaves no hook behind."""
        for specimen in self.layers():
            what, plain, module = f"{self.name}, {specimen}", specimen.fresh(), specimen.fresh()
            args = _copied(specimen.args)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                expected = plain(*specimen.args)
                plain(*specimen.args)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                _, tape, output = read(module, args, [self.part])
                value = some_loss(output)
                for call, g in zip(tape.calls, torch.autograd.grad(value, tape.edges), strict=True):
                    call.inputs(), call.grads(g)
                module(*args)
            pairs = {
                "the output": (output, expected),
                "the arguments": (args, specimen.args),
                "parameters and buffers": (dict(module.state_dict()), dict(plain.state_dict())),
            }
            for word, (found, true) in pairs.items():
                same = all(map(torch.equal, tensors_of(found), tensors_of(true)))
                assert same, f"{what}: reading the layer changes {word}"
            assert _attached(module) == _attached(plain), (
                f"{what}: the reader leaves hooks or attributes behind"
            )


def _copied(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Clones of the tensors; one that is given twice stays one, as attention computes by identity."""
    clones = {id(t): t.clone() for t in tensors_of(args)}
    copied: tuple[Any, ...] = each_tensor(lambda t: clones[id(t)], args)
    return copied


class _Other(nn.Identity):
    """A layer that no reader knows."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 3))
        self.bias = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class _Twice(nn.Module):
    """Calls one layer and another, or the same again, on arguments of its own each."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, *args: Any) -> tuple[Any, Any]:
        other = each_tensor(lambda t: 0.5 * t + 0.3 if t.is_floating_point() else t, args)
        return self.first(*args), self.second(*other)


def _tie(model: _Twice) -> None:
    """The second layer's parameters are the first's."""
    for name, module in model.first.named_modules():
        model.second.get_submodule(name)._parameters.update(module._parameters)


def _overridden(module: nn.Module) -> nn.Module:
    """A layer of a subclass that computes something else."""
    kind = type(module)

    def forward(self: nn.Module, *args: Any, **more: Any) -> Any:
        return each_tensor(lambda t: 2.0 * t, kind.forward(self, *args, **more))

    module.__class__ = type(f"Changed{kind.__name__}", (kind,), {"forward": forward})
    return module


def _attached(module: nn.Module) -> list[tuple[str, str, int]]:
    """Every attribute of a layer and its children, and how many entries those have that are containers."""
    found = []
    for name, inner in module.named_modules():
        for key, value in vars(inner).items():
            found.append((name, key, len(value) if isinstance(value, (dict, list, set)) else 0))
    return sorted(found)
