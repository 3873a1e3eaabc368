"""What a diagonal step costs at least, and what ``singd`` pays for its stability.

    python asv_benchmarks/singd_floor.py [--rounds 15]

Network, data and the way of timing: ``pairs``.  First a step of a diagonal method written by hand, with no
framework, no check and factors that never change, over ``torch.optim.AdamW`` and over the public package
``singd``.  Its bias is a column of its layer's matrix, as a block has it, or is apart.  Then
``singd`` with the package's settings over itself without safeguards (the mean for the peak, and no limit),
at T = 1 and 10.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch
from pairs import MLP, Pair, Ratio, Subject, interleaved, ours, quiet, torch_adamw
from singd_ratios import CONTENDERS, CURVATURE_LR, SAME, STEPS, package
from torch import Tensor, nn

from curvlab.linalg.accumulation import accumulate_

#: of ``singd``, for no safeguards
NONE = {"preconditioner.coupling": "mean", "preconditioner.limit": float("inf")}

STRUCTURES = ("diagonal", "block-diagonal", "hierarchical", "lower-arrow", "dense")


def bare(*, column: bool, momentum: float = 0.9, lr: float = 1e-3) -> Subject:
    """``m ← β m + (G C²)ᵀ (A K²)``, ``θ ← θ − lr m`` for every layer; the bias as a ``column`` or apart."""
    model, data = MLP.model(), MLP.batches()
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    wide = [layer.in_features + column for layer in layers]
    made = [
        (layer, torch.ones(i), torch.ones(layer.out_features)) for layer, i in zip(layers, wide, strict=True)
    ]
    moving = [torch.zeros(layer.out_features, i) for layer, i in zip(layers, wide, strict=True)]
    apart = [torch.zeros(layer.out_features) for layer in layers]
    seen: list[tuple[Tensor, Tensor]] = []
    for layer in layers:
        layer.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0].detach(), output)))

    def step() -> None:
        x, y = next(data)
        seen.clear()
        loss = MLP.loss(model(x), y)
        grads = torch.autograd.grad(loss, [output for _, output in seen])
        with torch.no_grad():
            for (layer, K, C), m, b, (a, _), g in zip(made, moving, apart, seen, grads, strict=True):
                rows = torch.cat((a, a.new_ones(len(a), 1)), -1) if column else a
                left = g * C
                accumulate_(m, momentum, left, rows * K)
                weight, bias = (m[:, :-1], m[:, -1]) if column else (m, b.mul_(momentum).add_(left.sum(0)))
                layer.weight.sub_(weight, alpha=lr)
                layer.bias.sub_(bias, alpha=lr)

    return Subject(step, lambda: 0)


def safe(structure: str, every: int, *, safeguards: bool) -> Subject:
    """``singd`` with the package's settings, with its safeguards or without."""
    return ours(
        "singd",
        settings={} if safeguards else NONE,
        structure=CONTENDERS[structure].structure,
        refresh=every,
        labels="data",
        curvature_lr=CURVATURE_LR,
        **SAME,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Print one ratio per line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args(argv).rounds
    quiet()
    pairs = {}
    for column, named in ((True, "diagonal by hand"), (False, "diagonal by hand, bias apart")):
        subject, theirs = bare(column=column), package(CONTENDERS["diagonal"], 10)
        pairs[f"{named} ÷ AdamW"] = Pair(subject, torch_adamw(), STEPS, STEPS)
        pairs[f"{named} ÷ package, T = 10"] = Pair(subject, theirs, STEPS, STEPS)
    for structure in STRUCTURES:
        for every in (1, 10):
            both = (safe(structure, every, safeguards=s) for s in (True, False))
            pairs[f"{structure}, T = {every} ÷ no safeguards"] = Pair(*both, STEPS, STEPS)
    for name, found in interleaved(pairs, rounds).items():
        print(f"{name:46} {Ratio.of(found)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
