"""A task's pictures, drawn: fields in colors, curves, tiles of images."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from curvlab.plotting.canvas import figure, grid, save, shown, style_of
from curvlab.protocols.picture import Curve, Field, Images, Picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

#: a field has two signs if the lesser end of its range is more than this part of the greater
_TWO_SIDED = 0.25
#: sides of a field may differ by this factor before they are drawn equally long
_OBLONG = 3.0
#: inches of one image's side, and of the space beside rows for their names
_TILE, _NAMES = 0.62, 1.3


def file_names(pictures: Iterable[Picture]) -> list[str]:
    """A name for the file of each picture, after its title, without a suffix; all are different."""
    found: list[str] = []
    for picture in pictures:
        base = re.sub(r"[^\w]+", "-", picture.title.lower()).strip("-_")[:60] or "picture"
        name, count = base, 1
        while name in found:
            count += 1
            name = f"{base}-{count}"
        found.append(name)
    return found


def draw_picture(picture: Picture, note: str, path: Path) -> None:
    """Draw one picture, with ``note`` in small letters below; raises ``RunFolderError``."""
    content = picture.content
    with figure(*_size(content)) as drawn:
        if isinstance(content, Field):
            _draw_field(drawn, content, picture)
        elif isinstance(content, Curve):
            _draw_curve(drawn, content, picture)
        else:
            _draw_images(drawn, content)
        drawn.suptitle(shown(picture.title))
        drawn.supxlabel(shown(note), fontsize=8, color="#777777")
        save(drawn, path)


def _size(content: Field | Curve | Images) -> tuple[float, float]:
    """Width and height of the figure in inches."""
    if isinstance(content, Field):
        return 3.3 * len(content.values) + 1.3, 4.1
    if isinstance(content, Curve):
        return 6.0, 3.9
    count, height, width = next(iter(content.values.values())).shape
    return count * _TILE + _NAMES, len(content.values) * _TILE * height / width + 0.75


def _draw_field(drawn: Figure, field: Field, picture: Picture) -> None:
    x, y = _array(field.x), _array(field.y)
    values = {name: _array(found) for name, found in field.values.items()}
    colors = _colors(np.concatenate([found.ravel() for found in values.values()]))
    panels = drawn.subplots(1, len(values), squeeze=False, sharey=True)[0]
    for panel, (name, found) in zip(panels, values.items(), strict=True):
        cells = np.ma.masked_invalid(found.T)
        mesh = panel.pcolormesh(x, y, cells, shading="nearest", rasterized=True, **colors)
        if name != picture.title:
            panel.set_title(shown(name))
        panel.set_xlabel(shown(picture.axes[0]))
        width, height = float(np.ptp(x)), float(np.ptp(y))
        if width and height and 1 / _OBLONG <= height / width <= _OBLONG:
            panel.set_aspect("equal")
    panels[0].set_ylabel(shown(picture.axes[1]))
    drawn.colorbar(mesh, ax=panels, shrink=0.9, pad=0.02).outline.set_visible(False)


def _colors(values: NDArray[np.float64]) -> dict[str, Any]:
    """One scale for all values: diverging around 0 if both signs matter."""
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    ends = sorted((abs(low), abs(high)))
    if low < 0 < high and ends[0] > _TWO_SIDED * ends[1]:
        return {"cmap": "RdBu_r", "vmin": -ends[1], "vmax": ends[1]}
    return {"cmap": "viridis", "vmin": low, "vmax": high}


def _draw_curve(drawn: Figure, curve: Curve, picture: Picture) -> None:
    x, axes = _array(curve.x), drawn.subplots()
    lines = []
    for k, found in enumerate(curve.values.values()):
        dashes = "--" if k else "-"  # curves that agree are both seen
        lines += axes.plot(x, _array(found), color=style_of(k)["color"], linestyle=dashes, linewidth=1.8)
    if list(curve.values) != [picture.title]:
        axes.legend(lines, [shown(name) for name in curve.values])
    axes.set_xlabel(shown(picture.axes[0]))
    axes.set_ylabel(shown(picture.axes[1]))
    axes.margins(x=0.01)
    grid(axes)


def _draw_images(drawn: Figure, images: Images) -> None:
    rows = [_array(found) for found in images.values.values()]
    count, height, width = rows[0].shape
    gap = max(height, width) // 14 + 1
    sheet = np.ones((len(rows) * (height + gap) - gap, count * (width + gap) - gap))
    for i, row in enumerate(rows):
        for k, image in enumerate(row):
            top, left = i * (height + gap), k * (width + gap)
            sheet[top : top + height, left : left + width] = np.nan_to_num(image)
    axes = drawn.subplots()
    axes.imshow(sheet, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    centers = [i * (height + gap) + (height - 1) / 2 for i in range(len(rows))]
    axes.set_yticks(centers, [shown(name) for name in images.values])
    axes.set_xticks([])
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _array(values: Tensor) -> NDArray[np.float64]:
    """The numbers of a tensor of any dtype, on any device."""
    return np.array(values.detach().tolist(), dtype=float)
