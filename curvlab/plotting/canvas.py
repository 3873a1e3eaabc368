"""Figures as files: matplotlib, its style, and the bytes of a PNG or an SVG."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curvlab.errors import CurvlabError, printable, shortened
from curvlab.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: what the name of a picture's file may end in
SUFFIXES = (".png", ".svg")

#: distinguished by color-blind readers (Okabe and Ito); the yellow is too pale for lines
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#444444")
#: of the first curves as many as there are colors, of the next ones, and so on
DASHES = ("-", "--", ":", "-.")

#: the most characters of a name
_LONGEST = 70

_STYLE: Any = {  # the type of its keys is matplotlib's own, from 3.11 on
    "font.size": 10,
    "axes.titlesize": 11,
    "figure.titlesize": 12,
    "figure.constrained_layout.w_pad": 0.1,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "svg.hashsalt": "curvlab",
    "image.cmap": "viridis",
}


def require_matplotlib() -> None:
    """Raise ``CurvlabError`` that says how to get matplotlib, if it cannot be imported."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise CurvlabError(
            f"curvlab plot draws with matplotlib, which cannot be imported ({error}); "
            'run pip install "curvlab[plot]"'
        ) from error


@contextmanager
def figure(width: float, height: float) -> Iterator[Figure]:
    """An empty figure of this size in inches, in our style whatever the user's own settings are."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # a name in other letters
        yield Figure(figsize=(width, height), layout="constrained", facecolor="white")


def save(drawn: Figure, path: Path) -> None:
    """Write a figure in one move, as its suffix says; raises ``RunFolderError``."""
    data = io.BytesIO()
    kind = path.suffix.lower().removeprefix(".")
    drawn.savefig(data, format=kind, dpi=160, metadata={"Date": None} if kind == "svg" else None)
    write_atomically(path, data.getvalue())


def style_of(index: int) -> dict[str, str]:
    """Color and dashes of the curve number ``index``."""
    return {
        "color": COLORS[index % len(COLORS)],
        "linestyle": DASHES[index // len(COLORS) % len(DASHES)],
    }


def shown(name: str) -> str:
    """A user's text as it is: no formula, and no label that matplotlib leaves out."""
    text = shortened(printable(name).replace("\n", " "), _LONGEST).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def grid(axes: Axes) -> None:
    """Pale lines behind the curves."""
    axes.grid(True)
    axes.tick_params(color="#999999", labelcolor="#333333")
