"""One matrix from entry to exit: bring it to the form that algorithms expect, run one of them, measure what it gave."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from eckart._algorithms import golub_kahan
from eckart._algorithms._accuracy import Measured, measure
from eckart._algorithms._factors import Factors, Task
from eckart._algorithms._table import Problem, Row, admissible, cheapest
from eckart._arrays import Array, Space, own, power_of_two, to_numpy
from eckart.errors import NumericalError
from eckart.matrix import Counted, Operand, centred, transposed

__all__ = ["Found", "Goal", "Solution", "Work", "find", "finish", "prepare", "rank_within"]

ORDINARY_EXPONENT = 16  # entries between 2**-16 and 2**16 have squares far inside every float's range: no scaled copy
SIGN_MARGIN = 2.0**-10  # two of a vector's largest entries that differ by less are equal, lest rounding choose its sign
PRODUCT_ROUNDING = 8  # of a product of length p, in units of eps sqrt(p); twice what is seen with unit vectors
POLISHES = 3  # of factors whose residuals, measured, are not what the process that found them estimated
COPIED_ROWS = 1024  # with signs, at once: the product is still in a cache when it is stored
FIRST_RANK = 16  # the first rank tried where a size of the error is asked for; then twice as many


@dataclass(frozen=True, eq=False)
class Goal:
    """What was asked: a rank or a relative Frobenius error, the largest relative residual, which method, which seed.

    start: left and right singular vectors (m, q) and (n, q) of a similar matrix, NumPy or of A's framework, or None.
    report: told (stage, done, total) as work proceeds.
    """

    k: int | None
    error: float | None
    tol: float | None
    method: str
    seed: int
    start: tuple[Array, Array] | None = None
    report: Callable[[str, int, int], None] = lambda stage, done, total: None


@dataclass(frozen=True, eq=False)
class Work:
    """A matrix as algorithms expect it, m >= n and entries of order 1: A (or Aᵀ) times 2**-exponent."""

    A: Counted
    flipped: bool
    exponent: int


@dataclass(frozen=True, eq=False)
class Found:
    """Factors of at least this rank, and what was measured of the first `rank` triplets, where that was done."""

    factors: Factors
    rank: int
    measured: Measured | None = None


@dataclass(frozen=True, eq=False)
class Solution:
    """What is known of one matrix in the end: the fields of SVD. residuals are in the type of the computation."""

    U: Array
    s: Array
    Vt: Array
    residuals: Array
    spectral: float
    frobenius: float
    failure: float
    rest: float
    probe: float
    method: str
    passes: int
    converged: bool


def prepare(A: Operand, center: bool) -> Work:
    """Return A, or A with its column means taken off, as algorithms expect it. Transposition is handled here alone."""
    exponent = math.frexp(A.largest())[1]
    if abs(exponent) <= ORDINARY_EXPONENT:
        exponent = 0
    if exponent:
        A = A.scaled(-exponent)
    if center:
        A = centred(A)
    flipped = A.shape[0] < A.shape[1]
    return Work(Counted(transposed(A) if flipped else A, passes=1 + center), flipped, exponent)


def find(work: Work, goal: Goal) -> Found:
    """Return factors of at least the rank that meets the goal, and that rank."""
    A, start = work.A, _start(work, goal)
    tol = goal.tol if goal.tol is not None else _working_residual(A, A.space.eps)
    for k, norm in _trials(A, goal):

        def report(converged: int, k: int = k) -> None:
            goal.report("singular values", converged, k)

        task = Task(k, tol, goal.seed, start, report=report)
        row = _choice(A, task, goal.method)
        factors, measured = _converged(A, row, task)
        if goal.error is None:
            return Found(factors, k, measured)
        s = to_numpy(factors.s[:k]).astype(np.float64)
        left_out = 0.0 if norm is None else max(norm - float(s @ s), 0.0)
        rank = rank_within(s[None], np.array([[left_out]]), goal.error, A.space.eps)
        if rank is not None:
            break
        start = factors.Vt.T
    return Found(factors, k if rank is None else rank)


def finish(work: Work, found: Found, k: int, goal: Goal) -> Solution:
    """Return the first k triplets in the type, scale, orientation and sign of the result, and measure them as they are.

    NumericalError: a singular value outside the range of the type.
    """
    A, space, factors = work.A, work.A.space, found.factors
    U, s, Vt = factors.U[:, :k], factors.s[:k], factors.Vt[:k, :]
    if work.flipped:
        U, Vt = Vt.T, U.T
    signs = _signs(space, Vt)
    with np.errstate(over="ignore"):  # it is reported below
        s = power_of_two(s, work.exponent)
        s = own(space.leave(s))
        U, Vt = _times(space, U, signs[None, :]), _times(space, Vt, signs[:, None])
    if not bool(space.xp.all(space.xp.isfinite(s))):
        raise NumericalError(
            f"the largest singular value is outside the range of {s.dtype}",
            fix="pass the matrix in a wider type, or divided by its largest entry",
            code="E-range",
        )
    tol = goal.tol if goal.tol is not None else _working_residual(A, space.returned_eps)
    scaled = power_of_two(space.double(s), -work.exponent)
    measured = found.measured
    if measured is None or found.rank != k or space.returned_eps != space.eps:
        U_k, V_k = (Vt.T, U.T) if work.flipped else (U, Vt)
        measured = measure(A, space.single(U_k), space.single(scaled), space.single(V_k), tol, goal.seed)
    within = bool(np.all(measured.residuals <= tol * float(scaled[0]))) if k else True
    return Solution(
        U=U,
        s=s,
        Vt=Vt,
        residuals=space.asarray(power_of_two(measured.residuals, work.exponent)),
        spectral=_times_power_of_two(measured.spectral, work.exponent),
        frobenius=_times_power_of_two(measured.frobenius, work.exponent),
        failure=measured.failure,
        rest=_times_power_of_two(measured.spectral, work.exponent),
        probe=_times_power_of_two(measured.probe, 2 * work.exponent),
        method=factors.method,
        passes=A.passes,
        converged=factors.sound and within,
    )


def rank_within(s: Any, left_out: Any, error: float, eps: float) -> int | None:
    """Return the smallest k with ‖A - A_k‖_F ≤ error ‖A‖_F, up to rounding, for every row of s; None where none is.

    s: (b, r), NumPy, descending; left_out: (b, 1), ‖A‖_F² without the r values.
    """
    smallest_first = np.concatenate([left_out, s[:, ::-1] ** 2], axis=1)
    tails = np.cumsum(smallest_first, axis=1)[:, ::-1]
    if not np.isfinite(tails).all():  # a matrix of unknown norm
        return None
    within = (tails <= error**2 * tails[:, :1] * (1 + 16 * eps)).all(axis=0)
    return int(np.argmax(within)) if within.any() else None


def _trials(A: Operand, goal: Goal) -> Iterator[tuple[int, float | None]]:
    """Give ranks to try, each with ‖A‖_F², which is None at the full rank, where s says it without cancellation."""
    m, n = A.shape
    if goal.error is None:
        yield n if goal.k is None else goal.k, None
        return
    norm = A.squared_norm()
    reliable = goal.error**2 > 64 * (m + n) * A.space.eps
    k = FIRST_RANK
    while norm is not None and reliable and 4 * k < n:
        yield k, norm
        k *= 2
    yield n, None


def _start(work: Work, goal: Goal) -> Array | None:
    """Return the right singular vectors to begin with, of the matrix as it is worked on."""
    if goal.start is None:
        return None
    vectors = goal.start[0] if work.flipped else goal.start[1]
    return work.A.space.asarray(to_numpy(vectors))


def _choice(A: Operand, task: Task, method: str) -> Row:
    (m, n), k = A.shape, task.k
    problem = Problem(m, n, k, task.tol / A.space.eps, A.stored, A.in_memory)
    return cheapest(admissible(problem, method), problem)


def _converged(A: Operand, row: Row, task: Task) -> tuple[Factors, Measured | None]:
    """Run an algorithm. One that iterates is measured, and where it did not reach the tolerance, polished."""
    (m, n), k, space = A.shape, task.k, A.space
    if k == 0:
        nothing = space.unit(m, 0, 0), space.unit(1, 0, 0)[0, :], space.unit(n, 0, 0).T
        return Factors(*nothing, row.name), None
    factors = row.run(A, task)
    if not row.iterates:
        return factors, None
    for polishes_left in reversed(range(POLISHES)):
        measured = measure(A, factors.U[:, :k], factors.s[:k], factors.Vt[:k, :], task.tol, task.seed)
        if not polishes_left or measured.residuals.max() <= task.tol * float(factors.s[0]):
            break  # what is returned is what was measured
        polished = golub_kahan.run(A, replace(task, tol=task.tol / 2, start=factors.Vt.T, probe=False))
        factors = replace(polished, method=_and(factors.method, polished.method))
    return factors, measured


def _and(first: str, second: str) -> str:
    return first if first.endswith(second) else f"{first}, {second}"


def _working_residual(A: Operand, eps: float) -> float:
    """Return the relative residual that counts as converged where none was asked for.

    LAPACK's QR iteration (dbdsqr) sets an off-diagonal to zero below max(10, min(100, eps^(-1/8))) eps.
    """
    stop = max(10.0, min(100.0, math.pow(eps, -0.125)))
    return (stop + PRODUCT_ROUNDING * math.sqrt(max(A.shape))) * eps


def _signs(space: Space, rows: Array) -> Array:
    """Return ±1 for each row such that the first entry within SIGN_MARGIN of its largest becomes positive."""
    xp = space.xp
    if 0 in rows.shape:
        return xp.sum(rows, axis=1) + 1
    size = xp.abs(rows)
    large = xp.astype(size >= (1 - SIGN_MARGIN) * xp.max(size, axis=1, keepdims=True), xp.int8)
    first = xp.argmax(large, axis=1)
    return xp.sign(rows[xp.arange(rows.shape[0], device=space.device), first])


def _times(space: Space, X: Array, signs: Array) -> Array:
    """Return X * signs in the type of the results, row by row in memory that holds nothing else.

    Algorithms make their arrays: one that has this form already is changed where it is.
    """
    if isinstance(X, np.ndarray) and X.dtype == space.returned and X.flags.c_contiguous and X.flags.writeable:
        owns_its_memory = X.base is None or X.base.nbytes == X.nbytes
        if owns_its_memory:
            return np.multiply(X, signs, out=X)
    product = space.xp.empty(tuple(X.shape), dtype=space.returned, device=space.device)
    signs = space.xp.broadcast_to(signs, tuple(X.shape))
    for start in range(0, X.shape[0], COPIED_ROWS):
        rows = slice(start, start + COPIED_ROWS)
        product[rows, :] = space.leave(X[rows, :] * signs[rows, :])
    return product


def _times_power_of_two(x: float, exponent: int) -> float:
    try:
        return math.ldexp(x, exponent)
    except OverflowError:
        return math.inf
