"""The warning for a layer whose calls are not all that its gradient is made of."""

from __future__ import annotations


class LayerMismatch(UserWarning):
    """A layer's calls do not explain its gradient."""


def mismatch(name: str) -> str:
    """What to say of the layer block ``name``."""
    return (
        f'layer "{name}": its calls do not explain its gradient, because its weight is also used elsewhere'
        " or its output is differentiated again; the fallback trains it from now on, with its true gradient"
    )
