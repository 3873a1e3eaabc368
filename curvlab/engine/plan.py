"""A run before it starts: every part built, every setting known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from curvlab.engine.method import Method
from curvlab.engine.owners import Placement
from curvlab.model.readers.shipped import SHIPPED
from curvlab.protocols.average import Average
from curvlab.protocols.backend import Backend
from curvlab.protocols.bounds import Bounds, Count, Natural, Positive
from curvlab.protocols.callback import Callback
from curvlab.protocols.reader import LayerReader
from curvlab.protocols.report import Reporter
from curvlab.protocols.sampler import Sampler
from curvlab.protocols.task import Task

#: no machine has more cores, and torch starts as many threads as it is asked for
MOST_THREADS = 1024
Threads = Annotated[int, Bounds(least=1, most=MOST_THREADS)]


@dataclass(frozen=True)
class RunSettings:
    """The ``[run]`` table.  Exactly one of ``epochs``, ``steps`` and ``seconds`` is the budget."""

    name: str = "run"  #: first part of the run folder's name
    seed: Natural = 0  #: of the initial parameters, the sampler and sampled labels
    epochs: Positive | None = None  #: passes over the training examples
    steps: Count | None = None  #: optimizer steps
    seconds: Positive | None = None  #: seconds of training, evaluation and checkpoints not counted
    log_every: Count = 10  #: steps between lines of metrics.jsonl
    eval_every: Count | None = None  #: steps between evaluations; once an epoch if not given
    checkpoint_every: Count | None = None  #: steps between checkpoints; once an epoch if not given
    keep: Count = 2  #: newest checkpoints kept
    threads: Threads | None = None  #: torch's thread count, at most 1024; torch's own choice if not given
    #: how several processes share the method's work: "owner" holds a block's state in one of them,
    #: "replicate" in all; "auto" is "owner" where the method treats every block by itself
    placement: Placement = "auto"


@dataclass(frozen=True)
class Plan:
    """Everything a run is made from.

    ``method_name`` is what the method is called in messages.  ``resolved`` is the configuration
    with every value spelled out, as plain data for ``resolved.toml``; ``given`` is the text of the
    configuration as the user gave it; ``provenance`` says, per part in use, which distribution and
    version it came from, for the manifest.  ``readers`` are what layers are read by, in order.  ``callbacks``
    work around the method, by the names that the configuration gives them.  ``average`` of the weights is
    evaluated beside them.
    """

    run: RunSettings
    task: Task
    method: Method
    method_name: str
    sampler: Sampler[Any]
    backend: Backend
    callbacks: Mapping[str, Callback[Any]] = field(default_factory=dict)
    average: Average[Any] | None = None
    reporters: tuple[Reporter, ...] = ()
    readers: tuple[LayerReader, ...] = SHIPPED
    resolved: Mapping[str, Any] = field(default_factory=dict)
    given: str = ""
    provenance: Mapping[str, str] = field(default_factory=dict)
