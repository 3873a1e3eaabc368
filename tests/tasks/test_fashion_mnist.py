"""Fashion-MNIST: where it is looked for, and what it is when it is there."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from curvlab.errors import DataError
from curvlab.protocols.sampler import Draw
from curvlab.tasks import fashion_mnist
from curvlab.tasks.fashion_autoencoder import FashionAutoencoder
from curvlab.tasks.fashion_mnist import DEBIAN, FILES, FashionMnist, find_files, labeled

CPU = torch.device("cpu")

installed = pytest.mark.skipif(
    not DEBIAN.is_dir(),
    reason="needs Debian's dataset-fashion-mnist: apt-get install dataset-fashion-mnist",
)


def write(folder: Path, n: int = 4, label: int = 9) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for part in ("train", "t10k"):
        images = struct.pack(">HBBIII", 0, 8, 3, n, 28, 28) + bytes(n * 784)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(images)
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(
            struct.pack(">HBBI", 0, 8, 1, n) + bytes([label] * n)
        )
    return folder


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CURVLAB_DATA", raising=False)


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "debian")
    return tmp_path


def test_root_comes_before_the_environment_before_debian(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    debian = write(nowhere / "debian")
    assert find_files(None) == debian
    environment = write(nowhere / "data")
    monkeypatch.setenv("CURVLAB_DATA", str(environment))
    assert find_files(None) == environment
    root = write(nowhere / "root")
    assert find_files(str(root)) == root


def test_the_environments_folder_may_hold_several_data_sets(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = write(nowhere / "data" / "fashion-mnist")
    monkeypatch.setenv("CURVLAB_DATA", str(nowhere / "data"))
    assert find_files(None) == inner


def test_an_environment_without_the_files_leads_on_to_debian(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    debian = write(nowhere / "debian")
    monkeypatch.setenv("CURVLAB_DATA", str(nowhere))
    assert find_files(None) == debian


def test_a_root_without_the_files_is_an_error_even_if_they_are_elsewhere(nowhere: Path) -> None:
    write(nowhere / "debian")
    (write(nowhere / "root") / FILES[1]).unlink()
    with pytest.raises(DataError, match="train-labels-idx1-ubyte") as caught:
        FashionMnist(root=str(nowhere / "root")).workload(
            torch.nn.Linear(1, 1), dtype=torch.float32, device=CPU
        )
    assert caught.value.exit_code == 3


def test_without_the_files_the_error_says_how_to_get_them(nowhere: Path) -> None:
    with pytest.raises(DataError, match="apt-get install dataset-fashion-mnist") as caught:
        FashionAutoencoder().workload(torch.nn.Linear(1, 1), dtype=torch.float32, device=CPU)
    assert "CURVLAB_DATA" in str(caught.value)
    assert str(nowhere / "debian") in str(caught.value)


def test_gzipped_files_are_taken_before_plain_ones_of_the_same_name(nowhere: Path) -> None:
    folder = write(nowhere / "root")
    (folder / f"{FILES[0]}.gz").write_bytes(b"\x1f\x8bdamaged")
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz"):
        labeled(folder, "train")


def test_more_labels_than_images_are_refused(nowhere: Path) -> None:
    folder = write(nowhere / "root")
    (folder / "train-labels-idx1-ubyte").write_bytes(struct.pack(">HBBI", 0, 8, 1, 5) + bytes(5))
    with pytest.raises(DataError, match=r"shape \[5\], expected \[4\]"):
        labeled(folder, "train")


def test_a_label_beyond_the_classes_is_refused(nowhere: Path) -> None:
    with pytest.raises(DataError, match="label 10 in train, expected 0 to 9"):
        labeled(write(nowhere / "root", label=10), "train")


@installed
def test_the_real_files_are_sixty_thousand_and_ten_thousand_images_in_ten_even_classes() -> None:
    for part, n in (("train", 60_000), ("t10k", 10_000)):
        examples = labeled(find_files(None), part)
        assert examples.inputs.shape == (n, 784)
        assert (float(examples.inputs.min()), float(examples.inputs.max())) == (0.0, 1.0)
        assert np.bincount(examples.targets.numpy()).tolist() == [n // 10] * 10
    # of all 7,840,000 test pixels; a reader that shifts or swaps bytes gets another mean
    assert float(examples.inputs.double().mean()) == pytest.approx(0.2868, abs=5e-4)


@installed
def test_an_mlp_learns_the_real_images() -> None:
    task = FashionMnist(hidden=(32,))
    torch.manual_seed(0)
    work = task.workload(task.model(), dtype=torch.float32, device=CPU)
    optimizer = torch.optim.Adam(work.model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(150):
        chosen = torch.randint(0, work.size, (task.batch_size,), generator=generator)
        optimizer.step(work.objective(Draw(chosen, chosen, chosen)))
    assert work.metrics()["val_accuracy"] > 0.75
