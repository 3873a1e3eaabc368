"""The digits: the split, and what is said where scikit-learn is missing."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from curvlab.errors import DataError
from curvlab.tasks.digits import Digits, load, stratified


def test_shapes_and_scale() -> None:
    pixels, classes = load()
    assert pixels.shape == (1797, 64)
    assert (pixels.min(), pixels.max()) == (0.0, 1.0)
    assert sorted(set(classes.tolist())) == list(range(10))


@pytest.mark.parametrize("seed", [0, 1])
def test_the_split_takes_a_fifth_of_every_class_and_nothing_twice(seed: int) -> None:
    _, classes = load()
    held_out = stratified(classes, seed)
    for label in range(10):
        members = classes == label
        assert int(held_out[members].sum()) == int(members.sum()) // 5
    task = Digits(data_seed=seed)
    work = task.workload(task.model(), dtype=torch.float64, device=torch.device("cpu"))
    assert len(work.training) == int((~held_out).sum())
    assert len(work.training) + len(work.validation) == len(classes)


def test_no_held_out_image_is_trained_on() -> None:
    pixels, classes = load()
    held_out = stratified(classes, 0)
    rows = {row.tobytes() for row in pixels[~held_out]}
    assert not rows & {row.tobytes() for row in pixels[held_out]}


def test_the_split_is_the_seeds() -> None:
    _, classes = load()
    assert np.array_equal(stratified(classes, 4), stratified(classes, 4))
    assert not np.array_equal(stratified(classes, 4), stratified(classes, 5))


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match=r'pip install "curvlab\[digits\]"') as caught:
        load()
    assert caught.value.exit_code == 3
