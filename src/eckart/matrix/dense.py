"""Arrays in memory: NumPy and torch, any strides, alone or in a stack (..., m, n)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from eckart._arrays import Array, Space, enter, frameworks, power_of_two, to_numpy
from eckart.errors import UsageError
from eckart.matrix._contract import kinds, nonfinite

__all__ = ["Dense", "dense", "stack"]

CONVERTED = 2**19  # entries converted at a time: 4 MiB in float64, which the product then finds in a cache
LOOKED_AT = 2**16  # entries looked at twice at a time: 256 KiB in float32, read from memory once


@dataclass(frozen=True, eq=False)
class Dense:
    """A matrix whose entries are in memory: array, or array - offset, of which only some rows are formed at a time.

    offset: (1, n) or (m, 1), float64. It is taken off before a product, not after it: float32 numbers far from zero
    would lose in the rounding of the product what the offset leaves over.
    """

    array: Array
    space: Space
    offset: Array = None

    @property
    def shape(self) -> tuple[int, int]:
        m, n = self.array.shape
        return int(m), int(n)

    @property
    def dtype(self) -> Any:
        return self.array.dtype

    @property
    def in_memory(self) -> bool:
        return True

    @property
    def T(self) -> Dense:
        return Dense(self.array.T, self.space, None if self.offset is None else self.offset.T)

    @property
    def entries(self) -> Array:
        """Return the array of the entries; where there is an offset, it is made anew at each call."""
        if self.offset is None:
            return self.array
        entries = self._empty(self.shape[1], self.dtype)
        for rows, block in self.panels():
            entries[rows, :] = self.space.single(block)
        return entries

    @property
    def stored(self) -> int:
        return math.prod(self.shape)

    def panels(self) -> Iterator[tuple[slice, Array]]:
        return self._panels(self.space.xp.float64)

    def matmat(self, X: Array, /) -> Array:
        X = self._widened(X)
        if self._is_ready_for(X):
            return self.array @ X
        product = self._empty(X.shape[1], X.dtype)
        for rows, block in self._panels(X.dtype):
            product[rows, :] = block @ X
        return product

    def rmatmat(self, Y: Array, /) -> Array:
        Y = self._widened(Y)
        if self._is_ready_for(Y):
            return self.array.T @ Y
        product = self.space.xp.zeros((self.shape[1], Y.shape[1]), dtype=Y.dtype, device=self.space.device)
        for rows, block in self._panels(Y.dtype):
            product += block.T @ Y[rows, :]
        return product

    def largest(self) -> float:
        return self._largest

    def squared_norm(self, rows: Array = None, columns: Array = None) -> float:
        return self._squared_norm if rows is None and columns is None else self._summed_squares(rows, columns)

    def scaled(self, exponent: int) -> Dense:
        offset = None if self.offset is None else power_of_two(self.offset, exponent)
        return Dense(power_of_two(self.array, exponent), self.space, offset)

    @cached_property
    def _largest(self) -> float:
        """Return the largest |entry| of array, not finite where one of them is not, without making |array|."""
        xp, largest = self.space.xp, 0.0
        for rows in self._slices(LOOKED_AT) if self.stored else ():
            block = self.array[rows, :]
            largest = max(float(xp.max(block)), -float(xp.min(block)), largest)  # in this order, NaN is the largest
            if not math.isfinite(largest):
                break
        return largest

    @cached_property
    def _squared_norm(self) -> float:
        return self._summed_squares(None, None)

    def _summed_squares(self, rows: Array, columns: Array) -> float:
        sums = []
        for place, block in self.panels():
            of_rows = self.space.xp.vecdot(block if columns is None else block * columns, block)
            sums.append(float(np.sum(to_numpy(of_rows if rows is None else of_rows * rows[place]))))
        # n - 1 additions, a square and two weights in each row; NumPy adds the rows in pairs; fsum is exact
        return math.fsum(sums) * (1 + (self.shape[1] + 64) * 2.0**-53)

    def _panels(self, dtype: Any) -> Iterator[tuple[slice, Array]]:
        """Give the entries in this type. float32 takes off the offset in two parts, together twice its own bits."""
        astype = self.space.xp.astype
        for rows in self._slices(CONVERTED):
            block = astype(self.array[rows, :], dtype, copy=False)
            if self.offset is not None:
                offset = self.offset if self.offset.shape[0] == 1 else self.offset[rows, :]
                part = astype(offset, dtype, copy=False)
                block = block - part
                if dtype != offset.dtype:
                    block -= astype(offset - self.space.double(part), dtype)
            yield rows, block

    def _slices(self, entries: int) -> Iterator[slice]:
        m, n = self.shape
        step = max(1, entries // max(n, 1))
        return (slice(start, min(start + step, m)) for start in range(0, m, step))

    def _widened(self, block: Array) -> Array:
        """Return a block in the wider of its own type and the matrix's."""
        return self.space.xp.astype(block, self.space.xp.result_type(block.dtype, self.dtype), copy=False)

    def _is_ready_for(self, block: Array) -> bool:
        return self.offset is None and self.dtype == block.dtype

    def _empty(self, columns: int, dtype: Any) -> Array:
        return self.space.xp.empty((self.shape[0], columns), dtype=dtype, device=self.space.device)


@kinds.claim(*(name for name in frameworks if name != "torch.Tensor"))  # which may be sparse
def dense(x: Any) -> Dense:
    """Return an array of two dimensions as a matrix.

    UsageError: other than two dimensions. NumericalError: NaN or infinity.
    """
    outer, (*matrices,) = stack(x)
    if outer is not None:
        raise UsageError(
            f"a stack of shape {tuple(x.shape)} is not one matrix", fix="pass A[i], or give the stack to eckart.svd"
        )
    return matrices[0]


def stack(x: Any) -> tuple[tuple[int, ...] | None, list[Dense]]:
    """Return the leading dimensions of an array (..., m, n), None where it has just two, and its matrices in order.

    Of a stack without matrices one zero matrix is given, so that its shape and type are known.
    """
    array, space = enter(x)
    if array.ndim < 2:
        raise UsageError(
            f"an array of shape {tuple(array.shape)} is not a matrix",
            fix="pass A[None, :] for one row, or A[:, None] for one column",
        )
    *outer, m, n = (int(size) for size in array.shape)
    if 0 in outer:
        return tuple(outer), [Dense(space.xp.zeros((m, n), dtype=space.dtype, device=space.device), space)]
    matrices: list[Dense] = []
    for index in np.ndindex(*outer):
        matrices.append(Dense(array[(*index, ...)], space))
        _require_finite(matrices[-1], index)
    return tuple(outer) if outer else None, matrices


def _require_finite(A: Dense, index: tuple[int, ...]) -> None:
    if math.isfinite(A.largest()):
        return
    for rows, block in A.panels():
        places = A.space.xp.nonzero(~A.space.xp.isfinite(block))
        if places[0].shape[0]:
            row, column = rows.start + int(places[0][0]), int(places[1][0])
            raise nonfinite(float(A.array[row, column]), row, column, index)
