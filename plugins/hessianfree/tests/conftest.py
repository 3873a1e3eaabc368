"""A folder to train in, with the plugins that are used here."""

from __future__ import annotations

from pathlib import Path

import pytest

PLUGINS = Path(__file__).parents[2]


@pytest.fixture
def project(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The working folder; the repository's plugins are found whether or not they are installed."""
    names = ("firstorder", "structures", "hessianfree", "kfac", "lbfgs")
    for name in names:
        metadata = tmp_path / "site" / f"curvlab_{name}-0.1.0.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: curvlab-{name}\nVersion: 0.1.0\n")
        (metadata / "entry_points.txt").write_text(f"[curvlab]\n{name} = curvlab_{name}\n")
        monkeypatch.syspath_prepend(PLUGINS / name)
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setenv("CURVLAB_PLUGINS", ",".join(names))
    monkeypatch.chdir(tmp_path)
    return tmp_path
