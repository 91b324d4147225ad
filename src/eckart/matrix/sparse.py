"""scipy.sparse matrices and arrays of every format. They are never densified, and SciPy is not imported for them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from eckart._arrays import Array, Space, numpy_space, power_of_two
from eckart._kernels import first_nonfinite
from eckart._kernels.csr import CompressedRows, form
from eckart.errors import NumericalError, UsageError
from eckart.matrix._contract import ByProducts, Operand, kinds, nonfinite
from eckart.matrix.wrappers import Transposed, transposed

__all__ = ["Sparse", "as_scipy", "sparse"]

BLOCK_ENTRIES = 1 << 16  # squared at a time, so that the squares stay in the cache


@dataclass(frozen=True, eq=False)
class Sparse(ByProducts):
    """A matrix in compressed rows."""

    rows: CompressedRows
    space: Space

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows.shape

    @property
    def dtype(self) -> Any:
        return self.rows.values.dtype

    @property
    def stored(self) -> int:
        return self.rows.stored

    def matmat(self, X: Array, /) -> Array:
        return self.rows.matmat(X)

    def rmatmat(self, Y: Array, /) -> Array:
        return self.rows.rmatmat(Y)

    def largest(self) -> float:
        values = self.rows.values
        return max(float(values.max(initial=0)), -float(values.min(initial=0)))  # |values| would be a copy

    def squared_norm(self, rows: Array = None, columns: Array = None) -> float:
        matrix, sums = self.rows, []
        for start in range(0, self.stored, BLOCK_ENTRIES):
            block = slice(start, start + BLOCK_ENTRIES)
            squares = np.square(matrix.values[block], dtype=np.float64)
            if columns is not None:
                squares *= columns[matrix.indices[block]]
            if rows is not None:
                places = np.arange(start, start + len(squares))
                squares *= rows[np.searchsorted(matrix.indptr, places, side="right") - 1]
            sums.append(float(np.sum(squares)))
        rounding = 1 + 2.0**-44  # NumPy sums in pairs: 16 + log2(BLOCK_ENTRIES) roundings of 2**-53, three of each term
        return math.fsum(sums) * rounding

    def scaled(self, exponent: int) -> Sparse:
        return Sparse(replace(self.rows, values=power_of_two(self.rows.values, exponent)), self.space)


@kinds.claim("scipy.sparse._matrix.spmatrix", "scipy.sparse._base.sparray")
def _given(x: Any) -> Operand:
    return sparse(x, numpy_space(x.dtype))


def sparse(x: Any, space: Space) -> Operand:
    """Return a scipy.sparse matrix or array as a matrix. x is not changed, and its arrays are shared where they serve:
    compressed rows, or columns, which are the rows of the transpose, with ascending indices.

    UsageError: a sparse array of other than two dimensions, or with indices outside its shape.
    NumericalError: NaN or infinity.
    """
    if len(x.shape) != 2:
        raise UsageError(f"a sparse array of shape {x.shape} is not a matrix", fix="reshape it to two dimensions")
    return transposed(_rows(x.T, space, in_columns=True)) if x.format == "csc" else _rows(x, space, in_columns=False)


def as_scipy(A: Operand) -> Any:
    """Return a scipy.sparse array that shares the memory of A, or None where A is no sparse matrix or its transpose."""
    if isinstance(A, Transposed):
        base = as_scipy(A.base)
        return None if base is None else base.T
    return A.rows.scipy() if isinstance(A, Sparse) else None


def _rows(x: Any, space: Space, in_columns: bool) -> Operand:
    """Return x in compressed rows. in_columns: x is the transpose of what the caller gave."""
    # The type first: duplicates of an int8 matrix would overflow where they are added up.
    csr = x.astype(space.dtype, copy=False).tocsr()
    shape = (int(csr.shape[0]), int(csr.shape[1]))
    found = form(shape, *_pointers(csr))
    if found == "unordered":
        csr = csr.copy()
        csr.has_sorted_indices = False  # whatever its maker claimed
        csr.sum_duplicates()
    elif found == "broken":
        raise UsageError(
            f"a row of the sparse matrix of shape {x.shape} reaches outside its arrays, or an index outside the shape",
            fix="A.check_format() says which; build it again",
        )
    indptr, indices = _pointers(csr)
    values = np.require(csr.data[: indptr[-1]], space.dtype, ["C", "A"])
    if (place := first_nonfinite(values)) is not None:
        raise _first(indptr, indices, values, in_columns, place)
    return Sparse(CompressedRows(shape, indptr, indices, values), space)


def _pointers(csr: Any) -> tuple[Array, Array]:
    """Return indptr, and the indices that have a value, in one type."""
    wide = np.int32 if csr.indptr.dtype == csr.indices.dtype == np.int32 else np.int64
    return np.require(csr.indptr, wide, ["C", "A"]), np.require(csr.indices[: csr.data.size], wide, ["C", "A"])


def _first(indptr: Array, indices: Array, values: Array, in_columns: bool, place: int) -> NumericalError:
    """Return the error for the first entry in reading order that is not finite; place: of the first one stored."""
    places = np.flatnonzero(~np.isfinite(values)) if in_columns else np.array([place])
    lines = np.searchsorted(indptr, places, side="right") - 1
    rows, columns = (indices[places], lines) if in_columns else (lines, indices[places])
    first = np.lexsort((columns, rows))[0]
    return nonfinite(values[places[first]], int(rows[first]), int(columns[first]))
