"""What svd returns: the triplets with their certificate, and how they are cut, multiplied out, saved and read."""

from __future__ import annotations

import math
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from eckart import _algorithms as algorithms
from eckart._arguments import checked_fraction, checked_rank, is_real
from eckart._arrays import Array, Space, inside, own, space_of, stay, to_numpy
from eckart._files import write_whole
from eckart.errors import InputError, RankError, UsageError

__all__ = ["ARRAYS", "BOUNDS", "MALFORMED", "SVD", "Certificate", "certificate", "each_array"]

FILE_FORMAT = 2
# What NumPy, SciPy and zipfile raise on files that are damaged, cut short, encrypted or of another kind.
MALFORMED = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
ARRAYS = ("U", "s", "Vt", "residuals")
BOUNDS = ("spectral", "frobenius", "failure", "rest", "probe")


@dataclass(frozen=True, eq=False)
class Certificate:
    """Upper bounds on ‖A - U diag(s) Vt‖ in two norms, in the unit of A; for a stack, NumPy arrays of its shape.

    They hold for U, s and Vt as returned, whatever found them, except with probability `failure` over the random
    vectors that the measurement drew, whatever A is; 0 where none were drawn, and the bounds are certain. Rounding in
    the measurement is allowed for by its probable size. The measurement reads A twice at most.
    How sharp: to rounding where A is in memory or small. Elsewhere the Frobenius bound is sharp where it is a visible
    part of ‖A‖_F and else about 5 times too large; the spectral bound is too large by up to 1.1 n^(1/4), where what
    is left out is flat. Sources: eckart._algorithms._accuracy.
    rest: the spectral bound before any truncation; probe: what missed() needs of the measurement.
    """

    spectral: Any
    frobenius: Any
    failure: Any = 0.0
    rest: Any = math.inf
    probe: Any = 0.0

    def missed(self, value: float) -> float:
        """Return a bound on the probability that A has a singular value above this one that is not among s.

        value: one number, in the unit of A; for a stack, the bound is for its worst matrix. With value = (1 + δ) s_k
        this answers whether the k that were found are the k largest.
        """
        rests, failures, probes = (np.ravel(x) for x in (self.rest, self.failure, self.probe))
        return max((_missed(value, *one) for one in zip(rests, failures, probes, strict=True)), default=0.0)


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

        RankError: k outside 0 to the number of triplets. UsageError: both or neither given, or an error that is smaller
        than what this SVD left out.
        """
        if (k is None) == (error is None):
            raise UsageError("truncate takes k or error, one of them", fix="pass k=, or error=")
        if (export := space_of(self.s).export) is not stay:
            return each_array(each_array(self, inside).truncate(k, error=error), export)
        held = int(self.s.shape[-1])
        if error is not None:
            k = self._rank_within(checked_fraction(error))
        k = checked_rank(k, held, f"an SVD of {held} triplets")
        space = space_of(self.s)
        U, s, Vt = (space.double(x) for x in (self.U[..., :, k:held], self.s[..., k:], self.Vt[..., k:held, :]))
        # ‖U_rest diag(s_rest) Vt_rest‖ ≤ ‖U_rest‖ ‖s_rest‖ ‖Vt_rest‖, and ‖U_rest‖² ≤ 1 + ‖U_restᵀ U_rest - I‖_F
        stretch = _stretch(space, U) * _stretch(space, Vt.mT) * (1 + 2.0**-40)
        spectral = self.error.spectral + stretch * (to_numpy(s[..., 0]) if k < held else 0.0)
        unit = _unit(to_numpy(s))
        frobenius = self.error.frobenius + stretch * unit[..., 0] * np.linalg.norm(to_numpy(s) / unit, axis=-1)
        return replace(
            self,
            U=own(self.U[..., :, :k]),
            s=own(self.s[..., :k]),
            Vt=own(self.Vt[..., :k, :]),
            residuals=own(self.residuals[..., :k]),
            error=replace(self.error, spectral=spectral, frobenius=frobenius),
        )

    def reconstruct(self) -> Array:
        """Return U diag(s) Vt, (m, n), in the type of the factors."""
        space, k = space_of(self.s), int(self.s.shape[-1])
        U, s, Vt = (space.single(inside(x)) for x in (self.U[..., :, :k], self.s, self.Vt[..., :k, :]))
        return space.export(space.leave((U * s[..., None, :]) @ Vt))

    def numerical_rank(self, rtol: float | None = None) -> Any:
        """Return how many singular values of A are above rtol s_1: an int, or for a stack a NumPy array of its shape.

        rtol: None is max(m, n) eps of the factors' type, as in NumPy, torch and MATLAB.
        RankError: values that this SVD left out may be above rtol s_1 too.
        """
        counts = self._above(rtol).sum(axis=-1)
        return counts if counts.ndim else int(counts)

    def pinv(self, rtol: float | None = None) -> Array:
        """Return the pseudo-inverse of A, Σ v_i u_iᵀ / s_i over the singular values above rtol s_1: (n, m).

        rtol and RankError: as for numerical_rank. In the type of the factors; a 1 / s_i outside its range is infinite.
        Source: Moore, Bull. AMS 26, 1920; Penrose, Proc. Cambridge Phil. Soc. 51, 1955.

        >>> svd([[2.0, 0.0], [0.0, 0.0]]).pinv().tolist()
        [[0.5, 0.0], [0.0, 0.0]]
        """
        space, k, above = space_of(self.s), int(self.s.shape[-1]), self._above(rtol)
        U, s, Vt = (space.single(inside(x)) for x in (self.U[..., :, :k], self.s, self.Vt[..., :k, :]))
        kept = space.xp.asarray(above, device=space.device)
        inverse = space.xp.where(kept, 1 / space.xp.where(kept, s, 1 + 0 * s), 0 * s)
        return space.export(space.leave((Vt.mT * inverse[..., None, :]) @ U.mT))

    @property
    def condition(self) -> Any:
        """Return s_1 / s_min(m, n), infinite where that is zero: a float, or for a stack a NumPy array of its shape.

        RankError: this SVD left the smallest singular values out, or there are none.
        """
        s, (m, n) = to_numpy(self.s).astype(np.float64), self._shape
        if s.shape[-1] < min(m, n) or min(m, n) == 0:
            raise RankError(
                f"the condition asked of {s.shape[-1]} singular values of a {m} x {n} matrix: it is the ratio of the "
                f"largest to the smallest of {min(m, n)}",
                fix="pass svd(A) without k and error" if min(m, n) else "pass a matrix that is not empty",
            )
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            ratio = np.where(s[..., -1] > 0, s[..., 0] / s[..., -1], math.inf)
        return ratio if ratio.ndim else float(ratio)

    def save(self, path: str | Path) -> None:
        """Write everything to a .npz file, whole or not at all. OutputError: it cannot be written."""
        values = {field.name: getattr(self, field.name) for field in fields(SVD) if field.name != "error"}
        arrays = {name: to_numpy(values.pop(name)) for name in ARRAYS}
        values |= {name: getattr(self.error, name) for name in BOUNDS} | {"format": FILE_FORMAT}
        with write_whole(Path(path)) as file:
            np.savez(file, allow_pickle=False, **arrays, **{name: np.asarray(value) for name, value in values.items()})

    @classmethod
    def load(cls, path: str | Path) -> SVD:
        """Return what save wrote, as NumPy arrays; what was bfloat16 is float32 with the same values.

        InputError: no such file, another kind of file, or one that is damaged. Nothing in it is executed.
        """
        try:
            with open(path, "rb") as opened:
                return _read(np.load(opened, allow_pickle=False))
        except OSError as error:
            raise InputError(f"{path} cannot be read", why=error.strerror or str(error), file=str(path)) from error
        except MALFORMED as error:
            raise InputError(
                f"{path} is not an SVD that Eckart saved",
                why=str(error),
                fix="write it again with SVD.save",
                file=str(path),
            ) from error

    @property
    def _shape(self) -> tuple[int, int]:
        """Return the dimensions of A, or of each matrix of a stack."""
        return int(self.U.shape[-2]), int(self.Vt.shape[-1])

    def _above(self, rtol: Any) -> Any:
        """Return which singular values are above rtol s_1, (..., k), NumPy. RankError: others may be as well."""
        s, (m, n) = to_numpy(self.s).astype(np.float64), self._shape
        if rtol is None:
            rtol = max(m, n) * space_of(self.s).returned_eps
        if not (is_real(rtol) and 0 <= rtol < math.inf):
            raise UsageError(f"rtol = {rtol!r} is not a part of s_1", fix="pass a number that is 0 or more, or None")
        limit = rtol * np.max(s, axis=-1, initial=0.0)
        above = s > limit[..., None]
        doubtful = above.all(axis=-1) & (np.asarray(self.error.spectral) > limit)
        if s.shape[-1] < min(m, n) and doubtful.any():
            raise RankError(
                f"the rank asked of {s.shape[-1]} singular values of a {m} x {n} matrix, all of them above "
                f"{rtol:.3g} s_1, and so may be those that were left out",
                fix="compute more singular values, or pass a larger rtol",
            )
        return above

    def _rank_within(self, error: float) -> int:
        """Return the smallest k whose tail, with what this SVD left out, is within error of the whole."""
        s, left_out = to_numpy(self.s).astype(np.float64), np.reshape(self.error.frobenius, (-1, 1))
        s = s.reshape(len(left_out), s.shape[-1])
        unit = _unit(s)
        k = algorithms.rank_within(s / unit, (left_out / unit) ** 2, error, space_of(self.s).eps)
        if k is None:
            raise UsageError(
                f"error = {error:g} asked of an SVD that left out up to {np.max(self.error.frobenius):.3g} in norm",
                fix="pass a larger error, or compute more singular values: svd(A, error=...)",
            )
        return k


def each_array(svd: SVD, change: Callable[[Array], Array]) -> SVD:
    """Return an SVD with its arrays changed, into those of another framework."""
    return replace(svd, **{name: change(getattr(svd, name)) for name in ARRAYS})


def _read(file: Any) -> SVD:
    """Return the SVD in a loaded .npz file; ValueError or KeyError where it is not whole and consistent."""
    if "format" not in getattr(file, "files", ()):
        raise ValueError("it has no format number")
    if int(file["format"]) != FILE_FORMAT:
        raise ValueError(f"its format is {int(file['format'])}, and this version of Eckart reads format {FILE_FORMAT}")
    arrays = {name: file[name] for name in (*ARRAYS, *BOUNDS)}
    for name, array in arrays.items():
        if array.dtype.kind != "f":
            raise ValueError(f"{name} holds {array.dtype} instead of floating numbers")
    *outer, k = arrays["s"].shape
    U, Vt = arrays["U"].shape, arrays["Vt"].shape
    same = arrays["residuals"].shape == (*outer, k) and all(arrays[name].shape == (*outer,) for name in BOUNDS)
    if not same or len(U) != len(Vt) != len(outer) + 2 or [*U[:-2], *Vt[:-2]] != outer * 2 or min(U[-1], Vt[-2]) < k:
        raise ValueError(f"the shapes {U}, {arrays['s'].shape} and {Vt} do not belong together")
    error = certificate(**{name: arrays.pop(name) for name in BOUNDS})
    return SVD(
        **arrays,
        error=error,
        method=str(file["method"]),
        passes=int(file["passes"]),
        converged=bool(file["converged"]),
    )


def certificate(**bounds: Any) -> Certificate:
    """Return a certificate of floats for one matrix, of arrays for a stack."""
    arrays = {name: np.asarray(value, np.float64) for name, value in bounds.items()}
    return Certificate(**{name: array if array.ndim else float(array) for name, array in arrays.items()})


def _missed(value: float, rest: float, failure: float, probe: float) -> float:
    probable = algorithms.left_out_probability(probe, value) if probe > 0 else 1.0
    return min(probable, float(failure)) if value > rest else probable


def _stretch(space: Space, X: Array) -> Any:
    """Return an upper bound on ‖X‖ for columns that are orthonormal up to rounding: NumPy, () or the stack's shape."""
    gram = X.mT @ X
    off = to_numpy(gram) - np.eye(gram.shape[-1])
    return np.sqrt(1 + np.sqrt((off**2).sum(axis=(-2, -1))))


def _unit(s: Any) -> Any:
    """Return a unit (..., 1) for each row of singular values in which no square leaves the range of float64."""
    largest = np.max(s, axis=-1, keepdims=True, initial=0.0)
    return largest + (largest == 0)
