"""Out of memory, said in words: torch and Python raise it as errors of several kinds."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from curvlab.errors import OutOfMemory

#: what torch's ``RuntimeError`` says when an allocation fails, or could not even be asked for
_SIGNS = re.compile(
    r"can't allocate memory|not enough memory|bad_alloc|[Oo]ut of memory|calculation overflowed"
)
_BYTES = re.compile(r"[Tt]ried to allocate ([\d.]+ ?\w+)")


@contextmanager
def memory_in_words() -> Iterator[None]:
    """Inside, a failed allocation becomes ``OutOfMemory``."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _is_lack_of_memory(error):
            raise
        found = _BYTES.search(str(error))
        wanted = f" (it asked for {found.group(1).rstrip('.')})" if found else ""
        raise OutOfMemory(
            f"out of memory: an allocation failed{wanted}; take a smaller batch_size or model, or a method "
            "or structure with less state (`curvlab train CONFIG --dry-run` shows its bytes)"
        ) from error


def _is_lack_of_memory(error: BaseException) -> bool:
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or bool(_SIGNS.search(str(error)))
