"""The warning for a layer whose gradient is made of more than its calls."""

from __future__ import annotations


class LayerMismatch(UserWarning):
    """A layer's calls do not explain its gradient."""


def mismatch(name: str) -> str:
    """The message for the layer block ``name``."""
    return (
        f'layer "{name}": its calls do not explain its gradient, because its weight is also used elsewhere'
        " (for example by F.linear or in a penalty) or a hook changes the gradient. The method's fallback, if"
        " there is one, trains it with its true gradient; curvature does not include it"
    )
