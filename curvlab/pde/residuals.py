"""The model that is trained: a network, and by how much it misses the terms of a problem."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from curvlab.errors import ConfigError, Fault
from curvlab.pde.channels import Hear
from curvlab.pde.derivatives import Differentiator
from curvlab.pde.field import Evaluated, Field, Missing, Recorder
from curvlab.pde.partials import Derivative
from curvlab.pde.problem import Problem, Term

#: points at which a residual function is tried
TRIED = 3


class Residuals(nn.Module):
    """A network and a problem: weighted residuals of rows of points (``Problem.rows``), ``[k, q]``.

    The mean over rows of their squares, summed over q, is the loss of the problem.  ``net`` maps points ``[n,
    d]`` to ``[n, outputs]``; its parameters and the unknown coefficients are trained.  A term with fewer than
    q residuals a point has zeros in the last columns.
    """

    def __init__(self, net: nn.Module, problem: Problem) -> None:
        super().__init__()
        self.net = net
        self.problem = problem
        like = next(net.parameters(), None)
        if like is None:
            raise ConfigError(Fault("the network has no parameters", hint="there is nothing to train"))
        self.unknowns = nn.ParameterDict(
            {
                name: nn.Parameter(torch.tensor(value, dtype=like.dtype, device=like.device))
                for name, value in problem.unknowns.items()
            }
        )
        self.differentiator = Differentiator(net, problem.transform)
        tried = [_tried(problem, term, like) for term in problem.terms]
        #: derivatives that each term asks for
        self._asked: list[list[Derivative]] = [asked for asked, _ in tried]
        self._widths = [width for _, width in tried]
        self.width = max(self._widths)  #: residuals a point, at most

    @property
    def reason(self) -> str | None:
        """The torch function for which jets have no rule, if the network uses one."""
        return self.differentiator.reason

    def forward(self, rows: Float[Tensor, "k d+c+2"], term: int | None = None) -> Float[Tensor, "k q"]:
        """Weighted residuals, in the order of the rows, which are those of one term after another.

        With ``term``, the residuals of this one, not weighted.
        """
        if term is not None:
            return self.residual(term, rows)
        found = [
            self.residual(t, part) * part[:, -2:-1] for t, part in enumerate(self.parts(rows)) if len(part)
        ]
        return torch.cat([nn.functional.pad(r, (0, self.width - r.shape[1])) for r in found])

    def parts(self, rows: Float[Tensor, "k d+c+2"]) -> tuple[Float[Tensor, "n d+c+2"], ...]:
        """The rows of each term."""
        counts = torch.bincount(rows[:, -1].long(), minlength=len(self.problem.terms)).tolist()
        return tuple(torch.split(rows, counts))

    def residual(
        self, term: int, rows: Float[Tensor, "n d+c+2"], hear: Hear | None = None
    ) -> Float[Tensor, "n q"]:
        """The residual of one term, not weighted; raises ``ConfigError`` for one of a wrong shape."""
        d, which = self.problem.dimension, self.problem.terms[term]
        x = rows[:, :d]
        while True:
            found, calls = self.differentiator(x, self._asked[term], heard=hear is not None)
            u = self._field(which, rows, found)
            try:
                r = _matrix(which, which.residual(u, x), len(x), self._widths[term])
            except Missing as missing:  # a residual that asks for other derivatives than it did at first
                self._asked[term].append(missing.derivative)
                continue
            if hear is not None:
                for call in calls:
                    hear(*call)
            return r

    def u(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n q"]:
        """The solution at points."""
        return self.differentiator(x, [()])[0][()]

    def coefficients(self) -> Mapping[str, float]:
        """The unknown coefficients as they are now."""
        return {name: float(p.detach()) for name, p in self.unknowns.items()}

    def _field(self, term: Term, rows: Tensor, found: Mapping[Derivative, Tensor]) -> Field:
        d, known = self.problem.dimension, term.points.data
        for t in found.values():
            if t.shape[1] != self.problem.outputs:
                raise ConfigError(
                    Fault(
                        f"the network has {t.shape[1]} outputs, and the problem seeks"
                        f" {self.problem.outputs} functions",
                        hint=f"set outputs = {t.shape[1]} in the problem, or change the network's last layer",
                    )
                )
        values = None if known is None else rows[:, d : d + known.shape[1]]
        if values is not None and values.shape[1] == 1:
            values = values[:, 0]
        return Evaluated(
            tuple(self.problem.coordinates),
            self.problem.outputs,
            values,
            dict(self.unknowns),
            found=found,
        )


def _tried(problem: Problem, term: Term, like: Tensor) -> tuple[list[Derivative], int]:
    """Which derivatives a residual asks for and how many residuals a point has, by a call with a stand-in.

    The points are of the network's dtype and on its device, as those of an evaluation.  Raises
    ``ConfigError``.
    """
    low, high = torch.tensor(list(problem.coordinates.values()), dtype=torch.float64, device="cpu").mT
    along = torch.linspace(0.2, 0.8, TRIED, dtype=torch.float64, device="cpu")
    x = low + (high - low) * along.unsqueeze(1)
    known = term.points.data
    if not like.is_meta:
        x = x.to(dtype=like.dtype, device=like.device)
    values = None if known is None else x.new_zeros(TRIED, known.shape[1])
    if values is not None and values.shape[1] == 1:
        values = values[:, 0]
    unknowns = {name: x.new_tensor(value) for name, value in problem.unknowns.items()}
    u = Recorder(tuple(problem.coordinates), problem.outputs, values, unknowns, x=x)
    width = _matrix(term, term.residual(u, x), TRIED).shape[1]
    if width == TRIED:  # q, or as many as there are points
        some = replace(u, x=x[:2], values=None if values is None else values[:2])
        _matrix(term, term.residual(some, x[:2]), 2, width)
    if not u.asked:
        raise ConfigError(
            Fault(
                f'the residual of term "{term.label}" does not use u: it does not depend on the network',
                hint="compute it of u(), u.d(...), u.gradient() or u.laplacian()",
            )
        )
    return u.asked, width


def _matrix(term: Term, r: Any, n: int, width: int | None = None) -> Float[Tensor, "n q"]:
    """What a residual function returned as ``[n, q]``; raises ``ConfigError``, also if q is not ``width``."""
    if isinstance(r, (tuple, list)) and r and all(isinstance(t, Tensor) and t.shape == (n,) for t in r):
        r = torch.stack(list(r), 1)
    if isinstance(r, Tensor) and r.shape[:1] == (n,) and r.dim() <= 2 and r.is_floating_point():
        found = r.unsqueeze(1) if r.dim() == 1 else r
        if width in (None, found.shape[1]):
            return found
    got = f"a tensor of shape {list(r.shape)}" if isinstance(r, Tensor) else f"{type(r).__name__}"
    if isinstance(r, Tensor) and not r.is_floating_point():
        got += f" and dtype {str(r.dtype).removeprefix('torch.')}"
    remedy = "return one number, [n], or q numbers, [n, q], for each point"
    if isinstance(r, Tensor) and r.shape == (n, n):
        remedy += "; [n, n] comes of [n, 1] against [n]: index coordinates as x[:, 0]"
    raise ConfigError(
        Fault(
            f'the residual of term "{term.label}" returns {got} at n = {n} points; expected [n] or [n, q]',
            hint=remedy,
        )
    )
