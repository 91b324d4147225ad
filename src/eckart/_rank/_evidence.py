"""What is known of the matrix whose rank is asked: its entries or not, and as many singular values as a rule needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from eckart._arguments import is_whole
from eckart._arrays import to_numpy
from eckart._decomposed import SVD
from eckart._rank._data import Data, observed, values_of, values_of_svd
from eckart._rank._values import MoreValuesNeeded, Values
from eckart.errors import NumericalError, UsageError
from eckart.matrix import as_matrix

__all__ = ["Evidence", "gathered"]

FIRST = 16  # values that are computed of a large matrix before a rule asks for more
EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}

T = TypeVar("T")


@dataclass(eq=False)
class Evidence:
    """values: in units of `unit`; as rules ask for more of them they are computed, where there is data.

    shape: (m, n) as the caller has it, with its rows and columns of zeros. eps: the rounding unit of the values.
    """

    data: Data | None
    values: Values
    shape: tuple[int, int]
    unit: float
    eps: float
    seed: int

    def ask(self, rule: Callable[[Values], T]) -> T:
        """Return what a rule makes of the values that are not zero. UsageError: it needs more than were given."""
        while True:
            try:
                return self.put(rule)
            except MoreValuesNeeded:
                if self.data is None:
                    raise UsageError(
                        f"the rule keeps all {len(self.values.s)} singular values that were given, and there are more",
                        fix="pass an SVD of more of them, or the matrix",
                    ) from None
                self.values = values_of(self.data, 2 * len(self.values.s), self.seed)

    def put(self, rule: Callable[[Values], T]) -> T:
        """Return what a rule makes of the values known so far. MoreValuesNeeded: it needs more."""
        values, rank = self.values, self.numerical_rank
        if values.complete and rank is not None and rank < values.short:
            # A matrix with centred rows, say, is one of fewer rows in another basis, and noise in it is noise there.
            values = Values(values.s[:rank], (values.long, rank))
        return rule(values)

    @property
    def numerical_rank(self) -> int | None:
        """Return how many values are more than rounding; None where values that are not known could be."""
        values = self.values
        rounding = max(self.shape) * self.eps * float(np.max(values.s, initial=0.0))
        known = values.complete or values.rest <= rounding**2
        return int(np.count_nonzero(values.s > rounding)) if known else None

    @property
    def noise_free(self) -> bool:
        """Say whether half of all values or more are zero: noise, which has none, is not in such a matrix."""
        rank = self.numerical_rank
        return rank is not None and rank <= self.values.short / 2 and rank < self.values.short


def gathered(A: Any, shape: Any, seed: int) -> Evidence:
    """Return the evidence in a matrix, in an SVD, or, where a shape is given, in all singular values of a matrix.

    UsageError: another kind of object, or values that do not belong to the shape. NumericalError: NaN or infinity.
    """
    if shape is not None:
        values = _given(A, shape)
        return Evidence(None, values, values.shape, 1.0, EPS["float64"], seed)
    if isinstance(A, SVD):
        values = values_of_svd(A)
        return Evidence(None, values, values.shape, 1.0, EPS[str(A.s.dtype).rpartition(".")[2]], seed)
    if isinstance(A, np.ndarray) and A.ndim == 1:
        raise UsageError(
            f"an array of shape {A.shape} is not a matrix", fix="pass shape=(m, n) if it holds all singular values"
        )
    matrix = as_matrix(A)
    data = observed(matrix)
    m, n = matrix.shape
    values = values_of(data, FIRST, seed) if min(data.shape) else Values(np.zeros(0), data.shape)
    return Evidence(data, values, (int(m), int(n)), data.unit, data.eps, seed)


def _given(s: Any, shape: Any) -> Values:
    """Return values that a caller gave with the shape of their matrix."""
    if not (
        isinstance(shape, tuple | list) and len(shape) == 2 and all(is_whole(size) and size >= 0 for size in shape)
    ):
        raise UsageError(f"shape = {shape!r} is not the shape of a matrix", fix="pass shape=(m, n)")
    values = np.asarray(s if isinstance(s, list | tuple) else to_numpy(s), np.float64)
    m, n = int(shape[0]), int(shape[1])
    if values.shape != (min(m, n),):
        raise UsageError(
            f"shape = {(m, n)} goes with all {min(m, n)} singular values, and an array {values.shape} was given",
            fix="pass all of them, or the matrix or its SVD without shape=",
        )
    if not np.isfinite(values).all():
        raise NumericalError(f"singular value {int(np.argmin(np.isfinite(values)))} is not finite")
    if (values < 0).any() or (np.diff(values) > 0).any():
        raise UsageError("singular values are 0 or more and descending", fix="sort them, or pass the matrix")
    return Values(values, (m, n))
