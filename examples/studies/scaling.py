"""Where the time of a step goes from 8 to 1,024 processes, by the real map of owners and a stated machine.

    python examples/studies/scaling.py [--page docs/scaling.md]

Nothing is trained and nothing is sent.  Models are built on torch's meta device; their blocks go to owners as
in training (``curvlab.engine.owners``).  The time of each part of a step follows from counts of flops and
bytes and from the rates in ``Machine``, which are assumptions of this page and no measurements.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import nn

from curvlab.config import build_method
from curvlab.engine.method import Method
from curvlab.engine.owners import Owners, owners_of
from curvlab.model.partition import partition
from curvlab.objectives.ranks import PlannedRanks
from curvlab.protocols.blocks import Blocks
from curvlab.registry.loader import installed

PROCESSES = (8, 64, 512, 1024)
METHODS = ("kfac", "soap")
#: tokens of a step, whatever the number of processes, and bytes of a number
TOKENS, BYTES = 2**19, 2


@dataclass(frozen=True)
class Machine:
    """What a process is assumed to do in a second."""

    flops: float = 300e12  #: products of matrices in bfloat16
    factorizations: float = 10e12  #: inverses and eigenvectors in float32, a tenth of what products reach
    network: float = 25e9  #: bytes that a process sends or receives
    latency: float = 20e-6  #: seconds of a message, times log2 of the processes


@dataclass(frozen=True)
class Shape:
    """A decoder: layers of attention and of an MLP, with embedding and head."""

    name: str
    layers: int
    width: int
    inner: int
    vocabulary: int

    def model(self) -> nn.Module:
        """On the meta device: linear layers by name, as a step's blocks see them."""
        with torch.device("meta"):
            found = nn.ModuleDict({"embedding": nn.Embedding(self.vocabulary, self.width)})
            for k in range(self.layers):
                for name in ("query", "key", "value", "out"):
                    found[f"{k}_{name}"] = nn.Linear(self.width, self.width)
                found[f"{k}_up"] = nn.Linear(self.width, self.inner)
                found[f"{k}_down"] = nn.Linear(self.inner, self.width)
            found["head"] = nn.Linear(self.width, self.vocabulary, bias=False)
        return found


SHAPES = (
    Shape("GPT-2 small, 124 M", 12, 768, 3072, 50257),
    Shape("GPT-2 XL, 1.6 B", 48, 1600, 6400, 50257),
    Shape("7 B", 32, 4096, 16384, 32000),
)


@dataclass(frozen=True)
class Step:
    """Seconds of the parts of a step, each on the process that it takes longest."""

    passes: float
    gradient: float
    rows: float
    curvature: float
    parameters: float


def owners(method: Method, blocks: Blocks, processes: int) -> Owners:
    """The map of a run, and what each process has to do."""
    refuses: Callable[..., bool] = lambda block: bool(method.preconditioner.refuses(block))  # noqa: E731
    found = owners_of("owner", PlannedRanks(None, processes), method, refuses)
    assert found is not None
    found.extend(blocks.members)
    return found


def step(method: Method, blocks: Blocks, found: Owners, processes: int, machine: Machine) -> Step:
    """The parts of one step that updates layer statistics, if the method reads them, and all factors."""
    entries = sum(b.shape.numel() for b in blocks.members)
    tokens = TOKENS / processes
    sides = {b.name: sum(b.shape) for b in blocks.members if b.is_layer and not b.one_hot}
    received = [0.0] * processes
    for name, side in sides.items() if method.needs(0).layers else ():
        received[found.of[name]] += side
    wait = machine.latency * max(1.0, torch.tensor(float(processes)).log2().item())
    spread = (processes - 1) / processes
    return Step(
        passes=6.0 * entries * tokens / machine.flops,
        gradient=2.0 * entries * BYTES * spread / machine.network + wait,
        rows=max(received) * tokens * (processes - 1) * BYTES / machine.network,
        curvature=max(found.loads.values()) / machine.factorizations,
        parameters=entries * BYTES * spread / machine.network + wait,
    )


def rows(machine: Machine) -> Iterator[str]:
    """The table."""
    parts = " | ".join(f.name for f in fields(Step))
    yield f"| model | method | processes | {parts} | largest share × processes |"
    yield f"|---|---|--:|{'--:|' * len(fields(Step))}--:|"
    registry = installed()
    for shape in SHAPES:
        model = shape.model()
        for name in METHODS:
            method = build_method(registry, name, {})
            blocks = partition(model, method.preconditioner.joins)
            for processes in PROCESSES:
                found = owners(method, blocks, processes)
                took = step(method, blocks, found, processes, machine)
                largest = max(found.loads.values()) / sum(found.loads.values()) * processes
                parts = " | ".join(f"{1e3 * getattr(took, f.name):.3g}" for f in fields(took))
                yield f"| {shape.name} | `{name}` | {processes} | {parts} | {largest:.2f} |"


def main() -> None:
    """Print the table, or write it between the page's marks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--page", type=Path)
    arguments = parser.parse_args()
    table = "\n".join(rows(Machine()))
    if arguments.page is None:
        print(table)
        return
    before, rest = arguments.page.read_text().split("<!-- table -->\n")
    _, after = rest.split("<!-- end of table -->")
    arguments.page.write_text(f"{before}<!-- table -->\n{table}\n<!-- end of table -->{after}")


if __name__ == "__main__":
    main()
