"""The full SVD of an array in memory by LAPACK, cut to k."""

from __future__ import annotations

from eckart._algorithms._factors import Factors, Task, thin
from eckart.matrix import Operand

__all__ = ["run"]


def run(A: Operand, task: Task) -> Factors:
    U, s, Vt = thin(A.entries, A)
    return Factors(U[:, : task.k], s[: task.k], Vt[: task.k, :], "lapack")
