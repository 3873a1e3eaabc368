"""The laws of a path of damped solutions, which hold for any matrix and any metric."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from curvlab.linalg.vectors import BlockVector
from curvlab.protocols.path import DampedPath

#: radii, as shares of the longest
RADII = (0.7, 0.2, 0.01)
#: relative change of λ in a difference, whose error is the square of it
CHANGE = 1e-4
#: relative error that is allowed, in float64
CLOSE = 1e-5
#: bounds of λ, relative to one of the path, between which the solution is looked for; halvings of their ratio
FAR, HALVINGS = 1e15, 100


def require_path(path: DampedPath, g: BlockVector, x: BlockVector, what: str) -> None:
    """Raise ``AssertionError`` unless ``path`` is x(λ) for the gradient g, and x lies on it.

    With ``x(λ) = (C + λM)⁻¹ g`` the slope of gᵀx(λ) is −xᵀMx, and C x = g − λ M x: so neither C nor M need
    be known.
    """
    longest, last = path.longest, path.least
    assert path.damping(2 * longest) == path.least, f"{what}: damping of a radius above longest is not least"
    for radius in (share * longest for share in RADII):
        damping = path.damping(radius)
        assert damping > last, f"{what}: damping does not grow as the radius falls"
        _at(path, g, radius, damping, what)
        last = damping
    _repeats(path, path.damping(RADII[0] * longest), path.damping(RADII[1] * longest), what)
    _holds(path, g, x, last, what)


def _at(path: DampedPath, g: BlockVector, radius: float, damping: float, what: str) -> None:
    ends = [float(g.dot(path.at(damping * (1 + sign * CHANGE)))) for sign in (1, -1)]
    square = (ends[1] - ends[0]) / (2 * CHANGE * damping)
    off = abs(square - radius**2) / radius**2
    assert off <= CLOSE, f"{what}: the squared length at damping({radius:.4g}) is {square:.6g}"
    x = path.at(damping)
    kept, predicted = x.clone(), -0.5 * float(g.dot(x)) - 0.5 * damping * radius**2
    found = path.predicted(damping)
    assert abs(found - predicted) <= CLOSE * abs(predicted), (
        f"{what}: the change predicted at λ = {damping:.4g} is {found:.6g}, expected {predicted:.6g}"
    )
    x.flat.fill_(7.0)
    _close(path.at(damping).flat, kept.flat, f"{what}: at(λ) after its vector was changed")


def _repeats(path: DampedPath, near: float, far: float, what: str) -> None:
    """``beside`` a solution for another damping is a combination of the two, by the resolvent identity."""
    other, own, share = path.at(near), path.at(far), 0.5
    kept = other.clone()
    expected = other * share + own * (1 - share) + (own - other) * (share * near / (near - far))
    _close(path.beside(other, share, far).flat, expected.flat, f"{what}: beside")
    _close(other.flat, kept.flat, f"{what}: the argument of beside")
    _close(path.beside(other, 0.0, far).flat, own.flat, f"{what}: beside with a share of 0")


def _holds(path: DampedPath, g: BlockVector, x: BlockVector, damping: float, what: str) -> None:
    low, high = max(path.least, damping / FAR), damping * FAR
    wanted = float(g.dot(x))
    for _ in range(HALVINGS):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if float(g.dot(path.at(middle))) > wanted else (low, middle)
    _close(path.at(low).flat, x.flat, f"{what}: the solution, which lies on it at no λ")


def _close(found: Float[Tensor, " D"], expected: Float[Tensor, " D"], what: str) -> None:
    off, size = float((found - expected).norm()), float(expected.norm())
    assert off <= CLOSE * size, f"{what}: differs by {off / size:.3g} of its length"
