"""The full SVD of an array in memory by LAPACK, cut to k."""

from __future__ import annotations

from eckart._algorithms._factors import Factors, thin
from eckart.matrix import Operand

__all__ = ["run"]


def run(A: Operand, k: int, tol: float, seed: int) -> Factors:
    U, s, Vt = thin(A.entries, A)
    return Factors(U[:, :k], s[:k], Vt[:k, :], "lapack")
