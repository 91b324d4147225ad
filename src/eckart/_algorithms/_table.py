"""The table by which an algorithm is chosen. All of them expect m >= n and entries of order 1."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from eckart._algorithms import arpack, gram, lapack
from eckart._algorithms._factors import Factors
from eckart.errors import UsageError
from eckart.matrix import Operand

__all__ = ["METHODS", "TABLE", "Problem", "Row", "admissible", "cheapest"]

CALL_FLOPS = 1e6  # what a processor does in the 20 microseconds that a product takes however small it is, at 50 Gflop/s


@dataclass(frozen=True)
class Problem:
    """What the choice may depend on: m >= n, the rank, the numbers that one product reads, entries in memory or not."""

    m: int
    n: int
    k: int
    stored: int
    in_memory: bool


@dataclass(frozen=True)
class Row:
    """An algorithm: when it applies, in code and in words; its cost in readings of A and in flops; how it is run."""

    name: str
    requires: str
    applies: Callable[[Problem], bool]
    passes: Callable[[Problem], float]
    flops: Callable[[Problem], float]
    run: Callable[[Operand, int, float, int], Factors]


def _lanczos_steps(p: Problem) -> float:
    """Return how many vectors ARPACK multiplies: a basis of max(2 k + 1, 20), then ten restarts that keep k of it."""
    basis = min(p.n, max(2 * p.k + 1, 20))
    return basis + 10 * (basis - p.k)


# flops of LAPACK: Golub & Van Loan, Matrix Computations, 4th ed., section 8.6 (R-SVD); of the others: products, then
# orthogonalisation and the small dense problem.
TABLE = (
    Row(
        "lapack",
        "an array in memory",
        applies=lambda p: p.in_memory,
        passes=lambda p: 1,
        flops=lambda p: 6 * p.m * p.n**2 + 20 * p.n**3,
        run=lapack.run,
    ),
    Row(
        "arpack",
        "1 <= k < min(m, n)",
        applies=lambda p: 1 <= p.k < p.n,
        passes=lambda p: 2 * _lanczos_steps(p) + 1,
        flops=lambda p: _lanczos_steps(p) * (4 * p.stored + 16 * p.n * p.k) + 6 * p.m * p.k**2,
        run=arpack.run,
    ),
    Row(
        "gram",
        "a matrix known by its products",
        applies=lambda p: not p.in_memory,
        passes=lambda p: 2 * p.n / gram.BLOCK + 1,
        flops=lambda p: 4 * p.stored * p.n + 9 * p.n**3 + 6 * p.m * p.k**2 + 20 * p.k**3,
        run=gram.run,
    ),
)
METHODS = ("auto", *(row.name for row in TABLE))


def admissible(problem: Problem, method: str) -> list[Row]:
    """Return the rows that apply, or the one that was asked for. UsageError: that one does not apply."""
    rows = [row for row in TABLE if method in ("auto", row.name)]
    found = [row for row in rows if row.applies(problem)]
    if not found:
        raise UsageError(
            f'method="{method}" needs {rows[0].requires}, and this is k = {problem.k} of a matrix with min(m, n) = '
            f"{problem.n}{'' if problem.in_memory else ' that is known by its products'}",
            fix='pass method="auto"',
        )
    return found


def cheapest(rows: list[Row], problem: Problem) -> Row:
    """Return the row of the least work: its flops, and for each pass what calling a product takes."""
    return min(rows, key=lambda row: row.flops(problem) + CALL_FLOPS * row.passes(problem))
