"""How far factors are from the matrix, measured on the factors that are returned and without trust in what found them.

With B = U diag(s) Vt as it stands, rounded and not quite orthonormal, both ways bound ‖A - B‖ from above:
- entries: A - B itself, and the largest eigenvalue of its Gram matrix: sharp in both norms, about m n (n + k) flops;
- norms: ‖A - B‖_F² = ‖A‖_F² - 2 ⟨A, B⟩ + ‖B‖_F², from A V alone; the cancellation leaves sqrt(n eps) ‖A‖_F.
Rounding is allowed for by the usual bound p eps on the relative error of a sum of p products (Higham, Accuracy and
Stability of Numerical Algorithms, 2nd ed., section 3.1; eps here is twice the unit roundoff, which covers the terms of
second order), and in the largest eigenvalue by LAPACK's backward error, taken as n eps ‖·‖_F.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from eckart._arrays import Array, to_numpy
from eckart.matrix import Operand

__all__ = ["bounds", "residuals"]

EPS = 2.0**-52  # of float64, in which everything here is added up
FREE_ENTRIES = 2**20  # a dense array of 8 MiB is made without asking what the matrix takes
BLOCK_ENTRIES = 2**22  # of rows that are compared at once


def residuals(A: Operand, U: Array, s: Array, Vt: Array) -> Any:
    """Return max(‖A v_i - s_i u_i‖, ‖Aᵀ u_i - s_i v_i‖) for each i, as a NumPy array (k,): two readings of A."""
    double, norm = A.space.double, A.space.xp.linalg.vector_norm
    left = norm(double(A.matmat(double(Vt).T)) - double(U) * s, axis=0)
    right = norm(double(A.rmatmat(double(U))) - double(Vt).T * s, axis=0)
    return np.maximum(to_numpy(left), to_numpy(right))


def bounds(A: Operand, U: Array, s: Array, Vt: Array) -> tuple[float, float]:
    """Return upper bounds on the spectral and the Frobenius norm of A - U diag(s) Vt, (inf, inf) where none is at hand.

    A: m >= n. They come from the entries where these are in memory or would take no more than A or the factors do;
    else from the norms, and then both bound the Frobenius norm; there is none for a large matrix of unknown norm.
    """
    (m, n), k = A.shape, s.shape[0]
    U, s, Vt = (A.space.double(x) for x in (U, s, Vt))
    if A.in_memory or m * n <= max(FREE_ENTRIES, A.stored, 2 * k * (m + n)):
        return _from_entries(A, U, s, Vt)
    squared_norm = A.squared_norm()
    return (math.inf, math.inf) if squared_norm is None else _from_norms(A, squared_norm, U, s, Vt)


def _from_entries(A: Operand, U: Array, s: Array, Vt: Array) -> tuple[float, float]:
    xp, (m, n), k = A.space.xp, A.shape, s.shape[0]
    gram = A.space.double(A.space.unit(n, 0, n)) * 0
    for rows, block in _row_blocks(A):
        difference = A.space.double(block) - (U[rows, :] * s) @ Vt
        gram = gram + difference.T @ difference
    squared = float(xp.sum(xp.linalg.diagonal(gram)))
    frobenius = math.sqrt(squared * (1 + (m + n) * EPS))
    top = float(xp.linalg.eigvalsh(gram)[-1]) if n else 0.0
    spectral = math.sqrt(max(top, 0.0) + 2 * (m + n) * EPS * squared)
    # Each entry of the difference: k products, a scaling and a subtraction of at most |A| + |U| diag(s) |Vt|.
    rounding = (k + 3) * EPS * (frobenius + 2 * _size(A, U, s, Vt)) + math.sqrt(m * n) * _smallest(A)
    return min(spectral, frobenius) + rounding, frobenius + rounding


def _from_norms(A: Operand, squared_norm: float, U: Array, s: Array, Vt: Array) -> tuple[float, float]:
    xp, (m, n), k = A.space.xp, A.shape, s.shape[0]
    AV = A.matmat(Vt.T)
    inner = float(xp.sum(s * xp.sum(U * A.space.double(AV), axis=0)))
    square = float(xp.sum((U.T @ U) * (Vt @ Vt.T) * (s[:, None] * s)))
    size = _size(A, U, s, Vt)
    rounding = 2 * (n + 2) * float(xp.finfo(AV.dtype).eps) * math.sqrt(squared_norm) * size
    rounding += 4 * (m + n + k) * EPS * size * (math.sqrt(squared_norm) + size)
    frobenius = math.sqrt(max(squared_norm - 2 * inner + square, 0.0) + rounding) + math.sqrt(m * n) * _smallest(A)
    return frobenius, frobenius


def _row_blocks(A: Operand) -> Iterator[tuple[slice, Array]]:
    m, n = A.shape
    if not A.in_memory:
        yield slice(0, m), A.matmat(A.space.unit(n, 0, n))
        return
    entries = A.entries
    step = max(1, BLOCK_ENTRIES // max(n, 1))
    for start in range(0, m, step):
        rows = slice(start, min(start + step, m))
        yield rows, entries[rows, :]


def _size(A: Operand, U: Array, s: Array, Vt: Array) -> float:
    """Return Σ s_i ‖u_i‖ ‖v_i‖, which bounds the Frobenius norm of |U| diag(s) |Vt|."""
    norm = A.space.xp.linalg.vector_norm
    return float(A.space.xp.sum(s * norm(U, axis=0) * norm(Vt, axis=1)))


def _smallest(A: Operand) -> float:
    """Return the spacing of the smallest numbers, which an entry may have lost when A was scaled."""
    return float(A.space.xp.finfo(A.space.dtype).smallest_normal) * A.space.eps
