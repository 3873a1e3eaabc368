"""Frame classification: the task ``speech-frames``, on synthetic speech or on diphones of recorded speech.

This module is imported on every listing, so it imports no torch.
"""

from __future__ import annotations

from typing import Any

from curvlab import hookimpl

api_version = "1.0"


@hookimpl
def curvlab_register(registry: Any) -> None:
    """The task."""
    registry.add(
        "task",
        "speech-frames",
        "curvlab_speech.task:SpeechFrames",
        summary="which part of which phoneme a frame of speech is in, an MLP of five sigmoid layers",
        source="synthetic speech by `curvlab tasks prepare`, or Debian's package festvox-kallpc16k",
    )
