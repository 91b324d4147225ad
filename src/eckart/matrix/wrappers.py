"""Views of a matrix that are never formed: transposed, with its column means taken off, weighted, counted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from eckart._arrays import Array, Space, enter, power_of_two, to_numpy
from eckart.errors import UsageError
from eckart.matrix._contract import ByProducts, InMemory, Operand
from eckart.matrix.dense import Dense

__all__ = ["Centred", "Counted", "Transposed", "Weighted", "centred", "transposed", "weighted"]


def transposed(A: Operand) -> Operand:
    """Return Aᵀ."""
    if isinstance(A, Dense):
        return A.T
    if isinstance(A, Weighted):
        return Weighted(transposed(A.base), A.columns, A.rows)
    return A.base if isinstance(A, Transposed) else Transposed(A)


def centred(A: Operand, weights: Any = None) -> Operand:
    """Return A - 1 meanᵀ with the mean of each column, a view for which A is read once.

    weights: (m,), 0 or more with a positive sum: those of a weighted mean, Σ w_i a_i / Σ w_i; None: all equal. The best
    low-rank approximation in the norm Σ w_i ‖·‖² is that of weighted(centred(A, w), rows=sqrt(w)).
    """
    m, space = A.shape[0], A.space
    if m == 0:
        return A
    # A block of float64, since float32 numbers added one after the other lose up to log2(m) bits.
    w = _vector(A, np.ones(m) if weights is None else weights, m, "rows")
    total = float(space.xp.sum(w))
    if bool(space.xp.any(w < 0)) or not total > 0:
        raise UsageError("the weights of a mean are 0 or more, and one of them is more", fix="pass other weights")
    mean = space.double(A.rmatmat(w[:, None]))[:, 0] / total
    if isinstance(A, Dense) and A.offset is None:
        return replace(A, offset=mean[None, :])
    return Centred(A, mean, w)


def weighted(A: Operand, *, rows: Any = None, columns: Any = None) -> Operand:
    """Return diag(rows) A diag(columns), a view. rows: (m,), columns: (n,), finite; None: ones.

    Columns scaled to unit length are weighted(A, columns=1 / lengths). UsageError: another length, or not finite.
    """
    m, n = A.shape
    if rows is None and columns is None:
        return A
    return Weighted(
        A,
        None if rows is None else _vector(A, rows, m, "rows"),
        None if columns is None else _vector(A, columns, n, "columns"),
    )


def _vector(A: Operand, x: Any, size: int, of: str) -> Array:
    """Return weights in float64 where A is."""
    values = np.asarray(to_numpy(enter(x)[0]), np.float64)
    if values.shape != (size,):
        raise UsageError(f"weights of shape {values.shape} given for {size} {of}", fix=f"pass {size} numbers")
    if not np.isfinite(values).all():
        raise UsageError(f"the weight {int(np.argmin(np.isfinite(values)))} of the {of} is not finite")
    return A.space.xp.asarray(values, dtype=A.space.xp.float64, device=A.space.device)


@dataclass(eq=False)
class _View:
    """What a view has from the matrix below it."""

    base: Operand

    @property
    def shape(self) -> tuple[int, int]:
        return self.base.shape

    @property
    def dtype(self) -> Any:
        return self.base.dtype

    @property
    def space(self) -> Space:
        return self.base.space

    @property
    def in_memory(self) -> bool:
        return self.base.in_memory

    @property
    def entries(self) -> Array:
        return self.base.entries

    @property
    def stored(self) -> int:
        return self.base.stored

    def panels(self) -> Iterator[tuple[slice, Array]]:
        return cast(InMemory, self.base).panels()

    def matmat(self, X: Array, /) -> Array:
        return self.base.matmat(X)

    def rmatmat(self, Y: Array, /) -> Array:
        return self.base.rmatmat(Y)

    def largest(self) -> float:
        return self.base.largest()

    def squared_norm(self, rows: Array = None, columns: Array = None) -> float | None:
        return self.base.squared_norm(rows, columns)

    def scaled(self, exponent: int) -> Operand:
        return replace(self, base=self.base.scaled(exponent))


class Transposed(_View):
    """Aᵀ: the two products change places."""

    @property
    def shape(self) -> tuple[int, int]:
        m, n = self.base.shape
        return n, m

    def matmat(self, X: Array, /) -> Array:
        return self.base.rmatmat(X)

    def rmatmat(self, Y: Array, /) -> Array:
        return self.base.matmat(Y)

    def squared_norm(self, rows: Array = None, columns: Array = None) -> float | None:
        return self.base.squared_norm(columns, rows)


@dataclass(eq=False)
class Centred(ByProducts, _View):
    """A - 1 meanᵀ, known by its products.

    mean: (n,), float64, of rows with these weights (m,). Products come in float64 too, for the subtraction may cancel
    most of A X.
    """

    mean: Array
    weights: Array

    def matmat(self, X: Array, /) -> Array:
        X = self.space.double(X)
        return self.base.matmat(X) - self.mean @ X

    def rmatmat(self, Y: Array, /) -> Array:
        Y = self.space.double(Y)
        return self.base.rmatmat(Y) - self.mean[:, None] * self.space.xp.sum(Y, axis=0)

    def squared_norm(self, rows: Array = None, columns: Array = None) -> float | None:
        whole, xp, m = self.base.squared_norm(rows, columns), self.space.xp, self.shape[0]
        if whole is None:
            return None
        rows = 0 * self.weights + 1 if rows is None else rows
        mean = self.mean if columns is None else self.mean * columns
        total = float(xp.sum(rows))
        if bool(xp.all(xp.abs(rows - self.weights) <= 2.0**-50 * self.weights)):
            sums = total * self.mean  # by what a mean is: no product
        else:
            sums = self.space.double(self.base.rmatmat(rows[:, None]))[:, 0]
        shift = total * float(xp.sum(mean * self.mean))
        rounding = 4 * (m + 16) * 2.0**-52 * (whole + shift)  # of sums of m terms, in the means and in `sums`
        return max(whole - 2 * float(xp.sum(mean * sums)) + shift + rounding, 0.0)

    def scaled(self, exponent: int) -> Operand:
        return Centred(self.base.scaled(exponent), power_of_two(self.mean, exponent), self.weights)


@dataclass(eq=False)
class Weighted(_View):
    """diag(rows) A diag(columns). rows: (m,), columns: (n,), float64; None: ones."""

    rows: Array
    columns: Array

    @property
    def entries(self) -> Array:
        """Return an array of the entries, where A has one; it is made anew at each call."""
        if not self.in_memory:
            return None
        entries = self.space.xp.empty(self.shape, dtype=self.space.dtype, device=self.space.device)
        for rows, block in self.panels():
            entries[rows, :] = self.space.single(block)
        return entries

    def panels(self) -> Iterator[tuple[slice, Array]]:
        for rows, block in cast(InMemory, self.base).panels():
            if self.rows is not None:
                block = block * self.rows[rows, None]
            yield rows, block if self.columns is None else block * self.columns

    def matmat(self, X: Array, /) -> Array:
        return self._times(self.rows, self.base.matmat(self._times(self.columns, X)))

    def rmatmat(self, Y: Array, /) -> Array:
        return self._times(self.columns, self.base.rmatmat(self._times(self.rows, Y)))

    def largest(self) -> float:
        """Return the size of the product with a random vector: weights need not stand where the large entries are."""
        x = self.space.double(self.space.normal((self.shape[1], 1), seed=0))
        return float(np.max(np.abs(to_numpy(self.matmat(x))), initial=0.0))

    def squared_norm(self, rows: Array = None, columns: Array = None) -> float | None:
        return self.base.squared_norm(_squares(self.rows, rows), _squares(self.columns, columns))

    def scaled(self, exponent: int) -> Operand:
        if self.columns is not None:
            return Weighted(self.base, self.rows, power_of_two(self.columns, exponent))
        return Weighted(self.base, power_of_two(self.rows, exponent), None)

    def _times(self, weights: Array, block: Array) -> Array:
        """Return diag(weights) times a block, in the type of the block."""
        return block if weights is None else self.space.xp.astype(weights[:, None], block.dtype) * block


def _squares(weights: Array, others: Array) -> Array:
    """Return weights² others, where None stands for ones."""
    if weights is None:
        return others
    return weights**2 if others is None else weights**2 * others


@dataclass(eq=False)
class Counted(_View):
    """A, and how often it was read: by a product, or by asking for its entries."""

    passes: int = 0

    @property
    def entries(self) -> Array:
        self.passes += self.in_memory
        return self.base.entries

    def panels(self) -> Iterator[tuple[slice, Array]]:
        self.passes += 1
        return cast(InMemory, self.base).panels()

    def matmat(self, X: Array, /) -> Array:
        self.passes += 1
        return self.base.matmat(X)

    def rmatmat(self, Y: Array, /) -> Array:
        self.passes += 1
        return self.base.rmatmat(Y)
