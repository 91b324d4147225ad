"""A few leading triplets by block Lanczos on AᵀA with thick restarts: the cheapest way where k << n.

The basis spans a Krylov space of AᵀA that grows from a random block; restarts keep the best Ritz vectors (Wu & Simon,
SIAM J. Matrix Anal. Appl. 22(2), 2000). The residual ‖Aᵀu - s v‖ = ‖AᵀA v - s² v‖ / s is known from the last block
alone. Squaring costs digits: it has a floor of about eps s_1² / s, and who needs less goes on with golub_kahan.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from eckart._algorithms import golub_kahan
from eckart._algorithms._block import Basis, orthonormal
from eckart._algorithms._factors import Factors, Task, triplets
from eckart._algorithms._krylov import SAFETY, Process, Ritz, search
from eckart.matrix import Operand

__all__ = ["run"]

OVERLAP = (
    0.3  # sqrt(eps): with less T is exact to rounding (H. Simon, Math. Comp. 42, 1984); and of the tolerance, since
)
# restarts let the overlap into the residuals
BLUR = 8  # the floor of the residuals, in units of eps s_1² / s


def run(A: Operand, task: Task) -> Factors:
    """Return factors whose residuals are within tol s_1, or at the floor that squaring sets."""
    return search(_Lanczos(A, task), task)


class _Lanczos(Process):
    """projected: T = VᵀAᵀA V, with AᵀA V = V T + (newest block) R."""

    def __init__(self, A: Operand, task: Task) -> None:
        eps = A.space.eps
        super().__init__(A, task, OVERLAP * min(math.sqrt(eps), max(task.tol, 32 * eps)))

    def step(self) -> None:
        V, T = self.V, self.projected
        old, new = self.size, slice(self.size, V.size)
        W = self.A.space.single(self.A.rmatmat(self.A.matmat(V.last(self.width))))
        near = max(0, old - self.before)
        for _ in range(2):
            W, part = V.project(W, near)  # all of it but for rounding, since AᵀA is symmetric
            T[near : V.size, new] += part
        T[new, new] = (T[new, new] + T[new, new].T) / 2
        T[new, :old] = T[:old, new].T
        self.scale = max(self.scale, float(np.linalg.norm(T[new, new], 2)))
        self.grow(W)

    def ritz(self) -> Ritz:
        squares, vectors = np.linalg.eigh(self.projected[: self.size, : self.size])
        squares, vectors = np.maximum(squares[::-1], 0), vectors[:, ::-1]
        values = np.sqrt(squares)
        safe = np.maximum(values, np.finfo(float).tiny)
        errors = np.linalg.norm(self.R @ vectors[self.size - self.before : self.size], axis=0) / safe
        floor = BLUR * self.A.space.eps * squares[0] / safe
        return Ritz(values, errors, floor, vectors)

    def values_projected(self, s: Any) -> Any:
        return s**2

    def factors(self, ritz: Ritz, count: int) -> Factors:
        """Multiply the Ritz vectors by A once, so that the singular values are found without squaring."""
        A, space, m = self.A, self.A.space, self.A.shape[0]
        V, _ = orthonormal(space, self.V.columns[:, : self.size] @ space.asarray(ritz.right[:, :count]), 0.5)
        if np.any(ritz.floor[: self.task.k] > SAFETY * self.task.tol * ritz.values[0]):
            polished = golub_kahan.run(A, replace(self.task, start=V, probe=False))
            return replace(polished, method=f"lanczos, {polished.method}")
        U = Basis(space, m, V.shape[1], self.task.draws(space, m))
        left, s, right = np.linalg.svd(U.append(space.single(A.matmat(V)), float(ritz.values[0])))
        return triplets(space, U.columns @ space.asarray(left), s, V @ space.asarray(right.T), "lanczos")
