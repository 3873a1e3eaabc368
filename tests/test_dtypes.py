"""Methods name no dtype and factorize nothing themselves: read from the syntax tree.

Which dtype a number has is a precision's decision, by role (``curvlab.protocols.dtypes``); parts allocate by
``Context``, write by ``Storage`` and factorize by the backend.  Files that name a dtype say here why.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.test_imports import ROOT, modules

pytestmark = pytest.mark.source_tree

DTYPES = frozenset({"float16", "half", "bfloat16", "float32", "float", "float64", "double"})
CASTS = frozenset({"float", "double", "half", "bfloat16"})
FACTORIZATIONS = frozenset({
    "cholesky", "cholesky_ex", "cholesky_inverse", "eigh", "eigvalsh", "eig", "eigvals", "qr", "svd",
    "svdvals", "inv", "inv_ex", "pinv", "solve", "solve_ex", "lstsq", "lu", "lu_factor", "lu_solve",
    "ldl_factor", "matrix_exp", "solve_triangular", "triangular_solve", "cholesky_solve",
})  # fmt: skip

#: file or folder -> why it names a dtype
NAMED: Mapping[str, str] = {
    "curvlab/precision/": "precisions: what the roles are",
    "plugins/precision/curvlab_precision/": "precisions: what the roles are",
    "curvlab/linalg/work.py": "what halves are widened to, and which products a GPU makes with eleven bits",
    "curvlab/linalg/rounding.py": "rounding of float32 to bfloat16, bit by bit",
    "curvlab/linalg/factorizations.py": "lifts, and tries again in float64",
    "curvlab/linalg/accumulation.py": "chooses between two ways by the speed of a dtype",
    "curvlab/protocols/storage.py": "which stored dtype is rounded by chance",
    "curvlab/api.py": "says in an error how a model is converted",
    "curvlab/model/admission.py": "which dtypes of parameters are trained",
    "curvlab/model/rerun/replacement.py": "compares two ways of one layer",
    "curvlab/engine/company.py": "the clock of the first process, as it is",
    "curvlab/protocols/step.py": "squares of norms that are summed over processes",
    "curvlab/engine/ladder.py": "a loss that is not finite is evaluated again in float64",
    "curvlab/engine/health.py": "squares of halves are summed in float32",
    "curvlab/objectives/losses/": "examples for conformance checks, and Hessians, in float64",
    "curvlab/objectives/row_loss.py": "Hessians in the outputs in float64",
    "curvlab/objectives/statistics.py": "factors that leave float16's range",
    "curvlab/objectives/variance.py": "differences of large sums in float64",
    "curvlab/protocols/loss.py": "examples for conformance checks in float64",
    "curvlab/linalg/power_iteration.py": "tables of fixed vectors",
    "curvlab/structures/entries.py": "patterns of a family, found once in float64",
    "curvlab/parts/steps.py": "two by two systems on the host in float64",
    "curvlab/pde/": "points, made in float64 and given in the dtype of the parameters",
    "curvlab/tasks/": "data, made in float64 and given in the dtype of the parameters",
    "curvlab/testing/": "cases and dense references of the conformance suites",
    "plugins/adas/curvlab_adas/evbmf.py": "ranks of weights, on the host in float64",
    "plugins/compress/curvlab_compress/svd_training.py": "squares that fit into an energy, in float64",
    "plugins/hessianfree/curvlab_hessianfree/krylov_basis.py": "small systems on the host in float64",
    "plugins/hessianfree/curvlab_hessianfree/subspace.py": "small systems on the host in float64",
    "plugins/kbfgs/curvlab_kbfgs/sides.py": "small systems of pairs in float64",
    "plugins/lbfgs/curvlab_lbfgs/": "inner products of pairs, on the host in float64",
    "plugins/operators/curvlab_operators/burgers_data.py": "random waves, made in float64",
    "plugins/operators/curvlab_operators/cosine_fields.py": "random fields, made in float64",
    "plugins/operators/curvlab_operators/mode_mixing.py": "16 bits, multiplied by parts",
    "plugins/operators/curvlab_operators/relative_norms.py": "examples for conformance checks in float64",
    "plugins/operators/curvlab_operators/spectral_convolution.py": "a precision is float16 by name",
    "plugins/pinn/curvlab_pinn/": "points and coefficients, and inverses of sums in float64",
    "plugins/samplespace/curvlab_samplespace/solvers.py": "singular values and sketches in float64",
    "plugins/speech/curvlab_speech/": "sound and spectra in float64",
    "plugins/structures/curvlab_structures/convolution.py": "few devices transform halves",
    "plugins/structures/curvlab_structures/toeplitz.py": "chooses between two ways by the speed of a dtype",
}

#: file or folder -> why it factorizes by itself
FACTORIZES: Mapping[str, str] = {
    "curvlab/linalg/factorizations.py": "the one place that lifts, tries again and fails",
    "curvlab/testing/": "dense references of the conformance suites",
    "curvlab/tasks/quadratic.py": "the orthogonal basis of a task's matrix",
    "plugins/adas/curvlab_adas/evbmf.py": "singular values of weights, once an epoch, outside of a step",
    "plugins/compress/curvlab_compress/svd_layer.py": "a layer's weight, once, when a model is made",
}


def named(source: str) -> list[tuple[int, str]]:
    """Line and text of each dtype that is named, and of each cast by a method that names one."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Attribute):
            continue
        of_torch = isinstance(node.value, ast.Name) and node.value.id == "torch"
        if of_torch and node.attr in DTYPES:
            found.append((node.lineno, ast.unparse(node)))
    for node in ast.walk(ast.parse(source)):
        called = node.func if isinstance(node, ast.Call) and not (node.args or node.keywords) else None
        if isinstance(called, ast.Attribute) and called.attr in CASTS:
            found.append((called.lineno, ast.unparse(node)))
    return found


def factorized(source: str) -> list[tuple[int, str]]:
    """Line and text of each call of a factorization of torch."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = ast.unparse(node.func.value)
            if owner in ("torch", "torch.linalg", "linalg") and node.func.attr in FACTORIZATIONS:
                found.append((node.lineno, ast.unparse(node)))
    return found


RULES = {"dtype": (named, NAMED), "factorization": (factorized, FACTORIZES)}


def places(rule: str) -> Iterator[tuple[str, str]]:
    """File, and each place in it that breaks a rule."""
    look, _ = RULES[rule]
    for file in modules().values():
        at = str(file.relative_to(ROOT))
        for line, text in look(file.read_text(encoding="utf-8")):
            yield at, f"{at}:{line} {text}"


@pytest.mark.parametrize("rule", RULES)
def test_no_method_decides_by_itself(rule: str) -> None:
    wrong = [text for at, text in places(rule) if not at.startswith(tuple(RULES[rule][1]))]
    hint = "allocate by role, write by ctx.storage, and factorize by ctx.backend"
    assert not wrong, f"{hint}:\n" + "\n".join(wrong)


@pytest.mark.parametrize("rule", RULES)
def test_what_is_allowed_is_there_and_needs_to_be(rule: str) -> None:
    found = {at for at, _ in places(rule)}
    for allowed, reason in RULES[rule][1].items():
        assert (ROOT / Path(allowed)).exists(), f"{allowed} is gone"
        assert any(at.startswith(allowed) for at in found), f"{allowed} names none by now"
        assert len(reason.split()) > 3


@pytest.mark.parametrize(
    ("rule", "source"),
    [
        ("dtype", "x.float()"),
        ("dtype", "x.to(torch.float32)"),
        ("dtype", "torch.zeros(3, dtype=torch.bfloat16, device=d)"),
        ("factorization", "torch.linalg.cholesky(A)"),
        ("factorization", "torch.linalg.eigh(A.nan_to_num())"),
        ("factorization", "torch.cholesky_inverse(L)"),
    ],
)
def test_what_breaks_a_rule_is_found(rule: str, source: str) -> None:
    assert len(RULES[rule][0](source)) == 1


@pytest.mark.parametrize(
    "source", ["x.to(y.dtype)", "float(x)", "torch.linalg.vector_norm(x)", "backend.eigh(A)"]
)
def test_what_breaks_none_is_left_alone(source: str) -> None:
    assert named(source) == factorized(source) == []
