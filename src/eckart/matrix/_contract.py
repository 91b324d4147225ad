"""What may be asked of a matrix: by a caller's own class (Matrix), and by the engine (Operand)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

from eckart._arrays import Array, Space
from eckart._registry import Registry
from eckart.errors import NumericalError

__all__ = ["ByProducts", "InMemory", "Matrix", "Operand", "kinds", "nonfinite"]


@runtime_checkable
class Matrix(Protocol):
    """A real m x n matrix A known by its products; an object with these four attributes is a matrix to Eckart.

    shape: (m, n). dtype: a NumPy floating or integer type; blocks are given in it (integers: float64, halves: float32).
    matmat(X): A X of an (n, p) block. rmatmat(Y): Aᵀ Y of an (m, p) block. Neither may write to the block that it gets.
    Laws: both are linear; ⟨Y, matmat(X)⟩ = ⟨rmatmat(Y), X⟩ up to rounding; the same block gives the same bits.
    """

    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def dtype(self) -> Any: ...
    def matmat(self, X: Array, /) -> Array: ...
    def rmatmat(self, Y: Array, /) -> Array: ...


@runtime_checkable
class Operand(Matrix, Protocol):
    """A Matrix as the engine works on it: finite, in a type to compute with, with what it knows besides its products.

    Law: a product is computed in the wider of the block's and the matrix's type, or in the matrix's own.
    """

    @property
    def space(self) -> Space:
        """Return where blocks live, and in which type results are returned."""

    @property
    def in_memory(self) -> bool:
        """Say whether there is an m x n array of the entries."""

    @property
    def entries(self) -> Array:
        """Return that array, which counts as reading A once; None where it is not in memory."""

    @property
    def stored(self) -> int:
        """Return how many numbers one product reads; m + n where that is not known."""

    def largest(self) -> float:
        """Return the size of the entries, right to a factor of about sqrt(n); divided by it, squares stay in range."""

    def squared_norm(self, rows: Array = None, columns: Array = None) -> float | None:
        """Return an upper bound on ‖A‖_F² that exceeds it only by rounding; None where it is not at hand.

        rows: (m,), columns: (n,), float64, 0 or more: weights of the squares, Σ rows_i a_ij² columns_j; None: ones.
        """

    def scaled(self, exponent: int) -> Operand:
        """Return 2**exponent A."""


class InMemory(Operand, Protocol):
    """An Operand with in_memory true."""

    def panels(self) -> Iterator[tuple[slice, Array]]:
        """Give the entries in float64, some rows at a time, each time with their place. It reads A once."""


class ByProducts:
    """What an operand says that has no array of its entries."""

    @property
    def in_memory(self) -> bool:
        return False

    @property
    def entries(self) -> Array:
        return None


kinds: Registry[Callable[[Any], Operand]] = Registry()


def nonfinite(value: object, row: int, column: int, stack: tuple[int, ...] = ()) -> NumericalError:
    """Return the error to raise for an entry that is not finite, the first one in reading order."""
    matrix = f"matrix {stack} of the stack" if stack else "the matrix"
    return NumericalError(
        f"{matrix} is not finite: the entry in row {row}, column {column} is {value}",
        fix="find out where it comes from, then replace or drop it",
    )
