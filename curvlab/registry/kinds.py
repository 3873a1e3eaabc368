"""The kinds of parts, and the protocol that each kind's classes implement.

Import strings, so that naming a kind costs no import of torch.
"""

from __future__ import annotations

from collections.abc import Mapping

#: kind -> import string of its protocol class
PROTOCOLS: Mapping[str, str] = {
    "layer": "curvlab.protocols.reader:LayerReader",
    "structure": "curvlab.protocols.structure:Family",
    "estimator": "curvlab.protocols.estimator:CurvatureEstimator",
    "preconditioner": "curvlab.protocols.preconditioner:Preconditioner",
    "inverse": "curvlab.protocols.preconditioner:Inverse",
    "krylov": "curvlab.protocols.krylov:Krylov",
    "damping": "curvlab.protocols.step:Damping",
    "step": "curvlab.protocols.step:StepRule",
    "transform": "curvlab.protocols.step:Transform",
    "schedule": "curvlab.protocols.schedule:Schedule",
    "sampler": "curvlab.protocols.sampler:Sampler",
    "precision": "curvlab.protocols.backend:Backend",
    "loss": "curvlab.protocols.loss:Loss",
    "task": "curvlab.protocols.task:Task",
    "average": "curvlab.protocols.average:Average",
    "callback": "curvlab.protocols.callback:Callback",
    "reporter": "curvlab.protocols.report:Reporter",
}

#: a method is data, not a class: a TOML file that composes parts
METHOD = "method"

#: a reader is chosen by the layers of a model, not by a configuration
LAYER = "layer"

#: everything that has a name
KINDS: tuple[str, ...] = (*PROTOCOLS, METHOD)
