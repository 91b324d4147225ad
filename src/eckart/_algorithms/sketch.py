"""k triplets from two products that do not depend on each other, for data that can be read only once.

With Gaussian Ω and Ψ, the range of A Ω approximates that of A, and Aᵀ Ψ says how A acts on it. Source: Tropp,
Yurtsever, Udell & Cevher, SIAM J. Matrix Anal. Appl. 38(4), 2017, algorithm 4. The error is a multiple of what the best
approximation of a somewhat smaller rank leaves out; nothing makes it smaller but a larger k.
"""

from __future__ import annotations

import numpy as np

from eckart._algorithms._factors import Factors, Task, thin
from eckart.matrix import Operand

__all__ = ["run"]

RANGE, CORANGE = 2, 4  # columns of Ω and of Ψ in units of k; about those that the paper recommends


def run(A: Operand, task: Task) -> Factors:
    space, xp, (m, n) = A.space, A.space.xp, A.shape
    r = min(n, RANGE * task.k + 1)
    q = min(m, CORANGE * task.k + 3)
    rng = np.random.default_rng(task.seed)
    test, cotest = (space.asarray(rng.standard_normal(size)) for size in ((n, r), (m, q)))
    Q, _ = xp.linalg.qr(space.double(A.matmat(test)))
    corange = space.double(A.rmatmat(cotest))
    left, triangle = xp.linalg.qr(space.double(cotest).T @ Q)
    U, s, Vt = thin(xp.linalg.solve(triangle, left.T @ corange.T), A)
    U, k = Q @ U, task.k
    return Factors(space.single(U[:, :k]), space.single(s[:k]), space.single(Vt[:k, :]), "sketch")
