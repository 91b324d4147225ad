"""Views of a matrix that are never formed: transposed, with its column means taken off, counted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from eckart._arrays import Array, Space, power_of_two
from eckart.matrix._contract import Operand
from eckart.matrix.dense import Dense

__all__ = ["Centred", "Counted", "Transposed", "centred", "transposed"]


def transposed(A: Operand) -> Operand:
    """Return Aᵀ."""
    if isinstance(A, Dense):
        return A.T
    return A.base if isinstance(A, Transposed) else Transposed(A)


def centred(A: Operand) -> Operand:
    """Return A with the mean of each column taken off, a view for which A is read once."""
    m, space = A.shape[0], A.space
    if m == 0:
        return A
    # A block of float64, since float32 numbers added one after the other lose up to log2(m) bits.
    ones = space.double(space.asarray(np.ones((m, 1))))
    mean = space.double(A.rmatmat(ones))[:, 0] / m
    if isinstance(A, Dense) and A.offset is None:
        return replace(A, offset=mean[None, :])
    return Centred(A, mean)


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

    def matmat(self, X: Array, /) -> Array:
        return self.base.matmat(X)

    def rmatmat(self, Y: Array, /) -> Array:
        return self.base.rmatmat(Y)

    def largest(self) -> float:
        return self.base.largest()

    def squared_norm(self) -> float | None:
        return self.base.squared_norm()

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


@dataclass(eq=False)
class Centred(_View):
    """A - 1 meanᵀ. mean: (n,), float64; products come in float64 too, for the subtraction may cancel most of A X."""

    mean: Array

    def matmat(self, X: Array, /) -> Array:
        X = self.space.double(X)
        return self.base.matmat(X) - self.mean @ X

    def rmatmat(self, Y: Array, /) -> Array:
        Y = self.space.double(Y)
        return self.base.rmatmat(Y) - self.mean[:, None] * self.space.xp.sum(Y, axis=0)

    def squared_norm(self) -> float | None:
        whole, m = self.base.squared_norm(), self.shape[0]
        if whole is None:
            return None
        rounding = 4 * m * 2.0**-52  # of the means, each a sum of m terms
        return max(whole * (1 + rounding) - m * float(self.space.xp.sum(self.mean**2)), 0.0)

    def scaled(self, exponent: int) -> Operand:
        return Centred(self.base.scaled(exponent), power_of_two(self.mean, exponent))


@dataclass(eq=False)
class Counted(_View):
    """A, and how often it was read: by a product, or by asking for its entries."""

    passes: int = 0

    @property
    def entries(self) -> Array:
        self.passes += self.in_memory
        return self.base.entries

    def matmat(self, X: Array, /) -> Array:
        self.passes += 1
        return self.base.matmat(X)

    def rmatmat(self, Y: Array, /) -> Array:
        self.passes += 1
        return self.base.rmatmat(Y)
