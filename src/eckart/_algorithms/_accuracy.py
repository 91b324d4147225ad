"""How far factors are from the matrix, measured on the factors that are returned and without trust in what found them.

With B = U diag(s) Vt as it stands, rounded and not quite orthonormal, and E = A - B, three ways bound ‖E‖ from above:
- entries: E itself, and the largest eigenvalue of its Gram matrix: sharp in both norms, about m n (n + k) flops;
- norms: ‖E‖_F² = ‖A‖_F² - 2 ⟨A, B⟩ + ‖B‖_F², from A V alone: sharp where B leaves out much of A, while the
  cancellation leaves sqrt(eps) ‖A‖_F where it does not;
- probes: for a Gaussian G (n, p), ‖E G‖_F² >= x ‖E‖_F² and ‖EᵀE G‖ >= sqrt(x) ‖E‖², but with a probability of at most
  (x/p e^(1 - x/p))^(p/2) each. That is Chernoff's bound for a sum of squares of p normal numbers; weights that add up
  to 1 make it no larger (first), and ‖EᵀE G‖ >= ‖E‖² ‖wᵀG‖ with the leading right vector w of E (second).
Two readings of A serve the residuals and the probes together.
Rounding: the probable size sqrt(p) eps / 2 of the relative error of a sum of p products is allowed for (Higham & Mary,
SIAM J. Sci. Comput. 41(5), 2019), and LAPACK's backward error, taken as n eps ‖·‖_F, in the largest eigenvalue. Entries
are compared in float64; products with A are in float32 only where what is measured is far above its rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from eckart._algorithms._block import squared
from eckart._arrays import Array, to_numpy
from eckart.matrix import Operand
from eckart.matrix._contract import InMemory

__all__ = ["Measured", "left_out_probability", "measure"]

EPS = 2.0**-52  # of float64
FREE_ENTRIES = 2**20  # a dense array of 8 MiB is made without asking what the matrix takes
FREE_FLOPS = 2**32  # comparing entries costs about 0.1 s here
MOST_ENTRIES = 2**24  # of a matrix that is not in memory
PANEL_ENTRIES = 2**18  # of U that are converted at once: 2 MiB
BLAS_BLOCK = 1024  # terms that a matrix product adds up in one go, at most
PROBES = 16  # columns of G
FAILURE = 1e-8  # the probability that one bound by probes is too small
VISIBLE = 1e-5  # of ‖A‖_F²: less, left out, could be rounding error of s in float32
SINGLE_SHARE = 0.5  # of the tolerance, that may be rounding error of float32


@dataclass(frozen=True, eq=False)
class Measured:
    """residuals: (k,), NumPy, at most. spectral, frobenius: of E, at most, with probability 1 - failure.

    probe: ‖EᵀE G‖, which says how likely a larger singular value is left out; 0 where no probe was needed.
    """

    residuals: Any
    spectral: float
    frobenius: float
    failure: float = 0.0
    probe: float = 0.0


def measure(A: Operand, U: Array, s: Array, Vt: Array, tol: float, seed: int) -> Measured:
    """Return residuals and bounds on the error of the factors of A (m >= n), from at most two readings of A.

    tol: the relative residual that will be asked about, which decides whether float32 is precise enough to measure it.
    """
    (m, n), k = A.shape, s.shape[0]
    cheap = m * n * (n + k) <= FREE_FLOPS if A.in_memory else m * n <= min(max(FREE_ENTRIES, A.stored), MOST_ENTRIES)
    if cheap:
        return _from_entries(A, *(A.space.double(x) for x in (U, s, Vt)))
    return _from_products(A, U, s, Vt, tol, seed)


def left_out_probability(probe: float, value: float) -> float:
    """Return a bound on the probability that E has a singular value as large as this, given ‖EᵀE G‖."""
    return _chernoff((probe / value**2) ** 2 / PROBES) if value > 0 else 1.0


def _from_entries(A: Operand, U: Array, s: Array, Vt: Array) -> Measured:
    xp, (m, n), k, V = A.space.xp, A.shape, s.shape[0], Vt.T
    gram = A.space.double(A.space.unit(n, 0, n)) * 0
    left, right = 0.0 * s, -V * s
    for rows, block in _row_blocks(A):
        block, part = A.space.double(block), U[rows, :]
        difference = block - (part * s) @ Vt
        gram = gram + difference.T @ difference
        left = left + xp.sum((block @ V - part * s) ** 2, axis=0)
        right = right + block.T @ part
    residuals = np.maximum(np.sqrt(to_numpy(left)), to_numpy(xp.linalg.vector_norm(right, axis=0)))
    squared = float(xp.sum(xp.linalg.diagonal(gram)))
    frobenius = math.sqrt(squared * (1 + (m + n) * EPS))
    top = float(xp.linalg.eigvalsh(gram)[-1]) if n else 0.0
    spectral = math.sqrt(max(top, 0.0) + 2 * (m + n) * EPS * squared)
    # Each entry of the difference: a sum of k products and a subtraction; A is about as large as B.
    rounding = math.sqrt(k + 3) * EPS / 2 * (frobenius + 2 * float(xp.linalg.vector_norm(s)))
    rounding += math.sqrt(m * n) * _smallest(A)
    return Measured(residuals, min(spectral, frobenius) + rounding, frobenius + rounding)


def _from_products(A: Operand, U: Array, s: Array, Vt: Array, tol: float, seed: int) -> Measured:
    """Measure with [V, G] and then [U, E G]; at full rank with G and E G, as no residual exceeds the norm of E."""
    space, xp, (m, n), k = A.space, A.space.xp, A.shape, s.shape[0]
    values, total = to_numpy(s).astype(np.float64), A.squared_norm()
    eps, convert = (space.eps, space.single) if _single_will_do(A, values, total, tol) else (EPS, space.double)
    whole = k == n
    U, s, V = U if whole else convert(U), convert(s), convert(Vt).T
    G = convert(space.normal((n, PROBES), seed + 1))
    AVG = A.matmat(G if whole else xp.concat([V, G], axis=1))
    EG, SVG = AVG[:, -PROBES:], s[:, None] * (V.T @ G)
    left, inner, UU, UEG = 0.0, 0.0, 0.0, 0.0
    for rows in _slices(m, k):  # nothing of the size of U is made, nor converted, all at once
        part = convert(U[rows, :])
        EG[rows, :] -= part @ SVG
        UEG = part.T @ EG[rows, :] + UEG
        if not whole:
            AV = AVG[rows, :k]
            UU = space.double(part.T @ part) + UU
            inner += float(xp.sum(s * xp.sum(part * AV, axis=0)))
            left = space.double(xp.sum((AV - part * s) ** 2, axis=0)) + left
    AUEG = A.rmatmat(EG if whole else xp.concat([U, EG], axis=1))
    EEG = AUEG[:, -PROBES:] - V @ (s[:, None] * UEG)

    size = math.sqrt(total if total is not None else float(xp.sum(space.double(AVG[:, -PROBES:]) ** 2)) / LEAST)
    rounding = _rounding(A, eps, size)
    of_EG = squared(space.double(EG))
    probe = _largest_root(squared(space.double(EEG))) + rounding * _largest_root(of_EG)
    spectral = math.sqrt(probe / math.sqrt(LEAST))
    frobenius = (math.sqrt(np.trace(of_EG)) + rounding * math.sqrt(PROBES)) / math.sqrt(LEAST)
    failure = 2 * FAILURE
    if whole:
        return Measured(np.full(k, min(spectral, frobenius)), min(spectral, frobenius), frobenius, failure, probe)
    right = xp.linalg.vector_norm(AUEG[:, :k] - V * s, axis=0)
    residuals = np.maximum(np.sqrt(to_numpy(left)), to_numpy(right)).astype(np.float64)
    if total is not None:
        square = float(values @ (to_numpy(UU) * to_numpy(V.T @ V)) @ values)
        by_norms = math.sqrt(max(total - 2 * inner + square, 0.0) + 4 * math.sqrt(m + n) * eps * (total + square))
        if by_norms <= frobenius:
            frobenius, failure = by_norms, FAILURE
    if frobenius <= spectral:
        spectral, failure = frobenius, failure - FAILURE
    return Measured(residuals, spectral, frobenius, failure, probe)


def _single_will_do(A: Operand, s: Any, total: float | None, tol: float) -> bool:
    """Say whether rounding in float32 is far below both the tolerance and what the factors leave out of A."""
    if A.space.name != "float32" or total is None or not len(s):
        return False
    left_out = total - float(s @ s)
    rounding = _rounding(A, A.space.eps, math.sqrt(total))
    return rounding <= SINGLE_SHARE * tol * float(s[0]) and left_out >= VISIBLE * total


def _slices(m: int, k: int) -> Iterable[slice]:
    step = max(1, PANEL_ENTRIES // max(k, 1))
    return (slice(start, start + step) for start in range(0, m, step))


def _rounding(A: Operand, eps: float, norm: float) -> float:
    """Return the probable rounding error of A, of this Frobenius norm, times a unit vector; BLAS adds up in blocks."""
    (m, n), longest = A.shape, BLAS_BLOCK if A.in_memory else math.inf
    return math.sqrt(min(max(A.stored / m, A.stored / n, 1), longest)) * eps / 2 * norm


def _largest_root(gram: Any) -> float:
    """Return ‖X‖, given XᵀX."""
    return math.sqrt(max(float(np.linalg.eigvalsh(gram)[-1]), 0.0))


def _row_blocks(A: Operand) -> Iterable[tuple[slice, Array]]:
    """Give the entries of A in float64, some rows at a time, each time with their place."""
    if A.in_memory:
        return cast(InMemory, A).panels()
    m, n = A.shape
    return [(slice(0, m), A.matmat(A.space.double(A.space.unit(n, 0, n))))]


def _smallest(A: Operand) -> float:
    """Return the spacing of the smallest numbers, which an entry may have lost when A was scaled."""
    return float(A.space.xp.finfo(A.space.dtype).smallest_normal) * A.space.eps


def _chernoff(share: float) -> float:
    """Return a bound on the probability that PROBES squares of normal numbers add up to less than this share of p."""
    return 1.0 if share >= 1 else (share * math.exp(1 - share)) ** (PROBES / 2)


def _share() -> float:
    """Return the share at which that bound is FAILURE."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _chernoff(middle) < FAILURE else (low, middle)
    return low


LEAST = PROBES * _share()  # what such a sum is at least, but with that probability
