"""The methods of compression, as data: in which metric a weight is truncated, and how ranks are chosen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from eckart._compress._plan import ADDITIVE_UNIT
from eckart.errors import UsageError

if TYPE_CHECKING:
    from eckart._factorise import Truncation
    from eckart.models._huggingface import HuggingFaceModel

__all__ = ["METHODS", "Method", "choose_method"]

Losses = Callable[["Truncation"], "np.ndarray[tuple[int, ...], np.dtype[np.float64]]"]


@dataclass(frozen=True)
class Method:
    """inputs, gradients: which Grams the metric uses. uniform: the same fraction of every layer, instead of a knapsack.

    losses: from a truncation, the predicted loss increase at ranks 0 … min(m, n). unit: what that is measured in.
    """

    name: str
    inputs: bool
    gradients: bool
    uniform: bool
    losses: Losses
    unit: str


def _second_order(cut: Truncation) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """½ Σ_{i>k} s_i²: second-order term of the mean next-token loss, its Hessian taken as the Fisher matrix Γ ⊗ G."""
    return cut.losses / 2


def _relative(cut: Truncation) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Σ_{i>k} s_i² / Σ s_i²: comparable between layers in form only, not in effect."""
    return cut.losses / cut.losses[0] if cut.losses[0] > 0 else cut.losses


METHODS = {
    "two-sided": Method("two-sided", True, True, False, _second_order, ADDITIVE_UNIT),
    "input": Method("input", True, False, False, _relative, "squared relative output error"),
    "plain": Method("plain", False, False, True, _relative, "squared relative weight error"),
}


def choose_method(name: str, model: HuggingFaceModel) -> Method:
    """Return the method of this name; "auto" is two-sided where a next-token loss exists, else input."""
    if name == "auto":
        return METHODS["two-sided" if model.predicts_next_token else "input"]
    if name not in METHODS:
        raise UsageError(f"there is no method {name!r}", fix=f"one of auto, {', '.join(METHODS)}")
    if METHODS[name].gradients and not model.predicts_next_token:
        raise UsageError(
            f"method {name!r} needs a next-token loss, which {type(model.module).__name__} does not have",
            fix="method='input'",
        )
    return METHODS[name]
