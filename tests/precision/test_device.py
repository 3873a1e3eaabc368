"""The settings of a device: which are refused, and what the others make torch do."""

from __future__ import annotations

import pytest
import torch

from curvlab.config import build_part
from curvlab.errors import ConfigError
from curvlab.precision.cuda import CudaArithmetic
from curvlab.precision.full import Full
from curvlab.protocols.backend import Backend
from curvlab.registry.loader import installed


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with two CUDA devices, as far as torch is asked."""
    with_accelerators(monkeypatch, "cuda", 2)


def with_accelerators(monkeypatch: pytest.MonkeyPatch, kind: str, count: int) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(kind))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: count)


def test_a_name_that_is_no_device_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"device = 'gpu' is not a torch device\n  use \"cpu\", \"cuda\""):
        Full(device="gpu")


@pytest.mark.parametrize("device", ["meta", "xla", "lazy", "vulkan", "privateuseone", "mkldnn", "cuda:99"])
def test_a_device_that_torch_knows_and_this_machine_lacks_is_refused(device: str) -> None:
    with pytest.raises(ConfigError, match=rf'device = \'{device}\' is not available .*\n  available: "cpu"'):
        Full(device=device)


@pytest.mark.parametrize("count", [1, 2])
def test_an_accelerator_is_taken_up_to_the_number_of_them(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_accelerators(monkeypatch, "cuda", count)
    for k in range(count):
        assert Full(device=f"cuda:{k}").torch_device == torch.device("cuda", k)
    assert Full(device="cuda").torch_device.type == "cuda"
    for absent in (f"cuda:{count}", "mps"):
        with pytest.raises(ConfigError, match=r'available: "cpu", "cuda:0"'):
            Full(device=absent)


@pytest.mark.parametrize(("kind", "taken"), [("cuda", "cuda"), ("xpu", "xpu"), ("mps", "cpu")])
def test_auto_is_the_accelerator_that_has_float64(
    kind: str, taken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_accelerators(monkeypatch, kind, 1)
    assert Full(device="auto").torch_device == torch.device(taken)
    assert Full(device=kind).torch_device == torch.device(kind)  # by its name, every one is


def test_auto_is_the_cpu_where_there_is_no_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    backend = Full(device="auto")
    assert backend.torch_device == torch.device("cpu")
    assert str(backend.torch_device) == "cpu"


SETTINGS = [("tf32", "forward", '"forward"'), ("linalg", "magma", '"magma"'), ("pinned", True, "true")]


@pytest.mark.parametrize(("name", "value", "shown"), SETTINGS)
def test_a_setting_of_cuda_beside_the_cpu_is_refused(name: str, value: object, shown: str) -> None:
    message = rf'{name} = {shown} is a setting of CUDA devices, and device = "cpu" is none\n  remove {name}'
    with pytest.raises(ConfigError, match=message):
        Full(**{name: value})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=f"precision.{name}|{name} = "):
        build_part(installed(), Backend, "float32", {name: value})


def test_every_setting_that_does_not_fit_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        Full(tf32="forward", linalg="cusolver", pinned=True)
    assert [str(f).split(" ")[0] for f in caught.value.faults] == ["tf32", "linalg", "pinned"]


@pytest.mark.parametrize(("name", "value", "shown"), SETTINGS)
def test_auto_takes_settings_of_cuda_to_a_machine_without_one_where_they_change_nothing(
    name: str, value: object, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    backend = Full(device="auto", **{name: value})  # type: ignore[arg-type]
    indices = torch.arange(3)
    assert backend.arithmetic is None
    assert backend.evaluation is None
    assert backend.moved(indices) is indices


@pytest.mark.parametrize(
    ("name", "value"), [("tf32", "on"), ("tf32", True), ("linalg", "lapack"), ("pinned", 1)]
)
def test_a_value_that_a_setting_has_not_is_refused_with_those_that_it_has(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name):
        build_part(installed(), Backend, "float32", {"device": "auto", name: value})


@pytest.mark.usefixtures("cuda")
def test_the_methods_arithmetic_is_full_whatever_evaluations_are() -> None:
    assert Full(device="cuda").arithmetic == CudaArithmetic(tf32=False)
    assert Full(device="cuda").evaluation is None
    fast = Full(device="cuda:1", tf32="forward")
    assert fast.arithmetic == CudaArithmetic(tf32=False)
    assert fast.evaluation == CudaArithmetic(tf32=True)


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("device", ["cuda", "auto"])
@pytest.mark.parametrize("library", ["cusolver", "magma"])
def test_a_library_that_torch_is_built_without_is_refused(
    library: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prefer(name: object = None) -> str:
        if name == library:
            raise RuntimeError(f"PyTorch has not been compiled with {name}")
        return "default"

    monkeypatch.setattr(torch.backends.cuda, "preferred_linalg_library", prefer)
    with pytest.raises(ConfigError, match=rf'linalg = "{library}" is not in this build of torch'):
        Full(device=device, linalg=library)  # type: ignore[arg-type]


@pytest.mark.usefixtures("cuda")
def test_pinned_indices_go_through_pinned_memory_without_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []

    def pin(self: torch.Tensor) -> torch.Tensor:
        steps.append("pin")
        return self

    def to(self: torch.Tensor, device: torch.device, *, non_blocking: bool = False) -> torch.Tensor:
        steps.append(f"to {device} {'at once' if non_blocking else 'waiting'}")
        return self

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.Tensor, "to", to)
    indices = torch.arange(3)
    Full(device="cuda:1").moved(indices)
    assert steps == []
    Full(device="cuda:1", pinned=True).moved(indices)
    assert steps == ["pin", "to cuda:1 at once"]
