"""The SVD of a tall array in memory from Gram matrices in float64, by products of matrices alone.

With H = QᵀQ = X diag(d) Xᵀ the columns of Q X diag(d)^(-1/2) are orthonormal, but for about eps d_1 / d_n: the rounding
of H in float64. For float32 that is enough where the condition of A, sqrt(d_1 / d_n), is below 2e4. Else the step is
taken again on what it gave: this is CholeskyQR2 (Yamamoto, Nakatsukasa, Yanagisawa & Fukaya, ETNA 44, 2015), and with
eigenvalues raised to the level of rounding the shifted CholeskyQR3 (Fukaya, Kannan, Nakatsukasa, Yamamoto & Yanagisawa,
SIAM J. Sci. Comput. 42(1), 2020). In place of the Cholesky factor stands diag(d)^(1/2) Xᵀ: it always exists, and since
X is orthogonal and the scaling of columns commutes with rounding, A = Q B holds to rounding whatever the condition, B
(n, n) being the product of these factors. A direction that A reaches only within rounding gets a random column in Q and
a zero row in B. The SVD of B, which is small, turns the last step's columns into U.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, cast

import numpy as np

from eckart._algorithms import lapack
from eckart._algorithms._factors import Factors, Task, thin
from eckart._arrays import Array, to_numpy
from eckart.matrix import Operand
from eckart.matrix._contract import InMemory

__all__ = ["run"]

EPS = 2.0**-52  # of float64, in which everything is added up
SPREAD = 8.0  # of the eigenvalues d before the last step, which loses as many eps of orthogonality
NOISE = 4  # eps sqrt(n) d_1: what rounding may make of an eigenvalue of H that is zero
STEPS = 5  # each divides the condition by 1e7; one may be needed for random columns, and one evens out the rest
PROBES = 4  # columns by which the orthogonality of U is checked
DEFECT = 64  # eps sqrt(n): what ‖UᵀU - I‖_F may come to by LAPACK's SVD of B, four times what is seen
LOSS = 4  # eps sqrt(n) of A's type: what it may come to besides, by stopping after one step and by rounding
ENTRIES = 2**18  # of a panel: 2 MiB in float64, which stay in a second-level cache
ROWS = 512  # of a panel at least: below, reading and writing H takes as long as the products


def run(A: Operand, task: Task) -> Factors:
    for spread in dict.fromkeys((max(A.space.eps / EPS, SPREAD), SPREAD)):
        factors = _factors(cast(InMemory, A), task, spread)
        if factors is not None:
            return factors
    return lapack.run(A, task)


def _factors(A: InMemory, task: Task, spread: float) -> Factors | None:
    """Return the k leading triplets, by steps until d_1 <= spread d_n; None where U does not become orthonormal."""
    space, xp, n, k = A.space, A.space.xp, A.shape[1], task.k
    rounding, rng = NOISE * math.sqrt(n), np.random.default_rng(task.seed)
    Q, B, size = None, space.double(space.unit(n, 0, n)), 0.0
    for _ in range(STEPS):
        d, X = xp.linalg.eigh(_gram(A, Q))  # ascending
        largest = float(d[-1])
        size, noise = size or math.sqrt(largest), rounding * EPS * largest
        root = xp.sqrt(xp.where(d > noise, d, noise + 0 * d))
        B = root[:, None] * (X.T @ B)
        lost = (d <= noise) & (xp.linalg.vector_norm(B, axis=1) <= 2 * rounding * space.eps * size)
        if largest <= spread * float(d[0]) and not bool(xp.any(lost)):
            if Q is None:  # B is diag(root) Xᵀ, from which its SVD is read
                W, s, Vt = xp.flip(X / root, axis=1), xp.flip(root), xp.flip(X.T, axis=0)
            else:
                P, s, Vt = thin(B, A)
                W = (X / root) @ P
            U = _product(A, Q, W[:, :k])
            found = Factors(U, space.single(s[:k]), space.single(Vt[:k, :]), "tall")
            limit = (DEFECT * EPS + LOSS * space.eps) * math.sqrt(n)
            return found if _defect(A, U, task.seed) <= limit else None
        B = xp.where(lost[:, None], 0 * B, B)
        Q = _product(A, Q, X / xp.where(lost, 1 + 0 * root, root))
        _redraw(A, Q, to_numpy(lost), rng)
    return None


def _panels(A: InMemory, Q: Array | None) -> Iterator[tuple[slice, Array]]:
    """Give Q, or A where that is None, in float64, some rows at a time."""
    if Q is None:
        yield from A.panels()
        return
    rows = max(ROWS, ENTRIES // Q.shape[1])
    for start in range(0, Q.shape[0], rows):
        place = slice(start, min(start + rows, Q.shape[0]))
        yield place, A.space.double(Q[place, :])


def _gram(A: InMemory, Q: Array | None) -> Array:
    """Return QᵀQ."""
    total: Array = 0.0
    for _, panel in _panels(A, Q):
        total = panel.T @ panel + total  # with one array on both sides, NumPy makes half of it and copies the rest
    return total


def _product(A: InMemory, Q: Array | None, W: Array) -> Array:
    """Return Q W in A's type, written over the first columns of Q where there is one."""
    shape, space = (A.shape[0], W.shape[1]), A.space
    out = space.xp.empty(shape, dtype=space.dtype, device=space.device) if Q is None else Q[:, : W.shape[1]]
    for rows, panel in _panels(A, Q):
        out[rows, :] = space.single(panel @ W)
    return out


def _redraw(A: InMemory, Q: Array, lost: Any, rng: Any) -> None:
    """Put random columns of about unit length where columns are lost."""
    columns = np.flatnonzero(lost)
    for rows, panel in _panels(A, Q) if len(columns) else ():
        drawn = rng.standard_normal((panel.shape[0], len(columns))) / math.sqrt(Q.shape[0])
        Q[rows, columns] = A.space.asarray(drawn)


def _defect(A: InMemory, U: Array, seed: int) -> float:
    """Return ‖(UᵀU - I) G‖_F / sqrt(p) for a Gaussian G (k, p), whose mean square is that of ‖UᵀU - I‖_F."""
    space, k = A.space, U.shape[1]
    G = space.double(space.normal((k, PROBES), seed))
    seen = sum(panel.T @ (panel @ G) for _, panel in _panels(A, U))
    return float(space.xp.linalg.vector_norm(seen - G)) / math.sqrt(PROBES)
