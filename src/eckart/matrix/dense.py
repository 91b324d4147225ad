"""Arrays in memory: NumPy and torch, any strides, alone or in a stack (..., m, n)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from eckart._arrays import Array, Space, enter, frameworks, power_of_two
from eckart.errors import UsageError
from eckart.matrix._contract import kinds, nonfinite

__all__ = ["Dense", "dense", "stack"]


@dataclass(frozen=True, eq=False)
class Dense:
    """A matrix whose entries are in memory."""

    entries: Array
    space: Space

    @property
    def shape(self) -> tuple[int, int]:
        m, n = self.entries.shape
        return int(m), int(n)

    @property
    def dtype(self) -> Any:
        return self.entries.dtype

    @property
    def in_memory(self) -> bool:
        return True

    @property
    def stored(self) -> int:
        return math.prod(self.shape)

    def matmat(self, X: Array, /) -> Array:
        return self.entries @ self.space.single(X)

    def rmatmat(self, Y: Array, /) -> Array:
        return self.entries.T @ self.space.single(Y)

    def largest(self) -> float:
        return float(self.space.xp.max(self.space.xp.abs(self.entries))) if self.stored else 0.0

    def squared_norm(self) -> None:
        return None

    def scaled(self, exponent: int) -> Dense:
        return Dense(power_of_two(self.entries, exponent), self.space)


@kinds.claim(*frameworks)
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
    _require_finite(array, space)
    if array.ndim == 2:
        return None, [Dense(array, space)]
    *outer, m, n = (int(size) for size in array.shape)
    count = math.prod(outer)
    if count == 0:
        return tuple(outer), [Dense(space.xp.zeros((m, n), dtype=space.dtype, device=space.device), space)]
    flat = space.xp.reshape(array, (count, m, n))
    return tuple(outer), [Dense(flat[i, ...], space) for i in range(count)]


def _require_finite(array: Array, space: Space) -> None:
    finite = space.xp.isfinite(array)
    if not bool(space.xp.all(finite)):
        *outer, row, column = (int(index[0]) for index in space.xp.nonzero(~finite))
        raise nonfinite(float(array[(*outer, row, column)]), row, column, tuple(outer))
