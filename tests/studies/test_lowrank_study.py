"""The study of low-rank inverses, at toy sizes."""

from __future__ import annotations

import pytest

from curvlab.tasks.fashion_autoencoder import FashionAutoencoder
from curvlab.tasks.fashion_convnet import FashionConvnet
from tests.studies.conftest import Script


def test_its_tables_have_a_row_for_everything_they_compare(
    script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    study = script("lowrank")
    sizes = study.Sizes(
        convnet=FashionConvnet(channels=(8, 8, 4), hidden=8, batch_size=16),
        autoencoder=FashionAutoencoder(hidden=(20,), code=4, batch_size=16),
        batches=12,
        steps=3,
        rank=5,
        dimensions=(256, 512, 1024),
        repeats=1,
    )
    assert study.main([], sizes) == 0
    inverse, flops, train, kbfgs = capsys.readouterr().out.split("## ")[1:]
    rows = [line.split("|")[1:-1] for line in inverse.splitlines() if line.startswith("| `")]
    errors = {(name.strip(), rest.strip()): float(error.split("%")[0]) for name, rest, *_, error in rows}
    assert len(errors) == 3 * 3 + 3
    for name in ("`rs-kfac`, 3 rounds", "`b-r-kfac`", "`b-r-c-kfac`", "`b-kfac`"):
        assert 0.0 < errors[name, "mean"] < 20.0
    counted = [[float(c) for c in line.split("|")[1:-1]] for line in flops.splitlines()[4:7]]
    assert [row[0] for row in counted] == [256, 512, 1024]
    assert all(over <= wide for _, _, over, wide in counted)
    assert [line.count("| `") for line in (train, kbfgs)] == [6, 4]


def test_a_table_that_is_not_there_is_refused(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        script("lowrank").main(["--only", "inverses"])
    assert "invalid choice" in capsys.readouterr().err
