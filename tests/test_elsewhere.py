"""The simulated second device refuses what CUDA refuses, and computes what the CPU computes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.elsewhere import DEVICE, Elsewhere, MixedDevices, second_device


def there(*shape: int) -> Tensor:
    return torch.arange(1.0, 1.0 + torch.Size(shape).numel(), device=DEVICE).view(shape)


MIXED: dict[str, Callable[[], object]] = {
    "a sum": lambda: there(3) + torch.ones(3),
    "a product": lambda: torch.ones(2, 3) @ there(3, 2),
    "in place": lambda: there(3).mul_(torch.ones(3)),
    "in place, of the CPU": lambda: torch.ones(3).add_(there(3)),
    "a list": lambda: torch.cat([there(3), torch.ones(3)]),
    "a comparison": lambda: torch.equal(there(3), torch.ones(3)),
    "a layer": lambda: nn.Linear(3, 2)(there(4, 3)),
    "a result": lambda: torch.mm(there(2, 2), there(2, 2), out=torch.ones(2, 2)),
    "many at once": lambda: torch._foreach_add_([there(2)], [torch.ones(2)]),
    "a generator": lambda: torch.randn(3, device=DEVICE, generator=torch.Generator()),
    "a generator of its own": lambda: torch.randn(3, generator=torch.Generator(DEVICE)),
}


@pytest.mark.parametrize("case", MIXED.values(), ids=list(MIXED))
def test_tensors_of_two_devices_are_not_mixed(case: Callable[[], object]) -> None:
    with second_device(), pytest.raises(MixedDevices):
        case()


def test_what_cuda_takes_of_the_host_is_taken() -> None:
    with second_device():
        x, rows = there(3, 2), torch.tensor([2, 0])
        assert (x * torch.tensor(2.0)).cpu().tolist() == [[2, 4], [6, 8], [10, 12]]
        assert x[rows].cpu().tolist() == [[5, 6], [1, 2]]
        x[rows] = 0.0
        assert x.cpu().tolist() == [[0, 0], [3, 4], [0, 0]]
        x.copy_(torch.ones(3, 2))
        assert float(x.sum()) == 6
        y = torch.zeros(3, 2)
        y.copy_(x)
        assert type(y) is Tensor
        assert y.tolist() == x.tolist()
        assert x.to("cpu").device.type == "cpu"
        assert torch.ones(2).to(DEVICE).device == DEVICE


def test_views_write_through_and_gradients_lie_beside_their_parameters() -> None:
    with second_device():
        x = there(4)
        x[1:3].mul_(10.0)
        assert x.tolist() == [1, 20, 30, 4]
        layer = nn.Linear(4, 2).to(DEVICE)
        torch.autograd.backward(layer(x).square().sum())
        assert isinstance(layer.weight.grad, Elsewhere)
        assert layer.weight.grad.device == layer.weight.device == DEVICE
        drawn = torch.randn(3, device=DEVICE, generator=torch.Generator(DEVICE).manual_seed(0))
    assert torch.equal(drawn.held, torch.randn(3, generator=torch.Generator().manual_seed(0)))  # type: ignore[attr-defined]


def test_torch_is_afterwards_as_before() -> None:
    before = torch.Generator, torch.tensor, torch.is_autocast_enabled
    with second_device():
        pass
    assert (torch.Generator, torch.tensor, torch.is_autocast_enabled) == before
    with pytest.raises(NotImplementedError):
        torch.zeros(2, device=DEVICE)
