"""Timing alternatives in turns, in random order, until two readings of each agree."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

__all__ = ["AGREEMENT", "READINGS", "agreed"]

PERCENTILE = 0.1
AGREEMENT = 0.05  # by which two readings may differ
READINGS = 6  # at most; what does not agree by then counts with the second lowest
READING_SECONDS = 0.02  # of one alternative in a reading, on average, within 5 to 60 calls


def agreed(calls: Mapping[Any, Callable[[], float]]) -> dict[Any, float]:
    """Return the time of each: the larger of its two lowest readings, which agree unless READINGS were not enough."""
    order, draw = list(calls), random.Random(0)
    turns = min(60, max(5, int(READING_SECONDS * len(calls) / sum(call() for call in calls.values()))))
    readings: dict[Any, list[float]] = {name: [] for name in calls}
    for reading in range(READINGS):
        taken: dict[Any, list[float]] = {name: [] for name in calls}
        for _ in range(turns):
            draw.shuffle(order)
            for name in order:
                taken[name].append(calls[name]())
        for name, some in taken.items():
            readings[name] = sorted([*readings[name], float(np.quantile(some, PERCENTILE, method="lower"))])
        if reading and all(some[1] <= (1 + AGREEMENT) * some[0] for some in readings.values()):
            break
    return {name: some[1] for name, some in readings.items()}
