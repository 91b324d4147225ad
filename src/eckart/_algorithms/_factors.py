"""What an algorithm is asked for, what it gives back, and the steps that several share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from eckart._algorithms._block import normalise_
from eckart._arrays import Array, Space
from eckart.errors import NumericalError
from eckart.matrix import Operand

__all__ = ["Factors", "Task", "restricted", "thin", "triplets"]


@dataclass(frozen=True, eq=False)
class Task:
    """k triplets with residuals of at most tol s_1; `seed` decides all that is random.

    start: (n, q), orthonormal columns near the right singular vectors that are wanted, or None.
    probe: False where it was made sure elsewhere that no larger value is left out.
    report: told after each step how many of the k are within the tolerance.
    """

    k: int
    tol: float
    seed: int
    start: Array | None = None
    probe: bool = True
    report: Callable[[int], None] = lambda converged: None

    def draws(self, space: Space, length: int) -> Callable[[int], Array]:
        """Return a function that gives so many new columns of normal numbers, other ones at each call."""
        rng = np.random.default_rng(self.seed)
        return lambda columns: space.asarray(rng.standard_normal((length, columns)))


@dataclass(frozen=True, eq=False)
class Factors:
    """U (m, p), s (p,) descending, Vt (p, n) with p >= k as an algorithm found them, and its name.

    sound: False where a check says that these need not be the k largest.
    """

    U: Array
    s: Array
    Vt: Array
    method: str
    sound: bool = True


def triplets(space: Space, U: Array, s: Any, V: Array, method: str) -> Factors:
    """Return factors from U (m, p), s and V (n, p) with A V = U diag(s), U and V orthonormal but for rounding.

    U and V are changed where they are, and s with their lengths.
    """
    s = s * normalise_(space, U) / normalise_(space, V)
    return Factors(U, space.asarray(np.minimum.accumulate(s)), V.T, method)


def restricted(A: Operand, basis: Array | None, k: int, method: str) -> Factors:
    """Return the k leading triplets of A on the range of a basis (n, p), p >= k; None stands for the whole space.

    A is multiplied once and nothing is squared, so that U and V are orthonormal whatever the rank of A.
    """
    space, n = A.space, A.shape[1]
    if basis is None:
        U, s, Vt = thin(space.double(A.matmat(space.unit(n, 0, n))), A)
    else:
        Q, _ = space.xp.linalg.qr(space.double(basis))
        U, s, Wt = thin(space.double(A.matmat(space.single(Q))), A)
        Vt = Wt @ Q.T
    return Factors(space.single(U[:, :k]), space.single(s[:k]), space.single(Vt[:k, :]), method)


def thin(X: Array, A: Operand) -> tuple[Array, Array, Array]:
    """Return LAPACK's thin SVD of X. NumericalError: it does not converge."""
    try:
        U, s, Vt = A.space.xp.linalg.svd(X, full_matrices=False)
    except Exception as error:
        if "LinAlgError" not in type(error).__name__:  # NumPy's and torch's have no base in common
            raise
        raise NumericalError(
            f"LAPACK's SVD of a {X.shape[0]} x {X.shape[1]} array did not converge",
            why=str(error),
            code="E-convergence",
        ) from error
    return U, s, Vt
