"""What an algorithm gives back, and the last step that they share."""

from __future__ import annotations

from dataclasses import dataclass

from eckart._arrays import Array
from eckart.errors import NumericalError
from eckart.matrix import Operand

__all__ = ["Factors", "restricted", "thin"]


@dataclass(frozen=True, eq=False)
class Factors:
    """U (m, k), s (k,) descending, Vt (k, n) as an algorithm found them, its name, and whether it vouches for them.

    sound: False where a check says that these need not be the k largest.
    """

    U: Array
    s: Array
    Vt: Array
    method: str
    sound: bool = True


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
