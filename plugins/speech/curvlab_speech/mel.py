"""Log-mel features: how loud a frame of sound is in bands that are evenly spaced to the ear."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class LogMel:
    """``bands`` logarithms of energies, a hundred times a second, over windows of 25 ms.

    A frame's window begins at the sample nearest to its time, so that frames come exactly every 10 ms
    whatever the sample rate (220.5 samples at espeak-ng's 22,050 Hz).  Computed in float64, and only
    then rounded: the order in which a machine adds does not show.
    """

    sample_rate: int
    bands: int = 40
    lowest: float = 40.0  #: Hz, where the first band begins
    highest: float = 8000.0  #: Hz, where the last one ends
    seconds: float = 0.025  #: of a window
    frames_per_second: int = 100
    floor: float = 1e-10  #: energies below it count as it

    @property
    def window(self) -> int:
        """Samples in a window."""
        return round(self.seconds * self.sample_rate)

    @property
    def transform(self) -> int:
        """Points of the Fourier transform: a power of two, at least twice the window's.

        Twice: so that the narrowest band too has several of them.
        """
        return int(2 ** math.ceil(math.log2(2 * self.window)))

    def starts(self, samples: int) -> Tensor:
        """The first sample of every window that lies within so many samples."""
        last = samples - self.window
        frames = max(0, 1 + last * self.frames_per_second // self.sample_rate) if last >= 0 else 0
        index = torch.arange(frames, device="cpu")
        return index * self.sample_rate // self.frames_per_second

    def centers(self, samples: int) -> Tensor:
        """The middle sample of every window."""
        return self.starts(samples) + self.window // 2

    def corners(self) -> Float[Tensor, " b"]:
        """Hz: where bands begin, peak and end; band k has corners k, k + 1 and k + 2."""
        low, high = (
            mel(torch.tensor(f, dtype=torch.float64, device="cpu")) for f in (self.lowest, self.highest)
        )
        steps = torch.linspace(0, 1, self.bands + 2, dtype=torch.float64, device="cpu")
        return hertz(low + (high - low) * steps)

    def filters(self) -> Float[Tensor, "b f"]:
        """The share of each frequency's energy that goes to each band: triangles that add up to 1."""
        frequencies = torch.fft.rfftfreq(self.transform, 1 / self.sample_rate, dtype=torch.float64)
        corners = self.corners()[:, None]
        rise = (frequencies - corners[:-2]) / (corners[1:-1] - corners[:-2])
        fall = (corners[2:] - frequencies) / (corners[2:] - corners[1:-1])
        return torch.minimum(rise, fall).clamp_min(0)

    def __call__(self, sound: Float[Tensor, " s"]) -> Float[Tensor, "n b"]:
        """Features of every frame, float32."""
        starts = self.starts(len(sound))
        if not len(starts):  # of which no transform can be taken
            return torch.zeros(0, self.bands, device="cpu")
        window = torch.hann_window(self.window, periodic=False, dtype=torch.float64, device="cpu")
        inside = torch.arange(self.window, device="cpu")
        frames = sound.double()[starts[:, None] + inside] * window
        energy = torch.fft.rfft(frames, self.transform).abs().square() / window.square().sum()
        bands: Tensor = energy @ self.filters().mT
        return bands.clamp_min(self.floor).log().float()


def mel(frequency: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """Pitch as heard, in mels, of a frequency in Hz."""
    return 2595 * torch.log10(1 + frequency / 700)


def hertz(pitch: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """The inverse of ``mel``."""
    return 700 * (torch.pow(10.0, pitch / 2595) - 1)
