"""Choosing one option a layer within a budget: a knapsack solved by one Lagrange multiplier, or uniformly.

Everett 1963: for any λ ≥ 0 the choices that minimise loss + λ·cost layer by layer are the best ones at their cost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

__all__ = ["Choices", "least_loss", "least_loss_exactly", "least_loss_within_both", "lower_hulls"]

Numbers = np.ndarray[Any, np.dtype[np.float64]]
Places = np.ndarray[Any, np.dtype[np.intp]]


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
    names, table = list(layers), _Table(list(layers.values()))
    low, high = 0.0, _enough(layers)
    places = table.at(low)
    if table.cost(places) > budget:
        places = table.at(high)
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2 if low == 0 else (low * high) ** 0.5
            trial = table.at(middle)
            if table.cost(trial) > budget:
                low = middle
            else:
                high, places = middle, trial
    return _spend_rest(layers, dict(zip(names, table.options(places), strict=True)), budget)


def least_loss_within_both(
    layers: Mapping[str, Choices], budget: float, others: Mapping[str, Numbers], limit: float
) -> dict[str, int] | None:
    """Return the choices of `least_loss` whose other costs add up to at most `limit` as well; None: none were found.

    The other cost has a multiplier of its own, found by bisection around that of the first.
    """

    def at(price: float) -> tuple[dict[str, int], bool]:
        priced = {name: Choices(c.costs, c.losses + price * others[name]) for name, c in layers.items()}
        chosen = least_loss(priced, budget)
        return chosen, sum(float(others[name][i]) for name, i in chosen.items()) <= limit

    chosen, fits = at(0.0)
    spread = sum(float(np.ptp(other)) for other in others.values())
    if fits or spread == 0:
        return chosen if fits else None
    unit = sum(float(np.ptp(c.losses)) for c in layers.values()) / spread or 1.0
    low, high = unit / _RANGE, unit * _RANGE
    chosen, fits = at(high)
    for _ in range(_OUTER_BISECTIONS if fits else 0):
        middle = (low * high) ** 0.5
        trial, below = at(middle)
        if below:
            high, chosen = middle, trial
        else:
            low = middle
    return chosen if fits else None


_RANGE, _OUTER_BISECTIONS = 1e6, 40  # of the other multiplier, around what all there is to lose is worth


def least_loss_exactly(layers: Mapping[str, Choices], budget: float) -> dict[str, int]:
    """Return what `least_loss` does, but the best choice there is, by dynamic programming over the cost.

    Costs above each layer's least are counted in their greatest common divisor, or, where they are no integers or the
    budget has more than UNITS of these, rounded up to one part in UNITS of it: the choice is then the best among those
    that cost so much.
    """
    floors = {name: float(choices.costs.min()) for name, choices in layers.items()}
    extra = {name: choices.costs - floors[name] for name, choices in layers.items()}
    rest, unit = budget - sum(floors.values()), 0.0
    every = np.concatenate([[0.0], *extra.values()])
    if (every == np.rint(every)).all():
        unit = float(np.gcd.reduce(every.astype(np.int64))) or 1.0
    if not unit or rest / unit > UNITS:
        unit = rest / UNITS or 1.0
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


def lower_hulls(layers: Sequence[Choices]) -> list[tuple[int, ...]]:
    """Return which options the layers take together, from the least loss to the least cost: what is best at some
    multiplier, all of it.

    The steps of a layer go down the lower convex hull of its losses over its costs; all layers' are taken in the order
    of what they lose a unit of cost.
    """
    hulls = [_lower_hull(choices) for choices in layers]
    steps = [(slope, layer, i) for layer, (_, hull) in enumerate(hulls) for slope, i in hull]
    places = [first for first, _ in hulls]
    found = [tuple(places)]
    for _, layer, i in sorted(steps, key=lambda step: step[0]):
        places[layer] = i
        found.append(tuple(places))
    return found


def _lower_hull(choices: Choices) -> tuple[int, list[tuple[float, int]]]:
    """Return the option of least loss, and the steps down from it: what each loses a unit of cost, and to where."""
    costs, losses = choices.costs, choices.losses

    def slope(i: int, j: int) -> float:
        return float((losses[j] - losses[i]) / (costs[i] - costs[j]))

    hull: list[int] = []
    for i in map(int, np.lexsort((costs, losses))):
        if hull and costs[i] >= costs[hull[-1]]:
            continue
        while len(hull) > 1 and slope(hull[-2], hull[-1]) >= slope(hull[-1], i):
            hull.pop()
        hull.append(i)
    return hull[0], [(slope(i, j), j) for i, j in pairwise(hull)]


UNITS = 100_000  # of cost in the dynamic programme: seconds, and two bytes a unit and layer

_BISECTIONS = 200  # halves the interval, on a logarithmic scale once above zero, far below one option's difference


def _enough(layers: Mapping[str, Choices]) -> float:
    """Return a multiplier at which every layer takes its cheapest option."""
    span = max((float(np.ptp(c.losses)) for c in layers.values()), default=0.0)
    steps = [np.diff(np.unique(c.costs)).min() for c in layers.values() if len(np.unique(c.costs)) > 1]
    return 2 * span / min(steps) + 1 if steps else 1.0


class _Table:
    """The options of every layer in a row, from the cheapest on; what a row lacks has an infinite loss."""

    def __init__(self, layers: Sequence[Choices]) -> None:
        shape = len(layers), max((len(c.costs) for c in layers), default=1)
        self.costs, self.losses = np.zeros(shape), np.full(shape, np.inf)
        self.orders = [np.argsort(c.costs, kind="stable") for c in layers]
        for row, (order, choices) in enumerate(zip(self.orders, layers, strict=True)):
            self.costs[row, : len(order)], self.losses[row, : len(order)] = choices.costs[order], choices.losses[order]

    def at(self, multiplier: float) -> Places:
        """Return where every layer's best option at this price is; of equals the cheapest."""
        places: Places = (self.losses + multiplier * self.costs).argmin(axis=1)
        return places

    def cost(self, places: Places) -> float:
        return float(self.costs[np.arange(len(places)), places].sum())

    def options(self, places: Places) -> list[int]:
        return [int(order[place]) for order, place in zip(self.orders, places, strict=True)]


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
