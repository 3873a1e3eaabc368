"""Hessian-free optimization: Krylov solvers, step rules along their iterates, samples that grow."""

from __future__ import annotations

from typing import Any

from curvlab import hookimpl

api_version = "1.0"


@hookimpl
def curvlab_register(registry: Any) -> None:
    """Parts by import string; nothing here imports torch."""
    registry.add(
        "krylov",
        "flexible-cg",
        "curvlab_hessianfree.flexible_cg:FlexibleCG",
        summary="conjugate gradients for a preconditioner that changes between iterations",
    )
    registry.add(
        "krylov",
        "minres",
        "curvlab_hessianfree.minres:MinRes",
        summary="the smallest residual in every Krylov space",
    )
    registry.add(
        "krylov",
        "krylov-basis",
        "curvlab_hessianfree.krylov_basis:KrylovBasis",
        summary="the minimizer of the model in a space of few dimensions, and that space",
    )
    registry.add(
        "preconditioner",
        "fisher-diagonal",
        "curvlab_hessianfree.fisher_diagonal:FisherDiagonal",
        summary="the diagonal of the empirical Fisher, to the power 3/4",
    )
    registry.add(
        "step",
        "cg-backtracking",
        "curvlab_hessianfree.backtracking:CGBacktracking",
        summary="the best of the solve's iterates, then a line search along it",
    )
    registry.add(
        "step",
        "subspace",
        "curvlab_hessianfree.subspace:Subspace",
        summary="the smallest loss in the space that the solve spanned",
    )
    registry.add(
        "sampler",
        "geometric",
        "curvlab_hessianfree.geometric:Geometric",
        summary="gradient and curvature samples that grow by factors, step by step",
    )
    registry.add(
        "sampler",
        "norm-test",
        "curvlab_hessianfree.variance_tests:NormTest",
        summary="samples that grow when the gradient's expected error is too large for its norm",
    )
    registry.add(
        "sampler",
        "inner-product",
        "curvlab_hessianfree.variance_tests:InnerProductTest",
        summary="samples that grow when the gradient is not surely a descent direction",
    )
    registry.methods("curvlab_hessianfree")
