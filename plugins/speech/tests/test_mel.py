"""Log-mel features: bands that share all energy, at their frequencies, a hundred times a second."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from curvlab_speech.mel import LogMel, hertz, mel

RATE = 22050
FEATURES = LogMel(RATE)


def tone(frequency: float, seconds: float = 0.2, loudness: float = 0.5, rate: int = RATE) -> Tensor:
    return loudness * torch.sin(
        2 * math.pi * frequency * torch.arange(int(seconds * rate), dtype=torch.float64) / rate
    )


def test_a_mel_is_a_mel() -> None:
    """1000 Hz are 1000 mels, by definition of the scale, and the way back is the way back."""
    assert float(mel(torch.tensor(1000.0))) == pytest.approx(1000.0, rel=1e-3)
    frequencies = torch.linspace(0, 11025, 50, dtype=torch.float64)
    torch.testing.assert_close(hertz(mel(frequencies)), frequencies)


def test_bands_are_evenly_spaced_to_the_ear_from_the_lowest_to_the_highest() -> None:
    corners = FEATURES.corners()
    assert (float(corners[0]), float(corners[-1])) == pytest.approx((40.0, 8000.0))
    gaps = mel(corners).diff()
    torch.testing.assert_close(gaps, gaps.mean().expand_as(gaps))


def test_between_the_outer_peaks_every_frequencys_energy_is_shared_out_wholly() -> None:
    filters, corners = FEATURES.filters(), FEATURES.corners()
    frequencies = torch.fft.rfftfreq(FEATURES.transform, 1 / RATE, dtype=torch.float64)
    shared = filters.sum(0)
    inner = (frequencies >= corners[1]) & (frequencies <= corners[-2])
    torch.testing.assert_close(shared[inner], torch.ones_like(shared[inner]))
    outside = (frequencies <= corners[0]) | (frequencies >= corners[-1])
    assert float(shared[outside].abs().max()) == 0.0
    assert float(filters.min()) >= 0


def test_every_band_hears_something_and_most_at_its_peak() -> None:
    filters, corners = FEATURES.filters(), FEATURES.corners()
    frequencies = torch.fft.rfftfreq(FEATURES.transform, 1 / RATE, dtype=torch.float64)
    assert filters.shape == (40, len(frequencies))
    loudest = frequencies[filters.argmax(1)]
    spacing = RATE / FEATURES.transform
    assert float((loudest - corners[1:-1]).abs().max()) <= spacing
    assert int((filters > 0).sum(1).min()) >= 3


@pytest.mark.parametrize("rate", [16000, 22050])
@pytest.mark.parametrize("band", [3, 12, 25, 38])
def test_a_tone_is_heard_in_its_band(band: int, rate: int) -> None:
    features = LogMel(rate)
    heard = features(tone(float(features.corners()[band + 1]), rate=rate))
    assert heard.argmax(1).tolist() == [band] * len(heard)
    assert float(heard[:, band].std()) < 0.05  # and as loud in every frame


def test_twice_as_loud_is_four_times_the_energy() -> None:
    quiet, loud = FEATURES(tone(1000, loudness=0.2)), FEATURES(tone(1000, loudness=0.4))
    peak = int(quiet[0].argmax())
    expected = torch.full((len(loud),), math.log(4))
    torch.testing.assert_close((loud - quiet)[:, peak], expected, rtol=1e-4, atol=1e-4)


def test_silence_is_the_floor_and_no_infinity() -> None:
    heard = FEATURES(torch.zeros(4000, dtype=torch.float64))
    assert heard.unique().tolist() == pytest.approx([math.log(1e-10)])


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100])
def test_frames_come_a_hundred_times_a_second_whatever_the_rate(rate: int) -> None:
    features = LogMel(rate, highest=4000.0)
    starts = features.starts(10 * rate)
    assert len(starts) == 998  # those whose 25 ms lie within ten seconds
    exact = torch.arange(998, dtype=torch.float64) * rate / 100
    assert float((starts - exact).abs().max()) < 1
    assert int(starts[-1]) + features.window <= 10 * rate
    assert len(features(torch.zeros(10 * rate, dtype=torch.float64))) == 998


def test_sound_shorter_than_a_window_has_no_frame() -> None:
    for samples in (0, 1, FEATURES.window - 1):
        assert FEATURES(torch.zeros(samples, dtype=torch.float64)).shape == (0, 40)
    assert FEATURES(torch.zeros(FEATURES.window, dtype=torch.float64)).shape == (1, 40)


def test_a_click_is_heard_in_the_frames_around_it_alone() -> None:
    sound = torch.zeros(RATE, dtype=torch.float64)
    sound[RATE // 2] = 1.0
    heard = (FEATURES(sound).amax(1) > math.log(1e-9)).nonzero().flatten()
    centers = FEATURES.centers(RATE)[heard]
    assert 2 <= len(heard) <= 3
    assert float((centers - RATE // 2).abs().max()) <= FEATURES.window / 2
