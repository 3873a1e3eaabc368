"""CUDA's flags, which torch has without CUDA, too: set inside, put back afterwards, always readable.

What a GPU makes of them is not tested here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
import torch

from curvlab.precision.cuda import CudaArithmetic

matmul: Any = torch.backends.cuda.matmul
cudnn: Any = torch.backends.cudnn
#: torch ≥ 2.9 has two names for each flag
BOTH = hasattr(matmul, "fp32_precision")
newer = pytest.mark.skipif(not BOTH, reason="this torch has the older names alone")


def flags() -> dict[str, Any]:
    """Everything that can be read of them."""
    read: dict[str, Callable[[], Any]] = {
        "matmul.allow_tf32": lambda: matmul.allow_tf32,
        "cudnn.allow_tf32": lambda: cudnn.allow_tf32,
        "word": torch.get_float32_matmul_precision,
    }
    if BOTH:
        read["matmul"] = lambda: matmul.fp32_precision
        read["conv"] = lambda: cudnn.conv.fp32_precision
        read["rnn"] = lambda: cudnn.rnn.fp32_precision
    found = {}
    for name, get in read.items():
        with suppress(RuntimeError):  # torch refuses the older name where the newer one was used
            found[name] = get()
    return found


@pytest.fixture(autouse=True)
def unchanged() -> Iterator[None]:
    """Every test begins with torch's own flags, and leaves them so."""
    before = flags()
    yield
    torch.set_float32_matmul_precision("highest")
    cudnn.allow_tf32 = True
    if BOTH:
        matmul.fp32_precision = before["matmul"]
        cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision = before["conv"], before["rnn"]
    assert flags() == before


def tf32() -> tuple[bool, bool]:
    """Of products and of convolutions, by whichever name can be read."""
    seen = flags()
    products = seen["matmul"] == "tf32" if BOTH else seen["matmul.allow_tf32"]
    convolutions = seen["conv"] == "tf32" == seen["rnn"] if BOTH else seen["cudnn.allow_tf32"]
    return products, convolutions


def older_names(products: bool, convolutions: bool) -> None:
    matmul.allow_tf32, cudnn.allow_tf32 = products, convolutions


def newer_names(products: bool, convolutions: bool) -> None:
    named = {True: "tf32", False: "ieee"}
    matmul.fp32_precision = named[products]
    cudnn.conv.fp32_precision = cudnn.rnn.fp32_precision = named[convolutions]


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("products", [False, True])
@pytest.mark.parametrize("convolutions", [False, True])
@pytest.mark.parametrize("setting", [older_names, pytest.param(newer_names, marks=newer)])
def test_flags_are_set_inside_and_put_back_whichever_name_the_program_uses(
    setting: Callable[[bool, bool], None], products: bool, convolutions: bool, inside: bool
) -> None:
    setting(products, convolutions)
    before = flags()
    with CudaArithmetic(tf32=inside).on():
        assert tf32() == (inside, inside)
        if setting is older_names:
            assert (matmul.allow_tf32, cudnn.allow_tf32) == (inside, inside)
        with CudaArithmetic(tf32=not inside).on():
            assert tf32() == (not inside, not inside)
        assert tf32() == (inside, inside)
    assert flags() == before


@pytest.mark.parametrize("word", ["highest", "high", "medium"])
def test_the_precision_of_products_in_words_is_put_back(word: str) -> None:
    torch.set_float32_matmul_precision(word)
    before = flags()
    for inside in (False, True):
        with CudaArithmetic(tf32=inside).on():
            assert tf32()[0] is inside
        assert torch.get_float32_matmul_precision() == word
        assert flags() == before


def test_flags_are_put_back_after_an_error() -> None:
    before = flags()
    with pytest.raises(ZeroDivisionError), CudaArithmetic(tf32=not tf32()[0]).on():
        raise ZeroDivisionError
    assert flags() == before


def test_a_library_is_preferred_inside_and_the_default_touches_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[Any] = []

    def prefer(name: Any = None) -> str:
        calls.append(name)
        return "what was preferred"

    monkeypatch.setattr(torch.backends.cuda, "preferred_linalg_library", prefer)
    with CudaArithmetic(tf32=False).on():
        pass
    assert calls == []
    with CudaArithmetic(tf32=False, linalg="magma").on():
        assert calls == [None, "magma"]
    assert calls == [None, "magma", "what was preferred"]
