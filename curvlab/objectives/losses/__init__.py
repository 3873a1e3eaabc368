"""Losses that know their own curvature, and criteria of which it is found by autograd.

A model's outputs are read as rows ``[r, c]``: r loss terms (an example, or a token of one), c
output coordinates.  The objective weights rows so that the loss is ``mean_n ℓ_n``.  ``over`` says how the
terms of *one example* are reduced: ``"mean"`` (torch's ``reduction="mean"``, κ = 1/c for a loss that is a sum
over coordinates) or ``"sum"`` (κ = 1).

| loss | ℓ_r | curvature C | S with S Sᵀ = C | sampled v, E[v vᵀ] = C |
|---|---|---|---|---|
| cross-entropy | −log p_y | diag(p) − p pᵀ | columns √p_k (e_k − p) | p − e_y', y' ~ p |
| squared error | κ ‖f − y‖² | 2κ I | √(2κ) e_k | √(2κ) ε, ε ~ N(0, I) |
| binary | −κ Σ w [q y log p + (1 − y) log(1 − p)] | κ diag(u p(1 − p)) | √C | √(κ u) (p − y'), y'_k ~ p_k |
| Huber, smooth L1 | κ Σ h(f − y) | κ diag(h''), 0 beyond δ | √C | √C ε, ε = ±1 |
| Poisson | κ Σ (eᶠ − y f) | κ diag(eᶠ) | √C | √C ε, ε = ±1 |
| Gaussian | ½κ Σ [log v + (y − m)²/v] | Fisher: κ diag(1/v, 1/(2v²)) | √C | ∇ℓ/√κ at y' ~ N(m, v) |

In the binary loss u = w (1 + (q − 1) y).
"""

from curvlab.objectives.losses.binary import BinaryCrossEntropy
from curvlab.objectives.losses.criterion import CriterionLoss, NoCurvature
from curvlab.objectives.losses.cross_entropy import TORCH_IGNORES, CrossEntropy, NegativeLogLikelihood
from curvlab.objectives.losses.gaussian import GaussianNegativeLogLikelihood
from curvlab.objectives.losses.heads import Heads
from curvlab.objectives.losses.known import loss_of
from curvlab.objectives.losses.language_model import LanguageModel
from curvlab.objectives.losses.model_loss import ModelLoss
from curvlab.objectives.losses.poisson import PoissonNegativeLogLikelihood
from curvlab.objectives.losses.regression import Huber, MeanSquaredError, SmoothL1

__all__ = [
    "TORCH_IGNORES",
    "BinaryCrossEntropy",
    "CriterionLoss",
    "CrossEntropy",
    "GaussianNegativeLogLikelihood",
    "Heads",
    "Huber",
    "LanguageModel",
    "MeanSquaredError",
    "ModelLoss",
    "NegativeLogLikelihood",
    "NoCurvature",
    "PoissonNegativeLogLikelihood",
    "SmoothL1",
    "loss_of",
]
