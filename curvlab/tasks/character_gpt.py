"""The next character of English text, by a small transformer decoder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from curvlab.errors import DataError
from curvlab.objectives.losses import CrossEntropy
from curvlab.protocols.bounds import Count, Depth, Width, check_bounds
from curvlab.protocols.loss import Loss
from curvlab.protocols.task import Task
from curvlab.tasks.gpt import Gpt
from curvlab.tasks.settings import check, divides
from curvlab.tasks.supervised import SupervisedWorkload
from curvlab.tasks.verses import verses

#: the text's name in the folder ``CURVLAB_DATA``
FILE = "character-gpt.txt"

HOW_TO_GET = (
    "character-gpt has no text: run `apt-get install bible-kjv` on Debian or Ubuntu, or name a UTF-8 file by "
    f"task.text or as {FILE} in the folder CURVLAB_DATA"
)

#: the last one in this many windows is held out
HELD_OUT = 50


@dataclass(frozen=True)
class Windows:
    """Stretches of a text that do not overlap, each to be predicted from its own beginning: a ``Source``."""

    text: Int[Tensor, " l"]
    context: int

    def rows(self, indices: Tensor) -> tuple[Int[Tensor, "n t"], Int[Tensor, "n t"]]:
        """Characters, and for each the one that follows."""
        starts = indices.to(self.text.device) * self.context
        at = starts[:, None] + torch.arange(self.context + 1, device=self.text.device)
        found = self.text[at].long()
        return found[:, :-1], found[:, 1:]

    def __len__(self) -> int:
        return (len(self.text) - 1) // self.context


@dataclass(frozen=True)
class CharacterGpt(Task):
    """Predict each next character of a text with a transformer: cross-entropy, mean over characters.

    As it is: 64 characters of context, 2 pre-norm blocks of width 128 with 4 heads, no dropout; with the
    63 characters of the King James Bible 421,183 parameters.  Radford et al. 2018.  The text is ``text``,
    else ``character-gpt.txt`` in the folder ``CURVLAB_DATA``, else that of Debian's package bible-kjv, a
    verse on each line.  The last fiftieth of the windows is held out.
    """

    judged_by: ClassVar[tuple[str, bool]] = ("val_loss", False)

    context: Width = 64  #: characters of a window
    dim: Width = 128  #: width of a token
    depth: Depth = 2  #: blocks
    heads: int = 4  #: of each attention, a divisor of ``dim``
    mlp_ratio: Width = 4  #: width of a block's hidden layer over ``dim``
    batch_size: Count = 32  #: windows of a mini-batch
    text: str | None = None  #: a UTF-8 file
    train_metrics: bool = False  #: evaluate on all training windows too
    loss: Loss = CrossEntropy()  #: of logits ``[n, c, t]`` and characters

    def __post_init__(self) -> None:
        check_bounds(self)
        check(divides(self.dim, "dim", heads=self.heads))

    def model(self) -> nn.Module:
        return Gpt(
            characters=len(read(self.text)[0]),
            context=self.context,
            dim=self.dim,
            depth=self.depth,
            heads=self.heads,
            hidden=self.mlp_ratio * self.dim,
        )

    def workload(self, model: nn.Module, *, dtype: torch.dtype, device: torch.device) -> SupervisedWorkload:
        _, characters = read(self.text)
        count = len(Windows(characters, self.context))
        apart = -(-count // HELD_OUT)
        if count < 2:
            raise DataError(
                f"the text has {len(characters)} characters, less than two windows of {self.context}"
            )
        text, cut = characters.to(device), (count - apart) * self.context
        return SupervisedWorkload(
            model.to(dtype=dtype, device=device),
            self.loss,
            Windows(text[: cut + 1], self.context),
            Windows(text[cut:], self.context),
            measures={"accuracy": correct},
            on_training=self.train_metrics,
        )


def correct(outputs: Float[Tensor, "n c t"], targets: Int[Tensor, "n t"]) -> Float[Tensor, " n"]:
    """The share of each window's characters that have the largest logit."""
    return (outputs.argmax(dim=1) == targets).to(outputs.dtype).mean(1)


def read(text: str | None) -> tuple[str, Int[Tensor, " l"]]:
    """The characters that occur, sorted, and the text in their indices; raises ``DataError``."""
    if text is None and (folder := os.environ.get("CURVLAB_DATA")):
        path = Path(folder) / FILE
        text = str(path) if path.exists() else None
    return _read(text)


@lru_cache(maxsize=2)
def _read(text: str | None) -> tuple[str, Int[Tensor, " l"]]:
    if text is None:
        written = "\n".join(verses(HOW_TO_GET))
    else:
        try:
            written = Path(text).expanduser().read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(f"{text}: not UTF-8 at byte {error.start}") from error
        except OSError as error:
            raise DataError(f"{text}: cannot be read: {error.strerror or error}") from error
    if not written:
        raise DataError(f"{text}: the text is empty")
    codes = np.frombuffer(written.encode("utf-32-le"), dtype=np.uint32)
    kinds, indices = np.unique(codes, return_inverse=True)
    return "".join(map(chr, kinds.tolist())), torch.from_numpy(indices.astype(np.int32))
