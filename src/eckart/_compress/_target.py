"""What a compression is to reach, and how its cost is counted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eckart._compress._plan import ADDITIVE_UNITS
from eckart.errors import UsageError
from eckart.models._safetensors import parse_size

if TYPE_CHECKING:
    from eckart._compress._methods import Method

__all__ = ["Target", "as_target", "check_target"]

COSTS = ("params", "bytes")


@dataclass(frozen=True)
class Target:
    """One of keep (a fraction of the cost), size (bytes of the weight files) and loss (most that is predicted).

    cost: "params" or "bytes", the attribute of an Option that is counted.
    """

    cost: str
    keep: float | None = None
    size: int | None = None
    loss: float | None = None


def as_target(keep: float | None, size: str | int | None, loss: float | None, cost: str) -> Target:
    """Return the target that these arguments of `compress` set; UsageError unless they set just one."""
    if sum(value is not None for value in (keep, size, loss)) != 1:
        raise UsageError("give one of keep= (a fraction), size= (of the weight files), max_loss_increase= and plan=")
    if keep is not None and not 0 < keep <= 1:
        raise UsageError(
            f"keep = {keep:g} is not a fraction to keep", fix="a number above 0 and at most 1, such as 0.8"
        )
    if loss is not None and not 0 <= loss < math.inf:
        raise UsageError(f"max_loss_increase = {loss:g} cannot be", fix="a number from 0 on, in the unit of the loss")
    if cost not in COSTS:
        raise UsageError(f"cost {cost!r} is not known", fix=f"one of {', '.join(COSTS)}")
    if size is not None:
        return Target("bytes", size=parse_size(size))
    return Target(cost, keep=keep, loss=loss)


def check_target(target: Target, method: Method) -> None:
    """Raise UsageError where the method cannot say what a loss of this size would be."""
    if target.loss is not None and (method.uniform or method.unit not in ADDITIVE_UNITS):
        raise UsageError(
            f"method {method.name!r} predicts no loss that adds up over layers, so max_loss_increase= has no meaning",
            fix="method='two-sided', or keep=",
        )
