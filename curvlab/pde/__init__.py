"""Differential equations solved by networks: problems of residual terms, for every method.

A residual is a function of the solution u and the points x::

    from curvlab import pde

    problem = pde.Problem(
        coordinates={"x": (0, 1), "y": (0, 1)},
        terms=[
            pde.Term(lambda u, x: u.laplacian() + 1.0, pde.Inside(900)),
            pde.Term(lambda u, x: u(), pde.Faces(120)),
        ],
    )
    model = pde.Residuals(net, problem)
    optimizer = curvlab.optimizer("lm", model)
    optimizer.step(pde.objective(model))
"""

from curvlab.pde.field import Field
from curvlab.pde.objective import PdeObjective, objective
from curvlab.pde.periodic import Periodic
from curvlab.pde.points import Adaptive, Face, Faces, Fixed, Inside, Points
from curvlab.pde.problem import Problem, Term
from curvlab.pde.residuals import Residuals

__all__ = [
    "Adaptive",
    "Face",
    "Faces",
    "Field",
    "Fixed",
    "Inside",
    "PdeObjective",
    "Periodic",
    "Points",
    "Problem",
    "Residuals",
    "Term",
    "objective",
]
