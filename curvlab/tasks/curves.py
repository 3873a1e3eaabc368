"""Images of curves: the synthetic benchmark of deep autoencoders."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from curvlab.protocols.bounds import Count, Natural, Width, check_bounds
from curvlab.protocols.task import Task
from curvlab.tasks.autoencoder import mirrored, reconstruction
from curvlab.tasks.draws import Uniform
from curvlab.tasks.mlp import Activation
from curvlab.tasks.supervised import SupervisedWorkload

SIDE = 28
PIXELS = SIDE * SIDE

#: the three points are uniform in the square from MARGIN to SIDE − MARGIN, in pixels.  Between its points
#: a parabola goes beyond their range by at most an eighth of it, so every curve stays within the image
MARGIN = 4.5

#: standard deviation of a line's profile, in pixels: wide enough that pixels alias nothing visible
PEN = 0.7

#: points in which a curve's line integral is taken; neighbors lie at most 1.5 · PEN apart, which is close
#: enough for Gaussians to add up to a line of even brightness within 1e-3
STROKES = 96

#: images drawn at a time: tens of megabytes
CHUNK = 1000


@dataclass(frozen=True)
class Curves(Task):
    """Squeeze 28 × 28 images of curves through 784-400-200-100-50-25-6 and back: sigmoid units, linear code.

    The benchmark of Hinton and Salakhutdinov 2006 and of the Hessian-free literature after Martens 2010:
    a curve through three random points of the plane, hence six numbers per image.  Their file is not
    used: the images are our own rendering of that definition, a parabola that passes through the
    points at t = 0, ½, 1, drawn as a soft line.  So losses compare with one another, not with published
    ones.  20,000 training and 10,000 validation images, as theirs.

    The loss is binary cross-entropy of pixel values on logits, *summed over pixels* and averaged over
    examples; its least value is the pixels' own entropy, not 0.  ``val_error`` is the squared error,
    summed likewise.  Weights start sparse, as in Martens 2010.
    """

    hidden: tuple[Width, ...] = (
        400,
        200,
        100,
        50,
        25,
    )  #: of the encoder's layers; the decoder mirrors them
    code: Width = 6  #: width of the code, ≥ 1
    activation: Activation = "sigmoid"
    connections: Natural = 15  #: incoming weights of a unit at the start; 0: torch's own dense start
    size: Count = 20_000  #: training images, ≥ 1
    validation_size: Count = 10_000  #: validation images, ≥ 1
    batch_size: Count = 1024  #: examples of a mini-batch, ≥ 1
    data_seed: Natural = 0  #: of the points
    train_metrics: bool = False  #: evaluate on all training examples too

    def __post_init__(self) -> None:
        check_bounds(self)

    def model(self) -> nn.Module:
        return mirrored((PIXELS, *self.hidden, self.code), self.activation, self.connections)

    def workload(self, model: nn.Module, *, dtype: torch.dtype, device: torch.device) -> SupervisedWorkload:
        draw = Uniform(self.data_seed)
        training, validation = (drawn(points(draw, n)) for n in (self.size, self.validation_size))
        return reconstruction(
            model, training, validation, dtype=dtype, device=device, on_training=self.train_metrics
        )


def points(draw: Uniform, n: int) -> Float[Tensor, "n 3 2"]:
    """Three points for each of ``n`` curves, in pixels from a corner of the image."""
    return MARGIN + (SIDE - 2 * MARGIN) * draw(n, 3, 2)


def drawn(through: Float[Tensor, "n 3 2"]) -> Float[Tensor, "n 784"]:
    """The images of curves through these points, as rows of pixels in [0, 1], float32.

    A pixel is the integral, along the curve, of a Gaussian around the pixel's center, as a fraction of
    what a long straight line through that center gives; where a curve meets itself, at most 1.
    """
    starts = range(0, len(through), CHUNK)
    return torch.cat([_pixels(through[start : start + CHUNK]) for start in starts])


def _pixels(through: Float[Tensor, "n 3 2"]) -> Float[Tensor, "n 784"]:
    at, length = (t.float() for t in traced(through))
    centers = torch.arange(SIDE, dtype=torch.float32, device="cpu") + 0.5
    # the Gaussian is a product over the axes, so the integral is a product of two matrices
    x, y = ((-0.5 * ((at[..., k, None] - centers) / PEN) ** 2).exp() for k in (0, 1))
    line = PEN * math.sqrt(2 * math.pi)
    images = (y * (length / line)[..., None]).transpose(1, 2) @ x
    return images.clamp_max(1).flatten(1)


def traced(through: Float[Tensor, "n 3 2"]) -> tuple[Float[Tensor, "n s 2"], Float[Tensor, "n s"]]:
    """Points of each curve, and the length of the curve that each of them stands for."""
    first, middle, last = through.double().unbind(1)
    bend, slope = 2 * (first - 2 * middle + last), 4 * middle - 3 * first - last
    t = ((torch.arange(STROKES, dtype=torch.float64, device="cpu") + 0.5) / STROKES)[:, None]
    at = first[:, None] + t * (slope[:, None] + t * bend[:, None])
    speed = (slope[:, None] + 2 * t * bend[:, None]).norm(dim=2)
    return at, speed / STROKES
