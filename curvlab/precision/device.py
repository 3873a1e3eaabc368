"""The device: where a run computes, in which arithmetic of that device, and how examples get there."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from curvlab.errors import ConfigError, Fault
from curvlab.precision.cuda import CudaArithmetic

AUTO = "auto"
#: accelerators that have no float64, in which a factorization that fails is retried
WITHOUT_FLOAT64 = frozenset({"mps"})


@dataclass(frozen=True, kw_only=True)
class OnDevice:
    """The device of a precision, its settings, and their checks.

    A precision inherits it before ``Backend``.  ``tf32``, ``linalg`` and ``pinned`` are of CUDA devices.
    Beside a device that is none they are refused; ``device = "auto"`` takes them with it to machines
    that have no CUDA device, where they change nothing.
    """

    device: str = "cpu"  #: a torch device: "cpu", "cuda", "cuda:1"; "auto": the accelerator, or else the CPU
    #: "off": all of float32 in full; "forward": evaluations of the model in TF32, curvature factors in full
    tf32: Literal["off", "forward"] = "off"
    #: the library that factorizes on a CUDA device, "default": the one that torch chooses by size
    linalg: Literal["default", "cusolver", "magma"] = "default"
    #: indices of a batch go to the CUDA device through pinned memory, and the host does not wait
    pinned: bool = False

    def __post_init__(self) -> None:
        if self.device != AUTO:
            _require_device(self.device)
            self._require_cuda()
        if self.linalg != "default" and self._on_cuda:
            _require_library(self.linalg)

    @property
    def torch_device(self) -> torch.device:
        """Where the model and every state live; of ``"auto"`` what it is on this machine."""
        return _chosen() if self.device == AUTO else torch.device(self.device)

    @property
    def arithmetic(self) -> CudaArithmetic | None:
        """That of the method's own computations: float32 in full."""
        return CudaArithmetic(False, self.linalg) if self._on_cuda else None

    @property
    def evaluation(self) -> CudaArithmetic | None:
        """That of evaluations of the model, where it differs."""
        return CudaArithmetic(True) if self._on_cuda and self.tf32 == "forward" else None

    def moved(self, indices: Tensor) -> Tensor:
        """Indices of a batch, on the device where ``pinned`` is set; otherwise as they are."""
        if not (self.pinned and self._on_cuda and indices.device.type == "cpu"):
            return indices
        return indices.pin_memory().to(self.torch_device, non_blocking=True)

    @property
    def _on_cuda(self) -> bool:
        return self.torch_device.type == "cuda"

    def _require_cuda(self) -> None:
        """Refuse settings of CUDA beside a named device that is none."""
        if self._on_cuda:
            return
        given = {"tf32": self.tf32 != "off", "linalg": self.linalg != "default", "pinned": self.pinned}
        faults = [
            Fault(
                f"{name} = {_toml(getattr(self, name))} is a setting of CUDA devices, and"
                f' device = "{self.device}" is none',
                hint=f'remove {name}, or set device = "cuda" or "auto"',
            )
            for name, is_given in given.items()
            if is_given
        ]
        if faults:
            raise ConfigError(*faults)


def _require_device(name: str) -> None:
    """Raise ``ConfigError`` for what is not a torch device, or is none of this machine."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of names that torch gave up, which are refused below
            device = torch.device(name)
    except RuntimeError:
        raise ConfigError(
            Fault(f"device = {name!r} is not a torch device", hint='use "cpu", "cuda", "cuda:0" or "auto"')
        ) from None
    if not _is_here(device):
        names = ["cpu", *(f"{kind}:{i}" for kind, count in _accelerators().items() for i in range(count))]
        here = ", ".join(f'"{name}"' for name in names)
        raise ConfigError(
            Fault(f"device = {name!r} is not available on this machine", hint=f"available: {here}")
        )


def _require_library(name: str) -> None:
    """Raise ``ConfigError`` for a library that this torch is built without."""
    try:
        with CudaArithmetic(False, name).on():
            pass
    except RuntimeError as error:
        raise ConfigError(
            Fault(f'linalg = "{name}" is not in this build of torch', hint='use linalg = "default"')
        ) from error


def _chosen() -> torch.device:
    """The accelerator of this machine, if it can do what a precision promises; otherwise the CPU."""
    kinds = [kind for kind in _accelerators() if kind not in WITHOUT_FLOAT64]
    return torch.device(kinds[0] if kinds else "cpu")


def _is_here(device: torch.device) -> bool:
    """Whether torch can compute on the device here: it knows many names, and ``meta`` holds no numbers."""
    return device.type == "cpu" or (device.index or 0) < _accelerators().get(device.type, 0)


def _accelerators() -> dict[str, int]:
    """How many devices there are of the one type that this torch computes on beside the CPU."""
    if not torch.accelerator.is_available():
        return {}
    found = torch.accelerator.current_accelerator()
    return {found.type: torch.accelerator.device_count()} if found is not None else {}


def _toml(value: str | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else f'"{value}"'
