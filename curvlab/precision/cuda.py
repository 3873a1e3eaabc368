"""CUDA's own choices of arithmetic: TF32, and the library that factorizes matrices.

torch keeps them in flags of the process.  Since torch 2.9 each TF32 flag has two names, and torch raises
where a program has set one name and reads the other.  So each flag is set by the name that can be read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class CudaArithmetic:
    """Products and convolutions of float32 in TF32 or in float32, and a library of linear algebra.

    TF32 rounds the factors of a product to 10 bits of mantissa (float32: 23).  ``linalg`` is a name that
    ``torch.backends.cuda.preferred_linalg_library`` takes; ``"default"`` changes nothing.
    """

    tf32: bool
    linalg: str = "default"

    @contextmanager
    def on(self) -> Iterator[None]:
        """Inside, CUDA computes so; every flag is put back afterwards."""
        with _products(self.tf32), _convolutions(self.tf32), _library(self.linalg):
            yield


@contextmanager
def _products(tf32: bool) -> Iterator[None]:
    matmul = torch.backends.cuda.matmul
    older, newer = _older(matmul), _newer(matmul)
    if older == tf32 or (older is None and newer == [_named(tf32)]):
        yield
        return
    medium = bool(older) and torch.get_float32_matmul_precision() == "medium"
    _set(matmul, older, tf32, [matmul])
    try:
        yield
    finally:
        if older is not None:
            matmul.allow_tf32 = older
        if medium:  # a third word, which the flag does not have
            torch.set_float32_matmul_precision("medium")
        _restore([matmul], newer)


@contextmanager
def _convolutions(tf32: bool) -> Iterator[None]:
    cudnn: Any = torch.backends.cudnn
    kinds = [cudnn.conv, cudnn.rnn] if hasattr(cudnn, "conv") else []
    older, newer = _older(cudnn), _newer(*kinds)
    if older == tf32 or (older is None and newer == [_named(tf32)] * 2):
        yield
        return
    _set(cudnn, older, tf32, kinds)
    try:
        yield
    finally:
        if older is not None:
            cudnn.allow_tf32 = older
        _restore(kinds, newer)


@contextmanager
def _library(name: str) -> Iterator[None]:
    if name == "default":
        yield
        return
    prefer: Callable[..., Any] = torch.backends.cuda.preferred_linalg_library
    before = prefer()
    prefer(name)
    try:
        yield
    finally:
        prefer(before)


def _named(tf32: bool) -> str:
    return "tf32" if tf32 else "ieee"


def _older(flags: Any) -> bool | None:
    """The flag by its older name; ``None`` where the program has used the newer one, and torch raises."""
    try:
        return bool(flags.allow_tf32)
    except RuntimeError:
        return None


def _newer(*flags: Any) -> list[str]:
    """The flags by their newer name; empty before torch 2.9."""
    return [f.fp32_precision for f in flags if hasattr(f, "fp32_precision")]


def _set(flags: Any, older: bool | None, tf32: bool, newer: list[Any]) -> None:
    if older is not None:
        flags.allow_tf32 = tf32
    else:
        for f in newer:
            f.fp32_precision = _named(tf32)


def _restore(flags: list[Any], values: list[str]) -> None:
    for f, value in zip(flags, values, strict=False):  # no values before torch 2.9
        f.fp32_precision = value
