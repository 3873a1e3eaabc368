"""Every call that makes a tensor or a generator says on which device: read from the syntax tree.

A tensor without one lies on torch's default device, the CPU, while the model may be elsewhere; on the CPU
no test would notice.  What is meant to be of the host says ``device="cpu"``.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.test_imports import ROOT, modules

pytestmark = pytest.mark.source_tree

#: torch's functions that make a tensor, or a generator, from no tensor
FACTORIES = frozenset({
    "zeros", "ones", "empty", "full", "eye", "arange", "range", "linspace", "logspace", "tensor",
    "as_tensor", "asarray", "scalar_tensor", "rand", "randn", "randint", "randperm", "normal",
    "empty_strided", "empty_permuted", "tril_indices", "triu_indices", "hann_window", "hamming_window",
    "bartlett_window", "blackman_window", "kaiser_window", "sparse_coo_tensor", "sparse_csr_tensor",
    "Generator",
})  # fmt: skip
#: of these, those whose device may be their first argument
BY_PLACE = frozenset({"Generator"})

#: file or folder -> why what it makes has no device of its own
ALLOWED: Mapping[str, str] = {
    "curvlab/testing/": "cases and dense references of the conformance suites, in float64 on the CPU",
    "curvlab/model/readers/": "specimens of a layer's inputs, made on torch's default device as the layer is",
    "plugins/graphs/curvlab_graphs/linear.py": "specimens of a layer's inputs",
    "plugins/huggingface/curvlab_huggingface/conv1d.py": "specimens of a layer's inputs",
    "curvlab/tasks/gpt.py": "parameters of a new model, on torch's default device as those of its layers",
    "curvlab/tasks/vit.py": "parameters of a new model",
    "plugins/operators/curvlab_operators/mode_mixing.py": "parameters of a new model",
    "plugins/operators/curvlab_operators/mode_reader.py": "specimens of a layer's inputs",
    "curvlab/tasks/quadratic.py": "the parameter of a new model",
}


def deviceless(source: str) -> list[tuple[int, str]]:
    """Line and text of each call of a factory of torch that names no device."""
    tree = ast.parse(source)
    names = _imported(tree)
    return [
        (n.lineno, ast.unparse(n)) for n in ast.walk(tree) if isinstance(n, ast.Call) and _lacks(n, names)
    ]


def _imported(tree: ast.Module) -> dict[str, str]:
    """Factories by the names that the module imports them by; ``torch`` itself by its name."""
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {a.asname or a.name: "torch" for a in node.names if a.name == "torch"}
        elif isinstance(node, ast.ImportFrom) and node.module == "torch":
            found |= {a.asname or a.name: f"torch.{a.name}" for a in node.names}
    return found


def _lacks(call: ast.Call, names: Mapping[str, str]) -> bool:
    name = _factory(call.func, names)
    if name not in FACTORIES:
        return False
    if name in BY_PLACE and call.args:
        return False
    return not any(k.arg in ("device", None) for k in call.keywords)  # None: ``**there``


def _factory(called: ast.expr, names: Mapping[str, str]) -> str:
    if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name):
        return called.attr if names.get(called.value.id) == "torch" else ""
    if isinstance(called, ast.Name):
        return names.get(called.id, "").removeprefix("torch.")
    return ""


def places() -> Iterator[tuple[str, str]]:
    """File, and each call in it that names no device."""
    for file in modules().values():
        at = str(file.relative_to(ROOT))
        for line, text in deviceless(file.read_text(encoding="utf-8")):
            yield at, f"{at}:{line} {text}"


def test_every_tensor_and_generator_is_made_on_a_device_that_is_named() -> None:
    wrong = [text for at, text in places() if not at.startswith(tuple(ALLOWED))]
    assert not wrong, "say device=..., that of a block or of the host:\n" + "\n".join(wrong)


def test_what_is_allowed_is_there_and_needs_to_be() -> None:
    found = {at for at, _ in places()}
    for allowed, reason in ALLOWED.items():
        assert (ROOT / Path(allowed)).exists(), f"{allowed} is gone"
        assert any(at.startswith(allowed) for at in found), f"{allowed} names every device by now"
        assert len(reason.split()) > 3


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.zeros(3)",
        "import torch as t\nt.tensor(2.0, dtype=t.float64)",
        "from torch import randn\nrandn(2, 3)",
        "from torch import eye as identity\nidentity(3)",
        "import torch\ntorch.Generator().manual_seed(0)",
        "import torch\ndef f(x):\n    return x @ torch.eye(3, dtype=x.dtype)",
    ],
)
def test_a_call_that_names_no_device_is_found(source: str) -> None:
    assert len(deviceless(source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.zeros(3, device=x.device)",
        "import torch\ntorch.Generator('cpu')",
        "import torch\ntorch.zeros_like(x)",
        "import torch\nx.new_zeros(3)",
        "import torch\ntorch.arange(3, **there)",
        "import numpy as np\nnp.zeros(3)",
        "layer.full(3)",
    ],
)
def test_a_call_that_names_one_or_makes_no_tensor_is_left_alone(source: str) -> None:
    assert deviceless(source) == []
