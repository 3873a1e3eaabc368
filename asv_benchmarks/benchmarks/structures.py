"""Operations on members of every registered structure: by operation, family, dimension and dtype."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from .catalogue import catalogue
from .meters import cost, quiet

FAMILIES = catalogue().structures

#: rows of what members are multiplied with, and of what their Gram matrices are formed of
ROWS = 32

DTYPES = {"float32": torch.float32, "float64": torch.float64}

#: by capability: every family; those that hold Gram matrices; those that are closed under products
ANY, GRAM, GROUP = (
    ["matmul", "rmatmul", "project", "combine", "norm"],
    ["average", "inverse", "eigh"],
    ["congruence", "square", "product", "gramian"],
)
OPERATIONS = [*ANY, *GRAM, *GROUP]


def made(family: str) -> Any:
    """A family with its default settings; skipped where a commit has none of that name."""
    from curvlab.config import build_part
    from curvlab.protocols.structure import Family
    from curvlab.registry.loader import installed

    registry = installed()
    if family not in {entry.name for entry in registry.parts("structure")}:
        raise NotImplementedError(f"this commit has no structure {family}")
    return build_part(registry, Family, family)


def backend(dtype: str) -> Any:
    from curvlab.config import build_part
    from curvlab.protocols.backend import Backend
    from curvlab.registry.loader import installed

    return build_part(installed(), Backend, dtype)


def normal(*shape: int, seed: int, dtype: torch.dtype) -> Tensor:
    """Normal numbers, the same every time."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def prepared(name: str, family: Any, d: int, dtype: str) -> Callable[[], object]:
    """An operation, ready to be called any number of times; skipped where family or commit lack it."""
    from curvlab.protocols.structure import Gram, Group

    for capability, names in ((Gram, GRAM), (Group, GROUP)):
        if name in names and not isinstance(family, capability):
            raise NotImplementedError(f"{type(family).__name__} is no {capability.__name__}")
    X = normal(ROWS, d, seed=2, dtype=DTYPES[dtype])
    S = X.mT @ X / ROWS
    S.diagonal().add_(1.0)
    M, N = family.project(S), family.project(S)
    owner = M if name in ANY and name != "project" else family
    method = {"matmul": "__matmul__", "combine": "combine_", "average": "average_"}.get(name, name)
    if not hasattr(owner, method):
        raise NotImplementedError(f"this commit's {type(owner).__name__} has no {method}")
    Xt, arithmetic = X.mT.contiguous(), backend(dtype)
    calls: dict[str, Callable[[], object]] = {
        "matmul": lambda: M @ Xt,
        "rmatmul": lambda: M.rmatmul(X),
        "project": lambda: family.project(S),
        "combine": lambda: M.combine_(0.5, N, 0.5),
        "norm": lambda: M.norm(),
        "average": lambda: family.average_(M, 0.5, X, 0.5 / ROWS, arithmetic),
        "inverse": lambda: family.inverse(M, 0.5, arithmetic),
        "eigh": lambda: family.eigh(M, arithmetic),
        "congruence": lambda: family.congruence(M, X),
        "square": lambda: family.square(M),
        "product": lambda: family.product(M, N),
        "gramian": lambda: family.gramian(M).rmatmul(X),
    }
    if name == "combine" and not getattr(family, "linear", True):
        raise NotImplementedError(f"members of {type(family).__name__} cannot be combined")
    return calls[name]


class Costs:
    """Deterministic costs of one operation, in float32."""

    version = "1"
    timeout = 120
    param_names: ClassVar = ["operation", "family", "dimension"]
    params: ClassVar = [OPERATIONS, FAMILIES, [64, 257]]

    def setup_cache(self) -> dict[tuple[str, str, int], Any]:
        """Everything is measured in one go; an error is reported by the benchmark that it belongs to."""
        quiet()
        found: dict[tuple[str, str, int], Any] = {}
        for name in OPERATIONS:
            for family in FAMILIES:
                for d in self.params[-1]:
                    try:
                        ready = prepared(name, made(family), d, "float32")
                        ready()  # what is kept from call to call is made by the first
                        found[name, family, d] = vars(cost(ready))
                    except Exception as error:  # any error of one family is that one's alone
                        found[name, family, d] = error
        return found

    setup_cache.timeout = 600  # type: ignore[attr-defined]

    def setup(self, found: Any, operation: str, family: str, dimension: int) -> None:
        if isinstance(found[operation, family, dimension], NotImplementedError):
            raise found[operation, family, dimension]

    def _of(self, found: Any, case: tuple[str, str, int], measure: str) -> float:
        if isinstance(found[case], Exception):
            raise found[case]
        return float(found[case][measure])

    def track_flops(self, found: Any, operation: str, family: str, dimension: int) -> float:
        return self._of(found, (operation, family, dimension), "flops")

    def track_peak_bytes(self, found: Any, operation: str, family: str, dimension: int) -> float:
        return self._of(found, (operation, family, dimension), "peak_bytes")

    track_flops.unit = "flops"  # type: ignore[attr-defined]
    track_peak_bytes.unit = "bytes"  # type: ignore[attr-defined]


class Members:
    """What a member of a family stores."""

    version = "1"
    param_names: ClassVar = ["family", "dimension"]
    params: ClassVar = [FAMILIES, [64, 257, 1025]]

    def setup(self, family: str, dimension: int) -> None:
        self.family = made(family)

    def track_state_bytes(self, family: str, dimension: int) -> float:
        member = self.family.zeros(dimension, like=torch.zeros(1))
        return float(sum(t.numel() * t.element_size() for t in member.tensors().values()))

    track_state_bytes.unit = "bytes"  # type: ignore[attr-defined]


class Time:
    """Seconds of one operation."""

    version = "1"
    timeout = 120
    warmup_time = 0.02
    sample_time = 0.02
    rounds = 2
    repeat = (3, 10, 0.3)
    param_names: ClassVar = ["operation", "family", "dimension", "dtype"]
    params: ClassVar = [OPERATIONS, FAMILIES, [64, 512], list(DTYPES)]

    def setup(self, operation: str, family: str, dimension: int, dtype: str) -> None:
        quiet(timed=True)
        self.call = prepared(operation, made(family), dimension, dtype)

    def time_operation(self, operation: str, family: str, dimension: int, dtype: str) -> None:
        self.call()
