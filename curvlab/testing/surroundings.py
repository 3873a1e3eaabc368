"""What code shares without being handed it: global random numbers, the mode of autograd, defaults."""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Surroundings:
    """A snapshot; ``random_changes`` and ``mode_changes`` say what is different now."""

    torch_random: Tensor
    python_random: Any
    numpy_random: Any
    grad: bool
    dtype: torch.dtype
    device: torch.device
    threads: int
    deterministic: bool

    @classmethod
    def now(cls) -> Surroundings:
        """As it is."""
        return cls(
            torch.get_rng_state(),
            random.getstate(),
            _numpy_random(),
            torch.is_grad_enabled(),
            torch.get_default_dtype(),
            torch.get_default_device(),
            torch.get_num_threads(),
            torch.are_deterministic_algorithms_enabled(),
        )

    def random_changes(self) -> list[str]:
        """Global generators that were drawn from or seeded since."""
        now = Surroundings.now()
        wrong = [] if torch.equal(self.torch_random, now.torch_random) else ["torch's global generator"]
        wrong += [] if self.python_random == now.python_random else ["Python's random module"]
        wrong += [] if self.numpy_random == now.numpy_random else ["numpy's global generator"]
        return wrong

    def mode_changes(self) -> list[str]:
        """Modes and defaults of torch that were left another way."""
        now = Surroundings.now()
        names = {
            "grad": "whether autograd records",
            "dtype": "torch's default dtype",
            "device": "torch's default device",
            "threads": "torch's number of threads",
            "deterministic": "torch's deterministic algorithms",
        }
        return [words for name, words in names.items() if getattr(self, name) != getattr(now, name)]

    def restore(self) -> None:
        """Put everything back; what has not changed is not touched."""
        random.setstate(self.python_random)
        if self.numpy_random is not None:
            sys.modules["numpy"].random.set_state(self.numpy_random)
        torch.set_rng_state(self.torch_random)
        if self.mode_changes():
            torch.set_grad_enabled(self.grad)
            torch.set_default_dtype(self.dtype)
            torch.set_default_device(self.device)
            torch.set_num_threads(self.threads)
            torch.use_deterministic_algorithms(self.deterministic)


def _numpy_random() -> Any:
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return None
    name, key, *rest = numpy.random.get_state()
    return (name, tuple(key.tolist()), *rest)  # plain numbers compare at once; a repr of them takes 15 ms
