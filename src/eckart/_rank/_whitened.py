"""Rank under unequal noise: divide rows and columns by the deviation of their noise, count, re-estimate, repeat.

In the divided matrix the noise has variance 1 everywhere, so the threshold of empirical variational Bayes is known
beforehand, and a round needs no more than the leading triplets.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from eckart._rank._data import Data, divided, leading_above
from eckart._rank._noise_law import aspect
from eckart._rank._values import evbmf_threshold, largest_rank

__all__ = ["Whitened", "whitened"]

ROUNDS = 20
SETTLED = 3  # rounds in a row with the same rank
SPARE = 8  # triplets beyond the rank so far, so that a new component shows
LEAST = {
    True: 1e-10,
    False: 1e-6,
}  # noise of a line, of its root mean square; entries in memory, or differences of sums
GAUSSIAN_MAD = 1.4826  # standard deviation over the median of the absolute value


@dataclass(frozen=True, eq=False)
class Whitened:
    """A = low rank + noise whose deviation in entry (i, j) is rows[i] * columns[j].

    U (m, k), s (k,), Vt (k, n): leading triplets of the matrix divided by these, of which `rank` exceed `threshold`.
    noise: (m, n), what the kept components leave of it, cut where that was asked; None for a sparse matrix.
    settled: whether the rank stopped changing.
    """

    U: Any
    s: Any
    Vt: Any
    rank: int
    threshold: float
    rows: Any
    columns: Any
    noise: Any
    settled: bool


def whitened(data: Data, axes: tuple[str, ...], *, cut: float = math.inf, seed: int = 0) -> Whitened:
    """Return a matrix as low rank plus noise that is unequal along axes.

    axes: of "rows" and "columns"; () for equal noise. cut: deviations at which noise is cut off, for a dense matrix.
    Sources: the threshold, Nakajima et al. 2013; both axes at once, Landa, Zhang & Kluger, SIAM J. Mathematics of Data
    Science 4(4), 2022; the loop over the columns is like principal factor analysis, with the rank inside.
    """
    m, n = data.shape
    threshold = evbmf_threshold(aspect(data.shape)) * math.sqrt(max(m, n))
    rows, columns = np.ones(m), _first_scales(data, axes, cut)
    least = LEAST[data.dense] * np.sqrt(np.mean(columns**2))
    U, s, Vt = np.zeros((m, 0)), np.zeros(0), np.zeros((0, n))
    ranks: list[int] = []
    while len(ranks) < ROUNDS and not _settled(ranks):
        rank = ranks[-1] if ranks else 0
        whole, noise, by_row, by_column = _moments(data, rows, columns, (U[:, :rank], s[:rank], Vt[:rank]), cut)
        mean = max(float(np.mean(by_column)), np.finfo(float).tiny)
        # A kept component takes a row's and a column's worth of noise with it.
        level = mean / ((1 - rank / m) * (1 - rank / n))
        row_steps = np.sqrt(by_row / mean) if "rows" in axes else np.ones(m)
        column_steps = np.sqrt(by_column / mean * level) if "columns" in axes else np.full(n, math.sqrt(level))
        before = rows, columns
        rows = np.maximum(rows * row_steps, LEAST[data.dense])
        columns = np.maximum(columns * column_steps, least)
        X = divided(whole, rows / before[0], columns / before[1])
        U, s, Vt = leading_above(X, threshold, rank + SPARE, seed)
        ranks.append(min(int(np.count_nonzero(s > threshold)), largest_rank(data.shape)))
    return Whitened(U, s, Vt, ranks[-1], threshold, rows, columns, noise, _settled(ranks))


def _settled(ranks: list[int]) -> bool:
    return len(ranks) >= SETTLED and len(set(ranks[-SETTLED:])) == 1


def _first_scales(data: Data, axes: tuple[str, ...], cut: float) -> Any:
    """Return deviations by column that no large entry moves where noise is to be cut, and 1 where it is not."""
    n = data.shape[1]
    if cut == math.inf:
        return np.ones(n)
    sizes = np.abs(data.entries)
    axis = 0 if "columns" in axes else None
    scales = GAUSSIAN_MAD * np.median(sizes, axis=axis)
    return np.broadcast_to(np.where(scales > 0, scales, np.sqrt(np.mean(sizes**2, axis=axis))), n)


def _moments(data: Data, rows: Any, columns: Any, kept: tuple[Any, Any, Any], cut: float) -> tuple[Any, Any, Any, Any]:
    """Return the divided matrix with its noise cut, that noise, and the mean square of it by row and by column."""
    m, n = data.shape
    X, (U, s, Vt) = divided(data.entries, rows, columns), kept
    if data.dense:
        low = (U * s) @ Vt
        noise = np.clip(X - low, -cut, cut)
        squares = noise**2
        return low + noise, noise, squares.mean(axis=1), squares.mean(axis=0)
    squares = X.multiply(X)
    by_row, by_column = np.asarray(squares.sum(axis=1)).ravel(), np.asarray(squares.sum(axis=0)).ravel()
    floor = LEAST[False] ** 2  # the kept part is orthogonal to the rest, so that squares may be taken off
    left_by_row = np.maximum(by_row - (U**2) @ s**2, floor * by_row)
    left_by_column = np.maximum(by_column - s**2 @ Vt**2, floor * by_column)
    return X, None, left_by_row / n, left_by_column / m
