"""scipy.sparse matrices and arrays of every format. They are never densified, and SciPy is not imported for them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from eckart._arrays import Array, Space, numpy_space, power_of_two
from eckart.errors import UsageError
from eckart.matrix._contract import kinds, nonfinite

__all__ = ["Sparse"]

BLOCK_ENTRIES = 2**18  # squared at a time, so that no second array as long as the matrix's is made


@dataclass(frozen=True, eq=False)
class Sparse:
    """A matrix in compressed rows, indices sorted and without duplicates."""

    rows: Any
    space: Space

    @property
    def shape(self) -> tuple[int, int]:
        m, n = self.rows.shape
        return int(m), int(n)

    @property
    def dtype(self) -> Any:
        return self.rows.dtype

    @property
    def in_memory(self) -> bool:
        return False

    @property
    def entries(self) -> None:
        return None

    @property
    def stored(self) -> int:
        return int(self.rows.nnz)

    def matmat(self, X: Array, /) -> Array:
        return self.rows @ X

    def rmatmat(self, Y: Array, /) -> Array:
        return self.rows.T @ Y

    def largest(self) -> float:
        return float(np.max(np.abs(self.rows.data), initial=0.0))

    def squared_norm(self, rows: Array = None, columns: Array = None) -> float:
        matrix, sums = self.rows, []
        for start in range(0, self.stored, BLOCK_ENTRIES):
            block = slice(start, start + BLOCK_ENTRIES)
            squares = np.square(matrix.data[block], dtype=np.float64)
            if columns is not None:
                squares *= columns[matrix.indices[block]]
            if rows is not None:
                places = np.arange(start, start + len(squares))
                squares *= rows[np.searchsorted(matrix.indptr, places, side="right") - 1]
            sums.append(float(np.sum(squares)))
        rounding = 1 + 2.0**-44  # NumPy sums in pairs: 16 + log2(nnz) roundings of 2**-53, and three of each term
        return math.fsum(sums) * rounding

    def scaled(self, exponent: int) -> Sparse:
        rows = self.rows.copy()
        rows.data = power_of_two(rows.data, exponent)
        return Sparse(rows, self.space)


@kinds.claim("scipy.sparse._matrix.spmatrix", "scipy.sparse._base.sparray")
def sparse(x: Any) -> Sparse:
    """Return a scipy.sparse matrix or array as a matrix; x is not changed, and shared where its form already serves.

    UsageError: a sparse array of other than two dimensions. NumericalError: NaN or infinity.
    """
    if len(x.shape) != 2:
        raise UsageError(f"a sparse array of shape {x.shape} is not a matrix", fix="reshape it to two dimensions")
    space = numpy_space(x.dtype)
    # The type first: duplicates of an int8 matrix would overflow where they are added up.
    rows = x.astype(space.dtype, copy=False).tocsr()
    if not rows.has_canonical_format:
        rows = rows.copy()
        rows.sum_duplicates()
    finite = np.isfinite(rows.data)
    if not finite.all():
        first = int(np.argmin(finite))
        row = int(np.searchsorted(rows.indptr, first, side="right")) - 1
        raise nonfinite(rows.data[first], row, int(rows.indices[first]))
    return Sparse(rows, space)
