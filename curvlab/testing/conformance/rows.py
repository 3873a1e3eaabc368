"""Rows of layers, against plain autograd."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from curvlab.linalg.lookups import dense_rows
from curvlab.model.partition import partition
from curvlab.model.taps import Call
from curvlab.objectives.nested import each_tensor, tensors_of
from curvlab.protocols.blocks import Blocks, as_real
from curvlab.protocols.pieces import cut, whole
from curvlab.protocols.reader import products
from curvlab.testing import reference
from curvlab.testing.asserts import assert_close
from curvlab.testing.conformance.check import Skipped, check
from curvlab.testing.conformance.readings import ReadingChecks, arrived
from curvlab.testing.layers import (
    TERMS,
    Behind,
    Specimen,
    assert_explained,
    examples_of,
    factors_of_rows,
    read,
    some_loss,
)

#: outputs of a specimen that are differentiated one by one; of more, an even choice
MOST = 100

#: terms of a sum behind an entry of a row: a norm's statistics
FEW = 16

#: how many times Cauchy and Schwarz's bound on a row's entry a reader's own may be
SLACK = 100.0


class RowChecks(ReadingChecks):
    """Gradients, Jacobians and Gauss–Newton blocks that are made of a reader's rows."""

    @check()
    def check_gradient(self) -> None:
        """The rows add up to the gradient of every parameter that is read."""
        for specimen in self.layers():
            blocks, tape, output = read(specimen.fresh(), specimen.args, [self.part])
            assert_explained(blocks, tape, some_loss(output), f"{self.name}, {specimen}")

    @check()
    def check_jacobian(self) -> None:
        """The rows of each example are its block of the Jacobian, output by output."""
        for specimen in self.layers():
            blocks, calls, output = self.recorded(specimen)
            y, edges = next(tensors_of(output)), [c.edge for c in calls]
            n = len(specimen.pieces())  # 0 where a part of the batch is not a batch
            for f in range(0, y.numel(), 1 + y.numel() // MOST):
                entry = y.flatten()[f]
                truth = reference.gradient(entry, blocks)
                found = torch.autograd.grad(entry, edges, retain_graph=True, allow_unused=True)
                self._require_row(specimen, blocks, calls, found, truth, (f, f * n // y.numel(), n))

    def _require_row(
        self,
        specimen: Specimen,
        blocks: Blocks,
        calls: list[Call],
        gradients: Iterable[Tensor | None],
        truth: Tensor,
        place: tuple[int, int, int],
    ) -> None:
        """The rows of its example alone hold the derivative of one output."""
        f, example, n = place
        found = blocks.layout.zeros(like=truth)
        expected = blocks.layout.zeros(like=truth)
        expected.flat.copy_(truth)
        what = f"{self.name}, {specimen}: the derivative of output {f}"
        for call, g in zip(calls, gradients, strict=True):
            each = products(call.inputs(), call.grads(g))
            if len(each) == n:
                strangers = [k for k, t in enumerate(each) if k != example and bool(t.any())]
                assert not strangers, f"{what}, which is of example {example}, is in the rows of {strangers}"
            found[call.block.name].add_(each.sum(0).mT if call.transposed else each.sum(0))
        for block in blocks.tapped:
            assert_close(
                found[block.name],
                expected[block.name],
                dimension=TERMS,
                scale=1.0 + float(truth.abs().max()),
                what=what,
            )

    @check()
    def check_ggn(self) -> None:
        """With exact labels rows give the block of the Gauss–Newton matrix; so does an exact B ⊗ A."""
        for specimen in self.layers():
            what = f"{self.name}, {specimen}"
            _, calls, output = self.recorded(specimen)
            n = examples_of(calls, output)
            if n:
                behind = Behind.of(specimen.fresh(), specimen.args, n)
                behind.assert_blocks(self._blocks(behind), what)
            for args in specimen.pieces()[:1]:
                behind = Behind.of(specimen.fresh(), args, 1)
                blocks = self._blocks(behind)
                truth = behind.truth(blocks)
                for name, terms in behind.statistics(blocks).items():
                    factors = factors_of_rows(terms)
                    if factors is not None:
                        true = reference.block_of(truth, blocks.layout, name)
                        mine = reference.kronecker(*factors)
                        words = f"{what}, one example: B ⊗ A of {name}"
                        assert_close(mine, true, dimension=TERMS, scale=float(truth.abs().max()), what=words)

    def _blocks(self, behind: Behind) -> Blocks:
        return partition(behind.model, lambda name: True, readers=[self.part])

    @check()
    def check_micro_batches(self) -> None:
        """The rows of a part of the batch are that part of the rows."""
        seen = False
        for specimen in self.layers():
            pieces = specimen.pieces()
            _, calls, output = self.recorded(specimen)
            if len(pieces) < 2 or not calls:
                continue
            seen = True
            g = arrived(calls, output)
            parts = [self.recorded(Specimen(specimen.module, args)) for args in pieces]
            for k, call in enumerate(calls):
                alone = [found[k] for _, found, _ in parts]
                cut = torch.split(g[k], [c.output_shape[0] for c in alone])
                pairs = {
                    "inputs": (call.inputs(), torch.cat([dense_rows(c.inputs()) for c in alone])),
                    "gradients": (
                        call.grads(g[k]),
                        torch.cat([c.grads(t) for c, t in zip(alone, cut, strict=True)]),
                    ),
                }
                for word, (of_all, of_parts) in pairs.items():
                    what = f"{self.name}, {specimen}: {word} of single examples beside those of the batch"
                    assert_close(of_parts, dense_rows(of_all), dimension=TERMS, what=what)
        if not seen:
            raise Skipped("no specimen has a batch whose examples are independent")

    @check()
    def check_row(self) -> None:
        """``row`` is a row of what the call adds to the gradient, and its bound holds and is no loose one."""
        for specimen, _, call, g in self.calls():
            reader, module = call.reader, call.module
            inputs, grads = call.inputs(), call.grads(g)
            total, o = products(inputs, grads).sum(0), reader.shape(module)[0]
            first = reader.parameters(module)[0]
            columns = as_real(cut(first, module.get_parameter(whole(first)))).numel() // o
            size = float(torch.linalg.vector_norm(dense_rows(inputs)))
            for k in sorted({0, o // 2, o - 1}):
                what = f"{self.name}, {specimen}: row {k} of {first}"
                found, bound = reader.row(module, call.x, g, k)
                scale = size * float(torch.linalg.vector_norm(grads[..., k]))
                assert_close(found, total[k, :columns], dimension=TERMS, scale=max(scale, 1e-300), what=what)
                largest, limit = float(found.abs().max()), float(bound)
                assert largest <= limit * (1 + 1e-12), (
                    f"{what}: an entry is {largest:.6g}, its bound {limit:.6g}"
                )
                assert limit <= SLACK * scale + 1e-300, (
                    f"{what}: the bound is {limit:.6g}, expected about {scale:.6g}"
                )

    @check()
    def check_float32(self) -> None:
        """In float32 rows are those of float64, rounded."""
        for specimen in self.layers():
            _, exact, output = self.recorded(specimen)
            single = Specimen(specimen.fresh().float(), each_tensor(_float, specimen.args))
            _, rounded, _ = self.recorded(single)
            g = arrived(exact, output)
            for k, (a, b) in enumerate(zip(exact, rounded, strict=True)):
                pairs = {
                    "inputs": (a.inputs(), b.inputs()),
                    "gradients": (a.grads(g[k]), b.grads(g[k].float())),
                }
                for word, (true, found) in pairs.items():
                    what = f"{self.name}, {specimen}: {word} in float32"
                    assert found.dtype is torch.float32, f"{what} are {found.dtype}"
                    assert_close(dense_rows(found), dense_rows(true), dimension=FEW, what=what)


def _float(t: Tensor) -> Tensor:
    return t.float() if t.is_floating_point() else t
