"""What a diagonal step costs at least, and what ``singd`` pays for its stability.

    python asv_benchmarks/singd_floor.py [--rounds 15]

Network, data and the way of timing: ``pairs``.  First a step of a diagonal method written by hand, with no
framework, no check and factors that never change, over ``torch.optim.AdamW`` and over the public package
``singd``: nothing that is written in torch's operations can be below it.  Then ``singd`` with the package's
settings over itself without safeguards (the mean for the peak, and no limit), at T = 1 and 10.
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


def bare(momentum: float = 0.9, lr: float = 1e-3) -> Subject:
    """``m ← β m + (G C²)ᵀ (A K²)``, ``θ ← θ − lr m`` for every layer, bias as a column."""
    model, data = MLP.model(), MLP.batches()
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    made = [(layer, torch.ones(layer.in_features + 1), torch.ones(layer.out_features)) for layer in layers]
    moving = [torch.zeros(layer.out_features, layer.in_features + 1) for layer in layers]
    seen: list[tuple[Tensor, Tensor]] = []
    for layer in layers:
        layer.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0].detach(), output)))

    def step() -> None:
        x, y = next(data)
        seen.clear()
        loss = MLP.loss(model(x), y)
        grads = torch.autograd.grad(loss, [output for _, output in seen])
        with torch.no_grad():
            for (layer, K, C), m, (a, _), g in zip(made, moving, seen, grads, strict=True):
                rows = torch.cat((a, a.new_ones(len(a), 1)), -1)
                accumulate_(m, momentum, g * C, rows * K)
                layer.weight.sub_(m[:, :-1], alpha=lr)
                layer.bias.sub_(m[:, -1], alpha=lr)

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
    pairs = {
        "diagonal by hand ÷ AdamW": Pair(bare(), torch_adamw(), STEPS, STEPS),
        "diagonal by hand ÷ package, T = 10": Pair(bare(), package(CONTENDERS["diagonal"], 10), STEPS, STEPS),
    }
    for structure in STRUCTURES:
        for every in (1, 10):
            both = (safe(structure, every, safeguards=s) for s in (True, False))
            pairs[f"{structure}, T = {every} ÷ no safeguards"] = Pair(*both, STEPS, STEPS)
    for name, found in interleaved(pairs, rounds).items():
        print(f"{name:40} {Ratio.of(found)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
