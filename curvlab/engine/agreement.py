"""What processes that compute with different blocks must decide alike, so that none waits for another.

Each asks the same questions in the same order.  One small number is sent for a question, and words only when
something failed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from curvlab.errors import CurvlabError, Diverged
from curvlab.objectives.ranks import Ranks

T = TypeVar("T")


@dataclass(frozen=True)
class Agreement:
    """Among ``ranks``; without any, this process decides alone and nothing is sent."""

    ranks: Ranks | None = None

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, whether any process raises it."""
        if self.ranks is None:
            return flags
        votes = torch.tensor(flags, dtype=torch.int64, device=self.ranks.device)
        return tuple(bool(vote) for vote in self.ranks.largest_(votes).tolist())

    def first(self, reason: str | None) -> str | None:
        """The first process's reason, of those that have one."""
        if not self.any(reason is not None)[0]:
            return None
        if self.ranks is None:
            return reason
        return str(next(told for told in self.ranks.each(reason) if told is not None))

    def attempt(self, call: Callable[[], T]) -> T:
        """What ``call`` returns, if it succeeds in every process.

        Otherwise every process raises the first one's ``Diverged``, or its own error, or a ``CurvlabError``
        that names the process whose error it is.
        """
        if self.ranks is None:
            return call()
        error, result = None, None
        try:
            result = call()
        except Exception as caught:
            error = caught
        if not self.any(error is not None)[0]:
            return result  # type: ignore[return-value]
        of_ranks = self.ranks.each(None if error is None else (isinstance(error, Diverged), str(error)))
        rank, (diverged, words) = next((r, told) for r, told in enumerate(of_ranks) if told is not None)
        if diverged:
            raise Diverged(words) from error
        if error is not None:
            raise error
        raise CurvlabError(f"rank {rank} failed: {words}")

    @property
    def total(self) -> Callable[[Tensor], Tensor] | None:
        """The sum over processes, in place; ``None`` in one process."""
        return None if self.ranks is None else self.ranks.sum_


#: one process
ALONE = Agreement()
