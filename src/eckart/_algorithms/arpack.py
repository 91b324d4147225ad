"""A few leading triplets by ARPACK's restarted Lanczos method on AᵀA, one vector at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from eckart._algorithms import gram, lapack
from eckart._algorithms._factors import Factors, restricted
from eckart._arrays import Array, to_numpy
from eckart.errors import NumericalError
from eckart.matrix import Operand

__all__ = ["run"]

# A doubtful answer is replaced by LAPACK's where there are entries, and up to this size, a second's work, by the Gram
# method's; else it is returned with its doubt.
REPLACEABLE_ENTRIES = 2**22
PROBE_TOLERANCE = 1e-2  # of the square of the largest value left over: a missed one is to be noticed, not to be found


def run(A: Operand, k: int, tol: float, seed: int) -> Factors:
    from scipy.sparse.linalg import ArpackError

    m, n = A.shape
    replacement = lapack.run if A.in_memory else gram.run if m * n <= REPLACEABLE_ENTRIES else None
    if A.squared_norm() == 0:  # ARPACK refuses the zero matrix, whose singular vectors are any
        return restricted(A, A.space.unit(n, 0, k), k, "arpack")
    try:
        # a tenth, since rounding adds to what ARPACK leaves
        found = restricted(A, _eigenvectors(A, k, tol / 10, seed), k, "arpack")
    except ArpackError as error:
        if replacement:
            return replacement(A, k, tol, seed)
        raise NumericalError(
            f"ARPACK did not find {k} singular values of a {m} x {n} matrix",
            why=str(error),
            fix='pass a smaller k, or method="gram"',
            code="E-convergence",
        ) from error
    missed = _missed(A, found, tol, seed)
    if replacement and (missed or gram.blurred(A, found, tol)):
        return replacement(A, k, tol, seed)
    return replace(found, sound=not missed)


def _missed(A: Operand, found: Factors, tol: float, seed: int) -> bool:
    """Say whether a value larger than s_k is left over.

    Started from one vector, Lanczos sees one copy of a repeated value and finds the others only through rounding.
    """
    from scipy.sparse.linalg import ArpackError

    s1, sk = float(found.s[0]), float(found.s[-1])
    try:
        left = _eigenvectors(A, 1, PROBE_TOLERANCE, seed + 1, without=found.Vt)
    except ArpackError:  # nothing is left over, or nothing that stands out
        return False
    value = float(A.space.xp.linalg.vector_norm(A.matmat(left)))
    return value**2 > (sk + 2 * tol * s1) ** 2 + A.shape[1] * A.space.eps * s1**2


def _eigenvectors(A: Operand, k: int, tol: float, seed: int, without: Array | None = None) -> Array:
    """Return k leading eigenvectors of AᵀA (n, k), on the complement of the orthonormal rows of `without`."""
    from scipy.sparse.linalg import LinearOperator, eigsh

    space, n = A.space, A.shape[1]
    rows = np.zeros((0, n)) if without is None else to_numpy(without)

    def complement(x: Any) -> Any:
        return x - rows.T @ (rows @ x)

    def product(x: Any) -> Any:
        X = space.asarray(complement(x.reshape(n, 1)))
        return complement(to_numpy(A.rmatmat(A.matmat(X)))).reshape(n)

    start, restarts = (np.random.default_rng((seed, part)) for part in (0, 1))
    operator = LinearOperator((n, n), matvec=product, dtype=np.dtype(space.name))
    _, vectors = eigsh(operator, k, v0=start.standard_normal(n), tol=tol, rng=restarts)
    return space.asarray(complement(vectors))
