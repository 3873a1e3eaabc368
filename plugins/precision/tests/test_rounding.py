"""Stochastic rounding to bfloat16, and who writes by it: its laws, number by number."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from curvlab.linalg.rounding import stochastic
from curvlab.protocols.backend import Rounding
from curvlab.protocols.storage import Storage
from curvlab.structures.dense import Dense

COUNT = 40_000
#: standard deviations of a mean that a correct rule exceeds once in ten thousand times
SIGMAS = 4.0


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def bits(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.int32 if x.dtype == torch.float32 else torch.int16)


def neighbors(x: float) -> tuple[float, float]:
    """The numbers of bfloat16 around one that is none: towards zero, and away from it."""
    low = bits(torch.tensor([x])).bitwise_and(-1 << 16)
    return float(low.view(torch.float32)), float((low + (1 << 16)).view(torch.float32))


@pytest.mark.parametrize("x", [1.001, -1.001, 1.0 + 2**-8, -3.3e-5, 1.99999, 255.5, 7e30, -2e-38, 1e-41])
def test_a_number_becomes_one_of_its_two_neighbors_and_the_mean_is_kept(x: float) -> None:
    value = float(torch.tensor(x))
    low, high = neighbors(value)
    found = stochastic(torch.full((COUNT,), value), generator()).double()
    assert set(found.tolist()) <= {low, high}
    share = (value - low) / (high - low)
    away = float((found == high).double().mean())
    assert away == pytest.approx(share, abs=SIGMAS * math.sqrt(share * (1 - share) / COUNT) + 1e-9)


def test_every_entry_is_rounded_by_itself() -> None:
    """Halfway between two numbers, entries are as fair coins: alone, beside each other, four apart."""
    up = (stochastic(torch.full((COUNT,), 1.0 + 2**-8), generator()).double() > 1).double() * 2 - 1
    allowed = SIGMAS / math.sqrt(COUNT / 4)
    assert all(abs(float(up[k::4].mean())) < allowed for k in range(4))
    assert all(abs(float((up[:-k] * up[k:]).mean())) < allowed for k in (1, 2, 3, 4, 8))


def test_numbers_of_bfloat16_stay_as_they_are() -> None:
    """All of them: 65,536 patterns, subnormal ones, both zeros and both infinities among them."""
    every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    exact = every[~every.isnan()]
    assert torch.equal(bits(stochastic(exact.float(), generator())), bits(exact))


def test_nan_stays_nan_whatever_its_bits() -> None:
    patterns = torch.tensor([0x7FC00000, 0x7F800001, 0x7FFFFFFF, -1, -0x400000, -0x7FFFFF], dtype=torch.int32)
    for seed in range(20):
        assert bool(stochastic(patterns.view(torch.float32), generator(seed)).isnan().all())


@pytest.mark.parametrize("shape", [(), (1,), (3,), (5, 7), (0,), (2, 0, 3)], ids=str)
def test_shapes_stay(shape: tuple[int, ...]) -> None:
    found = stochastic(torch.randn(shape, generator=generator()), generator())
    assert found.shape == shape
    assert found.dtype == torch.bfloat16


def test_a_view_is_rounded_in_its_own_order_and_left_as_it_is() -> None:
    x = torch.randn(6, 4, generator=generator())
    kept = x.clone()
    assert torch.equal(stochastic(x.mT, generator()), stochastic(x.mT.contiguous(), generator()))
    assert torch.equal(x, kept)


def test_a_seed_decides_and_another_decides_otherwise() -> None:
    x = torch.randn(1000, generator=generator())
    assert torch.equal(stochastic(x, generator(3)), stochastic(x, generator(3)))
    assert not torch.equal(stochastic(x, generator(3)), stochastic(x, generator(4)))


def test_small_increments_add_up_by_chance_and_are_lost_to_the_nearest() -> None:
    """1,000 steps of a tenth of half a unit in the last place."""
    step = 0.1 * 2**-8
    found = {}
    for how in ("nearest", "stochastic"):
        storage, stored = written(how), torch.ones(256, dtype=torch.bfloat16)
        for _ in range(1000):
            storage.write_parameter_(stored, stored.float().add_(step))
        found[how] = float(stored.double().mean())
    assert found["nearest"] == 1.0
    # below 2 the variance of one rounding is at most a quarter of the squared unit
    assert found["stochastic"] == pytest.approx(1 + 1000 * step, abs=SIGMAS * 2**-8 * math.sqrt(1000 / 256))


def written(how: Rounding) -> Storage:
    return Storage(how, how, generator())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_only_what_is_rounded_to_bfloat16_is_rounded_by_chance(dtype: torch.dtype) -> None:
    storage, value = written("stochastic"), torch.full((64,), 1.0 + 2**-9)
    assert storage.noise is not None
    before = storage.noise.get_state()
    stored = storage.write_(torch.zeros(64, dtype=dtype), value)
    drawn = not torch.equal(storage.noise.get_state(), before)
    assert drawn is (dtype == torch.bfloat16)
    assert drawn or torch.equal(stored, value.to(dtype))


def test_members_of_structures_are_written_by_chance_too() -> None:
    """Half a unit on each of 64² ones: some move, not all."""
    M = Dense().zeros(64, like=torch.ones((), dtype=torch.bfloat16))
    M.matrix.fill_(1.0)
    written("stochastic").change_(M, lambda M: M.matrix.add_(2.0**-8))
    assert 0.4 < float((M.matrix > 1).double().mean()) < 0.6


def test_float64_is_rounded_as_its_float32() -> None:
    x = torch.randn(5, 7, generator=generator(), dtype=torch.float64)
    assert torch.equal(stochastic(x, generator(1)), stochastic(x.float(), generator(1)))
