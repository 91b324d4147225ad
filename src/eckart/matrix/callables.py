"""Objects that give products and nothing else: scipy's LinearOperator, or any class with the attributes of Matrix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from eckart._arrays import Array, Space, numpy_space, power_of_two
from eckart.errors import NumericalError, UsageError
from eckart.matrix._contract import ByProducts, Matrix, nonfinite

__all__ = ["Products", "products"]


@dataclass(frozen=True, eq=False)
class Products(ByProducts):
    """A matrix known by its products. Each one is checked, since the code that makes it is the caller's."""

    given: Matrix
    space: Space
    exponent: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        m, n = self.given.shape
        return int(m), int(n)

    @property
    def dtype(self) -> Any:
        return self.space.dtype

    @property
    def stored(self) -> int:
        return sum(self.shape)

    def matmat(self, X: Array, /) -> Array:
        product = self._product(self.given.matmat, X, self.shape[0])
        self._require_finite(product, "row", self.given.rmatmat, self.shape[0])
        return power_of_two(product, self.exponent)

    def rmatmat(self, Y: Array, /) -> Array:
        product = self._product(self.given.rmatmat, Y, self.shape[1])
        self._require_finite(product, "column", self.given.matmat, self.shape[1])
        return power_of_two(product, self.exponent)

    def largest(self) -> float:
        return float(np.max(np.abs(self.matmat(self.space.normal((self.shape[1], 1), seed=0))), initial=0.0))

    def squared_norm(self, rows: Array = None, columns: Array = None) -> None:
        return None

    def scaled(self, exponent: int) -> Products:
        return Products(self.given, self.space, self.exponent + exponent)

    def _product(self, multiply: Callable[[Array], Array], block: Array, size: int) -> Array:
        try:
            with np.errstate(invalid="ignore", over="ignore"):  # a NaN is reported below, with its place
                product = np.asarray(multiply(self.space.single(block)))
        except (NotImplementedError, TypeError) as error:  # what a LinearOperator without its adjoint raises
            raise UsageError(
                "the matrix failed to give one of its products",
                why=str(error),
                fix="define both A X (matmat, matvec) and Aᵀ Y (rmatmat, rmatvec)",
            ) from error
        if product.shape != (size, block.shape[1]):
            raise UsageError(
                f"the product of a {self.shape[0]} x {self.shape[1]} matrix with a block of shape {block.shape} "
                f"came back with shape {product.shape}",
                fix=f"return shape {(size, block.shape[1])} from matmat and rmatmat",
            )
        if np.iscomplexobj(product):
            raise UsageError("the matrix gives complex products; only real matrices are decomposed")
        return self.space.single(product)

    def _require_finite(self, product: Array, axis: str, other: Callable[[Array], Array], size: int) -> None:
        """Raise for a product that is not finite, with its place: this product names one axis, one more the other.

        Where the caller computes 0 times NaN, and several entries are not finite, the two need not be of one entry.
        """
        bad = ~np.isfinite(product).all(axis=1)
        if not bad.any():
            return
        here = int(np.argmax(bad))
        unit = np.zeros((size, 1))
        unit[here] = 1
        line = self._product(other, unit, sum(self.shape) - size)[:, 0]
        if np.isfinite(line).all():
            raise NumericalError(
                f"a product with the matrix leaves the range of {self.space.name} in {axis} {here}, its entries do not",
                fix="divide the matrix by its largest entry",
            )
        there = int(np.argmin(np.isfinite(line)))
        raise nonfinite(line[there], *((here, there) if axis == "row" else (there, here)))


def products(x: Matrix) -> Products:
    """Return an object that has the attributes of Matrix as an operand.

    UsageError: a shape that is not (m, n), or a dtype that is not one of NumPy's real ones.
    """
    shape = tuple(x.shape)
    if len(shape) != 2:
        raise UsageError(f"a matrix has a shape (m, n), and this object has {shape}", fix="correct its shape")
    try:
        dtype = np.dtype(x.dtype)
    except TypeError as error:
        raise UsageError(
            f"the dtype of a matrix must be NumPy's, and this object has {x.dtype!r}", fix="give it a NumPy dtype"
        ) from error
    return Products(x, numpy_space(dtype))
