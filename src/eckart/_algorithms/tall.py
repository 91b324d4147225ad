"""The SVD of a tall array in memory from Gram matrices in float64, by products of matrices alone.

With H = QᵀQ = X diag(d) Xᵀ the columns of Q X diag(d)^(-1/2) are orthonormal, but for about eps d_1 / d_n: the rounding
of H in float64. For float32 that is enough where the condition of A, sqrt(d_1 / d_n), is below 2e4. Else the step is
taken again on what it gave: this is CholeskyQR2 (Yamamoto, Nakatsukasa, Yanagisawa & Fukaya, ETNA 44, 2015), and with
eigenvalues raised to the level of rounding the shifted CholeskyQR3 (Fukaya, Kannan, Nakatsukasa, Yamamoto & Yanagisawa,
SIAM J. Sci. Comput. 42(1), 2020). In place of the Cholesky factor stands diag(d)^(1/2) Xᵀ: it always exists, and since
X is orthogonal and the scaling of columns commutes with rounding, A = Q B holds to rounding whatever the condition, B
(n, n) being the product of these factors. A direction that A reaches only within rounding gets a random column in Q and
a zero row in B. The SVD of B, which is small, turns the last step's columns into U.

Where A is tall enough, and in float64 or with a condition that blurs H, a sketch S A takes the place of the first
step: with S A = P diag(z) Xᵀ the columns of A X diag(z)^(-1) have a condition of about 2, whatever that of A (Rokhlin &
Tygert, PNAS 105(36), 2008), since S keeps lengths within about a third (sparse signs: Nelson & Nguyen, FOCS 2013).
Should it not have kept them, then the steps go on.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np

from eckart._algorithms import lapack
from eckart._algorithms._factors import Factors, Task, thin
from eckart._arrays import Array, to_numpy
from eckart.matrix import Operand
from eckart.matrix._contract import InMemory

__all__ = ["run"]

Panels = Iterator[tuple[slice, Array]]

EPS = 2.0**-52  # of float64, in which everything is added up
SPREAD = 16.0  # of the eigenvalues d before the last step, which loses as many eps of orthogonality
NOISE = 4  # eps sqrt(n) d_1: what rounding may make of an eigenvalue of H that is zero
STEPS = 5  # each divides the condition by 1e7; one may be needed for random columns, and one evens out the rest
PROBES = 4  # columns by which the orthogonality of U is checked
DEFECT = 64  # eps sqrt(n): what ‖UᵀU - I‖_F may come to by LAPACK's SVD of B, four times what is seen
LOSS = 4  # eps sqrt(n) of A's type: what it may come to besides, by stopping after one step and by rounding
ENTRIES = 2**18  # of a panel: 2 MiB in float64, which stay in a second-level cache
SKETCHED = 8  # rows of S A for each column of A: lengths are kept within about sqrt(1 / 8)
UNEVEN = 100.0  # in the eigenvalues of some rows' Gram matrix: those of all rows will hardly be within SPREAD
SIGNS = 2  # entries in a column of S
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
    G = space.double(space.normal((k, PROBES), task.seed))
    Q, B, size = None, space.double(space.unit(n, 0, n)), 0.0
    values, X, sketched = _first(A, rounding * EPS, rng)
    for _ in range(STEPS):
        largest = float(values[-1])
        size, floor = size or largest, (rounding * EPS if sketched else math.sqrt(rounding * EPS)) * largest
        root = xp.where(values > floor, values, floor + 0 * values)
        B = root[:, None] * (X.T @ B)
        lost = (values <= floor) & (xp.linalg.vector_norm(B, axis=1) <= 2 * rounding * space.eps * size)
        if not sketched and largest**2 <= spread * float(values[0]) ** 2 and not bool(xp.any(lost)):
            if Q is None:  # B is diag(root) Xᵀ, from which its SVD is read
                W, s, Vt = xp.flip(X / root, axis=1), xp.flip(root), xp.flip(X.T, axis=0)
            else:
                P, s, Vt = thin(B, A)
                W = (X / root) @ P
            U, seen = _product(A, Q, W[:, :k], lambda panel: panel.T @ (panel @ G))
            found = Factors(U, space.single(s[:k]), space.single(Vt[:k, :]), "tall")
            # for a Gaussian G (k, p), this has the mean square ‖UᵀU - I‖_F²
            defect = float(xp.linalg.vector_norm(seen - G)) / math.sqrt(PROBES)
            return found if defect <= (DEFECT * EPS + LOSS * space.eps) * math.sqrt(n) else None
        B = xp.where(lost[:, None], 0 * B, B)
        Q, H = _product(A, Q, X / xp.where(lost, 1 + 0 * root, root), lambda panel: panel.T @ panel)
        if bool(xp.any(lost)):
            _redraw(A, Q, to_numpy(lost), rng)
            H = _gram(_panels(A, Q))
        values, X, sketched = *_roots(A, H), False
    return None


def _first(A: InMemory, relative: float, rng: np.random.Generator) -> tuple[Array, Array, bool]:
    """Return singular values, ascending, and right vectors of A or of a sketch, and whether it is the latter.

    relative: to the largest, below which rounding blurs an eigenvalue of AᵀA. A sketch and AᵀA cost the same, and a
    step after each of them; but AᵀA may do without that step, in float32 up to a condition of 2e4. In float64 it will
    hardly do, and is not tried, where the first rows have a condition above sqrt(UNEVEN).
    """
    m, n = A.shape
    panels = _panels(A, None)
    tall_enough = m > SKETCHED * n
    if tall_enough and A.space.eps == EPS:
        first = next(panels)
        values, _ = _roots(A, first[1].T @ first[1])
        panels = itertools.chain([first], panels)
        if first[1].shape[0] > 2 * n and float(values[-1]) ** 2 > UNEVEN * float(values[0]) ** 2:
            return *_sketched(A, panels, rng), True
    values, X = _roots(A, _gram(panels))
    blurred = float(values[0]) <= math.sqrt(relative) * float(values[-1])
    return (*_sketched(A, _panels(A, None), rng), True) if tall_enough and blurred else (values, X, False)


def _roots(A: InMemory, H: Array) -> tuple[Array, Array]:
    """Return the square roots, ascending, of the eigenvalues of H, and its eigenvectors."""
    d, X = A.space.xp.linalg.eigh(H)
    return A.space.xp.sqrt(A.space.xp.where(d > 0, d, 0 * d)), X


def _panels(A: InMemory, Q: Array | None) -> Panels:
    """Give Q, or A where that is None, in float64, some rows at a time."""
    if Q is None:
        yield from A.panels()
        return
    rows = max(ROWS, ENTRIES // Q.shape[1])
    for start in range(0, Q.shape[0], rows):
        place = slice(start, min(start + rows, Q.shape[0]))
        yield place, A.space.double(Q[place, :])


def _gram(panels: Panels) -> Array:
    """Return QᵀQ of the matrix whose panels these are."""
    total: Array = 0.0
    for _, panel in panels:
        total = panel.T @ panel + total
    return total


def _sketched(A: InMemory, panels: Panels, rng: np.random.Generator) -> tuple[Array, Array]:
    """Return singular values, ascending, and right singular vectors, as columns, of S A in float64, from A's panels.

    S adds each row, with random signs, to SIGNS rows of the sketch. Neighbours go to neighbours: one addition for many.
    """
    space, (_, n) = A.space, A.shape
    height = SKETCHED * n
    total = 0 * space.double(space.unit(height, 0, n))
    for _, panel in panels:
        for start in range(0, panel.shape[0], height):
            some = panel[start : start + height, :]
            for shift in rng.integers(height, size=SIGNS):
                signed = some * space.double(space.asarray(rng.choice([-1.0, 1.0], some.shape[0])))[:, None]
                fits = min(some.shape[0], height - int(shift))
                total[shift : shift + fits, :] += signed[:fits, :]
                total[: some.shape[0] - fits, :] += signed[fits:, :]
    _, z, Xt = space.xp.linalg.svd(total / math.sqrt(SIGNS), full_matrices=False)
    return space.xp.flip(z), space.xp.flip(Xt, axis=0).T


def _product(A: InMemory, Q: Array | None, W: Array, look: Callable[[Array], Array]) -> tuple[Array, Array]:
    """Return P = Q W in A's type, written over the first columns of Q where there is one, and a sum over P.

    look: gives the part of some rows of P, in float64, to that sum.
    """
    shape, space = (A.shape[0], W.shape[1]), A.space
    out = space.xp.empty(shape, dtype=space.dtype, device=space.device) if Q is None else Q[:, : W.shape[1]]
    total: Array = 0.0
    for rows, panel in _panels(A, Q):
        part = space.single(panel @ W)
        out[rows, :] = part
        total = look(space.double(part)) + total  # with one array on both sides, NumPy makes half of PᵀP
    return out, total


def _redraw(A: InMemory, Q: Array, lost: Any, rng: Any) -> None:
    """Put random columns of about unit length where columns are lost."""
    columns = np.flatnonzero(lost)
    for rows, panel in _panels(A, Q) if len(columns) else ():
        drawn = rng.standard_normal((panel.shape[0], len(columns))) / math.sqrt(Q.shape[0])
        Q[rows, columns] = A.space.asarray(drawn)
