"""The task ``speech-frames``: what an acoustic model learns first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import nn

from curvlab.errors import DataError
from curvlab.objectives.losses import CrossEntropy
from curvlab.protocols.bounds import Bounds, Count, Inside, Natural, Width, check_bounds
from curvlab.protocols.preparation import Preparation
from curvlab.protocols.task import Task
from curvlab.tasks.mlp import Activation, initialize_sparsely, mlp
from curvlab.tasks.supervised import SupervisedWorkload, correct
from curvlab_speech import festvox, folder
from curvlab_speech.corpus import Corpus, held_out
from curvlab_speech.preparation import SyntheticSpeech
from curvlab_speech.windows import Windows


@dataclass(frozen=True)
class SpeechFrames(Task):
    """Classify frames of speech by an MLP that sees each between its neighbors: cross-entropy.

    ``source = "espeak"``: *synthetic speech*, which ``curvlab tasks prepare speech-frames --minutes N
    --to DIR`` makes once.  40 log-mel features every 10 ms, hence 360 inputs with four frames of context
    on each side; a class for the beginning, the middle and the end of every phoneme.  Reads ``root``, else
    the folder ``speech-frames`` of ``CURVLAB_DATA``.  The kind of task, not the data, of Sainath et
    al. 2013 (arXiv 1309.1508).

    ``source = "festvox"``: 20,534 frames of recorded speech in Debian's package festvox-kallpc16k, one
    per pitch period: the logarithm of the error's energy and 16 predictor coefficients, a class per phone.

    Features have mean 0 and variance 1 over the training frames.  Whole utterances (for festvox,
    diphones) are held out for validation.
    """

    judged_by: ClassVar[tuple[str, bool]] = ("val_accuracy", True)
    preparation: ClassVar[type[Preparation] | None] = SyntheticSpeech

    source: Literal["espeak", "festvox"] = "espeak"
    root: str | None = None  #: folder with the data
    hidden: tuple[Width, ...] = (512, 512, 512, 512, 512)  #: widths of the hidden layers
    activation: Activation = "sigmoid"
    connections: Natural = 15  #: incoming weights of a unit at the start; 0: torch's own dense start
    context: Annotated[int, Bounds(least=0), Bounds(most=1000)] = 4  #: frames on each side, ≥ 0
    batch_size: Count = 1024  #: examples of a mini-batch, ≥ 1
    held_out: Inside = 0.1  #: share of the utterances that is held out, in (0, 1)
    data_seed: Natural = 0  #: of that choice
    train_metrics: bool = False  #: evaluate on all training examples too

    def __post_init__(self) -> None:
        check_bounds(self)

    def model(self) -> nn.Module:
        features, classes = self._shape()
        inputs = (2 * self.context + 1) * features
        model = mlp((inputs, *self.hidden, classes), self.activation)
        if self.connections:
            initialize_sparsely(model, self.connections)
        return model

    def workload(self, model: nn.Module, *, dtype: torch.dtype, device: torch.device) -> SupervisedWorkload:
        corpus = self._corpus()
        if corpus.utterances < 2:
            raise DataError(f"{corpus.utterances} utterance: too few to hold some out; prepare more minutes")
        kept, apart = (
            corpus.of(chosen) for chosen in held_out(corpus.utterances, self.held_out, self.data_seed)
        )
        training, validation = (
            Windows.of(part.normalized(kept), self.context).to(dtype=dtype, device=device)
            for part in (kept, apart)
        )
        return SupervisedWorkload(
            model.to(dtype=dtype, device=device),
            CrossEntropy(),
            training,
            validation,
            measures={"accuracy": correct},
            on_training=self.train_metrics,
        )

    def _corpus(self) -> Corpus:
        if self.source == "festvox":
            return festvox.read(festvox.find(self.root))
        return folder.read(folder.find(self.root))

    def _shape(self) -> tuple[int, int]:
        """Features of a frame, and classes."""
        if self.source == "festvox":
            corpus = self._corpus()
            return corpus.frames.shape[1], len(corpus.classes)
        manifest = folder.read_manifest(folder.find(self.root))
        return manifest.features, len(manifest.classes)
