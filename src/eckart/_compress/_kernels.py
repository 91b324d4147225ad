"""What one kernel loses in every form and rank, and its factors there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eckart._arrays import Array
from eckart._convolutions import spatial, tucker
from eckart._factorise import truncation
from eckart.models._kernel import Kernel, largest_ranks, stages, useful_forms, weights_of
from eckart.models._network_times import Form

__all__ = ["Form", "Grams", "factored", "forms_on_offer", "losses_of", "numbers"]

INNER_RANKS = 8  # of the input channels in "tucker", each a least squares of its own
TILE = 8  # what ranks are multiples of, where there are enough: matrix products of other sizes waste part of a register


@dataclass(frozen=True)
class Grams:
    """The metric of a kernel: inputs, of each group's patches, (columns, columns); outputs, of each group's gradients,
    (out / groups, out / groups); None stands for I.
    """

    inputs: Sequence[Array | None]
    outputs: Sequence[Array] | None

    def of(self, group: int) -> dict[str, Array | None]:
        return {"inputs": self.inputs[group], "outputs": None if self.outputs is None else self.outputs[group]}


def forms_on_offer(kernel: Kernel) -> list[Form]:
    """Return the forms and ranks that store fewer numbers than the kernel."""
    found: list[Form] = []
    for form in useful_forms(kernel):
        most = largest_ranks(kernel, form)
        last = _ranks(most[-1])
        ranks: list[tuple[int, ...]] = (
            [(r, q) for r in _few(most[0]) for q in last] if form == "tucker" else [(k,) for k in last]
        )
        reached = [some for some in ranks if some[-1] <= some[0] * math.prod(kernel.size)]
        found += [(form, some) for some in reached if numbers(kernel, (form, some)) < kernel.numbers]
    return found


def numbers(kernel: Kernel, form: Form) -> int:
    """Return how many numbers a form stores."""
    return sum(stage.numbers for stage in stages(kernel, *form))


def _ranks(most: int) -> list[int]:
    step = TILE if most >= 8 * TILE else max(1, TILE // 4) if most >= 2 * TILE else 1
    return sorted({1, *range(step, most + 1, step), most})


def _few(most: int) -> list[int]:
    every = _ranks(most)
    return sorted({every[int(i)] for i in np.linspace(0, len(every) - 1, INNER_RANKS).round()})


def losses_of(kernel: Kernel, weight: Array, grams: Grams, forms: Sequence[Form]) -> dict[Form, float]:
    """Return tr(Γ δ G δᵀ), summed over the groups, of each form; () stands for nothing left."""
    lost: dict[Form, float] = {}
    pairs = [truncation(w, **grams.of(i), keep_rank=0).losses for i, w in enumerate(_matrices(kernel, weight))]
    lost["", ()] = float(sum(losses[0] for losses in pairs))
    curves: dict[Any, np.ndarray[Any, np.dtype[np.float64]]] = {"pair": np.sum(pairs, axis=0)}
    for form, ranks in forms:
        if form == "spatial" and form not in curves:
            curves[form] = spatial(weight, **grams.of(0), keep_rank=max(k for f, (k, *_) in forms if f == form)).losses
        if form == "tucker" and ranks[0] not in curves:
            curves[ranks[0]] = tucker(weight, ranks[0], **grams.of(0), keep_rank=0).losses
        curve = curves[ranks[0] if form == "tucker" else form]
        lost[form, ranks] = float(curve[ranks[-1]])
    return lost


def factored(kernel: Kernel, weight: Array, grams: Grams, form: Form) -> list[Array]:
    """Return the weights of the stages of a form, the best in this metric."""
    name, ranks = form
    if name == "pair":
        (k,) = ranks
        cuts = [truncation(w, **grams.of(i), keep_rank=k) for i, w in enumerate(_matrices(kernel, weight))]
        factors: list[Sequence[Array]] = [(cut.down, cut.up) for cut in cuts]
    elif name == "spatial":
        factors = [spatial(weight, **grams.of(0), keep_rank=ranks[0]).factors(ranks[0])]
    else:
        r, q = ranks
        factors = [tucker(weight, r, **grams.of(0), keep_rank=q).factors(q)]
    return weights_of(kernel, name, factors)


def _matrices(kernel: Kernel, weight: Array) -> list[Array]:
    """Return the weights of each group as a matrix, (out / groups, columns)."""
    return list(weight.reshape(kernel.groups, -1, kernel.columns))
