"""JSON that every reader takes, and the reporter of ``--json``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, TextIO

from curvlab.protocols.report import Reporter


class Document(Reporter):
    """Prints the run's summary as one document on ``stream``, whatever way the run ended."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def finished(self, summary: Mapping[str, Any]) -> None:
        print(as_json(summary, indent=2), file=self.stream, flush=True)


def as_json(value: Any, indent: int | None = None) -> str:
    """``value`` as JSON; NaN and infinities, for which JSON has no word, become ``null``.

    Bytes of a path that are no UTF-8 become escapes that Python reads back.
    """
    text = json.dumps(_finite(value), indent=indent, allow_nan=False, default=str, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace").decode()


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return value
