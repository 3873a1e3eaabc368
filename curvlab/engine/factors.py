"""The Kronecker factors of a run, as tensors by name and a description of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from curvlab.engine.conversion import restore_in_phase
from curvlab.engine.memory import memory_in_words
from curvlab.engine.optimizer import CurvatureOptimizer
from curvlab.engine.plan import Plan
from curvlab.engine.rebuilt import as_it_ran, newest_of
from curvlab.engine.reproducible import reproducible
from curvlab.engine.training import prepare
from curvlab.errors import CheckpointError, UsageError
from curvlab.linalg.kronecker import Kronecker, KroneckerEigen
from curvlab.linalg.operator import BlockOperator
from curvlab.protocols.blocks import Block
from curvlab.protocols.structure import Structure, as_gram

#: what the numbers mean, for a reader of the file
CONVENTION = (
    "C is the curvature of the mean loss over examples, without damping. A block is a matrix V [o, i]. Its"
    " columns are those of its parameters, one after the other, each flattened from its second axis on; a"
    " bias is one column, the last. kronecker: C vec(V) = vec(B V A), with A [i, i] of inputs and B [o, o] of"
    " output gradients. eigen: C vec(V) = vec(Q_B ((Q_B^T V Q_A) * eigenvalues) Q_A^T), eigenvalues [o, i]."
    " A tensor A or B with one axis is the diagonal; one that is absent is the identity, as are Q_A and Q_B."
)


@dataclass(frozen=True)
class Factors:
    """Tensors named ``BLOCK/A``, ``BLOCK/B``, or ``BLOCK/Q_A``, ``BLOCK/Q_B``, ``BLOCK/eigenvalues``.

    ``blocks`` describes each block: ``form`` (``kronecker`` or ``eigen``), ``parameters`` in the order of
    columns, ``layers``, ``shape`` ``[o, i]``, ``bias_column`` (``"last"`` or ``None``), and ``observed``, how
    often it was observed (``None``: not counted).  ``untreated`` are parameters without factors.
    """

    tensors: Mapping[str, Tensor]
    blocks: Mapping[str, Mapping[str, Any]]
    untreated: tuple[str, ...]


def factors_of(optimizer: CurvatureOptimizer) -> Factors:
    """The undamped factors that an optimizer holds, copied to the CPU in their own dtypes.

    Raises ``UsageError`` if its method holds no Kronecker factors.
    """
    tensors: dict[str, Tensor] = {}
    blocks: dict[str, dict[str, Any]] = {}
    for arm in optimizer.arms:
        held = arm.method.preconditioner.curvature(arm.state.preconditioner)
        for name, operator in ({} if held is None else held.blocks).items():
            parts = _parts(operator)
            if parts is None or held is None:
                continue
            form, found = parts
            tensors.update({f"{name}/{key}": t.detach().cpu().clone() for key, t in found.items()})
            blocks[name] = _described(arm.blocks[name], form, held.observed.get(name))
    if not blocks:
        part = type(optimizer.method.preconditioner).__name__
        raise UsageError(
            f'the method "{optimizer.name}" holds no Kronecker factors of a curvature without damping (its '
            f"preconditioner is {part}); export a run of a method that estimates them, such as KFAC"
        )
    taken = {parameter for about in blocks.values() for parameter in about["parameters"]}
    others = [n for n, p in optimizer.model.named_parameters() if p.requires_grad and n not in taken]
    return Factors(tensors, blocks, tuple(others))


@dataclass(frozen=True)
class Exported:
    """The factors of a run at a step, and what is wrong with newer checkpoints."""

    step: int
    factors: Factors
    faults: tuple[str, ...]


def exported(plan: Plan, folder: Path) -> Exported:
    """The factors at a run's newest whole checkpoint.

    Raises ``CheckpointError`` if there is none, ``UsageError`` if the method holds none, ``OutOfMemory``.
    """
    found = newest_of(folder)
    if found is None:
        raise CheckpointError(f"{folder} has no checkpoint; continue the run with `curvlab resume {folder}`")
    with reproducible(as_it_ran(plan, found, folder)), memory_in_words():
        training = prepare(plan, lambda event: None)
        restore_in_phase(training, found.checkpoint)
        return Exported(found.checkpoint.step, factors_of(training.optimizer), found.faults)


def _parts(operator: BlockOperator) -> tuple[str, dict[str, Tensor]] | None:
    """The form of a block and its tensors; ``None`` for an operator of another kind."""
    if isinstance(operator, KroneckerEigen):
        given = {"Q_A": operator.Q_A, "Q_B": operator.Q_B, "eigenvalues": operator.D}
        return "eigen", {key: t for key, t in given.items() if t is not None}
    if not isinstance(operator, Kronecker):
        return None
    sides = {"A": operator.A, "B": operator.B}
    if not all(side is None or isinstance(side, Structure) for side in sides.values()):
        return None
    return "kronecker", {key: _entries(side) for key, side in sides.items() if isinstance(side, Structure)}


def _entries(side: Structure) -> Tensor:
    """The matrix, or its diagonal if the members of its family are diagonal."""
    if as_gram(side.family, "export").rotates:
        return side.dense()
    stored = [t for t in side.tensors().values() if t.shape == (side.d,)]
    return stored[0] if len(stored) == 1 else side.dense().diagonal(dim1=-2, dim2=-1)


def _described(block: Block, form: str, observed: int | None) -> dict[str, Any]:
    is_last = len(block.parameters) > 1 and block.parameters[-1].rpartition(".")[2] == "bias"
    return {
        "form": form,
        "parameters": list(block.parameters),
        "layers": list(block.layers),
        "shape": list(block.shape),
        "bias_column": "last" if is_last else None,
        "observed": observed,
    }
