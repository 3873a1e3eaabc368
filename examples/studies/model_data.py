"""The data of the study of models: the text of the King James Bible, Fashion-MNIST, and a graph of digits.

A batch is a dictionary of tensors.  Texts are cut into windows of ``WINDOW`` characters that do not overlap.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from curvlab.tasks.character_gpt import read
from curvlab.tasks.digits import load, stratified
from curvlab.tasks.fashion_mnist import GRAY, SIDE, find_files, labeled

Batch = dict[str, Tensor]

#: characters of a window
WINDOW = 64
#: token of no character, and of a hidden pixel; characters or levels follow
PAD, MASK = 0, 1
SPECIAL = 2
#: label that no loss counts
IGNORED = -100
#: side of a small image, levels of a pixel, and share of the pixels that have to be found
PIXELS, GRAYS, HIDDEN = 7, 16, 0.15
#: nearest neighbors of a digit in the graph
NEIGHBORS = 8
#: one window in this many is held out
HELD_OUT = 50
#: examples on which a loss is measured, and as many at a time
MEASURED, CHUNK = 1024, 256


class Source(Protocol):
    """Batches to train on, and batches to measure on."""

    def batches(self, size: int, seed: int) -> Iterator[Batch]:
        """Endless training batches."""

    def measured(self, held_out: bool) -> list[Batch]:
        """Batches of equal size of the training data or of what is held out."""


@dataclass(frozen=True)
class Rows:
    """Independent examples: tensors of equal first axis, of which the last ``apart`` rows are held out."""

    tensors: Batch
    apart: int

    def batches(self, size: int, seed: int) -> Iterator[Batch]:
        """Shuffled epochs; a batch may reach over the end of one."""
        count = len(next(iter(self.tensors.values()))) - self.apart
        generator, left = torch.Generator().manual_seed(seed), torch.empty(0, dtype=torch.long)
        while True:
            while len(left) < size:
                left = torch.cat([left, torch.randperm(count, generator=generator)])
            rows, left = left[:size], left[size:]
            yield {name: t[rows] for name, t in self.tensors.items()}

    def measured(self, held_out: bool) -> list[Batch]:
        """The first rows of a part, at most ``MEASURED``, in chunks."""
        cut = len(next(iter(self.tensors.values()))) - self.apart
        chosen = {n: (t[cut:] if held_out else t[:cut])[:MEASURED] for n, t in self.tensors.items()}
        count = len(next(iter(chosen.values())))
        step = min(CHUNK, count)
        return [{n: t[k : k + step] for n, t in chosen.items()} for k in range(0, count - step + 1, step)]


@dataclass(frozen=True)
class Graph:
    """One graph, whole in every batch: ``x`` ``[n, d]``, ``edge_index`` ``[2, e]``, ``labels`` ``[n]``.

    Labels that are not to be learnt from are ``IGNORED``.
    """

    x: Tensor
    edge_index: Tensor
    labels: Tensor
    held_out: Tensor  #: which nodes' labels are

    def batches(self, size: int, seed: int) -> Iterator[Batch]:
        """The graph, again and again; ``size`` and ``seed`` choose nothing."""
        while True:
            yield self._labeled(~self.held_out)

    def measured(self, held_out: bool) -> list[Batch]:
        return [self._labeled(self.held_out if held_out else ~self.held_out)]

    def _labeled(self, mask: Tensor) -> Batch:
        labels = torch.where(mask, self.labels, IGNORED)
        return {"x": self.x, "edge_index": self.edge_index, "labels": labels}


@lru_cache(maxsize=1)
def text() -> str:
    """A verse on each line, or what ``CURVLAB_DATA`` holds instead."""
    characters, indices = read(None)
    return "".join(characters[k] for k in indices.tolist())


@lru_cache(maxsize=2)
def alphabet(plain: bool) -> str:
    """The characters of ``stripped`` text, and unless ``plain`` those of the text."""
    return "".join(sorted({*_stripped_text()[0], *("" if plain else text())}))


def tokens(plain: bool = False) -> int:
    """How many tokens there are, ``PAD`` and ``MASK`` included."""
    return SPECIAL + len(alphabet(plain))


def stripped(written: str) -> tuple[str, list[tuple[bool, str]]]:
    """Small letters and spaces alone; and for each whether it was a capital or a new line, and what followed.

    Punctuation before the first letter is dropped.
    """
    plain: list[str] = []
    tags: list[tuple[bool, str]] = []
    for character in written:
        if character.isalpha() or character.isspace():
            plain.append(" " if character.isspace() else character.lower())
            tags.append((character.isupper() or character == "\n", ""))
        elif tags:
            tags[-1] = (tags[-1][0], tags[-1][1] + character)
    return "".join(plain), tags


def windows(codes: list[int]) -> Tensor:
    """Codes as rows of ``WINDOW``; those of a last, shorter window are dropped."""
    count = len(codes) // WINDOW
    return torch.tensor(codes[: count * WINDOW]).view(count, WINDOW)


def encoded(written: str, plain: bool = False) -> list[int]:
    """The token of each character."""
    of = {character: SPECIAL + k for k, character in enumerate(alphabet(plain))}
    return [of[character] for character in written]


def held_apart(tensors: Batch) -> Rows:
    """The last fiftieth of the windows held out, at least one."""
    return Rows(tensors, -(-len(next(iter(tensors.values()))) // HELD_OUT))


@lru_cache(maxsize=1)
def next_characters() -> Rows:
    """Windows of the text; labels are the same, and the model shifts them."""
    found = windows(encoded(text()))
    return held_apart({"input_ids": found, "labels": found})


@lru_cache(maxsize=1)
def restored() -> Rows:
    """From the small letters of a window, padded, to the window: capitals, punctuation and lines restored."""
    written = text()
    pieces = [written[k : k + WINDOW] for k in range(0, len(written) - WINDOW + 1, WINDOW)]
    sources = [encoded(stripped(piece)[0]) for piece in pieces]
    inputs = torch.tensor([source + [PAD] * (WINDOW - len(source)) for source in sources])
    labels = torch.tensor([encoded(piece) for piece in pieces])
    return held_apart({"input_ids": inputs, "attention_mask": (inputs != PAD).long(), "labels": labels})


@lru_cache(maxsize=1)
def tagged() -> Rows:
    """Small letters, and for each what has to be restored, as one of ``tags`` classes."""
    plain, found = _stripped_text()
    of = {tag: k for k, tag in enumerate(_tags())}
    return held_apart(
        {"input_ids": windows(encoded(plain, plain=True)), "labels": windows([of[tag] for tag in found])}
    )


def tags() -> int:
    """How many classes ``tagged`` has."""
    return len(_tags())


@lru_cache(maxsize=1)
def _stripped_text() -> tuple[str, list[tuple[bool, str]]]:
    return stripped(text())


@lru_cache(maxsize=1)
def _tags() -> list[tuple[bool, str]]:
    """The kinds of tags that occur, the most frequent first."""
    return [tag for tag, _ in Counter(_stripped_text()[1]).most_common()]


@lru_cache(maxsize=1)
def clothes() -> Rows:
    """Fashion-MNIST, its test images held out."""
    parts = [labeled(find_files(None), part, GRAY) for part in ("train", "t10k")]
    inputs, labels = (torch.cat([getattr(part, n) for part in parts]) for n in ("inputs", "targets"))
    return Rows({"pixel_values": inputs, "labels": labels}, len(parts[1]))


@lru_cache(maxsize=1)
def hidden_pixels() -> Rows:
    """Images of 7 × 7 pixels in ``GRAYS`` levels; those that are replaced by ``MASK`` are the labels.

    They are the same in each epoch, and at least one of each image.
    """
    found = clothes()
    small = F.avg_pool2d(found.tensors["pixel_values"], SIDE // PIXELS).flatten(1)
    tokens = SPECIAL + (small * (GRAYS - 1)).round().long()
    generator = torch.Generator().manual_seed(0)
    hidden = torch.rand(tokens.shape, generator=generator) < HIDDEN
    hidden[:, tokens.shape[1] // 2] |= ~hidden.any(1)
    labels = torch.where(hidden, tokens, IGNORED)
    return Rows({"input_ids": tokens.masked_fill(hidden, MASK), "labels": labels}, found.apart)


@lru_cache(maxsize=1)
def neighbors() -> Graph:
    """The digits of scikit-learn, each joined with its nearest ones; a fifth of every class is held out."""
    pixels, classes = load()
    x = torch.from_numpy(pixels).float()
    apart = torch.cdist(x, x).fill_diagonal_(float("inf"))
    near = apart.topk(NEIGHBORS, largest=False).indices
    joined = torch.zeros(len(x), len(x), dtype=torch.bool).scatter_(1, near, True)
    edges = (joined | joined.T).nonzero().T.contiguous()
    return Graph(x, edges, torch.from_numpy(classes), torch.from_numpy(stratified(classes, 0)))
