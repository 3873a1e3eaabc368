"""Making the data of an operator's task: when the task is made, or before, to a file."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

from curvlab.errors import DataError
from curvlab.protocols.bounds import Count, Natural, check_bounds
from curvlab.protocols.preparation import Preparation
from curvlab_operators.pairs import Pairs


@dataclass(frozen=True, kw_only=True)
class OperatorData(Preparation):
    """A frozen dataclass of an equation's settings, which draws and solves examples, and keeps them.

    Equal settings make equal data.
    """

    equation: ClassVar[str]  #: the task's name, and the file's

    grid: Count  #: points on each axis
    size: Count = 200  #: training examples
    validation_size: Count = 50  #: validation examples
    data_seed: Natural = 0  #: of the examples

    def __post_init__(self) -> None:
        check_bounds(self)

    @abstractmethod
    def made(self) -> Pairs:
        """The examples, drawn and solved now."""

    def pairs(self, root: str | None = None) -> Pairs:
        """The examples in folder ``root``; without a folder they are made now.

        Raises ``DataError`` if there is no file of this equation and these settings.
        """
        return self.made() if root is None else self.read(Path(root).expanduser())

    def read(self, folder: Path) -> Pairs:
        """The examples that ``run`` wrote; raises ``DataError`` if they are missing, damaged or others."""
        return Pairs.load(self._file(folder), self.equation, asdict(self))

    def run(self, to: Path, tell: Callable[[str], None]) -> None:
        file = self._file(to)
        if file.is_file():
            self.read(to)
            tell(f"{file} holds these data already")
            return
        if to.exists() and not (to.is_dir() and not any(to.iterdir())):
            raise DataError(
                f"{to} is no empty folder and holds no {file.name}; name another folder with --to"
            )
        before = time.monotonic()
        found = self.made()
        try:
            to.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{to}: cannot be made: {error.strerror or error}") from error
        found.save(file, self.equation, asdict(self))
        tell(f"{file}: {len(found.inputs):,} examples, in {time.monotonic() - before:.1f} s")

    def _file(self, folder: Path) -> Path:
        return folder / f"{self.equation}.safetensors"
