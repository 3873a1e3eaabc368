"""What a Gauss–Newton product costs, as a ratio to one evaluation of the gradient on the same sample.

    python asv_benchmarks/products_ratios.py [--rounds 9] [--sizes 256 1024 4096] [--json]

One process, one torch thread, process CPU time; in each round every way of making a product is timed
after a gradient of its own (loss and ``torch.autograd.grad``, not packed), and the median of the rounds'
ratios is reported, with the smallest and the largest.  Networks: the autoencoder 784-1000-500-250-30
mirrored, sigmoid, and the MLP 784-512-512-512-10, relu; float32, random data.  Ways:

| way | what it is |
|---|---|
| ours | the operator that a method is given: both graphs kept, two backward passes |
| ours, 4 micro-batches | the same over chunks, none of them kept: forward mode and reverse mode in one pass |
| forward mode | ``torch.func.jvp`` from scratch and a ``vjp`` that is kept |
| linearize | ``torch.func.linearize`` and a ``vjp``, both kept |
| by hand | matrix products of linear layers, written into the vector in place |

``floor`` counts the flops of matrix products of the kept ways: four per layer, two in the first layer, where
a gradient takes three and two.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from pairs import Ratio, quiet, seconds
from torch import Tensor, nn
from torch.func import functional_call, jvp, linearize, vjp

from curvlab.linalg.vectors import BlockVector
from curvlab.model.partition import partition
from curvlab.objectives.losses import BinaryCrossEntropy, CrossEntropy
from curvlab.objectives.row_loss import RowLoss
from curvlab.objectives.supervised import SupervisedObjective
from curvlab.precision.full import Full
from curvlab.protocols.blocks import Blocks
from curvlab.protocols.context import Context
from curvlab.protocols.needs import Needs
from curvlab.tasks.mlp import mlp

AUTOENCODER = (784, 1000, 500, 250, 30, 250, 500, 1000, 784)
CLASSIFIER = (784, 512, 512, 512, 10)


@dataclass(frozen=True)
class Case:
    """A network and a sample."""

    widths: tuple[int, ...]
    model: nn.Module
    loss: RowLoss
    inputs: Tensor
    targets: Tensor

    @property
    def floor(self) -> float:
        """Flops of a product over those of a gradient, matrix products alone."""
        layers = [i * o for i, o in pairwise(self.widths)]
        return (4 * sum(layers) - 2 * layers[0]) / (3 * sum(layers) - layers[0])

    @property
    def blocks(self) -> Blocks:
        """Every layer's weight and bias as one block."""
        return partition(self.model, lambda layer: True)

    def gradient(self) -> None:
        """One evaluation."""
        value = self.loss.mean(self.model(self.inputs), self.targets)
        torch.autograd.grad(value, list(self.model.parameters()))

    def curved(self, outputs: Tensor, pushed: Tensor) -> Tensor:
        """The Hessian of the mean loss in the outputs, times ``pushed``."""
        return self.loss.product(outputs, self.targets, pushed) / len(outputs)


def case(name: str, n: int) -> Case:
    """The network of this name on n random examples."""
    torch.manual_seed(0)
    x = torch.rand(n, 784)
    if name == "autoencoder":
        model = mlp(AUTOENCODER, "sigmoid", linear=(4,))
        return Case(AUTOENCODER, model, BinaryCrossEntropy("sum"), x, x)
    labels = torch.randint(0, 10, (n,))
    return Case(CLASSIFIER, mlp(CLASSIFIER, "relu"), CrossEntropy(), x, labels)


def ways(of: Case) -> Mapping[str, Callable[[BlockVector], BlockVector]]:
    """A product by each way, ready to be made."""
    blocks, n = of.blocks, len(of.inputs)
    at = {name: p.detach() for name, p in blocks.parameters.items()}

    def ours(micro_batch: int | None) -> Callable[[BlockVector], BlockVector]:
        asked = SupervisedObjective(of.model, of.loss, of.inputs, of.targets, micro_batch=micro_batch)
        ctx = Context(1, 0.0, Full("float32"), torch.Generator())
        operator = asked.evaluate(Needs(products=1), blocks, ctx).ggn
        assert operator is not None
        return operator.__matmul__

    def forward(at: dict[str, Tensor]) -> Tensor:
        return functional_call(of.model, at, (of.inputs,))

    _, back = vjp(forward, at)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of its graphs
        outputs, push = linearize(forward, at)

    def by_jvp(v: BlockVector) -> BlockVector:
        tangents = {name: t.contiguous() for name, t in blocks.slots(v).items()}
        return blocks.pack(back(of.curved(*jvp(forward, (at,), (tangents,))))[0])

    def by_linearize(v: BlockVector) -> BlockVector:
        return blocks.pack(back(of.curved(outputs, push(blocks.slots(v))))[0])

    return {
        "ours": ours(None),
        "ours, 4 micro-batches": ours(n // 4),
        "forward mode": by_jvp,
        "linearize": by_linearize,
        "by hand": by_hand(of, blocks),
    }


def by_hand(of: Case, blocks: Blocks) -> Callable[[BlockVector], BlockVector]:
    """Two matrix products per linear layer each way, bias columns included, activations kept."""
    layers = list(of.model)  # type: ignore[call-overload]  # a Sequential
    names = iter(blocks.layout.names)
    block = {layer: next(names) for layer in layers if isinstance(layer, nn.Linear)}
    kept, ones = [of.inputs], of.inputs.new_ones(len(of.inputs), 1)
    with torch.no_grad():
        for layer in layers:
            kept.append(layer(kept[-1]))
    rows = {layer: torch.cat([x, ones], 1) for layer, x in zip(layers, kept, strict=False) if layer in block}

    def slope(layer: nn.Module, g: Tensor, out: Tensor) -> Tensor:
        aten = torch.ops.aten
        sigmoid = isinstance(layer, nn.Sigmoid)
        return aten.sigmoid_backward(g, out) if sigmoid else aten.threshold_backward(g, out, 0)

    @torch.no_grad()
    def product(v: BlockVector) -> BlockVector:
        t: Tensor | None = None
        for layer, out in zip(layers, kept[1:], strict=True):
            if layer in block:
                own = rows[layer] @ v[block[layer]].T
                t = own if t is None else own.addmm_(t, layer.weight.T)
            elif t is not None:
                t = slope(layer, t, out)
        assert t is not None
        g, made = of.curved(kept[-1], t), v.empty_like()
        for layer, out in zip(reversed(layers), reversed(kept), strict=False):
            if layer in block:
                torch.mm(g.T, rows[layer], out=made[block[layer]])
                g = g @ layer.weight if layer is not layers[0] else g
            else:
                g = slope(layer, g, out)
        return made

    return product


def measured(of: Case, rounds: int) -> dict[str, Ratio]:
    """Each way's ratio, the rounds interleaved; raises ``AssertionError`` if two ways disagree."""
    found, v = ways(of), of.blocks.read()
    v.flat.copy_(torch.randn(v.layout.size, generator=torch.Generator().manual_seed(1)))
    truth = found["forward mode"](v).flat.clone()
    for name, product in found.items():  # and warm up
        off = float((product(v).flat - truth).norm() / truth.norm())
        assert off < 1e-4, f"{name} is off by {off:.2g}"
    of.gradient()
    ratios: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(rounds):
        for name, product in found.items():
            base = seconds(of.gradient, 1)
            ratios[name].append(seconds(lambda product=product: product(v), 1) / base)
    return {name: Ratio.of(each) for name, each in ratios.items()}


def preparation(of: Case) -> dict[str, float]:
    """CPU seconds that linearizing takes once, over those of a gradient: ours, and torch's."""
    blocks = of.blocks
    at = {name: p.detach() for name, p in blocks.parameters.items()}
    v, found = blocks.read(), {}
    base = min(seconds(of.gradient, 1) for _ in range(3))
    operators = [ways(of)["ours"] for _ in range(3)]
    found["ours"] = min(seconds(lambda o=o: o(v), 1) for o in operators)
    found["ours"] -= min(seconds(lambda: operators[0](v), 1) for _ in range(3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        begun = time.process_time()
        linearize(lambda at: functional_call(of.model, at, (of.inputs,)), at)
        found["linearize"] = time.process_time() - begun
    return {name: cost / base for name, cost in found.items()}


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 1024, 4096])
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    quiet()
    table = {}
    for network in ("autoencoder", "mlp"):
        for n in arguments.sizes:
            of = case(network, n)
            rows, once = measured(of, arguments.rounds), preparation(of)
            table[f"{network}, {n}"] = {"floor": of.floor, "once": once} | {
                name: {"median": row.median, "min": row.least, "max": row.most} for name, row in rows.items()
            }
            if not arguments.json:
                print(f"{network}, {n} examples; floor {of.floor:.3f}")
                for name, row in rows.items():
                    print(f"    {name:24}{row}")
                for name, cost in once.items():
                    print(f"    {name + ', once':24}{cost:.2f}")
    if arguments.json:
        json.dump(table, sys.stdout, indent=2)
    return 0


if __name__ == "__main__":
    sys.exit(main())
