"""An embedding tied to the output layer: the gradient of both uses, the curvature of the output layer's."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from curvlab.model.partition import partition
from curvlab.objectives.supervised import objective
from curvlab.protocols.needs import Labels, Needs
from curvlab.testing.reference import reference_context


class Tied(nn.Module):
    """Tokens in, logits out, through one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.hidden = nn.Embedding(5, 4), nn.Linear(4, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.hidden(self.table(tokens)).tanh()).mean(1)  # type: ignore[no-any-return]


def evaluated(model: nn.Module, tokens: Tensor, targets: Tensor, kind: Labels):  # type: ignore[no-untyped-def]
    blocks = partition(model, lambda layer: True)
    asked = objective(model, nn.CrossEntropyLoss(), tokens, targets)
    return asked.evaluate(Needs(layers=frozenset({kind})), blocks, reference_context()), blocks


@pytest.mark.parametrize("first", ["table", "head"])
def test_the_block_is_the_heads_and_its_gradient_that_of_both_uses(first: str) -> None:
    torch.manual_seed(0)
    model = Tied().double()
    if first == "head":  # in another order of modules
        model._modules = {n: model._modules[n] for n in ("head", "table", "hidden")}
    tokens, targets = torch.randint(5, (6, 3)), torch.randint(5, (6,))
    seen, blocks = evaluated(model, tokens, targets, Labels.DATA)
    block = blocks["head"]
    assert (block.layers, [name for name, _ in block.transposed]) == (("head",), ["table"])
    nn.CrossEntropyLoss()(model(tokens), targets).backward()
    torch.testing.assert_close(seen.gradient["head"], model.head.weight.grad)


def test_exact_labels_give_the_dense_block_of_the_heads_use() -> None:
    """One example at one position, where the Kronecker product is exact."""
    torch.manual_seed(0)
    model = Tied().double()
    tokens, targets = torch.randint(5, (1, 1)), torch.randint(5, (1,))
    seen, _ = evaluated(model, tokens, targets, Labels.EXACT)
    (stats,) = seen.layers[Labels.EXACT]["head"]
    a, g = stats.inputs[0, 0], stats.grads[:, 0, 0]
    mine = torch.kron(g.mT @ g, torch.outer(a, a))

    apart = copy.deepcopy(model)
    apart.table = copy.deepcopy(model.table)  # the same numbers, a parameter of its own
    weight = apart.head.weight.detach()

    def logits(w: Tensor) -> Tensor:
        return functional_call(apart, {"head.weight": w}, (tokens,), tie_weights=False)[0]  # type: ignore[no-any-return]

    J = jacrev(logits)(weight).reshape(5, -1)
    p = logits(weight).softmax(-1).detach()
    torch.testing.assert_close(mine, J.mT @ (p.diag() - torch.outer(p, p)) @ J)
