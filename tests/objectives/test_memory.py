"""Memory at a given micro-batch does not grow with the sample."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from curvlab.objectives.losses import BinaryCrossEntropy, CrossEntropy
from curvlab.objectives.samples import IndexedExamples
from curvlab.objectives.supervised import SupervisedObjective
from curvlab.protocols.blocks import Blocks
from curvlab.protocols.loss import Loss
from curvlab.protocols.needs import GRADIENT_ONLY, Labels, Needs
from curvlab.protocols.sampler import Draw
from curvlab.tasks.supervised import Examples, SupervisedWorkload
from tests.objectives.asking import ask, layers_of, wanting
from tests.objectives.memory import peak

WIDTH, CODE, MICRO = 64, 8, 16
#: a number or two per micro-batch or example: the values that are added up at the end
SMALL = 24


class Images:
    """Any number of images, made when they are asked for."""

    def __init__(self, reconstruct: bool) -> None:
        self.reconstruct = reconstruct

    def rows(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        x = (indices.unsqueeze(1) * torch.arange(1.0, WIDTH + 1)).sin().square()
        return x, x if self.reconstruct else indices % 3

    def __len__(self) -> int:
        return 10**6


class Gained(nn.Module):
    """A parameter without a layer, and a norm."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(WIDTH, CODE), nn.LayerNorm(CODE)
        self.gain, self.out = nn.Parameter(torch.ones(CODE)), nn.Linear(CODE, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(torch.sigmoid(self.first(x))) * self.gain)


def layered(outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, CODE), nn.Sigmoid(), nn.Linear(CODE, outputs))


AUTOENCODER = (BinaryCrossEntropy("sum"), True, WIDTH)
CLASSIFIER = (CrossEntropy(ignore_index=2, class_weights=(1.0, 2.0, 3.0)), False, 3)


def evaluating(needs: Needs) -> Callable[[SupervisedObjective, Blocks], object]:
    return lambda asked, blocks: ask(asked, needs, blocks, step=0)


def products(asked: SupervisedObjective, blocks: Blocks) -> None:
    seen = ask(asked, Needs(products=2), blocks)
    assert seen.ggn is not None
    seen.ggn @ (seen.ggn @ seen.gradient)


def differentiated(asked: SupervisedObjective, blocks: Blocks) -> object:
    return asked.differentiate({n: p.detach() for n, p in blocks.parameters.items()})


OPERATIONS: dict[str, Callable[[SupervisedObjective, Blocks], object]] = {
    "gradient": evaluating(GRADIENT_ONLY),
    "factored gradient": evaluating(wanting(factored=True)),
    "variance": evaluating(Needs(variance=True)),
    "products": products,
    "trial loss": lambda asked, blocks: asked.loss(),
    "trial gradient": differentiated,
    "closure": lambda asked, blocks: asked(),
}


@pytest.mark.parametrize("build", [layered, Gained])
@pytest.mark.parametrize("case", [AUTOENCODER, CLASSIFIER], ids=["autoencoder", "weighted classes"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_the_peak_does_not_grow_with_the_sample(
    name: str, case: tuple[Loss, bool, int], build: Callable[[int], nn.Module]
) -> None:
    loss, reconstruct, outputs = case
    torch.manual_seed(0)
    model = build(outputs)
    blocks = layers_of(model)
    OPERATIONS[name](SupervisedObjective(model, loss, *Images(reconstruct).rows(torch.arange(3))), blocks)

    def at(n: int) -> int:
        asked = SupervisedObjective(
            model, loss, IndexedExamples(Images(reconstruct), torch.arange(n)), micro_batch=MICRO
        )
        return peak(lambda: OPERATIONS[name](asked, blocks))

    few, many = 3 * MICRO, 15 * MICRO
    assert at(many) - at(few) < SMALL * (many - few) < 0.1 * 4 * WIDTH * (many - few)


def test_the_watch_sees_a_sample_that_is_held_whole() -> None:
    model = layered(3)

    def at(n: int) -> int:
        sample = IndexedExamples(Images(False), torch.arange(n))
        return peak(SupervisedObjective(model, CrossEntropy(), sample, micro_batch=n).loss)

    assert at(15 * MICRO) - at(3 * MICRO) > 4 * WIDTH * 11 * MICRO


def test_no_graph_outlives_its_micro_batch_where_statistics_are_kept() -> None:
    """What grows are rows of layers: the activations between them (here far wider) do not."""

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            wide = self.a(x[:, :4]).repeat(1, 500).tanh()
            return self.b(wide.square().view(len(x), 500, 4).sum(1))

    model = Wide()
    blocks, needs = layers_of(model), wanting(Labels.DATA, Labels.MODEL, Labels.EXACT)

    def at(n: int) -> int:
        sample = IndexedExamples(Images(False), torch.arange(n))
        asked = SupervisedObjective(model, CrossEntropy(), sample, micro_batch=MICRO)
        return peak(lambda: ask(asked, needs, blocks))

    assert at(15 * MICRO) - at(3 * MICRO) < 4 * 500 * 12 * MICRO


def test_a_workload_gathers_no_more_than_a_micro_batch_of_its_draw() -> None:
    x = torch.rand(2000, WIDTH)
    work = SupervisedWorkload(
        layered(WIDTH), BinaryCrossEntropy("sum"), Examples(x, x), Examples(x[:5], x[:5])
    )

    def at(n: int) -> int:
        some = torch.arange(n)
        return peak(lambda: work.objective(Draw(some, some, some, micro_batch=MICRO)).loss())

    assert at(2000) - at(3 * MICRO) < SMALL * 2000
