"""What white noise does to singular values in the limit of large matrices, in units of sigma sqrt(max(m, n)).

beta = min(m, n) / max(m, n), above 0 and at most 1. Noise alone fills the bulk of Marchenko & Pastur (1967) up to its
edge. A component of strength l below the threshold of Baik, Ben Arous & Péché (2005) leaves no value outside it.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np

__all__ = [
    "aspect",
    "bbp_threshold",
    "bulk_edge",
    "bulk_median",
    "hard_threshold",
    "noise_maximum",
    "strength",
]

TRACY_WIDOM_99 = (
    2.0234  # quantile of the Tracy–Widom law of order 1: Johnstone, Annals of Statistics 29(2), 2001, table 1
)


def aspect(shape: tuple[int, int]) -> float:
    """Return beta of a shape whose sizes are both 1 or more."""
    return min(shape) / max(shape)


def bulk_edge(beta: float) -> float:
    """Return where the singular values of noise end."""
    return 1 + math.sqrt(beta)


def bbp_threshold(beta: float) -> float:
    """Return the singular value that a component must exceed to move any singular value of the sum out of the bulk."""
    return math.sqrt(math.sqrt(beta))


def strength(y: Any, beta: float) -> Any:
    """Return the singular values of the components behind the values y of the sum; 0 for those inside the bulk.

    Inverse of y² = (1 + l²)(1 + beta / l²). Source: Benaych-Georges & Nadakuditi, J. Multivariate Analysis 111, 2012.

    >>> float(strength(2.5, 1.0))
    2.0
    """
    excess = np.maximum(np.square(y) - 1 - beta, 0)
    inside = np.maximum(excess**2 - 4 * beta, 0)
    return np.where(np.asarray(y) > bulk_edge(beta), np.sqrt((excess + np.sqrt(inside)) / 2), 0.0)


def hard_threshold(beta: float) -> float:
    """Return the threshold on singular values with the least worst-case mean squared error, 4 / √3 for square matrices.

    Source: Gavish & Donoho, IEEE Trans. Information Theory 60(8), 2014.

    >>> round(hard_threshold(1.0) ** 2 * 3)
    16
    """
    return math.sqrt(2 * (beta + 1) + 8 * beta / (beta + 1 + math.sqrt(beta**2 + 14 * beta + 1)))


@lru_cache(maxsize=256)
def bulk_median(beta: float) -> float:
    """Return the median singular value of noise, by quadrature of the density of Marchenko and Pastur to 1e-10."""
    from scipy.integrate import quad
    from scipy.optimize import brentq

    middle, half = 1 + beta, 2 * math.sqrt(beta)  # squared singular values lie in middle + half cos(angle)

    def above(angle: float) -> float:
        """Return the part of the squared singular values that is larger than middle + half cos(angle)."""
        part = quad(lambda t: math.sin(t) ** 2 / (middle + half * math.cos(t)), 0, angle, epsabs=1e-13)[0]
        return float(half**2 * part / (2 * math.pi * beta))

    angle = float(brentq(lambda angle: above(angle) - 0.5, 0.0, math.pi - 1e-9, xtol=1e-12))
    return math.sqrt(middle + half * math.cos(angle))


def noise_maximum(shape: tuple[int, int]) -> float:
    """Return what the largest singular value of Gaussian noise exceeds in one matrix of a hundred.

    Source: Johnstone, Annals of Statistics 29(2), 2001, with the half-integer corrections of Ma, Bernoulli 18(1), 2012.
    """
    long, short = (math.sqrt(size - 0.5) for size in (max(shape), min(shape)))
    centre = (long + short) ** 2
    width = (long + short) * (1 / long + 1 / short) ** (1 / 3)
    return math.sqrt((centre + TRACY_WIDOM_99 * width) / max(shape))
