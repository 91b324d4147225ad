"""The matrix that a rank is chosen for, its largest entry near 1, and its leading singular triplets."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from eckart._algorithms._accuracy import FAILURE
from eckart._arrays import to_numpy
from eckart._decomposed import SVD
from eckart._rank._values import Values
from eckart._svd import svd
from eckart.errors import UsageError
from eckart.matrix import Operand
from eckart.matrix.sparse import as_scipy

__all__ = ["Data", "divided", "largest_value", "leading_above", "observed", "values_of", "values_of_svd"]

WHOLE = 512  # smaller side up to which LAPACK finds all triplets about as fast as the leading ones are found
RESIDUAL = 1e-2  # of s_1; the error of a value is about its square over the gap, and thresholds stand off the bulk


@dataclass(frozen=True, eq=False)
class Data:
    """A matrix whose largest entry is near 1; multiplied by unit it is the caller's.

    entries: a NumPy array or a scipy.sparse matrix in float64 without the rows and columns that are zero; None where
    the matrix gives only products. eps: the rounding unit of the caller's numbers.
    """

    matrix: Any
    entries: Any
    unit: float
    eps: float

    @property
    def shape(self) -> tuple[int, int]:
        m, n = self.matrix.shape
        return int(m), int(n)

    @property
    def dense(self) -> bool:
        return isinstance(self.entries, np.ndarray)


def observed(A: Operand) -> Data:
    """Return a matrix as Data. Its entries are copied once, in float64."""
    largest, eps = A.largest(), A.space.returned_eps
    exponent = int(np.frexp(largest)[1]) if largest > 0 else 0
    scaled, unit = A.scaled(-exponent), float(np.ldexp(1.0, exponent))
    if scaled.in_memory:
        entries: Any = np.asarray(to_numpy(scaled.entries), np.float64)
        nonzero = entries != 0
        rows, columns = nonzero.any(axis=1), nonzero.any(axis=0)
    else:
        if (kept := as_scipy(scaled)) is None:
            return Data(scaled, None, unit, eps)
        entries = kept.tocsr().astype(np.float64)
        places = entries.nonzero()
        rows, columns = (np.bincount(x, minlength=size) > 0 for x, size in zip(places, entries.shape, strict=True))
    if not (rows.all() and columns.all()):
        entries = entries[rows][:, columns]
    return Data(entries, entries, unit, eps)


def _triplets(X: Any, k: int, seed: int) -> tuple[Any, Any, Any]:
    """Return U, s and Vt of the k leading triplets of an array or sparse matrix, or of all where that is no dearer."""
    if isinstance(X, np.ndarray) and min(X.shape) <= WHOLE:
        U, s, Vt = np.linalg.svd(X, full_matrices=False)
        return U, s, Vt
    found = svd(X, min(k, *X.shape), tol=RESIDUAL, seed=seed)
    return found.U, found.s, found.Vt


def largest_value(X: Any, seed: int) -> float:
    """Return ‖X‖₂ of an array or sparse matrix, whose smaller side is 1 or more."""
    if isinstance(X, np.ndarray) and min(X.shape) <= WHOLE:
        gram = X @ X.T if X.shape[0] < X.shape[1] else X.T @ X  # the largest value loses nothing by squaring
        return math.sqrt(float(np.linalg.eigvalsh(gram)[-1]))
    return float(svd(X, 1, tol=RESIDUAL, seed=seed).s[0])


def values_of(data: Data, k: int, seed: int) -> Values:
    """Return the k leading singular values, or all where that is no dearer."""
    if min(data.shape) <= WHOLE:
        s = np.linalg.svd(data.entries, compute_uv=False) if data.dense else svd(data.matrix, seed=seed).s
        return Values(np.asarray(s, np.float64), data.shape)
    found = svd(data.matrix, min(k, *data.shape), tol=RESIDUAL, seed=seed)
    if data.entries is None:
        return values_of_svd(found)
    squares = np.sum(np.square(data.entries if data.dense else data.entries.data))
    rest = max(float(squares - np.sum(found.s**2)), 0.0)  # where it cancels, the certificate is the better bound
    return Values(found.s, data.shape, min(rest, float(found.error.frobenius) ** 2))


def values_of_svd(found: SVD) -> Values:
    """Return the singular values of an SVD, and what its certificate says of the rest.

    UsageError: a stack; an SVD that does not know how much it left out.
    """
    if found.s.ndim != 1:
        raise UsageError(f"an SVD of a stack {tuple(found.s.shape[:-1])} has many ranks", fix="choose one of each")
    s = np.asarray(to_numpy(found.s), np.float64)
    shape = int(found.U.shape[0]), int(found.Vt.shape[1])
    if len(s) == min(shape):
        return Values(s, shape)
    if found.error.failure > FAILURE or not np.isfinite(found.error.frobenius):  # not from ‖A‖_F, but from probes
        raise UsageError(
            f"noise is told by the Frobenius norm of what {len(s)} triplets leave of a {shape[0]} x {shape[1]} matrix, "
            "and products alone only bound that",
            fix="pass an array or a scipy.sparse matrix, or all singular values with shape=",
        )
    return Values(s, shape, float(found.error.frobenius) ** 2)


def divided(X: Any, rows: Any, columns: Any) -> Any:
    """Return an array or sparse matrix with every row and every column divided by a number."""
    if isinstance(X, np.ndarray):
        return X / rows[:, None] / columns
    from scipy.sparse import diags_array

    return (diags_array(1 / rows) @ X @ diags_array(1 / columns)).tocsr()


def leading_above(X: Any, threshold: float, k: int, seed: int) -> tuple[Any, Any, Any]:
    """Return leading triplets, those above the threshold all and the next one, if any; k: how many to try first."""
    while True:
        U, s, Vt = _triplets(X, k, seed)
        if len(s) == min(X.shape) or s[-1] <= threshold:
            return U, s, Vt
        k *= 2
