"""Deep autoencoders of images in [0, 1]: the network, and the workload of reconstructing them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from curvlab.objectives.losses import BinaryCrossEntropy
from curvlab.protocols.picture import Images, Picture
from curvlab.tasks.mlp import Activation, initialize_sparsely, mlp
from curvlab.tasks.supervised import Examples, SupervisedWorkload, evaluating

#: images of a row: the first validation examples
SHOWN = 12


class ReconstructionWorkload(SupervisedWorkload):
    """Square images and a network that gives them back; its picture shows some beside what comes back."""

    @torch.no_grad()
    def pictures(self) -> Sequence[Picture]:
        inputs, _ = self.validation.rows(torch.arange(min(SHOWN, len(self.validation)), device="cpu"))
        with evaluating(self.model):
            outputs = self.model(inputs).sigmoid()
        side = math.isqrt(inputs.shape[1])
        rows = {
            name: pixels.reshape(-1, side, side)
            for name, pixels in (("inputs", inputs), ("reconstructions", outputs))
        }
        return [Picture("reconstructions", Images(rows))]


def mirrored(encoder: Sequence[int], activation: Activation, connections: int) -> nn.Sequential:
    """An MLP of widths ``encoder`` and back again, with a linear code in the middle.

    Each unit starts with ``connections`` incoming weights (see ``initialize_sparsely``); 0: torch's
    own dense start.
    """
    model = mlp((*encoder, *encoder[-2::-1]), activation, linear=(len(encoder) - 1,))
    if connections:
        initialize_sparsely(model, connections)
    return model


def reconstruction(
    model: nn.Module,
    training: Float[Tensor, "n p"],
    validation: Float[Tensor, "m p"],
    *,
    dtype: torch.dtype,
    device: torch.device,
    on_training: bool,
) -> ReconstructionWorkload:
    """``model`` to give back its inputs: cross-entropy summed over pixels, measured by squared error."""
    return ReconstructionWorkload(
        model.to(dtype=dtype, device=device),
        BinaryCrossEntropy(over="sum"),
        Examples(training, training).to(dtype=dtype, device=device),
        Examples(validation, validation).to(dtype=dtype, device=device),
        measures={"error": squared_error},
        on_training=on_training,
    )


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Per example, ‖σ(outputs) − targets‖²."""
    return (outputs.sigmoid() - targets).square().sum(dim=1)
