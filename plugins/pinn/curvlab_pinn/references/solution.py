"""A solution on a grid of time and space, read at any point, and kept in a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Complex, Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from curvlab.errors import DataError, UsageError
from curvlab_pinn.references.grid import wavenumbers
from curvlab_pinn.references.kink import Kink

#: of the file; another one is refused
VERSION = "1"

#: times that the polynomial in t goes through: six on either side, except near the ends
WINDOW = 12

#: points read at once, which bounds the memory: 2048 points by 1025 modes take 34 MB
CHUNK = 2048


@dataclass(frozen=True, eq=False)
class Solution:
    """u on equidistant times t from 0 on, by equidistant x from -1 on, periodic with period 2 in x.

    ``at`` is a Fourier series in x, and in t the polynomial of degree 11 through the twelve nearest times.
    A ``kink`` is subtracted before, and added after.  All numbers are float64 on the CPU.
    """

    equation: str  #: its name
    settings: Mapping[str, float]  #: coefficients of the equation
    t: Float[Tensor, " m"]
    x: Float[Tensor, " n"]
    u: Float[Tensor, "m n"]
    kink: Kink | None = None  #: which the solution starts with

    def at(self, points: Float[Tensor, "k 2"]) -> Float[Tensor, " k"]:
        """u at points (t, x); x may leave [-1, 1], t may not leave the grid (``UsageError``).

        10,000 points take about 0.3 s with 2048 grid points in x, on one thread.
        """
        points = points.detach().to(device="cpu", dtype=torch.float64)
        t, x = points.unbind(-1)
        end, m = float(self.t[-1]), len(self.t)
        if len(points) and not (float(t.min()) >= 0 and float(t.max()) <= end):
            raise UsageError(
                f"the solution of {self.equation} is known for 0 ≤ t ≤ {end:g}, not at all points"
            )
        position = t * ((m - 1) / end)
        starts = (position.floor().long() + 1 - WINDOW // 2).clamp(0, m - WINDOW)
        u, order = torch.empty_like(t), starts.argsort()
        first = 0
        for start, count in enumerate(starts.bincount(minlength=m).tolist()):
            rows, last = self._coefficients[start : start + WINDOW], first + count
            for k in range(first, last, CHUNK):
                some = order[k : min(k + CHUNK, last)]
                u[some] = _series(_lagrange(position[some] - start), rows, x[some])
            first = last
        if self.kink is not None:
            u += self.kink(t, torch.remainder(x + 1, 2) - 1)
        return u

    @cached_property
    def _coefficients(self) -> Complex[Tensor, "m modes"]:
        smooth = self.u if self.kink is None else self.u - self.kink(self.t[:, None], self.x)
        n = self.u.shape[1]
        c: Tensor = torch.fft.rfft(smooth, dim=1) * (2 / n)
        c[:, [0, -1]] /= 2  # of these there is one, of the others two that are conjugate
        return c

    def save(self, path: Path) -> None:
        """Write a safetensors file; raises ``DataError`` if the file cannot be written."""
        metadata = {
            "version": VERSION,
            "equation": self.equation,
            "settings": json.dumps(dict(self.settings), sort_keys=True),
            "kink": json.dumps(None if self.kink is None else asdict(self.kink), sort_keys=True),
        }
        part = path.with_name(f"{path.name}.part")
        try:
            part.write_bytes(save({"t": self.t, "x": self.x, "u": self.u}, metadata))
            part.replace(path)
        except OSError as error:
            raise DataError(f"{path}: cannot be written: {error.strerror or error}") from error

    @classmethod
    def load(cls, path: Path, equation: str, settings: Mapping[str, float]) -> Solution:
        """Read what ``save`` wrote; raises ``DataError`` if it is another solution or none."""
        remedy = f"name another file, or make it by `curvlab tasks prepare {equation}`"
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            said = metadata["version"], metadata["equation"], json.loads(metadata["settings"])
            kink = json.loads(metadata["kink"])
            found = cls(said[1], said[2], **tensors, kink=None if kink is None else Kink(**kink))
            m, n = found.u.shape
            whole = found.t.shape == (m,) and found.x.shape == (n,) and m >= WINDOW and n % 2 == 0
        except (OSError, SafetensorError) as error:
            raise DataError(f"{path}: cannot be read: {error}; {remedy}") from error
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path}: holds no reference solution: {error!r}; {remedy}") from error
        expected = VERSION, equation, dict(settings)
        for what, is_, should in zip(("version", "equation", "settings"), said, expected, strict=True):
            if is_ != should:
                raise DataError(f"{path}: {what} {is_!r}, expected {should!r}; {remedy}")
        if not whole or any(v.dtype != torch.float64 or not v.isfinite().all() for v in tensors.values()):
            raise DataError(f"{path}: damaged: expected finite float64 values on a grid; {remedy}")
        return found


def _lagrange(s: Float[Tensor, " k"]) -> Float[Tensor, "k w"]:
    """Weights of values at 0, 1, …, for the polynomial's value at s."""
    nodes = torch.arange(WINDOW, dtype=s.dtype, device=s.device)
    own = torch.eye(WINDOW, dtype=torch.bool, device=s.device)
    factors = (s[:, None] - nodes)[:, None].masked_fill(own, 1.0)
    return factors.prod(-1) / (nodes[:, None] - nodes).masked_fill(own, 1.0).prod(-1)


def _series(
    weights: Float[Tensor, "k w"], coefficients: Complex[Tensor, "w modes"], x: Float[Tensor, " k"]
) -> Float[Tensor, " k"]:
    phases = torch.outer(x + 1, wavenumbers(2 * (coefficients.shape[1] - 1)))
    real, imaginary = weights @ coefficients.real, weights @ coefficients.imag
    return (real * phases.cos() - imaginary * phases.sin()).sum(-1)
