"""Which model of the noise does a dense matrix not contradict: equal, unequal by row or column, heavy-tailed?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from eckart._rank._data import Data
from eckart._rank._whitened import Whitened, whitened

__all__ = ["NoiseModel", "noise_model"]

CUT = 3.0  # deviations at which heavy-tailed noise is cut; of Gaussian noise 1 entry in 370 lies beyond
LEAST_LINE = 20  # entries of a line from which its variance is estimated; with fewer, lines are taken to be equal
LEAST_SPREAD = 0.15  # of the variances of lines, below which they leave the largest singular value of noise where it is
EXCESS = 0.5  # kurtosis over that of Gaussian noise from which a few entries may pass for a component
SIGNIFICANT = 6.0  # standard deviations of a test statistic, beyond all that a hundred thousand matrices show


@dataclass(frozen=True)
class NoiseModel:
    """What the tests found, and the matrix whitened by it.

    axes: along which the variance is unequal. heavy: whether tails are; None where they were not tested.
    tested: what was tested, in words.
    """

    axes: tuple[str, ...]
    heavy: bool | None
    tested: str
    fit: Whitened

    @property
    def name(self) -> str:
        """Return "white", or what the noise is instead."""
        unequal = "- and ".join(axis[:-1] for axis in self.axes)
        parts = [*(["heavy-tailed"] if self.heavy else []), *([f"{unequal}-unequal"] if unequal else [])]
        return ", ".join(parts) or "white"


def noise_model(data: Data, seed: int) -> NoiseModel:
    """Return the simplest model of the noise that the residual of the most general one does not contradict."""
    m, n = data.shape
    general = tuple(axis for axis, size in (("rows", n), ("columns", m)) if size >= LEAST_LINE)
    fit, heavy, cut = whitened(data, general, seed=seed), None, math.inf
    if data.dense:
        heavy = _kurtosis(fit.noise) - 3 > EXCESS + SIGNIFICANT * math.sqrt(24 / fit.noise.size)
        if heavy:
            cut = CUT
            fit = whitened(data, general, cut=cut, seed=seed)
    kurtosis = 3.0 if fit.noise is None else _kurtosis(fit.noise)
    tested = f"variance of {' and '.join(general) or 'nothing'} tested"
    tested += ", tails not, as the matrix is sparse" if heavy is None else ", and tails"
    axes = tuple(axis for axis in general if _unequal(getattr(fit, axis), n if axis == "rows" else m, kurtosis))
    return NoiseModel(axes, heavy, tested, fit if axes == general else whitened(data, axes, cut=cut, seed=seed))


def _kurtosis(noise: Any) -> float:
    squares = noise**2
    mean = float(np.mean(squares))
    return float(np.mean(squares**2)) / mean**2 if mean > 0 else 3.0


def _unequal(scales: Any, entries: int, kurtosis: float) -> bool:
    """Test deviations, each estimated from so many entries, against the scatter that equal ones would have."""
    found = float(np.var(scales**2 / np.mean(scales**2)))
    by_chance, freedom = (kurtosis - 1) / entries, len(scales) - 1
    return found > by_chance * (1 + SIGNIFICANT * math.sqrt(2 / freedom)) + LEAST_SPREAD**2
