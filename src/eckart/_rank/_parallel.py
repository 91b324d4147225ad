"""Parallel analysis: compare singular values with those of the same numbers under random signs."""

from __future__ import annotations

from typing import Any

import numpy as np

from eckart._rank._data import Data, divided, largest_value, leading_above

__all__ = ["FLIPS", "parallel"]

FLIPS = 19  # noise alone exceeds the largest of 19 with a probability of 1/20
FIRST = 16
ROUNDING = 1e-9  # relative; random signs that leave a small matrix as it is are no component


def parallel(data: Data, seed: int) -> tuple[int, Any, float]:
    """Return how many singular values of the standardised columns exceed a threshold, some of them, and the threshold.

    The threshold is the largest ‖X with random signs‖₂ of FLIPS draws. Signs keep the size of every entry, so noise of
    unequal variance keeps its profile, while low rank turns into noise. Columns are divided by their root mean square.
    Source: Hong, Sheng & Dobriban, arXiv 2012.02985; there the k-th value is compared with the k-th.
    """
    squares = data.entries**2 if data.dense else data.entries.multiply(data.entries)
    means = np.asarray(squares.sum(axis=0)).ravel() / data.shape[0]
    X = divided(data.entries, np.ones(data.shape[0]), np.sqrt(means))
    random, threshold = np.random.default_rng(seed), 0.0
    for _ in range(FLIPS):
        threshold = max(threshold, largest_value(_flipped(X, random), seed))
    threshold *= 1 + ROUNDING
    _, s, _ = leading_above(X, threshold, FIRST, seed)
    return int(np.count_nonzero(s > threshold)), s, threshold


def _flipped(X: Any, random: np.random.Generator) -> Any:
    """Return X with the sign of every entry drawn anew."""
    if isinstance(X, np.ndarray):
        return np.where(random.integers(0, 2, X.shape, dtype=np.int8) == 0, X, -X)
    flipped = X.copy()
    flipped.data = np.where(random.integers(0, 2, X.data.shape, dtype=np.int8) == 0, X.data, -X.data)
    return flipped
