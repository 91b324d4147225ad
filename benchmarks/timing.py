"""Times that can be compared: runs take turns in one process, and the error is computed outside of them."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

__all__ = ["Errors", "Timed", "claim_ratio", "take_turns", "timed"]

ROUNDS_S = 20.0  # seconds of rounds that are aimed at,
LEAST, MOST = 3, 9  # with no fewer and no more rounds than these


@dataclass(frozen=True)
class Timed:
    """Seconds of each round, and what the last round returned."""

    seconds: list[float]
    result: Any

    @property
    def median(self) -> float:
        return median(self.seconds)


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Return the wall seconds of one call and its result; garbage is collected before, not within."""
    gc.collect()
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def take_turns(runs: Mapping[str, Callable[[], Any]], seconds: float = ROUNDS_S) -> dict[str, Timed]:
    """Call each once a round, each time beginning with another one, for about `seconds`, LEAST to MOST rounds."""
    names, rounds = list(runs), 0
    times: dict[str, list[float]] = {name: [] for name in names}
    results: dict[str, Any] = {}
    start = time.perf_counter()
    while rounds < LEAST or (rounds < MOST and time.perf_counter() - start < seconds):
        first = rounds % len(names)
        for name in names[first:] + names[:first]:
            results.pop(name, None)
            spent, results[name] = timed(runs[name])
            times[name].append(spent)
        rounds += 1
    return {name: Timed(times[name], results[name]) for name in names}


def claim_ratio(slow: Timed, fast: Timed) -> dict[str, float]:
    """Return the ratio of the medians, and quartiles of the ratios round by round, named as in Claim."""
    rounds = np.divide(slow.seconds, fast.seconds)
    low, high = np.quantile(rounds, [0.25, 0.75])
    return {"reached": slow.median / fast.median, "low": float(low), "high": float(high)}


class Errors:
    """max over i of max(‖A v_i - s_i u_i‖, ‖Aᵀ u_i - s_i v_i‖) / s_1 of any factors of A, in float64."""

    def __init__(self, A: Any) -> None:
        self.A = A.astype(np.float64)

    def __call__(self, factors: Any) -> float:
        U, s, Vt = (np.asarray(x, dtype=np.float64) for x in factors)
        if not all(np.isfinite(x).all() for x in (U, s, Vt)) or not s.size or s.max() <= 0:
            return math.inf
        right = np.linalg.norm(self.A @ np.ascontiguousarray(Vt.T) - U * s, axis=0)
        left = np.linalg.norm(self.A.T @ np.ascontiguousarray(U) - Vt.T * s, axis=0)
        return float(max(right.max(), left.max()) / s.max())
