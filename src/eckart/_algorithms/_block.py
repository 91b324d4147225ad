"""Bases of orthonormal columns that grow block by block: the arithmetic that the Krylov methods share.

A block is orthonormalised through its Gram matrix in float64, twice (Stathopoulos & Wu, SIAM J. Sci. Comput. 23(6),
2002), or by Householder's method where squaring would lose a direction. Work of the size of the basis is all products
of matrices; matrices of the size of a block are NumPy's, in float64, on every device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from eckart._arrays import Array, Space, to_numpy

__all__ = ["Basis", "orthonormal", "squared"]

VANISHED = 4  # a direction shorter than this many eps of the scale is rounding error
SMALL = (
    1e-2  # of the longest: dividing a shorter direction by its length makes error along the basis 100 times as large
)
TINY = 1e3  # eps of the scale: a block this short is partly error along the basis
SQUARE_LOSES = 1e-6  # of the longest: below, a Gram matrix in float64 no longer tells a direction from rounding error
PANEL = 2**15  # rows that are converted to float64 at once: 4 MiB for 16 columns


class Basis:
    """Orthonormal columns, the first `size` of an array (length, capacity).

    draw(columns) gives new random columns of this length; they replace directions that vanish.
    """

    def __init__(self, space: Space, length: int, capacity: int, draw: Callable[[int], Array]) -> None:
        self.space, self.draw, self.size = space, draw, 0
        self.capacity = min(capacity, length)
        self._array = space.xp.empty((length, self.capacity), dtype=space.dtype, device=space.device)

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
        """Return a copy of the newest columns in one piece of memory."""
        return self.space.xp.asarray(self._array[:, self.size - width : self.size], copy=True)

    def project(self, W: Array, start: int = 0) -> tuple[Array, Any]:
        """Return W less its part along the columns from `start` on, and the coefficients of that part in float64."""
        columns = self._array[:, start : self.size]
        part = columns.T @ W
        return W - columns @ part, to_numpy(part).astype(np.float64)

    def append(self, W: Array, scale: float) -> Any:
        """Add as many columns as W has, or there is room for, and return R with W = columns · R in float64.

        W: orthogonal to the basis. Where one of its directions vanishes, that is, has less than rounding error of the
        scale, a random column takes its place and its row of R is zero.
        """
        error = self.space.eps * scale
        Q, R = orthonormal(self.space, W, VANISHED * error)
        lengths = np.linalg.norm(R, axis=1)
        if len(R) and lengths[-1] < max(SMALL * lengths[0], TINY * error):
            Q, again = orthonormal(self.space, self._cleared(Q), 0.5)
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
        if count:
            Q, _ = orthonormal(self.space, self._cleared(self.draw(count)), 0.0)
            Q, _ = orthonormal(self.space, self._cleared(Q), 0.5)
            self._put(Q)
        return count

    def rotate(self, S: Any, keep: int) -> None:
        """Replace the first columns, as many as S has rows, by their combinations S, and keep the newest so many."""
        kept, rotated = self.last(keep), self._array[:, : len(S)] @ self.space.asarray(S)
        self.size = 0
        self._put(rotated)
        self._put(kept)

    def _put(self, Q: Array) -> None:
        start, self.size = self.size, self.size + Q.shape[1]
        self._array[:, start : self.size] = Q

    def _cleared(self, W: Array) -> Array:
        for _ in range(2):
            W, _ = self.project(W)
        return W


def orthonormal(space: Space, W: Array, floor: float) -> tuple[Array, Any]:
    """Return Q with orthonormal columns and R in float64 with W = Q R, but for directions of W not longer than floor.

    W: (n, p). Q: (n, q) and R: (q, p), q <= p, in descending order of length.
    """
    lengths, vectors = _lengths(space, W)
    if lengths.size == 0 or lengths[0] <= floor:
        return W[:, :0], np.zeros((0, W.shape[1]))
    if max(lengths[-1], floor) < SQUARE_LOSES * lengths[0]:
        return _by_householder(space, W, floor)
    kept = lengths > floor
    lengths, vectors = lengths[kept], vectors[:, kept]
    Q, R = W @ space.asarray(vectors / lengths), lengths[:, None] * vectors.T
    lengths, vectors = _lengths(space, Q)  # near 1 now
    return Q @ space.asarray(vectors / lengths @ vectors.T), vectors * lengths @ vectors.T @ R


def squared(space: Space, W: Array) -> Any:
    """Return WᵀW, NumPy, added up in float64."""
    total = np.zeros((W.shape[1], W.shape[1]))
    for start in range(0, W.shape[0], PANEL):
        panel = space.double(W[start : start + PANEL, :])
        total += to_numpy(panel.T @ panel)
    return total


def _lengths(space: Space, W: Array) -> tuple[Any, Any]:
    """Return the singular values of W, descending, and its right singular vectors, by the Gram matrix."""
    values, vectors = np.linalg.eigh(squared(space, W))
    return np.sqrt(np.maximum(values[::-1], 0)), vectors[:, ::-1]


def _by_householder(space: Space, W: Array, floor: float) -> tuple[Array, Any]:
    Q, R = space.xp.linalg.qr(W)
    left, lengths, right = np.linalg.svd(to_numpy(R).astype(np.float64), full_matrices=False)
    kept = lengths > floor
    return Q @ space.asarray(left[:, kept]), lengths[kept, None] * right[kept]
