"""The SVD from the small side's Gram matrix AᵀA, for matrices known by products.

Squaring loses what lies below sqrt(eps) ‖A‖. The Gram matrix therefore only picks the subspace, and only where s_k stands
clear of that level; the values come from A on the subspace, without squaring. Where it does not, the subspace is everything:
then A's columns are gathered, which takes the m n numbers that U would take at k = n.
"""

from __future__ import annotations

from eckart._algorithms._factors import Factors, restricted
from eckart._arrays import Array
from eckart.matrix import Operand

__all__ = ["BLOCK", "run", "separable"]

BLOCK = 256  # columns of the identity that are multiplied at once; from about 64 on, products run at BLAS-3 speed


def run(A: Operand, k: int, tol: float, seed: int) -> Factors:
    basis = _leading(A, k) if 2 * k <= A.shape[1] else None
    return restricted(A, basis, k, "gram")


def separable(s1: float, sk: float, eps: float) -> bool:
    """Say whether AᵀA, rounded, still tells s_k's directions from the rest.

    A perturbation eps s_1² of AᵀA moves s_k by at most eps s_1² / (2 s_k), which is eps^(3/4) s_1 / 2 at this bound, and
    typically by its square: a rounding error.
    """
    return sk > eps**0.25 * s1


def _leading(A: Operand, k: int) -> Array | None:
    """Return the k leading eigenvectors of AᵀA, or None where rounding has blurred them."""
    squares, vectors = A.space.xp.linalg.eigh(_gram(A))  # ascending
    s1, sk = (float(squares[-i]) for i in (1, k))
    return vectors[:, -k:] if sk > 0 and separable(s1**0.5, sk**0.5, A.space.eps) else None


def _gram(A: Operand) -> Array:
    space, n = A.space, A.shape[1]
    blocks = (space.unit(n, start, min(start + BLOCK, n)) for start in range(0, n, BLOCK))
    G = space.xp.concat([space.double(A.rmatmat(A.matmat(block))) for block in blocks], axis=1)
    return (G + G.T) / 2
