"""The table of families in the README is what the registry holds and what the families say."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch

from curvlab.config import build_part
from curvlab.protocols.structure import Family, Gram, Group
from tests.limits.registered import registry

README = Path(__file__).parents[1] / "README.md"


def rows() -> list[tuple[str, str, str, str, str]]:
    """Name, scalars, flops, Gram and Group of every family that is listed."""
    found = []
    for line in README.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 8 and cells[0].startswith("`") and "=" not in cells[0]:
            names = re.findall(r"`([a-z-]+)`", cells[0])
            found += [(name, cells[4].strip("`"), cells[5].strip("`"), cells[6], cells[7]) for name in names]
    return found


def family(name: str) -> Family:
    return build_part(registry(), Family, name, {})


def evaluated(formula: str, name: str, d: int) -> float:
    """A formula of d and of the family's settings, with their defaults."""
    return float(eval(formula, {"log2": math.log2, "d": d, **vars(family(name))}))


def test_every_family_is_listed_once() -> None:
    listed = [name for name, *_ in rows()]
    assert sorted(listed) == sorted({entry.name for entry in registry().parts("structure")})


@pytest.mark.parametrize(("name", "scalars", "flops", "gram", "group"), rows())
def test_capabilities_are_those_listed(name: str, scalars: str, flops: str, gram: str, group: str) -> None:
    said = {"yes": True, "no": False, "if both are": True}
    assert isinstance(family(name), Gram) == said[gram]
    assert isinstance(family(name), Group) == said[group]


@pytest.mark.parametrize(("name", "scalars", "flops", "gram", "group"), [r for r in rows() if r[0] != "auto"])
@pytest.mark.parametrize("d", [100, 785, 2000])
def test_scalars_and_flops_are_those_listed(
    name: str, scalars: str, flops: str, gram: str, group: str, d: int
) -> None:
    """Scalars exactly; flops, which depend on tiles and on lengths of transforms, within a quarter."""
    part = family(name)
    assert part.scalars(d) == evaluated(scalars, name, d)
    if d > 500:
        told = part.zeros(d, like=torch.zeros(1)).flops(1)
        assert 0.8 < told / evaluated(flops, name, d) < 1.25
