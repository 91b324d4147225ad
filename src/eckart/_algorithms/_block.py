"""Bases of orthonormal columns that grow block by block: the arithmetic that the Krylov methods share.

A block is orthonormalised through its Gram matrix, twice (Stathopoulos & Wu, SIAM J. Sci. Comput. 23(6),
2002), or by Householder's method where squaring would lose a direction. Work of the size of the basis is all products
of matrices; matrices of the size of a block are NumPy's, in float64, on every device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from eckart._arrays import Array, Space, own, to_numpy

__all__ = ["Basis", "normalise_", "orthonormal", "squared"]

VANISHED = 4  # a direction shorter than this many eps of the scale is rounding error
SEEN_BY_SINGLE = 1e-2  # of the longest: a shorter direction is lost in the rounding of a Gram matrix in float32
SEEN_BY_DOUBLE = 1e-6  # of the longest: the same in float64
ORTHOGONAL = 32  # eps: an overlap that is rounding error
SLIGHT = 1e-3  # an overlap that can be taken off without a change of length
HALF = 0.5  # of a direction: if more of it is overlap, then it was rounding error
LITTLE = 0.05  # of a random direction: more is left over, almost always, wherever there is room
WITNESSES = 8  # random combinations of the basis that show an overlap with it
PANEL = 2**12  # rows whose products are added up in the type of the computation; the panels are in float64


class Basis:
    """Orthonormal columns, the first `size` of an array (length, capacity).

    draw(columns) gives new random columns of this length; they replace directions that vanish. A block that is added is
    made orthogonal to all columns where its overlap with them, estimated from a few random combinations of them, is
    above `overlap`.
    """

    def __init__(
        self, space: Space, length: int, capacity: int, draw: Callable[[int], Array], overlap: float | None = None
    ) -> None:
        self.space, self.draw, self.size = space, draw, 0
        self.overlap = ORTHOGONAL * space.eps if overlap is None else overlap
        self.capacity = min(capacity, length)
        # one column after the other: a new block then touches few pages of memory
        self._array = space.xp.empty((self.capacity, length), dtype=space.dtype, device=space.device).T
        signs = np.random.default_rng(self.capacity).choice([-1.0, 1.0], (self.capacity, WITNESSES))
        self._signs = space.asarray(signs / math.sqrt(WITNESSES))
        self._witnesses: Array = None  # columns · signs

    @property
    def length(self) -> int:
        return int(self._array.shape[0])

    @property
    def columns(self) -> Array:
        return self._array[:, : self.size]

    @property
    def room(self) -> int:
        return self.capacity - self.size

    def last(self, width: int) -> Array:
        """Return a copy of the newest columns, row by row."""
        return own(self._array[:, self.size - width : self.size])

    def project(self, W: Array, start: int = 0) -> tuple[Array, Any]:
        """Return W less its part along the columns from `start` on, and the coefficients of that part in float64."""
        columns = self._array[:, start : self.size]
        part = columns.T @ W
        return W - columns @ part, to_numpy(part).astype(np.float64)

    def append(self, W: Array, scale: float) -> Any:
        """Add as many columns as W has, or there is room for, and return R with W = columns · R in float64.

        W: orthogonal to the basis but for rounding. Where one of its directions vanishes, that is, has less than
        rounding error of the scale, a random column takes its place and its row of R is zero.
        """
        Q, R = orthonormal(self.space, W, VANISHED * self.space.eps * scale)
        Q, again = self._apart(Q, HALF)
        R = again @ R
        added = min(W.shape[1], self.room)
        R = R[:added]
        self._put(Q[:, :added])
        missing = added - len(R)
        self.append_random(missing)
        return np.concatenate([R, np.zeros((missing, W.shape[1]))])

    def append_random(self, count: int) -> int:
        """Add random columns, as many as asked for or there is room for, and return their number."""
        count = min(count, self.room)
        end = self.size + count
        while self.size < end:
            Q, _ = orthonormal(self.space, self.draw(end - self.size), 0.0)
            self._put(self._apart(Q, LITTLE)[0])
        return count

    def rotate(self, S: Any, keep: int) -> None:
        """Replace the first columns, as many as S has rows, by their combinations S, and keep the newest so many."""
        kept, rotated = self.last(keep), self._array[:, : len(S)] @ self.space.asarray(S)
        self.size = 0
        self._put(rotated)
        self._put(kept)

    def _apart(self, Q: Array, least: float) -> tuple[Array, Any]:
        """Return orthonormal columns without their overlap with the basis, and R with Q = result · R beside it.

        Directions of which less than `least` is left over are dropped.
        """
        R = np.eye(Q.shape[1])
        for _ in range(3):
            if not self.size or not Q.shape[1]:
                break
            overlap = float(self.space.xp.linalg.vector_norm(self._witnesses.T @ Q))
            if overlap <= self.overlap:
                break
            Q, _ = self.project(Q)
            if overlap > SLIGHT:
                Q, again = orthonormal(self.space, Q, least)
                R = again @ R
        return Q, R

    def _put(self, Q: Array) -> None:
        start, self.size = self.size, self.size + Q.shape[1]
        self._array[:, start : self.size] = Q
        witnesses = Q @ self._signs[start : self.size, :]
        self._witnesses = witnesses if start == 0 else self._witnesses + witnesses


def orthonormal(space: Space, W: Array, floor: float) -> tuple[Array, Any]:
    """Return Q with orthonormal columns and R in float64 with W = Q R, but for directions of W not longer than floor.

    W: (n, p). Q: (n, q) and R: (q, p), q <= p. Where directions are left out, those of Q are in descending order.
    """
    gram = squared(W)
    lengths, vectors = _lengths(gram)
    if lengths.size and lengths[-1] < SEEN_BY_SINGLE * lengths[0]:
        gram = squared(space.double(W))
        lengths, vectors = _lengths(gram)
    if lengths.size == 0 or lengths[0] <= floor:
        return W[:, :0], np.zeros((0, W.shape[1]))
    if max(lengths[-1], floor) < SEEN_BY_DOUBLE * lengths[0]:
        return _by_householder(space, W, floor)
    kept = lengths > floor
    if kept.all() and lengths[-1] > SEEN_BY_SINGLE * lengths[0]:
        R = np.linalg.cholesky(gram).T
        Q = W @ space.asarray(np.linalg.inv(R))
    else:
        lengths, vectors = lengths[kept], vectors[:, kept]
        Q, R = W @ space.asarray(vectors / lengths), lengths[:, None] * vectors.T
    return _corrected(space, Q, R)


def _corrected(space: Space, Q: Array, R: Any) -> tuple[Array, Any]:
    """Return Q (QᵀQ)^(-1/2) and (QᵀQ)^(1/2) R for columns that are orthonormal but for the rounding of one step."""
    gram = squared(Q)
    off = gram - np.eye(len(gram))
    if np.linalg.norm(off) ** 3 < space.eps:  # the series of both powers ends here
        return Q @ space.asarray(np.eye(len(off)) - off / 2 + 3 / 8 * off @ off), R + (off / 2 - off @ off / 8) @ R
    lengths, vectors = _lengths(gram)
    return Q @ space.asarray(vectors / lengths @ vectors.T), vectors * lengths @ vectors.T @ R


def normalise_(space: Space, X: Array) -> Any:
    """Divide the columns of X, which are close to unit length, by their lengths as float64 sees them; return these.

    The roundings of a product need not be random: where all entries of a vector are alike, so are their errors.
    """
    total = np.zeros(X.shape[1])
    for start in range(0, X.shape[0], PANEL):
        panel = space.double(X[start : start + PANEL, :])
        total += to_numpy(space.xp.sum(panel * panel, axis=0))
    lengths = np.sqrt(total)
    X /= space.asarray(lengths)
    return lengths


def squared(W: Array) -> Any:
    """Return WᵀW, NumPy, in float64."""
    total = np.zeros((W.shape[1], W.shape[1]))
    for start in range(0, W.shape[0], PANEL):
        panel = W[start : start + PANEL, :]
        total += to_numpy(panel.T @ panel)
    return total


def _lengths(gram: Any) -> tuple[Any, Any]:
    """Return the singular values, descending, and the right singular vectors of what this is the Gram matrix of."""
    values, vectors = np.linalg.eigh(gram)
    return np.sqrt(np.maximum(values[::-1], 0)), vectors[:, ::-1]


def _by_householder(space: Space, W: Array, floor: float) -> tuple[Array, Any]:
    Q, R = space.xp.linalg.qr(W)
    left, lengths, right = np.linalg.svd(to_numpy(R).astype(np.float64), full_matrices=False)
    kept = lengths > floor
    return Q @ space.asarray(left[:, kept]), lengths[kept, None] * right[kept]
