"""One figure of metrics: a panel for each, a curve for each run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from curvlab.plotting.canvas import figure, grid, save, shown, style_of
from curvlab.plotting.recorded import Over, Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

#: values within this factor of one another look the same on a linear axis
_NARROW = 2.0
#: curves of so many points get markers
_FEW = 40
#: curves of more points than this are drawn pale, under the medians of blocks of neighbors
_MANY = 300
#: blocks of a curve
_BLOCKS = 100
#: in a vector graphic, curves of more points than this are pixels: each point takes some twenty bytes
_VECTORS = 5000

_TITLES: Mapping[str, str] = {"loss": "training loss"}
_WORDS: Mapping[Over, str] = {
    "steps": "steps",
    "seconds": "seconds of training",
    "examples": "training examples seen",
}


@dataclass(frozen=True)
class Panel:
    """One metric of several runs; ``linear`` asks for a linear axis whatever the values are."""

    metric: str
    series: Sequence[Series]
    linear: bool = False


def draw_curves(panels: Sequence[Panel], over: Over, title: str, labels: Sequence[str], path: Path) -> None:
    """Draw panels side by side, each run of ``labels`` in one style; raises ``RunFolderError``."""
    several = len(labels) > 1
    rows = -(-len(labels) // 2) if several else 0
    with figure(max(5.0 * len(panels), 6.0), 3.7 + 0.22 * rows) as drawn:
        styles = {label: style_of(k) for k, label in enumerate(labels)}
        lines: dict[str, Line2D] = {}
        for axes, panel in zip(drawn.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            _draw(axes, panel, over, styles, lines)
        if title:
            drawn.suptitle(shown(title))
        if several:
            names = [label for label in labels if label in lines]
            drawn.legend(
                [lines[name] for name in names],
                [shown(name) for name in names],
                loc="outside lower center",
                ncols=min(2, len(names)),
            )
        save(drawn, path)


def _draw(
    axes: Axes, panel: Panel, over: Over, styles: Mapping[str, Mapping[str, str]], lines: dict[str, Line2D]
) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    sizes = set()
    for series in panel.series:
        color, dashes = styles[series.label]["color"], styles[series.label]["linestyle"]
        drawn = series
        if len(series.x) > _MANY:
            pixels = len(series.x) > _VECTORS
            axes.plot(series.x, series.y, color=color, alpha=0.25, linewidth=0.7, rasterized=pixels)
            drawn, size = medians(series)
            sizes.add(size)
        marker = "o" if len(drawn.x) <= _FEW else ""
        (line,) = axes.plot(
            drawn.x, drawn.y, color=color, linestyle=dashes, linewidth=1.7, marker=marker, markersize=3.5
        )
        lines.setdefault(series.label, line)
    axes.set_title(shown(_TITLES.get(panel.metric, panel.metric)), loc="left")
    if sizes:
        counts = "–".join(str(size) for size in sorted({min(sizes), max(sizes)}))
        axes.set_title(f"median of {counts} values; pale: all", loc="right", fontsize=8, color="#777777")
    axes.set_xlabel(_WORDS[over])
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=over != "seconds"))
    axes.margins(x=0.02)
    if max((float(s.x.max()) for s in panel.series if len(s.x)), default=0.0) >= 1e4:
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    grid(axes)
    values = np.concatenate([s.y[np.isfinite(s.y)] for s in panel.series])
    if not panel.linear and is_logarithmic(values):
        axes.set_yscale("log")
        _tick_logarithmically(axes, float(values.max() / values.min()))


def is_logarithmic(values: NDArray[np.float64]) -> bool:
    """Whether values are drawn on a logarithmic axis: all are positive and they span more than a factor."""
    return len(values) > 0 and bool(values.min() > 0 and values.max() > _NARROW * values.min())


def medians(series: Series) -> tuple[Series, int]:
    """Medians of blocks of neighboring values, NaN passed over, and how many values a block has at most."""
    blocks = [b for b in np.array_split(np.arange(len(series.x)), _BLOCKS) if len(b)]
    x = np.array([series.x[block].mean() for block in blocks])
    y = np.array([_median(series.y[block]) for block in blocks])
    return Series(series.label, x, y), max(map(len, blocks))


def _median(values: NDArray[np.float64]) -> float:
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else math.nan


def _tick_logarithmically(axes: Axes, factor: float) -> None:
    """Plain numbers where few powers of ten are in sight."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    if factor >= 1e3:
        axes.yaxis.set_minor_formatter(NullFormatter())
        return
    steps = tuple(range(1, 10)) if factor < 5 else (1, 2, 5) if factor < 100 else (1, 3)
    axes.yaxis.set_major_locator(LogLocator(subs=steps))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
