"""A problem made ready: a network beside its points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.pde.objective import PdeObjective, objective
from curvlab.pde.points import Sizes
from curvlab.pde.residuals import Residuals
from curvlab.protocols.cadence import is_due
from curvlab.protocols.picture import Curve, Field, Picture
from curvlab.protocols.sampler import Draw
from curvlab.protocols.task import Workload

#: points along each side of a picture
SHOWN = 81
#: what is added to the seed of training points for those of the validation loss
APART = 7919


class PdeWorkload(Workload):
    """Points of all terms, and how well the network does elsewhere.

    ``val_loss`` is the loss at points drawn anew; ``val_l2`` the relative error ``‖u − u*‖ / ‖u*‖`` at
    ``test`` uniform points, if the solution is known.  Each unknown coefficient is a metric of its own.

    With ``resample`` the points are drawn again every so many steps, those of ``Adaptive`` sets by the
    residuals there.  What that depends on is in buffers of the model, so that a checkpoint holds it.
    """

    model: Residuals

    def __init__(
        self,
        model: Residuals,
        *,
        dtype: torch.dtype,
        device: torch.device,
        test: int = 9000,
        seed: int = 0,
        resample: int = 0,
    ) -> None:
        self.problem, self.seed, self.resample = model.problem, seed, resample
        self.model = model.to(dtype=dtype, device=device)
        self.like = torch.empty(0, dtype=dtype, device=device)
        rows = self.problem.rows(self.problem.draw(seed), self.like)
        if resample:
            count = torch.zeros((), dtype=torch.int64, device=device)
            self.model.register_buffer("objectives_made", count)
        self._adaptive = bool(resample) and any(t.points.adaptive for t in self.problem.terms)
        self.model.register_buffer("rows", rows, persistent=self._adaptive)
        self._round = 0
        self.fresh = self.problem.rows(self.problem.draw(seed + APART), self.like)
        self.test = self._moved(self.problem.test_points(test, seed))
        self.solution = self._solution(self.test)

    @property
    def rows(self) -> Float[Tensor, "k d+c+2"]:
        """The points of all terms (``Problem.rows``)."""
        found: Tensor = self.model.get_buffer("rows")
        return found

    @property
    def size(self) -> int:
        return len(self.rows)

    def objective(self, draw: Draw) -> PdeObjective:
        if self.resample:
            self._redraw()
        found = objective(self.model, self._chosen(draw.gradient), micro_batch=draw.micro_batch)
        for purpose in ("curvature", "acceptance"):
            chosen = getattr(draw, purpose)
            if chosen is not draw.gradient:
                own = objective(self.model, self._chosen(chosen)).gradient_sample
                setattr(found, f"{purpose}_sample", own)
        return found

    def _chosen(self, indices: Tensor) -> Tensor:
        """Some rows in the order of their terms, weighted by how many of each term there are."""
        rows = self.rows
        if len(indices) == len(rows):
            return rows
        some = rows[indices.to(rows.device).sort().values]
        return self.problem.weighted(some)

    def _redraw(self) -> None:
        """Draw the points of a new round, or those of the round that a checkpoint was made in."""
        made = self.model.get_buffer("objectives_made")
        step = int(made)
        made.add_(1)
        index = step // self.resample
        if self._adaptive:  # the checkpoint holds them
            due = index > 0 and is_due(step, self.resample)
        else:
            due = index != self._round
        if due:
            points = self.problem.draw(self.seed + index, self._sizes)
            self.rows.copy_(self.problem.rows(points, self.like))
        self._round = index

    def _sizes(self, t: int) -> Sizes:
        """The size of term t's residual at points."""

        @torch.no_grad()
        def sizes(x: Tensor) -> Tensor:
            rows = self.problem.rows(tuple(x if k == t else x[:0] for k in range(len(self.problem.terms))))
            found: Tensor = self.model(rows.to(self.like), term=t).square().sum(1).sqrt()
            return found

        return sizes

    def _solution(self, x: Tensor) -> Float[Tensor, "n q"] | None:
        if self.problem.reference is None:
            return None
        found = self.problem.reference(x.double().cpu())
        return self._moved(found.unsqueeze(1) if found.dim() == 1 else found)

    def _moved(self, t: Tensor) -> Tensor:
        return t.to(self.like)

    @torch.no_grad()
    def metrics(self) -> Mapping[str, float]:
        r = self.model(self.fresh)
        found = {"val_loss": float(r.square().sum(1).mean())}
        if self.solution is not None:
            off = self.model.u(self.test) - self.solution
            found["val_l2"] = float(torch.linalg.vector_norm(off) / torch.linalg.vector_norm(self.solution))
        found.update({f"val_{name}": value for name, value in self.model.coefficients().items()})
        return found

    @torch.no_grad()
    def pictures(self) -> Sequence[Picture]:
        """Network, solution and their difference on a grid, for one or two coordinates."""
        names, ends = list(self.problem.coordinates), list(self.problem.coordinates.values())
        if len(names) > 2:
            return ()
        sides = [torch.linspace(*e, SHOWN, dtype=torch.float64, device="cpu") for e in ends]
        grid = torch.cartesian_prod(*sides).reshape(-1, len(names))
        found, known = self.model.u(self._moved(grid)), self._solution(grid)
        shape = [SHOWN] * len(names)
        pictures = []
        for k in range(found.shape[1]):
            mark = f" {k + 1}" if found.shape[1] > 1 else ""
            values = {"network": found[:, k].view(shape)}
            parts = {f"solution{mark}": values}
            if known is not None:
                values["exact"] = known[:, k].view(shape)
                parts[f"error{mark}"] = {"network − exact": values["network"] - values["exact"]}
            for title, shown in parts.items():
                if len(names) == 1:
                    pictures.append(Picture(title, Curve(sides[0], shown), (names[0], "u")))
                else:
                    pictures.append(Picture(title, Field(sides[0], sides[1], shown), (names[0], names[1])))
        return pictures
