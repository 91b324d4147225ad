"""The singular value decomposition of any matrix, with a measured certificate of its accuracy."""

from __future__ import annotations

import math
import operator
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from eckart import _algorithms as algorithms
from eckart._algorithms import Factors, Problem
from eckart._arrays import Array, Space, enter, power_of_two, space_of, to_numpy
from eckart._files import write_whole
from eckart.errors import InputError, NumericalError, RankError, UsageError
from eckart.matrix import Counted, Operand, as_matrices, centred, transposed

__all__ = ["SVD", "Certificate", "svd", "svd_full"]

FILE_FORMAT = 1
ORDINARY_EXPONENT = 16  # entries between 2**-16 and 2**16 have squares far inside every float's range: no scaled copy
# Two of the largest entries of a vector that differ by less are taken as equal, so that rounding does not choose its sign.
SIGN_MARGIN = 2.0**-10
WORKING_RESIDUAL = 8  # in units of eps sqrt(max(m, n)); LAPACK's stay below 2 of them, and ARPACK's mostly


@dataclass(frozen=True, eq=False)
class Certificate:
    """Upper bounds on ‖A - U diag(s) Vt‖ in two norms, in the unit of A; for a stack, NumPy arrays of its shape.

    Proven, with U, s and Vt as they were returned: the difference was measured in float64 after the fact, not predicted,
    and every rounding of the measurement is allowed for, given that a product with A is as accurate as a sum of products
    is, and that the eigenvalues of a symmetric n x n array G come within n eps ‖G‖_F. The spectral bound is sharp where
    A is in memory, or small, or k is large; of other matrices it equals the Frobenius bound, which then has a floor of
    about sqrt(n eps) ‖A‖_F. Both are infinite for a large matrix that gives nothing but products.
    """

    spectral: Any
    frobenius: Any


@dataclass(frozen=True, eq=False)
class SVD:
    """U (m, k), s (k,) descending and Vt (k, n) with A ≈ U diag(s) Vt; unpacks into these three.

    Columns of U and rows of Vt are orthonormal. The first entry of v_i within a thousandth of its largest is positive.
    residuals: (k,), max(‖A v_i - s_i u_i‖, ‖Aᵀ u_i - s_i v_i‖), measured. error: a Certificate.
    method: the algorithm that found them. passes: how often A was read for products or entries, measurements included.
    converged: the residuals are within what was asked, and no check found a larger singular value left out.
    For a stack, arrays have its leading dimensions, passes is the largest and converged means all.
    """

    U: Array
    s: Array
    Vt: Array
    residuals: Array
    error: Certificate
    method: str
    passes: int
    converged: bool

    def __iter__(self) -> Iterator[Array]:
        return iter((self.U, self.s, self.Vt))

    def truncate(self, k: int | None = None, *, error: float | None = None) -> SVD:
        """Return the leading k triplets, or as few as keep ‖A - A_k‖_F within error ‖A‖_F by this SVD's certificate.

        RankError: k outside 0 to the number of triplets. UsageError: not exactly one of the two given, or an error below
        what this SVD certifies.
        """
        if (k is None) == (error is None):
            raise UsageError("truncate takes k or error, one of them", fix="pass k=, or error=")
        held = int(self.s.shape[-1])
        if error is not None:
            k = self._rank_within(_fraction(error))
        k = _rank(k, held, f"an SVD of {held} triplets")
        space = space_of(self.s)
        U, s, Vt = (space.double(x) for x in (self.U[..., :, k:held], self.s[..., k:], self.Vt[..., k:held, :]))
        # ‖U_rest diag(s_rest) Vt_rest‖ ≤ ‖U_rest‖ ‖s_rest‖ ‖Vt_rest‖, and ‖U_rest‖² ≤ 1 + ‖U_restᵀ U_rest - I‖_F
        stretch = _stretch(space, U) * _stretch(space, Vt.mT) * (1 + 2.0**-40)
        spectral = self.error.spectral + stretch * (to_numpy(s[..., 0]) if k < held else 0.0)
        frobenius = self.error.frobenius + stretch * np.sqrt((to_numpy(s) ** 2).sum(axis=-1))
        return replace(
            self,
            U=self.U[..., :, :k],
            s=self.s[..., :k],
            Vt=self.Vt[..., :k, :],
            residuals=self.residuals[..., :k],
            error=_certificate(spectral, frobenius),
        )

    def reconstruct(self) -> Array:
        """Return U diag(s) Vt, (m, n), in the type of the factors."""
        space, k = space_of(self.s), int(self.s.shape[-1])
        U, s, Vt = (space.single(x) for x in (self.U[..., :, :k], self.s, self.Vt[..., :k, :]))
        return space.leave((U * s[..., None, :]) @ Vt)

    def save(self, path: str | Path) -> None:
        """Write everything to a .npz file, whole or not at all. OutputError: it cannot be written."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "error"}
        arrays = {name: to_numpy(values.pop(name)) for name in ("U", "s", "Vt", "residuals")}
        values |= {"spectral": self.error.spectral, "frobenius": self.error.frobenius, "format": FILE_FORMAT}
        with write_whole(Path(path)) as file:
            np.savez(file, **arrays, **{name: np.asarray(value) for name, value in values.items()})

    @classmethod
    def load(cls, path: str | Path) -> SVD:
        """Return what save wrote, as NumPy arrays; what was bfloat16 is float32 with the same values.

        InputError: no such file, another kind of file, or one that is damaged. Nothing in it is executed.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                return _read(file)
        except (OSError, EOFError, ValueError, TypeError, KeyError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
            raise InputError(
                f"{path} is not an SVD that Eckart saved", why=str(error), fix="write it again with SVD.save", file=str(path)
            ) from error

    def _rank_within(self, error: float) -> int:
        """Return the smallest k whose tail, with what this SVD left out, is within error of the whole."""
        s, left_out = np.atleast_2d(to_numpy(self.s).astype(np.float64)), np.reshape(self.error.frobenius, (-1, 1))
        tails = np.sqrt(_tails(s) + left_out**2)
        within = (tails <= error * tails[:, :1]).all(axis=0) & np.isfinite(tails).all()
        if not within.any():
            raise UsageError(
                f"error = {error:g} asked of an SVD that leaves {np.max(left_out / tails[:, :1]):.3g} of ‖A‖_F out",
                fix="pass a larger error, or compute more singular values: svd(A, error=...)",
            )
        return int(np.argmax(within))


@dataclass(frozen=True, eq=False)
class _Work:
    """A matrix as the algorithms expect it, (A or Aᵀ) 2**-exponent with m >= n, and how to come back."""

    A: Counted
    flipped: bool
    exponent: int


def svd(
    A: Any,
    k: int | None = None,
    *,
    tol: float | None = None,
    error: float | None = None,
    center: bool = False,
    method: str = "auto",
    seed: int = 0,
) -> SVD:
    """Return the k largest singular values of A with their vectors, and a bound on what they leave out.

    A: what as_matrix takes, or a stack (..., m, n) of arrays. k: 0 to min(m, n), which is also what None stands for.
    error: instead of k, the smallest k with ‖A - A_k‖_F ≤ error ‖A‖_F, for every matrix of a stack, up to rounding.
    tol: the largest residual that is wanted, as a fraction of s_1; None: working precision. Whether it was met is
    `.converged`. center: take off the mean of each column. method: "auto", "lapack", "arpack" or "gram".
    Arrays of the result have the type, device and float width of A (integers: float64); half floats are computed in float32
    and rounded at the end. The same A and seed give the same bits on one machine.
    RankError: a k that A cannot have. UsageError: any other argument. NumericalError: NaN or infinity in A, no convergence.

    >>> svd([[3.0, 0.0], [0.0, 4.0]]).s.tolist()
    [4.0, 3.0]
    """
    _require_options(k, tol, error, center, method, seed)
    outer, matrices = as_matrices(A)
    if outer is not None and not matrices:
        array, space = enter(A)
        one = svd(space.leave(space.xp.zeros_like(space.xp.sum(array, axis=tuple(range(len(outer)))))), k)
        return _stacked(outer, [one])
    works = [_prepared(matrix, center) for matrix in matrices]
    if error is None:
        (m, n), flipped = works[0].A.shape, works[0].flipped
        k = n if k is None else _rank(k, n, f"a {n if flipped else m} x {m if flipped else n} matrix")
        found = [_factors(work.A, k, tol, method, seed) for work in works]
    else:
        found = [_factors_within(work.A, error, tol, method, seed) for work in works]
    k = max(_rank_within(work.A, factors.s, error) for work, factors in zip(works, found, strict=True))
    results = [_finished(work, factors, k, tol) for work, factors in zip(works, found, strict=True)]
    return results[0] if outer is None else _stacked(outer, results)
