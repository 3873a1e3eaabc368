"""Neural operators: Fourier neural operators in reduced precision, their losses, tasks and layer readers.

This module is imported on every listing, so it imports no torch.
"""

from __future__ import annotations

from typing import Any

from curvlab import hookimpl

api_version = "1.0"


@hookimpl
def curvlab_register(registry: Any) -> None:
    """Readers, a precision, tasks and losses."""
    registry.add(
        "layer",
        "fourier-modes",
        "curvlab_operators.mode_reader:ModeReader",
        summary="the complex weights of spectral convolutions, a block for each Fourier mode",
    )
    registry.add(
        "layer",
        "neuraloperator-modes",
        "curvlab_operators.neuraloperator_reader:NeuralOperatorReader",
        summary="SpectralConv of neuraloperator, a block for each Fourier mode",
    )
    registry.add(
        "precision",
        "spectral",
        "curvlab_operators.spectral_backend:Spectral",
        summary="another precision, and float16 inside of spectral convolutions",
    )
    registry.add(
        "task",
        "darcy-flow",
        "curvlab_operators.darcy_flow:DarcyFlow",
        summary="from permeability to pressure on a square, by a Fourier neural operator",
        source="solved from a seed in seconds; `curvlab tasks prepare darcy-flow`",
    )
    registry.add(
        "task",
        "burgers-flow",
        "curvlab_operators.burgers_flow:BurgersFlow",
        summary="from a wave to what Burgers' equation makes of it, by a Fourier neural operator",
        source="solved from a seed in seconds; `curvlab tasks prepare burgers-flow`",
    )
    registry.add(
        "loss",
        "relative-l2",
        "curvlab_operators.relative_norms:RelativeL2",
        summary="the norm of an example's error over that of its target",
    )
    registry.add(
        "loss",
        "relative-h1",
        "curvlab_operators.relative_norms:RelativeH1",
        summary="the same with first differences on the grid",
    )
