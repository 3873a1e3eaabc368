"""What the studies of structures share: networks on Fashion-MNIST, who trains them, finished runs on disk."""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.append(str(Path(__file__).resolve().parents[2] / "asv_benchmarks"))  # pairs lives there

from pairs import Pair, Problem, Ratio, Subject, hand_written, interleaved, ours, quiet

import curvlab
from curvlab.config import build_method
from curvlab.objectives.losses import BinaryCrossEntropy
from curvlab.protocols.structure import Group
from curvlab.registry.imports import part_class
from curvlab.registry.loader import installed
from curvlab.tasks.fashion_autoencoder import FashionAutoencoder
from curvlab.tasks.fashion_mnist import FashionMnist, find_files, labeled
from curvlab.tasks.supervised import Examples

ROOT = Path(__file__).resolve().parents[2]

__all__ = [
    "ADAMW", "NETS", "ROOT", "Contestant", "Ledger", "Net", "Pair", "Ratio",
    "families", "interleaved", "name_of", "quiet",
]  # fmt: skip

#: the one contestant that is not ours
ADAMW = "torch.optim.AdamW"


def families() -> list[str]:
    """Every registered structure that a factor of SINGD can have, those of the core first."""
    registry = installed()
    groups = [e for e in registry.parts("structure") if issubclass(part_class(e), Group)]
    return sorted((registry.use(e) for e in groups), key=lambda use: (use not in ("dense", "diagonal"), use))


@lru_cache(maxsize=4)
def images(part: str, reconstruct: bool) -> Examples:
    """Fashion-MNIST's ``train`` or ``t10k``, read once; to reconstruct, images are their own targets."""
    found = labeled(find_files(None), part)
    return Examples(found.inputs, found.inputs) if reconstruct else found


def reconstruction(outputs: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy, summed over pixels and averaged over examples."""
    return F.binary_cross_entropy_with_logits(outputs, targets, reduction="sum") / len(targets)


@dataclass(frozen=True)
class Net:
    """A network, its batch and its loss, for torch and for ``curvlab.objective``."""

    make: Callable[[], nn.Module]
    batch: int = 128
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
    criterion: object = field(default_factory=nn.CrossEntropyLoss)
    reconstructs: bool = False

    def model(self, seed: int) -> nn.Module:
        """Its weights depend on the seed alone."""
        torch.manual_seed(seed)
        return self.make()

    def batches(self, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Endless shuffled epochs; a batch may reach over the end of one."""
        data, generator = images("train", self.reconstructs), torch.Generator().manual_seed(seed)
        left = torch.empty(0, dtype=torch.long)
        while True:
            while len(left) < self.batch:
                left = torch.cat([left, torch.randperm(len(data), generator=generator)])
            rows, left = left[: self.batch], left[self.batch :]
            yield data.rows(rows)

    def problem(self) -> Problem:
        """For timing: 16 batches in turn, drawn beforehand."""
        drawn = list(itertools.islice(self.batches(seed=0), 16))
        return Problem(lambda: self.model(0), lambda: itertools.cycle(drawn), self.loss, self.criterion)

    def evaluate(self, model: nn.Module, part: str, limit: int = 60_000) -> tuple[float, float]:
        """Mean loss and accuracy (0 for pictures) on the first ``limit`` examples of ``part``."""
        data = images(part, self.reconstructs)
        n, loss, right = min(limit, len(data)), 0.0, 0.0
        with torch.no_grad():
            for begin in range(0, n, 2000):
                rows = torch.arange(begin, min(begin + 2000, n))
                x, y = data.rows(rows)
                outputs = model(x)
                loss += float(self.loss(outputs, y)) * len(rows) / n
                right += 0.0 if self.reconstructs else float((outputs.argmax(1) == y).sum()) / n
        return loss, right


NETS = {
    "narrow": Net(FashionMnist(hidden=(32, 32)).model),
    "mlp": Net(FashionMnist().model),
    "autoencoder": Net(
        FashionAutoencoder().model, 1024, reconstruction, BinaryCrossEntropy(over="sum"), reconstructs=True
    ),
}


@dataclass(frozen=True)
class Contestant:
    """A method with its settings, under the name that tables give it."""

    name: str
    method: str
    knobs: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def short(self) -> str:
        """Its name without the method's: the structure's."""
        return self.name.rpartition(", ")[2]

    def key(self, **more: object) -> dict[str, object]:
        """What tells its runs from others: all settings, defaults included, by a digest."""
        if self.method == ADAMW:
            composed: object = dict(self.knobs)
        else:
            composed = build_method(installed(), self.method, self.knobs, self.settings)
        return {"name": self.name, "method": hashlib.sha256(repr(composed).encode()).hexdigest()[:12], **more}

    def start(self, model: nn.Module, net: Net, seed: int = 0) -> Callable[[Tensor, Tensor], Tensor]:
        """A function that trains ``model`` on one batch and returns its loss before the step."""
        if self.method == ADAMW:
            adamw = torch.optim.AdamW(model.parameters(), **self.knobs)

            def by_torch(x: Tensor, y: Tensor) -> Tensor:
                adamw.zero_grad()
                loss = net.loss(model(x), y)
                torch.autograd.backward(loss)
                adamw.step()
                return loss.detach()

            return by_torch
        optimizer = curvlab.optimizer(self.method, model, settings=self.settings, seed=seed, **self.knobs)

        def by_us(x: Tensor, y: Tensor) -> Tensor:
            loss = optimizer.step(curvlab.objective(model, net.criterion, x, y))
            assert loss is not None
            return loss.detach()

        return by_us

    def subject(self, problem: Problem) -> Subject:
        """The same for timing."""
        if self.method == ADAMW:
            return hand_written(problem, lambda m: torch.optim.AdamW(m.parameters(), **self.knobs))
        return ours(self.method, problem, self.settings, **self.knobs)


@dataclass(frozen=True)
class Ledger:
    """Finished runs in a folder, a JSON line each: a key, and what was found.

    Lines are appended whole, so that several processes may work on different runs.
    """

    folder: Path

    def entries(self) -> list[dict[str, Any]]:
        """Every finished run, ``key`` and ``found``; the last of equal keys."""
        path = self.folder / "runs.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return list({name_of(entry["key"]): entry for entry in map(json.loads, lines)}.values())

    def read(self) -> dict[str, dict[str, Any]]:
        """What was found, by key; the last of equals counts."""
        return {name_of(entry["key"]): entry["found"] for entry in self.entries()}

    def get(self, key: Mapping[str, object], run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What was found under ``key``; runs and writes it down if it is not there."""
        found = self.read().get(name_of(key))
        if found is None:
            found = run()
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / "runs.jsonl").open("a") as file:
                file.write(json.dumps({"key": key, "found": found}) + "\n")
        return found


def name_of(key: Mapping[str, object]) -> str:
    """A key as text, whatever its order."""
    return json.dumps(key, sort_keys=True)
