"""A few leading triplets by block Golub-Kahan bidiagonalisation with thick restarts: nothing is squared.

Two bases, of A's rows and of its columns, so that residuals reach eps s_1 whatever the spectrum; it costs twice the
orthogonalisation of Lanczos on AᵀA. Source: Golub & Kahan, SIAM J. Numer. Anal. 2(2), 1965; blocks: Golub, Luk &
Overton, ACM Trans. Math. Softw. 7(2), 1981; restarts: Baglama & Reichel, SIAM J. Sci. Comput. 27(1), 2005.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from eckart._algorithms._block import Basis
from eckart._algorithms._factors import Factors, Task, triplets
from eckart._algorithms._krylov import Process, Ritz, search
from eckart.matrix import Operand

__all__ = ["run"]

FLOOR = 4  # of the residuals, in units of eps s_1


def run(A: Operand, task: Task) -> Factors:
    """Return factors whose residuals are within tol s_1, or a few eps s_1."""
    return search(_GolubKahan(A, task), task)


class _GolubKahan(Process):
    """projected: H = UᵀA V, with AᵀU = V Hᵀ + (newest block) R."""

    def __init__(self, A: Operand, task: Task) -> None:
        super().__init__(A, task)
        space, m = A.space, A.shape[0]
        self.U = Basis(space, m, self.V.capacity, task.draws(space, m))

    def step(self) -> None:
        A, U, V, H = self.A, self.U, self.V, self.projected
        old, new = self.size, slice(self.size, V.size)
        Y = A.space.single(A.matmat(V.last(self.width)))
        if self.scale == 0:
            self.scale = float(A.space.xp.max(A.space.xp.linalg.vector_norm(Y, axis=0)))
        near = max(0, old - self.before)
        Y, part = U.project(Y, near)
        Y, H[:old, new] = U.project(Y)
        H[near:old, new] += part
        H[new, new] = U.append(Y, self.scale)
        self.scale = max(self.scale, float(np.linalg.norm(H[:, new], 2)))
        Z = A.space.single(A.rmatmat(U.last(self.width)))
        Z, _ = V.project(Z, old)
        Z, _ = V.project(Z)
        self.grow(Z)

    def ritz(self) -> Ritz:
        left, values, right = np.linalg.svd(self.projected[: self.size, : self.size])
        errors = np.linalg.norm(self.R @ left[self.size - self.before :], axis=0)
        return Ritz(values, errors, np.full(self.size, FLOOR * self.A.space.eps * values[0]), right.T, left)

    def restart(self, ritz: Ritz, keep: int, fresh: int) -> None:
        self.U.rotate(ritz.left[:, : min(keep, self.size)], 0)
        super().restart(ritz, keep, fresh)

    def values_projected(self, s: Any) -> Any:
        return s

    def factors(self, ritz: Ritz, count: int) -> Factors:
        space = self.A.space
        U = self.U.columns @ space.asarray(ritz.left[:, :count])
        V = self.V.columns[:, : self.size] @ space.asarray(ritz.right[:, :count])
        return triplets(space, U, ritz.values[:count], V, "golub-kahan")
