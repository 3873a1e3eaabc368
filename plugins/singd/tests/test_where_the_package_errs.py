"""Where the public package ``singd`` (0.0.5) is wrong: the right law, kept here and broken there.

Each test shows both, so that it also says when the package has been mended.
"""

from __future__ import annotations

import copy
import io
import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from singd.optim.optimizer import SINGD
from singd.structures.hierarchical import Hierarchical15_15Matrix
from torch import Tensor, nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from curvlab.config import build_part
from curvlab.engine.optimizer import CurvatureOptimizer
from curvlab.protocols.structure import Family, Group, NaiveFallback
from curvlab.structures.dense import Dense
from curvlab.testing.asserts import assert_close
from plugins.singd.tests.bare import matrices, optimizer, singd, theta
from plugins.singd.tests.two_ranks import symmetric
from tests.limits.registered import families, registry

pytestmark = pytest.mark.filterwarnings("ignore:Calling naive implementation:UserWarning")

BATCH = 16
BETA1, DAMPING, LR = 0.05, 1e-2, 0.05


def network(dtype: torch.dtype = torch.float64) -> nn.Module:
    """No dimension above 30, the size of the package's blocks."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)


def batch(k: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(k)
    return torch.randn(BATCH, 6, generator=g, dtype=torch.float64).to(dtype), torch.randint(
        0, 3, (BATCH,), generator=g
    )


def train(model: nn.Module, opt: torch.optim.Optimizer, steps: range, parts: int = 1) -> Tensor:
    """θ after these steps of a plain loop, each batch in ``parts`` equal ones whose losses are shared out."""
    dtype = next(model.parameters()).dtype
    for k in steps:
        opt.zero_grad()
        for x, y in zip(*(t.chunk(parts) for t in batch(k, dtype)), strict=True):
            (nn.functional.cross_entropy(model(x), y) / parts).backward()
        opt.step()
    return theta(model)


def theirs(model: nn.Module, structure: str = "dense", **settings: Any) -> SINGD:
    settings = {"alpha1": 0.5, "T": 1, **settings}
    pair = (structure, structure)
    return SINGD(model, lr=LR, momentum=0.0, damping=DAMPING, lr_cov=BETA1, structures=pair, **settings)


def ours(model: nn.Module, family: Family | None = None, **settings: Any) -> CurvatureOptimizer:
    return optimizer(model, singd(family, lr=BETA1, **settings), lr=LR, damping=DAMPING)


def distance(a: Tensor, b: Tensor) -> float:
    """Relative to the way that b has travelled."""
    return float((a - b).norm() / (b - theta(network(b.dtype))).norm())


def test_one_block_as_large_as_the_matrix_is_the_dense_matrix() -> None:
    """The package takes its blocks for symmetric and never transposes them, which they stay for two steps."""
    block = build_part(registry(), Family, "block-diagonal", {"size": 30})
    found, dense = (network() for _ in range(2))
    a, b = (train(m, ours(m, f), range(30)) for m, f in ((found, block), (dense, Dense())))
    assert_close(a, b, dimension=9, condition=100.0)

    found, dense = (network(torch.float32) for _ in range(2))
    a = train(found, theirs(found, "block30diagonal"), range(30))
    b = train(dense, theirs(dense, "dense"), range(30))
    assert distance(a, b) > 1e-2


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("adaptive", [True, False], ids=["INGD", "IKFAC"])
def test_accumulated_batches_are_one_batch(adaptive: bool, parts: int) -> None:
    """The package adds up Hs over backward passes: n times H_K and 1/n times H_C.

    INGD's products of the two do not notice; IKFAC, where each stands alone, does.
    """
    alpha1 = 0.5 if adaptive else 0.0
    whole, cut = (network() for _ in range(2))
    opts = [ours(m, momentum=alpha1, coupling="mean" if adaptive else "none") for m in (whole, cut)]
    b, a = train(whole, opts[0], range(10)), train(cut, opts[1], range(10), parts)
    assert distance(a, b) < 1e-12
    for name, K in matrices(opts[0]).items():
        assert_close(matrices(opts[1])[name], K, dimension=BATCH, condition=10.0, what=name)

    whole, cut = (network() for _ in range(2))
    pair = [theirs(m, alpha1=alpha1, kfac_like=not adaptive) for m in (whole, cut)]
    b, a = train(whole, pair[0], range(10)), train(cut, pair[1], range(10), parts)
    if adaptive:
        assert distance(a, b) < 1e-12
    else:
        assert distance(a, b) > 1e-2
        right, wrong = (float(p.Ks["0"].to_dense().diagonal().mean()) for p in pair)
        assert abs(wrong - right) > 0.05 * right


def by_file(old: torch.optim.Optimizer, new: torch.optim.Optimizer) -> None:
    """As torch saves and, unless told otherwise, loads: without running anything from the file."""
    file = io.BytesIO()
    torch.save(old.state_dict(), file)
    file.seek(0)
    new.load_state_dict(torch.load(file, weights_only=True))


def by_distributed_files(old: Any, new: Any) -> None:
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        checkpoint.save({"optim": get_optimizer_state_dict(old.model, old)}, checkpoint_id=folder)
        template = {"optim": get_optimizer_state_dict(new.model, new)}
        checkpoint.load(template, checkpoint_id=folder)
    set_optimizer_state_dict(new.model, new, template["optim"])


@pytest.mark.parametrize("way", [by_file, by_distributed_files])
def test_a_state_comes_back_without_unpickling_anything(way: Any) -> None:
    """Also through torch.distributed.checkpoint, which knows tensors by parameter, and no objects."""
    model = network()
    old = ours(model, every=3)
    train(model, old, range(4))
    twin = copy.deepcopy(model)
    new = ours(twin, every=3)
    way(old, new)
    assert torch.equal(train(twin, new, range(4, 9)), train(model, old, range(4, 9)))
    assert matrices(new).keys() == matrices(old).keys()
    assert all(torch.equal(K, matrices(old)[name]) for name, K in matrices(new).items())


def test_the_packages_state_is_objects_that_safe_loading_refuses() -> None:
    model = network()
    opt = theirs(model)
    train(model, opt, range(2))
    with pytest.raises(pickle.UnpicklingError, match=r"singd\.structures"):
        by_file(opt, theirs(network()))


def test_the_packages_factors_are_not_in_what_torchs_distributed_checkpoint_takes() -> None:
    model = network()
    opt = theirs(model)
    train(model, opt, range(2))
    taken = get_optimizer_state_dict(model, opt)
    assert set(taken) == {"state", "param_groups"}  # its factors are eight keys beside these
    fresh = theirs(network())
    with pytest.raises(KeyError):  # torch takes a step without gradients or passes, to see the state's shape
        get_optimizer_state_dict(network(), fresh)


def test_loading_leaves_the_callers_dictionary_as_it_was() -> None:
    """The package takes its own keys out of it: a second load from the same dictionary fails."""
    model = network()
    for make in (ours, theirs):
        opt = make(model)
        train(model, opt, range(2))
        state = opt.state_dict()
        keys = set(state)
        make(network()).load_state_dict(state)
        assert (set(state) == keys) is (make is ours)


@pytest.mark.grid
def test_a_sum_over_processes_reaches_every_tensor(tmp_path: Path) -> None:
    """Two processes over gloo.  The package reduces a contiguous copy of a view, and keeps the view.

    Ours are reduced in place, tensor by tensor, as ``tensors()`` names them.
    """
    found = two_processes(tmp_path)
    S = symmetric()
    for rank in (0, 1):
        results = found[rank]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NaiveFallback)
            groups = [f for f in families() if isinstance(f, Group)]
            assert groups
            for family in groups:
                expected = 3 * family.project(S).dense()
                assert_close(results[repr(family)], expected, dimension=1, what=repr(family))
        right = 3 * Hierarchical15_15Matrix.from_dense(S).to_dense()
        views, others = (slice(None, 15), slice(None, 15)), (slice(None, 15), slice(15, None))
        assert_close(results["theirs"][others], right[others], dimension=1)
        assert_close(results["theirs"][views], (rank + 1) / 3 * right[views], dimension=1)  # its own, no sum


def two_processes(folder: Path) -> list[dict[str, Tensor]]:
    script = Path(__file__).with_name("two_ranks.py")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    outs = [folder / f"{rank}.pt" for rank in (0, 1)]
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(folder / "store"), str(out)],
            env=env,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, out in enumerate(outs)
    ]
    try:
        for process in ranks:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
    finally:
        for process in ranks:
            process.kill()
    return [torch.load(out, weights_only=True) for out in outs]
