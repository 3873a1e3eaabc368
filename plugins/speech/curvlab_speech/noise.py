"""What a room and a microphone add: noise of some color, and another loudness."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

#: dB of speech over noise, from and to; speech as it is on average, pauses included
QUIETEST, LOUDEST = 30.0, 10.0

#: energy of the noise falls with frequency as f^-color: 0 is white, 1 pink, 2 brown
COLORS = (0.0, 1.5)

#: dB by which the whole is made louder or quieter
GAINS = (-10.0, 0.0)

#: the lowest frequency of the noise, as a share of the sample rate; below it the spectrum is flat
FLAT = 1e-3


@dataclass(frozen=True)
class Noise:
    """How one utterance is disturbed."""

    ratio: float  #: dB of speech over noise
    color: float
    gain: float  #: dB

    @classmethod
    def drawn(cls, generator: torch.Generator) -> Noise:
        """Ratio, color and gain, each uniform in its range."""
        ranges = torch.tensor([(LOUDEST, QUIETEST), COLORS, GAINS], dtype=torch.float64, device="cpu")
        at = torch.rand(3, dtype=torch.float64, generator=generator, device="cpu")
        return cls(*(ranges[:, 0] + at * (ranges[:, 1] - ranges[:, 0])).tolist())

    def added(self, sound: Float[Tensor, " s"], generator: torch.Generator) -> Float[Tensor, " s"]:
        """The sound so disturbed; silence stays silent."""
        noise = colored(len(sound), self.color, generator)
        loudness = sound.square().mean().sqrt()
        return (sound + noise * loudness * 10 ** (-self.ratio / 20)) * 10 ** (self.gain / 20)


def colored(samples: int, color: float, generator: torch.Generator) -> Float[Tensor, " s"]:
    """Gaussian noise whose energy falls as f^-color, of mean square 1."""
    white = torch.randn(samples, dtype=torch.float64, generator=generator, device="cpu")
    shape = torch.fft.rfftfreq(samples, dtype=torch.float64).clamp_min(FLAT) ** (-color / 2)
    noise: Tensor = torch.fft.irfft(torch.fft.rfft(white) * shape, samples)
    noise /= noise.square().mean().sqrt()
    return noise
