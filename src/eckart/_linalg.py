"""What linear algebra of NumPy and torch has under different names, and the array API not at all."""

from __future__ import annotations

import array_api_compat
import numpy as np

from eckart._arrays import Array

__all__ = ["cholesky", "contract", "solve_triangular"]


def cholesky(gram: Array) -> Array | None:
    """Return L, lower triangular, with L Lᵀ = gram, a symmetric matrix; None where it is not positive definite."""
    if array_api_compat.is_torch_array(gram):
        lower, failed = array_api_compat.array_namespace(gram).linalg.cholesky_ex(gram)
        return None if failed else lower
    try:
        return np.linalg.cholesky(gram)
    except np.linalg.LinAlgError:
        return None


def contract(indices: str, *arrays: Array) -> Array:
    """Return the sum of products that `indices` names, as einsum does, by matrix products."""
    xp = array_api_compat.array_namespace(*arrays)
    return np.einsum(indices, *arrays, optimize=True) if xp.einsum is np.einsum else xp.einsum(indices, *arrays)


def solve_triangular(triangle: Array, right: Array, *, lower: bool) -> Array:
    """Return triangle⁻¹ right for a triangular matrix, (n, n), and right, (n, any)."""
    if array_api_compat.is_torch_array(triangle):
        return array_api_compat.array_namespace(triangle).linalg.solve_triangular(triangle, right, upper=not lower)
    from scipy.linalg import solve_triangular as solve

    return solve(triangle, right, lower=lower, check_finite=False)
