"""Choosing one option a layer within a budget: a knapsack solved by one Lagrange multiplier, or uniformly.

Everett 1963: for any λ ≥ 0 the choices that minimise loss + λ·cost layer by layer are the best ones at their cost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Choices", "least_loss", "least_loss_exactly"]

Numbers = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Choices:
    """The options of one layer, in any order: what each costs and how much it adds to the loss."""

    costs: Numbers
    losses: Numbers


def least_loss(layers: Mapping[str, Choices], budget: float) -> dict[str, int]:
    """Return for each layer the index of its option, such that the costs add up to at most `budget`.

    The multiplier is found by bisection; what it leaves of the budget is spent where it buys the largest drop in loss a
    unit of cost. The caller has made sure that the cheapest options fit.
    """
    low, high = 0.0, _enough(layers)
    chosen = _at(layers, low)
    if _cost(layers, chosen) > budget:
        chosen = _at(layers, high)
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2 if low == 0 else (low * high) ** 0.5
            trial = _at(layers, middle)
            if _cost(layers, trial) > budget:
                low = middle
            else:
                high, chosen = middle, trial
    return _spend_rest(layers, chosen, budget)


def least_loss_exactly(layers: Mapping[str, Choices], budget: float) -> dict[str, int]:
    """Return what `least_loss` does, but the best choice there is, by dynamic programming over the cost.

    Costs above each layer's least are counted in their greatest common divisor, or, where the budget has more than
    UNITS of these, rounded up to one part in UNITS of it: the choice is then the best among those that cost so much.
    """
    floors = {name: float(choices.costs.min()) for name, choices in layers.items()}
    extra = {name: np.rint(choices.costs - floors[name]).astype(np.int64) for name, choices in layers.items()}
    rest = int(budget - sum(floors.values()))
    divisor = int(np.gcd.reduce(np.concatenate([[0], *extra.values()]))) or 1
    unit = divisor if rest // divisor <= UNITS else rest / UNITS
    units = int(rest / unit)
    best, taken = np.zeros(units + 1), []  # best[u]: least loss of the layers so far at u units or fewer
    for name, choices in layers.items():
        found, by = np.full(units + 1, np.inf), np.zeros(units + 1, np.int16)
        for i, cost in enumerate(np.ceil(extra[name] / unit).astype(np.int64)):
            if cost <= units:
                trial = best[: units + 1 - cost] + choices.losses[i]
                better = trial < found[cost:]
                found[cost:][better], by[cost:][better] = trial[better], i
        best = found
        taken.append(by)
    chosen, at = {}, units
    for name, by in zip(reversed(list(layers)), reversed(taken), strict=True):
        chosen[name] = int(by[at])
        at -= int(np.ceil(extra[name][chosen[name]] / unit))
    return {name: chosen[name] for name in layers}


UNITS = 100_000  # of cost in the dynamic programme: seconds, and two bytes a unit and layer

_BISECTIONS = 200  # halves the interval, on a logarithmic scale once above zero, far below one option's difference


def _enough(layers: Mapping[str, Choices]) -> float:
    """Return a multiplier at which every layer takes its cheapest option."""
    span = max((float(np.ptp(c.losses)) for c in layers.values()), default=0.0)
    steps = [np.diff(np.unique(c.costs)).min() for c in layers.values() if len(np.unique(c.costs)) > 1]
    return 2 * span / min(steps) + 1 if steps else 1.0


def _at(layers: Mapping[str, Choices], multiplier: float) -> dict[str, int]:
    """Return every layer's best option at this price; of equals the cheapest."""
    return {
        name: int(np.lexsort((choices.costs, choices.losses + multiplier * choices.costs))[0])
        for name, choices in layers.items()
    }


def _cost(layers: Mapping[str, Choices], chosen: Mapping[str, int]) -> float:
    return float(sum(layers[name].costs[i] for name, i in chosen.items()))


def _spend_rest(layers: Mapping[str, Choices], chosen: dict[str, int], budget: float) -> dict[str, int]:
    rest = budget - _cost(layers, chosen)
    while True:
        best, gain = None, 0.0
        for name, choices in layers.items():
            more = choices.costs - choices.costs[chosen[name]]
            less = choices.losses[chosen[name]] - choices.losses
            fits = (more > 0) & (more <= rest) & (less > 0)
            if fits.any():
                rates = np.where(fits, less / np.where(more > 0, more, 1), 0.0)
                i = int(rates.argmax())
                if rates[i] > gain:
                    best, gain = (name, i), float(rates[i])
        if best is None:
            return chosen
        name, i = best
        rest -= float(layers[name].costs[i] - layers[name].costs[chosen[name]])
        chosen = {**chosen, name: i}
