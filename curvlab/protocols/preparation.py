"""What makes a task's data before any run: a frozen recipe whose fields are options of the command."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path


class Preparation(ABC):
    """A frozen dataclass; ``curvlab tasks prepare NAME --to DIR`` sets its fields by ``--field value``.

    The class's docstring is what ``--help`` prints.  Equal fields make equal data.  No field may be called
    ``to`` or ``help``: the command has options of these names.
    """

    @abstractmethod
    def run(self, to: Path, tell: Callable[[str], None]) -> None:
        """Make the data in folder ``to``, which may not exist yet; ``tell`` takes lines for the user.

        Overwrites nothing: raises ``DataError`` if ``to`` holds anything but these very data, and if
        something that it needs is not installed.
        """
