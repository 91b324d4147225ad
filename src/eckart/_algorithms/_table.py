"""The table by which an algorithm is chosen. All of them expect m >= n and entries of order 1."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from eckart._algorithms import golub_kahan, gram, lanczos, lapack, sketch, tall
from eckart._algorithms._factors import Factors, Task
from eckart._algorithms._krylov import basis_columns
from eckart.errors import UsageError
from eckart.matrix import Operand

__all__ = ["METHODS", "TABLE", "Problem", "Row", "admissible", "cheapest"]

CALL_FLOPS = 1e6  # what a processor does in the 20 microseconds that a product takes however small it is, at 50 Gflop/s
COARSE = 64  # eps: the smallest relative residual for which squaring is tried


@dataclass(frozen=True)
class Problem:
    """What the choice may depend on: m >= n, the rank, the relative residual in units of eps, the numbers that one
    product reads, entries in memory or not."""

    m: int
    n: int
    k: int
    tol: float
    stored: int
    in_memory: bool


@dataclass(frozen=True)
class Row:
    """An algorithm: when it applies, in code and in words; its cost in readings of A and in flops; how it is run.

    iterates: whether it ends by a tolerance, so that what it gives may be polished. by_itself: when "auto" may take it.
    """

    name: str
    requires: str
    applies: Callable[[Problem], bool]
    passes: Callable[[Problem], float]
    flops: Callable[[Problem], float]
    run: Callable[[Operand, Task], Factors]
    iterates: bool = False
    by_itself: Callable[[Problem], bool] = lambda p: True


def _krylov_columns(p: Problem) -> float:
    """Return how many columns a Krylov method multiplies, as a rule: a basis full."""
    return min(p.n, basis_columns(p.k, in_memory=False))


# flops of LAPACK: Golub & Van Loan, Matrix Computations, 4th ed., section 8.6 (R-SVD), and per entry what its QR of
# panels takes longer than products of matrices do; of the others: products, then orthogonalisation and the small dense
# problem. Products of matrices do 50 flops a nanosecond where LAPACK's panels take 20 ns an entry and more.
TABLE = (
    Row(
        "lapack",
        "an array in memory",
        applies=lambda p: p.in_memory,
        passes=lambda p: 1,
        flops=lambda p: 6 * p.m * p.n**2 + 20 * p.n**3 + 1000 * p.m * p.n,
        run=lapack.run,
    ),
    Row(
        "tall",
        "an array in memory",
        applies=lambda p: p.in_memory,
        passes=lambda p: 10,  # that many calls on a small matrix
        flops=lambda p: 4 * p.m * p.n**2 + 2 * p.m * p.n * p.k + 40 * p.n**3,
        run=tall.run,
    ),
    Row(
        "lanczos",
        "1 <= k < min(m, n), and for auto a tolerance of 64 eps or more",
        applies=lambda p: 1 <= p.k < p.n,
        passes=lambda p: 10 * _krylov_columns(p) / 16,
        flops=lambda p: (
            _krylov_columns(p) * (4 * p.stored + 4 * p.n * _krylov_columns(p))
            + 9 * _krylov_columns(p) ** 3
            + 4 * p.k * p.stored
            + 6 * p.m * p.k**2
        ),
        run=lanczos.run,
        iterates=True,
        by_itself=lambda p: p.tol >= COARSE,
    ),
    Row(
        "golub-kahan",
        "1 <= k < min(m, n)",
        applies=lambda p: 1 <= p.k < p.n,
        passes=lambda p: 10 * _krylov_columns(p) / 16,
        flops=lambda p: (
            _krylov_columns(p) * (4 * p.stored + 4 * (p.m + p.n) * _krylov_columns(p)) + 20 * _krylov_columns(p) ** 3
        ),
        run=golub_kahan.run,
        iterates=True,
    ),
    Row(
        "gram",
        "a matrix known by its products",
        applies=lambda p: not p.in_memory,
        passes=lambda p: 2 * p.n / gram.BLOCK + 1,
        flops=lambda p: 4 * p.stored * p.n + 9 * p.n**3 + 6 * p.m * p.k**2 + 20 * p.k**3,
        run=gram.run,
    ),
    Row(
        "sketch",
        "1 <= k < min(m, n); only where it is asked for, as what it gives is coarse",
        applies=lambda p: 1 <= p.k < p.n,
        passes=lambda p: 2,
        flops=lambda p: 8 * p.k * p.stored + 40 * (p.m + p.n) * p.k**2,
        run=sketch.run,
        by_itself=lambda p: False,
    ),
)
METHODS = ("auto", *(row.name for row in TABLE))


def admissible(problem: Problem, method: str) -> list[Row]:
    """Return the rows that apply, or the one that was asked for. UsageError: that one does not apply."""
    if method == "auto":
        return [row for row in TABLE if row.by_itself(problem) and row.applies(problem)]
    row = next(row for row in TABLE if row.name == method)
    if not row.applies(problem):
        raise UsageError(
            f'method="{method}" needs {row.requires}, and this is k = {problem.k} of a matrix with min(m, n) = '
            f"{problem.n}{'' if problem.in_memory else ' that is known by its products'}",
            fix='pass method="auto"',
        )
    return [row]


def cheapest(rows: list[Row], problem: Problem) -> Row:
    """Return the row of the least work: its flops, and for each pass what calling a product takes."""
    return min(rows, key=lambda row: row.flops(problem) + CALL_FLOPS * row.passes(problem))
