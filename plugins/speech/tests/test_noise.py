"""Noise: as loud as asked, of the color asked, the same for the same seed."""

from __future__ import annotations

import math

import pytest
import torch

from curvlab_speech.noise import COLORS, GAINS, LOUDEST, QUIETEST, Noise, colored


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("ratio", [0.0, 10.0, 30.0])
def test_speech_is_louder_than_noise_by_the_ratio(ratio: float) -> None:
    sound = torch.sin(torch.arange(50_000, dtype=torch.float64) / 7)
    rest = Noise(ratio, 1.0, 0.0).added(sound, seeded()) - sound
    measured = 10 * math.log10(float(sound.square().mean() / rest.square().mean()))
    assert measured == pytest.approx(ratio, abs=1e-6)


def test_gain_is_of_speech_and_noise_alike() -> None:
    sound = torch.sin(torch.arange(1000, dtype=torch.float64))
    loud, quiet = (Noise(10.0, 0.0, gain).added(sound, seeded()) for gain in (0.0, -20.0))
    torch.testing.assert_close(quiet, loud / 10)


@pytest.mark.parametrize("color", [0.0, 1.0, 1.5])
def test_energy_falls_with_frequency_as_the_color_says(color: float) -> None:
    energy = torch.fft.rfft(colored(2**17, color, seeded())).abs().square()
    frequencies = torch.fft.rfftfreq(2**17, dtype=torch.float64)

    def level(low: float, high: float) -> float:
        band = (frequencies >= low) & (frequencies < high)
        return float(energy[band].mean().log())

    # an octave apart, thrice: energy falls by 2^-color each
    falls = [level(f, 1.1 * f) - level(2 * f, 2.2 * f) for f in (0.02, 0.06, 0.18)]
    assert sum(falls) / 3 == pytest.approx(color * math.log(2), abs=0.05)


def test_draws_lie_in_their_ranges_and_repeat() -> None:
    generator = seeded()
    drawn = [Noise.drawn(generator) for _ in range(200)]
    assert all(LOUDEST <= noise.ratio <= QUIETEST for noise in drawn)
    assert all(COLORS[0] <= noise.color <= COLORS[1] for noise in drawn)
    assert all(GAINS[0] <= noise.gain <= GAINS[1] for noise in drawn)
    assert Noise.drawn(seeded(3)) == Noise.drawn(seeded(3)) != Noise.drawn(seeded(4))


def test_silence_stays_silent() -> None:
    silence = torch.zeros(100, dtype=torch.float64)
    assert torch.equal(Noise(10.0, 1.0, 0.0).added(silence, seeded()), silence)
