"""What cannot be trained is refused by name, all of it at once."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from curvlab.errors import ConfigError
from curvlab.model.admission import real_dtype, require_dense, require_trainable


def network(**first: object) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4, **first), nn.Linear(4, 2))  # type: ignore[arg-type]


class Mixed(nn.Module):
    """A real layer and a complex parameter."""

    def __init__(self, wide: bool = False) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.spectrum = nn.Parameter(torch.zeros(3, dtype=torch.complex128 if wide else torch.complex64))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_halves_are_one_precision(half: torch.dtype) -> None:
    require_trainable(network().to(half))
    assert real_dtype(network().to(half)) is half
    with pytest.raises(ConfigError, match="expected one dtype"):
        require_trainable(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, dtype=half)))


def test_two_precisions_are_refused_with_a_parameter_of_each() -> None:
    with pytest.raises(ConfigError, match=r'"0.weight" is float64 and parameter "1.weight" is float32'):
        require_trainable(network(dtype=torch.float64))


def test_complex_goes_with_its_real_precision() -> None:
    require_trainable(Mixed())
    assert real_dtype(Mixed()) is torch.float32
    with pytest.raises(ConfigError, match=r'"spectrum" is complex128'):
        require_trainable(Mixed(wide=True))


def test_a_dtype_that_nothing_trains_is_named() -> None:
    model = network()
    model.scale = nn.Parameter(torch.zeros(2, dtype=torch.float8_e4m3fn))
    with pytest.raises(ConfigError, match=r'"scale" is float8_e4m3fn'):
        require_trainable(model)


def test_two_devices_are_refused_with_a_parameter_on_each() -> None:
    with pytest.raises(ConfigError, match=r'"0.weight" is on meta and parameter "1.weight" is on cpu'):
        require_trainable(network(device="meta"))


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_sparse_embeddings_are_refused_with_the_remedy(kind: type[nn.Module]) -> None:
    model = nn.Sequential(kind(5, 3, sparse=True))
    with pytest.raises(ConfigError, match=r'"0.weight"(.|\n)*sparse=False'):
        require_trainable(model)
    require_trainable(model.requires_grad_(False))


def test_what_is_frozen_may_be_anything_and_a_model_may_have_no_memory() -> None:
    require_trainable(network().to(torch.bfloat16).requires_grad_(False))
    with torch.device("meta"):
        require_trainable(network())


def test_faults_are_found_at_once() -> None:
    model = nn.Sequential(nn.Embedding(5, 3, sparse=True), nn.Linear(3, 2, dtype=torch.float64))
    with pytest.raises(ConfigError, match=r"float64(.|\n)*sparse"):
        require_trainable(model)


def test_a_gradient_that_arrives_sparse_is_refused_by_name() -> None:
    weight = nn.Parameter(torch.ones(4, 2))
    nn.functional.embedding(torch.tensor([1]), weight, sparse=True).sum().backward()
    with pytest.raises(ConfigError, match=r'"words.weight" is sparse.*\n.*sparse=False'):
        require_dense("words.weight", weight.grad)
    require_dense("words.weight", None)
    require_dense("words.weight", torch.ones(2))
