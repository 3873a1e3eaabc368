"""Which numbers are finite, at a cost that every step can pay.

A sum of squares is finite only if its terms are, so one pass settles almost every case.  States are not read
again unless they were written to: torch counts the writes to a tensor and to its views.  Steps in which
nothing can fail keep finite numbers finite.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from curvlab.engine.state import leaves, tensors_of
from curvlab.errors import Diverged
from curvlab.linalg.vectors import BlockVector
from curvlab.protocols.blocks import Blocks
from curvlab.protocols.evidence import Layers

#: tensors of no more entries are checked together
SMALL = 4096


def size(tensor: Tensor) -> float:
    """``‖tensor‖²``; not finite if an entry is not, or if a square overflows.  A host sync."""
    if not tensor.is_floating_point():
        return 0.0
    if tensor.element_size() < 4:  # squares of halves overflow, and are summed coarsely
        return float(torch.linalg.vector_norm(tensor.detach(), dtype=torch.float32)) ** 2
    if tensor.is_contiguous():
        flat = tensor.detach().reshape(-1)
        return float(torch.dot(flat, flat))
    return float(torch.linalg.vector_norm(tensor.detach())) ** 2


def is_finite(tensor: Tensor) -> bool:
    """No NaN, no infinity; one pass, two if squares overflow."""
    return math.isfinite(size(tensor)) or bool(torch.isfinite(tensor).all())


class Watch:
    """The tensors that are known to be finite and of moderate size, by torch's count of writes to them.

    A copy is empty, and so checks its tensors anew.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[Tensor, int]] = {}

    def __reduce__(self) -> tuple[type[Watch], tuple[()]]:
        return Watch, ()

    def unknown(self, tensors: Iterable[Tensor]) -> list[Tensor]:
        """Those that were written to since, or never seen."""
        known = self._known.get  # it holds its tensors, so that their identities stay theirs
        # the count is torch's own guard of saved tensors; there is no public name for it
        return [t for t in tensors if (entry := known(id(t))) is None or entry[1] != t._version]

    def inspect(self, tensors: Iterable[Tensor]) -> tuple[bool, bool]:
        """Whether all are finite, and whether all are so small that no square overflows."""
        moderate, unknown = True, self.unknown(tensors)
        if not unknown:
            return True, True
        for small in _small(unknown):
            if len(small) > 1 and math.isfinite(size(torch.cat([t.detach().reshape(-1) for t in small]))):
                self._known.update((id(t), (t, t._version)) for t in small)
        for t in self.unknown(unknown):
            if math.isfinite(size(t)):
                self._known[id(t)] = t, t._version
                continue
            self._known.pop(id(t), None)
            if not bool(torch.isfinite(t).all()):
                return False, False
            moderate = False
        return True, moderate

    def renew(self) -> None:
        """Keep the verdict on tensors that a step has just written: that step could not fail."""
        self._known = {key: (t, t._version) for key, (t, _) in self._known.items()}

    def forget_all_but(self, tensors: Iterable[Tensor]) -> None:
        """Hold no tensor that a state does not hold any more."""
        self._known = {id(t): self._known[id(t)] for t in tensors if id(t) in self._known}


def _small(tensors: Iterable[Tensor]) -> Iterable[list[Tensor]]:
    """Those that are checked together: small ones of a device.  A state may keep numbers on the host, too."""
    found: defaultdict[torch.device, list[Tensor]] = defaultdict(list)
    for t in tensors:
        if t.numel() <= SMALL and t.is_floating_point():
            found[t.device].append(t)
    return found.values()


def require_finite_state(state: Any, watch: Watch, what: str) -> bool:
    """Raise ``Diverged`` with the path of a tensor that is not finite; whether all are of moderate size."""
    finite, moderate = watch.inspect(tensors_of(state))
    if finite:
        return moderate
    raise Diverged(f"{what}: {', '.join(non_finite_paths(state))}")


def non_finite_paths(state: Any) -> list[str]:
    """Where a state holds numbers that are not finite; ``path@block`` of vectors."""
    found = []
    for leaf in leaves(state):
        if isinstance(leaf.value, BlockVector):
            found += [f'"{leaf.path}@{name}"' for name, block in leaf.value.items() if not is_finite(block)]
        elif isinstance(leaf.value, Tensor) and not is_finite(leaf.value):
            found.append(f'"{leaf.path}"')
    return found


def non_finite_statistics(layers: Layers) -> Iterator[str]:
    """Which layer statistics are not finite, in words."""
    for blocks in layers.values():
        for name, terms in blocks.items():
            for term in terms:
                parts = {"inputs": term.inputs, "output gradients": term.grads}
                yield from (
                    f'{what} of block "{name}"'
                    for what, rows in parts.items()
                    if isinstance(rows, Tensor) and not is_finite(rows)
                )


def culprit(blocks: Blocks, vector: BlockVector) -> str:
    """Which blocks hold non-finite parameters or entries of ``vector``."""
    bad = [n for n, t in vector.items() if not bool(torch.isfinite(t).all())]
    values: Mapping[str, Tensor] = blocks.parameters if blocks.shards is None else blocks.shards.gathered
    weights = [n for n, p in values.items() if not bool(torch.isfinite(p).all())]
    if weights:
        return f"non-finite parameters: {', '.join(weights)}"
    return f"non-finite entries in block {', '.join(bad)}" if bad else "every parameter is finite"


def require_finite_tensors(tensors: Mapping[str, Tensor], what: str) -> None:
    """Raise ``Diverged`` naming the tensors that are not finite."""
    wrong = [name for name, t in tensors.items() if t.is_floating_point() and not is_finite(t)]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise Diverged(f"{what}: {', '.join(wrong[:5])}{more}")
