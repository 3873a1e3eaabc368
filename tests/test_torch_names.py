"""Which names of torch are used: public ones, which torch keeps; private ones may go with any release.

Read from the syntax tree: what is imported, attributes of what was imported or was assigned from it,
``getattr`` and module names in strings.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping

import pytest

from tests.test_imports import modules

pytestmark = pytest.mark.source_tree

#: module and private name -> why there is no public one to take
EXCEPTIONS: Mapping[tuple[str, str], str] = {
    (
        "curvlab.testing.dispatch",
        "torch.utils._python_dispatch.TorchDispatchMode",
    ): "it sees every operation, those of backward passes too; torch documents it, at no other path",
    (
        "curvlab.linalg.flops",
        "torch.utils._python_dispatch.TorchDispatchMode",
    ): "as before; a file of its own, since it is loaded alone to count older versions of the package",
    (
        "curvlab.linalg.flops",
        "torch.utils._pytree.tree_map",
    ): "the arguments of an operation are trees as torch's dispatcher makes them; and the file stands alone",
    (
        "curvlab.objectives.products",
        "torch._dynamo",
    ): "looked up in sys.modules, never imported: nothing else tells whether anything was compiled",
    (
        "curvlab.objectives.graph_task",
        "torch._C._current_graph_task_id",
    ): "which backward pass a hook fires in: torch's own register_multi_grad_hook asks the same",
    **{
        ("curvlab.protocols.blocks", f"torch._foreach_{name}_"): (
            "all parameters of a block vector in one call, as torch's own optimizers do"
        )
        for name in ("add", "sub")
    },
    (
        "curvlab.objectives.evaluation",
        "torch._foreach_copy_",
    ): "all gradients into one buffer in one call, as above",
    (
        "curvlab.testing.memory",
        "torch.utils._python_dispatch.TorchDispatchMode",
    ): "as before; a file of its own, since it is loaded alone to measure older versions of the package",
}
#: modules that are told of operations by the names that torch's dispatcher has for them, public or not
TOLD_OPERATIONS = {"curvlab.linalg.flops", "curvlab.testing.dispatch"}
OPERATIONS = "torch.ops.aten."


def private(dotted: str) -> bool:
    return any(part.startswith("_") and not part.endswith("__") for part in dotted.split("."))


def of_torch(dotted: str) -> bool:
    return dotted.split(".")[0] == "torch"


def private_names(source: str) -> list[str]:
    """Every private name of torch that a module's source takes, dotted, once."""
    tree = ast.parse(source)
    bound = _bindings(tree)
    found = [name for node in ast.walk(tree) for name in _taken(node, bound)]
    return sorted({name for name in found if of_torch(name) and private(name)})


def _bindings(tree: ast.Module) -> dict[str, str]:
    """Names of the module that stand for something of torch."""
    bound: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                bound[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and not node.level:
            bound |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    bound = {name: dotted for name, dotted in bound.items() if of_torch(dotted)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and (dotted := _dotted(node.value, bound)):
            bound |= {target.id: dotted for target in node.targets if isinstance(target, ast.Name)}
    return bound


def _taken(node: ast.AST, bound: Mapping[str, str]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and not node.level:
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Attribute) and private(node.attr):
        yield _dotted(node, bound)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value if re.fullmatch(r"torch(\.\w+)+", node.value) else ""
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
        name = node.args[1]
        if isinstance(name, ast.Constant):
            yield f"{_dotted(node.args[0], bound)}.{name.value}"


def _dotted(node: ast.AST, bound: Mapping[str, str]) -> str:
    """``torch.nn.Linear`` of an expression that names it; else nothing."""
    if isinstance(node, ast.Name):
        return bound.get(node.id, "")
    if isinstance(node, ast.Attribute) and (before := _dotted(node.value, bound)):
        return f"{before}.{node.attr}"
    return ""


def test_no_module_takes_a_private_name_of_torch_but_for_a_reason() -> None:
    """Both ways: an exception that nobody needs any more goes, too."""
    taken = {(m, n) for m, file in modules().items() for n in private_names(file.read_text(encoding="utf-8"))}
    operations = {(m, n) for m, n in taken if n.startswith(OPERATIONS)}
    assert {m for m, _ in operations} == TOLD_OPERATIONS
    assert taken - operations == set(EXCEPTIONS)
    assert all(len(reason.split()) > 3 for reason in EXCEPTIONS.values())


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("import torch._dynamo", "torch._dynamo"),
        ("import torch._dynamo as compiler", "torch._dynamo"),
        ("from torch import _C", "torch._C"),
        ("def f():\n    from torch.utils._pytree import tree_map", "torch.utils._pytree.tree_map"),
        ("import torch\nx = torch._foreach_add(a, b)", "torch._foreach_add"),
        ("import torch\nx = torch.nn.functional._pad(a)", "torch.nn.functional._pad"),
        ("from torch import nn as layers\nlayers._reduction", "torch.nn._reduction"),
        ("import torch\nops = torch.ops.aten\nops._unique2(x)", "torch.ops.aten._unique2"),
        ("import torch\ngetattr(torch, '_C')", "torch._C"),
        ("import importlib\nimportlib.import_module('torch._C')", "torch._C"),
    ],
)
def test_a_private_name_is_seen_whichever_way_it_is_taken(source: str, name: str) -> None:
    assert private_names(source) == [name]


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.__version__",
        "import torch\ntorch.add_(x, y)",
        "from numpy import _core",
        "from curvlab.torch import _x",
        "self._torch = 1",
        "from __future__ import annotations",
    ],
)
def test_what_is_public_or_not_torchs_is_left_alone(source: str) -> None:
    assert private_names(source) == []
