"""The SVD from the small side's Gram matrix AᵀA, for matrices known by products.

Squaring loses what lies below sqrt(eps) ‖A‖. The Gram matrix therefore only picks a subspace; the values come from A on
it, without squaring. Where the squares have blurred the subspace, it is replaced by the whole space: A's columns are
gathered, as many numbers as U has at k = n.
"""

from __future__ import annotations

import numpy as np

from eckart._algorithms._factors import Factors, Task, restricted
from eckart._arrays import Array, to_numpy
from eckart.matrix import Operand

__all__ = ["BLOCK", "run"]

BLOCK = 256  # columns of the identity that are multiplied at once; from about 64 on, products run at BLAS-3 speed


def run(A: Operand, task: Task) -> Factors:
    k, n = task.k, A.shape[1]
    if 2 * k <= n:
        _, vectors = A.space.xp.linalg.eigh(_gram(A))  # ascending
        found = restricted(A, vectors[:, n - k :], k, "gram")
        if not _blurred(A, found, task.tol):
            return found
    return restricted(A, None, k, "gram")


def _blurred(A: Operand, found: Factors, tol: float) -> bool:
    """Say whether rounding in AᵀA has, or may have, turned the subspace of the triplets by more than the goal allows.

    Directions below sqrt(sqrt(eps)) s_1 are not trusted whatever their residual: their squares are near the rounding
    error eps s_1², and so their order against the rest is not certain.
    """
    s1, sk = float(found.s[0]), float(found.s[-1])
    if sk <= A.space.eps**0.25 * s1:
        return True
    double = A.space.double
    right = double(A.rmatmat(double(found.U))) - double(found.Vt).T * double(found.s)
    return float(np.max(to_numpy(A.space.xp.linalg.vector_norm(right, axis=0)))) > tol * s1


def _gram(A: Operand) -> Array:
    """Return AᵀA, (n, n) in float64."""
    space, n = A.space, A.shape[1]
    blocks = (space.unit(n, start, min(start + BLOCK, n)) for start in range(0, n, BLOCK))
    G = space.xp.concat([space.double(A.rmatmat(A.matmat(block))) for block in blocks], axis=1)
    return (G + G.T) / 2
