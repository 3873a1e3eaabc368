"""The warning for a layer whose gradient is made of more than its calls."""

from __future__ import annotations


class LayerMismatch(UserWarning):
    """A layer's calls do not explain its gradient."""


def mismatch(name: str) -> str:
    """The message for the layer block ``name``."""
    return (
        f'the calls of layer "{name}" do not explain its gradient: its weight is also used elsewhere (for'
        " example by F.linear or in a penalty), or a hook changes the gradient. The method's fallback, if"
        " there is one, trains the layer with its true gradient; curvature does not include it"
    )
