"""Writing reference solutions to files: ``curvlab tasks prepare NAME --to DIR``."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from curvlab.errors import DataError
from curvlab.protocols.bounds import check_bounds
from curvlab.protocols.preparation import Preparation
from curvlab_pinn.references import allen_cahn, kdv
from curvlab_pinn.references.burgers import NU, Viscosity, burgers_solution
from curvlab_pinn.references.solution import Solution


class Reference(Preparation):
    """A frozen dataclass of an equation's settings, which solves it, and writes and reads the solution."""

    equation: ClassVar[str]  #: its name, and the file's

    @abstractmethod
    def settings(self) -> Mapping[str, float]:
        """The equation's coefficients, as the solution's file names them."""

    @abstractmethod
    def solved(self, tell: Callable[[str], None] | None = None) -> Solution:
        """The solution, computed now; ``tell`` takes lines of progress."""

    def solution(self, root: str | None = None) -> Solution:
        """The solution in folder ``root``; without a folder it is computed now.

        Raises ``DataError`` if there is no file of this equation and these settings.
        """
        return self.solved() if root is None else self.read(Path(root).expanduser())

    def read(self, folder: Path) -> Solution:
        """The solution that ``run`` wrote; raises ``DataError`` if it is missing, damaged or another one."""
        return Solution.load(self._file(folder), self.equation, self.settings())

    def run(self, to: Path, tell: Callable[[str], None]) -> None:
        file = self._file(to)
        if file.is_file():
            self.read(to)
            tell(f"{file} holds this solution already")
            return
        if to.exists() and not (to.is_dir() and not any(to.iterdir())):
            raise DataError(
                f"{to} is no empty folder and holds no {file.name}; name another folder with --to"
            )
        before = time.monotonic()
        found = self.solved(tell)
        try:
            to.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{to}: cannot be made: {error.strerror or error}") from error
        found.save(file)
        m, n = found.u.shape
        tell(f"{file}: {m} times by {n} points, in {time.monotonic() - before:.1f} s")

    def _file(self, folder: Path) -> Path:
        return folder / f"{self.equation}.safetensors"


@dataclass(frozen=True)
class BurgersReference(Reference):
    """Solve Burgers' equation u_t + u u_x = nu u_xx from u = -sin(pi x), and write the solution to a file.

    It takes under a second at the default viscosity; tasks can also solve it when they start.
    """

    equation: ClassVar[str] = "burgers"

    nu: Viscosity = NU  #: viscosity, in [0.001, 1]

    def __post_init__(self) -> None:
        check_bounds(self)

    def settings(self) -> Mapping[str, float]:
        return {"nu": self.nu}

    def solved(self, tell: Callable[[str], None] | None = None) -> Solution:
        return burgers_solution(self.nu, tell=tell)


@dataclass(frozen=True)
class AllenCahnReference(Reference):
    """Solve the Allen-Cahn equation u_t = 0.0001 u_xx + 5 u - 5 u^3, and write the solution to a file.

    It takes about two seconds; tasks can also solve it when they start.
    """

    equation: ClassVar[str] = "allen-cahn"

    def settings(self) -> Mapping[str, float]:
        return allen_cahn.SETTINGS

    def solved(self, tell: Callable[[str], None] | None = None) -> Solution:
        return allen_cahn.allen_cahn_solution(tell=tell)


@dataclass(frozen=True)
class KdVReference(Reference):
    """Solve the Korteweg-de Vries equation u_t + u u_x + 0.022^2 u_xxx = 0, and write the solution to a file.

    It takes about two seconds; tasks can also solve it when they start.
    """

    equation: ClassVar[str] = "kdv"

    def settings(self) -> Mapping[str, float]:
        return kdv.SETTINGS

    def solved(self, tell: Callable[[str], None] | None = None) -> Solution:
        return kdv.kdv_solution(tell=tell)
