"""How long the layers of a network take in every form that they could have: measured in turns where they will run.

Times are of one batch, the first that the network was shown, with the threads that its framework has. Between the ranks
that are timed time is a line; a layer of the same kernel and input as another has its times.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eckart.models._kernel import Kernel, stages
from eckart.models._model import Progress
from eckart.models._network import Network
from eckart.models._turns import agreed

__all__ = ["Form", "Times", "measured_times", "speed_of"]

Form = tuple[str, tuple[int, ...]]  # a format and its ranks
DENSE: Form = ("dense", ())
RANKS = 5  # timed of the last rank of a format; of "tucker" for each of so many inner ranks
LEAST_GAIN = 0.05  # of a layer's time; less is none


@dataclass(frozen=True)
class Times:
    """whole: milliseconds of the network. layers: those of every layer, by form."""

    whole: float
    layers: Mapping[str, Mapping[Form, float]]

    def saved(self, name: str, form: Form) -> float:
        """Return how many milliseconds less than when it is dense a layer takes."""
        return self.layers[name][DENSE] - self.layers[name][form]

    def price(self, name: str, form: Form) -> float:
        """Return the layer's part of the network's time; a gain below 5 % of the layer's is none."""
        dense, ms = self.layers[name][DENSE], self.layers[name][form]
        return (ms if form == DENSE or ms <= (1 - LEAST_GAIN) * dense else max(ms, dense)) / self.whole


def measured_times(
    network: Network, kernels: Mapping[str, Kernel], forms: Mapping[str, Sequence[Form]], progress: Progress
) -> Times:
    """Return the times of the network and of these layers in these forms."""
    whole = agreed({DENSE: network.timer()})[DENSE]
    known: dict[Any, dict[Form, float]] = {}
    for i, (name, kernel) in enumerate(kernels.items()):
        progress("timing layers", i, len(kernels))
        alike = network.timed_as(name)
        if alike not in known:
            some = _timed(forms[name])
            calls = {form: network.timer(name, stages(kernel, *form)) for form in some}
            found = agreed({DENSE: network.timer(name), **calls})
            known[alike] = {form: 1000 * seconds for form, seconds in found.items()}
    progress("timing layers", len(kernels), len(kernels))
    return Times(1000 * whole, {name: _filled(known[network.timed_as(name)], forms[name]) for name in kernels})


def _timed(forms: Sequence[Form]) -> list[Form]:
    """Return a few forms of each format between which the others lie."""
    return [
        (name, (*inner, last[i]))
        for (name, inner), last in _curves(forms).items()
        for i in np.unique(np.linspace(0, len(last) - 1, RANKS).round().astype(int))
    ]


def _curves(forms: Sequence[Form]) -> dict[tuple[str, tuple[int, ...]], list[int]]:
    """Return the last ranks of each format, and of each of its other ranks."""
    found: dict[tuple[str, tuple[int, ...]], list[int]] = {}
    for name, (*inner, last) in forms:
        found.setdefault((name, tuple(inner)), []).append(last)
    return found


def _filled(known: Mapping[Form, float], forms: Sequence[Form]) -> dict[Form, float]:
    """Return the time of every form; none is above that of a higher rank, which does more work: it was disturbed."""
    filled = {DENSE: known[DENSE]}
    for (name, inner), last in _curves(forms).items():
        ranks = [k for k in last if (name, (*inner, k)) in known]
        times = np.minimum.accumulate([known[name, (*inner, k)] for k in reversed(ranks)])[::-1]
        filled |= {(name, (*inner, k)): float(np.interp(k, ranks, times)) for k in last}
    return filled


def speed_of(network: Network, small: Network) -> dict[str, float]:
    """Return the milliseconds of a network and of a compressed one, timed in turns, and the ratio of the two."""
    found = agreed({"before": network.timer(), "after": small.timer()})
    before, after = 1000 * found["before"], 1000 * found["after"]
    return {"before_ms": before, "after_ms": after, "speedup": before / after}
