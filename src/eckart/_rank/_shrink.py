"""Optimal shrinkage of singular values: the denoised matrix keeps its singular vectors and gets smaller values."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from eckart._rank._noise_law import aspect, bulk_edge, strength
from eckart.errors import UsageError

__all__ = ["LOSSES", "shrink"]

LOSSES = ("frobenius", "operator", "nuclear")


def shrink(s: Any, shape: tuple[int, int], sigma: float, loss: str = "frobenius") -> Any:
    """Return the values that, put on the singular vectors of low rank + white noise, denoise best as m, n → ∞.

    s: (k,), of the noisy matrix A. shape: (m, n) of A. sigma: the deviation of the noise, in the unit of A, above 0.
    loss: the norm of the difference from the low-rank part that is made small. Values within the bulk become 0.
    Source: Gavish & Donoho, IEEE Trans. Information Theory 63(4), 2017.

    >>> shrink([5.0, 2.0], (1, 1), 1.0).round(3).tolist()
    [4.583, 0.0]
    """
    if loss not in LOSSES:
        raise UsageError(f"loss = {loss!r} is not known", fix=f"pass one of {', '.join(LOSSES)}")
    beta, unit = aspect(shape), sigma * math.sqrt(max(shape))
    y = np.asarray(s, np.float64) / unit
    signal = y > bulk_edge(beta)
    ell = np.where(signal, strength(y, beta), 1.0)
    if loss == "operator":
        best = ell
    elif loss == "frobenius":
        best = np.sqrt(np.maximum((y**2 - beta - 1) ** 2 - 4 * beta, 0)) / np.where(signal, y, 1.0)
    else:
        best = np.maximum(ell**4 - beta - math.sqrt(beta) * ell * y, 0) / (ell**2 * np.where(signal, y, 1.0))
    return np.where(signal, best, 0.0) * unit
