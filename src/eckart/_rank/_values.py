"""What the rules for white noise need of a matrix: its shape, its leading singular values, and its Frobenius norm."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from eckart._rank._noise_law import aspect

__all__ = ["MoreValuesNeeded", "Values", "evbmf_sigma", "evbmf_threshold", "largest_rank", "tail_sigma"]

GRID = 256  # points at which the free energy is compared before it is minimised between two of them


class MoreValuesNeeded(Exception):
    """A rule keeps every value that is known, and there are more: the caller computes them, or explains."""


@dataclass(frozen=True, eq=False)
class Values:
    """The leading singular values of an m x n matrix, and what it holds besides.

    s: (k,), descending. shape: (m, n). rest: ‖A - A_k‖_F², 0 where s are all.
    """

    s: Any
    shape: tuple[int, int]
    rest: float = 0.0

    @property
    def short(self) -> int:
        return min(self.shape)

    @property
    def long(self) -> int:
        return max(self.shape)

    @property
    def beta(self) -> float:
        return aspect(self.shape)

    @property
    def complete(self) -> bool:
        return len(self.s) >= self.short

    @cached_property
    def energy(self) -> Any:
        """‖A - A_r‖_F² for r from 0 to k, (k + 1,)."""
        return np.cumsum(np.append(self.rest, np.square(self.s[::-1])))[::-1]  # the smallest first, not lost

    def above(self, threshold: float) -> int:
        """Return how many values exceed a threshold. MoreValuesNeeded: all that are known, and there are more."""
        rank = int(np.count_nonzero(self.s > threshold))
        if rank == len(self.s) and not self.complete:
            raise MoreValuesNeeded
        return rank


def tail_sigma(values: Values, threshold: float) -> float:
    """Return the deviation of white noise for which the values below threshold sigma sqrt(max(m, n)) hold its energy.

    The rest of a matrix after its best rank-r approximation has (m - r)(n - r) degrees of freedom. r grows from 0 until
    it no longer changes; only leading values and the Frobenius norm are used. MoreValuesNeeded: too few of them.
    """
    m, n = values.shape
    r = 0
    while True:
        sigma = math.sqrt(values.energy[r] / ((m - r) * (n - r)))
        rank = min(values.above(threshold * sigma * math.sqrt(values.long)), largest_rank(values.shape))
        if rank <= r:
            return sigma
        r = rank


@lru_cache(maxsize=256)
def evbmf_threshold(beta: float) -> float:
    """Return the singular value above which empirical variational Bayes keeps a component, in sigma sqrt(max(m, n)).

    Source: Nakajima, Sugiyama, Babacan & Tomioka, J. Machine Learning Research 14, 2013; its x̲ is the square.
    """
    from scipy.optimize import brentq

    def balance(tau: float) -> float:
        return sum(math.log1p(z) / z - 0.5 for z in (tau, tau / beta))

    # Φ falls from 1/2 to -1/2 and is 0 at z = 2.51…: the root lies between the z of one term and that of the other.
    tau = brentq(balance, 2.5 * beta, 2.6, xtol=1e-14)
    return math.sqrt((1 + tau) * (1 + beta / tau))


def evbmf_sigma(values: Values) -> float:
    """Return the noise deviation that minimises the free energy of empirical variational Bayes matrix factorisation.

    A value below the threshold adds x - log x with x = s² / (sigma² max(m, n)): all of them enter by their sum of
    squares and a constant, so leading values and ‖A‖_F² give the answer of the whole spectrum.
    MoreValuesNeeded: too few of them for that. Source: Nakajima et al. 2013, with its bounds on sigma².
    """
    from scipy.optimize import minimize_scalar

    beta, cut = values.beta, evbmf_threshold(values.beta) ** 2
    scaled = np.square(values.s) / values.long
    low, high = _variance_bounds(values, scaled, cut)
    if low >= high:
        return math.sqrt(high)
    able = scaled[scaled > low * cut]

    def free_energy(log_variance: Any) -> Any:
        x = able / np.exp(log_variance)[:, None]
        kept = np.where(x > cut, _kept_energy(np.maximum(x, cut), beta), 0.0).sum(axis=1)
        return values.energy[0] / values.long * np.exp(-log_variance) + values.short * log_variance + kept

    corners = able[able < high * cut] / cut
    grid = np.unique(np.log(np.concatenate([np.geomspace(low, high, GRID), corners])))
    best = int(np.argmin(free_energy(grid)))
    if best == 0 and not values.complete and len(values.s) <= largest_rank(values.shape):
        raise MoreValuesNeeded
    around = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    found = minimize_scalar(lambda t: float(free_energy(np.array([t]))[0]), bounds=around, method="bounded")
    return math.exp(found.x / 2)


def _kept_energy(x: Any, beta: float) -> Any:
    """Return ψ₁ of Nakajima et al., what keeping a component of scaled square x adds to the free energy; at most 0."""
    half = x - 1 - beta
    tau = (half + np.sqrt(np.maximum(half**2 - 4 * beta, 0))) / 2
    return np.log1p(tau) + beta * np.log1p(tau / beta) - tau


def _variance_bounds(values: Values, scaled: Any, cut: float) -> tuple[float, float]:
    """Return bounds on sigma²: what the largest possible rank leaves is noise, below the threshold."""
    kept, high = largest_rank(values.shape), values.energy[0] / (values.short * values.long)
    if kept >= len(scaled):
        return min(scaled[-1] / cut, high), high
    rest = values.energy[kept] / (values.long * (values.short - kept))
    return min(max(scaled[kept] / cut, rest), high), high


def largest_rank(shape: tuple[int, int]) -> int:
    """Return the most components that can be told from noise: ⌈p / (1 + beta)⌉ - 1 of p, Nakajima et al. 2013."""
    return math.ceil(min(shape) / (1 + aspect(shape))) - 1
