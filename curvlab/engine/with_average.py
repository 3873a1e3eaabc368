"""What an optimizer with an average of weights offers to its user: the averaged weights, in the model."""

from __future__ import annotations

from contextlib import AbstractContextManager

from curvlab.engine.averaging import Averaging
from curvlab.errors import UsageError


class WithAverage:
    """The face of ``averaging``; ``None`` where the optimizer was made without an average."""

    averaging: Averaging | None = None

    def averaged(self) -> AbstractContextManager[None]:
        """Inside, the model holds the averaged weights: evaluate, save or export it there.

        Afterwards the trained weights and all buffers are back, bit for bit.  Statistics of batch
        normalization are those of the trained weights; ``torch.optim.swa_utils.update_bn`` inside computes
        them anew.  A step inside raises ``UsageError``, as does a call without an average.  Costs a copy of
        the model's tensors.
        """
        if self.averaging is None:
            raise UsageError(
                "this optimizer keeps no average of the weights; make it with one, such as"
                ' curvlab.optimizer(…, average="ema")'
            )
        return self.averaging.averaged()

    def eval(self) -> None:
        """Put the averaged weights into the model until ``train()``, as in the package schedulefree.

        Trainers that know that package call both, so without an average both change nothing.
        """
        if self.averaging is not None:
            self.averaging.enter()

    def train(self) -> None:
        """Put the trained weights and the buffers back, after ``eval()``; nothing, if they are there."""
        if self.averaging is not None:
            self.averaging.leave()

    def _require_steppable(self, thawed: list[str]) -> None:
        """Raise where the average cannot take in a step; ``thawed`` are parameters to be trained newly."""
        if self.averaging is not None:
            self.averaging.require_ready()
            self.averaging.require_covered(thawed)

    def _follow(self, step: int, lr: float) -> None:
        """The average takes in step ``step``, from 0."""
        if self.averaging is not None:
            self.averaging.stepped(step, lr)
